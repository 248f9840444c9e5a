//! Background work: what any replica may do for all of them, in small steps.
//!
//! A piece of work is of one shard. Who finds some of it due takes a lease on it, so that two replicas
//! seldom do the same; every step is safe all the same if they do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ulid::Ulid;

use crate::{
    collect::{
        self,
        round::{self, Begin, Step},
    },
    epoch::Lease,
    error::{Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Shard, Write,
        facts::{self, FinishedRound, Found, IntentFact, WorkFact},
    },
    registry::Registry,
    roster,
    storage::Revision,
    tag::Reserved,
};

/// How often an idle replica looks for work that others left.
const LOOK: Duration = Duration::from_secs(10);

/// How long after a wake-up by this process its own work is looked at: what was acknowledged first goes on.
const SETTLE: Duration = Duration::from_millis(500);

/// For how long nobody else should do a piece of work that was taken.
const HOLD: Duration = Duration::from_secs(60);

/// How often a replica looks for uploads in parts that nobody knows of. They are few, and their listing is of
/// the whole bucket; so many replicas look now and then, and none often.
const SWEEP: Duration = Duration::from_secs(6 * 3600);

/// The name of that work, which is of the whole bucket and done under the first shard's lease.
const ORPHANS: &str = "orphans";

/// The kinds of work. Each is looked for by the first member of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Intents whose writers died.
    Recover,
    /// Objects to be removed.
    Trash,
    /// Uploads that nobody goes on with.
    Uploads,
    /// Attempts to link whose requests are over.
    Attempts,
    /// Tags with more history than is kept.
    Histories,
    /// Accounts and rules whose writers died.
    Roster,
}

const ALL: [Work; 6] = [Work::Recover, Work::Trash, Work::Uploads, Work::Attempts, Work::Histories, Work::Roster];

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Recover => "recover",
            Self::Trash => "trash",
            Self::Uploads => "uploads",
            Self::Attempts => "attempts",
            Self::Histories => "histories",
            Self::Roster => "roster",
        }
    }

    fn group(self, lease: &Lease) -> String {
        match self {
            Self::Recover => lease.names.intents(),
            Self::Trash => lease.names.trash(),
            Self::Uploads => lease.names.uploads(),
            Self::Attempts => lease.names.attempts(),
            Self::Histories => lease.names.trims(),
            Self::Roster => lease.names.pending(),
        }
    }

    /// Whether there may be something to do, by the oldest member of the group.
    fn is_due(self, registry: &Registry, first: &[u8]) -> bool {
        let age = || {
            let ulid = std::str::from_utf8(first).ok().and_then(|text| Ulid::from_string(text).ok())?;
            Some(Duration::from_millis(registry.store.now().0.saturating_sub(ulid.timestamp_ms())))
        };
        let timing = registry.options.timing;
        match self {
            Self::Trash | Self::Histories | Self::Roster => true,
            Self::Recover => age().is_none_or(|age| age > timing.deadline + timing.margin),
            Self::Uploads | Self::Attempts => age().is_none_or(|age| age > registry.options.upload_expiry),
        }
    }

    async fn run(self, registry: &Arc<Registry>, lease: &Lease, shard: Shard) -> Result<usize> {
        match self {
            Self::Recover => recover(registry, lease, shard).await,
            Self::Trash => collect::empty_trash(registry, lease, shard).await,
            Self::Uploads => collect::expire_uploads(registry, lease, shard).await,
            Self::Attempts => collect::expire_attempts(registry, lease, shard).await,
            Self::Histories => collect::trim_histories(registry, lease, shard).await,
            Self::Roster => roster::recover(registry, lease).await,
        }
    }
}

