//! Proxies before a store and before Redis that count what goes by, on a thread of their own: the one that measures
//! has a core to itself.
//!
//! They pass on what they get as it is, and know no more of S3 and RESP than it takes to count.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1 as client, server::conn::http1 as server};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

/// A thread that serves something beside what is measured, until this is dropped.
#[derive(Debug)]
pub(crate) struct Aside(Option<Runtime>);

impl Aside {
    /// Serves each connection to a new address on loopback, which is returned.
    pub(crate) async fn serve<F>(connection: impl Fn(TcpStream) -> F + Send + 'static) -> Result<(Self, SocketAddr)>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            // Only a runtime that ends refuses to take over a listener.
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(connection(socket));
            }
        });
        Ok((Self(Some(runtime)), address))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Nobody waits for what is left, and here, in an async task, nobody may.
            runtime.shutdown_background();
        }
    }
}

/// What went by since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requests to the store, but for those below.
    pub(crate) requests: u64,
    /// Requests to the store that come by the clock or remove what is garbage: no client waits for them.
    pub(crate) background: u64,
    /// Calls to Redis, but for those that nobody waits for.
    pub(crate) calls: u64,
    /// How many calls followed one another, each sent after an answer to the one before. It means something where
    /// one client does one thing after the other.
    pub(crate) round_trips: u64,
}

/// A proxy before a store.
#[derive(Debug)]
pub(crate) struct StoreProxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Counts>>,
    _aside: Aside,
}

impl StoreProxy {
    pub(crate) async fn start(store: SocketAddr) -> Result<Self> {
        let seen = Arc::<Mutex<Counts>>::default();
        let shared = Arc::clone(&seen);
        // A connection that breaks is reported by the registry that it breaks for.
        let pass = move |socket| {
            let passed = pass_http(socket, store, Arc::clone(&shared));
            async { drop(passed.await) }
        };
        let (aside, address) = Aside::serve(pass).await?;
        Ok(Self { address, seen, _aside: aside })
    }

    /// What went by since the last call.
    pub(crate) fn take(&self) -> Counts {
        std::mem::take(&mut *locked(&self.seen))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on what comes over one connection, over one connection of its own.
async fn pass_http(socket: TcpStream, store: SocketAddr, seen: Arc<Mutex<Counts>>) -> Result<()> {
    let onward = TcpStream::connect(store).await?;
    onward.set_nodelay(true)?;
    socket.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(onward)).await?;
    tokio::spawn(connection);
    let sender = Arc::new(tokio::sync::Mutex::new(sender));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        count_request(&mut locked(&seen), request.method(), request.uri().query().unwrap_or_default());
        let sender = Arc::clone(&sender);
        async move {
            let mut sender = sender.lock().await;
            sender.ready().await?;
            let answer: Result<Response<Incoming>, hyper::Error> = sender.send_request(request).await;
            answer
        }
    });
    server::Builder::new().serve_connection(TokioIo::new(socket), service).await?;
    Ok(())
}

/// Which index may be believed is asked by the clock, and the collection deletes.
fn count_request(counts: &mut Counts, method: &Method, query: &str) {
    if method == Method::DELETE || (query.contains("list-type=2") && query.contains("epochs%2F")) {
        counts.background += 1;
    } else {
        counts.requests += 1;
    }
}

/// A proxy before a Redis.
#[derive(Debug)]
pub(crate) struct RedisProxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Depths>>,
    _aside: Aside,
}

/// What went by on all connections. A call's *depth* is one more than that of the deepest call that had been answered
/// when it was sent.
#[derive(Debug, Default)]
struct Depths {
    /// How often it was asked for what went by: an answer to a call from before that says nothing about depths since.
    taken: u64,
    calls: u64,
    ended: u64,
    deepest: u64,
}

impl RedisProxy {
    pub(crate) async fn start(redis: SocketAddr) -> Result<Self> {
        let seen = Arc::<Mutex<Depths>>::default();
        let shared = Arc::clone(&seen);
        // A connection that breaks is reported by the registry that it breaks for.
        let pass = move |socket| {
            let passed = pass_resp(socket, redis, Arc::clone(&shared));
            async { drop(passed.await) }
        };
        let (aside, address) = Aside::serve(pass).await?;
        Ok(Self { address, seen, _aside: aside })
    }

