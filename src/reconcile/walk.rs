//! The walk: every repository of the bucket is reconciled, and then the shards are settled.
//!
//! One replica at a time goes on with it, and notes in the index how far it is; where it dies, another takes it
//! up. Two that both believe it is theirs do no harm, as each adoption is checked in its own batch. What has been
//! walked stays reconciled for as long as the epoch lasts, so nobody begins again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::{
    epoch::Lease,
    error::{Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Shard, Write,
        facts::{self, Adopted, WalkFact, Walked, WorkFact},
    },
    oci::RepositoryName,
    registry::{Registry, ask},
    roster,
    storage::key,
};

/// How many repositories are reconciled side by side: most are small, and their listings wait for the store.
pub(crate) const AT_ONCE: usize = 8;

/// For how long nobody else takes the walk up after its replica was last heard of.
const HOLD: Duration = Duration::from_secs(30);

/// How often who waits for another replica's walk looks how far it is.
const LOOK: Duration = Duration::from_millis(250);

/// Where the record of it is.
const SHARD: Shard = Shard(0);

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Some repositories were reconciled.
    Went(WalkFact),
    /// Nothing: another replica goes on with the walk.
    Elsewhere(WalkFact),
    /// All repositories are reconciled and the shards are settled, by this step or before.
    Over(WalkFact),
}

/// Reconciles the roster and every repository of the bucket, then settles the shards; or waits until another
/// replica has. `progress` is told how far that is.
pub async fn walk(registry: &Arc<Registry>, mut progress: impl FnMut(&WalkFact)) -> Result<Walked> {
    loop {
        match step(registry).await? {
            Step::Went(so_far) => progress(&so_far),
            Step::Elsewhere(so_far) => {
                progress(&so_far);
                tokio::time::sleep(LOOK).await;
            }
            Step::Over(all) => {
                progress(&all);
                return Ok(all.walked);
            }
        }
    }
}

/// Takes the next step of the walk.
pub async fn step(registry: &Arc<Registry>) -> Result<Step> {
    let lease = registry.lease().await?;
    let (value, there) = read(&lease).await?;
    let now = registry.store.now();
    let fact = there.unwrap_or_else(|| WalkFact::begun(registry.process, now));
    if registry.is_settled().await? {
        return Ok(Step::Over(fact));
    }
    if fact.by.owner != registry.process && fact.by.until > now {
        return Ok(Step::Elsewhere(fact));
    }
    let mut walk = Walk { registry, lease: &lease, value, fact };
    if !walk.note().await? {
        return Ok(Step::Elsewhere(walk.fact));
    }
    match walk.go_on().await {
        Ok(true) => Ok(Step::Went(walk.fact)),
        Ok(false) => {
            try_join_all(lease.names.shards().map(|shard| settle(&lease, shard))).await?;
            Ok(Step::Over(walk.fact))
        }
        Err(error) => {
            walk.leave().await;
            Err(error)
        }
    }
}

/// How far the walk of this epoch is; `None` where it hasn't begun.
pub async fn status(lease: &Lease) -> Result<Option<WalkFact>> {
    Ok(read(lease).await?.1)
}

async fn read(lease: &Lease) -> Result<(Option<Bytes>, Option<WalkFact>)> {
    let value = ask(lease, SHARD, vec![Ask::Value(lease.names.walk())]).await?.pop().flatten();
    let fact = value.as_ref().map(|value| facts::decode(value)).transpose()?;
    Ok((value, fact))
}

/// Notes that all of a shard's repositories are known, and up to which number that was told again.
async fn settle(lease: &Lease, shard: Shard) -> Result<()> {
    let names = &lease.names;
    let batch = Batch {
        checks: vec![Check::Absent(names.settled())],
        sequence: Some(names.counter()),
        writes: vec![Write::PutNumbered(names.settled(), Bytes::new())],
        ..Batch::default()
    };
    lease.commit(shard, batch).await?;
    lease.saw_settled(shard);
    Ok(())
}

/// A walk that is this process's to go on with.
struct Walk<'a> {
    registry: &'a Arc<Registry>,
    lease: &'a Lease,
    /// The record as it stands in the index.
    value: Option<Bytes>,
    fact: WalkFact,
}

