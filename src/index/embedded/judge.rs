//! What becomes of a batch, and what it changes: in the table, and as bytes that say so again.

use bytes::Bytes;
use redb::{ReadableTable, Table};

use super::table::{answer, first, key_of, value};
use crate::index::{Batch, Check, Fact, IndexError, Outcome, Shard, Write};

/// What a change begins with in a record; behind it stand the key and, where it is put, the value, each behind its
/// length (u32, little-endian).
const PUT: u8 = b'+';
/// The same where the key is removed.
const REMOVE: u8 = b'-';

/// What becomes of one batch of a group.
pub(super) type Answer = Result<Outcome, IndexError>;

/// The table of facts, and the record of all that was changed in it.
pub(super) struct Changes<'transaction> {
    facts: Facts<'transaction>,
    record: Vec<u8>,
}

type Facts<'transaction> = Table<'transaction, &'static [u8], &'static [u8]>;

impl<'transaction> Changes<'transaction> {
    /// Has changed nothing yet.
    pub(super) const fn of(facts: Facts<'transaction>) -> Self {
        Self { facts, record: Vec::new() }
    }

    /// What [`replay`] makes again; empty where nothing was changed.
    pub(super) fn record(self) -> Vec<u8> {
        self.record
    }

    /// Makes one batch's writes if its checks hold. The inner error is the batch's own, and leaves the table as
    /// it was; the outer one is the file's.
    pub(super) fn judge(&mut self, shard: Shard, batch: &Batch) -> Result<Answer, redb::Error> {
        for (check, what) in batch.checks.iter().enumerate() {
            if !holds(&self.facts, shard, what)? {
                return Ok(Ok(Outcome::Refused { check }));
            }
        }
        let reads = batch.reads.iter().map(|ask| answer(&self.facts, shard, ask)).collect::<Result<_, _>>()?;
        let mut sequence = 0;
        if let Some(counter) = &batch.sequence {
            let Some(next) = next_number(value(&self.facts, shard, counter)?) else {
                let text = format!("the counter {} {} is no number", counter.group, counter.member);
                return Ok(Err(IndexError::Broken(text)));
            };
            sequence = next;
            self.put(&key_of(shard, counter), sequence.to_string().as_bytes())?;
        }
        for write in &batch.writes {
            self.make(shard, write, sequence)?;
        }
        Ok(Ok(Outcome::Committed { sequence, reads }))
    }

    fn make(&mut self, shard: Shard, write: &Write, sequence: u64) -> Result<(), redb::Error> {
        match write {
            Write::Put(fact, value) => self.put(&key_of(shard, fact), value),
            Write::PutNumbered(fact, value) => {
                let mut numbered = format!("{sequence:016x}").into_bytes();
                numbered.extend_from_slice(value);
                self.put(&key_of(shard, fact), &numbered)
            }
            Write::PutAtNumber(fact, value) => {
                let member = format!("{sequence:016x}{}", fact.member);
                self.put(&key_of(shard, &Fact::new(&fact.group, member)), value)
            }
            Write::Raise(fact, value) => {
                let key = key_of(shard, fact);
                let greater = self.facts.get(&*key)?.is_some_and(|found| found.value() > &**value);
                if greater { Ok(()) } else { self.put(&key, value) }
            }
            Write::Delete(fact) => self.remove(&key_of(shard, fact)),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), redb::Error> {
        self.record.push(PUT);
        append(&mut self.record, key);
        append(&mut self.record, value);
        self.facts.insert(key, value)?;
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), redb::Error> {
        if self.facts.remove(key)?.is_some() {
            self.record.push(REMOVE);
            append(&mut self.record, key);
        }
        Ok(())
    }
}

/// Makes the changes of a record again. Those that were made already change nothing, if all records behind it follow.
pub(super) fn replay(facts: &mut Facts<'_>, mut record: &[u8]) -> Result<(), redb::Error> {
    while let Some((kind, rest)) = record.split_first() {
        record = rest;
        let key = take(&mut record)?;
        if *kind == PUT {
            facts.insert(key, take(&mut record)?)?;
        } else if *kind == REMOVE {
            facts.remove(key)?;
        } else {
            return Err(unknown());
        }
    }
    Ok(())
}

fn append(record: &mut Vec<u8>, bytes: &[u8]) {
    // What is longer makes a record that the journal refuses.
    record.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend_from_slice(bytes);
}

fn take<'record>(record: &mut &'record [u8]) -> Result<&'record [u8], redb::Error> {
    let (length, rest) = record.split_first_chunk::<4>().ok_or_else(unknown)?;
    let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(unknown)?;
    *record = rest;
    Ok(bytes)
}

fn unknown() -> redb::Error {
    redb::Error::Corrupted("the journal has a record of an unknown form".to_owned())
}

/// The number after the one that a counter stands at; `None` where its value is no number.
fn next_number(value: Option<Bytes>) -> Option<u64> {
    let Some(value) = value else { return Some(1) };
    std::str::from_utf8(&value).ok()?.parse::<u64>().ok()?.checked_add(1)
}

fn holds(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    check: &Check,
) -> Result<bool, redb::Error> {
    Ok(match check {
        Check::Absent(fact) => facts.get(&*key_of(shard, fact))?.is_none(),
        Check::Present(fact) => facts.get(&*key_of(shard, fact))?.is_some(),
        Check::Equals(fact, wanted) => facts.get(&*key_of(shard, fact))?.is_some_and(|found| found.value() == wanted),
        Check::Empty(group) => first(facts, shard, group)?.is_none(),
    })
}
