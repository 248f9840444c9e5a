//! Inspecting: what the index says of a thing, what the bucket says, and where the two disagree.
//!
//! For an operator who looks into a registry. It only reads: it writes no object, commits no batch and
//! begins no epoch, so it is safe beside running replicas. It must not print, and it decides nothing: what
//! it calls a disagreement may be a write that is just going on.

mod cost;
mod report;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::TryStreamExt;
use ulid::Ulid;

pub use cost::{Cost, Counted};
pub use report::{
    About, BlobFacts, BlobReport, Counts, DataReport, EntryReport, IndexState, KeyReport, ManifestFacts,
    ManifestReport, Object, RevisionReport, TagFacts, TagReport, Verify,
};

use crate::{
    epoch::{Lease, Leases, Standing, Timing, read_json},
    error::Result,
    index::{
        Ask, Connect, Fact, Shard,
        facts::{self, AttemptFact, DataFact, DataState, EntryFact, IntentFact, TagFact, TrashFact},
    },
    oci::{Digest, Hasher, Manifest, RepositoryName, Tag, manifest::MAX_MANIFEST},
    registry::found,
    storage::{
        DataKey, Key, Stat, Store, StoreTime,
        key::{self, EntryName, RosterList},
        read_small,
    },
};

/// Looks into a bucket, and into an index if it is the bucket's own.
#[derive(Debug)]
pub struct Inspector {
    store: Arc<dyn Store>,
    /// Renews the lease, for as long as somebody looks.
    _leases: Option<Arc<Leases>>,
    lease: Option<Arc<Lease>>,
    state: IndexState,
}

impl Inspector {
    /// Looks into `store` and, where there is one, the index that `connect` reaches. An index that doesn't
    /// answer is part of what is found, and no failure.
    pub async fn open(store: Arc<dyn Store>, connect: Option<Arc<dyn Connect>>, timing: Timing) -> Self {
        let Some(connect) = connect else {
            return Self { store, _leases: None, lease: None, state: IndexState::Missing };
        };
        let leases = Arc::new(Leases::new(Arc::clone(&store), connect, timing));
        let (lease, state) = match leases.standing().await {
            Ok(Standing::Ours(lease)) => {
                let state = believed(&lease);
                (Some(lease), state)
            }
            Ok(Standing::Fresh) => (None, IndexState::Unclaimed),
            Ok(Standing::Unserved(number)) => (None, IndexState::Unserved { epoch: number.to_string() }),
            Ok(Standing::Others(number, record) | Standing::Replaced(number, record)) => {
                (None, IndexState::Other { epoch: number.to_string(), identity: record.identity })
            }
            Err(error) => (None, IndexState::Unreachable { why: error.cause.unwrap_or(error.message) }),
        };
        Self { store, _leases: Some(leases), lease, state }
    }

    /// Which index was found.
    pub fn state(&self) -> &IndexState {
        &self.state
    }

    /// How much is in the index; nothing where it isn't the bucket's own.
    pub async fn counts(&self) -> Result<Option<Counts>> {
        let Some(lease) = self.lease.as_deref() else { return Ok(None) };
        let mut counts = Counts::default();
        for shard in lease.names.shards() {
            counts.repositories += members(lease, shard, &lease.names.repositories()).await?.len();
            counts.uploads += members(lease, shard, &lease.names.uploads()).await?.len();
            counts.intents += members(lease, shard, &lease.names.intents()).await?.len();
            counts.attempts += members(lease, shard, &lease.names.attempts()).await?.len();
            counts.trash += members(lease, shard, &lease.names.trash()).await?.len();
            counts.trims += members(lease, shard, &lease.names.trims()).await?.len();
        }
        let shard = lease.names.roster_shard();
        counts.accounts = members(lease, shard, &lease.names.roster(RosterList::Accounts)).await?.len();
        counts.rules = members(lease, shard, &lease.names.roster(RosterList::Rules)).await?.len();
        Ok(Some(counts))
    }

