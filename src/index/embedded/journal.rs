//! The journal before the embedded index: a file to which each group of batches is appended before it is visible.
//!
//! A durable commit of a database writes some 15 pages and their sums; here it is one write and one sync of what changed.
//! The database follows in memory, and reaches the disk when the journal has grown to [`FULL`]: then the journal is begun
//! anew, over its own bytes. It knows nothing of facts or databases: a record is a numbered string of bytes.
//!
//! The file: a header (magic and version, then the identity of the database it belongs to), then records one behind the
//! other: length of the body (u32), CRC-32 of number and body (u32), number (u64), body; all little-endian. Numbers rise by
//! one for as long as the database lives. What is read back ends at the first record that isn't whole, or isn't the next:
//! behind the last one stand zeros, or records of before. One that isn't whole was cut off, and never acknowledged, unless a
//! later one is there.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

/// Where records begin, in bytes. A header is shorter.
const START: u64 = 4096;

/// How long the journal grows before the database is made durable, in bytes: some thousand batches. Then each page that
/// they have touched is written once, which takes as long as few commits of their own would.
const FULL: u64 = 1 << 20;

/// What a file begins with that is a journal, of this form.
const MAGIC: &[u8] = b"berth journal 1\n";

/// The bytes before a record's body.
const HEAD: usize = 16;

/// An open journal. After a failure to write it takes no more: what is in the file is known when it was read again.
#[derive(Debug)]
pub(super) struct Journal {
    file: fs::File,
    sync: bool,
    /// The number of the last record.
    number: u64,
    /// Where the next one goes.
    end: u64,
    /// How many bytes of the file are there: writing over them changes nothing but them, so a sync is one write.
    length: u64,
    failed: bool,
    /// The next write, kept for its memory.
    buffer: Vec<u8>,
}

/// What is read from a journal when it is opened.
#[derive(Debug)]
pub(super) struct Found {
    /// The bodies that come behind `made`, in order.
    pub(super) records: Vec<Vec<u8>>,
    /// Whether there was no journal, or that of another database.
    pub(super) is_new: bool,
}

impl Journal {
    /// Opens the journal at `path` of the database `identity` that has all records up to number `made`, or begins one.
    /// With `sync`, a record is on the disk when it was appended; without, it survives the death of the process only.
    ///
    /// # Errors
    /// Those of the file; [`ErrorKind::InvalidData`] where records that follow on `made` are missing or damaged, before others
    /// that are there.
    pub(super) fn open(path: &Path, identity: &str, made: u64, sync: bool) -> io::Result<(Self, Found)> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(identity.as_bytes());
        header.push(b'\n');
        let bytes = fs::read(path)?;
        let is_new = !bytes.starts_with(&header);
        let records = if is_new { Vec::new() } else { records(&bytes, made)? };
        if is_new {
            file.set_len(0)?;
            header.resize(START as usize, 0);
            // The first record's sync is this one's too: without it, nothing is lost that was acknowledged.
            file.write_all_at(&header, 0)?;
        }
        let length = file.metadata()?.len();
        let journal = Self { file, sync, number: made, end: START, length, failed: false, buffer: Vec::new() };
        Ok((journal, Found { records, is_new }))
    }

    /// Appends a record, durably.
    ///
    /// # Errors
    /// Those of the file. Whether the record will be found when the journal is opened again isn't known then, and until
    /// that nothing more is taken.
    pub(super) fn append(&mut self, body: &[u8]) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to the journal failed"));
        }
        self.failed = true;
        let number = self.number + 1;
        let length = u32::try_from(body.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        self.buffer.clear();
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(&sum(number, body).to_le_bytes());
        self.buffer.extend_from_slice(&number.to_le_bytes());
        self.buffer.extend_from_slice(body);
        let end = self.end + self.buffer.len() as u64;
        // No length stands where the next record will, whatever was there before.
        self.buffer.resize(self.buffer.len() + HEAD, 0);
        let written = self.end + self.buffer.len() as u64;
        if written > self.length {
            // So that the file system has the blocks, and the records to come need only their own bytes written.
            let missing = written.max(START + FULL) - self.end;
            self.buffer.resize(missing as usize, 0);
        }
        self.file.write_all_at(&self.buffer, self.end)?;
        if self.sync {
            self.file.sync_data()?;
        }
        self.length = self.length.max(self.end + self.buffer.len() as u64);
        (self.number, self.end, self.failed) = (number, end, false);
        Ok(())
    }

    /// Says that what was appended last didn't become of the database what it should: nothing more is taken.
    pub(super) const fn fail(&mut self) {
        self.failed = true;
    }

    /// Lets the next write fail.
    #[cfg(test)]
    pub(super) fn break_file(&mut self, path: &Path) {
        self.file = fs::File::open(path).expect("the journal");
    }

    /// Whether the database should be made durable, and the journal begun anew.
    pub(super) const fn is_full(&self) -> bool {
        self.end >= START + FULL
    }

    /// The number of the last record.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Begins anew behind record `made`, up to which the database is durable.
    pub(super) const fn begin_anew(&mut self, made: u64) {
        (self.number, self.end) = (made, START);
    }
}

