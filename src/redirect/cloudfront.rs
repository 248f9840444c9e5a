//! URLs of Amazon CloudFront, signed by a canned policy: this object, until then.
//!
//! What is signed and how it is written is Amazon's:
//! <https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/private-content-creating-signed-url-canned-policy.html>.
//! It is hashed with SHA-256, which CloudFront takes since 2026 where the URL says so; SHA-1, which it takes to be
//! meant otherwise, is not used here. Nothing is asked of Amazon.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use crate::{
    error::{Error, Result},
    storage::{Key, SignedUrl},
};

/// The length of the one RSA modulus that CloudFront takes, in bytes:
/// <https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_PublicKey.html>.
const RSA_BYTES: usize = 2048 / 8;

/// The private key is none that CloudFront takes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("found {0}; want an RSA key of 2048 bits or an ECDSA key on P-256, in PEM")]
pub struct UnfitKey(&'static str);

/// A distribution of CloudFront that has the bucket as its origin.
pub struct CloudFront {
    /// What its URLs begin with, without a slash at the end.
    start: String,
    key_pair_id: String,
    key: SigningKey,
}

enum SigningKey {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
}

/// The key stays out of logs.
impl fmt::Debug for CloudFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, key_pair_id, .. } = self;
        f.debug_struct("CloudFront").field("start", start).field("key_pair_id", key_pair_id).finish_non_exhaustive()
    }
}

impl CloudFront {
    /// A distribution whose URLs begin with `start` (no slash at its end, no query), with the private key, in
    /// PEM, that goes with the public key of that id.
    ///
    /// # Errors
    /// The key is none, or of a kind that CloudFront doesn't take.
    pub fn new(start: &str, key_pair_id: &str, private_key: &str) -> std::result::Result<Self, UnfitKey> {
        let key = SigningKey::read(private_key)?;
        Ok(Self { start: start.to_owned(), key_pair_id: key_pair_id.to_owned(), key })
    }

    /// The URL by which anyone may GET or HEAD the object for `life`, by this machine's clock.
    pub fn sign(&self, key: &Key, life: Duration) -> Result<SignedUrl> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::internal)?;
        // Whole seconds: a part of one is cut off, so that no URL outlives what was asked for.
        let expires = now.saturating_add(life).as_secs();
        Ok(SignedUrl { url: self.sign_until(key, expires)?, life })
    }

    /// The URL that is good until `expires`, in seconds since the Unix epoch.
    fn sign_until(&self, key: &Key, expires: u64) -> Result<String> {
        let resource = format!("{}/{key}", self.start);
        let policy = format!(
            r#"{{"Statement":[{{"Resource":"{resource}","Condition":{{"DateLessThan":{{"AWS:EpochTime":{expires}}}}}}}]}}"#
        );
        let signature = written(&self.key.sign(policy.as_bytes())?);
        let id = &self.key_pair_id;
        Ok(format!("{resource}?Expires={expires}&Signature={signature}&Key-Pair-Id={id}&Hash-Algorithm=SHA256"))
    }
}

impl SigningKey {
    /// The first private key in the PEM: PKCS#8, or as older tools write RSA (PKCS#1) and EC (SEC1).
    fn read(pem: &str) -> std::result::Result<Self, UnfitKey> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| UnfitKey("no private key in PEM"))?;
        let rsa = match &der {
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return Self::read_ecdsa(&der),
        };
        match rsa {
            Ok(key) if key.public_modulus_len() == RSA_BYTES => Ok(Self::Rsa(Box::new(key))),
            Ok(_) => Err(UnfitKey("an RSA key of another length")),
            Err(_) => Self::read_ecdsa(&der),
        }
    }

    fn read_ecdsa(der: &PrivateKeyDer<'_>) -> std::result::Result<Self, UnfitKey> {
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_der());
        key.map(Self::Ecdsa).map_err(|_| UnfitKey("a key of another kind"))
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(Error::internal)?;
                Ok(signature)
            }
            Self::Ecdsa(key) => Ok(key.sign(&random, message).map_err(Error::internal)?.as_ref().to_vec()),
        }
    }
}

/// Bytes in CloudFront's base64, whose letters mean themselves in a query.
fn written(bytes: &[u8]) -> String {
    STANDARD.encode(bytes).replace('+', "-").replace('=', "_").replace('/', "~")
}
