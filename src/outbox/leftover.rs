//! Leftovers: what was still to be told when an earlier epoch ended.
//!
//! An index that was restarted is not believed, and its next epoch begins empty. What it was about to tell stands
//! under the old prefix all the same, if the server has kept it, and was written by the commits that made it true. So
//! the new epoch takes it over: it is told before all that is new, in the order of the changes. Nothing else that the
//! old prefix says is gone by, least of all that something is not there: what the bucket proves is told again anyway.
//!
//! A new epoch begins after every lease and deadline under the old one has passed, and with the new fence in each
//! shard, so what is left no longer changes.

use std::sync::Arc;

use bytes::Bytes;

use super::{events_of, number_of};
use crate::{
    epoch::{EpochRecord, Lease, epochs, read_json},
    error::Result,
    event::Interest,
    index::{
        Ask, Batch, Fact, Index, Shard, Write,
        facts::{self, DeliveryFact, EventFact, IntentFact, Names, Target, inherited_member},
    },
    oci::{Manifest, manifest::MAX_MANIFEST},
    registry::{Registry, ask, found},
    storage::{
        Key, Revision,
        key::{EntryName, EpochNumber},
        read_small,
    },
};

/// How many leftovers are read, and put where they belong, at a time.
const PAGE: usize = 200;

/// An epoch before the one that is served.
#[derive(Clone, Debug)]
pub struct Earlier {
    number: EpochNumber,
    shards: u16,
    names: Names,
}

/// The epochs before that of a lease, the newest first, but for those that ended before anything was written that
/// somebody may still want to be told.
pub async fn earlier(registry: &Registry, lease: &Lease) -> Result<Vec<Earlier>> {
    let oldest = registry.interests().iter().map(|interest| interest.max_age).max().unwrap_or_default();
    let mut numbers = epochs(&*registry.store).await?;
    numbers.retain(|number| *number < lease.epoch);
    numbers.sort_unstable();
    let (now, mut ended) = (registry.store.now(), lease.record.at);
    let mut earlier = Vec::new();
    while let Some(number) = numbers.pop()
        && ended.plus(oldest) >= now
    {
        let record: EpochRecord = read_json(&registry.store, &Key::Epoch(number)).await?;
        ended = record.at;
        earlier.push(Earlier { number, shards: record.shards, names: Names::new(number, record.shards) });
    }
    Ok(earlier)
}

/// Takes over what earlier epochs left in this index for an endpoint and the repositories of one shard, and notes
/// that it was done: nothing new of the shard is told before. How many events that were.
///
/// Each is put in its place first and then removed where it was. Who dies between the two leaves it to be told
/// twice; who does it beside another puts it in the same place.
pub async fn inherit(
    registry: &Registry,
    lease: &Lease,
    shard: Shard,
    endpoint: &EntryName,
    earlier: &[Earlier],
) -> Result<u64> {
    let done = lease.names.inherited(endpoint);
    // Another replica may have done it since that was looked at.
    if ask(lease, shard, vec![Ask::Value(done.clone())]).await?[0].is_some() {
        return Ok(0);
    }
    let (interests, index) = (registry.interests(), lease.live().await?);
    let interest = interests.iter().find(|interest| interest.endpoint == *endpoint);
    let mut count = 0;
    for epoch in earlier {
        let estate = Estate { registry, lease, shard, endpoint, interest, epoch, index: &index };
        let (taken, is_heir) = estate.take().await?;
        count += taken;
        // It had taken over what was before it.
        if is_heir {
            break;
        }
    }
    let writes = vec![Write::Put(done, Bytes::new())];
    lease.commit(shard, Batch { writes, ..Batch::default() }).await?;
    if count > 0 {
        tracing::info!(%endpoint, shard = shard.0, count, "events that an earlier epoch had not delivered are taken over");
    }
    Ok(count)
}

/// What one earlier epoch left for an endpoint and the repositories of one shard.
struct Estate<'a> {
    registry: &'a Registry,
    lease: &'a Lease,
    /// The shard of the epoch that is served.
    shard: Shard,
    endpoint: &'a EntryName,
    interest: Option<&'a Interest>,
    epoch: &'a Earlier,
    /// Asked as it is: an old prefix is behind no fence.
    index: &'a Arc<dyn Index>,
}

