//! The typed records above the index: which facts there are, where each is kept, what its value looks like.
//!
//! All facts but the fence live under their epoch's prefix, so a new epoch starts empty. Values are JSON
//! with a version; a tag's is preceded by its revision, an intent's by its counter, in fixed-width hex.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use ulid::Ulid;

mod outbox;
mod roster;
mod walk;

use super::{Fact, IndexError, Shard};
use crate::{
    oci::{Digest, RepositoryName, Tag},
    storage::{
        DataKey, MultipartId, PartId, Revision, StoreTime,
        key::{EntryName, EpochNumber, RosterList},
    },
};
pub use outbox::{
    Action, DeliveryFact, EventFact, EventTarget, RequestFact, delivery_member, delivery_suffix, inherited_member,
};
pub use roster::{Account, AccountKey, EntryFact, PendingFact, RosterRule};
pub use walk::{Adopted, AdoptedRoster, WalkFact, Walked};

/// The names of all facts of one epoch.
#[derive(Clone, Debug)]
pub struct Names {
    epoch: String,
    shards: u16,
}

impl Names {
    /// The names under `epoch`, which has `shards` shards.
    pub fn new(epoch: EpochNumber, shards: u16) -> Self {
        Self { epoch: epoch.to_string(), shards }
    }

    /// All shards of the epoch.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        (0..self.shards).map(Shard)
    }

    /// The shard of a repository.
    pub fn shard_of(&self, repository: &RepositoryName) -> Shard {
        self.hash(repository.as_str())
    }

    /// The home shard of a data object.
    pub fn home_of(&self, data: DataKey) -> Shard {
        self.hash(&data.0.to_string())
    }

    /// The shard that keeps hints for a digest.
    pub fn hint_shard(&self, digest: &Digest) -> Shard {
        self.hash(digest.as_str())
    }

    /// FNV-1a, 64 bits, folded: the same on every replica and in every release.
    fn hash(&self, text: &str) -> Shard {
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Shard(((hash ^ (hash >> 32)) % u64::from(self.shards)) as u16)
    }

    fn group(&self, noun: &str) -> String {
        format!("{}:{noun}", self.epoch)
    }

    fn of(&self, noun: &str, of: impl std::fmt::Display) -> String {
        format!("{}:{noun}:{of}", self.epoch)
    }

    /// Which epoch a shard serves. The only fact outside every epoch.
    pub fn fence(&self) -> Fact {
        Fact::new("fence", "")
    }

    /// The fence's value under this epoch.
    pub fn fence_value(&self) -> Bytes {
        Bytes::from(self.epoch.clone())
    }

    /// Present once every repository of the bucket is reconciled; its value is the shard's counter then.
    pub fn settled(&self) -> Fact {
        Fact::new(self.group("settled"), "")
    }

    /// The repositories that were reconciled one by one, before their shard was settled.
    pub fn all_reconciled(&self) -> String {
        self.group("reconciled")
    }

    /// Present once this repository is reconciled.
    pub fn reconciled(&self, repository: &RepositoryName) -> Fact {
        Fact::new(self.all_reconciled(), repository.as_str())
    }

    /// The shard's counter, of which revisions are made.
    pub fn counter(&self) -> Fact {
        Fact::new(self.group("counter"), "")
    }

    /// The repositories of a shard that have a manifest: what the catalog lists.
    pub fn repositories(&self) -> String {
        self.group("repositories")
    }

    /// All links of a repository: digest -> [`LinkFact`].
    pub fn links(&self, repository: &RepositoryName) -> String {
        self.of("links", repository)
    }

    /// One link.
    pub fn link(&self, repository: &RepositoryName, digest: &Digest) -> Fact {
        Fact::new(self.links(repository), digest.as_str())
    }

    /// Who needs a link: `m:<manifest>`, `p:<intent>`.
    pub fn refs(&self, repository: &RepositoryName, digest: &Digest) -> String {
        self.of("refs", format_args!("{repository}@{digest}"))
    }

    /// All manifests of a repository: digest -> [`ManifestFact`].
    pub fn manifests(&self, repository: &RepositoryName) -> String {
        self.of("manifests", repository)
    }

    /// One manifest.
    pub fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Fact {
        Fact::new(self.manifests(repository), digest.as_str())
    }

    /// What names a manifest: `i:<intent>` while it is being pushed, `t:<tag>` for a tag that was set to it
    /// (and may have moved on since).
    pub fn names_of(&self, repository: &RepositoryName, digest: &Digest) -> String {
        self.of("names", format_args!("{repository}@{digest}"))
    }

    /// All referrers of a subject: digest -> descriptor.
    pub fn referrers(&self, repository: &RepositoryName, subject: &Digest) -> String {
        self.of("referrers", format_args!("{repository}@{subject}"))
    }

    /// All tags of a repository: tag -> [`TagFact`].
    pub fn tags(&self, repository: &RepositoryName) -> String {
        self.of("tags", repository)
    }

    /// One tag.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Fact {
        Fact::new(self.tags(repository), tag.as_str())
    }

    /// The open intents on a tag.
    pub fn open(&self, repository: &RepositoryName, tag: &Tag) -> String {
        self.of("open", format_args!("{repository}:{tag}"))
    }

    /// The intents of a shard, oldest first: ulid -> counter, then [`IntentFact`].
    pub fn intents(&self) -> String {
        self.group("intents")
    }

    /// One intent.
    pub fn intent(&self, intent: Ulid) -> Fact {
        Fact::new(self.intents(), intent.to_string())
    }

    /// The uploads of a shard, oldest first: ulid -> [`UploadFact`].
    pub fn uploads(&self) -> String {
        self.group("uploads")
    }

    /// One upload.
    pub fn upload(&self, upload: Ulid) -> Fact {
        Fact::new(self.uploads(), upload.to_string())
    }

    /// Links that somebody is about to commit, oldest first: link ulid -> [`AttemptFact`].
    pub fn attempts(&self) -> String {
        self.group("attempts")
    }

    /// One link that somebody is about to commit.
    pub fn attempt(&self, link: Ulid) -> Fact {
        Fact::new(self.attempts(), link.to_string())
    }

    /// What is to be removed in a shard: ulid -> [`TrashFact`].
    pub fn trash(&self) -> String {
        self.group("trash")
    }

    /// One thing to be removed. A link's trash has the link's own ulid.
    pub fn trashed(&self, ulid: Ulid) -> Fact {
        Fact::new(self.trash(), ulid.to_string())
    }

    /// How far collection is, a [`CollectionFact`]; only in the first shard.
    pub fn collection(&self) -> Fact {
        Fact::new(self.group("collection"), "")
    }

    /// How far the walk of this epoch is, a [`WalkFact`]; only in the first shard.
    pub fn walk(&self) -> Fact {
        Fact::new(self.group("walk"), "")
    }

    /// Tags whose history may want trimming: `<repository>:<tag>`.
    pub fn trims(&self) -> String {
        self.group("trim")
    }

    /// One tag whose history may want trimming.
    pub fn trim(&self, repository: &RepositoryName, tag: &Tag) -> Fact {
        Fact::new(self.trims(), format!("{repository}:{tag}"))
    }

    /// A data object -> [`DataFact`], in its home shard; grouped by the first of its random digits.
    pub fn data(&self, data: DataKey) -> Fact {
        let name = data.0.to_string();
        Fact::new(self.of("data", &name[10..12]), name)
    }

    /// Who needs a data object: `<repository>/<link ulid>` -> the digest under which it is linked; in its home
    /// shard.
    pub fn users(&self, data: DataKey) -> String {
        self.of("users", data.0)
    }

    /// One user of a data object.
    pub fn user(&self, data: DataKey, repository: &RepositoryName, link: Ulid) -> Fact {
        Fact::new(self.users(data), format!("{repository}/{link}"))
    }

    /// Which data object may hold a digest, a [`Hint`]: possibly stale, never trusted.
    pub fn hint(&self, digest: &Digest) -> Fact {
        let (algorithm, hex) = digest.as_str().split_once(':').unwrap_or_default();
        Fact::new(self.of("hints", format_args!("{algorithm}:{}", &hex[..2])), hex)
    }

    /// The shard that keeps the roster: it is small, and read as a whole.
    pub fn roster_shard(&self) -> Shard {
        Shard(0)
    }

    /// All accounts, or all rules: name -> [`EntryFact`].
    pub fn roster(&self, roster: RosterList) -> String {
        self.group(roster.as_str())
    }

    /// One account or rule.
    pub fn entry(&self, roster: RosterList, name: &EntryName) -> Fact {
        Fact::new(self.roster(roster), name.as_str())
    }

    /// Which state of the roster this is: another value after each change. Present once the roster is
    /// reconciled.
    pub fn roster_version(&self) -> Fact {
        Fact::new(self.group("roster"), "")
    }

    /// The entries of the roster that somebody is writing: `accounts/<name>` -> counter, then [`PendingFact`].
    pub fn pending(&self) -> String {
        self.group("pending")
    }

    /// Whether somebody is writing an account or a rule.
    pub fn pending_entry(&self, roster: RosterList, name: &EntryName) -> Fact {
        Fact::new(self.pending(), format!("{}/{name}", roster.as_str()))
    }

    /// When each account was last used, about: name -> [`StoreTime`]. Known to the index alone.
    pub fn account_uses(&self) -> String {
        self.group("uses")
    }

    /// When one account was last used.
    pub fn account_use(&self, name: &EntryName) -> Fact {
        Fact::new(self.account_uses(), name.as_str())
    }

    /// Who does a piece of the shard's background work: [`WorkFact`].
    pub fn work(&self, piece: &str) -> Fact {
        Fact::new(self.group("work"), piece)
    }
}

