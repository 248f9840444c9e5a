//! Three replicas over one bucket and one Redis, clients that do everything at once, and everything that can go
//! wrong going wrong: no acknowledged push is lost, no tag goes back, nothing unneeded stays.
//!
//! `docs/chaos.md` says how to run it for hours. A run is told by its seed: `BERTH_CHAOS_SEED` draws the same
//! faults and the same requests again, though not the same races between them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clients;
mod dice;
mod faults;
mod links;
mod replica;
mod servers;
mod weather;

#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/berth.rs"]
mod berth;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/e2e_client.rs"]
mod e2e_client;
#[path = "../it/history.rs"]
mod history;
#[path = "../it/ledger.rs"]
mod ledger;
#[path = "../it/linear.rs"]
mod linear;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/redis_server.rs"]
mod redis_server;
#[path = "../it/s3_server.rs"]
mod s3_server;
#[path = "../it/strace.rs"]
mod strace;

use std::{
    collections::BTreeMap,
    process::Output,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tempfile::TempDir;

use clients::{Actor, STEADY, World};
use dice::Dice;
use e2e_client::Client;
use faults::{Faults, Spans, vex_redis, vex_replicas, vex_store};
use ledger::{Count, Kind};
use replica::Replica;
use s3_server::S3Server;
use servers::Servers;
use weather::{StormyStore, Tally};

const REPLICAS: usize = 3;

/// How many clients change things at a time, beside those of the steady tags, and how many read.
const WRITERS: usize = 8;
const READERS: usize = 5;

/// For how long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// For how long an upload may stand still, where there is a collection.
const UPLOAD_EXPIRY: Duration = Duration::from_secs(10);

/// How long a registry may take to heal once nothing goes wrong any more. It takes an epoch, mostly.
const HEALING: Duration = Duration::from_secs(120);

/// One run.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
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
    /// Manifests that were read back whole through every replica.
    manifests: usize,
    length: Duration,
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
        self.manifests += other.manifests;
        self.length += other.length;
    }

    fn print(&self, what: &str) {
        println!("{what}: {:.1} minutes of chaos", self.length.as_secs_f64() / 60.0);
        println!("  {:20} {:>9} {:>9} {:>9}", "", "done", "unknown", "refused");
        for (kind, Count { done, unknown, refused }) in &self.counts {
            println!("  {:20} {done:>9} {unknown:>9} {refused:>9}", format!("{kind:?}"));
        }
        println!("  {} tags in an order, of {} operations; {} reads of steady tags", self.tags, self.events, self.steady);
        println!("  {} manifests read back whole through each replica", self.manifests);
        for (fault, count) in &self.faults {
            println!("  {count:>9} {fault}");
        }
    }
}

/// A registry in the middle of it.
struct Site {
    plan: Plan,
    tally: Tally,
    store: StormyStore,
    servers: Servers,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    http: reqwest::Client,
    _bucket: S3Server,
    directory: TempDir,
}

impl Site {
    async fn start(plan: Plan, dice: &mut Dice) -> Self {
        let (tally, directory) = (Tally::default(), TempDir::new().unwrap());
        let bucket = s3_server::start().await;
        let store = StormyStore::start(&bucket.endpoint, dice.fork(), tally.clone()).await;
        let servers = Servers::start(REPLICAS, tally.clone()).await;
        let skews = if plan.faults.clocks { [0, -(dice.range(60..240) as i64), -(dice.range(60..240) as i64)] } else { [0; 3] };
        let replica = |number: usize| {
            let mut settings = [bucket.settings(), plan.settings()].concat();
            settings.push(("BERTH_INDEX__URL", servers.url(number)));
            settings.iter_mut().filter(|(name, _)| name.ends_with("ENDPOINT")).for_each(|(_, url)| url.clone_from(&store.endpoint));
            Replica::new(&settings, skews[number], directory.path().join(format!("log-{number}")), tally.clone())
        };
        let mut replicas: Vec<Replica> = (0..REPLICAS).map(replica).collect();
        replicas.iter_mut().for_each(Replica::start);
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
        let http = builder.build().unwrap();
        let clients = replicas.iter().map(|replica| replica.client(&http)).collect();
        Self { plan, tally, store, servers, replicas, clients, http, _bucket: bucket, directory }
    }