/// The bodies of the records in a file that follow on `made`.
fn records(bytes: &[u8], made: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut rest = bytes.get(START as usize..).unwrap_or_default();
    let mut found = Vec::new();
    let mut last = None;
    while let Some((number, body)) = record(rest) {
        if last.is_some_and(|last| number != last + 1) {
            break;
        }
        if number > made {
            if number != made + 1 + found.len() as u64 {
                let text = format!(
                    "it has nothing between {made}, where the database ends, and {number}; \
                     the index counts as lost: remove its files"
                );
                return Err(io::Error::new(ErrorKind::InvalidData, text));
            }
            found.push(body.to_vec());
        }
        last = Some(number);
        rest = &rest[HEAD + body.len()..];
    }
    let next = made + 1 + found.len() as u64;
    if rest.first_chunk().is_some_and(|length| *length != [0; 4]) && has_later(rest, next) {
        let text = format!("record {next} is damaged; the index counts as lost: remove its files");
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    Ok(found)
}

/// Whether a whole record with a number behind `next` stands anywhere in `bytes`.
fn has_later(bytes: &[u8], next: u64) -> bool {
    // Far more than fit: what a number this high would say is chance.
    let later = next + 1..next + FULL;
    let number = |at: &[u8]| Some(u64::from_le_bytes(*at.get(8..)?.first_chunk()?));
    let mut places = (0..bytes.len()).map(|begin| &bytes[begin..]);
    places.any(|at| number(at).is_some_and(|number| later.contains(&number)) && record(at).is_some())
}

/// The number and the body of the record at the beginning of `bytes`, if a whole one is there.
fn record(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = u32::from_le_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
    let claimed = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let number = u64::from_le_bytes(bytes.get(8..HEAD)?.try_into().ok()?);
    let body = bytes.get(HEAD..HEAD.checked_add(length)?)?;
    (length > 0 && claimed == sum(number, body)).then_some((number, body))
}

fn sum(number: u64, body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&number.to_le_bytes());
    sum.update(body);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn open(directory: &TempDir, made: u64) -> io::Result<(Journal, Found)> {
        Journal::open(&directory.path().join("journal"), "me", made, true)
    }

    #[test]
    fn what_follows_on_the_database_is_found_again() {
        let directory = TempDir::new().expect("a directory");
        let (mut journal, found) = open(&directory, 0).expect("a journal");
        assert!(found.is_new);
        for body in ["one", "two", "three"] {
            journal.append(body.as_bytes()).expect("an append");
        }
        for made in 0..=3 {
            let (_, found) = open(&directory, made).expect("a journal");
            assert!(!found.is_new);
            assert_eq!(
                found.records,
                ["one", "two", "three"][made as usize..].iter().map(|it| it.as_bytes()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn what_stood_there_before_is_not_found_again() {
        let directory = TempDir::new().expect("a directory");
        let (mut journal, _) = open(&directory, 0).expect("a journal");
        for number in 1..=4 {
            journal.append(format!("before {number}").as_bytes()).expect("an append");
        }
        journal.begin_anew(4);
        assert!(open(&directory, 4).expect("a journal").1.records.is_empty());
        journal.append(b"behind 5").expect("an append");
        assert_eq!(open(&directory, 4).expect("a journal").1.records, [b"behind 5"]);
        // Without the zeros behind it, as when the loss of power took them.
        let path = directory.path().join("journal");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("the journal");
        file.write_all_at(&fs::read(&path).expect("bytes")[START as usize..][..24], START + 24).expect("a write");
        assert_eq!(open(&directory, 4).expect("a journal").1.records, [b"behind 5"]);
    }

    #[test]
    fn a_damaged_record_is_an_error_where_others_follow() {
        for (damaged, is_last) in [("one", false), ("two", false), ("three", true)] {
            let directory = TempDir::new().expect("a directory");
            let (mut journal, _) = open(&directory, 0).expect("a journal");
            for body in ["one", "two", "three"] {
                journal.append(body.as_bytes()).expect("an append");
            }
            let path = directory.path().join("journal");
            let mut bytes = fs::read(&path).expect("bytes");
            let place =
                bytes.windows(damaged.len()).position(|window| window == damaged.as_bytes()).expect("the record");
            bytes[place] ^= 1;
            fs::write(&path, bytes).expect("a write");
            let found = open(&directory, 0);
            match found {
                Ok((_, found)) => assert!(is_last && found.records.len() == 2, "{damaged}"),
                Err(error) => assert!(!is_last && error.to_string().contains("is damaged"), "{damaged}: {error}"),
            }
        }
    }

    #[test]
    fn records_that_are_missing_are_an_error() {
        let directory = TempDir::new().expect("a directory");
        let (mut journal, _) = open(&directory, 7).expect("a journal");
        journal.append(b"eight").expect("an append");
        assert_eq!(open(&directory, 7).expect("a journal").1.records, [b"eight"]);
        assert_eq!(open(&directory, 6).expect_err("no seven").kind(), ErrorKind::InvalidData);
        // And that of another database is begun anew.
        let other = Journal::open(&directory.path().join("journal"), "other", 0, true).expect("a journal");
        assert!(other.1.is_new);
    }
}
