//! Who may do what, and who is told of it, as the configuration says it now: made at the start, and again whenever
//! the configuration, the htpasswd file or the keys change. What can't be used leaves what there was as it is.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{StartError, absolute};
use crate::{
    auth::{
        AccessRules, Authority, Logins, TokenIssuers, TokenOptions,
        htpasswd::{Htpasswd, HtpasswdError, Users},
        key_file::{self, KeyFileError},
        keys::{KeyError, KeyRing, Kind},
    },
    config::{Config, ConfigError, StorageUrl},
    delivery::{Deliverer, Endpoints},
    outbound::Proxy,
};

/// How often the files are looked at. Reading them is a few milliseconds' work for one core; a new key waits
/// far longer before it signs.
const LOOK: Duration = Duration::from_secs(3);

/// Reads the configuration again, from where it came.
#[derive(Clone)]
pub struct Reload(Arc<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>);

impl Reload {
    /// By this function, which may block.
    pub fn new(read: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

/// Why there is no saying who may do what.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The htpasswd file can't be used.
    #[error("auth.htpasswd: {0}")]
    Htpasswd(#[from] HtpasswdError),
    /// The configured keys can't be used.
    #[error("auth.token.keys: {0}")]
    Keys(#[from] KeyError),
    /// The keys beside the data can't be used.
    #[error("the keys for tokens: {0}")]
    KeyFile(#[from] KeyFileError),
}

/// The authority, and what it was made from.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) authority: Arc<Authority>,
    htpasswd: Arc<Htpasswd>,
    state: State,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    config: Config,
    users: Users,
    /// The text of the keys, which is a secret; empty where there are none.
    keys: KeyText,
}

#[derive(Clone, PartialEq, Eq)]
struct KeyText(String);

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl State {
    /// Reads all that the configuration names.
    fn read(config: Config) -> Result<(Self, Option<KeyRing>), AccessError> {
        let users = match &config.auth.htpasswd {
            Some(path) => Users::open(path)?,
            None => Users::default(),
        };
        let keys = read_keys(&config)?;
        let text = keys.as_ref().map(KeyRing::text).unwrap_or_default();
        Ok((Self { config, users, keys: KeyText(text) }, keys))
    }
}

/// Reads what the configuration names, and refuses what can't be used: before anything is opened or made.
pub(super) fn check(config: &Config) -> Result<(), AccessError> {
    if let Some(path) = &config.auth.htpasswd {
        Users::open(path)?;
    }
    if let Some(keys) = &config.auth.token.keys {
        KeyRing::read(keys.reveal())?;
    }
    Ok(())
}

/// The file of keys in a directory of data: not part of the bucket's layout, which the name's dot says.
pub fn key_file_in(directory: &Path) -> PathBuf {
    absolute(directory).join(".keys")
}

/// The keys that the configuration gives; `None` where nobody needs any.
fn read_keys(config: &Config) -> Result<Option<KeyRing>, AccessError> {
    match (&config.auth.token.keys, &*config.storage.url) {
        (Some(keys), _) => Ok(Some(KeyRing::read(keys.reveal())?)),
        (None, StorageUrl::File(directory)) => Ok(Some(key_file::read_or_make(&key_file_in(directory))?)),
        // The configuration is refused without, unless anybody may do anything.
        (None, _) => Ok(None),
    }
}

impl Access {
    /// Reads it all. `logins` are the kinds of password that the configuration's files don't hold.
    pub(super) fn open(config: &Config, mut logins: Vec<Arc<dyn Logins>>) -> Result<Self, StartError> {
        let (state, keys) = State::read(config.clone()).map_err(StartError::Access)?;
        let htpasswd = Arc::new(Htpasswd::new(state.users.clone())?);
        // Last, as it takes its time.
        logins.push(Arc::clone(&htpasswd) as Arc<dyn Logins>);
        let rules = AccessRules::configured(&config.auth);
        // Where anybody may do anything, a token that one replica alone believes is as good as another.
        let own = || KeyRing::make(Kind::default(), 0).map_err(|error| StartError::Access(error.into()));
        let keys = keys.map_or_else(own, Ok)?;
        let issuers = TokenIssuers::open(&config.auth.token_issuers, Proxy::of(&config.proxy).as_ref())?;
        let authority = Authority::new(rules, logins, token_options(config), keys, issuers);
        Ok(Self { authority, htpasswd, state })
    }

    /// Goes by the files as they are, again and again, and at once when the process is told to (SIGHUP).
    pub(super) async fn keep_up(mut self, reload: Reload, deliverer: Arc<Deliverer>) {
        let mut hangup = signal(SignalKind::hangup()).ok();
        let mut complaint = None;
        loop {
            let is_asked = tokio::select! {
                Some(()) = async { hangup.as_mut()?.recv().await } => true,
                () = sleep(LOOK) => false,
            };
            match self.look(&reload, &deliverer).await {
                Ok(true) => complaint = None,
                Ok(false) if is_asked => tracing::info!("the configuration was read again, and nothing has changed"),
                Ok(false) => {}
                // Once for each mistake, and whenever somebody asks.
                Err(why) if is_asked || complaint.as_ref() != Some(&why) => {
                    tracing::error!(
                        why,
                        "the configuration can't be used as it is now; what counted before still does"
                    );
                    complaint = Some(why);
                }
                Err(_) => {}
            }
        }
    }

    /// Reads everything again; whether something has changed.
    async fn look(&mut self, reload: &Reload, deliverer: &Deliverer) -> Result<bool, String> {
        let reload = reload.clone();
        let read = tokio::task::spawn_blocking(move || {
            let config = (reload.0)().map_err(|error| error.to_string())?;
            State::read(config).map_err(|error| error.to_string())
        });
        let (state, keys) = read.await.map_err(|error| error.to_string())??;
        if state == self.state {
            return Ok(false);
        }
        if state.config.events != self.state.config.events {
            let endpoints = Endpoints::open(&state.config).map_err(|error| error.to_string())?;
            deliverer.set_endpoints(endpoints).await;
        }
        self.apply(state, keys);
        Ok(true)
    }

    fn apply(&mut self, state: State, keys: Option<KeyRing>) {
        let before = std::mem::replace(&mut self.state, state);
        let now = &self.state;
        if now.users != before.users {
            self.htpasswd.set_users(now.users.clone());
        }
        if let Some(keys) = keys.filter(|_| now.keys != before.keys) {
            self.authority.set_keys(keys);
        }
        self.authority.set_configured_rules(AccessRules::configured(&now.config.auth));
        tracing::info!(
            "the configuration was read again: rules, groups, users, keys and endpoints count as they are now"
        );
        let mut rest = before.config;
        rest.events.clone_from(&now.config.events);
        let (old, new) = (&mut rest.auth, &now.config.auth);
        old.anonymous = new.anonymous;
        old.htpasswd.clone_from(&new.htpasswd);
        old.groups.clone_from(&new.groups);
        old.rules.clone_from(&new.rules);
        old.token.keys.clone_from(&new.token.keys);
        if rest != now.config {
            tracing::warn!("more than that has changed, and takes a restart");
        }
    }
}

/// The names and times of tokens.
fn token_options(config: &Config) -> TokenOptions {
    let token = &config.auth.token;
    let url = config.server.public_url.as_ref().map(|url| url.as_str());
    let host = url.and_then(|url| url.split_once("://")).map(|(_, host)| host);
    let or = |set: Option<String>, derived: Option<&str>| set.unwrap_or_else(|| derived.unwrap_or("berth").to_owned());
    TokenOptions {
        issuer: or(token.issuer.as_ref().map(ToString::to_string), url),
        service: or(token.service.as_ref().map(ToString::to_string), host),
        realm: token.realm.as_ref().map(|realm| realm.as_str().to_owned()),
        ttl: *token.ttl,
        refresh_ttl: *token.refresh_ttl,
    }
}
