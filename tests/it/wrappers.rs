//! A store and an index that are watched: what they are asked is counted, one of the calls can be made to
//! fail or never to return, and time can be moved on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use berth::{
    index::{Ask, Batch, Check, Connect, Fact, Index, IndexError, Outcome, Shard, Write},
    storage::{
        ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime,
        Unfinished, UnfinishedPage,
    },
};
use bytes::Bytes;

/// What happens to a call that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It fails and has not happened.
    Before,
    /// It happens, and its answer is lost.
    After,
    /// It never happens and never returns.
    HangBefore,
    /// It happens and never returns.
    HangAfter,
    /// It waits until [`Probe::release`] before it happens.
    Stall,
    /// It happens, but so late that its deadline has passed; the store takes it all the same.
    Late,
}

/// One call: what it is and, in a store, of which key.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) kind: &'static str,
    pub(crate) about: String,
}

type Which = Box<dyn Fn(usize, &Call) -> bool + Send>;

#[derive(Default)]
struct Seen {
    counts: BTreeMap<&'static str, usize>,
    /// How many index calls, each begun after the one before it had ended, have ended.
    ended: usize,
    deepest: usize,
    /// The most deliveries that one page of an outbox had.
    widest: usize,
    calls: usize,
    chosen: Option<(Which, How)>,
    struck: Option<Call>,
    hung: bool,
}

/// Watches one engine.
#[derive(Default)]
pub(crate) struct Probe(Mutex<Seen>, tokio::sync::Notify);

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

/// What was asked since [`Probe::reset`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Index calls in sequence; what goes on in the background is not among them.
    pub(crate) round_trips: usize,
    /// Requests to the store.
    pub(crate) requests: usize,
    pub(crate) counts: BTreeMap<&'static str, usize>,
}

impl Probe {
    /// Lets the `k`th call from now, counted from 1, meet `how`.
    pub(crate) fn strike_at(&self, k: usize, how: How) {
        self.strike(how, move |calls, _| calls == k);
    }

    /// Lets the first call for which `which` holds meet `how`.
    pub(crate) fn strike(&self, how: How, which: impl Fn(usize, &Call) -> bool + Send + 'static) {
        let mut seen = self.0.lock().unwrap();
        seen.calls = 0;
        seen.struck = None;
        seen.hung = false;
        seen.chosen = Some((Box::new(which), how));
    }

    /// Nothing fails any more. What was struck, if anything was.
    pub(crate) fn spare(&self) -> Option<Call> {
        let mut seen = self.0.lock().unwrap();
        seen.chosen = None;
        seen.struck.take()
    }

    pub(crate) fn has_struck(&self) -> bool {
        self.0.lock().unwrap().struck.is_some()
    }

    /// Whether a call was struck that never returns, and all that it does has happened.
    pub(crate) fn has_hung(&self) -> bool {
        self.0.lock().unwrap().hung
    }

    /// Lets a call that was stalled go on.
    pub(crate) fn release(&self) {
        self.1.notify_one();
    }

    pub(crate) fn reset(&self) {
        let mut seen = self.0.lock().unwrap();
        *seen = Seen { chosen: seen.chosen.take(), ..Seen::default() };
    }

