//! Shared access signatures: a URL that lets whoever has it do one thing to one blob, until a second of Azure's
//! own time.
//!
//! Pure: what to sign, and with which key, is for others to know. By
//! <https://learn.microsoft.com/rest/api/storageservices/create-service-sas> and
//! <https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas>, both as of version
//! 2020-12-06. No start is named, so no clock but Azure's counts.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::Sha256;

use super::super::StoreTime;

/// The version by which a signature is made and checked. Later ones sign more fields, none of which is wanted.
const VERSION: &str = "2023-11-03";

/// What a signature lets one do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Get the blob, which says that it is of no kind in particular.
    Read,
    /// Write the blob, whether it is there or not.
    Write,
    /// Remove the blob.
    Delete,
}

impl Permission {
    fn letters(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Write => "cw",
            Self::Delete => "d",
        }
    }

    /// What the answer says for `Content-Type`, whatever was stored.
    fn content_type(self) -> &'static str {
        match self {
            Self::Read => "application/octet-stream",
            Self::Write | Self::Delete => "",
        }
    }
}

/// The blob that a signature is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) account: &'a str,
    pub(super) container: &'a str,
    pub(super) blob: &'a str,
    /// Whether it is good over HTTPS only.
    pub(super) https: bool,
}

/// A key that stands for an identity's rights for some days, in place of the account's own.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DelegationKey {
    signed_oid: String,
    signed_tid: String,
    signed_start: String,
    /// Until when it is good, by RFC 3339.
    pub(super) signed_expiry: String,
    signed_service: String,
    signed_version: String,
    /// The key itself, in base64.
    value: String,
}

/// The key stays out of logs.
impl fmt::Debug for DelegationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegationKey").field("signed_expiry", &self.signed_expiry).finish_non_exhaustive()
    }
}

/// What signs.
#[derive(Clone, Debug)]
pub(super) enum SigningKey {
    /// One of the account's own keys.
    Account(AccountKey),
    /// A key that an identity was given.
    Delegated(DelegationKey),
}

/// An account's key, as bytes.
#[derive(Clone)]
pub(super) struct AccountKey(Vec<u8>);

/// The key stays out of logs.
impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountKey")
    }
}

impl AccountKey {
    /// Reads a key in base64; `None` for what isn't.
    pub(super) fn new(text: &str) -> Option<Self> {
        BASE64_STANDARD.decode(text).ok().filter(|key| !key.is_empty()).map(Self)
    }
}

/// The query of a URL that is good through the last whole second before `until`; `None` where the key is none.
pub(super) fn query(key: &SigningKey, permission: Permission, target: Target<'_>, until: StoreTime) -> Option<String> {
    let expiry = StoreTime(until.0 / 1000 * 1000).rfc3339();
    let protocol = if target.https { "https" } else { "" };
    let resource = format!("/blob/{}/{}/{}", target.account, target.container, target.blob);
    let mut fields = vec![permission.letters(), "", &expiry, &resource];
    let mut pairs = vec![("sv", VERSION), ("sr", "b"), ("sp", permission.letters()), ("se", &expiry)];
    let decoded;
    let secret = match key {
        SigningKey::Account(AccountKey(secret)) => {
            // The name of a stored policy.
            fields.push("");
            secret
        }
        SigningKey::Delegated(key) => {
            let named = [
                ("skoid", &key.signed_oid),
                ("sktid", &key.signed_tid),
                ("skt", &key.signed_start),
                ("ske", &key.signed_expiry),
                ("sks", &key.signed_service),
                ("skv", &key.signed_version),
            ];
            fields.extend(named.iter().map(|(_, value)| value.as_str()));
            pairs.extend(named.map(|(name, value)| (name, value.as_str())));
            // Who else is authorized or isn't, and what to correlate with.
            fields.extend(["", "", ""]);
            decoded = BASE64_STANDARD.decode(&key.value).ok()?;
            &decoded
        }
    };
    // The address; the protocol; the version and the kind of resource; the snapshot and the encryption scope;
    // what the answer says in five headers, the last of them its type.
    fields.extend(["", protocol, VERSION, "b", "", "", "", "", "", "", permission.content_type()]);
    let signature = BASE64_STANDARD.encode(sign(secret, &fields.join("\n"))?);
    let rest = [("spr", protocol), ("rsct", permission.content_type()), ("sig", &signature)];
    pairs.extend(rest.into_iter().filter(|(_, value)| !value.is_empty()));
    Some(pairs.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect::<Vec<_>>().join("&"))
}

fn sign(secret: &[u8], text: &str) -> Option<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(text.as_bytes());
    Some(mac.finalize().into_bytes().to_vec())
}

/// Text as it may stand in the value of a query.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
