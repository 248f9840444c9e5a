//! What inspecting a thing finds: by the index, by the bucket, and where the two disagree.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    epoch::EpochRecord,
    index::facts::{DataFact, Hint, IntentFact, LinkFact, ManifestFact, TagState},
    oci::{Digest, RepositoryName, Tag},
    outbox::Checkpoint,
    storage::{
        StoreTime,
        key::{EntryName, RosterList},
    },
};

/// Whether to read all bytes and hash them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Read and hash.
    Bytes,
    /// Believe what a listing says.
    Nothing,
}

/// Which index was found, and whether it is the bucket's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum IndexState {
    /// The newest epoch of the bucket is this index's.
    Believed {
        /// The epoch's number.
        epoch: String,
        /// Which database it is.
        identity: String,
        /// How many shards it has.
        shards: u16,
        /// When the epoch began.
        since: StoreTime,
        /// Whether every repository of the bucket is known to be in it.
        settled: bool,
    },
    /// The newest epoch of the bucket is of another index: nothing that this one says counts.
    Other {
        /// The epoch's number.
        epoch: String,
        /// Which database the bucket believes.
        identity: String,
    },
    /// The newest epoch of the bucket is this index's, which was emptied, or has not begun to serve it.
    Unserved {
        /// The epoch's number.
        epoch: String,
    },
    /// The bucket has never named an index.
    Unclaimed,
    /// The configured index isn't there.
    Missing,
    /// The configured index doesn't answer, or can't be read.
    Unreachable {
        /// Why.
        why: String,
    },
}

/// One object of the bucket.
#[derive(Clone, Debug, Serialize)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When the store wrote it.
    pub modified: StoreTime,
}

/// A data object.
#[derive(Clone, Debug, Serialize)]
pub struct DataReport {
    /// Its key.
    pub key: String,
    /// The object in the bucket; nothing where there is none.
    pub object: Option<Object>,
    /// What its home shard says of it.
    pub fact: Option<DataFact>,
    /// Who needs it: `<repository>/<link>`.
    pub users: Vec<String>,
    /// Whether its bytes hash to the digest, where that was asked for.
    pub verified: Option<bool>,
    /// Where index and bucket disagree, one sentence each.
    pub disagreements: Vec<String>,
}

/// What the index says of a blob in a repository.
#[derive(Clone, Debug, Serialize)]
pub struct BlobFacts {
    /// Whether what isn't here is not there.
    pub reconciled: bool,
    /// The link.
    pub link: Option<LinkFact>,
    /// Who needs the link: `m:<manifest>`, `p:<intent>`.
    pub refs: Vec<String>,
    /// Links of this repository that requests are about to commit, of this blob or another.
    pub attempts: Vec<String>,
    /// Objects of this link that wait to be removed.
    pub trash: Vec<String>,
    /// Where the bytes may be; possibly stale, and never trusted.
    pub hint: Option<Hint>,
}

/// A blob in a repository.
#[derive(Clone, Debug, Serialize)]
pub struct BlobReport {
    /// The repository.
    pub repository: RepositoryName,
    /// The digest.
    pub digest: Digest,
    /// What the index says, where it is the bucket's own.
    pub index: Option<BlobFacts>,
    /// The links in the bucket.
    pub links: Vec<Object>,
    /// The data objects that the links name.
    pub data: Vec<DataReport>,
    /// Where index and bucket disagree, one sentence each.
    pub disagreements: Vec<String>,
}

/// What the index says of a tag.
#[derive(Clone, Debug, Serialize)]
pub struct TagFacts {
    /// Whether what isn't here is not there.
    pub reconciled: bool,
    /// Its position in the tag's history; nothing where the index knows no such tag.
    pub revision: Option<String>,
    /// What it says.
    pub state: Option<TagState>,
    /// The writes of this tag that are reserved and not committed, by intent.
    pub open: BTreeMap<String, Option<IntentFact>>,
    /// Whether its history waits to be trimmed.
    pub to_be_trimmed: bool,
}

