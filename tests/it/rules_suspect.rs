//! The rules while the index can't be believed: pulls are answered by the bucket, right at any time; nothing is
//! changed, and nobody waits; and it heals by itself, however the index was lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use berth::{
    error::{Code, Error},
    index::{embedded::Embedded, redis::Redis},
    registry::{Options, OtherIndex, Registry},
    storage::s3::S3,
};

use crate::{
    redis_server::{self, RedisServer},
    rules_bench::{self as bench, Bench, bytes_of, code, on, push, reader, sha256, tag_of, tag_read},
    s3_server::{self, S3Server},
    storage,
    wrappers::How,
};

/// Short, so that a new epoch doesn't take long to begin.
pub(crate) fn options() -> Options {
    let mut options = bench::options();
    options.timing.lease = Duration::from_secs(1);
    options.timing.deadline = Duration::from_millis(1500);
    options
}

/// An image that is tagged `v1`; a tag, a manifest and a blob that were there and are not.
pub(crate) async fn fill(bench: &Bench) {
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    bench.push("app", &one, &["v1", "gone", "a-b", "a"]).await.unwrap();
    let gone = bench.push("app", &two, &["two"]).await.unwrap();
    bench.repo("app").await.delete_manifest(&gone).await.unwrap();
    bench.repo("app").await.delete_tag(&"gone".parse().unwrap()).await.unwrap();
    bench.repo("app").await.delete_blob(&sha256(b"layer of two")).await.unwrap();
}

/// Everything that [`fill`] left can be read, and nothing else.
pub(crate) async fn assert_read(engine: &Arc<Registry>) {
    let one = bench::image(b"config of one", &[b"layer of one"]);
    let two = bench::image(b"config of two", &[b"layer of two"]);
    let app = reader(engine, "app").await;
    assert_eq!(tag_read(&app, "v1").await.unwrap(), Some(sha256(&one)));
    for missing in ["gone", "two", "never"] {
        assert_eq!(tag_read(&app, missing).await.unwrap(), None, "{missing}");
    }
    let by_digest = app.find_manifest(&berth::oci::Reference::Digest(sha256(&two))).await;
    assert_eq!(code(by_digest), Code::ManifestUnknown);
    bytes_of(&app.blob_to_keep(&sha256(b"config of two")).await.unwrap()).await.unwrap();
    assert_eq!(code(app.blob(&sha256(b"layer of two")).await), Code::BlobUnknown);
    let page = |names: &[&str], more| Some((names.iter().map(|name| name.to_string()).collect::<Vec<_>>(), more));
    assert_eq!(app.tags(None, 10).await.unwrap(), page(&["a", "a-b", "v1"], false));
    assert_eq!(app.tags(Some("a"), 1).await.unwrap(), page(&["a-b"], true));
    assert_eq!(app.tags(None, 0).await.unwrap(), page(&[], false));
    let none = reader(engine, "none").await;
    assert_eq!(none.tags(None, 10).await.unwrap(), None);
    assert_eq!(code(none.blob(&sha256(b"config of one")).await), Code::BlobUnknown);
}

