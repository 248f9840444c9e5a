//! Clients that do everything that clients do, each request to any of the replicas, and tell the ledger.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    dice::Dice,
    e2e_client::{Answer, CONFIG, Client, LAYER, MANIFEST, closing, descriptor, noise, sha256},
    history::{Recorder, Seen},
    ledger::{Change, Kind, Ledger, Moment, Outcome, What},
};

/// How many repositories there are, and how many tags of each are written to at a time.
const REPOSITORIES: usize = 3;
const TAGS: usize = 3;

/// Tags with one writer each, which they keep from the beginning to the end.
pub(crate) const STEADY: u64 = 2;

/// After how many operations clients move on to a fresh tag: as long as a history may be for its search to end.
const LONGEST_HISTORY: usize = 32;

/// After how many deletions of unknown outcome they do: each may have happened at any moment since.
const MOST_OPEN: usize = 2;

/// How many manifests a repository keeps, about: above it, clients delete more than they push.
const MANIFESTS: usize = 60;

/// What every client may push.
const COMMON: u64 = 6;

/// A tag that many write to.
#[derive(Clone, Debug)]
struct SharedTag {
    name: String,
    operations: usize,
    open: usize,
}

/// A manifest that somebody pushed.
#[derive(Clone, Debug)]
struct Known {
    digest: String,
    bytes: String,
}

#[derive(Debug, Default)]
struct Repository {
    name: String,
    tags: Mutex<Vec<SharedTag>>,
    manifests: Mutex<Vec<Known>>,
    blobs: Mutex<Vec<String>>,
}

/// What all clients share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    /// For the steady tags.
    pub(crate) recorder: Recorder,
    /// What of those is to be told; whether it is right is the recorder's to say.
    pub(crate) steady: Ledger,
    pub(crate) clients: Vec<Client>,
    /// For what a registry sends clients elsewhere for.
    elsewhere: reqwest::Client,
    /// How old a blob that nothing needs must be before it may be collected; none where nothing is.
    grace: Option<Duration>,
    /// How long a client rests between two operations, in milliseconds.
    rest: std::ops::Range<u64>,
    repositories: Vec<Repository>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// How a request ended for a client.
enum Answered {
    Yes(Answer),
    No(Answer),
    Unknown,
}

/// What came of reading a blob.
enum Bytesread {
    Whole,
    Unknown,
    Missing(String),
}

impl World {
    pub(crate) fn new(
        clients: Vec<Client>,
        elsewhere: reqwest::Client,
        grace: Option<Duration>,
        rest: std::ops::Range<u64>,
    ) -> Self {
        let repository = |number: usize| Repository { name: format!("chaos/{number}"), ..Repository::default() };
        let world = Self {
            ledger: Ledger::default(),
            recorder: Recorder::default(),
            steady: Ledger::default(),
            clients,
            elsewhere,
            grace,
            rest,
            repositories: (0..REPOSITORIES).map(repository).collect(),
            next: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        };
        for repository in &world.repositories {
            let mut tags = repository.tags.lock().unwrap();
            tags.extend((0..TAGS).map(|_| world.fresh_tag()));
        }
        world
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn fresh_tag(&self) -> SharedTag {
        SharedTag { name: format!("t{}", self.number()), operations: 0, open: 0 }
    }

    /// Notes what was done to a tag, and moves on to another where its history is long enough.
    fn used(&self, repository: &Repository, tag: &str, open: bool) {
        let mut tags = repository.tags.lock().unwrap();
        let Some(used) = tags.iter_mut().find(|known| known.name == tag) else { return };
        used.operations += 1;
        used.open += usize::from(open);
        if used.operations >= LONGEST_HISTORY || used.open > MOST_OPEN {
            *used = self.fresh_tag();
        }
    }
}

/// One client, doing one thing at a time.
pub(crate) struct Actor {
    world: Arc<World>,
    dice: Dice,
}

impl Actor {
    pub(crate) fn new(world: &Arc<World>, dice: Dice) -> Self {
        Self { world: Arc::clone(world), dice }
    }

