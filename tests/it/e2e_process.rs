//! The life of the process: who may have a directory, and how a server ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    berth::{Berth, Setup, free_port, get},
    e2e_client::{Client, noise, sha256},
};

const STEP: Duration = Duration::from_millis(10);

/// A monolithic push of `bytes` of which the first half has been sent, to a handler that reads it: it has
/// asked for the body.
fn half_sent(berth: &Berth, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(berth.public()).unwrap();
    let head = format!(
        "POST /v2/slow/blobs/uploads/?digest={} HTTP/1.1\r\nhost: {}\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        sha256(bytes),
        berth.host(),
        bytes.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    let mut go_on = [0; 25];
    socket.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(&bytes[..bytes.len() / 2]).unwrap();
    socket
}

#[test]
fn a_second_process_on_one_directory_is_told_who_has_it() {
    let berth = Berth::start();
    let (status, said) = Setup::default().over(berth.directory()).refused();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let pid = berth.pid().as_raw_nonzero().to_string();
    assert!(said.contains(&pid) && said.contains(berth.directory().to_str().unwrap()), "{said}");
    assert!(get(berth.public(), "/v2/").unwrap().starts_with("HTTP/1.1 200"), "the first goes on");
}

#[test]
fn a_directory_is_free_again_after_kill_9() {
    let mut berth = Berth::start();
    berth.kill9();
    berth.restart();
    assert!(berth.terminate().success());
    berth.restart();
}

/// Lines of requests are written some together: the last are written as the process ends.
#[test]
fn an_end_leaves_no_line_unwritten() {
    let mut berth = Berth::start();
    for number in 0..50 {
        get(berth.public(), &format!("/v2/a/manifests/tag-{number}")).unwrap();
    }
    assert!(berth.terminate().success());
    let log = berth.log();
    for number in 0..50 {
        let path = format!("/v2/a/manifests/tag-{number}\"");
        assert_eq!(log.matches(&path).count(), 1, "{path}: {log}");
    }
}

#[test]
fn a_drain_ends_readiness_at_once_and_lets_a_running_upload_finish() {
    let mut berth = Berth::start();
    let bytes = noise(1, 1 << 20);
    let mut slow = half_sent(&berth, &bytes);
    berth.signal(Signal::TERM);
    while get(berth.admin(), "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        thread::sleep(STEP);
    }
    while TcpStream::connect(berth.public()).is_ok() {
        thread::sleep(STEP);
    }
    let ready = get(berth.admin(), "/readyz").expect("the admin listener still answers");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("draining"), "{ready}");
    assert!(berth.is_running(), "it waits for the upload");
    slow.write_all(&bytes[bytes.len() / 2..]).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert_eq!(berth.wait().code(), Some(0));
    berth.restart();
    let read = tokio::runtime::Runtime::new().unwrap();
    read.block_on(async { berth.client().expect_blob("slow", &sha256(&bytes), &bytes).await });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut berth = Berth::start();
    let _slow = half_sent(&berth, &noise(2, 1 << 20));
    berth.signal(Signal::TERM);
    while TcpStream::connect(berth.public()).is_ok() {
        thread::sleep(STEP);
    }
    assert!(berth.is_running());
    berth.signal(Signal::INT);
    assert_eq!(berth.wait().code(), Some(1));
    assert!(berth.log().contains("stopped at once, at the second signal"), "{}", berth.log());
}

#[test]
fn an_idle_server_ends_at_once_and_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut berth = Berth::start();
        let mut idle = TcpStream::connect(berth.public()).unwrap();
        berth.signal(signal);
        assert_eq!(berth.wait().code(), Some(0));
        assert_eq!(idle.read(&mut [0; 16]).unwrap_or(0), 0, "the idle connection was closed");
    }
}

#[test]
fn an_open_registry_is_not_put_on_a_network() {
    let (status, said) = Setup::of(&[("BERTH_SERVER__LISTEN", "0.0.0.0:0")]).refused();
    assert_eq!(status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("auth"), "{said}");
}

#[test]
fn what_cant_be_used_is_said_in_one_line() {
    let taken = Berth::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let url = format!("file:{}", file.path().display());
    let host = taken.host();
    for (variable, value, code, word) in [
        ("BERTH_SERVER__LISTEN", host.as_str(), 1, host.as_str()),
        ("BERTH_STORAGE__URL", url.as_str(), 1, file.path().to_str().unwrap()),
        ("BERTH_STORAGE__URLS", "x", 2, "BERTH_STORAGE__URLS"),
        ("BERTH_INDEX__URL", "redis://127.0.0.1:1/0", 1, "the index is not reachable"),
    ] {
        let (status, said) = Setup::of(&[(variable, value)]).refused();
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
        assert_eq!(status.code(), Some(code), "{variable}: {said:?}");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("berth: ") && said[0].contains(word), "{variable}: {said:?}");
    }
}

#[test]
fn port_is_listened_on() {
    let port = free_port().to_string();
    let berth = Setup::of(&[("BERTH_SERVER__LISTEN", ""), ("PORT", &port)]).start();
    assert_eq!(berth.host(), format!("127.0.0.1:{port}"), "nothing lets anybody in, so not on a network");
    drop(berth);
    let berth =
        Setup::of(&[("BERTH_SERVER__LISTEN", ""), ("PORT", &port), ("BERTH_AUTH__ANONYMOUS", "reader")]).start();
    assert_eq!(berth.host(), format!("0.0.0.0:{port}"));
    let answer = get(([127, 0, 0, 1], port.parse().unwrap()).into(), "/v2/").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_thousand_idle_connections_are_in_nobodys_way() {
    let berth = Berth::start();
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(tokio::net::TcpStream::connect(berth.public()).await.unwrap());
    }
    let client: Client = berth.client();
    let digest = client.push_blob("a/b", "bytes").await;
    client.expect_blob("a/b", &digest, b"bytes").await;
    assert_eq!(idle.len(), 1000);
}
