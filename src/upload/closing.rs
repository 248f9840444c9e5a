//! The end of an upload: the digest is verified, the bytes get their link, and the repository has the blob.

use std::sync::OnceLock;

use super::{
    Incoming, Proof, Stored, UploadId, digest_invalid, intake, nothing_yet, out_of_order, trash_of, upload_unknown,
};
use crate::{
    blob::{Attempt, Blob, Bytes, LinkCommit},
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Write,
        facts::{self, Action, Aside, EventTarget, Hint, OpenUpload, PartsUpload, TrashFact, UploadFact, UploadState},
    },
    oci::{Digest, Hasher},
    registry::Repository,
    storage::{DataKey, Key},
};
use intake::{Head, Intake, Start, Taken};

/// What an attempt to close an upload found.
enum Opened {
    /// It was closed before, with the same digest.
    Finished,
    /// It stands here; the repository may have the blob already.
    At { stored: Stored, has_link: bool },
}

/// One attempt to make an upload a blob.
struct Closing<'a> {
    repository: &'a Repository,
    id: &'a UploadId,
    proof: Option<&'a Proof>,
    attempt: Attempt,
    digest: &'a Digest,
    /// Where the bytes may be already.
    hint: Option<Hint>,
    /// The object that this attempt has become a user of, if any.
    joined: OnceLock<DataKey>,
    /// The link's object, once it may have been written.
    linked: OnceLock<Key>,
}

/// What the bytes turned out to be, once all are in.
struct Verified {
    taken: Taken,
    /// Where the upload stood before.
    before: Stored,
    /// Whether the digest was compared: not yet, where only the closing request named its algorithm.
    compared: bool,
}

impl Repository {
    /// Makes the upload a blob, with the last of its bytes in `body` (often none). The same request again
    /// gets the same answer.
    pub async fn finish(
        &self,
        id: &UploadId,
        proof: Option<&Proof>,
        at: Option<u64>,
        digest: &Digest,
        mut body: Incoming,
    ) -> Result<Blob> {
        let attempt = self.attempt();
        let is_first = self.is_first(id, proof) && at.unwrap_or(0) == 0;
        let opening = self.open_attempt(id, attempt, digest, is_first);
        let head = body.head(&self.registry, Start::of(is_first));
        let (opened, hint, head) = futures_util::join!(opening, self.hint(digest), head);
        // Without a hint the bytes are stored once more, no worse.
        let hint = hint.ok().flatten();
        let closing = Closing {
            repository: self,
            id,
            proof,
            attempt,
            digest,
            hint,
            joined: OnceLock::new(),
            linked: OnceLock::new(),
        };
        let closed = match opened? {
            Opened::Finished => self.blob(digest).await.map_err(|_| upload_unknown()),
            Opened::At { stored, has_link } => {
                if at.is_some_and(|at| at != stored.open.offset) {
                    Err(out_of_order(stored.open.offset))
                } else {
                    match head {
                        Ok(head) => closing.close(stored, has_link, head, body).await,
                        Err(error) => Err(error),
                    }
                }
            }
        };
        if closed.is_err() {
            closing.forget().await;
        }
        closed
    }

    /// Notes the attempt, and learns where the upload stands and whether the repository has the blob.
    async fn open_attempt(&self, id: &UploadId, attempt: Attempt, digest: &Digest, assume_new: bool) -> Result<Opened> {
        let upload = self.lease.names.upload(id.ulid);
        let mut is_new = assume_new;
        let first = nothing_yet(&Hasher::new(digest.algorithm()));
        let first = Stored { value: self.record(UploadState::Open(first.clone())), open: first };
        loop {
            let mut writes = vec![self.note(attempt)];
            let check = if is_new {
                self.refuse_expired(id)?;
                writes.push(Write::Put(upload.clone(), first.value.clone()));
                Check::Absent(upload.clone())
            } else {
                Check::Present(upload.clone())
            };
            let reads = vec![Ask::Value(upload.clone()), Ask::Value(self.lease.names.link(&self.name, digest))];
            let batch = Batch { checks: vec![check], writes, reads, ..Batch::default() };
            let Outcome::Committed { reads, .. } = self.commit(batch).await? else {
                is_new = !is_new;
                continue;
            };
            let has_link = reads[1].is_some();
            let Some(value) = reads[0].clone() else { return Ok(Opened::At { stored: first, has_link }) };
            let fact: UploadFact = facts::decode(&value)?;
            return match fact.state {
                UploadState::Open(open) => Ok(Opened::At { stored: Stored { open, value }, has_link }),
                UploadState::Finished(done) if done == *digest => {
                    self.write(vec![Write::Delete(self.lease.names.attempt(attempt.link))]).await?;
                    Ok(Opened::Finished)
                }
                UploadState::Finished(_) | UploadState::Over => {
                    self.write(vec![Write::Delete(self.lease.names.attempt(attempt.link))]).await?;
                    Err(upload_unknown())
                }
            };
        }
    }
}

