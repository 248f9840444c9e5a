//! Blobs: read, whole or in ranges, here or by a redirect, and deleted. They come in by [`super::uploads`].

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{
    HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION,
        ORIGIN, USER_AGENT, X_CONTENT_TYPE_OPTIONS,
    },
};
use std::{ops::Range, sync::Arc};
use ulid::Ulid;

use super::{
    body::{self, Outgoing},
    dispatch::Call,
    observe::{BlobBytes, Seen},
    range::{self, Wanted},
    respond::{self, CONTENT_DIGEST, FOREVER, NEVER, NO_SNIFF},
    route::Read,
};
use crate::{
    blob::Blob,
    error::{Error, Result},
    index::facts::EventTarget,
    oci::{Digest, RepositoryName},
    redirect::Asker,
};

/// The type of every blob: what it claims to be is for who pulls it, never for a browser (CVE-2026-103667).
const OCTET_STREAM: &str = "application/octet-stream";

/// For a browser that shows a blob all the same: as a page it may do nothing.
const SANDBOX: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// GET and HEAD. A HEAD is what pushers ask before they push what needs the blob, so it is kept for them.
pub(super) async fn read(call: &Call, name: &RepositoryName, digest: &Digest, read: Read) -> Result<Response> {
    let reader = call.reader(name).await?;
    let blob = match read {
        Read::Head => reader.blob_to_keep(digest).await?,
        Read::Get => reader.blob(digest).await?,
    };
    let response = match read {
        _ if range::has_already(&call.headers, digest) => respond::empty(StatusCode::NOT_MODIFIED),
        Read::Head => part(StatusCode::OK, Body::empty(), blob.size()),
        Read::Get => {
            let wanted = range::wanted(&call.headers, digest, blob.size());
            if !matches!(wanted, Wanted::Nothing) {
                let target = EventTarget::Blob(digest.clone(), blob.size());
                reader.tell_pull(None, target, || call.cause()).await;
            }
            if let Some(bytes) = wanted.length(blob.size())
                && let Some(url) = elsewhere(call, name, &blob).await?
            {
                return redirect(&url, digest, bytes);
            }
            here(blob, wanted).await?
        }
    };
    describe(response, digest)
}

/// The URL by which the client fetches the blob, where it is to fetch it elsewhere.
async fn elsewhere(call: &Call, name: &RepositoryName, blob: &Blob) -> Result<Option<Arc<str>>> {
    let Some(redirects) = &call.api.redirects else { return Ok(None) };
    // A page in a browser can't follow: the store would have to let in its origin, which after a redirect is
    // `null`. What it asks for is a config, to show it.
    if call.headers.contains_key(ORIGIN) || range::depends_on_digest(&call.headers) {
        return Ok(None);
    }
    let user_agent = call.headers.get(USER_AGENT).map(HeaderValue::as_bytes);
    redirects.url(Asker { address: call.client, user_agent, repository: name }, blob).await
}

/// 307 to a signed URL, for so many bytes. It is a password of sorts: no cache may keep it, and HTTP/2 doesn't
/// put it into its table either.
fn redirect(url: &str, digest: &Digest, bytes: u64) -> Result<Response> {
    let mut response = respond::empty(StatusCode::TEMPORARY_REDIRECT);
    let headers = response.headers_mut();
    let mut location = HeaderValue::from_str(url).map_err(Error::internal)?;
    location.set_sensitive(true);
    headers.insert(LOCATION, location);
    headers.insert(CONTENT_DIGEST, respond::text(digest.to_string())?);
    headers.insert(CACHE_CONTROL, NEVER);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response.extensions_mut().insert(Seen { blob: Some(BlobBytes::Redirected(bytes)), ..Seen::default() });
    Ok(response)
}

