//! Taking a body in: hashed as it comes, cut into parts, put while the next part arrives.
//!
//! At any time there are two parts at most: the one that is being put, and what has come of the next (see
//! [`super::pending`] for where that is). Hashing is done on the blocking pool, in part-sized pieces.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::{UploadId, memory::Pace, pending::Pending};
use crate::{
    error::{Code, Error, Result},
    index::{
        Batch, Check, Outcome, Write,
        facts::{Aside, OpenUpload, PartsUpload, UploadState},
    },
    oci::Hasher,
    registry::{Registry, Repository},
    storage::{Chunks, Key, PartId},
};

/// Below this many bytes, hashing costs less than handing it to another thread (about 40 µs).
const HASH_HERE: usize = 64 << 10;

/// A request's body, as it comes from the network. It says why it broke off.
pub struct Incoming {
    /// The bytes.
    pub stream: Pin<Box<dyn Stream<Item = std::result::Result<Bytes, String>> + Send>>,
    /// How many there will be, if the client said so.
    pub length: Option<u64>,
}

/// Whether more can be expected of a body than the bytes of a new upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The upload is new: its first part begins with this body.
    First,
    /// It may have up to a part aside, which comes before.
    Resumed,
}

impl Start {
    pub(super) fn of(is_first: bool) -> Self {
        if is_first { Self::First } else { Self::Resumed }
    }
}

/// The first of a body: all of it, where it is no more than a part.
pub(super) struct Head {
    pub(super) pending: Pending,
    /// What came behind that.
    next: Bytes,
    pub(super) is_all: bool,
    pub(super) error: Option<Error>,
    meter: Meter,
}

impl Head {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.size() == 0 && self.next.is_empty()
    }
}

/// What a body has sent so far, and for how long it was waited for.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    received: u64,
    waited: Duration,
}

impl Meter {
    async fn next(&mut self, body: &mut Incoming) -> Option<std::result::Result<Bytes, String>> {
        let asked = Instant::now();
        let chunk = body.stream.next().await?;
        if let Ok(chunk) = &chunk {
            // The first bytes may be a round trip behind the head.
            if self.received > 0 {
                self.waited += asked.elapsed();
            }
            self.received += chunk.len() as u64;
        }
        Some(chunk)
    }

    fn pace(self, part_size: usize) -> Pace {
        Pace::of(self.received, self.waited, part_size)
    }
}

impl Incoming {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Self { stream: Box::pin(futures_util::stream::empty()), length: Some(0) }
    }

    /// A body of these bytes.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let length = Some(bytes.len() as u64);
        Self { stream: Box::pin(futures_util::stream::iter([Ok(bytes)])), length }
    }

    /// Reads up to one part of a new upload; of any other no more than comes at once, as something may have to be
    /// put before it.
    pub(super) async fn head(&mut self, registry: &Registry, start: Start) -> Result<Head> {
        let part_size = registry.store.part_size();
        let pending = Pending::new(Arc::clone(&registry.memory), part_size);
        let mut head = Head { pending, next: Bytes::new(), is_all: false, error: None, meter: Meter::default() };
        while head.next.is_empty() {
            match head.meter.next(self).await {
                Some(Ok(chunk)) if start == Start::First && chunk.len() <= head.pending.space() => {
                    head.pending.push(&chunk, head.meter.pace(part_size)).await?;
                }
                Some(Ok(chunk)) => head.next = chunk,
                Some(Err(why)) => {
                    head.error = Some(broke_off(&why));
                    break;
                }
                None => {
                    head.is_all = true;
                    head.error = self.shorter_than(head.meter.received);
                    break;
                }
            }
        }
        Ok(head)
    }

    /// What is wrong with a body that ended after so many bytes.
    fn shorter_than(&self, received: u64) -> Option<Error> {
        self.length.filter(|&length| length != received).map(|_| broke_off("shorter than it said"))
    }
}

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// They are stored.
    All,
    /// They are only hashed: the same bytes are stored already.
    Nothing,
}

