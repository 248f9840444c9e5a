//! The outbox: what is to be told of a change is written by the commit that makes it true, and read back in
//! the order of the changes.
//!
//! One delivery for each endpoint that wants the event, under the number that the change drew from its shard's
//! counter. With no endpoint nothing is written and nothing is asked. Nobody is told anything here: that is the
//! business of delivery, which is given what it may send by [`Horizon::ready`].

mod abandoned;
mod checkpoint;
mod leftover;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use ulid::Ulid;

pub use abandoned::{clear_abandoned, note_served, unserved};
pub(crate) use checkpoint::Coverage;
pub use checkpoint::{Checkpoint, advance, begin, newest};
pub use leftover::{Earlier, earlier, inherit};

use crate::{
    epoch::Lease,
    error::{Error, Result},
    event::{Interest, Interests},
    index::{
        Ask, Batch, Fact, Outcome, Shard, Write,
        facts::{
            self, Action, DeliveryFact, EventFact, EventTarget, IntentFact, RequestFact, TagState, Target,
            delivery_member, delivery_suffix, inherited_member,
        },
    },
    oci::{Algorithm, Digest, RepositoryName, Tag},
    registry::{Repository, ask},
    storage::{Revision, key::EntryName},
    tag::Reserved,
};

/// The topic on which who delivers is woken: there may be something to send in this shard.
pub const TOLD: &str = "told";

impl Repository {
    /// Something that happens here and now, by the cause of this handle.
    pub(crate) fn event(&self, action: Action, target: EventTarget) -> EventFact {
        EventFact {
            id: self.fresh(),
            at: self.store().now(),
            action,
            repository: self.name.clone(),
            tag: None,
            target: Some(target),
            from: None,
            by: self.cause.by.clone(),
            request: self.cause.request.clone(),
        }
    }

    /// Who is to be told of what is done by this handle.
    fn interests(&self) -> Arc<Interests> {
        if self.cause.quiet { Arc::default() } else { self.registry.interests() }
    }

    /// The batch, which then also tells of its change, if anybody wants to know. It draws a number for that.
    pub(crate) fn telling(&self, mut batch: Batch, event: impl FnOnce() -> EventFact) -> Batch {
        let interests = self.interests();
        if interests.is_empty() {
            return batch;
        }
        let event = event();
        let names = &self.lease.names;
        for Interest { endpoint, .. } in interests.of(&event) {
            let delivery = names.delivery(endpoint, &delivery_suffix(0));
            batch.writes.push(Write::PutAtNumber(delivery, facts::encode(&DeliveryFact::new(event.clone()))));
            batch.sequence = Some(names.counter());
        }
        batch
    }

    /// The writes that tell again of what an earlier epoch did, to those of these endpoints to whom it is not about to
    /// be told already, as it was left behind for them.
    pub(crate) async fn inherited(
        &self,
        revision: Revision,
        event: &EventFact,
        endpoints: &[&EntryName],
    ) -> Result<Vec<Write>> {
        if endpoints.is_empty() {
            return Ok(Vec::new());
        }
        let member = inherited_member(revision, event.id);
        let places: Vec<Fact> = endpoints.iter().map(|endpoint| self.lease.names.delivery(endpoint, &member)).collect();
        let there = self.ask(places.iter().cloned().map(Ask::Value).collect()).await?;
        let absent = places.into_iter().zip(there).filter(|(_, there)| there.is_none());
        let delivery = facts::encode(&DeliveryFact::new(event.clone()));
        Ok(absent.map(|(place, _)| Write::Put(place, delivery.clone())).collect())
    }

    /// Commits a batch that [`Repository::telling`] made, and wakes who delivers what it tells.
    pub(crate) async fn commit_telling(&self, batch: Batch) -> Result<Outcome> {
        let is_told = batch.sequence.is_some();
        let outcome = self.commit(batch).await?;
        if is_told && matches!(outcome, Outcome::Committed { .. }) {
            self.wake(&[TOLD]);
        }
        Ok(outcome)
    }

    /// Tells of something that no other batch is committed for.
    pub(crate) async fn tell(&self, event: impl FnOnce() -> EventFact) -> Result<()> {
        let batch = self.telling(Batch::default(), event);
        if batch.writes.is_empty() {
            return Ok(());
        }
        self.commit_telling(batch).await.map(drop)
    }

