//! An index that counts and times what passes through it, and changes nothing.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Ask, Batch, Connect, Index, IndexError, Outcome, Shard};
use crate::telemetry::{Calls, Operation, metrics::OK};

/// A [`Connect`] that puts a meter in front of every connection it makes.
pub struct MeteredConnect {
    inner: Arc<dyn Connect>,
    connect: Operation,
    operations: Arc<Operations>,
}

/// An [`Index`] whose calls are metrics. A batch that a check refused is `refused`: no error, and no commit.
/// [`Index::wait`] is not counted, as it lasts as long as its caller asks.
pub struct MeteredIndex {
    inner: Arc<dyn Index>,
    operations: Arc<Operations>,
}

/// The handles, looked up once for all connections.
#[derive(Debug)]
struct Operations {
    identity: Operation,
    get: Operation,
    scan: Operation,
    commit: Operation,
    notify: Operation,
}

impl Operations {
    fn of(calls: &Calls) -> Arc<Self> {
        Arc::new(Self {
            identity: calls.operation("identity"),
            get: calls.operation("get"),
            scan: calls.operation("scan"),
            commit: calls.operation("commit"),
            notify: calls.operation("notify"),
        })
    }
}

impl MeteredConnect {
    /// Puts the meter in front of `inner`. `calls` is [`crate::telemetry::Metrics::index`].
    pub fn new(inner: Arc<dyn Connect>, calls: &Calls) -> Self {
        Self { inner, connect: calls.operation("connect"), operations: Operations::of(calls) }
    }
}

impl MeteredIndex {
    /// Puts the meter in front of one connection. `calls` is [`crate::telemetry::Metrics::index`].
    pub fn new(inner: Arc<dyn Index>, calls: &Calls) -> Self {
        Self { inner, operations: Operations::of(calls) }
    }
}

impl fmt::Debug for MeteredConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for MeteredIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

fn failure(error: &IndexError) -> &'static str {
    match error {
        IndexError::Unreachable(_) => "unreachable",
        IndexError::Unknown(_) => "unknown",
        IndexError::TimedOut(_) => "timeout",
        IndexError::Broken(_) => "broken",
    }
}

/// Records how a call ended, and hands its result on.
fn note<T>(operation: &Operation, started: Instant, result: Result<T, IndexError>) -> Result<T, IndexError> {
    operation.ended(started, result.as_ref().err().map_or(OK, failure));
    result
}

#[async_trait]
impl Connect for MeteredConnect {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        let started = Instant::now();
        let inner = note(&self.connect, started, self.inner.connect().await)?;
        Ok(Arc::new(MeteredIndex { inner, operations: self.operations.clone() }))
    }
}

#[async_trait]
impl Index for MeteredIndex {
    async fn identity(&self) -> Result<String, IndexError> {
        let started = Instant::now();
        note(&self.operations.identity, started, self.inner.identity().await)
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        let started = Instant::now();
        note(&self.operations.get, started, self.inner.get(shard, asks).await)
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        let started = Instant::now();
        note(&self.operations.scan, started, self.inner.scan(shard, group, after, limit).await)
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        let started = Instant::now();
        let result = self.inner.commit(shard, batch).await;
        let outcome = match &result {
            Ok(Outcome::Committed { .. }) => OK,
            Ok(Outcome::Refused { .. }) => "refused",
            Err(error) => failure(error),
        };
        self.operations.commit.ended(started, outcome);
        result
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        let started = Instant::now();
        note(&self.operations.notify, started, self.inner.notify(shard, topic).await)
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.inner.wait(shard, topic, patience).await;
    }
}