/// One revision of a tag in the bucket.
#[derive(Clone, Debug, Serialize)]
pub struct RevisionReport {
    /// Its position.
    pub revision: String,
    /// What it points at; nothing where it says that the tag was deleted.
    pub to: Option<Digest>,
    /// By when it had to be written.
    pub deadline: StoreTime,
    /// When the store wrote it.
    pub modified: StoreTime,
    /// Whether it was in time. One that wasn't is invisible to every reader.
    pub counts: bool,
}

/// A tag.
#[derive(Clone, Debug, Serialize)]
pub struct TagReport {
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// What the index says, where it is the bucket's own.
    pub index: Option<TagFacts>,
    /// The revisions in the bucket, newest first.
    pub history: Vec<RevisionReport>,
    /// Where index and bucket disagree, one sentence each.
    pub disagreements: Vec<String>,
}

/// What the index says of a manifest.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestFacts {
    /// Whether what isn't here is not there.
    pub reconciled: bool,
    /// The manifest.
    pub fact: Option<ManifestFact>,
    /// What names it: `t:<tag>` (which may have moved on since), `i:<intent>`.
    pub names: Vec<String>,
    /// The manifests that refer to it as their subject.
    pub referrers: Vec<String>,
    /// The blobs that it needs and that the repository doesn't link.
    pub unlinked: Vec<Digest>,
}

/// A manifest.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestReport {
    /// The repository.
    pub repository: RepositoryName,
    /// The digest.
    pub digest: Digest,
    /// What the index says, where it is the bucket's own.
    pub index: Option<ManifestFacts>,
    /// Its objects in the bucket.
    pub objects: Vec<Object>,
    /// Its media type, by its bytes.
    pub media_type: Option<String>,
    /// The blobs that it needs, by its bytes.
    pub needs: Vec<Digest>,
    /// Where index and bucket disagree, one sentence each.
    pub disagreements: Vec<String>,
}

/// What a key of the bucket belongs to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// The bucket's own description. Its content is a secret, and not shown.
    Format,
    /// Bytes.
    Data(DataReport),
    /// A link.
    Blob(BlobReport),
    /// A manifest.
    Manifest(ManifestReport),
    /// A revision of a tag.
    Tag(TagReport),
    /// A revision of an account or a rule.
    Entry(EntryReport),
    /// An index that was once believed; nothing where there is no such object.
    Epoch(Option<EpochRecord>),
    /// How far an endpoint was told what happened; nothing where there is no such object.
    Checkpoint(Option<Checkpoint>),
    /// What a start wrote to see whether it may.
    Probe,
}

/// A revision of an account or a rule.
#[derive(Clone, Debug, Serialize)]
pub struct EntryReport {
    /// Whether it is an account or a rule.
    pub roster: RosterList,
    /// Its name.
    pub name: EntryName,
    /// Whether it was written in time; nothing where there is no such object.
    pub counts: Option<bool>,
    /// Whether it is the one that the index goes by; nothing where the index isn't the bucket's own.
    pub is_current: Option<bool>,
}

/// A key.
#[derive(Clone, Debug, Serialize)]
pub struct KeyReport {
    /// The key.
    pub key: String,
    /// The object; nothing where there is none.
    pub object: Option<Object>,
    /// What it belongs to.
    pub about: About,
}

/// How much is in an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Repositories with a manifest.
    pub repositories: usize,
    /// Uploads in progress, and those that were over lately.
    pub uploads: usize,
    /// Writes of tags that are reserved and not committed.
    pub intents: usize,
    /// Links that requests are about to commit.
    pub attempts: usize,
    /// Records of what is to be removed.
    pub trash: usize,
    /// Tags whose history waits to be trimmed.
    pub trims: usize,
    /// Service accounts.
    pub accounts: usize,
    /// Rules that were made at run time.
    pub rules: usize,
}
