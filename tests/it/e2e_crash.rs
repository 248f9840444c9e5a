//! The server is killed at random moments while clients push and pull: nothing that was acknowledged is
//! lost, and no tag goes back.
//!
//! `BERTH_CRASH_ROUNDS` sets how often (15 where it isn't set); `BERTH_CRASH_SEED` repeats a run.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    berth::Berth,
    e2e_client::{Client, MANIFEST, closing, descriptor, noise, sha256},
    history::{Recorder, Seen},
};

/// How many tags are written to, each by one writer, and each read by one reader.
const TAGS: u64 = 6;

/// The part of a tag's pushes that is large enough for several parts.
const LARGE_EVERY: u64 = 7;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Where the tag is: two tags share each repository.
fn place(tag: u64) -> (String, String) {
    (format!("crash/{}", tag / 2), format!("t{tag}"))
}

/// What the clients share.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) recorder: Recorder,
    /// The next number; each is used once.
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    pub(crate) client: Client,
    /// Each push that was acknowledged, to be read again at the end: repository and digest of its manifest.
    acknowledged: Arc<Mutex<Vec<(String, String)>>>,
}

impl Fleet {
    /// Nothing is recorded yet.
    pub(crate) fn of(client: Client) -> Self {
        let (recorder, next) = (Recorder::default(), Arc::new(AtomicU64::new(1)));
        Self { recorder, next, stop: Arc::default(), client, acknowledged: Arc::default() }
    }

    /// Pushes to one tag until something breaks, each time a manifest of the next number with two layers,
    /// one of them of its own.
    async fn write(self, tag: u64) {
        let (repository, name) = place(tag);
        while !self.stop.load(Relaxed) {
            let number = self.next.fetch_add(1, Relaxed);
            if self.push(&repository, &name, number).await.is_none() {
                return;
            }
        }
    }

    pub(crate) async fn push(&self, repository: &str, tag: &str, number: u64) -> Option<()> {
        let size = if number.is_multiple_of(LARGE_EVERY) { 5 << 20 } else { 2000 };
        let layers = [noise(number, size), Bytes::from_static(b"shared by all")];
        let config = Bytes::from(json!({ "number": number }).to_string());
        for blob in layers.iter().chain([&config]) {
            self.push_blob(repository, blob).await?;
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>(),
            "annotations": {"number": number.to_string()},
        });
        let writing = self.recorder.write(&format!("{repository}:{tag}"), number);
        let path = format!("/v2/{repository}/manifests/{tag}");
        let bytes = manifest.to_string();
        let answer = self.client.try_send("PUT", &path, &[("content-type", MANIFEST)], bytes.clone()).await.ok()?;
        if answer.status == 201 {
            self.recorder.acknowledged(&writing);
            self.acknowledged.lock().unwrap().push((repository.to_owned(), sha256(bytes.as_bytes())));
        } else {
            assert_eq!(answer.status, 503, "{answer:?}");
        }
        Some(())
    }

    async fn push_blob(&self, repository: &str, bytes: &Bytes) -> Option<()> {
        let start = format!("/v2/{repository}/blobs/uploads/");
        if bytes.len() < 100 {
            let whole = format!("{start}?digest={}", sha256(bytes));
            self.client.try_send("POST", &whole, &[], bytes.clone()).await.ok()?.expect(201);
            return Some(());
        }
        let location = self.client.try_send("POST", &start, &[], "").await.ok()?.expect(202).location();
        let half = bytes.len() / 2;
        let patched = self.client.try_send("PATCH", &location, &[], bytes.slice(..half)).await.ok()?;
        let close = closing(&patched.expect(202).location(), &sha256(bytes));
        let answer = self.client.try_send("PUT", &close, &[], bytes.slice(half..)).await.ok()?;
        answer.expect(201);
        Some(())
    }

    /// Reads one tag until the server is gone.
    async fn read(self, tag: u64) {
        let (repository, name) = place(tag);
        while !self.stop.load(Relaxed) {
            if look(&self.client, &self.recorder, &repository, &name).await.is_none() {
                return;
            }
            // Leaves the processor to the writers.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads a tag and all that it names, and records what was seen. `None` if the connection broke.
pub(crate) async fn look(client: &Client, recorder: &Recorder, repository: &str, tag: &str) -> Option<()> {
    let name = format!("{repository}:{tag}");
    let began = recorder.read();
    let answer = client.try_send("GET", &format!("/v2/{repository}/manifests/{tag}"), &[], "").await.ok()?;
    match answer.status {
        200 => {
            let number = answer.json()["annotations"]["number"].as_str().unwrap().parse().unwrap();
            let is_whole = sha256(&answer.body) == answer.header("docker-content-digest")
                && is_readable(client, repository, &answer.json()).await?;
            recorder.saw(&name, began, if is_whole { Seen::Whole(number) } else { Seen::Broken(number) });
        }
        404 => recorder.saw(&name, began, Seen::Nothing),
        // It says that it doesn't know, which is no lie.
        status => assert_eq!(status, 503, "{answer:?}"),
    }
    Some(())
}

/// Whether every blob that a manifest names is there with its digest. `None` if the connection broke.
async fn is_readable(client: &Client, repository: &str, manifest: &Value) -> Option<bool> {
    for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap();
        let answer = client.try_send("GET", &format!("/v2/{repository}/blobs/{digest}"), &[], "").await.ok()?;
        if answer.status != 200 || sha256(&answer.body) != digest {
            return Some(false);
        }
    }
    Some(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_to_kill_9() {
    let rounds = setting("BERTH_CRASH_ROUNDS").unwrap_or(15);
    let seed = setting("BERTH_CRASH_SEED")
        .unwrap_or_else(|| u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos()));
    println!("BERTH_CRASH_SEED={seed}");
    let mut berth = Berth::start();
    let all = Fleet::of(berth.client());
    for round in 0..rounds {
        let fleet = Fleet { stop: Arc::default(), client: berth.client(), ..all.clone() };
        let writers = (0..TAGS).map(|tag| tokio::spawn(fleet.clone().write(tag)));
        let readers = (0..TAGS).map(|tag| tokio::spawn(fleet.clone().read(tag)));
        let clients: Vec<_> = writers.chain(readers).collect();
        let moment = u64::from_le_bytes(noise(seed.wrapping_add(round), 8)[..].try_into().unwrap());
        tokio::time::sleep(Duration::from_millis(100 + moment % 1900)).await;
        berth.kill9();
        fleet.stop.store(true, Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        berth.restart();
        let client = berth.client();
        for tag in 0..TAGS {
            let (repository, name) = place(tag);
            look(&client, &all.recorder, &repository, &name).await.expect("a server that runs");
        }
    }
    let pushed = all.acknowledged.lock().unwrap().clone();
    let by_digest = read_each(&berth.client(), &pushed).await;
    let (complaints, checked) = all.recorder.check();
    println!("{rounds} rounds: {checked:?}, and {by_digest} manifests by digest");
    assert_eq!(complaints, Vec::<String>::new());
    assert!(checked.acknowledged > 0 && checked.reads > 0);
}

/// Reads every manifest that was acknowledged, by digest, and all blobs of it; returns how many there are.
async fn read_each(client: &Client, acknowledged: &[(String, String)]) -> usize {
    let each: BTreeSet<_> = acknowledged.iter().collect();
    for (repository, digest) in &each {
        let manifest = client.get(&format!("/v2/{repository}/manifests/{digest}")).await.expect(200);
        assert_eq!(sha256(&manifest.body), *digest);
        assert_eq!(is_readable(client, repository, &manifest.json()).await, Some(true), "{repository}@{digest}");
    }
    each.len()
}
