//! S3 over a bad network: answers that break off, stall, drip or never come, and a store with too much to do.

use std::{sync::Arc, time::Duration};

use berth::storage::{
    Key, Patience, StorageError, Store, read_small,
    s3::{S3, S3Options},
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;

use crate::{
    s3_server::{self, S3Server},
    storage::{data, options, pattern},
    storage_front::{self, Fault, Front},
};

/// Short enough to be waited for, long enough for a busy machine.
const SHORT: Duration = Duration::from_secs(1);

/// Longer, as what the sockets hold is taken in after the last byte has left us.
const WRITE: Duration = Duration::from_secs(2);

const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), call: SHORT, write: WRITE, complete: SHORT, stall: SHORT };

async fn behind_a_front() -> (S3Server, Front, Arc<dyn Store>) {
    let server = s3_server::start().await;
    let front = storage_front::start(&server.endpoint).await;
    let options = S3Options { endpoint: Some(front.endpoint.clone()), patience: PATIENCE, ..options(&server) };
    let store = S3::open(options).await.expect("open");
    front.seen();
    (server, front, Arc::new(store))
}

async fn stored(store: &Arc<dyn Store>, length: usize) -> (Key, Bytes) {
    let (key, bytes) = (data(), pattern(length));
    store.put(&key, vec![bytes.clone()], None).await.expect("put");
    (key, bytes)
}

#[tokio::test]
async fn a_pull_that_breaks_goes_on_from_where_it_was() {
    let (_server, front, store) = behind_a_front().await;
    let (key, bytes) = stored(&store, 3 << 20).await;
    front.seen();
    let mut faults = vec![Fault::StallAfter(300_000), Fault::CutAfter(1_000_000), Fault::CutAfter(200_000)];
    front.strike(move |_| faults.pop());
    assert!(read_small(&store, &key, 1 << 30).await.expect("read") == bytes);
    let ranges: Vec<String> = front.seen().iter().map(|seen| seen.header("range").to_owned()).collect();
    let expected = ["", "bytes=200000-3145727", "bytes=1200000-3145727", "bytes=1500000-3145727"];
    assert_eq!(ranges, expected);
    // And within a range that was asked for.
    front.strike_next(Method::GET, 1, Fault::CutAfter(10));
    let chunks: Vec<Bytes> = store.read(&key, Some(5..105)).await.expect("read").try_collect().await.expect("bytes");
    assert!(chunks.concat() == bytes[5..105]);
}

#[tokio::test]
async fn a_pull_of_which_nothing_more_comes_ends() {
    let (_server, front, store) = behind_a_front().await;
    let (key, _) = stored(&store, 1 << 20).await;
    let stream = store.read(&key, None);
    front.strike(|seen| Some(Fault::CutAfter(if seen.header("range").is_empty() { 1000 } else { 0 })));
    let failed = stream.await.expect("read").try_collect::<Vec<Bytes>>().await;
    assert!(matches!(failed, Err(StorageError::Unavailable(..))), "{failed:?}");
    front.strike(|seen| (!seen.header("range").is_empty()).then_some(Fault::Denied).or(Some(Fault::CutAfter(1000))));
    front.seen();
    let failed = store.read(&key, None).await.expect("read").try_collect::<Vec<Bytes>>().await;
    assert!(matches!(failed, Err(StorageError::Refused(..))), "what is forbidden is not tried again: {failed:?}");
}

#[tokio::test]
async fn nothing_is_cut_off_while_its_bytes_move() {
    let (_server, front, store) = behind_a_front().await;
    let (key, bytes) = stored(&store, 1 << 20).await;
    front.seen();
    // 64 pieces: longer than any patience there is.
    front.strike_next(Method::GET, 1, Fault::Drip(SHORT / 20));
    assert!(read_small(&store, &key, 1 << 30).await.expect("read") == bytes);
    assert_eq!(front.seen().len(), 1, "in one go");
    // Whoever reads may take as long as they like.
    let mut stream = store.read(&key, None).await.expect("read");
    let mut read = 0;
    while let Some(chunk) = stream.try_next().await.expect("bytes") {
        if read == 0 {
            tokio::time::sleep(SHORT * 2).await;
        }
        read += chunk.len();
    }
    assert_eq!((read, front.seen().len()), (bytes.len(), 1));
    // A store that takes its time over taking bytes in: twice what it may take to answer.
    front.strike_next(Method::PUT, 1, Fault::Slurp(WRITE / 8));
    stored(&store, 16 << 20).await;
    assert_eq!(front.seen().len(), 1);
}

#[tokio::test]
async fn what_stalls_ends() {
    let (_server, front, store) = behind_a_front().await;
    let (key, _) = stored(&store, 1000).await;
    // More than the sockets between us hold.
    front.strike(|_| Some(Fault::Deaf));
    let put = store.put(&data(), vec![pattern(24 << 20)], None).await;
    assert!(matches!(put, Err(StorageError::Unavailable(..))), "{put:?}");
    front.strike(|_| Some(Fault::Lost));
    let stat = store.stat(&key).await;
    assert!(matches!(stat, Err(StorageError::Unavailable(..))), "{stat:?}");
    let text = stat.expect_err("lost").to_string();
    assert!(text.contains("nothing moved for 1s"), "{text}");
}

#[tokio::test]
async fn a_store_with_too_much_to_do_is_waited_for() {
    let (_server, front, store) = behind_a_front().await;
    let (key, size) = (data(), 5 << 20);
    // Each request is refused before it is taken.
    let mut last = String::new();
    front.strike(move |seen| {
        let this = format!("{} {} {}", seen.method, seen.path, seen.query);
        let before = std::mem::replace(&mut last, this.clone());
        (before != this).then_some(Fault::SlowDown)
    });
    let deadline = store.now().plus(Duration::from_secs(60));
    store.put(&key, vec![pattern(100)], Some(deadline)).await.expect("put with a deadline");
    store.put(&data(), vec![pattern(100)], None).await.expect("put");
    assert!(store.stat(&key).await.expect("stat").is_some());
    assert_eq!(read_small(&store, &key, 1000).await.expect("read"), pattern(100));
    assert!(!store.list("data/", None, 10).await.expect("list").objects.is_empty());
    let key = data();
    let upload = store.begin(&key).await.expect("begin");
    let part = store.put_part(&key, &upload, 0, size, vec![pattern(10)]).await.expect("part");
    store.complete(&key, &upload, &[part]).await.expect("complete");
    assert_eq!(front.seen().len(), 16, "each was tried twice");
}

#[tokio::test]
async fn a_write_with_a_deadline_is_never_sent_again_while_its_fate_is_unknown() {
    let (_server, front, store) = behind_a_front().await;
    front.strike(|_| Some(Fault::Lost));
    let deadline = store.now().plus(Duration::from_secs(60));
    let key = data();
    let lost = store.put(&key, vec![pattern(100)], Some(deadline)).await;
    assert!(matches!(lost, Err(StorageError::Unavailable(..))), "{lost:?}");
    assert_eq!(front.seen().len(), 1);
    front.strike(|_| None);
    assert!(store.stat(&key).await.expect("stat").is_some(), "it had happened");
}
