//! Checkpoints: how far an endpoint has been told, as the bucket knows it.
//!
//! The index can be lost, and with it what was not delivered yet. What the bucket proves is told again then, but
//! for what a checkpoint says was delivered. A checkpoint is never wrong, only old: then more is told twice.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::{Horizon, note_served, number, number_of};
use crate::{
    blob::fresh,
    collect,
    epoch::Lease,
    error::{Error, Result},
    event::{Interest, Interests},
    index::{Ask, Shard, facts::Names},
    oci::RepositoryName,
    registry::{Registry, ask, found},
    storage::{
        Key, Revision, StoreTime,
        key::{self, EntryName, EpochNumber},
        read_small,
    },
};

/// What `checkpoints/<endpoint>/<ulid>` holds. It covers every change of an older epoch; and of its own, those
/// whose number is not above their shard's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Of which index the numbers are.
    pub epoch: EpochNumber,
    /// By shard, as many as the epoch has: every event up to this number was delivered, or given up.
    pub delivered: Vec<u64>,
}

impl Checkpoint {
    /// Whether a revision of a tag was told, or came before the endpoint.
    pub fn covers(&self, repository: &RepositoryName, revision: Revision) -> bool {
        if revision.epoch != self.epoch {
            return revision.epoch < self.epoch;
        }
        let shards = u16::try_from(self.delivered.len()).unwrap_or(u16::MAX);
        if shards == 0 {
            return false;
        }
        let shard = Names::new(self.epoch, shards).shard_of(repository);
        self.delivered.get(usize::from(shard.0)).is_some_and(|&delivered| revision.counter <= delivered)
    }
}

/// The largest checkpoint, in bytes: one of 65,535 shards.
const MAX_CHECKPOINT: usize = 2 << 20;

/// The newest checkpoint of an endpoint, if it has any.
pub async fn newest(registry: &Registry, endpoint: &EntryName) -> Result<Option<Checkpoint>> {
    loop {
        let Some(key) = listed(registry, &key::checkpoints(endpoint)).await?.pop() else { return Ok(None) };
        // A newer one may have taken its place since it was listed.
        if let Some(bytes) = found(read_small(&registry.store, &key, MAX_CHECKPOINT).await)? {
            return serde_json::from_slice(&bytes).map(Some).map_err(Error::internal);
        }
    }
}

/// The endpoints that have a checkpoint, whether anybody serves them or not.
pub(super) async fn endpoints(registry: &Registry) -> Result<BTreeSet<EntryName>> {
    let name = |key| if let Key::Checkpoint { endpoint, .. } = key { Some(endpoint) } else { None };
    Ok(listed(registry, key::ALL_CHECKPOINTS).await?.into_iter().filter_map(name).collect())
}

/// The keys of the checkpoints under a prefix: those of one endpoint are in their order, the oldest first.
pub(super) async fn listed(registry: &Registry, prefix: &str) -> Result<Vec<Key>> {
    let (mut keys, mut after): (_, Option<String>) = (Vec::new(), None);
    loop {
        let page = registry.store.list(prefix, after.as_deref(), 1000).await?;
        keys.extend(page.objects.iter().filter_map(|(text, _)| Key::parse(text)));
        match page.objects.last() {
            Some((last, _)) if page.more => after = Some(last.clone()),
            _ => return Ok(keys),
        }
    }
}

/// How far one shard's events are delivered to an endpoint.
struct Reached {
    /// Every event up to this number was delivered, or given up.
    delivered: u64,
    /// What was told again when the shard's repositories were reconciled has no greater number than this; nothing
    /// while some are not, or while what earlier epochs left is not taken over.
    again: Option<u64>,
}

/// Writes how far an endpoint has been told, if that has changed, and removes what said so before. Whether it did.
///
/// The first one of an endpoint is written at once: it says that what was before is not to be told. After an index
/// was lost the last one under it holds until all that was told again is delivered: not before every shard is
/// settled and its deliveries have passed the number that it was settled at.
pub async fn advance(registry: &Registry, endpoint: &EntryName) -> Result<bool> {
    let lease = registry.lease().await?;
    let before = newest(registry, endpoint).await?;
    let reached = try_join_all(lease.names.shards().map(|shard| reached(&lease, shard, endpoint))).await?;
    let is_through = |reached: &Reached| reached.again.is_some_and(|again| reached.delivered >= again);
    let may_follow = match &before {
        Some(before) if before.epoch > lease.epoch => false,
        Some(before) if before.epoch < lease.epoch => reached.iter().all(is_through),
        Some(_) | None => true,
    };
    let delivered = reached.iter().map(|reached| reached.delivered).collect();
    let checkpoint = Checkpoint { epoch: lease.epoch, delivered };
    if !may_follow || before.as_ref() == Some(&checkpoint) {
        return Ok(false);
    }
    write(registry, &lease, endpoint, &checkpoint).await?;
    Ok(true)
}

