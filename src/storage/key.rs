//! The whole layout of the bucket: every key that Berth writes is one of these.
//!
//! A key is written at most once and never reused. Names of repositories can't hold a component that
//! starts with `_`, so what belongs to a repository never collides with a repository nested in it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::StoreTime;
use crate::oci::{Digest, RepositoryName, Tag};

/// The number of one epoch: a generation and a random part, so that two replicas that begin the next one
/// at the same time never share it. The greatest is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EpochNumber {
    /// One more than that of the epoch before.
    pub generation: u32,
    /// Drawn at random.
    pub random: u32,
}

/// A position in a tag's history: the epoch and its shard's counter. Greater is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The epoch that gave the counter.
    pub epoch: EpochNumber,
    /// The shard's counter.
    pub counter: u64,
}

/// The two lists of the roster: what was granted at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RosterList {
    /// Service accounts.
    Accounts,
    /// Access rules.
    Rules,
}

impl RosterList {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Accounts, Self::Rules];

    /// Its folder in the bucket, and the noun of its facts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::Rules => "rules",
        }
    }

    /// Where all of its entries are listed.
    pub fn prefix(self) -> String {
        format!("{}/", self.as_str())
    }

    /// Where the revisions of one entry are listed, newest first.
    pub fn history(self, name: &EntryName) -> String {
        format!("{}/{name}/", self.as_str())
    }
}

/// The name of an account, a rule or an endpoint of events: a component of a repository's name, at most [`EntryName::MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryName(String);

/// The text names no account and no rule.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a name: want a-z, 0-9 and inner '.', '_', '__' or '-', 63 bytes at most")]
pub struct InvalidEntryName(String);

impl EntryName {
    /// The longest, in bytes: as long as a label of a domain name, so that one can be made of it.
    pub const MAX: usize = 63;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EntryName {
    type Err = InvalidEntryName;

    fn from_str(text: &str) -> Result<Self, InvalidEntryName> {
        let good = text.len() <= Self::MAX && !text.contains('/') && text.parse::<RepositoryName>().is_ok();
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidEntryName(text.chars().take(100).collect())) }
    }
}

impl TryFrom<String> for EntryName {
    type Error = InvalidEntryName;

    fn try_from(text: String) -> Result<Self, InvalidEntryName> {
        text.parse()
    }
}

impl From<EntryName> for String {
    fn from(name: EntryName) -> Self {
        name.0
    }
}

/// The name of a data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataKey(pub Ulid);

/// Every key of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `berth.json`: the format's version, the bucket's id, the key for upload ids.
    Format,
    /// `data/<2 hex>/<ulid>`: the bytes of one blob, or of what an upload has put aside.
    Data(DataKey),
    /// `repos/<name>/_blobs/<digest>/<ulid>.<data>.<size>`: a link; the object is empty, the key says it all.
    Link {
        /// The repository that may read the blob.
        repository: RepositoryName,
        /// The blob.
        digest: Digest,
        /// The link's own name.
        link: Ulid,
        /// Where the bytes are.
        data: DataKey,
        /// How many they are.
        size: u64,
    },
    /// `repos/<name>/_manifests/<digest>/<ulid>`: a manifest's exact bytes.
    Manifest {
        /// The repository that has it.
        repository: RepositoryName,
        /// What it hashes to.
        digest: Digest,
        /// The object's own name.
        object: Ulid,
    },
    /// `repos/<name>/_tags/<tag>/<revision>-<deadline>-<digest|deleted>`: what a tag was made to point at.
    Tag {
        /// The tag's repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// Its position in the tag's history.
        revision: Revision,
        /// It counts if the store wrote it no later than this.
        deadline: StoreTime,
        /// The manifest; `None` says that the tag was deleted.
        to: Option<Digest>,
    },
    /// `accounts/<name>/<revision>-<deadline>` or `rules/…`: what was granted at run time; with `-deleted`
    /// behind it, that it no longer is.
    Entry {
        /// Whether it is an account or a rule.
        roster: RosterList,
        /// Its name.
        name: EntryName,
        /// Its position in the entry's history.
        revision: Revision,
        /// It counts if the store wrote it no later than this.
        deadline: StoreTime,
        /// Whether it says that the entry is gone.
        deleted: bool,
    },
    /// `epochs/<n>`: an index that was once believed.
    Epoch(EpochNumber),
    /// `checkpoints/<endpoint>/<ulid>`: how far an endpoint was told what happened. The greatest is the newest.
    Checkpoint {
        /// The endpoint.
        endpoint: EntryName,
        /// The object's own name.
        checkpoint: Ulid,
    },
    /// `probe/<ulid>`: written and removed at a start, to see whether the store lets us. Nothing reads it.
    Probe(Ulid),
}

