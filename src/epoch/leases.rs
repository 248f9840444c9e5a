//! Keeping the lease: who asks the bucket, how often, and what happens while the index is away.
//!
//! One task asks and all others wait for its answer. Once the index was found to be away nobody waits: every
//! request is told so at once, and one task looks again in the background until it is back.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{sync::watch, time::timeout};

use super::{EpochRecord, Lease, Timing, boottime, newest_epoch, read_json};
use crate::{
    error::{Error, Result},
    index::{Ask, Connect, IndexError, Shard, facts::Names},
    storage::{Key, Store, key::EpochNumber},
};

/// How soon an index that is away is looked for first: a connection that broke is back by then.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// How often it is looked for later: each look is a listing and a connection.
const LATER_LOOK: Duration = Duration::from_secs(1);

/// For how long a request waits for a new connection: what changes something is to be refused within a second
/// where the index is away. Who looks for it while nobody waits has as long as a connection may take.
const PATIENCE: Duration = Duration::from_millis(800);

/// Keeps this replica's lease.
#[derive(Debug)]
pub struct Leases {
    pub(super) store: Arc<dyn Store>,
    pub(super) connect: Arc<dyn Connect>,
    pub(super) timing: Timing,
    /// How many shards an epoch has that is begun when this replica's own index was emptied or replaced; none
    /// where that is not for this keeper to do.
    pub(super) succession: Option<u16>,
    /// The last one that was taken, whether it still holds or not.
    current: Mutex<Option<Arc<Lease>>>,
    /// Why no index is believed; while that is known, only the task that looks for the index asks.
    trouble: watch::Sender<Option<Error>>,
    /// Held by the one task that asks the bucket; others wait for its answer. Inside: when it last failed,
    /// by [`boottime`], and how, so that all who waited for that answer get it instead of failing in turn.
    pub(super) asking: tokio::sync::Mutex<Option<(u64, Error)>>,
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
    /// The newest epoch is this one, and its index was restarted or replaced: this one has served it, or is in
    /// the place of one that this process believed. What it may have lost on the way nobody knows.
    Replaced(EpochNumber, EpochRecord),
    /// The newest epoch is this one, and it is of another index.
    Others(EpochNumber, EpochRecord),
}

impl Standing {
    /// The lease, or why there is none.
    fn lease(&self) -> Result<Arc<Lease>> {
        Err(Error::suspect(match self {
            Self::Ours(lease) => return Ok(Arc::clone(lease)),
            Self::Fresh => "the bucket names no index".to_owned(),
            Self::Unserved(number) => format!("the index doesn't serve its epoch {number}: it was emptied"),
            Self::Replaced(number, _) => format!("the index that served epoch {number} was restarted or replaced"),
            Self::Others(number, _) => format!("another index owns this bucket (epoch {number})"),
        }))
    }
}

