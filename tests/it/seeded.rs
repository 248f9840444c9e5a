//! The recorder and its checker are shown to see: a registry in which one rule is broken is used as any other
//! is, and the checker says so; the same steps on a registry that keeps its rules leave it silent.
//!
//! A rule is broken at the seams, so that the code that is checked is the code that ships: a store that says
//! yes to a write before it has done it is a server that doesn't wait for it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use berth::{
    api,
    auth::{AccessRules, Authority},
    config::Role,
    index::{Ask, Batch, Connect, Index, IndexError, Outcome, Shard, Write, embedded::Embedded},
    registry::{OtherIndex, Registry},
    storage::{
        ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime,
        Unfinished, UnfinishedPage, local::Local,
    },
    worker,
};
use bytes::Bytes;
use ulid::Ulid;

use crate::{
    e2e_client::Client,
    e2e_crash::{Fleet, look},
    rules_bench,
    wrappers::{Clock, How, Probe, WatchedStore},
};

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// None.
    None,
    /// A push of a tag is acknowledged before its revision is written and committed.
    AnswersBeforeTheTag,
    /// A revision that came past its deadline counts.
    CountsTheLate,
    /// A link is committed before its data is written.
    LinksBeforeTheData,
    /// A DELETE is done however late it comes.
    DeletesTheLate,
}

/// The data that was acknowledged and isn't on the disk yet: a crash loses it.
pub(crate) type Unsynced = Arc<Mutex<Vec<Key>>>;

/// A store with the bug.
#[derive(Debug)]
pub(crate) struct BuggyStore {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) bug: Bug,
    pub(crate) unsynced: Unsynced,
}

impl BuggyStore {
    /// What it says of when something was written.
    fn known(&self, stat: Stat) -> Stat {
        match self.bug {
            Bug::CountsTheLate => Stat { modified: StoreTime(0), ..stat },
            _ => stat,
        }
    }
}

#[async_trait]
impl Store for BuggyStore {
    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    fn part_size(&self) -> usize {
        self.inner.part_size()
    }

    fn max_parts(&self) -> usize {
        self.inner.max_parts()
    }

    fn now(&self) -> StoreTime {
        self.inner.now()
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        match (self.bug, key) {
            // Nobody gets to it any more.
            (Bug::AnswersBeforeTheTag, Key::Tag { .. }) => return Ok(()),
            (Bug::LinksBeforeTheData, Key::Data(_)) => self.unsynced.lock().unwrap().push(key.clone()),
            _ => {}
        }
        self.inner.put(key, bytes, deadline.filter(|_| self.bug != Bug::CountsTheLate)).await
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        self.inner.begin(key).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        self.inner.put_part(key, upload, number, part_size, bytes).await
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        self.inner.complete(key, upload, parts).await
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        self.inner.abort(key, upload).await
    }

    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        self.inner.unfinished(after).await
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        self.inner.read(key, range).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        Ok(self.inner.stat(key).await?.map(|stat| self.known(stat)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let mut page = self.inner.list(prefix, after, limit).await?;
        page.objects.iter_mut().for_each(|(_, stat)| *stat = self.known(*stat));
        Ok(page)
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let deadline = if self.bug == Bug::DeletesTheLate { StoreTime(u64::MAX) } else { deadline };
        self.inner.delete(key, deadline).await
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        self.inner.sign(key, life).await
    }
}

/// Connections to an index with the bug.
#[derive(Debug)]
struct BuggyConnect {
    inner: Arc<dyn Connect>,
    bug: Bug,
}

#[async_trait]
impl Connect for BuggyConnect {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        let inner = self.inner.connect().await?;
        Ok(Arc::new(BuggyIndex { inner, bug: self.bug }))
    }
}

/// An index with the bug.
#[derive(Debug)]
struct BuggyIndex {
    inner: Arc<dyn Index>,
    bug: Bug,
}

#[async_trait]
impl Index for BuggyIndex {
    async fn identity(&self) -> Result<String, IndexError> {
        self.inner.identity().await
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.inner.get(shard, asks).await
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        self.inner.scan(shard, group, after, limit).await
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        let sets_a_tag = batch.writes.iter().any(|write| matches!(write, Write::Raise(..)));
        if self.bug == Bug::AnswersBeforeTheTag && sets_a_tag {
            return Ok(Outcome::Committed { sequence: 0, reads: Vec::new() });
        }
        self.inner.commit(shard, batch).await
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        self.inner.notify(shard, topic).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.inner.wait(shard, topic, patience).await;
    }
}

