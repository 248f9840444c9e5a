//! Bytes: the bucket's keys, and the stores that hold them.
//!
//! [`Store`] is the seam. It knows keys and bytes and the store's own time; it knows nothing of
//! repositories' rules. A key is written at most once and never reused, so no store has to offer
//! conditional writes; what comes too late is recognised by time instead (see [`Store::put`]).

mod remote;

pub mod azure;
pub mod contract;
pub mod gcs;
pub mod key;
pub mod local;
pub mod metered;
pub mod s3;

use std::{fmt, ops::Range, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

pub use key::{DataKey, Key, Revision};
pub use remote::{Egress, Patience};

/// A point in the store's own time, in milliseconds since the Unix epoch. No replica's wall clock is one,
/// but for a local directory, whose clock is the machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreTime(pub u64);

impl StoreTime {
    /// This time and `span` more.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_millis() as u64))
    }

    /// This time less `span`.
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_millis() as u64))
    }

    /// As people and machines read it: by RFC 3339, in UTC, to the second.
    pub fn rfc3339(self) -> String {
        chrono::DateTime::from_timestamp_millis(self.0 as i64)
            .map_or_else(|| format!("{} ms", self.0), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
    }

    /// The same to the millisecond, for what happens often.
    pub fn rfc3339_millis(self) -> String {
        chrono::DateTime::from_timestamp_millis(self.0 as i64)
            .map_or_else(|| format!("{} ms", self.0), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    }

    /// Reads a time as HTTP has it in headers; `None` for anything else.
    pub fn from_http(text: &str) -> Option<Self> {
        chrono::DateTime::parse_from_rfc2822(text).ok()?.timestamp_millis().try_into().ok().map(Self)
    }

    /// Reads a time by RFC 3339; `None` for anything else, and for a time before 1970.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let at = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        at.timestamp_millis().try_into().ok().map(Self)
    }
}

/// What went wrong in a store, named by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// There is no object at that key.
    #[error("nothing is stored at {0}")]
    NotFound(String),
    /// The deadline had passed before the store took the request; nothing happened, and nothing will.
    #[error("the deadline for {0} had passed")]
    TooLate(String),
    /// A part is no longer what it was when it was put, since another request overwrote it, or the machine of a
    /// local directory went down: the upload can't be completed.
    #[error("a part of {0} was overwritten or lost")]
    PartChanged(String),
    /// No room left: a full disk, or an exceeded quota.
    #[error("no space left for {0}")]
    Full(String),
    /// The store doesn't let us: permissions, a read-only file system.
    #[error("the store refused {0}: {1}")]
    Refused(String, String),
    /// Everything else. A write that failed so may still happen.
    #[error("the store failed at {0}: {1}")]
    Unavailable(String, String),
}

/// Bytes in the order in which they came, so that they need not be copied into one buffer.
pub type Chunks = Vec<Bytes>;

/// The bytes of an object as they arrive. An error ends it.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, StorageError>> + Send>>;

/// What a store knows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its size in bytes.
    pub size: u64,
    /// When the store says that it was written.
    pub modified: StoreTime,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Keys as text (some may not be ours), in byte order of the whole key, each with its [`Stat`].
    pub objects: Vec<(String, Stat)>,
    /// Whether more follow: ask again after the last one.
    pub more: bool,
}

/// An upload in parts, as the store names it: opaque, good in every process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultipartId(pub String);

/// One version of one part, as the store names it: opaque. Completing with a `PartId` that has since been
/// overwritten fails with [`StorageError::PartChanged`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartId(pub String);

/// An upload in parts that was begun and has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Where it would end; `None` where the store doesn't note that, as a directory doesn't. There any key can
    /// be named to abort it.
    pub key: Option<Key>,
    /// Its name.
    pub id: MultipartId,
    /// When it was begun.
    pub since: StoreTime,
}

/// One page of them.
#[derive(Clone, Debug, Default)]
pub struct UnfinishedPage {
    /// Those that would end at a key of Berth's.
    pub uploads: Vec<Unfinished>,
    /// Whether more follow: ask again after the last one.
    pub more: bool,
}

/// A URL that lets whoever has it GET one object.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedUrl {
    /// The URL, as clients outside reach the store. It is as good as a password while it lives.
    pub url: String,
    /// For how long it is good from now on: what was asked for, or less where the credentials that signed it
    /// expire before.
    pub life: Duration,
}

