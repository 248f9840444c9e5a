//! HTTP: what clients say, turned into calls of the rules, and what the rules say, turned into answers.

pub mod admin;
mod blobs;
mod body;
mod catalog;
mod challenge;
pub mod cors;
mod dispatch;
pub mod health;
mod manifests;
pub mod observe;
pub mod origin;
pub mod query;
pub mod range;
mod referrers;
mod respond;
pub mod route;
mod tags;
mod token;
mod uploads;

use std::sync::Arc;

use axum::{
    Router,
    routing::{any, get},
};

use crate::{auth::Authority, redirect::Redirects, registry::Registry};

/// The API of one registry, for those whom `authority` lets in; `redirects` sends them elsewhere for the bytes of
/// blobs. It answers every path that no other route takes.
pub fn router(registry: Arc<Registry>, authority: Arc<Authority>, redirects: Option<Redirects>) -> Router {
    let api = Arc::new(dispatch::Api { registry, authority, redirects });
    Router::new()
        .route(challenge::TOKEN_PATH, any(token::token))
        .route("/.well-known/jwks.json", get(token::public_keys))
        .route("/.well-known/openid-configuration", get(token::configuration))
        .fallback(dispatch::answer)
        .with_state(api)
}
