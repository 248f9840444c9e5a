//! Tokens: what is in them, how they are issued, and how they are believed.
//!
//! A token is a signed list of what its holder may do, so that any process with the keys believes it without
//! asking anybody. What a header says of keys (`jwk`, `jku`, `x5u`, `x5c`) is never looked at: a `kid` finds a
//! key of ours, and that key's own algorithm is the only one that counts. Who gets which token is not decided
//! here.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::{Header, Validation, decode, decode_header, encode};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Action, Grant, Identity, Subject, keys::KeyRing};
use crate::oci::RepositoryName;

/// How far the clocks of two machines may be apart, in seconds: what the token specification's reference
/// verifier allows. A token says that it began so long ago; one that has ended has ended.
pub(super) const LEEWAY: u64 = 60;

/// How many verified tokens are remembered; some 500 bytes each. With more clients than that at once, some
/// tokens are verified again.
pub(super) const REMEMBERED: usize = 20_000;

/// The longest token that is looked at, in bytes: what a hundred resources with the longest names need.
const LONGEST: usize = 48 << 10;

/// The `typ` of a token for the registry (RFC 7519, section 5.1).
const ACCESS: &str = "JWT";

/// The `typ` of a token that is only good for getting others.
const REFRESH: &str = "refresh";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a token says. The names are those of RFC 7519 and of the Docker token specification.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    /// The subject as rules name it; empty for the anonymous one.
    sub: String,
    aud: String,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
    #[serde(default)]
    access: Vec<Resource>,
    /// The groups that the holder is in by its credential, for lists of names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// Whether no scope was asked for: the token then stands for its holder where a password is wanted.
    #[serde(default, skip_serializing_if = "is_false")]
    login: bool,
    /// In a refresh token: the fingerprint of the credential that it goes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// One entry of the `access` claim.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Resource {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
    /// Ours: a push may make tags, and move none. Other registries ignore it.
    #[serde(default, skip_serializing_if = "is_false")]
    create_only: bool,
}

/// What a verified token lets its holder do.
#[derive(Debug, Default)]
pub(super) struct Access {
    repositories: HashMap<RepositoryName, Allowed>,
    /// Whether repositories may be listed.
    pub(super) catalog: bool,
}

/// What may be done with one repository.
#[derive(Clone, Copy, Debug, Default)]
struct Allowed {
    pull: bool,
    push: bool,
    delete: bool,
    create_only: bool,
}

impl Access {
    /// Reads the `access` claim; what isn't known grants nothing.
    pub(super) fn read(resources: &[Resource]) -> Self {
        let mut access = Self::default();
        for resource in resources {
            // GitLab and Harbor write `*` for all; what we issue never has it.
            let has = |name: &str| resource.actions.iter().any(|action| action == name || action == "*");
            match (resource.kind.as_str(), resource.name.parse::<RepositoryName>()) {
                ("registry", _) => access.catalog |= resource.name == "catalog" && has("*"),
                ("repository", Ok(name)) => {
                    let allowed = access.repositories.entry(name).or_default();
                    allowed.pull |= has("pull");
                    allowed.push |= has("push");
                    // No push is a right to delete (CVE-2026-61833).
                    allowed.delete |= has("delete");
                    allowed.create_only |= resource.create_only;
                }
                _ => {}
            }
        }
        access
    }

    /// Whether `action` in `repository` is among it, and how far.
    pub(super) fn decide(&self, repository: &RepositoryName, action: Action) -> Option<Grant> {
        let allowed = self.repositories.get(repository)?;
        let is_there = match action {
            Action::Pull => allowed.pull,
            Action::Push => allowed.push,
            Action::Delete => allowed.delete,
        };
        is_there.then_some(Grant { create_only: allowed.create_only })
    }
}

