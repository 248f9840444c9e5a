//! Removing an object by a request that the store itself refuses after its time.
//!
//! What carries the time is the life of a signature, so this request alone is signed here, as a URL.

use std::time::{Duration, UNIX_EPOCH};

use aws_sdk_s3::presigning::PresigningConfig;
use http::StatusCode;
use object_store::client::HttpRequestBody;

use super::{Key, LONGEST_SIGNATURE, S3, StorageError, Store, StoreTime};
use crate::outbound::{on_one_line, text_of};

impl S3 {
    /// A URL that deletes the object and that the store refuses after `deadline`. The store counts a
    /// signature's life from the moment that the signature names, in whole seconds. That moment is the store's
    /// own time here: this machine's clock may be minutes off, and then a life that is counted from it would be
    /// over before it begins, or last for minutes too long.
    pub(super) async fn removal_url(&self, key: &Key, deadline: StoreTime) -> Result<String, StorageError> {
        let now = self.now().0 / 1000;
        let Some(life) = (deadline.0 / 1000).checked_sub(now).filter(|life| *life > 0) else {
            return Err(StorageError::TooLate(key.to_string()));
        };
        let failed = |why: String| StorageError::Unavailable(key.to_string(), why);
        let terms = PresigningConfig::builder()
            .start_time(UNIX_EPOCH + Duration::from_secs(now))
            .expires_in(Duration::from_secs(life).min(LONGEST_SIGNATURE));
        let terms = terms.build().map_err(|error| failed(error.to_string()))?;
        let request = self.place.kit.delete_object().bucket(&self.bucket).key(format!("{}{key}", self.prefix));
        let signed = request.presigned(terms).await.map_err(|error| failed(text_of(&error)))?;
        Ok(signed.uri().to_owned())
    }

    /// As [`Store::delete`].
    pub(super) async fn remove(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let about = key.to_string();
        if self.now() > deadline {
            return Err(StorageError::TooLate(about));
        }
        let failed = |text: String| StorageError::Unavailable(about.clone(), text);
        let url = self.removal_url(key, deadline).await?;
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
