//! Manifests: found by tag or digest, pushed with any number of tags, deleted with all that point at them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use ulid::Ulid;

use crate::{
    collect,
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Write,
        facts::{self, IntendedManifest, ManifestFact, TagFact, TagState, Target, TrashFact},
    },
    oci::{Digest, Manifest, Reference, Tag, manifest::MAX_MANIFEST},
    registry::{Repository, found},
    storage::{Key, key, read_small},
    tag::{Reserved, Wanted},
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

/// A manifest to be pushed; parsed, and its digest verified, by the caller.
#[derive(Clone, Debug)]
pub struct Push {
    /// What the bytes hash to.
    pub digest: Digest,
    /// Exactly what the client sent.
    pub bytes: Bytes,
    /// What they say.
    pub manifest: Manifest,
    /// The tags that shall point at it: all or none of them are reserved.
    pub tags: Vec<Tag>,
    /// Who pushes.
    pub by: String,
    /// Whether this pusher may not move a tag that exists.
    pub create_only: bool,
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

/// The most manifests that one listing of all of them shows.
const MAX_LISTED: usize = 50_000;

/// Which object will hold the manifest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    /// The repository had it before.
    There,
    /// The one that this push writes.
    Ours(Ulid),
    /// This push wrote one, and another push was first.
    Second(Ulid),
}

