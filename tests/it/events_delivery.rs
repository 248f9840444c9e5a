//! Delivery: what happened reaches who wants to know it, once the endpoint takes it, in order, whatever it answers,
//! and nobody else's server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use berth::{
    auth::{AccessRules, Authority},
    config::Config,
    delivery::{Deliverer, Endpoint, Endpoints, Which},
    event::Interests,
    outbox,
    registry::Registry,
    storage::key::EntryName,
    telemetry::Metrics,
};
use bytes::Bytes;
use futures_util::stream;
use http::{StatusCode, header::LOCATION, header::RETRY_AFTER};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::task::JoinSet;

use crate::{
    hook::Hook,
    rules_bench::{self as bench, Bench},
};

pub(crate) fn ci() -> EntryName {
    "ci".parse().unwrap()
}

fn config(settings: &str) -> Config {
    Config::parse(Path::new("berth.toml"), settings).unwrap().config
}

/// The settings of the endpoint `ci` at a URL, on this machine.
pub(crate) fn settings(url: &str, more: &str) -> String {
    format!("[events.endpoints.ci]\nformat = \"distribution\"\nurl = \"{url}\"\nallow = [\"127.0.0.0/8\"]\n{more}\n")
}

/// A replica's deliverer, at work until this is dropped.
pub(crate) struct Replica {
    pub(crate) deliverer: Arc<Deliverer>,
    metrics: Arc<Metrics>,
    pub(crate) _task: JoinSet<()>,
}

impl Replica {
    pub(crate) fn idle(registry: &Arc<Registry>, endpoints: Endpoints) -> Self {
        let metrics = Metrics::new("test");
        let authority = Authority::of_rules(AccessRules::default()).unwrap();
        let deliverer = Deliverer::new(Arc::clone(registry), authority, metrics.events.clone(), endpoints);
        Self { deliverer, metrics, _task: JoinSet::new() }
    }

    /// At work in one engine of the bench, while both write what there is to tell.
    pub(crate) fn start(bench: &Bench, registry: &Arc<Registry>, settings: &str) -> Self {
        for engine in [&bench.a, &bench.b] {
            engine.set_interests(Interests::configured(&config(settings).events).unwrap());
        }
        let mut replica = Self::idle(registry, Endpoints::open(&config(settings)).unwrap());
        replica._task.spawn(Arc::clone(&replica.deliverer).run());
        replica
    }

    pub(crate) async fn counts(&self) -> (u64, u64) {
        let states = self.deliverer.states().await.unwrap();
        (states[0].pending, states[0].dead)
    }

