//! Whatever dies, who wants to be told is told: three replicas over one bucket and one Redis, an endpoint that fails in
//! every way that there is, replicas that are killed, and a Redis that is restarted or comes back empty, while clients
//! change many repositories.
//!
//! What was to be told is the clients' own list of what was acknowledged, never what the outbox says. A repository has
//! one client, which waits for each answer, so the list has an order in each repository.
//!
//! `BERTH_EVENTS_PUSHES` sets how many images each part pushes at least (75 where it isn't set).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use tokio::task::{JoinHandle, JoinSet, block_in_place};

use crate::{
    berth::{Berth, Setup, get, own_address},
    e2e_client::{Answer, Client, MANIFEST, image, noise, sha256},
    hook::{Hook, Told},
    redis_server::{self, RedisServer},
    s3_server::{self, S3Server},
};

const CLIENTS: u64 = 6;

/// How many repositories each client changes in turn.
const REPOSITORIES: u64 = 5;

/// How often nothing may have waited, a second apart, before what is missing is given up.
const QUIET: u32 = 60;

/// What a client was told is done, as the endpoint has to hear of it.
#[derive(Clone, Debug)]
struct Change {
    line: String,
    /// Whether a tag was set or deleted: then the bucket proves it.
    is_of_tag: bool,
}

/// How the endpoint takes what it is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    /// It takes it.
    Takes,
    /// It answers 500.
    Breaks,
    /// It never answers.
    Hangs,
    /// It takes it, and answers when nobody waits for that any more.
    Dawdles,
    /// Nobody listens.
    Away,
}

/// What the endpoint has heard.
#[derive(Default)]
struct Heard {
    mood: Mutex<Option<Mood>>,
    /// Whether it refuses everything, whatever its mood is.
    is_deaf: AtomicBool,
    /// What it took, in its order: the event's id, and its line.
    taken: Mutex<Vec<(String, String)>>,
    refused: AtomicU64,
}

impl Heard {
    fn hear(&self, told: &Told) -> Response {
        let takes = matches!(*self.mood.lock().unwrap(), Some(Mood::Takes | Mood::Dawdles));
        if takes && !self.is_deaf.load(Relaxed) {
            self.taken.lock().unwrap().push((told.header("webhook-id").to_owned(), line(told)));
            return StatusCode::NO_CONTENT.into_response();
        }
        self.refused.fetch_add(1, Relaxed);
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }

    /// The place at which each line was taken for the first time.
    fn firsts(&self) -> HashMap<String, usize> {
        let mut firsts = HashMap::new();
        for (place, (_, line)) in self.taken.lock().unwrap().iter().enumerate() {
            firsts.entry(line.clone()).or_insert(place);
        }
        firsts
    }
}

/// An event of Distribution's envelope: what, where, and of which tag and digest.
fn line(told: &Told) -> String {
    let event = &told.json()["events"][0];
    let target = &event["target"];
    let parts = [&event["action"], &target["repository"], &target["tag"], &target["digest"]];
    parts.iter().filter_map(|part| part.as_str()).collect::<Vec<_>>().join(" ")
}

/// The endpoint, whose moods swing until it is told to be well.
struct Endpoint {
    heard: Arc<Heard>,
    address: SocketAddr,
    hook: Option<Hook>,
}

impl Endpoint {
    async fn start() -> Self {
        let hook = Hook::at(own_address().into()).await;
        let mut endpoint = Self { heard: Arc::default(), address: hook.address, hook: None };
        endpoint.open(hook);
        endpoint.be(Mood::Takes).await;
        endpoint
    }

    fn open(&mut self, hook: Hook) {
        let heard = Arc::clone(&self.heard);
        hook.answer(move |told| heard.hear(told));
        self.hook = Some(hook);
    }

    async fn be(&mut self, mood: Mood) {
        *self.heard.mood.lock().unwrap() = Some(mood);
        if mood == Mood::Away {
            self.hook = None;
            return;
        }
        if self.hook.is_none() {
            let hook = Hook::listening(self.address).await;
            self.open(hook);
        }
        if let Some(hook) = &self.hook {
            hook.answers(!matches!(mood, Mood::Hangs | Mood::Dawdles));
            hook.forget();
        }
    }

