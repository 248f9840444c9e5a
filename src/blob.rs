//! Blobs: what a repository may read, and how a link to bytes that are there already comes and goes.
//!
//! Only the index makes a [`Blob`], or a link in the bucket where the index is away, and only a `Blob` can be
//! opened: who holds one has the proof that the repository links it. Bytes come in by [`crate::upload`].

use std::{ops::Range, sync::Arc, time::Duration};

use serde_json::json;
use ulid::Ulid;

use crate::{
    collect,
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Write,
        facts::{self, Action, AttemptFact, DataFact, DataState, EventFact, EventTarget, Hint, LinkFact, TrashFact},
    },
    oci::{Digest, RepositoryName},
    outbox::TOLD,
    registry::Repository,
    storage::{ByteStream, DataKey, Key, SignedUrl, Store},
};

/// A blob that a repository links.
#[derive(Clone, Debug)]
pub struct Blob {
    digest: Digest,
    size: u64,
    data: DataKey,
    store: Arc<dyn Store>,
}

impl Blob {
    /// One whose link was found.
    pub(crate) fn stored(digest: Digest, size: u64, data: DataKey, store: Arc<dyn Store>) -> Self {
        Self { digest, size, data, store }
    }

    /// What it hashes to.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes, or those of a range inside it.
    pub async fn open(&self, range: Option<Range<u64>>) -> Result<ByteStream> {
        if self.size == 0 {
            return Ok(Box::pin(futures_util::stream::empty()));
        }
        Ok(self.store.read(&Key::Data(self.data), range).await?)
    }

    /// The object that holds its bytes, and never any others.
    pub fn data(&self) -> DataKey {
        self.data
    }

    /// A URL by which anyone may GET its bytes from the store, for up to `life`; `None` where the store has no
    /// such thing.
    pub async fn sign(&self, life: Duration) -> Result<Option<SignedUrl>> {
        Ok(self.store.sign(&Key::Data(self.data), life).await?)
    }
}

/// A link that is about to be committed: noted in the index, so that nobody takes its object for garbage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// The link's own name.
    pub(crate) link: Ulid,
    /// Where it writes bytes of its own, if it has to. Never shared with another attempt, so that what one
    /// wrote late can't stand where another's bytes are expected.
    pub(crate) data: DataKey,
}

/// Where the bytes of a link to be are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// In an object that this upload wrote. Its home is the repository's own shard.
    Own(DataKey),
    /// In an object that other links use too, and that this attempt has joined.
    Joined(DataKey),
}

impl Bytes {
    fn data(self) -> DataKey {
        match self {
            Self::Own(data) | Self::Joined(data) => data,
        }
    }
}

/// What a link's commit is about.
pub(crate) struct LinkCommit<'a> {
    pub(crate) attempt: Attempt,
    pub(crate) digest: &'a Digest,
    pub(crate) bytes: Bytes,
    pub(crate) size: u64,
    /// Where a mounted blob comes from.
    pub(crate) from: Option<&'a RepositoryName>,
    /// What must hold of the upload: nobody else has moved it.
    pub(crate) guard: Option<Check>,
    /// The writes that end the upload.
    pub(crate) closing: Vec<Write>,
}

impl LinkCommit<'_> {
    fn checks(&self, repository: &Repository) -> Vec<Check> {
        let noted = Check::Present(repository.lease.names.attempt(self.attempt.link));
        std::iter::once(noted).chain(self.guard.clone()).collect()
    }

    fn closing(&self, repository: &Repository) -> Vec<Write> {
        let mut writes = self.closing.clone();
        writes.push(Write::Delete(repository.lease.names.attempt(self.attempt.link)));
        writes
    }

    fn event(&self, repository: &Repository) -> EventFact {
        let target = EventTarget::Blob(self.digest.clone(), self.size);
        match self.from {
            Some(from) => EventFact { from: Some(from.clone()), ..repository.event(Action::Mount, target) },
            None => repository.event(Action::Push, target),
        }
    }
}

