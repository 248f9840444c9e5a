//! Garbage: what the bucket holds and nothing needs, found by looking at its objects one page after the other.
//!
//! It only reads; [`super::round`] throws away what is found here. What it says may be outdated a moment later,
//! so whoever acts on it checks it once more, in the batch that makes it trash.
//!
//! An object is noted in the index before it is written (an attempt, an upload, an intent), and the note becomes
//! a fact in one batch. So who reads the notes first and the facts after them, and finds the object in neither,
//! knows that it belongs to nothing, and never will. The one exception is what an upload puts aside beside its
//! note: see [`crate::upload`], which trusts none that is older than the grace.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use bytes::Bytes;
use ulid::Ulid;

use crate::{
    epoch::Lease,
    error::Result,
    index::{
        Ask, Shard,
        facts::{
            self, AttemptFact, DataFact, DataState, Found, LinkFact, ManifestFact, TrashFact, UploadFact, UploadState,
        },
    },
    oci::{Digest, RepositoryName},
    registry::{Registry, ask},
    storage::{DataKey, Key, Page, Stat, StoreTime},
};

/// How many objects are looked up at once: each takes up to four questions of one snapshot.
const AT_ONCE: usize = 100;

/// How many uploads' records are read at once: one with ten thousand parts is a megabyte.
const UPLOADS_AT_ONCE: usize = 16;

/// One thing that nothing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// The object; for [`Why::StaleUse`] the one that is used.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
    /// Why it is garbage.
    pub why: Why,
}

/// Why something is garbage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// A link that no manifest needs, and that nobody has asked for within the grace. With its exact fact.
    Unneeded(Bytes),
    /// Data that no link uses any more.
    Unused,
    /// An object that the index knows nothing of: its writer stopped, or it was written too late.
    Unknown,
    /// A tag's revision that came too late to count.
    Late,
    /// Data is said to be used by a link that doesn't exist. The use is removed, not the object.
    StaleUse(RepositoryName, Ulid),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unneeded(_) => f.write_str("no manifest needs this link, and nobody asked for it within the grace"),
            Self::Unused => f.write_str("no link uses these bytes"),
            Self::Unknown => f.write_str("the index knows nothing of it"),
            Self::Late => f.write_str("it was written after its deadline, so it never counted"),
            Self::StaleUse(repository, link) => {
                write!(f, "{repository} is said to use it by link {link}, which doesn't exist")
            }
        }
    }
}

impl Found {
    /// Counts one more.
    pub fn add(&mut self, garbage: &Garbage) {
        match (&garbage.key, &garbage.why) {
            (_, Why::StaleUse(..)) => {
                self.uses += 1;
                return;
            }
            (Key::Link { .. }, _) => self.links += 1,
            (Key::Manifest { .. }, _) => self.manifests += 1,
            (Key::Tag { .. }, _) => self.revisions += 1,
            (Key::Data(_), _) => self.data += 1,
            (Key::Format | Key::Entry { .. } | Key::Epoch(_) | Key::Checkpoint { .. } | Key::Probe(_), _) => {}
        }
        self.bytes += garbage.size;
    }
}

/// An object as it was listed.
type Listed = (Key, Stat);

/// A look at the bucket, under one lease.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    lease: &'a Lease,
    /// What was written later is too young to be judged.
    newest: StoreTime,
}

impl<'a> Look<'a> {
    /// `None` while the epoch is younger than the grace: no age counts from before it.
    pub(crate) fn new(registry: &Registry, lease: &'a Lease) -> Option<Self> {
        let newest = registry.store.now().minus(registry.options.grace);
        (lease.record.at < newest).then_some(Self { lease, newest })
    }

    /// What is garbage on a page of a listing.
    pub(crate) async fn at(&self, page: &Page) -> Result<Vec<Garbage>> {
        let mut shards: BTreeMap<Shard, [Vec<Listed>; 3]> = BTreeMap::new();
        let mut garbage = Vec::new();
        for (text, stat) in &page.objects {
            let Some(key) = Key::parse(text).filter(|_| stat.modified < self.newest) else { continue };
            let (shard, kind) = match &key {
                Key::Data(data) => (self.lease.names.home_of(*data), 0),
                Key::Link { repository, .. } => (self.lease.names.shard_of(repository), 1),
                Key::Manifest { repository, .. } => (self.lease.names.shard_of(repository), 2),
                Key::Tag { .. } => {
                    garbage.extend(self.late(key, *stat));
                    continue;
                }
                Key::Format | Key::Entry { .. } | Key::Epoch(_) | Key::Checkpoint { .. } | Key::Probe(_) => continue,
            };
            shards.entry(shard).or_default()[kind].push((key, *stat));
        }
        for (shard, [data, links, manifests]) in shards {
            for listed in links.chunks(AT_ONCE) {
                garbage.extend(self.links(shard, listed).await?);
            }
            for listed in manifests.chunks(AT_ONCE) {
                garbage.extend(self.manifests(shard, listed).await?);
            }
            garbage.extend(self.data(shard, &data).await?);
        }
        Ok(garbage)
    }

