//! The memory for bytes on their way to the bucket: one budget for all uploads.
//!
//! What comes from the network is copied into blocks, and only blocks are counted. A chunk as hyper gives it can't
//! be: a hundred bytes from a slow client may keep 8 KiB of its read buffer alive. The copy costs no more than it saves:
//! buffers that are used again have no page faults, which were 0.28 of 1.7 s of CPU of a push of 1 GiB.
//!
//! A block is taken when bytes have come for it, so a slow upload holds little. No upload must wait for memory while
//! it holds some that another needs to go on; so half of the budget is *lanes*, each with room for one whole part:
//! who has one needs nothing more until its part is in the bucket.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::scratch::Scratch;
use crate::error::{Error, Result};

/// The largest block, in bytes: a thousand requests with one each fit in 64 MiB.
const BLOCK: usize = 64 << 10;

/// A block is at most this fraction of a part, so that a part is not mostly an unfilled block.
const BLOCKS_PER_PART: usize = 16;

/// How much memory is kept when no upload has any, in bytes: what one push to a local directory holds.
const SPARE: usize = 8 << 20;

/// An upload at whose pace a part takes longer than this is slow. That is 280 KB/s for 16 MiB, little enough for
/// a client that is far away and has only just begun.
const PART_IN: Duration = Duration::from_secs(60);

/// The memory for uploads.
#[derive(Debug)]
pub(crate) struct Budget {
    block: usize,
    /// All semaphores count blocks. These are given out one by one, to whoever has bytes for one.
    shared: Arc<Semaphore>,
    /// These are given out by the part.
    lanes: Arc<Semaphore>,
    /// One more lane, for fast uploads: slow ones may hold all others for minutes. None where there is a scratch
    /// directory, as then nobody waits for a client.
    express: Arc<Semaphore>,
    /// How many blocks all lanes have.
    most: u32,
    blocks: Mutex<Blocks>,
    scratch: Option<Scratch>,
}

/// What blocks are made of. While there are any, nothing is given back to the allocator: its threads each keep
/// memory of their own, in which what another one gave back would be taken a second time.
#[derive(Debug, Default)]
struct Blocks {
    in_use: usize,
    spare: Vec<Vec<u8>>,
}

/// How fast a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Fast,
    Slow,
}

impl Pace {
    /// Of a client that was waited for so long while it sent so many bytes.
    pub(super) fn of(received: u64, waited: Duration, part_size: usize) -> Self {
        let whole_part = waited.as_secs_f64() * part_size as f64;
        if whole_part <= PART_IN.as_secs_f64() * received as f64 { Self::Fast } else { Self::Slow }
    }
}

/// The right to hold memory, given back when its last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl From<OwnedSemaphorePermit> for Room {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }
}

/// A piece of the budget's memory, and the bytes that are in it.
pub(super) struct Block {
    bytes: Vec<u8>,
    budget: Arc<Budget>,
    _room: Option<Room>,
}

impl Budget {
    /// A budget of so many bytes, at least two parts.
    ///
    /// # Errors
    /// The scratch directory can't be used.
    pub(crate) fn open(bytes: usize, part_size: usize, scratch: Option<&Path>) -> Result<Arc<Self>> {
        let unfit = |error| Error::internal(format!("limits.upload_scratch: {error}"));
        let scratch = scratch.map(Scratch::open).transpose().map_err(unfit)?;
        let block = BLOCK.min(part_size.div_ceil(BLOCKS_PER_PART));
        let part = part_size.div_ceil(block);
        let express = if scratch.is_some() { 0 } else { part };
        let lanes = (bytes / 2 / part_size).max(2) * part - express;
        let shared = (bytes / block).saturating_sub(lanes + express);
        Ok(Arc::new(Self {
            block,
            shared: Arc::new(Semaphore::new(shared)),
            lanes: Arc::new(Semaphore::new(lanes)),
            express: Arc::new(Semaphore::new(express)),
            most: lanes as u32,
            blocks: Mutex::default(),
            scratch,
        }))
    }

