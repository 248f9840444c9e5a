//! Uploads: how bytes become a blob, by any of the protocol's forms, on any replica, at any pace.
//!
//! Starting one writes nothing: its id is good on every replica because it is signed. What comes in goes to
//! the store in parts of one size, or as one whole object where it is no more than a part; what any process
//! needs to go on is in the index. The bytes go to the key where they stay: nothing is ever copied.

mod closing;
pub mod id;
mod intake;
pub(crate) mod memory;
mod pending;
mod scratch;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::json;

pub use id::{Proof, UploadId};
pub use intake::Incoming;

use crate::{
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Write,
        facts::{self, Aside, OpenUpload, PartsUpload, TrashFact, UploadFact, UploadState},
    },
    oci::{Algorithm, Digest, Hasher},
    registry::{Options, Repository},
    storage::{Key, StoreTime},
};
use intake::{Head, Intake, Start, Taken};

/// Where an upload stands after a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes are in.
    pub offset: u64,
    /// What the next request's URL carries, so that it need not be verified that they are.
    pub proof: Proof,
}

/// An open upload as the index has it.
struct Stored {
    open: OpenUpload,
    /// The exact value, for the check that nobody else has moved it.
    value: bytes::Bytes,
}

impl Stored {
    /// The hash of what is in; by `algorithm` where that is nothing.
    fn hasher(&self, algorithm: Algorithm) -> Result<Hasher> {
        if self.open.offset == 0 {
            return Ok(Hasher::new(algorithm));
        }
        let saved = STANDARD_NO_PAD.decode(&self.open.hash).map_err(Error::internal)?;
        Hasher::restore(&saved).ok_or_else(|| {
            Error::new(Code::BlobUploadUnknown, "this upload was begun by another release of the registry; start again")
        })
    }
}

impl Repository {
    /// A new upload; nothing is written for it.
    pub fn start_upload(&self, subject: &str) -> (UploadId, Progress) {
        let id = UploadId::new(&self.registry.upload_key, &self.name, subject, self.fresh());
        let proof = id.proof(&self.registry.upload_key, 0, None);
        (id, Progress { offset: 0, proof })
    }

    /// An upload by its id as a client sent it. One of another repository or subject is unknown.
    pub fn upload_id(&self, text: &str, subject: &str) -> Result<UploadId> {
        UploadId::verify(&self.registry.upload_key, &self.name, subject, text).ok_or_else(upload_unknown)
    }

    /// How far an upload is.
    pub async fn upload_progress(&self, id: &UploadId) -> Result<Progress> {
        let Some(stored) = self.stored(id).await? else {
            return Ok(Progress { offset: 0, proof: id.proof(&self.registry.upload_key, 0, None) });
        };
        self.confirm_aside(id, &stored, None).await?;
        Ok(self.progress(id, &stored.open))
    }

    /// Takes more bytes in. `at` is where they begin, if the client said so.
    ///
    /// A body that breaks off is kept as far as it came, so that the client can go on from there.
    pub async fn append(
        &self,
        id: &UploadId,
        proof: Option<&Proof>,
        at: Option<u64>,
        algorithm: Algorithm,
        mut body: Incoming,
    ) -> Result<Progress> {
        let is_first = self.is_first(id, proof) && at.unwrap_or(0) == 0;
        let mut head = body.head(&self.registry, Start::of(is_first)).await?;
        if is_first && head.is_all && head.error.is_none() {
            self.refuse_expired(id)?;
            intake::refuse_larger(head.pending.size() as u64, self.registry.options.blob_size)?;
            let whole = Taken::whole(Hasher::new(algorithm), 0, head.pending.bytes().await?).await?;
            if let Some(progress) = self.put_aside_first(id, whole).await? {
                return Ok(progress);
            }
        }
        let stored = self.stored(id).await?;
        let offset = stored.as_ref().map_or(0, |stored| stored.open.offset);
        if at.is_some_and(|at| at != offset) {
            return Err(out_of_order(offset));
        }
        let intake = match &stored {
            Some(stored) => self.resume(id, proof, stored, algorithm, &head).await?,
            None => Intake::new(self, id, Hasher::new(algorithm)),
        };
        let taken = intake.take_all(head, body).await?;
        let (broke_off, recorded, parts) = (taken.error.clone(), taken.recorded.clone(), taken.parts.clone());
        let put = self.put_rest(id, taken, stored.as_ref()).await;
        if put.is_err() {
            let before = stored.map_or_else(|| nothing_yet(&Hasher::new(algorithm)), |stored| stored.open);
            self.give_back(id, before, recorded, parts).await;
        }
        match broke_off {
            Some(error) => Err(error),
            None => Ok(self.progress(id, &put?)),
        }
    }