    /// The writes that tell of a write of tags, under the number that it reserved.
    pub(crate) fn deliveries(&self, reserved: &Reserved, tags: &[Tag], to: Option<&Target>) -> Vec<Write> {
        let interests = self.interests();
        let mut writes = Vec::new();
        if interests.is_empty() {
            return writes;
        }
        for (place, event) in events_of(&reserved.fact, reserved.revision, tags, to).into_iter().enumerate() {
            let member = delivery_member(reserved.revision.counter, place);
            for Interest { endpoint, .. } in interests.of(&event) {
                let delivery = facts::encode(&DeliveryFact::new(event.clone()));
                writes.push(Write::Put(self.lease.names.delivery(endpoint, &member), delivery));
            }
        }
        writes
    }

    /// The request that a write of tags comes of, if anybody wants to be told of the write: recovery needs it then.
    pub(crate) fn request_to_tell(&self, fact: &IntentFact, to: Option<&Target>) -> Option<RequestFact> {
        let request = self.cause.request.as_ref()?;
        let interests = self.interests();
        if interests.is_empty() {
            return None;
        }
        let revision = Revision { epoch: self.lease.epoch, counter: 0 };
        let events = events_of(fact, revision, &fact.tags, to);
        events.iter().any(|event| interests.of(event).next().is_some()).then(|| request.clone())
    }
}

/// The events of a write of tags, of which these count; one by digest where it names none.
fn events_of(fact: &IntentFact, revision: Revision, tags: &[Tag], to: Option<&Target>) -> Vec<EventFact> {
    let state = TagState { to: to.cloned(), at: fact.at, by: fact.by.clone() };
    let event = |tag: Option<&Tag>| EventFact {
        request: fact.request.clone(),
        ..event_of_revision(&fact.repository, tag, revision, state.clone())
    };
    if fact.tags.is_empty() { vec![event(None)] } else { tags.iter().map(|tag| event(Some(tag))).collect() }
}

/// What a revision says as an event, as far as the bucket knows it. Its id is made of the revision: told again after
/// the index was lost, it is known by it.
pub(crate) fn event_of_revision(
    repository: &RepositoryName,
    tag: Option<&Tag>,
    revision: Revision,
    state: TagState,
) -> EventFact {
    let name = format!("{repository}:{}@{revision}", tag.map_or("", Tag::as_str));
    let hash = Digest::of(Algorithm::Sha256, name.as_bytes());
    let hex = hash.as_str().split(':').nth(1).and_then(|hex| hex.get(..20));
    let random = hex.and_then(|hex| u128::from_str_radix(hex, 16).ok()).unwrap_or_default();
    EventFact {
        id: Ulid::from_parts(state.at.0, random),
        at: state.at,
        action: if state.to.is_some() { Action::Push } else { Action::Delete },
        repository: repository.clone(),
        tag: tag.cloned(),
        target: state.to.map(EventTarget::Manifest),
        from: None,
        by: state.by,
        request: None,
    }
}

/// How far the events of a shard are known: taken once, before any of them is read, it says which may be sent.
///
/// Events of a repository are sent in the order of their numbers, so none may be sent while one with a smaller
/// number can still come. An event comes into being in one of two ways. Either the batch that drew its number
/// wrote it: then it is there as soon as the counter shows its number. Or a reservation drew the number, and the
/// batch that closes the intent writes it, a recovery's perhaps, long after: until then the intent is open. So
/// the counter is read first and the open intents after it, and an event with the number n is let through if n
/// is not above that counter and no intent of its repository with a smaller number was open. For let m < n be
/// the number of another event of the repository. It was drawn before the counter was read. If it was drawn by a
/// batch that wrote its event, that was there before. If it was reserved, its intent was in the index before
/// the intents were listed, and either it is in the list, which keeps n back, or it was closed by then, and its
/// event was there. What is there, and not delivered, is found by who reads from the start of the outbox after
/// this look, and goes before n.
///
/// What an earlier epoch did (it has the number 0, and so comes first) is let through once its repository is
/// reconciled: until then more of it, from before, may be told again. Which are is read after the counter: who drew a
/// number had reconciled the repository.
///
/// All pages of one reading must go by the same look: an event that came after it may have been passed by.
#[derive(Clone, Debug)]
pub struct Horizon {
    shard: Shard,
    counter: u64,
    /// The least number of an open intent, by repository.
    open: HashMap<RepositoryName, u64>,
    /// The repositories that are reconciled; nothing where all are.
    reconciled: Option<HashSet<RepositoryName>>,
}

