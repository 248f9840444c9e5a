//! An issuer's keys: fetched when they are first needed, kept, and fetched anew when they grow old or a token
//! names one that isn't known. Whatever tokens come, the issuer is asked seldom and reads little memory.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{Jwk, PublicKeyUse},
};
use reqwest::{Certificate, Client, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::Mutex;

/// The largest answer of an issuer that is read, in bytes. The longest known key sets have some 20 KiB.
const MAX_ANSWER: usize = 256 << 10;

/// The most keys of an issuer that are kept.
const MAX_KEYS: usize = 100;

/// How long an issuer may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// When keys are fetched.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For how long keys are good without asking again.
    pub fresh: Duration,
    /// For how long they are good while the issuer doesn't answer.
    pub stale: Duration,
    /// How long the issuer is left alone after it was asked, whatever tokens come.
    pub rest: Duration,
}

/// Issuers announce a new key hours before they sign with it, and an hour is what most ask to cache for.
impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { fresh: seconds(3600), stale: seconds(24 * 3600), rest: seconds(10) }
    }
}

/// The keys of one issuer.
pub(super) struct IssuerKeys {
    issuer: String,
    http: Client,
    pace: Pace,
    known: RwLock<Option<Arc<Known>>>,
    /// Held by the one task that asks the issuer; inside, when it last did and what went wrong.
    asking: Mutex<Option<(Instant, Option<String>)>>,
}

/// What the issuer last said.
struct Known {
    keys: Vec<Jwk>,
    since: Instant,
}

/// The part of the discovery document that matters here.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    /// Each by itself: one of a kind that we don't know must not hide the others.
    keys: Vec<Value>,
}

impl IssuerKeys {
    /// The keys of `issuer`, which is known by the certificates in the file `ca`, or else by those of the
    /// system. Fetches nothing yet.
    pub(super) fn open(issuer: &str, ca: Option<&Path>, pace: Pace) -> Result<Self, String> {
        // A redirect would lead to where nobody said the keys are.
        let mut http = Client::builder().https_only(true).redirect(Policy::none()).timeout(PATIENCE);
        if let Some(path) = ca {
            let pem = std::fs::read(path).map_err(|error| error.to_string())?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
            if certificates.is_empty() {
                return Err("there is no certificate in it".to_owned());
            }
            http = http.tls_certs_only(certificates);
        }
        let http = http.build().map_err(describe)?;
        Ok(Self { issuer: issuer.to_owned(), http, pace, known: RwLock::default(), asking: Mutex::default() })
    }

    /// The key of this name; where the token names none, the only one that there is. `None` if the issuer has
    /// no such key.
    ///
    /// # Errors
    /// The issuer can't be asked, and what it said before doesn't answer it.
    pub(super) async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Option<DecodingKey>, String> {
        if let Some(known) = self.known(self.pace.fresh)
            && let Some(key) = known.find(kid, algorithm)
        {
            return Ok(Some(key));
        }
        let wrong = self.refresh().await;
        let found = self.known(self.pace.stale).map(|known| known.find(kid, algorithm));
        match (found, wrong) {
            (Some(Some(key)), _) => Ok(Some(key)),
            (_, Some(wrong)) => Err(wrong),
            (Some(None), None) => Ok(None),
            (None, None) => Err("the issuer was asked a moment ago".to_owned()),
        }
    }

    fn known(&self, age: Duration) -> Option<Arc<Known>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.filter(|known| known.since.elapsed() < age)
    }

    /// Asks the issuer, unless that was done since this was called, or too short a time before. Returns what
    /// went wrong when it was last asked.
    async fn refresh(&self) -> Option<String> {
        let mut asking = self.asking.lock().await;
        if let Some((when, wrong)) = &*asking
            && when.elapsed() < self.pace.rest
        {
            return wrong.clone();
        }
        let fetched = self.fetch().await;
        let wrong = fetched.as_ref().err().cloned();
        match fetched {
            Ok(keys) => {
                let known = Some(Arc::new(Known { keys, since: Instant::now() }));
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
            }
            Err(error) => tracing::warn!(issuer = self.issuer, error, "the keys of an issuer were not fetched"),
        }
        *asking = Some((Instant::now(), wrong.clone()));
        wrong
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let discovery: Discovery = self.get(&url).await?;
        if discovery.issuer != self.issuer {
            return Err(format!("{url} is about issuer {:?}", discovery.issuer));
        }
        let set: KeySet = self.get(&discovery.jwks_uri).await?;
        let read = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(read
            .filter(|key| matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature)))
            .take(MAX_KEYS)
            .collect())
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let mut answer = self.http.get(url).send().await.map_err(describe)?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(describe)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(format!("{url} answered more than {MAX_ANSWER} bytes"));
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{url} answered what can't be read: {error}"))
    }
}

impl Known {
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let is_named = |key: &&Jwk| match kid {
            Some(kid) => key.common.key_id.as_deref() == Some(kid),
            None => self.keys.len() == 1,
        };
        let key = self.keys.iter().find(is_named)?;
        // A key that says what it is for is for nothing else.
        let said = key.common.key_algorithm.map(|said| said.to_string());
        if said.is_some_and(|said| said != format!("{algorithm:?}")) {
            return None;
        }
        DecodingKey::from_jwk(key).ok()
    }
}

/// What went wrong, down to the cause: the outermost text of it only repeats the URL.
fn describe(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
