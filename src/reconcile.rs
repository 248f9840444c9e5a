//! Reconciling: an empty index learns from the bucket what was acknowledged before it.
//!
//! By repository: links whose bytes are there, then manifests whose links are there, then tags, each by the
//! greatest revision that counts. Whoever needs a repository first reconciles it; one walk does the rest, and
//! then the shards are settled. It only ever adds what the shard doesn't know, so it may run beside pushes,
//! and twice.

mod walk;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use ulid::Ulid;

pub use crate::index::facts::{Adopted, Walked};
use crate::{
    error::{Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Write,
        facts::{
            self, DataFact, DataState, IntendedManifest, IntentFact, LinkFact, ManifestFact, TagFact, TagState, Target,
            TrashFact,
        },
    },
    manifest::needed,
    oci::{Digest, Manifest, Tag, manifest::MAX_MANIFEST},
    outbox::{self, Coverage},
    registry::{Registry, Repository, found},
    roster,
    storage::{
        DataKey, Key, Revision, StoreTime,
        key::{self, EntryName},
        read_small,
    },
    tag::Reserved,
};

pub(crate) use walk::{AT_ONCE, Place};
pub use walk::{Step, status, step, walk};

/// How many links or manifests are looked at side by side.
pub(crate) const SIDE_BY_SIDE: usize = 32;

/// Makes the tags and the roster of a bucket that is a copy count: where copying has lost the time at which the newest
/// revision of one was written, a revision of this epoch is written that says the same. Only for a bucket that
/// nobody else is using, before [`fn@walk`]. Returns how many that were.
///
/// A write that was never acknowledged, and came too late, may be what it finds: then it happens now.
pub async fn restamp(registry: &Arc<Registry>) -> Result<usize> {
    let mut restamped = roster::restamp(registry).await?;
    let mut place = Place::default();
    while let Some(name) = place.next(registry).await? {
        restamped += registry.unreconciled(&name).await?.restamp_tags().await?;
    }
    Ok(restamped)
}

