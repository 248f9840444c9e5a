//! Rounds: the whole bucket is looked through, page by page, and what nothing needs goes to the trash.
//!
//! One replica at a time goes on with a round, and notes in the index how far it is; where it dies, another takes
//! it up. Two that both believe it is theirs do no harm: each removal is checked once more in its own batch.
//! A round holds one page of a listing in memory, and whoever drives it rests between the pages.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ulid::Ulid;

use super::{
    garbage::{Garbage, Look, Why},
    link_trash, release, unlink,
};
use crate::{
    epoch::Lease,
    error::{Error, Result},
    index::{
        Batch, Check, Outcome, Shard, Write,
        facts::{self, CollectionFact, FinishedRound, Found, RoundFact, TrashFact, WorkFact},
    },
    registry::{Registry, ask},
    storage::{Key, Page, StoreTime, key},
};

/// How many objects are looked at in one step.
const PAGE: usize = 500;

/// For how long nobody else takes up a round after a step of it: a step is a listing, some questions, and at
/// most [`PAGE`] batches.
const HOLD: Duration = Duration::from_secs(60);

/// Where the record of it is.
const SHARD: Shard = Shard(0);

/// When a new round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// A period after the last one began.
    WhenDue,
    /// At once, unless one goes on.
    Now,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it isn't time, or the index doesn't know the whole bucket yet.
    NotYet,
    /// Nothing: another replica goes on with the round.
    Elsewhere,
    /// It took a round up, or looked through a page of it.
    Went,
    /// It looked through the last page.
    Over(FinishedRound),
}

/// Takes the next step of a round. `owner` is drawn by each process that collects.
pub async fn step(registry: &Arc<Registry>, owner: Ulid, begin: Begin) -> Result<Step> {
    let lease = registry.lease().await?;
    if !registry.is_settled().await? {
        return Ok(Step::NotYet);
    }
    let Some(look) = Look::new(registry, &lease) else { return Ok(Step::NotYet) };
    let (value, fact) = read(&lease).await?;
    let now = registry.store.now();
    if let Some(last) = &fact.last {
        registry.options.collected.completed(last.ended.0);
    }
    let mine = WorkFact { owner, until: now.plus(HOLD) };
    let round = match fact.round.clone() {
        Some(round) if round.by.owner == owner => round,
        Some(round) if round.by.until > now => return Ok(Step::Elsewhere),
        Some(round) => return take(&lease, value, fact, RoundFact { by: mine, ..round }).await,
        None if begin == Begin::WhenDue && next_round(registry, fact.last) > now => return Ok(Step::NotYet),
        None => {
            let after = key::REPOSITORIES.to_owned();
            let round = RoundFact { by: mine, began: now, after, found: Found::default() };
            return take(&lease, value, fact, round).await;
        }
    };
    let (page, next) = page_after(registry, &round.after).await?;
    let mut found = round.found;
    for garbage in look.at(&page).await? {
        if throw_away(registry, &lease, &garbage).await? {
            found.add(&garbage);
            registry.options.collected.found(kind(&garbage));
            registry.work.notify_one();
        }
    }
    let began = round.began;
    let Some(after) = next else {
        let last = FinishedRound { began, ended: registry.store.now(), found };
        let is_noted = note(&lease, value, &CollectionFact { round: None, last: Some(last) }).await?;
        registry.options.collected.completed(last.ended.0);
        return Ok(if is_noted { Step::Over(last) } else { Step::Elsewhere });
    };
    let by = WorkFact { owner, until: registry.store.now().plus(HOLD) };
    let round = RoundFact { by, began, after, found };
    let is_noted = note(&lease, value, &CollectionFact { round: Some(round), last: fact.last }).await?;
    Ok(if is_noted { Step::Went } else { Step::Elsewhere })
}

/// What a round would find now, without removing anything. `show` is told of each.
///
/// What is unused once something else is gone is not among it: the bytes of a link go after the link.
pub async fn examine(registry: &Arc<Registry>, mut show: impl FnMut(&Garbage)) -> Result<Found> {
    let lease = registry.lease().await?;
    if !registry.is_settled().await? {
        return Err(Error::unavailable("the index is still being filled from the bucket"));
    }
    let mut found = Found::default();
    let mut next = Some(key::REPOSITORIES.to_owned());
    while let Some(after) = next {
        let Some(look) = Look::new(registry, &lease) else { return Ok(found) };
        let (page, following) = page_after(registry, &after).await?;
        for garbage in look.at(&page).await? {
            found.add(&garbage);
            show(&garbage);
        }
        next = following;
    }
    Ok(found)
}

/// How far collection is, as the index knows it.
pub async fn status(registry: &Arc<Registry>) -> Result<CollectionFact> {
    let lease = registry.lease().await?;
    Ok(read(&lease).await?.1)
}

