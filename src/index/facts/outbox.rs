//! The records of the outbox: what happened, and to whom it is still to be told.
//!
//! A delivery is one event for one endpoint. It is written by the commit that made the event true, so that
//! the two exist together or not at all. Its member begins with the number of its change in the shard's
//! counter, so the members of a group stand in the order of the changes.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Names, Target};
use crate::{
    index::Fact,
    oci::{Digest, RepositoryName, Tag},
    storage::{Revision, StoreTime, key::EntryName},
};

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A manifest or a blob came in, or a tag was set.
    Push,
    /// A manifest or a blob was read by a GET. A HEAD is none.
    Pull,
    /// A blob of another repository was linked.
    Mount,
    /// A tag, a manifest or a blob was removed.
    Delete,
}

/// Something that happened to a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFact {
    /// Its name, the same in every delivery: by it a receiver knows what it has had.
    pub id: Ulid,
    /// When it happened.
    pub at: StoreTime,
    /// What was done.
    pub action: Action,
    /// Where.
    pub repository: RepositoryName,
    /// The tag that was set, removed or read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// What it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EventTarget>,
    /// Where a mounted blob came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RepositoryName>,
    /// By whom, as a tag's history says it.
    pub by: String,
    /// The request that did it; not known of a change that was found in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestFact>,
}

/// What an event is about. The removal of a tag has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventTarget {
    /// A manifest.
    Manifest(Target),
    /// A blob, and its size in bytes.
    Blob(Digest, u64),
}

/// The request that an event came of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFact {
    /// As the log and `X-Request-Id` have it.
    pub id: String,
    /// The client's address, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<std::net::IpAddr>,
    /// How the client names this registry: scheme and host, such as `https://r.example.com`.
    pub origin: String,
    /// Its method.
    pub method: String,
    /// Its `User-Agent`, the first 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
}

/// One event for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryFact {
    /// What happened.
    pub event: EventFact,
    /// How often it was sent.
    #[serde(default)]
    pub attempts: u32,
    /// When it is sent next; at once where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<StoreTime>,
    /// What the last attempt ended with, such as `503` or `connection refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// When it was taken from the dead letters again: its age counts from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<StoreTime>,
}

impl DeliveryFact {
    /// One that was not tried yet.
    pub fn new(event: EventFact) -> Self {
        Self { event, attempts: 0, next: None, last: None, replayed: None }
    }

    /// Since when it is to be delivered.
    pub fn since(&self) -> StoreTime {
        self.replayed.unwrap_or(self.event.at)
    }
}

impl Names {
    /// What is to be delivered to an endpoint, in the order of the changes: [`delivery_member`] ->
    /// [`DeliveryFact`].
    pub fn outbox(&self, endpoint: &EntryName) -> String {
        self.of("outbox", endpoint)
    }

    /// One delivery.
    pub fn delivery(&self, endpoint: &EntryName, member: &str) -> Fact {
        Fact::new(self.outbox(endpoint), member)
    }

    /// Present once this shard has what earlier epochs left for an endpoint.
    pub fn inherited(&self, endpoint: &EntryName) -> Fact {
        Fact::new(self.group("inherited"), endpoint.as_str())
    }

    /// When each endpoint was last served by anybody, about: name -> [`StoreTime`]; only in the first shard.
    pub fn all_served(&self) -> String {
        self.group("served")
    }

    /// When one endpoint was last served.
    pub fn served(&self, endpoint: &EntryName) -> Fact {
        Fact::new(self.all_served(), endpoint.as_str())
    }

    /// What was given up, under the same member: [`DeliveryFact`].
    pub fn dead(&self, endpoint: &EntryName) -> String {
        self.of("dead", endpoint)
    }

    /// One that was given up.
    pub fn dead_letter(&self, endpoint: &EntryName, member: &str) -> Fact {
        Fact::new(self.dead(endpoint), member)
    }
}

/// The member of an event of an earlier epoch, which a revision's position stands for: before all events of this
/// epoch, in the order of the changes, and the same whoever finds it, in an old outbox or in the bucket.
pub fn inherited_member(revision: Revision, event: Ulid) -> String {
    format!("{:016x}-{revision}-{event}", 0)
}

/// The member of the `place`th event of the change that drew `counter`.
pub fn delivery_member(counter: u64, place: usize) -> String {
    format!("{counter:016x}{}", delivery_suffix(place))
}

/// What stands behind the number in a delivery's member.
pub fn delivery_suffix(place: usize) -> String {
    format!("-{place:03x}")
}
