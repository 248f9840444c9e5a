//! Two replicas over one bucket and one Redis, and what clients see when Redis is killed, stalled, emptied or
//! replaced: pulls go on, pushes are told to come back, and everything heals by itself.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use berth::storage::{
    Store,
    s3::{S3, S3Options},
};
use bytes::Bytes;
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, get, run},
    e2e_client::{Answer, Client, closing, noise, sha256},
    redis_server::{self, RedisServer},
    s3_server::{self, S3Server},
    storage,
};

fn setup(bucket: &S3Server, index: &str) -> Setup {
    Setup::of(&[
        ("BERTH_STORAGE__URL", &format!("s3://{}/registry", bucket.bucket)),
        ("BERTH_STORAGE__S3__ENDPOINT", &bucket.endpoint),
        ("BERTH_STORAGE__S3__REGION", "us-east-1"),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", &bucket.access_key),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", &bucket.secret_key),
        ("BERTH_INDEX__URL", index),
        // Short, so that a new epoch doesn't take long to begin.
        ("BERTH_INDEX__LEASE", "1s"),
        ("BERTH_INDEX__WRITE_DEADLINE", "2s"),
        ("BERTH_INDEX__MARGIN", "300ms"),
    ])
}

async fn start(setup: Setup) -> Berth {
    tokio::task::spawn_blocking(move || setup.start()).await.unwrap()
}

/// All keys of the bucket but those of epochs.
async fn keys(bucket: &S3Server) -> BTreeSet<String> {
    let options = S3Options { prefix: "registry".to_owned(), ..storage::options(bucket) };
    let store = S3::open(options).await.unwrap();
    let mut keys = BTreeSet::new();
    for prefix in ["repos/", "data/"] {
        let page = store.list(prefix, None, 1000).await.unwrap();
        assert!(!page.more && !page.objects.is_empty());
        keys.extend(page.objects.into_iter().map(|(key, _)| key));
    }
    keys
}

