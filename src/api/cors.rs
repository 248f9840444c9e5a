//! Which web pages of other origins may talk to this registry: browser UIs.
//!
//! No answer ever allows credentials in the sense of CORS (cookies, the browser's own passwords): a UI sends
//! its token in `Authorization` by itself. So allowing every origin shows a page nothing that its user's
//! token wouldn't.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

use super::observe::Seen;

const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";

const REQUEST_HEADERS: &str = "Authorization, Content-Type, Content-Range, Range, Accept, If-Match, If-None-Match, \
                               OCI-Tag, X-Request-Id";

const RESPONSE_HEADERS: &str = "Docker-Content-Digest, Docker-Distribution-API-Version, Docker-Upload-UUID, Link, \
                                Location, Range, Content-Range, ETag, OCI-Subject, OCI-Tag, OCI-Filters-Applied, \
                                OCI-Chunk-Min-Length, Retry-After, WWW-Authenticate, X-Request-Id";

/// How long a browser may remember a preflight: as long as any will, which is Chromium's two hours.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// A configured origin that is none, and what is wrong with it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: it must be \"*\" or scheme://host[:port], in lower case, without a path")]
pub struct NotAnOrigin(pub String);

/// The origins that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every one.
    Any,
    /// These; with none of them, CORS is off.
    Only(Arc<[HeaderValue]>),
}

impl Origins {
    /// Reads the configured list: `*`, or origins exactly as browsers send them.
    pub fn parse(configured: &[String]) -> Result<Self, NotAnOrigin> {
        if configured.iter().any(|origin| origin == "*") {
            return Ok(Self::Any);
        }
        configured.iter().map(|origin| parse_origin(origin)).collect::<Result<_, _>>().map(Self::Only)
    }

    /// Goes around `router`; with no origins it is returned as it is.
    pub fn around(self, router: Router) -> Router {
        match &self {
            Self::Only(origins) if origins.is_empty() => router,
            _ => router.layer(middleware::from_fn_with_state(self, answer)),
        }
    }

    /// What to send as `Access-Control-Allow-Origin` to a page of `origin`.
    fn allow(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match self {
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Only(origins) => origins.contains(origin).then(|| origin.clone()),
        }
    }
}

/// Browsers compare and send origins in one spelling, so anything else in the configuration could never
/// match and is a mistake.
fn parse_origin(text: &str) -> Result<HeaderValue, NotAnOrigin> {
    let refused = || NotAnOrigin(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| refused())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(refused()) };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(refused()),
    };
    if text != format!("{scheme}://{authority}").to_lowercase()
        || authority.as_str().contains(['@', '*'])
        || authority.port_u16() == Some(default_port)
    {
        return Err(refused());
    }
    HeaderValue::from_str(text).map_err(|_| refused())
}

/// Answers preflights, and marks the other answers. A request without an origin passes unmarked but for
/// `Vary`, which a shared cache needs to see on those too.
async fn answer(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let allowed = request.headers().get(ORIGIN).and_then(|origin| origins.allow(origin));
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match is_preflight {
        true => preflight(allowed.is_some()),
        false => next.run(request).await,
    };
    mark(response.headers_mut(), &origins, allowed, is_preflight);
    response
}

/// 204 in any case: a browser judges by the headers alone.
fn preflight(is_allowed: bool) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.extensions_mut().insert(Seen::route("preflight"));
    if is_allowed {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE.as_secs()));
    }
    response
}

fn mark(headers: &mut HeaderMap, origins: &Origins, allowed: Option<HeaderValue>, is_preflight: bool) {
    if matches!(origins, Origins::Only(_)) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    let Some(allowed) = allowed else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if !is_preflight {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_HEADERS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_checked_when_they_are_read() {
        let parse = |text: &str| Origins::parse(&[text.to_owned()]);
        for good in ["*", "https://ui.example.com", "http://localhost:8080", "http://127.0.0.1:3000", "https://[::1]:1"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "null",
            "ui.example.com",
            "https://ui.example.com/",
            "https://ui.example.com/path",
            "https://UI.example.com",
            "https://ui.example.com:443",
            "http://ui.example.com:80",
            "https://user@ui.example.com",
            "https://*.example.com",
            "ftp://example.com",
        ] {
            assert_eq!(parse(bad), Err(NotAnOrigin(bad.to_owned())), "{bad}");
        }
    }
}