    /// Where parts go that memory has no room for.
    pub(super) fn scratch(&self) -> Option<&Scratch> {
        self.scratch.as_ref()
    }

    /// Room for one block, if there is some now.
    pub(super) fn try_room(&self) -> Option<Room> {
        Arc::clone(&self.shared).try_acquire_owned().ok().map(Room::from)
    }

    /// Waits for room for so many bytes, whatever the others hold. No more of it may be waited for before this is
    /// given back.
    pub(super) async fn lane(&self, bytes: usize, pace: Pace) -> Result<Room> {
        let blocks = u32::try_from(bytes.div_ceil(self.block)).unwrap_or(u32::MAX);
        let any = Arc::clone(&self.lanes).acquire_many_owned(blocks.min(self.most));
        if pace == Pace::Slow || self.scratch.is_some() {
            return any.await.map(Room::from).map_err(Error::internal);
        }
        let express = Arc::clone(&self.express).acquire_many_owned(blocks.min(self.most));
        let permit = tokio::select! { biased; permit = any => permit, permit = express => permit };
        permit.map(Room::from).map_err(Error::internal)
    }

    /// Waits for room for a body that is read whole: a manifest. What is no more than a block needs none.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Option<Room>> {
        if bytes <= self.block {
            return Ok(None);
        }
        let blocks = u32::try_from(bytes.div_ceil(self.block)).unwrap_or(u32::MAX);
        match Arc::clone(&self.shared).try_acquire_many_owned(blocks) {
            Ok(permit) => Ok(Some(permit.into())),
            Err(_) => self.lane(bytes, Pace::Fast).await.map(Some),
        }
    }

    /// An empty block, in this room.
    pub(super) fn block(self: &Arc<Self>, room: Option<Room>) -> Block {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.in_use += 1;
        let bytes = blocks.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.block));
        drop(blocks);
        Block { bytes, budget: Arc::clone(self), _room: room }
    }
}

impl Block {
    /// Takes as many of the bytes as it has room for, and says how many those were.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.budget.block - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Whether no more bytes fit.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() == self.budget.block
    }

    /// Makes it `size` bytes long, at most a whole block, and lets them be written.
    pub(super) fn writable(&mut self, size: u64) -> &mut [u8] {
        self.bytes.resize(size.min(self.budget.block as u64) as usize, 0);
        &mut self.bytes
    }

    /// The bytes, which hold the room for as long as anybody has them.
    pub(super) fn freeze(self) -> bytes::Bytes {
        bytes::Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut blocks = self.budget.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.in_use -= 1;
        blocks.spare.push(bytes);
        if blocks.in_use == 0 {
            blocks.spare.truncate(SPARE / self.budget.block);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const PART: usize = 1 << 20;

    #[tokio::test]
    async fn all_that_is_given_out_is_the_budget() {
        for parts in 2..20 {
            let budget = Budget::open(parts * PART, PART, None).unwrap();
            let all = [&budget.shared, &budget.lanes, &budget.express].map(|blocks| blocks.available_permits());
            assert_eq!(all.iter().sum::<usize>() * budget.block, parts * PART, "{parts}: {all:?}");
            assert!(all[1] * budget.block >= PART && all[2] * budget.block == PART, "{parts}: {all:?}");
        }
    }

    #[tokio::test]
    async fn slow_uploads_leave_a_lane_to_the_fast() {
        let budget = Budget::open(4 * PART, PART, None).unwrap();
        let held = budget.lane(PART, Pace::Slow).await.unwrap();
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.lane(PART, Pace::Slow).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(budget.lane(PART, Pace::Fast).await.unwrap());
        drop(budget.reserve(3 * PART).await.unwrap());
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap().unwrap();
    }

    #[test]
    fn pace_is_judged_by_the_time_a_part_would_take() {
        let minute = Duration::from_secs(60);
        assert_eq!(Pace::of(PART as u64, minute, PART), Pace::Fast);
        assert_eq!(Pace::of(PART as u64 - 1, minute, PART), Pace::Slow);
        assert_eq!(Pace::of(0, Duration::ZERO, PART), Pace::Fast);
    }
}
