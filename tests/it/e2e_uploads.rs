//! Uploads that another process goes on with: the server is killed between any two requests of every form
//! in which a blob can come in, and what is read back must be what was sent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;

use crate::{
    berth::Berth,
    e2e_client::{Answer, Client, closing, noise, sha256, sha512},
};

/// The size of a part in a local directory: uploads below and above it take different ways.
const PART: usize = 4 << 20;

/// How the client goes on after the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// It asks where the upload stands first, as the spec has it.
    First,
    /// It goes on where it knows that it was, with the last `Location` that it got.
    Not,
}

async fn patch(client: &Client, location: &str, at: usize, chunk: Bytes) -> Answer {
    let range = format!("{at}-{}", at + chunk.len() - 1);
    client.send("PATCH", location, &[("content-range", &range)], chunk).await
}

/// Where the upload stands, by the server's word.
async fn status(client: &Client, location: &str) -> (usize, String) {
    let path = location.split('?').next().unwrap();
    let answer = client.get(path).await.expect(204);
    let last: usize = answer.header("range").strip_prefix("0-").unwrap().parse().unwrap();
    (if last == 0 { 0 } else { last + 1 }, answer.location())
}

/// Pushes a blob of these chunks by PATCHes, each to a server that was killed before, and closes it with
/// `tail` likewise.
async fn push_through_crashes(chunks: &[usize], tail: usize, ask: Ask) {
    let case = format!("{chunks:?} and {tail}, asked {ask:?}");
    let mut berth = Berth::start();
    let whole = noise(chunks.len() as u64, chunks.iter().sum::<usize>() + tail);
    let digest = sha256(&whole);
    let mut location = berth.client().start_upload("a/b").await;
    let mut at = 0;
    for &size in chunks {
        berth.kill9();
        berth.restart();
        if ask == Ask::First {
            let (stands, next) = status(&berth.client(), &location).await;
            assert_eq!(stands, at, "{case}");
            location = next;
        }
        let answer = patch(&berth.client(), &location, at, whole.slice(at..at + size)).await.expect(202);
        at += size;
        assert_eq!(answer.header("range"), format!("0-{}", at - 1), "{case}");
        location = answer.location();
    }
    berth.kill9();
    berth.restart();
    if ask == Ask::First {
        location = status(&berth.client(), &location).await.1;
    }
    let close = closing(&location, &digest);
    berth.client().send("PUT", &close, &[], whole.slice(at..)).await.expect(201);
    berth.kill9();
    berth.restart();
    let again = berth.client().send("PUT", &close, &[], whole.slice(at..)).await.expect(201);
    assert_eq!(again.header("docker-content-digest"), digest, "{case}");
    berth.client().expect_blob("a/b", &digest, &whole).await;
}

#[tokio::test]
async fn an_upload_of_small_chunks_survives_a_crash_between_any_two() {
    for ask in [Ask::First, Ask::Not] {
        push_through_crashes(&[1000, 1, 70_000], 0, ask).await;
        push_through_crashes(&[1000], 500, ask).await;
    }
}

#[tokio::test]
async fn an_upload_of_many_parts_survives_a_crash_between_any_two() {
    for ask in [Ask::First, Ask::Not] {
        push_through_crashes(&[PART + 10, 5, PART, 2 * PART + 3], 7, ask).await;
        push_through_crashes(&[PART, PART], 0, ask).await;
        push_through_crashes(&[PART - 1, 2], PART + 1, ask).await;
    }
}

#[tokio::test]
async fn a_crash_before_the_first_byte_loses_nothing() {
    for size in [0, 10, PART + 1] {
        push_through_crashes(&[], size, Ask::Not).await;
        push_through_crashes(&[], size, Ask::First).await;
    }
}

/// The server dies while a chunk comes in: how far it got is the server's to say, and the client goes on.
#[tokio::test]
async fn a_crash_in_the_middle_of_a_chunk_is_gone_on_from() {
    let mut berth = Berth::start();
    let whole = noise(5, 5 * PART);
    let client = berth.client();
    let location = client.start_upload("a/b").await;
    let location = patch(&client, &location, 0, whole.slice(..100)).await.expect(202).location();
    let (rest, sent) = (whole.slice(100..), tokio::sync::oneshot::channel());
    let mut told = Some(sent.0);
    let pieces = rest.chunks(1 << 20).map(|piece| rest.slice_ref(piece)).collect::<Vec<_>>();
    let pieces = pieces.into_iter().enumerate().map(move |(index, piece)| {
        if index == 12
            && let Some(told) = told.take()
        {
            told.send(()).unwrap();
        }
        piece
    });
    let path = location.clone();
    let sending = tokio::spawn(async move {
        tokio::spawn(async move { client.stream("PATCH", &path, &[], pieces).await }).await.is_ok()
    });
    sent.1.await.unwrap();
    berth.kill9();
    drop(sending.await);
    berth.restart();
    let client = berth.client();
    let (at, location) = status(&client, &location).await;
    assert!((100..whole.len()).contains(&at), "{at}");
    let location = patch(&client, &location, at, whole.slice(at..)).await.expect(202).location();
    client.send("PUT", &closing(&location, &sha256(&whole)), &[], "").await.expect(201);
    client.expect_blob("a/b", &sha256(&whole), &whole).await;
}