    async fn swing(mut self, is_over: Arc<AtomicBool>) -> Self {
        let moods = [(Mood::Breaks, 500), (Mood::Hangs, 1500), (Mood::Dawdles, 1500), (Mood::Away, 2500)];
        for (mood, milliseconds) in moods.into_iter().cycle() {
            for (mood, milliseconds) in [(Mood::Takes, 1000), (mood, milliseconds)] {
                self.be(mood).await;
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            }
            if is_over.load(Relaxed) {
                break;
            }
        }
        self.be(Mood::Takes).await;
        self
    }
}

/// What the clients share.
struct Fleet {
    /// One of HTTP for each replica.
    replicas: Vec<Client>,
    is_over: AtomicBool,
    pushes: AtomicU64,
    /// What was acknowledged, by repository, one after the other.
    acknowledged: Mutex<BTreeMap<String, Vec<Change>>>,
    /// How many requests broke off, or were answered 503.
    failed: AtomicU64,
}

impl Fleet {
    /// Nothing was asked of these replicas yet.
    fn of(replicas: Vec<Client>) -> Self {
        let (pushes, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { replicas, is_over: AtomicBool::new(false), pushes, acknowledged: Mutex::default(), failed }
    }

    fn acknowledge(&self, repository: &str, line: String, is_of_tag: bool) {
        let change = Change { line, is_of_tag };
        self.acknowledged.lock().unwrap().entry(repository.to_owned()).or_default().push(change);
    }

    /// How many changes were acknowledged, and how many of them were of tags.
    fn count(&self) -> (usize, usize) {
        let acknowledged = self.acknowledged.lock().unwrap();
        let of_tags = acknowledged.values().flatten().filter(|change| change.is_of_tag).count();
        (acknowledged.values().map(Vec::len).sum(), of_tags)
    }

    /// What was acknowledged and not taken yet.
    fn missing(&self, heard: &Heard) -> Vec<Change> {
        let firsts = heard.firsts();
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.values().flatten().filter(|change| !firsts.contains_key(&change.line)).cloned().collect()
    }

    /// What was first taken after something that was acknowledged later in the same repository.
    fn overtaken(&self, heard: &Heard) -> Vec<String> {
        let firsts = heard.firsts();
        let mut complaints = Vec::new();
        for changes in self.acknowledged.lock().unwrap().values() {
            let places = changes.iter().filter_map(|change| Some((firsts.get(&change.line)?, &change.line)));
            let places: Vec<_> = places.collect();
            for pair in places.windows(2).filter(|pair| pair[0].0 >= pair[1].0) {
                complaints.push(format!("{} came after {}", pair[0].1, pair[1].1));
            }
        }
        complaints
    }
}

/// An image that a repository's tag `latest` has left.
struct Image {
    digest: String,
    /// Another tag that it still has.
    tag: Option<String>,
}

/// One client, with repositories of its own.
struct Pusher {
    fleet: Arc<Fleet>,
    name: u64,
    /// Counts requests: each goes to the replica after the one before.
    turn: usize,
    images: BTreeMap<String, Image>,
}

impl Pusher {
    async fn run(mut self, mut number: u64) -> (Self, u64) {
        while !self.fleet.is_over.load(Relaxed) {
            number += 1;
            self.change(number).await;
            self.fleet.pushes.fetch_add(1, Relaxed);
            // Leaves the processor to those who deliver.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        (self, number)
    }

    /// Asks until there is an answer; with whether the request may have been done before.
    async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> (Answer, bool) {
        let mut is_repeated = false;
        loop {
            self.turn += 1;
            let replica = &self.fleet.replicas[self.turn % self.fleet.replicas.len()];
            match replica.try_send(method, path, headers, body.clone()).await {
                Ok(answer) if answer.status < 500 => return (answer, is_repeated),
                Ok(answer) => drop(answer.expect_error(503, "UNAVAILABLE")),
                Err(_) => {}
            }
            is_repeated = true;
            self.fleet.failed.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Pushes an image to `latest`; now and then mounts its blob from elsewhere, tags it again, and deletes what was
    /// there before.
    async fn change(&mut self, number: u64) {
        let repository = format!("crash/c{}/r{}", self.name, number % REPOSITORIES);
        let blob = noise(self.name << 32 | number, 300);
        if number.is_multiple_of(7) {
            let other = format!("crash/c{}/other", self.name);
            self.push_blob(&other, &blob).await;
            self.mount(&repository, &other, &blob).await;
        } else {
            self.push_blob(&repository, &blob).await;
        }
        let manifest = Bytes::from(image(&blob, std::slice::from_ref(&blob)).to_string());
        self.put(&repository, "latest", &manifest).await;
        let before = self.images.remove(&repository);
        let mut now = Image { digest: sha256(&manifest), tag: None };
        if number.is_multiple_of(4) {
            let tag = format!("v{number}");
            self.put(&repository, &tag, &manifest).await;
            now.tag = Some(tag);
        }
        if let Some(tag) = now.tag.take_if(|_| number.is_multiple_of(8))
            && self.delete(&repository, &tag).await
        {
            self.fleet.acknowledge(&repository, format!("delete {repository} {tag}"), true);
        }
        if let Some(before) = before.filter(|_| number % 6 == 1)
            && self.delete(&repository, &before.digest).await
        {
            if let Some(tag) = before.tag {
                self.fleet.acknowledge(&repository, format!("delete {repository} {tag}"), true);
            }
            self.fleet.acknowledge(&repository, format!("delete {repository} {}", before.digest), false);
        }
        self.images.insert(repository, now);
    }

    async fn push_blob(&mut self, repository: &str, blob: &Bytes) {
        let digest = sha256(blob);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        self.ask("POST", &path, &[], blob.clone()).await.0.expect(201);
        self.fleet.acknowledge(repository, format!("push {repository} {digest}"), false);
    }

    async fn mount(&mut self, repository: &str, from: &str, blob: &Bytes) {
        let digest = sha256(blob);
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}&from={from}");
        let (answer, _) = self.ask("POST", &path, &[], Bytes::new()).await;
        if answer.status == 201 {
            self.fleet.acknowledge(repository, format!("mount {repository} {digest}"), false);
        } else {
            answer.expect(202);
            self.push_blob(repository, blob).await;
        }
    }

    async fn put(&mut self, repository: &str, tag: &str, manifest: &Bytes) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.ask("PUT", &path, &[("content-type", MANIFEST)], manifest.clone()).await.0.expect(201);
        self.fleet.acknowledge(repository, format!("push {repository} {tag} {}", sha256(manifest)), true);
    }

    /// Whether it was acknowledged: of two tries the first may have done it, and the second finds nothing.
    async fn delete(&mut self, repository: &str, reference: &str) -> bool {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let (answer, is_repeated) = self.ask("DELETE", &path, &[], Bytes::new()).await;
        if is_repeated && answer.status == 404 {
            return false;
        }
        answer.expect(202);
        true
    }
}

/// What is done to who serves.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// A replica is killed, and started again.
    Kill,
    /// Redis is killed, and started again with all that it knew.
    Restart,
    /// Both, at once.
    Both,
    /// Redis is killed while much waits to be delivered, and comes back empty.
    Wipe,
}

struct World {
    replicas: Vec<Berth>,
    redis: RedisServer,
    _bucket: S3Server,
    endpoint: Endpoint,
    fleet: Arc<Fleet>,
    pushers: Vec<(Pusher, u64)>,
    blows: usize,
}

impl World {
    async fn start() -> Self {
        let bucket = s3_server::start().await;
        let redis = redis_server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
        let endpoint = Endpoint::start().await;
        let setup = || setup(&bucket, &redis, endpoint.address);
        let replicas: Vec<Berth> = block_in_place(|| {
            thread::scope(|scope| {
                let starting = [(); 3].map(|()| scope.spawn(|| setup().start()));
                starting.map(|replica| replica.join().unwrap()).into()
            })
        });
        let fleet = Arc::new(Fleet::of(replicas.iter().map(Berth::client).collect()));
        let pusher = |name| Pusher { fleet: Arc::clone(&fleet), name, turn: 0, images: BTreeMap::new() };
        let pushers = (0..CLIENTS).map(|name| (pusher(name), 0)).collect();
        Self { replicas, redis, _bucket: bucket, endpoint, fleet, pushers, blows: 0 }
    }