/// Works until it is dropped.
pub async fn work(registry: Arc<Registry>) {
    let owner = Ulid::r#gen();
    // Not at once: a replica that is started again and again would do nothing else.
    let mut swept = Instant::now();
    loop {
        if tokio::time::timeout(LOOK, registry.work.notified()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        if let Err(error) = work_once(&registry, owner).await {
            tracing::debug!(%error, "background work has to wait");
        }
        if swept.elapsed() > SWEEP {
            swept = Instant::now();
            if let Err(error) = sweep(&registry, owner).await {
                tracing::warn!(%error, "unfinished uploads were not looked through; they will be the next time");
            }
        }
    }
}

/// How much longer collection rests after each step than the step took: a fifth of the time that one caller could
/// keep the store and the index busy is all that it ever uses.
const REST: u32 = 4;

/// Collects garbage, one small step after the other, until it is dropped.
pub async fn collect(registry: Arc<Registry>) {
    let owner = Ulid::r#gen();
    let pause = LOOK.min(registry.options.collect_period);
    loop {
        let began = std::time::Instant::now();
        let rest = match round::step(&registry, owner, Begin::WhenDue).await {
            Ok(Step::Went) => began.elapsed() * REST,
            Ok(Step::Over(finished)) => {
                report(&finished);
                pause
            }
            Ok(Step::NotYet | Step::Elsewhere) => pause,
            Err(error) => {
                tracing::debug!(%error, "collection has to wait");
                pause
            }
        };
        tokio::time::sleep(rest).await;
    }
}

/// One line about a round that found something.
fn report(finished: &FinishedRound) {
    let FinishedRound { began, ended, found } = *finished;
    if found == Found::default() {
        return;
    }
    let Found { links, manifests, revisions, data, uses, bytes } = found;
    let seconds = ended.0.saturating_sub(began.0) / 1000;
    tracing::info!(
        links,
        manifests,
        revisions,
        data,
        uses,
        bytes,
        seconds,
        "garbage was found in the bucket; it is removed by and by, and the bytes of its links after them"
    );
}

/// Ends the uploads in parts that nobody knows of, unless another replica is at it.
pub async fn sweep(registry: &Arc<Registry>, owner: Ulid) -> Result<()> {
    let lease = registry.lease().await?;
    let Some(shard) = lease.names.shards().next() else { return Ok(()) };
    if !take(registry, &lease, shard, ORPHANS, owner, HOLD).await? {
        return Ok(());
    }
    let aborted = collect::abort_orphans(registry, &lease).await;
    leave(&lease, shard, ORPHANS, owner).await?;
    let count = aborted?;
    if count > 0 {
        tracing::info!(count, "uploads in parts that nobody knew of were ended");
    }
    Ok(())
}

/// Does everything that is due now, in every shard.
pub async fn work_once(registry: &Arc<Registry>, owner: Ulid) -> Result<()> {
    let lease = registry.lease().await?;
    for shard in lease.names.shards() {
        let asks: Vec<Ask> = ALL.iter().map(|work| Ask::First(work.group(&lease))).collect();
        let firsts = lease.get(shard, &asks).await?;
        for (work, first) in ALL.into_iter().zip(firsts) {
            if !first.is_some_and(|first| work.is_due(registry, &first)) {
                continue;
            }
            if take(registry, &lease, shard, work.name(), owner, HOLD).await? {
                let done = work.run(registry, &lease, shard).await;
                leave(&lease, shard, work.name(), owner).await?;
                match done {
                    Ok(0) => {}
                    Ok(count) => tracing::debug!(work = work.name(), shard = shard.0, count, "background work done"),
                    Err(error) => {
                        tracing::warn!(%error, work = work.name(), shard = shard.0, "background work failed; it will be tried again")
                    }
                }
            }
        }
    }
    Ok(())
}

/// Takes a piece of work for a while, or keeps it for longer, unless somebody else has it.
pub(crate) async fn take(
    registry: &Registry,
    lease: &Lease,
    shard: Shard,
    work: &str,
    owner: Ulid,
    hold: Duration,
) -> Result<bool> {
    let fact = lease.names.work(work);
    let now = registry.store.now();
    let held = lease.get(shard, &[Ask::Value(fact.clone())]).await?.pop().flatten();
    let check = match held {
        None => Check::Absent(fact.clone()),
        Some(value) => {
            let work: WorkFact = facts::decode(&value)?;
            if work.until > now && work.owner != owner {
                return Ok(false);
            }
            Check::Equals(fact.clone(), value)
        }
    };
    let writes = vec![Write::Put(fact, facts::encode(&WorkFact { owner, until: now.plus(hold) }))];
    let outcome = lease.commit(shard, Batch { checks: vec![check], writes, ..Batch::default() }).await?;
    Ok(matches!(outcome, Outcome::Committed { .. }))
}

/// Leaves a piece of work to others, unless somebody else has taken it meanwhile.
pub(crate) async fn leave(lease: &Lease, shard: Shard, work: &str, owner: Ulid) -> Result<()> {
    let fact = lease.names.work(work);
    let Some(value) = lease.get(shard, &[Ask::Value(fact.clone())]).await?.pop().flatten() else { return Ok(()) };
    if facts::decode::<WorkFact>(&value)?.owner != owner {
        return Ok(());
    }
    let batch = Batch {
        checks: vec![Check::Equals(fact.clone(), value)],
        writes: vec![Write::Delete(fact)],
        ..Batch::default()
    };
    lease.commit(shard, batch).await.map(drop)
}

/// Finishes the intents whose deadline, and the margin, have passed.
async fn recover(registry: &Arc<Registry>, lease: &Lease, shard: Shard) -> Result<usize> {
    let group = lease.names.intents();
    let margin = registry.options.timing.margin;
    let mut recovered = 0;
    for (member, value) in lease.scan(shard, &group, None, 200).await? {
        let (counter, fact) = IntentFact::decode(&value)?;
        if fact.deadline.plus(margin) >= registry.store.now() {
            continue;
        }
        let intent = Ulid::from_string(&member).map_err(Error::internal)?;
        let repository = registry.repository(&fact.repository).await?;
        let reserved = Reserved { intent, revision: Revision { epoch: lease.epoch, counter }, fact };
        match repository.recover(&reserved).await {
            Ok(()) => recovered += 1,
            Err(error) => tracing::warn!(%error, intent = %intent, repository = %repository.name(),
                "an unfinished write was not recovered; it will be tried again"),
        }
    }
    Ok(recovered)
}
