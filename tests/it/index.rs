//! The contract of an index: one function per promise, run over every implementation; then what only one
//! of them promises. Each promise keeps to groups of its own, so that all can share a database.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use berth::index::{
    Ask, Batch, Check, Connect, Fact, Index, IndexError, Outcome, Shard, Write, embedded::Embedded, redis::Redis,
};
use bytes::Bytes;
use tempfile::TempDir;

use crate::{
    redis_fleet::{Cluster, Sentinels},
    redis_server,
};

const SHARD: Shard = Shard(7);

type Connection = Arc<dyn Index>;

fn fact(group: &str, member: &str) -> Fact {
    Fact::new(group, member)
}

fn put(group: &str, member: &str, value: impl Into<Bytes>) -> Write {
    Write::Put(fact(group, member), value.into())
}

fn writes(writes: Vec<Write>) -> Batch {
    Batch { writes, ..Batch::default() }
}

fn checked(checks: Vec<Check>, writes: Vec<Write>) -> Batch {
    Batch { checks, writes, ..Batch::default() }
}

/// Commits what must be committed: its sequence number and what it read.
async fn commit(index: &Connection, batch: Batch) -> (u64, Vec<Option<Bytes>>) {
    match index.commit(SHARD, batch).await.unwrap() {
        Outcome::Committed { sequence, reads } => (sequence, reads),
        refused @ Outcome::Refused { .. } => panic!("{refused:?}"),
    }
}

async fn value(index: &Connection, group: &str, member: &str) -> Option<Bytes> {
    index.get(SHARD, &[Ask::Value(fact(group, member))]).await.unwrap().remove(0)
}

async fn members(index: &Connection, group: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let found = index.scan(SHARD, group, after, limit).await.unwrap();
    found.into_iter().map(|(member, _)| member).collect()
}

async fn every_promise(connect: Arc<dyn Connect>) {
    let index = connect.connect().await.unwrap();
    answers_come_in_order(&index).await;
    first_is_the_least_member(&index).await;
    a_count_is_of_one_group(&index).await;
    each_check_is_judged(&index).await;
    the_first_failing_check_is_named_and_nothing_written(&index).await;
    writes_are_made_in_order(&index).await;
    raise_compares_bytes(&index).await;
    a_number_goes_before_the_value(&index).await;
    a_number_goes_before_the_member(&index).await;
    reads_are_from_before_the_writes(&index).await;
    a_counter_that_is_no_number_is_an_error(&index).await;
    a_group_is_scanned_in_byte_order(&index).await;
    groups_do_not_bleed(&index).await;
    shards_do_not_bleed(&index).await;
    values_may_be_empty_or_large(&index).await;
    batches_may_be_large(&index).await;
    increments_have_no_gap(&connect).await;
    no_update_is_lost(&connect).await;
    a_get_is_one_snapshot(&connect).await;
    a_notification_wakes_only_its_topic(&connect).await;
    a_wait_ends_by_its_patience(&index).await;
    identity_stays(&connect).await;
}

async fn answers_come_in_order(index: &Connection) {
    assert_eq!(index.get(SHARD, &[]).await.unwrap(), vec![]);
    commit(index, writes(vec![put("order", "a", "1"), put("order", "b", "2")])).await;
    let asks = ["b", "none", "a", "b"].map(|member| Ask::Value(fact("order", member)));
    let wanted = [Some("2"), None, Some("1"), Some("2")].map(|value| value.map(Bytes::from));
    assert_eq!(index.get(SHARD, &asks).await.unwrap(), wanted);
}

async fn first_is_the_least_member(index: &Connection) {
    let first = [Ask::First("first".to_owned())];
    assert_eq!(index.get(SHARD, &first).await.unwrap(), [None]);
    commit(index, writes(vec![put("first", "b", ""), put("first", "a/x", ""), put("first", "a", "")])).await;
    let both = [first[0].clone(), Ask::First("firs".to_owned()), Ask::Value(fact("first", "b"))];
    assert_eq!(index.get(SHARD, &both).await.unwrap(), [Some("a".into()), None, Some("".into())]);
    commit(index, writes(vec![Write::Delete(fact("first", "a"))])).await;
    assert_eq!(index.get(SHARD, &first).await.unwrap(), [Some("a/x".into())]);
}

