//! A Redis cluster: whoever is asked leads to whoever serves a shard, a batch is made once or not at all, and what
//! a cluster may have lost is never believed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use berth::{
    error::{Code, Error},
    index::{Ask, Batch, Connect, Fact, Index, IndexError, Outcome, Shard, Write, redis::Redis},
};
use redis::cmd;

use crate::{
    redis_fleet::{Cluster, slot_of, until},
    rules_bench::{self as bench, Bench, push, reader, sha256, tag_read},
    rules_suspect, s3_server,
};

const SHARD: Shard = Shard(7);

fn ask(group: &str, member: &str) -> Ask {
    Ask::Value(Fact::new(group, member))
}

fn put(group: &str, member: &str, value: &'static str) -> Write {
    Write::Put(Fact::new(group, member), value.into())
}

/// A batch that counts how often it was made.
fn counted(writes: Vec<Write>) -> Batch {
    Batch { sequence: Some(Fact::new("counter", "m")), writes, ..Batch::default() }
}

async fn sequence(index: &Arc<dyn Index>, batch: Batch) -> u64 {
    match index.commit(SHARD, batch).await.unwrap() {
        Outcome::Committed { sequence, .. } => sequence,
        refused @ Outcome::Refused { .. } => panic!("{refused:?}"),
    }
}

async fn connect(fleet: &Cluster) -> Arc<dyn Index> {
    Redis::new(&fleet.url(), "berth").unwrap().connect().await.unwrap()
}

/// Where a shard is, and another master.
async fn place_of(fleet: &Cluster, shard: Shard) -> (u16, usize, usize) {
    let slot = slot_of(&fleet.nodes[0], shard.0).await;
    let owner = fleet.owner(slot, 0).await;
    (slot, owner, (owner + 1) % 3)
}

#[tokio::test]
async fn any_node_leads_to_all_masters() {
    let mut fleet = Cluster::start().await;
    let identity = connect(&fleet).await.identity().await.unwrap();
    assert_eq!(identity.split(", ").count(), 3, "{identity}");
    for node in [2, 4] {
        let url = fleet.nodes[node].url().replace("redis:", "redis-cluster:");
        let index = Redis::new(url.trim_end_matches('/'), "berth").unwrap().connect().await.unwrap();
        assert_eq!(index.identity().await.unwrap(), identity, "by node {node}");
    }
    // A replica that is away is nobody's business; the URL names it before others.
    fleet.nodes[4].stop();
    let port = fleet.nodes[0].port();
    let url = format!("redis-cluster://{host}:{},{host}:{port}", fleet.nodes[4].port(), host = fleet.nodes[4].host());
    let index = Redis::new(&url, "berth").unwrap().connect().await.unwrap();
    assert_eq!(index.identity().await.unwrap(), identity);
    // A master that is away is the end of the connection, for all shards, and of new ones.
    fleet.nodes[1].stop();
    until(async || index.get(SHARD, &[ask("a", "m")]).await.is_err()).await;
    assert!(matches!(index.identity().await, Err(IndexError::Unreachable(_))));
    let error = Redis::new(&url, "berth").unwrap().connect().await.unwrap_err();
    assert!(matches!(&error, IndexError::Unreachable(why) if why.contains(":7001")), "{error:?}");
}

#[tokio::test]
async fn a_moved_slot_is_followed() {
    let fleet = Cluster::start().await;
    let index = connect(&fleet).await;
    let identity = index.identity().await.unwrap();
    assert_eq!(sequence(&index, counted(vec![put("a", "m", "1")])).await, 1);
    let (slot, from, to) = place_of(&fleet, SHARD).await;
    for (number, (from, to)) in [(from, to), (to, from)].into_iter().enumerate() {
        fleet.move_slot(slot, from, to).await;
        // The first call after a move is the one that is sent elsewhere; it may be of any kind.
        if number == 0 {
            assert_eq!(sequence(&index, counted(vec![put("b", "m", "2")])).await, 2);
        }
        let both = index.get(SHARD, &[ask("a", "m"), ask("b", "m")]).await.unwrap();
        assert_eq!(both, [Some("1".into()), Some("2".into())]);
        assert_eq!(index.scan(SHARD, "b", None, 9).await.unwrap(), [("m".to_owned(), "2".into())]);
        assert_eq!(fleet.owner(slot, to).await, to);
    }
    assert_eq!(sequence(&index, counted(vec![])).await, 3);
    assert_eq!(index.identity().await.unwrap(), identity, "nothing was lost on the way");
    assert_eq!(connect(&fleet).await.identity().await.unwrap(), identity);
}

