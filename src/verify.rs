//! Verifying: what index and bucket say of all of a repository, compared both ways, and mended where that is safe.
//!
//! The bucket is listed first and the index read after it, so whatever a request is just doing shows as done, or as
//! noted (attempts, intents, trash). What disagrees all the same is looked at once more before it is told: nothing
//! that goes on looks the same twice. What an orphan of a dead writer may be, and no link or tag needs, is left to
//! the collection.
//!
//! Nothing is ever removed from the bucket here, and nothing in the index is taken back: what the bucket has lost is
//! told, and only a new epoch forgets it.

mod mend;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use ulid::Ulid;

use crate::{
    error::{Error, Result},
    event::Cause,
    index::{
        Ask, Fact, Write,
        facts::{self, DataFact, DataState, LinkFact, ManifestFact, TagFact, TagState, Target, TrashFact},
    },
    oci::{Digest, Manifest, RepositoryName, Tag, manifest::MAX_MANIFEST},
    reconcile::{Newest, Place, SIDE_BY_SIDE, newest_of_each},
    registry::{Registry, Repository, ask, found},
    storage::{DataKey, Key, key::Folder, read_small},
};

/// By whom a manifest is pushed that the index had lost.
const BY: &str = "berth index verify";

/// What index and bucket say differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Disagreement {
    /// Of which repository.
    pub repository: RepositoryName,
    /// Of what in it.
    pub about: About,
}

/// What a disagreement is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum About {
    /// The bucket has a link whose bytes are there, and the index has none of this blob.
    LinkUnknown(Linked),
    /// The index has a link of which the bucket has no object, though the bytes are there.
    LinkGone(Linked),
    /// The bytes of a link are not in the bucket, or fewer or more than there should be.
    DataGone(Linked),
    /// The bytes' home shard doesn't know them, or takes them for something else: they would be collected.
    DataUnknown(Linked),
    /// The bytes' home shard doesn't know that this link needs them: they could be collected.
    UserUnknown(Linked),
    /// The bucket has a whole manifest that the index doesn't know.
    ManifestUnknown(Digest, Ulid),
    /// The bucket has no object of a manifest, or one with other bytes.
    ManifestGone(Digest),
    /// The index lacks what follows from a manifest: the references that protect its blobs, itself as a referrer, its
    /// repository in the catalog.
    ManifestFacts(Digest),
    /// A manifest needs a blob that neither the index nor the bucket has a link of.
    BlobGone(Digest, Digest),
    /// The bucket has a newer revision of a tag that counts, or another one.
    TagBehind(Tag, Option<String>),
    /// The bucket has lost the revision that the index has of a tag.
    TagGone(Tag, String),
    /// A tag's manifest doesn't know that the tag points at it: who deletes the manifest would leave the tag.
    TagUnnamed(Tag),
    /// A tag points at a manifest that the index doesn't know.
    TagDangles(Tag, Digest),
}

impl About {
    fn unknown_link(&self) -> Option<&Digest> {
        match self {
            Self::LinkUnknown(of) => Some(&of.digest),
            _ => None,
        }
    }

    fn unknown_manifest(&self) -> Option<&Digest> {
        match self {
            Self::ManifestUnknown(digest, _) => Some(digest),
            _ => None,
        }
    }
}

/// A link, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Linked {
    /// Of which blob.
    pub digest: Digest,
    /// Its own name.
    pub link: Ulid,
    /// Where the bytes are.
    pub data: DataKey,
    /// How many they are.
    pub size: u64,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.repository)?;
        match &self.about {
            About::LinkUnknown(of) => {
                write!(f, "the index knows nothing of blob {}, which the bucket links", of.digest)
            }
            About::LinkGone(of) => write!(f, "the bucket has no object of link {} of blob {}", of.link, of.digest),
            About::DataGone(of) => write!(f, "blob {}: the bucket has no {} of {} bytes", of.digest, of.data, of.size),
            About::DataUnknown(of) => {
                write!(f, "blob {}: the index doesn't know {}, and would collect it", of.digest, of.data)
            }
            About::UserUnknown(of) => {
                write!(f, "blob {}: the index doesn't know that {} is needed", of.digest, of.data)
            }
            About::ManifestUnknown(digest, _) => write!(f, "the index doesn't know manifest {digest}"),
            About::ManifestGone(digest) => write!(f, "the bucket doesn't have the bytes of manifest {digest}"),
            About::ManifestFacts(digest) => write!(f, "the index lacks what follows from manifest {digest}"),
            About::BlobGone(digest, needs) => write!(f, "manifest {digest} needs blob {needs}, which isn't there"),
            About::TagBehind(tag, Some(index)) => {
                write!(f, "tag {tag}: the index has {index}, and the bucket another revision that counts")
            }
            About::TagBehind(tag, None) => write!(f, "the index doesn't know tag {tag}"),
            About::TagGone(tag, index) => write!(f, "tag {tag}: the bucket has no {index}, which the index has"),
            About::TagUnnamed(tag) => write!(f, "tag {tag}: the manifest that it points at doesn't know of it"),
            About::TagDangles(tag, digest) => {
                write!(f, "tag {tag} points at manifest {digest}, which the index doesn't know")
            }
        }
    }
}