/// A token that was believed.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) identity: Arc<Identity>,
    pub(super) access: Access,
    /// When it ends, in seconds since 1970.
    pub(super) expires: u64,
    /// Whether it stands for its holder where a password is wanted.
    pub(super) login: bool,
    /// Whether this is another service's token, of whose holder our rules know nothing.
    pub(super) is_foreign: bool,
}

impl Verified {
    /// Whether it is still good.
    pub(super) fn is_good(&self, now: u64) -> bool {
        now < self.expires
    }
}

/// A refresh token that was believed; whether its credential still stands is another question.
#[derive(Debug)]
pub(super) struct Refresh {
    pub(super) identity: Identity,
    pub(super) fingerprint: String,
    pub(super) expires: u64,
}

/// What a token is issued for.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) identity: &'a Identity,
    /// What is granted of what was asked, with how far.
    pub(super) granted: &'a [(RepositoryName, Vec<Action>, Grant)],
    pub(super) catalog: bool,
    /// Whether nothing in particular was asked for.
    pub(super) login: bool,
    /// When the credential ends that it is issued on, in seconds since 1970.
    pub(super) until: u64,
}

/// Names and times of the tokens that are issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub service: String,
    /// The URL of the token service, where it isn't ours.
    pub realm: Option<String>,
    /// How long an access token is good for.
    pub ttl: Duration,
    /// How long a refresh token is good for.
    pub refresh_ttl: Duration,
}

impl Default for TokenOptions {
    /// Five minutes and thirty days, as the settings have it.
    fn default() -> Self {
        Self {
            issuer: "berth".to_owned(),
            service: "berth".to_owned(),
            realm: None,
            ttl: Duration::from_secs(300),
            refresh_ttl: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Issues and verifies tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) options: TokenOptions,
    keys: RwLock<Arc<KeyRing>>,
    /// By the SHA-256 of the token, so that no memory holds tokens that could be used.
    remembered: Cache<[u8; 32], Arc<Verified>>,
}

impl Tokens {
    pub(super) fn new(options: TokenOptions, keys: KeyRing) -> Self {
        Self { options, keys: RwLock::new(Arc::new(keys)), remembered: Cache::new(REMEMBERED) }
    }

    pub(super) fn keys(&self) -> Arc<KeyRing> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other keys in the place of those that there are; what they signed is believed no more.
    pub(super) fn set_keys(&self, keys: KeyRing) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.remembered.clear();
    }

    /// An access token, and when it ends in seconds since 1970.
    pub(super) fn issue(&self, order: &Order<'_>, now: u64) -> jsonwebtoken::errors::Result<(String, u64)> {
        let expires = (now + self.options.ttl.as_secs()).min(order.until);
        let mut access: Vec<Resource> = order
            .granted
            .iter()
            .map(|(name, actions, grant)| Resource {
                kind: "repository".to_owned(),
                name: name.to_string(),
                actions: actions.iter().map(|action| action.as_str().to_owned()).collect(),
                create_only: grant.create_only && actions.contains(&Action::Push),
            })
            .collect();
        if order.catalog {
            let actions = vec!["*".to_owned()];
            access.push(Resource {
                kind: "registry".to_owned(),
                name: "catalog".to_owned(),
                actions,
                create_only: false,
            });
        }
        let claims = Claims { access, login: order.login, ..self.claims(order.identity, now, expires) };
        Ok((self.sign(ACCESS, &claims, now)?, expires))
    }

    /// A refresh token that goes with the credential of this fingerprint.
    pub(super) fn issue_refresh(
        &self,
        identity: &Identity,
        fingerprint: &str,
        until: u64,
        now: u64,
    ) -> jsonwebtoken::errors::Result<String> {
        let expires = (now + self.options.refresh_ttl.as_secs()).min(until);
        let credential = Some(fingerprint.to_owned());
        // It is for the token service alone, and that is who issues.
        let aud = self.options.issuer.clone();
        self.sign(REFRESH, &Claims { credential, aud, ..self.claims(identity, now, expires) }, now)
    }

