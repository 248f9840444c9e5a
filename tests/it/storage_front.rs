//! A front before an S3 server: it notes what passes, and makes the faults that a network and a store make.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpSocket, task::JoinHandle};

/// One request that passed.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Scheme and host, where the front was asked as a proxy.
    pub(crate) authority: Option<String>,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    /// The header as text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What happens to a request, or to its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The store refuses it, as S3 does when it has too much to do.
    SlowDown,
    /// The store doesn't allow it.
    Denied,
    /// The answer breaks off after so many bytes.
    CutAfter(usize),
    /// The answer stops after so many bytes, and the connection stays open.
    StallAfter(usize),
    /// The answer comes in pieces of 16 KiB, each after so long.
    Drip(Duration),
    /// The request is done, and its answer never comes.
    Lost,
    /// The request's body is taken in slowly: so long for each MiB.
    Slurp(Duration),
    /// The request's body is never taken in.
    Deaf,
    /// The answer says that it is this time.
    Dated(&'static str),
}

type Rule = Box<dyn FnMut(&Seen) -> Option<Fault> + Send>;
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

struct Shared {
    behind: String,
    seen: Mutex<Vec<Seen>>,
    rule: Mutex<Rule>,
}

/// A running front; it stops when this is dropped.
pub(crate) struct Front {
    /// `http://127.0.0.1:<port>`.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Starts a front before `behind`, the URL of a server that speaks plain HTTP.
pub(crate) async fn start(behind: &str) -> Front {
    // What is on its way is soon noticed to stand still.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(128).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let rule: Rule = Box::new(|_| None);
    let shared = Arc::new(Shared { behind: behind.to_owned(), seen: Mutex::default(), rule: Mutex::new(rule) });
    let serving = Arc::clone(&shared);
    let accepting = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let shared = Arc::clone(&serving);
            let answer = hyper::service::service_fn(move |request| pass(Arc::clone(&shared), request));
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that breaks is the client's to report.
            tokio::spawn(async move { drop(server.serve_connection(TokioIo::new(socket), answer).await) });
        }
    });
    Front { endpoint, shared, accepting }
}

impl Front {
    /// What has passed since this was last asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }

    /// From now on each request meets what `rule` says.
    pub(crate) fn strike(&self, rule: impl FnMut(&Seen) -> Option<Fault> + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// The next `times` requests with this method meet `fault`.
    pub(crate) fn strike_next(&self, method: Method, mut times: usize, fault: Fault) {
        self.strike(move |seen| {
            let strikes = seen.method == method && times > 0;
            times -= usize::from(strikes);
            strikes.then_some(fault)
        });
    }
}

async fn pass(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let seen = Seen {
        method: parts.method.clone(),
        authority: parts.uri.authority().map(ToString::to_string),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.clone(),
    };
    shared.seen.lock().unwrap().push(seen.clone());
    let fault = (shared.rule.lock().unwrap())(&seen);
    match fault {
        Some(Fault::SlowDown) => return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Fault::Denied) => return Ok(refusal(StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::Deaf) => std::future::pending().await,
        _ => {}
    }
    let body = gather(body, fault).await;
    let mut url = format!("{}{}", shared.behind, seen.path);
    if !seen.query.is_empty() {
        url = format!("{url}?{}", seen.query);
    }
    let asked = reqwest::Client::new().request(parts.method, url).headers(parts.headers).body(body);
    let Ok(answer) = asked.send().await else {
        return Ok(refusal(StatusCode::BAD_GATEWAY, "Nobody"));
    };
    if matches!(fault, Some(Fault::Lost)) {
        std::future::pending().await
    }
    let mut response = Response::builder().status(answer.status());
    *response.headers_mut().unwrap() = answer.headers().clone();
    if let Some(Fault::Dated(date)) = fault {
        response.headers_mut().unwrap().insert("date", date.parse().unwrap());
    }
    let bytes = answer.bytes_stream().map_err(std::io::Error::other);
    Ok(response.body(with_fault(bytes, fault)).unwrap())
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>by the front</Message></Error>");
    let body = http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/xml").body(body).unwrap()
}

async fn gather(mut body: Incoming, fault: Option<Fault>) -> Vec<u8> {
    let (mut whole, began) = (Vec::new(), tokio::time::Instant::now());
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(chunk) = frame.into_data() {
            whole.extend_from_slice(&chunk);
        }
        if let Some(Fault::Slurp(pause)) = fault {
            let due = pause * (whole.len() >> 20) as u32;
            tokio::time::sleep_until(began + due).await;
        }
    }
    whole
}

fn with_fault(bytes: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static, fault: Option<Fault>) -> Body {
    let frames = match fault {
        Some(Fault::CutAfter(length)) => {
            let broken = futures_util::stream::iter([Err(std::io::Error::other("cut"))]);
            first(bytes, length).chain(broken).boxed()
        }
        Some(Fault::StallAfter(length)) => first(bytes, length).chain(futures_util::stream::pending()).boxed(),
        Some(Fault::Drip(pause)) => {
            let pieces = bytes.map_ok(|chunk| {
                let pieces: Vec<_> = chunk.chunks(16 << 10).map(|piece| Ok(chunk.slice_ref(piece))).collect();
                futures_util::stream::iter(pieces)
            });
            pieces.try_flatten().then(move |piece| async move { (tokio::time::sleep(pause).await, piece).1 }).boxed()
        }
        _ => bytes.boxed(),
    };
    StreamBody::new(frames.map_ok(Frame::data)).boxed_unsync()
}

/// The first `length` bytes.
fn first(
    bytes: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    length: usize,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let mut left = length;
    let cut = bytes.map_ok(move |mut chunk| {
        let part = chunk.split_to(left.min(chunk.len()));
        left -= part.len();
        part
    });
    cut.take_while(|part| std::future::ready(!part.as_ref().is_ok_and(Bytes::is_empty)))
}