    /// Whether the URL says that nothing has come in yet. It may be an old one.
    fn is_first(&self, id: &UploadId, proof: Option<&Proof>) -> bool {
        proof.is_some_and(|proof| *proof == id.proof(&self.registry.upload_key, 0, None))
    }

    /// The usual first chunk: all of it is one object, and the upload's record enters the index beside it.
    /// `None` where the upload isn't new after all.
    async fn put_aside_first(&self, id: &UploadId, taken: Taken) -> Result<Option<Progress>> {
        let upload = self.lease.names.upload(id.ulid);
        if taken.offset == 0 {
            let there = self.ask(vec![Ask::Value(upload)]).await?.pop().flatten();
            let nothing = Progress { offset: 0, proof: id.proof(&self.registry.upload_key, 0, None) };
            return Ok(there.is_none().then_some(nothing));
        }
        let data = self.fresh_data();
        let aside = Aside { data, size: taken.offset };
        let open = OpenUpload { offset: taken.offset, hash: save(&taken.hasher), parts: None, aside: Some(aside) };
        let value = self.record(UploadState::Open(open.clone()));
        let batch = Batch {
            checks: vec![Check::Absent(upload.clone())],
            writes: vec![Write::Put(upload, value.clone())],
            ..Batch::default()
        };
        let put = async { Ok::<_, Error>(self.store().put(&Key::Data(data), taken.rest, None).await?) };
        let (outcome, stored) = futures_util::join!(self.commit(batch), put);
        match outcome? {
            Outcome::Committed { .. } => match stored {
                Ok(()) => Ok(Some(self.progress(id, &open))),
                Err(error) => {
                    self.abandon(id, value, trash_of(&open)).await;
                    Err(error)
                }
            },
            Outcome::Refused { .. } => {
                let trash = TrashFact { keys: vec![Key::Data(data).to_string()], ..TrashFact::default() };
                self.write(vec![self.trash(&trash)]).await?;
                Ok(None)
            }
        }
    }