async fn a_count_is_of_one_group(index: &Connection) {
    let count = |group: &str| Ask::Count(group.to_owned());
    commit(index, writes(vec![put("count", "a", "1"), put("count", "b", ""), put("counts", "c", "")])).await;
    commit(index, writes(vec![put("count", "a", "2")])).await;
    let both = index.get(SHARD, &[count("count"), count("coun")]).await.unwrap();
    assert_eq!(both, [Some("2".into()), Some("0".into())]);
    let batch = Batch { reads: vec![count("count")], ..writes(vec![Write::Delete(fact("count", "a"))]) };
    assert_eq!(commit(index, batch).await.1, [Some("2".into())]);
    assert_eq!(index.get(SHARD, &[count("count")]).await.unwrap(), [Some("1".into())]);
}

async fn each_check_is_judged(index: &Connection) {
    commit(index, writes(vec![put("check", "here", "x")])).await;
    let (here, none) = (fact("check", "here"), fact("check", "none"));
    let table = [
        (Check::Absent(none.clone()), true),
        (Check::Absent(here.clone()), false),
        (Check::Present(here.clone()), true),
        (Check::Present(none.clone()), false),
        (Check::Equals(here.clone(), "x".into()), true),
        (Check::Equals(here.clone(), "".into()), false),
        (Check::Equals(here.clone(), "xx".into()), false),
        (Check::Equals(none.clone(), "".into()), false),
        (Check::Empty("chec".to_owned()), true),
        (Check::Empty("check".to_owned()), false),
    ];
    for (check, holds) in table {
        let outcome = index.commit(SHARD, checked(vec![check.clone()], vec![])).await.unwrap();
        let committed = Outcome::Committed { sequence: 0, reads: vec![] };
        assert_eq!(outcome, if holds { committed } else { Outcome::Refused { check: 0 } }, "{check:?}");
    }
}

async fn the_first_failing_check_is_named_and_nothing_written(index: &Connection) {
    let checks = vec![
        Check::Absent(fact("refuse", "a")),
        Check::Empty("refuse".to_owned()),
        Check::Present(fact("refuse", "a")),
        Check::Present(fact("refuse", "b")),
    ];
    let mut batch = checked(checks, vec![put("refuse", "a", "1")]);
    batch.sequence = Some(fact("refuse", "counter"));
    assert_eq!(index.commit(SHARD, batch.clone()).await.unwrap(), Outcome::Refused { check: 2 });
    assert_eq!(members(index, "refuse", None, 9).await, Vec::<String>::new());
    // The checks are judged before the writes, so what is written does not make them hold.
    batch.checks.truncate(2);
    assert_eq!(commit(index, batch.clone()).await.0, 1);
    assert_eq!(index.commit(SHARD, batch).await.unwrap(), Outcome::Refused { check: 0 });
    assert_eq!(members(index, "refuse", None, 9).await, ["a", "counter"]);
}

async fn writes_are_made_in_order(index: &Connection) {
    let delete = Write::Delete(fact("in-order", "a"));
    commit(index, writes(vec![put("in-order", "a", "1"), delete.clone(), put("in-order", "a", "2")])).await;
    assert_eq!(value(index, "in-order", "a").await, Some("2".into()));
    commit(index, writes(vec![put("in-order", "a", "3"), delete.clone(), delete])).await;
    assert_eq!(value(index, "in-order", "a").await, None);
    commit(index, checked(vec![Check::Empty("in-order".to_owned())], vec![])).await;
}

async fn raise_compares_bytes(index: &Connection) {
    let raise = |value: &'static [u8]| writes(vec![Write::Raise(fact("raise", "m"), value.into())]);
    // Pairs that a locale, a signed byte or a C string would order otherwise.
    let rising: [&[u8]; 8] = [b"", b"\0", b"\0a", b"B", b"a", b"a\0", b"a\0b", b"\xff"];
    for pair in rising.windows(2) {
        commit(index, raise(pair[0])).await;
        commit(index, raise(pair[1])).await;
        assert_eq!(value(index, "raise", "m").await.as_deref(), Some(pair[1]));
        commit(index, raise(pair[0])).await;
        assert_eq!(value(index, "raise", "m").await.as_deref(), Some(pair[1]), "{pair:?}");
        commit(index, writes(vec![Write::Delete(fact("raise", "m"))])).await;
    }
}

