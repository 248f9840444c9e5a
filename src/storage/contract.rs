//! The contract of a store: each promise that Berth's rules rest on, as something that can be tried.
//!
//! `berth storage check` tries them on the bucket of an operator, and the tests on every store there is. It
//! writes only where [`Subject`] says, a place of its own that no registry reads, and removes what it wrote. It
//! knows nothing of registries.

mod subject;
mod tries;

use std::{fmt, time::Duration};

use ulid::Ulid;

pub use subject::Subject;

use super::{Key, StorageError};
use crate::oci::{Algorithm, Digest, RepositoryName};

/// The life of what is to expire. A signature counts whole seconds.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// What a store promises, one sentence each ([`Promise::says`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// A read shows every write that was answered before.
    ReadsWrites,
    /// A listing does.
    ListsWrites,
    /// Both show every removal.
    ForgetsRemoved,
    /// Listings are in byte order, and go on after any text.
    Order,
    /// `Last-Modified` is by the clock that `Date` shows.
    Dates,
    /// A write that is too late doesn't look as if it were not.
    LateWrites,
    /// A removal that is too late does nothing.
    LateRemovals,
    /// The request that removes is refused once its time is over.
    ExpiredRemovals,
    /// A range is exactly that range.
    Ranges,
    /// Parts become the object that they are the parts of.
    Parts,
    /// A part that was replaced is noticed.
    ReplacedParts,
    /// An upload that was given up never becomes an object.
    GivenUpUploads,
    /// Keys of any length that Berth uses.
    LongKeys,
    /// Many writes side by side.
    SideBySide,
    /// A signed URL lets anybody GET the object.
    SignedReads,
    /// And no longer than it says.
    ExpiredReads,
}

/// How a promise was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was.
    Yes,
    /// Nobody asks it of this store: nothing is signed for a directory, uploads to Azure have no names.
    NotAsked,
}

/// A promise that isn't kept: what was seen instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Self(error.to_string())
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T, Broken> {
    Err(Broken(what.into()))
}

impl Promise {
    /// All of them, those first on which most rests.
    pub const ALL: [Self; 16] = [
        Self::ReadsWrites,
        Self::ListsWrites,
        Self::ForgetsRemoved,
        Self::Order,
        Self::Dates,
        Self::LateWrites,
        Self::LateRemovals,
        Self::ExpiredRemovals,
        Self::Ranges,
        Self::Parts,
        Self::ReplacedParts,
        Self::GivenUpUploads,
        Self::LongKeys,
        Self::SideBySide,
        Self::SignedReads,
        Self::ExpiredReads,
    ];

