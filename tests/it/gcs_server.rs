//! A server in the test's own process that plays Google's part: Cloud Storage, the metadata server, the token
//! exchange and IAM's credentials service, with everything in memory.
//!
//! It is written from Google's documentation and is not Google: where that leaves something open it refuses. It
//! checks each token and each signature (`gcs_identity.rs`), and keeps the rules of uploads in parts. `Date` is added
//! by hyper.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use berth::storage::gcs::{CredentialsJson, GcsOptions};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use http::{HeaderMap, Method, StatusCode, request::Parts};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::gcs_identity::{POOL, believed, by_others, key_file};

/// The only bucket.
pub(crate) const BUCKET: &str = "bucket";
/// The least that a part other than the last may have.
const LEAST_PART: usize = 5 << 20;

/// A running server; it stops when this is dropped.
pub(crate) struct GcsServer {
    /// `http://127.0.0.1:<port>`, with the bucket in the path.
    pub(crate) endpoint: String,
    pub(crate) google: Arc<Google>,
    accepting: JoinHandle<()>,
}

impl Drop for GcsServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What the server holds, and what it was asked.
#[derive(Default)]
pub(crate) struct Google {
    objects: Mutex<BTreeMap<String, Stored>>,
    uploads: Mutex<HashMap<String, Upload>>,
    next: AtomicU64,
    /// Tokens that were given out: to whom, and until when.
    pub(crate) tokens: Mutex<HashMap<String, (String, SystemTime)>>,
    /// Those who may do nothing with the bucket.
    pub(crate) barred: Mutex<BTreeSet<String>>,
    /// Paths that were asked for by others than the store.
    asked: Mutex<Vec<String>>,
    /// Whether the first page of each listing is empty, as Google allows itself.
    pub(crate) hesitates: AtomicBool,
    /// Whether the machine has a service account.
    pub(crate) has_no_account: AtomicBool,
    /// How long a signature by IAM takes, in milliseconds.
    pub(crate) iam_takes: AtomicU64,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    tag: String,
    headers: HeaderMap,
    created: SystemTime,
    /// When anything about it last changed.
    updated: SystemTime,
}

struct Upload {
    key: String,
    headers: HeaderMap,
    since: SystemTime,
    parts: BTreeMap<usize, Stored>,
}

/// Starts a server with one empty bucket.
pub(crate) async fn start() -> GcsServer {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let google = Arc::<Google>::default();
    let serving = Arc::clone(&google);
    let router = Router::new().fallback(move |request: Request| answer(Arc::clone(&serving), request));
    let accepting = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    GcsServer { endpoint, google, accepting }
}

impl GcsServer {
    /// What makes Berth keep a registry in the bucket, as environment variables.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BERTH_STORAGE__URL", format!("gs://{BUCKET}/registry")),
            ("BERTH_STORAGE__GCS__ENDPOINT", self.endpoint.clone()),
            ("BERTH_STORAGE__GCS__CREDENTIALS", key_file()),
        ]
    }

    /// The bucket, by the account's own key.
    pub(crate) fn options(&self) -> GcsOptions {
        options(&self.endpoint)
    }

    /// The JSON of a workload identity, whose token of somebody else's is where `source` says.
    pub(crate) fn federation(&self, source: Value, account: Option<&str>) -> String {
        let mut file = json!({
            "type": "external_account", "audience": POOL, "token_url": format!("{}/sts/v1/token", self.endpoint),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": source,
        });
        if let Some(account) = account {
            let url = format!("{}/v1/projects/-/serviceAccounts/{account}:generateAccessToken", self.endpoint);
            file["service_account_impersonation_url"] = url.into();
        }
        file.to_string()
    }
}

/// A bucket at `endpoint`, by the account's own key.
pub(crate) fn options(endpoint: &str) -> GcsOptions {
    GcsOptions {
        bucket: BUCKET.to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        iam_endpoint: Some(endpoint.to_owned()),
        credentials: Some(CredentialsJson(key_file())),
        ..GcsOptions::default()
    }
}

impl Google {
    /// Paths that were asked for by others than the store, since this was last asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// Takes all rights from an account.
    pub(crate) fn bar(&self, who: &str) {
        self.barred.lock().unwrap().insert(who.to_owned());
    }

    /// What the bucket's own rules do when they move everything to another storage class, a year from now.
    pub(crate) fn move_all(&self) {
        let later = SystemTime::now() + Duration::from_secs(365 * 24 * 3600);
        self.objects.lock().unwrap().values_mut().for_each(|object| object.updated = later);
    }