    /// Pushes as many images at least, while these blows are dealt in turn; then waits until all that was acknowledged,
    /// or all of tags, is delivered, and looks at the order.
    async fn storm(mut self, blows: &[Blow], only_tags: bool) -> Self {
        let (began, before) = (Instant::now(), self.fleet.pushes.load(Relaxed));
        self.fleet.is_over.store(false, Relaxed);
        let swinging = Arc::<AtomicBool>::default();
        let heard = Arc::clone(&self.endpoint.heard);
        let endpoint: JoinHandle<Endpoint> = tokio::spawn(self.endpoint.swing(Arc::clone(&swinging)));
        let mut clients: JoinSet<_> = self.pushers.drain(..).map(|(pusher, number)| pusher.run(number)).collect();
        // Of many pushes, a thousand bear each blow once.
        let strikes = blows.len() * usize::try_from(setting().div_ceil(1000)).unwrap();
        for strike_number in 1..=strikes {
            let blow = blows[self.blows % blows.len()];
            strike(blow, &mut self.replicas, &mut self.redis, &self.fleet, &heard, self.blows).await;
            self.blows += 1;
            let until = before + setting() * strike_number as u64 / strikes as u64;
            tokio::time::sleep(Duration::from_millis(500)).await;
            while self.fleet.pushes.load(Relaxed) < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.fleet.is_over.store(true, Relaxed);
        while let Some(pusher) = clients.join_next().await {
            self.pushers.push(pusher.unwrap());
        }
        swinging.store(true, Relaxed);
        let pushed = began.elapsed();
        self.endpoint = endpoint.await.unwrap();
        let pushes = self.fleet.pushes.load(Relaxed) - before;
        println!("{pushes} pushes and {strikes} of {blows:?} took {pushed:?}");
        let world = self.settled(only_tags).await;
        world.report(began.elapsed() - pushed);
        assert_eq!(world.fleet.overtaken(&heard), Vec::<String>::new());
        world
    }

    /// Waits until nothing is missing. What is missing while nothing has waited to be delivered for long is lost.
    async fn settled(self, only_tags: bool) -> Self {
        let mut quiet = 0;
        loop {
            let mut missing = self.fleet.missing(&self.endpoint.heard);
            missing.retain(|change| change.is_of_tag || !only_tags);
            if missing.is_empty() {
                return self;
            }
            let is_quiet = block_in_place(|| self.replicas.iter().all(is_quiet));
            quiet = if is_quiet { quiet + 1 } else { 0 };
            assert!(quiet < QUIET, "{} changes were never told: {:?}", missing.len(), &missing[..missing.len().min(9)]);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn report(&self, took: Duration) {
        let heard = &self.endpoint.heard;
        let (all, of_tags) = self.fleet.count();
        let taken = heard.taken.lock().unwrap().len();
        let ids = heard.taken.lock().unwrap().iter().map(|(id, _)| id.clone()).collect::<HashSet<_>>().len();
        println!(
            "so far {all} changes were acknowledged, {of_tags} of tags; {} requests of clients failed; \
             {taken} events were taken ({} of them again), {} sent in vain; {} changes were not told; \
             the last was delivered {took:?} after the last push",
            self.fleet.failed.load(Relaxed),
            taken - ids,
            heard.refused.load(Relaxed),
            self.fleet.missing(heard).len(),
        );
    }
}

/// A replica of three; an epoch ends soon, so that a new one doesn't take long to begin.
fn setup(bucket: &S3Server, redis: &RedisServer, endpoint: SocketAddr) -> Setup {
    let own = [
        ("BERTH_INDEX__URL", redis.url()),
        // An address that it has again after a restart.
        ("BERTH_SERVER__LISTEN", format!("{}:5000", own_address())),
        ("BERTH_EVENTS__ENDPOINTS__CI__URL", format!("http://{endpoint}/hook")),
    ];
    let fixed = [
        ("BERTH_INDEX__LEASE", "1s"),
        ("BERTH_INDEX__WRITE_DEADLINE", "2s"),
        ("BERTH_INDEX__MARGIN", "300ms"),
        ("BERTH_EVENTS__ENDPOINTS__CI__FORMAT", "distribution"),
        ("BERTH_EVENTS__ENDPOINTS__CI__ALLOW", "127.0.0.0/8"),
        ("BERTH_EVENTS__ENDPOINTS__CI__TIMEOUT", "1s"),
        ("BERTH_EVENTS__ENDPOINTS__CI__CONCURRENCY", "16"),
        ("BERTH_EVENTS__ENDPOINTS__CI__BLOBS", "true"),
    ];
    let settings = [&bucket.settings()[..], &own].concat();
    let settings = settings.iter().map(|(key, value)| (*key, value.as_str())).chain(fixed);
    Setup::of(&settings.collect::<Vec<_>>())
}

fn setting() -> u64 {
    std::env::var("BERTH_EVENTS_PUSHES").map_or(75, |text| text.parse().expect("BERTH_EVENTS_PUSHES is a number"))
}

async fn strike(
    blow: Blow,
    replicas: &mut [Berth],
    redis: &mut RedisServer,
    fleet: &Fleet,
    heard: &Heard,
    number: usize,
) {
    let victim = number % replicas.len();
    match blow {
        Blow::Kill => block_in_place(|| replicas[victim].restart()),
        Blow::Restart => redis.restart().await,
        Blow::Both => {
            block_in_place(|| replicas[victim].kill9());
            redis.restart().await;
            block_in_place(|| replicas[victim].restart());
        }
        Blow::Wipe => {
            heard.is_deaf.store(true, Relaxed);
            let pending = || fleet.missing(heard).iter().filter(|change| change.is_of_tag).count();
            while pending() < 20 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            redis.stop();
            redis.forget();
            redis.restart().await;
            println!("Redis was emptied while {} changes of tags waited", pending());
            heard.is_deaf.store(false, Relaxed);
        }
    }
    while !block_in_place(|| replicas.iter().all(is_ready)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_ready(replica: &Berth) -> bool {
    get(replica.admin(), "/readyz").is_some_and(|answer| answer.contains(r#""status":"ready""#))
}

/// Whether a replica believes its index, and sees nothing in it that waits to be delivered.
fn is_quiet(replica: &Berth) -> bool {
    let metrics = get(replica.admin(), "/metrics").unwrap_or_default();
    is_ready(replica) && metrics.contains("berth_events_pending{endpoint=\"ci\"} 0\n")
}

#[test]
fn what_is_lost_or_comes_too_late_is_seen() {
    let fleet = Fleet::of(Vec::new());
    for name in ["a", "b", "c"] {
        fleet.acknowledge("one", format!("push one {name}"), true);
    }
    fleet.acknowledge("two", "push two a".to_owned(), true);
    let heard = Heard::default();
    for line in ["push two a", "push one c", "push one a", "push one c"] {
        heard.taken.lock().unwrap().push((String::new(), line.to_owned()));
    }
    let missing: Vec<String> = fleet.missing(&heard).into_iter().map(|change| change.line).collect();
    assert_eq!(missing, ["push one b"]);
    assert_eq!(fleet.overtaken(&heard), ["push one a came after push one c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_whatever_dies() {
    let world = World::start().await;
    let world = world.storm(&[Blow::Kill; 4], false).await;
    // A restarted Redis is not believed, but with an append-only file it still has what it was about to tell.
    world.storm(&[Blow::Restart, Blow::Kill, Blow::Both], false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_tag_is_told_though_the_index_is_lost() {
    let world = World::start().await;
    world.storm(&[Blow::Wipe, Blow::Kill, Blow::Wipe], true).await;
}
