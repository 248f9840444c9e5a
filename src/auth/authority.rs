//! The authority: whoever wants to know who asks, or whether they may, asks it.
//!
//! It holds what can change while Berth runs (rules, keys, kinds of password) and hands out decisions and
//! tokens. It never looks at what a repository contains.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use super::{
    AccessRules, Action, Grant, Identity, Login, Logins, NamedRule, Presented, Subject, TokenIssuers,
    keys::{KeyRing, Kind, shown},
    scope::Scope,
    throttle::Throttle,
    token::{Order, TokenOptions, Tokens, Verified, now},
};
use crate::{
    error::{Code, Error, Result},
    oci::RepositoryName,
};

/// Somebody who asks, after it was checked who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub identity: Arc<Identity>,
    /// The token that says what they may do; without one the rules do.
    token: Option<Arc<Verified>>,
    /// The login that this is, where it is one by a password.
    login: Option<Login>,
}

impl Caller {
    /// Whoever didn't say who they are.
    pub fn anonymous() -> Self {
        Self { identity: Arc::new(Identity::ANONYMOUS), token: None, login: None }
    }

    /// Whether they have shown what stands for all of them, and not a token for one purpose.
    pub fn has_logged_in(&self) -> bool {
        self.login.is_some()
    }

    /// Somebody who has logged in with a password.
    fn logged_in(login: Login) -> Self {
        Self { identity: Arc::new(login.identity.clone()), token: None, login: Some(login) }
    }

    fn by_token(token: Arc<Verified>) -> Self {
        Self { identity: Arc::clone(&token.identity), token: Some(token), login: None }
    }

    /// When what they showed ends, in seconds since 1970.
    fn ends(&self, now: u64) -> u64 {
        let by_token = self.token.as_ref().map_or(u64::MAX, |token| token.expires);
        let at_most = self.login.as_ref().and_then(|login| login.at_most);
        by_token.min(at_most.map_or(u64::MAX, |at_most| now.saturating_add(at_most.as_secs())))
    }
}

/// A token, as the token service hands it out.
#[derive(Clone)]
pub struct Issued {
    /// The access token.
    pub token: String,
    /// What it is good for: what was asked, as far as it is allowed.
    pub scope: Scope,
    /// How long it is good for.
    pub expires_in: Duration,
    /// When it was issued (RFC 3339, UTC).
    pub issued_at: String,
    /// The refresh token, where one was asked for and the login is one that can go on.
    pub refresh_token: Option<String>,
}

/// Whether a client wants to go on without its password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// It asks for a refresh token.
    Wanted,
    /// It doesn't.
    No,
}

/// Knows who somebody is and what they may do.
#[derive(Debug)]
pub struct Authority {
    rules: RwLock<Rules>,
    logins: Vec<Arc<dyn Logins>>,
    tokens: Tokens,
    issuers: TokenIssuers,
    throttle: Throttle,
}

/// The rules by where they come from, and all together.
#[derive(Debug)]
struct Rules {
    configured: AccessRules,
    run_time: Vec<NamedRule>,
    all: Arc<AccessRules>,
}

impl Authority {
    /// An authority with the configured `rules` and these kinds of password, which are asked in this order:
    /// those that answer at once before those that take their time. Its tokens are signed by `keys`; those of
    /// `issuers` are as good.
    pub fn new(
        rules: AccessRules,
        logins: Vec<Arc<dyn Logins>>,
        options: TokenOptions,
        keys: KeyRing,
        issuers: TokenIssuers,
    ) -> Arc<Self> {
        let all = Arc::new(rules.clone());
        Arc::new(Self {
            rules: RwLock::new(Rules { configured: rules, run_time: Vec::new(), all }),
            logins,
            tokens: Tokens::new(options, keys),
            issuers,
            throttle: Throttle::new(),
        })
    }

