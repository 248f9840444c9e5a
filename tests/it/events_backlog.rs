//! What waits: for an endpoint that is down, where it costs nobody anything, and for one that is gone, where it goes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use berth::{
    config::Config,
    delivery::{Endpoints, Which},
    epoch::Timing,
    outbox,
    registry::Options,
    telemetry::{Format, logs::subscriber},
};
use bytes::Bytes;
use ulid::Ulid;

use crate::{
    events_delivery::{Replica, ci, settings},
    hook::{Hook, Told},
    rules_bench::{self as bench, Bench, on},
    server::Kept,
    wrappers::Cost,
};

const MINUTE: Duration = Duration::from_secs(60);

/// How many events are made wait.
const PENDING: &str = "BERTH_EVENTS_PENDING";

/// How many tags one push sets: each is an event.
const TAGS: usize = 100;

/// How many events are read at a time, in each shard.
const PAGE: usize = 100;

const REPOSITORIES: usize = 10;

/// The pages of its memory that this process has, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// Moves one tag fifty times by engine A; what the last time cost, and how long half of them took at most.
async fn moves(bench: &Bench, manifests: &[Bytes; 2]) -> (Cost, Duration) {
    let mut took = Vec::new();
    let mut cost = None;
    for round in 0..50 {
        // What goes on in the background has ended by then.
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.probe.reset();
        let began = Instant::now();
        bench::push(&on(&bench.a, "app0").await, &manifests[round % 2], &["moved"]).await.unwrap();
        took.push(began.elapsed());
        cost = Some(bench.probe.cost());
    }
    took.sort_unstable();
    (cost.unwrap(), took[took.len() / 2])
}

/// Each repository's events came once each, and in the order of its pushes: time was moved on between them.
fn assert_in_order(told: &[Told], rounds: usize) {
    let mut by_repository: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    let ids: BTreeSet<&str> = told.iter().map(|told| told.header("webhook-id")).collect();
    assert_eq!(ids.len(), told.len(), "an event came twice");
    for told in told {
        let (line, id) = (told.line(), Ulid::from_string(told.header("webhook-id")).unwrap());
        let (repository, tag) = line.strip_prefix("push ").unwrap().split_once(' ').unwrap();
        by_repository.entry(repository.to_owned()).or_default().push((id.timestamp_ms() / 1000, tag.to_owned()));
    }
    assert_eq!(by_repository.len(), REPOSITORIES);
    for (repository, mut events) in by_repository {
        assert!(events.is_sorted_by_key(|(at, _)| *at), "{repository}");
        events.retain(|(_, tag)| tag != "moved");
        let expected = (0..rounds).flat_map(|_| (0..TAGS).map(|tag| format!("t{tag}")));
        assert!(events.into_iter().map(|(_, tag)| tag).eq(expected), "{repository}");
    }
}

