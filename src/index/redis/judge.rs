//! Which servers can be an index: what they say of themselves, and what would drop or lose facts.

use std::collections::HashMap;

use redis::{InfoDict, Pipeline, Value};

use super::{super::IndexError, request::read};

/// The oldest server with all that the scripts need (ZRANGE BYLEX), as major and minor version. Valkey goes by
/// the version of Redis that it is compatible with, 7.2.
const OLDEST: (u32, u32) = (6, 2);

/// What a server is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The one in the configuration.
    Single,
    /// What Sentinels name as the master.
    Named,
    /// A node of a cluster.
    Node,
}

/// Asks a server what [`identity`] is made of.
pub(super) fn question() -> Pipeline {
    let mut asks = redis::pipe();
    for section in ["server", "replication", "memory"] {
        asks.cmd("INFO").arg(section);
    }
    asks
}

/// A server's identity, from its answers to [`question`]: of its process, and of the history of its facts. Refuses
/// one that can't keep the promises of an index.
pub(super) fn identity(answers: Vec<Value>, expected: Expected) -> Result<String, IndexError> {
    let mut sections = answers.into_iter().map(read::<InfoDict>);
    let (Some(server), Some(replication), Some(memory)) = (sections.next(), sections.next(), sections.next()) else {
        return Err(IndexError::Broken("the server does not say what it is".to_owned()));
    };
    let (server, replication, memory) = (server?, replication?, memory?);
    judge_kind(&server, expected)?;
    judge_role(&field(&replication, "role")?, expected)?;
    judge_memory(&field(&memory, "maxmemory_policy")?)?;
    let run: String = field(&server, "run_id")?;
    let history: String = field(&replication, "master_replid")?;
    Ok(format!("{run} {history}"))
}

/// Whether the server speaks as the URL says.
fn judge_kind(server: &InfoDict, expected: Expected) -> Result<(), IndexError> {
    let version: String = field(server, "redis_version")?;
    if version_of(&version).is_none_or(|version| version < OLDEST) {
        return Err(IndexError::Broken(format!("Redis {version} is too old: {}.{} is needed", OLDEST.0, OLDEST.1)));
    }
    // Valkey has a word of its own.
    let mode: Option<String> = server.get("redis_mode").or_else(|| server.get("server_mode"));
    let why = match (expected, mode.as_deref()) {
        (_, Some("sentinel")) => "the server is a Sentinel: its URL is redis-sentinel://HOST:PORT/SERVICE",
        (Expected::Single | Expected::Named, Some("cluster")) => {
            "the server is a node of a cluster: the URL of a cluster is redis-cluster://HOST:PORT,HOST:PORT"
        }
        (Expected::Node, Some("standalone")) => "the server is not a node of a cluster: its URL is redis://HOST:PORT",
        _ => return Ok(()),
    };
    Err(IndexError::Broken(why.to_owned()))
}

/// Only a master has the last word. Of several servers another one is about to have it.
fn judge_role(role: &str, expected: Expected) -> Result<(), IndexError> {
    match (role, expected) {
        ("master", _) => Ok(()),
        (_, Expected::Single) => {
            Err(IndexError::Broken(format!("the server is a {role}: only a master has the last word")))
        }
        (_, Expected::Named | Expected::Node) => {
            Err(IndexError::Unreachable(format!("the server is a {role}, and there is no other master yet")))
        }
    }
}

fn judge_memory(eviction: &str) -> Result<(), IndexError> {
    // Our keys have no time to live, so the volatile-* policies leave them alone.
    if eviction.starts_with("allkeys") {
        let text = format!("maxmemory-policy is {eviction}, which drops facts at random: set it to noeviction");
        return Err(IndexError::Broken(text));
    }
    Ok(())
}

/// Major and minor version.
fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn field(info: &InfoDict, name: &str) -> Result<String, IndexError> {
    info.get(name).ok_or_else(|| IndexError::Broken(format!("the server does not say its {name}")))
}

/// Asks a server what it keeps on its disk.
pub(super) fn question_of_disk() -> Pipeline {
    let mut asks = redis::pipe();
    asks.cmd("CONFIG").arg("GET").arg("save").cmd("CONFIG").arg("GET").arg("appendonly");
    asks
}

/// Whether the server keeps nothing on its disk, by its answers to [`question_of_disk`].
pub(super) fn keeps_nothing(answers: Vec<Value>) -> bool {
    let settings: HashMap<String, String> =
        answers.into_iter().flat_map(|answer| read::<HashMap<String, String>>(answer).unwrap_or_default()).collect();
    let is = |name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
    is("save", "") && is("appendonly", "no")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_number() {
        assert!(version_of("6.10.1") > Some(OLDEST));
        assert!(version_of("6.0.16") < Some(OLDEST));
        assert!(version_of("7") < Some(OLDEST));
        assert_eq!(version_of("8.2.1-rc1"), Some((8, 2)));
    }
}
