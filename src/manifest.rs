//! Manifests: found by tag or digest, pushed with any number of tags, deleted with all that point at them.

mod push;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use ulid::Ulid;

pub use push::Push;

use crate::{
    collect,
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Write,
        facts::{self, Action, EventTarget, ManifestFact, TagFact, TagState, Target, TrashFact},
    },
    oci::{Digest, Manifest, Reference, Tag, manifest::MAX_MANIFEST},
    registry::{Repository, found},
    storage::{Key, StoreTime, key, read_small},
};

/// A manifest that a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

impl From<FoundManifest> for Target {
    fn from(FoundManifest { digest, media_type, size }: FoundManifest) -> Self {
        Self { digest, media_type, size }
    }
}

impl From<Target> for FoundManifest {
    fn from(Target { digest, media_type, size }: Target) -> Self {
        Self { digest, media_type, size }
    }
}

/// A referrer, as the referrers API shows it (distribution-spec, "Listing Referrers").
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<String, String>,
}

/// How many referrers are read at once: each has its manifest's annotations, which may be megabytes.
const REFERRERS_AT_ONCE: usize = 16;

/// How many objects of one manifest its delete looks for: as many as pushes of it met, of which two are rare.
const SECONDS: usize = 100;

/// The most manifests that one listing of all of them shows.
const MAX_LISTED: usize = 50_000;

impl Repository {
    /// Finds a manifest by what a tag points at now, or by its digest.
    pub async fn find_manifest(&self, reference: &Reference) -> Result<FoundManifest> {
        match reference {
            Reference::Tag(tag) => Ok(self.resolve(tag).await?.ok_or_else(|| crate::tag::unknown(tag))?.into()),
            Reference::Digest(digest) => {
                let names = &self.lease.names;
                let (fact, naming) = (names.manifest(&self.name, digest), names.names_of(&self.name, digest));
                let answers = self.ask(vec![Ask::Value(fact), Ask::First(naming)]).await?;
                match &answers[0] {
                    Some(value) => {
                        let fact: ManifestFact = facts::decode(value)?;
                        Ok(FoundManifest { digest: digest.clone(), media_type: fact.media_type, size: fact.size })
                    }
                    None if answers[1].as_ref().is_some_and(|first| first.starts_with(b"i:")) => {
                        self.find_pushed(digest).await
                    }
                    None => Err(unknown(digest)),
                }
            }
        }
    }

    /// A manifest whose push may have been acknowledged, and that isn't in the index yet.
    async fn find_pushed(&self, digest: &Digest) -> Result<FoundManifest> {
        let bytes = self.in_bucket().manifest(digest).await?.ok_or_else(|| unknown(digest))?;
        let media_type = Manifest::parse(&bytes, None)?.media_type;
        Ok(FoundManifest { digest: digest.clone(), media_type, size: bytes.len() as u64 })
    }

    /// A manifest's exact bytes.
    pub async fn manifest_bytes(&self, manifest: &FoundManifest) -> Result<Bytes> {
        if let Some(bytes) = self.registry.manifests.get(&manifest.digest) {
            return Ok(bytes);
        }
        let bytes = match self.manifest_fact(&manifest.digest).await? {
            Some(fact) => {
                let key = self.manifest_key(&manifest.digest, fact.object);
                // It may have been deleted since it was found.
                found(read_small(self.store(), &key, MAX_MANIFEST).await)?.ok_or_else(|| unknown(&manifest.digest))?
            }
            // A tag was read from the bucket, ahead of the index: so is its manifest.
            None => self.in_bucket().manifest(&manifest.digest).await?.ok_or_else(|| unknown(&manifest.digest))?,
        };
        if Digest::of(manifest.digest.algorithm(), &bytes) != manifest.digest {
            return Err(Error::internal(format!("the object of manifest {} doesn't hash to it", manifest.digest)));
        }
        self.registry.manifests.insert(manifest.digest.clone(), bytes.clone());
        Ok(bytes)
    }