/// What a repository keeps, each under a folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Links.
    Blobs,
    /// Manifests.
    Manifests,
    /// Tag revisions.
    Tags,
}

/// Where all epochs are listed.
pub const EPOCHS: &str = "epochs/";
/// Where all repositories are listed.
pub const REPOSITORIES: &str = "repos/";
/// Where all data objects are listed.
pub const DATA: &str = "data/";
/// Where all checkpoints are.
pub const ALL_CHECKPOINTS: &str = "checkpoints/";
/// Where probes are.
const PROBES: &str = "probe/";

impl Folder {
    fn as_str(self) -> &'static str {
        match self {
            Self::Blobs => "_blobs",
            Self::Manifests => "_manifests",
            Self::Tags => "_tags",
        }
    }
}

/// The prefix under which one repository keeps its links, manifests or tags.
pub fn folder(repository: &RepositoryName, folder: Folder) -> String {
    format!("{REPOSITORIES}{repository}/{}/", folder.as_str())
}

/// Where the checkpoints of an endpoint are listed, oldest first.
pub fn checkpoints(endpoint: &EntryName) -> String {
    format!("{ALL_CHECKPOINTS}{endpoint}/")
}

/// The prefix of one tag's history, newest first.
pub fn history(repository: &RepositoryName, tag: &Tag) -> String {
    format!("{REPOSITORIES}{repository}/_tags/{tag}/")
}

impl fmt::Display for EpochNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.generation, self.random)
    }
}

impl FromStr for EpochNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = fixed_hex(text).ok_or_else(|| format!("{text:?} is not the number of an epoch"))?;
        Ok(Self { generation: (number >> 32) as u32, random: number as u32 })
    }
}

impl TryFrom<String> for EpochNumber {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<EpochNumber> for String {
    fn from(epoch: EpochNumber) -> Self {
        epoch.to_string()
    }
}

/// Ascending: 16 hex digits of the epoch, 16 of the counter. In keys it stands complemented.
impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:016x}", self.epoch, self.counter)
    }
}

impl FromStr for Revision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a revision");
        let (epoch, counter) = text.split_at_checked(16).ok_or_else(invalid)?;
        Ok(Self { epoch: epoch.parse().map_err(|_| invalid())?, counter: fixed_hex(counter).ok_or_else(invalid)? })
    }
}

impl Revision {
    /// As it stands in a key: the complement, so that the newest is listed first.
    fn complemented(self) -> String {
        let Self { epoch: EpochNumber { generation, random }, counter } = self;
        format!("{:08x}{:08x}{:016x}", !generation, !random, !counter)
    }

    fn from_complemented(text: &str) -> Option<Self> {
        let Self { epoch: EpochNumber { generation, random }, counter } = text.parse().ok()?;
        Some(Self { epoch: EpochNumber { generation: !generation, random: !random }, counter: !counter })
    }
}

