//! Upload ids: nothing is written when an upload starts, so the id itself says whose it is.
//!
//! An id is a ULID and a MAC over (bucket's key; repository, subject, ULID), each field preceded by its
//! length so that no two sets of fields look alike (CVE-2026-58426). It is good on every replica, and
//! unknown in any other repository or to any other subject (CVE-2026-32589).

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use ulid::Ulid;

use crate::{oci::RepositoryName, storage::DataKey};

/// The name of an upload, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadId {
    /// When and which.
    pub ulid: Ulid,
    mac: String,
}

/// What an upload's URL carries beside its id: the sign that the registry has answered for all bytes up to
/// an offset. Who lacks it, or has an old one, is served all the same, after one more look at the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof(String);

impl UploadId {
    /// Names a new upload.
    pub fn new(key: &[u8], repository: &RepositoryName, subject: &str, ulid: Ulid) -> Self {
        let ulid_text = ulid.to_string();
        let mac = mac(key, &["upload", repository.as_str(), subject, &ulid_text]);
        Self { ulid, mac }
    }

    /// Reads what a client sent; `None` unless it was made by [`UploadId::new`] with the same arguments.
    pub fn verify(key: &[u8], repository: &RepositoryName, subject: &str, text: &str) -> Option<Self> {
        let (ulid, given) = text.split_once('.')?;
        let id = Self::new(key, repository, subject, Ulid::from_string(ulid).ok()?);
        let same = id.mac.len() == given.len()
            && id.mac.bytes().zip(given.bytes()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0;
        same.then_some(id)
    }

    /// The proof for `offset` bytes, the last of them in the object `aside`.
    pub fn proof(&self, key: &[u8], offset: u64, aside: Option<DataKey>) -> Proof {
        let aside = aside.map(|aside| aside.0.to_string()).unwrap_or_default();
        Proof(mac(key, &["offset", &self.to_string(), &offset.to_string(), &aside]))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ulid, self.mac)
    }
}

impl Proof {
    /// Takes what a client sent, as it is: it only ever is compared.
    pub fn sent(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// HMAC-SHA-256 over length-prefixed fields, its first 128 bits, for a URL.
fn mac(key: &[u8], fields: &[&str]) -> String {
    // A key of any length is good for HMAC, so this never is the error that the signature allows for.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    for field in fields {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_good_for_its_repository_and_subject_alone() {
        let name = |text: &str| text.parse::<RepositoryName>().expect("name");
        let id = UploadId::new(b"key", &name("a/b"), "alice", Ulid::r#gen());
        let text = id.to_string();
        assert_eq!(UploadId::verify(b"key", &name("a/b"), "alice", &text), Some(id.clone()));
        assert_eq!(UploadId::verify(b"key", &name("a"), "alice", &text), None);
        assert_eq!(UploadId::verify(b"key", &name("a/b"), "bob", &text), None);
        assert_eq!(UploadId::verify(b"other", &name("a/b"), "alice", &text), None);
        assert_eq!(UploadId::verify(b"key", &name("a/b"), "alice", &text[..text.len() - 1]), None);
        for bad in ["", ".", "x.y", &id.ulid.to_string()] {
            assert_eq!(UploadId::verify(b"key", &name("a/b"), "alice", bad), None, "{bad}");
        }
        assert_ne!(id.proof(b"key", 0, None), id.proof(b"key", 1, None));
    }
}
