//! The server's edge, over real sockets: deadlines, limits, draining, and what the log and the metrics say.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
    routing::{any, get},
};
use berth::{
    api::{
        cors::Origins,
        health::{Readiness, admin_router, health_routes},
        observe::{ErrorSeen, Observer, Peer, Seen},
        origin::Proxies,
    },
    server::{Drain, End, Listener, Options, Role, serve},
    telemetry::{Format, Metrics, logs::subscriber},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

const SHORT: Duration = Duration::from_millis(150);

/// Deadlines that no test waits for.
fn patient() -> Options {
    let long = Duration::from_secs(600);
    Options { connections: 100, head_timeout: long, idle_timeout: long, body_idle_timeout: long, drain_timeout: long }
}

/// A server in process, with a public and an admin listener.
struct Server {
    public: SocketAddr,
    admin: SocketAddr,
    drain: Drain,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    end: JoinHandle<End>,
}

impl Server {
    async fn start(routes: Router, options: Options) -> Self {
        Self::start_limited(routes, options, 1000).await
    }

    async fn start_limited(routes: Router, options: Options, in_flight: usize) -> Self {
        let (metrics, readiness, drain) = (Metrics::new("0.0.0"), Readiness::new(), Drain::new());
        readiness.started();
        let observer = Observer::new(metrics.clone(), in_flight, Proxies::default());
        let routes = observer.around(routes.merge(health_routes(readiness.clone())));
        let local = "127.0.0.1:0".parse().unwrap();
        let public = Listener::bind(local, Role::Public, routes).await.unwrap();
        let admin = admin_router(metrics.clone(), readiness.clone());
        let admin = Listener::bind(local, Role::Admin, admin).await.unwrap();
        let (public_address, admin_address) = (public.address().unwrap(), admin.address().unwrap());
        let end = tokio::spawn(serve(vec![public, admin], options, drain.clone(), readiness.clone(), metrics.clone()));
        Self { public: public_address, admin: admin_address, drain, readiness, metrics, end }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.public).await.unwrap()
    }

    /// Sends `request` on a connection of its own, and returns all that comes back until the server closes.
    async fn say(&self, request: &str) -> String {
        say(self.public, request).await
    }

    async fn get(&self, path: &str) -> String {
        self.say(&get_request(path)).await
    }

    async fn admin(&self, path: &str) -> String {
        say(self.admin, &get_request(path)).await
    }

    /// The value of a metric's line that starts with `series`.
    fn metric(&self, series: &str) -> Option<f64> {
        let page = self.metrics.encode().unwrap();
        page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }
}

fn get_request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")
}