/// Writes the first checkpoint of each of these endpoints that has none, before anything happens that it is told of:
/// what an index was about to tell that is lost before there is a checkpoint is not told again. They are noted to be
/// served before that.
pub async fn begin(registry: &Registry, interests: &Interests) {
    if let Err(error) = note_served(registry, interests).await {
        tracing::warn!(%error, "which endpoints are served could not be noted; it will be tried again");
    }
    for Interest { endpoint, .. } in interests.iter() {
        if let Err(error) = begin_one(registry, endpoint).await {
            tracing::warn!(%error, %endpoint, "an endpoint's first checkpoint could not be written; it will be tried again");
        }
    }
}

async fn begin_one(registry: &Registry, endpoint: &EntryName) -> Result<()> {
    if newest(registry, endpoint).await?.is_none() {
        advance(registry, endpoint).await?;
    }
    Ok(())
}

async fn reached(lease: &Lease, shard: Shard, endpoint: &EntryName) -> Result<Reached> {
    // First how far events are known, then which of them are left: one that came between the two is above that.
    let known = Horizon::look(lease, shard).await?.known();
    let names = &lease.names;
    let asks =
        vec![Ask::First(names.outbox(endpoint)), Ask::Value(names.settled()), Ask::Value(names.inherited(endpoint))];
    let answers = ask(lease, shard, asks).await?;
    let pending = answers[0].as_ref().map(|first| number_of(&String::from_utf8_lossy(first))).transpose()?;
    // What is still under an old prefix is not delivered either.
    let again = match answers[1].as_ref().filter(|_| answers[2].is_some()) {
        // An index that was settled by a release without events has none to tell again.
        Some(value) if value.is_empty() => Some(0),
        Some(value) => Some(number(value, 16)?),
        None => None,
    };
    Ok(Reached { delivered: pending.map_or(known, |pending| known.min(pending.saturating_sub(1))), again })
}

async fn write(registry: &Registry, lease: &Lease, endpoint: &EntryName, checkpoint: &Checkpoint) -> Result<()> {
    let older = listed(registry, &key::checkpoints(endpoint)).await?;
    let key = Key::Checkpoint { endpoint: endpoint.clone(), checkpoint: fresh(&*registry.store) };
    let body = serde_json::to_vec(checkpoint).map_err(Error::internal)?;
    registry.store.put(&key, vec![body.into()], None).await?;
    for older in older.iter().filter(|older| older.to_string() < key.to_string()) {
        collect::remove(registry, lease, older).await?;
    }
    Ok(())
}

/// For how long what was read of checkpoints is gone by: at worst more is told twice, or kept longer.
const KEPT: u64 = 10_000;

/// Which revisions each endpoint was told, as far as the bucket knows.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    interests: Arc<Interests>,
    read: StoreTime,
    told: Vec<(Interest, Checkpoint)>,
}

impl Coverage {
    /// The endpoints that were not told of a revision that was written about `at`, and that want to be, if they care for
    /// what it says. None that has no checkpoint: it came after the revision.
    pub(crate) fn lacking(
        &self,
        repository: &RepositoryName,
        revision: Revision,
        at: StoreTime,
    ) -> impl Iterator<Item = &EntryName> {
        let lacks = move |(interest, checkpoint): &&(Interest, Checkpoint)| {
            at.plus(interest.max_age) > self.read && !checkpoint.covers(repository, revision)
        };
        self.told.iter().filter(lacks).map(|(interest, _)| &interest.endpoint)
    }

    /// Whether nobody lacks a revision.
    pub(crate) fn has(&self, repository: &RepositoryName, revision: Revision, at: StoreTime) -> bool {
        self.lacking(repository, revision, at).next().is_none()
    }
}

impl Registry {
    /// Which revisions were told to those who want to be told now. Nothing is asked where nobody does.
    pub(crate) async fn coverage(&self) -> Result<Arc<Coverage>> {
        let (interests, now) = (self.interests(), self.store.now());
        let mut kept = self.coverage.lock().await;
        if Arc::ptr_eq(&kept.interests, &interests) && (interests.is_empty() || kept.read.0 + KEPT > now.0) {
            return Ok(Arc::clone(&kept));
        }
        let mut told = Vec::new();
        for interest in interests.iter() {
            if let Some(checkpoint) = newest(self, &interest.endpoint).await? {
                told.push((interest.clone(), checkpoint));
            }
        }
        *kept = Arc::new(Coverage { interests, read: now, told });
        Ok(Arc::clone(&kept))
    }
}