/// What was taken in.
pub(super) struct Taken {
    /// The hash of all bytes up to `offset`.
    pub(super) hasher: Hasher,
    /// Where the upload stands now.
    pub(super) offset: u64,
    /// The upload in parts, if there is one, with the parts that are put.
    pub(super) parts: Option<PartsUpload>,
    /// The bytes behind the last whole part that are not stored anywhere yet.
    pub(super) rest: Chunks,
    pub(super) rest_size: u64,
    /// The value of the upload's record, as far as this request has written one.
    pub(super) recorded: Option<Bytes>,
    /// Why the body broke off, if it did.
    pub(super) error: Option<Error>,
}

impl Taken {
    /// A body that is one piece.
    pub(super) async fn whole(hasher: Hasher, offset: u64, chunks: Chunks) -> Result<Self> {
        let size: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let hasher = hash(hasher, chunks.clone()).await?;
        Ok(Self {
            hasher,
            offset: offset + size,
            parts: None,
            rest: chunks,
            rest_size: size,
            recorded: None,
            error: None,
        })
    }
}

/// A part on its way: the hash behind it, and its name unless it is only hashed.
type Putting = JoinHandle<Result<(Hasher, Option<PartId>)>>;

/// One body on its way into the store.
pub(super) struct Intake<'a> {
    repository: &'a Repository,
    id: &'a UploadId,
    keep: Keep,
    /// What the upload's record says now, and its value; nothing where there is none.
    recorded: Option<(OpenUpload, Bytes)>,
    /// Not there while a part is being hashed.
    hasher: Option<Hasher>,
    offset: u64,
    parts: Option<PartsUpload>,
    began_parts: bool,
    pending: Pending,
    /// How many of the pending bytes, at their beginning, are in the hash already.
    pending_hashed: usize,
    putting: Option<Putting>,
    error: Option<Error>,
}

impl<'a> Intake<'a> {
    /// For an upload of which nothing is known.
    pub(super) fn new(repository: &'a Repository, id: &'a UploadId, hasher: Hasher) -> Self {
        let part_size = repository.store().part_size();
        Self {
            repository,
            id,
            keep: Keep::All,
            recorded: None,
            hasher: Some(hasher),
            offset: 0,
            parts: None,
            began_parts: false,
            pending: Pending::new(Arc::clone(&repository.registry.memory), part_size),
            pending_hashed: 0,
            putting: None,
            error: None,
        }
    }

    /// From where `open` stands.
    pub(super) fn resumed(
        repository: &'a Repository,
        id: &'a UploadId,
        hasher: Hasher,
        open: &OpenUpload,
        value: Bytes,
    ) -> Self {
        let mut intake = Self::new(repository, id, hasher);
        intake.offset = open.offset;
        intake.parts = open.parts.clone();
        intake.pending = Pending::new(Arc::clone(&repository.registry.memory), intake.part_size());
        intake.recorded = Some((open.clone(), value));
        intake
    }

    /// Reads back the bytes that were put aside, as more come behind them: the part that they are the short end of
    /// will be put again when it is whole.
    pub(super) async fn read_back(&mut self, aside: &Aside, head: &Head) -> Result<()> {
        self.pending.share(head.pending.lane());
        if let Some(parts) = &mut self.parts {
            parts.parts.truncate(((self.offset - aside.size) / parts.part_size as u64) as usize);
        }
        if aside.size == 0 {
            return Ok(());
        }
        let mut stored = self.repository.store().read(&Key::Data(aside.data), None).await?;
        while let Some(chunk) = stored.try_next().await? {
            if chunk.len() > self.pending.space() {
                return Err(Error::internal("more is put aside than was"));
            }
            // Nothing is known of this request's client yet.
            self.pending.push(&chunk, Pace::Slow).await?;
        }
        if self.pending.size() as u64 != aside.size {
            return Err(Error::internal("less is put aside than was"));
        }
        self.pending_hashed = self.pending.size();
        Ok(())
    }

    /// Only hashes what comes.
    pub(super) fn discarding(mut self) -> Self {
        self.keep = Keep::Nothing;
        self
    }