impl Repository {
    /// Makes sure that what the index misses is not there, and says what that took.
    pub(crate) async fn ensure_reconciled(&self) -> Result<Adopted> {
        if self.is_reconciled().await? {
            return Ok(Adopted::default());
        }
        let turn = {
            let mut reconciling = self.registry.reconciling.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(reconciling.entry(self.name.clone()).or_default())
        };
        let _turn = turn.lock().await;
        let result = match self.is_reconciled().await {
            Ok(false) => self.adopt_all().await,
            other => other.map(|_| Adopted::default()),
        };
        self.registry.reconciling.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&self.name);
        result
    }

    /// Whether what the index misses is not there.
    pub(crate) async fn is_known(&self) -> Result<bool> {
        Ok(self.lease.knows_settled(self.shard) || self.is_reconciled().await?)
    }

    /// Reconciles this repository, without making this request wait for that. Somebody who asks for many that
    /// aren't, or that don't exist, has a few of them reconciled at a time; the walk does the rest.
    pub(crate) fn reconcile_soon(self) {
        let Ok(turn) = Arc::clone(&self.registry.reconciling_soon).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _turn = turn;
            if let Err(error) = self.ensure_reconciled().await {
                tracing::debug!(%error, repository = %self.name, "a repository was not reconciled; the walk will do it");
            }
        });
    }

    async fn is_reconciled(&self) -> Result<bool> {
        let names = &self.lease.names;
        let answers = self.ask(vec![Ask::Value(names.settled()), Ask::Value(names.reconciled(&self.name))]).await?;
        if answers[0].is_some() {
            self.lease.saw_settled(self.shard);
        }
        Ok(answers.iter().any(Option::is_some))
    }

    async fn adopt_all(&self) -> Result<Adopted> {
        let mut adopted = Adopted::default();
        self.adopt_links(&mut adopted).await?;
        self.adopt_manifests(&mut adopted).await?;
        self.adopt_tags(&mut adopted).await?;
        let names = &self.lease.names;
        self.write(vec![Write::Put(names.reconciled(&self.name), bytes::Bytes::new())]).await?;
        // From now on what was told again may be sent.
        self.wake(&[outbox::TOLD]);
        tracing::info!(repository = %self.name, links = adopted.links, manifests = adopted.manifests, tags = adopted.tags,
            dangling = adopted.dangling, "a repository was reconciled with the bucket");
        Ok(adopted)
    }

    /// The check that nobody has reconciled this repository yet: what was listed may be outdated otherwise.
    fn not_yet(&self) -> [Check; 2] {
        let names = &self.lease.names;
        [Check::Absent(names.settled()), Check::Absent(names.reconciled(&self.name))]
    }

    async fn adopt_links(&self, adopted: &mut Adopted) -> Result<()> {
        let keys = self.listed(key::Folder::Blobs).await?;
        let mut results = stream::iter(keys)
            .map(|(key, _)| async move {
                match key {
                    Key::Link { digest, link, data, size, .. } => self.adopt_link(digest, link, data, size).await,
                    _ => Ok(Adoption::Known),
                }
            })
            .buffer_unordered(SIDE_BY_SIDE);
        while let Some(adoption) = results.try_next().await? {
            adoption.count(&mut adopted.links, &mut adopted.dangling);
        }
        Ok(())
    }

    async fn adopt_link(&self, digest: Digest, link: Ulid, data: DataKey, size: u64) -> Result<Adoption> {
        let stat = self.store().stat(&Key::Data(data)).await?;
        if stat.is_none_or(|stat| stat.size != size) {
            tracing::warn!(repository = %self.name, %digest, data = %data, "a link's bytes are missing; it is not adopted");
            return Ok(Adoption::Dangling);
        }
        if !self.adopt_data(&digest, link, data, size).await? {
            return Ok(Adoption::Dangling);
        }
        let names = &self.lease.names;
        let fact = names.link(&self.name, &digest);
        let unknown = [Check::Absent(names.attempt(link)), Check::Absent(names.trashed(link))];
        loop {
            let there = self.ask(vec![Ask::Value(fact.clone())]).await?.pop().flatten();
            let mut checks: Vec<Check> = self.not_yet().into_iter().chain(unknown.clone()).collect();
            let is_first = there.is_none();
            let write = match there {
                None => {
                    checks.push(Check::Absent(fact.clone()));
                    let link = LinkFact { link, data, size, renewed: self.lease.record.at };
                    Write::Put(fact.clone(), facts::encode(&link))
                }
                Some(value) => {
                    let known: LinkFact = facts::decode(&value)?;
                    if known.link == link {
                        return Ok(Adoption::Known);
                    }
                    checks.push(Check::Equals(fact.clone(), value));
                    let key = Key::Link { repository: self.name.clone(), digest: digest.clone(), link, data, size };
                    let trash = TrashFact {
                        keys: vec![key.to_string()],
                        user: Some((data, self.name.clone(), link)),
                        ..TrashFact::default()
                    };
                    Write::Put(names.trashed(link), facts::encode(&trash))
                }
            };
            match self.commit(Batch { checks, writes: vec![write], ..Batch::default() }).await? {
                Outcome::Committed { .. } if is_first => return Ok(Adoption::Adopted),
                Outcome::Committed { .. } | Outcome::Refused { check: 0..4 } => return Ok(Adoption::Known),
                Outcome::Refused { .. } => {}
            }
        }
    }

    /// Makes a data object live, or joins it, for a link that is about to be adopted.
    async fn adopt_data(&self, digest: &Digest, link: Ulid, data: DataKey, size: u64) -> Result<bool> {
        let names = &self.lease.names;
        let (home, fact) = (names.home_of(data), names.data(data));
        let live = facts::encode(&DataFact { digest: digest.clone(), size, state: DataState::Live });
        loop {
            let there = self.lease.get(home, &[Ask::Value(fact.clone())]).await?.pop().flatten();
            let mut writes = vec![self.use_of(data, link, digest)];
            let mut checks = vec![Check::Absent(names.settled())];
            match there {
                None => {
                    checks.push(Check::Absent(fact.clone()));
                    writes.push(Write::Put(fact.clone(), live.clone()));
                }
                Some(value) if value == live => checks.push(Check::Equals(fact.clone(), value)),
                Some(value) => {
                    let other: DataFact = facts::decode(&value)?;
                    let same_bytes = other.size == size && other.digest.algorithm() != digest.algorithm();
                    if other.state == DataState::Dying || !same_bytes {
                        tracing::warn!(repository = %self.name, %digest, data = %data, "a link's bytes are known as something else; it is not adopted");
                        return Ok(false);
                    }
                    checks.push(Check::Equals(fact.clone(), value));
                }
            }
            match self.lease.commit(home, Batch { checks, writes, ..Batch::default() }).await? {
                Outcome::Committed { .. } => return Ok(true),
                Outcome::Refused { check: 0 } => return Ok(false),
                Outcome::Refused { .. } => {}
            }
        }
    }

    async fn adopt_manifests(&self, adopted: &mut Adopted) -> Result<()> {
        let keys = self.listed(key::Folder::Manifests).await?;
        let mut results = stream::iter(keys)
            .map(|(key, _)| async move {
                match key {
                    Key::Manifest { digest, object, .. } => self.adopt_manifest(digest, object).await,
                    _ => Ok(Adoption::Known),
                }
            })
            .buffer_unordered(SIDE_BY_SIDE);
        while let Some(adoption) = results.try_next().await? {
            adoption.count(&mut adopted.manifests, &mut adopted.dangling);
        }
        Ok(())
    }

    async fn adopt_manifest(&self, digest: Digest, object: Ulid) -> Result<Adoption> {
        let names = &self.lease.names;
        let fact = names.manifest(&self.name, &digest);
        let key = self.manifest_key(&digest, object);
        let Some(bytes) = found(read_small(self.store(), &key, MAX_MANIFEST).await)? else {
            return Ok(Adoption::Known);
        };
        let manifest = match Manifest::parse(&bytes, None) {
            Ok(manifest) if Digest::of(digest.algorithm(), &bytes) == digest => manifest,
            _ => {
                tracing::warn!(repository = %self.name, %digest, "a manifest's object is not what its name says; it is not adopted");
                return Ok(Adoption::Dangling);
            }
        };
        let to = Target { digest: digest.clone(), media_type: manifest.media_type.clone(), size: bytes.len() as u64 };
        let state = TagState { to: None, at: StoreTime(object.timestamp_ms()), by: String::new() };
        let mut checks: Vec<Check> = self.not_yet().into_iter().collect();
        checks.push(Check::Absent(fact.clone()));
        checks.extend(manifest.needs.iter().map(|needs| Check::Present(names.link(&self.name, needs))));
        let writes = self.manifest_facts(&manifest, &to, object, &state);
        match self.commit(Batch { checks, writes, ..Batch::default() }).await? {
            Outcome::Committed { .. } => Ok(Adoption::Adopted),
            Outcome::Refused { check: 0 | 1 } => Ok(Adoption::Known),
            Outcome::Refused { check: 2 } => self.yield_to_manifest(&fact, &digest, object).await,
            Outcome::Refused { .. } => {
                tracing::warn!(repository = %self.name, %digest, needs = needed(&manifest).len(), "a manifest's blobs are missing; it is not adopted");
                Ok(Adoption::Dangling)
            }
        }
    }

    /// A second object of a manifest goes to the trash.
    async fn yield_to_manifest(&self, fact: &Fact, digest: &Digest, object: Ulid) -> Result<Adoption> {
        let Some(value) = self.ask(vec![Ask::Value(fact.clone())]).await?.pop().flatten() else {
            return Ok(Adoption::Known);
        };
        let there: ManifestFact = facts::decode(&value)?;
        if there.object != object {
            let keys = vec![self.manifest_key(digest, object).to_string()];
            let mut checks: Vec<Check> = self.not_yet().into_iter().collect();
            checks.push(Check::Equals(fact.clone(), value));
            let writes = vec![self.trash(&TrashFact { keys, ..TrashFact::default() })];
            self.commit(Batch { checks, writes, ..Batch::default() }).await?;
        }
        Ok(Adoption::Known)
    }

    /// Adopts the newest revision of each tag that counts, and tells again what endpoints may not have been told: every
    /// revision that counts and that no checkpoint covers, in the order in which they were made.
    async fn adopt_tags(&self, adopted: &mut Adopted) -> Result<()> {
        let counting: Vec<Key> = self
            .listed(key::Folder::Tags)
            .await?
            .into_iter()
            .filter(|(_, counts)| *counts)
            .map(|(key, _)| key)
            .collect();
        let coverage = self.registry.coverage().await?;
        let newest = newest_of_each(counting.iter().map(|key| (key.clone(), true)));
        let mut revisions = Vec::new();
        for key in counting {
            let Key::Tag { tag, revision, to, deadline, .. } = key.clone() else { continue };
            let is_newest = newest.get(&tag).is_some_and(|newest| newest.revision == revision);
            // What is of this epoch was written to make a copy of the bucket count, and is no news.
            let is_told = revision.epoch == self.lease.epoch || coverage.has(&self.name, revision, deadline);
            if is_newest || !is_told {
                revisions.push(Listed { tag, revision, to, deadline, key, is_newest, is_told });
            }
        }
        let (silent, mut untold): (Vec<Listed>, Vec<Listed>) = revisions.into_iter().partition(|listed| listed.is_told);
        untold.sort_unstable_by_key(|listed| listed.revision);
        for listed in &untold {
            if listed.is_newest {
                let adoption = self.adopt_tag(listed, &coverage).await?;
                adoption.count(&mut adopted.tags, &mut adopted.dangling);
            } else {
                self.tell_again(listed, &coverage).await?;
            }
        }
        let coverage = &coverage;
        let mut adoptions = stream::iter(silent)
            .map(|listed| async move { self.adopt_tag(&listed, coverage).await })
            .buffer_unordered(SIDE_BY_SIDE);
        while let Some(adoption) = adoptions.try_next().await? {
            adoption.count(&mut adopted.tags, &mut adopted.dangling);
        }
        Ok(())
    }

    /// Tells of a revision that was outranked. Not once its tag is known: then that has been done.
    async fn tell_again(&self, listed: &Listed, coverage: &Coverage) -> Result<()> {
        // Another replica may have adopted all, and trimmed the history since it was listed.
        let Some(bytes) = found(read_small(self.store(), &listed.key, MAX_MANIFEST).await)? else { return Ok(()) };
        let state = read_state(&listed.key, &bytes)?;
        let batch = Batch { checks: self.not_yet().into(), ..Batch::default() };
        let batch = self.telling_again(batch, listed, state, coverage).await?;
        if !batch.writes.is_empty() {
            self.commit(batch).await?;
        }
        Ok(())
    }

    /// The batch, which then also tells of a revision those who may not have been told; unless its tag is known, in
    /// which case it is refused.
    async fn telling_again(
        &self,
        mut batch: Batch,
        listed: &Listed,
        state: TagState,
        coverage: &Coverage,
    ) -> Result<Batch> {
        let Listed { tag, revision, deadline, .. } = listed;
        let event = outbox::event_of_revision(&self.name, Some(tag), *revision, state);
        let interests = self.registry.interests();
        let lacking: Vec<&EntryName> = coverage.lacking(&self.name, *revision, *deadline).collect();
        let wanting: Vec<&EntryName> =
            interests.of(&event).map(|interest| &interest.endpoint).filter(|name| lacking.contains(name)).collect();
        let writes = self.inherited(*revision, &event, &wanting).await?;
        if !writes.is_empty() {
            batch.checks.push(Check::Absent(self.lease.names.tag(&self.name, tag)));
            batch.writes.extend(writes);
        }
        Ok(batch)
    }

    async fn restamp_tags(&self) -> Result<usize> {
        let newest = newest_of_each(self.listed(key::Folder::Tags).await?.into_iter());
        let mut restamped = 0;
        for (tag, Newest { to, key, .. }) in newest.into_iter().filter(|(_, newest)| !newest.counts) {
            let state = self.tag_state(&key).await?;
            let batch = Batch { sequence: Some(self.lease.names.counter()), ..Batch::default() };
            let Outcome::Committed { sequence, .. } = self.commit(batch).await? else { continue };
            let at = self.store().now();
            let fact = IntentFact {
                repository: self.name.clone(),
                tags: vec![tag],
                deadline: at.plus(self.registry.options.timing.deadline),
                manifest: to.map(|digest| IntendedManifest { digest, object: self.fresh() }),
                needs: Vec::new(),
                at,
                by: state.by.clone(),
                request: None,
            };
            let revision = Revision { epoch: self.lease.epoch, counter: sequence };
            self.write_revisions(&Reserved { intent: self.fresh(), fact, revision }, &state).await?;
            restamped += 1;
        }
        Ok(restamped)
    }

    /// What a tag's revision says.
    pub(crate) async fn tag_state(&self, key: &Key) -> Result<TagState> {
        read_state(key, &read_small(self.store(), key, MAX_MANIFEST).await?)
    }

    async fn adopt_tag(&self, listed: &Listed, coverage: &Coverage) -> Result<Adoption> {
        let Listed { tag, revision, to, key, .. } = listed;
        let names = &self.lease.names;
        let state = self.tag_state(key).await?;
        let mut checks: Vec<Check> = self.not_yet().into_iter().collect();
        let mut writes = vec![
            Write::Raise(names.tag(&self.name, tag), TagFact { revision: *revision, state: state.clone() }.encode()),
            Write::Put(names.trim(&self.name, tag), bytes::Bytes::new()),
        ];
        if let Some(digest) = to {
            checks.push(Check::Present(names.manifest(&self.name, digest)));
            let group = names.names_of(&self.name, digest);
            writes.push(Write::Put(Fact::new(group, format!("t:{tag}")), bytes::Bytes::new()));
        }
        let plain = Batch { checks, writes, ..Batch::default() };
        let unless_known = plain.checks.len();
        let mut batch = plain.clone();
        if !listed.is_told {
            batch = self.telling_again(batch, listed, state, coverage).await?;
        }
        let mut outcome = self.commit(batch).await?;
        if outcome == (Outcome::Refused { check: unless_known }) {
            outcome = self.commit(plain).await?;
        }
        match outcome {
            Outcome::Committed { .. } => Ok(Adoption::Adopted),
            Outcome::Refused { check: 0 | 1 } => Ok(Adoption::Known),
            Outcome::Refused { .. } => {
                tracing::warn!(repository = %self.name, %tag, "a tag's manifest is missing; the tag is not adopted");
                Ok(Adoption::Dangling)
            }
        }
    }

    /// All keys of one folder, and whether each was written by its deadline, where it has one.
    pub(crate) async fn listed(&self, folder: key::Folder) -> Result<Vec<(Key, bool)>> {
        self.listed_under(&key::folder(&self.name, folder)).await
    }

    /// All keys under a prefix in this repository, likewise.
    pub(crate) async fn listed_under(&self, prefix: &str) -> Result<Vec<(Key, bool)>> {
        let mut after: Option<String> = None;
        let mut keys = Vec::new();
        loop {
            let page = self.store().list(prefix, after.as_deref(), 1000).await?;
            for (text, stat) in &page.objects {
                match Key::parse(text) {
                    Some(key @ Key::Tag { deadline, .. }) => keys.push((key, stat.modified <= deadline)),
                    Some(key) => keys.push((key, true)),
                    None => tracing::debug!(key = %text, "not a key of this layout; passed over"),
                }
            }
            match page.objects.last() {
                Some((last, _)) if page.more => after = Some(last.clone()),
                _ => return Ok(keys),
            }
        }
    }
}