    /// Waits until so many wait, and so many are dead.
    pub(crate) async fn until(&self, pending: u64, dead: u64) {
        while self.counts().await != (pending, dead) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn count(&self, outcome: &str) -> u64 {
        let page = self.metrics.encode().unwrap();
        let begin = format!("berth_event_deliveries_total{{endpoint=\"ci\",outcome=\"{outcome}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&begin)?.parse().ok()).unwrap_or_default()
    }
}

/// An image in a repository, which nobody is told of.
async fn image(bench: &Bench, repository: &str) -> Bytes {
    bench.image(repository, repository).await
}

async fn push(bench: &Bench, repository: &str, manifest: &Bytes, tag: &str) {
    bench.push(repository, manifest, &[tag]).await.unwrap();
}

fn about(lines: &[String], repository: &str) -> Vec<String> {
    lines.iter().filter(|line| line.split(' ').nth(1) == Some(repository)).cloned().collect()
}

#[tokio::test]
async fn a_failing_event_holds_up_its_own_repository_alone_and_keeps_its_order() {
    let (bench, hook) = (bench::local(bench::options()).await, Hook::start().await);
    let (bad, good) = (image(&bench, "bad").await, image(&bench, "good").await);
    let mut replicas =
        [&bench.a, &bench.b].map(|registry| Replica::start(&bench, registry, &settings(&hook.url(), "")));
    hook.answer(|told| {
        if told.line().contains(" bad ") { StatusCode::IM_A_TEAPOT } else { StatusCode::OK }.into_response()
    });
    for tag in ["1", "2", "3"] {
        push(&bench, "bad", &bad, tag).await;
        push(&bench, "good", &good, tag).await;
    }
    replicas[0].until(3, 0).await;
    let lines = hook.lines();
    assert_eq!(about(&lines, "good"), ["push good 1", "push good 2", "push good 3"]);
    assert!(about(&lines, "bad").iter().all(|line| line == "push bad 1"), "{lines:?}");
    let waiting = replicas[0].deliverer.letters(&ci(), Which::Pending).await.unwrap();
    let first = &waiting.letters[0];
    assert_eq!((waiting.count, first.last.as_deref()), (3, Some("418")));
    assert!(first.attempts > 0 && first.next.is_some(), "{first:?}");
    // One alone: where time leaps, nobody's hold on the work lasts, and both would be at it.
    replicas[1]._task.shutdown().await;
    hook.forget();
    hook.says(200);
    bench.clock.advance(Duration::from_secs(600));
    replicas[0].until(0, 0).await;
    assert_eq!(hook.lines(), ["push bad 1", "push bad 2", "push bad 3"]);
    let ids: Vec<_> = hook.told().iter().map(|told| told.header("webhook-id").to_owned()).collect();
    assert_eq!(ids[0], first.event.id.to_string());
    assert_eq!(replicas.iter().map(|replica| replica.count("delivered")).sum::<u64>(), 6);
}

#[tokio::test]
async fn what_is_too_old_is_a_dead_letter_and_comes_back_in_order() {
    let (bench, hook) = (bench::local(bench::options()).await, Hook::start().await);
    let app = image(&bench, "app").await;
    let replica = Replica::start(&bench, &bench.a, &settings(&hook.url(), "max_age = \"1h\""));
    hook.says(503);
    for tag in ["1", "2", "3"] {
        push(&bench, "app", &app, tag).await;
    }
    hook.until(1).await;
    bench.clock.advance(Duration::from_secs(3700));
    // One after the other: each is tried before it is given up, and the one before it holds it up.
    while replica.counts().await != (0, 3) {
        bench.clock.advance(Duration::from_secs(700));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let dead = replica.deliverer.letters(&ci(), Which::Dead).await.unwrap();
    assert!(dead.letters.iter().any(|letter| letter.last.as_deref() == Some("503")), "{dead:?}");
    assert_eq!(replica.count("dead"), 3);
    hook.forget();
    hook.says(200);
    assert_eq!(replica.deliverer.replay(&ci(), &[dead.letters[1].event.id]).await.unwrap(), 1);
    bench.clock.advance(Duration::from_secs(60));
    replica.until(0, 2).await;
    assert_eq!(replica.deliverer.replay(&ci(), &[]).await.unwrap(), 2);
    replica.until(0, 0).await;
    assert_eq!(hook.lines(), ["push app 2", "push app 1", "push app 3"]);
}

#[tokio::test]
async fn what_nobody_takes_is_bounded_and_no_push_waits_for_it() {
    let (bench, hook) = (bench::in_directory(bench::options()).await, Hook::start().await);
    hook.says(500);
    let bounds = "[events]\nmax_pending = 10\nmax_dead = 5\n";
    let replica = Replica::start(&bench, &bench.a, &format!("{bounds}{}", settings(&hook.url(), "")));
    for number in 0..30 {
        let name = format!("app{}", number % 5);
        let app = image(&bench, &name).await;
        push(&bench, &name, &app, &number.to_string()).await;
    }
    loop {
        let (pending, dead) = replica.counts().await;
        if pending <= 10 && dead <= 5 && pending + dead > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(replica.count("dead") >= 20 && replica.count("dropped") >= 15);
    let dead = replica.deliverer.letters(&ci(), Which::Dead).await.unwrap();
    assert!(dead.letters.iter().all(|letter| letter.last.as_deref().unwrap().contains("max_pending")), "{dead:?}");
}

#[tokio::test]
async fn a_replica_that_dies_leaves_its_work_to_another() {
    let (bench, hook) = (bench::local(bench::options()).await, Hook::start().await);
    let app = image(&bench, "app").await;
    let first = Replica::start(&bench, &bench.a, &settings(&hook.url(), "timeout = \"60s\""));
    hook.answers(false);
    push(&bench, "app", &app, "1").await;
    push(&bench, "app", &app, "2").await;
    hook.until(1).await;
    drop(first);
    hook.answers(true);
    hook.says(200);
    let second = Replica::start(&bench, &bench.b, &settings(&hook.url(), ""));
    // The dead one's hold ends by itself.
    bench.clock.advance(Duration::from_secs(16));
    second.until(0, 0).await;
    let lines = hook.lines();
    assert_eq!(lines, ["push app 1", "push app 1", "push app 2"]);
}

#[tokio::test]
async fn an_endpoint_says_when_to_come_back() {
    let (bench, hook) = (bench::local(bench::options()).await, Hook::start().await);
    let app = image(&bench, "app").await;
    let replica = Replica::start(&bench, &bench.a, &settings(&hook.url(), ""));
    hook.answer(|_| (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1800")]).into_response());
    push(&bench, "app", &app, "1").await;
    hook.until(1).await;
    hook.says(200);
    bench.clock.advance(Duration::from_secs(1700));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hook.told().len(), 1);
    bench.clock.advance(Duration::from_secs(120));
    replica.until(0, 0).await;
}

#[tokio::test]
async fn endpoints_come_and_go_while_it_runs() {
    let (bench, hook) = (bench::local(bench::options()).await, Hook::start().await);
    let app = image(&bench, "app").await;
    let replicas = [&bench.a, &bench.b].map(|registry| Replica::start(&bench, registry, ""));
    let tell = async |settings: &str| {
        for replica in &replicas {
            replica.deliverer.set_endpoints(Endpoints::open(&config(settings)).unwrap()).await;
        }
    };
    push(&bench, "app", &app, "1").await;
    tell(&settings(&hook.url(), "")).await;
    assert!(outbox::newest(&bench.a, &ci()).await.unwrap().is_some(), "its checkpoint comes before its first event");
    push(&bench, "app", &app, "2").await;
    hook.until(1).await;
    assert_eq!(hook.lines(), ["push app 2"]);
    tell("").await;
    push(&bench, "app", &app, "3").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(hook.told().len(), 1);
    let replica = &replicas[0];
    assert!(!replica.metrics.encode().unwrap().contains("berth_events_pending{"));
}

/// What one attempt comes to.
async fn tried(bench: &Bench, endpoints: Endpoints) -> (bool, String) {
    let tried = Replica::idle(&bench.a, endpoints).deliverer.test(&ci()).await.unwrap();
    (tried.taken, tried.said)
}

async fn tried_at(bench: &Bench, url: &str, more: &str) -> (bool, String) {
    tried(bench, Endpoints::open(&config(&settings(url, more))).unwrap()).await
}

#[tokio::test]
async fn what_is_not_public_is_not_reached_by_any_name() {
    let (bench, hook) = (bench::in_directory(bench::options()).await, Hook::start().await);
    let port = hook.address.port();
    let plain = |url: &str| format!("[events.endpoints.ci]\nformat = \"cloudevents\"\nurl = \"{url}\"\n");
    for host in
        ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0", "10.0.0.1"]
    {
        let refused = Endpoints::open(&config(&plain(&format!("http://{host}:{port}/")))).unwrap_err().to_string();
        assert!(
            refused.starts_with("events.endpoints.ci.url: ") && refused.contains("not a public address"),
            "{refused}"
        );
    }
    let named = config(&plain(&format!("http://localhost:{port}/")));
    let (taken, said) = tried(&bench, Endpoints::open(&named).unwrap()).await;
    assert!(!taken && said.contains("of localhost) is not a public address"), "{said}");
    assert!(hook.told().is_empty());
    assert!(tried_at(&bench, &format!("http://localhost:{port}/"), "").await.0);
}

#[tokio::test]
async fn redirects_are_followed_where_that_is_wanted_and_allowed() {
    let bench = bench::in_directory(bench::options()).await;
    let (hook, other) = (Hook::start().await, Hook::start().await);
    let more = "redirects = true\nheaders = \"X-Key: s3cret\"\nbearer = true";
    let leads =
        |to: String| hook.answer(move |_| (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to.clone())]).into_response());
    leads(other.url());
    assert_eq!(tried_at(&bench, &hook.url(), "").await, (false, "307".to_owned()), "not unless it is wanted");
    assert!(other.told().is_empty());
    assert_eq!(tried_at(&bench, &hook.url(), more).await, (true, "204".to_owned()));
    let (at_first, led) = (hook.told().pop().unwrap(), other.told().pop().unwrap());
    assert_eq!((at_first.header("x-key"), &at_first.body), ("s3cret", &led.body));
    assert!(at_first.header("authorization").starts_with("Bearer ey"));
    for kept in ["x-key", "authorization", "referer", "cookie"] {
        assert_eq!(led.header(kept), "", "{kept} went to another server");
    }
    for metadata in
        ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://[::ffff:a9fe:a9fe]/"]
    {
        leads(metadata.to_owned());
        let (taken, said) = tried_at(&bench, &hook.url(), more).await;
        assert!(!taken && said.contains("is not a public address"), "{said}");
    }
    leads(hook.url());
    assert_eq!(tried_at(&bench, &hook.url(), more).await, (false, "redirected more than 5 times".to_owned()));
    hook.answer(|_| (StatusCode::FOUND, [(LOCATION, "/elsewhere")]).into_response());
    assert_eq!(tried_at(&bench, &hook.url(), more).await, (false, "302".to_owned()), "it would become a GET");
}

/// A name that leads somewhere else each time that it is asked for.
struct Rebound {
    answers: Mutex<Vec<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Resolve for Rebound {
    fn resolve(&self, _: Name) -> Resolving {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.lock().unwrap().remove(0);
        Box::pin(async { Ok(Box::new(answer.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs) })
    }
}

#[tokio::test]
async fn a_name_that_is_rebound_leads_nowhere_else() {
    let bench = bench::in_directory(bench::options()).await;
    let good = Hook::at([127, 0, 0, 1].into()).await;
    let bad = Hook::listening(SocketAddr::new([127, 0, 0, 2].into(), good.address.port())).await;
    let [here, there]: [IpAddr; 2] = [[127, 0, 0, 1].into(), [127, 0, 0, 2].into()];
    let answers = vec![vec![there, here], vec![there], vec![here]];
    let names = Arc::new(Rebound { answers: Mutex::new(answers), asked: AtomicUsize::new(0) });
    let config = config(&format!(
        "[events.endpoints.ci]\nformat = \"cloudevents\"\nurl = \"http://ci.example:{}/\"\nallow = [\"127.0.0.1\"]\n",
        good.address.port()
    ));
    // No connection is used twice, so each attempt asks for the name, once.
    good.answer(|_| ([("connection", "close")], "").into_response());
    let open = || {
        let make =
            |name, endpoint: &_| Endpoint::with_names(name, &config, endpoint, Arc::clone(&names) as Arc<dyn Resolve>);
        Endpoints::open_by(&config, make).unwrap()
    };
    let replica = Replica::idle(&bench.a, open());
    let first = replica.deliverer.test(&ci()).await.unwrap();
    assert!(first.taken, "{}", first.said);
    assert_eq!(names.asked.load(Ordering::SeqCst), 1, "what was checked is what is connected to");
    let second = replica.deliverer.test(&ci()).await.unwrap();
    assert!(!second.taken && second.said.contains("127.0.0.2 (of ci.example)"), "{}", second.said);
    assert!(replica.deliverer.test(&ci()).await.unwrap().taken);
    assert_eq!((good.told().len(), bad.told().len()), (2, 0));
}

#[tokio::test]
async fn neither_a_slow_endpoint_nor_an_endless_answer_holds_up_another() {
    let bench = bench::in_directory(bench::options()).await;
    let (slow, hook) = (Hook::start().await, Hook::start().await);
    let app = image(&bench, "app").await;
    let endless = || stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 16 << 10])));
    hook.answer(move |_| Response::new(Body::from_stream(endless())));
    let began = Instant::now();
    assert_eq!(tried_at(&bench, &hook.url(), "").await, (true, "200".to_owned()), "its status is an answer");
    assert!(began.elapsed() < Duration::from_secs(5));
    // It takes a connection, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}/", silent.local_addr().unwrap());
    assert_eq!(tried_at(&bench, &at, "timeout = \"1s\"").await, (false, "no answer in time".to_owned()));
    let second = settings(&at, "timeout = \"60s\"").replace("endpoints.ci", "endpoints.slow");
    let replica = Replica::start(&bench, &bench.a, &format!("{}{second}", settings(&slow.url(), "")));
    push(&bench, "app", &app, "1").await;
    slow.until(1).await;
    replica.until(0, 0).await;
}
