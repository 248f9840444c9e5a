//! Removing an object by a request that the store itself refuses after its time.
//!
//! What carries the time is the life of a signature, so this request alone is signed here, as a URL.

use std::time::Duration;

use http::{Method, StatusCode};
use object_store::{client::HttpRequestBody, signer::Signer};

use super::{Key, LONGEST_SIGNATURE, S3, StorageError, Store, StoreTime, fault::explain};
use crate::outbound::{on_one_line, text_of};

/// How often a DELETE is signed again because the second changed meanwhile.
const SIGNATURES: usize = 3;

impl S3 {
    /// A URL that deletes the object and that the store refuses after `deadline`. The store counts a
    /// signature's life from the moment that the signature names, which is this machine's wall clock; so
    /// the life is what is left from that moment, in whole seconds, and a clock that runs ahead of the
    /// store's leaves less of it, never more.
    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<String, StorageError> {
        for _ in 0..SIGNATURES {
            let second = chrono::Utc::now().timestamp();
            let life = i64::try_from(deadline.0 / 1000).unwrap_or(i64::MAX) - second;
            let Some(life) = u64::try_from(life).ok().filter(|life| *life > 0) else {
                return Err(StorageError::TooLate(key.to_string()));
            };
            let life = Duration::from_secs(life).min(LONGEST_SIGNATURE);
            let signed = self.calls.signed_url(Method::DELETE, &self.path(key)?, life).await;
            let url = signed.map_err(|error| explain(&key.to_string(), &error))?;
            // Getting credentials may have taken a while before the signature was dated.
            let date = url.query_pairs().find(|(name, _)| name == "X-Amz-Date").map(|(_, date)| date.into_owned());
            if date.and_then(|date| signing_second(&date)) == Some(second) {
                return Ok(url.into());
            }
        }
        Err(StorageError::Unavailable(key.to_string(), "signing takes longer than a second".to_owned()))
    }

    /// As [`Store::delete`].
    pub(super) async fn remove(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let about = key.to_string();
        if self.now() > deadline {
            return Err(StorageError::TooLate(about));
        }
        let failed = |text: String| StorageError::Unavailable(about.clone(), text);
        let url = self.sign_delete(key, deadline).await?;
        let request = http::Request::delete(url).body(HttpRequestBody::empty());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let response = self.transport.send(request).await.map_err(|error| failed(text_of(&error)))?;
        let (parts, body) = response.into_parts();
        if parts.status.is_success() {
            return Ok(());
        }
        let body = body.bytes().await.map_err(|error| failed(text_of(&error)))?;
        refused_delete(&about, parts.status, &on_one_line(&String::from_utf8_lossy(&body)), self.now() > deadline)
    }
}

/// Seconds since the Unix epoch of an `X-Amz-Date`.
fn signing_second(date: &str) -> Option<i64> {
    chrono::NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").ok().map(|date| date.and_utc().timestamp())
}

/// What it means that a DELETE didn't succeed.
fn refused_delete(about: &str, status: StatusCode, body: &str, late: bool) -> Result<(), StorageError> {
    match status {
        StatusCode::NOT_FOUND if !body.contains("NoSuchBucket") => Ok(()),
        StatusCode::FORBIDDEN if late || body.contains("expired") => Err(StorageError::TooLate(about.to_owned())),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            Err(StorageError::Refused(about.to_owned(), body.to_owned()))
        }
        _ => Err(StorageError::Unavailable(about.to_owned(), format!("{status} {body}"))),
    }
}
