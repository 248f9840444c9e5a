//! Three replicas over one bucket and one Redis, clients that do everything at once, and everything that can go
//! wrong going wrong: no acknowledged push is lost, no tag goes back, nothing unneeded stays, and who wants to be told
//! is told.
//!
//! `docs/chaos.md` says how to run it for hours. A run is told by its seed: `BERTH_CHAOS_SEED` draws the same
//! faults and the same requests again, though not the same races between them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clients;
mod dice;
mod endpoint;
mod faults;
mod ledger;
mod linear;
mod links;
mod lone;
mod over;
mod replica;
mod servers;
mod site;
mod slotted;
mod told;
mod watched;
mod weather;

#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/azurite.rs"]
mod azurite;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/berth.rs"]
mod berth;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/disk.rs"]
mod disk;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/e2e_client.rs"]
mod e2e_client;
#[path = "../it/gcs_identity.rs"]
mod gcs_identity;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/gcs_server.rs"]
mod gcs_server;
#[path = "../it/history.rs"]
mod history;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/hook.rs"]
mod hook;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/redis_fleet.rs"]
mod redis_fleet;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/redis_server.rs"]
mod redis_server;
#[path = "../it/s3_server.rs"]
mod s3_server;
#[path = "../it/strace.rs"]
mod strace;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clients::{Actor, World};
use dice::Dice;
use faults::{Faults, ReplicaFault, Spans};
use ledger::{Count, Kind};
use over::Over;
use replica::Replica;
use site::{HEALING, Site};

/// For how long an upload may stand still, where there is a collection.
const UPLOAD_EXPIRY: Duration = Duration::from_secs(10);

/// One run.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    over: Over,
    length: Duration,
    spans: Spans,
    faults: Faults,
    /// How often the bucket is looked through; never, where it is none.
    collect: Option<Duration>,
}

impl Plan {
    /// How old what nothing needs must be before it is collected: as short as the configuration may say.
    fn grace(&self) -> Option<Duration> {
        self.collect.map(|_| UPLOAD_EXPIRY + self.spans.deadline + self.spans.margin * 2 + Duration::from_secs(1))
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let milliseconds = |span: Duration| format!("{}ms", span.as_millis());
        let mut settings = vec![
            ("BERTH_INDEX__LEASE", milliseconds(self.spans.lease)),
            ("BERTH_INDEX__WRITE_DEADLINE", milliseconds(self.spans.deadline)),
            ("BERTH_INDEX__MARGIN", milliseconds(self.spans.margin)),
        ];
        if let (Some(period), Some(grace)) = (self.collect, self.grace()) {
            settings.extend([
                ("BERTH_COLLECT__PERIOD", milliseconds(period)),
                ("BERTH_COLLECT__GRACE", milliseconds(grace)),
                ("BERTH_LIMITS__UPLOAD_EXPIRY", milliseconds(UPLOAD_EXPIRY)),
            ]);
        }
        settings
    }
}

/// What a run, or several, came to.
#[derive(Clone, Debug, Default)]
struct Report {
    counts: BTreeMap<Kind, Count>,
    faults: BTreeMap<String, u64>,
    tags: usize,
    events: usize,
    steady: usize,
    /// Events of tags that the endpoint took.
    told: usize,
    /// Manifests that were read back whole through every replica.
    manifests: usize,
    length: Duration,
    violations: Vec<String>,
}

impl Report {
    fn add(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            let sum = self.counts.entry(*kind).or_default();
            sum.done += count.done;
            sum.unknown += count.unknown;
            sum.refused += count.refused;
        }
        for (fault, count) in &other.faults {
            *self.faults.entry(fault.clone()).or_default() += count;
        }
        self.tags += other.tags;
        self.events += other.events;
        self.steady += other.steady;
        self.told += other.told;
        self.manifests += other.manifests;
        self.length += other.length;
        self.violations.extend_from_slice(&other.violations);
    }

    fn print(&self, what: &str) {
        println!("{what}: {:.1} minutes of chaos", self.length.as_secs_f64() / 60.0);
        println!("  {:20} {:>9} {:>9} {:>9}", "", "done", "unknown", "refused");
        for (kind, Count { done, unknown, refused }) in &self.counts {
            println!("  {:20} {done:>9} {unknown:>9} {refused:>9}", format!("{kind:?}"));
        }
        println!(
            "  {} tags in an order, of {} operations; {} reads of steady tags",
            self.tags, self.events, self.steady
        );
        println!("  {} manifests read back whole through each replica; {} events told", self.manifests, self.told);
        for (fault, count) in &self.faults {
            println!("  {count:>9} {fault}");
        }
        println!("  {:>9} violations", self.violations.len());
    }

    /// Prints it, and fails if anything was wrong.
    fn assert(&self, what: &str) {
        self.print(what);
        assert!(self.violations.is_empty(), "{}", self.violations.join("\n"));
    }
}

