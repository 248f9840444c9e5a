//! The contract of a store, as `berth storage check` tries it: every store that Berth has keeps it, and a store that
//! breaks one promise is caught at exactly that one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, ops::Range, process::Command, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth::storage::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
    contract::{Broken, Kept, Promise, Subject},
    local::Local,
    s3::{S3, S3Options},
};
use bytes::Bytes;
use futures_util::future::join_all;

use crate::{
    s3_server,
    storage::{self, Place, stores},
};

const MARGIN: Duration = Duration::from_secs(3);
/// Longer than anything that is tried.
const LONG: Duration = Duration::from_secs(600);

async fn tried(subject: &Subject) -> BTreeMap<Promise, Result<Kept, Broken>> {
    // Boxed: unoptimised, all of them side by side are more than a test's stack.
    let tries = Promise::ALL.map(|promise| Box::pin(async move { (promise, promise.try_on(subject).await) }));
    join_all(tries).await.into_iter().collect()
}

fn subject(store: &Arc<dyn Store>) -> Subject {
    Subject::new(Arc::clone(store), reqwest::Client::new(), MARGIN)
}

#[tokio::test]
async fn every_store_keeps_every_promise() {
    let signed = [Promise::SignedReads, Promise::ExpiredReads, Promise::ExpiredRemovals];
    let parts = [Promise::Parts, Promise::ReplacedParts, Promise::GivenUpUploads];
    let beyond = [&signed[..], &parts].concat();
    for (place, store) in stores().await {
        let subject = subject(&store);
        for (promise, kept) in tried(&subject).await {
            if !place.is_whole() && beyond.contains(&promise) {
                continue;
            }
            let is_asked = match place {
                Place::Directory { .. } => !signed.contains(&promise),
                Place::Container(_) => ![Promise::ReplacedParts, Promise::GivenUpUploads].contains(&promise),
                _ => true,
            };
            let expected = if is_asked { Kept::Yes } else { Kept::NotAsked };
            assert_eq!(kept, Ok(expected), "{promise:?} {store:?}");
        }
        subject.clean().await.unwrap();
        assert!(store.list("", None, 10).await.unwrap().objects.is_empty(), "something was left in {store:?}");
    }
}

/// A store that breaks one promise, where that promise is tried.
#[derive(Debug)]
struct Faithless {
    inner: Arc<dyn Store>,
    promise: Promise,
    written: std::sync::Mutex<Vec<String>>,
}

impl Faithless {
    fn breaks(&self, promise: Promise, key: &str) -> bool {
        self.promise == promise && format!("{key}/").starts_with(&promise.place())
    }

    /// Whether a write is so recent that a store which takes its time doesn't show it yet.
    fn is_last(&self, key: &str) -> bool {
        self.written.lock().unwrap().last().is_some_and(|last| last == key)
    }
}

#[async_trait]
impl Store for Faithless {
    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    fn part_size(&self) -> usize {
        self.inner.part_size()
    }

    fn max_parts(&self) -> usize {
        self.inner.max_parts()
    }