/// The version that every record begins with; a release reads the one before it.
const VERSION: u8 = b'1';

/// A record as bytes: the version, then JSON.
pub fn encode<T: Serialize>(record: &T) -> Bytes {
    let mut bytes = vec![VERSION];
    // Our own records have no map keys but text and no failing serializer.
    let written = serde_json::to_writer(&mut bytes, record);
    debug_assert!(written.is_ok());
    bytes.into()
}

/// Bytes as a record.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, IndexError> {
    match bytes.split_first() {
        Some((&VERSION, json)) => {
            serde_json::from_slice(json).map_err(|error| IndexError::Broken(format!("a record can't be read: {error}")))
        }
        Some((version, _)) => {
            Err(IndexError::Broken(format!("a record has version {version}, this release reads {VERSION}")))
        }
        None => Err(IndexError::Broken("a record is empty".to_owned())),
    }
}

/// A record that stands behind `width` digits.
fn split(bytes: &[u8], width: usize) -> Result<(&str, &[u8]), IndexError> {
    let broken = || IndexError::Broken("a numbered record is too short".to_owned());
    let (number, rest) = bytes.split_at_checked(width).ok_or_else(broken)?;
    Ok((std::str::from_utf8(number).map_err(|_| broken())?, rest))
}

/// A repository may read a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFact {
    /// The link's own name.
    pub link: Ulid,
    /// Where the bytes are.
    pub data: DataKey,
    /// How many they are.
    pub size: u64,
    /// When somebody last asked for it in order to push.
    pub renewed: StoreTime,
}

