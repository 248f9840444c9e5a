//! Which index may be believed, and for how long: epochs, fences, leases.
//!
//! An index can lose what it acknowledged, and two of them can be alive at once. So the bucket says, under
//! `epochs/`, which one index is believed, each shard of that index says which epoch it serves, and a
//! replica believes it only for a few seconds at a time, by one connection. Everything here is about that;
//! what the facts mean is none of its business.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    index::{Ask, Batch, Check, Connect, Index, IndexError, Outcome, Shard, Write, facts::Names},
    storage::{Key, Store, StoreTime, key::EPOCHS, key::EpochNumber, read_small},
};

/// The three spans on which the protocols rest.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// L: for how long a replica believes its index without asking the bucket again.
    pub lease: Duration,
    /// D: for how long after its reservation a write may reach the bucket and count.
    pub deadline: Duration,
    /// M: the error of the store's clock, and the time for a small write that was received to be visible.
    pub margin: Duration,
}

impl Timing {
    /// After how long nothing that was begun under an old epoch's leases can still count.
    pub fn succession(&self) -> Duration {
        self.lease * 2 + self.deadline + self.margin
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(5), deadline: Duration::from_secs(10), margin: Duration::from_secs(3) }
    }
}

/// What `epochs/<n>` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The index that was believed: see [`Index::identity`].
    pub identity: String,
    /// How many shards it has; fixed for the epoch.
    pub shards: u16,
    /// When it began.
    pub at: StoreTime,
}

/// The right to believe one index, by one connection, until a time that moves on while it is renewed.
#[derive(Debug)]
pub struct Lease {
    /// The connection.
    pub index: Arc<dyn Index>,
    /// The epoch that the index serves.
    pub epoch: EpochNumber,
    /// The names of its facts.
    pub names: Names,
    /// What the bucket says of it. No age counts from before its beginning.
    pub record: EpochRecord,
    /// In milliseconds of CLOCK_BOOTTIME, which goes on while a machine sleeps.
    until: AtomicU64,
    /// A bit for each shard that is known to be settled. It never is again not, within an epoch.
    settled: Vec<AtomicU64>,
    /// Who takes the next one, for a request that takes longer than this one lasts.
    keeper: Weak<Leases>,
}

impl Lease {
    /// The connection by which this epoch may be believed now. Asked between a request's arrival and each
    /// batch: a request whose lease ran out while its body came in (nobody else may have asked for one
    /// meanwhile), or whose connection broke, goes on under the next lease of the same epoch.
    pub async fn live(&self) -> Result<Arc<dyn Index>> {
        if self.is_live() {
            return Ok(Arc::clone(&self.index));
        }
        let keeper = self.keeper.upgrade().ok_or_else(|| Error::unavailable("the registry is being closed"))?;
        let next = keeper.lease().await?;
        if next.epoch != self.epoch {
            return Err(Error::unavailable("a new epoch began meanwhile"));
        }
        Ok(Arc::clone(&next.index))
    }

    fn is_live(&self) -> bool {
        boottime() < self.until.load(Ordering::Acquire)
    }

    /// After a failure of the index: the connection may be lost for good, so the next request asks the
    /// bucket anew, by another one if need be, rather than wait for the lease to run out.
    fn doubt(&self, index: &Arc<dyn Index>, error: IndexError) -> Error {
        self.until.store(0, Ordering::Release);
        if let Some(held) = self.keeper.upgrade().and_then(|keeper| keeper.held())
            && Arc::ptr_eq(&held.index, index)
        {
            held.until.store(0, Ordering::Release);
        }
        error.into()
    }

    /// The check that the shard still serves this epoch; the first of every batch.
    pub fn fenced(&self) -> Check {
        Check::Equals(self.names.fence(), self.names.fence_value())
    }

    /// The question whether the shard still serves this epoch; part of every snapshot that may miss.
    pub fn ask_fence(&self) -> Ask {
        Ask::Value(self.names.fence())
    }