async fn a_number_goes_before_the_value(index: &Connection) {
    let numbered = Write::PutNumbered(fact("number", "m"), Bytes::from_static(b"\0\xff rest"));
    let mut batch = writes(vec![numbered]);
    let without = index.commit(SHARD, batch.clone()).await;
    assert!(matches!(without, Err(IndexError::Broken(_))), "{without:?}");
    commit(index, writes(vec![put("number", "counter", "41005")])).await;
    batch.sequence = Some(fact("number", "counter"));
    assert_eq!(commit(index, batch).await.0, 41006);
    assert_eq!(value(index, "number", "m").await.as_deref(), Some(&b"000000000000a02e\0\xff rest"[..]));
    assert_eq!(value(index, "number", "counter").await, Some("41006".into()));
}

async fn a_number_goes_before_the_member(index: &Connection) {
    let mut batch = writes(vec![
        Write::PutAtNumber(fact("at number", "-1"), "one".into()),
        Write::PutAtNumber(fact("at number", "-2"), "two".into()),
    ]);
    let without = index.commit(SHARD, batch.clone()).await;
    assert!(matches!(without, Err(IndexError::Broken(_))), "{without:?}");
    batch.sequence = Some(fact("counter", "at number"));
    commit(index, batch.clone()).await;
    commit(index, batch).await;
    let members = members(index, "at number", None, 9).await;
    let numbered = ["0000000000000001-1", "0000000000000001-2", "0000000000000002-1", "0000000000000002-2"];
    assert_eq!(members, numbered);
    assert_eq!(value(index, "at number", numbered[3]).await, Some("two".into()));
}

async fn reads_are_from_before_the_writes(index: &Connection) {
    commit(index, writes(vec![put("reads", "a", "old")])).await;
    let mut batch = writes(vec![put("reads", "a", "new"), put("reads", "b", "new")]);
    batch.sequence = Some(fact("reads", "counter"));
    batch.reads = ["b", "a", "counter", "a"].map(|member| Ask::Value(fact("reads", member))).into();
    batch.reads.extend([Ask::First("reads".to_owned()), Ask::First("no reads".to_owned())]);
    let (sequence, reads) = commit(index, batch).await;
    assert_eq!(sequence, 1, "a counter starts at 1");
    assert_eq!(reads, [None, Some("old".into()), None, Some("old".into()), Some("a".into()), None]);
}

async fn a_counter_that_is_no_number_is_an_error(index: &Connection) {
    commit(index, writes(vec![put("garbage", "counter", "many")])).await;
    let mut batch = writes(vec![put("garbage", "a", "")]);
    batch.sequence = Some(fact("garbage", "counter"));
    let error = index.commit(SHARD, batch).await.unwrap_err();
    assert!(matches!(error, IndexError::Broken(_)), "{error:?}");
    assert_eq!(members(index, "garbage", None, 9).await, ["counter"]);
}

async fn a_group_is_scanned_in_byte_order(index: &Connection) {
    let wanted = ["", "+", "-", "1", "1-x", "1.0", "B", "a", "a-b", "a.b", "a/b", "aa", "[a", "(a", "é", "日本", "🦀"];
    let mut sorted = wanted.map(str::to_owned);
    sorted.sort();
    let puts = wanted.iter().rev().map(|member| put("scan", member, format!("value of {member}"))).collect();
    commit(index, writes(puts)).await;
    let all = index.scan(SHARD, "scan", None, 100).await.unwrap();
    let pairs: Vec<_> = sorted.iter().map(|m| (m.clone(), Bytes::from(format!("value of {m}")))).collect();
    assert_eq!(all, pairs);
    assert_eq!(members(index, "scan", None, 3).await, sorted[..3]);
    assert_eq!(members(index, "scan", None, 0).await, Vec::<String>::new());
    for (place, member) in sorted.iter().enumerate() {
        assert_eq!(members(index, "scan", Some(member), 100).await, sorted[place + 1..], "after {member:?}");
    }
    // What it is asked to go on after need not be there.
    assert_eq!(members(index, "scan", Some("a-c"), 1).await, ["a.b"]);
    assert_eq!(members(index, "scan-none", None, 100).await, Vec::<String>::new());
}