/// A tag is by the index what its newest revision in the bucket says, and all that its manifest needs is there.
pub(crate) async fn assert_same(bench: &Bench, engine: &Arc<Registry>, name: &str, tag: &str) {
    let by_index = async || tag_of(&engine.repository(&name.parse().unwrap()).await?, tag).await;
    // A slow machine may have made the index suspect.
    let by_index = loop {
        match by_index().await {
            Ok(found) => break found.unwrap(),
            Err(error) => assert_eq!(error.code, Code::Suspect, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let prefix = format!("repos/{name}/_tags/{tag}/");
    let keys = bench.keys().await;
    let newest = keys.iter().find(|key| key.starts_with(&prefix)).unwrap();
    assert!(newest.ends_with(&by_index.to_string()), "{newest}: {by_index}");
}

/// Waits until the index is believed, and reads all the while.
async fn healed(engine: &Arc<Registry>) {
    while engine.lease().await.is_err() {
        assert_read(engine).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_read(engine).await;
}

pub(crate) async fn assert_healed(bench: &Bench) {
    let one = bench::image(b"config of one", &[b"layer of one"]);
    for (n, engine) in [&bench.a, &bench.b].into_iter().enumerate() {
        healed(engine).await;
        let tag = format!("after-{n}");
        let repository = on(engine, "app").await;
        push(&repository, &one, &[&tag]).await.unwrap();
        assert_eq!(tag_of(&repository, &tag).await.unwrap(), Some(sha256(&one)));
        repository.delete_tag(&tag.parse().unwrap()).await.unwrap();
    }
    assert_read(&bench.a).await;
    assert_read(&bench.b).await;
}

/// What changes anything, by one engine: all of it is refused, and nothing is left in the bucket.
pub(crate) async fn assert_nothing_changes(bench: &Bench, engine: &Arc<Registry>, before: &BTreeSet<String>) {
    let name = "app".parse().unwrap();
    for _ in 0..50 {
        assert_eq!(code(engine.repository(&name).await), Code::Suspect);
    }
    assert_eq!(code(engine.catalog(None, 10, |_| true).await), Code::Suspect);
    assert_eq!(bench.keys().await, *before);
}

/// What the whole of a function took, with the function's name, for who reads the log of the tests.
async fn timed(what: &str, work: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    work.await;
    println!("{what}: {:?}", started.elapsed());
    started.elapsed()
}

#[tokio::test]
async fn a_redis_that_is_killed_and_comes_back_empty_heals_by_itself() {
    let (mut redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, options()).await;
    fill(&bench).await;
    let (before, epoch) = (bench.keys().await, bench.a.lease().await.unwrap().epoch);
    redis.stop();
    for engine in [&bench.a, &bench.b] {
        assert_read(engine).await;
        assert_nothing_changes(&bench, engine, &before).await;
        assert_read(engine).await;
    }
    redis.restart().await;
    assert_healed(&bench).await;
    assert!(bench.a.lease().await.unwrap().epoch > epoch, "it is another index");
}

/// A server that accepts connections and never answers: only the request that finds that out waits for it.
#[tokio::test]
async fn a_redis_that_is_silent_costs_one_request_its_time() {
    let (redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, options()).await;
    fill(&bench).await;
    let (before, epoch) = (bench.keys().await, bench.a.lease().await.unwrap().epoch);
    redis.pause(true);
    let first = timed("the first read", assert_read(&bench.a)).await;
    let rest = timed("fifty writes", assert_nothing_changes(&bench, &bench.a, &before)).await;
    assert!(rest < Duration::from_millis(500) * 50 / 2, "each waited: {first:?}, {rest:?}");
    // A write that has its lease already is refused as soon as a call takes too long.
    let one = bench::image(b"config of one", &[b"layer of one"]);
    timed("a write", async {
        let write = async { push(&bench.b.repository(&"app".parse().unwrap()).await?, &one, &["late"]).await };
        assert_eq!(code(write.await), Code::Suspect);
    })
    .await;
    redis.pause(false);
    assert_healed(&bench).await;
    assert_eq!(bench.a.lease().await.unwrap().epoch, epoch, "the same server goes on where it was");
}

#[tokio::test]
async fn a_redis_that_is_emptied_in_place_heals_by_itself() {
    let (redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, options()).await;
    fill(&bench).await;
    let epoch = bench.a.lease().await.unwrap().epoch;
    redis.flush().await;
    assert_read(&bench.a).await;
    assert_healed(&bench).await;
    assert!(bench.b.lease().await.unwrap().epoch > epoch);
}

/// A replica that starts while Redis is away serves pulls; another server in its place is not its to take, but
/// one that has served the bucket's epoch before is.
#[tokio::test]
async fn a_start_without_redis_serves_pulls() {
    let (mut redis, bucket) = (persistent().await, s3_server::start().await);
    fill(&bench::over(&redis, &bucket, options()).await).await;
    redis.stop();
    let engine = bench::engine(&redis, &bucket, options()).await.unwrap();
    assert_read(&engine).await;
    assert_eq!(code(engine.repository(&"app".parse().unwrap()).await), Code::Suspect);
    let mut other = redis_server::start().await;
    let refused = bench::engine(&other, &bucket, options()).await.unwrap_err();
    assert!(refused.message.starts_with("another index owns this bucket"), "{refused}");
    other.stop();
    let elsewhere = bench::engine(&other, &bucket, options()).await.unwrap();
    other.restart().await;
    redis.restart().await;
    healed(&engine).await;
    // It has looked by now, and found a server that is not the bucket's.
    let mut trouble = elsewhere.trouble();
    let owned = |error: &Option<Error>| error.as_ref().is_some_and(|error| error.to_string().contains("another index"));
    trouble.wait_for(owned).await.unwrap();
    assert_read(&elsewhere).await;
    let new = s3_server::start().await;
    redis.stop();
    assert_eq!(code(bench::engine(&redis, &new, options()).await), Code::Suspect, "there is nothing to serve");
}

/// A server whose facts survive its restart.
async fn persistent() -> RedisServer {
    redis_server::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
}

/// All replicas and the server restart: what the server has kept shows that it was the bucket's index.
#[tokio::test]
async fn a_restarted_redis_that_kept_its_facts_is_taken_by_a_start() {
    let (mut redis, bucket) = (persistent().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, options()).await;
    fill(&bench).await;
    let epoch = bench.a.lease().await.unwrap().epoch;
    drop(bench);
    redis.restart().await;
    let engine = bench::engine(&redis, &bucket, options()).await.unwrap();
    assert!(engine.lease().await.unwrap().epoch > epoch, "what it may have lost nobody knows");
    healed(&engine).await;
}

/// One tag, written by a replica that has the index and read by one that hasn't: what was acknowledged is read.
#[tokio::test]
async fn a_reader_of_the_bucket_sees_what_was_acknowledged() {
    let (redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, bench::options()).await;
    let mut away = redis_server::start().await;
    away.stop();
    let without = bench::engine(&away, &bucket, bench::options()).await.unwrap();
    let images = [bench.image("app", "one").await, bench.image("app", "two").await];
    for round in 0..10 {
        let image = &images[round % 2];
        let digest = bench.push("app", image, &["v1"]).await.unwrap();
        assert_eq!(tag_read(&reader(&without, "app").await, "v1").await.unwrap(), Some(digest), "{round}");
        if round % 5 == 4 {
            bench.repo("app").await.delete_tag(&"v1".parse().unwrap()).await.unwrap();
            assert_eq!(tag_read(&reader(&without, "app").await, "v1").await.unwrap(), None, "{round}");
        }
    }
}

/// A link may be in the bucket before its bytes; a reader of the bucket doesn't promise what isn't there.
#[tokio::test]
async fn a_link_without_its_bytes_is_no_blob() {
    let (redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let bench = bench::over(&redis, &bucket, bench::options()).await;
    let digest = bench.blob("app", b"some bytes").await;
    let key = bench.keys().await.into_iter().find(|key| key.starts_with("data/")).unwrap();
    let key = berth::storage::Key::parse(&key).unwrap();
    bench.store.delete(&key, bench.store.now().plus(Duration::from_secs(60))).await.unwrap();
    let mut away = redis_server::start().await;
    away.stop();
    let without = bench::engine(&away, &bucket, bench::options()).await.unwrap();
    assert_eq!(code(reader(&without, "app").await.blob(&digest).await), Code::BlobUnknown);
}

/// Who reads a repository that a new epoch hasn't reconciled yet doesn't wait for that.
#[tokio::test]
async fn an_unreconciled_repository_is_read_from_the_bucket_meanwhile() {
    let bench = bench::local(bench::options()).await;
    fill(&bench).await;
    let bench = bench.with_new_index().await;
    bench.probe.strike(How::Stall, |_, call| call.kind == "commit" && call.about.contains(":links:app"));
    assert_read(&bench.a).await;
    while !bench.probe.has_struck() {
        assert_read(&bench.a).await;
    }
    bench.probe.release();
    assert_healed(&bench).await;
}

/// One replica with an index of its own serves a remote bucket, over restarts; a second one on another machine,
/// with an index of its own, is refused.
#[tokio::test]
async fn an_embedded_index_serves_a_remote_bucket() {
    let bucket = s3_server::start().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = bench::image(b"config of one", &[b"layer of one"]);
    for round in 0..2 {
        let engine = embedded(&bucket, here.path()).await.unwrap();
        let app = on(&engine, "app").await;
        if round == 0 {
            for bytes in [&b"config of one"[..], b"layer of one"] {
                let (id, progress) = app.start_upload("me");
                let body = berth::upload::Incoming::of(bytes.to_vec());
                app.finish(&id, Some(&progress.proof), None, &sha256(bytes), body).await.unwrap();
            }
            push(&app, &image, &["v1"]).await.unwrap();
        }
        assert_eq!(tag_of(&app, "v1").await.unwrap(), Some(sha256(&image)), "{round}");
        let refused = embedded(&bucket, there.path()).await.unwrap_err();
        assert!(refused.message.starts_with("another index owns this bucket"), "{refused}");
    }
}

async fn embedded(bucket: &S3Server, directory: &std::path::Path) -> Result<Arc<Registry>, Error> {
    let store = Arc::new(S3::open(storage::options(bucket)).await.unwrap());
    let connect = Arc::new(Embedded::open(directory, false).unwrap());
    Registry::open(store, connect, Options { upload_memory: 64 << 20, ..options() }, OtherIndex::Refuse).await
}

/// A mistake in how Redis is reached stops the start: waiting for it would not help.
#[tokio::test]
async fn a_wrong_password_is_no_redis_that_is_away() {
    let (redis, bucket) = (redis_server::start_with(&["--requirepass", "right"]).await, s3_server::start().await);
    let with = async |password: &str| {
        let url = redis.url().replace("redis://", &format!("redis://:{password}@"));
        let store = Arc::new(S3::open(storage::options(&bucket)).await.unwrap());
        let connect = Arc::new(Redis::new(&url, "berth").unwrap());
        Registry::open(store, connect, Options { upload_memory: 64 << 20, ..options() }, OtherIndex::Refuse).await
    };
    with("right").await.unwrap();
    let refused = with("wrong").await.unwrap_err().to_string();
    assert!(refused.contains("WRONGPASS") && !refused.contains("wrong@"), "{refused}");
}