    /// Changes things until it is told to stop.
    pub(crate) async fn write(mut self) {
        while !self.world.stop.load(Relaxed) {
            self.rest().await;
            let repository = self.dice.index(REPOSITORIES);
            let many = self.world.repositories[repository].manifests.lock().unwrap().len();
            let deletes = if many > MANIFESTS { 40 } else { 10 };
            match self.dice.range(0..100) {
                chance if chance < deletes => self.delete_manifest(repository).await,
                chance if chance < deletes + 8 => self.delete_tag(repository).await,
                chance if chance < deletes + 16 => self.retag(repository).await,
                chance if chance < deletes + 21 => self.mount(repository).await,
                chance if chance < deletes + 25 => self.delete_blob(repository).await,
                chance if chance < deletes + 28 => self.abandon(repository).await,
                _ => self.push(repository).await,
            }
        }
    }

    /// Reads until it is told to stop.
    pub(crate) async fn read(mut self) {
        while !self.world.stop.load(Relaxed) {
            self.rest().await;
            let repository = self.dice.index(REPOSITORIES);
            if self.dice.percent(15) {
                self.read_steady().await;
            } else if self.dice.percent(65) {
                let tag = self.tag(repository);
                self.pull_by_tag(repository, &tag).await;
                self.world.used(&self.world.repositories[repository], &tag, false);
            } else if let Some(known) = self.known(repository) {
                self.pull_by_digest(repository, &known.digest).await;
            }
        }
    }

    /// Pushes one manifest after the other to a tag that nobody else writes to.
    pub(crate) async fn write_steadily(mut self, tag: u64) {
        while !self.world.stop.load(Relaxed) {
            self.rest().await;
            let (repository, name) = steady(tag);
            let number = self.world.number();
            let layer = noise(number, 500);
            let config = Bytes::from(json!({ "number": number }).to_string());
            if !self.push_blob(&repository, &layer).await || !self.push_blob(&repository, &config).await {
                continue;
            }
            let manifest = manifest(&config, &[layer], number);
            let writing = self.world.recorder.write(&format!("{repository}:{name}"), number);
            let change =
                self.world.steady.begin(&repository, What::Push(sha256(manifest.as_bytes()), vec![name.clone()]));
            let path = format!("/v2/{repository}/manifests/{name}");
            match self.put_manifest(&path, &manifest).await {
                Answered::Yes(_) => {
                    self.world.recorder.acknowledged(&writing);
                    self.world.steady.done(&change);
                }
                Answered::No(_) => self.world.steady.refused(&change),
                Answered::Unknown => {}
            }
        }
    }

    async fn rest(&mut self) {
        tokio::time::sleep(self.dice.span(self.world.rest.clone())).await;
    }

    fn tag(&mut self, repository: usize) -> String {
        let tags = self.world.repositories[repository].tags.lock().unwrap();
        self.dice.pick(&tags).name.clone()
    }

    fn known(&mut self, repository: usize) -> Option<Known> {
        let manifests = self.world.repositories[repository].manifests.lock().unwrap();
        (!manifests.is_empty()).then(|| self.dice.pick(&manifests).clone())
    }

    fn client(&mut self) -> Client {
        self.dice.pick(&self.world.clients).clone()
    }

    /// Sends one request to one of the replicas.
    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answered {
        let answer = self.client().try_send(method, path, headers, body).await;
        match answer {
            Ok(answer) if answer.status < 400 => Answered::Yes(answer),
            Ok(answer) if answer.status < 500 => Answered::No(answer),
            Ok(_) => {
                // As `Retry-After` asks, more or less.
                tokio::time::sleep(Duration::from_millis(500)).await;
                Answered::Unknown
            }
            // A replica that isn't there has taken nothing.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Answered::Unknown
            }
        }
    }

    async fn put_manifest(&mut self, path: &str, bytes: &str) -> Answered {
        self.send("PUT", path, &[("content-type", MANIFEST)], bytes.to_owned()).await
    }

    fn count(&self, kind: Kind, outcome: Outcome) {
        self.world.ledger.count(kind, outcome);
    }

