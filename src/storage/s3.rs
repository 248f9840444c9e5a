//! A bucket of S3, or of anything that speaks its protocol, as a [`Store`].
//!
//! It asks nothing of the bucket but what every S3-compatible store has: no conditional writes, no
//! versioning, no bulk deletes. It must not copy, rename, or list all of a bucket to answer for a part of it.

mod check;
mod credentials;
mod options;
mod place;
mod removal;

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::Method;
use object_store::{
    Attribute, Attributes, ObjectMeta, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    list::{PaginatedListOptions, PaginatedListStore},
    signer::{SignedUrlOptions, Signer},
};

use super::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
    remote::{Handles, Object, Transport, client_for, explain, is_too_busy, retry},
};
use credentials::Credentials;
pub use options::{AccessKey, Checksum, Encryption, S3Options};
use place::Place;

/// The size of a part, in bytes. S3 wants at least 5 MiB; with 10,000 parts, 16 MiB allow 156 GiB.
const PART_SIZE: usize = 16 << 20;

/// The most parts that S3 takes: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
const MAX_PARTS: usize = 10_000;

/// The longest life of a signature, seven days:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>.
const LONGEST_SIGNATURE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A store in a bucket.
#[derive(Debug)]
pub struct S3 {
    /// The bucket and where it is, for people.
    name: String,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    place: Place,
    credentials: Credentials,
    storage_class: Option<String>,
    encryption: Encryption,
    transport: Transport,
    handles: Handles<AmazonS3>,
    /// For URLs that clients are given, at the public endpoint. It sends nothing.
    public: AmazonS3,
}

impl S3 {
    /// Finds the bucket and whoever asks, and lists one object to know that it answers and what its time is.
    ///
    /// # Errors
    /// One line that names the bucket, what went wrong, and what to set or grant.
    pub async fn open(options: S3Options) -> Result<Self, StorageError> {
        let transport = Transport::new(&options.egress.as_aws_tools_would(), options.patience)?;
        let place = Place::find(&options, &transport).await?;
        let credentials = place.credentials.clone();
        let name = format!("the bucket {:?} at {}", options.bucket, place.url);
        let failed = |error: object_store::Error| explain(&name, &error);
        let handles = Handles::new(options.patience, |answer, retry| {
            build(&options, &place.region, &place.url, &credentials, &transport.answered_within(answer), retry)
                .map_err(failed)
        })?;
        let prefix = options.prefix.trim_matches('/');
        let store = Self {
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            handles,
            public: build(
                &options,
                &place.region,
                &place.public_url,
                &credentials,
                &transport,
                retry(0, options.patience.call),
            )
            .map_err(failed)?,
            name,
            bucket: options.bucket,
            place,
            credentials,
            storage_class: options.storage_class,
            encryption: options.encryption,
            transport,
        };
        store.check_reach().await?;
        Ok(store)
    }

    /// The object of a key, to be written or read.
    fn named<'a>(&self, key: &'a Key) -> Result<Object<'a>, StorageError> {
        Object::new(&self.prefix, key, self.attributes(key))
    }

    /// What is said of an object as it is written. Only blobs have a storage class: cheap ones bill each
    /// object as if it were large and old, which the many small ones beside the blobs are not.
    fn attributes(&self, key: &Key) -> Attributes {
        let class = self.storage_class.clone().filter(|_| matches!(key, Key::Data(_)));
        class.map(|class| (Attribute::StorageClass, class)).into_iter().collect()
    }

    /// Whether there is an object at `key`, in answer to an upload that the store no longer knows.
    async fn completed_before(&self, key: &Key) -> Result<(), StorageError> {
        match self.stat(key).await? {
            Some(_) => Ok(()),
            None => Err(StorageError::NotFound(key.to_string())),
        }
    }

    /// A page as the store gives it, and where to go on.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        token: Option<String>,
    ) -> Result<(Vec<(String, Stat)>, Option<String>), StorageError> {
        let folder = format!("{}{prefix}", self.prefix);
        let options = PaginatedListOptions {
            offset: after.map(|after| format!("{}{after}", self.prefix)),
            max_keys: Some(limit),
            page_token: token,
            ..Default::default()
        };
        let listed = self.handles.calls.list_paginated(Some(&folder), options).await;
        let listed = listed.map_err(|error| explain(prefix, &error))?;
        let key = |object: &ObjectMeta| object.location.as_ref().strip_prefix(&self.prefix).map(str::to_owned);
        let objects = listed.result.objects.iter().filter_map(|object| Some((key(object)?, stat_of(object))));
        // A folder that some console made has a name that ends with a slash, which is cut off in reading it:
        // shown so, it could be asked for again and again.
        let objects =
            objects.filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after));
        Ok((objects.collect(), listed.page_token))
    }
}

