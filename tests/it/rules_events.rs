//! Events: each change tells exactly what it did, in order, whatever dies, and whatever is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    epoch::Timing,
    event::{Interest, Interests},
    index::{
        Batch, Shard, Write,
        facts::{self, DeliveryFact, EventFact, EventTarget},
    },
    outbox::{self, Checkpoint, Horizon},
    reconcile,
    registry::{Options, Registry},
    storage::{
        Key, Revision,
        key::{EntryName, EpochNumber},
    },
};
use bytes::Bytes;

use crate::{
    redis_server,
    rules_bench::{self as bench, Bench, kinds, on, push, reader, sha256},
    s3_server,
    wrappers::How,
};

pub(crate) fn hook() -> EntryName {
    "hook".parse().unwrap()
}

/// An endpoint that wants all changes, and pulls where that is said.
pub(crate) fn interests(pulls: bool) -> Interests {
    let all = Interest::everything(hook(), Duration::from_secs(7 * 24 * 3600));
    Interests::new(vec![if pulls { all } else { all.without_pulls() }])
}

/// Has both engines tell the endpoint, whose first checkpoint is written.
pub(crate) async fn listen(bench: &Bench) {
    for engine in [&bench.a, &bench.b] {
        engine.set_interests(interests(false));
    }
    outbox::advance(&bench.b, &hook()).await.unwrap();
}

/// Everything that is to be told, by shard in its order.
pub(crate) async fn pending(bench: &Bench) -> Vec<EventFact> {
    let members = bench.members(|names| names.outbox(&hook())).await;
    members.iter().map(|(_, value)| facts::decode::<DeliveryFact>(value).unwrap().event).collect()
}

/// Takes over what earlier epochs left in some shards; how many events.
async fn inherit(registry: &Registry, shards: impl IntoIterator<Item = Shard>) -> u64 {
    let lease = registry.lease().await.unwrap();
    let earlier = outbox::earlier(registry, &lease).await.unwrap();
    let mut count = 0;
    for shard in shards {
        count += outbox::inherit(registry, &lease, shard, &hook(), &earlier).await.unwrap();
    }
    count
}

