//! The public keys of somebody else's tokens: read when they are first needed, kept, and read anew when they grow
//! old or a token names one that isn't known. Whatever tokens come, an issuer is asked seldom, and little memory
//! is taken. What a token says beside its key's name is not known here.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    dangerous::insecure_decode_claims,
    decode,
    jwk::{Jwk, PublicKeyUse},
};
use reqwest::{Certificate, Client, ClientBuilder, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::outbound::{self, Proxy, text_of};

/// The largest answer of an issuer that is read, in bytes. The longest known key sets have some 20 KiB.
const MAX_ANSWER: usize = 256 << 10;

/// The most keys of an issuer that are kept.
const MAX_KEYS: usize = 100;

/// The algorithms that are believed. All are asymmetric: with `HS256` anybody who knows the public key could
/// sign, and `none` is not even one that the library knows.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

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

impl Pace {
    /// For a file: it is looked at as often as those of the configuration are.
    pub(super) const FILE: Self = {
        let look = Duration::from_secs(3);
        Self { fresh: look, stale: look, rest: look }
    };
}

/// Issuers announce a new key hours before they sign with it, and an hour is what most ask to cache for.
impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { fresh: seconds(3600), stale: seconds(24 * 3600), rest: seconds(10) }
    }
}

/// An issuer's certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}: {why}", path.display())]
pub struct UnusableCa {
    /// The setting that names them.
    pub(super) key: String,
    pub(super) path: PathBuf,
    pub(super) why: String,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Where the discovery document of the issuer of this URL says (OpenID Connect Discovery 1.0).
    Discovery(String),
    /// At this URL: a JSON Web Key Set.
    Url(String),
    /// In this file: a JSON Web Key Set, or public keys and certificates in PEM.
    File(PathBuf),
}

/// The keys of one issuer.
pub(super) struct IssuerKeys {
    place: Place,
    http: Client,
    pace: Pace,
    known: RwLock<Option<Arc<Known>>>,
    /// Held by the one task that asks the issuer; inside, when it last did and what went wrong.
    asking: Mutex<Option<(Instant, Option<String>)>>,
}

/// What the issuer last said.
struct Known {
    keys: Vec<PublicKey>,
    since: Instant,
}

/// One key.
struct PublicKey {
    /// Its name; in PEM it has none.
    id: Option<String>,
    /// What it says that it is for, in the words of RFC 7518.
    algorithm: Option<String>,
    key: DecodingKey,
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

impl fmt::Debug for IssuerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerKeys").field("place", &self.place).finish_non_exhaustive()
    }
}

impl IssuerKeys {
    /// The keys at `place`, whose server is reached through `proxy` and known by the certificates in the file `ca`,
    /// or else by those of the system. Reads nothing of it yet.
    pub(super) fn open(place: Place, ca: Option<&Path>, proxy: Option<&Proxy>, pace: Pace) -> Result<Self, String> {
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
        let http = outbound::through(proxy, http).and_then(ClientBuilder::build).map_err(|error| text_of(&error))?;
        Ok(Self { place, http, pace, known: RwLock::default(), asking: Mutex::default() })
    }

    /// The keys that may have signed a token which names this one: that of the name, and those that have none.
    /// Where the token names none, the only one that there is stands for it. Empty if the issuer has no such key.
    ///
    /// # Errors
    /// The issuer can't be asked, and what it said before doesn't answer it.
    pub(super) async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<DecodingKey>, String> {
        let fresh = self.known(self.pace.fresh).map(|known| known.find(kid, algorithm)).unwrap_or_default();
        if !fresh.is_empty() {
            return Ok(fresh);
        }
        let wrong = self.refresh().await;
        let found = self.known(self.pace.stale).map(|known| known.find(kid, algorithm));
        match (found, wrong) {
            (Some(keys), _) if !keys.is_empty() => Ok(keys),
            (_, Some(wrong)) => Err(wrong),
            (Some(_), None) => Ok(Vec::new()),
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
            Err(error) => tracing::warn!(at = ?self.place, error, "the keys of an issuer can't be had"),
        }
        *asking = Some((Instant::now(), wrong.clone()));
        wrong
    }