    /// Takes an upload up where it stands. The bytes that were put aside are only read if more come.
    async fn resume<'a>(
        &'a self,
        id: &'a UploadId,
        proof: Option<&Proof>,
        stored: &Stored,
        algorithm: Algorithm,
        head: &Head,
    ) -> Result<Intake<'a>> {
        self.confirm_aside(id, stored, proof).await?;
        let mut intake = Intake::resumed(self, id, stored.hasher(algorithm)?, &stored.open, stored.value.clone());
        if let Some(aside) = stored.open.aside.as_ref().filter(|_| !head.is_empty()) {
            intake.read_back(aside, head).await?;
        }
        Ok(intake)
    }

    /// Puts what is behind the last whole part where another request can take it up, and notes it.
    async fn put_rest(&self, id: &UploadId, taken: Taken, before: Option<&Stored>) -> Result<OpenUpload> {
        if before.is_some_and(|before| before.open.offset == taken.offset) || taken.offset == 0 {
            return Ok(before.map_or_else(|| nothing_yet(&taken.hasher), |before| before.open.clone()));
        }
        let mut open = OpenUpload { offset: taken.offset, hash: save(&taken.hasher), parts: taken.parts, aside: None };
        if taken.rest_size > 0 {
            let data = self.fresh_data();
            let aside = async { Ok::<_, Error>(self.store().put(&Key::Data(data), taken.rest.clone(), None).await?) };
            let last = async {
                let Some(parts) = &open.parts else { return Ok(None) };
                let key = Key::Data(parts.data);
                Ok(Some(
                    self.store()
                        .put_part(&key, &parts.id, parts.parts.len(), parts.part_size, taken.rest.clone())
                        .await?,
                ))
            };
            let ((), last) = futures_util::try_join!(aside, last)?;
            if let (Some(parts), Some(last)) = (&mut open.parts, last) {
                parts.parts.push(last);
            }
            open.aside = Some(Aside { data, size: taken.rest_size });
        }
        let upload = self.lease.names.upload(id.ulid);
        let check = match &taken.recorded {
            Some(value) => Check::Equals(upload.clone(), value.clone()),
            None => Check::Absent(upload.clone()),
        };
        let mut writes = vec![Write::Put(upload, self.record(UploadState::Open(open.clone())))];
        if let Some(aside) = before.and_then(|before| before.open.aside.as_ref()) {
            let keys = vec![Key::Data(aside.data).to_string()];
            writes.push(self.trash(&TrashFact { keys, ..TrashFact::default() }));
        }
        match self.commit(Batch { checks: vec![check], writes, ..Batch::default() }).await? {
            Outcome::Committed { .. } => Ok(open),
            Outcome::Refused { .. } => Err(moved_meanwhile()),
        }
    }

    /// Ends an upload without a blob, and frees what it holds.
    pub async fn cancel_upload(&self, id: &UploadId) -> Result<()> {
        loop {
            let stored = self.stored(id).await?;
            let upload = self.lease.names.upload(id.ulid);
            let check = match &stored {
                Some(stored) => Check::Equals(upload.clone(), stored.value.clone()),
                None => Check::Absent(upload.clone()),
            };
            let mut writes = vec![Write::Put(upload, self.record(UploadState::Over))];
            if let Some(stored) = &stored {
                writes.push(self.trash(&trash_of(&stored.open)));
            }
            if let Outcome::Committed { .. } =
                self.commit(Batch { checks: vec![check], writes, ..Batch::default() }).await?
            {
                self.registry.work.notify_one();
                return Ok(());
            }
        }
    }

    /// The upload's record; `None` where nothing came in yet.
    async fn stored(&self, id: &UploadId) -> Result<Option<Stored>> {
        let Some(value) = self.ask(vec![Ask::Value(self.lease.names.upload(id.ulid))]).await?.pop().flatten() else {
            self.refuse_expired(id)?;
            return Ok(None);
        };
        let fact: UploadFact = facts::decode(&value)?;
        match fact.state {
            UploadState::Open(open) => Ok(Some(Stored { open, value })),
            UploadState::Finished(_) | UploadState::Over => Err(upload_unknown()),
        }
    }

    /// An id that nothing is known of is unknown once what was known of it would have been forgotten.
    fn refuse_expired(&self, id: &UploadId) -> Result<()> {
        let age = self.store().now().0.saturating_sub(id.ulid.timestamp_ms());
        if age > self.registry.options.upload_expiry.as_millis() as u64 { Err(upload_unknown()) } else { Ok(()) }
    }

    /// Makes sure that the bytes which the record speaks of are there: the record and they are written side
    /// by side, so a crash may have left the one without the other. Who got the answer to that request has
    /// the proof, and nothing is asked.
    async fn confirm_aside(&self, id: &UploadId, stored: &Stored, proof: Option<&Proof>) -> Result<()> {
        let Some(aside) = stored.open.aside.as_ref().filter(|aside| aside.size > 0) else { return Ok(()) };
        if self.may_be_collected(aside) {
            self.abandon(id, stored.value.clone(), trash_of(&stored.open)).await;
            return Err(upload_unknown());
        }
        let expected = id.proof(&self.registry.upload_key, stored.open.offset, Some(aside.data));
        if proof == Some(&expected) {
            return Ok(());
        }
        let stat = self.store().stat(&Key::Data(aside.data)).await?;
        if stat.is_some_and(|stat| stat.size == aside.size) {
            return Ok(());
        }
        self.abandon(id, stored.value.clone(), trash_of(&stored.open)).await;
        Err(upload_unknown())
    }

    /// Bytes are put aside beside the note of them, so a process that was stopped between the two may make the
    /// note when collection has found the bytes unknown. Collection leaves alone what is younger than the grace;
    /// what is older is never taken up. (An upload that moves has put nothing aside that long ago: the grace is
    /// longer than an upload is kept.)
    fn may_be_collected(&self, aside: &Aside) -> bool {
        let Options { grace, timing, .. } = &self.registry.options;
        let put = StoreTime(aside.data.0.timestamp_ms());
        put.plus(*grace).minus(timing.margin * 2) <= self.store().now()
    }

    /// Ends an upload that can't go on, unless another request has moved it. What fails here is left to
    /// expiry.
    async fn abandon(&self, id: &UploadId, value: bytes::Bytes, trash: TrashFact) {
        let upload = self.lease.names.upload(id.ulid);
        let batch = Batch {
            checks: vec![Check::Equals(upload.clone(), value)],
            writes: vec![Write::Put(upload, self.record(UploadState::Over)), self.trash(&trash)],
            ..Batch::default()
        };
        match self.commit(batch).await {
            Ok(_) => self.registry.work.notify_one(),
            Err(error) => tracing::debug!(%error, "an abandoned upload stays until it expires"),
        }
    }

    /// After a body that broke off, or a store that failed: the upload stands where it stood before, for the
    /// client to try again, and the parts that this request began are freed. Not if another request has moved
    /// it; what fails here is left to expiry.
    async fn give_back(
        &self,
        id: &UploadId,
        before: OpenUpload,
        recorded: Option<bytes::Bytes>,
        parts: Option<PartsUpload>,
    ) {
        let (Some(value), Some(parts), None) = (recorded, parts, &before.parts) else { return };
        let upload = self.lease.names.upload(id.ulid);
        let key = Key::Data(parts.data);
        let multipart = parts.id.clone();
        let trash = trash_of(&OpenUpload { parts: Some(parts), aside: None, ..before.clone() });
        let batch = Batch {
            checks: vec![Check::Equals(upload.clone(), value)],
            writes: vec![Write::Put(upload, self.record(UploadState::Open(before))), self.trash(&trash)],
            ..Batch::default()
        };
        let mut noted = self.commit(batch.clone()).await;
        if noted.is_err() {
            // The index may be on the disk that these parts have filled: it has room once they are gone. They
            // may go without a note, as no other request needs what this one began.
            if let Err(error) = self.store().abort(&key, &multipart).await {
                tracing::debug!(%error, "the parts of a failed upload were not freed at once");
            }
            noted = self.commit(batch).await;
        }
        match noted {
            Ok(_) => self.registry.work.notify_one(),
            Err(error) => tracing::debug!(%error, "the parts of a failed upload stay until it expires"),
        }
    }

    fn progress(&self, id: &UploadId, open: &OpenUpload) -> Progress {
        let aside = open.aside.as_ref().filter(|aside| aside.size > 0).map(|aside| aside.data);
        Progress { offset: open.offset, proof: id.proof(&self.registry.upload_key, open.offset, aside) }
    }

    fn record(&self, state: UploadState) -> bytes::Bytes {
        facts::encode(&UploadFact { repository: self.name.clone(), touched: self.store().now(), state })
    }

    /// The write that throws something away.
    pub(crate) fn trash(&self, trash: &TrashFact) -> Write {
        Write::Put(self.lease.names.trashed(self.fresh()), facts::encode(trash))
    }
}