    /// Tells the ledger how a change ended. Returns whether it was done.
    fn settle(&self, kind: Kind, change: &Change, answered: &Answered) -> bool {
        let outcome = match answered {
            Answered::Yes(_) => Outcome::Done,
            Answered::No(_) => Outcome::Refused,
            Answered::Unknown => Outcome::Unknown,
        };
        match outcome {
            Outcome::Done => self.world.ledger.done(change),
            Outcome::Refused => self.world.ledger.refused(change),
            Outcome::Unknown => {}
        }
        self.count(kind, outcome);
        outcome == Outcome::Done
    }

    /// A new image, to one tag, to several, or to none.
    async fn push(&mut self, repository: usize) {
        let name = self.world.repositories[repository].name.clone();
        let number = self.world.number();
        let layers: Vec<Bytes> = (0..self.dice.range(1..4)).map(|_| self.layer()).collect();
        let config = Bytes::from(json!({ "number": number }).to_string());
        for blob in layers.iter().chain([&config]) {
            if !self.push_blob(&name, blob).await {
                return;
            }
        }
        let bytes = manifest(&config, &layers, number);
        let digest = sha256(bytes.as_bytes());
        let (kind, wanted) = match self.dice.range(0..100) {
            0..15 => (Kind::PushByDigest, 0),
            15..40 => (Kind::PushOfSeveralTags, self.dice.range(2..TAGS as u64 + 1) as usize),
            _ => (Kind::Push, 1),
        };
        let mut tags: Vec<String> = Vec::new();
        while tags.len() < wanted {
            let tag = self.tag(repository);
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        self.put(repository, kind, &digest, &bytes, &tags).await;
    }

    async fn put(&mut self, repository: usize, kind: Kind, digest: &str, bytes: &str, tags: &[String]) {
        let name = self.world.repositories[repository].name.clone();
        let path = match tags {
            [tag] => format!("/v2/{name}/manifests/{tag}"),
            _ => {
                let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
                format!("/v2/{name}/manifests/{digest}?{}", query.join("&"))
            }
        };
        let change = self.world.ledger.begin(&name, What::Push(digest.to_owned(), tags.to_vec()));
        let answered = self.put_manifest(path.trim_end_matches('?'), bytes).await;
        if let Answered::No(answer) = &answered {
            self.refused(&change, answer);
        }
        if self.settle(kind, &change, &answered) && kind != Kind::Retag {
            let known = Known { digest: digest.to_owned(), bytes: bytes.to_owned() };
            self.world.repositories[repository].manifests.lock().unwrap().push(known);
        }
        for tag in tags {
            self.world.used(&self.world.repositories[repository], tag, false);
        }
    }

    /// A push of a manifest is only refused where a blob is unknown, and rightly so.
    fn refused(&self, change: &Change, answer: &Answer) {
        let error = &answer.json()["errors"][0];
        if error["code"] != "MANIFEST_BLOB_UNKNOWN" {
            self.world.ledger.complain(format!("a push was refused: {answer:?}"));
            return;
        }
        for digest in error["detail"]["digests"].as_array().into_iter().flatten() {
            self.world.ledger.unknown_blob(change, digest.as_str().unwrap(), self.world.grace);
        }
    }

    async fn retag(&mut self, repository: usize) {
        let Some(known) = self.known(repository) else { return };
        let tag = self.tag(repository);
        self.put(repository, Kind::Retag, &known.digest, &known.bytes, &[tag]).await;
    }

    async fn delete_tag(&mut self, repository: usize) {
        let (name, tag) = (self.world.repositories[repository].name.clone(), self.tag(repository));
        let change = self.world.ledger.begin(&name, What::DeleteTag(tag.clone()));
        let answered = self.send("DELETE", &format!("/v2/{name}/manifests/{tag}"), &[], "").await;
        self.settle(Kind::DeleteOfTag, &change, &answered);
        self.world.used(&self.world.repositories[repository], &tag, matches!(answered, Answered::Unknown));
    }

    async fn delete_manifest(&mut self, repository: usize) {
        let Some(known) = self.known(repository) else { return };
        let name = self.world.repositories[repository].name.clone();
        let change = self.world.ledger.begin(&name, What::DeleteManifest(known.digest.clone()));
        let answered = self.send("DELETE", &format!("/v2/{name}/manifests/{}", known.digest), &[], "").await;
        self.settle(Kind::DeleteOfManifest, &change, &answered);
        if let Answered::No(_) = &answered {
            self.world.ledger.missed(&name, &known.digest, change.began, "by a deletion");
        }
        if !matches!(answered, Answered::Unknown) {
            let mut manifests = self.world.repositories[repository].manifests.lock().unwrap();
            manifests.retain(|other| other.digest != known.digest);
        }
    }

    async fn delete_blob(&mut self, repository: usize) {
        let name = self.world.repositories[repository].name.clone();
        let Some(digest) = self.some_blob(repository) else { return };
        let change = self.world.ledger.begin(&name, What::DeleteBlob(digest.clone()));
        // One that a manifest needs is refused.
        let answered = self.send("DELETE", &format!("/v2/{name}/blobs/{digest}"), &[], "").await;
        self.settle(Kind::DeleteOfBlob, &change, &answered);
    }

    fn some_blob(&mut self, repository: usize) -> Option<String> {
        let blobs = self.world.repositories[repository].blobs.lock().unwrap();
        (!blobs.is_empty()).then(|| self.dice.pick(&blobs).clone())
    }

    async fn mount(&mut self, repository: usize) {
        let other = self.dice.index(REPOSITORIES);
        let (name, from) =
            (self.world.repositories[repository].name.clone(), self.world.repositories[other].name.clone());
        let Some(digest) = self.some_blob(other) else { return };
        let change = self.world.ledger.begin(&name, What::Blob(digest.clone()));
        let path = format!("/v2/{name}/blobs/uploads/?mount={digest}&from={from}");
        let answered = match self.send("POST", &path, &[], "").await {
            // It isn't there: an upload was begun instead.
            Answered::Yes(answer) if answer.status == 202 => Answered::No(answer),
            answered => answered,
        };
        self.settle(Kind::Mount, &change, &answered);
    }

    /// Begins an upload and leaves it, or ends it.
    async fn abandon(&mut self, repository: usize) {
        let name = self.world.repositories[repository].name.clone();
        let Some(location) = self.start(&name).await else { return };
        let bytes = self.layer();
        let Answered::Yes(answer) = self.send("PATCH", &location, &[], bytes).await else { return };
        if self.dice.percent(50) {
            let location = answer.location();
            self.send("DELETE", location.split('?').next().unwrap(), &[], "").await;
        }
        self.count(Kind::AbandonedUpload, Outcome::Done);
    }

    /// Bytes of a layer: some that everybody has, mostly new ones, and rarely many.
    fn layer(&mut self) -> Bytes {
        if self.dice.percent(30) {
            return noise(1_000_000 + self.dice.range(0..COMMON), 700);
        }
        let size = if self.dice.range(0..200) == 0 { 17 << 20 } else { self.dice.range(20..3000) as usize };
        noise(self.world.number(), size)
    }

    async fn start(&mut self, repository: &str) -> Option<String> {
        match self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "").await {
            Answered::Yes(answer) => Some(answer.location()),
            _ => None,
        }
    }