fn read_state(key: &Key, bytes: &[u8]) -> Result<TagState> {
    serde_json::from_slice(bytes).map_err(|error| Error::internal(format!("{key}: {error}")))
}

/// A revision of a tag that counts.
struct Listed {
    tag: Tag,
    revision: Revision,
    to: Option<Digest>,
    deadline: StoreTime,
    key: Key,
    /// Whether no later one of its tag counts.
    is_newest: bool,
    /// Whether nobody is to be told of it any more.
    is_told: bool,
}

/// A tag's newest revision.
pub(crate) struct Newest {
    pub(crate) revision: Revision,
    pub(crate) to: Option<Digest>,
    pub(crate) key: Key,
    counts: bool,
}

/// The greatest revision of each tag, of those that are given.
pub(crate) fn newest_of_each(keys: impl Iterator<Item = (Key, bool)>) -> BTreeMap<Tag, Newest> {
    let mut newest: BTreeMap<Tag, Newest> = BTreeMap::new();
    for (key, counts) in keys {
        let Key::Tag { tag, revision, to, .. } = key.clone() else { continue };
        if newest.get(&tag).is_none_or(|known| known.revision < revision) {
            newest.insert(tag, Newest { revision, to, key, counts });
        }
    }
    newest
}

enum Adoption {
    Adopted,
    Known,
    Dangling,
}

impl Adoption {
    fn count(self, adopted: &mut usize, dangling: &mut usize) {
        match self {
            Self::Adopted => *adopted += 1,
            Self::Known => {}
            Self::Dangling => *dangling += 1,
        }
    }
}