    /// The headers with which an object was written.
    pub(crate) fn headers_of(&self, name: &str) -> HeaderMap {
        self.objects.lock().unwrap()[name].headers.clone()
    }

    pub(crate) fn give(&self, who: &str) -> (String, SystemTime) {
        let token = format!("ya29.{}", self.next.fetch_add(1, Ordering::Relaxed));
        let until = SystemTime::now() + Duration::from_secs(3600);
        self.tokens.lock().unwrap().insert(token.clone(), (who.to_owned(), until));
        (token, until)
    }
}

/// What a request is refused with: a status, a code of the XML API, and a message.
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) &'static str, pub(crate) String);

pub(crate) type Answer = Result<Response, Refusal>;

pub(crate) fn refuse<T>(status: u16, code: &'static str) -> Result<T, Refusal> {
    Err(Refusal(StatusCode::from_u16(status).unwrap(), code, format!("{code}.")))
}

/// One request, read whole.
pub(crate) struct Asked {
    pub(crate) parts: Parts,
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.parts.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(&self.body).or_else(|_| refuse(400, "InvalidArgument"))
    }
}

async fn answer(google: Arc<Google>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else { return StatusCode::BAD_REQUEST.into_response() };
    let query = pairs(parts.uri.query().unwrap_or_default());
    let asked = Asked { parts, query, body };
    let path = asked.parts.uri.path().to_owned();
    let is_json = path.starts_with("/storage/v1/") || path.starts_with("/v1/");
    let answered = if let Some(path) = path.strip_prefix("/storage/v1/b/") {
        by_json(&google, &asked, path)
    } else if ["/sts/", "/v1/", "/computeMetadata/", "/subject"].iter().any(|start| path.starts_with(start)) {
        google.asked.lock().unwrap().push(path.clone());
        by_others(&google, &asked, &path).await
    } else {
        by_xml(&google, &asked, &path)
    };
    answered.unwrap_or_else(|Refusal(status, code, message)| {
        if is_json {
            let error = json!({"error": {"code": status.as_u16(), "message": message, "errors": [{"reason": code}]}});
            return (status, said(error)).into_response();
        }
        let text = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        (status, [("content-type", "application/xml; charset=UTF-8")], text).into_response()
    })
}

/// An answer in JSON.
pub(crate) fn said(json: Value) -> Response {
    ([("content-type", "application/json; charset=UTF-8")], json.to_string()).into_response()
}

pub(crate) fn pairs(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (plain(name), plain(value)))
        .collect()
}

/// Text without its escapes.
pub(crate) fn plain(text: &str) -> String {
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => (plain.push(byte), at += 3).1,
            None => (plain.push(bytes[at]), at += 1).1,
        }
    }
    String::from_utf8(plain).unwrap()
}