    /// Makes sure that the repository has a blob, as clients do: asking first, sometimes, and trying again.
    /// Returns whether it has.
    async fn push_blob(&mut self, repository: &str, bytes: &Bytes) -> bool {
        let digest = sha256(bytes);
        if self.dice.percent(30)
            && let Answered::Yes(_) = self.send("HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], "").await
        {
            return true;
        }
        for _ in 0..3 {
            let change = self.world.ledger.begin(repository, What::Blob(digest.clone()));
            let in_chunks = bytes.len() > 1 << 20 || self.dice.percent(30);
            let answered = match in_chunks {
                true => self.push_in_chunks(repository, &digest, bytes).await,
                false => self.push_whole(repository, &digest, bytes).await,
            };
            if let Answered::No(answer) = &answered
                && answer.json()["errors"][0]["code"] == "DIGEST_INVALID"
            {
                self.world.ledger.complain(format!("bytes were refused: {answer:?}"));
            }
            let kind = if in_chunks { Kind::BlobInChunks } else { Kind::Blob };
            if self.settle(kind, &change, &answered) {
                self.remember(repository, digest);
                return true;
            }
            if self.world.stop.load(Relaxed) {
                return false;
            }
        }
        false
    }

    /// Some of the digests that were pushed, for those who mount and delete.
    fn remember(&mut self, repository: &str, digest: String) {
        let Some(repository) = self.world.repositories.iter().find(|known| known.name == repository) else { return };
        let mut blobs = repository.blobs.lock().unwrap();
        match blobs.len() {
            0..30 => blobs.push(digest),
            length => blobs[self.dice.index(length)] = digest,
        }
    }

    async fn push_whole(&mut self, repository: &str, digest: &str, bytes: &Bytes) -> Answered {
        if self.dice.percent(50) {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            return self.send("POST", &path, &[], bytes.clone()).await;
        }
        match self.start(repository).await {
            Some(location) => self.send("PUT", &closing(&location, digest), &[], bytes.clone()).await,
            None => Answered::Unknown,
        }
    }

    /// Each chunk goes to any replica. One whose outcome isn't known ends the attempt.
    async fn push_in_chunks(&mut self, repository: &str, digest: &str, bytes: &Bytes) -> Answered {
        let Some(mut location) = self.start(repository).await else { return Answered::Unknown };
        let chunk = (bytes.len() / self.dice.range(1..4) as usize).max(1);
        let mut at = 0;
        while at + chunk <= bytes.len() {
            match self.send("PATCH", &location, &[], bytes.slice(at..at + chunk)).await {
                Answered::Yes(answer) => location = answer.location(),
                other => return other,
            }
            at += chunk;
        }
        self.send("PUT", &closing(&location, digest), &[], bytes.slice(at..)).await
    }

    pub(crate) async fn pull_by_tag(&mut self, repository: usize, tag: &str) -> bool {
        let name = self.world.repositories[repository].name.clone();
        let client = self.client();
        self.pull_tag_from(&client, &name, tag).await
    }

    /// Pulls what a tag points at, from this replica at first. Returns whether it was answered.
    pub(crate) async fn pull_tag_from(&mut self, client: &Client, name: &str, tag: &str) -> bool {
        let began = self.world.ledger.read();
        let answer = client.try_send("GET", &format!("/v2/{name}/manifests/{tag}"), &[], "").await;
        let Some(answer) = self.read_answer(Kind::PullByTag, answer) else { return false };
        if answer.status == 404 {
            self.world.ledger.saw(name, tag, began, None);
            return true;
        }
        let digest = sha256(&answer.body);
        if digest != answer.header("docker-content-digest") {
            self.world.ledger.complain(format!("{name}:{tag}: bytes that don't hash to their name: {answer:?}"));
        }
        self.world.ledger.saw(name, tag, began, Some(&digest));
        self.pull_blobs(name, &digest, began, &answer.json()).await
    }

    pub(crate) async fn pull_by_digest(&mut self, repository: usize, digest: &str) -> bool {
        let name = self.world.repositories[repository].name.clone();
        let client = self.client();
        self.pull_digest_from(&client, &name, digest).await
    }

    /// Pulls a manifest by its digest, from this replica at first. Returns whether it was answered.
    pub(crate) async fn pull_digest_from(&mut self, client: &Client, name: &str, digest: &str) -> bool {
        let began = self.world.ledger.read();
        let answer = client.try_send("GET", &format!("/v2/{name}/manifests/{digest}"), &[], "").await;
        let Some(answer) = self.read_answer(Kind::PullByDigest, answer) else { return false };
        if answer.status == 404 {
            self.world.ledger.missed(name, digest, began, "by a pull");
            return true;
        }
        if sha256(&answer.body) != digest {
            self.world.ledger.complain(format!("{name}@{digest}: bytes that don't hash to their name: {answer:?}"));
        }
        self.world.ledger.found(name, digest, began, "by a pull");
        self.pull_blobs(name, digest, began, &answer.json()).await
    }

    /// The answer to a read, if there is one that says something.
    fn read_answer(&self, kind: Kind, answer: Result<Answer, String>) -> Option<Answer> {
        match answer {
            Ok(answer) if matches!(answer.status, 200 | 404) => {
                self.count(kind, Outcome::Done);
                Some(answer)
            }
            Ok(answer) if answer.status < 500 => {
                self.world.ledger.complain(format!("a pull was refused: {answer:?}"));
                None
            }
            _ => {
                self.count(kind, Outcome::Unknown);
                None
            }
        }
    }

    /// Reads all blobs of a manifest. Returns whether each was answered.
    async fn pull_blobs(&mut self, name: &str, digest: &str, began: Moment, manifest: &Value) -> bool {
        let mut all = true;
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            let blob = blob["digest"].as_str().unwrap();
            match self.read_blob(name, blob).await {
                Bytesread::Whole => self.count(Kind::BlobRead, Outcome::Done),
                Bytesread::Unknown => {
                    self.count(Kind::BlobRead, Outcome::Unknown);
                    all = false;
                }
                Bytesread::Missing(how) => {
                    self.world.ledger.broken(name, digest, began, &format!("{blob}: {how}"));
                }
            }
        }
        all
    }

