//! A registry in the middle of it: its servers, its replicas, and what is done to them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    Plan,
    clients::{Actor, STEADY, World},
    dice::Dice,
    disk::Disk,
    e2e_client::Client,
    endpoint::{self, Endpoint},
    faults::{operate, vex_disk, vex_redis, vex_replicas, vex_store},
    over::Bucket,
    replica::{Console, Replica},
    servers::Servers,
    told::Told,
    weather::{StormyStore, Tally},
};

/// Replicas over one bucket and one Redis.
const REPLICAS: usize = 3;

/// How many clients change things at a time, beside those of the steady tags, and how many read.
const WRITERS: usize = 8;
const READERS: usize = 5;

/// For how long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a registry may take to heal once nothing goes wrong any more. It takes an epoch, mostly.
pub(crate) const HEALING: Duration = Duration::from_secs(240);

/// How much a disk has room for that is to be filled, in mebibytes.
const DISK: u32 = 256;

/// For how long, in seconds, nothing may have waited to be told before what is missing is given up.
const QUIET: u32 = 30;

/// How long it may take until all is told that the endpoint failed to take: it is tried at ever longer intervals.
const TELLING: Duration = Duration::from_secs(900);

/// What the replicas keep everything in.
enum Storage {
    /// And the bucket behind the first.
    Bucket(Box<StormyStore>, Box<Servers>, #[expect(dead_code, reason = "it runs as long as it is held")] Bucket),
    /// Together with the index.
    Directory(Disk),
}

/// A registry.
pub(crate) struct Site {
    plan: Plan,
    pub(crate) tally: Tally,
    // Before what it runs over, so that it ends before it.
    pub(crate) replicas: Vec<Replica>,
    storage: Storage,
    endpoint: Endpoint,
    pub(crate) clients: Vec<Client>,
    /// For what a registry sends clients elsewhere for.
    pub(crate) http: reqwest::Client,
    logs: TempDir,
}

impl Site {
    pub(crate) async fn start(plan: Plan, dice: &mut Dice) -> Self {
        let (tally, logs) = (Tally::default(), TempDir::new().unwrap());
        let log = |number: usize| logs.path().join(format!("log-{number}"));
        let endpoint = Endpoint::start(tally.clone()).await;
        let settings = [plan.settings(), endpoint.settings()].concat();
        let (mut replicas, storage) = match plan.faults.disk {
            true => on_a_disk(settings, log(0), &tally),
            false => over_a_bucket(&plan, &settings, dice, log, &tally).await,
        };
        replicas.iter_mut().for_each(Replica::start);
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
        let http = builder.build().unwrap();
        let clients = replicas.iter().map(|replica| replica.client(&http)).collect();
        Self { plan, tally, replicas, storage, endpoint, clients, http, logs }
    }

    /// Keeps the logs when this is gone; returns where.
    pub(crate) fn keep_logs(self) -> PathBuf {
        self.logs.keep()
    }

    /// Waits until every replica is ready and takes pushes, with its operator's help. Returns whether that came to
    /// pass.
    pub(crate) async fn heal(&mut self, actor: &mut Actor) -> bool {
        let (consoles, spans, end) = (self.consoles(), self.plan.spans, Instant::now() + HEALING);
        let tally = self.tally.clone();
        tokio::select! {
            () = self.wait_for_health(actor) => true,
            () = operate(&consoles, spans, &tally, end) => false,
        }
    }

    fn consoles(&self) -> Vec<Console> {
        self.replicas.iter().map(Replica::console).collect()
    }