async fn say(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

/// Everything until the end of the connection, reset or not.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads until `end` has come.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "the connection ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

/// Looks again until `is_so`; a test that waits in vain is stopped by the harness.
async fn eventually(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Routes that do one simple thing each.
fn plain() -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/v2/", get(async || "{}"))
        .route("/echo", any(async |request: Request| Response::new(request.into_body())))
        .route("/peer", get(async |request: Request| request.extensions().get::<Peer>().unwrap().0.to_string()))
}

/// A route that says that it began, and goes on when told to.
fn slow() -> (Router, mpsc::UnboundedReceiver<()>, Arc<Notify>) {
    let (began, begins) = mpsc::unbounded_channel();
    let go_on = Arc::new(Notify::new());
    let told = go_on.clone();
    let route = get(async move || {
        began.send(()).unwrap();
        told.notified().await;
        "done"
    });
    (plain().route("/slow", route), begins, go_on)
}

#[tokio::test]
async fn a_half_sent_head_is_cut() {
    let server = Server::start(plain(), Options { head_timeout: SHORT, ..patient() }).await;
    // Nothing, the start of HTTP/2's greeting, and the start of a head.
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: "] {
        let mut stream = server.connect().await;
        stream.write_all(start.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut stream).await, "");
    }
    // So is one on a connection that has served a request, while bytes trickle in.
    let mut stream = server.connect().await;
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    until(&mut stream, "hello").await;
    while stream.write_all(b"G").await.is_ok() {
        tokio::time::sleep(SHORT / 10).await;
    }
    assert_eq!(server.metric("berth_connections_cut_total "), Some(4.0));
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_not_by_the_heads_deadline() {
    let options = Options { head_timeout: SHORT, idle_timeout: SHORT * 4, ..patient() };
    let server = Server::start(plain(), options).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /hello HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
        assert!(until(&mut stream, "hello").await.starts_with("HTTP/1.1 200"));
        tokio::time::sleep(SHORT * 2).await;
    }
    assert_eq!(rest(&mut stream).await, "");
    assert_eq!(server.metric("berth_connections_cut_total "), Some(0.0));
    eventually(|| server.metric("berth_connections{listener=\"public\"} ") == Some(0.0)).await;
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let server = Server::start(plain(), Options { connections: 2, ..patient() }).await;
    let (first, mut second) = (server.connect().await, server.connect().await);
    eventually(|| server.metric("berth_connections{listener=\"public\"} ") == Some(2.0)).await;
    let refused = server.get("/hello").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("Retry-After: 1\r\n"), "{refused}");
    let (_, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(refused.contains(&format!("Content-Length: {}\r\n", body.len())), "{refused}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNAVAILABLE");
    assert_eq!(server.metric("berth_connections_refused_total "), Some(1.0));
    // The admin side has places of its own, and those inside are served.
    assert!(server.admin("/readyz").await.contains("ready"));
    second.write_all(get_request("/hello").as_bytes()).await.unwrap();
    assert!(rest(&mut second).await.ends_with("hello"));
    drop(first);
    eventually(|| server.metric("berth_connections{listener=\"public\"} ") == Some(0.0)).await;
    assert!(server.get("/hello").await.ends_with("hello"));
}