/// Runs a plan, and checks what clients saw. Where anything was wrong the logs are kept.
async fn run(plan: Plan) -> Report {
    let Plan { seed, over, length, spans, collect, .. } = &plan;
    println!("BERTH_CHAOS_SEED={seed}: {over:?}, {length:?}, {spans:?}, collection {collect:?}");
    let (seed, length, collect, grace) = (plan.seed, plan.length, plan.collect, plan.grace());
    let mut dice = Dice::new(plan.seed);
    let mut site = Site::start(plan, &mut dice).await;
    let world = Arc::new(World::new(site.clients.clone(), site.http.clone(), grace, 30..300));
    let mut actor = Actor::new(&world, dice.fork());
    if !site.heal(&mut actor).await {
        panic!("the replicas don't start: see the logs in {}", site.keep_logs().display());
    }
    site.suffer(&world, &mut dice).await;
    let (began, mut told) = (Instant::now(), 0);
    if site.heal(&mut actor).await {
        println!("  healed after {:?}", began.elapsed());
        told = site.told(&world).await;
        if let (Some(period), Some(grace)) = (collect, grace) {
            site.collected(&world, period, grace).await;
        }
    } else {
        world.ledger.complain(format!("not healed after {HEALING:?}"));
    }
    let manifests = site.read_back(&world, &mut dice).await;
    let ordered = world.ledger.explain();
    let (complaints, steady) = world.recorder.check();
    for complaint in complaints {
        world.ledger.complain(format!("steady {complaint}"));
    }
    for defect in site.replicas.iter().flat_map(Replica::defects) {
        world.ledger.complain(format!("a defect: {defect}"));
    }
    let report = Report {
        counts: world.ledger.counts(),
        faults: site.tally.counts(),
        tags: ordered.tags,
        events: ordered.events,
        steady: steady.reads,
        told,
        manifests,
        length,
        violations: world.ledger.complaints().iter().map(|text| format!("seed {seed}: {text}")).collect(),
    };
    if !report.violations.is_empty() {
        println!("BERTH_CHAOS_SEED={seed}: logs are kept in {}", site.keep_logs().display());
    }
    report
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// As it is set, or another one each time.
fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 % 1_000_000_000;
    setting("BERTH_CHAOS_SEED").unwrap_or_else(now)
}

/// Everything at once, for as long as every change can wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_is_stale() {
    let length = Duration::from_secs(30);
    let collect = Some(Duration::from_secs(5));
    let over = Over::chosen();
    run(Plan { seed: seed(), over, length, spans: Spans::SHORT, faults: Faults::all(over), collect })
        .await
        .assert("all faults");
}

/// One replica whose disk is full again and again, its index on the same disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_loses_nothing() {
    let faults = Faults { replicas: vec![ReplicaFault::Killed], disk: true, ..Faults::default() };
    let length = Duration::from_secs(12);
    let over = Over::chosen();
    run(Plan { seed: seed(), over, length, spans: Spans::SHORT, faults, collect: None }).await.assert("a full disk");
}

/// Each kind of fault by itself, for half a minute or `BERTH_CHAOS_SECONDS`, and none at all first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a quarter of an hour"]
async fn each_fault_alone() {
    let length = Duration::from_secs(setting("BERTH_CHAOS_SECONDS").unwrap_or(30));
    let over = Over::chosen();
    let (mut all, mut alone) = (Faults::all(over), vec![Faults::default()]);
    all.replicas.dedup();
    all.redis.dedup();
    let with = |change: &dyn Fn(&mut Faults)| {
        let mut faults = Faults::default();
        change(&mut faults);
        faults
    };
    alone.extend(all.replicas.iter().map(|fault| with(&|faults| faults.replicas.push(*fault))));
    alone.extend(all.redis.iter().map(|fault| with(&|faults| faults.redis.push(*fault))));
    alone.extend(all.store.iter().map(|turn| with(&|faults| faults.store.push(*turn))));
    alone.push(with(&|faults| faults.endpoint = true));
    if all.clocks {
        alone.push(with(&|faults| faults.clocks = true));
    }
    alone.push(with(&|faults| faults.disk = true));
    for (number, faults) in alone.into_iter().enumerate() {
        let (what, seed) = (format!("{faults:?}"), seed() + number as u64);
        run(Plan { seed, over, length, spans: Spans::SHORT, faults, collect: None }).await.assert(&what);
    }
}

/// For `BERTH_CHAOS_MINUTES` (10, where it isn't set): runs of `BERTH_CHAOS_RUN` minutes each, one after the other,
/// with the seeds that follow. With `BERTH_CHAOS_COLLECT` all of them collect, every so many seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as one wants; `make chaos`"]
async fn for_hours() {
    let (minutes, each) = (setting("BERTH_CHAOS_MINUTES").unwrap_or(10), setting("BERTH_CHAOS_RUN").unwrap_or(5));
    let collect = setting("BERTH_CHAOS_COLLECT").map(Duration::from_secs);
    let (first, over) = (seed(), Over::chosen());
    let mut all = Report::default();
    for number in 0..minutes.div_ceil(each) {
        // One run of three with the spans that operators have.
        let spans = if number % 3 == 2 { Spans::DEFAULT } else { Spans::SHORT };
        let length = Duration::from_secs(each * 60);
        let report = run(Plan { seed: first + number, over, length, spans, faults: Faults::all(over), collect }).await;
        report.print(&format!("seed {}", first + number));
        all.add(&report);
        all.print("so far");
    }
    all.assert("all of it");
}
