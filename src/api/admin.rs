//! The admin API, on the admin listener: accounts, rules and the delivery of events, as JSON. `docs/admin-api.md` has its shapes.
//!
//! Here a request is parsed and it is found out who manages; what that one may do is decided by the roster.
//! The command line speaks this API too, to a server or, with the bucket at hand, to one within its process.

mod events;
mod shapes;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, HOST, ORIGIN, WWW_AUTHENTICATE},
};
use serde::de::DeserializeOwned;

use self::shapes::{
    AccountShape, Accounts, ChangedAccount, Explained, NewAccount, NewKeyShape, Question, Rotation, RuleShape, Rules,
};
use super::{
    observe::{Peer, RequestId, Seen},
    respond,
};
use crate::{
    auth::{Authority, Presented},
    config::Rule,
    delivery::{Deliverer, Which},
    error::{Code, Error, Result},
    index::facts::Account,
    roster::{Roster, manage::Manager},
    storage::{StoreTime, key::EntryName},
};

/// Under what all of it is. No repository has such a name.
pub const PREFIX: &str = "/_/v1/";

/// The largest body of a request, in bytes: a rule with some hundreds of patterns.
const MAX_BODY: usize = 64 << 10;

/// Whom the listener lets manage without asking who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever is on this machine, but no page in a browser on it.
    Machine,
    /// Nobody.
    Nobody,
}

/// What the admin API manages, and for whom.
#[derive(Debug)]
pub struct AdminApi {
    /// The accounts and rules.
    pub roster: Arc<Roster>,
    /// Who tells the endpoints of events.
    pub deliverer: Arc<Deliverer>,
    /// Who asks.
    pub authority: Arc<Authority>,
    /// Who isn't asked.
    pub trust: Trust,
}

/// What can be asked of.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Accounts,
    Account(EntryName),
    Rotate(EntryName),
    Rules,
    Rule(EntryName),
    Explain,
    Endpoints,
    Letters(EntryName, Which),
    Replay(EntryName),
    Test(EntryName),
}

impl Route {
    fn parse(path: &str) -> Option<Self> {
        let path = path.strip_prefix(PREFIX)?;
        let parts: Vec<&str> = path.split('/').collect();
        Some(match *parts.as_slice() {
            ["accounts"] => Self::Accounts,
            ["accounts", name] => Self::Account(name.parse().ok()?),
            ["accounts", name, "rotate"] => Self::Rotate(name.parse().ok()?),
            ["rules"] => Self::Rules,
            ["rules", name] => Self::Rule(name.parse().ok()?),
            ["explain"] => Self::Explain,
            ["events", "endpoints"] => Self::Endpoints,
            ["events", "endpoints", name, "pending"] => Self::Letters(name.parse().ok()?, Which::Pending),
            ["events", "endpoints", name, "dead"] => Self::Letters(name.parse().ok()?, Which::Dead),
            ["events", "endpoints", name, "replay"] => Self::Replay(name.parse().ok()?),
            ["events", "endpoints", name, "test"] => Self::Test(name.parse().ok()?),
            _ => return None,
        })
    }

    fn allow(&self) -> &'static str {
        match self {
            Self::Accounts => "GET, POST",
            Self::Account(_) => "GET, PATCH, DELETE",
            Self::Rotate(_) | Self::Explain | Self::Replay(_) | Self::Test(_) => "POST",
            Self::Rules | Self::Endpoints | Self::Letters(..) => "GET",
            Self::Rule(_) => "GET, PUT, DELETE",
        }
    }
}

/// The routes of the admin API.
pub fn router(api: Arc<AdminApi>) -> Router {
    let answer = async |State(api): State<Arc<AdminApi>>, request: Request| api.answer(request).await;
    Router::new().route(&format!("{PREFIX}{{*rest}}"), axum::routing::any(answer)).with_state(api)
}

