//! The way of every request of the API: parsed once, allowed once, done, answered.
//!
//! Handlers never ask whether they may: that is decided here, from the route alone, before anything is
//! looked up, so that the answer to who may not is the same whether a thing exists or not.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{ALLOW, AUTHORIZATION},
};
use serde_json::json;

use super::{
    blobs, catalog, manifests,
    observe::{RequestId, Seen},
    referrers, respond,
    route::{Access, Route, Unroutable},
    tags, uploads,
};
use crate::{
    auth::{Action, Authority, Caller, Grant, Presented},
    error::{Code, Error, Result},
    oci::RepositoryName,
    registry::{Registry, Repository},
};

/// What the API serves, and to whom.
#[derive(Debug)]
pub(super) struct Api {
    /// What is served.
    pub(super) registry: Arc<Registry>,
    /// Who may have it.
    pub(super) authority: Arc<Authority>,
}

/// One request that was allowed, as its handler needs it.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) caller: Caller,
    pub(super) grant: Grant,
    pub(super) headers: HeaderMap,
}

impl Call {
    /// The handle on a repository.
    pub(super) async fn repository(&self, name: &RepositoryName) -> Result<Repository> {
        self.api.registry.repository(name).await
    }

    /// Who asks, as tags' histories and uploads' ids know it.
    pub(super) fn by(&self) -> String {
        self.caller.identity.to_string()
    }

    /// Whether the caller may pull from `name`.
    pub(super) fn may_pull(&self, name: &RepositoryName) -> bool {
        self.api.authority.decide(&self.caller, name, Action::Pull).is_some()
    }

    /// Whether the caller may be told that there is a `name`.
    pub(super) fn may_see(&self, name: &RepositoryName) -> bool {
        self.api.authority.may_see(&self.caller, name)
    }
}

/// Answers one request.
pub(super) async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let id: Option<RequestId> = head.extensions.get().cloned();
    let is_head = head.method == Method::HEAD;
    let route = Route::parse(&head.method, head.uri.path(), head.uri.query(), &head.headers);
    let response = match route {
        Ok(route) => {
            let mut seen = seen(&route);
            let done = match identify(&api, &head.headers).await {
                Ok(caller) => {
                    seen.identity = Some(caller.identity.to_string());
                    admit_and_serve(api, caller, head.headers, route, body).await
                }
                Err(error) => Err(error),
            };
            see(done.unwrap_or_else(|error| respond::error(error, id.as_ref())), seen)
        }
        Err(Unroutable::Refused(error)) => respond::error(error, id.as_ref()),
        Err(Unroutable::Method(allow)) => not_allowed(allow),
    };
    // What a GET would have said of its body stays in the headers.
    if is_head { response.map(|_| Body::empty()) } else { response }
}

/// Finds out who asks.
async fn identify(api: &Api, headers: &HeaderMap) -> Result<Caller> {
    let presented = Presented::read(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))?;
    api.authority.authenticate(&presented).await
}

async fn admit_and_serve(
    api: Arc<Api>,
    caller: Caller,
    headers: HeaderMap,
    route: Route,
    body: Body,
) -> Result<Response> {
    let grant = admit(&api.authority, &route, &caller)?;
    serve(Call { api, caller, grant, headers }, route, body).await
}

/// Decides whether the caller may do what the route does.
fn admit(authority: &Authority, route: &Route, caller: &Caller) -> Result<Grant> {
    let (kind, name, action) = match route.access() {
        Access::Repository(repository, action) => {
            if let Some(grant) = authority.decide(caller, repository, action) {
                return Ok(grant);
            }
            ("repository", repository.as_str(), action.as_str())
        }
        Access::Any | Access::Catalog => {
            if authority.may_anything(caller) {
                return Ok(Grant { create_only: true });
            }
            ("registry", "catalog", "*")
        }
    };
    let detail = json!([{ "Type": kind, "Class": "", "Name": name, "Action": action }]);
    Err(Error::new(Code::Unauthorized, "authentication required").with_detail(detail))
}

/// Does what was asked for. A write runs to its end in a task of its own: when a client goes away, hyper
/// drops the answer that it waited for, and nothing may stop halfway for that.
async fn serve(call: Call, route: Route, body: Body) -> Result<Response> {
    if !route.is_write() {
        return run(call, route, body).await;
    }
    match tokio::spawn(run(call, route, body)).await {
        Ok(done) => done,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(stopped) => Err(Error::unavailable(stopped)),
        },
    }
}

async fn run(call: Call, route: Route, body: Body) -> Result<Response> {
    match route {
        Route::Ping => respond::json(&json!({})),
        Route::Catalog { page } => catalog::list(&call, page).await,
        Route::Tags { repository, page, form } => tags::list(&call, &repository, page, form).await,
        Route::ReadManifest { repository, reference, read } => {
            manifests::read(&call, &repository, &reference, read).await
        }
        Route::PushManifest { repository, reference, tags } => {
            manifests::push(&call, &repository, reference, tags, body).await
        }
        Route::DeleteManifest { repository, reference } => manifests::delete(&call, &repository, &reference).await,
        Route::ReadBlob { repository, digest, read } => blobs::read(&call, &repository, &digest, read).await,
        Route::DeleteBlob { repository, digest } => blobs::delete(&call, &repository, &digest).await,
        Route::StartUpload { repository, start } => uploads::start(&call, &repository, start, body).await,
        Route::UploadStatus { repository, upload } => uploads::status(&call, &repository, &upload).await,
        Route::Append { repository, upload } => uploads::append(&call, &repository, &upload, body).await,
        Route::Finish { repository, upload, digest } => {
            uploads::finish(&call, &repository, &upload, &digest, body).await
        }
        Route::Cancel { repository, upload } => uploads::cancel(&call, &repository, &upload).await,
        Route::Referrers { repository, subject, artifact_type, page } => {
            referrers::list(&call, &repository, &subject, artifact_type, page).await
        }
    }
}

fn not_allowed(allow: &'static str) -> Response {
    let mut response = respond::error(Error::new(Code::Unsupported, "this can't be done with it"), None);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// What the log and the metrics are told of a route.
fn seen(route: &Route) -> Seen {
    Seen {
        repository: route.repository().map(|name| name.as_str().to_owned()),
        reference: route.reference().map(str::to_owned),
        ..Seen::route(route.name())
    }
}

/// Tells them, together with what the answer may know of its error.
fn see(mut response: Response, seen: Seen) -> Response {
    let error = response.extensions_mut().remove::<Seen>().and_then(|seen| seen.error);
    response.extensions_mut().insert(Seen { error, ..seen });
    response
}