impl Estate<'_> {
    /// Takes it over; how many events that were, and whether the epoch had taken over from those before it.
    async fn take(&self) -> Result<(u64, bool)> {
        let (now, old) = (&self.lease.names, &self.epoch.names);
        let mut taken = 0;
        let mut is_heir = true;
        for source in self.sources() {
            let outbox = (old.outbox(self.endpoint), now.outbox(self.endpoint));
            let dead = (old.dead(self.endpoint), now.dead(self.endpoint));
            let asks = [
                Ask::First(outbox.0.clone()),
                Ask::First(dead.0.clone()),
                Ask::First(old.intents()),
                Ask::Value(old.inherited(self.endpoint)),
            ];
            let there = self.index.get(source, &asks).await?;
            if there[0].is_some() {
                taken += self.move_all(source, &outbox.0, &outbox.1).await?;
            }
            if there[1].is_some() {
                self.move_all(source, &dead.0, &dead.1).await?;
            }
            if there[2].is_some() {
                taken += self.tell_intents(source).await?;
            }
            is_heir &= there[3].is_some();
        }
        Ok((taken, is_heir))
    }

    /// The old shards that may hold something of this shard's repositories.
    fn sources(&self) -> Vec<Shard> {
        let is_same = self.epoch.shards == self.lease.record.shards;
        if is_same { vec![self.shard] } else { self.epoch.names.shards().collect() }
    }

    async fn move_all(&self, source: Shard, from: &str, to: &str) -> Result<u64> {
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let page = self.index.scan(source, from, after.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(last, _)| last.clone());
            let (mut puts, mut removals) = (Vec::new(), Vec::new());
            for (member, value) in page {
                let Some(place) = self.place(&member, &value) else { continue };
                puts.push(Write::Put(Fact::new(to, place), value));
                removals.push(Write::Delete(Fact::new(from, member)));
            }
            if !puts.is_empty() {
                count += puts.len() as u64;
                self.lease.commit(self.shard, Batch { writes: puts, ..Batch::default() }).await?;
                self.index.commit(source, Batch { writes: removals, ..Batch::default() }).await?;
            }
            if is_last {
                return Ok(count);
            }
        }
    }

    /// Where a leftover belongs, if that is in this shard. One that can't be read must not hold up the rest.
    fn place(&self, member: &str, value: &[u8]) -> Option<String> {
        let read = || Ok::<_, crate::error::Error>((number_of(member)?, facts::decode::<DeliveryFact>(value)?.event));
        match read() {
            Ok((_, event)) if self.lease.names.shard_of(&event.repository) != self.shard => None,
            // The epoch had taken it over itself.
            Ok((0, _)) => Some(member.to_owned()),
            Ok((number, event)) => Some(inherited_member(self.revision(number), event.id)),
            Err(error) => {
                tracing::warn!(%error, endpoint = %self.endpoint, member, "an event of an earlier epoch can't be read, and is left");
                None
            }
        }
    }

    fn revision(&self, counter: u64) -> Revision {
        Revision { epoch: self.epoch.number, counter }
    }

    /// Tells of the manifests that were pushed by digest, and whose pushes were acknowledged though their commit
    /// failed: no tag's revision says it. Where tags were written, the bucket does.
    async fn tell_intents(&self, source: Shard) -> Result<u64> {
        let (mut count, mut after) = (0, None::<String>);
        loop {
            let page = self.index.scan(source, &self.epoch.names.intents(), after.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(last, _)| last.clone());
            for (_, value) in page {
                let Ok((counter, intent)) = IntentFact::decode(&value) else { continue };
                if let Some(event) = self.event_of(&intent, counter).await? {
                    let member = inherited_member(self.revision(counter), event.id);
                    let delivery = facts::encode(&DeliveryFact::new(event));
                    let writes = vec![Write::Put(self.lease.names.delivery(self.endpoint, &member), delivery)];
                    self.lease.commit(self.shard, Batch { writes, ..Batch::default() }).await?;
                    count += 1;
                }
            }
            if is_last {
                return Ok(count);
            }
        }
    }

    /// The event of a push by digest whose manifest is there, if the endpoint wants it.
    async fn event_of(&self, intent: &IntentFact, counter: u64) -> Result<Option<EventFact>> {
        let Some(manifest) = intent.manifest.clone().filter(|_| intent.tags.is_empty()) else { return Ok(None) };
        if self.lease.names.shard_of(&intent.repository) != self.shard {
            return Ok(None);
        }
        let (repository, digest) = (intent.repository.clone(), manifest.digest);
        let key = Key::Manifest { repository, digest: digest.clone(), object: manifest.object };
        let Some(bytes) = found(read_small(&self.registry.store, &key, MAX_MANIFEST).await)? else { return Ok(None) };
        let Ok(parsed) = Manifest::parse(&bytes, None) else { return Ok(None) };
        let to = Target { digest, media_type: parsed.media_type.clone(), size: bytes.len() as u64 };
        let mut events = events_of(intent, self.revision(counter), &[], Some(&to));
        Ok(events.pop().filter(|event| self.interest.is_some_and(|interest| interest.wants(event))))
    }
}
