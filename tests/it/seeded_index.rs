//! The checker is shown to see what goes wrong where one of the rules of epochs, adoption and collection is left
//! out; the same steps with the rule leave it silent.
//!
//! A rule is left out at the seams: by an index that passes over one check of every batch or is emptied under its
//! readers, by a lease that is longer than the others know, by a store that takes a DELETE after its time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use berth::{
    api,
    auth::{AccessRules, Authority},
    config::Role,
    index::{Ask, Batch, Check, Connect, Index, IndexError, Outcome, Shard, embedded::Embedded},
    reconcile,
    registry::{Options, OtherIndex, Registry},
    storage::{Store, local::Local},
    worker,
};
use bytes::Bytes;
use serde_json::json;
use tempfile::TempDir;
use ulid::Ulid;

use crate::{
    e2e_client::{CONFIG, Client, LAYER, MANIFEST, descriptor, sha256},
    e2e_crash::look,
    history::Recorder,
    rules_bench,
    seeded::{Bug, BuggyStore},
    wrappers::{Call, Clock, How, LaxConnect, LeftOut, Probe, WatchedStore, is_of},
};

const REPOSITORY: &str = "team/app";
const TAG: &str = "latest";

/// What every image here has as its layer.
const LAYER_BYTES: &[u8] = b"in every image";

/// How long an upload that stands still is kept, and what nothing needs.
const GRACE: Duration = Duration::from_secs(3600);

/// One bucket, and what clients saw of it.
struct Town {
    local: Arc<dyn Store>,
    clock: Arc<Clock>,
    recorder: Recorder,
    directory: TempDir,
}

/// A replica.
struct Replica {
    registry: Arc<Registry>,
    client: Client,
    probe: Arc<Probe>,
}

/// What a replica is made of, where it isn't sound.
struct Made {
    connect: Arc<dyn Connect>,
    bug: Bug,
    lease: Duration,
    left_out: Option<LeftOut>,
}

impl Town {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let local = Arc::new(Local::open(&directory.path().join("bucket"), false).unwrap());
        Self { local, clock: Arc::default(), recorder: Recorder::default(), directory }
    }

    /// An index with nothing in it.
    fn index(&self) -> Arc<dyn Connect> {
        let directory = self.directory.path().join(Ulid::r#gen().to_string());
        Arc::new(Embedded::open(&directory, false).unwrap())
    }

    /// A sound replica. Its index becomes the bucket's, whosever that is.
    async fn open(&self, connect: &Arc<dyn Connect>) -> Replica {
        let lease = rules_bench::options().timing.lease;
        self.make(Made { connect: Arc::clone(connect), bug: Bug::None, lease, left_out: None }).await
    }

    /// One whose index passes over a check, where that is to be.
    async fn lax(&self, connect: &Arc<dyn Connect>, left_out: Option<LeftOut>) -> Replica {
        let lease = rules_bench::options().timing.lease;
        self.make(Made { connect: Arc::clone(connect), bug: Bug::None, lease, left_out }).await
    }

    async fn make(&self, made: Made) -> Replica {
        let Made { mut connect, bug, lease, left_out } = made;
        if let Some(left_out) = left_out {
            connect = Arc::new(LaxConnect(connect, left_out));
        }
        let probe = Arc::<Probe>::default();
        let watched = WatchedStore {
            inner: Arc::clone(&self.local),
            probe: Arc::clone(&probe),
            clock: Arc::clone(&self.clock),
            part_size: rules_bench::PART,
            exclusive: true,
        };
        let connect = Arc::new(crate::wrappers::WatchedConnect { inner: connect, probe: Arc::clone(&probe) });
        let store = Arc::new(BuggyStore { inner: Arc::new(watched), bug, unsynced: Arc::default() });
        let mut options = Options { grace: GRACE * 2, upload_expiry: GRACE, ..rules_bench::options() };
        options.timing.lease = lease;
        let registry = Registry::open(store, connect, options, OtherIndex::Replace).await.unwrap();
        let authority = Authority::of_rules(AccessRules::new(Some(Role::Admin), None)).unwrap();
        let client = Client::router(api::router(Arc::clone(&registry), authority, None));
        Replica { registry, client, probe }
    }

    /// Pushes the image of a number, unless the replica refuses it for now.
    async fn push(&self, replica: &Replica, number: u64) {
        let config = Bytes::from(json!({ "number": number }).to_string());
        for blob in [LAYER_BYTES, &config] {
            if push_blob(&replica.client, REPOSITORY, blob).await != 201 {
                return;
            }
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": [descriptor(LAYER, LAYER_BYTES)],
            "annotations": {"number": number.to_string()},
        });
        let writing = self.recorder.write(&format!("{REPOSITORY}:{TAG}"), number);
        if replica.client.push_manifest(REPOSITORY, TAG, &manifest).await.status == 201 {
            self.recorder.acknowledged(&writing);
        }
    }

    async fn look(&self, replica: &Replica) {
        look(&replica.client, &self.recorder, REPOSITORY, TAG).await.unwrap();
    }

    /// What the checker says.
    fn complaints(&self) -> Vec<String> {
        self.recorder.check().0
    }
}