impl fmt::Display for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = u128::from(self.0) as u8;
        write!(f, "{DATA}{folder:02x}/{}", self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format => f.write_str("berth.json"),
            Self::Data(data) => data.fmt(f),
            Self::Link { repository, digest, link, data, size } => {
                write!(f, "{REPOSITORIES}{repository}/_blobs/{digest}/{link}.{}.{size}", data.0)
            }
            Self::Manifest { repository, digest, object } => {
                write!(f, "{REPOSITORIES}{repository}/_manifests/{digest}/{object}")
            }
            Self::Tag { repository, tag, revision, deadline, to } => {
                let revision = revision.complemented();
                write!(f, "{REPOSITORIES}{repository}/_tags/{tag}/{revision}-{:013}-", deadline.0)?;
                match to {
                    Some(digest) => digest.fmt(f),
                    None => f.write_str("deleted"),
                }
            }
            Self::Entry { roster, name, revision, deadline, deleted } => {
                let ending = if *deleted { "-deleted" } else { "" };
                let revision = revision.complemented();
                write!(f, "{}/{name}/{revision}-{:013}{ending}", roster.as_str(), deadline.0)
            }
            Self::Epoch(number) => write!(f, "{EPOCHS}{number}"),
            Self::Checkpoint { endpoint, checkpoint } => write!(f, "{ALL_CHECKPOINTS}{endpoint}/{checkpoint}"),
            Self::Probe(probe) => write!(f, "{PROBES}{probe}"),
        }
    }
}

impl Key {
    /// Reads a key back; `None` for what is not ours, which every reader of a listing passes over.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "berth.json" {
            return Some(Self::Format);
        }
        if let Some(number) = text.strip_prefix(EPOCHS) {
            return Some(Self::Epoch(number.parse().ok()?));
        }
        if let Some(rest) = text.strip_prefix(ALL_CHECKPOINTS) {
            let (endpoint, checkpoint) = rest.split_once('/')?;
            return Some(Self::Checkpoint { endpoint: endpoint.parse().ok()?, checkpoint: parse_ulid(checkpoint)? });
        }
        if let Some(probe) = text.strip_prefix(PROBES) {
            return Some(Self::Probe(parse_ulid(probe)?));
        }
        if let Some(rest) = text.strip_prefix(DATA) {
            let data = DataKey(parse_ulid(rest.get(3..)?)?);
            return (data.to_string() == text).then_some(Self::Data(data));
        }
        let key = match text.strip_prefix(REPOSITORIES) {
            Some(rest) => Self::parse_in_repository(rest)?,
            None => Self::parse_entry(text)?,
        };
        // Numbers can be spelled in more ways than ours (`+7`, `007`), and who removed such a key would
        // remove another one.
        (key.to_string() == text).then_some(key)
    }

    fn parse_entry(text: &str) -> Option<Self> {
        let roster = RosterList::ALL.into_iter().find(|roster| text.starts_with(&roster.prefix()))?;
        let (name, leaf) = text.strip_prefix(&roster.prefix())?.split_once('/')?;
        let (leaf, deleted) = leaf.strip_suffix("-deleted").map_or((leaf, false), |leaf| (leaf, true));
        let (revision, deadline) = leaf.split_once('-')?;
        let revision = Revision::from_complemented(revision)?;
        Some(Self::Entry { roster, name: name.parse().ok()?, revision, deadline: parse_deadline(deadline)?, deleted })
    }

    fn parse_in_repository(rest: &str) -> Option<Self> {
        // The folder is the third component from the end, in all three kinds.
        let (rest, leaf) = rest.rsplit_once('/')?;
        let (rest, middle) = rest.rsplit_once('/')?;
        let (repository, folder) = rest.rsplit_once('/')?;
        let repository = repository.parse().ok()?;
        match folder {
            "_blobs" => {
                let mut parts = leaf.split('.');
                let (link, data, size) = (parts.next()?, parts.next()?, parts.next()?);
                if parts.next().is_some() {
                    return None;
                }
                let digest = middle.parse().ok()?;
                let (link, data) = (parse_ulid(link)?, DataKey(parse_ulid(data)?));
                Some(Self::Link { repository, digest, link, data, size: size.parse().ok()? })
            }
            "_manifests" => {
                Some(Self::Manifest { repository, digest: middle.parse().ok()?, object: parse_ulid(leaf)? })
            }
            "_tags" => {
                let mut parts = leaf.splitn(3, '-');
                let revision = Revision::from_complemented(parts.next()?)?;
                let deadline = parse_deadline(parts.next()?)?;
                let to = match parts.next()? {
                    "deleted" => None,
                    digest => Some(digest.parse().ok()?),
                };
                Some(Self::Tag { repository, tag: middle.parse().ok()?, revision, deadline, to })
            }
            _ => None,
        }
    }
}