/// What is wanted of the blob, from the store through us.
async fn here(blob: Blob, wanted: Wanted) -> Result<Response> {
    let mut response = match wanted {
        Wanted::Whole => part(StatusCode::OK, send(&blob, None).await?, blob.size()),
        Wanted::One(range) => one(&blob, range).await?,
        Wanted::Several(ranges) => several(blob, ranges)?,
        Wanted::Nothing => return Ok(nothing(&blob)),
    };
    response.extensions_mut().insert(Seen { blob: Some(BlobBytes::Streamed), ..Seen::default() });
    Ok(response)
}

/// Adds what is true of every answer about a blob that is given here.
fn describe(mut response: Response, digest: &Digest) -> Result<Response> {
    let is_error = response.status().is_client_error();
    let headers = response.headers_mut();
    respond::name_content(headers, digest)?;
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if !is_error {
        headers.insert(CACHE_CONTROL, FOREVER);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CONTENT_SECURITY_POLICY, SANDBOX);
    Ok(response)
}

fn part(status: StatusCode, body: Body, length: u64) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().reserve(respond::HEADERS);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OCTET_STREAM));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// The bytes of a blob, or of a range of it.
async fn send(blob: &Blob, range: Option<Range<u64>>) -> Result<Body> {
    let length = range.as_ref().map_or(blob.size(), |range| range.end - range.start);
    let bytes = blob.open(range).await?.map_err(Into::into);
    Ok(body::exact(Box::pin(bytes), length))
}

async fn one(blob: &Blob, range: Range<u64>) -> Result<Response> {
    let (position, length) = (position(&range, blob.size()), range.end - range.start);
    let mut response = part(StatusCode::PARTIAL_CONTENT, send(blob, Some(range)).await?, length);
    response.headers_mut().insert(CONTENT_RANGE, respond::text(position)?);
    Ok(response)
}

/// Several ranges as `multipart/byteranges` (RFC 9110, section 14.6). Each is opened when the one before it
/// is sent.
fn several(blob: Blob, ranges: Vec<Range<u64>>) -> Result<Response> {
    let boundary = Ulid::r#gen();
    let mut pieces = Vec::new();
    for range in ranges {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: {OCTET_STREAM}\r\nContent-Range: {}\r\n\r\n",
            position(&range, blob.size())
        );
        pieces.push(Piece::Text(head.into()));
        pieces.push(Piece::Stored(range));
    }
    pieces.push(Piece::Text(format!("\r\n--{boundary}--\r\n").into()));
    let length = pieces.iter().map(Piece::length).sum();
    let bytes = stream::iter(pieces).then(move |piece| piece.open(blob.clone())).try_flatten();
    let mut response = part(StatusCode::PARTIAL_CONTENT, body::exact(Box::pin(bytes), length), length);
    let content_type = respond::text(format!("multipart/byteranges; boundary={boundary}"))?;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// A piece of a multipart answer.
enum Piece {
    Text(Bytes),
    Stored(Range<u64>),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Stored(range) => range.end - range.start,
        }
    }

    async fn open(self, blob: Blob) -> std::result::Result<Outgoing, axum::BoxError> {
        Ok(match self {
            Self::Text(text) => Box::pin(stream::once(async { Ok(text) })),
            Self::Stored(range) => Box::pin(blob.open(Some(range)).await?.map_err(Into::into)),
        })
    }
}

/// 416: no byte of the blob is in any of the ranges.
fn nothing(blob: &Blob) -> Response {
    let mut response = respond::empty(StatusCode::RANGE_NOT_SATISFIABLE);
    let size = HeaderValue::try_from(format!("bytes */{}", blob.size())).ok();
    response.headers_mut().extend(size.map(|size| (CONTENT_RANGE, size)));
    response
}

fn position(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

/// DELETE.
pub(super) async fn delete(call: &Call, name: &RepositoryName, digest: &Digest) -> Result<Response> {
    call.repository(name).await?.delete_blob(digest).await?;
    Ok(respond::empty(StatusCode::ACCEPTED))
}