/// A manifest that a repository has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFact {
    /// The object that holds its bytes.
    pub object: Ulid,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// The sum of what its descriptors name, in bytes.
    pub content_size: u64,
    /// When it was pushed.
    pub at: StoreTime,
}

/// What a tag was last set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFact {
    /// Its position in the tag's history.
    pub revision: Revision,
    /// What it says.
    pub state: TagState,
}

/// What a tag says; also the body of a revision's object in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagState {
    /// The manifest; nothing where the tag was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Target>,
    /// When.
    pub at: StoreTime,
    /// By whom.
    pub by: String,
}

/// A manifest that a tag points at, as much as HEAD needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

impl TagFact {
    /// The value in the index: greater in byte order is later in history.
    pub fn encode(&self) -> Bytes {
        let mut bytes = self.revision.to_string().into_bytes();
        bytes.extend_from_slice(&encode(&self.state));
        bytes.into()
    }

    /// Reads a value back.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let (revision, state) = split(bytes, 32)?;
        Ok(Self { revision: revision.parse().map_err(IndexError::Broken)?, state: decode(state)? })
    }

    /// Whether a value says that the tag exists: all that a list of names needs.
    pub fn exists(bytes: &[u8]) -> Result<bool, IndexError> {
        // As `encode` writes it, the manifest stands first. Reading on to the end is half of what a page of tags costs.
        let (_, state) = split(bytes, 32)?;
        match state.split_first() {
            Some((&VERSION, json)) if json.starts_with(br#"{"to":{"#) => Ok(true),
            _ => Ok(decode::<TagState>(state)?.to.is_some()),
        }
    }
}

/// A write of tags that was reserved and not yet committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentFact {
    /// Whose tags.
    pub repository: RepositoryName,
    /// Which tags; none for a manifest that is pushed by digest alone.
    pub tags: Vec<Tag>,
    /// Its revisions count if the store wrote them no later than this.
    pub deadline: StoreTime,
    /// The manifest; nothing where tags are deleted.
    pub manifest: Option<IntendedManifest>,
    /// What the manifest needs, each pinned by `p:<intent>`.
    pub needs: Vec<Digest>,
    /// When it was reserved.
    pub at: StoreTime,
    /// By whom.
    pub by: String,
    /// The request, where somebody is to be told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestFact>,
}

/// The manifest that an intent pushes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntendedManifest {
    /// Its digest.
    pub digest: Digest,
    /// The object that it is written to, unless its repository has it already.
    pub object: Ulid,
}

impl IntentFact {
    /// Reads a numbered value: the counter, then the intent.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), IndexError> {
        decode_numbered(bytes)
    }
}

/// A record that [`super::Write::PutNumbered`] wrote, and its number.
fn decode_numbered<T: DeserializeOwned>(bytes: &[u8]) -> Result<(u64, T), IndexError> {
    let (counter, record) = split(bytes, 16)?;
    let counter = u64::from_str_radix(counter, 16).map_err(|error| IndexError::Broken(error.to_string()))?;
    Ok((counter, decode(record)?))
}

