//! What is tried: a store, and a place in it that is used for nothing else.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::Method;

use super::{
    super::{Key, MultipartId, Stat, StorageError, Store, StoreTime, read_small},
    Broken, broken,
};

/// The most of an object that is read, in bytes: more than any that is written here.
const MOST: usize = 16 << 20;

/// How long a signed URL may take to answer: the objects are small.
const ANSWER: Duration = Duration::from_secs(30);

/// A store that is tried, and a place in it that is used for nothing else.
#[derive(Debug)]
pub struct Subject {
    pub(super) store: Arc<dyn Store>,
    /// For what is signed.
    http: reqwest::Client,
    /// The most that `Last-Modified` may be off: `index.margin`.
    pub(super) margin: Duration,
    /// The store's own directory, where it is one: it goes at the end.
    directory: Option<PathBuf>,
    written: Mutex<BTreeSet<String>>,
}

/// An answer to what was signed.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

impl Subject {
    /// A store whose keys are all this subject's to write and remove. `margin` is the most that the time of an
    /// object may be off.
    pub fn new(store: Arc<dyn Store>, http: reqwest::Client, margin: Duration) -> Self {
        Self { store, http, margin, directory: None, written: Mutex::default() }
    }

    /// The same, of a store in a directory of its own, which is removed at the end.
    pub fn in_directory(store: Arc<dyn Store>, margin: Duration, directory: PathBuf) -> Self {
        Self { directory: Some(directory), ..Self::new(store, reqwest::Client::new(), margin) }
    }

    /// Removes all that was written.
    ///
    /// # Errors
    /// What could not be removed, and why.
    pub async fn clean(self) -> Result<(), StorageError> {
        if let Some(directory) = self.directory {
            drop(self.store);
            let failed =
                |error: std::io::Error| StorageError::Unavailable(directory.display().to_string(), error.to_string());
            std::fs::remove_dir_all(&directory).map_err(failed)?;
            // The folder for such places goes with the last of them.
            let _ = directory.parent().map(std::fs::remove_dir);
            return Ok(());
        }
        let until = self.soon();
        let written = self.written.into_inner().unwrap_or_else(PoisonError::into_inner);
        for key in written.iter().filter_map(|key| Key::parse(key)) {
            self.store.delete(&key, until).await?;
        }
        Ok(())
    }

    pub(super) fn soon(&self) -> StoreTime {
        self.store.now().plus(Duration::from_secs(60))
    }

    pub(super) fn note(&self, key: &Key) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string());
    }

    pub(super) async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Broken> {
        self.note(key);
        Ok(self.store.put(key, vec![bytes], None).await?)
    }

    pub(super) async fn begin(&self, key: &Key) -> Result<MultipartId, Broken> {
        self.note(key);
        Ok(self.store.begin(key).await?)
    }

    pub(super) async fn read(&self, key: &Key) -> Result<Bytes, StorageError> {
        read_small(&self.store, key, MOST).await
    }

    pub(super) async fn stat(&self, key: &Key) -> Result<Stat, Broken> {
        match self.store.stat(key).await? {
            Some(stat) => Ok(stat),
            None => broken(format!("{key} was written, and isn't there")),
        }
    }

    /// Whether an object is exactly these bytes.
    pub(super) async fn expect(&self, key: &Key, bytes: &[u8]) -> Result<(), Broken> {
        let read = match self.read(key).await {
            Err(StorageError::NotFound(_)) => return broken(format!("{key} was written, and could not be read")),
            read => read?,
        };
        if read != bytes || self.stat(key).await?.size != bytes.len() as u64 {
            return broken(format!("{key} has other bytes than were written"));
        }
        Ok(())
    }

    /// All keys under a prefix, by pages of `limit`.
    pub(super) async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Stat)>, Broken> {
        let mut objects: Vec<(String, Stat)> = Vec::new();
        loop {
            let after = objects.last().map(|(key, _)| key.clone());
            let page = self.store.list(prefix, after.as_deref(), limit).await?;
            let is_last = page.objects.is_empty() || !page.more;
            if page.objects.len() > limit {
                return broken(format!("a page of at most {limit} had {}", page.objects.len()));
            }
            objects.extend(page.objects);
            if is_last {
                return Ok(objects);
            }
        }
    }

    pub(super) async fn ask(&self, method: Method, url: &str, range: Option<&str>) -> Result<Answer, Broken> {
        // The URL is as good as a password, and stays out of what is said.
        let failed = |error: reqwest::Error| Broken(format!("it was not answered: {}", error.without_url()));
        let mut request = self.http.request(method, url);
        if let Some(range) = range {
            request = request.header(http::header::RANGE, range);
        }
        let request = request.timeout(ANSWER);
        let answer = request.send().await.map_err(failed)?;
        let content_type = answer.headers().get(http::header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let status = answer.status().as_u16();
        Ok(Answer { status, content_type, body: answer.bytes().await.map_err(failed)? })
    }
}