/// Delivers what may be delivered now, a page of two at a time.
async fn deliver(registry: &Registry) -> Vec<EventFact> {
    let lease = registry.lease().await.unwrap();
    inherit(registry, lease.names.shards()).await;
    let mut delivered = Vec::new();
    for shard in lease.names.shards() {
        let horizon = Horizon::look(&lease, shard).await.unwrap();
        let mut after: Option<String> = None;
        loop {
            let page = horizon.ready(&lease, &hook(), after.as_deref(), 2).await.unwrap();
            for delivery in page.deliveries {
                let writes = vec![Write::Delete(lease.names.delivery(&hook(), &delivery.member))];
                lease.commit(shard, Batch { writes, ..Batch::default() }).await.unwrap();
                delivered.push(delivery.fact.event);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    delivered
}

/// An event as a line: what, to which tag, about which manifest or blob.
fn line(event: &EventFact) -> String {
    let tag = event.tag.as_ref().map(|tag| format!(" {tag}")).unwrap_or_default();
    let target = match &event.target {
        Some(EventTarget::Manifest(target)) => format!(" {}", target.digest),
        Some(EventTarget::Blob(digest, size)) => format!(" {digest} of {size}"),
        None => String::new(),
    };
    format!("{:?}{tag}{target}", event.action)
}

fn lines(events: &[EventFact]) -> Vec<String> {
    events.iter().map(line).collect()
}

fn blob(action: &str, bytes: &[u8]) -> String {
    format!("{action} {} of {}", sha256(bytes), bytes.len())
}

fn pushes(tag: &str, manifest: &Bytes) -> String {
    format!("Push {tag} {}", sha256(manifest))
}

#[tokio::test]
async fn each_change_tells_what_it_did() {
    let bench = bench::local(bench::options()).await;
    listen(&bench).await;
    let name = || "app".parse().unwrap();
    let one = bench.image("app", "one").await;
    let digest = sha256(&one);
    let (config, layer) = (blob("Push", b"config of one"), blob("Push", b"layer of one"));
    assert_eq!(lines(&deliver(&bench.a).await), [config, layer.clone()]);
    bench.blob("app", b"layer of one").await;
    assert_eq!(lines(&deliver(&bench.a).await), [layer], "the client got its 201");
    for what in ["new", "there"] {
        let (target, source) = (bench.repo("other").await, bench.repo("app").await);
        target.mount(&source, &sha256(b"layer of one")).await.unwrap().unwrap();
        let told = deliver(&bench.a).await;
        assert_eq!(lines(&told), [blob("Mount", b"layer of one")], "{what}");
        assert_eq!(told[0].from, Some(name()), "{what}");
    }
    for what in ["new", "there"] {
        bench.push("app", &one, &[]).await.unwrap();
        assert_eq!(lines(&deliver(&bench.a).await), [format!("Push {digest}")], "{what}");
    }
    for what in ["new", "so already"] {
        bench.push("app", &one, &["v1", "v2"]).await.unwrap();
        let told = deliver(&bench.a).await;
        assert_eq!(lines(&told), [pushes("v1", &one), pushes("v2", &one)], "{what}");
        assert!(told[0].by == "me" && told[0].repository == name() && told[0].id != told[1].id, "{told:?}");
    }
    bench.repo("app").await.delete_tag(&"v1".parse().unwrap()).await.unwrap();
    assert_eq!(lines(&deliver(&bench.a).await), ["Delete v1"]);
    bench.push("app", &one, &["v3"]).await.unwrap();
    bench.repo("app").await.delete_manifest(&digest).await.unwrap();
    let expected = [pushes("v3", &one), "Delete v2".into(), "Delete v3".into(), format!("Delete {digest}")];
    assert_eq!(lines(&deliver(&bench.a).await), expected);
    bench.repo("app").await.delete_blob(&sha256(b"layer of one")).await.unwrap();
    assert_eq!(lines(&deliver(&bench.a).await), [blob("Delete", b"layer of one")]);
    bench.clock.advance(Options::default().grace * 2);
    assert!(bench.collect().await.links > 0, "the config that nothing needs");
    assert_eq!(lines(&deliver(&bench.a).await), [] as [&str; 0], "garbage collection tells nothing");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_written() {
    let bench = bench::local(bench::options()).await;
    let one = bench.image("app", "one").await;
    bench.push("app", &one, &["v1"]).await.unwrap();
    let counters = || bench.members(|names| names.counter().group);
    let before = counters().await;
    bench.blob("app", b"another").await;
    bench.repo("app").await.delete_blob(&sha256(b"another")).await.unwrap();
    assert_eq!(counters().await, before, "no number is drawn");
    assert!(pending(&bench).await.is_empty());
    assert!(outbox::newest(&bench.a, &hook()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_pull_is_told_where_it_is_asked_for() {
    let options = bench::options();
    let untold = options.untold.clone();
    let bench = bench::local(options).await;
    let digest = bench.blob("app", b"bytes").await;
    for pulls in [false, true] {
        bench.a.set_interests(interests(pulls));
        bench.probe.reset();
        let reader = reader(&bench.a, "app").await;
        reader.blob(&digest).await.unwrap();
        reader.tell_pull(None, EventTarget::Blob(digest.clone(), 5), || "me".into()).await;
        assert_eq!(bench.probe.cost().round_trips, if pulls { 2 } else { 1 });
        let expected = if pulls { vec![blob("Pull", b"bytes")] } else { Vec::new() };
        assert_eq!(lines(&pending(&bench).await), expected);
    }
    assert_eq!(untold.pulls.get(), 0);
    let reader = reader(&bench.a, "app").await;
    bench.probe.strike(How::After, |_, call| call.kind == "commit");
    reader.tell_pull(None, EventTarget::Blob(digest, 5), || "me".into()).await;
    assert!(bench.probe.spare().is_some());
    assert_eq!(untold.pulls.get(), 1, "it was read all the same");
}

/// A writer dies between its answer and its commit, and others overtake it: its event comes first all the same,
/// and only its own repository waits.
#[tokio::test]
async fn an_overtaken_push_is_told_in_its_order() {
    let bench = bench::local(Options { shards: 1, ..bench::options() }).await;
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    let other = bench.image("other", "one").await;
    listen(&bench).await;
    bench.probe.strike(How::HangBefore, |_, call| call.kind == "commit" && call.about.contains(":tags:app"));
    tokio::select! {
        _ = async { push(&on(&bench.a, "app").await, &one, &["v1"]).await } => panic!("it hangs"),
        () = async { while !bench.probe.has_hung() { tokio::time::sleep(Duration::from_millis(2)).await } } => {}
    }
    bench.probe.spare();
    push(&on(&bench.b, "app").await, &two, &["v2"]).await.unwrap();
    push(&on(&bench.b, "other").await, &other, &["v1"]).await.unwrap();
    assert_eq!(lines(&deliver(&bench.b).await), [pushes("v1", &other)]);
    outbox::advance(&bench.b, &hook()).await.unwrap();
    bench.clock.advance(Duration::from_secs(60));
    bench.work().await;
    assert_eq!(lines(&pending(&bench).await), [pushes("v1", &one), pushes("v2", &two)]);
    assert_eq!(lines(&deliver(&bench.b).await), [pushes("v1", &one), pushes("v2", &two)]);
}

/// What was not delivered when the index was lost is told again, in its order and under the same ids; what a
/// checkpoint covers isn't. The new index has no checkpoint before all that is delivered.
#[tokio::test]
async fn a_lost_index_tells_again_what_no_checkpoint_covers() {
    let bench = bench::local(bench::options()).await;
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    bench.push("app", &one, &["before"]).await.unwrap();
    listen(&bench).await;
    bench.push("app", &one, &["v1", "gone"]).await.unwrap();
    assert_eq!(deliver(&bench.a).await.len(), 2);
    assert!(outbox::advance(&bench.a, &hook()).await.unwrap());
    assert!(!outbox::advance(&bench.b, &hook()).await.unwrap(), "nothing has changed");
    bench.push("app", &two, &["v1"]).await.unwrap();
    bench.push("app", &two, &["v2"]).await.unwrap();
    bench.push("app", &one, &["v1"]).await.unwrap();
    bench.repo("app").await.delete_tag(&"gone".parse().unwrap()).await.unwrap();
    let mut lost = pending(&bench).await;
    lost.iter_mut().for_each(|event| event.request = None);
    assert_eq!(lost.len(), 4);
    let mut bench = bench;
    for what in ["lost", "lost again, before anything was delivered"] {
        bench = bench.with_new_index().await;
        for engine in [&bench.a, &bench.b] {
            engine.set_interests(interests(false));
        }
        assert!(!outbox::advance(&bench.a, &hook()).await.unwrap(), "{what}: not settled");
        let (walk, other) = (reconcile::walk(&bench.a, |_| {}), reconcile::walk(&bench.b, |_| {}));
        let (walked, other) = futures_util::join!(walk, other);
        assert!(walked.is_ok() && other.is_ok());
        let mut again = pending(&bench).await;
        // Two that reconcile side by side may both tell of what was outranked.
        let mut known = Vec::new();
        again.retain(|event| {
            !known.contains(&event.id) && {
                known.push(event.id);
                true
            }
        });
        assert_eq!(again, lost, "{what}");
        assert!(!outbox::advance(&bench.a, &hook()).await.unwrap(), "{what}: not delivered");
    }
    deliver(&bench.b).await;
    assert!(outbox::advance(&bench.a, &hook()).await.unwrap());
    let bench = bench.with_new_index().await;
    bench.a.set_interests(interests(false));
    reconcile::walk(&bench.a, |_| {}).await.unwrap();
    assert_eq!(lines(&pending(&bench).await), [] as [&str; 0], "all was delivered");
    let checkpoints = bench.store.list("checkpoints/hook/", None, 10).await.unwrap().objects;
    assert!(matches!(Key::parse(&checkpoints[0].0), Some(Key::Checkpoint { .. })), "{checkpoints:?}");
    assert_eq!(checkpoints.len(), 1, "older ones are removed");
}

/// Has one replica die amid the push of a manifest by its digest: its client got 201, and the index no commit.
async fn push_without_commit(bench: &Bench, repository: &str, manifest: &Bytes) {
    bench.probe.strike(How::HangBefore, |_, call| call.kind == "commit" && call.about.contains(":outbox:hook"));
    tokio::select! {
        _ = async { push(&on(&bench.a, repository).await, manifest, &[]).await } => panic!("it hangs"),
        () = async { while !bench.probe.has_hung() { tokio::time::sleep(Duration::from_millis(2)).await } } => {}
    }
    bench.probe.spare();
}

/// What Redis had not told when it was restarted, by whatever signal, is told by the next epoch, and by the one after
/// that: under the same ids, in its order, before what is new, though the shards are others by then.
#[tokio::test]
async fn a_restarted_redis_tells_what_it_had_not_told() {
    let mut redis = redis_server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let bucket = s3_server::start().await;
    let timing = Timing { lease: Duration::from_secs(1), ..bench::options().timing };
    let mut expected = Vec::new();
    for (round, shards) in [4, 4, 3].into_iter().enumerate() {
        let bench = bench::over(&redis, &bucket, Options { shards, timing, ..bench::options() }).await;
        listen(&bench).await;
        if round == 1 {
            // Part of it, and then it ends too.
            inherit(&bench.a, [Shard(0), Shard(3)]).await;
        }
        let seed = format!("round {round}");
        let one = bench.image("app", &seed).await;
        let layer = format!("layer of {seed}");
        bench.push("app", &one, &[]).await.unwrap();
        bench.push("app", &one, &["v1"]).await.unwrap();
        bench.repo("app").await.delete_tag(&"v1".parse().unwrap()).await.unwrap();
        bench.blob("app", b"short-lived").await;
        bench.repo("app").await.delete_blob(&sha256(b"short-lived")).await.unwrap();
        let (target, source) = (bench.repo("other").await, bench.repo("app").await);
        target.mount(&source, &sha256(layer.as_bytes())).await.unwrap().unwrap();
        expected.extend([
            blob("Push", format!("config of {seed}").as_bytes()),
            blob("Push", layer.as_bytes()),
            format!("Push {}", sha256(&one)),
            pushes("v1", &one),
            "Delete v1".to_owned(),
            blob("Push", b"short-lived"),
            blob("Delete", b"short-lived"),
        ]);
        if round == 2 {
            let told = deliver(&bench.a).await;
            let of = |name: &str| -> Vec<EventFact> {
                told.iter().filter(|event| event.repository.as_str() == name).cloned().collect()
            };
            assert_eq!(lines(&of("app")), expected);
            assert_eq!(of("other").len(), 3);
            let late = of("late");
            assert_eq!(late.iter().map(|event| event.target.is_some()).collect::<Vec<_>>(), [true; 6], "{late:?}");
            assert_eq!(deliver(&bench.a).await, [] as [EventFact; 0], "none is left");
            return;
        }
        let late = bench.image("late", &seed).await;
        push_without_commit(&bench, "late", &late).await;
        drop(bench);
        if round == 0 {
            redis.stop()
        } else {
            redis.shut_down()
        }
        redis.restart().await;
    }
}

#[test]
fn a_checkpoint_covers_older_epochs_and_what_its_shards_have_passed() {
    let epoch = |generation| EpochNumber { generation, random: 7 };
    let checkpoint = Checkpoint { epoch: epoch(2), delivered: vec![5, 5, 5] };
    for (generation, counter, is_covered) in [(1, 99, true), (2, 5, true), (2, 6, false), (3, 1, false)] {
        let revision = Revision { epoch: epoch(generation), counter };
        assert_eq!(checkpoint.covers(&"app".parse().unwrap(), revision), is_covered, "{revision}");
    }
    let repositories = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| name.parse().unwrap());
    let mut shards = Checkpoint { epoch: epoch(2), delivered: vec![0, 9] };
    let revision = Revision { epoch: epoch(2), counter: 9 };
    let covered = |shards: &Checkpoint| repositories.iter().filter(|name| shards.covers(name, revision)).count();
    let in_second = covered(&shards);
    shards.delivered.swap(0, 1);
    assert!(in_second > 0 && covered(&shards) == repositories.len() - in_second, "each by its own shard");
}

/// An endpoint that nobody knew before the index was lost is told nothing of what was before it.
#[tokio::test]
async fn a_new_endpoint_is_told_of_nothing_before_it() {
    let bench = bench::local(bench::options()).await;
    let one = bench.image("app", "one").await;
    bench.push("app", &one, &["v1"]).await.unwrap();
    let bench = bench.with_new_index().await;
    bench.a.set_interests(interests(false));
    assert!(outbox::advance(&bench.a, &hook()).await.unwrap(), "its first checkpoint needs nothing settled");
    reconcile::walk(&bench.a, |_| {}).await.unwrap();
    assert!(pending(&bench).await.is_empty());
}

/// A history keeps what an endpoint was not told, for as long as that may still be told.
#[tokio::test]
async fn a_history_keeps_what_is_to_be_told() {
    let bench = bench::local(Options { history: 2, ..bench::options() }).await;
    let images = [bench.image("app", "one").await, bench.image("app", "two").await];
    listen(&bench).await;
    for round in 0..6 {
        bench.push("app", &images[round % 2], &["v1"]).await.unwrap();
    }
    let revisions = async || {
        bench.work().await;
        kinds(&bench.keys().await)["tag"]
    };
    assert_eq!(revisions().await, 6);
    deliver(&bench.a).await;
    outbox::advance(&bench.a, &hook()).await.unwrap();
    bench.clock.advance(Duration::from_secs(60));
    bench.push("app", &images[0], &["v1"]).await.unwrap();
    assert_eq!(revisions().await, 2);
    bench.push("app", &images[1], &["v1"]).await.unwrap();
    bench.push("app", &images[0], &["v1"]).await.unwrap();
    assert_eq!(revisions().await, 3, "the first after the checkpoint, and what came after it");
    bench.clock.advance(Duration::from_secs(8 * 24 * 3600));
    bench.push("app", &images[1], &["v1"]).await.unwrap();
    assert_eq!(revisions().await, 2, "too old to be told");
}
