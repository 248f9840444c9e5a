//! Which index may be believed, and for how long: epochs, fences, leases.
//!
//! An index can lose what it acknowledged, and two of them can be alive at once. So the bucket says, under
//! `epochs/`, which one index is believed, each shard of that index says which epoch it serves, and a
//! replica believes it only for a few seconds at a time, by one connection. Everything here is about that;
//! what the facts mean is none of its business.

mod leases;
mod succession;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use leases::{Leases, Standing};

use crate::{
    error::{Error, Result},
    index::{Ask, Batch, Check, Index, IndexError, Outcome, Shard, facts::Names},
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
    /// Whether some shard was found not to serve the epoch. Renewing looks at one shard only, and a cluster can
    /// lose one of many.
    is_unserved: AtomicBool,
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
            return Err(Error::suspect("a new epoch began meanwhile"));
        }
        Ok(Arc::clone(&next.index))
    }

    fn is_live(&self) -> bool {
        boottime() < self.until.load(Ordering::Acquire)
    }

    /// Ends this lease, and the one that requests are given now if it is by the same connection: the next
    /// request asks the bucket anew, by another connection if need be, rather than wait for its time to run out.
    fn end(&self, index: &Arc<dyn Index>) -> Option<Arc<Leases>> {
        self.until.store(0, Ordering::Release);
        let keeper = self.keeper.upgrade()?;
        let held = keeper.held().filter(|held| Arc::ptr_eq(&held.index, index))?;
        held.until.store(0, Ordering::Release);
        Some(keeper)
    }

    /// After a failure of the index. A server that doesn't answer in time is given up at once, so that the
    /// next request doesn't wait as long again; a connection that broke may be the only thing that is wrong.
    fn doubt(&self, index: &Arc<dyn Index>, error: IndexError) -> Error {
        let keeper = self.end(index);
        let is_silent = matches!(error, IndexError::TimedOut(_));
        let error = Error::from(error);
        if let Some(keeper) = keeper.filter(|_| is_silent) {
            keeper.give_up(error.clone());
        }
        error
    }

    /// The connection by which to ask once more after a question failed: another one, where the first broke.
    async fn another(&self, index: &Arc<dyn Index>, error: IndexError) -> Result<Arc<dyn Index>> {
        let is_broken = matches!(error, IndexError::Unreachable(_));
        let error = self.doubt(index, error);
        if is_broken { self.live().await } else { Err(error) }
    }

    /// The index no longer serves this epoch: it was emptied, or is another one by now.
    fn unserved(&self) -> Error {
        self.is_unserved.store(true, Ordering::Release);
        self.end(&self.index);
        Error::suspect("the index no longer serves this epoch")
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
        Err(self.unserved())
    }

    /// Answers questions from one snapshot of a shard. They are asked once more where the connection broke.
    pub async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<bytes::Bytes>>> {
        let index = self.live().await?;
        match index.get(shard, asks).await {
            Ok(answers) => Ok(answers),
            Err(error) => {
                let index = self.another(&index, error).await?;
                index.get(shard, asks).await.map_err(|error| self.doubt(&index, error))
            }
        }
    }

    /// A page of a group, asked for once more where the connection broke. Where it ends short of `limit`, the
    /// shard's fence is looked at after it: an index that was emptied shows short pages too.
    pub async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, bytes::Bytes)>> {
        let index = self.live().await?;
        let page = match index.scan(shard, group, after, limit).await {
            Ok(page) => page,
            Err(error) => {
                let index = self.another(&index, error).await?;
                index.scan(shard, group, after, limit).await.map_err(|error| self.doubt(&index, error))?
            }
        };
        if page.len() < limit {
            let fence = self.get(shard, &[self.ask_fence()]).await?;
            self.confirm(fence[0].as_ref())?;
        }
        Ok(page)
    }

    /// Commits a batch behind the fence. A refused check is counted without the fence. It is sent once more only
    /// where the index wasn't reached; whatever else went wrong, the first one may have been committed.
    pub async fn commit(&self, shard: Shard, mut batch: Batch) -> Result<Outcome> {
        let index = self.live().await?;
        batch.checks.insert(0, self.fenced());
        let outcome = match index.commit(shard, batch.clone()).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let index = self.another(&index, error).await?;
                index.commit(shard, batch).await.map_err(|error| self.doubt(&index, error))?
            }
        };
        match outcome {
            Outcome::Refused { check: 0 } => Err(self.unserved()),
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

/// The greatest number under `epochs/`.
pub async fn newest_epoch(store: &dyn Store) -> Result<Option<EpochNumber>> {
    Ok(epochs(store).await?.into_iter().max())
}

/// All numbers under `epochs/`: one for each time that an index was begun.
pub async fn epochs(store: &dyn Store) -> Result<Vec<EpochNumber>> {
    let mut numbers = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(EPOCHS, after.as_deref(), 1000).await?;
        for (key, _) in &page.objects {
            if let Some(Key::Epoch(number)) = Key::parse(key) {
                numbers.push(number);
            }
        }
        match page.objects.last() {
            Some((last, _)) if page.more => after = Some(last.clone()),
            _ => return Ok(numbers),
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