/// Between the first key that is moved and the last, what touches keys on both sides waits; nothing is made twice.
#[tokio::test]
async fn a_slot_that_is_being_moved_loses_nothing() {
    let fleet = Cluster::start().await;
    let index = connect(&fleet).await;
    for group in ["a", "b"] {
        sequence(&index, counted(vec![put(group, "m", "1")])).await;
    }
    let (slot, from, to) = place_of(&fleet, SHARD).await;
    fleet.begin_move(slot, from, to).await;
    let of = |group: &str| ["members", "values"].map(|kind| format!("berth{{s07}}:{kind}:{group}"));
    assert_eq!(fleet.keys(from, slot, 100).await.len(), 6);
    let alone = |group: &str| Batch { writes: vec![put(group, "m", "2")], ..Batch::default() };
    // All of it is still here, then all of `a` is there.
    index.commit(SHARD, alone("a")).await.unwrap();
    fleet.move_keys(&of("a"), from, to).await;
    index.commit(SHARD, alone("a")).await.unwrap();
    assert_eq!(index.get(SHARD, &[ask("a", "m"), ask("a", "n")]).await.unwrap(), [Some("2".into()), None]);
    assert_eq!(index.get(SHARD, &[ask("b", "m")]).await.unwrap(), [Some("1".into())]);
    assert_eq!(index.get(SHARD, &[ask("none", "m")]).await.unwrap(), [None]);
    assert_eq!(index.scan(SHARD, "a", None, 9).await.unwrap().len(), 1);
    // The scripts are known there, or made known.
    cmd("SCRIPT").arg("FLUSH").exec_async(&mut fleet.nodes[to].operator().await).await.unwrap();
    index.commit(SHARD, alone("a")).await.unwrap();
    // What is on both sides can't be done now, and wasn't: that is known, so it may be tried again.
    let started = Instant::now();
    let split = index.commit(SHARD, counted(vec![put("a", "m", "3")])).await;
    assert!(matches!(&split, Err(IndexError::Unreachable(why)) if why.contains("TryAgain")), "{split:?}");
    let split = index.get(SHARD, &[ask("a", "m"), ask("b", "m")]).await;
    assert!(matches!(split, Err(IndexError::Unreachable(_))), "{split:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // Who waits when the rest arrives is served, once.
    let waiting = async {
        loop {
            match index.commit(SHARD, counted(vec![put("a", "m", "3"), put("new", "m", "1")])).await {
                Ok(Outcome::Committed { sequence, .. }) => return sequence,
                Ok(refused) => panic!("{refused:?}"),
                // Half a second may be over first, on a busy machine.
                Err(error) => assert!(matches!(error, IndexError::Unreachable(_)), "{error:?}"),
            }
        }
    };
    let moving = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fleet.move_keys(&[&of("b")[..], &of("counter")].concat(), from, to).await;
        fleet.end_move(slot, from, to).await;
    };
    let (number, ()) = tokio::join!(waiting, moving);
    assert_eq!(number, 3, "neither of the two before was made");
    let after = index.get(SHARD, &[ask("a", "m"), ask("b", "m"), ask("new", "m"), ask("counter", "m")]).await.unwrap();
    assert_eq!(after, [Some("3".into()), Some("1".into()), Some("1".into()), Some("3".into())]);
}

/// What a push left behind, by name: the number that its tag says.
struct Pusher {
    name: String,
    acknowledged: u64,
    refused: u64,
}

/// Pushes manifests under one tag, each with the next number, by both engines in turn, and reads each back.
async fn push_numbers(bench: &Bench, name: String, config: &[u8], stop: &AtomicBool, done: &AtomicU64) -> Pusher {
    let mut pusher = Pusher { name, acknowledged: 0, refused: 0 };
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let layer = format!("layer {number}");
        let pushed = push_number(bench, &pusher.name, config, &layer).await;
        match pushed {
            Ok(()) => {
                pusher.acknowledged = number;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert_eq!(error.code, Code::Suspect, "{error:?}");
                pusher.refused += 1;
            }
        }
        // Whatever was acknowledged is what both say, if they say anything but a later number.
        for engine in [&bench.a, &bench.b] {
            let found = tag_read(&reader(engine, &pusher.name).await, "latest").await.unwrap();
            let seen = (pusher.acknowledged..=number).rev().find(|n| found == Some(digest_of(config, *n)));
            assert!(seen.is_some() || pusher.acknowledged == 0, "{}: {number}, {found:?}", pusher.name);
        }
    }
    pusher
}