async fn groups_do_not_bleed(index: &Connection) {
    let names = [("g", "b:c"), ("g:b", "c"), ("g:members", "m"), ("g:values", "m"), ("values:g", "m"), ("g ", "m")];
    let puts = names.iter().map(|(group, member)| put(group, member, format!("{group}|{member}"))).collect();
    commit(index, writes(puts)).await;
    for (group, member) in names {
        assert_eq!(members(index, group, None, 100).await, [member], "{group}");
        assert_eq!(value(index, group, member).await, Some(format!("{group}|{member}").into()));
    }
    commit(index, writes(vec![Write::Delete(fact("g", "b:c"))])).await;
    commit(index, checked(vec![Check::Empty("g".to_owned()), Check::Present(fact("g:b", "c"))], vec![])).await;
}

async fn shards_do_not_bleed(index: &Connection) {
    for shard in [0, 1, 255, 256, 4095] {
        let batch = checked(vec![Check::Empty("shard".to_owned())], vec![put("shard", "m", shard.to_string())]);
        let outcome = index.commit(Shard(shard), batch).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{shard}");
    }
    for shard in [0, 1, 255, 256, 4095] {
        let found = index.scan(Shard(shard), "shard", None, 10).await.unwrap();
        assert_eq!(found, [("m".to_owned(), Bytes::from(shard.to_string()))]);
    }
}

async fn values_may_be_empty_or_large(index: &Connection) {
    let large: Bytes = (0..512 * 1024).map(|n: u32| (n % 251) as u8).collect::<Vec<_>>().into();
    commit(index, writes(vec![put("size", "empty", ""), put("size", "large", large.clone())])).await;
    let raise = Write::Raise(fact("size", "large"), large.clone());
    let checks = vec![Check::Equals(fact("size", "large"), large.clone())];
    commit(index, checked(checks, vec![raise])).await;
    let asks = ["empty", "large"].map(|member| Ask::Value(fact("size", member)));
    assert_eq!(index.get(SHARD, &asks).await.unwrap(), [Some(Bytes::new()), Some(large)]);
}

async fn batches_may_be_large(index: &Connection) {
    let member = |n: usize| format!("{n:05}");
    let batch = Batch {
        checks: (0..8_000).map(|n| Check::Absent(fact("large", &member(n)))).collect(),
        writes: (0..5_000).map(|n| put("large", &member(n), "x")).collect(),
        ..Batch::default()
    };
    commit(index, batch.clone()).await;
    assert_eq!(index.commit(SHARD, batch).await.unwrap(), Outcome::Refused { check: 0 });
    assert_eq!(members(index, "large", None, 10_000).await.len(), 5_000);
    // As many groups as facts, and as many reads.
    let batch = Batch {
        writes: (0..2_000).map(|n| put(&format!("large-{n}"), "m", "x")).collect(),
        reads: (0..2_000).map(|n| Ask::Value(fact("large", &member(n)))).collect(),
        ..Batch::default()
    };
    assert_eq!(commit(index, batch).await.1, vec![Some(Bytes::from("x")); 2_000]);
    assert_eq!(value(index, "large-1999", "m").await, Some("x".into()));
}

async fn increments_have_no_gap(connect: &Arc<dyn Connect>) {
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let index = connect.connect().await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut numbers = Vec::new();
            for _ in 0..100 {
                let batch = Batch { sequence: Some(fact("increments", "counter")), ..Batch::default() };
                numbers.push(commit(&index, batch).await.0);
            }
            assert!(numbers.is_sorted());
            numbers
        }));
    }
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.extend(task.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=800).collect::<Vec<u64>>());
}

