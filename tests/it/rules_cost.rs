//! What each operation costs in round trips to the index and requests to the store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    config,
    epoch::Timing,
    oci::{Algorithm, Reference, RepositoryName},
    redirect::{Asker, Redirects},
    registry::{Options, Repository},
    upload::Incoming,
};

use crate::rules_bench::{self as bench, Bench, PART, bytes_of, on, pushed, sha256};

/// A lease that needs no renewal while a test runs, so that no request is not the operation's own.
async fn warm() -> Bench {
    bench::local(still()).await
}

/// Options with such a lease.
fn still() -> Options {
    let timing = Timing { lease: Duration::from_secs(3600), ..bench::options().timing };
    Options { timing, ..bench::options() }
}

/// Lets what went on in the background end, and counts anew.
async fn quiet(bench: &Bench) {
    tokio::time::sleep(Duration::from_millis(30)).await;
    bench.probe.reset();
}

fn assert_cost(bench: &Bench, what: &str, round_trips: usize, requests: usize) {
    let cost = bench.probe.cost();
    println!("{what}: {} round trips, {} requests", cost.round_trips, cost.requests);
    assert_eq!((cost.round_trips, cost.requests), (round_trips, requests), "{what}: {cost:?}");
}

#[tokio::test]
async fn reading_costs_one_round_trip() {
    let bench = warm().await;
    let manifest = bench.image("app", "one").await;
    bench.push("app", &manifest, &["v1"]).await.unwrap();
    let layer = sha256(b"layer of one");
    let reference = Reference::Tag("v1".parse().unwrap());
    on(&bench.a, "app")
        .await
        .manifest_bytes(&on(&bench.a, "app").await.find_manifest(&reference).await.unwrap())
        .await
        .unwrap();
    quiet(&bench).await;
    let repository = on(&bench.a, "app").await;
    let found = repository.find_manifest(&reference).await.unwrap();
    repository.manifest_bytes(&found).await.unwrap();
    assert_cost(&bench, "manifest by tag, warm", 1, 0);
    quiet(&bench).await;
    let blob = on(&bench.a, "app").await.blob(&layer).await.unwrap();
    assert_cost(&bench, "blob GET", 1, 0);
    bytes_of(&blob).await.unwrap();
    assert_cost(&bench, "blob GET, streamed", 1, 1);
    quiet(&bench).await;
    on(&bench.a, "app").await.blob_to_keep(&layer).await.unwrap();
    assert_cost(&bench, "HEAD of a blob", 1, 0);
}

/// Signing asks nobody, and what was signed once isn't signed again.
#[tokio::test]
async fn a_blob_redirect_costs_one_round_trip_and_no_request() {
    const BLOBS: u32 = 50;
    let bench = bench::remote(still()).await;
    let name: RepositoryName = "app".parse().unwrap();
    let mut digests = Vec::new();
    for number in 0..BLOBS {
        digests.push(bench.blob("app", &number.to_be_bytes()).await);
    }
    let redirects = Redirects::new(&config::Redirect::default()).unwrap().unwrap();
    let asker = Asker { address: None, user_agent: None, repository: &name };
    quiet(&bench).await;
    let blob = on(&bench.a, "app").await.blob(&digests[0]).await.unwrap();
    redirects.url(asker, &blob).await.unwrap().unwrap();
    assert_cost(&bench, "blob GET, redirected", 1, 0);
    let mut blobs = Vec::new();
    for digest in &digests {
        blobs.push(on(&bench.a, "app").await.blob(digest).await.unwrap());
    }
    quiet(&bench).await;
    for what in ["signed", "signed before"] {
        let begun = std::time::Instant::now();
        for blob in &blobs {
            redirects.url(asker, blob).await.unwrap().unwrap();
        }
        println!("a URL, {what}: {:.1} µs", begun.elapsed().as_secs_f64() * 1e6 / f64::from(BLOBS));
    }
    assert_cost(&bench, "URLs of blobs", 0, 0);
    assert_eq!(bench.probe.cost().counts.get("sign").copied().unwrap_or_default(), 49, "one each, one before");
}

#[tokio::test]
async fn uploads_cost_what_is_promised() {
    uploads_cost(&warm().await).await;
    uploads_cost(&told().await).await;
}

/// What happens is told to an endpoint, by the batches that make it true.
async fn told() -> Bench {
    let bench = warm().await;
    crate::rules_events::listen(&bench).await;
    bench
}

