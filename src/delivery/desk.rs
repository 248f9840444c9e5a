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
    outbox,
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
    /// Its format, as the configuration has it; nothing for one that this replica doesn't serve.
    pub format: Option<&'static str>,
    /// Where it is, as far as that is shown; likewise.
    pub place: Option<String>,
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
    /// The endpoints, by name; after them those that this replica doesn't serve, as long as they are known.
    ///
    /// # Errors
    /// 503 without an index.
    pub async fn states(&self) -> Result<Vec<EndpointState>> {
        let lease = self.registry.lease().await?;
        let mut states = Vec::new();
        for endpoint in self.endpoints().by_name.values() {
            let (format, place) = (endpoint.config.format.as_str(), endpoint.shown());
            states.push(EndpointState {
                format: Some(format),
                place: Some(place),
                ..state(&lease, &endpoint.name).await?
            });
        }
        for name in outbox::unserved(&self.registry, &lease).await?.keys() {
            states.push(state(&lease, name).await?);
        }
        Ok(states)
    }

    /// Whether there is such an endpoint, here or elsewhere.
    async fn is_known(&self, lease: &Lease, name: &EntryName) -> Result<bool> {
        let is_ours = self.endpoints().by_name.contains_key(name);
        Ok(is_ours || outbox::unserved(&self.registry, lease).await?.contains_key(name))
    }

    fn endpoint(&self, name: &EntryName) -> Result<std::sync::Arc<Endpoint>> {
        self.endpoints().by_name.get(name).cloned().ok_or_else(|| unknown(name))
    }

    /// The oldest letters of an endpoint, or of one that nobody serves any more.
    ///
    /// # Errors
    /// 404 without such an endpoint; 503 without an index.
    pub async fn letters(&self, name: &EntryName, which: Which) -> Result<Letters> {
        let lease = self.registry.lease().await?;
        if !self.is_known(&lease, name).await? {
            return Err(unknown(name));
        }
        let group = match which {
            Which::Pending => lease.names.outbox(name),
            Which::Dead => lease.names.dead(name),
        };
        let pages = lease.names.shards().map(|shard| lease.scan(shard, &group, None, SHOWN));
        let mut letters: Vec<DeliveryFact> = Vec::new();
        for (_, value) in try_join_all(pages).await?.into_iter().flatten() {
            letters.push(facts::decode(&value)?);
        }
        letters.sort_by_key(|letter| (letter.event.at, letter.event.id));
        letters.truncate(SHOWN);
        let EndpointState { pending, dead, .. } = state(&lease, name).await?;
        let count = match which {
            Which::Pending => pending,
            Which::Dead => dead,
        };
        Ok(Letters { letters, count })
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

fn unknown(name: &EntryName) -> Error {
    Error::new(Code::NameUnknown, format!("there is no endpoint {name}"))
}

/// What waits for an endpoint of this name, whoever serves it.
async fn state(lease: &Lease, name: &EntryName) -> Result<EndpointState> {
    let shards = try_join_all(lease.names.shards().map(|shard| Census::take(lease, shard, name))).await?;
    Ok(EndpointState {
        name: name.clone(),
        format: None,
        place: None,
        pending: shards.iter().map(|census| census.pending).sum(),
        oldest: shards.iter().filter_map(|census| census.oldest).min(),
        dead: shards.iter().map(|census| census.dead).sum(),
    })
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
