//! Tokens by which Berth says to others who it is. None of them opens anything of Berth itself: their `typ` is
//! another one than that of the tokens that it believes.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Authority, now};
use crate::error::{Error, Result};

/// The `typ` of a token that is shown to somebody who is told of events (RFC 8725, section 3.11).
const EVENT: &str = "event+jwt";

/// How long such a token is good for, in seconds: long enough for clocks that are a little off.
const LIFE: u64 = 300;

/// How long a token for Google is good for, in seconds: the most that Google takes.
/// <https://developers.google.com/identity/protocols/oauth2/service-account#jwt-auth>
pub const GOOGLE_LIFE: u64 = 3600;

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

/// What of a service account's key is needed.
#[derive(Deserialize)]
struct ServiceAccountKey {
    client_email: String,
    private_key: String,
    #[serde(default)]
    private_key_id: Option<String>,
}

/// What is said to Google.
#[derive(Serialize)]
struct Asserted<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
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

/// The token by which a Google service account shows itself to the service `audience`, signed by its own key, from
/// the JSON of that key. It is good for [`GOOGLE_LIFE`].
///
/// # Errors
/// The key can't be used, in words that show nothing of it.
pub fn google_token(json: &str, audience: &str) -> std::result::Result<String, String> {
    let unusable = |what: &str| format!("the service account's {what}");
    let key: ServiceAccountKey = serde_json::from_str(json).map_err(|_| unusable("key is no JSON key"))?;
    let signing = EncodingKey::from_rsa_pem(key.private_key.as_bytes());
    let signing = signing.map_err(|_| unusable("private_key is no RSA key in PEM"))?;
    let mut header = Header::new(Algorithm::RS256);
    header.kid = key.private_key_id;
    let (now, account) = (now(), key.client_email.as_str());
    let claims = Asserted { iss: account, sub: account, aud: audience, iat: now, exp: now + GOOGLE_LIFE };
    encode(&header, &claims, &signing).map_err(|_| unusable("private_key can't sign"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::{
        AccessRules, Presented,
        keys::{Key, KeyRing, Kind},
    };

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

    #[test]
    fn a_service_account_shows_itself_by_its_own_key() {
        let key = Key::make(Kind::Rs256, 0).unwrap();
        let pem = key.text().split_once('\n').unwrap().1;
        let json =
            json!({ "client_email": "ci@p.iam.gserviceaccount.com", "private_key_id": "k1", "private_key": pem });
        let token = google_token(&json.to_string(), "https://pubsub.googleapis.com/").unwrap();
        let ring = KeyRing::read(key.text()).unwrap();
        let public = DecodingKey::from_jwk(&ring.public().keys[0]).unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_audience(&["https://pubsub.googleapis.com/"]);
        let claims = decode::<Value>(&token, &public, &validation).unwrap().claims;
        assert_eq!(claims["iss"], claims["sub"]);
        assert_eq!(claims["sub"], "ci@p.iam.gserviceaccount.com");
        assert_eq!(decode_header(&token).unwrap().kid.as_deref(), Some("k1"));
        let broken = google_token("{\"client_email\": \"a\", \"private_key\": \"s3cret\"}", "x").unwrap_err();
        assert!(!broken.contains("s3cret"), "{broken}");
    }
}
