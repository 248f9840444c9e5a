//! The tokens of other token services: where Berth is only the registry, and somebody else says who may do what.
//!
//! Such a token is believed if a key of its issuer signed it and it is meant for us and in force; what it says of
//! access then counts as it is. Our rules are not asked, since they know nothing of its holder. Nothing is issued
//! here.

use std::sync::Arc;

use jsonwebtoken::Validation;
use serde::Deserialize;

use super::{
    Identity, Subject,
    issuer_keys::{ALGORITHMS, IssuerKeys, Pace, Place, UnusableCa, decode_by_one, named_issuer},
    token::{Access, LEEWAY, Resource, Verified, header_of},
};
use crate::{
    config::{KeyPlace, TokenIssuer},
    error::{Code, Error, Result},
    outbound::Proxy,
};

/// The longest name of a token's holder that is taken, in bytes; OpenID Connect allows a `sub` 255.
const MAX_SUBJECT: usize = 255;

/// The token services that are trusted.
#[derive(Debug, Default)]
pub struct TokenIssuers(Vec<Issuer>);

#[derive(Debug)]
struct Issuer {
    /// As the configuration calls it.
    name: String,
    /// As its tokens do.
    issuer: String,
    keys: IssuerKeys,
}

/// What such a token says. Services leave out or write as `null` what they have nothing to say of.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: u64,
    access: Option<Vec<Resource>>,
}

impl TokenIssuers {
    /// Those of the configuration, reached through `proxy`. Nobody is asked anything before the first token comes.
    ///
    /// # Errors
    /// A file of certificates can't be read.
    pub fn open<'a>(
        issuers: impl IntoIterator<Item = (&'a String, &'a TokenIssuer)>,
        proxy: Option<&Proxy>,
    ) -> std::result::Result<Self, UnusableCa> {
        let open = |(name, settings): (&String, &TokenIssuer)| {
            let (place, pace) = match &*settings.jwks {
                KeyPlace::Url(url) => (Place::Url(url.clone()), Pace::default()),
                KeyPlace::File(path) => (Place::File(path.clone()), Pace::FILE),
            };
            let ca = settings.ca.as_ref().map(|path| path.to_path_buf());
            let keys = IssuerKeys::open(place, ca.as_deref(), proxy, pace).map_err(|why| {
                let (key, path) = (format!("auth.token_issuers.{name}.ca"), ca.clone().unwrap_or_default());
                UnusableCa { key, path, why }
            })?;
            Ok(Issuer { name: name.clone(), issuer: settings.issuer.to_string(), keys })
        };
        Ok(Self(issuers.into_iter().map(open).collect::<std::result::Result<_, _>>()?))
    }

    /// Believes an access token for `service`, or says for the log why not. `None` if no issuer here is the one
    /// that it names.
    ///
    /// # Errors
    /// 503 where the issuer's keys can't be had.
    pub(super) async fn believe(
        &self,
        service: &str,
        token: &str,
    ) -> Result<Option<std::result::Result<Verified, String>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let header = match header_of(token) {
            Ok(header) => header,
            Err(why) => return Ok(Some(Err(why))),
        };
        let named = named_issuer(token);
        let Some(issuer) = self.0.iter().find(|issuer| Some(&issuer.issuer) == named.as_ref()) else {
            return Ok(None);
        };
        if !ALGORITHMS.contains(&header.alg) {
            return Ok(Some(Err(format!("algorithm {:?} is not trusted", header.alg))));
        }
        let keys = issuer.keys.find(header.kid.as_deref(), header.alg).await.map_err(|cause| {
            let message = format!("the keys of the token service {} can't be had right now", issuer.name);
            Error::new(Code::Unavailable, message).because(cause)
        })?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&issuer.issuer]);
        validation.set_audience(&[service]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        Ok(Some(decode_by_one(token, &keys, &validation).and_then(|claims| issuer.read(claims))))
    }
}

impl Issuer {
    /// What claims that were proven say.
    fn read(&self, claims: Claims) -> std::result::Result<Verified, String> {
        let subject = match claims.sub.unwrap_or_default() {
            nobody if nobody.is_empty() => Subject::Anonymous,
            text if text.len() > MAX_SUBJECT || text.contains(char::is_control) => {
                return Err("its subject is no name".to_owned());
            }
            subject => Subject::Federated { issuer: self.name.clone(), subject },
        };
        Ok(Verified {
            identity: Arc::new(Identity { subject, groups: Vec::new() }),
            access: Access::read(&claims.access.unwrap_or_default()),
            expires: claims.exp.saturating_add(LEEWAY),
            login: false,
            is_foreign: true,
        })
    }
}
