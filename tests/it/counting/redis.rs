//! A proxy between a registry and its Redis that counts the round trips that follow one another.
//!
//! Two calls that are under way at the same time cost the time of one, so a call's *depth* is one more than
//! that of the deepest call that had been answered when it was sent. It knows RESP as far as to see where one
//! call, or one answer, ends: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::redis_server::RedisServer;

/// What is told at any time and waited for by nobody's request.
const ASIDE: [&str; 4] = ["PUBLISH", "INFO", "HELLO", "SCRIPT"];

/// What went by on all connections.
#[derive(Debug, Default)]
struct Seen {
    commands: Vec<String>,
    ended: usize,
    deepest: usize,
}

/// A running proxy; it stops taking connections when this is dropped.
#[derive(Debug)]
pub(crate) struct RedisProxy {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    accepting: JoinHandle<()>,
}

impl RedisProxy {
    /// One before this server.
    pub(crate) async fn start(server: &RedisServer) -> Self {
        let address = ("127.0.0.1", server.port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = Arc::clone(&seen);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(address).await.unwrap();
                tokio::spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { port, seen, accepting }
    }

    /// To be given out as the server's.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// How many round trips followed one another since the last call, and the commands that went by.
    pub(crate) fn take(&self) -> (usize, Vec<String>) {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        (seen.deepest, seen.commands)
    }
}

impl Drop for RedisProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What is known of one connection.
#[derive(Default)]
struct Link {
    /// For each call that has no answer yet, its depth; nothing for what is no round trip of its own.
    open: VecDeque<Option<usize>>,
    /// The depth of the transaction that is being sent.
    transaction: Option<usize>,
}

impl Link {
    /// A call goes to the server.
    fn call(&mut self, seen: &mut Seen, call: &[u8]) {
        let command = name_of(call);
        if command == "SUBSCRIBE" {
            // Its answer begins with `>`, as what comes unasked.
            return;
        }
        let depth = self.transaction.unwrap_or(seen.ended + 1);
        let answers = match command.as_str() {
            _ if is_aside(&command, call) => None,
            // Until EXEC there are only receipts, which nobody waits for.
            "MULTI" => {
                self.transaction = Some(depth);
                None
            }
            "EXEC" => self.transaction.take(),
            _ if self.transaction.is_some() => None,
            _ => Some(depth),
        };
        seen.deepest = seen.deepest.max(answers.unwrap_or_default());
        seen.commands.push(command);
        self.open.push_back(answers);
    }

    /// An answer comes back.
    fn answer(&mut self, seen: &mut Seen) {
        let depth = self.open.pop_front().expect("an answer to a call");
        seen.ended = seen.ended.max(depth.unwrap_or_default());
    }
}

/// Whether nobody's request waits for a call: those above, and a hint that is left for the next push.
fn is_aside(command: &str, call: &[u8]) -> bool {
    let leaves_hint = || command == "EVALSHA" && call.windows(6).any(|window| window == b"hints:");
    ASIDE.contains(&command) || leaves_hint()
}

/// Passes on both directions of one connection until it ends.
async fn pass(mut client: TcpStream, mut server: TcpStream, seen: Arc<Mutex<Seen>>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let mut link = Link::default();
    let (mut calls, mut answers) = (Vec::new(), Vec::new());
    let (mut from_client, mut from_server) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                calls.extend_from_slice(&from_client[..length]);
                while let Some(value) = next_value(&mut calls) {
                    link.call(&mut seen.lock().unwrap(), &value);
                }
                if server.write_all(&from_client[..length]).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                answers.extend_from_slice(&from_server[..length]);
                while let Some(value) = next_value(&mut answers) {
                    // What the server tells unasked answers nothing.
                    if value[0] != b'>' {
                        link.answer(&mut seen.lock().unwrap());
                    }
                }
                if client.write_all(&from_server[..length]).await.is_err() { return }
            }
        }
    }
}

/// Takes the first whole value off the front, if there is one.
fn next_value(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = value_length(bytes)?;
    let rest = bytes.split_off(length);
    Some(std::mem::replace(bytes, rest))
}

/// How long the value at the front is, once all of it is there.
fn value_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let count = || std::str::from_utf8(&bytes[1..line - 2]).unwrap().parse::<i64>().unwrap();
    let children = match bytes[0] {
        // A length of -1 stands for nothing.
        b'$' | b'=' | b'!' => {
            let end = usize::try_from(count()).map_or(line, |length| line + length + 2);
            return (bytes.len() >= end).then_some(end);
        }
        b'*' | b'~' | b'>' => count().max(0),
        b'%' => count() * 2,
        _ => return Some(line),
    };
    let mut end = line;
    for _ in 0..children {
        end += value_length(&bytes[end..])?;
    }
    Some(end)
}

/// A call's command, in capitals.
fn name_of(call: &[u8]) -> String {
    let text = String::from_utf8_lossy(call);
    text.split("\r\n").nth(2).unwrap_or_default().to_uppercase()
}
