//! Delivery: what the outbox holds is told to who wants to know it.
//!
//! Each endpoint has a task of its own in each replica, so a slow one holds up nobody else. A shard's events for an
//! endpoint are delivered by one replica at a time: it holds a lease on that work, renews it while it is at it, and
//! when it dies another takes over within `HOLD`. An event is forgotten when its endpoint has answered 2xx, and
//! not before. Whatever waits is read in pages; a repository's next event is sent when the one before it was
//! taken, and one that fails holds up its own repository alone.
//!
//! Nothing here writes an event, and no request waits for anything here.

mod desk;
mod endpoint;
mod format;
pub mod guard;
mod pubsub;
mod shard;
mod signature;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::{join_all, select_all, try_join_all};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use ulid::Ulid;

pub use self::{
    desk::{EndpointState, Letters, Tried, Which},
    endpoint::{Endpoint, UnusableEndpoint},
};
use self::{
    endpoint::Attempt,
    shard::{Census, Work},
};
use crate::{
    auth::Authority,
    config::Config,
    error::Result,
    event::Interests,
    outbox::{self, TOLD},
    registry::Registry,
    storage::{StoreTime, key::EntryName},
    telemetry::{DeliveryOutcome, EventMetrics},
    worker,
};

/// How often an endpoint's outbox is looked at when nobody says that there is something in it.
const LOOK: Duration = Duration::from_secs(5);

/// How long after it was woken a task looks.
const SETTLE: Duration = Duration::from_millis(20);

/// For how long nobody else delivers what a replica took. It is renewed at a third of that.
const HOLD: Duration = Duration::from_secs(15);

/// How often the bucket is told how far an endpoint was.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// How often a replica notes which endpoints it serves, and looks for those that nobody serves any more.
const NOTE: Duration = Duration::from_secs(600);

/// The name of the work on those, which is done under the first shard's lease.
const ABANDONED: &str = "abandoned";

/// From how many failures in a row on an endpoint is taken to be down.
const DOWN: u32 = 5;

/// The longest that an endpoint that is down is left alone.
const PROBE: Duration = Duration::from_secs(30);

/// The longest that an event waits to be tried again.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

/// All endpoints, and what bounds what waits for them.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_name: BTreeMap<EntryName, Arc<Endpoint>>,
    interests: Interests,
    max_pending: u64,
    max_dead: u64,
}

impl Endpoints {
    /// Those of the configuration.
    ///
    /// # Errors
    /// The first one that can't be used.
    pub fn open(config: &Config) -> std::result::Result<Self, UnusableEndpoint> {
        Self::open_by(config, |name, endpoint| Endpoint::open(name, config, endpoint))
    }

    /// Those of the configuration, each made by `open`.
    ///
    /// # Errors
    /// As [`Endpoints::open`].
    pub fn open_by(
        config: &Config,
        open: impl Fn(EntryName, &crate::config::Endpoint) -> std::result::Result<Endpoint, UnusableEndpoint>,
    ) -> std::result::Result<Self, UnusableEndpoint> {
        let mut by_name = BTreeMap::new();
        for (name, endpoint) in &config.events.endpoints {
            let entry: EntryName = name.parse().map_err(|_| UnusableEndpoint::unnamed(name))?;
            by_name.insert(entry.clone(), Arc::new(open(entry, endpoint)?));
        }
        // Each name was read a line above.
        let interests = Interests::configured(&config.events).unwrap_or_default();
        let (max_pending, max_dead) = (config.events.max_pending.get(), config.events.max_dead.get());
        Ok(Self { by_name, interests, max_pending: max_pending.into(), max_dead: max_dead.into() })
    }
}

/// Who delivers.
#[derive(Debug)]
pub struct Deliverer {
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    metrics: EventMetrics,
    /// This replica's name on what it holds, and in what it sends.
    owner: Ulid,
    endpoints: RwLock<Arc<Endpoints>>,
    /// Counts what may have changed: endpoints, or what waits for them.
    bell: watch::Sender<u64>,
}