/// Whether to mend what can be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Only tell.
    Nothing,
    /// Put what the bucket proves into the index.
    Index,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many repositories were looked at.
    pub repositories: usize,
    /// How many things disagreed.
    pub found: usize,
    /// How many of them still do.
    pub left: usize,
}

/// Compares index and bucket, of these repositories or, where none are named, of all; beside whatever goes on.
/// `tell` hears of each disagreement, and whether it was mended.
///
/// # Errors
/// The index isn't believed, or doesn't know the whole bucket yet.
pub async fn verify(
    registry: &Arc<Registry>,
    names: Vec<RepositoryName>,
    repair: Repair,
    mut tell: impl FnMut(&Disagreement, bool),
) -> Result<Verified> {
    if !registry.is_settled().await? {
        return Err(Error::unavailable("the index is still being filled from the bucket"));
    }
    let names = if names.is_empty() { all(registry).await? } else { BTreeSet::from_iter(names) };
    let mut verified = Verified { repositories: names.len(), ..Verified::default() };
    for name in names {
        let mut told = HashSet::new();
        verified.left += loop {
            // A handle of its own each time: this may go on for longer than an epoch lasts.
            let repository = registry.repository(&name).await?.caused_by(Cause::mending(BY));
            let disagreements = repository.look_twice().await?;
            let mut mended = 0;
            for disagreement in &disagreements {
                if told.insert(disagreement.clone()) {
                    let is_mended = repair == Repair::Index && repository.mend(&disagreement.about).await?;
                    mended += usize::from(is_mended);
                    tell(disagreement, is_mended);
                }
            }
            // What was mended may have hidden something else, and is looked at again in any case.
            if mended == 0 {
                break disagreements.len();
            }
        };
        verified.found += told.len();
    }
    Ok(verified)
}

/// All repositories that the bucket or the index knows of.
async fn all(registry: &Arc<Registry>) -> Result<BTreeSet<RepositoryName>> {
    let mut names = BTreeSet::new();
    let mut in_bucket = Place::default();
    while let Some(name) = in_bucket.next(registry).await? {
        names.insert(name);
    }
    let mut after: Option<RepositoryName> = None;
    loop {
        let (page, more) = registry.catalog(after.as_ref().map(RepositoryName::as_str), 1000, |_| true).await?;
        after = page.last().cloned();
        names.extend(page);
        if !more {
            return Ok(names);
        }
    }
}

/// What the bucket lists of links: by digest, each link.
type Links = HashMap<Digest, Vec<Linked>>;

impl Repository {
    /// What disagrees now, and did a moment before.
    async fn look_twice(&self) -> Result<Vec<Disagreement>> {
        let first = self.look().await?;
        if first.is_empty() {
            return Ok(Vec::new());
        }
        tokio::time::sleep(self.registry.options.timing.margin).await;
        let second = self.look().await?;
        let of_this = |about| Disagreement { repository: self.name.clone(), about };
        Ok(second.into_iter().filter(|about| first.contains(about)).map(of_this).collect())
    }

    /// What disagrees, or is just going on. Links come first, as manifests rest on them and tags on those: one that
    /// rests on what is lost is no more than a new index would leave out.
    async fn look(&self) -> Result<BTreeSet<About>> {
        let mut found = self.look_at_links(&self.listed_links().await?).await?;
        found.extend(self.look_at_manifests(&found).await?);
        found.extend(self.look_at_tags(&found).await?);
        Ok(found)
    }

