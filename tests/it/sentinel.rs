//! Redis behind Sentinels: who is asked, who is believed, and what is seen of a fail-over.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth::index::{Ask, Batch, Connect, Fact, Index, IndexError, Shard, Write, redis::Redis};
use redis::cmd;

use crate::{
    berth::own_address,
    redis_fleet::{SERVICE, Sentinels, role, sentinel},
    redis_server::{self, RedisServer},
    rules_bench as bench, rules_suspect, s3_server,
};

fn put(value: &'static str) -> Batch {
    Batch { writes: vec![Write::Put(Fact::new("group", "member"), value.into())], ..Batch::default() }
}

async fn get(index: &Arc<dyn Index>) -> Result<Option<bytes::Bytes>, IndexError> {
    let asks = [Ask::Value(Fact::new("group", "member"))];
    index.get(Shard(7), &asks).await.map(|mut answers| answers.remove(0))
}

/// Connects as soon as there is a master.
async fn connected(redis: &Redis) -> Arc<dyn Index> {
    loop {
        match redis.connect().await {
            Ok(index) => return index,
            Err(error) => assert!(matches!(error, IndexError::Unreachable(_)), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn another_master_is_found_after_each_failover() {
    let mut fleet = Sentinels::start().await;
    let redis = Redis::new(&fleet.url(), "berth").unwrap();
    let first = connected(&redis).await;
    first.commit(Shard(7), put("x")).await.unwrap();
    let next = failed_over(&mut fleet, 0, &redis, &first).await;
    // The old one says that it is a master, until Sentinels have told it to follow, which takes them eight seconds.
    fleet.servers[0].restart().await;
    assert_eq!(role(&fleet.servers[0]).await, "master");
    let identity = next.identity().await.unwrap();
    assert_eq!(redis.connect().await.unwrap().identity().await.unwrap(), identity);
    assert_eq!(get(&next).await.unwrap(), Some("z".into()));
    let promoted = fleet.place_of(&identity, &[1, 2]).await;
    let last = failed_over(&mut fleet, promoted, &redis, &next).await;
    assert_ne!(last.identity().await.unwrap(), identity);
}

/// Kills the master, and connects to the next one.
async fn failed_over(fleet: &mut Sentinels, master: usize, redis: &Redis, index: &Arc<dyn Index>) -> Arc<dyn Index> {
    let (identity, started) = (index.identity().await.unwrap(), Instant::now());
    fleet.servers[master].stop();
    assert!(matches!(get(index).await, Err(IndexError::Unreachable(_))));
    assert!(index.commit(Shard(7), put("y")).await.is_err());
    let next = connected(redis).await;
    println!("another master after {:?}", started.elapsed());
    next.commit(Shard(7), put("z")).await.unwrap();
    assert_ne!(next.identity().await.unwrap(), identity, "it is another index");
    next
}

/// What a master becomes that was cut off while another one took its place.
#[tokio::test]
async fn a_master_that_is_demoted_ends_the_connection() {
    let (master, other) = (redis_server::start().await, redis_server::start().await);
    let watcher = watcher(master.port()).await;
    let redis = Redis::new(&format!("redis-sentinel://{}:7100/{SERVICE}", watcher.host()), "berth").unwrap();
    let index = redis.connect().await.unwrap();
    index.commit(Shard(7), put("x")).await.unwrap();
    let mut operator = master.operator().await;
    let port = other.port();
    cmd("REPLICAOF").arg("127.0.0.1").arg(port).exec_async(&mut operator).await.unwrap();
    // A batch that it refuses was not made; and nothing else is asked of it.
    let refused = index.commit(Shard(7), put("y")).await;
    assert!(matches!(&refused, Err(IndexError::Unreachable(why)) if why.contains("ReadOnly")), "{refused:?}");
    assert!(matches!(get(&index).await, Err(IndexError::Unreachable(_))));
    assert!(index.identity().await.is_err());
    // The Sentinel hasn't noticed, or doesn't mind: whom it names must be a master.
    let stale = redis.connect().await;
    let is_no_master = |why: &str| why.contains("the server is a slave, and there is no other master yet");
    assert!(matches!(&stale, Err(IndexError::Unreachable(why)) if is_no_master(why)), "{stale:?}");
}

/// A Sentinel that watches over the server at this port of the loopback address, and will never replace it.
async fn watcher(master: u16) -> RedisServer {
    let host = own_address().to_string();
    let calm = [format!("sentinel down-after-milliseconds {SERVICE} 600000")];
    let mut watcher = sentinel(&host, 7100, ("127.0.0.1", master), &calm);
    watcher.restart().await;
    watcher
}

#[tokio::test]
async fn a_sentinel_that_is_behind_is_outvoted() {
    let (right, wrong) = (redis_server::start().await, redis_server::start().await);
    let (honest, also, mut liar) =
        (watcher(right.port()).await, watcher(right.port()).await, watcher(wrong.port()).await);
    let url = |sentinels: &[&RedisServer]| {
        let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("{}:7100", sentinel.host())).collect();
        format!("redis-sentinel://{}/{SERVICE}", hosts.join(","))
    };
    let connect = async |sentinels: &[&RedisServer]| Redis::new(&url(sentinels), "berth").unwrap().connect().await;
    let by_itself = Redis::new(&right.url(), "berth").unwrap().connect().await.unwrap().identity().await.unwrap();
    for sentinels in [[&liar, &honest, &also], [&honest, &liar, &also], [&honest, &also, &liar]] {
        assert_eq!(connect(&sentinels).await.unwrap().identity().await.unwrap(), by_itself);
    }
    // Nobody has a majority of these, and of three of whom two are away neither.
    let undecided = connect(&[&liar, &honest]).await.unwrap_err();
    let said = |who: &RedisServer, names: &RedisServer| format!("{}:7100 names 127.0.0.1:{}", who.host(), names.port());
    assert!(matches!(undecided, IndexError::Unreachable(_)), "{undecided:?}");
    for said in [said(&liar, &wrong), said(&honest, &right)] {
        assert!(undecided.to_string().contains(&said), "{undecided}");
    }
    let index = connect(&[&honest, &liar, &also]).await.unwrap();
    let (mut gone, urls) = (also, url(&[&honest, &liar]));
    let urls = urls.replace(&format!("/{SERVICE}"), &format!(",{}:7100/{SERVICE}", gone.host()));
    gone.stop();
    liar.stop();
    let alone = Redis::new(&urls, "berth").unwrap().connect().await.unwrap_err();
    assert!(matches!(alone, IndexError::Unreachable(_)), "{alone:?}");
    // Who is connected needs no Sentinel.
    index.commit(Shard(7), put("x")).await.unwrap();
}

/// Two replicas of Berth while the master is killed: pulls go on, and the promoted one gets an epoch of its own.
#[tokio::test]
async fn a_killed_master_begins_the_next_epoch() {
    let (mut fleet, bucket) = (Sentinels::start().await, s3_server::start().await);
    let bench = bench::over_url(&fleet.url(), &bucket, rules_suspect::options()).await;
    rules_suspect::fill(&bench).await;
    let (before, epoch) = (bench.keys().await, bench.a.lease().await.unwrap().epoch);
    fleet.servers[0].stop();
    for engine in [&bench.a, &bench.b] {
        rules_suspect::assert_read(engine).await;
    }
    rules_suspect::assert_nothing_changes(&bench, &bench.a, &before).await;
    let started = Instant::now();
    rules_suspect::assert_healed(&bench).await;
    println!("healed after {:?}", started.elapsed());
    assert!(bench.a.lease().await.unwrap().epoch > epoch);
    // What the old one still knows is never asked again, also when it is back.
    fleet.servers[0].restart().await;
    rules_suspect::assert_healed(&bench).await;
}

/// A URL of one kind, and servers of another.
#[tokio::test]
async fn a_url_of_the_wrong_kind_is_refused() {
    let server = redis_server::start().await;
    let watcher = watcher(server.port()).await;
    let connect = async |url: &str| Redis::new(url, "berth").unwrap().connect().await.unwrap_err();
    let refused = connect(&watcher.url()).await;
    assert!(matches!(&refused, IndexError::Broken(why) if why.contains("the server is a Sentinel")), "{refused:?}");
    let refused = connect(&format!("redis-sentinel://127.0.0.1:{}/{SERVICE}", server.port())).await;
    assert!(matches!(refused, IndexError::Broken(_)), "{refused:?}");
    println!("{refused}");
    let refused = connect(&format!("redis-cluster://127.0.0.1:{}", server.port())).await;
    assert!(matches!(refused, IndexError::Broken(_)), "{refused:?}");
    println!("{refused}");
}