    /// What went by since the last call.
    pub(crate) fn take(&self) -> Counts {
        let mut depths = locked(&self.seen);
        let next = Depths { taken: depths.taken + 1, ..Depths::default() };
        let seen = std::mem::replace(&mut *depths, next);
        Counts { calls: seen.calls, round_trips: seen.deepest, ..Counts::default() }
    }
}

/// What is told at any time and waited for by nobody's request.
const ASIDE: [&str; 4] = ["PUBLISH", "INFO", "HELLO", "SCRIPT"];

/// What is known of one connection.
#[derive(Debug, Default)]
struct Link {
    /// For each call that has no answer yet, its depth, and [`Depths::taken`] then; nothing for what nobody waits for.
    open: VecDeque<Option<(u64, u64)>>,
    /// The depth of the transaction that is being sent: until EXEC there are only receipts.
    transaction: Option<u64>,
}

impl Link {
    fn call(&mut self, seen: &mut Depths, call: &[u8]) {
        let command = command_of(call);
        if command == "SUBSCRIBE" {
            // Its answer begins with `>`, as what comes unasked.
            return;
        }
        let depth = self.transaction.unwrap_or(seen.ended + 1);
        let counted = match command.as_str() {
            command if ASIDE.contains(&command) => None,
            "MULTI" => {
                self.transaction = Some(depth);
                None
            }
            "EXEC" => self.transaction.take(),
            _ if self.transaction.is_some() => None,
            _ => Some(depth),
        };
        if let Some(depth) = counted {
            seen.calls += 1;
            seen.deepest = seen.deepest.max(depth);
        }
        self.open.push_back(counted.map(|depth| (depth, seen.taken)));
    }

    /// An answer came. What the server tells unasked begins with `>` and answers nothing.
    fn answer(&mut self, seen: &mut Depths, answer: &[u8]) {
        if answer.first() != Some(&b'>') {
            let ended = self.open.pop_front().flatten().filter(|(_, taken)| *taken == seen.taken);
            seen.ended = seen.ended.max(ended.map_or(0, |(depth, _)| depth));
        }
    }
}

/// Passes on both directions of one connection until it ends.
async fn pass_resp(mut registry: TcpStream, redis: SocketAddr, seen: Arc<Mutex<Depths>>) -> Result<()> {
    let mut redis = TcpStream::connect(redis).await?;
    registry.set_nodelay(true)?;
    redis.set_nodelay(true)?;
    let mut link = Link::default();
    let (mut calls, mut answers) = (Vec::new(), Vec::new());
    let (mut from_registry, mut from_redis) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = registry.read(&mut from_registry) => {
                let bytes = &from_registry[..read?];
                calls.extend_from_slice(bytes);
                for_each_value(&mut calls, |call| link.call(&mut locked(&seen), call))?;
                redis.write_all(bytes).await?;
                if bytes.is_empty() { return Ok(()) }
            }
            read = redis.read(&mut from_redis) => {
                let bytes = &from_redis[..read?];
                answers.extend_from_slice(bytes);
                for_each_value(&mut answers, |answer| link.answer(&mut locked(&seen), answer))?;
                registry.write_all(bytes).await?;
                if bytes.is_empty() { return Ok(()) }
            }
        }
    }
}

/// Takes the whole values off the front, one by one.
fn for_each_value(bytes: &mut Vec<u8>, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut begin = 0;
    while let Some(length) = value_length(&bytes[begin..])? {
        each(&bytes[begin..begin + length]);
        begin += length;
    }
    bytes.drain(..begin);
    Ok(())
}

