//! Uploads in parts: one file each under `.tmp`, into which every part is written where it belongs, so that
//! completing is a rename.
//!
//! A [`PartId`] is a version of a part. Which version of each part is the latest is kept in memory only: the
//! directory's lock proves that whoever wrote a part this process doesn't know of is gone, so what it was
//! told stands.
//!
//! Parts are not synced: the object is, when it is complete. What a process wrote outlives it, but not its machine;
//! so a `PartId` also names the boot in which the part was written, and one of an earlier boot is lost. (On ext4,
//! with a sync for each of the 256 parts of 1 GiB, its push took 2.5 to 2.7 s of CPU; without, 2.2 to 2.4 s.)

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::SystemTime,
};

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use ulid::Ulid;

use super::{MultipartId, PartId, StorageError, directory::Directory, explain};

/// The uploads that this process has written to and that have not ended.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<Ulid, Arc<Upload>>>);

/// One of them.
#[derive(Debug, Default)]
struct Upload {
    /// Shared by the parts being written, alone for what ends the upload; whether it has ended.
    ended: RwLock<bool>,
    /// The latest version of each part. The inner lock makes two writers of one part take turns, so that
    /// the version noted last is also the bytes written last.
    parts: Mutex<HashMap<usize, Arc<Mutex<Option<Ulid>>>>>,
}

/// What a [`PartId`] says: `<number>.<part size>.<length>.<version>.<boot>`.
struct Part<'a> {
    number: usize,
    part_size: u64,
    length: u64,
    version: Ulid,
    boot: &'a str,
}

impl<'a> Part<'a> {
    fn id(&self) -> PartId {
        let Self { number, part_size, length, version, boot } = self;
        PartId(format!("{number}.{part_size}.{length}.{version}.{boot}"))
    }

    fn parse(id: &'a PartId) -> Option<Self> {
        let mut fields = id.0.split('.');
        let number = fields.next()?.parse().ok()?;
        let part_size = fields.next()?.parse().ok()?;
        let length = fields.next()?.parse().ok()?;
        let version = Ulid::from_string(fields.next()?).ok()?;
        let boot = fields.next()?;
        fields.next().is_none().then_some(Self { number, part_size, length, version, boot })
    }
}

impl Uploads {
    fn get(&self, upload: Ulid) -> Arc<Upload> {
        lock(&self.0).entry(upload).or_default().clone()
    }

    fn forget(&self, upload: Ulid) {
        lock(&self.0).remove(&upload);
    }
}

impl Upload {
    fn part(&self, number: usize) -> Arc<Mutex<Option<Ulid>>> {
        lock(&self.parts).entry(number).or_default().clone()
    }

    /// Whether this process has since written another version of the part.
    fn replaced(&self, part: &Part<'_>) -> bool {
        let latest = lock(&self.parts).get(&part.number).and_then(|latest| *lock(latest));
        latest.is_some_and(|latest| latest != part.version)
    }
}

impl Directory {
    /// Begins an upload: an empty file under its name.
    pub(super) fn begin(&self, key: &str) -> Result<MultipartId, StorageError> {
        let upload = Ulid::r#gen();
        File::create_new(self.upload_path(upload)).map_err(|error| explain(key, &error))?;
        Ok(MultipartId(upload.to_string()))
    }