    /// Whether an answer to [`Lease::ask_fence`] is this epoch. If it isn't, what was missed may be there.
    pub fn confirm(&self, fence: Option<&bytes::Bytes>) -> Result<()> {
        if fence.is_some_and(|value| *value == self.names.fence_value()) {
            return Ok(());
        }
        Err(Error::unavailable("the index no longer serves this epoch"))
    }

    /// Answers questions from one snapshot of a shard.
    pub async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<bytes::Bytes>>> {
        let index = self.live().await?;
        index.get(shard, asks).await.map_err(|error| self.doubt(&index, error))
    }

    /// A page of a group. Where it ends short of `limit`, the shard's fence is looked at after it: an index
    /// that was emptied shows short pages too.
    pub async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, bytes::Bytes)>> {
        let index = self.live().await?;
        let page = index.scan(shard, group, after, limit).await.map_err(|error| self.doubt(&index, error))?;
        if page.len() < limit {
            let fence = self.get(shard, &[self.ask_fence()]).await?;
            self.confirm(fence[0].as_ref())?;
        }
        Ok(page)
    }

    /// Commits a batch behind the fence. A refused check is counted without the fence.
    pub async fn commit(&self, shard: Shard, mut batch: Batch) -> Result<Outcome> {
        let index = self.live().await?;
        batch.checks.insert(0, self.fenced());
        match index.commit(shard, batch).await.map_err(|error| self.doubt(&index, error))? {
            Outcome::Refused { check: 0 } => Err(Error::unavailable("the index no longer serves this epoch")),
            Outcome::Refused { check } => Ok(Outcome::Refused { check: check - 1 }),
            committed => Ok(committed),
        }
    }

    /// Whether this replica has seen that the shard is settled.
    pub fn knows_settled(&self, shard: Shard) -> bool {
        let (word, bit) = (usize::from(shard.0) / 64, shard.0 % 64);
        self.settled[word].load(Ordering::Acquire) & (1 << bit) != 0
    }

    /// Remembers that the shard is settled.
    pub fn saw_settled(&self, shard: Shard) {
        let (word, bit) = (usize::from(shard.0) / 64, shard.0 % 64);
        self.settled[word].fetch_or(1 << bit, Ordering::AcqRel);
    }
}

/// Keeps this replica's lease.
#[derive(Debug)]
pub struct Leases {
    store: Arc<dyn Store>,
    connect: Arc<dyn Connect>,
    timing: Timing,
    current: Mutex<Option<Arc<Lease>>>,
    /// Held by the one task that asks the bucket; others wait for its answer. Inside: when it last failed,
    /// by [`boottime`], and how, so that all who waited for that answer get it instead of failing in turn.
    asking: tokio::sync::Mutex<Option<(u64, Error)>>,
}

/// What the bucket and the index say of each other.
#[derive(Debug)]
pub enum Standing {
    /// The newest epoch is this index's.
    Ours(Arc<Lease>),
    /// There has never been an epoch.
    Fresh,
    /// The newest epoch is this index's, which doesn't serve it: a replica is about to begin it, or was when
    /// it died, or the index was emptied in place.
    Unserved(EpochNumber),
    /// The newest epoch is this one, and it is of another index.
    Others(EpochNumber, EpochRecord),
}

impl Leases {
    /// A keeper without a lease yet.
    pub fn new(store: Arc<dyn Store>, connect: Arc<dyn Connect>, timing: Timing) -> Self {
        Self { store, connect, timing, current: Mutex::new(None), asking: tokio::sync::Mutex::default() }
    }