/// How long the value at the front is, once all of it is there.
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/>
fn value_length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end_of_line) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let mut end = end_of_line + 2;
    let number = || -> Result<i64> { Ok(std::str::from_utf8(&bytes[1..end_of_line])?.parse()?) };
    let children = match bytes[0] {
        // A length of -1 stands for nothing.
        b'$' | b'=' | b'!' => {
            let whole = usize::try_from(number()?).map_or(end, |length| end + length + 2);
            return Ok((bytes.len() >= whole).then_some(whole));
        }
        b'*' | b'~' | b'>' => number()?.max(0),
        b'%' => number()? * 2,
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => 0,
        other => return Err(anyhow::anyhow!("{other:#x} begins no value")).context("RESP"),
    };
    for _ in 0..children {
        let Some(length) = value_length(&bytes[end..])? else { return Ok(None) };
        end += length;
    }
    Ok(Some(end))
}

/// A call's command, in capitals.
fn command_of(call: &[u8]) -> String {
    let words = call.split(|&byte| byte == b'\n');
    let command = words.skip(2).map(|word| String::from_utf8_lossy(word).trim_end().to_uppercase()).next();
    command.unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const GET: &[u8] = b"*2\r\n$4\r\nhget\r\n$1\r\na\r\n";

    #[test]
    fn values_are_told_apart_wherever_they_are_cut() {
        let bytes = [GET, b"$-1\r\n", b"%1\r\n+a\r\n:1\r\n", b"*0\r\n"].concat();
        for cut in 0..bytes.len() {
            let mut waiting = bytes[..cut].to_vec();
            let mut seen = Vec::new();
            for_each_value(&mut waiting, |value| seen.push(value.to_vec())).unwrap();
            waiting.extend_from_slice(&bytes[cut..]);
            for_each_value(&mut waiting, |value| seen.push(value.to_vec())).unwrap();
            assert!(waiting.is_empty() && seen.len() == 4 && seen.concat() == bytes);
        }
        assert_eq!(command_of(GET), "HGET");
        assert!(value_length(b"GET a\r\n").is_err());
    }

    #[test]
    fn calls_at_once_are_one_round_trip() {
        let (mut link, mut seen) = (Link::default(), Depths::default());
        link.call(&mut seen, GET);
        link.call(&mut seen, GET);
        link.answer(&mut seen, b"$-1\r\n");
        link.answer(&mut seen, b"$-1\r\n");
        assert_eq!((seen.calls, seen.deepest), (2, 1));
        for command in ["MULTI", "HGET", "EXEC", "INFO"] {
            link.call(&mut seen, format!("*1\r\n${}\r\n{command}\r\n", command.len()).as_bytes());
        }
        link.answer(&mut seen, b">0\r\n");
        (0..4).for_each(|_| link.answer(&mut seen, b"+OK\r\n"));
        assert_eq!((seen.calls, seen.deepest, seen.ended), (3, 2, 2));
    }

    #[test]
    fn an_answer_to_a_call_of_before_makes_nothing_deeper() {
        let (mut link, mut seen) = (Link::default(), Depths { ended: 40, ..Depths::default() });
        link.call(&mut seen, GET);
        let mut seen = Depths { taken: 1, ..Depths::default() };
        link.answer(&mut seen, b"$-1\r\n");
        link.call(&mut seen, GET);
        assert_eq!((seen.calls, seen.deepest), (1, 1));
    }

    #[test]
    fn a_subscription_is_answered_by_nothing_that_is_counted() {
        let (mut link, mut seen) = (Link::default(), Depths::default());
        link.call(&mut seen, b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n");
        link.answer(&mut seen, b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
        for depth in 1..=4 {
            link.call(&mut seen, GET);
            link.answer(&mut seen, b"$-1\r\n");
            assert_eq!(seen.deepest, depth);
        }
    }

    #[test]
    fn what_comes_by_the_clock_is_counted_apart() {
        let mut counts = Counts::default();
        count_request(&mut counts, &Method::GET, "list-type=2&prefix=registry%2Fepochs%2F");
        count_request(&mut counts, &Method::GET, "list-type=2&prefix=registry%2Frepos%2F");
        count_request(&mut counts, &Method::DELETE, "");
        assert_eq!((counts.requests, counts.background), (1, 2));
    }
}
