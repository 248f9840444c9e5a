//! Uploads in parts that nobody knows of are ended in the end; those that somebody goes on with never.

use std::time::Duration;

use berth::{
    oci::Algorithm,
    registry::Options,
    storage::{Key, MultipartId},
    upload::Incoming,
    worker,
};
use ulid::Ulid;

use crate::{
    rules_bench::{self as bench, Bench},
    storage::{data, pattern},
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
