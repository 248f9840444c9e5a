//! What every answer is made of: headers, JSON, and the one form of an error.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LINK, LOCATION, RETRY_AFTER},
};
use serde::Serialize;

use super::{
    observe::{ErrorSeen, RequestId, Seen},
    query,
};
use crate::{
    error::{Code, Error, Result},
    oci::Digest,
};

/// The digest of what an answer is about.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// For what never changes: a year, which is as long as caches understand.
pub(super) const FOREVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// For what may change at any time: keep it, but ask each time.
pub(super) const ASK_EACH_TIME: HeaderValue = HeaderValue::from_static("no-cache");

/// For what is only so now.
pub(super) const NEVER: HeaderValue = HeaderValue::from_static("no-store");

/// `nosniff`, for `X-Content-Type-Options`: what was pushed is never what a browser guesses it to be.
pub(super) const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// After how many seconds to try again. A new lease, or a request's turn, comes in about as many.
const TRY_AGAIN: HeaderValue = HeaderValue::from_static("2");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How many headers an answer has at most, as a rule: room for all of them at once costs one allocation and not three.
pub(super) const HEADERS: usize = 12;

/// The body of an error, as the distribution spec shapes it.
#[derive(Serialize)]
struct Errors<'a> {
    errors: [Item<'a>; 1],
}

#[derive(Serialize)]
struct Item<'a> {
    code: &'static str,
    message: &'a str,
    detail: &'a Option<serde_json::Value>,
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    response
}

/// 200 with these bytes, or as a HEAD tells of them.
pub(super) fn whole(content_type: HeaderValue, bytes: impl Into<Bytes>) -> Response {
    let bytes = bytes.into();
    let length = bytes.len() as u64;
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().reserve(HEADERS);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

/// 200 with this value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<Response> {
    Ok(whole(JSON, serde_json::to_vec(value).map_err(Error::internal)?))
}

/// 201 for what is now at `location`.
pub(super) fn created(location: String, digest: &Digest) -> Result<Response> {
    let mut response = empty(StatusCode::CREATED);
    response.headers_mut().insert(LOCATION, text(location)?);
    response.headers_mut().insert(CONTENT_DIGEST, text(digest.to_string())?);
    Ok(response)
}

/// An error as the client sees it: who meets a fault of ours is told the request's id and no cause.
pub(super) fn error(error: Error, id: Option<&RequestId>) -> Response {
    let (code, status) = error.code.wire();
    let id = id.filter(|_| status >= 500).map(RequestId::as_str);
    let message = match id {
        Some(id) => format!("{}; request id {id}", error.message),
        None => error.message,
    };
    let body = Errors { errors: [Item { code, message: &message, detail: &error.detail }] };
    // The one thing in it that could fail is a map with keys that aren't text, and JSON values have none.
    let mut response = whole(JSON, serde_json::to_vec(&body).unwrap_or_default());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // A cache in front would else go on saying 404 after the push.
    response.headers_mut().insert(CACHE_CONTROL, NEVER);
    match error.code {
        Code::Unavailable | Code::Suspect | Code::TooManyRequests => {
            let seconds = error.retry_after.map(|wait| HeaderValue::from(wait.as_millis().div_ceil(1000) as u64));
            response.headers_mut().insert(RETRY_AFTER, seconds.unwrap_or(TRY_AGAIN))
        }
        _ => None,
    };
    let seen = Seen { error: Some(ErrorSeen { code, cause: error.cause }), ..Seen::default() };
    response.extensions_mut().insert(seen);
    response
}

/// Adds `Docker-Content-Digest` and `ETag`, which is the same in quotes; they share one buffer.
pub(super) fn name_content(headers: &mut HeaderMap, digest: &Digest) -> Result<()> {
    let quoted = Bytes::from(format!("\"{digest}\""));
    let bare = quoted.slice(1..quoted.len() - 1);
    headers.insert(CONTENT_DIGEST, HeaderValue::from_maybe_shared(bare).map_err(Error::internal)?);
    headers.insert(ETAG, HeaderValue::from_maybe_shared(quoted).map_err(Error::internal)?);
    Ok(())
}

/// Adds the `Link` to the page after `last`. It is relative: clients refuse one to another scheme or host,
/// and only a proxy in front knows which those are. `filters` are parameters that go on, ready to be sent.
pub(super) fn link_next(response: &mut Response, path: &str, limit: usize, last: &str, filters: &str) -> Result<()> {
    let last = query::encode(last);
    let link = format!("<{path}?n={limit}&last={last}{filters}>; rel=\"next\"");
    response.headers_mut().insert(LINK, text(link)?);
    Ok(())
}

/// Text as a header's value.
pub(super) fn text(text: String) -> Result<HeaderValue> {
    HeaderValue::try_from(text).map_err(Error::internal)
}
