//! Bad conditions: a full disk, a disk that can't be written, connections that break, bodies that lie, and
//! more bytes than there is memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use crate::{
    berth::{Berth, Setup},
    disk::Disk,
    e2e_client::{Answer, Client, closing, hex, noise, sha256},
};

const PART: usize = 4 << 20;

/// Waits for what happens in the background.
async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What under a directory holds bytes of blobs, also of unfinished ones.
fn data_of(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for top in ["data", ".tmp", ".uploads"] {
        collect(&directory.join(top), &mut found);
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), found),
            Ok(_) => found.push(entry.path()),
            Err(_) => {}
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_is_given_back() {
    let disk = Disk::mount(24);
    let berth = Setup::default().over(&disk.path().join("data")).start();
    let client = berth.client();
    let small = client.push_blob("a/b", "a small blob").await;
    let before = disk.used();
    for size in [30 << 20, 3 * PART] {
        let large = noise(1, size);
        let digest = sha256(&large);
        let filler = disk.path().join("filler");
        let again = format!("/v2/a/b/blobs/uploads/?digest={small}");
        patiently(async || client.try_send("POST", &again, &[], "a small blob").await).await.expect(201);
        if size < 20 << 20 {
            fs::write(&filler, vec![1; 16 << 20]).unwrap();
        }
        let post = format!("/v2/a/b/blobs/uploads/?digest={digest}");
        let answer = client.send("POST", &post, &[], large.clone()).await.expect_error(503, "UNAVAILABLE");
        assert!(answer.json()["errors"][0]["message"].as_str().unwrap().contains("full"), "{answer:?}");
        let blob = format!("/v2/a/b/blobs/{digest}");
        patiently(async || client.try_send("GET", &blob, &[], "").await).await.expect_error(404, "BLOB_UNKNOWN");
        let location = client.start_upload("a/b").await;
        // Or the connection breaks: see `patiently`.
        if let Ok(answer) = client.try_send("PATCH", &location, &[], large).await {
            answer.expect_error(503, "UNAVAILABLE");
        }
        patiently(async || client.try_send("DELETE", &location, &[], "").await).await.expect(204);
        drop(fs::remove_file(&filler));
        until(|| disk.used() < before + (2 << 20)).await;
    }
    client.expect_blob("a/b", &small, b"a small blob").await;
    let fits = noise(2, 2 * PART);
    let digest = client.push_blob("a/b", fits.clone()).await;
    client.expect_blob("a/b", &digest, &fits).await;
}

/// A disk that has room for the whole parts and not for the end: what the request began is freed all the same.
#[tokio::test]
async fn a_disk_that_is_full_at_the_very_end_is_given_back() {
    let disk = Disk::mount(24);
    let berth = Setup::default().over(&disk.path().join("data")).start();
    let client = berth.client();
    client.push_blob("a/b", "a small blob").await;
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 18 << 20]).unwrap();
    let before = disk.used();
    let blob = noise(5, PART + (3 << 20));
    let digest = sha256(&blob);
    let post = format!("/v2/a/b/blobs/uploads/?digest={digest}");
    client.send("POST", &post, &[], blob.clone()).await.expect_error(503, "UNAVAILABLE");
    until(|| disk.used() < before + (1 << 20)).await;
    fs::remove_file(&filler).unwrap();
    patiently(async || client.try_send("POST", &post, &[], blob.clone()).await).await.expect(201);
    client.expect_blob("a/b", &digest, &blob).await;
}