    async fn manifest_fact(&self, digest: &Digest) -> Result<Option<ManifestFact>> {
        let value = self.ask(vec![Ask::Value(self.lease.names.manifest(&self.name, digest))]).await?.pop().flatten();
        Ok(value.map(|value| facts::decode(&value)).transpose()?)
    }

    pub(crate) fn manifest_key(&self, digest: &Digest, object: Ulid) -> Key {
        Key::Manifest { repository: self.name.clone(), digest: digest.clone(), object }
    }

    /// Whether the repository has any manifest.
    pub async fn exists(&self) -> Result<bool> {
        let answers = self.ask(vec![Ask::First(self.lease.names.manifests(&self.name))]).await?;
        Ok(answers[0].is_some())
    }

    /// All manifests, for GCR's tag list, in byte order of their digests; the first 50,000 of them.
    pub async fn manifests(&self) -> Result<Vec<(Digest, ManifestFact)>> {
        let group = self.lease.names.manifests(&self.name);
        let mut all = Vec::new();
        loop {
            let after = all.last().map(|(digest, _): &(Digest, ManifestFact)| digest.to_string());
            let page = self.lease.scan(self.shard, &group, after.as_deref(), 1000).await?;
            let full = page.len() == 1000;
            for (member, value) in page {
                all.push((member.parse()?, facts::decode(&value)?));
            }
            if !full || all.len() >= MAX_LISTED {
                return Ok(all);
            }
        }
    }