/// When the next round begins, if none goes on. None does while the epoch is younger than the grace.
pub fn next_round(registry: &Registry, last: Option<FinishedRound>) -> StoreTime {
    last.map_or(StoreTime(0), |last| last.began.plus(registry.options.collect_period))
}

async fn read(lease: &Lease) -> Result<(Option<Bytes>, CollectionFact)> {
    let value = ask(lease, SHARD, vec![crate::index::Ask::Value(lease.names.collection())]).await?.pop().flatten();
    let fact = value.as_ref().map(|value| facts::decode(value)).transpose()?;
    Ok((value, fact.unwrap_or_default()))
}

/// Begins a round, or takes up one whose replica has stopped.
async fn take(lease: &Lease, before: Option<Bytes>, fact: CollectionFact, round: RoundFact) -> Result<Step> {
    let is_taken = note(lease, before, &CollectionFact { round: Some(round), ..fact }).await?;
    Ok(if is_taken { Step::Went } else { Step::Elsewhere })
}

/// Notes how far collection is, unless somebody else has done that since it was read.
async fn note(lease: &Lease, before: Option<Bytes>, fact: &CollectionFact) -> Result<bool> {
    let at = lease.names.collection();
    let check = match before {
        Some(value) => Check::Equals(at.clone(), value),
        None => Check::Absent(at.clone()),
    };
    let batch = Batch { checks: vec![check], writes: vec![Write::Put(at, facts::encode(fact))], ..Batch::default() };
    Ok(matches!(lease.commit(SHARD, batch).await?, Outcome::Committed { .. }))
}

/// The objects behind a key, repositories first, then data; and the key to go on behind.
async fn page_after(registry: &Registry, after: &str) -> Result<(Page, Option<String>)> {
    let prefix = if after.starts_with(key::DATA) { key::DATA } else { key::REPOSITORIES };
    let page = registry.store.list(prefix, Some(after).filter(|after| *after != prefix), PAGE).await?;
    let next = match page.objects.last() {
        Some((last, _)) if page.more => Some(last.clone()),
        _ if prefix == key::REPOSITORIES => Some(key::DATA.to_owned()),
        _ => None,
    };
    Ok((page, next))
}

/// Makes something trash, if it is still garbage.
async fn throw_away(registry: &Registry, lease: &Lease, garbage: &Garbage) -> Result<bool> {
    match (&garbage.key, &garbage.why) {
        (Key::Link { repository, digest, .. }, Why::Unneeded(fact)) => {
            Ok(unlink(lease, repository, digest, fact.clone(), Batch::default()).await?.is_some())
        }
        (Key::Link { repository, link, .. }, _) => {
            let names = &lease.names;
            let checks = vec![Check::Absent(names.attempt(*link)), Check::Absent(names.trashed(*link))];
            let writes = vec![Write::Put(names.trashed(*link), facts::encode(&link_trash(&garbage.key)))];
            commit(lease, names.shard_of(repository), checks, writes).await
        }
        (Key::Data(data), Why::StaleUse(repository, link)) => {
            let home = lease.names.home_of(*data);
            let is_done =
                commit(lease, home, Vec::new(), vec![Write::Delete(lease.names.user(*data, repository, *link))]);
            let is_done = is_done.await?;
            release(registry, lease, *data).await?;
            Ok(is_done)
        }
        (Key::Data(data), Why::Unused) => release(registry, lease, *data).await,
        (Key::Data(data), _) => {
            let trash = TrashFact { keys: vec![garbage.key.to_string()], size: garbage.size, ..TrashFact::default() };
            let checks = vec![Check::Absent(lease.names.data(*data))];
            let writes = vec![super::throw_away(&*registry.store, lease, &trash)];
            commit(lease, lease.names.home_of(*data), checks, writes).await
        }
        (Key::Manifest { repository, .. } | Key::Tag { repository, .. }, _) => {
            // Whoever wrote it is done, whatever else happens to its repository: there is nothing left to check.
            let trash = TrashFact { keys: vec![garbage.key.to_string()], ..TrashFact::default() };
            let writes = vec![super::throw_away(&*registry.store, lease, &trash)];
            commit(lease, lease.names.shard_of(repository), Vec::new(), writes).await
        }
        (Key::Format | Key::Entry { .. } | Key::Epoch(_) | Key::Checkpoint { .. } | Key::Probe(_), _) => Ok(false),
    }
}

async fn commit(lease: &Lease, shard: Shard, checks: Vec<Check>, writes: Vec<Write>) -> Result<bool> {
    let outcome = lease.commit(shard, Batch { checks, writes, ..Batch::default() }).await?;
    Ok(matches!(outcome, Outcome::Committed { .. }))
}

/// What the metrics call it.
fn kind(garbage: &Garbage) -> &'static str {
    match (&garbage.key, &garbage.why) {
        (_, Why::StaleUse(..)) => "use",
        (key, _) => super::kind(key),
    }
}