    pub(crate) fn cost(&self) -> Cost {
        let seen = self.0.lock().unwrap();
        let of = |kinds: &[&str]| seen.counts.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, n)| n).sum();
        let requests = of(&["put", "begin", "put_part", "complete", "abort", "read", "stat", "list", "delete"]);
        Cost { round_trips: seen.deepest, requests, counts: seen.counts.clone() }
    }

    /// The most deliveries that one page of an outbox had since [`Probe::reset`].
    pub(crate) fn widest(&self) -> usize {
        self.0.lock().unwrap().widest
    }

    fn begin(&self, call: Call, in_sequence: bool) -> (usize, Option<How>) {
        let mut seen = self.0.lock().unwrap();
        *seen.counts.entry(call.kind).or_default() += 1;
        seen.calls += 1;
        let depth = if in_sequence { seen.ended + 1 } else { 0 };
        seen.deepest = seen.deepest.max(depth);
        let calls = seen.calls;
        let how = seen.chosen.take_if(|(which, _)| which(calls, &call)).map(|(_, how)| how);
        if how.is_some() {
            seen.struck = Some(call);
        }
        (depth, how)
    }

    fn end(&self, depth: usize) {
        let mut seen = self.0.lock().unwrap();
        seen.ended = seen.ended.max(depth);
    }

    async fn hang<T>(&self) -> T {
        self.0.lock().unwrap().hung = true;
        std::future::pending().await
    }

    async fn around<T, E>(
        &self,
        call: Call,
        in_sequence: bool,
        failure: impl Fn(How) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (depth, how) = self.begin(call, in_sequence);
        // An embedded index answers at once: what is asked side by side shall be seen to be.
        tokio::task::yield_now().await;
        let result = match how {
            None | Some(How::Late) => work.await,
            Some(How::Before) => Err(failure(How::Before)),
            Some(How::After) => work.await.and_then(|_| Err(failure(How::After))),
            Some(How::Stall) => {
                self.1.notified().await;
                work.await
            }
            Some(How::HangBefore) => self.hang().await,
            Some(How::HangAfter) => {
                drop(work.await);
                self.hang().await
            }
        };
        self.end(depth);
        result
    }
}

/// The time of a store, for all who share it: the real one, and what a test has added.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    added: AtomicU64,
    /// When each object was written, by this clock.
    written: Mutex<HashMap<String, StoreTime>>,
}

impl Clock {
    pub(crate) fn advance(&self, span: Duration) {
        self.added.fetch_add(span.as_millis() as u64, Ordering::SeqCst);
    }

    fn added(&self) -> Duration {
        Duration::from_millis(self.added.load(Ordering::SeqCst))
    }
}

/// A store that is watched.
#[derive(Debug)]
pub(crate) struct WatchedStore {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) probe: Arc<Probe>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) part_size: usize,
    pub(crate) exclusive: bool,
}

impl WatchedStore {
    async fn around<T>(
        &self,
        kind: &'static str,
        key: &str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let failure = |how| StorageError::Unavailable(key.to_owned(), format!("struck {how:?}"));
        self.probe.around(Call { kind, about: key.to_owned() }, false, failure, work).await
    }

    fn known(&self, key: &str, stat: Stat) -> Stat {
        let modified = self.clock.written.lock().unwrap().get(key).copied().unwrap_or(stat.modified);
        Stat { modified, ..stat }
    }
}

#[async_trait]
impl Store for WatchedStore {
    fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    fn part_size(&self) -> usize {
        self.part_size
    }

    fn max_parts(&self) -> usize {
        self.inner.max_parts()
    }

    fn now(&self) -> StoreTime {
        self.inner.now().plus(self.clock.added())
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        let text = key.to_string();
        let is_late = {
            let mut seen = self.probe.0.lock().unwrap();
            let call = Call { kind: "put", about: text.clone() };
            let calls = seen.calls + 1;
            seen.chosen.as_mut().is_some_and(|(which, how)| *how == How::Late && which(calls, &call))
        };
        let write = async {
            if is_late {
                self.clock.advance(Duration::from_secs(3600));
            }
            let deadline = deadline.filter(|_| !is_late).map(|deadline| deadline.minus(self.clock.added()));
            self.inner.put(key, bytes, deadline).await?;
            self.clock.written.lock().unwrap().insert(text.clone(), self.now());
            Ok(())
        };
        let about = if deadline.is_some() { text.clone() } else { format!("{text} without a deadline") };
        self.around("put", &about, write).await
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        self.around("begin", &key.to_string(), self.inner.begin(key)).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        let work = self.inner.put_part(key, upload, number, part_size, bytes);
        self.around("put_part", &key.to_string(), work).await
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        self.around("complete", &key.to_string(), self.inner.complete(key, upload, parts)).await
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        self.around("abort", &key.to_string(), self.inner.abort(key, upload)).await
    }

    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        self.around("unfinished", "", self.inner.unfinished(after)).await
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        self.around("read", &key.to_string(), self.inner.read(key, range)).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let text = key.to_string();
        let stat = self.around("stat", &text, self.inner.stat(key)).await?;
        Ok(stat.map(|stat| self.known(&text, stat)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let mut page = self.around("list", prefix, self.inner.list(prefix, after, limit)).await?;
        for (key, stat) in &mut page.objects {
            *stat = self.known(key, *stat);
        }
        Ok(page)
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let removal = async { self.inner.delete(key, deadline.minus(self.clock.added())).await };
        self.around("delete", &key.to_string(), removal).await
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        // Not a request, but counted.
        self.around("sign", &key.to_string(), self.inner.sign(key, life)).await
    }
}

/// Makes watched connections.
#[derive(Debug)]
pub(crate) struct WatchedConnect {
    pub(crate) inner: Arc<dyn Connect>,
    pub(crate) probe: Arc<Probe>,
}

/// A connection that is watched.
#[derive(Debug)]
struct WatchedIndex {
    inner: Arc<dyn Index>,
    probe: Arc<Probe>,
}

#[async_trait]
impl Connect for WatchedConnect {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(WatchedIndex { inner: self.inner.connect().await?, probe: Arc::clone(&self.probe) }))
    }
}