#[tokio::test]
async fn a_request_too_many_is_told_so_while_health_answers() {
    let (routes, mut begins, go_on) = slow();
    let server = Server::start_limited(routes, patient(), 1).await;
    let mut running = server.connect().await;
    running.write_all(get_request("/slow").as_bytes()).await.unwrap();
    begins.recv().await.unwrap();
    let refused = server.get("/hello").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    assert!(refused.contains(r#"{"errors":[{"code":"UNAVAILABLE","#), "{refused}");
    for path in ["/livez", "/readyz", "/startupz"] {
        assert!(server.get(path).await.starts_with("HTTP/1.1 200 "));
    }
    go_on.notify_one();
    assert!(rest(&mut running).await.ends_with("done"));
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
    assert!(server.get("/hello").await.ends_with("hello"));
    assert_eq!(server.metric("berth_requests_refused_total "), Some(1.0));
}

#[tokio::test]
async fn a_request_body_that_stalls_ends_in_an_error_for_the_handler() {
    let (saw, mut seen) = mpsc::unbounded_channel();
    let route = any(async move |request: Request| {
        let error = request.into_body().collect().await.unwrap_err();
        saw.send(error.to_string()).unwrap();
        http::StatusCode::REQUEST_TIMEOUT
    });
    let options = Options { body_idle_timeout: SHORT, ..patient() };
    let server = Server::start(Router::new().route("/put", route), options).await;
    let mut stream = server.connect().await;
    stream.write_all(b"PUT /put HTTP/1.1\r\nhost: r\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(seen.recv().await.unwrap().contains("sent nothing"));
    eventually(|| server.metric("http_server_request_body_size_bytes_total ") == Some(4.0)).await;
}

/// A client that sends all before it reads gets its answer, and its connection goes on.
#[tokio::test]
async fn a_refusal_is_read_by_who_has_not_sent_all() {
    let routes = plain().route("/refuse", any(async || http::StatusCode::PAYLOAD_TOO_LARGE));
    let server = Server::start(routes.clone(), patient()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"PUT /refuse HTTP/1.1\r\nhost: r\r\ncontent-length: 33554432\r\n\r\n").await.unwrap();
    stream.write_all(&vec![7; 32 << 20]).await.unwrap();
    assert!(until(&mut stream, "content-length: 0").await.starts_with("HTTP/1.1 413 "));
    stream.write_all(get_request("/hello").as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("hello"));

    // Nobody is read for ever: not who sends without an end, nor who sends nothing.
    let server = Server::start(routes, Options { body_idle_timeout: SHORT, ..patient() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"PUT /refuse HTTP/1.1\r\nhost: r\r\ncontent-length: 1000000000000\r\n\r\n").await.unwrap();
    while stream.write_all(&[7; 1 << 20]).await.is_ok() {}
    let mut stream = server.connect().await;
    stream.write_all(b"PUT /refuse HTTP/1.1\r\nhost: r\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413 "));
    // Who asks first whether to send is told no, and not to go on.
    let head = "PUT /refuse HTTP/1.1\r\nhost: r\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n";
    assert!(server.say(head).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_response_that_is_not_read_is_cut() {
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[7; 65536])));
    let route = get(async move || Response::new(Body::from_stream(endless.clone())));
    let options = Options { body_idle_timeout: SHORT, ..patient() };
    let server = Server::start(Router::new().route("/endless", route), options).await;
    let mut stream = server.connect().await;
    stream.write_all(get_request("/endless").as_bytes()).await.unwrap();
    eventually(|| server.metric("berth_connections_cut_total ") == Some(1.0)).await;
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
    // Reset or ended, what is left in the buffers comes to an end.
    rest(&mut stream).await;
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_nobody_in() {
    let (routes, mut begins, go_on) = slow();
    let server = Server::start(routes, patient()).await;
    let (mut running, mut idle, mut fresh) = (server.connect().await, server.connect().await, server.connect().await);
    idle.write_all(b"GET /hello HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    until(&mut idle, "hello").await;
    running.write_all(b"GET /slow HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    begins.recv().await.unwrap();
    eventually(|| server.metric("berth_connections{listener=\"public\"} ") == Some(3.0)).await;
    let mut crossing = server.connect().await;
    crossing.write_all(b"GET /hello HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    until(&mut crossing, "hello").await;

    server.drain.ask();
    // A request that the end crosses with on its way is answered, and is the last.
    // Who keeps knocking is let in for as long as that request has: the pauses let the door close.
    while TcpStream::connect(server.public).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    crossing.write_all(b"POST /hello HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    let last = rest(&mut crossing).await;
    assert!(last.starts_with("HTTP/1.1 ") && last.contains("connection: close"), "{last}");
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(rest(&mut fresh).await, "");
    let ready = server.admin("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("draining"), "{ready}");
    assert!(server.admin("/livez").await.starts_with("HTTP/1.1 200 "));
    assert!(server.admin("/metrics").await.contains("http_server_active_requests 1"));

    go_on.notify_one();
    let answer = rest(&mut running).await;
    assert!(answer.contains("connection: close") && answer.ends_with("done"), "{answer}");
    assert_eq!(server.end.await.unwrap(), End::Clean);
    assert!(TcpStream::connect(server.admin).await.is_err());
}

#[tokio::test]
async fn a_drain_that_takes_too_long_cuts_what_is_left() {
    let (routes, mut begins, _go_on) = slow();
    let server = Server::start(routes, Options { drain_timeout: SHORT, ..patient() }).await;
    let mut running = server.connect().await;
    running.write_all(get_request("/slow").as_bytes()).await.unwrap();
    begins.recv().await.unwrap();
    server.drain.ask();
    assert_eq!(rest(&mut running).await, "");
    assert_eq!(server.end.await.unwrap(), End::Cut(1));
}

#[tokio::test]
async fn who_asks_twice_means_now() {
    let (routes, mut begins, _go_on) = slow();
    let server = Server::start(routes, patient()).await;
    let mut running = server.connect().await;
    running.write_all(get_request("/slow").as_bytes()).await.unwrap();
    begins.recv().await.unwrap();
    server.drain.ask();
    server.drain.asked().await;
    server.drain.ask();
    assert_eq!(server.end.await.unwrap(), End::Forced);
    assert_eq!(rest(&mut running).await, "");
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_lives_on() {
    let panics = get(async || {
        if true {
            panic!("a bug with a secret");
        }
    });
    let server = Server::start(plain().route("/bug", panics), patient()).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /bug HTTP/1.1\r\nhost: r\r\nx-request-id: abc\r\n\r\n").await.unwrap();
    let answer = until(&mut stream, "}]}").await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("request id abc") && !answer.contains("secret"), "{answer}");
    stream.write_all(b"GET /hello HTTP/1.1\r\nhost: r\r\n\r\n").await.unwrap();
    assert!(until(&mut stream, "hello").await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.metric("berth_requests_panicked_total "), Some(1.0));
}

#[tokio::test]
async fn a_request_id_is_kept_if_it_is_sane() {
    let server = Server::start(plain(), patient()).await;
    let given = async |header: &str| {
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: r\r\nconnection: close\r\n{header}\r\n");
        let answer = server.say(&request).await;
        assert!(answer.contains("docker-distribution-api-version: registry/2.0\r\n"), "{answer}");
        let line = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
        line.to_owned()
    };
    assert_eq!(given("X-Request-Id: a.B_9-\r\n").await, "a.B_9-");
    for made in [given("").await, given("X-Request-Id: a b\r\n").await, given("X-Request-Id: <>\r\n").await] {
        assert!(made.parse::<ulid::Ulid>().is_ok(), "{made}");
    }
    let missing = server.get("/nowhere").await;
    assert!(missing.starts_with("HTTP/1.1 404 ") && missing.contains("x-request-id: "), "{missing}");
    assert!(!missing.contains("docker-distribution-api-version"), "{missing}");
    assert!(server.get("/peer").await.contains("127.0.0.1:"));
}

/// A writer that keeps what it gets.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Kept {
    /// All so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The access log so far.
    fn lines(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["target"] == "access").collect()
    }

    async fn line(&self, path: &str) -> serde_json::Value {
        let find = || self.lines().into_iter().find(|line| line["path"] == path);
        eventually(|| find().is_some()).await;
        find().unwrap()
    }
}

fn seen_route() -> Router {
    let route = any(async |request: Request| {
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let mut response = Response::new(Body::from(vec![b'x'; body.len() * 2]));
        response.extensions_mut().insert(Seen {
            repository: Some("team/app".to_owned()),
            reference: Some("v1".to_owned()),
            identity: Some("user:alice".to_owned()),
            error: Some(ErrorSeen { code: "DENIED", cause: Some("immutable".to_owned()) }),
            ..Seen::route("manifest")
        });
        response
    });
    let endless = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[7; 65536])));
    let endless = get(async move || Response::new(Body::from_stream(endless.clone())));
    let fails = stream::iter([Ok(Bytes::from_static(b"some")), Err("the store went away")]);
    let fails = get(async move || Response::new(Body::from_stream(fails.clone())));
    plain().route("/seen", route).route("/endless", endless).route("/fails", fails)
}

#[tokio::test]
async fn each_request_is_one_line_of_the_access_log() {
    let kept = Kept::default();
    let writer = kept.clone();
    // The test's runtime has one thread, so that this covers the server's tasks as well.
    let _log = tracing::subscriber::set_default(subscriber(Format::Json, "info", move || writer.clone()).unwrap());
    let server = Server::start(seen_route(), patient()).await;
    let request = "PUT /seen?tag=v1&_state=secret HTTP/1.1\r\nhost: r\r\nuser-agent: docker/1\r\nx-request-id: id1\r\n\
                   content-length: 5\r\nconnection: close\r\n\r\n12345";
    assert!(server.say(request).await.ends_with("xxxxxxxxxx"));
    let line = kept.line("/seen?tag=v1&_state=***").await;
    let expected = serde_json::json!({
        "method": "PUT", "route": "manifest", "status": 200, "bytes_in": 5, "bytes_out": 10, "ending": "complete",
        "user_agent": "docker/1", "request_id": "id1", "identity": "user:alice", "repository": "team/app",
        "reference": "v1", "error": "DENIED", "cause": "immutable",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{name} of {line}");
    }
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    assert!(line["first_byte_ms"].as_f64().unwrap() <= line["duration_ms"].as_f64().unwrap());

    server.say("HEAD /hello HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n").await;
    assert_eq!(kept.line("/hello").await["ending"], "complete");
    let mut stream = server.connect().await;
    stream.write_all(get_request("/endless").as_bytes()).await.unwrap();
    until(&mut stream, "200 OK").await;
    drop(stream);
    assert_eq!(kept.line("/endless").await["ending"], "broken_off");
    server.get("/fails").await;
    let line = kept.line("/fails").await;
    assert_eq!((&line["ending"], &line["cause"]), (&"failed".into(), &"the store went away".into()), "{line}");
    server.get("/livez").await;
    assert_eq!(kept.lines().len(), 4, "a healthy probe leaves no line");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_logged() {
    let kept = Kept::default();
    let writer = kept.clone();
    let _log = tracing::subscriber::set_default(subscriber(Format::Json, "info", move || writer.clone()).unwrap());
    let (routes, mut begins, _go_on) = slow();
    let server = Server::start(routes, patient()).await;
    let mut stream = server.connect().await;
    stream.write_all(get_request("/slow").as_bytes()).await.unwrap();
    begins.recv().await.unwrap();
    drop(stream);
    let line = kept.line("/slow").await;
    assert_eq!((&line["status"], &line["ending"]), (&499.into(), &"broken_off".into()), "{line}");
}

#[tokio::test]
async fn the_metrics_count_what_happened() {
    let server = Server::start(seen_route(), patient()).await;
    for _ in 0..3 {
        server.say("PUT /seen HTTP/1.1\r\nhost: r\r\ncontent-length: 5\r\nconnection: close\r\n\r\n12345").await;
    }
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
    let series = "http_server_request_duration_seconds_count{http_request_method=\"PUT\",http_route=\"manifest\",\
                  http_response_status_code=\"200\"} ";
    assert_eq!(server.metric(series), Some(3.0));
    assert_eq!(server.metric("http_server_request_body_size_bytes_total "), Some(15.0));
    assert_eq!(server.metric("http_server_response_body_size_bytes_total "), Some(30.0));
    server.metrics.store.operation("get").ended(Instant::now(), "not_found");
    server.metrics.index.operation("get").ended(Instant::now(), "ok");
    let page = server.admin("/metrics").await;
    assert!(page.contains("content-type: application/openmetrics-text"), "{page}");
    assert!(page.trim_end().ends_with("# EOF"), "{page}");
    for name in [
        "berth_build_info{version=\"0.0.0\"} 1",
        "process_cpu_seconds_total ",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_max_fds ",
        "process_start_time_seconds ",
        "berth_store_requests_total{operation=\"get\",outcome=\"not_found\"} 1",
        "berth_store_request_duration_seconds_count{operation=\"get\"} 1",
        "berth_index_requests_total{operation=\"get\",outcome=\"ok\"} 1",
        "berth_index_request_duration_seconds_count{operation=\"get\"} 1",
        "berth_connections{listener=\"admin\"} 1",
    ] {
        assert!(page.contains(name), "{name} is missing in {page}");
    }
}

#[tokio::test]
async fn clients_cannot_make_time_series() {
    let server = Server::start(plain(), patient()).await;
    let ask = async |number: usize| {
        server.get(&format!("/random/{number}")).await;
        server.say(&format!("BREW{number} /{number} HTTP/1.1\r\nhost: r\r\nconnection: close\r\n\r\n")).await;
    };
    ask(0).await;
    let count = || server.metrics.encode().unwrap().lines().count();
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
    let before = count();
    for number in 1..20 {
        ask(number).await;
    }
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
    assert_eq!(count(), before);
}

#[tokio::test]
async fn readiness_says_why() {
    let server = Server::start(plain(), patient()).await;
    assert!(server.get("/readyz").await.ends_with(r#"{"status":"ready"}"#));
    server.readiness.set("index", Some("no lease".to_owned()));
    let answer = server.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with(r#"{"status":"unavailable","reasons":{"index":"no lease"}}"#), "{answer}");
    assert!(server.get("/startupz").await.starts_with("HTTP/1.1 200 "));
    server.readiness.set("index", None);
    assert!(server.admin("/readyz").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn http2_without_tls_works() {
    let (routes, mut begins, go_on) = slow();
    let server = Server::start(routes, patient()).await;
    let io = TokioIo::new(server.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let url = |path: &str| format!("http://r{path}");
    let slow = sender.send_request(http::Request::get(url("/slow")).body(Body::empty()).unwrap());
    begins.recv().await.unwrap();
    let echo = http::Request::post(url("/echo")).body(Body::from("over two streams")).unwrap();
    let answer = sender.send_request(echo).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "over two streams");
    server.drain.ask();
    go_on.notify_one();
    assert_eq!(slow.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "done");
    connection.await.unwrap().unwrap();
    assert_eq!(server.end.await.unwrap(), End::Clean);
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_is_cut() {
    let options = Options { body_idle_timeout: SHORT, ..patient() };
    let server = Server::start(seen_route(), options).await;
    let io = TokioIo::new(server.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://r/endless").body(Body::empty()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    // The window closes although the socket would take more.
    eventually(|| server.metric("berth_connections_cut_total ") == Some(1.0)).await;
    assert!(answer.into_body().collect().await.is_err());
    // What made the body ends as well, although it never had to wait.
    eventually(|| server.metric("http_server_active_requests ") == Some(0.0)).await;
}

fn headers(answer: &str) -> BTreeMap<String, String> {
    let head = answer.split_once("\r\n\r\n").unwrap().0;
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect()
}

async fn ask_from(server: &Server, method: &str, origin: &str, more: &str) -> (String, BTreeMap<String, String>) {
    let request = format!("{method} /hello HTTP/1.1\r\nhost: r\r\n{origin}{more}connection: close\r\n\r\n");
    let answer = server.say(&request).await;
    (answer[9..12].to_owned(), headers(&answer))
}

const PREFLIGHT: &str = "access-control-request-method: PUT\r\naccess-control-request-headers: authorization\r\n";

#[tokio::test]
async fn cors_knows_its_origins() {
    let origins = Origins::parse(&["https://ui.example.com".to_owned(), "http://localhost:3000".to_owned()]).unwrap();
    let server = Server::start(origins.around(plain()), patient()).await;
    let (ours, theirs) = ("origin: http://localhost:3000\r\n", "origin: https://evil.example.com\r\n");

    let (status, sent) = ask_from(&server, "OPTIONS", ours, PREFLIGHT).await;
    assert_eq!(status, "204");
    assert_eq!(sent["access-control-allow-origin"], "http://localhost:3000");
    assert_eq!(sent["access-control-allow-methods"], "GET, HEAD, POST, PUT, PATCH, DELETE");
    assert!(sent["access-control-allow-headers"].contains("Authorization"));
    assert_eq!((sent["access-control-max-age"].as_str(), sent["vary"].as_str()), ("7200", "Origin"));
    let (status, sent) = ask_from(&server, "OPTIONS", theirs, PREFLIGHT).await;
    assert_eq!(status, "204");
    assert!(!sent.keys().any(|name| name.starts_with("access-control")), "{sent:?}");

    let (_, sent) = ask_from(&server, "GET", ours, "").await;
    assert_eq!(sent["access-control-allow-origin"], "http://localhost:3000");
    assert!(sent["access-control-expose-headers"].contains("Docker-Content-Digest"));
    for origin in [theirs, ""] {
        let (status, sent) = ask_from(&server, "GET", origin, "").await;
        assert_eq!((status.as_str(), sent["vary"].as_str()), ("200", "Origin"));
        assert!(!sent.keys().any(|name| name.starts_with("access-control")), "{sent:?}");
    }
    let (status, _) = ask_from(&server, "OPTIONS", "", "").await;
    assert_eq!(status, "405", "an OPTIONS that is no preflight is the routes' affair");
}

#[tokio::test]
async fn cors_for_everyone_never_allows_credentials() {
    let server = Server::start(Origins::parse(&["*".to_owned()]).unwrap().around(plain()), patient()).await;
    let origin = "origin: https://any.example.com\r\n";
    for (method, more) in [("OPTIONS", PREFLIGHT), ("GET", "")] {
        let (_, sent) = ask_from(&server, method, origin, more).await;
        assert_eq!(sent["access-control-allow-origin"], "*");
        assert!(!sent.contains_key("access-control-allow-credentials"));
    }
    let off = Server::start(Origins::parse(&[]).unwrap().around(plain()), patient()).await;
    let (status, sent) = ask_from(&off, "OPTIONS", origin, PREFLIGHT).await;
    assert_eq!(status, "405");
    assert!(!sent.contains_key("vary"));
}
