//! Putting files into the directory's tree and taking them out, durably.
//!
//! All that several threads share is in [`Gate`], behind one mutex that is held for a rename, an rmdir or a
//! look, and never while bytes are written or synced.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{self, IoSlice, Write},
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ulid::Ulid;

use super::{super::Stat, StorageError, StoreTime, explain, now, store_time, uploads::Uploads};

/// What precedes the ULID in the name of a file that a put, or a delete, has in hand.
const TRANSIENT: &str = "put-";

/// How many directories are remembered as durable before all are forgotten; forgetting costs an fsync per
/// directory and nothing else. 65,536 of some 100 bytes are about 8 MB.
const REMEMBERED: usize = 65_536;

/// How often a rename is tried again because a delete had just removed the empty directory it was going
/// into. Twice is already rare.
const ATTEMPTS: usize = 64;

/// The directory, and what its threads share.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    sync: bool,
    /// Names the time since the machine was started.
    pub(super) boot: String,
    gate: Mutex<Gate>,
    /// Notified when something leaves [`Gate::in_flight`].
    settled: Condvar,
    /// Uploads in parts that this process has written to.
    pub(super) uploads: Uploads,
}

/// What is decided under the lock.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// The turn of the next rename. A listing remembers it to tell what came before it from what came after.
    next_turn: u64,
    /// What has been renamed to its key and isn't yet known to be durable, by turn.
    in_flight: BTreeMap<u64, String>,
    /// Keys whose directory couldn't be synced: their write has failed, and no listing may show what a power
    /// failure would take back. One for each failure of the disk, so it stays small.
    lost: HashSet<String>,
    /// Directories that are known to be durable, with all those above them. One that another thread has
    /// made a moment ago isn't in here yet, so whoever puts something into it syncs it too.
    durable: HashSet<String>,
    /// How many directories were removed. Who has synced one remembers it only if this hasn't moved
    /// meanwhile: the name could stand for another directory by now.
    removals: u64,
}

/// A place among the renames.
struct Turn {
    number: u64,
    removals: u64,
}