    fn claims(&self, identity: &Identity, now: u64, expires: u64) -> Claims {
        Claims {
            iss: self.options.issuer.clone(),
            sub: match &identity.subject {
                Subject::Anonymous => String::new(),
                somebody => somebody.to_string(),
            },
            aud: self.options.service.clone(),
            exp: expires,
            nbf: now.saturating_sub(LEEWAY),
            iat: now,
            jti: Ulid::r#gen().to_string(),
            access: Vec::new(),
            groups: identity.groups.clone(),
            login: false,
            credential: None,
        }
    }

    fn sign(&self, typ: &str, claims: &Claims, now: u64) -> jsonwebtoken::errors::Result<String> {
        let keys = self.keys();
        let key = keys.signing(now);
        let mut header = Header::new(key.algorithm());
        header.typ = Some(typ.to_owned());
        header.kid = Some(key.id.clone());
        encode(&header, claims, &key.signing)
    }

    /// The token, if it was believed before and is still good.
    pub(super) fn remembered(&self, token: &str, now: u64) -> Option<Arc<Verified>> {
        self.remembered.get(&name_of(token)).filter(|verified| verified.is_good(now))
    }

    /// Remembers a token that was believed until it ends, or until others push it out.
    pub(super) fn remember(&self, token: &str, verified: &Arc<Verified>) {
        self.remembered.insert(name_of(token), Arc::clone(verified));
    }

    /// Believes an access token of ours, or says for the log why not.
    pub(super) fn verify(&self, token: &str) -> Result<Verified, String> {
        let claims = self.believe(ACCESS, &self.options.service, token)?;
        Ok(Verified {
            identity: Arc::new(identity(&claims)?),
            access: Access::read(&claims.access),
            expires: claims.exp,
            login: claims.login,
            is_foreign: false,
        })
    }

    /// Believes a refresh token of ours, or says for the log why not.
    pub(super) fn verify_refresh(&self, token: &str) -> Result<Refresh, String> {
        let claims = self.believe(REFRESH, &self.options.issuer, token)?;
        let identity = identity(&claims)?;
        let fingerprint = claims.credential.ok_or("it names no credential")?;
        Ok(Refresh { identity, fingerprint, expires: claims.exp })
    }

    fn believe(&self, typ: &str, audience: &str, token: &str) -> Result<Claims, String> {
        let header = header_of(token)?;
        // A refresh token is never one for the registry, nor the other way around (CVE-2026-123710).
        if header.typ.as_deref() != Some(typ) {
            return Err(format!("its typ is not {typ}"));
        }
        let keys = self.keys();
        let id = header.kid.as_deref().ok_or("it names no key")?;
        let key = keys.find(id).ok_or("it names a key that isn't ours")?;
        let mut validation = Validation::new(key.algorithm());
        validation.leeway = 0;
        // In its last second a token has ended, to this library as to `Verified::is_good`.
        validation.reject_tokens_expiring_in_less_than = 1;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        decode::<Claims>(token, &key.verifying, &validation).map(|data| data.claims).map_err(|error| error.to_string())
    }
}

/// The header of a token, if nothing in it has to be understood that isn't.
pub(super) fn header_of(token: &str) -> Result<Header, String> {
    if token.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let header = decode_header(token).map_err(|error| error.to_string())?;
    // Whoever sets it wants the token refused where it isn't understood (CVE-2026-32597).
    if header.crit.is_some() {
        return Err("it has a critical extension".to_owned());
    }
    Ok(header)
}

fn identity(claims: &Claims) -> Result<Identity, String> {
    let subject = match claims.sub.as_str() {
        "" => Subject::Anonymous,
        text => Subject::read(text).ok_or("its subject is nobody that there can be")?,
    };
    Ok(Identity { subject, groups: claims.groups.clone() })
}

fn name_of(token: &str) -> [u8; 32] {
    let mut name = [0; 32];
    name.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    name
}
