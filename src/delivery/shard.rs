//! One endpoint's events in one shard: delivered, given up, put back.

use std::collections::{HashMap, HashSet};

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::{
    Attempt, Deliverer, DeliveryOutcome, Duration, Endpoint, HOLD, LONGEST_BACKOFF, Result, State, StoreTime, backoff,
};
use crate::{
    epoch::Lease,
    index::{
        Ask, Batch, Check, Shard, Write,
        facts::{self, DeliveryFact},
    },
    oci::RepositoryName,
    outbox::{self, Delivery, Earlier, Horizon},
    registry::ask,
    storage::key::EntryName,
    worker,
};

/// How many events are read at a time.
const PAGE: usize = 100;

/// For how long a repository's events are sent before the others of its page have been waited for: what is left
/// comes with the next look.
const TURN: Duration = Duration::from_secs(10);

/// What waits in a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Census {
    pub(super) shard: Shard,
    pub(super) pending: u64,
    pub(super) dead: u64,
    /// Since when the first one waits.
    pub(super) oldest: Option<StoreTime>,
    /// Whether what earlier epochs left was taken over.
    pub(super) is_heir: bool,
}

impl Census {
    pub(super) async fn take(lease: &Lease, shard: Shard, endpoint: &EntryName) -> Result<Self> {
        let names = &lease.names;
        let asks = vec![
            Ask::Count(names.outbox(endpoint)),
            Ask::Count(names.dead(endpoint)),
            Ask::Value(names.inherited(endpoint)),
        ];
        let answers = ask(lease, shard, asks).await?;
        let (pending, dead) = (number(answers[0].as_deref()), number(answers[1].as_deref()));
        let first = match pending {
            0 => None,
            _ => lease.scan(shard, &lease.names.outbox(endpoint), None, 1).await?.pop(),
        };
        let first = first.map(|(_, value)| facts::decode::<DeliveryFact>(&value)).transpose()?;
        let oldest = first.map(|fact| fact.since());
        Ok(Self { shard, pending, dead, oldest, is_heir: answers[2].is_some() })
    }
}

fn number(answer: Option<&[u8]>) -> u64 {
    answer.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or_default()
}

/// A shard that there is something to do in.
pub(super) struct Work<'a> {
    pub(super) deliverer: &'a Deliverer,
    pub(super) endpoint: &'a Endpoint,
    pub(super) state: &'a State,
    pub(super) lease: &'a Lease,
    pub(super) shard: Shard,
    /// How many of those that wait are more than may.
    pub(super) too_many: u64,
    /// The same of the dead letters.
    pub(super) too_dead: u64,
    /// Whether the endpoint was down and is back, so that nothing need wait for its time.
    pub(super) is_recovered: bool,
    /// What this shard may have to take over; nothing where that is done.
    pub(super) earlier: Option<&'a [Earlier]>,
}

/// What became of a repository's events.
enum Turn {
    /// All that were read are delivered, or given up.
    Through,
    /// One waits, and with it the rest; until when, where that is known.
    Blocked(Option<StoreTime>),
}

