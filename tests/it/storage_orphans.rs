//! Uploads in parts that nobody knows of are ended in the end; those that somebody goes on with never.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    oci::Algorithm,
    registry::Options,
    storage::{
        Key, MultipartId, Store,
        s3::{S3, S3Options},
    },
    upload::Incoming,
    worker,
};
use futures_util::future::join_all;
use ulid::Ulid;

use crate::{
    rules_bench::{self as bench, Bench},
    s3_server,
    storage::{data, options, pattern},
};

/// As in [`Options`]; small beside what the sweep adds.
const EXPIRY: Duration = Duration::from_secs(3600);

/// What the sweep leaves alone after that, and a little.
const MARGIN: Duration = Duration::from_secs(24 * 3600 + 60);

async fn unfinished(bench: &Bench) -> Vec<String> {
    let mut ids: Vec<String> =
        bench.store.unfinished(None).await.expect("list").uploads.into_iter().map(|upload| upload.id.0).collect();
    ids.sort();
    ids
}

async fn sweep(bench: &Bench) {
    worker::sweep(&bench.a, Ulid::from(1_u128)).await.expect("sweep");
}

/// An upload that a client may go on with: it has a part, and a record of it.
async fn begun(bench: &Bench) -> Vec<String> {
    let repository = bench.repo("app").await;
    let (id, _) = repository.start_upload("");
    let body = Incoming::of(pattern(2 * bench.part + 7).to_vec());
    repository.append(&id, None, None, Algorithm::Sha256, body).await.expect("append");
    let begun = unfinished(bench).await;
    assert_eq!(begun.len(), 1);
    begun
}

/// An upload that no record knows of.
async fn orphan(bench: &Bench) -> (Key, MultipartId) {
    let key = data();
    let id = bench.store.begin(&key).await.expect("begin");
    (key, id)
}

async fn orphans_end(bench: Bench) {
    let known = begun(&bench).await;
    orphan(&bench).await;
    bench.clock.advance(EXPIRY + Duration::from_secs(60));
    sweep(&bench).await;
    assert_eq!(unfinished(&bench).await.len(), 2, "it may be about to be noted");
    bench.clock.advance(MARGIN);
    sweep(&bench).await;
    assert_eq!(unfinished(&bench).await, known, "what a record knows of is for its expiry");
}

#[tokio::test]
async fn orphans_in_a_directory_end() {
    orphans_end(bench::local(Options { upload_expiry: EXPIRY, ..bench::options() }).await).await;
}

#[tokio::test]
async fn orphans_in_a_bucket_end() {
    orphans_end(bench::remote(Options { upload_expiry: EXPIRY, ..bench::options() }).await).await;
}

/// Whoever shares a bucket without a prefix may have any number of uploads; a page of a listing holds a thousand.
#[tokio::test]
async fn uploads_of_others_are_passed_over() {
    let server = s3_server::start().await;
    let at = async |prefix: &str| S3::open(S3Options { prefix: prefix.to_owned(), ..options(&server) }).await.unwrap();
    let (others, ours) = (at("another").await, at("").await);
    for _ in 0..11 {
        let begun = join_all((0..91).map(|_| async { others.begin(&data()).await })).await;
        assert!(begun.iter().all(Result::is_ok));
    }
    for _ in 0..3 {
        ours.begin(&data()).await.unwrap();
    }
    let listed = ours.unfinished(None).await.unwrap();
    assert_eq!((listed.uploads.len(), listed.more), (3, false));
    let rest = ours.unfinished(listed.uploads.first()).await.unwrap();
    assert_eq!(rest.uploads, listed.uploads[1..]);
}