    /// A page of a subject's referrers as descriptors, after the digest `after`, at most `limit`, of one
    /// artifact type where that is asked for; and the digest to go on after, if more follow. A page ends
    /// early once its descriptors, annotations and all, are as large as a manifest may be.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Box<RawValue>>, Option<String>)> {
        let group = self.lease.names.referrers(&self.name, subject);
        let mut after = after.map(str::to_owned);
        let mut page: Vec<Box<RawValue>> = Vec::new();
        let (mut last, mut size) = (None, 0);
        loop {
            let found = self.lease.scan(self.shard, &group, after.as_deref(), REFERRERS_AT_ONCE).await?;
            let full = found.len() == REFERRERS_AT_ONCE;
            after = found.last().map(|(member, _)| member.clone());
            for (member, value) in found {
                let referrer: Referrer = facts::decode(&value)?;
                let its_type = referrer.artifact_type.as_deref().unwrap_or_default();
                if artifact_type.is_some_and(|wanted| its_type != wanted) {
                    continue;
                }
                let referrer = serde_json::value::to_raw_value(&referrer).map_err(Error::internal)?;
                size += referrer.get().len();
                if page.len() == limit || (size > MAX_MANIFEST && !page.is_empty()) {
                    return Ok((page, last));
                }
                page.push(referrer);
                last = Some(member);
            }
            if !full {
                return Ok((page, None));
            }
        }
    }

    /// The writes that make a manifest a fact, with all that follows from it.
    pub(crate) fn manifest_facts(
        &self,
        manifest: &Manifest,
        to: &Target,
        object: Ulid,
        state: &TagState,
    ) -> Vec<Write> {
        let names = &self.lease.names;
        let digest = &to.digest;
        let fact = ManifestFact {
            object,
            media_type: manifest.media_type.clone(),
            size: to.size,
            content_size: manifest.content_size,
            at: state.at,
        };
        let mut writes = vec![
            Write::Put(names.manifest(&self.name, digest), facts::encode(&fact)),
            Write::Put(Fact::new(names.repositories(), self.name.as_str()), Bytes::new()),
        ];
        for needed in needed(manifest) {
            let group = names.refs(&self.name, &needed);
            writes.push(Write::Put(Fact::new(group, format!("m:{digest}")), Bytes::new()));
        }
        if let Some(subject) = &manifest.subject {
            let referrer = Referrer {
                media_type: manifest.media_type.clone(),
                digest: digest.clone(),
                size: to.size,
                artifact_type: manifest.artifact_type.clone(),
                annotations: manifest.annotations.clone(),
            };
            let group = names.referrers(&self.name, subject);
            writes.push(Write::Put(Fact::new(group, digest.as_str()), facts::encode(&referrer)));
        }
        writes
    }

    /// Removes a manifest: first every tag that points at it, then the manifest. Returns once the bucket
    /// has lost it as well.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        let names = &self.lease.names;
        let named_by = names.names_of(&self.name, digest);
        let patience = self.patience();
        let value = self.manifest_value(digest, &named_by, patience).await?;
        let fact: ManifestFact = facts::decode(&value)?;
        let found = FoundManifest { digest: digest.clone(), media_type: fact.media_type.clone(), size: fact.size };
        let manifest = Manifest::parse(&self.manifest_bytes(&found).await?, None)?;
        self.refuse_if_fixed(digest, &named_by).await?;
        loop {
            self.untag(digest, &named_by, patience).await?;
            let object = self.manifest_key(digest, fact.object);
            let ulid = self.fresh();
            let trash = TrashFact { keys: vec![object.to_string()], ..TrashFact::default() };
            let mut writes = self.unmake_manifest(&manifest, digest);
            writes.push(Write::Put(names.trashed(ulid), facts::encode(&trash)));
            let checks =
                vec![Check::Empty(named_by.clone()), Check::Equals(names.manifest(&self.name, digest), value.clone())];
            let batch = Batch { checks, writes, ..Batch::default() };
            let event = || self.event(Action::Delete, EventTarget::Manifest(found.clone().into()));
            match self.commit_telling(self.telling(batch, event)).await? {
                Outcome::Committed { .. } => {
                    self.leave_catalog().await?;
                    collect::discard(&self.registry, &self.lease, self.shard, ulid, &trash).await?;
                    return self.discard_seconds(digest).await;
                }
                Outcome::Refused { check: 0 } => {}
                Outcome::Refused { .. } => return Err(unknown(digest)),
            }
        }
    }

    /// Removes what other pushes of a manifest wrote that was deleted: where two of them met, the second one's object
    /// waits in the trash, and an index that is lost before it is emptied would find it, and the manifest with it.
    async fn discard_seconds(&self, digest: &Digest) -> Result<()> {
        let names = &self.lease.names;
        let prefix = format!("{}{digest}/", key::folder(&self.name, key::Folder::Manifests));
        let page = self.store().list(&prefix, None, SECONDS).await?;
        if page.objects.is_empty() {
            return Ok(());
        }
        // Intents come before tags. While none is open, nobody is about to make one of these objects a fact.
        let (fact, naming) = (names.manifest(&self.name, digest), names.names_of(&self.name, digest));
        let answers = self.ask(vec![Ask::Value(fact), Ask::First(naming)]).await?;
        if answers[0].is_some() || answers[1].as_ref().is_some_and(|first| first.starts_with(b"i:")) {
            return Ok(());
        }
        for (text, _) in &page.objects {
            if let Some(key @ Key::Manifest { .. }) = Key::parse(text) {
                collect::remove(&self.registry, &self.lease, &key).await?;
            }
        }
        Ok(())
    }

    /// The fact of a manifest that is to be deleted. A push of it may have been acknowledged and not be in the
    /// index yet: it is waited for, and not taken for one that never was.
    async fn manifest_value(&self, digest: &Digest, named_by: &str, patience: StoreTime) -> Result<Bytes> {
        let fact = self.lease.names.manifest(&self.name, digest);
        loop {
            let answers = self.ask(vec![Ask::Value(fact.clone()), Ask::First(named_by.to_owned())]).await?;
            if let Some(value) = &answers[0] {
                return Ok(value.clone());
            }
            if !answers[1].as_ref().is_some_and(|first| first.starts_with(b"i:")) {
                return Err(unknown(digest));
            }
            self.wait_for_open(patience).await?;
        }
    }

    /// Refuses to delete a manifest that an immutable tag points at, before any other tag of it is gone.
    async fn refuse_if_fixed(&self, digest: &Digest, named_by: &str) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let members = self.lease.scan(self.shard, named_by, after.as_deref(), 1000).await?;
            for (member, _) in &members {
                let Some(tag) = member.strip_prefix("t:").map(str::parse::<Tag>).transpose()? else { continue };
                if self.registry.is_immutable(&tag) && self.resolve(&tag).await?.is_some_and(|to| to.digest == *digest)
                {
                    return Err(fixed(&tag));
                }
            }
            match members.last() {
                Some((last, _)) if members.len() == 1000 => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// Deletes every tag that points at a manifest, and what says that one that has moved on still does.
    async fn untag(&self, digest: &Digest, named_by: &str, patience: StoreTime) -> Result<()> {
        let names = &self.lease.names;
        loop {
            let members = self.lease.scan(self.shard, named_by, None, 100).await?;
            if members.is_empty() {
                return Ok(());
            }
            for (member, _) in members {
                let Some(tag) = member.strip_prefix("t:") else {
                    self.wait_for_open(patience).await?;
                    continue;
                };
                let tag: Tag = tag.parse()?;
                let (fact, open) = (names.tag(&self.name, &tag), names.open(&self.name, &tag));
                let answers = self.ask(vec![Ask::Value(fact.clone()), Ask::First(open.clone())]).await?;
                if answers[1].is_some() {
                    self.wait_for_open(patience).await?;
                    continue;
                }
                let points_here = match &answers[0] {
                    Some(value) => TagFact::decode(value)?.state.to.is_some_and(|to| to.digest == *digest),
                    None => false,
                };
                if points_here && self.registry.is_immutable(&tag) {
                    return Err(fixed(&tag));
                }
                if let (true, Some(value)) = (points_here, &answers[0]) {
                    self.delete_tag_at(&tag, value.clone()).await?;
                    continue;
                }
                let still = match &answers[0] {
                    Some(value) => Check::Equals(fact, value.clone()),
                    None => Check::Absent(fact),
                };
                let batch = Batch {
                    checks: vec![still, Check::Empty(open)],
                    writes: vec![Write::Delete(Fact::new(named_by, member))],
                    ..Batch::default()
                };
                self.commit(batch).await?;
            }
        }
    }

    /// The writes that undo [`Repository::manifest_facts`].
    fn unmake_manifest(&self, manifest: &Manifest, digest: &Digest) -> Vec<Write> {
        let names = &self.lease.names;
        let mut writes = vec![Write::Delete(names.manifest(&self.name, digest))];
        for needed in needed(manifest) {
            writes.push(Write::Delete(Fact::new(names.refs(&self.name, &needed), format!("m:{digest}"))));
        }
        if let Some(subject) = &manifest.subject {
            writes.push(Write::Delete(Fact::new(names.referrers(&self.name, subject), digest.as_str())));
        }
        writes
    }

    /// A repository without manifests leaves the catalog.
    async fn leave_catalog(&self) -> Result<()> {
        let names = &self.lease.names;
        let batch = Batch {
            checks: vec![Check::Empty(names.manifests(&self.name))],
            writes: vec![Write::Delete(Fact::new(names.repositories(), self.name.as_str()))],
            ..Batch::default()
        };
        self.commit(batch).await.map(drop)
    }
}

/// Everything whose link a manifest protects.
pub(crate) fn needed(manifest: &Manifest) -> Vec<Digest> {
    manifest.needs.iter().chain(&manifest.children).cloned().collect()
}

fn fixed(tag: &Tag) -> Error {
    Error::new(Code::Denied, format!("tag {tag} points at the manifest and is immutable"))
        .with_detail(json!({ "tag": tag }))
}

/// The refusal for a manifest that the repository doesn't have.
pub(crate) fn unknown(digest: &Digest) -> Error {
    Error::new(Code::ManifestUnknown, "the repository has no such manifest").with_detail(json!({ "digest": digest }))
}
