//! An S3 server that counts the parts of uploads and throws their bytes away, on a thread of its own: for a blob of
//! more bytes than a disk has. What is put whole is kept, as a registry reads it again.
//!
//! It checks that an upload is completed with exactly the parts that came, and believes every signature. It must
//! never answer for bytes that it doesn't have.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{counting::Aside, instance::Settings};

/// The one bucket.
const BUCKET: &str = "sink";

/// A running server.
#[derive(Debug)]
pub(crate) struct Sink {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    _aside: Aside,
}

/// What was put there.
#[derive(Debug, Default)]
struct Seen {
    objects: BTreeMap<String, Object>,
    /// The sizes of the parts of each upload that isn't complete, by number.
    uploads: HashMap<String, BTreeMap<u32, u64>>,
    begun: u64,
    total: Discarded,
}

#[derive(Debug)]
enum Object {
    Kept(Bytes),
    /// Of this size, but gone.
    Discarded(u64),
}

/// What was counted and thrown away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discarded {
    pub(crate) parts: u64,
    pub(crate) bytes: u64,
}

impl Sink {
    pub(crate) async fn start() -> Result<Self> {
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = Arc::clone(&seen);
        let serve = move |socket| {
            let seen = Arc::clone(&shared);
            let service = service_fn(move |request| answer(Arc::clone(&seen), request));
            let serving = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
            // A connection that breaks is the registry's to report.
            async { drop(serving.await) }
        };
        let (aside, address) = Aside::serve(serve).await?;
        Ok(Self { address, seen, _aside: aside })
    }

    /// What came in parts so far.
    pub(crate) fn discarded(&self) -> Discarded {
        locked(&self.seen).total
    }

    /// The settings of a Berth that keeps its bucket here.
    pub(crate) fn settings(&self) -> Settings {
        vec![
            ("BERTH_STORAGE__URL", format!("s3://{BUCKET}")),
            ("BERTH_STORAGE__S3__ENDPOINT", format!("http://{}", self.address)),
            ("BERTH_STORAGE__S3__REGION", "us-east-1".to_owned()),
            ("BERTH_STORAGE__S3__ACCESS_KEY_ID", "loadtest".to_owned()),
            ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", "loadtest".to_owned()),
        ]
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = Response<Full<Bytes>>;

async fn answer(seen: Arc<Mutex<Seen>>, request: Request<Incoming>) -> Result<Answer> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().trim_start_matches('/');
    let key = path.strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/').to_owned();
    let query = fields(head.uri.query().unwrap_or_default());
    if let (Some(number), Some(upload)) = (query.get("partNumber"), query.get("uploadId")) {
        let number: u32 = number.parse()?;
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            size += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        return Ok(part(&mut locked(&seen), upload, number, size));
    }
    let bytes = body.collect().await?.to_bytes();
    let mut seen = locked(&seen);
    let only_new = head.headers.contains_key("if-none-match");
    Ok(match head.method {
        Method::POST if query.contains_key("uploads") => begin(&mut seen),
        Method::POST => complete(&mut seen, key, &query, &String::from_utf8_lossy(&bytes)),
        Method::GET if key.is_empty() => said(StatusCode::OK, listing(&seen.objects, &query)),
        Method::GET | Method::HEAD => read(seen.objects.get(&key), &head.method),
        Method::PUT if only_new && seen.objects.contains_key(&key) => refusal(StatusCode::PRECONDITION_FAILED),
        Method::PUT => {
            seen.objects.insert(key, Object::Kept(bytes));
            said(StatusCode::OK, "")
        }
        Method::DELETE => {
            match query.get("uploadId") {
                Some(upload) => drop(seen.uploads.remove(upload)),
                None => drop(seen.objects.remove(&key)),
            }
            said(StatusCode::NO_CONTENT, "")
        }
        _ => refusal(StatusCode::NOT_IMPLEMENTED),
    })
}

fn begin(seen: &mut Seen) -> Answer {
    seen.begun += 1;
    let id = seen.begun.to_string();
    seen.uploads.insert(id.clone(), BTreeMap::new());
    let xml = format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
    said(StatusCode::OK, xml)
}

fn part(seen: &mut Seen, upload: &str, number: u32, size: u64) -> Answer {
    let Some(parts) = seen.uploads.get_mut(upload) else { return refusal(StatusCode::NOT_FOUND) };
    parts.insert(number, size);
    seen.total.parts += 1;
    seen.total.bytes += size;
    tagged(StatusCode::OK, &etag(upload, number), "")
}

/// What a part is called. It is no hash: no client may take one for it, and hashing would cost a core.
fn etag(upload: &str, number: u32) -> String {
    format!("\"{upload}-{number}\"")
}

/// Makes the object, if the parts that are named are those that came, each by its own tag and in order.
fn complete(seen: &mut Seen, key: String, query: &HashMap<String, String>, body: &str) -> Answer {
    let Some((upload, parts)) = query.get("uploadId").and_then(|upload| seen.uploads.remove_entry(upload)) else {
        return refusal(StatusCode::NOT_FOUND);
    };
    let body = body.replace("&quot;", "\"");
    let named: Vec<(u32, &str)> = between(&body, "<PartNumber>", "</PartNumber>")
        .filter_map(|number| number.parse().ok())
        .zip(between(&body, "<ETag>", "</ETag>"))
        .collect();
    let right = named.len() == parts.len()
        && parts.keys().zip(&named).all(|(&came, &(number, tag))| came == number && tag == etag(&upload, number));
    if !right {
        return refusal(StatusCode::BAD_REQUEST);
    }
    seen.objects.insert(key, Object::Discarded(parts.values().sum()));
    said(StatusCode::OK, "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>")
}

/// What stands between each pair of these marks.
fn between<'a>(text: &'a str, from: &'a str, to: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(from).skip(1).filter_map(move |rest| rest.split_once(to)).map(|(inner, _)| inner)
}

