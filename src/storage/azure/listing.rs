//! Listing from the middle: Azure's own word for it came with a version of the service that the object library
//! doesn't speak.

use http::Method;
use serde::Deserialize;

use super::{
    super::{Page, Stat, StorageError, StoreTime},
    Azure,
    request::Ask,
};

/// The version in which a listing can begin at a name.
const VERSION: &str = "2026-02-06";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    blobs: Blobs,
    #[serde(default)]
    next_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blobs {
    #[serde(default)]
    blob: Vec<Blob>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Blob {
    name: String,
    properties: Properties,
}

#[derive(Debug, Deserialize)]
struct Properties {
    #[serde(rename = "Last-Modified")]
    modified: String,
    #[serde(rename = "Content-Length")]
    size: u64,
}

impl Azure {
    /// As [`super::Store::list`].
    pub(super) async fn list_after(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StorageError> {
        let mut marker = String::new();
        let after = after.map(|after| self.names.of(after));
        loop {
            let (mut objects, next) = self.page(prefix, after.as_deref(), limit, &marker).await?;
            let is_cut = objects.len() > limit;
            objects.truncate(limit);
            // A page in which nothing is to be shown has no last key to go on from.
            if !objects.is_empty() || next.is_empty() {
                return Ok(Page { objects, more: is_cut || !next.is_empty() });
            }
            marker = next;
        }
    }

    /// A page as Azure gives it, of what comes after the name `after`, and the marker of the next one.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        marker: &str,
    ) -> Result<(Vec<(String, Stat)>, String), StorageError> {
        let prefix = self.names.of(prefix);
        let mut ask = Ask::new(Method::GET, self.container.clone())
            .with_query("restype", "container")
            .with_query("comp", "list")
            .with_query("prefix", prefix.as_str())
            // The first may be the one after which the page begins.
            .with_query("maxresults", (limit + usize::from(after.is_some())).to_string());
        match after {
            _ if !marker.is_empty() => ask = ask.with_query("marker", marker),
            Some(after) if after.starts_with(&prefix) => {
                ask = Ask { version: Some(VERSION), ..ask.with_query("startFrom", after) };
            }
            // Behind all that begins so.
            Some(after) if after > prefix.as_str() => return Ok((Vec::new(), String::new())),
            _ => {}
        }
        let answer = self.calls.ask(&ask).await.map_err(|fault| fault.explain(&prefix))?;
        let unread = |why: String| StorageError::Unavailable(prefix.clone(), format!("a listing can't be read: {why}"));
        let listed: Listed = quick_xml::de::from_reader(&*answer.body).map_err(|error| unread(error.to_string()))?;
        let mut objects = Vec::with_capacity(listed.blobs.blob.len());
        for blob in listed.blobs.blob {
            // A service that doesn't know where to begin begins at the beginning.
            let Some(key) = self.names.key(&blob.name).filter(|_| after.is_none_or(|after| blob.name.as_str() > after))
            else {
                continue;
            };
            let modified = time(&blob.properties.modified).ok_or_else(|| unread(blob.properties.modified.clone()))?;
            objects.push((key, Stat { size: blob.properties.size, modified }));
        }
        Ok((objects, listed.next_marker))
    }
}

/// A point in time as a header or a listing says it.
pub(super) fn time(text: &str) -> Option<StoreTime> {
    let at = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    at.timestamp_millis().try_into().ok().map(StoreTime)
}
