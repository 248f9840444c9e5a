//! The record of the walk that fills an index from the bucket.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::WorkFact;
use crate::{oci::RepositoryName, storage::StoreTime};

/// How far the repositories of the bucket are reconciled with the index, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkFact {
    /// Who goes on with it, until when nobody else should.
    pub by: WorkFact,
    /// When it began.
    pub began: StoreTime,
    /// The key behind which it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The repository that was last found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<RepositoryName>,
    /// What it has found so far.
    pub walked: Walked,
}

impl WalkFact {
    /// One that `owner` begins now.
    pub fn begun(owner: Ulid, now: StoreTime) -> Self {
        let by = WorkFact { owner, until: now };
        Self { by, began: now, after: None, last: None, walked: Walked::default() }
    }
}

/// What a walk over the bucket found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    /// Repositories.
    pub repositories: usize,
    /// What was adopted in all of them.
    pub adopted: Adopted,
    /// What was adopted of the roster.
    pub roster: AdoptedRoster,
}

/// What was adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Links.
    pub links: usize,
    /// Manifests.
    pub manifests: usize,
    /// Tags.
    pub tags: usize,
    /// Links, manifests and tags of which something is missing; each has a line in the log.
    pub dangling: usize,
}

impl Adopted {
    /// This and what was adopted beside it.
    pub fn and(self, more: Self) -> Self {
        Self {
            links: self.links + more.links,
            manifests: self.manifests + more.manifests,
            tags: self.tags + more.tags,
            dangling: self.dangling + more.dangling,
        }
    }
}

/// How many accounts and rules were adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedRoster {
    /// Accounts.
    pub accounts: usize,
    /// Rules.
    pub rules: usize,
}
