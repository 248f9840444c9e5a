//! URLs of Google's Cloud CDN, signed with a key that it shares: this object, until then.
//!
//! What is signed and how it is written is Google's: <https://cloud.google.com/cdn/docs/using-signed-urls>. It is
//! HMAC-SHA1, the only way that Cloud CDN knows; as a MAC that is unbroken. Nothing is asked of Google.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac::{HMAC_SHA1_FOR_LEGACY_USE_ONLY, Key as MacKey, sign};
use base64::{Engine, engine::general_purpose::URL_SAFE};

use crate::{
    error::{Error, Result},
    storage::{Key, SignedUrl},
};

/// A load balancer with Cloud CDN that has the bucket behind it.
pub struct CloudCdn {
    /// What its URLs begin with, without a slash at the end.
    start: String,
    key_name: String,
    key: [u8; 16],
}

/// The key stays out of logs.
impl fmt::Debug for CloudCdn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, key_name, .. } = self;
        f.debug_struct("CloudCdn").field("start", start).field("key_name", key_name).finish_non_exhaustive()
    }
}

impl CloudCdn {
    /// A load balancer whose URLs begin with `start` (no slash at its end, no query), and the key of that name
    /// that its backend has.
    pub fn new(start: &str, key_name: &str, key: [u8; 16]) -> Self {
        Self { start: start.to_owned(), key_name: key_name.to_owned(), key }
    }

    /// The URL by which anyone may GET or HEAD the object for `life`, by this machine's clock.
    pub fn sign(&self, key: &Key, life: Duration) -> Result<SignedUrl> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::internal)?;
        // Whole seconds: a part of one is cut off, so that no URL outlives what was asked for.
        let expires = now.saturating_add(life).as_secs();
        let url = format!("{}/{key}?Expires={expires}&KeyName={}", self.start, self.key_name);
        let signature = URL_SAFE.encode(sign(&MacKey::new(HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.key), url.as_bytes()));
        Ok(SignedUrl { url: format!("{url}&Signature={signature}"), life })
    }
}