fn index_failure(how: How) -> IndexError {
    match how {
        How::Before => IndexError::Unreachable("struck".to_owned()),
        _ => IndexError::Unknown("struck".to_owned()),
    }
}

/// A hint is written in the background.
fn is_hint(batch: &Batch) -> bool {
    matches!(&batch.writes[..], [Write::Put(fact, _)] if fact.group.contains(":hints:"))
}

impl WatchedIndex {
    async fn around<T>(
        &self,
        kind: &'static str,
        about: String,
        work: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<T, IndexError> {
        self.probe.around(Call { kind, about }, true, index_failure, work).await
    }
}

#[async_trait]
impl Index for WatchedIndex {
    async fn identity(&self) -> Result<String, IndexError> {
        self.inner.identity().await
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.around("get", format!("{asks:?}"), self.inner.get(shard, asks)).await
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        let page = self.around("scan", group.to_owned(), self.inner.scan(shard, group, after, limit)).await?;
        if group.contains(":outbox:") {
            let mut seen = self.probe.0.lock().unwrap();
            seen.widest = seen.widest.max(page.len());
        }
        Ok(page)
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        let about = format!("{:?}", batch.writes);
        if is_hint(&batch) {
            return self
                .probe
                .around(Call { kind: "hint", about }, false, index_failure, self.inner.commit(shard, batch))
                .await;
        }
        self.around("commit", about, self.inner.commit(shard, batch)).await
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        self.inner.notify(shard, topic).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.inner.wait(shard, topic, patience).await;
    }
}

/// A check that is left out of every batch.
pub(crate) type LeftOut = fn(&Batch, &Check) -> bool;

/// Connections to an index that leaves a check out.
#[derive(Debug)]
pub(crate) struct LaxConnect(pub(crate) Arc<dyn Connect>, pub(crate) LeftOut);

#[async_trait]
impl Connect for LaxConnect {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        Ok(Arc::new(LaxIndex(self.0.connect().await?, self.1)))
    }
}

/// An index that leaves a check out.
#[derive(Debug)]
struct LaxIndex(Arc<dyn Index>, LeftOut);

#[async_trait]
impl Index for LaxIndex {
    async fn identity(&self) -> Result<String, IndexError> {
        self.0.identity().await
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.0.get(shard, asks).await
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        self.0.scan(shard, group, after, limit).await
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        // In its place stands one that always holds, so that the others keep their numbers.
        let holds = Check::Absent(Fact::new("nothing", "nothing"));
        let lax = |check: &Check| if (self.1)(&batch, check) { holds.clone() } else { check.clone() };
        let checks = batch.checks.iter().map(lax).collect();
        self.0.commit(shard, Batch { checks, ..batch.clone() }).await
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        self.0.notify(shard, topic).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.0.wait(shard, topic, patience).await;
    }
}

/// Whether a check looks at a group of this kind.
pub(crate) fn is_of(check: &Check, kind: &str) -> bool {
    match check {
        Check::Absent(fact) | Check::Present(fact) | Check::Equals(fact, _) => fact.group.contains(kind),
        Check::Empty(group) => group.contains(kind),
    }
}