    async fn fetch(&self) -> Result<Vec<PublicKey>, String> {
        let set: KeySet = match &self.place {
            Place::Discovery(issuer) => {
                let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let discovery: Discovery = self.get(&url).await?;
                if discovery.issuer != *issuer {
                    return Err(format!("{url} is about issuer {:?}", discovery.issuer));
                }
                self.get(&discovery.jwks_uri).await?
            }
            Place::Url(url) => self.get(url).await?,
            Place::File(path) => {
                return read(&tokio::fs::read_to_string(path).await.map_err(|error| error.to_string())?);
            }
        };
        Ok(set.keys())
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let mut answer = self.http.get(url).send().await.map_err(|error| text_of(&error))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| text_of(&error))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER {
                return Err(format!("{url} answered more than {MAX_ANSWER} bytes"));
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{url} answered what can't be read: {error}"))
    }
}

impl KeySet {
    fn keys(self) -> Vec<PublicKey> {
        let read = self.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        read.filter(|key| matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature)))
            .filter_map(|key| {
                let algorithm = key.common.key_algorithm.map(|algorithm| algorithm.to_string());
                Some(PublicKey { key: DecodingKey::from_jwk(&key).ok()?, id: key.common.key_id, algorithm })
            })
            .take(MAX_KEYS)
            .collect()
    }
}

/// Reads a file of keys.
fn read(text: &str) -> Result<Vec<PublicKey>, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map(KeySet::keys).map_err(|error| format!("no key set: {error}"));
    }
    let blocks = text.split("-----BEGIN ").skip(1).take(MAX_KEYS);
    let keys: Option<Vec<PublicKey>> = blocks.map(|block| read_pem(&format!("-----BEGIN {block}"))).collect();
    keys.filter(|keys| !keys.is_empty())
        .ok_or_else(|| "want public keys or certificates, for RSA, ECDSA or Ed25519".to_owned())
}

/// Reads one block. The private half would do as well, and has no business here.
fn read_pem(block: &str) -> Option<PublicKey> {
    if block.contains("PRIVATE KEY") {
        return None;
    }
    let readers = [DecodingKey::from_rsa_pem, DecodingKey::from_ec_pem, DecodingKey::from_ed_pem];
    let key = readers.iter().find_map(|read| read(block.as_bytes()).ok())?;
    Some(PublicKey { id: None, algorithm: None, key })
}

impl Known {
    fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let is_named = |key: &&PublicKey| match (&key.id, kid) {
            (Some(id), Some(kid)) => id == kid,
            (Some(_), None) => self.keys.len() == 1,
            (None, _) => true,
        };
        // A key that says what it is for is for nothing else.
        let algorithm = format!("{algorithm:?}");
        let is_for = |key: &&PublicKey| key.algorithm.as_ref().is_none_or(|said| *said == algorithm);
        self.keys.iter().filter(is_named).filter(is_for).map(|key| key.key.clone()).collect()
    }
}

/// Which issuer a token says it is of. Nothing is believed of it yet.
pub(super) fn named_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        iss: String,
    }
    insecure_decode_claims::<Named>(token).ok().map(|named| named.iss)
}

/// The claims of a token that one of `keys` has signed and that is as `validation` wants it, or for the log why
/// there are none.
pub(super) fn decode_by_one<T: DeserializeOwned>(
    token: &str,
    keys: &[DecodingKey],
    validation: &Validation,
) -> Result<T, String> {
    let mut why = "the issuer has no such key".to_owned();
    for key in keys {
        match decode(token, key, validation) {
            Ok(decoded) => return Ok(decoded.claims),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}
