//! What whoever runs Berth sees of delivery, and may do to it: the outboxes, the dead letters, a sample.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use ulid::Ulid;

use super::{Attempt, Deliverer, Endpoint, shard::Census};
use crate::{
    epoch::Lease,
    error::{Code, Error, Result},
    index::{
        Batch, Check, Outcome, Shard, Write,
        facts::{self, Action, DeliveryFact, EventFact, EventTarget, RequestFact, Target},
    },
    oci::{Algorithm, Digest},
    storage::{StoreTime, key::EntryName},
};

/// How many letters are read from each shard at a time.
const PAGE: usize = 200;

/// The most letters that are shown: the oldest.
const SHOWN: usize = 100;

/// An endpoint, and what waits for it.
#[derive(Clone, Debug)]
pub struct EndpointState {
    /// Its name.
    pub name: EntryName,
    /// Its format, as the configuration has it.
    pub format: &'static str,
    /// Where it is, as far as that is shown.
    pub place: String,
    /// How many events wait.
    pub pending: u64,
    /// Since when the oldest of them does.
    pub oldest: Option<StoreTime>,
    /// How many dead letters there are.
    pub dead: u64,
}

/// The oldest letters of an endpoint.
#[derive(Clone, Debug)]
pub struct Letters {
    /// The letters, oldest first.
    pub letters: Vec<DeliveryFact>,
    /// How many there are in all.
    pub count: u64,
}

/// Which letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that wait.
    Pending,
    /// Those that were given up.
    Dead,
}

/// What came of a sample.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Whether it was taken.
    pub taken: bool,
    /// The status, or what went wrong.
    pub said: String,
    /// How long it took.
    pub took: Duration,
}

impl Deliverer {
    /// The endpoints, by name.
    ///
    /// # Errors
    /// 503 without an index.
    pub async fn states(&self) -> Result<Vec<EndpointState>> {
        let lease = self.registry.lease().await?;
        let mut states = Vec::new();
        for endpoint in self.endpoints().by_name.values() {
            let shards = lease.names.shards().map(|shard| Census::take(&lease, shard, &endpoint.name));
            let shards = try_join_all(shards).await?;
            states.push(EndpointState {
                name: endpoint.name.clone(),
                format: endpoint.config.format.as_str(),
                place: endpoint.shown(),
                pending: shards.iter().map(|census| census.pending).sum(),
                oldest: shards.iter().filter_map(|census| census.oldest).min(),
                dead: shards.iter().map(|census| census.dead).sum(),
            });
        }
        Ok(states)
    }

    fn endpoint(&self, name: &EntryName) -> Result<std::sync::Arc<Endpoint>> {
        let endpoint = self.endpoints().by_name.get(name).cloned();
        endpoint.ok_or_else(|| Error::new(Code::NameUnknown, format!("there is no endpoint {name}")))
    }

    /// The oldest letters of an endpoint.
    ///
    /// # Errors
    /// 404 without such an endpoint; 503 without an index.
    pub async fn letters(&self, name: &EntryName, which: Which) -> Result<Letters> {
        let endpoint = self.endpoint(name)?;
        let lease = self.registry.lease().await?;
        let group = match which {
            Which::Pending => lease.names.outbox(&endpoint.name),
            Which::Dead => lease.names.dead(&endpoint.name),
        };
        let pages = lease.names.shards().map(|shard| lease.scan(shard, &group, None, SHOWN));
        let mut letters: Vec<DeliveryFact> = Vec::new();
        for (_, value) in try_join_all(pages).await?.into_iter().flatten() {
            letters.push(facts::decode(&value)?);
        }
        letters.sort_by_key(|letter| (letter.event.at, letter.event.id));
        letters.truncate(SHOWN);
        let shards = lease.names.shards().map(|shard| Census::take(&lease, shard, &endpoint.name));
        let censuses = try_join_all(shards).await?;
        let counts = censuses.iter().map(|census| match which {
            Which::Pending => census.pending,
            Which::Dead => census.dead,
        });
        Ok(Letters { letters, count: counts.sum() })
    }

    /// Puts dead letters of an endpoint back where they were: all, or those of these ids. How many.
    ///
    /// # Errors
    /// 404 without such an endpoint; 503 without an index.
    pub async fn replay(&self, name: &EntryName, ids: &[Ulid]) -> Result<u64> {
        let endpoint = self.endpoint(name)?;
        let lease = self.registry.lease().await?;
        let mut count = 0;
        for shard in lease.names.shards() {
            count += self.replay_shard(&lease, shard, &endpoint.name, ids).await?;
        }
        tracing::info!(endpoint = %name, count, "dead letters are delivered again");
        self.ring();
        Ok(count)
    }

    async fn replay_shard(&self, lease: &Lease, shard: Shard, name: &EntryName, ids: &[Ulid]) -> Result<u64> {
        let (group, mut after) = (lease.names.dead(name), None);
        let mut count = 0;
        loop {
            let page = lease.scan(shard, &group, after.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|(last, _)| last.clone());
            for (member, value) in page {
                let fact: DeliveryFact = facts::decode(&value)?;
                if !ids.is_empty() && !ids.contains(&fact.event.id) {
                    continue;
                }
                let now = self.registry.store.now();
                let fact = DeliveryFact { attempts: 0, next: None, replayed: Some(now), ..fact };
                let dead = lease.names.dead_letter(name, &member);
                let put = Write::Put(lease.names.delivery(name, &member), facts::encode(&fact));
                // Of two who put it back, one does.
                let checks = vec![Check::Equals(dead.clone(), value)];
                let batch = Batch { checks, writes: vec![Write::Delete(dead), put], ..Batch::default() };
                count += u64::from(matches!(lease.commit(shard, batch).await?, Outcome::Committed { .. }));
            }
            if is_last {
                return Ok(count);
            }
        }
    }

    /// Sends an endpoint a sample: the push of a tag of a repository that nobody has. Nothing is kept of it.
    ///
    /// # Errors
    /// 404 without such an endpoint.
    pub async fn test(&self, name: &EntryName) -> Result<Tried> {
        let endpoint = self.endpoint(name)?;
        let began = Instant::now();
        let now = self.registry.store.now();
        let attempt = endpoint.tell(&sample(now)?, &self.authority, self.owner, now).await;
        let took = began.elapsed();
        Ok(match attempt {
            Attempt::Taken(status) => Tried { taken: true, said: status.as_u16().to_string(), took },
            Attempt::Failed { why, .. } => Tried { taken: false, said: why, took },
        })
    }
}

fn sample(now: StoreTime) -> Result<EventFact> {
    let body = b"{}";
    let target = Target {
        digest: Digest::of(Algorithm::Sha256, body),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: body.len() as u64,
    };
    let id = Ulid::r#gen();
    Ok(EventFact {
        id,
        at: now,
        action: Action::Push,
        repository: "berth/sample".parse().map_err(Error::internal)?,
        tag: Some("test".parse().map_err(Error::internal)?),
        target: Some(EventTarget::Manifest(target)),
        from: None,
        by: "berth".to_owned(),
        request: Some(RequestFact {
            id: id.to_string(),
            addr: None,
            origin: String::new(),
            method: "PUT".to_owned(),
            user_agent: String::new(),
        }),
    })
}