fn digest_of(config: &[u8], number: u64) -> berth::oci::Digest {
    sha256(&bench::image(config, &[format!("layer {number}").as_bytes()]))
}

async fn push_number(bench: &Bench, name: &str, config: &[u8], layer: &str) -> Result<(), Error> {
    for bytes in [config, layer.as_bytes()] {
        let repository = bench.a.repository(&name.parse().unwrap()).await?;
        let (id, progress) = repository.start_upload("me");
        let body = berth::upload::Incoming::of(bytes.to_vec());
        repository.finish(&id, Some(&progress.proof), None, &sha256(bytes), body).await?;
    }
    let repository = bench.b.repository(&name.parse().unwrap()).await?;
    push(&repository, &bench::image(config, &[layer.as_bytes()]), &["latest"]).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_moved_while_people_push() {
    let (fleet, bucket) = (Cluster::start().await, s3_server::start().await);
    let mut options = bench::options();
    // No push shall be late, however slow this machine is.
    options.timing.deadline = Duration::from_secs(60);
    let bench = bench::over_url(&fleet.url(), &bucket, options).await;
    let epoch = bench.a.lease().await.unwrap().epoch;
    let (stop, done, config) = (AtomicBool::new(false), AtomicU64::new(0), b"a config");
    let names: Vec<String> = (0..4).map(|n| format!("app-{n}")).collect();
    let moving = async {
        let mut round = 0;
        // Until there was something to disturb, however slow this machine is.
        while round < 2 || done.load(Ordering::Relaxed) < 20 {
            round += 1;
            for shard in 0..4 {
                let (slot, from, to) = place_of(&fleet, Shard(shard)).await;
                fleet.begin_move(slot, from, to).await;
                // As with many keys: at first for longer than a push waits.
                fleet.move_keys(&fleet.keys(from, slot, 5).await, from, to).await;
                tokio::time::sleep(Duration::from_millis(if round == 1 { 1000 } else { 20 })).await;
                fleet.finish_move(slot, from, to).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let pushing =
        futures_util::future::join_all(names.into_iter().map(|name| push_numbers(&bench, name, config, &stop, &done)));
    let (pushers, ()) = tokio::join!(pushing, moving);
    let mut all_refused = 0;
    for Pusher { name, acknowledged, refused } in pushers {
        all_refused += refused;
        println!("{name}: {acknowledged} was the last of the pushes, {refused} were refused");
        assert!(acknowledged > 0);
        for engine in [&bench.a, &bench.b] {
            rules_suspect::assert_same(&bench, engine, &name, "latest").await;
        }
    }
    assert!(all_refused > 0, "no push met a slot that was just being moved");
    let lease = bench.a.lease().await.unwrap();
    assert_eq!(lease.epoch, epoch, "no slot that is moved begins an epoch");
}

#[tokio::test]
async fn a_killed_master_begins_the_next_epoch() {
    let (mut fleet, bucket) = (Cluster::start().await, s3_server::start().await);
    let bench = bench::over_url(&fleet.url(), &bucket, rules_suspect::options()).await;
    rules_suspect::fill(&bench).await;
    let (before, lease) = (bench.keys().await, bench.a.lease().await.unwrap());
    let (slot, owner, other) = place_of(&fleet, Shard(0)).await;
    fleet.nodes[owner].stop();
    for engine in [&bench.a, &bench.b] {
        rules_suspect::assert_read(engine).await;
    }
    rules_suspect::assert_nothing_changes(&bench, &bench.a, &before).await;
    let started = Instant::now();
    rules_suspect::assert_healed(&bench).await;
    println!("healed after {:?}", started.elapsed());
    let next = bench.a.lease().await.unwrap();
    assert!(next.epoch > lease.epoch);
    let parts = |identity: &str| identity.split(", ").map(str::to_owned).collect::<Vec<_>>();
    let kept = parts(&next.record.identity).into_iter().filter(|part| lease.record.identity.contains(&**part));
    assert_eq!(kept.count(), 2, "only one of the masters is another");
    assert_eq!(fleet.owner(slot, other).await, owner + 3);
    // The old one comes back as a replica, which changes nothing.
    fleet.nodes[owner].restart().await;
    rules_suspect::assert_healed(&bench).await;
}

/// One master of several loses all it had, and all connections stand.
#[tokio::test]
async fn a_master_that_is_emptied_begins_the_next_epoch() {
    let (fleet, bucket) = (Cluster::start().await, s3_server::start().await);
    let bench = bench::over_url(&fleet.url(), &bucket, rules_suspect::options()).await;
    rules_suspect::fill(&bench).await;
    let epoch = bench.a.lease().await.unwrap().epoch;
    // Not the one of the first shard, by which leases are renewed.
    let (_, first, _) = place_of(&fleet, Shard(0)).await;
    let shard = bench.a.lease().await.unwrap().names.shard_of(&"app".parse().unwrap());
    let (slot, from, other) = place_of(&fleet, shard).await;
    let owner = if from == first { other } else { from };
    if owner != from {
        fleet.move_slot(slot, from, owner).await;
    }
    cmd("FLUSHALL").exec_async(&mut fleet.nodes[owner].operator().await).await.unwrap();
    rules_suspect::assert_read(&bench.a).await;
    rules_suspect::assert_healed(&bench).await;
    assert!(bench.b.lease().await.unwrap().epoch > epoch);
}

/// What only a node knows that was no part of the epoch is not believed under it.
#[tokio::test]
async fn a_slot_that_goes_to_a_new_node_begins_the_next_epoch() {
    let (mut fleet, bucket) = (Cluster::start().await, s3_server::start().await);
    let bench = bench::over_url(&fleet.url(), &bucket, rules_suspect::options()).await;
    rules_suspect::fill(&bench).await;
    let lease = bench.a.lease().await.unwrap();
    let new = fleet.add_master().await;
    // A node without slots is none of the index.
    assert_eq!(lease.index.identity().await.unwrap(), lease.record.identity);
    assert_eq!(connect(&fleet).await.identity().await.unwrap(), lease.record.identity);
    let shard = lease.names.shard_of(&"app".parse().unwrap());
    let (slot, from, _) = place_of(&fleet, shard).await;
    fleet.begin_move(slot, from, new).await;
    let not_yet = lease.index.get(shard, &[ask("none", "m")]).await;
    assert!(matches!(&not_yet, Err(IndexError::Unreachable(why)) if why.contains("was no master")), "{not_yet:?}");
    rules_suspect::assert_read(&bench.b).await;
    fleet.finish_move(slot, from, new).await;
    rules_suspect::assert_read(&bench.a).await;
    rules_suspect::assert_healed(&bench).await;
    let next = bench.a.lease().await.unwrap();
    assert!(next.epoch > lease.epoch);
    assert_eq!(next.record.identity.split(", ").count(), 4);
}

/// Nobody is there to take the place of two masters: the rest of the cluster refuses everything.
#[tokio::test]
async fn a_cluster_that_is_down_is_suspect_until_it_is_back() {
    let (mut fleet, bucket) = (Cluster::start().await, s3_server::start().await);
    let bench = bench::over_url(&fleet.url(), &bucket, rules_suspect::options()).await;
    rules_suspect::fill(&bench).await;
    let (before, epoch) = (bench.keys().await, bench.a.lease().await.unwrap().epoch);
    let (slot, owner, _) = place_of(&fleet, Shard(0)).await;
    // Of the one that is left every shard is asked in vain too.
    for place in (0..6).filter(|place| place % 3 != owner) {
        fleet.nodes[place].stop();
    }
    let mut operator = fleet.nodes[owner].operator().await;
    until(async || {
        let answer: Result<(), _> = cmd("HGET").arg("berth{s00}:x").arg("x").query_async(&mut operator).await;
        answer.is_err_and(|error| error.code() == Some("CLUSTERDOWN"))
    })
    .await;
    for engine in [&bench.a, &bench.b] {
        rules_suspect::assert_read(engine).await;
    }
    rules_suspect::assert_nothing_changes(&bench, &bench.a, &before).await;
    for place in (0..6).filter(|place| place % 3 != owner) {
        fleet.nodes[place].restart().await;
    }
    rules_suspect::assert_healed(&bench).await;
    assert!(bench.a.lease().await.unwrap().epoch > epoch, "they came back with nothing");
    fleet.owner(slot, owner).await;
}

/// A server that drops facts is refused wherever it stands.
#[tokio::test]
async fn each_master_must_keep_facts() {
    let fleet = Cluster::start().await;
    let mut operator = fleet.nodes[1].operator().await;
    cmd("CONFIG").arg("SET").arg("maxmemory-policy").arg("allkeys-lru").exec_async(&mut operator).await.unwrap();
    let error = Redis::new(&fleet.url(), "berth").unwrap().connect().await.unwrap_err();
    let says = |why: &str| why.contains(":7001: maxmemory-policy is allkeys-lru");
    assert!(matches!(&error, IndexError::Broken(why) if says(why)), "{error:?}");
}
