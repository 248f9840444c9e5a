//! The requests that the object library can't send: listings and single objects by the JSON API, removals that the
//! store refuses after their time, and uploads that have not ended.
//!
//! Objects are asked for by the JSON API since it says when each was created. The `Last-Modified` of the XML API
//! moves when anything about an object changes, also when the bucket's own rules move it to another storage class,
//! and a tag's revision that is moved years later would no longer count.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use object_store::client::HttpRequestBody;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    super::remote::RETRIES,
    Gcs, Key, MultipartId, Page, Signer, Stat, StorageError, Store, StoreTime, Unfinished, UnfinishedPage,
    signing::{escaped, object_path},
};
use crate::{
    google::{bearer, said},
    outbound::{pause_before, text_of},
};

/// Why a request came to nothing.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What the store answered; `None` where it didn't.
    pub(super) status: Option<StatusCode>,
    /// What it said, or what came in the way, on one line.
    pub(super) text: String,
}

impl Failure {
    fn answered(status: StatusCode, body: &[u8]) -> Self {
        Self { status: Some(status), text: format!("{} {}", status.as_u16(), said(body)) }
    }

    fn other(text: String) -> Self {
        Self { status: None, text }
    }

    /// Whether there is nothing, in a bucket that is there.
    fn is_missing(&self) -> bool {
        self.status == Some(StatusCode::NOT_FOUND) && !self.text.contains("bucket does not exist")
    }

    /// Named by what the caller can do about it.
    pub(super) fn at(self, about: &str) -> StorageError {
        let about = about.to_owned();
        match self.status {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => StorageError::Refused(about, self.text),
            _ if self.is_missing() => StorageError::NotFound(about),
            _ => StorageError::Unavailable(about, self.text),
        }
    }
}

/// A page of a listing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(default)]
    items: Vec<Object>,
    next_page_token: Option<String>,
}

/// What is asked of each object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    /// Missing where a single one was asked for.
    #[serde(default)]
    name: String,
    /// JSON has no numbers that are large enough, so it comes as text.
    size: String,
    time_created: chrono::DateTime<chrono::Utc>,
}

impl Object {
    fn stat(&self) -> Option<Stat> {
        let modified = StoreTime(self.time_created.timestamp_millis().unsigned_abs());
        Some(Stat { size: self.size.parse().ok()?, modified })
    }
}

/// A page of uploads that have not ended.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: chrono::DateTime<chrono::Utc>,
}

impl Gcs {
    /// As [`Store::list`].
    pub(super) async fn list_objects(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, Failure> {
        let mut token = None;
        loop {
            let (objects, next) = self.page(prefix, after, limit, token).await?;
            // A page in which nothing is to be shown has no last key to go on from.
            if objects.is_empty() && next.is_some() {
                token = next;
                continue;
            }
            let more = next.is_some() || objects.len() > limit;
            return Ok(Page { objects: objects.into_iter().take(limit).collect(), more });
        }
    }

    /// A page as the store gives it, without the key that it begins with if that is `after`; and where to go on.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        token: Option<String>,
    ) -> Result<(Vec<(String, Stat)>, Option<String>), Failure> {
        let mut url = format!(
            "{}/storage/v1/b/{}/o?fields=nextPageToken,items(name,size,timeCreated)&prefix={}&maxResults={}",
            self.endpoint,
            escaped(&self.bucket),
            escaped(&format!("{}{prefix}", self.prefix)),
            // One more, as the listing begins with `after` itself if it is there.
            limit + 1,
        );
        if let Some(after) = after {
            url = format!("{url}&startOffset={}", escaped(&format!("{}{after}", self.prefix)));
        }
        if let Some(token) = token {
            url = format!("{url}&pageToken={}", escaped(&token));
        }
        let Listed { items, next_page_token } = read_json(&self.get(&url).await?)?;
        let object = |object: &Object| Some((object.name.strip_prefix(&self.prefix)?.to_owned(), object.stat()?));
        let objects = items.iter().filter_map(object);
        // A folder that some console made has a name that ends with a slash: it is no object of anybody's.
        let objects = objects.filter(|(key, _)| {
            after.is_none_or(|after| key.as_str() > after) && !key.ends_with('/') && !key.is_empty()
        });
        Ok((objects.collect(), next_page_token))
    }