    /// A revision that doesn't count never will. One of an older epoch is left alone: in a bucket that was copied
    /// none counts until they are written anew (see [`crate::reconcile::restamp`]).
    fn late(&self, key: Key, stat: Stat) -> Option<Garbage> {
        let Key::Tag { revision, deadline, .. } = &key else { return None };
        let is_late = revision.epoch == self.lease.epoch && stat.modified > *deadline;
        is_late.then_some(Garbage { key, size: stat.size, why: Why::Late })
    }

    /// Links of one shard that no manifest needs, or that the shard doesn't know.
    async fn links(&self, shard: Shard, listed: &[Listed]) -> Result<Vec<Garbage>> {
        let names = &self.lease.names;
        let mut asks = Vec::new();
        for (key, _) in listed {
            let Key::Link { repository, digest, link, .. } = key else { continue };
            asks.push(Ask::Value(names.link(repository, digest)));
            asks.push(Ask::First(names.refs(repository, digest)));
            asks.push(Ask::Value(names.attempt(*link)));
            asks.push(Ask::Value(names.trashed(*link)));
        }
        let answers = ask(self.lease, shard, asks).await?;
        let mut garbage = Vec::new();
        for ((key, stat), answers) in listed.iter().zip(answers.chunks(4)) {
            let Key::Link { link, .. } = key else { continue };
            let [fact, needed_by, attempt, trash] = answers else { continue };
            let known = fact.as_ref().map(|value| facts::decode::<LinkFact>(value)).transpose()?;
            let why = match known.filter(|fact| fact.link == *link) {
                Some(fact) if needed_by.is_some() || fact.renewed >= self.newest => continue,
                Some(_) => Why::Unneeded(answers[0].clone().unwrap_or_default()),
                None if attempt.is_some() || trash.is_some() => continue,
                None => Why::Unknown,
            };
            garbage.push(Garbage { key: key.clone(), size: stat.size, why });
        }
        Ok(garbage)
    }

    /// Manifests' objects of one shard that it doesn't know, of manifests that nobody is pushing.
    async fn manifests(&self, shard: Shard, listed: &[Listed]) -> Result<Vec<Garbage>> {
        let names = &self.lease.names;
        let mut asks = Vec::new();
        for (key, _) in listed {
            let Key::Manifest { repository, digest, .. } = key else { continue };
            asks.push(Ask::Value(names.manifest(repository, digest)));
            // Intents come before tags.
            asks.push(Ask::First(names.names_of(repository, digest)));
        }
        let answers = ask(self.lease, shard, asks).await?;
        let mut garbage = Vec::new();
        for ((key, stat), answers) in listed.iter().zip(answers.chunks(2)) {
            let Key::Manifest { object, .. } = key else { continue };
            let [fact, named_by] = answers else { continue };
            let known = fact.as_ref().map(|value| facts::decode::<ManifestFact>(value)).transpose()?;
            let is_pushed = named_by.as_ref().is_some_and(|first| first.starts_with(b"i:"));
            if !is_pushed && known.is_none_or(|fact| fact.object != *object) {
                garbage.push(Garbage { key: key.clone(), size: stat.size, why: Why::Unknown });
            }
        }
        Ok(garbage)
    }

    /// Data objects of one home shard that no link uses, or that it doesn't know.
    async fn data(&self, home: Shard, listed: &[Listed]) -> Result<Vec<Garbage>> {
        let (mut garbage, mut used, mut unknown) = (Vec::new(), Vec::new(), HashMap::new());
        for listed in listed.chunks(AT_ONCE) {
            for (data, stat, fact, user) in self.data_facts(home, listed).await? {
                match (fact, user) {
                    (None, _) => {
                        unknown.insert(data, stat);
                    }
                    // Its record in the trash says what is to be done.
                    (Some(DataFact { state: DataState::Dying, .. }), _) => {}
                    (Some(_), None) => {
                        garbage.push(Garbage { key: Key::Data(data), size: stat.size, why: Why::Unused })
                    }
                    (Some(fact), Some(user)) => used.push((data, fact.digest, user)),
                }
            }
        }
        garbage.extend(self.unknown_data(home, unknown).await?);
        for (data, digest, first) in used {
            if !self.is_known(data, &digest, &first).await? {
                garbage.extend(self.stale_uses(home, data, &digest).await?);
            }
        }
        Ok(garbage)
    }