/// A delivery that may be sent now, as far as order goes.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its member in the outbox, and among the dead letters.
    pub member: String,
    /// The exact value, for the check that nobody else has changed it.
    pub value: Bytes,
    /// What it says.
    pub fact: DeliveryFact,
}

/// A page of an outbox.
#[derive(Clone, Debug)]
pub struct Ready {
    /// What may be sent, in the order of the changes. A repository's later one only after its earlier one.
    pub deliveries: Vec<Delivery>,
    /// After which member the next page begins, if there is one.
    pub next: Option<String>,
}

impl Horizon {
    /// Looks how far the events of a shard are known.
    pub async fn look(lease: &Lease, shard: Shard) -> Result<Self> {
        let names = &lease.names;
        let answers = ask(lease, shard, vec![Ask::Value(names.counter()), Ask::Value(names.settled())]).await?;
        let counter = answers[0].as_ref().map(|value| number(value, 10)).transpose()?.unwrap_or_default();
        let mut open = HashMap::new();
        for (_, value) in all(lease, shard, &names.intents()).await? {
            let (number, intent) = IntentFact::decode(&value)?;
            open.entry(intent.repository).and_modify(|least| *least = number.min(*least)).or_insert(number);
        }
        let reconciled = match answers[1] {
            Some(_) => None,
            None => {
                let members = all(lease, shard, &names.all_reconciled()).await?;
                Some(members.into_iter().filter_map(|(name, _)| name.parse().ok()).collect())
            }
        };
        Ok(Self { shard, counter, open, reconciled })
    }

    /// A page of what is to be delivered to an endpoint and may be sent, from the start of its outbox or after a
    /// member; at most `limit` are read.
    pub async fn ready(&self, lease: &Lease, endpoint: &EntryName, after: Option<&str>, limit: usize) -> Result<Ready> {
        let page = lease.scan(self.shard, &lease.names.outbox(endpoint), after, limit).await?;
        let next = page.last().filter(|_| page.len() == limit).map(|(last, _)| last.clone());
        let mut deliveries = Vec::new();
        for (member, value) in page {
            let fact: DeliveryFact = facts::decode(&value)?;
            if self.lets(&fact.event.repository, number_of(&member)?) {
                deliveries.push(Delivery { member, value, fact });
            }
        }
        Ok(Ready { deliveries, next })
    }

    fn lets(&self, repository: &RepositoryName, number: u64) -> bool {
        if number == 0 {
            return self.reconciled.as_ref().is_none_or(|reconciled| reconciled.contains(repository));
        }
        number <= self.counter && self.open.get(repository).is_none_or(|&open| number < open)
    }

    /// The number up to which every event of the shard is there, or was.
    fn known(&self) -> u64 {
        self.open.values().min().map_or(self.counter, |open| self.counter.min(open.saturating_sub(1)))
    }
}

/// The piece of background work that is an endpoint's delivery in a shard.
pub(crate) fn piece(endpoint: &EntryName) -> String {
    format!("events/{endpoint}")
}

/// How many members of a group are read at a time.
const PAGE: usize = 500;

/// All members of a group.
async fn all(lease: &Lease, shard: Shard, group: &str) -> Result<Vec<(String, Bytes)>> {
    let mut members: Vec<(String, Bytes)> = Vec::new();
    loop {
        let after = members.last().map(|(last, _)| last.as_str());
        let page = lease.scan(shard, group, after, PAGE).await?;
        let is_last = page.len() < PAGE;
        members.extend(page);
        if is_last {
            return Ok(members);
        }
    }
}

/// The number of the change that a delivery's member begins with; 0 where it is of an earlier epoch.
pub fn number_of(member: &str) -> Result<u64> {
    number(member.split('-').next().unwrap_or_default().as_bytes(), 16)
}

fn number(text: &[u8], radix: u32) -> Result<u64> {
    let text = std::str::from_utf8(text).map_err(Error::internal)?;
    u64::from_str_radix(text, radix).map_err(|error| Error::internal(format!("{text:?} is no number: {error}")))
}