    /// The lease, renewed in the background from half of its life on, so that only the first request after
    /// a pause waits for the bucket.
    pub async fn lease(self: &Arc<Self>) -> Result<Arc<Lease>> {
        if let Some(lease) = self.held() {
            let left = lease.until.load(Ordering::Acquire).saturating_sub(boottime());
            if left < self.timing.lease.as_millis() as u64 / 2 {
                self.renew_in_background();
            }
            if left > 0 {
                return Ok(lease);
            }
        }
        let arrived = boottime();
        let mut asking = self.asking.lock().await;
        if let Some(lease) = self.held().filter(|lease| lease.is_live()) {
            return Ok(lease);
        }
        if let Some((_, error)) = asking.as_ref().filter(|(failed, _)| *failed > arrived) {
            return Err(error.clone());
        }
        let asked = match self.ask_in_time().await {
            Ok(Standing::Ours(lease)) => Ok(lease),
            Ok(Standing::Fresh) => Err(Error::unavailable("the bucket names no index")),
            Ok(Standing::Unserved(number)) => {
                Err(Error::unavailable(format!("the index doesn't serve its epoch {number}")))
            }
            Ok(Standing::Others(number, _)) => {
                Err(Error::unavailable(format!("another index owns this bucket (epoch {number})")))
            }
            Err(error) => Err(error),
        };
        *asking = asked.as_ref().err().map(|error| (boottime(), error.clone()));
        asked
    }

    fn held(&self) -> Option<Arc<Lease>> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn renew_in_background(self: &Arc<Self>) {
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_asking) = keeper.asking.try_lock() else { return };
            if let Err(error) = keeper.ask_in_time().await {
                tracing::warn!(%error, "the lease on the index was not renewed; it will be tried again with the next request");
            }
        });
    }

    /// Asks for as long as an answer can be of use: the lease counts from the question. Who asks keeps all
    /// others waiting, so a store that never answers must not keep it asking.
    async fn ask_in_time(self: &Arc<Self>) -> Result<Standing> {
        let patience = self.timing.lease;
        let late = |_| Error::unavailable("bucket and index did not answer within the time of a lease");
        tokio::time::timeout(patience, self.ask()).await.map_err(late)?
    }

    /// Asks the bucket which index is believed, and this connection whether it is that one.
    async fn ask(self: &Arc<Self>) -> Result<Standing> {
        let asked = boottime();
        let held = self.held();
        let Some(newest) = newest_epoch(&*self.store).await? else { return Ok(Standing::Fresh) };
        if let Some(lease) = held.filter(|lease| lease.epoch == newest)
            && self.renew(&lease, asked).await
        {
            return Ok(Standing::Ours(lease));
        }
        let index = self.connect.connect().await?;
        let record: EpochRecord = read_json(&self.store, &Key::Epoch(newest)).await?;
        if index.identity().await? != record.identity {
            return Ok(Standing::Others(newest, record));
        }
        let lease = Arc::new(Lease {
            index,
            epoch: newest,
            names: Names::new(newest, record.shards),
            until: AtomicU64::new(asked + self.timing.lease.as_millis() as u64),
            settled: (0..record.shards.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            record,
            keeper: Arc::downgrade(self),
        });
        for shard in lease.names.shards() {
            let answers = lease.index.get(shard, &[lease.ask_fence(), Ask::Value(lease.names.settled())]).await?;
            if lease.confirm(answers[0].as_ref()).is_err() {
                return Ok(Standing::Unserved(newest));
            }
            if answers[1].is_some() {
                lease.saw_settled(shard);
            }
        }
        *self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::clone(&lease));
        Ok(Standing::Ours(lease))
    }

    /// Takes the same lease for longer, if its connection still reaches the same index.
    async fn renew(&self, lease: &Arc<Lease>, asked: u64) -> bool {
        let same = lease.index.identity().await.is_ok_and(|identity| identity == lease.record.identity);
        let fence = lease.index.get(Shard(0), &[lease.ask_fence()]).await;
        let served = fence.is_ok_and(|answers| lease.confirm(answers[0].as_ref()).is_ok());
        if same && served {
            lease.until.fetch_max(asked + self.timing.lease.as_millis() as u64, Ordering::AcqRel);
        }
        same && served
    }

    /// What the bucket and the index say of each other, at start.
    pub async fn standing(self: &Arc<Self>) -> Result<Standing> {
        let _asking = self.asking.lock().await;
        self.ask().await
    }

    /// Begins the next epoch, of the index that this keeper connects to, with `shards` shards, all empty.
    ///
    /// Unless nobody else can be writing, waits until every lease under the old epoch and every deadline
    /// fixed under one has passed. Another replica's newer epoch wins: then nothing is fenced here.
    pub async fn begin(&self, shards: u16) -> Result<()> {
        let _asking = self.asking.lock().await;
        let before = newest_epoch(&*self.store).await?;
        let index = self.connect.connect().await?;
        let number = EpochNumber {
            generation: before.map_or(1, |newest| newest.generation + 1),
            random: u128::from(ulid::Ulid::r#gen()) as u32,
        };
        let record = EpochRecord { identity: index.identity().await?, shards, at: self.store.now() };
        let bytes = serde_json::to_vec(&record).map_err(Error::internal)?;
        self.store.put(&Key::Epoch(number), vec![bytes.into()], None).await?;
        if !self.store.is_exclusive() {
            let pause = if before.is_some() { self.timing.succession() } else { self.timing.margin };
            tracing::info!(epoch = %number, seconds = pause.as_secs(), "a new epoch begins once all leases under the old one have run out");
            tokio::time::sleep(pause).await;
        }
        if newest_epoch(&*self.store).await? != Some(number) {
            tracing::info!(epoch = %number, "another replica began a newer epoch; using that one");
            return Ok(());
        }
        let names = Names::new(number, shards);
        // All at once: the embedded index makes them durable by one fsync instead of one each, and a first start
        // answers the sooner.
        try_join_all(names.shards().map(|shard| set_fence(&*index, shard, &names))).await?;
        tracing::info!(epoch = %number, shards, "the index serves a new epoch");
        Ok(())
    }
}