impl Repository {
    /// A blob of this repository.
    pub async fn blob(&self, digest: &Digest) -> Result<Blob> {
        let (fact, _) = self.link(digest).await?.ok_or_else(|| unknown(digest))?;
        Ok(self.blob_of(digest, &fact))
    }

    /// A blob of this repository, for one who may be about to push a manifest that needs it: if nobody has
    /// asked for it for a while, its grace begins anew.
    pub async fn blob_to_keep(&self, digest: &Digest) -> Result<Blob> {
        loop {
            let (fact, value) = self.link(digest).await?.ok_or_else(|| unknown(digest))?;
            let now = self.store().now();
            if fact.renewed.plus(self.registry.options.grace / 4) >= now {
                return Ok(self.blob_of(digest, &fact));
            }
            let link = self.lease.names.link(&self.name, digest);
            let renewed = LinkFact { renewed: now, ..fact.clone() };
            let batch = Batch {
                checks: vec![Check::Equals(link.clone(), value)],
                writes: vec![Write::Put(link, facts::encode(&renewed))],
                ..Batch::default()
            };
            if let Outcome::Committed { .. } = self.commit(batch).await? {
                return Ok(self.blob_of(digest, &fact));
            }
        }
    }

    pub(crate) fn blob_of(&self, digest: &Digest, fact: &LinkFact) -> Blob {
        Blob::stored(digest.clone(), fact.size, fact.data, Arc::clone(self.store()))
    }

    async fn link(&self, digest: &Digest) -> Result<Option<(LinkFact, bytes::Bytes)>> {
        let mut answers = self.ask(vec![Ask::Value(self.lease.names.link(&self.name, digest))]).await?;
        let Some(value) = answers.pop().flatten() else { return Ok(None) };
        Ok(Some((facts::decode(&value)?, value)))
    }

    /// Removes a blob from this repository, unless one of its manifests needs it.
    pub async fn delete_blob(&self, digest: &Digest) -> Result<()> {
        let names = &self.lease.names;
        let link = names.link(&self.name, digest);
        let refs = names.refs(&self.name, digest);
        loop {
            let answers = self.ask(vec![Ask::Value(link.clone()), Ask::First(refs.clone())]).await?;
            let value = answers[0].clone().ok_or_else(|| unknown(digest))?;
            if let Some(needed_by) = &answers[1] {
                return Err(still_needed(digest, needed_by));
            }
            let size = facts::decode::<LinkFact>(&value)?.size;
            let event = || self.event(Action::Delete, EventTarget::Blob(digest.clone(), size));
            let batch = self.telling(Batch::default(), event);
            let is_told = batch.sequence.is_some();
            if let Some((ulid, trash)) = collect::unlink(&self.lease, &self.name, digest, value, batch).await? {
                if is_told {
                    self.wake(&[TOLD]);
                }
                return collect::discard(&self.registry, &self.lease, self.shard, ulid, &trash).await;
            }
        }
    }

    fn link_key(&self, digest: &Digest, fact: &LinkFact) -> Key {
        Key::Link {
            repository: self.name.clone(),
            digest: digest.clone(),
            link: fact.link,
            data: fact.data,
            size: fact.size,
        }
    }

    /// Links a blob of another repository here, without moving a byte. `None` where the source doesn't have
    /// it: the caller then starts an upload, and answers the same as if it were forbidden.
    pub async fn mount(&self, source: &Self, digest: &Digest) -> Result<Option<Blob>> {
        let attempt = self.attempt();
        let (found, noted) = futures_util::try_join!(source.link(digest), self.note_mount(attempt, digest))?;
        if !noted {
            let blob = self.blob_to_keep(digest).await?;
            self.tell(|| self.mounted(source, &blob)).await?;
            return Ok(Some(blob));
        }
        let Some((fact, _)) = found else {
            self.forget(attempt, None, None).await;
            return Ok(None);
        };
        let there = Hint { data: fact.data, size: fact.size };
        let mounted = self.mount_data(attempt, digest, &there, &source.name).await;
        if !matches!(mounted, Ok(Some(_))) {
            let link = self.attempted_link(attempt, digest, Bytes::Joined(there.data), there.size);
            self.forget(attempt, Some(there.data), Some(&link)).await;
        }
        mounted
    }

