//! A store that counts and times what passes through it, and changes nothing.

use std::{fmt, ops::Range, sync::Arc, time::Duration, time::Instant};

use async_trait::async_trait;

use super::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
};
use crate::telemetry::{Calls, Operation, metrics::OK};

/// A [`Store`] whose calls are metrics. A read is timed up to its first byte's stream, not to its end: how
/// long that takes is the client's doing.
pub struct MeteredStore {
    inner: Arc<dyn Store>,
    put: Operation,
    begin: Operation,
    put_part: Operation,
    complete: Operation,
    abort: Operation,
    unfinished: Operation,
    read: Operation,
    stat: Operation,
    list: Operation,
    delete: Operation,
    sign: Operation,
}

impl MeteredStore {
    /// Puts the meter in front of `inner`. `calls` is [`crate::telemetry::Metrics::store`].
    pub fn new(inner: Arc<dyn Store>, calls: &Calls) -> Self {
        Self {
            inner,
            put: calls.operation("put"),
            begin: calls.operation("begin"),
            put_part: calls.operation("put_part"),
            complete: calls.operation("complete"),
            abort: calls.operation("abort"),
            unfinished: calls.operation("unfinished"),
            read: calls.operation("read"),
            stat: calls.operation("stat"),
            list: calls.operation("list"),
            delete: calls.operation("delete"),
            sign: calls.operation("sign"),
        }
    }
}

impl fmt::Debug for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Records how a call ended, and hands its result on.
fn note<T>(operation: &Operation, started: Instant, result: Result<T, StorageError>) -> Result<T, StorageError> {
    let outcome = match &result {
        Ok(_) => OK,
        Err(StorageError::NotFound(_)) => "not_found",
        Err(StorageError::TooLate(_)) => "too_late",
        Err(StorageError::PartChanged(_)) => "part_changed",
        Err(StorageError::Full(_)) => "full",
        Err(StorageError::Refused(..)) => "refused",
        Err(StorageError::Unavailable(..)) => "unavailable",
    };
    operation.ended(started, outcome);
    result
}

#[async_trait]
impl Store for MeteredStore {
    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    fn part_size(&self) -> usize {
        self.inner.part_size()
    }

    fn max_parts(&self) -> usize {
        self.inner.max_parts()
    }

    fn names_uploads(&self) -> bool {
        self.inner.names_uploads()
    }

    fn now(&self) -> StoreTime {
        self.inner.now()
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        let started = Instant::now();
        note(&self.put, started, self.inner.put(key, bytes, deadline).await)
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        let started = Instant::now();
        note(&self.begin, started, self.inner.begin(key).await)
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        let started = Instant::now();
        note(&self.put_part, started, self.inner.put_part(key, upload, number, part_size, bytes).await)
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        let started = Instant::now();
        note(&self.complete, started, self.inner.complete(key, upload, parts).await)
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        let started = Instant::now();
        note(&self.abort, started, self.inner.abort(key, upload).await)
    }

    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        let started = Instant::now();
        note(&self.unfinished, started, self.inner.unfinished(after).await)
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        let started = Instant::now();
        note(&self.read, started, self.inner.read(key, range).await)
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let started = Instant::now();
        note(&self.stat, started, self.inner.stat(key).await)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let started = Instant::now();
        note(&self.list, started, self.inner.list(prefix, after, limit).await)
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let started = Instant::now();
        note(&self.delete, started, self.inner.delete(key, deadline).await)
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let started = Instant::now();
        note(&self.sign, started, self.inner.sign(key, life).await)
    }

    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<Option<String>, StorageError> {
        self.inner.sign_delete(key, deadline).await
    }
}
