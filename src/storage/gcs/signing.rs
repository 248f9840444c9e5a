//! URLs that carry their own leave, signed by version 4 of Google's way: what is signed, and by whom.
//!
//! <https://cloud.google.com/storage/docs/authentication/canonical-requests> and
//! <https://cloud.google.com/storage/docs/authentication/signatures>. The object library signs too, but always for
//! Google's own host and from this machine's wall clock. Here the moment is the store's own, so that a replica
//! whose clock is wrong gives out URLs that live as long as they should.

use std::{fmt::Write, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde::Deserialize;

use super::StoreTime;
use crate::google::{Credentials, Exchange, ServiceKey, bearer};

/// The longest life of a URL that a key of one's own signs, seven days:
/// <https://cloud.google.com/storage/docs/access-control/signed-urls>.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The longest life of one that IAM signs: its keys may be gone after twelve hours, as
/// <https://cloud.google.com/sdk/gcloud/reference/storage/sign-url> says of them.
const LONGEST_BY_IAM: Duration = Duration::from_secs(12 * 60 * 60);

/// Who signs.
#[derive(Clone, Debug)]
pub(super) enum Signer {
    /// A key that is here: no request.
    Key(Arc<ServiceKey>),
    /// IAM, in a service account's name: one request for each URL.
    Iam(Iam),
}

/// IAM's credentials service.
#[derive(Clone, Debug)]
pub(super) struct Iam {
    /// The service account's email address.
    pub(super) email: String,
    /// The service's URL, without a slash at its end.
    pub(super) endpoint: String,
    pub(super) credentials: Credentials,
    pub(super) exchange: Exchange,
}

/// What a URL lets whoever has it do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leave<'a> {
    pub(super) method: &'a Method,
    /// The store's URL, without a slash at its end.
    pub(super) endpoint: &'a str,
    /// The bucket, and in it the object's name.
    pub(super) bucket: &'a str,
    pub(super) name: &'a str,
    /// What else the query says.
    pub(super) query: &'a [(&'a str, &'a str)],
    /// The store's time from which on it holds.
    pub(super) from: StoreTime,
    /// For how many seconds.
    pub(super) seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    signed_blob: String,
}

impl Signer {
    /// The account that signs, by its email address.
    pub(super) fn email(&self) -> &str {
        match self {
            Self::Key(key) => &key.email,
            Self::Iam(iam) => &iam.email,
        }
    }

    /// The longest that a URL can live.
    pub(super) fn longest(&self) -> Duration {
        match self {
            Self::Key(_) => LONGEST,
            Self::Iam(_) => LONGEST_BY_IAM,
        }
    }

    /// The URL; or, in one line, why it could not be signed.
    pub(super) async fn url(&self, leave: Leave<'_>) -> Result<String, String> {
        let Unsigned { url, text } = leave.unsigned(self.email());
        let signature = match self {
            Self::Key(key) => key.sign(text.as_bytes())?,
            Self::Iam(iam) => iam.sign(text.as_bytes()).await?,
        };
        Ok(format!("{url}&X-Goog-Signature={}", hex(&signature)))
    }
}

impl Iam {
    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>, String> {
        let token = self.credentials.token().await?;
        let url = format!("{}/v1/projects/-/serviceAccounts/{}:signBlob", self.endpoint, self.email);
        let wanted = serde_json::json!({"payload": STANDARD.encode(text)});
        let Signed { signed_blob } =
            self.exchange.post_json(&url, bearer(token.as_deref().unwrap_or_default()), &wanted).await?;
        STANDARD.decode(signed_blob).map_err(|_| "IAM gave a signature that is not in base64".to_owned())
    }
}

/// A URL that lacks its signature, and what is to be signed.
struct Unsigned {
    url: String,
    text: String,
}

impl Leave<'_> {
    fn unsigned(&self, email: &str) -> Unsigned {
        let Self { method, endpoint, bucket, name, query, from, seconds } = *self;
        let at = chrono::DateTime::from_timestamp_millis(from.0 as i64).unwrap_or_default();
        let (day, moment) = (at.format("%Y%m%d"), at.format("%Y%m%dT%H%M%SZ").to_string());
        let scope = format!("{day}/auto/storage/goog4_request");
        let (who, seconds) = (format!("{email}/{scope}"), seconds.to_string());
        let own = [
            ("X-Goog-Algorithm", "GOOG4-RSA-SHA256"),
            ("X-Goog-Credential", &who),
            ("X-Goog-Date", &moment),
            ("X-Goog-Expires", &seconds),
            ("X-Goog-SignedHeaders", "host"),
        ];
        let mut pairs: Vec<String> =
            own.iter().chain(query).map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
        pairs.sort_unstable();
        let (path, query) = (object_path(bucket, name), pairs.join("&"));
        let host = host_of(endpoint);
        let request = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
        let hash = hex(digest(&SHA256, request.as_bytes()).as_ref());
        Unsigned {
            url: format!("{endpoint}{path}?{query}"),
            text: format!("GOOG4-RSA-SHA256\n{moment}\n{scope}\n{hash}"),
        }
    }
}

/// Where an object is in the XML API.
pub(super) fn object_path(bucket: &str, name: &str) -> String {
    let name: Vec<String> = name.split('/').map(escaped).collect();
    format!("/{}/{}", escaped(bucket), name.join("/"))
}

/// Text as it stands in a URL: all but what RFC 3986 leaves unreserved is escaped, as what is signed has to be.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// What a client says in `Host`: without the port that it would use anyway.
fn host_of(endpoint: &str) -> &str {
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let usual = if scheme == "https" { ":443" } else { ":80" };
    host.strip_suffix(usual).unwrap_or(host)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Put together by hand from the page on canonical requests.
    #[test]
    fn what_is_signed_is_written_as_google_wants_it() {
        let leave = Leave {
            method: &Method::GET,
            endpoint: "https://storage.googleapis.com",
            bucket: "a-bucket",
            name: "data/01/sha256:a~b c",
            query: &[("response-content-type", "application/octet-stream")],
            from: StoreTime(1_795_255_205_999),
            seconds: 90,
        };
        let Unsigned { url, text } = leave.unsigned("signer@project.iam.gserviceaccount.com");
        let query = "X-Goog-Algorithm=GOOG4-RSA-SHA256\
            &X-Goog-Credential=signer%40project.iam.gserviceaccount.com%2F20261121%2Fauto%2Fstorage%2Fgoog4_request\
            &X-Goog-Date=20261121T100005Z&X-Goog-Expires=90&X-Goog-SignedHeaders=host\
            &response-content-type=application%2Foctet-stream";
        let path = "/a-bucket/data/01/sha256%3Aa~b%20c";
        assert_eq!(url, format!("https://storage.googleapis.com{path}?{query}"));
        let request = format!("GET\n{path}\n{query}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD");
        let hash = hex(digest(&SHA256, request.as_bytes()).as_ref());
        let expected = format!("GOOG4-RSA-SHA256\n20261121T100005Z\n20261121/auto/storage/goog4_request\n{hash}");
        assert_eq!(text, expected);
    }

    #[test]
    fn the_host_is_what_clients_say() {
        let cases = [
            ("https://storage.googleapis.com:443", "storage.googleapis.com"),
            ("http://127.0.0.1:4443", "127.0.0.1:4443"),
            ("http://gcs:80", "gcs"),
        ];
        for (endpoint, host) in cases {
            assert_eq!(host_of(endpoint), host);
        }
    }
}