/// One engine pushes, the other one delivers. An hour is moved on in steps; the endpoint is probed meanwhile, and not
/// asked for each event.
#[tokio::test]
async fn an_endpoint_that_is_down_for_an_hour_costs_nobody_anything_and_is_then_told_everything() {
    let pending: usize = std::env::var(PENDING).map_or(4000, |count| count.parse().unwrap());
    let rounds = pending.div_ceil(TAGS * REPOSITORIES);
    // A lease that needs no renewal, so that no request is not the push's own.
    let timing = Timing { lease: 100 * MINUTE, ..bench::options().timing };
    let (bench, hook) = (bench::in_directory(Options { timing, ..bench::options() }).await, Hook::start().await);
    let names: Vec<String> = (0..REPOSITORIES).map(|number| format!("app{number}")).collect();
    let mut manifests = Vec::new();
    for name in &names {
        manifests.push(bench.image(name, name).await);
    }
    let moved = [manifests[0].clone(), bench.image("app0", "another").await];
    let replica = Replica::start(&bench, &bench.b, &settings(&hook.url(), ""));
    moves(&bench, &moved).await;
    replica.until(0, 0).await;
    let (cost, took) = moves(&bench, &moved).await;
    replica.until(0, 0).await;
    println!("a push, with nothing pending: {} round trips, {} requests, {took:?}", cost.round_trips, cost.requests);

    hook.says(503);
    hook.forget();
    let tags: Vec<String> = (0..TAGS).map(|tag| format!("t{tag}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let (before, began) = (resident(), Instant::now());
    for _ in 0..rounds {
        bench.clock.advance(Duration::from_secs(1));
        for (name, manifest) in names.iter().zip(&manifests) {
            bench::push(&on(&bench.a, name).await, manifest, &tags).await.unwrap();
        }
    }
    println!("{} events in {:?}", rounds * TAGS * REPOSITORIES, began.elapsed());
    let filled = resident();
    for _ in 0..60 {
        bench.clock.advance(MINUTE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = resident();
    println!(
        "this process, its index and its endpoint: {before} KiB before, {filled} KiB then, {after} KiB an hour later"
    );
    let tries = hook.told().len();
    assert!(tries < 100, "{tries} requests to one that was down");
    let (cost_then, took_then) = moves(&bench, &moved).await;
    let waiting = replica.counts().await;
    assert_eq!(waiting, ((rounds * TAGS * REPOSITORIES + 50) as u64, 0));
    println!(
        "a push, with {} pending: {} round trips, {} requests, {took_then:?}",
        waiting.0, cost_then.round_trips, cost_then.requests
    );
    assert_eq!((cost.round_trips, cost.requests), (cost_then.round_trips, cost_then.requests));

    hook.forget();
    hook.says(200);
    bench.clock.advance(MINUTE);
    let began = Instant::now();
    replica.until(0, 0).await;
    println!("all delivered in {:?}, {} at most read at once in a shard", began.elapsed(), bench.probe_b.widest());
    assert!(bench.probe_b.widest() <= PAGE, "{} events were read at once", bench.probe_b.widest());
    let told = hook.told();
    assert_eq!(told.len() as u64, waiting.0);
    assert_in_order(&told, rounds);
}

/// What the other replica, which serves no endpoint, shows of each: pending, dead.
async fn shown(replica: &Replica) -> Vec<(u64, u64)> {
    let states = replica.deliverer.states().await.unwrap();
    assert!(states.iter().all(|state| state.name == ci() && state.format.is_none() && state.place.is_none()));
    states.iter().map(|state| (state.pending, state.dead)).collect()
}

/// As in a rolling deployment, in which only one of two replicas knows an endpoint, which is then gone, comes back, and
/// goes for good.
#[tokio::test]
async fn what_waits_for_an_endpoint_that_nobody_serves_goes_after_an_hour() {
    let kept = Kept::default();
    let writer = kept.clone();
    let _log = tracing::subscriber::set_default(subscriber(Format::Json, "info", move || writer.clone()).unwrap());
    let (bench, hook) = (bench::in_directory(bench::options()).await, Hook::start().await);
    let app = bench.image("app", "one").await;
    hook.says(503);
    let bounds = format!("[events]\nmax_pending = 2\n{}", settings(&hook.url(), ""));
    let mut serving = Replica::start(&bench, &bench.a, &bounds);
    let other = Replica::idle(&bench.b, Endpoints::open(&Config::default()).unwrap());
    serving.deliverer.begin().await;
    let tell = async |tag| bench::push(&on(&bench.a, "app").await, &app, &[tag]).await.unwrap();
    for tag in ["1", "2", "3"] {
        tell(tag).await;
    }
    serving.until(2, 1).await;
    for _ in 0..4 {
        bench.clock.advance(30 * MINUTE);
        serving.deliverer.begin().await;
        other.deliverer.clear_abandoned().await.unwrap();
        assert_eq!(shown(&other).await, [(2, 1)], "it is served");
    }
    // From here on it is noted by nobody, but at the moment at which it comes back.
    serving._task.shutdown().await;
    bench.clock.advance(59 * MINUTE);
    other.deliverer.clear_abandoned().await.unwrap();
    serving.deliverer.begin().await;
    bench.clock.advance(59 * MINUTE);
    other.deliverer.clear_abandoned().await.unwrap();
    assert_eq!(shown(&other).await, [(2, 1)], "it came back");
    assert_eq!(other.deliverer.letters(&ci(), Which::Pending).await.unwrap().count, 2);
    assert_eq!(other.deliverer.letters(&ci(), Which::Dead).await.unwrap().letters.len(), 1);

    tell("4").await;
    bench.clock.advance(2 * MINUTE);
    other.deliverer.clear_abandoned().await.unwrap();
    assert_eq!(shown(&other).await, [(1, 0)], "what just happened stays, whoever still told it");
    bench.clock.advance(61 * MINUTE);
    other.deliverer.clear_abandoned().await.unwrap();
    assert!(shown(&other).await.is_empty());
    assert!(other.deliverer.letters(&ci(), Which::Pending).await.is_err());
    assert_eq!(outbox::newest(&bench.b, &ci()).await.unwrap(), None);
    for group in [
        bench.members(|names| names.outbox(&ci())).await,
        bench.members(|names| names.dead(&ci())).await,
        bench.members(|names| names.inherited(&ci()).group).await,
        bench.members(|names| names.all_served()).await,
    ] {
        assert!(group.is_empty(), "{group:?}");
    }
    let log = kept.text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("nobody has served")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].contains("\"endpoint\":\"ci\"") && lines[0].contains("\"events\":3"), "{}", lines[0]);
    assert!(lines[1].contains("\"endpoint\":\"ci\"") && lines[1].contains("\"events\":1"), "{}", lines[1]);
}

/// A new index knows nothing of who was served; the bucket does.
#[tokio::test]
async fn an_endpoint_of_which_the_bucket_alone_knows_goes_too() {
    let (bench, hook) = (bench::in_directory(bench::options()).await, Hook::start().await);
    drop(Replica::start(&bench, &bench.a, &settings(&hook.url(), "")));
    outbox::advance(&bench.a, &ci()).await.unwrap();
    let bench = bench.with_new_index().await;
    for (minutes, is_there) in [(0, true), (59, true), (2, false)] {
        bench.clock.advance(minutes * MINUTE);
        outbox::clear_abandoned(&bench.a).await.unwrap();
        assert_eq!(outbox::newest(&bench.a, &ci()).await.unwrap().is_some(), is_there, "after {minutes} minutes");
    }
}