fn read(object: Option<&Object>, method: &Method) -> Answer {
    match object {
        None => refusal(StatusCode::NOT_FOUND),
        Some(Object::Kept(bytes)) => said(StatusCode::OK, bytes.clone()),
        Some(Object::Discarded(size)) if method == Method::HEAD => {
            let mut answer = said(StatusCode::OK, "");
            answer.headers_mut().insert("content-length", (*size).into());
            answer
        }
        Some(Object::Discarded(_)) => refusal(StatusCode::GONE),
    }
}

fn listing(objects: &BTreeMap<String, Object>, query: &HashMap<String, String>) -> String {
    let asked = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let (prefix, after, now) = (asked("prefix"), asked("start-after"), Utc::now().to_rfc3339());
    let found = objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after);
    let entries: String = found
        .map(|(key, object)| {
            let size = match object {
                Object::Kept(bytes) => bytes.len() as u64,
                Object::Discarded(size) => *size,
            };
            format!(
                "<Contents><Key>{key}</Key><LastModified>{now}</LastModified><ETag>\"whole\"</ETag>\
                 <Size>{size}</Size></Contents>"
            )
        })
        .collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>")
}

fn said(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    tagged(status, "\"whole\"", body)
}

fn tagged(status: StatusCode, tag: &str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    // Every object is as old as the answer that it is in.
    let modified = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for (name, value) in [("etag", tag), ("last-modified", &modified)] {
        if let Ok(value) = value.parse() {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

fn refusal(status: StatusCode) -> Answer {
    let code = if status == StatusCode::NOT_FOUND { "NoSuchKey" } else { "Refused" };
    said(status, format!("<Error><Code>{code}</Code></Error>"))
}

/// A query's fields, decoded.
fn fields(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        match piece.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => bytes.extend([&[byte], &piece.as_bytes()[2..]].concat()),
            None => bytes.extend(piece.as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_what_its_parts_were() {
        let mut seen = Seen::default();
        begin(&mut seen);
        for (number, size) in [(2, 7), (1, 5)] {
            assert_eq!(part(&mut seen, "1", number, size).headers()["etag"], etag("1", number));
        }
        let body = |second: &str| {
            format!(
                "<Part><PartNumber>1</PartNumber><ETag>\"1-1\"</ETag></Part><Part><ETag>{second}</ETag><PartNumber>2</PartNumber></Part>"
            )
        };
        let query = fields("uploadId=1");
        assert_eq!(complete(&mut seen, "a".to_owned(), &query, &body("&quot;1-2&quot;")).status(), 200);
        assert_eq!(seen.total, Discarded { parts: 2, bytes: 12 });
        assert_eq!(read(seen.objects.get("a"), &Method::HEAD).headers()["content-length"], "12");
        assert_eq!(read(seen.objects.get("a"), &Method::GET).status(), StatusCode::GONE);
        begin(&mut seen);
        part(&mut seen, "2", 1, 5);
        assert_eq!(complete(&mut seen, "b".to_owned(), &fields("uploadId=2"), &body("\"2-2\"")).status(), 400);
    }

    #[test]
    fn a_query_is_decoded() {
        let fields = fields("list-type=2&prefix=a%2Fb%20&empty");
        assert_eq!(
            (fields["prefix"].as_str(), fields["empty"].as_str(), fields["list-type"].as_str()),
            ("a/b ", "", "2")
        );
        assert_eq!(
            listing(&BTreeMap::from([("a/b".to_owned(), Object::Discarded(3))]), &fields).matches("<Key>").count(),
            0
        );
    }
}
