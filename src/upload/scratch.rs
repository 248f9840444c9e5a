//! The scratch directory: where the bytes of a part wait that memory has no room for.
//!
//! A file has no name from the moment it is made: nothing is left behind, whatever becomes of the process, and
//! nobody else reads it. It must not block an async thread.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::spawn_blocking;
use ulid::Ulid;

use super::memory::{Block, Budget, Room};
use crate::storage::Chunks;

/// The directory.
#[derive(Debug)]
pub(super) struct Scratch {
    directory: PathBuf,
}

/// The beginning of a part.
#[derive(Debug)]
pub(super) struct Spilled {
    file: Arc<File>,
    /// How many bytes.
    pub(super) size: u64,
}

impl Scratch {
    /// Makes the directory if it is missing, and a file in it, to see that it can. Blocks.
    ///
    /// # Errors
    /// It can't; the text names the directory.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let directory = std::path::absolute(directory)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
        fs::create_dir_all(&directory).map_err(named)?;
        nameless(&directory).map_err(named)?;
        Ok(Self { directory })
    }

    /// An empty file.
    pub(super) async fn file(&self) -> io::Result<Spilled> {
        let directory = self.directory.clone();
        let file = spawn_blocking(move || nameless(&directory)).await??;
        Ok(Spilled { file: Arc::new(file), size: 0 })
    }
}

fn nameless(directory: &Path) -> io::Result<File> {
    let path = directory.join(format!("berth-{}", Ulid::r#gen()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

impl Spilled {
    /// Adds bytes at the end. After a failure the file has what it had before.
    pub(super) async fn add(&mut self, chunks: Chunks) -> io::Result<()> {
        let (file, begin) = (Arc::clone(&self.file), self.size);
        let write = move || {
            let mut end = begin;
            for chunk in &chunks {
                file.write_all_at(chunk, end)?;
                end += chunk.len() as u64;
            }
            io::Result::Ok(end)
        };
        self.size = spawn_blocking(write).await??;
        Ok(())
    }

    /// All of it, in memory for which there is `room`.
    pub(super) async fn read(&self, budget: Arc<Budget>, room: Option<Room>) -> io::Result<Chunks> {
        let (file, size) = (Arc::clone(&self.file), self.size);
        let read = move || {
            let (mut chunks, mut at) = (Chunks::new(), 0);
            while at < size {
                let mut block: Block = budget.block(room.clone());
                let bytes = block.writable(size - at);
                file.read_exact_at(bytes, at)?;
                at += bytes.len() as u64;
                chunks.push(block.freeze());
            }
            Ok(chunks)
        };
        spawn_blocking(read).await?
    }
}