async fn push_blob(client: &Client, repository: &str, bytes: &[u8]) -> u16 {
    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(bytes));
    client.send("POST", &path, &[], Bytes::copy_from_slice(bytes)).await.status
}

async fn delete_blob(replica: &Replica, repository: &str) {
    let path = format!("/v2/{repository}/blobs/{}", sha256(LAYER_BYTES));
    // Where the DELETE is refused for its lateness, the answer is 503.
    assert!(matches!(replica.client.delete(&path).await.status, 202 | 503));
}

/// Background work, until nothing more is done.
async fn work(replica: &Replica) {
    reconcile::walk(&replica.registry, |_| {}).await.unwrap();
    for _ in 0..3 {
        worker::work_once(&replica.registry, Ulid::from(7_u128)).await.unwrap();
    }
}

/// Whether a call makes a link a fact.
fn links(call: &Call) -> bool {
    call.kind == "commit" && call.about.contains("Put(Fact") && call.about.contains(":links:")
}

/// Waits until a replica stands still.
async fn struck(replica: &Replica) {
    while !replica.probe.has_struck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets one replica do something, stops it before a call, and lets it go on when something else was done.
async fn amid<T>(
    replica: &Replica,
    stopped_at: impl Fn(&Call) -> bool + Send + 'static,
    doing: impl Future<Output = T>,
    meanwhile: impl Future<Output = ()>,
) -> T {
    replica.probe.strike(How::Stall, move |_, call| stopped_at(call));
    let others = async {
        struck(replica).await;
        meanwhile.await;
        replica.probe.release();
    };
    tokio::join!(doing, others).0
}

/// A replica goes on believing the old index while the others have a new one: its lease is longer than theirs.
#[tokio::test]
async fn a_read_without_a_lease_is_caught() {
    let short = Duration::from_secs(1);
    for (lease, expected) in [(short, None), (GRACE, Some("team/app:latest: back from 2 to 1"))] {
        let town = Town::new();
        let old = town.index();
        let behind = town.make(Made { connect: old, bug: Bug::None, lease, left_out: None }).await;
        town.push(&behind, 1).await;
        town.look(&behind).await;
        // As long as a new epoch waits at least.
        tokio::time::sleep(short * 2).await;
        let ahead = town.open(&town.index()).await;
        town.push(&ahead, 2).await;
        town.look(&behind).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected), "{lease:?}");
    }
}

/// Connections to an index that can be emptied under those who have them, and stays the same server.
#[derive(Debug)]
struct Emptied {
    now: Mutex<Arc<dyn Index>>,
    identity: String,
}

/// A connection to it.
#[derive(Debug)]
struct ToEmptied(Arc<Emptied>);

impl ToEmptied {
    fn now(&self) -> Arc<dyn Index> {
        Arc::clone(&self.0.now.lock().unwrap())
    }
}

#[async_trait]
impl Connect for ToEmptied {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

#[async_trait]
impl Index for ToEmptied {
    async fn identity(&self) -> Result<String, IndexError> {
        Ok(self.0.identity.clone())
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.now().get(shard, asks).await
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        self.now().scan(shard, group, after, limit).await
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        self.now().commit(shard, batch).await
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        self.now().notify(shard, topic).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.now().wait(shard, topic, patience).await;
    }
}

/// The index is emptied in place: its counters begin anew, below what the bucket has.
#[tokio::test]
async fn a_commit_without_the_fence_is_caught() {
    let no_fence: LeftOut = |_, check| matches!(check, Check::Equals(fact, _) if fact.group.contains("fence"));
    for (left_out, expected) in [(None, None), (Some(no_fence), Some("team/app:latest: back from 4 to 3"))] {
        let town = Town::new();
        let first = town.index().connect().await.unwrap();
        let identity = first.identity().await.unwrap();
        let emptied = Arc::new(Emptied { now: Mutex::new(first), identity });
        let connect: Arc<dyn Connect> = Arc::new(ToEmptied(Arc::clone(&emptied)));
        let replica = town.lax(&connect, left_out).await;
        work(&replica).await;
        for number in 1..=3 {
            town.push(&replica, number).await;
        }
        *emptied.now.lock().unwrap() = town.index().connect().await.unwrap();
        town.push(&replica, 4).await;
        let next = town.open(&town.index()).await;
        town.look(&next).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected));
    }
}

/// Whether a check says that an adoption still has something to do.
fn not_reconciled(_: &Batch, check: &Check) -> bool {
    is_of(check, "reconciled") || is_of(check, "settled")
}