    fn part_size(&self) -> usize {
        self.parts.as_ref().map_or_else(|| self.repository.store().part_size(), |parts| parts.part_size)
    }

    /// Takes the whole body, and hashes it to its end. A body that breaks off is no failure here: what came
    /// is taken. After a failure the parts that this request began are freed.
    pub(super) async fn take_all(mut self, head: Head, body: Incoming) -> Result<Taken> {
        let taken = match self.take(head, body).await {
            // The last whole part may still be on its way, and fail.
            Ok(()) => self.wait().await,
            failed => failed,
        };
        match taken {
            Ok(()) => self.finish().await,
            Err(error) => {
                self.give_up().await;
                Err(error)
            }
        }
    }

    async fn take(&mut self, head: Head, mut body: Incoming) -> Result<()> {
        let Head { mut pending, next, is_all, error, mut meter } = head;
        let part_size = self.part_size();
        if self.pending.size() == 0 && pending.size() <= part_size {
            self.offset += pending.size() as u64;
            self.check_size()?;
            self.pending = pending;
        } else {
            let (chunks, lane) = (pending.bytes().await?, pending.lane());
            pending.clear();
            for chunk in chunks {
                self.pending.share(lane.clone());
                self.push(chunk, meter.pace(part_size)).await?;
            }
        }
        self.push(next, meter.pace(part_size)).await?;
        self.error = error;
        if is_all || self.error.is_some() {
            return Ok(());
        }
        while let Some(chunk) = meter.next(&mut body).await {
            match chunk {
                Ok(chunk) => self.push(chunk, meter.pace(part_size)).await?,
                Err(why) => {
                    self.error = Some(broke_off(&why));
                    return Ok(());
                }
            }
        }
        self.error = body.shorter_than(meter.received);
        Ok(())
    }

    /// Takes bytes behind the pending ones. A part is put when it is known that more comes, since the last one
    /// may be the end of the body.
    async fn push(&mut self, mut chunk: Bytes, pace: Pace) -> Result<()> {
        self.offset += chunk.len() as u64;
        self.check_size()?;
        while chunk.len() > self.pending.space() {
            let fits = chunk.split_to(self.pending.space());
            self.pending.push(&fits, pace).await?;
            self.put_part().await?;
        }
        self.pending.push(&chunk, pace).await
    }

    fn check_size(&self) -> Result<()> {
        let by_store = self.part_size() as u64 * self.repository.store().max_parts() as u64;
        refuse_larger(self.offset, self.repository.registry.options.blob_size.min(by_store))
    }

    /// Hashes and puts the pending bytes, a whole part, beside what comes next.
    async fn put_part(&mut self) -> Result<()> {
        self.begin_parts().await?;
        self.wait().await?;
        let chunks = self.pending.take().await?;
        let hashed = std::mem::take(&mut self.pending_hashed);
        let hasher = self.hasher.take().ok_or_else(|| Error::internal("a hash is missing"))?;
        let target = self.parts.clone().filter(|_| self.keep == Keep::All);
        let store = Arc::clone(self.repository.store());
        self.putting = Some(tokio::spawn(async move {
            let hasher = hash(hasher, behind(&chunks, hashed)).await?;
            let Some(parts) = target else { return Ok((hasher, None)) };
            let key = Key::Data(parts.data);
            let part = store.put_part(&key, &parts.id, parts.parts.len(), parts.part_size, chunks).await?;
            Ok((hasher, Some(part)))
        }));
        Ok(())
    }

    /// Whether the bytes are only hashed.
    pub(super) fn discards(&self) -> bool {
        self.keep == Keep::Nothing
    }

    /// Waits for the part that is being put.
    async fn wait(&mut self) -> Result<()> {
        let Some(putting) = self.putting.take() else { return Ok(()) };
        let (hasher, part) = putting.await.map_err(Error::internal)??;
        self.hasher = Some(hasher);
        if let (Some(parts), Some(part)) = (&mut self.parts, part) {
            parts.parts.push(part);
        }
        Ok(())
    }

