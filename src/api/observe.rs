//! The edge of every request: its id, its admission, what it moved, and its one line in the log.
//!
//! [`Observer::around`] goes around everything else. It must not know what any route means: a handler tells
//! it what it saw by putting a [`Seen`] into its response's extensions.

use std::{
    any::Any,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::origin::{ClientAddress, Origin, Proxies};
use crate::telemetry::{Metrics, logs::ACCESS};

/// The header by which a request's id comes and goes.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The header by which Docker recognises a registry of the second version.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The status in log and metrics of a request whose client left before there was an answer. It is nginx's,
/// and never sent.
const CLIENT_LEFT: u16 = 499;

/// How much of a path and of a user agent goes into the log, in bytes: names are at most 255 bytes and a
/// digest at most 135, so every honest path fits.
const PATH_LIMIT: usize = 1024;
const USER_AGENT_LIMIT: usize = 256;

/// The parameters whose values may be logged. Any other may be a secret: an upload's state, a token, a code.
const PLAIN_PARAMETERS: [&str; 10] =
    ["n", "last", "digest", "mount", "from", "tag", "artifactType", "ns", "service", "scope"];

/// Paths that are always admitted: an orchestrator that can't ask would restart what is merely busy.
const HEALTH_PATHS: [&str; 4] = ["/livez", "/readyz", "/startupz", "/metrics"];

/// The address at the other end of the connection, in a request's extensions: a proxy's, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A request's id, in its extensions: 1 to 128 of `[A-Za-z0-9._-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's or its proxy's, if it is one that no log or terminal can stumble over; else a new one.
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(REQUEST_ID) {
            Some(given) if is_sane(given.as_bytes()) => Self(given.clone()),
            _ => Self::new(),
        }
    }

    fn new() -> Self {
        let mut text = [0; ulid::ULID_LEN];
        let text = ulid::Ulid::r#gen().array_to_str(&mut text);
        // A ulid is made of digits and capital letters, so that this never takes the other branch.
        Self(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

fn is_sane(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(plain)
}

/// What a handler understood of a request, in its response's extensions.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The route's name: one of a closed set, as it becomes a metric's label.
    pub route: &'static str,
    /// The repository, where the route has one.
    pub repository: Option<String>,
    /// The tag or digest, where the route has one.
    pub reference: Option<String>,
    /// Who asked, as the access rules call it.
    pub identity: Option<String>,
    /// Why it was refused or failed.
    pub error: Option<ErrorSeen>,
    /// Where the bytes of a blob come from, where it is asked for them.
    pub blob: Option<BlobBytes>,
}

/// Where a client gets the bytes of a blob from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobBytes {
    /// They are this response's body.
    Streamed,
    /// It was sent elsewhere for this many.
    Redirected(u64),
}

/// What went wrong with a request.
#[derive(Clone, Debug)]
pub struct ErrorSeen {
    /// The code that the client was told.
    pub code: &'static str,
    /// What it was not told: the cause, for the log alone.
    pub cause: Option<String>,
}

impl BlobBytes {
    /// How many come from elsewhere, if they do.
    fn elsewhere(self) -> Option<u64> {
        match self {
            Self::Streamed => None,
            Self::Redirected(bytes) => Some(bytes),
        }
    }
}

impl Seen {
    /// A route, and nothing else known.
    pub fn route(route: &'static str) -> Self {
        Self { route, repository: None, reference: None, identity: None, error: None, blob: None }
    }

    fn failed(code: &'static str, cause: Option<String>) -> Self {
        Self { error: Some(ErrorSeen { code, cause }), ..Self::default() }
    }
}

impl Default for Seen {
    /// What is known of a request that no handler answered.
    fn default() -> Self {
        Self::route("other")
    }
}

/// Watches every request of a router.
#[derive(Debug)]
pub struct Observer {
    metrics: Arc<Metrics>,
    limit: usize,
    proxies: Proxies,
    in_flight: AtomicUsize,
}

impl Observer {
    /// An observer that admits `limit` requests at a time (from a request's head to its response's end) and
    /// answers the others with 503; health is always admitted. Each learns from `proxies` who its client is.
    pub fn new(metrics: Arc<Metrics>, limit: usize, proxies: Proxies) -> Arc<Self> {
        Self { metrics, limit, proxies, in_flight: AtomicUsize::new(0) }.into()
    }

