//! OpenID Connect: the ID token of an issuer that the configuration trusts is a password here. So a job of
//! somebody's CI logs in without a secret that anybody would have to keep.
//!
//! A token is believed if the issuer's own key signed it, and if it is meant for us, in force, and as the
//! configured conditions want it. Nothing of it is looked at before that but which issuer it names. What a
//! token says of keys (`jwk`, `jku`, `x5u`, `x5c`) is never believed.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jsonwebtoken::{Algorithm, Validation, decode_header};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

pub use super::issuer_keys::Pace;
use super::{
    Identity, Login, Logins, Subject,
    issuer_keys::{ALGORITHMS, IssuerKeys, Place, UnusableCa, decode_by_one, named_issuer},
};
use crate::{
    config::Oidc,
    error::{Code, Error, Result},
    outbound::Proxy,
};

/// The longest token that is read, in bytes. Those of GitLab, the longest known, have some 2,500.
const MAX_TOKEN: usize = 16 << 10;

/// The longest subject or group that is taken, in bytes. The core specification allows a `sub` 255.
const MAX_NAME: usize = 255;

/// The most groups that are taken of one token.
const MAX_GROUPS: usize = 200;

/// For how long a login goes on without another token: half a day, longer than any job.
const AT_MOST: Duration = Duration::from_secs(12 * 3600);

/// The issuers that are trusted.
#[derive(Debug)]
pub struct Issuers(Vec<Issuer>);

struct Issuer {
    name: String,
    settings: Oidc,
    keys: IssuerKeys,
    /// Of all that a token was judged by: a change of it ends what was begun before.
    fingerprint: String,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("name", &self.name).field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why a token doesn't prove anything: for the log, and without anything of the token that is secret.
type Refusal = String;

impl Issuers {
    /// The issuers of the configuration, reached through `proxy`. None of them is asked anything before the first token comes.
    ///
    /// # Errors
    /// A file of certificates can't be read.
    pub fn open<'a>(
        issuers: impl IntoIterator<Item = (&'a String, &'a Oidc)>,
        proxy: Option<&Proxy>,
        pace: Pace,
    ) -> std::result::Result<Self, UnusableCa> {
        let open = |(name, settings): (&String, &Oidc)| {
            let ca = settings.ca.as_ref().map(|path| path.to_path_buf());
            let place = Place::Discovery(settings.issuer.as_str().to_owned());
            let keys = IssuerKeys::open(place, ca.as_deref(), proxy, pace).map_err(|why| {
                let (key, path) = (format!("auth.oidc.{name}.ca"), ca.clone().unwrap_or_default());
                UnusableCa { key, path, why }
            })?;
            let judged_by = serde_json::to_vec(settings).unwrap_or_default();
            let fingerprint = Sha256::digest(judged_by).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            Ok(Issuer { name: name.clone(), settings: settings.clone(), keys, fingerprint })
        };
        Ok(Self(issuers.into_iter().map(open).collect::<std::result::Result<_, _>>()?))
    }
}

#[async_trait]
impl Logins for Issuers {
    /// Any user name goes with a token: clients want one, and nobody chose it.
    async fn check(&self, _: &str, secret: &str) -> Result<Option<Login>> {
        // A token is three parts, of which the first is a JSON object in base64.
        if secret.len() > MAX_TOKEN || !secret.starts_with("eyJ") || secret.matches('.').count() != 2 {
            return Ok(None);
        }
        let Some(named) = named_issuer(secret) else { return Ok(None) };
        for issuer in self.0.iter().filter(|issuer| issuer.settings.issuer.as_str() == named) {
            match issuer.judge(secret).await? {
                Ok(identity) => {
                    let fingerprint = issuer.fingerprint.clone();
                    return Ok(Some(Login { identity, fingerprint, at_most: Some(AT_MOST) }));
                }
                Err(refusal) => tracing::info!(issuer = issuer.name, reason = refusal, "an ID token was refused"),
            }
        }
        Ok(None)
    }

    async fn stands(&self, identity: &Identity, fingerprint: &str) -> Result<Option<bool>> {
        let Subject::Federated { issuer: name, .. } = &identity.subject else { return Ok(None) };
        Ok(Some(self.0.iter().any(|issuer| issuer.name == *name && issuer.fingerprint == fingerprint)))
    }

    fn is_offered(&self) -> bool {
        !self.0.is_empty()
    }
}