impl Leases {
    /// A keeper without a lease yet, which begins no epoch by itself.
    pub fn new(store: Arc<dyn Store>, connect: Arc<dyn Connect>, timing: Timing) -> Self {
        Self {
            store,
            connect,
            timing,
            succession: None,
            current: Mutex::new(None),
            trouble: watch::Sender::new(None),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The same, and when it finds that its own index was emptied or replaced it begins the next epoch, with
    /// `shards` shards.
    pub fn with_succession(self, shards: u16) -> Self {
        Self { succession: Some(shards), ..self }
    }

    /// Why no index is believed, and each change of that.
    pub fn trouble(&self) -> watch::Receiver<Option<Error>> {
        self.trouble.subscribe()
    }

    /// The lease, renewed in the background from half of its life on, so that only the first request after
    /// a pause waits for the bucket. While the index is away, the reason, at once.
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
        self.refuse_in_trouble()?;
        let arrived = boottime();
        let mut asking = self.asking.lock().await;
        if let Some(lease) = self.held().filter(|lease| lease.is_live()) {
            return Ok(lease);
        }
        self.refuse_in_trouble()?;
        if let Some((_, error)) = asking.as_ref().filter(|(failed, _)| *failed > arrived) {
            return Err(error.clone());
        }
        let asked = self.ask_in_time(PATIENCE).await.and_then(|standing| standing.lease());
        *asking = asked.as_ref().err().map(|error| (boottime(), error.clone()));
        if let Some(error) = asked.as_ref().err().filter(|error| error.is_suspect()) {
            self.give_up(error.clone());
        }
        asked
    }

    fn refuse_in_trouble(&self) -> Result<()> {
        self.trouble.borrow().clone().map_or(Ok(()), Err)
    }

    /// From now on no request waits for the index; one task looks for it until it is back.
    pub(crate) fn give_up(self: &Arc<Self>, error: Error) {
        let why = cause(&error).to_owned();
        if self.trouble.send_replace(Some(error)).is_none() {
            tracing::warn!(
                why,
                "the index can't be believed: pulls are read from the bucket, and writes get 503, until it is back"
            );
            tokio::spawn(look_for_index(Arc::downgrade(self)));
        }
    }

    /// Looks whether the index is back; what was found, if the bucket and an index answered.
    async fn look(self: &Arc<Self>) -> Option<Standing> {
        let _asking = self.asking.lock().await;
        let found = self.ask_in_time(Duration::MAX).await;
        match found.as_ref().map_err(Clone::clone).and_then(Standing::lease) {
            Ok(lease) => {
                self.trouble.send_replace(None);
                tracing::info!(epoch = %lease.epoch, "the index is believed again");
            }
            Err(error) if error.is_suspect() => self.tell(error),
            // A bucket that can't be asked says nothing about the index.
            Err(error) => tracing::debug!(%error, "the bucket could not be asked which index it names"),
        }
        found.ok()
    }

    /// Notes why the index is still away, and says so if that has changed.
    fn tell(&self, error: Error) {
        self.trouble.send_if_modified(|trouble| {
            let is_news = trouble.as_ref().is_none_or(|known| cause(known) != cause(&error));
            if is_news {
                tracing::info!(why = cause(&error), "the index is still not believed");
                *trouble = Some(error);
            }
            is_news
        });
    }

    pub(super) fn held(&self) -> Option<Arc<Lease>> {
        self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The epoch that this process believed last.
    pub(super) fn believed(&self) -> Option<EpochNumber> {
        self.held().map(|lease| lease.epoch)
    }

    fn renew_in_background(self: &Arc<Self>) {
        if self.trouble.borrow().is_some() {
            return;
        }
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_asking) = keeper.asking.try_lock() else { return };
            match keeper.ask_in_time(PATIENCE).await.and_then(|standing| standing.lease()) {
                Ok(_) => {}
                Err(error) if error.is_suspect() => keeper.give_up(error),
                Err(error) => {
                    tracing::warn!(%error, "the lease on the index was not renewed; it will be tried again with the next request");
                }
            }
        });
    }

    /// Asks for as long as an answer can be of use: the lease counts from the question. Who asks keeps all
    /// others waiting, so a store that never answers must not keep it asking. A new connection has `patience`.
    async fn ask_in_time(self: &Arc<Self>, patience: Duration) -> Result<Standing> {
        let late = |_| Error::unavailable("bucket and index did not answer within the time of a lease");
        timeout(self.timing.lease, self.ask(patience)).await.map_err(late)?
    }

    /// Asks the bucket which index is believed, and this connection whether it is that one.
    async fn ask(self: &Arc<Self>, patience: Duration) -> Result<Standing> {
        let asked = boottime();
        let Some(newest) = newest_epoch(&*self.store).await? else { return Ok(Standing::Fresh) };
        // In trouble the old connection has had its chance: a server that is gone may never say that it is.
        let held = self.held().filter(|lease| lease.epoch == newest && self.trouble.borrow().is_none());
        let held = held.filter(|lease| !lease.is_unserved.load(Ordering::Acquire));
        if let Some(lease) = held
            && self.renew(&lease, asked).await?
        {
            return Ok(Standing::Ours(lease));
        }
        let late = |_| Error::suspect(format!("no connection within {patience:?}"));
        let index = timeout(patience, self.connect.connect()).await.map_err(late)??;
        let record: EpochRecord = read_json(&self.store, &Key::Epoch(newest)).await?;
        let names = Names::new(newest, record.shards);
        if index.identity().await? != record.identity {
            let fence = index.get(Shard(0), &[Ask::Value(names.fence())]).await?.pop().flatten();
            let was_ours = self.believed() == Some(newest) || fence == Some(names.fence_value());
            return Ok(if was_ours { Standing::Replaced(newest, record) } else { Standing::Others(newest, record) });
        }
        let lease = Arc::new(Lease {
            index,
            epoch: newest,
            names,
            until: AtomicU64::new(asked + self.timing.lease.as_millis() as u64),
            settled: (0..record.shards.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            record,
            is_unserved: AtomicBool::new(false),
            keeper: Arc::downgrade(self),
        });
        let questions = [lease.ask_fence(), Ask::Value(lease.names.settled())];
        let answers = try_join_all(lease.names.shards().map(|shard| lease.index.get(shard, &questions))).await?;
        for (shard, answers) in lease.names.shards().zip(answers) {
            if answers[0] != Some(lease.names.fence_value()) {
                return Ok(Standing::Unserved(newest));
            }
            if answers[1].is_some() {
                lease.saw_settled(shard);
            }
        }
        *self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::clone(&lease));
        Ok(Standing::Ours(lease))
    }

    /// Takes the same lease for longer, if its connection still reaches the same index. A server that is
    /// silent is an error: a new connection to it would only take as long again.
    async fn renew(&self, lease: &Arc<Lease>, asked: u64) -> Result<bool> {
        let fence = [lease.ask_fence()];
        let (identity, fence) = tokio::join!(lease.index.identity(), lease.index.get(Shard(0), &fence));
        let (identity, fence) = match (identity, fence) {
            (Ok(identity), Ok(fence)) => (identity, fence),
            (Err(error @ IndexError::TimedOut(_)), _) | (_, Err(error @ IndexError::TimedOut(_))) => {
                return Err(error.into());
            }
            (Err(_), _) | (_, Err(_)) => return Ok(false),
        };
        let is_same = identity == lease.record.identity && fence[0] == Some(lease.names.fence_value());
        if is_same {
            lease.until.fetch_max(asked + self.timing.lease.as_millis() as u64, Ordering::AcqRel);
        }
        Ok(is_same)
    }

    /// What the bucket and the index say of each other, at start.
    pub async fn standing(self: &Arc<Self>) -> Result<Standing> {
        let _asking = self.asking.lock().await;
        self.ask(Duration::MAX).await
    }
}

/// Looks for an index that is away until it is back, or the keeper is gone; goes on with the next epoch where
/// that is for this replica to do.
async fn look_for_index(keeper: Weak<Leases>) {
    let mut pause = FIRST_LOOK;
    let mut vacancy = super::succession::Vacancy::default();
    loop {
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LATER_LOOK);
        let Some(keeper) = keeper.upgrade() else { return };
        match keeper.look().await {
            Some(Standing::Ours(_)) => return,
            Some(found) => keeper.succeed(&found, &mut vacancy).await,
            None => {}
        }
    }
}

/// Between a half and one and a half of a span, at random, so that replicas that lost the same server at the
/// same moment don't come back to it at the same moment.
fn jittered(span: Duration) -> Duration {
    // The last 64 bits of a ULID are random.
    let fraction = u128::from(ulid::Ulid::r#gen()) as u32;
    span / 2 + span.mul_f64(f64::from(fraction) / f64::from(u32::MAX))
}

fn cause(error: &Error) -> &str {
    error.cause.as_deref().unwrap_or(&error.message)
}