async fn no_update_is_lost(connect: &Arc<dyn Connect>) {
    let index = connect.connect().await.unwrap();
    commit(&index, writes(vec![put("lost", "sum", "0")])).await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let index = connect.connect().await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 100 {
                let old = value(&index, "lost", "sum").await.unwrap();
                let sum: u64 = std::str::from_utf8(&old).unwrap().parse().unwrap();
                let check = Check::Equals(fact("lost", "sum"), old);
                let batch = checked(vec![check], vec![put("lost", "sum", (sum + 1).to_string())]);
                done += usize::from(index.commit(SHARD, batch).await.unwrap() != Outcome::Refused { check: 0 });
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(value(&index, "lost", "sum").await, Some("2000".into()));
}

async fn a_get_is_one_snapshot(connect: &Arc<dyn Connect>) {
    let asks = ["a", "b"].map(|member| Ask::Value(fact("snapshot", member)));
    let writer = connect.connect().await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (index, asks) = (connect.connect().await.unwrap(), asks.clone());
        readers.push(tokio::spawn(async move {
            loop {
                let both = index.get(SHARD, &asks).await.unwrap();
                assert_eq!(both[0], both[1]);
                if both[0].as_deref() == Some(b"499") {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    for n in 0..500 {
        let both = ["a", "b"].map(|member| put("snapshot", member, n.to_string()));
        commit(&writer, writes(both.into())).await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
}

async fn a_notification_wakes_only_its_topic(connect: &Arc<dyn Connect>) {
    let waiting = connect.connect().await.unwrap();
    let telling = connect.connect().await.unwrap();
    let started = Instant::now();
    let woken = waiting.wait(SHARD, "topic", Duration::from_secs(60));
    let others = async {
        let patience = Duration::from_millis(300);
        tokio::join!(waiting.wait(SHARD, "other", patience), waiting.wait(Shard(8), "topic", patience));
        assert!(started.elapsed() >= patience);
    };
    tokio::pin!(woken, others);
    let tell = async {
        // A notification before the wait has begun may be lost, so it is repeated.
        loop {
            telling.notify(SHARD, "topic").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(woken, others) } => {}
        () = tell => {}
    }
    assert!(started.elapsed() < Duration::from_secs(60), "the wait ended by its patience");
}

async fn a_wait_ends_by_its_patience(index: &Connection) {
    let started = Instant::now();
    index.wait(SHARD, "silence", Duration::from_millis(50)).await;
    assert!(started.elapsed() >= Duration::from_millis(50));
}

async fn identity_stays(connect: &Arc<dyn Connect>) {
    let [one, two] = [connect.connect().await.unwrap(), connect.connect().await.unwrap()];
    let identity = one.identity().await.unwrap();
    assert!(!identity.is_empty());
    assert_eq!(identity, two.identity().await.unwrap());
}

fn open(directory: &Path, sync: bool) -> Arc<dyn Connect> {
    Arc::new(Embedded::open(directory, sync).unwrap())
}

fn redis(server: &redis_server::RedisServer, namespace: &str) -> Redis {
    Redis::new(&server.url(), namespace).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_keeps_every_promise_with_sync() {
    let directory = TempDir::new().unwrap();
    every_promise(open(directory.path(), true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_keeps_every_promise_without_sync() {
    let directory = TempDir::new().unwrap();
    every_promise(open(directory.path(), false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_keeps_every_promise() {
    let server = redis_server::start().await;
    every_promise(Arc::new(redis(&server, "berth"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_behind_sentinels_keeps_every_promise() {
    let fleet = Sentinels::start().await;
    every_promise(Arc::new(Redis::new(&fleet.url(), "berth").unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_cluster_keeps_every_promise() {
    let fleet = Cluster::start().await;
    every_promise(Arc::new(Redis::new(&fleet.url(), "berth").unwrap())).await;
}

#[tokio::test]
async fn embedded_survives_reopening() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("with/parents");
    for sync in [true, false] {
        let first = open(&directory, sync);
        let index = first.connect().await.unwrap();
        let identity = index.identity().await.unwrap();
        commit(&index, writes(vec![put("reopen", "m", sync.to_string())])).await;
        drop(first);
        // A connection keeps the file open without the value that made it.
        assert_eq!(value(&index, "reopen", "m").await, Some(sync.to_string().into()));
        drop(index);
        let index = open(&directory, !sync).connect().await.unwrap();
        assert_eq!(value(&index, "reopen", "m").await, Some(sync.to_string().into()));
        assert_eq!(index.identity().await.unwrap(), identity);
    }
    let other = open(&parent.path().join("other"), true).connect().await.unwrap();
    let here = open(&directory, true).connect().await.unwrap();
    assert_ne!(here.identity().await.unwrap(), other.identity().await.unwrap());
}

#[test]
fn embedded_is_open_only_once() {
    let directory = TempDir::new().unwrap();
    for sync in [true, false] {
        let _first = open(directory.path(), sync);
        let error = Embedded::open(directory.path(), sync).unwrap_err();
        assert!(error.to_string().contains("is open in another process"), "{error}");
    }
}

/// The environment variable that makes this test the one that gets killed: the directory and whether to sync.
const VICTIM: &str = "BERTH_TEST_KILLED_INDEX";

#[test]
fn embedded_loses_nothing_acknowledged_when_killed() {
    if let Ok(place) = std::env::var(VICTIM) {
        let (sync, directory) = place.split_once(':').unwrap();
        return write_until_killed(Path::new(directory), sync == "sync");
    }
    for sync in ["sync", "no-sync"] {
        let directory = TempDir::new().unwrap();
        // Several times over the same file, so that it is also opened after a kill and killed again.
        for round in 1..=3 {
            let acknowledged = kill_a_writer(directory.path(), sync, round * 150);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let index = open(directory.path(), sync == "sync").connect().await.unwrap();
                for number in acknowledged {
                    let wanted = Some(format!("{number:016x}").into());
                    assert_eq!(value(&index, "killed", &number.to_string()).await, wanted, "{sync} {number}");
                }
            });
        }
    }
}

/// Starts this test again as a process of its own, kills it after `count` acknowledgements, and returns
/// all that it told of.
fn kill_a_writer(directory: &Path, sync: &str, count: usize) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "index::embedded_loses_nothing_acknowledged_when_killed", "--nocapture"])
        .env(VICTIM, format!("{sync}:{}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < count {
        let line = lines.next().expect("the writer ended by itself").unwrap();
        acknowledged.extend(acknowledgement(&line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it told of before it died; the last line may be cut short, and then has no end mark.
    acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| acknowledgement(&line)));
    acknowledged
}

fn acknowledgement(line: &str) -> Option<u64> {
    line.split_once("<acknowledged ")?.1.strip_suffix('>')?.parse().ok()
}

fn write_until_killed(directory: &Path, sync: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let index = Embedded::open(directory, sync).unwrap();
    runtime.block_on(async {
        let connection = index.connect().await.unwrap();
        // Each task has numbers of its own, so that it can name its fact before it knows the sequence.
        let tasks = (0..8).map(|task| tokio::spawn(acknowledge_forever(Arc::clone(&connection), task)));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

async fn acknowledge_forever(index: Connection, task: u64) {
    let counter = format!("counter-{task}");
    let mut number = task
        + 8 * value(&index, "killed", &counter)
            .await
            .map_or(0, |text| std::str::from_utf8(&text).unwrap().parse::<u64>().unwrap());
    loop {
        number += 8;
        let mut batch = writes(vec![put("killed", &number.to_string(), format!("{number:016x}"))]);
        batch.sequence = Some(fact("killed", &counter));
        commit(&index, batch).await;
        std::io::stdout().write_all(format!("<acknowledged {number}>\n").as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn a_stopped_redis_is_an_error_soon() {
    let mut server = redis_server::start().await;
    let connect = redis(&server, "berth");
    let index = connect.connect().await.unwrap();
    commit(&index, writes(vec![put("stop", "m", "x")])).await;
    let before = index.identity().await.unwrap();
    server.stop();
    let started = Instant::now();
    let get = index.get(SHARD, &[Ask::Value(fact("stop", "m"))]).await;
    assert!(matches!(get, Err(IndexError::Unreachable(_))), "{get:?}");
    assert!(index.commit(SHARD, writes(vec![put("stop", "m", "y")])).await.is_err());
    assert!(matches!(connect.connect().await, Err(IndexError::Unreachable(_))));
    index.wait(SHARD, "topic", Duration::from_millis(20)).await;
    // Half a second for each call that has to be given up; a hang is what must not be.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());

    server.restart().await;
    // The old connection is not restored unseen; by now it is known that nothing can have happened.
    let late = index.commit(SHARD, writes(vec![put("stop", "m", "y")])).await;
    assert!(matches!(late, Err(IndexError::Unreachable(_))), "{late:?}");
    assert!(index.identity().await.is_err());
    let index = connect.connect().await.unwrap();
    assert_eq!(value(&index, "stop", "m").await, None);
    assert_ne!(index.identity().await.unwrap(), before);
}

#[tokio::test]
async fn a_stalled_redis_leaves_a_commit_unknown() {
    let server = redis_server::start().await;
    let connect = redis(&server, "berth");
    let index = connect.connect().await.unwrap();
    server.pause(true);
    let started = Instant::now();
    let commit = index.commit(SHARD, writes(vec![put("stall", "m", "x")])).await;
    assert!(matches!(commit, Err(IndexError::TimedOut(_))), "{commit:?}");
    let get = index.get(SHARD, &[Ask::Value(fact("stall", "m"))]).await;
    assert!(matches!(get, Err(IndexError::TimedOut(_))), "{get:?}");
    assert!(matches!(connect.connect().await, Err(IndexError::Unreachable(_))));
    index.wait(SHARD, "topic", Duration::from_millis(20)).await;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    server.pause(false);
    // It happened after all: that is why it was unknown.
    assert_eq!(value(&index, "stall", "m").await, Some("x".into()));
}

#[tokio::test]
async fn a_script_that_was_flushed_is_loaded_again() {
    let server = redis_server::start().await;
    let index = redis(&server, "berth").connect().await.unwrap();
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut operator = client.get_multiplexed_async_connection().await.unwrap();
    ::redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut operator).await.unwrap();
    commit(&index, writes(vec![put("0000000100000002:tags:library/nginx", "latest", "x")])).await;
    assert_eq!(members(&index, "0000000100000002:tags:library/nginx", None, 9).await, ["latest"]);
    let mut keys: Vec<String> = ::redis::cmd("KEYS").arg("*").query_async(&mut operator).await.unwrap();
    keys.sort();
    let key = |kind| format!("berth{{s07}}:{kind}:0000000100000002:tags:library/nginx");
    assert_eq!(keys, ["members", "values"].map(key), "an operator finds them under these names");
}

#[tokio::test]
async fn namespaces_in_one_redis_do_not_bleed() {
    let server = redis_server::start().await;
    let one = redis(&server, "a").connect().await.unwrap();
    let two = redis(&server, "a:b").connect().await.unwrap();
    commit(&one, writes(vec![put("b:g", "m", "one")])).await;
    assert_eq!(members(&two, "g", None, 9).await, Vec::<String>::new());
    assert_eq!(members(&two, "b:g", None, 9).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_redis_out_of_memory_refuses_whole_batches() {
    let server = redis_server::start_with(&["--maxmemory", "8mb"]).await;
    let index = redis(&server, "berth").connect().await.unwrap();
    let batch = |group: &str| writes((0..3).map(|n| put(group, &n.to_string(), vec![b'x'; 100_000])).collect());
    for n in 0..100 {
        let group = format!("full-{n}");
        let Err(error) = index.commit(SHARD, batch(&group)).await else { continue };
        assert!(matches!(error, IndexError::Unreachable(_)), "{error:?}");
        assert_eq!(members(&index, &group, None, 9).await, Vec::<String>::new());
        assert_eq!(members(&index, "full-0", None, 9).await.len(), 3, "nothing was evicted");
        return;
    }
    panic!("30 MB went into 8 MB");
}

#[tokio::test]
async fn a_redis_that_cannot_keep_facts_is_refused() {
    let master = redis_server::start().await;
    let evicting = redis_server::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let port = master.port().to_string();
    let replica = redis_server::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    for (server, reason) in [(evicting, "maxmemory-policy is allkeys-lru"), (replica, "the server is a slave")] {
        let error = redis(&server, "berth").connect().await.unwrap_err();
        assert!(matches!(&error, IndexError::Broken(text) if text.contains(reason)), "{error:?}");
    }
}