/// Text with all escaped that Google wants to see escaped.
pub(crate) fn escaped(text: &str, keep: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || keep.contains(byte);
    let one = |byte: u8| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The JSON API: listings, and single objects.
fn by_json(google: &Google, asked: &Asked, path: &str) -> Answer {
    believed(google, asked)?;
    let (bucket, rest) = path.split_once("/o").unwrap_or((path, ""));
    if bucket != BUCKET {
        let message = "The specified bucket does not exist.".to_owned();
        return Err(Refusal(StatusCode::NOT_FOUND, "notFound", message));
    }
    let objects = google.objects.lock().unwrap();
    let shown = |name: &str, object: &Stored| {
        let time = |at: SystemTime| DateTime::<Utc>::from(at).to_rfc3339();
        let (size, created, updated) = (object.bytes.len().to_string(), time(object.created), time(object.updated));
        json!({"name": name, "size": size, "timeCreated": created, "updated": updated})
    };
    if let Some(name) = rest.strip_prefix('/').map(plain) {
        let Some(object) = objects.get(&name) else {
            let message = format!("No such object: {BUCKET}/{name}");
            return Err(Refusal(StatusCode::NOT_FOUND, "notFound", message));
        };
        return Ok(said(shown(&name, object)));
    }
    let (prefix, from) = (asked.query("prefix").unwrap_or_default(), asked.query("startOffset").unwrap_or_default());
    let limit = asked.query("maxResults").map_or(1000, |most| most.parse::<usize>().unwrap()).clamp(1, 1000);
    let token = asked.query("pageToken");
    if token.is_none() && google.hesitates.load(Ordering::Relaxed) {
        return Ok(said(json!({"kind": "storage#objects", "nextPageToken": " "})));
    }
    let wanted = objects.iter().filter(|(name, _)| {
        name.starts_with(prefix) && name.as_str() >= from && token.is_none_or(|token| name.as_str() > token)
    });
    let mut items: Vec<Value> = wanted.take(limit + 1).map(|(name, object)| shown(name, object)).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let mut page = json!({"kind": "storage#objects"});
    if more {
        page["nextPageToken"] = items[limit - 1]["name"].clone();
    }
    // Where there are none, the field is left out.
    if !items.is_empty() {
        page["items"] = items.into();
    }
    Ok(said(page))
}

/// The XML API: objects' bytes, and uploads in parts.
fn by_xml(google: &Google, asked: &Asked, path: &str) -> Answer {
    believed(google, asked)?;
    let (bucket, key) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let key = plain(key);
    if plain(bucket) != BUCKET {
        return refuse(404, "NoSuchBucket");
    }
    let upload = asked.query("uploadId");
    match (asked.parts.method.as_str(), upload) {
        ("GET", None) if key.is_empty() && asked.query("uploads").is_some() => list_uploads(google, asked),
        ("PUT", None) => put(google, asked, &key),
        ("GET" | "HEAD", None) => get(google, asked, &key),
        ("DELETE", None) => match google.objects.lock().unwrap().remove(&key) {
            Some(_) => Ok(StatusCode::NO_CONTENT.into_response()),
            None => refuse(404, "NoSuchKey"),
        },
        ("POST", None) if asked.query("uploads").is_some() => Ok(begin(google, asked, &key)),
        ("PUT", Some(upload)) => put_part(google, asked, &key, upload),
        ("POST", Some(upload)) => complete(google, asked, &key, upload),
        ("DELETE", Some(upload)) => match google.uploads.lock().unwrap().remove(upload) {
            Some(_) => Ok(StatusCode::NO_CONTENT.into_response()),
            None => refuse(404, "NoSuchUpload"),
        },
        _ => refuse(400, "InvalidArgument"),
    }
}

fn stored(bytes: Bytes, headers: &HeaderMap) -> Stored {
    let now = SystemTime::now();
    let tag = format!("\"{}\"", &hex(digest(&SHA256, &bytes).as_ref())[..32]);
    Stored { bytes, tag, headers: headers.clone(), created: now, updated: now }
}

fn put(google: &Google, asked: &Asked, key: &str) -> Answer {
    if asked.parts.headers.contains_key("transfer-encoding") {
        return refuse(411, "MissingContentLength");
    }
    let object = stored(asked.body.clone(), &asked.parts.headers);
    let tag = object.tag.clone();
    google.objects.lock().unwrap().insert(key.to_owned(), object);
    Ok([("etag", tag)].into_response())
}

fn get(google: &Google, asked: &Asked, key: &str) -> Answer {
    let Some(object) = google.objects.lock().unwrap().get(key).cloned() else { return refuse(404, "NoSuchKey") };
    let size = object.bytes.len();
    let mut response = Response::builder()
        .header("etag", object.tag)
        .header("accept-ranges", "bytes")
        .header("last-modified", DateTime::<Utc>::from(object.updated).format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    // What is written down of an object counts more than what the URL says.
    for (name, wish) in
        [("content-type", "response-content-type"), ("content-disposition", "response-content-disposition")]
    {
        let own = object.headers.get(name).map(|value| value.to_str().unwrap());
        if let Some(value) = own.or_else(|| asked.query(wish)) {
            response = response.header(name, value);
        }
    }
    let range = asked.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let (status, bytes) = match range {
        None => (200, object.bytes),
        Some((from, to)) => {
            let from = from.parse::<usize>().unwrap();
            let end = to.parse::<usize>().map_or(size, |last| last + 1).min(size);
            if from >= end {
                return refuse(416, "InvalidRange");
            }
            response = response.header("content-range", format!("bytes {from}-{}/{size}", end - 1));
            (206, object.bytes.slice(from..end))
        }
    };
    response = response.header("content-length", bytes.len());
    if asked.parts.method == Method::HEAD {
        return Ok(response.body(Body::empty()).unwrap());
    }
    let chunks: Vec<_> = bytes.chunks(64 << 10).map(|chunk| Ok::<_, std::io::Error>(bytes.slice_ref(chunk))).collect();
    Ok(response.status(status).body(Body::from_stream(futures_util::stream::iter(chunks))).unwrap())
}

fn xml(text: String) -> Response {
    ([("content-type", "application/xml; charset=UTF-8")], text).into_response()
}

fn begin(google: &Google, asked: &Asked, key: &str) -> Response {
    let id = format!("VXBs/b2Fk+{}=", google.next.fetch_add(1, Ordering::Relaxed));
    let headers = asked.parts.headers.clone();
    let upload = Upload { key: key.to_owned(), headers, since: SystemTime::now(), parts: BTreeMap::new() };
    google.uploads.lock().unwrap().insert(id.clone(), upload);
    xml(format!(
        "<?xml version='1.0' encoding='UTF-8'?><InitiateMultipartUploadResult \
         xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
         <UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
    ))
}

fn put_part(google: &Google, asked: &Asked, key: &str, upload: &str) -> Answer {
    let number = asked.query("partNumber").and_then(|number| number.parse::<usize>().ok());
    let Some(number @ 1..=10_000) = number else { return refuse(400, "InvalidArgument") };
    let mut uploads = google.uploads.lock().unwrap();
    let Some(upload) = uploads.get_mut(upload).filter(|upload| upload.key == key) else {
        return refuse(404, "NoSuchUpload");
    };
    let part = stored(asked.body.clone(), &HeaderMap::new());
    let tag = part.tag.clone();
    upload.parts.insert(number, part);
    Ok([("etag", tag)].into_response())
}

#[derive(serde::Deserialize)]
#[serde(rename = "CompleteMultipartUpload", rename_all = "PascalCase")]
struct Completion {
    #[serde(default)]
    part: Vec<CompletedPart>,
}

#[derive(serde::Deserialize)]
struct CompletedPart {
    #[serde(rename = "PartNumber")]
    number: usize,
    #[serde(rename = "ETag")]
    tag: String,
}

fn complete(google: &Google, asked: &Asked, key: &str, id: &str) -> Answer {
    let mut uploads = google.uploads.lock().unwrap();
    let Some(upload) = uploads.get(id).filter(|upload| upload.key == key) else { return refuse(404, "NoSuchUpload") };
    let Ok(Completion { part: named }) = quick_xml::de::from_reader(&asked.body[..]) else {
        return refuse(400, "MalformedCompleteMultipartUploadRequest");
    };
    if named.is_empty() {
        return refuse(400, "MalformedCompleteMultipartUploadRequest");
    }
    let (mut whole, mut last) = (BytesMut::new(), 0);
    for (index, part) in named.iter().enumerate() {
        if part.number <= last {
            return refuse(400, "InvalidPartOrder");
        }
        last = part.number;
        let Some(stored) = upload.parts.get(&part.number).filter(|stored| stored.tag == part.tag) else {
            return refuse(400, "InvalidPart");
        };
        if index + 1 < named.len() && stored.bytes.len() < LEAST_PART {
            return refuse(400, "EntityTooSmall");
        }
        whole.extend_from_slice(&stored.bytes);
    }
    let object = stored(whole.freeze(), &upload.headers);
    let tag = object.tag.clone();
    google.objects.lock().unwrap().insert(key.to_owned(), object);
    uploads.remove(id);
    Ok(xml(format!(
        "<?xml version='1.0' encoding='UTF-8'?><CompleteMultipartUploadResult \
         xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Bucket>{BUCKET}</Bucket><Key>{key}</Key>\
         <ETag>{tag}</ETag></CompleteMultipartUploadResult>"
    )))
}

fn list_uploads(google: &Google, asked: &Asked) -> Answer {
    let value = |name: &str| asked.query(name).unwrap_or_default().to_owned();
    let (prefix, after) = (value("prefix"), (value("key-marker"), value("upload-id-marker")));
    let limit = asked.query("max-uploads").map_or(1000, |most| most.parse::<usize>().unwrap()).clamp(1, 1000);
    let uploads = google.uploads.lock().unwrap();
    let mut wanted: Vec<_> = uploads
        .iter()
        .map(|(id, upload)| ((upload.key.clone(), id.clone()), upload.since))
        .filter(|(name, _)| name.0.starts_with(&prefix) && *name > after)
        .collect();
    wanted.sort();
    let is_truncated = wanted.len() > limit;
    let shown: String = wanted
        .into_iter()
        .take(limit)
        .map(|((key, id), since)| {
            let since = DateTime::<Utc>::from(since).to_rfc3339();
            format!(
                "<Upload><Key>{key}</Key><UploadId>{id}</UploadId><StorageClass>STANDARD</StorageClass>\
                 <Initiated>{since}</Initiated></Upload>"
            )
        })
        .collect();
    Ok(xml(format!(
        "<?xml version='1.0' encoding='UTF-8'?><ListMultipartUploadsResult \
         xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Bucket>{BUCKET}</Bucket><Prefix>{prefix}</Prefix>\
         <MaxUploads>{limit}</MaxUploads><IsTruncated>{is_truncated}</IsTruncated>{shown}\
         </ListMultipartUploadsResult>"
    )))
}
