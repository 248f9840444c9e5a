//! Reading an object to its end, over as many connections as that takes.
//!
//! A key is never reused, so what is asked for again from where the bytes stopped is of the same object. A
//! stream is given up when the store gives nothing more several times in a row, never for being long.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStore, path::Path};

use super::{
    super::{ByteStream, StorageError},
    fault::explain,
};
use crate::outbound::pause_before;

/// How often in a row a stream is taken up again without a byte coming of it.
const ATTEMPTS: usize = 4;

/// An object that is being read.
struct Reading {
    store: Arc<dyn ObjectStore>,
    path: Path,
    about: String,
    /// What has not come yet.
    left: Range<u64>,
    bytes: BoxStream<'static, object_store::Result<Bytes>>,
    /// How often it failed since the last byte.
    failures: usize,
}

/// Begins to read; `range` as for [`crate::storage::Store::read`].
pub(in crate::storage) async fn read(
    store: Arc<dyn ObjectStore>,
    path: Path,
    about: String,
    range: Option<Range<u64>>,
) -> Result<ByteStream, StorageError> {
    let (left, bytes) = open(&store, &path, &about, range).await?;
    let reading = Reading { store, path, about, left, bytes, failures: 0 };
    Ok(Box::pin(futures_util::stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

/// Asks for the range, or for everything; also says which bytes come.
async fn open(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    about: &str,
    range: Option<Range<u64>>,
) -> Result<(Range<u64>, BoxStream<'static, object_store::Result<Bytes>>), StorageError> {
    let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..Default::default() };
    let got = store.get_opts(path, options).await.map_err(|error| explain(about, &error))?;
    // A store cuts a range that reaches past the end down to what there is.
    if range.is_some_and(|range| range != got.range) {
        return Err(StorageError::Unavailable(about.to_owned(), format!("it has {} bytes", got.meta.size)));
    }
    Ok((got.range.clone(), got.into_stream()))
}

impl Reading {
    /// The next bytes; nothing at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        loop {
            let failure = match self.bytes.next().await {
                Some(Ok(chunk)) => {
                    self.left.start += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                _ if self.left.is_empty() => return Ok(None),
                Some(Err(error)) => explain(&self.about, &error),
                None => StorageError::Unavailable(self.about.clone(), "it broke off".to_owned()),
            };
            self.take_up(failure).await?;
        }
    }

    /// Goes on from where the bytes stopped, on another connection.
    async fn take_up(&mut self, mut failure: StorageError) -> Result<(), StorageError> {
        while self.failures < ATTEMPTS && matches!(failure, StorageError::Unavailable(..)) {
            self.failures += 1;
            tracing::debug!(error = %failure, at = self.left.start, "reading goes on from where it stopped");
            tokio::time::sleep(pause_before(self.failures)).await;
            match open(&self.store, &self.path, &self.about, Some(self.left.clone())).await {
                Ok((_, bytes)) => {
                    self.bytes = bytes;
                    return Ok(());
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}