impl AdminApi {
    /// Answers one request.
    pub async fn answer(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let id: Option<RequestId> = head.extensions.get().cloned();
        let address = head.extensions.get::<Peer>().map(|peer| peer.0.ip().to_canonical());
        let done = match self.manager(&head.headers, address).await {
            Ok(manager) => self.serve(&manager, &head.method, head.uri.path(), body).await,
            Err(error) => Err(error),
        };
        let mut response = done.unwrap_or_else(|error| respond::error(error, id.as_ref()));
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Berth\""));
        }
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let error = response.extensions_mut().remove::<Seen>().and_then(|seen| seen.error);
        response.extensions_mut().insert(Seen { error, ..Seen::route("admin") });
        response
    }

    /// Answers whoever runs this process, and so holds the bucket: the status and the body, which is JSON or empty.
    pub async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let done = self.serve(&Manager::Root("bucket"), &method, path, Body::from(body)).await;
        let (head, body) = done.unwrap_or_else(|error| respond::error(error, None)).into_parts();
        // It is in memory, and so it can be read.
        (head.status, to_bytes(body, usize::MAX).await.unwrap_or_default())
    }

    async fn serve(&self, manager: &Manager, method: &Method, path: &str, body: Body) -> Result<Response> {
        let route = Route::parse(path).ok_or_else(|| Error::new(Code::NameUnknown, "there is no such page"))?;
        let body = to_bytes(body, MAX_BODY).await.map_err(|error| {
            Error::new(Code::RequestInvalid, format!("the body may have {MAX_BODY} bytes at most")).because(error)
        })?;
        match (method, &route) {
            (&Method::GET, Route::Accounts) => self.accounts(manager).await,
            (&Method::POST, Route::Accounts) => self.create(manager, &body).await,
            (&Method::GET, Route::Account(name)) => self.account(manager, name).await,
            (&Method::PATCH, Route::Account(name)) => self.change(manager, name, &body).await,
            (&Method::DELETE, Route::Account(name)) => {
                self.roster.delete_account(manager, name).await?;
                Ok(respond::empty(StatusCode::NO_CONTENT))
            }
            (&Method::POST, Route::Rotate(name)) => self.rotate(manager, name, &body).await,
            (&Method::GET, Route::Rules) => self.rules(manager).await,
            (&Method::GET, Route::Rule(name)) => self.rule(manager, name).await,
            (&Method::PUT, Route::Rule(name)) => {
                let rule: Rule = read(&body)?;
                let rule = self.roster.put_rule(manager, name, &rule).await?;
                respond::json(&RuleShape::of(name, &rule))
            }
            (&Method::DELETE, Route::Rule(name)) => {
                self.roster.delete_rule(manager, name).await?;
                Ok(respond::empty(StatusCode::NO_CONTENT))
            }
            (&Method::POST, Route::Explain) => self.explain(manager, &body).await,
            (&Method::GET, Route::Endpoints) => self.endpoints(manager).await,
            (&Method::GET, Route::Letters(name, which)) => self.letters(manager, name, *which).await,
            (&Method::POST, Route::Replay(name)) => self.replay(manager, name, &body).await,
            (&Method::POST, Route::Test(name)) => self.test(manager, name).await,
            _ => {
                let mut response = respond::error(Error::new(Code::Unsupported, "this can't be done with it"), None);
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(route.allow()));
                Ok(response)
            }
        }
    }

    /// Who manages, which is decided before anything else: who manages nothing learns nothing.
    async fn manager(&self, headers: &HeaderMap, address: Option<IpAddr>) -> Result<Manager> {
        match self.trust {
            Trust::Machine => return is_no_page(headers).map(|()| Manager::Root("loopback")),
            Trust::Nobody => {}
        }
        let presented = match Presented::read(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes))? {
            // A token stands for its holder here as it does in the place of a password: an ID token, or one of
            // ours that was issued for nothing in particular.
            Presented::Token(secret) => Presented::Password { name: "_token".to_owned(), secret },
            presented => presented,
        };
        // The rules that were made at run time count too, as they are now.
        self.roster.current().await?;
        let caller = self.authority.authenticate(&presented, address).await?;
        if !caller.has_logged_in() {
            // A token for images was perhaps given away, for those.
            return Err(Error::new(Code::Unauthorized, "authentication required"));
        }
        let manager = Manager::Admin { identity: caller.identity, rules: self.authority.rules() };
        if manager.manages_anything() {
            return Ok(manager);
        }
        Err(Error::new(Code::Denied, "this takes the role admin in some repository"))
    }

    async fn accounts(&self, manager: &Manager) -> Result<Response> {
        let (entries, uses, now) = (self.roster.current().await?, self.roster.uses().await?, self.roster.now());
        let theirs = entries.accounts.iter().filter(|(_, account)| manager.manages_account(account));
        let accounts = theirs.map(|(name, account)| AccountShape::of(name, account, uses.get(name).copied(), now));
        respond::json(&Accounts { accounts: accounts.collect() })
    }

    async fn account(&self, manager: &Manager, name: &EntryName) -> Result<Response> {
        let entries = self.roster.current().await?;
        match entries.accounts.get(name).filter(|account| manager.manages_account(account)) {
            Some(account) => respond::json(&self.shape(name, account).await?),
            None => Err(Error::new(Code::NameUnknown, format!("there is no account {name}"))),
        }
    }

    async fn shape(&self, name: &EntryName, account: &Account) -> Result<AccountShape> {
        let last_used: Option<StoreTime> = self.roster.uses().await?.get(name).copied();
        Ok(AccountShape::of(name, account, last_used, self.roster.now()))
    }

    async fn create(&self, manager: &Manager, body: &Bytes) -> Result<Response> {
        let new: NewAccount = read(body)?;
        let name = new.name.clone();
        let (account, key) = self.roster.create_account(manager, &name, &new.wanted()?).await?;
        let account = AccountShape::of(&name, &account, None, self.roster.now());
        let mut response = respond::json(&NewKeyShape { account, key: key.file(&name) })?;
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    }

    async fn change(&self, manager: &Manager, name: &EntryName, body: &Bytes) -> Result<Response> {
        let change: ChangedAccount = read(body)?;
        let account = self.roster.change_account_to(manager, name, &change.wanted()?).await?;
        respond::json(&self.shape(name, &account).await?)
    }

    async fn rotate(&self, manager: &Manager, name: &EntryName, body: &Bytes) -> Result<Response> {
        let Rotation { overlap_seconds } = if body.is_empty() { Rotation::default() } else { read(body)? };
        let overlap = Duration::from_secs(overlap_seconds);
        let (account, key) = self.roster.rotate_account(manager, name, overlap).await?;
        respond::json(&NewKeyShape { account: self.shape(name, &account).await?, key: key.file(name) })
    }

    async fn rules(&self, manager: &Manager) -> Result<Response> {
        let entries = self.roster.current().await?;
        let theirs = entries.rules.iter().filter(|(_, rule)| manager.manages_rule(rule));
        respond::json(&Rules { rules: theirs.map(|(name, rule)| RuleShape::of(name, rule)).collect() })
    }

    async fn rule(&self, manager: &Manager, name: &EntryName) -> Result<Response> {
        let entries = self.roster.current().await?;
        match entries.rules.get(name).filter(|rule| manager.manages_rule(rule)) {
            Some(rule) => respond::json(&RuleShape::of(name, rule)),
            None => Err(Error::new(Code::NameUnknown, format!("there is no rule {name}"))),
        }
    }

    /// What somebody may do by all rules together, those of the configuration and those of the roster.
    async fn explain(&self, manager: &Manager, body: &Bytes) -> Result<Response> {
        let question: Question = read(body)?;
        let (identity, repository, action) = question.read()?;
        manager.require_repository(&repository)?;
        // Makes the authority go by the roster as it is now.
        self.roster.current().await?;
        let rules = self.authority.rules();
        let grant = rules.decide(&identity, &repository, action);
        respond::json(&Explained::of(grant, action, rules.best(&identity, &repository)))
    }
}

