//! An S3 server that throws the parts of uploads away, and counts them: for pushes of more bytes than a test can
//! keep. What is put whole it keeps. It believes every signature: who checks those is [`crate::s3_server`].
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, task::JoinHandle};

/// A running server; it stops when this is dropped.
pub(crate) struct DiscardingS3 {
    /// `http://127.0.0.1:<port>`.
    pub(crate) endpoint: String,
    seen: Arc<Seen>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Bytes of parts.
    discarded: AtomicU64,
    parts: AtomicU64,
}

impl Drop for DiscardingS3 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl DiscardingS3 {
    /// How many parts came, and how many bytes in them.
    pub(crate) fn discarded(&self) -> (u64, u64) {
        (self.seen.parts.load(Ordering::SeqCst), self.seen.discarded.load(Ordering::SeqCst))
    }

    /// The settings of a Berth that uses it.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BERTH_STORAGE__URL", "s3://bucket".to_owned()),
            ("BERTH_STORAGE__S3__ENDPOINT", self.endpoint.clone()),
            ("BERTH_STORAGE__S3__ACCESS_KEY_ID", "test".to_owned()),
            ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", "test".to_owned()),
        ]
    }
}

/// Starts a server with one empty bucket.
pub(crate) async fn start() -> DiscardingS3 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::<Seen>::default();
    let accepting = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            while let Ok((socket, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                let service = service_fn(move |request| answer(Arc::clone(&seen), request));
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // A connection that breaks is the client's to report.
                tokio::spawn(async move { drop(server.serve_connection(TokioIo::new(socket), service).await) });
            }
        }
    });
    DiscardingS3 { endpoint, seen, accepting }
}

async fn answer(seen: Arc<Seen>, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let (head, mut body) = request.into_parts();
    let key = head.uri.path().trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let url = reqwest::Url::parse(&format!("http://s3{}", head.uri)).unwrap();
    let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    if query.contains_key("partNumber") {
        while let Some(frame) = body.frame().await {
            let size = frame?.data_ref().map_or(0, |data| data.len() as u64);
            seen.discarded.fetch_add(size, Ordering::SeqCst);
        }
        seen.parts.fetch_add(1, Ordering::SeqCst);
        return Ok(said(StatusCode::OK, ""));
    }
    let bytes = body.collect().await?.to_bytes();
    let mut objects = seen.objects.lock().unwrap();
    Ok(match head.method {
        Method::POST if query.contains_key("uploads") => said(
            StatusCode::OK,
            "<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>",
        ),
        Method::POST => said(
            StatusCode::OK,
            "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>",
        ),
        Method::GET if key.is_empty() => said(StatusCode::OK, listing(&objects, &query)),
        Method::GET | Method::HEAD => match objects.get(&key) {
            Some(object) => said(StatusCode::OK, object.clone()),
            None => said(StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>"),
        },
        Method::PUT => {
            objects.insert(key, bytes);
            said(StatusCode::OK, "")
        }
        Method::DELETE => {
            objects.remove(&key);
            said(StatusCode::NO_CONTENT, "")
        }
        other => panic!("no test sends {other} {}", head.uri),
    })
}

fn said(status: StatusCode, bytes: impl AsRef<[u8]>) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(status).header("etag", "\"one\"").header("last-modified", now());
    answer.body(Full::new(Bytes::copy_from_slice(bytes.as_ref()))).unwrap()
}

/// Every object is as old as the answer that it is in.
fn now() -> String {
    chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn listing(objects: &BTreeMap<String, Bytes>, query: &HashMap<String, String>) -> String {
    let asked = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let mut page = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    let modified = chrono::Utc::now().to_rfc3339();
    for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(asked("prefix"))) {
        if key.as_str() > asked("start-after") {
            write!(
                page,
                "<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>\"one\"</ETag><Size>{}</Size></Contents>",
                object.len()
            )
            .unwrap();
        }
    }
    page + "</ListBucketResult>"
}
