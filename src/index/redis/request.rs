//! Facts as Redis has them: their keys, and each call of an index as commands about the keys of one slot.

use std::collections::HashMap;

use bytes::Bytes;
use redis::{Cmd, FromRedisValue, Pipeline, Script, Value};

use super::super::{Ask, Batch, Check, Fact, IndexError, Outcome, Shard, Write};

/// How a shard's keys begin, and the scripts that work on them.
pub(super) struct Requests {
    /// What all keys begin with.
    namespace: String,
    commit: Script,
    scan: Script,
}

/// The groups that a batch touches: two keys for each, and its place among them.
#[derive(Default)]
struct Groups<'a> {
    places: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
}

impl Requests {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            commit: Script::new(include_str!("commit.lua")),
            scan: Script::new(include_str!("scan.lua")),
        }
    }

    /// The hash of a group's values and the sorted set of its members. The kind comes before the group, so
    /// that no group's name can make one key into another.
    fn keys(&self, shard: Shard, group: &str) -> [String; 2] {
        ["values", "members"].map(|kind| format!("{}{{{}}}:{kind}:{group}", self.namespace, tag(shard)))
    }

    /// The channel that carries all notifications. One for all topics: they are few and small, and a
    /// connection then has nothing to give back when a wait ends.
    pub(super) fn channel(&self) -> String {
        format!("{}:wake", self.namespace)
    }

    /// Makes a server know the scripts.
    pub(super) fn load(&self) -> Pipeline {
        let mut load = redis::pipe();
        for script in [include_str!("commit.lua"), include_str!("scan.lua")] {
            load.cmd("SCRIPT").arg("LOAD").arg(script);
        }
        load
    }

    /// Questions, at least one, answered from one snapshot.
    pub(super) fn get(&self, shard: Shard, asks: &[Ask]) -> Pipeline {
        let mut request = Pipeline::with_capacity(asks.len() + 2);
        // A transaction of one would only cost.
        let is_transaction = asks.len() > 1;
        if is_transaction {
            request.cmd("MULTI");
        }
        for ask in asks {
            request.add_command(self.question(shard, ask));
        }
        if is_transaction {
            request.cmd("EXEC");
        }
        request
    }

    fn question(&self, shard: Shard, ask: &Ask) -> Cmd {
        match ask {
            Ask::Value(fact) => {
                let [values, _] = self.keys(shard, &fact.group);
                Cmd::hget(values, &fact.member)
            }
            Ask::First(group) => {
                let [_, members] = self.keys(shard, group);
                Cmd::zrange(members, 0, 0)
            }
            Ask::Count(group) => {
                let [_, members] = self.keys(shard, group);
                Cmd::zcard(members)
            }
        }
    }

    /// A page of a group.
    pub(super) fn scan(&self, shard: Shard, group: &str, after: Option<&str>, limit: usize) -> Pipeline {
        let least = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.scan.get_hash()).arg(2).arg(&self.keys(shard, group)).arg(least).arg(limit);
        alone(call)
    }

    /// A batch as the script's keys and arguments; `commit.lua` says what they are.
    pub(super) fn commit(&self, shard: Shard, batch: &Batch) -> Pipeline {
        let groups = Groups::of(batch);
        let mut call = redis::cmd("EVALSHA");
        call.arg(self.commit.get_hash()).arg(2 * groups.names.len());
        for group in &groups.names {
            call.arg(&self.keys(shard, group));
        }
        match &batch.sequence {
            Some(counter) => call.arg(groups.place(&counter.group)).arg(&counter.member),
            None => call.arg(0).arg(""),
        };
        call.arg(batch.checks.len()).arg(batch.reads.len());
        let nothing = Bytes::new();
        for check in &batch.checks {
            let (kind, group, member, value) = match check {
                Check::Absent(Fact { group, member }) => ("absent", group, &**member, &nothing),
                Check::Present(Fact { group, member }) => ("present", group, &**member, &nothing),
                Check::Equals(Fact { group, member }, value) => ("equals", group, &**member, value),
                Check::Empty(group) => ("empty", group, "", &nothing),
            };
            call.arg(kind).arg(groups.place(group)).arg(member).arg(&**value);
        }
        for ask in &batch.reads {
            let (kind, group, member) = match ask {
                Ask::Value(Fact { group, member }) => ("value", group, &**member),
                Ask::First(group) => ("first", group, ""),
                Ask::Count(group) => ("count", group, ""),
            };
            call.arg(kind).arg(groups.place(group)).arg(member);
        }
        for write in &batch.writes {
            let (kind, value) = match write {
                Write::Put(_, value) => ("put", value),
                Write::PutNumbered(_, value) => ("number", value),
                Write::PutAtNumber(_, value) => ("at number", value),
                Write::Raise(_, value) => ("raise", value),
                Write::Delete(_) => ("delete", &nothing),
            };
            let Fact { group, member } = changed(write);
            call.arg(kind).arg(groups.place(group)).arg(member).arg(&**value);
        }
        alone(call)
    }
}