    async fn read_blob(&mut self, name: &str, digest: &str) -> Bytesread {
        let answer = self.client().try_send("GET", &format!("/v2/{name}/blobs/{digest}"), &[], "").await;
        let Ok(mut answer) = answer else { return Bytesread::Unknown };
        if answer.status == 307 {
            let to = Client::with(self.world.elsewhere.clone(), answer.header("location"));
            let Ok(fetched) = to.try_send("GET", "", &[], "").await else { return Bytesread::Unknown };
            answer = fetched;
        }
        match answer.status {
            200 if sha256(&answer.body) == digest => Bytesread::Whole,
            200 => Bytesread::Missing(format!("{} bytes of something else", answer.body.len())),
            404 => Bytesread::Missing("not found".to_owned()),
            _ => Bytesread::Unknown,
        }
    }

    async fn read_steady(&mut self) {
        let tag = self.dice.range(0..STEADY);
        let client = self.client();
        self.read_steady_from(&client, tag).await;
    }

    /// Reads a steady tag and all that it names. Returns whether it was answered.
    pub(crate) async fn read_steady_from(&mut self, client: &Client, tag: u64) -> bool {
        let (repository, name) = steady(tag);
        let whole_name = format!("{repository}:{name}");
        let began = self.world.recorder.read();
        let answer = client.try_send("GET", &format!("/v2/{repository}/manifests/{name}"), &[], "").await;
        let Some(answer) = self.read_answer(Kind::PullByTag, answer) else { return false };
        if answer.status == 404 {
            self.world.recorder.saw(&whole_name, began, Seen::Nothing);
            return true;
        }
        let manifest = answer.json();
        let number = manifest["annotations"]["number"].as_str().unwrap().parse().unwrap();
        let mut seen = Seen::Whole(number);
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            match self.read_blob(&repository, blob["digest"].as_str().unwrap()).await {
                Bytesread::Whole => self.count(Kind::BlobRead, Outcome::Done),
                Bytesread::Unknown => self.count(Kind::BlobRead, Outcome::Unknown),
                Bytesread::Missing(_) => seen = Seen::Broken(number),
            }
        }
        self.world.recorder.saw(&whole_name, began, seen);
        true
    }

    /// Pushes something to one replica. Returns whether it was taken.
    pub(crate) async fn probe(&mut self, client: &Client) -> bool {
        let path = format!("/v2/chaos/probe/blobs/uploads/?digest={}", sha256(b"probe"));
        client.try_send("POST", &path, &[], "probe").await.is_ok_and(|answer| answer.status == 201)
    }
}

/// Where a steady tag is.
fn steady(tag: u64) -> (String, String) {
    ("chaos/steady".to_owned(), format!("s{tag}"))
}

fn manifest(config: &[u8], layers: &[Bytes], number: u64) -> String {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, config),
        "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        "annotations": {"number": number.to_string()},
    });
    manifest.to_string()
}