/// Two replicas with one bug, and clients whose doings are recorded.
struct Scene {
    /// Uses the first replica, and is recorded.
    writer: Fleet,
    /// Uses the second.
    reader: Client,
    second: Arc<Registry>,
    probe: Arc<Probe>,
    clock: Arc<Clock>,
    unsynced: Unsynced,
    store: Arc<dyn Store>,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// A registry in which number 1 was pushed and read.
    async fn begin(bug: Bug) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let local: Arc<dyn Store> = Arc::new(Local::open(directory.path(), false).unwrap());
        let embedded: Arc<dyn Connect> = Arc::new(Embedded::open(&directory.path().join(".index"), false).unwrap());
        let (probe, clock, unsynced) = (Arc::<Probe>::default(), Arc::<Clock>::default(), Unsynced::default());
        let open = async |bug, probe: &Arc<Probe>| {
            let watched = WatchedStore {
                inner: Arc::clone(&local),
                probe: Arc::clone(probe),
                clock: Arc::clone(&clock),
                part_size: rules_bench::PART,
                exclusive: true,
            };
            let store = BuggyStore { inner: Arc::new(watched), bug, unsynced: Arc::clone(&unsynced) };
            let connect = BuggyConnect { inner: Arc::clone(&embedded), bug };
            let options = rules_bench::options();
            Registry::open(Arc::new(store), Arc::new(connect), options, OtherIndex::Refuse).await.unwrap()
        };
        let client = |registry: &Arc<Registry>| {
            let authority = Authority::of_rules(AccessRules::new(Some(Role::Admin), None)).unwrap();
            Client::router(api::router(Arc::clone(registry), authority, None))
        };
        let sound = open(Bug::None, &Arc::default()).await;
        let (first, second) = (open(bug, &probe).await, open(bug, &Arc::default()).await);
        let mut writer = Fleet::of(client(&sound));
        writer.push("crash/0", "t0", 1).await.unwrap();
        writer.client = client(&first);
        let scene = Self {
            writer,
            reader: client(&second),
            second,
            probe,
            clock,
            unsynced,
            store: local,
            _directory: directory,
        };
        scene.look().await;
        scene
    }

    async fn look(&self) {
        look(&self.reader, &self.writer.recorder, "crash/0", "t0").await.unwrap();
    }

    async fn push(&self) {
        self.writer.push("crash/0", "t0", 2).await.unwrap();
    }

    async fn lose_power(&self) {
        let lost = std::mem::take(&mut *self.unsynced.lock().unwrap());
        for key in lost {
            self.store.delete(&key, StoreTime(u64::MAX)).await.unwrap();
        }
    }

    /// What the checker says after one more look.
    async fn complaints(self) -> Vec<String> {
        self.look().await;
        let (complaints, checked) = self.writer.recorder.check();
        assert!(checked.acknowledged > 0 && checked.reads == 2, "{checked:?}");
        complaints
    }
}

/// The second replica is asked as soon as the first has acknowledged.
#[tokio::test]
async fn an_answer_before_the_tag_is_written_is_caught() {
    for (bug, expected) in [(Bug::None, None), (Bug::AnswersBeforeTheTag, Some("crash/0:t0: back from 2 to 1"))] {
        let scene = Scene::begin(bug).await;
        scene.push().await;
        assert_eq!(scene.complaints().await, Vec::from_iter(expected));
    }
}

/// The store takes a revision an hour after it was sent; meanwhile the other replica has given the push up.
#[tokio::test]
async fn a_revision_that_counts_past_its_deadline_is_caught() {
    for (bug, expected) in [(Bug::None, None), (Bug::CountsTheLate, Some("crash/0:t0: back from 2 to 1"))] {
        let scene = Scene::begin(bug).await;
        scene.probe.strike(How::Stall, |_, call| call.kind == "put" && call.about.contains("/_tags/"));
        let others = async {
            while !scene.probe.has_struck() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            scene.clock.advance(Duration::from_secs(3600));
            worker::work_once(&scene.second, Ulid::from(2_u128)).await.unwrap();
            scene.probe.release();
        };
        tokio::join!(scene.push(), others);
        assert_eq!(scene.complaints().await, Vec::from_iter(expected), "{bug:?}");
    }
}

/// The power goes after the push was acknowledged.
#[tokio::test]
async fn a_link_that_is_committed_before_its_data_is_caught() {
    for (bug, expected) in [(Bug::None, None), (Bug::LinksBeforeTheData, Some("crash/0:t0: 2 can't be read whole"))] {
        let scene = Scene::begin(bug).await;
        scene.push().await;
        scene.lose_power().await;
        assert_eq!(scene.complaints().await, Vec::from_iter(expected), "{bug:?}");
    }
}