/// Everything that an open upload holds in the bucket. Its parts may have been completed by a request that
/// came no further.
pub(crate) fn trash_of(open: &OpenUpload) -> TrashFact {
    let aside = open.aside.iter().map(|aside| aside.data);
    let completed = open.parts.iter().map(|parts| parts.data);
    TrashFact {
        keys: aside.chain(completed).map(|data| Key::Data(data).to_string()).collect(),
        multipart: open.parts.as_ref().map(|parts| (parts.data, parts.id.clone())),
        ..TrashFact::default()
    }
}

fn moved_meanwhile() -> Error {
    Error::new(Code::RangeInvalid, "another request moved this upload meanwhile; ask where it stands")
}

fn nothing_yet(hasher: &Hasher) -> OpenUpload {
    OpenUpload { offset: 0, hash: save(hasher), parts: None, aside: None }
}

fn save(hasher: &Hasher) -> String {
    STANDARD_NO_PAD.encode(hasher.save())
}

fn upload_unknown() -> Error {
    Error::new(Code::BlobUploadUnknown, "there is no such upload; start a new one")
}

fn out_of_order(offset: u64) -> Error {
    Error::new(Code::RangeInvalid, format!("the upload stands at {offset}; send the bytes from there"))
        .with_detail(json!({ "offset": offset }))
}

fn digest_invalid(digest: &Digest) -> Error {
    Error::new(Code::DigestInvalid, "the bytes don't have this digest").with_detail(json!({ "digest": digest }))
}
