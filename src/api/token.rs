//! The token service: `GET /v2/token` as Docker's token specification has it, `POST` as its OAuth2 form, and
//! what others need to verify the tokens.
//!
//! A grant is what was asked for as far as it is allowed; less than was asked is no error. Nothing is decided
//! here, and no answer is ever kept by a cache.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{AUTHORIZATION, CACHE_CONTROL, WWW_AUTHENTICATE},
    request::Parts,
};
use serde::Serialize;
use serde_json::json;

use super::{
    body,
    challenge::TOKEN_PATH,
    dispatch::{Api, not_allowed},
    observe::{RequestId, Seen},
    origin::{ClientAddress, Origin},
    query::Form,
    respond::{self, NEVER},
};
use crate::{
    auth::{Caller, Issued, Offline, Presented, scope::Scope},
    error::{Code, Error, Result},
};

/// The most bytes that a request may have: a service account's JSON key as the password, and a hundred scopes.
const MAX_FORM: usize = 64 << 10;

/// For how long a cache may keep the public keys, in seconds: less than a new key waits before it signs.
const KEYS_KEPT: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// What to say to who was wrong: here a password is asked for, and nothing else.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"Berth\"");

/// `/v2/token`.
pub(super) async fn token(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let id: Option<RequestId> = head.extensions.get().cloned();
    let mut seen = Seen::route("token");
    let answered = match head.method {
        _ if api.authority.token_options().realm.is_some() => Err(invalid("another service issues the tokens")),
        Method::GET | Method::HEAD => get(&api, &head, &mut seen).await,
        Method::POST => post(&api, &head, body, &mut seen).await,
        _ => return not_allowed("GET, HEAD, POST"),
    };
    let mut response = answered.unwrap_or_else(|error| {
        let is_wrong = matches!(error.code, Code::Unauthorized | Code::InvalidToken);
        let mut response = respond::error(error, id.as_ref());
        if is_wrong {
            response.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    });
    response.headers_mut().insert(CACHE_CONTROL, NEVER);
    seen.error = response.extensions_mut().remove::<Seen>().and_then(|seen| seen.error);
    response.extensions_mut().insert(seen);
    if head.method == Method::HEAD { response.map(|_| Body::empty()) } else { response }
}

/// Who asks shows a password by `Authorization: Basic`, or nothing.
async fn get(api: &Api, head: &Parts, seen: &mut Seen) -> Result<Response> {
    let form = Form::read(head.uri.query().unwrap_or_default());
    check_service(api, &form)?;
    let caller = api.authority.authenticate(&presented(&head.headers)?, address(head)).await?;
    let offline = form.get("offline_token").is_some_and(|value| value == "true");
    issue(api, &caller, &form, offline, seen)
}

/// Who asks shows a password or a refresh token in a form.
async fn post(api: &Api, head: &Parts, body: Body, seen: &mut Seen) -> Result<Response> {
    let bytes = body::read_whole(body, MAX_FORM).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("the form is not text"))?;
    let form = Form::read(text);
    check_service(api, &form)?;
    let caller = match form.get("grant_type") {
        Some("password") => {
            let (Some(name), Some(secret)) = (form.get("username"), form.get("password")) else {
                return Err(invalid("a password grant needs username and password"));
            };
            let presented = Presented::Password { name: name.to_owned(), secret: secret.to_owned() };
            api.authority.authenticate(&presented, address(head)).await?
        }
        Some("refresh_token") => {
            let token = form.get("refresh_token").ok_or_else(|| invalid("the refresh_token is missing"))?;
            api.authority.refresh(token).await?
        }
        _ => return Err(invalid("grant_type must be password or refresh_token")),
    };
    let offline = form.get("access_type").is_some_and(|value| value == "offline");
    issue(api, &caller, &form, offline, seen)
}

fn issue(api: &Api, caller: &Caller, form: &Form, offline: bool, seen: &mut Seen) -> Result<Response> {
    seen.identity = Some(caller.identity.to_string());
    let wanted = Scope::read(form.all("scope")).map_err(|_| invalid("a token can't be for so many resources"))?;
    let offline = if offline { Offline::Wanted } else { Offline::No };
    respond::json(&Granted::of(&api.authority.issue(caller, &wanted, offline)?))
}

/// What the token is good for, as clients read it: some take `token`, others `access_token`.
#[derive(Serialize)]
struct Granted<'a> {
    token: &'a str,
    access_token: &'a str,
    scope: String,
    token_type: &'static str,
    expires_in: u64,
    issued_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
}

impl<'a> Granted<'a> {
    fn of(issued: &'a Issued) -> Self {
        Self {
            token: &issued.token,
            access_token: &issued.token,
            scope: issued.scope.to_string(),
            token_type: "Bearer",
            expires_in: issued.expires_in.as_secs(),
            issued_at: &issued.issued_at,
            refresh_token: issued.refresh_token.as_deref(),
        }
    }
}

/// Refuses to issue a token for somebody else's service, which might believe it (CVE-2026-123710).
fn check_service(api: &Api, form: &Form) -> Result<()> {
    let ours = &api.authority.token_options().service;
    match form.get("service") {
        Some(service) if !service.is_empty() && service != ours => {
            let service: String = service.chars().take(100).collect();
            let why = "server.public_url, or auth.token.service, says what this registry calls itself";
            Err(invalid(&format!("tokens are for {ours:?} here, not for {service:?}; {why}")))
        }
        _ => Ok(()),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(Code::TokenRequestInvalid, message)
}

/// What a request shows.
pub(super) fn presented(headers: &HeaderMap) -> Result<Presented> {
    Presented::read(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))
}

/// Where a request comes from.
pub(super) fn address(head: &Parts) -> Option<IpAddr> {
    head.extensions.get::<ClientAddress>().map(|address| address.0)
}

/// `/.well-known/jwks.json`: the public halves of the keys.
pub(super) async fn public_keys(State(api): State<Arc<Api>>) -> Response {
    published("jwks", respond::json(&api.authority.keys().public()))
}

/// `/.well-known/openid-configuration`: as much of it as finds the keys.
pub(super) async fn configuration(State(api): State<Arc<Api>>, request: Request) -> Response {
    let origin = request.extensions().get::<Origin>().map(ToString::to_string).unwrap_or_default();
    let keys = api.authority.keys();
    let algorithms: Vec<&str> = keys.keys().iter().map(|key| key.kind.as_str()).collect();
    published(
        "openid_configuration",
        respond::json(&json!({
            "issuer": api.authority.token_options().issuer,
            "jwks_uri": format!("{origin}/.well-known/jwks.json"),
            "token_endpoint": format!("{origin}{TOKEN_PATH}"),
            "grant_types_supported": ["password", "refresh_token"],
            "response_types_supported": ["token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })),
    )
}

fn published(route: &'static str, answered: Result<Response>) -> Response {
    let mut response = answered.unwrap_or_else(|error| respond::error(error, None));
    response.headers_mut().insert(CACHE_CONTROL, KEYS_KEPT);
    response.extensions_mut().insert(Seen::route(route));
    response
}