/// Does what `Retry-After` says: an index whose file could not grow is opened anew within a second or so. The
/// refusal of a large body may come before all of it was sent, and look like a broken connection.
async fn patiently(send: impl AsyncFn() -> Result<Answer, String>) -> Answer {
    for _ in 0..20 {
        match send().await {
            Ok(answer) if answer.status != 503 => return answer,
            _ => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
    send().await.unwrap()
}

#[tokio::test]
async fn a_disk_that_cant_be_written_is_said_and_pulls_go_on() {
    let disk = Disk::mount(32);
    let directory = disk.path().join("data");
    let mut berth = Setup::default().over(&directory).start();
    let client = berth.client();
    let manifest = client.push_image("a/b", "1", &[noise(3, 10_000)]).await;
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    // The kernel refuses to take writing away while a file is open for it, as the index is; a directory
    // that stands in the way of each write is refused likewise.
    let moved = directory.join("data.away");
    fs::rename(directory.join("data"), &moved).unwrap();
    fs::write(directory.join("data"), "in the way").unwrap();
    let post = format!("/v2/a/b/blobs/uploads/?digest={}", sha256(b"new"));
    let answer = client.send("POST", &post, &[], "new").await;
    assert!(matches!(answer.status, 500 | 503), "{answer:?}");
    client.get(&format!("/v2/a/b/blobs/{}", sha256(b"new"))).await.expect_error(404, "BLOB_UNKNOWN");
    client.get("/v2/a/b/manifests/1").await.expect(200);
    fs::remove_file(directory.join("data")).unwrap();
    fs::rename(&moved, directory.join("data")).unwrap();
    client.send("POST", &post, &[], "new").await.expect(201);
    client.expect_blob("a/b", layer, &noise(3, 10_000)).await;
    assert!(berth.terminate().success());
    disk.remount("ro");
    let (status, said) = Setup::default().over(&directory).refused();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    disk.remount("rw");
    berth.restart();
    berth.client().expect_blob("a/b", layer, &noise(3, 10_000)).await;
}

/// Sends the head of a request and some of its body, and hangs up.
fn hang_up(berth: &Berth, method: &str, path: &str, announced: usize, sent: &[u8]) {
    let mut socket = TcpStream::connect(berth.public()).unwrap();
    let host = berth.host();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {announced}\r\n\r\n");
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(sent).unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_nothing_half() {
    let berth = Berth::start();
    let client = berth.client();
    let mut broken = 0;
    for size in [100_000, 3 * PART] {
        let whole = noise(size as u64, size);
        let digest = sha256(&whole);
        let half = &whole[..size / 2];
        let blob = format!("/v2/a/b/blobs/{digest}");
        hang_up(&berth, "POST", &format!("/v2/a/b/blobs/uploads/?digest={digest}"), size, half);
        let put = client.start_upload("a/b").await;
        hang_up(&berth, "PUT", &closing(&put, &digest), size, half);
        let patched = client.start_upload("a/b").await;
        hang_up(&berth, "PATCH", &patched, size, half);
        client.get(&blob).await.expect_error(404, "BLOB_UNKNOWN");
        broken += 3;
        until(|| ended(&berth) >= broken).await;
        // The same upload again, from its beginning; and the other from where the server says it is.
        client.send("PUT", &closing(&put, &digest), &[], whole.clone()).await.expect(201);
        client.expect_blob("a/b", &digest, &whole).await;
        go_on(&client, &patched, &whole).await;
    }
}

/// How many requests of bodies that broke off the server is done with.
fn ended(berth: &Berth) -> usize {
    berth.log().matches("\"error\":\"SIZE_INVALID\"").count()
}

/// Ends an upload whose last request broke off somewhere.
async fn go_on(client: &Client, location: &str, whole: &Bytes) {
    loop {
        let status = client.get(location).await.expect(204);
        let last: usize = status.header("range").strip_prefix("0-").unwrap().parse().unwrap();
        let at = if last == 0 { 0 } else { last + 1 };
        let range = format!("{at}-{}", whole.len() - 1);
        let answer = client.send("PATCH", &status.location(), &[("content-range", &range)], whole.slice(at..)).await;
        if answer.status != 416 {
            let close = closing(&answer.expect(202).location(), &sha256(whole));
            client.send("PUT", &close, &[], "").await.expect(201);
            return;
        }
    }
}

#[tokio::test]
async fn a_body_that_lies_is_refused_and_leaves_nothing() {
    let berth = Berth::start();
    let client = berth.client();
    let digest = sha256(b"the truth");
    for size in [1000, PART + 1000] {
        let lie = noise(4, size);
        let close = closing(&client.start_upload("a/b").await, &digest);
        client.send("PUT", &close, &[], lie.clone()).await.expect_error(400, "DIGEST_INVALID");
        client.get(close.split('?').next().unwrap()).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        let post = format!("/v2/a/b/blobs/uploads/?digest={digest}");
        client.send("POST", &post, &[], lie.clone()).await.expect_error(400, "DIGEST_INVALID");
        // Shorter than its own range says.
        let location = client.start_upload("a/b").await;
        let range = [("content-range", format!("0-{size}"))];
        let range: Vec<(&str, &str)> = range.iter().map(|(name, value)| (*name, value.as_str())).collect();
        client.send("PATCH", &location, &range, lie.clone()).await.expect_error(400, "SIZE_INVALID");
        client.delete(&location).await.expect(204);
    }
    client.get(&format!("/v2/a/b/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN");
    until(|| data_of(berth.directory()).is_empty()).await;
}

/// The most memory that the server ever held, in bytes.
fn most_memory(berth: &Berth) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", berth.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_gibibyte_is_pushed_and_pulled_in_little_memory() {
    const PIECE: usize = 1 << 20;
    const PIECES: u64 = 1024;
    let berth = Setup::of(&[("BERTH_STORAGE__SYNC", "false")]).start();
    let client = berth.client();
    // A piece is the same noise with its number in front.
    let noise = noise(6, PIECE);
    let piece = move |number: u64| Bytes::from([&number.to_le_bytes()[..], &noise[8..]].concat());
    let mut hasher = Sha256::new();
    (0..PIECES).for_each(|number| hasher.update(piece(number)));
    let digest = format!("sha256:{}", hex(&hasher.finalize()));
    let location = client.start_upload("large/one").await;
    let pieces = (0..PIECES).map(piece);
    client.stream("PUT", &closing(&location, &digest), &[], pieces).await.expect(201);
    let url = format!("http://{}/v2/large/one/blobs/{digest}", berth.host());
    let mut body = reqwest::get(url).await.unwrap().bytes_stream();
    let mut hasher = Sha256::new();
    while let Some(chunk) = body.next().await {
        hasher.update(chunk.unwrap());
    }
    assert_eq!(digest, format!("sha256:{}", hex(&hasher.finalize())));
    let most = most_memory(&berth);
    println!("1 GiB in {} MiB", most >> 20);
    assert!(most < 128 << 20, "{most}");
}

/// CVE-2017-11468: a manifest that never ends is refused after what fits, and nothing of it is kept.
#[tokio::test]
async fn a_manifest_that_is_too_large_is_not_buffered() {
    let berth = Berth::start();
    let before = most_memory(&berth);
    let mut sending = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(berth.public()).unwrap();
        let head =
            format!("PUT /v2/a/b/manifests/1 HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n", berth.host());
        socket.write_all(head.as_bytes()).unwrap();
        sending.push(socket);
    }
    for socket in &mut sending {
        for _ in 0..5 {
            let chunk = [&b"100000\r\n"[..], &vec![b'{'; 1 << 20], b"\r\n"].concat();
            if socket.write_all(&chunk).is_err() {
                break;
            }
        }
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
    }
    let grown = most_memory(&berth) - before;
    assert!(grown < 32 << 20, "{grown} bytes for twenty manifests of 5 MiB, one after the other");
}
