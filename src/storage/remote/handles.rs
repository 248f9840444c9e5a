//! One bucket by the object library, once for each kind of request: they differ in how long an answer may take and
//! in what is tried again.
//!
//! It must not list, stat or remove: the stores differ in these.

use std::{ops::Range, sync::Arc, time::Duration};

use object_store::{
    Attributes, BackoffConfig, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
    multipart::{self, MultipartStore},
    path::Path,
};

use super::{
    super::{ByteStream, Chunks, Key, MultipartId, PartId, StorageError, StoreTime},
    Patience,
    fault::{explain, is_in_the_way},
    reading,
};
use crate::outbound::{pause_before, text_of};

/// How often a request that may be repeated is tried again, each time after a random and longer while.
pub(in crate::storage) const RETRIES: usize = 4;

/// An object, as the library wants it.
#[derive(Clone, Debug)]
pub(in crate::storage) struct Object<'a> {
    pub(in crate::storage) key: &'a Key,
    pub(in crate::storage) path: Path,
    /// What is said of it as it is written.
    pub(in crate::storage) attributes: Attributes,
}

impl<'a> Object<'a> {
    /// The object of `key` in a bucket where each key has `prefix` before it. Its name is parsed, not made from
    /// text, which would escape what may stand in a prefix.
    pub(in crate::storage) fn new(prefix: &str, key: &'a Key, attributes: Attributes) -> Result<Self, StorageError> {
        let unfit = |error: object_store::path::Error| StorageError::Unavailable(key.to_string(), error.to_string());
        Ok(Self { key, path: Path::parse(format!("{prefix}{key}")).map_err(unfit)?, attributes })
    }

    fn explain(&self, error: &object_store::Error) -> StorageError {
        explain(&self.key.to_string(), error)
    }
}

/// The handles.
#[derive(Debug)]
pub(in crate::storage) struct Handles<T> {
    /// For requests that cost the store little.
    pub(in crate::storage) calls: T,
    /// For parts and whole objects.
    writes: T,
    /// For completing an upload, over which a store may take minutes.
    completions: T,
    /// For writes with a deadline: never sent again while it isn't known what became of them. A first attempt
    /// that was given up for lost could arrive after the second was confirmed, overwrite it, and make the
    /// object look as if it had come too late.
    once: T,
    /// For streaming. It tries again only what fails at the beginning: the rest is for [`reading`].
    bodies: Arc<dyn ObjectStore>,
}

impl<T: ObjectStore + MultipartStore> Handles<T> {
    /// All of them, by `make`, which is told within what time an answer must come, and what is tried again.
    pub(in crate::storage) fn new<E>(
        patience: Patience,
        make: impl Fn(Duration, RetryConfig) -> Result<T, E>,
    ) -> Result<Self, E> {
        let patient = |answer: Duration| make(answer, retry(RETRIES, answer * 2));
        let Patience { call, write, complete, .. } = patience;
        Ok(Self {
            calls: patient(call)?,
            writes: patient(write)?,
            completions: patient(complete)?,
            once: make(call, retry(0, call))?,
            bodies: Arc::new(make(call, retry(RETRIES, call))?),
        })
    }

    /// Writes an object, as [`super::super::Store::put`]; `now` is the store's time. These stores can't refuse a
    /// late write, so one that is late already isn't sent, and one with a deadline is sent again only if the store
    /// itself says that it did nothing: because something else went on there, or, by `is_too_busy`, because it has too
    /// much to do. The library repeats what a busy store refuses, but not on that handle.
    pub(in crate::storage) async fn put(
        &self,
        object: Object<'_>,
        bytes: Chunks,
        deadline: Option<StoreTime>,
        now: impl Fn() -> StoreTime,
        is_too_busy: fn(&StorageError) -> bool,
    ) -> Result<(), StorageError> {
        let handle = if deadline.is_some() { &self.once } else { &self.writes };
        let did_nothing = |error: &StorageError| is_in_the_way(error) || (deadline.is_some() && is_too_busy(error));
        let mut refusals = 0;
        loop {
            if deadline.is_some_and(|deadline| now() > deadline) {
                return Err(StorageError::TooLate(object.key.to_string()));
            }
            let options = PutOptions { attributes: object.attributes.clone(), ..Default::default() };
            let put = handle.put_opts(&object.path, PutPayload::from_iter(bytes.clone()), options).await;
            match put.map_err(|error| object.explain(&error)) {
                Err(error) if did_nothing(&error) && refusals < RETRIES => refusals += 1,
                done => return done.map(drop),
            }
            tokio::time::sleep(pause_before(refusals)).await;
        }
    }

    /// Begins an upload in parts.
    pub(in crate::storage) async fn begin(&self, object: Object<'_>) -> Result<MultipartId, StorageError> {
        let options = PutMultipartOptions { attributes: object.attributes.clone(), ..Default::default() };
        let begun = self.calls.create_multipart_opts(&object.path, options).await;
        begun.map(MultipartId).map_err(|error| object.explain(&error))
    }

    /// Writes the part of that number, from 0.
    pub(in crate::storage) async fn put_part(
        &self,
        object: Object<'_>,
        upload: &MultipartId,
        number: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        let put = self.writes.put_part(&object.path, &upload.0, number, PutPayload::from_iter(bytes)).await;
        put.map(|part| PartId(part.content_id)).map_err(|error| object.explain(&error))
    }

    /// Makes the parts an object. `false` where the store doesn't know the upload: it may have been completed
    /// before, or not be there any more.
    pub(in crate::storage) async fn complete(
        &self,
        object: Object<'_>,
        upload: &MultipartId,
        parts: &[PartId],
    ) -> Result<bool, StorageError> {
        let parts = parts.iter().map(|part| multipart::PartId { content_id: part.0.clone() }).collect();
        is_known(self.completions.complete_multipart(&object.path, &upload.0, parts).await.map(drop), &object)
    }

    /// Gives an upload up. One that the store doesn't know has been.
    pub(in crate::storage) async fn abort(&self, object: Object<'_>, upload: &MultipartId) -> Result<(), StorageError> {
        is_known(self.calls.abort_multipart(&object.path, &upload.0).await, &object).map(drop)
    }

    /// Reads an object, as [`super::super::Store::read`].
    pub(in crate::storage) async fn read(
        &self,
        object: Object<'_>,
        range: Option<Range<u64>>,
    ) -> Result<ByteStream, StorageError> {
        reading::read(Arc::clone(&self.bodies), object.path, object.key.to_string(), range).await
    }
}

/// Whether the store knew the upload that it was asked to end.
fn is_known(ended: object_store::Result<()>, object: &Object<'_>) -> Result<bool, StorageError> {
    match ended {
        Ok(()) => Ok(true),
        Err(error) if text_of(&error).contains("NoSuchUpload") => Ok(false),
        Err(error) => Err(object.explain(&error)),
    }
}

/// How often and for how long the library tries again by itself.
pub(in crate::storage) fn retry(max_retries: usize, retry_timeout: Duration) -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..Default::default() };
    RetryConfig { backoff, max_retries, retry_timeout }
}