    fn mounted(&self, source: &Self, blob: &Blob) -> EventFact {
        let target = EventTarget::Blob(blob.digest.clone(), blob.size);
        EventFact { from: Some(source.name.clone()), ..self.event(Action::Mount, target) }
    }

    pub(crate) async fn mount_data(
        &self,
        attempt: Attempt,
        digest: &Digest,
        there: &Hint,
        from: &RepositoryName,
    ) -> Result<Option<Blob>> {
        if !self.join(attempt, digest, there).await? {
            return Ok(None);
        }
        let (bytes, size) = (Bytes::Joined(there.data), there.size);
        self.put_link(attempt, digest, bytes, size).await?;
        let commit = LinkCommit { attempt, digest, bytes, size, from: Some(from), guard: None, closing: Vec::new() };
        self.commit_link(commit).await.map(Some)
    }

    /// Forgets an attempt that failed, and throws away what it may have written: its link, bytes of its own,
    /// its use of joined data. Where its commit got through after all, or still does, one of the two finds
    /// that the other was first.
    pub(crate) async fn forget(&self, attempt: Attempt, joined: Option<DataKey>, link: Option<&Key>) {
        let names = &self.lease.names;
        let noted = names.attempt(attempt.link);
        let user = joined.map(|data| (data, self.name.clone(), attempt.link));
        let keys = link.cloned().into_iter().chain([Key::Data(attempt.data)]).map(|key| key.to_string()).collect();
        let trash = TrashFact { keys, user, ..TrashFact::default() };
        let batch = Batch {
            checks: vec![Check::Present(noted.clone())],
            writes: vec![Write::Delete(noted), Write::Put(names.trashed(attempt.link), facts::encode(&trash))],
            ..Batch::default()
        };
        match self.commit(batch).await {
            Ok(_) => self.registry.work.notify_one(),
            Err(error) => tracing::debug!(%error, "the note of a failed attempt stays until it expires"),
        }
    }

    /// Notes the link of a mount; false where the repository has the blob already.
    pub(crate) async fn note_mount(&self, attempt: Attempt, digest: &Digest) -> Result<bool> {
        let batch = Batch {
            checks: vec![Check::Absent(self.lease.names.link(&self.name, digest))],
            writes: vec![self.note(attempt)],
            ..Batch::default()
        };
        Ok(matches!(self.commit(batch).await?, Outcome::Committed { .. }))
    }

    /// A new attempt to link something.
    pub(crate) fn attempt(&self) -> Attempt {
        Attempt { link: self.fresh(), data: self.fresh_data() }
    }

    /// The write that notes an attempt.
    pub(crate) fn note(&self, attempt: Attempt) -> Write {
        let fact = AttemptFact { repository: self.name.clone(), data: attempt.data };
        Write::Put(self.lease.names.attempt(attempt.link), facts::encode(&fact))
    }

    /// A ULID by the store's clock.
    pub(crate) fn fresh(&self) -> Ulid {
        fresh(&**self.store())
    }

    /// A new data key whose home is this repository's own shard, so that link and data are one batch.
    pub(crate) fn fresh_data(&self) -> DataKey {
        loop {
            let data = DataKey(self.fresh());
            if self.lease.names.home_of(data) == self.shard {
                return data;
            }
        }
    }

    /// What an index keeps about bytes of this digest that are there already; possibly stale.
    pub(crate) async fn hint(&self, digest: &Digest) -> Result<Option<Hint>> {
        let names = &self.lease.names;
        let mut answers = self.lease.get(names.hint_shard(digest), &[Ask::Value(names.hint(digest))]).await?;
        Ok(answers.pop().flatten().map(|value| facts::decode(&value)).transpose()?)
    }