    async fn listed_links(&self) -> Result<Links> {
        let mut links = Links::new();
        for (key, _) in self.listed(Folder::Blobs).await? {
            if let Key::Link { digest, link, data, size, .. } = key {
                links.entry(digest.clone()).or_default().push(Linked { digest, link, data, size });
            }
        }
        Ok(links)
    }

    /// All members of a group of this repository's, and their values.
    async fn members(&self, group: &str) -> Result<Vec<(String, bytes::Bytes)>> {
        let mut all: Vec<(String, bytes::Bytes)> = Vec::new();
        loop {
            let after = all.last().map(|(member, _)| member.clone());
            let page = self.lease.scan(self.shard, group, after.as_deref(), 1000).await?;
            let is_full = page.len() == 1000;
            all.extend(page);
            if !is_full {
                return Ok(all);
            }
        }
    }

    async fn look_at_links(&self, listed: &Links) -> Result<BTreeSet<About>> {
        let mut known: HashMap<Digest, Linked> = HashMap::new();
        for (digest, value) in self.members(&self.lease.names.links(&self.name)).await? {
            let LinkFact { link, data, size, .. } = facts::decode(&value)?;
            let digest: Digest = digest.parse()?;
            known.insert(digest.clone(), Linked { digest, link, data, size });
        }
        let indexed = known.values().map(|of| {
            let is_listed = listed.get(&of.digest).is_some_and(|links| links.contains(of));
            self.look_at_link(of, is_listed)
        });
        let mut found = side_by_side(indexed).await?;
        let unknown = listed.iter().filter(|(digest, _)| !known.contains_key(digest)).flat_map(|(_, links)| links);
        found.extend(side_by_side(unknown.map(|of| self.look_at_unknown_link(of))).await?);
        Ok(found)
    }

    async fn look_at_link(&self, of: &Linked, is_listed: bool) -> Result<Option<About>> {
        let stat = self.store().stat(&Key::Data(of.data)).await?;
        if stat.is_none_or(|stat| stat.size != of.size) {
            return Ok(Some(About::DataGone(of.clone())));
        }
        let names = &self.lease.names;
        let asks = vec![Ask::Value(names.data(of.data)), Ask::Value(names.user(of.data, &self.name, of.link))];
        let answers = ask(&self.lease, names.home_of(of.data), asks).await?;
        let fact = answers[0].as_ref().map(|value| facts::decode::<DataFact>(value)).transpose()?;
        Ok(match (fact.is_some_and(|fact| fact.is_live(of)), &answers[1]) {
            (false, _) => Some(About::DataUnknown(of.clone())),
            (true, None) => Some(About::UserUnknown(of.clone())),
            (true, Some(_)) => (!is_listed).then(|| About::LinkGone(of.clone())),
        })
    }

    /// A link whose bytes are not there is what a dead writer left.
    async fn look_at_unknown_link(&self, of: &Linked) -> Result<Option<About>> {
        let names = &self.lease.names;
        let asks = vec![
            Ask::Value(names.attempt(of.link)),
            Ask::Value(names.trashed(of.link)),
            Ask::Value(names.link(&self.name, &of.digest)),
        ];
        if self.ask(asks).await?.iter().any(Option::is_some) {
            return Ok(None);
        }
        let stat = self.store().stat(&Key::Data(of.data)).await?;
        Ok(stat.filter(|stat| stat.size == of.size).map(|_| About::LinkUnknown(of.clone())))
    }

    async fn look_at_manifests(&self, found: &BTreeSet<About>) -> Result<BTreeSet<About>> {
        let links: HashSet<&Digest> = found.iter().filter_map(About::unknown_link).collect();
        let listed = self.listed(Folder::Manifests).await?;
        let mut known = HashSet::new();
        for (digest, _) in self.members(&self.lease.names.manifests(&self.name)).await? {
            known.insert(digest.parse::<Digest>()?);
        }
        let mut found = side_by_side(known.iter().map(|digest| self.look_at_manifest(digest, &links))).await?;
        let unknown: Vec<(Digest, Ulid)> = listed
            .into_iter()
            .filter_map(|(key, _)| match key {
                Key::Manifest { digest, object, .. } if !known.contains(&digest) => Some((digest, object)),
                _ => None,
            })
            .collect();
        if !unknown.is_empty() {
            let trash = self.trashed_keys().await?;
            let looks =
                unknown.iter().map(|(digest, object)| self.look_at_unknown_manifest(digest, *object, &links, &trash));
            found.extend(side_by_side(looks).await?);
        }
        Ok(found)
    }

