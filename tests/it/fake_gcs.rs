//! A real emulator of Google Cloud Storage for a test: fake-gcs-server, where `BERTH_TEST_GCS_SERVER` names its
//! program. It knows no uploads in parts, and looks at no tokens and no signatures.
//!
//! Of the XML API it knows what signed URLs need: it takes a whole object by a PUT only if the URL looks signed, and
//! answers without an ETag. A front before it makes up for these two, and for nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use http::{HeaderValue, Method, header::ETAG};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{berth::own_address, gcs_server::BUCKET};

const PORT: u16 = 4443;

/// A running server with one empty bucket.
#[derive(Debug)]
pub(crate) struct FakeGcs {
    /// `http://127.0.0.1:<port>`.
    pub(crate) endpoint: String,
    front: JoinHandle<()>,
    child: Child,
}

/// Starts a server and makes the bucket; `None` where nobody named the program.
pub(crate) async fn start_where_named() -> Option<FakeGcs> {
    let program = std::env::var_os("BERTH_TEST_GCS_SERVER")?;
    let address = own_address();
    let place = format!("{address}:{PORT}");
    let mut child = Command::new(&program)
        .args(["-scheme", "http", "-backend", "memory", "-host", &address.to_string(), "-port", &PORT.to_string()])
        // Else only requests for Google's own host are for objects.
        .args(["-public-host", &place])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?}, which scripts/setup-check-all installs: {error}"));
    while TcpStream::connect(&place).await.is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let bucket = serde_json::json!({"name": BUCKET});
    let client = reqwest::Client::new();
    let made = client.post(format!("http://{place}/storage/v1/b?project=p")).json(&bucket).send().await;
    assert!(made.unwrap().status().is_success());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(move |request| pass(client.clone(), place.clone(), request));
    let front = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Some(FakeGcs { endpoint, front, child })
}

async fn pass(client: reqwest::Client, place: String, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let mut url = format!("http://{place}{}", parts.uri.path_and_query().unwrap());
    if parts.method == Method::PUT && parts.uri.query().is_none() {
        url += "?X-Goog-Algorithm=GOOG4-RSA-SHA256";
    }
    parts.headers.remove(http::header::HOST);
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let answer = client.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    let headers = response.headers_mut().unwrap();
    *headers = answer.headers().clone();
    headers.entry(ETAG).or_insert(HeaderValue::from_static("\"none\""));
    response.body(Body::from_stream(answer.bytes_stream())).unwrap()
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        self.front.abort();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