    /// The promise, for people.
    pub fn says(self) -> &'static str {
        match self {
            Self::ReadsWrites => "what was written can be read at once",
            Self::ListsWrites => "what was written is listed at once",
            Self::ForgetsRemoved => "what was removed is neither read nor listed any more",
            Self::Order => "listings are in byte order, page by page, and begin after any key",
            Self::Dates => "an object's time is by the clock that the store's answers show, within index.margin",
            Self::LateWrites => "a write after its deadline is refused, or dated after it",
            Self::LateRemovals => "a removal after its deadline is refused",
            Self::ExpiredRemovals => "the request of a removal is refused by the store once it has expired",
            Self::Ranges => "a range of an object is exactly those bytes",
            Self::Parts => "an object uploaded in parts appears when it is completed, whole",
            Self::ReplacedParts => "an upload isn't completed with a part that was replaced",
            Self::GivenUpUploads => "an upload that was given up never becomes an object",
            Self::LongKeys => "the longest keys that Berth uses can be written, read and listed",
            Self::SideBySide => "64 writes at the same moment are all there",
            Self::SignedReads => "a signed URL lets anybody read the object, and do nothing else",
            Self::ExpiredReads => "a signed URL is refused once it has expired",
        }
    }

    /// What is lost without it, for people.
    pub fn without_it(self) -> &'static str {
        match self {
            Self::ReadsWrites => {
                "Pulls right after a push would fail, and pushes that a replica takes over from another."
            }
            Self::ListsWrites => "A new index would miss pushes that were acknowledged, and tags would go back.",
            Self::ForgetsRemoved => "A new index would bring back what was deleted, and point at bytes that are gone.",
            Self::Order => "A new index would miss repositories, and take an old revision of a tag for the newest.",
            Self::Dates => {
                "Tags would be lost, or moved by writes that were never acknowledged. Give index.margin more room only if the clocks differ by seconds."
            }
            Self::LateWrites => "A write that nobody acknowledged could move a tag much later.",
            Self::LateRemovals | Self::ExpiredRemovals => {
                "A replica that was stopped for a while could remove what is needed again by then."
            }
            Self::Ranges => "Pulls that are taken up where they broke off would have wrong bytes.",
            Self::Parts => "Large blobs could not be pushed, or half of one could be read.",
            Self::ReplacedParts => "Two requests of one upload could make a blob of which a part is wrong.",
            Self::GivenUpUploads => "What was thrown away would come back, and take room for ever.",
            Self::LongKeys => "Pushes to repositories and tags with long names would fail.",
            Self::SideBySide => "Pushes of many layers at once would fail.",
            Self::SignedReads => {
                "Clients that are sent to the bucket for a blob would fail. Set redirect.enabled = false."
            }
            Self::ExpiredReads => "A URL that somebody has kept would be good for ever.",
        }
    }

    /// The repository in whose folder this promise is tried.
    fn repository(self) -> Result<RepositoryName, Broken> {
        format!("contract/{}", format!("{self:?}").to_lowercase()).parse().or_else(|_| broken("not a name"))
    }

    /// Where this promise is tried: the prefix of the keys that it writes.
    pub fn place(self) -> String {
        format!("repos/contract/{}/", format!("{self:?}").to_lowercase())
    }

    /// A key of its own; with `object` counting up they sort in that order.
    fn key(self, object: u128) -> Result<Key, Broken> {
        Ok(manifest(self.repository()?, object))
    }

    /// Tries it.
    ///
    /// # Errors
    /// What was seen that should not have been.
    pub async fn try_on(self, subject: &Subject) -> Result<Kept, Broken> {
        if !self.is_asked(subject).await? {
            return Ok(Kept::NotAsked);
        }
        // On the heap: it has room for any of them, and all are tried at once.
        Box::pin(self.try_all(subject)).await.map(|()| Kept::Yes)
    }

    /// Whether Berth asks this of the store.
    async fn is_asked(self, subject: &Subject) -> Result<bool, Broken> {
        let key = self.key(0)?;
        Ok(match self {
            Self::SignedReads | Self::ExpiredReads => subject.store.sign(&key, SHORT_LIFE).await?.is_some(),
            Self::ExpiredRemovals => subject.store.sign_delete(&key, subject.soon()).await?.is_some(),
            Self::ReplacedParts | Self::GivenUpUploads => subject.store.names_uploads(),
            _ => true,
        })
    }

    async fn try_all(self, subject: &Subject) -> Result<(), Broken> {
        match self {
            Self::ReadsWrites => self.reads_writes(subject).await,
            Self::ListsWrites => self.lists_writes(subject).await,
            Self::ForgetsRemoved => self.forgets_removed(subject).await,
            Self::Order => self.keeps_order(subject).await,
            Self::Dates => self.dates(subject).await,
            Self::LateWrites => self.late_writes(subject).await,
            Self::LateRemovals => self.late_removals(subject).await,
            Self::ExpiredRemovals => self.expired_removals(subject).await,
            Self::Ranges => self.ranges(subject).await,
            Self::Parts => self.parts(subject).await,
            Self::ReplacedParts => self.replaced_parts(subject).await,
            Self::GivenUpUploads => self.given_up_uploads(subject).await,
            Self::LongKeys => self.long_keys(subject).await,
            Self::SideBySide => self.side_by_side(subject).await,
            Self::SignedReads => self.signed_reads(subject).await,
            Self::ExpiredReads => self.expired_reads(subject).await,
        }
    }
}

fn manifest(repository: RepositoryName, object: u128) -> Key {
    let digest = Digest::of(Algorithm::Sha256, b"a manifest");
    Key::Manifest { repository, digest, object: Ulid::from(object) }
}