    /// Goes around `router`, as the outermost layer. Several routers may share an observer and its limit.
    pub fn around(self: &Arc<Self>, router: Router) -> Router {
        router.layer(middleware::from_fn_with_state(self.clone(), observe))
    }
}

/// What happens around every request.
async fn observe(State(observer): State<Arc<Observer>>, request: Request, next: Next) -> Response {
    let mut request = observer.proxies.see(request);
    let origin: Option<Origin> = request.extensions().get().cloned();
    let id = RequestId::of(request.headers());
    let is_api = is_api(request.uri().path());
    let health = HEALTH_PATHS.contains(&request.uri().path());
    let mut record = Record::begin(observer, &request, &id);
    let request = {
        request.extensions_mut().insert(id.clone());
        record.count_in(request)
    };

    let mut response = if record.place > record.observer.limit && !health {
        record.observer.metrics.requests_refused.inc();
        overloaded()
    } else {
        match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => panicked(&record, &id, panic.as_ref()),
        }
    };
    record.answered(&mut response);
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        origin.complete_location(headers);
    }
    headers.insert(REQUEST_ID, id.0);
    if is_api {
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    }
    response.map(|body| Body::new(CountedOut { body, record }))
}

fn is_api(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The answer to a request too many. It is 503 and not 429: the client did nothing wrong, and its own rate
/// is not what has to fall.
fn overloaded() -> Response {
    let mut response =
        failure(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "too many requests are in flight; try again", None);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// The answer to a request that met a bug: its id for whoever reports it, and no cause.
fn panicked(record: &Record, id: &RequestId, panic: &(dyn Any + Send)) -> Response {
    record.observer.metrics.requests_panicked.inc();
    let cause = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let cause = cause.or_else(|| panic.downcast_ref::<String>().cloned());
    let cause = cause.unwrap_or_else(|| "of an unknown kind".to_owned());
    tracing::error!(request_id = id.as_str(), cause, "a handler panicked");
    let message = format!("internal error; request id {}", id.as_str());
    failure(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", &message, Some(format!("panic: {cause}")))
}

/// An error as the distribution spec shapes it. `code` and `message` need no escaping.
fn failure(status: StatusCode, code: &'static str, message: &str, cause: Option<String>) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}"#);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.extensions_mut().insert(Seen::failed(code, cause));
    response
}

/// A request as it goes on; dropping it ends it, however it ended.
struct Record {
    observer: Arc<Observer>,
    /// How many requests were in flight as this one came, itself included.
    place: usize,
    started: Instant,
    method: &'static str,
    /// Bytes of the request's body that were read; `None` for one without a body.
    bytes_in: Option<Arc<AtomicU64>>,
    bytes_out: u64,
    status: u16,
    first_byte: Option<Duration>,
    /// How many bytes the response's body has, where that is known beforehand.
    expected: Option<u64>,
    ending: Ending,
    seen: Seen,
    /// `None` where the access log is off.
    line: Option<Line>,
}

/// How a response ended.
enum Ending {
    /// Somebody dropped it: the client left, or was cut off.
    BrokenOff,
    /// It went out whole.
    Complete,
    /// Its own bytes failed us halfway.
    Failed(String),
}

/// What the log needs of a request, in shared buffers: nothing is copied before there is something to log.
struct Line {
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    peer: Option<SocketAddr>,
    client: Option<ClientAddress>,
    id: RequestId,
}

impl Record {
    fn begin(observer: Arc<Observer>, request: &Request, id: &RequestId) -> Self {
        let line = tracing::enabled!(target: ACCESS, tracing::Level::INFO).then(|| Line {
            method: request.method().clone(),
            uri: request.uri().clone(),
            user_agent: request.headers().get(USER_AGENT).cloned(),
            peer: request.extensions().get::<Peer>().map(|peer| peer.0),
            client: request.extensions().get().copied(),
            id: id.clone(),
        });
        observer.metrics.active_requests.inc();
        Self {
            place: observer.in_flight.fetch_add(1, Relaxed) + 1,
            observer,
            started: Instant::now(),
            method: method_label(request.method()),
            bytes_in: None,
            bytes_out: 0,
            status: CLIENT_LEFT,
            first_byte: None,
            expected: None,
            ending: Ending::BrokenOff,
            seen: Seen::default(),
            line,
        }
    }

    /// Counts what is read of the request's body, if it has one.
    fn count_in(&mut self, request: Request) -> Request {
        if request.body().is_end_stream() {
            return request;
        }
        let counter = Arc::new(AtomicU64::new(0));
        self.bytes_in = Some(counter.clone());
        request.map(|body| Body::new(CountedIn { body, counter }))
    }

    fn answered(&mut self, response: &mut Response) {
        self.first_byte = Some(self.started.elapsed());
        self.status = response.status().as_u16();
        self.seen = response.extensions_mut().remove().unwrap_or_default();
        self.expected = expected_bytes(self.method, response);
    }

    /// Whether the response went out whole. The server drops a body without asking for its end once it has
    /// sent as many bytes as were announced.
    fn is_complete(&self) -> bool {
        matches!(self.ending, Ending::Complete) || self.expected == Some(self.bytes_out)
    }

    fn log(&self, line: &Line, bytes_in: u64, took: Duration) {
        let agent = line.user_agent.as_ref().map(|agent| String::from_utf8_lossy(agent.as_bytes()));
        let (ending, failure) = match &self.ending {
            _ if self.is_complete() => ("complete", None),
            Ending::Failed(cause) => ("failed", Some(cause.as_str())),
            _ => ("broken_off", None),
        };
        let error = self.seen.error.as_ref();
        tracing::info!(
            target: ACCESS,
            method = line.method.as_str(),
            path = loggable_path(&line.uri),
            route = self.seen.route,
            status = self.status,
            duration_ms = milliseconds(took),
            first_byte_ms = self.first_byte.map(milliseconds),
            bytes_in,
            bytes_out = self.bytes_out,
            redirected_bytes = self.seen.blob.and_then(BlobBytes::elsewhere),
            ending,
            client = line.client.map(|client| ip_text(client.0)),
            peer = line.peer.map(peer_text),
            user_agent = agent.as_deref().map(|agent| cut(agent, USER_AGENT_LIMIT)),
            request_id = line.id.as_str(),
            identity = self.seen.identity.as_deref(),
            repository = self.seen.repository.as_deref(),
            reference = self.seen.reference.as_deref(),
            error = error.map(|error| error.code),
            cause = error.and_then(|error| error.cause.as_deref()).or(failure),
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let observer = &self.observer;
        let took = self.started.elapsed();
        let bytes_in = self.bytes_in.as_ref().map_or(0, |counter| counter.load(Relaxed));
        observer.in_flight.fetch_sub(1, Relaxed);
        observer.metrics.active_requests.dec();
        observer.metrics.bytes_in.inc_by(bytes_in);
        observer.metrics.bytes_out.inc_by(self.bytes_out);
        match self.seen.blob {
            Some(BlobBytes::Streamed) => _ = observer.metrics.blob_bytes_streamed.inc_by(self.bytes_out),
            Some(BlobBytes::Redirected(bytes)) => _ = observer.metrics.blob_bytes_redirected.inc_by(bytes),
            None => {}
        }
        observer.metrics.request_ended(self.method, self.seen.route, self.status, took);
        // An orchestrator asks several times a second; only a refusal is worth a line.
        let is_quiet = self.status == 200 && matches!(self.seen.route, "livez" | "readyz" | "startupz" | "metrics");
        if let Some(line) = self.line.as_ref().filter(|_| !is_quiet) {
            self.log(line, bytes_in, took);
        }
    }
}

/// The method as a metric's label; `_OTHER` is OpenTelemetry's name for one it doesn't know.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// How many bytes of body will go out, where that is known: none for a HEAD, a 204 and a 304.
fn expected_bytes(method: &'static str, response: &Response) -> Option<u64> {
    if method == "HEAD" || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Some(0);
    }
    let announced = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    announced.or(response.body().size_hint().exact())
}

fn milliseconds(span: Duration) -> f64 {
    // Whole microseconds: more digits would be noise.
    span.as_micros() as f64 / 1000.0
}

/// An address as the log shows it. IPv4's digits are written here, as two of them a line are 4 % of the instructions of a
/// small request by way of its `Display`.
fn ip_text(address: IpAddr) -> String {
    let IpAddr::V4(address) = address else { return address.to_string() };
    let mut text = String::with_capacity("255.255.255.255:65535".len());
    for (place, octet) in address.octets().into_iter().enumerate() {
        if place > 0 {
            text.push('.');
        }
        push_decimal(&mut text, octet.into());
    }
    text
}

/// The same with its port.
fn peer_text(address: SocketAddr) -> String {
    if address.is_ipv6() {
        return address.to_string();
    }
    let mut text = ip_text(address.ip());
    text.push(':');
    push_decimal(&mut text, address.port());
    text
}

fn push_decimal(text: &mut String, number: u16) {
    if number > 9 {
        push_decimal(text, number / 10);
    }
    text.push((b'0' + (number % 10) as u8) as char);
}

/// The path and its query as they may be logged: not too long, and without the values of parameters that may
/// be secret.
fn loggable_path(uri: &Uri) -> String {
    let mut text = cut(uri.path(), PATH_LIMIT).to_owned();
    for (place, parameter) in uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()).enumerate() {
        text.push(if place == 0 { '?' } else { '&' });
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        text.push_str(name);
        text.push('=');
        text.push_str(if PLAIN_PARAMETERS.contains(&name) { value } else { "***" });
        if text.len() > PATH_LIMIT {
            text.truncate(cut(&text, PATH_LIMIT).len());
            break;
        }
    }
    text
}

/// The longest start of `text` that has at most `limit` bytes.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// A request's body that counts what is read of it.
struct CountedIn {
    body: Body,
    counter: Arc<AtomicU64>,
}

impl HttpBody for CountedIn {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            this.counter.fetch_add(data_length(frame), Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that counts what goes out, and takes the record with it as it is dropped.
struct CountedOut {
    body: Body,
    record: Record,
}

impl HttpBody for CountedOut {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.record.bytes_out += data_length(frame);
                if this.body.is_end_stream() {
                    this.record.ending = Ending::Complete;
                }
            }
            Some(Err(error)) => this.record.ending = Ending::Failed(error.to_string()),
            None => this.record.ending = Ending::Complete,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn data_length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken() {
        for id in ["a", "A-1_b.c", &"x".repeat(128)] {
            assert!(is_sane(id.as_bytes()), "{id}");
        }
        for id in ["", "a b", "a\tb", "ä", "<script>", &"x".repeat(129)] {
            assert!(!is_sane(id.as_bytes()), "{id}");
        }
        assert_eq!(RequestId::new().as_str().len(), 26);
        assert_ne!(RequestId::new(), RequestId::new());
    }

    #[test]
    fn secrets_in_a_query_are_not_logged() {
        let of = |text: &'static str| loggable_path(&Uri::from_static(text));
        assert_eq!(of("/v2/a/tags/list?n=5&last=b"), "/v2/a/tags/list?n=5&last=b");
        assert_eq!(of("/x?_state=abc&digest=sha256:0&token=t"), "/x?_state=***&digest=sha256:0&token=***");
        assert_eq!(of("/x?secret"), "/x?secret=***");
        assert_eq!(of("/x"), "/x");
    }

    #[test]
    fn addresses_look_as_anywhere() {
        for text in
            ["0.0.0.0:0", "192.0.2.17:5000", "255.255.255.255:65535", "[2001:db8::1]:443", "[::ffff:192.0.2.1]:80"]
        {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!((peer_text(address), ip_text(address.ip())), (text.to_owned(), address.ip().to_string()));
        }
    }

    #[test]
    fn a_long_path_is_cut() {
        let long: Uri = format!("/{}?n={}", "a".repeat(3000), "1".repeat(3000)).parse().expect("a URI");
        assert_eq!(loggable_path(&long).len(), PATH_LIMIT);
        assert_eq!(cut("äöü", 3), "ä");
    }

    #[test]
    fn the_api_is_what_begins_with_its_component() {
        assert!(is_api("/v2") && is_api("/v2/") && is_api("/v2/a/manifests/b"));
        assert!(!is_api("/v2x") && !is_api("/") && !is_api("/a/v2"));
    }
}
