//! Pushing a manifest: reserved, written, committed; and the end of a push whose writer died.

use bytes::Bytes;
use serde_json::json;
use ulid::Ulid;

use super::needed;
use crate::{
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Write,
        facts::{IntendedManifest, TagFact, TagState, Target, TrashFact},
    },
    oci::{Digest, Manifest, Tag, manifest::MAX_MANIFEST},
    registry::{Repository, found},
    storage::read_small,
    tag::{Reserved, Wanted},
};

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
    /// Whether this pusher may not move a tag that exists.
    pub create_only: bool,
}

impl Push {
    fn target(&self) -> Target {
        let media_type = self.manifest.media_type.clone();
        Target { digest: self.digest.clone(), media_type, size: self.bytes.len() as u64 }
    }
}

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
    /// Pushes a manifest, and makes its tags point at it. After an error it may happen all the same.
    pub async fn push_manifest(&self, push: Push) -> Result<()> {
        let ours = self.fresh();
        let (reserved, copy) = match self.reserve_push(&push, ours).await? {
            Reservation::Needed(reserved, copy) => (reserved, copy),
            Reservation::NothingToDo => return Ok(()),
        };
        if let Copy::Ours(object) = copy {
            let key = self.manifest_key(&push.digest, object);
            // With a deadline it is sent only once: a first attempt that was given up for lost could arrive after the
            // manifest was pushed by the second, and deleted, and an index that is lost then would find it.
            self.store().put(&key, vec![push.bytes.clone()], Some(reserved.fact.deadline)).await?;
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
                target: Some(push.target()),
                needs: needed(manifest),
            };
            match self.reserve(wanted, checks, reads).await? {
                Ok((reserved, reads)) => {
                    let copy = if reads[0].is_some() { Copy::There } else { Copy::Ours(ours) };
                    if copy == Copy::There && is_so_already(push, &reads[1..])? {
                        self.end_idle_push(&reserved, push).await?;
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

    /// Ends a push that changes nothing. It is told all the same, by the batch that ends it: nothing in the bucket says
    /// that it was, so a push whose batch failed isn't acknowledged. Where nobody is told, recovery can end it as
    /// well.
    async fn end_idle_push(&self, reserved: &Reserved, push: &Push) -> Result<()> {
        let deliveries = self.deliveries(reserved, &push.tags, Some(&push.target()));
        if deliveries.is_empty() {
            self.commit_or_leave(reserved, self.drop_intent(reserved, None)).await;
            return Ok(());
        }
        let is_ended = self.drop_intent(reserved, deliveries).await;
        self.registry.work.notify_one();
        if is_ended? { Ok(()) } else { Err(Error::unavailable("the push took longer than its deadline")) }
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
            writes.extend(self.deliveries(reserved, tags, Some(to)));
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
                    return self.drop_intent(reserved, Some(trash)).await.map(drop);
                }
            },
        };
        let manifest = Manifest::parse(&bytes, None)?;
        if counting.is_empty() && !reserved.fact.tags.is_empty() {
            let trash = match copy {
                Copy::Ours(object) => self.trash_unless_used(&intended.digest, object).await?,
                Copy::There | Copy::Second(_) => None,
            };
            return self.drop_intent(reserved, trash).await.map(drop);
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

fn state_of(push: &Push, reserved: &Reserved) -> TagState {
    TagState { to: Some(push.target()), at: reserved.fact.at, by: reserved.fact.by.clone() }
}
