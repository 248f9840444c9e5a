//! Where facts stand in the table, and how questions about them are answered.

use bytes::Bytes;
use redb::{ReadableTable, TableDefinition};

use crate::index::{Ask, Fact, Shard};

/// All facts. A key is the shard (big-endian), the group, a zero byte, and the member: as neither name has
/// control characters, byte order is that of shards, then groups, then members.
pub(super) const FACTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("facts");

/// Answers one question.
pub(super) fn answer(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    ask: &Ask,
) -> Result<Option<Bytes>, redb::Error> {
    match ask {
        Ask::Value(fact) => value(facts, shard, fact),
        Ask::First(group) => first(facts, shard, group),
        Ask::Count(group) => count(facts, shard, group).map(Some),
    }
}

pub(super) fn value(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    fact: &Fact,
) -> Result<Option<Bytes>, redb::Error> {
    Ok(facts.get(&*key_of(shard, fact))?.map(|value| Bytes::copy_from_slice(value.value())))
}

/// By looking at each member: who counts does so now and then.
fn count(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    group: &str,
) -> Result<Bytes, redb::Error> {
    let mut count: u64 = 0;
    for entry in facts.range::<&[u8]>(&*key(shard, group, "")..&*end_of(shard, group))? {
        entry?;
        count += 1;
    }
    Ok(count.to_string().into())
}

/// The least member of a group.
pub(super) fn first(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    group: &str,
) -> Result<Option<Bytes>, redb::Error> {
    let start = key(shard, group, "");
    let Some(entry) = facts.range::<&[u8]>(&*start..&*end_of(shard, group))?.next() else { return Ok(None) };
    Ok(Some(Bytes::copy_from_slice(&entry?.0.value()[start.len()..])))
}

pub(super) fn key_of(shard: Shard, fact: &Fact) -> Vec<u8> {
    key(shard, &fact.group, &fact.member)
}

pub(super) fn key(shard: Shard, group: &str, member: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(3 + group.len() + member.len());
    key.extend_from_slice(&shard.0.to_be_bytes());
    key.extend_from_slice(group.as_bytes());
    key.push(0);
    key.extend_from_slice(member.as_bytes());
    key
}

/// The least key after all members of a group.
pub(super) fn end_of(shard: Shard, group: &str) -> Vec<u8> {
    let mut end = key(shard, group, "");
    end.pop();
    end.push(1);
    end
}
