//! Tokens by which Berth says to others who it is. None of them opens anything of Berth itself: their `typ` is
//! another one than that of the tokens that it believes.

use jsonwebtoken::{Header, encode};
use serde::Serialize;
use ulid::Ulid;

use super::{Authority, now};
use crate::error::{Error, Result};

/// The `typ` of a token that is shown to somebody who is told of events (RFC 8725, section 3.11).
const EVENT: &str = "event+jwt";

/// How long such a token is good for, in seconds: long enough for clocks that are a little off.
const LIFE: u64 = 300;

/// What is said to the receiver of an event.
#[derive(Serialize)]
struct Vouched<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
}

impl Authority {
    /// A token that says to `audience` that a request comes from this registry, on behalf of `subject`. It is good for
    /// five minutes, and its key is published with the others.
    ///
    /// # Errors
    /// Where the key can't sign.
    pub fn vouch(&self, subject: &str, audience: &str) -> Result<String> {
        let (keys, now) = (self.keys(), now());
        let key = keys.signing(now);
        let mut header = Header::new(key.algorithm());
        header.typ = Some(EVENT.to_owned());
        header.kid = Some(key.id.clone());
        let (iss, jti) = (self.token_options().issuer.as_str(), Ulid::r#gen().to_string());
        let claims = Vouched { iss, sub: subject, aud: audience, iat: now, exp: now + LIFE, jti };
        encode(&header, &claims, &key.signing).map_err(Error::internal)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
    use serde_json::Value;

    use super::*;
    use crate::auth::{AccessRules, Presented};

    #[tokio::test]
    async fn a_token_for_others_opens_nothing_here() {
        let authority = Authority::of_rules(AccessRules::default()).unwrap();
        let service = authority.token_options().service.clone();
        let token = authority.vouch("event:ci", &service).unwrap();
        let header = decode_header(&token).unwrap();
        let keys = authority.keys();
        assert_eq!((header.typ.as_deref(), header.kid.as_ref()), (Some("event+jwt"), Some(&keys.keys()[0].id)));
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&[&service]);
        let public = DecodingKey::from_jwk(&keys.public().keys[0]).unwrap();
        let claims = decode::<Value>(&token, &public, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "event:ci");
        assert!(authority.authenticate(&Presented::Token(token), None).await.is_err());
    }
}