#[tokio::test]
async fn a_location_used_again_does_not_write_twice() {
    let berth = Berth::start();
    let client = berth.client();
    for size in [100, PART + 100] {
        let whole = noise(size as u64, 2 * size);
        let first = client.start_upload("a/b").await;
        let second = patch(&client, &first, 0, whole.slice(..size)).await.expect(202).location();
        patch(&client, &first, 0, whole.slice(..size)).await.expect_error(416, "RANGE_INVALID");
        // Its position is right, and only the URL is old: the server looks once more, and takes it.
        let third = patch(&client, &first, size, whole.slice(size..)).await.expect(202).location();
        patch(&client, &second, size, whole.slice(size..)).await.expect_error(416, "RANGE_INVALID");
        client.send("PUT", &closing(&third, &sha256(&whole)), &[], "").await.expect(201);
        client.expect_blob("a/b", &sha256(&whole), &whole).await;
    }
}

#[tokio::test]
async fn the_same_closing_put_twice_is_answered_twice() {
    let mut berth = Berth::start();
    for (size, body) in [(100, true), (100, false), (PART + 100, true), (PART + 100, false)] {
        let client = berth.client();
        let whole = noise(size as u64, size);
        let mut location = client.start_upload("a/b").await;
        if !body {
            location = patch(&client, &location, 0, whole.clone()).await.expect(202).location();
        }
        let (close, last) = (closing(&location, &sha256(&whole)), if body { whole.clone() } else { Bytes::new() });
        client.send("PUT", &close, &[], last.clone()).await.expect(201);
        client.send("PUT", &close, &[], last.clone()).await.expect(201);
        berth.restart();
        let client = berth.client();
        client.send("PUT", &close, &[], last.clone()).await.expect(201);
        let other = closing(&location, &sha256(b"something else"));
        client.send("PUT", &other, &[], last).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        client.expect_blob("a/b", &sha256(&whole), &whole).await;
    }
}

#[tokio::test]
async fn each_form_of_an_upload_arrives() {
    let berth = Berth::start();
    let client = berth.client();
    for size in [0, 1, 1000, PART, PART + 1, 3 * PART + 17] {
        let whole = noise(size as u64 + 1, size);
        let digest = sha256(&whole);
        let pieces = || whole.chunks(100_000).map(Bytes::copy_from_slice).collect::<Vec<_>>().into_iter();
        let post = format!("/v2/single/blobs/uploads/?digest={digest}");
        client.send("POST", &post, &[], whole.clone()).await.expect(201);
        client.push_blob("put", whole.clone()).await;
        let close = closing(&client.start_upload("put-stream").await, &digest);
        client.stream("PUT", &close, &[], pieces()).await.expect(201);
        let location = client.start_upload("patch-stream").await;
        let location = client.stream("PATCH", &location, &[], pieces()).await.expect(202).location();
        client.send("PUT", &closing(&location, &digest), &[], "").await.expect(201);
        let location = client.start_upload("patch-plain").await;
        let half = size / 2;
        let location = client.send("PATCH", &location, &[], whole.slice(..half)).await.expect(202).location();
        client.send("PUT", &closing(&location, &digest), &[], whole.slice(half..)).await.expect(201);
        let location = client.start_upload("late-sha512").await;
        let location = client.send("PATCH", &location, &[], whole.clone()).await.expect(202).location();
        client.send("PUT", &closing(&location, &sha512(&whole)), &[], "").await.expect(201);
        client.expect_blob("late-sha512", &sha512(&whole), &whole).await;
        for repository in ["single", "put", "put-stream", "patch-stream", "patch-plain"] {
            client.expect_blob(repository, &digest, &whole).await;
        }
    }
}

#[tokio::test]
async fn an_upload_is_known_in_its_own_repository_alone() {
    let mut berth = Berth::start();
    let client = berth.client();
    let location = client.start_upload("a/b").await;
    let location = patch(&client, &location, 0, Bytes::from_static(b"bytes")).await.expect(202).location();
    berth.restart();
    let client = berth.client();
    let elsewhere = location.replace("/v2/a/b/", "/v2/a/c/");
    let close = closing(&elsewhere, &sha256(b"bytes"));
    for (method, path, body) in
        [("GET", &elsewhere, ""), ("PATCH", &elsewhere, "x"), ("PUT", &close, ""), ("DELETE", &elsewhere, "")]
    {
        client.send(method, path, &[], body).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
    client.send("PUT", &closing(&location, &sha256(b"bytes")), &[], "").await.expect(201);
}

#[tokio::test]
async fn a_cancelled_upload_stays_cancelled_through_a_crash() {
    let mut berth = Berth::start();
    for size in [0, 10, PART + 10] {
        let client = berth.client();
        let mut location = client.start_upload("a/b").await;
        if size > 0 {
            location = patch(&client, &location, 0, noise(9, size)).await.expect(202).location();
        }
        client.delete(&location).await.expect(204);
        berth.kill9();
        berth.restart();
        let client = berth.client();
        client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        client.send("PATCH", &location, &[], "more").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
}
