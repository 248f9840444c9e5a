//! What an operation costs on the wire: requests that reach the store, and round trips to Redis, counted by a
//! proxy before each. Counts are asserted; times are printed.
//!
//! [`crate::rules_cost`] counts calls within Berth; what a library adds to them is only seen here.

mod cost;
mod redis;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use berth::app::App;
use bytes::Bytes;
use hyper::Method;

use crate::{
    berth::{Berth, Setup},
    conformance,
    docker_daemon::Daemon,
    e2e_client::{Client, closing, image, noise, sha256},
    e2e_tools::Tool,
    redis_server::{self, RedisServer},
    s3_server::{self, S3Server},
};
use redis::RedisProxy;
use store::{Asked, StoreProxy};

/// The size of a part in a bucket: `storage::s3`.
const PART: usize = 16 << 20;

/// A Redis and a bucket, each behind a proxy.
struct Counted {
    store: StoreProxy,
    redis: RedisProxy,
    settings: Vec<(&'static str, String)>,
    _servers: (S3Server, RedisServer),
}

impl Counted {
    /// With a store that takes `delay` longer over each request.
    async fn start(delay: Duration) -> Self {
        let (mut s3, server) = (s3_server::start().await, redis_server::start().await);
        let store = StoreProxy::start(&s3.endpoint, delay).await;
        let redis = RedisProxy::start(&server).await;
        s3.endpoint.clone_from(&store.endpoint);
        let settings = [s3.settings(), vec![("BERTH_INDEX__URL", redis.url())]].concat();
        Self { store, redis, settings, _servers: (s3, server) }
    }

    /// A registry in this process that does nothing in the background, and whose lease outlasts the test:
    /// what goes by is the operation's own.
    async fn open(&self) -> (App, Client) {
        let lease = [("BERTH_INDEX__LEASE", "1h".to_owned())];
        let opened = conformance::open(&[&self.settings[..], &lease].concat()).await;
        self.forget();
        opened
    }

    /// A server as operators run it, that has looked for what the bucket holds.
    async fn serve(&self) -> Berth {
        let settings: Vec<(&str, &str)> = self.settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let berth = Setup::of(&settings).start();
        // Until then the catalog is unavailable.
        while berth.client().get("/v2/_catalog").await.status == 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.forget();
        berth
    }

    fn forget(&self) {
        self.store.take();
        self.redis.take();
    }

    /// Fails unless since the last call there were so many round trips to Redis in sequence, and so many
    /// requests to the store.
    #[track_caller]
    fn assert(&self, what: &str, round_trips: usize, requests: usize) {
        let (asked, (seen, commands)) = (self.store.take(), self.redis.take());
        println!("{what}: {seen} round trips, {} requests", asked.len());
        assert_eq!((seen, asked.len()), (round_trips, requests), "{what}: {commands:?} {asked:#?}");
    }