    /// Becomes a user of a data object, if it is live and holds this digest.
    pub(crate) async fn join(&self, attempt: Attempt, digest: &Digest, hint: &Hint) -> Result<bool> {
        let names = &self.lease.names;
        let live = DataFact { digest: digest.clone(), size: hint.size, state: DataState::Live };
        let batch = Batch {
            checks: vec![Check::Equals(names.data(hint.data), facts::encode(&live))],
            writes: vec![self.use_of(hint.data, attempt.link, digest)],
            ..Batch::default()
        };
        let outcome = self.lease.commit(names.home_of(hint.data), batch).await?;
        Ok(matches!(outcome, Outcome::Committed { .. }))
    }

    /// The write that makes a link a user of a data object.
    pub(crate) fn use_of(&self, data: DataKey, link: Ulid, digest: &Digest) -> Write {
        let user = self.lease.names.user(data, &self.name, link);
        Write::Put(user, bytes::Bytes::copy_from_slice(digest.as_str().as_bytes()))
    }

    /// Where the link's object goes.
    pub(crate) fn attempted_link(&self, attempt: Attempt, digest: &Digest, bytes: Bytes, size: u64) -> Key {
        let (repository, digest) = (self.name.clone(), digest.clone());
        Key::Link { repository, digest, link: attempt.link, data: bytes.data(), size }
    }

    /// Writes the link's object. Only for a digest that was verified.
    pub(crate) async fn put_link(&self, attempt: Attempt, digest: &Digest, bytes: Bytes, size: u64) -> Result<()> {
        let key = self.attempted_link(attempt, digest, bytes, size);
        Ok(self.store().put(&key, Vec::new(), None).await?)
    }

    /// Makes a link that is in the bucket a fact, together with what ends its upload. Where the repository
    /// has got the blob meanwhile, that link is renewed and ours goes to the trash.
    pub(crate) async fn commit_link(&self, commit: LinkCommit<'_>) -> Result<Blob> {
        let names = &self.lease.names;
        let LinkCommit { attempt, digest, bytes, size, .. } = commit;
        let link = names.link(&self.name, digest);
        let fact = LinkFact { link: attempt.link, data: bytes.data(), size, renewed: self.store().now() };
        let mut checks = commit.checks(self);
        checks.push(Check::Absent(link.clone()));
        let mut writes = commit.closing(self);
        writes.push(Write::Put(link, facts::encode(&fact)));
        if let Bytes::Own(data) = bytes {
            let live = DataFact { digest: digest.clone(), size, state: DataState::Live };
            writes.push(Write::Put(names.data(data), facts::encode(&live)));
            writes.push(self.use_of(data, attempt.link, digest));
        }
        let batch = self.telling(Batch { checks, writes, ..Batch::default() }, || commit.event(self));
        match self.commit_telling(batch).await? {
            Outcome::Committed { .. } => {
                if let Bytes::Own(data) = bytes {
                    self.leave_hint(digest, Hint { data, size });
                }
                Ok(self.blob_of(digest, &fact))
            }
            Outcome::Refused { .. } => self.yield_to_link(commit, &fact).await,
        }
    }