/// Pulls an image with crane, again and again, by each replica in turn, from an empty cache. No pull may fail.
struct Puller {
    stop: Arc<AtomicBool>,
    pulls: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Puller {
    fn start(hosts: [String; 2]) -> Self {
        let (stop, pulls) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = std::thread::spawn({
            let (stop, pulls) = (Arc::clone(&stop), Arc::clone(&pulls));
            move || {
                let home = TempDir::new().unwrap();
                for host in hosts.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut crane = Command::new("crane");
                    crane.env("HOME", home.path()).env("DOCKER_CONFIG", home.path());
                    crane.args(["pull", &format!("{host}/team/app:v1")]).arg(home.path().join("image.tar"));
                    run(&mut crane);
                    pulls.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, pulls, thread }
    }

    /// Waits until as many pulls more were done, all of which began after now but the first.
    async fn more(&self, pulls: usize) {
        let wanted = self.pulls.load(Ordering::Relaxed) + pulls + 1;
        while self.pulls.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a pull failed");
        self.pulls.load(Ordering::Relaxed)
    }
}

/// Sends what changes something, each kind of it, and expects of each that it is refused for now.
async fn all_is_refused(client: &Client, upload: &str, digest: &str) {
    let blob = Bytes::from_static(b"refused");
    let refused = async |what: &str, answer: Answer, started: Instant| {
        let answer = answer.expect_error(503, "UNAVAILABLE");
        assert!(!answer.header("retry-after").is_empty(), "{what}");
        println!("{what}: refused after {:?}", started.elapsed());
        // A second is what is promised; the rest is for a machine that is busy with other tests.
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
    };
    let manifest: serde_json::Value = client.get("/v2/team/app/manifests/v1").await.expect(200).json();
    for round in 0..2 {
        let started = Instant::now();
        refused("manifest", client.push_manifest("team/app", &format!("late-{round}"), &manifest).await, started).await;
        let started = Instant::now();
        let closing = closing(upload, &sha256(&blob));
        refused("blob", client.send("PUT", &closing, &[], blob.clone()).await, started).await;
        let started = Instant::now();
        refused("tag", client.delete("/v2/team/app/manifests/v1").await, started).await;
        let started = Instant::now();
        refused("delete", client.delete(&format!("/v2/team/app/blobs/{digest}")).await, started).await;
    }
}

async fn readiness(berth: &Berth) -> String {
    let admin = berth.admin();
    tokio::task::spawn_blocking(move || get(admin, "/readyz")).await.unwrap().unwrap()
}

/// Waits until a replica says that it serves only a part, and is ready all the while.
async fn degraded(berth: &Berth) {
    loop {
        let answer = readiness(berth).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        if answer.contains(r#""status":"degraded""#) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a push is taken, coming back as a client does that was told to.
async fn pushed(client: &Client, tag: &str) {
    let manifest: serde_json::Value = client.get("/v2/team/app/manifests/v1").await.expect(200).json();
    loop {
        let answer = client.push_manifest("team/app", tag, &manifest).await;
        if answer.status == 201 {
            break;
        }
        answer.expect_error(503, "UNAVAILABLE");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.get(&format!("/v2/team/app/manifests/{tag}")).await.expect(200);
}

/// What is done to a server, and then undone.
async fn break_it(how: &str, redis: &mut RedisServer) {
    match how {
        "killed" => redis.stop(),
        "stalled" => redis.pause(true),
        "emptied" => redis.flush().await,
        _ => unreachable!("{how}"),
    }
}

async fn mend_it(how: &str, redis: &mut RedisServer) {
    match how {
        "killed" => redis.restart().await,
        "stalled" => redis.pause(false),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_go_on_and_pushes_come_back_whatever_happens_to_redis() {
    let (mut redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let (a, b) = (start(setup(&bucket, &redis.url())).await, start(setup(&bucket, &redis.url())).await);
    let clients = [a.client(), b.client()];
    clients[0].push_image("team/app", "v1", &[noise(1, 300_000), noise(2, 1000)]).await;
    let unneeded = clients[0].push_blob("team/app", "unneeded").await;
    let puller = Puller::start([a.host(), b.host()]);
    puller.more(1).await;
    for how in ["killed", "stalled", "emptied"] {
        let upload = clients[0].start_upload("team/app").await;
        let before = keys(&bucket).await;
        break_it(how, &mut redis).await;
        for client in &clients {
            all_is_refused(client, &upload, &unneeded).await;
        }
        assert_eq!(keys(&bucket).await, before, "{how}: nothing is left half-done");
        puller.more(2).await;
        // An emptied server is taken on again so soon that nobody may see it away.
        if how != "emptied" {
            degraded(&a).await;
            degraded(&b).await;
        }
        let started = Instant::now();
        mend_it(how, &mut redis).await;
        for (client, berth) in clients.iter().zip([&a, &b]) {
            pushed(client, &format!("after-{how}")).await;
            while !readiness(berth).await.contains(r#""status":"ready""#) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        println!("{how}: healed after {:?}", started.elapsed());
        puller.more(2).await;
    }
    let pulls = puller.finish();
    println!("{pulls} pulls");
    for berth in [&a, &b] {
        let log = berth.log();
        for line in ["the index can't be believed", "the index is believed again"] {
            let said = log.matches(line).count();
            assert!((3..=8).contains(&said), "{line}: {said} times\n{log}");
        }
    }
}

/// A replica that is started while Redis is away, and an embedded index beside a remote bucket.
#[tokio::test(flavor = "multi_thread")]
async fn one_replica_needs_no_redis() {
    let (bucket, here, there) = (s3_server::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let index = |directory: &TempDir| format!("embedded:{}", directory.path().join("index").display());
    let mut berth = start(setup(&bucket, &index(&here))).await;
    let manifest = berth.client().push_image("team/app", "v1", &[noise(1, 300_000)]).await;
    berth = tokio::task::spawn_blocking(move || {
        berth.restart();
        berth
    })
    .await
    .unwrap();
    let client = berth.client();
    assert_eq!(client.get("/v2/team/app/manifests/v1").await.expect(200).json(), manifest);
    client.push_manifest("team/app", "v2", &manifest).await.expect(201);
    client.delete("/v2/team/app/manifests/v1").await.expect(202);
    let elsewhere = setup(&bucket, &index(&there));
    let (status, said) = tokio::task::spawn_blocking(move || elsewhere.refused()).await.unwrap();
    assert!(!status.success() && said.contains("another index owns this bucket"), "{said}");
    client.get("/v2/team/app/manifests/v2").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_starts_without_redis_and_serves_pulls() {
    let (mut redis, bucket) = (redis_server::start().await, s3_server::start().await);
    let url = redis.url();
    let first = start(setup(&bucket, &url)).await;
    first.client().push_image("team/app", "v1", &[noise(1, 1000)]).await;
    redis.stop();
    let second = start(setup(&bucket, &url)).await;
    assert!(readiness(&second).await.contains(r#""status":"degraded""#));
    let client = second.client();
    client.get("/v2/team/app/manifests/v1").await.expect(200);
    assert_eq!(client.get("/v2/team/app/tags/list").await.expect(200).json()["tags"], serde_json::json!(["v1"]));
    client.get(&format!("/v2/team/app/referrers/{}", sha256(b"x"))).await.expect_error(503, "UNAVAILABLE");
    client.get("/v2/_catalog").await.expect_error(503, "UNAVAILABLE");
    redis.restart().await;
    // The first one held the bucket's index, so the new server is its to take; the second one follows.
    pushed(&client, "v2").await;
    pushed(&first.client(), "v3").await;
}