/// A file under `.tmp` that is removed unless it was renamed away.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed away it is no longer there, which is the usual case; else its space is wanted back, and
        // if that fails the next start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Directory {
    /// Makes what has to be there and removes what dead processes left. The caller holds the lock.
    pub(super) fn prepare(root: &Path, sync: bool) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let temporary = root.join(".tmp");
        fs::create_dir_all(&temporary)?;
        for entry in fs::read_dir(&temporary)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TRANSIENT) {
                fs::remove_file(entry.path())?;
            }
        }
        if sync {
            sync_directory(&root)?;
        }
        let (gate, settled, uploads) = (Mutex::default(), Condvar::new(), Uploads::default());
        Ok(Self { root, sync, boot: boot(), gate, settled, uploads })
    }

    /// Where a key is.
    pub(super) fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Where an upload in parts is written.
    pub(super) fn upload_path(&self, upload: Ulid) -> PathBuf {
        self.root.join(".tmp").join(upload.to_string())
    }

    /// Syncs a file, unless the store was told not to.
    pub(super) fn sync_file(&self, file: &File) -> io::Result<()> {
        if self.sync { file.sync_all() } else { Ok(()) }
    }

    /// Writes a whole object.
    pub(super) fn put(&self, key: &str, chunks: &[Bytes], deadline: Option<StoreTime>) -> Result<(), StorageError> {
        too_late(key, deadline, now())?;
        let temporary = self.temporary();
        let written = File::create_new(&temporary.path)
            .and_then(|mut file| {
                // An empty file is no more than its name, which is synced with its directory: of the 15 fsyncs of a
                // small image, two less.
                if chunks.iter().any(|chunk| !chunk.is_empty()) {
                    write_all(&mut file, chunks)?;
                    self.sync_file(&file)?;
                }
                file.metadata()?.modified()
            })
            .map_err(|error| explain(key, &error))?;
        self.publish(&temporary.path, key, deadline.map(|deadline| (deadline, store_time(written))))
    }

    /// Renames a synced file to its key and returns once that is durable. With a deadline, neither now nor
    /// the file's own time (the second of the pair, which is what a listing will show) may be after it.
    pub(super) fn publish(
        &self,
        from: &Path,
        key: &str,
        deadline: Option<(StoreTime, StoreTime)>,
    ) -> Result<(), StorageError> {
        let turn = self.rename(from, key, deadline)?;
        let synced = if self.sync { self.sync_entry(key, turn.removals) } else { Ok(()) };
        if synced.is_err() {
            // Best effort: `lost` keeps it out of the listings in any case.
            let _ = fs::remove_file(self.path(key));
        }
        let mut gate = self.gate();
        gate.in_flight.remove(&turn.number);
        if synced.is_err() {
            gate.lost.insert(key.to_owned());
        }
        drop(gate);
        self.settled.notify_all();
        synced.map_err(|error| explain(key, &error))
    }

    fn rename(&self, from: &Path, key: &str, deadline: Option<(StoreTime, StoreTime)>) -> Result<Turn, StorageError> {
        let to = self.path(key);
        let parent = self.path(parent(key));
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for _ in 0..ATTEMPTS {
            let made = fs::create_dir_all(&parent);
            let mut gate = self.gate();
            if let Some((deadline, written)) = deadline {
                too_late(key, Some(deadline), now().max(written))?;
            }
            match made.and_then(|()| fs::rename(from, &to)) {
                Ok(()) => return Ok(gate.enter(key)),
                // A delete has removed the directory while it was empty: make it again. (Of one that goes
                // while it is being made, the standard library says that something exists there.)
                Err(error) if is_vanished(&error) && from.exists() => last = error,
                Err(error) => return Err(explain(key, &error)),
            }
        }
        Err(StorageError::Unavailable(key.to_owned(), last.to_string()))
    }

    /// Syncs the directory that holds `key`, and the one above each directory that isn't known to be
    /// durable, up to one that is.
    pub(super) fn sync_entry(&self, key: &str, removals: u64) -> io::Result<()> {
        let mut directory = parent(key);
        let mut made = Vec::new();
        sync_directory(&self.path(directory))?;
        while !directory.is_empty() && !self.gate().durable.contains(directory) {
            made.push(directory.to_owned());
            directory = parent(directory);
            sync_directory(&self.path(directory))?;
        }
        self.gate().remember(made, removals);
        Ok(())
    }

    /// Makes sure that an object which is there is there for good: a process may have died between its
    /// rename and the sync.
    pub(super) fn settle(&self, key: &str) -> io::Result<()> {
        let removals = self.gate().removals;
        if self.sync { self.sync_entry(key, removals) } else { Ok(()) }
    }

    /// What is at a key.
    pub(super) fn stat(&self, key: &str) -> Result<Option<Stat>, StorageError> {
        match fs::metadata(self.path(key)).and_then(|metadata| stat_of(&metadata)) {
            Ok(stat) => Ok(stat),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(explain(key, &error)),
        }
    }

    /// Removes an object, durably, and the directories that are empty without it.
    pub(super) fn delete(&self, key: &str, deadline: StoreTime) -> Result<(), StorageError> {
        let doomed = self.temporary();
        self.take(key, &doomed.path, deadline)?;
        let failed = |error| explain(key, &error);
        if self.sync {
            self.sync_nearest(parent(key)).map_err(failed)?;
        }
        self.remove_empty(parent(key)).map_err(failed)
    }

    /// Takes a file out of the tree. It is renamed first and freed afterwards, outside the lock, since
    /// freeing a large file takes long.
    fn take(&self, key: &str, doomed: &Path, deadline: StoreTime) -> Result<(), StorageError> {
        let gate = self.gate();
        too_late(key, Some(deadline), now())?;
        let path = self.path(key);
        // A full disk may have no room for the new name, and it is when deleting matters most.
        let taken = fs::rename(&path, doomed).or_else(|_| fs::remove_file(&path));
        drop(gate);
        match taken {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(explain(key, &error)),
        }
    }

    /// Syncs a directory, or where another delete has just removed it the nearest one above: a removal that
    /// is durable comes after what emptied the directory.
    fn sync_nearest(&self, mut directory: &str) -> io::Result<()> {
        loop {
            match sync_directory(&self.path(directory)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.is_empty() => {
                    directory = parent(directory);
                }
                result => return result,
            }
        }
    }

    /// Removes `directory` and those above it while they are empty, but for the top-level folder. A put that
    /// has just made one of them finds it gone at its rename, and makes it again.
    fn remove_empty(&self, mut directory: &str) -> io::Result<()> {
        while directory.contains('/') {
            let mut gate = self.gate();
            gate.durable.remove(directory);
            gate.removals += 1;
            match fs::remove_dir(self.path(directory)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
                Err(error) => return Err(error),
            }
            directory = parent(directory);
        }
        Ok(())
    }

    /// The start of a listing: waits until everything under `prefix` that was renamed before is durable,
    /// and gives the turn that tells it from what comes after.
    pub(super) fn settled_turn(&self, prefix: &str) -> u64 {
        let gate = self.gate();
        let turn = gate.next_turn;
        let unsettled = |gate: &mut Gate| gate.in_flight.range(..turn).any(|(_, key)| key.starts_with(prefix));
        drop(self.settled.wait_while(gate, unsettled).unwrap_or_else(PoisonError::into_inner));
        turn
    }

    /// The end of a listing: drops what was renamed since `turn` and isn't known to be durable. Whoever put
    /// it hasn't been told that it is there.
    pub(super) fn retain_durable(&self, objects: &mut Vec<(String, Stat)>, turn: u64) {
        let gate = self.gate();
        if gate.lost.is_empty() && gate.in_flight.is_empty() {
            return;
        }
        let fresh: HashSet<&String> = gate.in_flight.range(turn..).map(|(_, key)| key).collect();
        objects.retain(|(key, _)| !fresh.contains(key) && !gate.lost.contains(key));
    }

    fn temporary(&self) -> Temporary {
        Temporary { path: self.root.join(".tmp").join(format!("{TRANSIENT}{}", Ulid::r#gen())) }
    }

    /// A thread that panicked can't have left the gate half changed: nothing under the lock can fail midway.
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    fn enter(&mut self, key: &str) -> Turn {
        let number = self.next_turn;
        self.next_turn += 1;
        self.in_flight.insert(number, key.to_owned());
        self.lost.remove(key);
        Turn { number, removals: self.removals }
    }

    fn remember(&mut self, made: Vec<String>, removals: u64) {
        if self.removals != removals {
            return;
        }
        if self.durable.len() + made.len() > REMEMBERED {
            self.durable.clear();
        }
        self.durable.extend(made);
    }
}

/// Linux draws a random name at each boot. Elsewhere each process counts as a boot of its own, which is safe: an
/// upload that it left has to be begun anew.
fn boot() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(boot) => boot.trim().to_owned(),
        Err(_) => Ulid::r#gen().to_string(),
    }
}

/// What a file's metadata says; `None` for a directory.
pub(super) fn stat_of(metadata: &fs::Metadata) -> io::Result<Option<Stat>> {
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(Stat { size: metadata.len(), modified: store_time(metadata.modified()?) }))
}

/// The directory that holds a key or a directory; the root is the empty text.
fn parent(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

fn too_late(key: &str, deadline: Option<StoreTime>, moment: StoreTime) -> Result<(), StorageError> {
    match deadline {
        Some(deadline) if moment > deadline => Err(StorageError::TooLate(key.to_owned())),
        _ => Ok(()),
    }
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes all chunks, as many of them in one call as the system takes.
fn write_all(file: &mut File, chunks: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        chunks.iter().filter(|chunk| !chunk.is_empty()).map(|chunk| IoSlice::new(chunk)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
