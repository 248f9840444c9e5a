//! A store whose weather changes: a proxy before the real one that refuses, stalls, cuts bodies, loses answers,
//! and executes requests long after their clients gave up.
//!
//! It passes on what it gets as it is, the `Host` that was signed included.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{
    Request, Response, StatusCode,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1 as client, server::conn::http1 as server};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::dice::Dice;

/// What may happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// It is answered 503 and not done.
    Refused,
    /// It is done some seconds later, unless its client has gone by then.
    Stalled,
    /// It is done, and its answer breaks off in the middle of the body.
    Cut,
    /// It is done, and its answer is lost.
    Lost,
    /// It is done long after it came, whether its client still waits or not.
    Late,
    /// Its connection breaks at once, and it is done long after, when its client has sent it again.
    Adrift,
}

/// How many requests of a hundred meet what; the rest pass. For how long requests wait that are to wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) chances: Vec<(Turn, u64)>,
    /// In milliseconds.
    pub(crate) wait: std::ops::Range<u64>,
}

/// How often each kind of fault struck. Clones share one tally.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<String, u64>>>);

impl Tally {
    pub(crate) fn add(&self, what: &str) {
        *self.0.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap().clone()
    }
}

/// What each connection shares.
#[derive(Debug)]
struct Shared {
    /// Host and port.
    store: String,
    weather: Mutex<(Weather, Dice)>,
    tally: Tally,
    /// Requests that are still to be done late.
    waiting: Mutex<usize>,
}

/// A running proxy; it stops taking connections when this is dropped.
#[derive(Debug)]
pub(crate) struct StormyStore {
    /// `http://127.0.0.1:<port>` and the store's path, to be given out as the store's.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl StormyStore {
    /// One before the store at `endpoint` (`http://HOST:PORT`, perhaps with a path), in fair weather.
    pub(crate) async fn start(endpoint: &str, dice: Dice, tally: Tally) -> Self {
        let store = endpoint.strip_prefix("http://").unwrap();
        let (store, path) = store.split_at(store.find('/').unwrap_or(store.len()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}{path}", listener.local_addr().unwrap());
        let weather = Mutex::new((Weather::default(), dice));
        let shared = Arc::new(Shared { store: store.to_owned(), weather, tally, waiting: Mutex::new(0) });
        let each = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = Arc::clone(&each);
                let answer = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
                // A connection that breaks is reported by the client that it breaks for.
                tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(socket), answer));
            }
        });
        Self { endpoint, shared, accepting }
    }

    pub(crate) fn turn(&self, weather: Weather) {
        self.shared.weather.lock().unwrap().0 = weather;
    }

    /// Waits until everything that was to be done late is done.
    pub(crate) async fn calm(&self) {
        while *self.shared.waiting.lock().unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for StormyStore {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    /// What happens to the next request, and how long it waits for it.
    fn draw(&self) -> (Option<Turn>, Duration) {
        let (weather, dice) = &mut *self.weather.lock().unwrap();
        let mut drawn = dice.range(0..100);
        for (turn, chance) in &weather.chances {
            if drawn < *chance {
                return (Some(*turn), dice.span(weather.wait.clone()));
            }
            drawn -= chance;
        }
        (None, Duration::ZERO)
    }

    /// Passes a request on, by a connection of its own.
    async fn pass(&self, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
        let store = TcpStream::connect(&self.store).await?;
        store.set_nodelay(true)?;
        let (mut sender, connection) = client::handshake(TokioIo::new(store)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        Ok(Response::from_parts(head, body.collect().await.map_err(io::Error::other)?.to_bytes()))
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head, Full::new(body.collect().await.map_err(io::Error::other)?.to_bytes()));
    let (turn, wait) = shared.draw();
    if let Some(turn) = turn {
        shared.tally.add(&format!("store: {turn:?} {}", request.method()).to_lowercase());
    }
    match turn {
        None => Ok(shared.pass(request).await?.map(Body::from)),
        Some(Turn::Refused) => Ok(too_busy()),
        Some(Turn::Stalled) => {
            tokio::time::sleep(wait).await;
            Ok(shared.pass(request).await?.map(Body::from))
        }
        Some(Turn::Cut) => cut(shared.pass(request).await?),
        Some(Turn::Lost) => {
            shared.pass(request).await?;
            Err(io::Error::other("the answer is lost"))
        }
        Some(Turn::Late) => Ok(late(shared, request, wait).await.map_err(io::Error::other)??.map(Body::from)),
        Some(Turn::Adrift) => {
            drop(late(shared, request, wait));
            Err(io::Error::other("the connection is gone"))
        }
    }
}

/// Does a request later, in a task that goes on whoever gives it up.
fn late(shared: Arc<Shared>, request: Request<Full<Bytes>>, wait: Duration) -> JoinHandle<io::Result<Response<Bytes>>> {
    *shared.waiting.lock().unwrap() += 1;
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        let answer = shared.pass(request).await;
        *shared.waiting.lock().unwrap() -= 1;
        if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::FORBIDDEN) {
            shared.tally.add("store: late and refused for it");
        }
        answer
    })
}

/// As S3 says it: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>. Of the others the status is
/// all that counts.
fn too_busy() -> Response<Body> {
    let body = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(Body::from(body)).unwrap()
}

/// The same answer, whose body breaks off. One without a body is lost: its head says nothing but the truth.
fn cut(answer: Response<Bytes>) -> io::Result<Response<Body>> {
    let (mut head, body) = answer.into_parts();
    if body.is_empty() {
        return Err(io::Error::other("cut"));
    }
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    let half = body.slice(..body.len() / 2);
    Ok(Response::from_parts(head, Body::from_stream(stream::iter([Ok(half), Err(io::Error::other("cut"))]))))
}