/// A client by which the bucket's signed URLs can be asked for as Berth's own requests are: with the same
/// certificates and the same proxy, and with no credentials.
///
/// # Errors
/// One line that says which of the options can't be used.
pub fn signed_url_client(options: &S3Options) -> Result<reqwest::Client, StorageError> {
    let site = options.public_endpoint.as_ref().or(options.endpoint.as_ref());
    client_for(site, &options.egress.as_aws_tools_would(), options.patience)
}

fn build(
    options: &S3Options,
    region: &str,
    url: &str,
    credentials: &Credentials,
    transport: &Transport,
    retry: RetryConfig,
) -> object_store::Result<AmazonS3> {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(region)
        // The URL is the bucket's, wherever in it the name stands.
        .with_endpoint(url)
        .with_virtual_hosted_style_request(true)
        .with_credentials(Arc::new(credentials.clone()))
        .with_retry(retry)
        .with_http_connector(transport.clone());
    match options.checksum {
        Checksum::Sha256 => builder = builder.with_checksum_algorithm(object_store::aws::Checksum::SHA256),
        // What TLS protects needn't be hashed to be signed. With a checksum there is a hash already.
        Checksum::None => builder = builder.with_unsigned_payload(url.starts_with("https:")),
    }
    for (setting, value) in encryption_settings(&options.encryption) {
        builder = builder.with_config(setting.parse::<AmazonS3ConfigKey>()?, value);
    }
    builder.build()
}

/// By the names that the library gives these settings.
fn encryption_settings(encryption: &Encryption) -> Vec<(&'static str, String)> {
    match encryption {
        Encryption::Bucket => Vec::new(),
        Encryption::S3 => vec![("aws_server_side_encryption", "AES256".to_owned())],
        Encryption::Kms { key, bucket_key } => {
            let mut settings = vec![("aws_server_side_encryption", "aws:kms".to_owned())];
            settings.extend(key.iter().map(|key| ("aws_sse_kms_key_id", key.clone())));
            settings.extend(bucket_key.iter().map(|use_it| ("aws_sse_bucket_key_enabled", use_it.to_string())));
            settings
        }
    }
}

/// In whole seconds: all that a HEAD can say. A store whose listings say more would have one answer to whether a
/// revision counts for the writer that asks about it, and another for the readers that list it.
fn stat_of(object: &ObjectMeta) -> Stat {
    Stat { size: object.size, modified: StoreTime(object.last_modified.timestamp().unsigned_abs() * 1000) }
}

#[async_trait]
impl Store for S3 {
    fn is_exclusive(&self) -> bool {
        false
    }

    fn part_size(&self) -> usize {
        PART_SIZE
    }

    fn max_parts(&self) -> usize {
        MAX_PARTS
    }

    fn now(&self) -> StoreTime {
        // `open` fails where the clock can't be set, so there is always a time.
        self.transport.clock.now().unwrap_or(StoreTime(0))
    }

    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        self.handles.put(self.named(key)?, bytes, deadline, || self.now(), is_too_busy).await
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        self.handles.begin(self.named(key)?).await
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        _part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        self.handles.put_part(self.named(key)?, upload, number, bytes).await
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        match self.handles.complete(self.named(key)?, upload, parts).await? {
            true => Ok(()),
            false => self.completed_before(key).await,
        }
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        self.handles.abort(self.named(key)?, upload).await
    }

    async fn unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        self.list_unfinished(after).await
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        self.handles.read(self.named(key)?, range).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        match self.handles.calls.head(&self.named(key)?.path).await {
            Ok(object) => Ok(Some(stat_of(&object))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(explain(&key.to_string(), &error)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        let mut token = None;
        loop {
            let (objects, next) = self.page(prefix, after, limit, token).await?;
            // A page in which nothing is to be shown has no last key to go on from.
            if !objects.is_empty() || next.is_none() {
                return Ok(Page { objects, more: next.is_some() });
            }
            token = next;
        }
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        self.remove(key, deadline).await
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let refused = |why| StorageError::Refused(key.to_string(), why);
        let most = self.credentials.life().await.map_err(refused)?.unwrap_or(LONGEST_SIGNATURE);
        let life = life.min(most).min(LONGEST_SIGNATURE);
        let fixed = SignedUrlOptions::new().with_query([("response-content-type", "application/octet-stream")]);
        let signed = self.public.signed_url_opts(Method::GET, &self.named(key)?.path, life, &fixed).await;
        let url = signed.map_err(|error| explain(&key.to_string(), &error))?.into();
        Ok(Some(SignedUrl { url, life }))
    }

    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<Option<String>, StorageError> {
        self.removal_url(key, deadline).await.map(Some)
    }
}
