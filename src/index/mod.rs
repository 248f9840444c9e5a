//! Facts: the seam between Berth's rules and the database that answers fast.
//!
//! An [`Index`] is one live connection to such a database. It knows nothing of registries: a fact is
//! (shard, group, member) -> value, and everything that matters is decided by the checks of a batch. All
//! rules live above, in [`facts`] and the modules of the rules.

pub mod embedded;
pub mod facts;
pub mod metered;
pub mod redis;
mod wake;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

/// The unit of atomic commit. A repository lives in exactly one; how many there are is fixed for an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(pub u16);

/// The name of one fact: a member of a group. A group is an ordered map, in byte order of its members, no
/// larger than one repository's tags. Both are text without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fact {
    /// The group.
    pub group: String,
    /// The member.
    pub member: String,
}

/// One question of a [`Index::get`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The value of a fact.
    Value(Fact),
    /// The name of the least member of a group; nothing if the group is empty.
    First(String),
    /// How many members a group has, as decimal text; `0` if it is empty.
    Count(String),
}

/// What must hold for a batch to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The fact is not there.
    Absent(Fact),
    /// The fact is there, with any value.
    Present(Fact),
    /// The fact is there, with exactly this value.
    Equals(Fact, Bytes),
    /// The group has no member.
    Empty(String),
}

/// One change of a batch. They are made in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a fact.
    Put(Fact, Bytes),
    /// Sets a fact to the batch's sequence number, as 16 lower-case hex digits, followed by these bytes.
    /// Only in a batch that has a [`Batch::sequence`].
    PutNumbered(Fact, Bytes),
    /// Sets a fact, before whose member the batch's sequence number is put, as 16 lower-case hex digits. Only in a
    /// batch that has a [`Batch::sequence`].
    PutAtNumber(Fact, Bytes),
    /// Sets a fact unless it already has a value that is greater in byte order.
    Raise(Fact, Bytes),
    /// Removes a fact, if it is there.
    Delete(Fact),
}

/// A group of checks and changes of one shard that is committed whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// All must hold, judged before any write.
    pub checks: Vec<Check>,
    /// A counter to be incremented (a fact that isn't there counts as 0); its new value is the batch's
    /// sequence number. It is kept as decimal text, up to 2^53, which is as far as Redis' scripts count.
    pub sequence: Option<Fact>,
    /// What is changed.
    pub writes: Vec<Write>,
    /// Questions that are answered as of before the writes.
    pub reads: Vec<Ask>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was committed, durably as far as the index promises it.
    Committed {
        /// The sequence number, 0 for a batch without one.
        sequence: u64,
        /// The answers to `reads`, in its order.
        reads: Vec<Option<Bytes>>,
    },
    /// Nothing was changed.
    Refused {
        /// The place in `checks` of the first one that does not hold.
        check: usize,
    },
}

/// What went wrong in an index, named by what may have happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    /// It was not reached: nothing happened.
    #[error("the index is not reachable: {0}")]
    Unreachable(String),
    /// The connection was lost meanwhile: the batch may have been committed, or may be later.
    #[error("the index did not answer: {0}")]
    Unknown(String),
    /// No answer came in time, though the connection stands: as [`IndexError::Unknown`], and asking again
    /// would only take as long again.
    #[error("the index did not answer in time: {0}")]
    TimedOut(String),
    /// It answered what makes no sense.
    #[error("the index is not usable: {0}")]
    Broken(String),
}

/// One live connection to a database of facts. When the connection is lost, every further call fails: make
/// a new one with [`Connect`], and take a new lease on it (see the epoch module).
#[async_trait]
pub trait Index: fmt::Debug + Send + Sync {
    /// Which database this is: differs for another server, a restarted one that may have lost something,
    /// and a replica that was promoted.
    async fn identity(&self) -> Result<String, IndexError>;

    /// Answers several questions from one snapshot of one shard, in their order.
    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError>;

    /// The members of a group after `after` (exclusive), at most `limit`, in byte order.
    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError>;

    /// Commits a batch, or says which check failed.
    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError>;

    /// Wakes whoever waits on `topic` in this shard, on every replica. It may be lost.
    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError>;

    /// Returns at a [`Index::notify`] of `topic`, at the end of `patience`, or early for no reason.
    async fn wait(&self, shard: Shard, topic: &str, patience: Duration);
}

/// Makes connections to one database.
#[async_trait]
pub trait Connect: fmt::Debug + Send + Sync {
    /// A connection of its own.
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError>;
}

impl Fact {
    /// Names a fact.
    pub fn new(group: impl Into<String>, member: impl Into<String>) -> Self {
        Self { group: group.into(), member: member.into() }
    }
}

impl Batch {
    /// Whether a write asks for a sequence number that the batch doesn't take. No index commits such a batch.
    fn lacks_sequence(&self) -> bool {
        self.sequence.is_none()
            && self.writes.iter().any(|write| matches!(write, Write::PutNumbered(..) | Write::PutAtNumber(..)))
    }
}
