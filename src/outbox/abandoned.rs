//! Endpoints that nobody serves any more: what waits for them goes, and what is known of them.
//!
//! Each replica notes again and again which endpoints it serves. One that nobody has noted for [`ABANDONED`] is in no
//! replica's configuration: its events, its dead letters and its checkpoints are removed. A rolling deployment is over
//! by then, and one that is taken back finds what waited. Whoever serves the endpoint again just then loses nothing
//! that happened from then on: an event that is younger than that stays, whatever the notes say.

use std::{collections::BTreeMap, time::Duration};

use super::{all, checkpoint, piece};
use crate::{
    collect,
    epoch::Lease,
    error::Result,
    event::{Interest, Interests},
    index::{
        Batch, Check, Fact, Outcome, Shard, Write,
        facts::{self, DeliveryFact},
    },
    registry::Registry,
    storage::{
        StoreTime,
        key::{self, EntryName},
    },
};

/// For how long nobody has served an endpoint that is given up: longer than a rolling deployment takes.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The shard that the notes are in: they are few.
const SHARD: Shard = Shard(0);

/// How many events are read, and removed, at a time.
const PAGE: usize = 200;

/// Notes that these endpoints are served. Whoever serves them does it often, compared with the hour after which an
/// endpoint is given up.
pub async fn note_served(registry: &Registry, interests: &Interests) -> Result<()> {
    let lease = registry.lease().await?;
    let now = facts::encode(&registry.store.now());
    let note = |Interest { endpoint, .. }: &Interest| Write::Put(lease.names.served(endpoint), now.clone());
    let writes: Vec<Write> = interests.iter().map(note).collect();
    if writes.is_empty() {
        return Ok(());
    }
    lease.commit(SHARD, Batch { writes, ..Batch::default() }).await.map(drop)
}

/// The endpoints that the index knows and that this replica doesn't serve, by name: when anybody last did, about.
pub async fn unserved(registry: &Registry, lease: &Lease) -> Result<BTreeMap<EntryName, StoreTime>> {
    let interests = registry.interests();
    let mut unserved = BTreeMap::new();
    for (member, value) in all(lease, SHARD, &lease.names.all_served()).await? {
        let Ok(name) = member.parse::<EntryName>() else { continue };
        if interests.iter().all(|interest| interest.endpoint != name) {
            unserved.insert(name, facts::decode(&value)?);
        }
    }
    Ok(unserved)
}

/// Clears what there is of endpoints that nobody has served for an hour.
///
/// An endpoint of which the bucket alone knows, as the index was lost, has its hour from now on.
pub async fn clear_abandoned(registry: &Registry) -> Result<()> {
    let lease = registry.lease().await?;
    let (noted, now) = (unserved(registry, &lease).await?, registry.store.now());
    let interests = registry.interests();
    for name in checkpoint::endpoints(registry).await? {
        if !noted.contains_key(&name) && interests.iter().all(|interest| interest.endpoint != name) {
            let served = lease.names.served(&name);
            let writes = vec![Write::Put(served.clone(), facts::encode(&now))];
            lease.commit(SHARD, Batch { checks: vec![Check::Absent(served)], writes, ..Batch::default() }).await?;
        }
    }
    for (endpoint, last) in noted.iter().filter(|(_, last)| last.plus(ABANDONED) < now) {
        clear(registry, &lease, endpoint, *last).await?;
    }
    Ok(())
}

/// Clears what there is of an endpoint that was last served then.
async fn clear(registry: &Registry, lease: &Lease, endpoint: &EntryName, last: StoreTime) -> Result<()> {
    let (mut events, mut stay) = (0, false);
    for shard in lease.names.shards() {
        for group in [lease.names.outbox(endpoint), lease.names.dead(endpoint)] {
            let (went, stayed) = empty(registry, lease, shard, &group).await?;
            events += went;
            stay |= stayed;
        }
    }
    let is_over = !stay && forget(registry, lease, endpoint, last).await?;
    if events > 0 || is_over {
        tracing::info!(%endpoint, events, "nobody has served an endpoint for an hour; its events and dead letters were removed");
    }
    Ok(())
}

/// Removes the events of a group that nobody needs any more. How many went, and whether any stay as they are too
/// young.
async fn empty(registry: &Registry, lease: &Lease, shard: Shard, group: &str) -> Result<(u64, bool)> {
    let (mut after, mut went, mut stay): (Option<String>, _, _) = (None, 0, false);
    loop {
        let page = lease.scan(shard, group, after.as_deref(), PAGE).await?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|(last, _)| last.clone());
        let mut batch = Batch::default();
        for (member, value) in page {
            if facts::decode::<DeliveryFact>(&value)?.since().plus(ABANDONED) >= registry.store.now() {
                stay = true;
                continue;
            }
            batch.writes.push(Write::Delete(Fact::new(group, member)));
        }
        if !batch.writes.is_empty() {
            went += batch.writes.len() as u64;
            lease.commit(shard, batch).await?;
        }
        if is_last {
            return Ok((went, stay));
        }
    }
}

/// Forgets an endpoint of which nothing waits, unless somebody has noted it since. Whether it is forgotten.
///
/// Its checkpoints go last: who dies between finds it by them.
async fn forget(registry: &Registry, lease: &Lease, endpoint: &EntryName, last: StoreTime) -> Result<bool> {
    let served = lease.names.served(endpoint);
    let batch = Batch {
        checks: vec![Check::Equals(served.clone(), facts::encode(&last))],
        writes: vec![Write::Delete(served)],
        ..Batch::default()
    };
    if !matches!(lease.commit(SHARD, batch).await?, Outcome::Committed { .. }) {
        return Ok(false);
    }
    for shard in lease.names.shards() {
        let facts = [lease.names.inherited(endpoint), lease.names.work(&piece(endpoint))];
        let writes = facts.map(Write::Delete).into();
        lease.commit(shard, Batch { writes, ..Batch::default() }).await?;
    }
    for key in checkpoint::listed(registry, &key::checkpoints(endpoint)).await? {
        collect::remove(registry, lease, &key).await?;
    }
    Ok(true)
}