    /// What a manifest that the index knows lacks. Its facts are asked for once its bytes have said which they are.
    async fn look_at_manifest(&self, digest: &Digest, links: &HashSet<&Digest>) -> Result<Option<About>> {
        let fact = self.lease.names.manifest(&self.name, digest);
        let Some(value) = self.ask(vec![Ask::Value(fact)]).await?.pop().flatten() else { return Ok(None) };
        let there: ManifestFact = facts::decode(&value)?;
        let Some((manifest, size)) = self.read_manifest(digest, there.object).await? else {
            return Ok(Some(About::ManifestGone(digest.clone())));
        };
        if let Some(needs) = self.first_lost(&manifest, links).await? {
            return Ok(Some(About::BlobGone(digest.clone(), needs)));
        }
        let expected = self.facts_of(digest, &manifest, size, &there);
        let asks = expected.iter().map(|(fact, _)| Ask::Value(fact.clone())).collect();
        let answers = self.ask(asks).await?;
        let is_whole = expected.iter().zip(answers).all(|((_, expected), there)| there.as_ref() == Some(expected));
        Ok((!is_whole).then(|| About::ManifestFacts(digest.clone())))
    }

    /// The first blob that a manifest needs and that is linked neither in the index nor, beside it, in the bucket.
    async fn first_lost(&self, manifest: &Manifest, links: &HashSet<&Digest>) -> Result<Option<Digest>> {
        let link = |needs| Ask::Value(self.lease.names.link(&self.name, needs));
        let answers = self.ask(manifest.needs.iter().map(link).collect()).await?;
        let mut needs = manifest.needs.iter().zip(answers);
        Ok(needs.find(|(needs, link)| link.is_none() && !links.contains(needs)).map(|(needs, _)| needs.clone()))
    }

    /// A manifest and its size, from its bytes; nothing where the object is gone or has others.
    async fn read_manifest(&self, digest: &Digest, object: Ulid) -> Result<Option<(Manifest, u64)>> {
        let key = self.manifest_key(digest, object);
        let bytes = found(read_small(self.store(), &key, MAX_MANIFEST).await)?;
        let bytes = bytes.filter(|bytes| Digest::of(digest.algorithm(), bytes) == *digest);
        Ok(bytes.and_then(|bytes| Some((Manifest::parse(&bytes, None).ok()?, bytes.len() as u64))))
    }

    /// Every fact that follows from a manifest, and its value.
    fn facts_of(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        size: u64,
        there: &ManifestFact,
    ) -> Vec<(Fact, bytes::Bytes)> {
        let to = Target { digest: digest.clone(), media_type: manifest.media_type.clone(), size };
        let state = TagState { to: None, at: there.at, by: String::new() };
        let writes = self.manifest_facts(manifest, &to, there.object, &state);
        let put = |write| match write {
            Write::Put(fact, value) => Some((fact, value)),
            Write::PutNumbered(..) | Write::PutAtNumber(..) | Write::Raise(..) | Write::Delete(_) => None,
        };
        writes.into_iter().filter_map(put).collect()
    }

    /// The keys that wait to be removed in this repository's shard.
    async fn trashed_keys(&self) -> Result<HashSet<String>> {
        let mut keys = HashSet::new();
        for (_, value) in self.members(&self.lease.names.trash()).await? {
            keys.extend(facts::decode::<TrashFact>(&value)?.keys);
        }
        Ok(keys)
    }