    /// Begins an upload in parts, and notes it before the first is put.
    async fn begin_parts(&mut self) -> Result<()> {
        if self.parts.is_some() || self.keep == Keep::Nothing {
            return Ok(());
        }
        let repository = self.repository;
        let data = repository.fresh_data();
        let id = repository.store().begin(&Key::Data(data)).await?;
        let parts = PartsUpload { data, id, part_size: self.part_size(), parts: Vec::new() };
        let upload = repository.lease.names.upload(self.id.ulid);
        let (open, check) = match &self.recorded {
            Some((open, value)) => (open.clone(), Check::Equals(upload.clone(), value.clone())),
            None => (
                super::nothing_yet(self.hasher.as_ref().ok_or_else(|| Error::internal("a hash is missing"))?),
                Check::Absent(upload.clone()),
            ),
        };
        let open = OpenUpload { parts: Some(parts.clone()), ..open };
        let value = repository.record(UploadState::Open(open.clone()));
        let batch = Batch { checks: vec![check], writes: vec![Write::Put(upload, value.clone())], ..Batch::default() };
        match repository.commit(batch).await {
            Ok(Outcome::Committed { .. }) => {}
            Ok(Outcome::Refused { .. }) => {
                repository.store().abort(&Key::Data(data), &parts.id).await?;
                return Err(super::moved_meanwhile());
            }
            Err(error) => {
                // Without a note nobody else would free it. Where the note was made after all, there is an
                // upload whose parts are gone, which can only be ended.
                repository.store().abort(&Key::Data(data), &parts.id).await?;
                return Err(error);
            }
        }
        self.recorded = Some((open, value));
        self.parts = Some(parts);
        self.began_parts = true;
        Ok(())
    }

    /// All that was taken in, hashed to its end.
    async fn finish(mut self) -> Result<Taken> {
        let hasher = self.hasher.take().ok_or_else(|| Error::internal("a hash is missing"))?;
        let (mut rest, mut rest_size) = (self.pending.bytes().await?, self.pending.size() as u64);
        let hasher = hash(hasher, behind(&rest, self.pending_hashed)).await?;
        if self.keep == Keep::Nothing {
            (rest, rest_size) = (Chunks::new(), 0);
        }
        Ok(Taken {
            hasher,
            offset: self.offset,
            parts: self.parts,
            rest,
            rest_size,
            recorded: self.recorded.map(|(_, value)| value),
            error: self.error,
        })
    }

    /// After a failure: frees the parts that this request began. What was there before stays.
    async fn give_up(mut self) {
        if self.wait().await.is_err() {
            tracing::debug!("a part of a failed upload was not put either");
        }
        let (true, Some((open, value))) = (self.began_parts, self.recorded) else { return };
        let before = OpenUpload { parts: None, ..open };
        self.repository.give_back(self.id, before, Some(value), self.parts).await;
    }
}

/// Refuses a blob of more than `most` bytes.
pub(super) fn refuse_larger(size: u64, most: u64) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    Err(Error::new(Code::TooLarge, format!("a blob may have {most} bytes at most")))
}

/// What is behind the first `skip` bytes.
fn behind(chunks: &Chunks, mut skip: usize) -> Chunks {
    let mut rest = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let skipped = skip.min(chunk.len());
        skip -= skipped;
        if skipped < chunk.len() {
            rest.push(chunk.slice(skipped..));
        }
    }
    rest
}

/// Takes bytes into a hash, off the async threads where they are many.
pub(super) async fn hash(mut hasher: Hasher, chunks: Chunks) -> Result<Hasher> {
    let size: usize = chunks.iter().map(Bytes::len).sum();
    let all = move || {
        chunks.iter().for_each(|chunk| hasher.update(chunk));
        hasher
    };
    if size <= HASH_HERE {
        return Ok(all());
    }
    tokio::task::spawn_blocking(all).await.map_err(Error::internal)
}

fn broke_off(why: &str) -> Error {
    Error::new(Code::SizeInvalid, "the request's body broke off; ask where the upload stands").because(why)
}
