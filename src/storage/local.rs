//! A local directory as a [`Store`].
//!
//! One process owns the directory, by a lock held for as long as [`Local`] lives. That is what makes
//! everything else simple: a temporary file found at the start is garbage, a part that memory doesn't know
//! was written by a process that is gone, and "before the deadline" is decided under a lock in memory just
//! before the rename.
//!
//! Names that begin with a dot at the top (`.lock`, `.tmp`, `.index`) are not part of the layout. It must
//! not block an async thread: everything that waits for the disk runs on the blocking pool.

mod directory;
mod listing;
mod reading;
mod uploads;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

use super::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
};
use directory::Directory;

/// The size of a part, in bytes. A part costs one write and one fsync here, no request; 4 MiB keeps both
/// the memory of an upload and the number of fsyncs small.
const PART_SIZE: usize = 4 << 20;

/// As many parts as S3 takes, so that no caller has to know which store it has.
const MAX_PARTS: usize = 10_000;

/// A store in a local directory.
#[derive(Debug)]
pub struct Local {
    directory: Arc<Directory>,
    /// Held, never read: the lock goes when the file is closed.
    _lock: File,
}

/// Why a directory can't be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another process ({holder}): stop it, or choose another directory", .directory.display())]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// What the other process says of itself: its pid and when it began.
        holder: String,
    },
    /// It can't be made, read or written.
    #[error("can't use {} as a store: {source}", .directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Local {
    /// Opens the store in `directory`, which is made if it is missing, and removes what a dead process
    /// left half written. With `sync`, what is acknowledged survives a power failure; without, only the
    /// end of the process. Blocks; meant for the start of the program.
    ///
    /// # Errors
    /// Another process holds the directory, or it can't be written.
    pub fn open(directory: &Path, sync: bool) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Unusable { directory: directory.to_owned(), source };
        make(directory, sync).map_err(unusable)?;
        let lock = lock(directory)?;
        let directory = Directory::prepare(directory, sync).map_err(unusable)?;
        Ok(Self { directory: Arc::new(directory), _lock: lock })
    }

    /// Runs `work` on the blocking pool. If the caller goes away the work still ends by itself.
    async fn blocking<T, W>(&self, about: String, work: W) -> Result<T, StorageError>
    where
        T: Send + 'static,
        W: FnOnce(&Directory) -> Result<T, StorageError> + Send + 'static,
    {
        let directory = self.directory.clone();
        match tokio::task::spawn_blocking(move || work(&directory)).await {
            Ok(result) => result,
            Err(error) => Err(StorageError::Unavailable(about, error.to_string())),
        }
    }
}

/// Makes the directory with all that is missing above it, durably.
fn make(directory: &Path, sync: bool) -> io::Result<()> {
    let directory = std::path::absolute(directory)?;
    let missing: Vec<&Path> = directory.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(&directory)?;
    for made in missing.iter().filter(|_| sync) {
        made.parent().map_or(Ok(()), directory::sync_directory)?;
    }
    Ok(())
}

/// Takes the directory's lock and writes into it who has it.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let unusable = |source| OpenError::Unusable { directory: directory.to_owned(), source };
    let path = directory.join(".lock");
    let mut note = File::options().create(true).append(true).open(&path).map_err(unusable)?;
    // The lock is held by a handle that can't write: one that can would keep the operator from remounting
    // the file system read-only.
    let lock = File::open(&path).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(OpenError::Locked { directory: directory.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(unusable(source)),
    }
    let since = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    note.set_len(0).map_err(unusable)?;
    writeln!(note, "pid {} since {since}", std::process::id()).map_err(unusable)?;
    Ok(lock)
}

/// The machine's clock as the store's.
fn now() -> StoreTime {
    store_time(SystemTime::now())
}

/// Milliseconds, rounded down like every other moment, so that the order of two is kept.
fn store_time(moment: SystemTime) -> StoreTime {
    StoreTime(moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

/// Names a failure by what the caller can do about it.
fn explain(key: &str, error: &io::Error) -> StorageError {
    let key = key.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => StorageError::NotFound(key),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::Full(key),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            StorageError::Refused(key, error.to_string())
        }
        _ => StorageError::Unavailable(key, error.to_string()),
    }
}

#[async_trait]
impl Store for Local {
    fn is_exclusive(&self) -> bool {
        true
    }

    fn part_size(&self) -> usize {
        PART_SIZE
    }

    fn max_parts(&self) -> usize {
        MAX_PARTS
    }

    fn now(&self) -> StoreTime {
        now()
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        let key = key.to_string();
        self.blocking(key.clone(), move |directory| directory.put(&key, &bytes, deadline)).await
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        let key = key.to_string();
        self.blocking(key.clone(), move |directory| directory.begin(&key)).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        let (key, upload) = (key.to_string(), upload.clone());
        self.blocking(key.clone(), move |directory| directory.put_part(&key, &upload, number, part_size, &bytes)).await
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        let (key, upload, parts) = (key.to_string(), upload.clone(), parts.to_vec());
        self.blocking(key.clone(), move |directory| directory.complete(&key, &upload, &parts)).await
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        let (key, upload) = (key.to_string(), upload.clone());
        self.blocking(key.clone(), move |directory| directory.abort(&key, &upload)).await
    }

    /// All of them on one page: the directory is one process's, and its uploads fit into memory.
    async fn unfinished(&self, _after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        let uploads = self.blocking("unfinished uploads".to_owned(), |directory| directory.unfinished()).await?;
        Ok(UnfinishedPage { uploads, more: false })
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        let key = key.to_string();
        if let Some(opened) = reading::open_cached(&self.directory, &key, range.as_ref()) {
            return Ok(opened.stream());
        }
        let opened = self.blocking(key.clone(), move |directory| reading::open(directory, &key, range)).await?;
        Ok(opened.stream())
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let key = key.to_string();
        self.blocking(key.clone(), move |directory| directory.stat(&key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let (prefix, after) = (prefix.to_owned(), after.unwrap_or_default().to_owned());
        self.blocking(prefix.clone(), move |directory| listing::list(directory, &prefix, &after, limit)).await
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let key = key.to_string();
        self.blocking(key.clone(), move |directory| directory.delete(&key, deadline)).await
    }

    /// A directory has no URLs: Berth streams the bytes itself.
    async fn sign(&self, _key: &Key, _life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        Ok(None)
    }
}