    /// Fails if since the last call clients made the server ask the store more often than that.
    #[track_caller]
    fn assert_at_most(&self, what: &str, most: usize) {
        let asked = waited_for(self.store.take());
        println!("{what}: {} requests", asked.len());
        assert!(asked.len() <= most, "{what}: {asked:#?}");
    }
}

/// Those that some client waited for.
fn waited_for(mut asked: Vec<Asked>) -> Vec<Asked> {
    asked.retain(|asked| asked.background().is_none());
    asked
}

/// A config and a layer that nobody pushed before.
fn content(seed: u64) -> [Bytes; 2] {
    [format!("{{\"author\":\"{seed}\"}}").into(), noise(seed, 1000)]
}

/// By POST and PUT, one request after the other, as crane does it.
async fn push_in_five(client: &Client, repository: &str, tag: &str, [config, layer]: &[Bytes; 2]) {
    client.push_blob(repository, config.clone()).await;
    client.push_blob(repository, layer.clone()).await;
    let manifest = image(config, std::slice::from_ref(layer));
    client.push_manifest(repository, tag, &manifest).await.expect(201);
}

/// By HEAD, POST, PATCH, PUT and HEAD, as Docker does it.
async fn push_as_docker(client: &Client, repository: &str, tag: &str, [config, layer]: &[Bytes; 2]) {
    for bytes in [layer, config] {
        let digest = sha256(bytes);
        let path = format!("/v2/{repository}/blobs/{digest}");
        client.head(&path).await.expect(404);
        let location = client.start_upload(repository).await;
        let location = client.send("PATCH", &location, &[], bytes.clone()).await.expect(202).location();
        client.send("PUT", &closing(&location, &digest), &[], "").await.expect(201);
        client.head(&path).await.expect(200);
    }
    let manifest = image(config, std::slice::from_ref(layer));
    client.push_manifest(repository, tag, &manifest).await.expect(201);
}

#[tokio::test]
async fn a_new_small_image_costs_six_requests() {
    let counted = Counted::start(Duration::ZERO).await;
    let (_app, client) = counted.open().await;
    push_in_five(&client, "team/app", "1", &content(1)).await;
    counted.assert("a new small image, POST and PUT", 6, 6);
    push_as_docker(&client, "team/app", "2", &content(2)).await;
    counted.assert("a new small image, docker's way", 12, 6);
}

#[tokio::test]
async fn each_step_of_a_push_costs_what_it_should() {
    let counted = Counted::start(Duration::ZERO).await;
    let (_app, client) = counted.open().await;
    let [config, layer] = content(1);
    let location = client.start_upload("team/app").await;
    counted.assert("POST", 0, 0);
    let location = client.send("PATCH", &location, &[], layer.clone()).await.expect(202).location();
    counted.assert("the first PATCH of a small blob", 1, 1);
    client.send("PUT", &closing(&location, &sha256(&layer)), &[], "").await.expect(201);
    counted.assert("the empty PUT that closes it", 2, 1);
    let location = client.start_upload("team/app").await;
    client.send("PUT", &closing(&location, &sha256(&config)), &[], config.clone()).await.expect(201);
    counted.assert("PUT of a small blob", 2, 2);
    client.push_manifest("team/app", "1", &image(&config, &[layer])).await.expect(201);
    counted.assert("a manifest with a tag", 2, 2);
}

#[tokio::test]
async fn what_is_there_already_costs_less() {
    let counted = Counted::start(Duration::ZERO).await;
    let (_app, client) = counted.open().await;
    let [config, layer] = content(1);
    push_in_five(&client, "team/app", "1", &[config.clone(), layer.clone()]).await;
    push_in_five(&client, "team/app", "2", &content(2)).await;
    counted.forget();
    let manifest = image(&config, std::slice::from_ref(&layer));
    client.push_manifest("team/app", "2", &manifest).await.expect(201);
    counted.assert("a tag moved to a manifest that is there", 2, 1);
    client.push_manifest("team/app", "2", &manifest).await.expect(201);
    counted.assert("the same again", 2, 0);
    let digest = sha256(&layer);
    client.post(&format!("/v2/other/app/blobs/uploads/?mount={digest}&from=team/app")).await.expect(201);
    counted.assert("a mount", 3, 1);
}

#[tokio::test]
async fn reading_costs_one_round_trip() {
    let counted = Counted::start(Duration::ZERO).await;
    let (_app, client) = counted.open().await;
    let [config, layer] = content(1);
    push_in_five(&client, "team/app", "1", &[config, layer.clone()]).await;
    let manifest = "/v2/team/app/manifests/1";
    client.get(manifest).await.expect(200);
    counted.forget();
    client.get(manifest).await.expect(200);
    counted.assert("a manifest by tag, warm", 1, 0);
    client.head(manifest).await.expect(200);
    counted.assert("its HEAD", 1, 0);
    let blob = format!("/v2/team/app/blobs/{}", sha256(&layer));
    client.head(&blob).await.expect(200);
    counted.assert("HEAD of a blob", 1, 0);
    client.get(&blob).await.expect(307);
    counted.assert("a blob, redirected", 1, 0);
}

/// The bytes are cut into parts on their way, so that what isn't a part is the price of an upload.
#[tokio::test]
async fn a_large_blob_costs_its_parts_and_four_requests() {
    let counted = Counted::start(Duration::ZERO).await;
    let (_app, client) = counted.open().await;
    let bytes = noise(1, 256 << 20);
    let digest = sha256(&bytes);
    let location = client.start_upload("team/large").await;
    let pieces = (0..bytes.len()).step_by(1 << 20).map({
        let bytes = bytes.clone();
        move |at| bytes.slice(at..at + (1 << 20))
    });
    let location = client.stream("PATCH", &location, &[], pieces).await.expect(202).location();
    client.send("PUT", &closing(&location, &digest), &[], "").await.expect(201);
    let asked = counted.store.take();
    let parts = asked.iter().filter(|asked| asked.is_part()).count();
    let (round_trips, _) = counted.redis.take();
    println!("256 MiB, PATCH and PUT: {round_trips} round trips, {parts} parts and {} requests", asked.len() - parts);
    assert_eq!(parts, bytes.len() / PART);
    assert!(asked.len() <= parts + 4, "{asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_cost_six_requests() {
    let counted = Counted::start(Duration::ZERO).await;
    let (berth, daemon) = (counted.serve().await, Daemon::start());
    let image = format!("{}/team/docker:1", berth.host());
    daemon.import(&image, 1000);
    daemon.run(&["push", &image]);
    counted.assert_at_most("a new small image by docker", 6);

    let podman = Tool::new("podman");
    podman.use_own_storage();
    podman.tar("layer.tar", 7, 1000);
    let image = format!("{}/team/podman:1", berth.host());
    podman.run(&["import", "layer.tar", &image]);
    podman.run(&["push", "--tls-verify=false", &image]);
    counted.assert_at_most("a new small image by podman", 6);
}

/// Counts apart what each kind of background work asked for, and prints it for a minute. Returns the kinds.
fn per_minute(what: &str, asked: &[Asked], since: Instant) -> BTreeSet<&'static str> {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in asked.iter().filter_map(Asked::background) {
        *kinds.entry(kind).or_default() += 1;
    }
    for (kind, count) in &kinds {
        println!("{what}, {kind}: {:.0} requests a minute", *count as f64 * 60.0 / since.elapsed().as_secs_f64());
    }
    kinds.into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_is_counted_apart() {
    let counted = Counted::start(Duration::ZERO).await;
    let (berth, since) = (counted.serve().await, Instant::now());
    // Twice as long as a lease, by default.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let idle = counted.store.take();
    assert_eq!(per_minute("idle", &idle, since), BTreeSet::from(["which index is believed"]));
    assert_eq!(waited_for(idle), []);

    // Images that come and go, for a while and until the collection has begun.
    let (client, since) = (berth.client(), Instant::now());
    let mut asked = Vec::new();
    let removes = |asked: &Asked| asked.method == Method::DELETE;
    while since.elapsed() < Duration::from_secs(3) || !asked.iter().any(removes) {
        for seed in 0..10 {
            let manifest = client.push_image("team/app", "latest", &[noise(seed, 1000)]).await;
            let digest = sha256(manifest.to_string().as_bytes());
            client.delete(&format!("/v2/team/app/manifests/{digest}")).await.expect(202);
        }
        asked.extend(counted.store.take());
    }
    per_minute("while images come and go", &asked, since);
}

/// Measured for docs/performance.md; how long it takes is no reason to fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_image_on_a_slow_store() {
    let counted = Counted::start(Duration::from_millis(20)).await;
    let berth = counted.serve().await;
    let client = berth.client();
    let mut took = Vec::new();
    for seed in 1..=15 {
        let parts = content(seed);
        let since = Instant::now();
        push_in_five(&client, "team/app", &format!("v{seed}"), &parts).await;
        took.push(since.elapsed());
    }
    took.sort_unstable();
    println!(
        "a small image, POST and PUT, on a store that takes 20 ms: {:?} at the median, {:?} to {:?}",
        took[7], took[0], took[14]
    );
    let asked = waited_for(counted.store.take());
    assert_eq!(asked.len(), 6 * took.len(), "{asked:#?}");
}
