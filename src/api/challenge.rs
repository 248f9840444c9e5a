//! What is said to who may not come in: where to get a token, and for what. Nothing is decided here.

use axum::response::Response;
use http::{HeaderValue, header::WWW_AUTHENTICATE};
use serde_json::{Value, json};

use super::{
    observe::RequestId,
    origin::Origin,
    respond,
    route::{Access, Route, Start},
};
use crate::{
    auth::{Action, Authority, Identity, Subject, scope::Scope},
    error::{Code, Error},
};

/// The path of the token service.
pub(super) const TOKEN_PATH: &str = "/v2/token";

/// What a token must be good for to do what a route does.
pub(super) fn needed(route: &Route) -> Scope {
    let mut scope = match route.access() {
        Access::Any => Scope::default(),
        Access::Catalog => Scope::catalog(),
        Access::Repository(repository, action) => Scope::needed(repository, action),
    };
    if let Route::StartUpload { start: Start::Mount { from: Some(from), .. }, .. } = route {
        scope.add(from, Action::Pull);
    }
    scope
}

/// The error of a caller who lacks a right that `route` needs: the same whether what it names exists or not.
pub(super) fn lacking(route: &Route, identity: &Identity) -> Error {
    let scope = needed(route);
    if scope.is_empty() {
        return Error::new(Code::Unauthorized, "authentication required");
    }
    let entry =
        |kind: &str, name: &str, action: &str| json!({ "Type": kind, "Class": "", "Name": name, "Action": action });
    let mut detail: Vec<Value> = Vec::new();
    if scope.catalog {
        detail.push(entry("registry", "catalog", "*"));
    }
    for (name, actions) in &scope.repositories {
        detail.extend(actions.iter().map(|action| entry("repository", name.as_str(), action.as_str())));
    }
    let message = match identity.subject {
        Subject::Anonymous => "authentication required".to_owned(),
        _ => format!("{identity} has no right, or this token isn't good, for {scope}"),
    };
    Error::new(Code::InsufficientScope, message).with_detail(detail.into())
}

/// The answer with that error. Clients take realm, service and scope from it to the token service.
pub(super) fn refuse(
    error: Error,
    id: Option<&RequestId>,
    authority: &Authority,
    origin: Option<&Origin>,
    scope: &Scope,
) -> Response {
    let reason = match error.code {
        Code::Unauthorized => None,
        Code::InvalidToken => Some("invalid_token"),
        Code::InsufficientScope => Some("insufficient_scope"),
        _ => return respond::error(error, id),
    };
    let mut response = respond::error(error, id);
    let challenge = HeaderValue::try_from(challenge(authority, origin, scope, reason)).ok();
    response.headers_mut().extend(challenge.map(|challenge| (WWW_AUTHENTICATE, challenge)));
    response
}

/// As the token specification writes it, which has no space behind its commas.
fn challenge(authority: &Authority, origin: Option<&Origin>, scope: &Scope, reason: Option<&str>) -> String {
    let options = authority.token_options();
    let realm = match (&options.realm, origin) {
        (Some(realm), _) => realm.clone(),
        (None, Some(origin)) => format!("{origin}{TOKEN_PATH}"),
        (None, None) => TOKEN_PATH.to_owned(),
    };
    let mut text = format!("Bearer realm=\"{realm}\",service=\"{}\"", options.service);
    if !scope.is_empty() {
        text.push_str(&format!(",scope=\"{scope}\""));
    }
    if let Some(reason) = reason {
        text.push_str(&format!(",error=\"{reason}\""));
    }
    text
}