    async fn wait_for_health(&mut self, actor: &mut Actor) {
        for (number, console) in self.consoles().iter().enumerate() {
            loop {
                self.replicas.iter_mut().for_each(Replica::start);
                if console.is_ready().await && actor.probe(&self.clients[number]).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// Lets everything go wrong for as long as the plan says, while clients go on.
    pub(crate) async fn suffer(&mut self, world: &Arc<World>, dice: &mut Dice) {
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
        let (end, spans, faults) = (Instant::now() + self.plan.length, self.plan.spans, &self.plan.faults);
        let consoles: Vec<Console> = self.replicas.iter().map(Replica::console).collect();
        let replicas = vex_replicas(&mut self.replicas, &faults.replicas, spans, dice.fork(), &self.tally, end);
        let (endpoint, own) = (&mut self.endpoint, dice.fork());
        let endpoint = async {
            if faults.endpoint {
                endpoint.vex(own, end).await;
            }
        };
        match &mut self.storage {
            Storage::Bucket(store, servers, _) => {
                let redis = vex_redis(servers, &faults.redis, spans, dice.fork(), &self.tally, end);
                let store = vex_store(store, &faults.store, spans, dice.fork(), end);
                tokio::join!(replicas, redis, store, endpoint, operate(&consoles, spans, &self.tally, end));
            }
            Storage::Directory(disk) => {
                tokio::join!(replicas, endpoint, vex_disk(disk.path(), dice.fork(), &self.tally, end));
            }
        }
        world.stop();
        for actor in actors {
            actor.await.unwrap();
        }
        if let Storage::Bucket(store, ..) = &self.storage {
            store.calm().await;
        }
    }

    /// Waits until the endpoint was told of each acknowledged change of a tag, and complains where it never is, or
    /// wrongly. Returns how many events of tags it took.
    pub(crate) async fn told(&self, world: &World) -> usize {
        let (since, mut quiet) = (Instant::now(), 0);
        let (shared, steady) = (world.ledger.histories(), world.steady.histories());
        loop {
            let taken = self.endpoint.taken();
            let told = Told::of(&taken);
            let missing = [told.missing(&shared), told.missing(&steady)].concat();
            quiet = if self.has_told().await { quiet + 1 } else { 0 };
            if missing.is_empty() || quiet > QUIET || since.elapsed() > TELLING {
                let wrong =
                    [&shared, &steady].map(|histories| [told.invented(histories), told.overtaken(histories)].concat());
                for complaint in [missing, wrong.concat()].concat() {
                    world.ledger.complain(format!("{complaint} ({:?} after all was healed)", since.elapsed()));
                }
                println!("  told all after {:?}", since.elapsed());
                return taken.len();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether each replica says that nothing waits to be told.
    async fn has_told(&self) -> bool {
        for console in self.consoles() {
            if !console.has_told(endpoint::NAME).await {
                return false;
            }
        }
        true
    }

    /// What would be removed, or why that can't be said.
    async fn garbage(&self) -> Result<(), String> {
        let Output { status, stdout, stderr } = self.replicas[0].console().run(&["gc", "run", "--dry-run"]).await;
        let (said, why) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("would remove")).collect();
        match (status.success(), lines.as_slice()) {
            (true, []) => Ok(()),
            (true, lines) => Err(lines.join("\n")),
            (false, _) => Err(format!("{status}: {why}")),
        }
    }

    /// Waits until all that is left over is old enough, and two periods more. Then nothing may be left. A round that
    /// rests between its pages takes longer where the machine is busy, so how late it is over is told, and wrong is
    /// only what stays.
    pub(crate) async fn collected(&self, world: &World, period: Duration, grace: Duration) {
        tokio::time::sleep(grace + period * 2).await;
        let since = Instant::now();
        while let Err(left) = self.garbage().await {
            if since.elapsed() > HEALING {
                return world.ledger.complain(format!("two periods after all was healed there is left:\n{left}"));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        println!("  nothing unneeded was left {:?} after two periods", since.elapsed());
    }

    /// Reads everything back through every replica. Returns how many manifests are surely there.
    pub(crate) async fn read_back(&self, world: &Arc<World>, dice: &mut Dice) -> usize {
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

/// Three replicas over a bucket and a Redis.
async fn over_a_bucket(
    plan: &Plan,
    settings: &[(&str, String)],
    dice: &mut Dice,
    log: impl Fn(usize) -> PathBuf,
    tally: &Tally,
) -> (Vec<Replica>, Storage) {
    let mut bucket = Bucket::start(plan.over.store).await;
    let store = StormyStore::start(bucket.endpoint(), dice.fork(), tally.clone()).await;
    bucket.endpoint().clone_from(&store.endpoint);
    let servers = Servers::start(plan.over.index, REPLICAS).await;
    let mut apart = |sign: i64| if plan.faults.clocks { sign * dice.range(60..240) as i64 } else { 0 };
    let skews = [0, apart(1), apart(-1)];
    let replicas = skews.iter().enumerate().map(|(number, skew)| {
        let index = [("BERTH_INDEX__URL", servers.url(number))];
        let settings = [&bucket.settings()[..], settings, &index].concat();
        Replica::new(&settings, *skew, log(number), tally.clone())
    });
    (replicas.collect(), Storage::Bucket(Box::new(store), Box::new(servers), bucket))
}

/// One replica over a directory that is a disk of its own.
fn on_a_disk(mut settings: Vec<(&str, String)>, log: PathBuf, tally: &Tally) -> (Vec<Replica>, Storage) {
    let disk = Disk::mount(DISK);
    let directory: &Path = &disk.path().join("data");
    settings.push(("BERTH_STORAGE__URL", format!("file:{}", directory.display())));
    (vec![Replica::new(&settings, 0, log, tally.clone())], Storage::Directory(disk))
}