/// The 13 digits of a deadline.
fn parse_deadline(digits: &str) -> Option<StoreTime> {
    if digits.len() == 13 { digits.parse().ok().map(StoreTime) } else { None }
}

/// A ULID in its one canonical spelling.
fn parse_ulid(text: &str) -> Option<Ulid> {
    Ulid::from_string(text).ok().filter(|ulid| ulid.to_string() == text)
}

/// Exactly 16 lower-case hex digits.
fn fixed_hex(text: &str) -> Option<u64> {
    let good = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if good { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> EntryName {
        "ci-1.deploy".parse().expect("name")
    }

    fn keys() -> Vec<Key> {
        let repository: RepositoryName = "team/app".parse().expect("name");
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let revision = Revision { epoch: EpochNumber { generation: 3, random: 0xdead_beef }, counter: 42 };
        let tag: Tag = "1.0-rc".parse().expect("tag");
        let deadline = StoreTime(1_790_000_000_123);
        vec![
            Key::Format,
            Key::Data(DataKey(Ulid::r#gen())),
            Key::Link {
                repository: repository.clone(),
                digest: digest.clone(),
                link: Ulid::r#gen(),
                data: DataKey(Ulid::r#gen()),
                size: 7,
            },
            Key::Manifest { repository: repository.clone(), digest: digest.clone(), object: Ulid::r#gen() },
            Key::Tag { repository: repository.clone(), tag: tag.clone(), revision, deadline, to: Some(digest) },
            Key::Tag { repository, tag, revision, deadline, to: None },
            Key::Entry { roster: RosterList::Accounts, name: name(), revision, deadline, deleted: false },
            Key::Entry { roster: RosterList::Rules, name: name(), revision, deadline, deleted: true },
            Key::Epoch(revision.epoch),
            Key::Checkpoint { endpoint: name(), checkpoint: Ulid::r#gen() },
            Key::Probe(Ulid::r#gen()),
        ]
    }

    #[test]
    fn every_key_reads_back_as_itself() {
        for key in keys() {
            assert_eq!(Key::parse(&key.to_string()), Some(key.clone()), "{key}");
        }
    }

    #[test]
    fn what_is_not_ours_is_passed_over() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"x");
        let ulid = Ulid::r#gen();
        let link = |size: &str| format!("repos/a/_blobs/{digest}/{ulid}.{ulid}.{size}");
        assert!(Key::parse(&link("7")).is_some());
        for foreign in [
            "",
            "/",
            "data/",
            "data/zz/x",
            "epochs/1",
            "repos/a/_tags/t/x",
            "repos/_tags/t/x",
            "repos/A/_blobs/x/y",
            "lost+found",
            "checkpoints/ci",
            "checkpoints/ci/1",
            "checkpoints/a/b/01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "accounts/ci",
            "accounts/ci/x",
            "accounts/a/b/ffffffffffffffffffffffffffffffff-1790000000123",
            "rules/A/ffffffffffffffffffffffffffffffff-1790000000123",
            "rules/a/ffffffffffffffffffffffffffffffff-+790000000123",
            "rules/a/ffffffffffffffffffffffffffffffff-1790000000123-gone",
            &link("+7"),
            &link("07"),
        ] {
            assert_eq!(Key::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn newer_revisions_are_listed_first() {
        let older = Revision { epoch: EpochNumber { generation: 1, random: 9 }, counter: 5 };
        let newer = [
            Revision { counter: 6, ..older },
            Revision { epoch: EpochNumber { generation: 1, random: 10 }, counter: 0 },
            Revision { epoch: EpochNumber { generation: 2, random: 0 }, counter: 0 },
        ];
        for newer in newer {
            assert!(newer > older && newer.complemented() < older.complemented());
            assert!(newer.to_string() > older.to_string());
        }
    }
}