    /// The repository has this blob by another link, or the attempt is over.
    async fn yield_to_link(&self, commit: LinkCommit<'_>, ours: &LinkFact) -> Result<Blob> {
        let LinkCommit { attempt, digest, bytes, .. } = commit;
        let link = self.lease.names.link(&self.name, digest);
        loop {
            let there = self.link(digest).await?;
            if let Some((there, _)) = there.as_ref().filter(|(there, _)| there.link == attempt.link) {
                // An earlier try of this commit got through, though its answer didn't.
                return Ok(self.blob_of(digest, there));
            }
            let mut checks = commit.checks(self);
            let guards = checks.len();
            let mut writes = commit.closing(self);
            writes.push(self.trash_attempt(attempt, digest, bytes, ours));
            if let Some((there, value)) = &there {
                let renewed = LinkFact { renewed: ours.renewed, ..there.clone() };
                checks.push(Check::Equals(link.clone(), value.clone()));
                writes.push(Write::Put(link.clone(), facts::encode(&renewed)));
                if let (Bytes::Own(data), true) =
                    (bytes, bytes != Bytes::Own(attempt.data) && there.data != bytes.data())
                {
                    // The upload ends with this batch, so nobody else will remove what it put aside.
                    let keys = vec![Key::Data(data).to_string()];
                    writes.push(self.trash(&TrashFact { keys, ..TrashFact::default() }));
                }
                let batch = self.telling(Batch { checks, writes, ..Batch::default() }, || commit.event(self));
                match self.commit_telling(batch).await? {
                    Outcome::Committed { .. } => {
                        self.registry.work.notify_one();
                        return Ok(self.blob_of(digest, there));
                    }
                    Outcome::Refused { check } if check >= guards => continue,
                    Outcome::Refused { .. } => {}
                }
            }
            // Another request has ended the upload. What only this attempt wrote is garbage.
            let note = Write::Delete(self.lease.names.attempt(attempt.link));
            let writes = vec![note, self.trash_attempt(attempt, digest, bytes, ours)];
            let mut batch = Batch { writes, ..Batch::default() };
            if there.is_some() {
                batch = self.telling(batch, || commit.event(self));
            }
            self.commit_telling(batch).await?;
            self.registry.work.notify_one();
            return match there {
                Some((there, _)) => Ok(self.blob_of(digest, &there)),
                None => Err(Error::new(Code::BlobUploadUnknown, "another request ended this upload; start again")),
            };
        }
    }

    /// The write that throws away what one attempt wrote: its link, its use of joined data, its own data.
    fn trash_attempt(&self, attempt: Attempt, digest: &Digest, bytes: Bytes, ours: &LinkFact) -> Write {
        let mut trash = TrashFact { keys: vec![self.link_key(digest, ours).to_string()], ..TrashFact::default() };
        match bytes {
            Bytes::Own(data) if data == attempt.data => trash.keys.push(Key::Data(data).to_string()),
            Bytes::Own(_) => {}
            Bytes::Joined(data) => trash.user = Some((data, self.name.clone(), attempt.link)),
        }
        Write::Put(self.lease.names.trashed(attempt.link), facts::encode(&trash))
    }

    /// Writes the hint, without making anybody wait for it.
    fn leave_hint(&self, digest: &Digest, hint: Hint) {
        let (lease, digest) = (Arc::clone(&self.lease), digest.clone());
        tokio::spawn(async move {
            let write = Write::Put(lease.names.hint(&digest), facts::encode(&hint));
            let batch = Batch { writes: vec![write], ..Batch::default() };
            if let Err(error) = lease.commit(lease.names.hint_shard(&digest), batch).await {
                tracing::debug!(%error, %digest, "a hint was not written; the next push of these bytes stores them again");
            }
        });
    }
}

/// A ULID by the store's clock, so that its age means something on every replica.
pub(crate) fn fresh(store: &dyn Store) -> Ulid {
    Ulid::from_datetime(std::time::UNIX_EPOCH + std::time::Duration::from_millis(store.now().0))
}

/// The refusal for a blob that the repository doesn't link.
pub(crate) fn unknown(digest: &Digest) -> Error {
    Error::new(Code::BlobUnknown, "the repository has no such blob").with_detail(json!({ "digest": digest }))
}

fn still_needed(digest: &Digest, needed_by: &[u8]) -> Error {
    let needed_by = String::from_utf8_lossy(needed_by);
    match needed_by.strip_prefix("m:") {
        Some(manifest) => Error::new(
            Code::Denied,
            format!("manifest {manifest} of this repository needs the blob; delete that first"),
        )
        .with_detail(json!({ "digest": digest, "manifest": manifest })),
        None => Error::new(Code::Denied, "a manifest that needs the blob is being pushed to this repository")
            .with_detail(json!({ "digest": digest })),
    }
}