impl Walk<'_> {
    /// Reconciles the next few repositories, and notes it; false where there is none left.
    async fn go_on(&mut self) -> Result<bool> {
        let registry = self.registry;
        let mut place = Place { after: self.fact.after.clone(), last: self.fact.last.clone() };
        if self.fact.after.is_none() {
            self.fact.walked.roster = roster::reconcile(registry).await?;
        }
        let names = place.next_few(registry).await?;
        let all = names.iter().map(|name| async { registry.unreconciled(name).await?.ensure_reconciled().await });
        // Large repositories take long: the others shall know that this one is at it.
        let adopted = beside(try_join_all(all), HOLD / 3, self).await?;
        self.fact.walked.repositories += adopted.len();
        self.fact.walked.adopted = adopted.into_iter().fold(self.fact.walked.adopted, Adopted::and);
        (self.fact.after, self.fact.last) = (place.after, place.last);
        self.keep().await?;
        Ok(!names.is_empty())
    }

    /// Notes how far the walk is, unless somebody else has done that since it was read.
    async fn note(&mut self) -> Result<bool> {
        self.fact.by = WorkFact { owner: self.registry.process, until: self.registry.store.now().plus(HOLD) };
        let (at, value) = (self.lease.names.walk(), facts::encode(&self.fact));
        let check = match self.value.take() {
            Some(before) => Check::Equals(at.clone(), before),
            None => Check::Absent(at.clone()),
        };
        let batch = Batch { checks: vec![check], writes: vec![Write::Put(at, value.clone())], ..Batch::default() };
        let is_noted = matches!(self.lease.commit(SHARD, batch).await?, Outcome::Committed { .. });
        self.value = is_noted.then_some(value);
        Ok(is_noted)
    }

    /// Lets somebody else go on at once; where that fails, they wait for the end of the hold.
    async fn leave(mut self) {
        let Some(before) = self.value.take() else { return };
        self.fact.by.until = self.registry.store.now();
        let at = self.lease.names.walk();
        let checks = vec![Check::Equals(at.clone(), before)];
        let batch = Batch { checks, writes: vec![Write::Put(at, facts::encode(&self.fact))], ..Batch::default() };
        if let Err(error) = self.lease.commit(SHARD, batch).await {
            tracing::debug!(%error, "the walk was not left to others; they take it up later");
        }
    }
}

/// Who does a piece of work that others may take over.
trait Keeper: Send {
    /// Tells the others that this one is still at it; fails where that is not so any more.
    fn keep(&mut self) -> impl Future<Output = Result<()>> + Send;
}

impl Keeper for Walk<'_> {
    async fn keep(&mut self) -> Result<()> {
        if self.note().await? { Ok(()) } else { Err(Error::unavailable("another replica goes on with the walk")) }
    }
}

/// What `work` comes to, kept each time that `period` has passed; or the error of either. Both go on at once: whoever
/// keeps may have to wait for something that the work holds, as for the question whether the index is believed, and
/// would wait for ever if the work stood still meanwhile.
async fn beside<T>(
    work: impl Future<Output = Result<T>> + Send,
    period: Duration,
    keeper: &mut impl Keeper,
) -> Result<T> {
    let keeping = async {
        loop {
            tokio::time::sleep(period).await;
            if let Err(error) = keeper.keep().await {
                return error;
            }
        }
    };
    tokio::select! {
        done = work => done,
        error = keeping => Err(error),
    }
}

/// Where a walk through the bucket's repositories is.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// The key behind which it goes on.
    after: Option<String>,
    /// The repository that was last found.
    last: Option<RepositoryName>,
}

impl Place {
    /// The next repository.
    pub(crate) async fn next(&mut self, registry: &Registry) -> Result<Option<RepositoryName>> {
        while let Some((name, next)) = next_repository(registry, self.after.clone()).await? {
            self.after = Some(next);
            // The folders of one repository follow each other.
            if name.is_some() && name != self.last {
                self.last.clone_from(&name);
                return Ok(name);
            }
        }
        Ok(None)
    }

    async fn next_few(&mut self, registry: &Registry) -> Result<Vec<RepositoryName>> {
        let mut names = Vec::new();
        while names.len() < AT_ONCE
            && let Some(name) = self.next(registry).await?
        {
            names.push(name);
        }
        Ok(names)
    }
}

/// The repository of the first key after `after`, and from where to go on behind the folder that it is in.
async fn next_repository(
    registry: &Registry,
    after: Option<String>,
) -> Result<Option<(Option<RepositoryName>, String)>> {
    let page = registry.store.list(key::REPOSITORIES, after.as_deref(), 1).await?;
    let Some((text, _)) = page.objects.first() else { return Ok(None) };
    // "0" is the character behind the slash: everything in this folder comes before it.
    for folder in ["/_blobs/", "/_manifests/", "/_tags/"] {
        if let Some((head, _)) = text.split_once(folder)
            && let Some(name) = head.strip_prefix(key::REPOSITORIES)
            && let Ok(name) = name.parse()
        {
            return Ok(Some((Some(name), format!("{head}{}0", folder.trim_end_matches('/')))));
        }
    }
    Ok(Some((None, text.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Needs something to keep with, and may do so three times.
    struct Careful<'a> {
        needs: &'a tokio::sync::Mutex<()>,
        left: u32,
    }

    impl Keeper for Careful<'_> {
        async fn keep(&mut self) -> Result<()> {
            let _needed = self.needs.lock().await;
            self.left = self.left.checked_sub(1).ok_or_else(|| Error::unavailable("somebody else's"))?;
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_holds_what_its_keeper_needs_goes_on() {
        let needs = tokio::sync::Mutex::new(());
        let work = async {
            let _held = needs.lock().await;
            tokio::time::sleep(SECOND * 15).await;
            Ok(())
        };
        let mut keeper = Careful { needs: &needs, left: 3 };
        assert!(beside(work, SECOND * 10, &mut keeper).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn work_ends_where_it_is_somebody_elses() {
        let needs = tokio::sync::Mutex::new(());
        let work = |seconds: u32| async move {
            tokio::time::sleep(SECOND * seconds).await;
            Ok(())
        };
        let mut keeper = Careful { needs: &needs, left: 3 };
        assert!(beside(work(35), SECOND * 10, &mut keeper).await.is_ok());
        assert_eq!(keeper.left, 0);
        assert!(beside(work(15), SECOND * 10, &mut keeper).await.is_err());
    }
}