/// Reads a request's body. Unknown fields are refused: one that was misspelt must not be passed over, and none
/// that is ours alone can be set (CVE-2019-16097).
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| Error::new(Code::RequestInvalid, format!("the body: {error}")))
}

/// Refuses what a browser sends for a page: one that is open on this machine could else manage in its user's
/// name. A page from elsewhere names its origin; one whose host was pointed here after it was loaded (DNS
/// rebinding) names that host.
fn is_no_page(headers: &HeaderMap) -> Result<()> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
    let is_here = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_here && !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    Err(Error::new(Code::Denied, "this is not for pages in a browser"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_one_thing_or_nothing() {
        let name = || "ci".parse().unwrap();
        for (path, route) in [
            ("/_/v1/accounts", Some(Route::Accounts)),
            ("/_/v1/accounts/ci", Some(Route::Account(name()))),
            ("/_/v1/accounts/ci/rotate", Some(Route::Rotate(name()))),
            ("/_/v1/rules", Some(Route::Rules)),
            ("/_/v1/rules/ci", Some(Route::Rule(name()))),
            ("/_/v1/explain", Some(Route::Explain)),
            ("/_/v1/events/endpoints", Some(Route::Endpoints)),
            ("/_/v1/events/endpoints/ci/dead", Some(Route::Letters(name(), Which::Dead))),
            ("/_/v1/events/endpoints/ci/replay", Some(Route::Replay(name()))),
            ("/_/v1/events/endpoints/ci", None),
            ("/_/v1/rules/ci/", None),
            ("/_/v1/accounts/", None),
            ("/_/v1/accounts/CI", None),
            ("/_/v1//accounts", None),
            ("/_/v1/accounts/%63i", None),
            ("/_/v2/accounts", None),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
    }

    #[test]
    fn a_page_in_a_browser_is_refused() {
        for (host, origin, good) in [
            ("127.0.0.1:5001", None, true),
            ("127.0.0.1", None, true),
            ("localhost:5001", None, true),
            ("[::1]:5001", None, true),
            ("[::1]", None, true),
            ("localhost:5001", Some("http://localhost:5001"), false),
            ("127.0.0.1:5001", Some("null"), false),
            ("rebound.example:5001", None, false),
            ("localhost.example", None, false),
            ("", None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            origin.map(|origin| headers.insert(ORIGIN, origin.parse().unwrap()));
            assert_eq!(is_no_page(&headers).is_ok(), good, "{host} {origin:?}");
        }
    }
}