impl Closing<'_> {
    async fn close(&self, stored: Stored, has_link: bool, head: Head, body: Incoming) -> Result<Blob> {
        let is_large = !head.is_all && stored.open.offset == 0;
        let early = is_large
            && !has_link
            && self.hint.as_ref().is_some_and(|hint| body.length.is_none_or(|length| length == hint.size));
        let is_there = (is_large && has_link) || (early && self.join().await?);
        let mut intake = self.repository.resume(self.id, self.proof, &stored, self.digest.algorithm(), &head).await?;
        if is_there {
            intake = intake.discarding();
        }
        self.close_with(intake, stored, has_link, head, body).await
    }

    /// Becomes a user of the object that the hint names, if that is still possible.
    async fn join(&self) -> Result<bool> {
        let Some(hint) = &self.hint else { return Ok(false) };
        let joined = self.joined.get().is_some() || self.repository.join(self.attempt, self.digest, hint).await?;
        if joined {
            self.joined.get_or_init(|| hint.data);
        }
        Ok(joined)
    }

    async fn close_with(
        &self,
        intake: Intake<'_>,
        before: Stored,
        has_link: bool,
        head: Head,
        body: Incoming,
    ) -> Result<Blob> {
        let discards = intake.discards();
        let taken = intake.take_all(head, body).await?;
        if let Some(error) = taken.error.clone() {
            self.repository.give_back(self.id, before.open, taken.recorded, taken.parts).await;
            return Err(error);
        }
        let compared = taken.hasher.algorithm() == self.digest.algorithm();
        let all = Verified { taken, before, compared };
        if compared && all.taken.hasher.clone().finish() != *self.digest {
            self.repository.abandon(self.id, all.recorded(), trash_of(&all.leftover())).await;
            return Err(digest_invalid(self.digest));
        }
        if compared
            && has_link
            && let Some(blob) = self.renew(&all).await?
        {
            return Ok(blob);
        }
        let fits = self.hint.as_ref().is_some_and(|hint| hint.size == all.taken.offset);
        if compared && fits && self.join().await? {
            return self.link_joined(all).await;
        }
        if discards {
            return Err(Error::unavailable("the bytes that were there went away while they were sent again"));
        }
        let (before, recorded, parts) = (all.before.open.clone(), all.taken.recorded.clone(), all.taken.parts.clone());
        let stored = self.store_and_link(all).await;
        if stored.is_err() {
            self.repository.give_back(self.id, before, recorded, parts).await;
        }
        stored
    }

    /// The repository has the blob already: its link is renewed, these bytes are not needed. `None` where
    /// it has just lost it.
    async fn renew(&self, all: &Verified) -> Result<Option<Blob>> {
        let blob = match self.repository.blob_to_keep(self.digest).await {
            Ok(blob) => blob,
            Err(error) if error.code == Code::BlobUnknown => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut writes = self.closing(trash_of(&all.leftover()));
        writes.push(Write::Delete(self.repository.lease.names.attempt(self.attempt.link)));
        let repository = self.repository;
        let event = || repository.event(Action::Push, EventTarget::Blob(self.digest.clone(), all.taken.offset));
        let batch = Batch { checks: vec![self.unmoved(all)], writes, ..Batch::default() };
        if let Outcome::Refused { .. } = repository.commit_telling(repository.telling(batch, event)).await? {
            self.forget().await;
            repository.tell(event).await?;
        }
        Ok(Some(blob))
    }

    /// Links the object that others use too, and that was joined.
    async fn link_joined(&self, all: Verified) -> Result<Blob> {
        let data = *self.joined.get().ok_or_else(|| Error::internal("nothing was joined"))?;
        let (bytes, size) = (Bytes::Joined(data), all.taken.offset);
        self.put_link(bytes, size).await?;
        let (guard, closing) = (Some(self.unmoved(&all)), self.closing(trash_of(&all.leftover())));
        self.repository
            .commit_link(LinkCommit {
                attempt: self.attempt,
                digest: self.digest,
                bytes,
                size,
                from: None,
                guard,
                closing,
            })
            .await
    }

    /// Puts what isn't stored yet, then the link (beside it, where the digest was compared), and commits.
    async fn store_and_link(&self, all: Verified) -> Result<Blob> {
        let (guard, size, recorded) = (Some(self.unmoved(&all)), all.taken.offset, all.recorded());
        let Verified { mut taken, before, compared } = all;
        // Parts that were begun by a request that died before it put one are not where the bytes are.
        let unused = taken.parts.take_if(|parts| parts.parts.is_empty());
        let mut leftover = OpenUpload { parts: unused, ..before.open };
        let data = match &taken.parts {
            Some(parts) => parts.data,
            None if taken.rest_size == 0 && size > 0 => match leftover.aside.take() {
                Some(aside) => aside.data,
                None => return Err(Error::internal("an upload has lost its bytes")),
            },
            None => self.attempt.data,
        };
        let link = self.put_link(Bytes::Own(data), size);
        let store = self.assemble(data, taken.parts, taken.rest, taken.rest_size, size);
        if compared {
            futures_util::try_join!(store, link)?;
        } else {
            store.await?;
            self.compare_stored(data, size, recorded, &leftover).await?;
            link.await?;
        }
        let (bytes, closing) = (Bytes::Own(data), self.closing(trash_of(&leftover)));
        self.repository
            .commit_link(LinkCommit {
                attempt: self.attempt,
                digest: self.digest,
                bytes,
                size,
                from: None,
                guard,
                closing,
            })
            .await
    }

    async fn put_link(&self, bytes: Bytes, size: u64) -> Result<()> {
        self.linked.get_or_init(|| self.repository.attempted_link(self.attempt, self.digest, bytes, size));
        self.repository.put_link(self.attempt, self.digest, bytes, size).await
    }

    /// Makes the bytes one readable object at `data`.
    async fn assemble(
        &self,
        data: DataKey,
        parts: Option<PartsUpload>,
        rest: crate::storage::Chunks,
        rest_size: u64,
        size: u64,
    ) -> Result<()> {
        let (store, key) = (self.repository.store(), Key::Data(data));
        match parts {
            Some(mut parts) => {
                if rest_size > 0 {
                    let last = store.put_part(&key, &parts.id, parts.parts.len(), parts.part_size, rest).await?;
                    parts.parts.push(last);
                }
                store.complete(&key, &parts.id, &parts.parts).await?;
            }
            None if rest_size > 0 || size == 0 => store.put(&key, rest, None).await?,
            None => {}
        }
        Ok(())
    }

    /// Hashes the stored bytes once more, by the algorithm that only the closing request named.
    async fn compare_stored(
        &self,
        data: DataKey,
        size: u64,
        recorded: bytes::Bytes,
        leftover: &OpenUpload,
    ) -> Result<()> {
        let mut hasher = Hasher::new(self.digest.algorithm());
        if size > 0 {
            let mut bytes = self.repository.store().read(&Key::Data(data), None).await?;
            while let Some(chunk) = futures_util::TryStreamExt::try_next(&mut bytes).await? {
                hasher = intake::hash(hasher, vec![chunk]).await?;
            }
        }
        if hasher.finish() == *self.digest {
            return Ok(());
        }
        let mut trash = trash_of(leftover);
        trash.keys.push(Key::Data(data).to_string());
        self.repository.abandon(self.id, recorded, trash).await;
        Err(digest_invalid(self.digest))
    }

    /// The check that nobody else has moved the upload.
    fn unmoved(&self, all: &Verified) -> Check {
        Check::Equals(self.repository.lease.names.upload(self.id.ulid), all.recorded())
    }

    /// The writes that end the upload with its blob.
    fn closing(&self, trash: TrashFact) -> Vec<Write> {
        let finished = self.repository.record(UploadState::Finished(self.digest.clone()));
        let mut writes = vec![Write::Put(self.repository.lease.names.upload(self.id.ulid), finished)];
        if trash != TrashFact::default() {
            writes.push(self.repository.trash(&trash));
            self.repository.registry.work.notify_one();
        }
        writes
    }

    /// Forgets the attempt after a failure.
    async fn forget(&self) {
        // Also where the answer to a join was lost.
        let joined = self.hint.as_ref().map(|hint| hint.data);
        self.repository.forget(self.attempt, joined, self.linked.get()).await;
    }
}

impl Verified {
    /// The value of the upload's record, as this request last read or wrote it.
    fn recorded(&self) -> bytes::Bytes {
        self.taken.recorded.clone().unwrap_or_else(|| self.before.value.clone())
    }

    /// What the upload holds in the bucket and doesn't need, if the bytes are elsewhere.
    fn leftover(&self) -> OpenUpload {
        let aside: Option<Aside> = self.before.open.aside.clone();
        OpenUpload { parts: self.taken.parts.clone(), aside, ..self.before.open.clone() }
    }
}