    /// An authority with nothing but rules, and a key of its own that nobody else knows.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn of_rules(rules: AccessRules) -> Result<Arc<Self>> {
        let keys = KeyRing::make(Kind::default(), now()).map_err(Error::internal)?;
        Ok(Self::new(rules, Vec::new(), TokenOptions::default(), keys, TokenIssuers::default()))
    }

    /// Puts other rules in the place of those of the configuration.
    pub fn set_configured_rules(&self, rules: AccessRules) {
        self.change_rules(|all| all.configured = rules);
    }

    /// Puts other rules in the place of those that were made at run time.
    pub fn set_run_time_rules(&self, rules: Vec<NamedRule>) {
        self.change_rules(|all| all.run_time = rules);
    }

    fn change_rules(&self, change: impl FnOnce(&mut Rules)) {
        // Nothing panics while it holds the lock.
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut rules);
        rules.all = Arc::new(rules.configured.with(&rules.run_time));
    }

    /// All rules, as they are now.
    pub fn rules(&self) -> Arc<AccessRules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner).all)
    }

    /// The keys that tokens are signed with and verified by, as they are now.
    pub fn keys(&self) -> Arc<KeyRing> {
        self.tokens.keys()
    }

    /// Puts other keys in the place of those that there are. What a key signed that is gone is believed no more.
    pub fn set_keys(&self, keys: KeyRing) {
        self.tokens.set_keys(keys);
    }

    /// The names and times of the tokens.
    pub fn token_options(&self) -> &TokenOptions {
        &self.tokens.options
    }

    /// Whether logging in gets anybody anything: else clients needn't be asked to.
    pub fn offers_login(&self) -> bool {
        self.tokens.options.realm.is_some() || self.logins.iter().any(|kind| kind.is_offered())
    }

    /// Who is behind what a request from `address` shows.
    ///
    /// # Errors
    /// 401 if it proves nothing; 429 from who was wrong too often; 503 where it can't be known now.
    pub async fn authenticate(&self, presented: &Presented, address: Option<IpAddr>) -> Result<Caller> {
        match presented {
            Presented::Nothing => Ok(Caller::anonymous()),
            Presented::Password { name, secret } => self.log_in(name, secret, address).await,
            Presented::Token(token) => self.believe(token).await.map(Caller::by_token),
        }
    }

    /// A token of ours, or of somebody whom we trust.
    async fn believe(&self, token: &str) -> Result<Arc<Verified>> {
        if let Some(verified) = self.tokens.remembered(token, now()) {
            return Ok(verified);
        }
        let by_others = self.issuers.believe(&self.tokens.options.service, token).await?;
        let verified = by_others.unwrap_or_else(|| self.tokens.verify(token)).map_err(invalid_token)?;
        let verified = Arc::new(verified);
        self.tokens.remember(token, &verified);
        Ok(verified)
    }

    /// Whom a password proves the caller to be. What can be told without work, and what nobody can guess, is
    /// not held up by those who guess at the same name.
    async fn log_in(&self, name: &str, secret: &str, address: Option<IpAddr>) -> Result<Caller> {
        if let Some(login) = self.logins.iter().find_map(|kind| kind.recalls(name, secret)) {
            return Ok(Caller::logged_in(login));
        }
        let began = Instant::now();
        refuse_until(self.throttle.wait_of_address(address, began))?;
        if is_token_name(name)
            && let Some(caller) = self.by_token_as_password(secret).await
        {
            return Ok(caller);
        }
        for kind in &self.logins {
            if kind.can_be_guessed() {
                refuse_until(self.throttle.wait_of_name(name, began))?;
            }
            if let Some(login) = kind.check(name, secret).await? {
                return Ok(Caller::logged_in(login));
            }
        }
        // Where nobody can log in, no password is wrong: a proxy that asks for one of its own passes it on.
        if !self.offers_login() {
            return Ok(Caller::anonymous());
        }
        self.throttle.failed(address, name, Instant::now());
        Err(Error::new(Code::Unauthorized, "the user name or the password is wrong"))
    }

    /// A token in the place of a password: one that was issued for nothing in particular stands for its holder,
    /// any other lets do what it says and no more (CVE-2026-117685).
    async fn by_token_as_password(&self, token: &str) -> Option<Caller> {
        let verified = self.believe(token).await.ok()?;
        if !verified.login {
            return Some(Caller::by_token(verified));
        }
        let at_most = Some(Duration::from_secs(verified.expires.saturating_sub(now())));
        let identity = Identity::clone(&verified.identity);
        Some(Caller::logged_in(Login { identity, fingerprint: String::new(), at_most }))
    }

    /// Who goes on with a refresh token, if the credential still stands that it was issued on.
    ///
    /// # Errors
    /// 401 if it doesn't; 503 where that can't be known now.
    pub async fn refresh(&self, token: &str) -> Result<Caller> {
        let refresh = self.tokens.verify_refresh(token).map_err(invalid_token)?;
        for kind in &self.logins {
            match kind.stands(&refresh.identity, &refresh.fingerprint).await? {
                None => {}
                Some(false) => break,
                Some(true) => {
                    let at_most = Some(Duration::from_secs(refresh.expires.saturating_sub(now())));
                    let login = Login { identity: refresh.identity, fingerprint: String::new(), at_most };
                    return Ok(Caller::logged_in(login));
                }
            }
        }
        Err(invalid_token("its credential is no more, or has changed"))
    }

    /// A token for as much of `wanted` as the caller may do.
    ///
    /// # Errors
    /// Only where a key can't sign.
    pub fn issue(&self, caller: &Caller, wanted: &Scope, offline: Offline) -> Result<Issued> {
        let now = now();
        let mut scope = Scope { catalog: wanted.catalog && self.may_list(caller), ..Scope::default() };
        let mut granted = Vec::new();
        for (repository, actions) in &wanted.repositories {
            let mut grant = Grant { create_only: false };
            let allowed: Vec<Action> = actions
                .iter()
                .copied()
                .filter(|&action| {
                    let decided = self.decide(caller, repository, action);
                    grant.create_only |= decided.is_some_and(|decided| decided.create_only);
                    decided.is_some()
                })
                .collect();
            if !allowed.is_empty() {
                allowed.iter().for_each(|&action| scope.add(repository, action));
                granted.push((repository.clone(), allowed, grant));
            }
        }
        let is_somebody = caller.identity.subject != Subject::Anonymous;
        let until = caller.ends(now);
        let order = Order {
            identity: &caller.identity,
            granted: &granted,
            catalog: scope.catalog,
            login: wanted.is_empty() && is_somebody && caller.token.is_none(),
            until,
        };
        let (token, expires) = self.tokens.issue(&order, now).map_err(Error::internal)?;
        let fingerprint = caller.login.as_ref().map(|login| login.fingerprint.as_str());
        let refresh_token = match fingerprint.filter(|text| offline == Offline::Wanted && !text.is_empty()) {
            None => None,
            Some(text) => Some(self.tokens.issue_refresh(&caller.identity, text, until, now).map_err(Error::internal)?),
        };
        let expires_in = Duration::from_secs(expires.saturating_sub(now));
        Ok(Issued { token, scope, expires_in, issued_at: shown(now), refresh_token })
    }

    /// Whether a caller may do `action` in `repository`, and how far; `None` if not at all.
    pub fn decide(&self, caller: &Caller, repository: &RepositoryName, action: Action) -> Option<Grant> {
        match &caller.token {
            Some(token) => token.access.decide(repository, action),
            None => self.rules().decide(&caller.identity, repository, action),
        }
    }

    /// Whether a caller may be told that `repository` exists, in a list of names. The holder of a token that is
    /// good for lists sees what the rules let them pull; of another service's tokens only it knows that.
    pub fn may_see(&self, caller: &Caller, repository: &RepositoryName) -> bool {
        match &caller.token {
            Some(token) if token.is_foreign => {
                token.access.catalog || token.access.decide(repository, Action::Pull).is_some()
            }
            _ => self.rules().decide(&caller.identity, repository, Action::Pull).is_some(),
        }
    }

    /// Whether a caller may list repositories: those that they [may see](Self::may_see).
    pub fn may_list(&self, caller: &Caller) -> bool {
        match &caller.token {
            Some(token) => token.access.catalog,
            None => self.rules().may_anything(&caller.identity),
        }
    }

    /// Whether a caller is welcome at all. Who has proven who they are is, whatever they may do; who hasn't is
    /// if they may do something, and there is nothing that a login would add.
    pub fn is_welcome(&self, caller: &Caller) -> bool {
        let is_proven = caller.token.is_some() || caller.login.is_some();
        is_proven || (!self.offers_login() && self.rules().may_anything(&caller.identity))
    }
}

/// The names under which a token is sent as a password: those of GCR's and Artifact Registry's helpers.
fn is_token_name(name: &str) -> bool {
    matches!(name, "oauth2accesstoken" | "_token") || (name.starts_with("_dcgcr_") && name.ends_with("_token"))
}

fn refuse_until(wait: Option<Duration>) -> Result<()> {
    let Some(wait) = wait else { return Ok(()) };
    let error = Error::new(Code::TooManyRequests, "too many wrong logins; wait before the next");
    Err(Error { retry_after: Some(wait), ..error })
}

fn invalid_token(why: impl ToString) -> Error {
    Error::new(Code::InvalidToken, "the token is not valid, or no longer").because(why)
}
