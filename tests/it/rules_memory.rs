//! I8: what uploads hold of the memory, and that none keeps it from the others for good.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use berth::{oci::Algorithm, registry::Options, upload::Incoming};
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use tokio::task::JoinSet;

use crate::{
    rules_bench::{self as bench, Bench, PART, bytes_of, on, sha256},
    storage::pattern,
};

/// The smallest block: a sixteenth of the bench's part.
const BLOCK: usize = PART / 16;

async fn with_budget(upload_memory: usize, scratch: Option<&Path>) -> Bench {
    let upload_scratch = scratch.map(Path::to_owned);
    bench::local(Options { upload_memory, upload_scratch, ..bench::options() }).await
}

/// A body of `chunks` chunks that never says how long it is.
fn slow_body(chunks: usize) -> Incoming {
    let stream = stream::iter(0..chunks).then(|at| async move {
        tokio::task::yield_now().await;
        Ok(Bytes::from(vec![at as u8; 10_000]))
    });
    Incoming { stream: Box::pin(stream), length: None }
}

/// Two hundred uploads of many parts each, first from nothing, then twice from what they had put aside.
async fn share(bench: &Bench) {
    let uploads = (0..200).map(|number| async move {
        let repository = on(&bench.a, "app").await;
        let (id, progress) = repository.start_upload("me");
        let mut proof = progress.proof;
        let chunks = number % 20;
        for _ in 0..2 {
            let body = slow_body(chunks);
            proof = repository.append(&id, Some(&proof), None, Algorithm::Sha256, body).await.unwrap().proof;
        }
        let half: Vec<u8> = (0..chunks).flat_map(|at| vec![at as u8; 10_000]).collect();
        let whole = [half.clone(), half.clone(), half].concat();
        let blob = repository.finish(&id, Some(&proof), None, &sha256(&whole), slow_body(chunks)).await.unwrap();
        bytes_of(&blob).await.unwrap();
    });
    futures_util::future::join_all(uploads).await;
}

#[tokio::test]
async fn many_slow_uploads_share_a_small_budget() {
    for parts in [2, 7] {
        share(&with_budget(parts * PART, None).await).await;
    }
}

#[tokio::test]
async fn many_slow_uploads_share_a_small_budget_and_a_scratch_directory() {
    let scratch = tempfile::tempdir().unwrap();
    for parts in [2, 7] {
        share(&with_budget(parts * PART, Some(scratch.path())).await).await;
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "its files have no names");
}

/// As without one: uploads wait for each other.
#[tokio::test]
async fn a_scratch_directory_that_goes_away_fails_no_upload() {
    let scratch = tempfile::tempdir().unwrap();
    let bench = with_budget(4 * PART, Some(scratch.path())).await;
    scratch.close().unwrap();
    share(&bench).await;
}

#[tokio::test]
async fn a_scratch_directory_that_is_none_stops_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bench = with_budget(4 * PART, None).await;
    let refused = bench.with_scratch(file.path()).await.unwrap_err();
    let cause = refused.cause.unwrap();
    assert!(cause.starts_with("limits.upload_scratch: /") && cause.contains("exists"), "{cause}");
}

/// So many uploads that have sent `size` bytes each and then nothing more.
async fn stalled(bench: &Bench, count: usize, size: usize) -> JoinSet<()> {
    let (mut uploads, taken) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for _ in 0..count {
        let (repository, taken) = (on(&bench.a, "stalled").await, Arc::clone(&taken));
        uploads.spawn(async move {
            let (id, progress) = repository.start_upload("me");
            let chunks = vec![Ok(Bytes::from(vec![7; BLOCK / 2])); 2 * size / BLOCK];
            let end = stream::once(async move {
                taken.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            });
            let body = Incoming { stream: Box::pin(stream::iter(chunks).chain(end)), length: None };
            repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await.unwrap();
        });
        // Not all come this far: some wait for memory.
        tokio::task::yield_now().await;
    }
    for _ in 0..1000 {
        if taken.load(Ordering::SeqCst) == count {
            break;
        }
        tokio::task::yield_now().await;
    }
    uploads
}

#[tokio::test]
async fn two_hundred_uploads_that_have_hardly_begun_stop_nobody() {
    let bench = with_budget(4 * PART, None).await;
    let stalled = stalled(&bench, 200, BLOCK).await;
    bench.blob("app", &pattern(5 * PART)).await;
    assert_eq!(stalled.len(), 200);
}

#[tokio::test]
async fn with_a_scratch_directory_two_hundred_uploads_halfway_stop_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let bench = with_budget(4 * PART, Some(scratch.path())).await;
    let stalled = stalled(&bench, 200, PART / 2).await;
    bench.blob("app", &pattern(5 * PART)).await;
    bench.push("app", &bench.image("app", "one").await, &["v1"]).await.unwrap();
    assert_eq!(stalled.len(), 200);
}

/// What fits in the block that each request may hold never waits, whatever the others do. Others do once one of
/// them goes.
#[tokio::test]
async fn small_blobs_and_manifests_never_wait() {
    let bench = with_budget(4 * PART, None).await;
    let mut stalled = stalled(&bench, 50, PART / 2).await;
    bench.push("app", &bench.image("app", "one").await, &["v1"]).await.unwrap();
    let bytes = pattern(3 * PART);
    let (waiting, others) = (Box::pin(bench.blob("app", &bytes)), Box::pin(bench.image("app", "two")));
    let Either::Right((_, waiting)) = select(waiting, others).await else { panic!("there was no room for it") };
    stalled.abort_all();
    while stalled.join_next().await.is_some() {}
    waiting.await;
}

/// Also where the URL is the first one, so that only the index knows that something is put aside.
#[tokio::test]
async fn uploads_that_use_their_first_url_again_get_through() {
    let scratch = tempfile::tempdir().unwrap();
    for scratch in [None, Some(scratch.path())] {
        let bench = with_budget(2 * PART, scratch).await;
        let uploads = (0..50).map(|_| async {
            let repository = on(&bench.a, "app").await;
            let (id, progress) = repository.start_upload("me");
            let piece = pattern(PART - BLOCK);
            for _ in 0..3 {
                let body = Incoming::of(piece.clone());
                repository.append(&id, Some(&progress.proof), None, Algorithm::Sha256, body).await.unwrap();
            }
            let digest = sha256(&[&piece[..]; 3].concat());
            repository.finish(&id, Some(&progress.proof), None, &digest, Incoming::empty()).await.unwrap();
        });
        futures_util::future::join_all(uploads).await;
    }
}