    /// As [`Store::stat`].
    pub(super) async fn look_at(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let (bucket, name) = (escaped(&self.bucket), escaped(&self.object(key)));
        let url = format!("{}/storage/v1/b/{bucket}/o/{name}?fields=size,timeCreated", self.endpoint);
        let about = key.to_string();
        match self.get(&url).await {
            Ok(body) => {
                let object: Object = read_json(&body).map_err(|failure| failure.at(&about))?;
                let stat = object.stat();
                stat.map(Some).ok_or_else(|| StorageError::Unavailable(about, "its size is no number".to_owned()))
            }
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure.at(&about)),
        }
    }

    /// The URL by which an object may be removed until `deadline`, and no longer.
    pub(super) async fn removal_url(
        &self,
        signer: &Signer,
        key: &Key,
        deadline: StoreTime,
    ) -> Result<String, StorageError> {
        let from = self.this_second();
        let seconds = deadline.0.saturating_sub(from.0) / 1000;
        if seconds == 0 {
            return Err(StorageError::TooLate(key.to_string()));
        }
        let signed = self.signed(signer, &Method::DELETE, &self.endpoint, key, (from, seconds)).await;
        signed.map_err(|why| StorageError::Unavailable(key.to_string(), why))
    }

    /// As [`Store::delete`]. The time is carried by the signature, so this request has no other leave; but an
    /// emulator's, which has none at all.
    pub(super) async fn remove(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let about = key.to_string();
        let url = match &self.signer {
            Some(signer) => self.removal_url(signer, key, deadline).await?,
            None => format!("{}{}", self.endpoint, object_path(&self.bucket, &self.object(key))),
        };
        // To sign may have taken a while.
        if self.now() > deadline {
            return Err(StorageError::TooLate(about));
        }
        let (status, body) = match self.ask(Method::DELETE, &url, None).await {
            Ok(answer) => answer,
            Err(text) => return Err(StorageError::Unavailable(about, text)),
        };
        let text = String::from_utf8_lossy(&body);
        match status {
            status if status.is_success() => Ok(()),
            // An expired signature is a bad request here.
            StatusCode::BAD_REQUEST if text.contains("ExpiredToken") => Err(StorageError::TooLate(about)),
            StatusCode::NOT_FOUND if !text.contains("NoSuchBucket") => Ok(()),
            _ => Err(Failure::answered(status, &body).at(&about)),
        }
    }

    /// As [`Store::unfinished`].
    pub(super) async fn list_unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        let mut marker = after.and_then(|Unfinished { key, id, .. }| Some((self.object(key.as_ref()?), id.0.clone())));
        loop {
            let listed = self.unfinished_page(marker.as_ref()).await.map_err(|failure| failure.at(&self.name))?;
            let last = listed.upload.last().map(|upload| (upload.key.clone(), upload.upload_id.clone()));
            let more = listed.is_truncated && last != marker;
            let uploads: Vec<Unfinished> =
                listed.upload.into_iter().filter_map(|upload| self.unfinished_of(upload)).collect();
            // A page of others' uploads has no last one of ours to go on from.
            if !uploads.is_empty() || !more {
                return Ok(UnfinishedPage { uploads, more });
            }
            marker = last;
        }
    }

    async fn unfinished_page(&self, after: Option<&(String, String)>) -> Result<Uploads, Failure> {
        let (bucket, prefix) = (escaped(&self.bucket), escaped(&self.prefix));
        let mut url = format!("{}/{bucket}?uploads&prefix={prefix}", self.endpoint);
        if let Some((key, upload)) = after {
            url = format!("{url}&key-marker={}&upload-id-marker={}", escaped(key), escaped(upload));
        }
        let body = self.get(&url).await?;
        let unreadable = |error: quick_xml::DeError| Failure::other(format!("its answer can't be read: {error}"));
        quick_xml::de::from_reader(&body[..]).map_err(unreadable)
    }

    /// `None` for what would end at a key that is not ours.
    fn unfinished_of(&self, upload: Upload) -> Option<Unfinished> {
        let key = Key::parse(upload.key.strip_prefix(&self.prefix)?)?;
        let since = StoreTime(upload.initiated.timestamp_millis().unsigned_abs());
        Some(Unfinished { key: Some(key), id: MultipartId(upload.upload_id), since })
    }

    /// What is at a URL, in one piece; asked for again where the store, or the way to it, fails for a moment.
    async fn get(&self, url: &str) -> Result<Bytes, Failure> {
        let (mut failures, begun) = (0, Instant::now());
        loop {
            let token = self.credentials.token().await;
            let token = token.map_err(|why| Failure::other(format!("there are no credentials: {why}")))?;
            let failure = match self.ask(Method::GET, url, token.as_deref().map(bearer)).await {
                Ok((status, body)) if status.is_success() => return Ok(body),
                Ok((status, body)) => Failure::answered(status, &body),
                Err(text) => Failure::other(text),
            };
            let is_passing =
                failure.status.is_none_or(|status| status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS);
            failures += 1;
            if !is_passing || failures > RETRIES || begun.elapsed() > self.give_up() {
                return Err(failure);
            }
            tokio::time::sleep(pause_before(failures)).await;
        }
    }

    /// After how long a request is not repeated again.
    fn give_up(&self) -> Duration {
        self.patience.call * 2
    }

    /// One request, sent once.
    pub(super) async fn ask(
        &self,
        method: Method,
        url: &str,
        leave: Option<(&str, String)>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = http::Request::builder().method(method).uri(url);
        if let Some((name, value)) = leave {
            request = request.header(name, value);
        }
        let request = request.body(HttpRequestBody::empty()).map_err(|error| error.to_string())?;
        let (parts, body) = self.transport.send(request).await.map_err(|error| text_of(&error))?.into_parts();
        let body = body.bytes().await.map_err(|error| text_of(&error))?;
        Ok((parts.status, body))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::other(format!("its answer can't be read: {error}")))
}