    /// Writes one part where it belongs.
    pub(super) fn put_part(
        &self,
        key: &str,
        id: &MultipartId,
        number: usize,
        part_size: usize,
        chunks: &[Bytes],
    ) -> Result<PartId, StorageError> {
        let upload = parse(key, id)?;
        let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let part = Part { number, part_size: part_size as u64, length, version: Ulid::r#gen(), boot: &self.boot };
        if length > part.part_size {
            return Err(StorageError::Unavailable(key.to_owned(), format!("a part of {length} bytes is too long")));
        }
        let entry = self.uploads.get(upload);
        let ended = entry.ended.read().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return Err(StorageError::NotFound(key.to_owned()));
        }
        let latest = entry.part(number);
        let mut latest = lock(&latest);
        // Before the first byte: from here on an older version can't be completed with.
        *latest = Some(part.version);
        match self.write_part(upload, &part, chunks) {
            Ok(()) => Ok(part.id()),
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    self.uploads.forget(upload);
                }
                Err(explain(key, &error))
            }
        }
    }

    fn write_part(&self, upload: Ulid, part: &Part<'_>, chunks: &[Bytes]) -> io::Result<()> {
        // Never created here: an upload that has ended stays ended.
        let file = File::options().write(true).open(self.upload_path(upload))?;
        let mut offset = part.number as u64 * part.part_size;
        reserve(&file, offset, part.length);
        for chunk in chunks {
            file.write_all_at(chunk, offset)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// Makes the object of the parts.
    pub(super) fn complete(&self, key: &str, id: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        let upload = parse(key, id)?;
        let entry = self.uploads.get(upload);
        // Waits for the parts that are being written.
        let mut ended = entry.ended.write().unwrap_or_else(PoisonError::into_inner);
        let path = self.upload_path(upload);
        let file = match File::options().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.uploads.forget(upload);
                return self.completed_before(key);
            }
            Err(error) => return Err(explain(key, &error)),
        };
        let length = check(key, &entry, &self.boot, parts)?;
        self.finish(&file, length).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StorageError::Unavailable(key.to_owned(), error.to_string()),
            _ => explain(key, &error),
        })?;
        self.publish(&path, key, None)?;
        *ended = true;
        self.uploads.forget(upload);
        Ok(())
    }

    /// The file is gone: the upload was completed or given up.
    fn completed_before(&self, key: &str) -> Result<(), StorageError> {
        if self.stat(key)?.is_none() {
            return Err(StorageError::NotFound(key.to_owned()));
        }
        self.settle(key).map_err(|error| explain(key, &error))
    }

    fn finish(&self, file: &File, length: u64) -> io::Result<()> {
        let found = file.metadata()?.len();
        if found < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{found} bytes of {length} are there")));
        }
        // The last part may have been longer before it was put again.
        if found > length {
            file.set_len(length)?;
        }
        // Its age counts from when it became an object, not from when its last part was written.
        file.set_modified(SystemTime::now())?;
        self.sync_file(file)
    }

    /// Gives an upload up.
    pub(super) fn abort(&self, key: &str, id: &MultipartId) -> Result<(), StorageError> {
        let Ok(upload) = parse(key, id) else { return Ok(()) };
        let entry = self.uploads.get(upload);
        let mut ended = entry.ended.write().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_file(self.upload_path(upload)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(explain(key, &error)),
        }
        *ended = true;
        self.uploads.forget(upload);
        Ok(())
    }
}

/// Asks for the blocks of a part at once rather than by each write: on ext4 writing 1 GiB and syncing it took 0.27 s of
/// system time with it and 0.37 s without (the least of seven runs each, in turn), some 5 % of a push. The file grows
/// no longer by it. Where it fails, the writes say why, or succeed without.
fn reserve(file: &File, offset: u64, length: u64) {
    if length > 0 {
        let _ = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length);
    }
}

/// An id that isn't one of ours names no upload, and must not become a path.
fn parse(key: &str, id: &MultipartId) -> Result<Ulid, StorageError> {
    Ulid::from_string(&id.0).map_err(|_| StorageError::NotFound(key.to_owned()))
}

/// Checks that the parts fit together and are the latest; the length of the object.
fn check(key: &str, upload: &Upload, boot: &str, ids: &[PartId]) -> Result<u64, StorageError> {
    let mut length = 0;
    for (number, id) in ids.iter().enumerate() {
        let misfit = || StorageError::Unavailable(key.to_owned(), format!("{:?} can't be part {number}", id.0));
        let part = Part::parse(id).ok_or_else(misfit)?;
        // Each part must begin where the one before it ended.
        if part.number != number || number as u64 * part.part_size != length {
            return Err(misfit());
        }
        if upload.replaced(&part) || part.boot != boot {
            return Err(StorageError::PartChanged(key.to_owned()));
        }
        length += part.length;
    }
    Ok(length)
}

/// A thread that panicked can't have left any of these half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
