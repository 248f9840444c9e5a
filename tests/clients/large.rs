//! A blob as large as any that people push, and many at once, through a server that may hold little of them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use crate::{
    berth::Berth,
    e2e_client::{closing, hex, noise},
    many_pushes::{Pushes, most_memory},
    tool::Timed,
};

const PIECE: usize = 1 << 20;
/// Five gibibytes in all, which is also where S3's single PUT ends.
const PIECES: u64 = 5 << 10;
/// The most that the server may ever hold, in MiB, beside the budget of uploads where that is used up.
const MEMORY: u64 = 64;

/// A rate in MiB/s, and then the time starts anew.
fn rate(since: &mut Instant) -> u64 {
    let rate = (PIECES as f64 * PIECE as f64 / f64::from(1 << 20) / since.elapsed().as_secs_f64()) as u64;
    *since = Instant::now();
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_gibibytes_are_pushed_and_pulled_in_little_memory() {
    let (_timed, berth) = (Timed::of("5 GiB in one blob"), Berth::start());
    let client = berth.client();
    // A piece is the same noise with its number in front; hashed as it is sent, as Docker does.
    let (noise, sent) = (noise(8, PIECE), Arc::new(Mutex::new(Sha256::new())));
    let hasher = Arc::clone(&sent);
    let pieces = (0..PIECES).map(move |number| {
        let piece = Bytes::from([&number.to_le_bytes()[..], &noise[8..]].concat());
        hasher.lock().unwrap().update(&piece);
        piece
    });
    let mut since = Instant::now();
    let location = client.start_upload("large/one").await;
    let patched = client.stream("PATCH", &location, &[], pieces).await.expect(202).location();
    let digest = format!("sha256:{}", hex(&sent.lock().unwrap().clone().finalize()));
    client.send("PUT", &closing(&patched, &digest), &[], "").await.expect(201);
    let pushed = rate(&mut since);

    let url = format!("http://{}/v2/large/one/blobs/{digest}", berth.host());
    let mut body = reqwest::get(url).await.unwrap().bytes_stream();
    let mut pulled = Sha256::new();
    while let Some(chunk) = body.next().await {
        pulled.update(chunk.unwrap());
    }
    assert_eq!(digest, format!("sha256:{}", hex(&pulled.finalize())));
    let most = most_memory(&berth);
    println!("5 GiB: pushed at {pushed} MiB/s, pulled at {} MiB/s, held {most} MiB at most", rate(&mut since));
    assert!(most < MEMORY, "{most} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_gibibytes_are_pushed_at_once_within_the_budget() {
    let _timed = Timed::of("100 pushes of 1 GiB at once");
    let pushes = Pushes { count: 100, mebibytes: 1024, budget: 256, scratch: None };
    let growth = pushes.growth().await;
    assert!(growth < 256 + 48, "{growth} MiB");
}
