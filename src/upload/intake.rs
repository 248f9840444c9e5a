//! Taking a body in: hashed as it comes, cut into parts, put while the next part arrives.
//!
//! Memory is one part, or two where the budget has room, whatever the body's size. Hashing is done on the
//! blocking pool, in part-sized pieces.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::UploadId;
use crate::{
    error::{Code, Error, Result},
    index::{
        Batch, Check, Outcome, Write,
        facts::{OpenUpload, PartsUpload, UploadState},
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

/// The memory that an upload may use, given back when dropped.
pub(crate) struct Memory {
    /// Shared with a part on its way, which outlives a request that is given up.
    held: Arc<OwnedSemaphorePermit>,
    /// Whether that is enough for two parts.
    for_two: bool,
    part_size: usize,
    registry: Arc<Registry>,
}

/// Whether the bytes that an upload has put aside may have to be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The upload is new.
    First,
    /// It may have up to a part aside.
    Resumed,
}

impl Start {
    pub(super) fn of(is_first: bool) -> Self {
        if is_first { Self::First } else { Self::Resumed }
    }
}

/// The first of a body: all of it, where it is no more than a part.
pub(super) struct Head {
    pub(super) chunks: Chunks,
    pub(super) size: usize,
    pub(super) is_all: bool,
    pub(super) error: Option<Error>,
}

impl Head {
    pub(super) fn is_empty(&self) -> bool {
        self.size == 0
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

    /// Waits for the memory that the body needs: itself, or one part where it is longer or doesn't say;
    /// and room for what was put aside. All at once, so that no two requests ever wait for each other.
    pub(super) fn reserve(
        &self,
        registry: &Arc<Registry>,
        part_size: usize,
        start: Start,
    ) -> impl Future<Output = Result<Memory>> + Send + use<> {
        let body = self.length.map_or(part_size, |length| length.min(part_size as u64) as usize);
        let aside = if start == Start::Resumed && body > 0 { part_size } else { 0 };
        let permits = (body + aside).div_ceil(1024) as u32;
        let for_two = body + aside >= 2 * part_size;
        let registry = Arc::clone(registry);
        async move {
            let held = Arc::clone(&registry.memory).acquire_many_owned(permits).await.map_err(Error::internal)?;
            Ok(Memory { held: Arc::new(held), for_two, part_size, registry })
        }
    }

    /// Reads up to one part.
    pub(super) async fn head(&mut self, part_size: usize) -> Head {
        let mut head = Head { chunks: Vec::new(), size: 0, is_all: false, error: None };
        while head.size <= part_size {
            match self.stream.next().await {
                Some(Ok(chunk)) => {
                    head.size += chunk.len();
                    head.chunks.push(chunk);
                }
                Some(Err(why)) => {
                    head.error = Some(broke_off(&why));
                    return head;
                }
                None => {
                    head.is_all = true;
                    head.error = self
                        .length
                        .filter(|&length| length != head.size as u64)
                        .map(|_| broke_off("shorter than it said"));
                    return head;
                }
            }
        }
        head
    }
}

impl Memory {
    /// Room for a second part, if there is some: without it, the next part waits until this one is put.
    fn another(&self) -> Option<OwnedSemaphorePermit> {
        let permits = self.part_size.div_ceil(1024) as u32;
        Arc::clone(&self.registry.memory).try_acquire_many_owned(permits).ok()
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
    _memory: Option<Memory>,
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
            _memory: None,
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
    pending: Chunks,
    pending_size: usize,
    /// How many of the pending bytes, at their beginning, are in the hash already.
    pending_hashed: usize,
    putting: Option<Putting>,
    second: Option<OwnedSemaphorePermit>,
    error: Option<Error>,
    memory: Memory,
}

impl<'a> Intake<'a> {
    /// For an upload of which nothing is known.
    pub(super) fn new(repository: &'a Repository, id: &'a UploadId, hasher: Hasher, memory: Memory) -> Self {
        Self {
            repository,
            id,
            keep: Keep::All,
            recorded: None,
            hasher: Some(hasher),
            offset: 0,
            parts: None,
            began_parts: false,
            pending: Vec::new(),
            pending_size: 0,
            pending_hashed: 0,
            putting: None,
            second: None,
            error: None,
            memory,
        }
    }

    /// From where `open` stands, with the bytes that were put aside. Where they are given, more bytes come,
    /// and the part that they were the short end of is put again when it is whole.
    pub(super) fn resumed(
        repository: &'a Repository,
        id: &'a UploadId,
        hasher: Hasher,
        open: &OpenUpload,
        value: Bytes,
        aside: Option<Bytes>,
        memory: Memory,
    ) -> Self {
        let mut intake = Self::new(repository, id, hasher, memory);
        intake.offset = open.offset;
        intake.parts = open.parts.clone();
        intake.recorded = Some((open.clone(), value));
        if let Some(aside) = aside {
            if let Some(parts) = &mut intake.parts {
                parts.parts.truncate(((open.offset - aside.len() as u64) / parts.part_size as u64) as usize);
            }
            intake.pending_size = aside.len();
            intake.pending_hashed = aside.len();
            intake.pending.push(aside);
        }
        intake
    }

    /// Only hashes what comes.
    pub(super) fn discarding(mut self) -> Self {
        self.keep = Keep::Nothing;
        self
    }

    fn part_size(&self) -> usize {
        self.parts.as_ref().map_or(self.memory.part_size, |parts| parts.part_size)
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
        let mut received = head.size as u64;
        for chunk in head.chunks {
            self.push(chunk).await?;
        }
        self.error = head.error;
        if head.is_all || self.error.is_some() {
            return Ok(());
        }
        while let Some(chunk) = body.stream.next().await {
            match chunk {
                Ok(chunk) => {
                    received += chunk.len() as u64;
                    self.push(chunk).await?;
                }
                Err(why) => {
                    self.error = Some(broke_off(&why));
                    return Ok(());
                }
            }
        }
        if body.length.is_some_and(|length| length != received) {
            self.error = Some(broke_off("shorter than it said"));
        }
        Ok(())
    }

    async fn push(&mut self, mut chunk: Bytes) -> Result<()> {
        self.offset += chunk.len() as u64;
        self.check_size()?;
        while self.pending_size + chunk.len() > self.part_size() {
            let room = self.part_size() - self.pending_size;
            if room > 0 {
                self.pending.push(chunk.split_to(room));
                self.pending_size += room;
            }
            self.put_part().await?;
        }
        if !chunk.is_empty() {
            self.pending_size += chunk.len();
            self.pending.push(chunk);
        }
        Ok(())
    }

    fn check_size(&self) -> Result<()> {
        let by_store = self.part_size() as u64 * self.repository.store().max_parts() as u64;
        refuse_larger(self.offset, self.repository.registry.options.blob_size.min(by_store))
    }

    /// Hashes and puts the pending bytes, a whole part, beside what comes next.
    async fn put_part(&mut self) -> Result<()> {
        self.begin_parts().await?;
        self.wait().await?;
        let hasher = self.hasher.take().ok_or_else(|| Error::internal("a hash is missing"))?;
        let chunks = std::mem::take(&mut self.pending);
        let hashed = std::mem::take(&mut self.pending_hashed);
        self.pending_size = 0;
        let target = self.parts.clone().filter(|_| self.keep == Keep::All);
        let store = Arc::clone(self.repository.store());
        let held = Arc::clone(&self.memory.held);
        self.putting = Some(tokio::spawn(async move {
            let _held = held;
            let hasher = hash(hasher, behind(&chunks, hashed)).await?;
            let Some(parts) = target else { return Ok((hasher, None)) };
            let key = Key::Data(parts.data);
            let part = store.put_part(&key, &parts.id, parts.parts.len(), parts.part_size, chunks).await?;
            Ok((hasher, Some(part)))
        }));
        if self.memory.for_two {
            return Ok(());
        }
        if self.second.is_none() {
            self.second = self.memory.another();
        }
        if self.second.is_none() {
            self.wait().await?;
        }
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
        let parts = PartsUpload { data, id, part_size: self.memory.part_size, parts: Vec::new() };
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
        let hasher = hash(hasher, behind(&self.pending, self.pending_hashed)).await?;
        let (rest, rest_size) = match self.keep {
            Keep::All => (self.pending, self.pending_size as u64),
            Keep::Nothing => (Vec::new(), 0),
        };
        Ok(Taken {
            hasher,
            offset: self.offset,
            parts: self.parts,
            rest,
            rest_size,
            recorded: self.recorded.map(|(_, value)| value),
            error: self.error,
            _memory: Some(self.memory),
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