/// Sets a shard's fence to a new epoch, once, whatever it was.
async fn set_fence(index: &dyn Index, shard: Shard, names: &Names) -> Result<()> {
    let found = index.get(shard, &[Ask::Value(names.fence())]).await?.pop().flatten();
    let check = match found {
        Some(value) if value >= names.fence_value() => return Ok(()),
        Some(value) => Check::Equals(names.fence(), value),
        None => Check::Absent(names.fence()),
    };
    let batch =
        Batch { checks: vec![check], writes: vec![Write::Put(names.fence(), names.fence_value())], ..Batch::default() };
    match index.commit(shard, batch).await? {
        Outcome::Committed { .. } => Ok(()),
        Outcome::Refused { .. } => Err(Error::unavailable("another replica set the fence at the same time")),
    }
}

/// The greatest number under `epochs/`.
pub async fn newest_epoch(store: &dyn Store) -> Result<Option<EpochNumber>> {
    let mut newest = None;
    let mut after: Option<String> = None;
    loop {
        let page = store.list(EPOCHS, after.as_deref(), 1000).await?;
        for (key, _) in &page.objects {
            if let Some(Key::Epoch(number)) = Key::parse(key) {
                newest = newest.max(Some(number));
            }
        }
        match page.objects.last() {
            Some((last, _)) if page.more => after = Some(last.clone()),
            _ => return Ok(newest),
        }
    }
}

/// The largest of our own JSON objects, in bytes.
const MAX_RECORD: usize = 1 << 20;

/// Reads one of our own JSON objects.
pub async fn read_json<T: serde::de::DeserializeOwned>(store: &Arc<dyn Store>, key: &Key) -> Result<T> {
    let bytes = read_small(store, key, MAX_RECORD).await?;
    serde_json::from_slice(&bytes).map_err(|error| Error::internal(format!("{key} can't be read: {error}")))
}

/// Milliseconds of CLOCK_BOOTTIME: monotonic, and it goes on while the machine sleeps.
pub(crate) fn boottime() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