impl Deliverer {
    /// One that tells these endpoints; from now on the registry writes what they want to know.
    pub fn new(
        registry: Arc<Registry>,
        authority: Arc<Authority>,
        metrics: EventMetrics,
        endpoints: Endpoints,
    ) -> Arc<Self> {
        registry.set_interests(endpoints.interests.clone());
        let endpoints = RwLock::new(Arc::new(endpoints));
        Arc::new(Self { registry, authority, metrics, owner: Ulid::r#gen(), endpoints, bell: watch::Sender::new(0) })
    }

    /// Has the bucket know each endpoint, before requests are taken whose changes it is told of.
    pub async fn begin(&self) {
        outbox::begin(&self.registry, &self.endpoints().interests).await;
    }

    /// Tells these from now on. One whose settings are as they were goes on as it was.
    pub async fn set_endpoints(&self, mut endpoints: Endpoints) {
        outbox::begin(&self.registry, &endpoints.interests).await;
        let before = self.endpoints();
        for (name, endpoint) in &mut endpoints.by_name {
            if let Some(old) = before.by_name.get(name).filter(|old| old.is_same(endpoint)) {
                *endpoint = Arc::clone(old);
            }
        }
        self.registry.set_interests(endpoints.interests.clone());
        *self.endpoints.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(endpoints);
        self.ring();
    }

    fn endpoints(&self) -> Arc<Endpoints> {
        Arc::clone(&self.endpoints.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn ring(&self) {
        self.bell.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Delivers until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut bell = self.bell.subscribe();
        let mut tasks: BTreeMap<EntryName, (Arc<Endpoint>, JoinSet<()>)> = BTreeMap::new();
        let mut listening = JoinSet::new();
        listening.spawn(Arc::clone(&self).listen());
        listening.spawn(Arc::clone(&self).tidy());
        loop {
            bell.borrow_and_update();
            let now = self.endpoints();
            let is_current = |name: &EntryName, endpoint: &Arc<Endpoint>| {
                now.by_name.get(name).is_some_and(|current| Arc::ptr_eq(current, endpoint))
            };
            tasks.retain(|name, (endpoint, _)| {
                let stays = is_current(name, endpoint);
                if !stays && !now.by_name.contains_key(name) {
                    self.metrics.forget(name.as_str());
                }
                // What it was at is sent again by who comes next.
                stays
            });
            for (name, endpoint) in &now.by_name {
                tasks.entry(name.clone()).or_insert_with(|| {
                    let mut task = JoinSet::new();
                    task.spawn(Arc::clone(&self).serve(Arc::clone(endpoint)));
                    (Arc::clone(endpoint), task)
                });
            }
            // The sender is our own.
            let _ = bell.changed().await;
        }
    }

    /// Rings whenever a commit somewhere has left something to be told.
    async fn listen(self: Arc<Self>) {
        loop {
            let live = match self.registry.lease().await {
                Ok(lease) if !self.endpoints().by_name.is_empty() => {
                    lease.live().await.map(|index| (index, lease.names.shards().collect::<Vec<_>>()))
                }
                Ok(_) | Err(_) => {
                    sleep(LOOK).await;
                    continue;
                }
            };
            if let Ok((index, shards)) = live {
                let waits = shards.iter().map(|&shard| index.wait(shard, TOLD, LOOK));
                select_all(waits).await;
            }
            self.ring();
        }
    }

    /// Notes which endpoints are served here, and clears those that nobody serves, again and again.
    ///
    /// Nobody clears within [`NOTE`] of an outage of the index, in which nobody could note anything: all others have
    /// done it by then.
    async fn tidy(self: Arc<Self>) {
        loop {
            while let Err(error) = outbox::note_served(&self.registry, &self.endpoints().interests).await {
                tracing::debug!(%error, "which endpoints are served has to be noted later");
                sleep(LOOK).await;
            }
            sleep(NOTE).await;
            if let Err(error) = self.clear_abandoned().await {
                tracing::debug!(%error, "endpoints that nobody serves have to wait");
            }
        }
    }

    /// Clears what waits for endpoints that no replica has served for an hour, unless another replica is at it.
    ///
    /// # Errors
    /// 503 without an index or a store; what is left is cleared the next time.
    pub async fn clear_abandoned(&self) -> Result<()> {
        let lease = self.registry.lease().await?;
        let Some(shard) = lease.names.shards().next() else { return Ok(()) };
        if !worker::take(&self.registry, &lease, shard, ABANDONED, self.owner, NOTE).await? {
            return Ok(());
        }
        let done = outbox::clear_abandoned(&self.registry).await;
        worker::leave(&lease, shard, ABANDONED, self.owner).await?;
        done
    }

    /// Tells one endpoint what waits for it, again and again.
    async fn serve(self: Arc<Self>, endpoint: Arc<Endpoint>) {
        let mut bell = self.bell.subscribe();
        let state = State::default();
        // When the bucket was last told how far this one is, and how much had moved then.
        let mut written: Option<(StoreTime, u64)> = None;
        loop {
            // One look for all that comes at once. Whoever rang listens again by then, so that nothing is missed.
            sleep(SETTLE).await;
            bell.borrow_and_update();
            let (began, before) = (self.registry.store.now(), state.moved());
            let pause = match self.round(&endpoint, &state).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::debug!(%error, endpoint = %endpoint.name, "delivery has to wait");
                    LOOK
                }
            };
            let (now, moved) = (self.registry.store.now(), state.moved());
            if written.is_none_or(|(at, then)| moved != then && at.plus(CHECKPOINT) <= now) {
                match outbox::advance(&self.registry, &endpoint.name).await {
                    Ok(_) => written = Some((now, moved)),
                    Err(error) => {
                        tracing::debug!(%error, endpoint = %endpoint.name, "how far delivery is could not be written");
                    }
                }
            }
            if moved == before {
                // Going through a long outbox in vain is rested from.
                sleep(Duration::from_millis(now.0.saturating_sub(began.0)).min(LOOK)).await;
            }
            // The sender is our own.
            let _ = timeout(pause, bell.changed()).await;
        }
    }

    /// Looks at all shards, and delivers what is due in those that nobody else is at. How long to wait if nothing
    /// new comes.
    async fn round(&self, endpoint: &Arc<Endpoint>, state: &State) -> Result<Duration> {
        let lease = self.registry.lease().await?;
        let bounds = self.endpoints();
        let looks = lease.names.shards().map(|shard| Census::take(&lease, shard, &endpoint.name));
        let censuses = try_join_all(looks).await?;
        let now = self.registry.store.now();
        let pending: u64 = censuses.iter().map(|census| census.pending).sum();
        let dead: u64 = censuses.iter().map(|census| census.dead).sum();
        let oldest = censuses.iter().filter_map(|census| census.oldest).min();
        let age = Duration::from_millis(oldest.map_or(0, |oldest| now.0.saturating_sub(oldest.0)));
        self.metrics.counted(endpoint.name.as_str(), pending, age, dead);
        let is_recovered = state.health().begin_round();
        let is_through = censuses.iter().all(|census| census.is_heir);
        let earlier = if is_through { Vec::new() } else { outbox::earlier(&self.registry, &lease).await? };
        let is_busy = |census: &&Census| census.pending > 0 || census.dead > 0 || !census.is_heir;
        let works = censuses.iter().filter(is_busy).map(|census| {
            let too_many = excess(census.pending, pending, bounds.max_pending);
            let too_dead = excess(census.dead, dead, bounds.max_dead);
            Work {
                deliverer: self,
                endpoint,
                state,
                lease: &lease,
                shard: census.shard,
                too_many,
                too_dead,
                is_recovered,
                earlier: (!census.is_heir).then_some(earlier.as_slice()),
            }
        });
        let works: Vec<Work<'_>> = works.filter(|work| work.is_needed(&censuses)).collect();
        let mut pause = LOOK;
        for done in join_all(works.iter().map(Work::run)).await {
            match done {
                Ok(Some(next)) => {
                    let now = self.registry.store.now();
                    pause = pause.min(Duration::from_millis(next.0.saturating_sub(now.0)));
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, endpoint = %endpoint.name, "a shard's delivery has to wait"),
            }
        }
        Ok(pause)
    }
}

/// How many of `part` are too many, where `all` together may be `most`: each shard's share of what is beyond.
fn excess(part: u64, all: u64, most: u64) -> u64 {
    if all <= most {
        return 0;
    }
    let share = u128::from(most) * u128::from(part) / u128::from(all);
    part - u64::try_from(share).unwrap_or(part)
}

/// How long to wait after so many failures: 1 s, 2 s, 4 s and so on up to `most`, and at random up to a half less, so
/// that what failed together is not tried together again.
fn backoff(failures: u32, most: Duration) -> Duration {
    let full = Duration::from_secs(1 << failures.saturating_sub(1).min(16)).min(most);
    // The last bits of a ULID are random.
    let fraction = f64::from(u128::from(Ulid::r#gen()) as u32) / f64::from(u32::MAX);
    full / 2 + (full / 2).mul_f64(fraction)
}

/// What a task remembers of its endpoint.
#[derive(Debug, Default)]
struct State {
    health: Mutex<Health>,
    /// How many were delivered or given up.
    moved: AtomicU64,
}

impl State {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moves(&self, count: u64) {
        self.moved.fetch_add(count, Ordering::Relaxed);
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// Whether an endpoint takes anything at all.
#[derive(Debug, Default)]
struct Health {
    /// Failures since anything was last taken.
    failures: u32,
    /// When one that is down is tried next.
    probe: StoreTime,
    /// Whether it was down, and has taken something since.
    recovered: bool,
}

impl Health {
    fn is_down(&self) -> bool {
        self.failures >= DOWN
    }

    /// When one that is down is tried next.
    fn probe(&self) -> Option<StoreTime> {
        self.is_down().then_some(self.probe)
    }

    /// Whether an event may be sent now. One that is down gets one at a time, with pauses.
    fn may_try(&mut self, now: StoreTime) -> bool {
        if !self.is_down() {
            return true;
        }
        if now < self.probe {
            return false;
        }
        self.probe = now.plus(PROBE);
        true
    }

    fn taken(&mut self) {
        self.recovered |= self.is_down();
        self.failures = 0;
    }

    /// Notes a failure; whether the endpoint is taken to be down from now on.
    fn failed(&mut self, now: StoreTime) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.probe = now.plus(backoff(self.failures - DOWN.min(self.failures) + 1, PROBE));
        self.failures == DOWN
    }

    /// Whether it came back before this round: then what waits to be tried again is tried at once.
    fn begin_round(&mut self) -> bool {
        std::mem::take(&mut self.recovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_many_is_taken_from_each_shard_by_its_share() {
        assert_eq!(excess(10, 20, 20), 0);
        assert_eq!(excess(10, 40, 20), 5);
        assert_eq!(excess(40, 40, 20), 20);
        assert_eq!(excess(0, 40, 20), 0);
        assert_eq!(excess(1, 3, 2), 1);
    }

    #[test]
    fn waits_double_up_to_their_bound() {
        for (failures, most) in [(1, 1), (2, 2), (5, 16), (11, 600), (u32::MAX, 600)] {
            let (most, wait) = (Duration::from_secs(most), backoff(failures, LONGEST_BACKOFF));
            assert!(wait >= most / 2 && wait <= most, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn what_is_down_is_probed() {
        let (mut health, now) = (Health::default(), StoreTime(1_000_000));
        for failure in 1..DOWN {
            assert!(health.may_try(now));
            assert!(!health.failed(now), "{failure}");
        }
        assert!(health.failed(now));
        assert!(!health.may_try(now));
        let later = now.plus(PROBE);
        assert!(health.may_try(later));
        assert!(!health.may_try(later), "one at a time");
        health.taken();
        assert!(health.may_try(later) && health.begin_round() && !health.begin_round());
    }
}