impl Work<'_> {
    /// Whether there is anything but dead letters that may stay.
    pub(super) fn is_needed(&self, censuses: &[Census]) -> bool {
        let waits = censuses.iter().any(|census| census.shard == self.shard && census.pending > 0);
        waits || self.too_dead > 0 || self.earlier.is_some()
    }

    /// Does it, unless another replica is at it. When the next event is due, if one waits for its time.
    pub(super) async fn run(&self) -> Result<Option<StoreTime>> {
        let piece = outbox::piece(&self.endpoint.name);
        let Deliverer { registry, owner, .. } = self.deliverer;
        if !worker::take(registry, self.lease, self.shard, &piece, *owner, HOLD).await? {
            return Ok(None);
        }
        let done = tokio::select! {
            done = self.pass() => done,
            // What is being sent is given up with the rest: who took it sends it again.
            () = self.hold(&piece) => Ok(None),
        };
        worker::leave(self.lease, self.shard, &piece, *owner).await?;
        done
    }

    /// Renews the hold on the work, until that fails.
    async fn hold(&self, piece: &str) {
        let Deliverer { registry, owner, .. } = self.deliverer;
        let mut last = registry.store.now();
        loop {
            sleep(HOLD / 3).await;
            match worker::take(registry, self.lease, self.shard, piece, *owner, HOLD).await {
                Ok(true) => last = registry.store.now(),
                Ok(false) => return,
                Err(_) if registry.store.now() > last.plus(HOLD / 2) => return,
                Err(_) => {}
            }
        }
    }

    /// Goes through the outbox once, from its start.
    async fn pass(&self) -> Result<Option<StoreTime>> {
        if let Some(earlier) = self.earlier {
            let (registry, name) = (&self.deliverer.registry, &self.endpoint.name);
            outbox::inherit(registry, self.lease, self.shard, name, earlier).await?;
        }
        self.drop_dead().await?;
        self.give_up_excess().await?;
        let horizon = Horizon::look(self.lease, self.shard).await?;
        let (mut after, mut blocked, mut next): (Option<String>, HashSet<RepositoryName>, Option<StoreTime>) =
            Default::default();
        loop {
            let ready = horizon.ready(self.lease, &self.endpoint.name, after.as_deref(), PAGE).await?;
            let turns = in_turns(ready.deliveries, &blocked);
            let at_once = self.endpoint.config.concurrency.get() as usize;
            let mut running = stream::iter(turns.into_iter().map(|turn| self.turn(turn))).buffer_unordered(at_once);
            while let Some(turn) = running.next().await {
                let (repository, turn) = turn?;
                if let Turn::Blocked(until) = turn {
                    blocked.insert(repository);
                    next = next.into_iter().chain(until).min();
                }
            }
            drop(running);
            let probe = self.state.health().probe();
            after = ready.next;
            // One that is down gets what is due first; what is behind that waits with it.
            if after.is_none() || probe.is_some() {
                return Ok(next.into_iter().chain(probe).min());
            }
        }
    }

    /// Sends a repository's events, one after the other, as long as they are taken.
    async fn turn(&self, turn: Vec<Delivery>) -> Result<(RepositoryName, Turn)> {
        let began = self.now();
        // A turn has one event at least.
        let repository = turn[0].fact.event.repository.clone();
        for delivery in turn {
            if self.now() > began.plus(TURN) {
                return Ok((repository, Turn::Blocked(Some(self.now()))));
            }
            if let Turn::Blocked(until) = self.one(delivery).await? {
                return Ok((repository, Turn::Blocked(until)));
            }
        }
        Ok((repository, Turn::Through))
    }

    /// Sends one event, if it is due.
    async fn one(&self, delivery: Delivery) -> Result<Turn> {
        let fact = &delivery.fact;
        let is_old = |now: StoreTime| fact.since().plus(*self.endpoint.config.max_age) < now;
        let is_down = self.state.health().is_down();
        if is_old(self.now()) && (fact.attempts > 0 || is_down) {
            self.give_up(vec![delivery]).await?;
            return Ok(Turn::Through);
        }
        if let Some(due) = fact.next.filter(|due| *due > self.now() && !self.is_recovered) {
            return Ok(Turn::Blocked(Some(due)));
        }
        // Nobody closes it.
        let _permit = self.endpoint.permits.acquire().await.ok();
        if !self.state.health().may_try(self.now()) {
            return Ok(Turn::Blocked(None));
        }
        let Deliverer { authority, owner, .. } = self.deliverer;
        match self.endpoint.tell(&fact.event, authority, *owner, self.now()).await {
            Attempt::Taken(_) => {
                self.state.health().taken();
                self.forget(&delivery).await?;
                Ok(Turn::Through)
            }
            Attempt::Failed { why, wait } => self.failed(delivery, why, wait).await,
        }
    }

    async fn failed(&self, mut delivery: Delivery, why: String, wait: Option<Duration>) -> Result<Turn> {
        let (now, name) = (self.now(), &self.endpoint.name);
        self.count(DeliveryOutcome::Failed, 1);
        if self.state.health().failed(now) {
            tracing::warn!(endpoint = %name, why, "an endpoint doesn't take events; they are kept, and it is tried now and then");
        }
        let before = delivery.value.clone();
        let fact = &mut delivery.fact;
        fact.attempts = fact.attempts.saturating_add(1);
        let due = now.plus(wait.unwrap_or_else(|| backoff(fact.attempts, LONGEST_BACKOFF)));
        fact.next = Some(due);
        fact.last = Some(why);
        let value = facts::encode(fact);
        let member = self.lease.names.delivery(name, &delivery.member);
        // Where somebody took it out meanwhile, it stays out.
        let checks = vec![Check::Equals(member.clone(), before)];
        let writes = vec![Write::Put(member, value.clone())];
        self.lease.commit(self.shard, Batch { checks, writes, ..Batch::default() }).await?;
        if delivery.fact.since().plus(*self.endpoint.config.max_age) < now {
            delivery.value = value;
            self.give_up(vec![delivery]).await?;
            return Ok(Turn::Through);
        }
        Ok(Turn::Blocked(Some(due)))
    }

    /// It was taken: there is nothing left to deliver.
    async fn forget(&self, delivery: &Delivery) -> Result<()> {
        let writes = vec![Write::Delete(self.lease.names.delivery(&self.endpoint.name, &delivery.member))];
        self.lease.commit(self.shard, Batch { writes, ..Batch::default() }).await?;
        self.state.moves(1);
        self.count(DeliveryOutcome::Delivered, 1);
        Ok(())
    }

    /// Makes dead letters of these.
    async fn give_up(&self, deliveries: Vec<Delivery>) -> Result<()> {
        let (names, name) = (&self.lease.names, &self.endpoint.name);
        let (count, mut writes) = (deliveries.len() as u64, Vec::new());
        let Some(last) = deliveries.last().map(|delivery| delivery.fact.clone()) else { return Ok(()) };
        for delivery in deliveries {
            let fact = DeliveryFact { next: None, ..delivery.fact };
            writes.push(Write::Delete(names.delivery(name, &delivery.member)));
            writes.push(Write::Put(names.dead_letter(name, &delivery.member), facts::encode(&fact)));
        }
        self.lease.commit(self.shard, Batch { writes, ..Batch::default() }).await?;
        self.state.moves(count);
        self.count(DeliveryOutcome::Dead, count);
        let (attempts, why) = (last.attempts, last.last.unwrap_or_else(|| "it was never tried".to_owned()));
        tracing::warn!(endpoint = %name, count, attempts, why, repository = %last.event.repository,
            "events were given up, and are dead letters; `berth events dead` shows them");
        Ok(())
    }

    /// Makes dead letters of the oldest, where more wait than may.
    async fn give_up_excess(&self) -> Result<()> {
        let mut left = self.too_many;
        while left > 0 {
            let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let page = self.lease.scan(self.shard, &self.lease.names.outbox(&self.endpoint.name), None, limit).await?;
            if page.is_empty() {
                break;
            }
            left -= page.len() as u64;
            let read = page.into_iter().map(|(member, value)| {
                let mut fact: DeliveryFact = facts::decode(&value)?;
                fact.last = Some("more events waited than events.max_pending".to_owned());
                Ok(Delivery { member, value, fact })
            });
            self.give_up(read.collect::<Result<_>>()?).await?;
        }
        Ok(())
    }

    /// Drops the oldest dead letters, where there are more than may be.
    async fn drop_dead(&self) -> Result<()> {
        let (names, name) = (&self.lease.names, &self.endpoint.name);
        let mut left = self.too_dead;
        while left > 0 {
            let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let page = self.lease.scan(self.shard, &names.dead(name), None, limit).await?;
            if page.is_empty() {
                break;
            }
            let count = page.len() as u64;
            left -= count;
            let writes = page.iter().map(|(member, _)| Write::Delete(names.dead_letter(name, member))).collect();
            self.lease.commit(self.shard, Batch { writes, ..Batch::default() }).await?;
            self.count(DeliveryOutcome::Dropped, count);
            tracing::warn!(endpoint = %name, count, "the oldest dead letters were dropped, as there are more than events.max_dead");
        }
        Ok(())
    }

    fn now(&self) -> StoreTime {
        self.deliverer.registry.store.now()
    }

    fn count(&self, outcome: DeliveryOutcome, count: u64) {
        self.deliverer.metrics.became(self.endpoint.name.as_str(), outcome, count);
    }
}

/// A page's deliveries by repository, each in its order, without those of repositories that are `blocked`.
fn in_turns(deliveries: Vec<Delivery>, blocked: &HashSet<RepositoryName>) -> Vec<Vec<Delivery>> {
    let mut turns: Vec<Vec<Delivery>> = Vec::new();
    let mut places: HashMap<RepositoryName, usize> = HashMap::new();
    for delivery in deliveries {
        let repository = &delivery.fact.event.repository;
        if blocked.contains(repository) {
            continue;
        }
        let place = *places.entry(repository.clone()).or_insert_with(|| {
            turns.push(Vec::new());
            turns.len() - 1
        });
        turns[place].push(delivery);
    }
    turns
}