impl Repository {
    /// Finds a manifest by what a tag points at now, or by its digest.
    pub async fn find_manifest(&self, reference: &Reference) -> Result<FoundManifest> {
        match reference {
            Reference::Tag(tag) => {
                let Target { digest, media_type, size } =
                    self.resolve(tag).await?.ok_or_else(|| crate::tag::unknown(tag))?;
                Ok(FoundManifest { digest, media_type, size })
            }
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
        let (_, bytes) = self.manifest_from_bucket(digest).await?.ok_or_else(|| unknown(digest))?;
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
            None => self.manifest_from_bucket(&manifest.digest).await?.ok_or_else(|| unknown(&manifest.digest))?.1,
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

    /// Any object of a manifest that the bucket has, and its bytes.
    pub(crate) async fn manifest_from_bucket(&self, digest: &Digest) -> Result<Option<(Ulid, Bytes)>> {
        let prefix = format!("{}{digest}/", key::folder(&self.name, key::Folder::Manifests));
        let page = self.store().list(&prefix, None, 10).await?;
        for (text, _) in &page.objects {
            if let Some(key @ Key::Manifest { object, .. }) = Key::parse(text) {
                // One that is gone was the second of two: the other is as good.
                if let Some(bytes) = found(read_small(self.store(), &key, MAX_MANIFEST).await)? {
                    return Ok(Some((object, bytes)));
                }
            }
        }
        Ok(None)
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

    /// Pushes a manifest, and makes its tags point at it. After an error it may happen all the same.
    pub async fn push_manifest(&self, push: Push) -> Result<()> {
        let ours = self.fresh();
        let (reserved, copy) = match self.reserve_push(&push, ours).await? {
            Reservation::Needed(reserved, copy) => (reserved, copy),
            Reservation::NothingToDo => return Ok(()),
        };
        if let Copy::Ours(object) = copy {
            let key = self.manifest_key(&push.digest, object);
            self.store().put(&key, vec![push.bytes.clone()], None).await?;
        }
        let state = state_of(&push, &reserved);
        if reserved.fact.tags.is_empty() {
            let too_late = reserved.fact.deadline.minus(self.registry.options.timing.margin);
            if self.store().now() >= too_late {
                return Err(Error::unavailable("the manifest was written after its deadline"));
            }
        } else {
            self.write_revisions(&reserved, &state).await?;
        }
        self.registry.manifests.insert(push.digest.clone(), push.bytes.clone());
        let tags = reserved.fact.tags.clone();
        self.commit_or_leave(&reserved, self.commit_push(&reserved, &push.manifest, &tags, &state, copy)).await;
        Ok(())
    }

    async fn reserve_push(&self, push: &Push, ours: Ulid) -> Result<Reservation> {
        let names = &self.lease.names;
        let manifest = &push.manifest;
        let link = |digest: &Digest| Check::Present(names.link(&self.name, digest));
        loop {
            let mut checks: Vec<Check> = manifest.needs.iter().map(link).collect();
            let fixed = self.check_fixed_tags(push).await?;
            checks.extend(fixed);
            let mut reads = vec![Ask::Value(names.manifest(&self.name, &push.digest))];
            for tag in &push.tags {
                reads.push(Ask::Value(names.tag(&self.name, tag)));
                reads.push(Ask::First(names.open(&self.name, tag)));
            }
            let wanted = Wanted {
                tags: push.tags.clone(),
                manifest: Some(IntendedManifest { digest: push.digest.clone(), object: ours }),
                needs: needed(manifest),
                by: push.by.clone(),
            };
            match self.reserve(wanted, checks, reads).await? {
                Ok((reserved, reads)) => {
                    let copy = if reads[0].is_some() { Copy::There } else { Copy::Ours(ours) };
                    if copy == Copy::There && is_so_already(push, &reads[1..])? {
                        let dropped = async { self.drop_intent(&reserved, None).await.map(|()| true) };
                        self.commit_or_leave(&reserved, dropped).await;
                        return Ok(Reservation::NothingToDo);
                    }
                    return Ok(Reservation::Needed(Box::new(reserved), copy));
                }
                Err(check) if check < manifest.needs.len() => return Err(self.missing_blobs(manifest).await?),
                // A tag that must not be moved was moved between the look and the reservation: look again.
                Err(_) => {}
            }
        }
    }

    /// For tags that may be made but not moved: the checks that they still don't exist.
    async fn check_fixed_tags(&self, push: &Push) -> Result<Vec<Check>> {
        let names = &self.lease.names;
        let is_fixed = |tag: &&Tag| push.create_only || self.registry.is_immutable(tag);
        let mut checks = Vec::new();
        for tag in push.tags.iter().filter(is_fixed) {
            let (fact, open) = (names.tag(&self.name, tag), names.open(&self.name, tag));
            let patience = self.patience();
            let value = loop {
                let mut answers = self.ask(vec![Ask::Value(fact.clone()), Ask::First(open.clone())]).await?;
                if answers[1].is_none() {
                    break answers.swap_remove(0);
                }
                self.wait_for_open(patience).await?;
            };
            checks.push(match value {
                None => Check::Absent(fact),
                Some(value) => {
                    let there = TagFact::decode(&value)?.state.to;
                    if there.is_some_and(|to| to.digest != push.digest) {
                        let why = if self.registry.is_immutable(tag) {
                            "is immutable"
                        } else {
                            "exists, and you may only make new ones"
                        };
                        return Err(
                            Error::new(Code::Denied, format!("tag {tag} {why}")).with_detail(json!({ "tag": tag }))
                        );
                    }
                    Check::Equals(fact, value)
                }
            });
            checks.push(Check::Empty(open));
        }
        Ok(checks)
    }

    async fn missing_blobs(&self, manifest: &Manifest) -> Result<Error> {
        let names = &self.lease.names;
        let asks = manifest.needs.iter().map(|digest| Ask::Value(names.link(&self.name, digest))).collect();
        let answers = self.ask(asks).await?;
        let missing: Vec<&Digest> = manifest
            .needs
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_none())
            .map(|(digest, _)| digest)
            .collect();
        Ok(Error::new(Code::ManifestBlobUnknown, "the repository lacks blobs that the manifest needs; push them first")
            .with_detail(json!({ "digests": missing })))
    }

    /// The third step of a push, or of a recovery of one. True if this call or an earlier one did it.
    async fn commit_push(
        &self,
        reserved: &Reserved,
        manifest: &Manifest,
        tags: &[Tag],
        state: &TagState,
        copy: Copy,
    ) -> Result<bool> {
        let Some(to) = &state.to else { return Ok(false) };
        let names = &self.lease.names;
        let fact = names.manifest(&self.name, &to.digest);
        let mut copy = copy;
        loop {
            let mut checks = vec![Check::Present(names.intent(reserved.intent))];
            let mut writes = self.raise_tags(reserved, tags, state);
            writes.extend(self.close_intent(reserved));
            match copy {
                Copy::There => checks.push(Check::Present(fact.clone())),
                Copy::Ours(object) => {
                    checks.push(Check::Absent(fact.clone()));
                    writes.extend(self.manifest_facts(manifest, to, object, state));
                }
                Copy::Second(object) => {
                    checks.push(Check::Present(fact.clone()));
                    writes.extend(self.trash_unless_used(&to.digest, object).await?);
                }
            }
            match self.commit(Batch { checks, writes, ..Batch::default() }).await? {
                Outcome::Committed { .. } => {
                    self.wake_waiting();
                    return Ok(true);
                }
                Outcome::Refused { check: 0 } => return Ok(true),
                Outcome::Refused { .. } => {
                    copy = match copy {
                        Copy::Ours(object) => Copy::Second(object),
                        Copy::There | Copy::Second(_) => return Err(Error::internal("a pinned manifest is gone")),
                    };
                }
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

    /// Finishes what a writer left: past the deadline (and the margin) of its intent, what it wrote either
    /// counts or never will. Any number of replicas may do this, late or twice.
    pub(crate) async fn recover(&self, reserved: &Reserved) -> Result<()> {
        let counting = self.counting_tags(reserved).await?;
        let Some(intended) = reserved.fact.manifest.clone() else {
            let state = TagState { to: None, at: reserved.fact.at, by: reserved.fact.by.clone() };
            return self.commit_tags(reserved, &counting, &state).await.map(drop);
        };
        let key = self.manifest_key(&intended.digest, intended.object);
        let (copy, bytes) = match found(read_small(self.store(), &key, MAX_MANIFEST).await)? {
            Some(bytes) => (Copy::Ours(intended.object), bytes),
            None => match self.manifest_fact(&intended.digest).await? {
                Some(fact) => {
                    let there = self.manifest_key(&intended.digest, fact.object);
                    (Copy::There, read_small(self.store(), &there, MAX_MANIFEST).await?)
                }
                None => {
                    let keys = vec![key.to_string()];
                    let trash = self.trash(&TrashFact { keys, ..TrashFact::default() });
                    return self.drop_intent(reserved, Some(trash)).await;
                }
            },
        };
        let manifest = Manifest::parse(&bytes, None)?;
        if counting.is_empty() && !reserved.fact.tags.is_empty() {
            let trash = match copy {
                Copy::Ours(object) => self.trash_unless_used(&intended.digest, object).await?,
                Copy::There | Copy::Second(_) => None,
            };
            return self.drop_intent(reserved, trash).await;
        }
        let to = Target { digest: intended.digest, media_type: manifest.media_type.clone(), size: bytes.len() as u64 };
        let state = TagState { to: Some(to), at: reserved.fact.at, by: reserved.fact.by.clone() };
        self.commit_push(reserved, &manifest, &counting, &state, copy).await.map(drop)
    }

    /// The tags of an intent whose revisions count.
    async fn counting_tags(&self, reserved: &Reserved) -> Result<Vec<Tag>> {
        let mut counting = Vec::new();
        for tag in &reserved.fact.tags {
            let stat = self.store().stat(&reserved.revision_key(tag)).await?;
            if stat.is_some_and(|stat| stat.modified <= reserved.fact.deadline) {
                counting.push(tag.clone());
            }
        }
        Ok(counting)
    }

    /// The object that a push wrote goes to the trash, unless it is the one that counts.
    async fn trash_unless_used(&self, digest: &Digest, object: Ulid) -> Result<Option<Write>> {
        let there = self.manifest_fact(digest).await?;
        if there.is_some_and(|there| there.object == object) {
            return Ok(None);
        }
        let keys = vec![self.manifest_key(digest, object).to_string()];
        Ok(Some(self.trash(&TrashFact { keys, ..TrashFact::default() })))
    }

    /// Removes a manifest: first every tag that points at it, then the manifest. Returns once the bucket
    /// has lost it as well.
    pub async fn delete_manifest(&self, digest: &Digest, by: &str) -> Result<()> {
        let names = &self.lease.names;
        let named_by = names.names_of(&self.name, digest);
        let value = self.manifest_value(digest).await?.ok_or_else(|| unknown(digest))?;
        let fact: ManifestFact = facts::decode(&value)?;
        let found = FoundManifest { digest: digest.clone(), media_type: fact.media_type.clone(), size: fact.size };
        let manifest = Manifest::parse(&self.manifest_bytes(&found).await?, None)?;
        let patience = self.patience();
        self.refuse_if_fixed(digest, &named_by).await?;
        loop {
            self.untag(digest, &named_by, by, patience).await?;
            let object = self.manifest_key(digest, fact.object);
            let ulid = self.fresh();
            let trash = TrashFact { keys: vec![object.to_string()], ..TrashFact::default() };
            let mut writes = self.unmake_manifest(&manifest, digest);
            writes.push(Write::Put(names.trashed(ulid), facts::encode(&trash)));
            let checks =
                vec![Check::Empty(named_by.clone()), Check::Equals(names.manifest(&self.name, digest), value.clone())];
            match self.commit(Batch { checks, writes, ..Batch::default() }).await? {
                Outcome::Committed { .. } => {
                    self.leave_catalog().await?;
                    return collect::discard(&self.registry, &self.lease, self.shard, ulid, &trash).await;
                }
                Outcome::Refused { check: 0 } => {}
                Outcome::Refused { .. } => return Err(unknown(digest)),
            }
        }
    }

    async fn manifest_value(&self, digest: &Digest) -> Result<Option<Bytes>> {
        Ok(self.ask(vec![Ask::Value(self.lease.names.manifest(&self.name, digest))]).await?.pop().flatten())
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
    async fn untag(
        &self,
        digest: &Digest,
        named_by: &str,
        by: &str,
        patience: crate::storage::StoreTime,
    ) -> Result<()> {
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
                    self.delete_tag_at(&tag, value.clone(), by).await?;
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

enum Reservation {
    /// Write and commit.
    Needed(Box<Reserved>, Copy),
    /// Every tag points at the manifest already.
    NothingToDo,
}

/// Whether all tags of a push point at its manifest, and nobody is moving one of them.
fn is_so_already(push: &Push, reads: &[Option<Bytes>]) -> Result<bool> {
    for tag in reads.chunks(2) {
        let [Some(value), None] = tag else { return Ok(false) };
        if TagFact::decode(value)?.state.to.is_none_or(|to| to.digest != push.digest) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Everything whose link a manifest protects.
pub(crate) fn needed(manifest: &Manifest) -> Vec<Digest> {
    manifest.needs.iter().chain(&manifest.children).cloned().collect()
}

fn state_of(push: &Push, reserved: &Reserved) -> TagState {
    let to = Target {
        digest: push.digest.clone(),
        media_type: push.manifest.media_type.clone(),
        size: push.bytes.len() as u64,
    };
    TagState { to: Some(to), at: reserved.fact.at, by: push.by.clone() }
}

fn fixed(tag: &Tag) -> Error {
    Error::new(Code::Denied, format!("tag {tag} points at the manifest and is immutable"))
        .with_detail(json!({ "tag": tag }))
}

fn unknown(digest: &Digest) -> Error {
    Error::new(Code::ManifestUnknown, "the repository has no such manifest").with_detail(json!({ "digest": digest }))
}