    /// Waits until every replica is ready and takes pushes. Returns whether that came to pass.
    async fn heal(&mut self, actor: &mut Actor) -> bool {
        let began = Instant::now();
        for number in 0..REPLICAS {
            loop {
                self.replicas.iter_mut().for_each(Replica::start);
                let is_ready = self.readiness(number).await.is_some_and(|said| said.contains(r#""status":"ready""#));
                if is_ready && actor.probe(&self.clients[number]).await {
                    break;
                }
                if began.elapsed() > HEALING {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        true
    }

    async fn readiness(&self, number: usize) -> Option<String> {
        let admin = self.replicas[number].admin();
        tokio::task::spawn_blocking(move || crate::berth::get(admin, "/readyz")).await.unwrap()
    }

    /// Lets everything go wrong for as long as the plan says, while clients go on.
    async fn suffer(&mut self, world: &Arc<World>, dice: &mut Dice) {
        let mut actors = Vec::new();
        for _ in 0..WRITERS {
            actors.push(tokio::spawn(Actor::new(world, dice.fork()).write()));
        }
        for _ in 0..READERS {
            actors.push(tokio::spawn(Actor::new(world, dice.fork()).read()));
        }
        for tag in 0..STEADY {
            actors.push(tokio::spawn(Actor::new(world, dice.fork()).write_steadily(tag)));
        }
        let (end, spans, faults) = (Instant::now() + self.plan.length, self.plan.spans, self.plan.faults.clone());
        tokio::join!(
            vex_replicas(&mut self.replicas, &faults.replicas, spans, dice.fork(), &self.tally, end),
            vex_redis(&mut self.servers, &faults.redis, spans, dice.fork(), end),
            vex_store(&self.store, &faults.store, spans, dice.fork(), end),
        );
        world.stop();
        for actor in actors {
            actor.await.unwrap();
        }
    }

    /// What would be removed, or why that can't be said.
    async fn garbage(&mut self) -> Result<(), String> {
        let replica = &self.replicas[0];
        let Output { status, stdout, stderr } = replica.command(&["gc", "run", "--dry-run"]);
        let (said, why) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("would remove")).collect();
        match (status.success(), lines.as_slice()) {
            (true, []) => Ok(()),
            (true, lines) => Err(lines.join("\n")),
            (false, _) => Err(format!("{status}: {why}")),
        }
    }

    /// Waits until nothing is left that nothing needs: two periods, once what there is may be old enough.
    async fn collected(&mut self, world: &World, period: Duration, grace: Duration) {
        let patience = grace * 2 + period * 2 + Duration::from_secs(30);
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            match self.garbage().await {
                Ok(()) => break println!("  nothing unneeded was left after {:?}", began.elapsed()),
                Err(_) if began.elapsed() < patience => {}
                Err(left) => break world.ledger.complain(format!("after {:?} there is left:\n{left}", began.elapsed())),
            }
        }
    }

    /// Reads everything back through every replica.
    async fn read_back(&self, world: &Arc<World>, dice: &mut Dice) -> usize {
        let mut readers = Vec::new();
        let (there, gone) = world.ledger.manifests();
        let manifests = there.len();
        let work = Arc::new((world.ledger.tags(), there, gone));
        for client in &self.clients {
            let (client, work, mut actor) = (client.clone(), Arc::clone(&work), Actor::new(world, dice.fork()));
            readers.push(tokio::spawn(async move {
                for (repository, tag) in &work.0 {
                    while !actor.pull_tag_from(&client, repository, tag).await {}
                }
                for (repository, digest) in work.1.iter().chain(&work.2) {
                    while !actor.pull_digest_from(&client, repository, digest).await {}
                }
                for tag in 0..STEADY {
                    while !actor.read_steady_from(&client, tag).await {}
                }
            }));
        }
        for reader in readers {
            reader.await.unwrap();
        }
        manifests
    }
}

/// Runs a plan. What was wrong is told, and nothing else is wrong.
async fn run(plan: Plan) -> Report {
    println!("BERTH_CHAOS_SEED={}: {:?}, {:?}, collection {:?}", plan.seed, plan.length, plan.spans, plan.collect);
    let (length, collect, grace) = (plan.length, plan.collect, plan.grace());
    let mut dice = Dice::new(plan.seed);
    let mut site = Site::start(plan, &mut dice).await;
    let world = Arc::new(World::new(site.clients.clone(), site.http.clone(), grace, 30..300));
    let mut actor = Actor::new(&world, dice.fork());
    if !site.heal(&mut actor).await {
        panic!("the replicas don't start: see the logs in {}", site.directory.keep().display());
    }
    site.suffer(&world, &mut dice).await;
    site.store.calm().await;
    let began = Instant::now();
    if site.heal(&mut actor).await {
        println!("  healed after {:?}", began.elapsed());
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
        manifests,
        length,
    };
    let complaints = world.ledger.complaints();
    if !complaints.is_empty() {
        report.print("with violations");
        let seed = site.plan.seed;
        let kept = site.directory.keep();
        panic!("BERTH_CHAOS_SEED={seed}: {} violations, logs in {}:\n{}", complaints.len(), kept.display(), complaints.join("\n"));
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
    run(Plan { seed: seed(), length, spans: Spans::SHORT, faults: Faults::all(), collect }).await.print("all faults");
}

/// For `BERTH_CHAOS_MINUTES` (10, where it isn't set): runs of `BERTH_CHAOS_RUN` minutes each, one after the other,
/// with the seeds that follow. With `BERTH_CHAOS_COLLECT` all of them collect, every so many seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as one wants; `make chaos`"]
async fn for_hours() {
    let (minutes, each) = (setting("BERTH_CHAOS_MINUTES").unwrap_or(10), setting("BERTH_CHAOS_RUN").unwrap_or(5));
    let collect = setting("BERTH_CHAOS_COLLECT").map(Duration::from_secs);
    let first = seed();
    let mut all = Report::default();
    for number in 0..minutes.div_ceil(each) {
        // One run of three with the spans that operators have.
        let spans = if number % 3 == 2 { Spans::DEFAULT } else { Spans::SHORT };
        let length = Duration::from_secs(each * 60);
        let report = run(Plan { seed: first + number, length, spans, faults: Faults::all(), collect }).await;
        report.print(&format!("seed {}", first + number));
        all.add(&report);
        all.print("so far");
    }
}
