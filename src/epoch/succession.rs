//! The next epoch: how an index becomes the one that the bucket names.
//!
//! Nobody repairs an index that may have lost something. It gets a new number and starts empty, once nothing
//! that was begun under the old one can count any more.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;

use super::{EpochRecord, boottime, leases::Leases, leases::Standing, newest_epoch};
use crate::{
    error::{Error, Result},
    index::{Ask, Batch, Check, Index, Outcome, Shard, Write, facts::Names},
    storage::{Key, key::EpochNumber},
};

/// An epoch that no index serves, and since when that has been so, by [`boottime`].
#[derive(Debug, Default)]
pub(super) struct Vacancy(Option<(Option<EpochNumber>, u64)>);

impl Vacancy {
    /// For how long the same epoch has been seen vacant; `None` where that is news.
    fn seen(&mut self, epoch: Option<EpochNumber>) -> Option<Duration> {
        match self.0 {
            Some((known, since)) if known == epoch => Some(Duration::from_millis(boottime() - since)),
            _ => {
                self.0 = Some((epoch, boottime()));
                None
            }
        }
    }
}

impl Leases {
    /// Begins the next epoch where that is for this replica to do: its own index was emptied or replaced, or
    /// who was about to begin one has died. Never at the first sight: replicas look at random intervals, so
    /// that one of them mostly is first and the others find its epoch.
    pub(super) async fn succeed(self: &Arc<Self>, found: &Standing, vacancy: &mut Vacancy) {
        let Some(shards) = self.succession else { return };
        let (epoch, patience) = match *found {
            Standing::Fresh => (None, Duration::ZERO),
            Standing::Replaced(number, _) => (Some(number), Duration::ZERO),
            Standing::Unserved(number) if self.believed() == Some(number) => (Some(number), Duration::ZERO),
            Standing::Unserved(number) => (Some(number), self.timing.succession() + self.timing.margin),
            Standing::Ours(_) | Standing::Others(..) => return,
        };
        if vacancy.seen(epoch).is_none_or(|seen| seen < patience) {
            return;
        }
        if let Err(error) = self.begin(shards).await {
            tracing::warn!(%error, "a new epoch could not be begun; it will be tried again");
        }
    }

    /// Begins the next epoch, of the index that this keeper connects to, with `shards` shards, all empty.
    ///
    /// Unless nobody can be writing, waits until every lease under the old epoch and every deadline fixed
    /// under one has passed. Another replica's newer epoch wins: then nothing is fenced here.
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
        // Requests of this very process may still be writing under a lease that it held.
        if !self.store.is_exclusive() || self.believed().is_some() {
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