/// The URL stays out of logs.
impl fmt::Debug for SignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedUrl").field("life", &self.life).finish_non_exhaustive()
    }
}

/// An object store under one prefix: a local directory or a bucket.
///
/// Every method may be called from any task; none holds a lock over I/O that another method needs. A
/// request that was dropped halfway may still happen, like one that failed with
/// [`StorageError::Unavailable`].
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Whether no other process can write here while this object lives. Then nothing that a dead process
    /// began can still happen, and nobody has to wait for it.
    fn is_exclusive(&self) -> bool;

    /// The size in bytes of every part but the last of an upload in parts; fixed for the life of the store
    /// object, and noted with each upload, so that a change of configuration breaks none in progress.
    fn part_size(&self) -> usize;

    /// The most parts that one upload may have.
    fn max_parts(&self) -> usize;

    /// Whether each upload in parts has a name of its own, so that nothing can be done with one that is over. Where
    /// it has none, the key is the upload: of parts that were replaced, those that complete it are its bytes.
    fn names_uploads(&self) -> bool {
        true
    }

    /// The store's time now: its last `Date`, carried forward by the monotonic clock. For a directory the
    /// machine's clock.
    fn now(&self) -> StoreTime;

    /// Writes a whole object, durably. With a `deadline`, a store that can refuse a write after it does so
    /// ([`StorageError::TooLate`]); one that can't writes it with a later `modified`, and readers don't
    /// count it.
    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError>;

    /// Begins an upload in parts that will end at `key`. Nothing is readable there until it is completed.
    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError>;

    /// Puts part `number`, counted from 0; every part but the last is [`Store::part_size`] bytes. It is durable
    /// once the upload is completed; if it was lost before, completing says so. The same number put again replaces
    /// the part. Parts may be put side by side, and by several processes.
    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError>;

    /// Makes the object out of all its parts, durably, in their order. Completing again what is complete
    /// is a success.
    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError>;

    /// Gives an upload in parts up and frees its space. One that is not there is a success.
    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError>;

    /// Uploads in parts that have not ended, a page at a time, in an order of the store's own. A store in which
    /// they end by themselves and have no names, as in Azure, has none to show.
    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError>;

    /// Streams an object, or a part of it. `range` must be inside the object and not empty.
    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError>;

    /// What the store knows of an object; `None` where there is none.
    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError>;

    /// At most `limit` (1 to 1,000) objects whose key starts with `prefix` (whole path components: it ends
    /// with a slash) and comes after the key `after`, in byte order. What it shows is durable.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError>;

    /// Removes an object, by a request that the store itself refuses after `deadline`
    /// ([`StorageError::TooLate`]). An object that is not there is a success.
    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError>;

    /// A URL by which anyone may GET the object, whole or in ranges, for up to `life` (at least a second);
    /// `None` where the store has no such thing, as a directory has not. It costs the store no request where
    /// the store allows that; S3 does. The answer says `application/octet-stream` if the store lets that be
    /// fixed, so that what was pushed never decides how a browser takes it. Nothing is looked up: a URL of
    /// an object that isn't there can be signed as well.
    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError>;

    /// The request of [`Store::delete`] as a URL, by which whoever has it may DELETE the object until `deadline`:
    /// so the [`contract`] shows that it is the store which refuses it afterwards. `None` where nothing is sent
    /// to remove an object, as in a directory, or where no URL can say it.
    async fn sign_delete(&self, _key: &Key, _deadline: StoreTime) -> Result<Option<String>, StorageError> {
        Ok(None)
    }
}

/// Reads a small object whole, up to `limit` bytes; a larger one is [`StorageError::Unavailable`].
pub async fn read_small(store: &Arc<dyn Store>, key: &Key, limit: usize) -> Result<Bytes, StorageError> {
    use futures_util::TryStreamExt;
    let mut stream = store.read(key, None).await?;
    let mut whole = bytes::BytesMut::new();
    while let Some(chunk) = stream.try_next().await? {
        if whole.is_empty() && chunk.len() <= limit {
            // The usual case, one chunk, costs no copy.
            let next = stream.try_next().await?;
            let Some(next) = next else { return Ok(chunk) };
            whole.extend_from_slice(&chunk);
            whole.extend_from_slice(&next);
        } else {
            whole.extend_from_slice(&chunk);
        }
        if whole.len() > limit {
            return Err(StorageError::Unavailable(key.to_string(), format!("larger than {limit} bytes")));
        }
    }
    Ok(whole.freeze())
}