    /// A blob in a repository.
    pub async fn blob(&self, repository: &RepositoryName, digest: &Digest, verify: Verify) -> Result<BlobReport> {
        let index = self.blob_facts(repository, digest).await?;
        let prefix = format!("{}{digest}/", key::folder(repository, key::Folder::Blobs));
        let listed = self.list(&prefix).await?;
        let mut named: Vec<DataKey> = Vec::new();
        let known = index.as_ref().and_then(|facts| facts.link.as_ref()).map(|link| link.data);
        let in_bucket = listed.iter().filter_map(|(key, _)| match key {
            Key::Link { data, .. } => Some(*data),
            _ => None,
        });
        for data in known.into_iter().chain(in_bucket) {
            if !named.contains(&data) {
                named.push(data);
            }
        }
        let mut data = Vec::new();
        for &key in &named {
            data.push(self.data(key, Some(digest), verify).await?);
        }
        let disagreements =
            index.as_ref().map(|facts| link_disagreements(facts, repository, &listed, &data)).unwrap_or_default();
        let links = listed.iter().map(|(key, stat)| object(key, *stat)).collect();
        Ok(BlobReport { repository: repository.clone(), digest: digest.clone(), index, links, data, disagreements })
    }

    async fn blob_facts(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<BlobFacts>> {
        let Some(lease) = self.lease.as_deref() else { return Ok(None) };
        let names = &lease.names;
        let shard = names.shard_of(repository);
        let link = value(lease, shard, names.link(repository, digest)).await?;
        let hint = value(lease, names.hint_shard(digest), names.hint(digest)).await?;
        let mut attempts = Vec::new();
        for (member, bytes) in members(lease, shard, &names.attempts()).await? {
            let fact: AttemptFact = facts::decode(&bytes)?;
            if fact.repository == *repository {
                attempts.push(member);
            }
        }
        let prefix = format!("{}{digest}/", key::folder(repository, key::Folder::Blobs));
        Ok(Some(BlobFacts {
            reconciled: is_reconciled(lease, repository).await?,
            link: link.map(|bytes| facts::decode(&bytes)).transpose()?,
            refs: names_in(lease, shard, &names.refs(repository, digest)).await?,
            attempts,
            trash: trashed_under(lease, shard, &prefix).await?,
            hint: hint.map(|bytes| facts::decode(&bytes)).transpose()?,
        }))
    }

    /// A data object. `digest` is what its bytes shall hash to; without it, what the index says.
    async fn data(&self, data: DataKey, digest: Option<&Digest>, verify: Verify) -> Result<DataReport> {
        let key = Key::Data(data);
        let stat = self.store.stat(&key).await?;
        let (mut fact, mut users) = (None::<DataFact>, Vec::new());
        if let Some(lease) = self.lease.as_deref() {
            let home = lease.names.home_of(data);
            fact = value(lease, home, lease.names.data(data)).await?.map(|bytes| facts::decode(&bytes)).transpose()?;
            users = names_in(lease, home, &lease.names.users(data)).await?;
        }
        let digest = digest.or_else(|| fact.as_ref().map(|fact| &fact.digest));
        let verified = match (verify, stat, digest) {
            (Verify::Bytes, Some(stat), Some(digest)) => Some(self.hashes_to(&key, stat, digest).await?),
            _ => None,
        };
        let mut report = DataReport {
            key: key.to_string(),
            object: stat.map(|stat| object(&key, stat)),
            fact,
            users,
            verified,
            disagreements: Vec::new(),
        };
        report.disagreements = data_disagreements(&report);
        Ok(report)
    }

    async fn hashes_to(&self, key: &Key, stat: Stat, digest: &Digest) -> Result<bool> {
        let mut hasher = Hasher::new(digest.algorithm());
        if stat.size > 0 {
            let mut bytes = self.store.read(key, None).await?;
            while let Some(chunk) = bytes.try_next().await? {
                hasher.update(&chunk);
            }
        }
        Ok(hasher.finish() == *digest)
    }

    /// A tag and its history.
    pub async fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<TagReport> {
        let index = self.tag_facts(repository, tag).await?;
        let mut history = Vec::new();
        for (key, stat) in self.list(&key::history(repository, tag)).await? {
            let Key::Tag { revision, deadline, to, .. } = key else { continue };
            let (revision, modified) = (revision.to_string(), stat.modified);
            history.push(RevisionReport { revision, to, deadline, modified, counts: modified <= deadline });
        }
        let mut disagreements = index.as_ref().map(|facts| tag_disagreements(facts, &history)).unwrap_or_default();
        if let Some(to) = history.iter().find(|revision| revision.counts).and_then(|revision| revision.to.as_ref()) {
            let prefix = format!("{}{to}/", key::folder(repository, key::Folder::Manifests));
            if self.list(&prefix).await?.is_empty() {
                disagreements.push(format!("the bucket has no object of {to}, which the tag points at"));
            }
        }
        Ok(TagReport { repository: repository.clone(), tag: tag.clone(), index, history, disagreements })
    }

    async fn tag_facts(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<TagFacts>> {
        let Some(lease) = self.lease.as_deref() else { return Ok(None) };
        let names = &lease.names;
        let shard = names.shard_of(repository);
        let fact = value(lease, shard, names.tag(repository, tag)).await?;
        let fact = fact.map(|bytes| TagFact::decode(&bytes)).transpose()?;
        let mut open = BTreeMap::new();
        for intent in names_in(lease, shard, &names.open(repository, tag)).await? {
            let record = value(lease, shard, Fact::new(names.intents(), intent.clone())).await?;
            open.insert(intent, record.map(|bytes| IntentFact::decode(&bytes)).transpose()?.map(|(_, fact)| fact));
        }
        Ok(Some(TagFacts {
            reconciled: is_reconciled(lease, repository).await?,
            revision: fact.as_ref().map(|fact| fact.revision.to_string()),
            state: fact.map(|fact| fact.state),
            open,
            to_be_trimmed: value(lease, shard, names.trim(repository, tag)).await?.is_some(),
        }))
    }

    /// A manifest. Its bytes are always read: they are few.
    pub async fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<ManifestReport> {
        let prefix = format!("{}{digest}/", key::folder(repository, key::Folder::Manifests));
        let listed = self.list(&prefix).await?;
        let (mut media_type, mut needs, mut disagreements) = (None, Vec::new(), Vec::new());
        for (key, _) in &listed {
            let Some(bytes) = found(read_small(&self.store, key, MAX_MANIFEST).await)? else { continue };
            if Digest::of(digest.algorithm(), &bytes) != *digest {
                disagreements.push(format!("the bytes of {key} don't hash to the digest"));
                continue;
            }
            match Manifest::parse(&bytes, None) {
                Ok(manifest) => (media_type, needs) = (Some(manifest.media_type), manifest.needs),
                Err(error) => disagreements.push(format!("{key} is no manifest: {error}")),
            }
        }
        let index = self.manifest_facts(repository, digest, &needs).await?;
        if let Some(facts) = &index {
            disagreements.extend(manifest_disagreements(facts, &listed));
        }
        let objects = listed.iter().map(|(key, stat)| object(key, *stat)).collect();
        let (repository, digest) = (repository.clone(), digest.clone());
        Ok(ManifestReport { repository, digest, index, objects, media_type, needs, disagreements })
    }

    async fn manifest_facts(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        needs: &[Digest],
    ) -> Result<Option<ManifestFacts>> {
        let Some(lease) = self.lease.as_deref() else { return Ok(None) };
        let names = &lease.names;
        let shard = names.shard_of(repository);
        let fact = value(lease, shard, names.manifest(repository, digest)).await?;
        let mut unlinked = Vec::new();
        for need in needs {
            if value(lease, shard, names.link(repository, need)).await?.is_none() {
                unlinked.push(need.clone());
            }
        }
        Ok(Some(ManifestFacts {
            reconciled: is_reconciled(lease, repository).await?,
            fact: fact.map(|bytes| facts::decode(&bytes)).transpose()?,
            names: names_in(lease, shard, &names.names_of(repository, digest)).await?,
            referrers: names_in(lease, shard, &names.referrers(repository, digest)).await?,
            unlinked,
        }))
    }

    /// An object of the bucket, and what it belongs to.
    pub async fn key(&self, key: &Key, verify: Verify) -> Result<KeyReport> {
        let about = match key {
            Key::Format => About::Format,
            Key::Data(data) => About::Data(self.data(*data, None, verify).await?),
            Key::Link { repository, digest, .. } => About::Blob(self.blob(repository, digest, verify).await?),
            Key::Manifest { repository, digest, .. } => About::Manifest(self.manifest(repository, digest).await?),
            Key::Tag { repository, tag, .. } => About::Tag(self.tag(repository, tag).await?),
            Key::Entry { roster, name, deadline, .. } => About::Entry(self.entry(key, *roster, name, *deadline).await?),
            Key::Epoch(_) => About::Epoch(match self.store.stat(key).await? {
                Some(_) => Some(read_json(&self.store, key).await?),
                None => None,
            }),
            Key::Checkpoint { .. } => About::Checkpoint(match self.store.stat(key).await? {
                Some(_) => Some(read_json(&self.store, key).await?),
                None => None,
            }),
            Key::Probe(_) => About::Probe,
        };
        let object = self.store.stat(key).await?.map(|stat| object(key, stat));
        Ok(KeyReport { key: key.to_string(), object, about })
    }

    /// A revision of an account or a rule. What it says is not shown: hashes of secrets are in it.
    async fn entry(&self, key: &Key, roster: RosterList, name: &EntryName, deadline: StoreTime) -> Result<EntryReport> {
        let stat = self.store.stat(key).await?;
        let mut is_current = None;
        if let Some(lease) = self.lease.as_deref() {
            let fact = value(lease, lease.names.roster_shard(), lease.names.entry(roster, name)).await?;
            let fact = fact.map(|bytes| facts::decode::<EntryFact<serde::de::IgnoredAny>>(&bytes)).transpose()?;
            is_current = Some(fact.is_some_and(|fact| fact.object == key.to_string()));
        }
        let counts = stat.map(|stat| stat.modified <= deadline);
        Ok(EntryReport { roster, name: name.clone(), counts, is_current })
    }

    /// All of our keys under a prefix.
    async fn list(&self, prefix: &str) -> Result<Vec<(Key, Stat)>> {
        let mut after: Option<String> = None;
        let mut keys = Vec::new();
        loop {
            let page = self.store.list(prefix, after.as_deref(), 1000).await?;
            keys.extend(page.objects.iter().filter_map(|(text, stat)| Some((Key::parse(text)?, *stat))));
            match page.objects.last() {
                Some((last, _)) if page.more => after = Some(last.clone()),
                _ => return Ok(keys),
            }
        }
    }
}

fn believed(lease: &Lease) -> IndexState {
    IndexState::Believed {
        epoch: lease.epoch.to_string(),
        identity: lease.record.identity.clone(),
        shards: lease.record.shards,
        since: lease.record.at,
        settled: lease.names.shards().all(|shard| lease.knows_settled(shard)),
    }
}

fn object(key: &Key, stat: Stat) -> Object {
    Object { key: key.to_string(), size: stat.size, modified: stat.modified }
}

/// One fact, lease or not: who inspects for longer than a lease lasts still wants to see it.
async fn value(lease: &Lease, shard: Shard, fact: Fact) -> Result<Option<bytes::Bytes>> {
    Ok(lease.index.get(shard, &[Ask::Value(fact)]).await?.pop().flatten())
}

async fn members(lease: &Lease, shard: Shard, group: &str) -> Result<Vec<(String, bytes::Bytes)>> {
    let mut all: Vec<(String, bytes::Bytes)> = Vec::new();
    loop {
        let after = all.last().map(|(member, _)| member.clone());
        let page = lease.index.scan(shard, group, after.as_deref(), 1000).await?;
        let full = page.len() == 1000;
        all.extend(page);
        if !full {
            return Ok(all);
        }
    }
}

async fn names_in(lease: &Lease, shard: Shard, group: &str) -> Result<Vec<String>> {
    Ok(members(lease, shard, group).await?.into_iter().map(|(member, _)| member).collect())
}

async fn is_reconciled(lease: &Lease, repository: &RepositoryName) -> Result<bool> {
    let shard = lease.names.shard_of(repository);
    let marked = value(lease, shard, lease.names.reconciled(repository)).await?.is_some();
    Ok(marked || lease.knows_settled(shard))
}

/// The keys under a prefix that wait to be removed.
async fn trashed_under(lease: &Lease, shard: Shard, prefix: &str) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for (_, bytes) in members(lease, shard, &lease.names.trash()).await? {
        let trash: TrashFact = facts::decode(&bytes)?;
        keys.extend(trash.keys.into_iter().filter(|key| key.starts_with(prefix)));
    }
    Ok(keys)
}

fn link_disagreements(
    facts: &BlobFacts,
    repository: &RepositoryName,
    listed: &[(Key, Stat)],
    data: &[DataReport],
) -> Vec<String> {
    let mut found = Vec::new();
    let known = facts.link.as_ref().map(|link| link.link);
    let mut is_listed = false;
    for (key, _) in listed {
        let Key::Link { link, .. } = key else { continue };
        is_listed |= known == Some(*link);
        let is_expected = known == Some(*link)
            || facts.attempts.contains(&link.to_string())
            || facts.trash.contains(&key.to_string());
        if !is_expected && facts.reconciled {
            found.push(format!("the index knows nothing of {key}"));
        }
    }
    if let Some(link) = &facts.link {
        if !is_listed {
            found.push(format!("the index has link {}, and the bucket has no such object", link.link));
        }
        found.extend(user_disagreement(link.link, repository, link.data, data));
    }
    found
}

/// A link whose data object doesn't count it among its users could lose its bytes.
fn user_disagreement(link: Ulid, repository: &RepositoryName, key: DataKey, data: &[DataReport]) -> Option<String> {
    let report = data.iter().find(|report| report.key == Key::Data(key).to_string())?;
    let user = format!("{repository}/{link}");
    if report.object.is_none() {
        return Some(format!("the link's bytes are missing: the bucket has no {}", report.key));
    }
    (!report.users.contains(&user)).then(|| format!("{} is not known to be needed by link {link}", report.key))
}

fn data_disagreements(report: &DataReport) -> Vec<String> {
    let mut found = Vec::new();
    match (&report.fact, &report.object) {
        (Some(fact), None) if fact.state == DataState::Live => {
            found.push(format!("the index calls {} live, and the bucket has no such object", report.key));
        }
        (Some(fact), Some(object)) if fact.size != object.size => {
            found.push(format!("{} has {} bytes, and the index says {}", report.key, object.size, fact.size));
        }
        _ => {}
    }
    if report.verified == Some(false) {
        found.push(format!("the bytes of {} don't hash to the digest", report.key));
    }
    found
}

fn tag_disagreements(facts: &TagFacts, history: &[RevisionReport]) -> Vec<String> {
    let newest = history.iter().find(|revision| revision.counts).map(|newest| &newest.revision);
    if !facts.open.is_empty() || newest == facts.revision.as_ref() || !facts.reconciled {
        // With a write going on, or an index that isn't filled yet, the bucket answers.
        return Vec::new();
    }
    let or_none = |revision: Option<&String>| revision.map_or_else(|| "no revision".to_owned(), ToString::to_string);
    vec![format!(
        "the index has {}, and the newest in the bucket that counts is {}",
        or_none(facts.revision.as_ref()),
        or_none(newest)
    )]
}

fn manifest_disagreements(facts: &ManifestFacts, listed: &[(Key, Stat)]) -> Vec<String> {
    let mut found = Vec::new();
    let has =
        |wanted: Ulid| listed.iter().any(|(key, _)| matches!(key, Key::Manifest { object, .. } if *object == wanted));
    match &facts.fact {
        Some(fact) => {
            if !has(fact.object) {
                found.push(format!("the index has object {}, and the bucket has no such object", fact.object));
            }
            found.extend(facts.unlinked.iter().map(|digest| format!("{digest}, which it needs, is not linked")));
        }
        None if facts.reconciled && !listed.is_empty() && !facts.names.iter().any(|name| name.starts_with("i:")) => {
            found.push("the bucket has this manifest, and the index doesn't know it".to_owned());
        }
        None => {}
    }
    found
}