impl Issuer {
    /// Whom a token proves the caller to be.
    ///
    /// # Errors
    /// 503 where the issuer's keys can't be had.
    async fn judge(&self, token: &str) -> Result<std::result::Result<Identity, Refusal>> {
        let Ok(header) = decode_header(token) else { return Ok(Err("its header can't be read".to_owned())) };
        if !ALGORITHMS.contains(&header.alg) {
            return Ok(Err(format!("algorithm {:?} is not trusted", header.alg)));
        }
        // An extension that we don't know and must understand (CVE-2026-32597).
        if header.crit.is_some() {
            return Ok(Err("it has a critical extension".to_owned()));
        }
        let keys = match self.keys.find(header.kid.as_deref(), header.alg).await {
            Ok(keys) => keys,
            Err(cause) => {
                let message = format!("the keys of issuer {} can't be had right now", self.name);
                return Err(Error::new(Code::Unavailable, message).because(cause));
            }
        };
        let validation = self.validation(header.alg);
        Ok(decode_by_one(token, &keys, &validation).and_then(|claims| self.identify(&claims)))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_nbf = true;
        validation.set_issuer(&[self.settings.issuer.as_str()]);
        let audience: Vec<&str> = self.settings.audience.iter().map(|word| &***word).collect();
        validation.set_audience(&audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation
    }

    /// Maps claims that were proven to an identity, if they are as the conditions want them.
    fn identify(&self, claims: &Map<String, Value>) -> std::result::Result<Identity, Refusal> {
        for (claim, patterns) in &self.settings.claims {
            let values = claims.get(claim).map(texts).unwrap_or_default();
            if !values.iter().any(|value| patterns.iter().any(|pattern| pattern.matches(value))) {
                return Err(format!("claim {claim} is not as the configuration wants it"));
            }
        }
        let subject = &**self.settings.subject;
        let subject = match claims.get(subject) {
            Some(Value::String(text)) if is_name(text) => text.clone(),
            _ => return Err(format!("claim {subject} is not a name")),
        };
        let values = self.settings.groups.iter().flat_map(|claim| claims.get(&***claim).map(texts).unwrap_or_default());
        let groups = values.filter(|value| is_name(value)).take(MAX_GROUPS);
        let groups = groups.map(|value| format!("{}:{value}", self.name)).collect();
        Ok(Identity { subject: Subject::Federated { issuer: self.name.clone(), subject }, groups })
    }
}

/// A claim's values as text; nothing of what is neither text, a number, a truth value nor a list of those.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Bool(_) | Value::Number(_) => vec![value.to_string()],
        Value::Array(items) => items.iter().filter(|item| !item.is_array()).flat_map(texts).collect(),
        Value::Null | Value::Object(_) => Vec::new(),
    }
}

/// Whether text can be a name in rules and in the log: not empty, in bounds, and nothing that would end a word.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.contains(|c: char| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn issuer(settings: &str) -> Issuer {
        let text = format!("[auth.oidc.hub]\nissuer = \"https://i.example\"\naudience = [\"berth\"]\n{settings}");
        let auth = Config::parse(Path::new("x.toml"), &text).unwrap().config.auth;
        Issuers::open(&auth.oidc, None, Pace::default()).unwrap().0.remove(0)
    }

    fn identify(settings: &str, claims: &str) -> std::result::Result<Identity, Refusal> {
        issuer(settings).identify(&serde_json::from_str(claims).unwrap())
    }

    #[test]
    fn every_condition_must_hold() {
        let settings = "claims.owner = [\"team\"]\nclaims.ref = [\"refs/heads/*\", \"refs/tags/v*\"]";
        for (claims, good) in [
            (r#"{"sub": "x", "owner": "team", "ref": "refs/heads/main"}"#, true),
            (r#"{"sub": "x", "owner": "team", "ref": "refs/tags/v1"}"#, true),
            (r#"{"sub": "x", "owner": ["other", "team"], "ref": "refs/tags/v1"}"#, true),
            (r#"{"sub": "x", "owner": "team", "ref": "refs/pull/1"}"#, false),
            (r#"{"sub": "x", "owner": "teams", "ref": "refs/heads/main"}"#, false),
            (r#"{"sub": "x", "ref": "refs/heads/main"}"#, false),
            (r#"{"sub": "x", "owner": {"a": "team"}, "ref": "refs/heads/main"}"#, false),
            (r#"{"owner": "team", "ref": "refs/heads/main"}"#, false),
            (r#"{"sub": "", "owner": "team", "ref": "refs/heads/main"}"#, false),
            (r#"{"sub": "a b", "owner": "team", "ref": "refs/heads/main"}"#, false),
            (r#"{"sub": ["x"], "owner": "team", "ref": "refs/heads/main"}"#, false),
        ] {
            assert_eq!(identify(settings, claims).is_ok(), good, "{claims}");
        }
        let numbers = "claims.project_id = [\"42\"]\nclaims.ref_protected = [\"true\"]";
        assert!(identify(numbers, r#"{"sub": "x", "project_id": 42, "ref_protected": true}"#).is_ok());
        assert!(identify(numbers, r#"{"sub": "x", "project_id": 43, "ref_protected": true}"#).is_err());
    }

    #[test]
    fn claims_become_a_subject_and_groups() {
        let settings = "subject = \"project_path\"\ngroups = [\"namespace\", \"roles\"]";
        let claims = r#"{"sub": "no", "project_path": "team/app", "namespace": "team", "roles": ["dev", "a b", 7]}"#;
        let identity = identify(settings, claims).unwrap();
        assert_eq!(identity.to_string(), "oidc:hub:team/app");
        assert_eq!(identity.groups, ["hub:team", "hub:dev", "hub:7"]);
    }

    #[tokio::test]
    async fn what_is_no_token_of_an_issuer_is_left_to_others() {
        let issuers = Issuers(vec![issuer("")]);
        for secret in
            ["", "hunter2", "eyJ.eyJ", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL290aGVyIn0.x", &"eyJ..".repeat(9000)]
        {
            assert_eq!(issuers.check("x", secret).await.unwrap(), None);
        }
    }
}
