//! The way of every request of the API: parsed once, allowed once, done, answered.
//!
//! Handlers never ask whether they may: that is decided here, from the route alone, before anything is
//! looked up, so that the answer to who may not is the same whether a thing exists or not.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{ALLOW, USER_AGENT},
    request::Parts,
};
use serde_json::json;

use super::{
    blobs, catalog, challenge, manifests,
    observe::{RequestId, Seen},
    origin::Origin,
    referrers, respond,
    route::{Access, Route, Unroutable},
    tags, token, uploads,
};
use crate::{
    auth::{Action, Authority, Caller, Grant},
    error::{Code, Error, Result},
    event::Cause,
    index::facts::RequestFact,
    oci::RepositoryName,
    reader::Reader,
    redirect::Redirects,
    registry::{Registry, Repository},
};

/// What the API serves, and to whom.
#[derive(Debug)]
pub(super) struct Api {
    /// What is served.
    pub(super) registry: Arc<Registry>,
    /// Who may have it.
    pub(super) authority: Arc<Authority>,
    /// Who fetches the bytes of blobs elsewhere; `None` where nobody does.
    pub(super) redirects: Option<Redirects>,
}

/// One request that was allowed, as its handler needs it.
pub(super) struct Call {
    pub(super) api: Arc<Api>,
    pub(super) caller: Caller,
    pub(super) grant: Grant,
    pub(super) headers: HeaderMap,
    /// The client's address, where it is known.
    pub(super) client: Option<IpAddr>,
    /// How the client names this registry.
    origin: Option<Origin>,
    method: Method,
    id: Option<RequestId>,
}

impl Call {
    /// A repository for a request that only reads it.
    pub(super) async fn reader(&self, name: &RepositoryName) -> Result<Reader> {
        self.api.registry.reader(name).await
    }

    /// The handle on a repository, for a request that changes it or needs the index.
    pub(super) async fn repository(&self, name: &RepositoryName) -> Result<Repository> {
        Ok(self.api.registry.repository(name).await?.caused_by(self.cause()))
    }

    /// Of what all comes that this request does.
    pub(super) fn cause(&self) -> Cause {
        let is_told = !self.api.registry.interests().is_empty();
        Cause { by: self.by(), request: is_told.then(|| self.request()), quiet: false }
    }

    /// The request, for who is told what it did.
    fn request(&self) -> RequestFact {
        let user_agent = self.headers.get(USER_AGENT).map(HeaderValue::as_bytes).unwrap_or_default();
        let user_agent = &user_agent[..user_agent.len().min(MAX_USER_AGENT)];
        RequestFact {
            id: self.id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            addr: self.client,
            origin: self.origin.as_ref().map(Origin::to_string).unwrap_or_default(),
            method: self.method.to_string(),
            user_agent: String::from_utf8_lossy(user_agent).into_owned(),
        }
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

/// As much of a `User-Agent` as who is told gets, in bytes.
const MAX_USER_AGENT: usize = 256;

/// Answers one request.
pub(super) async fn answer(State(api): State<Arc<Api>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let id: Option<RequestId> = head.extensions.get().cloned();
    let is_head = head.method == Method::HEAD;
    let response = match Route::parse(&head.method, head.uri.path(), head.uri.query(), &head.headers) {
        Ok(route) => {
            let mut seen = seen(&route);
            let response = match enter(&api, &head, &route, &mut seen).await {
                Ok((caller, grant)) => {
                    let client = token::address(&head);
                    let origin = head.extensions.get().cloned();
                    let Parts { method, headers, .. } = head;
                    let call = Call { api, caller, grant, headers, client, origin, method, id: id.clone() };
                    serve(call, route, body).await.unwrap_or_else(|error| respond::error(error, id.as_ref()))
                }
                Err(error) => {
                    let origin = head.extensions.get::<Origin>();
                    challenge::refuse(error, id.as_ref(), &api.authority, origin, &challenge::needed(&route))
                }
            };
            see(response, seen)
        }
        Err(Unroutable::Refused(error)) => respond::error(error, id.as_ref()),
        Err(Unroutable::Method(allow)) => not_allowed(allow),
    };
    // What a GET would have said of its body stays in the headers.
    if is_head { response.map(|_| Body::empty()) } else { response }
}

/// Finds out who asks, and decides whether they may do what the route does.
async fn enter(api: &Api, head: &Parts, route: &Route, seen: &mut Seen) -> Result<(Caller, Grant)> {
    let caller = api.authority.authenticate(&token::presented(&head.headers)?, token::address(head)).await?;
    seen.identity = Some(caller.identity.to_string());
    let grant = match route.access() {
        Access::Repository(repository, action) => api.authority.decide(&caller, repository, action),
        Access::Any => api.authority.is_welcome(&caller).then_some(NOTHING),
        Access::Catalog => api.authority.may_list(&caller).then_some(NOTHING),
    };
    let grant = grant.ok_or_else(|| challenge::lacking(route, &caller.identity))?;
    Ok((caller, grant))
}

/// What those hold who asked for nothing in a repository.
const NOTHING: Grant = Grant { create_only: true };

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
    // Each request's future has room for the largest of these, and is moved several times before it begins. So what is
    // large, and works for longer than a box costs, is in one: 5.4 KB are moved and not 15.3, and of the CPU for a manifest
    // by tag 1.0 % and not 2.5 is spent on that.
    match route {
        Route::Ping => respond::json(&json!({})),
        Route::Catalog { page } => Box::pin(catalog::list(&call, page)).await,
        Route::Tags { repository, page, form } => tags::list(&call, &repository, page, form).await,
        Route::ReadManifest { repository, reference, read } => {
            manifests::read(&call, &repository, &reference, read).await
        }
        Route::PushManifest { repository, reference, tags } => {
            Box::pin(manifests::push(&call, &repository, reference, tags, body)).await
        }
        Route::DeleteManifest { repository, reference } => {
            Box::pin(manifests::delete(&call, &repository, &reference)).await
        }
        Route::ReadBlob { repository, digest, read } => blobs::read(&call, &repository, &digest, read).await,
        Route::DeleteBlob { repository, digest } => Box::pin(blobs::delete(&call, &repository, &digest)).await,
        Route::StartUpload { repository, start } => Box::pin(uploads::start(&call, &repository, start, body)).await,
        Route::UploadStatus { repository, upload } => Box::pin(uploads::status(&call, &repository, &upload)).await,
        Route::Append { repository, upload } => Box::pin(uploads::append(&call, &repository, &upload, body)).await,
        Route::Finish { repository, upload, digest } => {
            Box::pin(uploads::finish(&call, &repository, &upload, &digest, body)).await
        }
        Route::Cancel { repository, upload } => Box::pin(uploads::cancel(&call, &repository, &upload)).await,
        Route::Referrers { repository, subject, artifact_type, page } => {
            Box::pin(referrers::list(&call, &repository, &subject, artifact_type, page)).await
        }
    }
}

/// 405 with what can be done.
pub(super) fn not_allowed(allow: &'static str) -> Response {
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

/// Tells them, together with what the answer may know of its error and of a blob's bytes.
fn see(mut response: Response, seen: Seen) -> Response {
    let Seen { error, blob, .. } = response.extensions_mut().remove().unwrap_or_default();
    response.extensions_mut().insert(Seen { error, blob, ..seen });
    response
}