    /// One that isn't whole, or whose blobs aren't, is what a dead writer left.
    async fn look_at_unknown_manifest(
        &self,
        digest: &Digest,
        object: Ulid,
        links: &HashSet<&Digest>,
        trash: &HashSet<String>,
    ) -> Result<Option<About>> {
        if trash.contains(&self.manifest_key(digest, object).to_string()) {
            return Ok(None);
        }
        let Some((manifest, _)) = self.read_manifest(digest, object).await? else { return Ok(None) };
        let names = &self.lease.names;
        // Intents come before tags.
        let asks = vec![Ask::Value(names.manifest(&self.name, digest)), Ask::First(names.names_of(&self.name, digest))];
        let answers = self.ask(asks).await?;
        let is_pushed = answers[1].as_ref().is_some_and(|first| first.starts_with(b"i:"));
        let is_unknown = answers[0].is_none() && !is_pushed && self.first_lost(&manifest, links).await?.is_none();
        Ok(is_unknown.then(|| About::ManifestUnknown(digest.clone(), object)))
    }

    async fn look_at_tags(&self, found: &BTreeSet<About>) -> Result<BTreeSet<About>> {
        let manifests: HashSet<&Digest> = found.iter().filter_map(About::unknown_manifest).collect();
        let listed = self.listed(Folder::Tags).await?;
        let mut newest = newest_of_each(listed.into_iter().filter(|(_, counts)| *counts));
        let mut tags: BTreeMap<Tag, Option<Newest>> = BTreeMap::new();
        for (tag, _) in self.members(&self.lease.names.tags(&self.name)).await? {
            let tag: Tag = tag.parse()?;
            let newest = newest.remove(&tag);
            tags.insert(tag, newest);
        }
        tags.extend(newest.into_iter().map(|(tag, newest)| (tag, Some(newest))));
        side_by_side(tags.iter().map(|(tag, newest)| self.look_at_tag(tag, newest.as_ref(), &manifests))).await
    }

    async fn look_at_tag(
        &self,
        tag: &Tag,
        newest: Option<&Newest>,
        manifests: &HashSet<&Digest>,
    ) -> Result<Option<About>> {
        let names = &self.lease.names;
        let asks = vec![Ask::Value(names.tag(&self.name, tag)), Ask::First(names.open(&self.name, tag))];
        let answers = self.ask(asks).await?;
        if answers[1].is_some() {
            // It is being moved, and the bucket answers.
            return Ok(None);
        }
        let Some(value) = &answers[0] else {
            // A deleted tag is forgotten in the end, and its last revision after it.
            let Some(digest) = newest.and_then(|newest| newest.to.as_ref()) else { return Ok(None) };
            let fact = Ask::Value(names.manifest(&self.name, digest));
            let is_whole = manifests.contains(digest) || self.ask(vec![fact]).await?[0].is_some();
            return Ok(is_whole.then(|| About::TagBehind(tag.clone(), None)));
        };
        let TagFact { revision, state } = TagFact::decode(value)?;
        let Some(newest) = newest.filter(|newest| newest.revision >= revision) else {
            return Ok(state.to.is_some().then(|| About::TagGone(tag.clone(), revision.to_string())));
        };
        let to = state.to.map(|to| to.digest);
        if newest.revision > revision || newest.to != to {
            return Ok(Some(About::TagBehind(tag.clone(), Some(revision.to_string()))));
        }
        let Some(digest) = to else { return Ok(None) };
        let name = Fact::new(names.names_of(&self.name, &digest), format!("t:{tag}"));
        let answers = self.ask(vec![Ask::Value(names.manifest(&self.name, &digest)), Ask::Value(name)]).await?;
        Ok(match (&answers[0], &answers[1]) {
            (None, _) => Some(About::TagDangles(tag.clone(), digest)),
            (Some(_), None) => Some(About::TagUnnamed(tag.clone())),
            (Some(_), Some(_)) => None,
        })
    }
}

impl DataFact {
    /// Whether this is live and the bytes of a link. The same bytes may be linked by digests of two algorithms.
    fn is_live(&self, of: &Linked) -> bool {
        let is_same = self.digest == of.digest || self.digest.algorithm() != of.digest.algorithm();
        self.state == DataState::Live && self.size == of.size && is_same
    }
}

/// Looks at many things, some of them at a time.
async fn side_by_side(
    looks: impl Iterator<Item = impl Future<Output = Result<Option<About>>>>,
) -> Result<BTreeSet<About>> {
    let found: Vec<Option<About>> = stream::iter(looks).buffer_unordered(SIDE_BY_SIDE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}