/// An upload in progress, or the memory of one that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadFact {
    /// Whose upload.
    pub repository: RepositoryName,
    /// The last time that it moved.
    pub touched: StoreTime,
    /// Where it stands.
    pub state: UploadState,
}

/// Where an upload stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadState {
    /// Bytes are still coming.
    Open(OpenUpload),
    /// It became this blob; the same closing request gets the same answer.
    Finished(Digest),
    /// It was cancelled, or its digest was wrong.
    Over,
}

/// What any process needs to take an upload further.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenUpload {
    /// How many bytes are in.
    pub offset: u64,
    /// The hash of those bytes, as [`crate::oci::Hasher::save`] wrote it, in base64.
    pub hash: String,
    /// The parts, where there was more than one part's worth.
    pub parts: Option<PartsUpload>,
    /// The bytes behind the last whole part, as an object of their own.
    pub aside: Option<Aside>,
}

/// An upload in parts at the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsUpload {
    /// Where the bytes will be.
    pub data: DataKey,
    /// The store's name for the upload.
    pub id: MultipartId,
    /// The size in bytes of each part but the last.
    pub part_size: usize,
    /// The parts so far; the last may be short.
    pub parts: Vec<PartId>,
}

/// The bytes behind the last whole part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The object that holds them.
    pub data: DataKey,
    /// How many they are.
    pub size: u64,
}

/// Where bytes of a digest may be found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The object.
    pub data: DataKey,
    /// How many they are.
    pub size: u64,
}

/// A link that somebody is about to commit, so that its objects are not taken for garbage; and what is
/// garbage if that never happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptFact {
    /// Whose link.
    pub repository: RepositoryName,
    /// Where this attempt writes bytes of its own, if it has to.
    pub data: DataKey,
}

/// Something to be removed from the bucket, and what must be forgotten once it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashFact {
    /// The objects, by key.
    pub keys: Vec<String>,
    /// An upload in parts: where it would have ended, and the store's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipart: Option<(DataKey, MultipartId)>,
    /// The use that a link made of a data object: data, repository, link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<(DataKey, RepositoryName, Ulid)>,
    /// A dying data object, in whose home shard this is: its fact goes with this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataKey>,
    /// How many bytes the data objects among the keys have, as far as that is known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A data object that links use, or that is being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFact {
    /// What its bytes hash to.
    pub digest: Digest,
    /// How many they are.
    pub size: u64,
    /// Whether it may still be joined.
    pub state: DataState,
}

/// Whether a data object may still be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataState {
    /// It may.
    Live,
    /// It is being removed.
    Dying,
}

/// Who does a piece of background work, and until when nobody else should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkFact {
    /// Drawn by each replica when it starts.
    pub owner: Ulid,
    /// In the store's time.
    pub until: StoreTime,
}

/// How far collection is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionFact {
    /// The round that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<RoundFact>,
    /// The last one that went through the whole bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<FinishedRound>,
}

/// One look at every object of the bucket, page by page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundFact {
    /// Who goes on with it, until when nobody else should.
    pub by: WorkFact,
    /// When it began.
    pub began: StoreTime,
    /// The key behind which it goes on.
    pub after: String,
    /// What it has thrown away so far.
    pub found: Found,
}

/// A round that went through the whole bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRound {
    /// When it began.
    pub began: StoreTime,
    /// When it ended.
    pub ended: StoreTime,
    /// What it threw away.
    pub found: Found,
}

/// How much garbage was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Links.
    pub links: u64,
    /// Manifests' objects.
    pub manifests: u64,
    /// Tags' revisions.
    pub revisions: u64,
    /// Data objects.
    pub data: u64,
    /// Uses of data objects by links that don't exist.
    pub uses: u64,
    /// How many bytes those objects have.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_exists_where_it_points_at_something() {
        let digest = "sha256:".to_owned() + &"0".repeat(64);
        let to = Target { digest: digest.parse().expect("a digest"), media_type: "a/b".to_owned(), size: 1 };
        let revision: Revision = "0".repeat(32).parse().expect("a revision");
        for to in [Some(to), None] {
            let state = TagState { to, at: StoreTime(7), by: "{\"to\":{".to_owned() };
            let (fact, is_there) = (TagFact { revision, state: state.clone() }, state.to.is_some());
            assert_eq!(TagFact::exists(&fact.encode()).expect("a fact"), is_there);
            // Nor does it depend on how the record is written.
            let spread = serde_json::to_vec_pretty(&state).expect("JSON");
            let value = [&fact.encode()[..33], &spread].concat();
            assert_eq!(TagFact::exists(&value).expect("a fact"), is_there);
        }
        assert!(TagFact::exists(b"short").is_err());
    }
}
