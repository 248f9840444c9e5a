//! The bytes of a part that is not in the bucket yet: in memory, in the scratch directory, or half in each.
//!
//! It knows nothing of uploads. Its one promise is that it never has more in memory than the budget allows.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{
    memory::{Block, Budget, Pace, Room},
    scratch::Spilled,
};
use crate::{
    error::{Error, Result},
    storage::Chunks,
};

/// What has come of a part.
pub(super) struct Pending {
    budget: Arc<Budget>,
    /// The one block that a request may always hold, beside the budget: how fast a client is, and whether there is
    /// more to come than that, is known before it has to wait.
    own: Arc<Semaphore>,
    /// Room for the rest of the part, if it had to be waited for.
    lane: Option<Room>,
    /// The beginning, if memory had no room for it.
    spilled: Option<Spilled>,
    /// What comes behind that.
    chunks: Chunks,
    /// The last block, while it is being filled.
    open: Option<Block>,
    part_size: usize,
    size: usize,
}

impl Pending {
    /// Nothing, of a part of at most so many bytes.
    pub(super) fn new(budget: Arc<Budget>, part_size: usize) -> Self {
        let own = Arc::new(Semaphore::new(1));
        Self { budget, own, lane: None, spilled: None, chunks: Chunks::new(), open: None, part_size, size: 0 }
    }

    /// The room for the whole part, if there is.
    pub(super) fn lane(&self) -> Option<Room> {
        self.lane.clone()
    }

    /// Uses another's room for a whole part, of the same request: who has one must not wait for one more, as nobody
    /// might ever give theirs back.
    pub(super) fn share(&mut self, lane: Option<Room>) {
        self.lane = self.lane.take().or(lane);
    }

    /// How many bytes there are.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// How many more the part can have.
    pub(super) fn space(&self) -> usize {
        self.part_size - self.size
    }

    /// Adds bytes, no more than there is space for, of a client of this pace. Waits if there is neither memory nor
    /// a scratch directory for them.
    pub(super) async fn push(&mut self, mut bytes: &[u8], pace: Pace) -> Result<()> {
        while !bytes.is_empty() {
            let open = match &mut self.open {
                Some(open) if !open.is_full() => open,
                _ => self.next_block(pace).await?,
            };
            let taken = open.fill(bytes);
            self.size += taken;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    async fn next_block(&mut self, pace: Pace) -> Result<&mut Block> {
        self.chunks.extend(self.open.take().map(Block::freeze));
        let room = match self.free_room() {
            Some(room) => room,
            None => self.find_room(pace).await?,
        };
        Ok(self.open.insert(self.budget.block(Some(room))))
    }

    /// Room that need not be waited for.
    fn free_room(&self) -> Option<Room> {
        let own = || Arc::clone(&self.own).try_acquire_owned().ok().map(Room::from);
        self.lane.clone().or_else(own).or_else(|| self.budget.try_room())
    }

    async fn find_room(&mut self, pace: Pace) -> Result<Room> {
        match self.spill().await {
            // The own block is free by now, or will be as soon as the part before this one is in the bucket.
            Ok(true) => return Arc::clone(&self.own).acquire_owned().await.map(Room::from).map_err(Error::internal),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "limits.upload_scratch can't be written; uploads wait for memory"),
        }
        let lane = self.budget.lane(self.part_size, pace).await?;
        Ok(self.lane.insert(lane).clone())
    }

    /// Moves what is in memory to the scratch directory; whether there is one.
    async fn spill(&mut self) -> std::io::Result<bool> {
        let Some(scratch) = self.budget.scratch() else { return Ok(false) };
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            None => self.spilled.insert(scratch.file().await?),
        };
        spilled.add(self.chunks.clone()).await?;
        self.chunks.clear();
        Ok(true)
    }

    /// All bytes, in memory. They stay here as well.
    pub(super) async fn bytes(&mut self) -> Result<Chunks> {
        self.chunks.extend(self.open.take().map(Block::freeze));
        if let Some(spilled) = self.spilled.take_if(|spilled| spilled.size > 0) {
            if self.lane.is_none() {
                // It will be held for as long as the bucket takes, and no client is waited for.
                self.lane = Some(self.budget.lane(self.part_size, Pace::Fast).await?);
            }
            let mut chunks =
                spilled.read(Arc::clone(&self.budget), self.lane.clone()).await.map_err(Error::unavailable)?;
            chunks.append(&mut self.chunks);
            self.chunks = chunks;
        }
        Ok(self.chunks.clone())
    }

    /// All bytes, in memory; from here on it is about the next part.
    pub(super) async fn take(&mut self) -> Result<Chunks> {
        let bytes = self.bytes().await?;
        self.clear();
        Ok(bytes)
    }

    /// Forgets all bytes.
    pub(super) fn clear(&mut self) {
        self.chunks = Chunks::new();
        (self.lane, self.spilled, self.open, self.size) = (None, None, None, 0);
    }
}