/// That, or that the link's ULID isn't known.
fn not_reconciled_or_known(batch: &Batch, check: &Check) -> bool {
    not_reconciled(batch, check)
        || matches!(check, Check::Absent(_)) && (is_of(check, ":attempts") || is_of(check, ":trash"))
}

/// One replica is slow in listing a repository. Meanwhile another knows all of it, and a push stops before its
/// commit: its link is in the bucket, and in the listing.
#[tokio::test]
async fn the_adoption_of_a_known_ulid_is_caught() {
    let broken = Some("team/app:latest: 2 can't be read whole");
    // Either of the two rules alone prevents it.
    let cases: [(Option<LeftOut>, _); 3] =
        [(None, None), (Some(not_reconciled), None), (Some(not_reconciled_or_known), broken)];
    for (left_out, expected) in cases {
        let town = Town::new();
        let index = town.index();
        let pusher = town.open(&index).await;
        let slow = town.lax(&index, left_out).await;
        let name = REPOSITORY.parse().unwrap();
        slow.probe.strike(How::Stall, |_, call| call.kind == "list" && call.about.contains("/_blobs/"));
        let adopting = tokio::spawn({
            let registry = Arc::clone(&slow.registry);
            async move { registry.repository(&name).await.map(drop) }
        });
        struck(&slow).await;
        pusher.probe.strike(How::Stall, |_, call| links(call));
        let client = pusher.client.clone();
        let pushing = tokio::spawn(async move { push_blob(&client, REPOSITORY, LAYER_BYTES).await });
        struck(&pusher).await;
        slow.probe.release();
        drop(adopting.await.unwrap());
        pushing.abort();
        // The pusher is dead. What it left is thrown away when it is old enough.
        let third = town.open(&index).await;
        town.clock.advance(GRACE * 3 / 2);
        work(&third).await;
        town.push(&third, 2).await;
        town.look(&third).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected));
    }
}

/// One replica is slow in adopting what it has listed. Meanwhile another knows all of the repository, and a blob of
/// it is deleted and forgotten.
#[tokio::test]
async fn an_adoption_into_a_reconciled_repository_is_caught() {
    let broken = Some("team/app:latest: 2 can't be read whole");
    for (left_out, expected) in [(None, None), (Some(not_reconciled as LeftOut), broken)] {
        let town = Town::new();
        let before = town.open(&town.index()).await;
        push_blob(&before.client, REPOSITORY, LAYER_BYTES).await;
        let index = town.index();
        let (quick, slow) = (town.open(&index).await, town.lax(&index, left_out).await);
        let name = REPOSITORY.parse().unwrap();
        let meanwhile = async {
            work(&quick).await;
            delete_blob(&quick, REPOSITORY).await;
            work(&quick).await;
        };
        drop(amid(&slow, links, slow.registry.repository(&name), meanwhile).await);
        town.push(&quick, 2).await;
        town.look(&quick).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected));
    }
}

/// The last link of some bytes has gone, and the bytes are about to.
#[tokio::test]
async fn a_join_of_dying_data_is_caught() {
    let joins: LeftOut = |batch, check| is_of(check, ":data:") && batch.writes.len() == 1;
    let broken = Some("team/app:latest: 2 can't be read whole");
    for (left_out, expected) in [(None, None), (Some(joins), broken)] {
        let town = Town::new();
        let index = town.index();
        let (collector, pusher) = (town.open(&index).await, town.lax(&index, left_out).await);
        work(&collector).await;
        push_blob(&collector.client, "team/other", LAYER_BYTES).await;
        let removes = |call: &Call| call.kind == "delete" && call.about.starts_with("data/");
        let removal = async {
            delete_blob(&collector, "team/other").await;
            work(&collector).await;
        };
        amid(&collector, removes, removal, town.push(&pusher, 2)).await;
        town.look(&pusher).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected));
    }
}

/// A DELETE of a link is sent, and arrives an hour later: the index was lost meanwhile, the link was adopted, and an
/// image needs it.
#[tokio::test]
async fn a_delete_without_expiry_is_caught() {
    let broken = Some("team/app:latest: 2 is gone");
    for (bug, expected) in [(Bug::None, None), (Bug::DeletesTheLate, broken)] {
        let town = Town::new();
        let lease = rules_bench::options().timing.lease;
        let remover = town.make(Made { connect: town.index(), bug, lease, left_out: None }).await;
        work(&remover).await;
        push_blob(&remover.client, REPOSITORY, LAYER_BYTES).await;
        let removes = |call: &Call| call.kind == "delete" && call.about.contains("/_blobs/");
        let meanwhile = async {
            town.clock.advance(GRACE);
            let next = town.open(&town.index()).await;
            work(&next).await;
            town.push(&next, 2).await;
        };
        amid(&remover, removes, delete_blob(&remover, REPOSITORY), meanwhile).await;
        let last = town.open(&town.index()).await;
        work(&last).await;
        town.look(&last).await;
        assert_eq!(town.complaints(), Vec::from_iter(expected), "{bug:?}");
    }
}