async fn uploads_cost(bench: &Bench) {
    let digest = sha256(b"in two requests");
    quiet(bench).await;
    let repository = on(&bench.a, "app").await;
    let (id, progress) = repository.start_upload("me");
    assert_cost(bench, "POST", 0, 0);
    let body = Incoming::of("in two requests");
    let progress = repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await.unwrap();
    assert_cost(bench, "first PATCH of a small blob", 1, 1);
    quiet(bench).await;
    let repository = on(&bench.a, "app").await;
    repository.finish(&id, Some(&progress.proof), None, &digest, Incoming::empty()).await.unwrap();
    assert_cost(bench, "empty closing PUT", 2, 1);
    quiet(bench).await;
    let repository = on(&bench.a, "app").await;
    let (id, progress) = repository.start_upload("me");
    let digest = sha256(b"in one request");
    let body = Incoming::of("in one request");
    repository.finish(&id, Some(&progress.proof), None, &digest, body).await.unwrap();
    assert_cost(bench, "PUT of a small blob", 2, 2);
    quiet(bench).await;
    let mounted = on(&bench.a, "other").await.mount(&repository, &digest).await.unwrap();
    assert!(mounted.is_some());
    assert_cost(bench, "mount", 3, 1);
}

#[tokio::test]
async fn pushes_cost_what_is_promised() {
    pushes_cost(&warm().await).await;
    pushes_cost(&told().await).await;
}

async fn pushes_cost(bench: &Bench) {
    let first = bench.image("app", "one").await;
    let second = bench.image("app", "two").await;
    for (what, manifest, tag, round_trips, requests) in [
        ("manifest push with a tag", &first, "v1", 2, 2),
        ("another", &second, "v2", 2, 2),
        ("retag", &first, "v2", 2, 1),
        ("repush", &first, "v2", 2, 0),
    ] {
        quiet(bench).await;
        bench::push(&on(&bench.a, "app").await, manifest, &[tag]).await.unwrap();
        assert_cost(bench, what, round_trips, requests);
    }
}

async fn put(repository: &Repository, bytes: &'static [u8]) {
    let (id, progress) = repository.start_upload("me");
    repository.finish(&id, Some(&progress.proof), None, &sha256(bytes), Incoming::of(bytes)).await.unwrap();
}

#[tokio::test]
async fn a_new_small_image_costs_six_requests() {
    let bench = warm().await;
    quiet(&bench).await;
    let repository = on(&bench.a, "app").await;
    put(&repository, b"config").await;
    put(&repository, b"layer").await;
    let manifest = bench::image(b"config", &[b"layer"]);
    repository.push_manifest(pushed(&manifest, &["latest"])).await.unwrap();
    assert_cost(&bench, "a new small image, POST+PUT", 6, 6);
    quiet(&bench).await;
    let repository = on(&bench.a, "docker").await;
    for bytes in [&b"docker's config"[..], b"docker's layer"] {
        let digest = sha256(bytes);
        repository.blob_to_keep(&digest).await.unwrap_err();
        let (id, progress) = repository.start_upload("me");
        let progress =
            repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, Incoming::of(bytes)).await.unwrap();
        repository.finish(&id, Some(&progress.proof), None, &digest, Incoming::empty()).await.unwrap();
        repository.blob_to_keep(&digest).await.unwrap();
    }
    let manifest = bench::image(b"docker's config", &[b"docker's layer"]);
    repository.push_manifest(pushed(&manifest, &["latest"])).await.unwrap();
    assert_cost(&bench, "a new small image, docker's way", 12, 6);
}

/// 256 MiB in S3's parts, on a smaller scale.
#[tokio::test]
async fn a_large_blob_costs_its_parts_and_four_requests() {
    let bench = warm().await;
    for (what, parts, end) in [("whole parts", 16, 0), ("a short end", 15, PART / 2), ("one byte more", 15, 1)] {
        let bytes = crate::storage::pattern(parts * PART + end);
        let digest = sha256(&bytes);
        quiet(&bench).await;
        let repository = on(&bench.a, "app").await;
        let (id, progress) = repository.start_upload("me");
        let body = Incoming::of(bytes);
        let progress = repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await.unwrap();
        repository.finish(&id, Some(&progress.proof), None, &digest, Incoming::empty()).await.unwrap();
        let cost = bench.probe.cost();
        println!("a large blob of {what}: {} round trips, {} requests", cost.round_trips, cost.requests);
        assert_eq!(cost.requests, 16 + 4, "{what}: {cost:?}");
    }
}