impl<'a> Groups<'a> {
    fn of(batch: &'a Batch) -> Self {
        let mut groups = Self::default();
        let checked = batch.checks.iter().map(|check| match check {
            Check::Absent(fact) | Check::Present(fact) | Check::Equals(fact, _) => &fact.group,
            Check::Empty(group) => group,
        });
        let read = batch.reads.iter().map(|ask| match ask {
            Ask::Value(fact) => &fact.group,
            Ask::First(group) | Ask::Count(group) => group,
        });
        let written = batch.writes.iter().map(|write| &changed(write).group);
        let counted = batch.sequence.iter().map(|counter| &counter.group);
        for group in counted.chain(checked).chain(read).chain(written) {
            groups.places.entry(group).or_insert_with(|| {
                groups.names.push(group);
                groups.names.len()
            });
        }
        groups
    }

    /// The place of a group, counted from 1 as Lua does.
    fn place(&self, group: &str) -> usize {
        self.places.get(group).copied().unwrap_or_default()
    }
}

/// What stands between the braces of a shard's keys: in a cluster, what decides which slot they are in.
pub(super) fn tag(shard: Shard) -> String {
    format!("s{:02}", shard.0)
}

/// What a shard's topic is called on the channel of all topics.
pub(super) fn topic_of(shard: Shard, topic: &str) -> String {
    format!("{}:{topic}", tag(shard))
}

/// The answers to [`Requests::get`].
pub(super) fn answers(asks: &[Ask], answer: Value) -> Result<Vec<Option<Bytes>>, IndexError> {
    let answers = match answer {
        Value::Array(answers) if asks.len() > 1 => answers,
        other => vec![other],
    };
    asks.iter().zip(answers).map(|(ask, answer)| answered(ask, answer)).collect()
}

fn answered(ask: &Ask, answer: Value) -> Result<Option<Bytes>, IndexError> {
    match ask {
        Ask::Value(_) => read(answer),
        Ask::First(_) => read::<Vec<Bytes>>(answer).map(|members| members.into_iter().next()),
        Ask::Count(_) => read::<u64>(answer).map(|count| Some(count.to_string().into())),
    }
}

/// The answer to [`Requests::scan`].
pub(super) fn page(answer: Value) -> Result<Vec<(String, Bytes)>, IndexError> {
    let found: Vec<(Bytes, Bytes)> = read(answer)?;
    let named = |(member, value): (Bytes, Bytes)| (String::from_utf8_lossy(&member).into_owned(), value);
    Ok(found.into_iter().map(named).collect())
}

/// The answer to [`Requests::commit`].
pub(super) fn outcome(answer: Value) -> Result<Outcome, IndexError> {
    let answer: (i64, u64, Vec<Option<Bytes>>) = read(answer)?;
    Ok(match answer {
        (0, sequence, reads) => Outcome::Committed { sequence, reads },
        (_, check, _) => Outcome::Refused { check: check as usize },
    })
}

/// An answer as what it should be.
pub(super) fn read<T: FromRedisValue>(answer: Value) -> Result<T, IndexError> {
    T::from_redis_value(answer).map_err(|error| IndexError::Broken(error.to_string()))
}

fn changed(write: &Write) -> &Fact {
    match write {
        Write::Put(fact, _)
        | Write::PutNumbered(fact, _)
        | Write::PutAtNumber(fact, _)
        | Write::Raise(fact, _)
        | Write::Delete(fact) => fact,
    }
}

fn alone(call: Cmd) -> Pipeline {
    let mut request = Pipeline::with_capacity(1);
    request.add_command(call);
    request
}