    /// What a home shard knows of data objects, with the first user of each.
    async fn data_facts(
        &self,
        home: Shard,
        listed: &[Listed],
    ) -> Result<Vec<(DataKey, Stat, Option<DataFact>, Option<String>)>> {
        let names = &self.lease.names;
        let of = |(key, stat): &Listed| match key {
            Key::Data(data) => Some((*data, *stat)),
            _ => None,
        };
        let listed: Vec<(DataKey, Stat)> = listed.iter().filter_map(of).collect();
        let asks = listed.iter().flat_map(|(data, _)| [Ask::Value(names.data(*data)), Ask::First(names.users(*data))]);
        let answers = ask(self.lease, home, asks.collect()).await?;
        let mut found = Vec::new();
        for ((data, stat), answers) in listed.into_iter().zip(answers.chunks(2)) {
            let [fact, user] = answers else { continue };
            let fact = fact.as_ref().map(|value| facts::decode(value)).transpose()?;
            let user = user.as_ref().map(|user| String::from_utf8_lossy(user).into_owned());
            found.push((data, stat, fact, user));
        }
        Ok(found)
    }

    /// Those of which the home shard has no note either. A note may have become a fact meanwhile, so the facts are
    /// asked for once more, after the notes.
    async fn unknown_data(&self, home: Shard, mut unknown: HashMap<DataKey, Stat>) -> Result<Vec<Garbage>> {
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        self.strike_noted(home, &mut unknown).await?;
        let left: Vec<Listed> = unknown.into_iter().map(|(data, stat)| (Key::Data(data), stat)).collect();
        let mut garbage = Vec::new();
        for listed in left.chunks(AT_ONCE) {
            for (data, stat, fact, _) in self.data_facts(home, listed).await? {
                if fact.is_none() {
                    garbage.push(Garbage { key: Key::Data(data), size: stat.size, why: Why::Unknown });
                }
            }
        }
        Ok(garbage)
    }

    /// Strikes out what the shard's uploads, attempts and trash name, in the order in which a note moves on.
    async fn strike_noted(&self, shard: Shard, unknown: &mut HashMap<DataKey, Stat>) -> Result<()> {
        let names = &self.lease.names;
        self.each(shard, &names.uploads(), UPLOADS_AT_ONCE, |value| {
            let UploadState::Open(open) = facts::decode::<UploadFact>(value)?.state else { return Ok(()) };
            let aside = open.aside.iter().map(|aside| aside.data);
            for data in aside.chain(open.parts.iter().map(|parts| parts.data)) {
                unknown.remove(&data);
            }
            Ok(())
        })
        .await?;
        self.each(shard, &names.attempts(), AT_ONCE, |value| {
            unknown.remove(&facts::decode::<AttemptFact>(value)?.data);
            Ok(())
        })
        .await?;
        self.each(shard, &names.trash(), AT_ONCE, |value| {
            for key in facts::decode::<TrashFact>(value)?.keys {
                if let Some(Key::Data(data)) = Key::parse(&key) {
                    unknown.remove(&data);
                }
            }
            Ok(())
        })
        .await
    }

    /// Shows each value of a group, page by page.
    async fn each(
        &self,
        shard: Shard,
        group: &str,
        limit: usize,
        mut show: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = self.lease.scan(shard, group, after.as_deref(), limit).await?;
            page.iter().try_for_each(|(_, value)| show(value))?;
            match page.last() {
                Some((last, _)) if page.len() == limit => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Whether a user of a data object is a link that its repository has, is about to have, or is about to lose.
    /// An attempt is noted before it becomes a user, and a link's trash outlives its use.
    async fn is_known(&self, data: DataKey, digest: &Digest, user: &str) -> Result<bool> {
        let Some((repository, link)) = parse_user(user) else { return Ok(true) };
        let names = &self.lease.names;
        let asks = vec![
            Ask::Value(names.link(&repository, digest)),
            Ask::Value(names.attempt(link)),
            Ask::Value(names.trashed(link)),
        ];
        let answers = ask(self.lease, names.shard_of(&repository), asks).await?;
        let fact = answers[0].as_ref().map(|value| facts::decode::<LinkFact>(value)).transpose()?;
        let is_linked = fact.is_some_and(|fact| fact.link == link && fact.data == data);
        Ok(is_linked || answers[1].is_some() || answers[2].is_some())
    }

    /// The uses of a data object that no link makes, up to the first that one does: that one keeps the data.
    async fn stale_uses(&self, home: Shard, data: DataKey, digest: &Digest) -> Result<Vec<Garbage>> {
        let group = self.lease.names.users(data);
        let mut after: Option<String> = None;
        let mut stale = Vec::new();
        loop {
            let page = self.lease.scan(home, &group, after.as_deref(), AT_ONCE).await?;
            for (user, value) in &page {
                // The same bytes may be linked by a digest of another algorithm.
                let by = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                if self.is_known(data, by.as_ref().unwrap_or(digest), user).await? {
                    return Ok(stale);
                }
                if let Some((repository, link)) = parse_user(user) {
                    stale.push(Garbage { key: Key::Data(data), size: 0, why: Why::StaleUse(repository, link) });
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == AT_ONCE => after = Some(last.clone()),
                _ => return Ok(stale),
            }
        }
    }
}

/// A user's repository and link.
fn parse_user(user: &str) -> Option<(RepositoryName, Ulid)> {
    let (repository, link) = user.rsplit_once('/')?;
    Some((repository.parse().ok()?, Ulid::from_string(link).ok()?))
}
