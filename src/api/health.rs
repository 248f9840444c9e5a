//! Whether this process lives, has started, and wants requests; and its metrics.
//!
//! A health route answers from memory, at once: one that asked the store would turn a slow store into a
//! restarted fleet. Whoever finds out that a component can't serve says so through [`Readiness`]. Where pulls
//! still work a process is degraded and ready all the same: a balancer that took all replicas out because one
//! server behind them is away would end the pulls too.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use axum::{Router, body::Body, response::Response, routing::get};
use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::Serialize;

use super::observe::Seen;
use crate::telemetry::{Metrics, metrics::CONTENT_TYPE as METRICS_TYPE};

/// Whether this process wants requests, and why not. Clones share one state.
#[derive(Clone, Default)]
pub struct Readiness(Arc<RwLock<State>>);

#[derive(Default)]
struct State {
    has_started: bool,
    is_draining: bool,
    /// By component, why it can't serve now.
    reasons: BTreeMap<&'static str, String>,
    /// By component, why only a part of it is served now.
    degraded: BTreeMap<&'static str, String>,
}

/// What a health route answers.
#[derive(Serialize)]
struct Report {
    status: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    reasons: BTreeMap<&'static str, String>,
}

impl Readiness {
    /// Not started yet, and so not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// What has to be done before the first request is done.
    pub fn started(&self) {
        self.write().has_started = true;
    }

    /// Why `component` can't serve now, or `None` if it can.
    pub fn set(&self, component: &'static str, reason: Option<String>) {
        let mut state = self.write();
        state.degraded.remove(component);
        match reason {
            Some(reason) => state.reasons.insert(component, reason),
            None => state.reasons.remove(component),
        };
    }

    /// Why `component` serves only a part of what it should; requests are wanted all the same.
    pub fn degrade(&self, component: &'static str, reason: String) {
        let mut state = self.write();
        state.reasons.remove(component);
        state.degraded.insert(component, reason);
    }

    /// Why only a part is served, by component.
    pub fn degraded(&self) -> BTreeMap<&'static str, String> {
        self.read().degraded.clone()
    }

    /// The process is about to end: not ready from now on, whatever else is said.
    pub fn drain(&self) {
        self.write().is_draining = true;
    }

    /// Whether requests are wanted.
    pub fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// Why no requests are wanted, by component; nothing if they are.
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        let state = self.read();
        let mut reasons = state.reasons.clone();
        if !state.has_started {
            reasons.insert("startup", "starting".to_owned());
        }
        if state.is_draining {
            reasons.insert("server", "draining".to_owned());
        }
        reasons
    }

    // No code panics while it holds the lock, and a state that is read after a panic is still whole.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.reasons()).finish()
    }
}

/// `/livez`, `/readyz` and `/startupz`, for every listener.
pub fn health_routes(readiness: Readiness) -> Router {
    let startup = readiness.clone();
    Router::new()
        .route("/livez", get(async || report("livez", "alive", BTreeMap::new())))
        .route("/readyz", get(async move || ready(&readiness)))
        .route(
            "/startupz",
            get(async move || {
                let mut reasons = startup.reasons();
                // Only the start counts: what breaks later must not have the process restarted.
                reasons.retain(|component, _| *component == "startup");
                report("startupz", "started", reasons)
            }),
        )
}

/// What the admin listener serves: health and `/metrics`.
pub fn admin_router(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    health_routes(readiness).route("/metrics", get(async move || scrape(&metrics)))
}

/// 200 if requests are wanted, with the reasons why only some of them can be served.
fn ready(readiness: &Readiness) -> Response {
    let (reasons, degraded) = (readiness.reasons(), readiness.degraded());
    match reasons.is_empty() && !degraded.is_empty() {
        true => say("readyz", StatusCode::OK, "degraded", degraded),
        false => report("readyz", "ready", reasons),
    }
}

/// 200 with `status` if there is no reason against it, else 503 with the reasons.
fn report(route: &'static str, status: &'static str, reasons: BTreeMap<&'static str, String>) -> Response {
    match reasons.is_empty() {
        true => say(route, StatusCode::OK, status, reasons),
        false => say(route, StatusCode::SERVICE_UNAVAILABLE, "unavailable", reasons),
    }
}

fn say(
    route: &'static str,
    code: StatusCode,
    status: &'static str,
    reasons: BTreeMap<&'static str, String>,
) -> Response {
    let body = serde_json::to_vec(&Report { status, reasons }).unwrap_or_default();
    answer(route, code, "application/json", body.into())
}

fn scrape(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(page) => answer("metrics", StatusCode::OK, METRICS_TYPE, page.into()),
        Err(_) => answer("metrics", StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Body::empty()),
    }
}

fn answer(route: &'static str, status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.extensions_mut().insert(Seen::route(route));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_started_without_a_reason_and_not_draining() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready());
        readiness.started();
        assert!(readiness.is_ready());
        readiness.set("index", Some("no lease".to_owned()));
        assert_eq!(readiness.reasons(), BTreeMap::from([("index", "no lease".to_owned())]));
        readiness.degrade("index", "away".to_owned());
        assert!(readiness.is_ready());
        assert_eq!(readiness.degraded(), BTreeMap::from([("index", "away".to_owned())]));
        readiness.set("index", None);
        assert!(readiness.is_ready() && readiness.degraded().is_empty());
        readiness.drain();
        readiness.started();
        assert_eq!(readiness.reasons(), BTreeMap::from([("server", "draining".to_owned())]));
    }
}
