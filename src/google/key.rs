//! A service account's own key: it signs URLs, and tokens by which the account is believed without being
//! looked up first.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use super::credentials::SCOPE;

/// How long such a token is good for, the longest that Google takes: <https://google.aip.dev/auth/4111>.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// How far in the past a token says that it was made, since clocks differ.
const SKEW: Duration = Duration::from_secs(10);

/// The key of a service account.
pub(crate) struct ServiceKey {
    /// The account's email address.
    pub(crate) email: String,
    id: String,
    key: RsaKeyPair,
}

/// The key stays out of logs.
impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceKey").field("email", &self.email).field("id", &self.id).finish_non_exhaustive()
    }
}

impl ServiceKey {
    /// Reads the key, RSA in PEM (PKCS#8, or PKCS#1 as older tools write it).
    ///
    /// # Errors
    /// Why it is none, in a few words.
    pub(super) fn read(email: String, id: String, pem: &str) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| "its private_key is no key in PEM")?;
        let key = match &der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err("its private_key is no RSA key".to_owned()),
        };
        let key = key.map_err(|_| "its private_key is no RSA key")?;
        Ok(Self { email, id, key })
    }

    /// The signature by RSA (PKCS#1 v1.5) and SHA-256.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        let signed = self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map_err(|_| "the key could not sign".to_owned())?;
        Ok(signature)
    }

    /// A token by which the account is believed, and until when.
    pub(super) fn token(&self, now: SystemTime) -> Result<(String, SystemTime), String> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| "this machine's clock is before 1970")?;
        let made = since.saturating_sub(SKEW).as_secs();
        let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": self.id});
        let claims = serde_json::json!({
            "iss": self.email, "sub": self.email, "scope": SCOPE, "iat": made, "exp": made + TOKEN_LIFE.as_secs(),
        });
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes())?);
        Ok((format!("{message}.{signature}"), now + TOKEN_LIFE - SKEW))
    }
}