    fn now(&self) -> StoreTime {
        self.inner.now()
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        self.inner.begin(key).await
    }

    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        self.inner.unfinished(after).await
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        let text = key.to_string();
        if self.breaks(self.promise, &text) {
            self.written.lock().unwrap().push(text.clone());
        }
        let deadline = deadline.filter(|_| !self.breaks(Promise::LateWrites, &text));
        if self.breaks(Promise::LongKeys, &text) && text.len() > 500 {
            return Err(StorageError::Unavailable(text, "KeyTooLongError".to_owned()));
        }
        if self.breaks(Promise::SideBySide, &text) && self.written.lock().unwrap().len() > 40 {
            return Err(StorageError::Unavailable(text, "SlowDown".to_owned()));
        }
        self.inner.put(key, bytes, deadline).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        // The bytes of another part.
        let bytes = if self.breaks(Promise::Parts, &key.to_string()) && number == 1 {
            vec![Bytes::from_static(b"other")]
        } else {
            bytes
        };
        let part = self.inner.put_part(key, upload, number, part_size, bytes).await?;
        if self.breaks(Promise::ReplacedParts, &key.to_string()) {
            self.written.lock().unwrap().push(part.0.clone());
        }
        Ok(part)
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        let text = key.to_string();
        if self.breaks(Promise::ReplacedParts, &text) {
            // Whatever part there is.
            let last = PartId(self.written.lock().unwrap().last().unwrap().clone());
            return self.inner.complete(key, upload, &[last]).await;
        }
        match self.inner.complete(key, upload, parts).await {
            Err(_) if self.breaks(Promise::GivenUpUploads, &text) => {
                self.inner.put(key, vec![Bytes::from_static(b"back again")], None).await
            }
            completed => completed,
        }
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        self.inner.abort(key, upload).await
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        let text = key.to_string();
        if self.breaks(Promise::ReadsWrites, &text) && self.is_last(&text) {
            return Err(StorageError::NotFound(text));
        }
        // One byte further on.
        let range = range.map(|range| match self.breaks(Promise::Ranges, &text) && range.start > 0 {
            true => range.start - 1..range.end - 1,
            false => range,
        });
        self.inner.read(key, range).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let stat = self.inner.stat(key).await?;
        let is_skewed = self.breaks(Promise::Dates, &key.to_string());
        let skew = if is_skewed { Duration::from_secs(30) } else { Duration::ZERO };
        let is_early = self.breaks(Promise::LateWrites, &key.to_string());
        let early = if is_early { LONG } else { Duration::ZERO };
        Ok(stat.map(|stat| Stat { modified: stat.modified.plus(skew).minus(early), ..stat }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let mut page = self.inner.list(prefix, after, limit).await?;
        page.objects.retain(|(key, _)| !(self.breaks(Promise::ListsWrites, key) && self.is_last(key)));
        // As by a store that compares keys without their slashes.
        let by = |key: &str| key.replace('/', "");
        if page.objects.first().is_some_and(|(key, _)| self.breaks(Promise::Order, key)) {
            page.objects.sort_by_key(|(key, _)| by(key));
        }
        Ok(page)
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let text = key.to_string();
        if self.breaks(Promise::ForgetsRemoved, &text) && deadline > self.now() {
            return Ok(());
        }
        let more = if self.breaks(Promise::LateRemovals, &text) { LONG } else { Duration::ZERO };
        self.inner.delete(key, deadline.plus(more)).await
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let text = key.to_string();
        let signed = match self.breaks(Promise::ExpiredReads, &text) {
            true => self.inner.sign(key, LONG).await?,
            false => self.inner.sign(key, life).await?,
        };
        // A URL that says less than what was signed.
        Ok(signed.map(|signed| match self.breaks(Promise::SignedReads, &text) {
            true => {
                SignedUrl { url: signed.url.replace("response-content-type", "response-content-language"), ..signed }
            }
            false => signed,
        }))
    }

    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<Option<String>, StorageError> {
        let more = if self.breaks(Promise::ExpiredRemovals, &key.to_string()) { LONG } else { Duration::ZERO };
        self.inner.sign_delete(key, deadline.plus(more)).await
    }
}

/// Over a directory, or S3 for what only that is asked.
#[tokio::test]
async fn each_broken_promise_is_caught_and_no_other() {
    let (server, directory) = (s3_server::start().await, tempfile::tempdir().unwrap());
    let tries = Promise::ALL.map(|promise| {
        let (server, directory) = (&server, directory.path().join(format!("{promise:?}")));
        Box::pin(async move {
            let inner: Arc<dyn Store> = match promise {
                Promise::SignedReads | Promise::ExpiredReads | Promise::ExpiredRemovals => {
                    let prefix = format!("{promise:?}");
                    Arc::new(S3::open(S3Options { prefix, ..storage::options(server) }).await.unwrap())
                }
                _ => Arc::new(Local::open(&directory, false).unwrap()),
            };
            let store: Arc<dyn Store> = Arc::new(Faithless { inner, promise, written: std::sync::Mutex::default() });
            (promise, tried(&subject(&store)).await)
        })
    });
    for (broken, kept) in join_all(tries).await {
        let failing: Vec<Promise> =
            kept.iter().filter(|(_, kept)| kept.is_err()).map(|(promise, _)| *promise).collect();
        assert_eq!(failing, [broken], "{kept:?}");
        println!("{broken:?}: {}", kept[&broken].clone().unwrap_err());
    }
}

fn check(settings: &[(&str, String)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(["storage", "check"]).env_clear().envs(settings.iter().map(|(key, value)| (*key, value.as_str())));
    let output = command.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_checks_what_is_configured_and_leaves_nothing() {
    let (server, directory) = (s3_server::start().await, tempfile::tempdir().unwrap());
    // As beside a running server, which holds the directory.
    let _held = Local::open(directory.path(), true).unwrap();
    let index = ("BERTH_INDEX__URL", format!("embedded:{}", directory.path().join("none").display()));
    let remote = [server.settings(), vec![index]].concat();
    let local = vec![("BERTH_STORAGE__URL", format!("file:{}", directory.path().display()))];
    for (settings, asked) in [(local, Promise::ALL.len() - 3), (remote.clone(), Promise::ALL.len())] {
        let (status, said) = check(&settings);
        assert_eq!(status, 0, "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("ok     ")).count(), asked, "{said}");
        assert_eq!(said.lines().count(), Promise::ALL.len(), "{said}");
    }
    let mut left: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, [".lock", ".tmp"]);
    let store = S3::open(S3Options { prefix: String::new(), ..storage::options(&server) }).await.unwrap();
    assert!(store.list("", None, 10).await.unwrap().objects.is_empty());

    // Its times are whole seconds, and no more than a millisecond is allowed for.
    let (status, said) = check(&[remote, vec![("BERTH_INDEX__MARGIN", "1ms".to_owned())]].concat());
    let failing: Vec<&str> = said.lines().filter(|line| line.starts_with("FAILS  ")).collect();
    assert!(status == 1 && failing.len() == 1 && failing[0].contains(Promise::Dates.says()), "{said}");
    assert!(said.contains(Promise::Dates.without_it()) && said.contains("breaks 1 of the promises"), "{said}");
}
