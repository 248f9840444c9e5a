//! A bucket of S3, or of anything that speaks its protocol, as a [`Store`].
//!
//! It asks nothing of the bucket but what every S3-compatible store has: no conditional writes, no
//! versioning, no bulk deletes. It must not copy, rename, or list all of a bucket to answer for a part of it.

mod clock;

use std::{ops::Range, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use http::{Method, StatusCode};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector, HttpRequestBody},
    list::{PaginatedListOptions, PaginatedListStore},
    multipart::MultipartStore,
    path::Path,
    signer::{SignedUrlOptions, Signer},
};

use super::{ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime};
use clock::Connector;

/// The size of a part, in bytes. S3 wants at least 5 MiB; with 10,000 parts, 16 MiB allow 156 GiB.
const PART_SIZE: usize = 16 << 20;

/// The most parts that S3 takes: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
const MAX_PARTS: usize = 10_000;

/// For a request without a body to speak of. Longer than any that succeeds, shorter than a client's patience.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// For a request that carries a part, or completes an upload, which a store may take minutes over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the store may leave a reader waiting for the next bytes. Only the store's silence counts, not
/// the time for which the reader is busy: a timeout on the request would cut off every slow client.
const STALL: Duration = Duration::from_secs(30);

/// For the handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a request that may be repeated is tried again.
const RETRIES: usize = 3;

/// How often a DELETE is signed again because the second changed meanwhile.
const SIGNATURES: usize = 3;

/// Where the bucket is and who asks.
#[derive(Clone, Default)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What precedes every key, with or without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of the server; `None` for AWS itself. With `http:` nothing is encrypted.
    pub endpoint: Option<String>,
    /// The URL at which clients outside reach the same server, for what is signed; `None` where that is
    /// `endpoint` as well.
    pub public_endpoint: Option<String>,
    /// The region that signatures name; `None` for `AWS_REGION`, else `AWS_DEFAULT_REGION`, else us-east-1.
    pub region: Option<String>,
    /// Whether the bucket is in the path rather than in the host name.
    pub path_style: bool,
    /// The access key and its secret; `None` for what the environment of a cloud machine offers.
    pub access_key: Option<(String, String)>,
}

/// The secret stays out of logs.
impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bucket, prefix, endpoint, public_endpoint, region, path_style, access_key } = self;
        f.debug_struct("S3Options")
            .field("bucket", bucket)
            .field("prefix", prefix)
            .field("endpoint", endpoint)
            .field("public_endpoint", public_endpoint)
            .field("region", region)
            .field("path_style", path_style)
            .field("access_key", &access_key.as_ref().map(|(id, _)| id))
            .finish()
    }
}

impl S3Options {
    /// The same bucket as clients outside reach it.
    fn seen_from_outside(&self) -> Self {
        let endpoint = self.public_endpoint.clone().or_else(|| self.endpoint.clone());
        Self { endpoint, ..self.clone() }
    }
}

/// A store in a bucket.
#[derive(Debug)]
pub struct S3 {
    /// Empty, or ends with a slash.
    prefix: String,
    /// For requests without a body to speak of: short timeouts.
    calls: AmazonS3,
    /// For parts and whole objects: long timeouts.
    writes: AmazonS3,
    /// For writes with a deadline: never sent twice. A first attempt that was given up for lost could arrive
    /// after the second was confirmed, overwrite it, and make the object look as if it had come too late.
    once: AmazonS3,
    /// For streaming: no timeout on the whole, which would include the time that a slow client takes.
    bodies: AmazonS3,
    /// For URLs that clients are given, at the public endpoint. It sends nothing.
    public: AmazonS3,
    /// For requests that we sign ourselves.
    client: HttpClient,
    connector: Connector,
}

impl S3 {
    /// Connects to the bucket, and asks for one listing to know that it answers and what its time is.
    ///
    /// # Errors
    /// One line that names the bucket and what went wrong.
    pub async fn open(options: S3Options) -> Result<Self, StorageError> {
        let connector = Connector::default();
        let name = match &options.endpoint {
            Some(endpoint) => format!("the bucket {:?} at {endpoint}", options.bucket),
            None => format!("the bucket {:?} in {}", options.bucket, region_of(&options)),
        };
        let failed = |error: object_store::Error| explain(&name, &error);
        let handle = |timeout, retries| connect(&options, &connector, timeout, retries).map_err(failed);
        let prefix = options.prefix.trim_matches('/');
        let store = Self {
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            calls: handle(Some(CALL_TIMEOUT), RETRIES)?,
            writes: handle(Some(WRITE_TIMEOUT), RETRIES)?,
            once: handle(Some(CALL_TIMEOUT), 0)?,
            bodies: handle(None, RETRIES)?,
            public: connect(&options.seen_from_outside(), &connector, None, 0).map_err(failed)?,
            client: connector.connect(&client_options(&options, Some(CALL_TIMEOUT))).map_err(failed)?,
            connector: connector.clone(),
        };
        let probe = PaginatedListOptions { max_keys: Some(1), ..Default::default() };
        store.calls.list_paginated(Some(&store.prefix), probe).await.map_err(failed)?;
        if connector.clock.now().is_none() {
            return Err(StorageError::Unavailable(name, "its answers have no Date".to_owned()));
        }
        Ok(store)
    }

    /// The object's name. Parsed, not made from text, which would escape what may stand in a prefix.
    fn path(&self, key: &Key) -> Result<Path, StorageError> {
        let unfit = |error: object_store::path::Error| StorageError::Unavailable(key.to_string(), error.to_string());
        Path::parse(format!("{}{key}", self.prefix)).map_err(unfit)
    }

    /// Whether there is an object at `key`, in answer to an upload that the store no longer knows.
    async fn completed_before(&self, key: &Key) -> Result<(), StorageError> {
        match self.stat(key).await? {
            Some(_) => Ok(()),
            None => Err(StorageError::NotFound(key.to_string())),
        }
    }

    /// A URL that deletes the object and that the store refuses after `deadline`. The store counts a
    /// signature's life from the moment that the signature names, which is this machine's wall clock; so
    /// the life is what is left from that moment, in whole seconds, and a clock that runs ahead of the
    /// store's leaves less of it, never more.
    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<String, StorageError> {
        for _ in 0..SIGNATURES {
            let second = chrono::Utc::now().timestamp();
            let life = i64::try_from(deadline.0 / 1000).unwrap_or(i64::MAX) - second;
            let Some(life) = u64::try_from(life).ok().filter(|life| *life > 0) else {
                return Err(StorageError::TooLate(key.to_string()));
            };
            let life = Duration::from_secs(life).min(LONGEST_SIGNATURE);
            let signed = self.calls.signed_url(Method::DELETE, &self.path(key)?, life).await;
            let url = signed.map_err(|error| explain(&key.to_string(), &error))?;
            // Getting credentials may have taken a while before the signature was dated.
            let date = url.query_pairs().find(|(name, _)| name == "X-Amz-Date").map(|(_, date)| date.into_owned());
            if date.and_then(|date| signing_second(&date)) == Some(second) {
                return Ok(url.into());
            }
        }
        Err(StorageError::Unavailable(key.to_string(), "signing takes longer than a second".to_owned()))
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
        let listed = self.calls.list_paginated(Some(&folder), options).await;
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

/// The longest life of a signature, seven days:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>.
const LONGEST_SIGNATURE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn client_options(options: &S3Options, timeout: Option<Duration>) -> ClientOptions {
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http:"));
    let client = ClientOptions::new().with_allow_http(plain).with_connect_timeout(CONNECT_TIMEOUT);
    match timeout {
        Some(timeout) => client.with_timeout(timeout),
        None => client.with_timeout_disabled(),
    }
}

/// The region by the options, else by what AWS' own tools read.
fn region_of(options: &S3Options) -> String {
    let variable = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
    let region = options.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    region.unwrap_or_else(|| "us-east-1".to_owned())
}

fn connect(
    options: &S3Options,
    connector: &Connector,
    timeout: Option<Duration>,
    max_retries: usize,
) -> object_store::Result<AmazonS3> {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..Default::default() };
    let retry_timeout = timeout.unwrap_or(STALL).saturating_mul(2);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&options.bucket)
        .with_region(region_of(options))
        .with_virtual_hosted_style_request(!options.path_style)
        .with_client_options(client_options(options, timeout))
        .with_retry(RetryConfig { backoff, max_retries, retry_timeout })
        .with_http_connector(connector.clone());
    if let Some(endpoint) = &options.endpoint {
        // With the bucket in the host name, the library wants it in the endpoint as well.
        let hosted = endpoint.replacen("://", &format!("://{}.", options.bucket), 1);
        builder = builder.with_endpoint(if options.path_style { endpoint } else { &hosted });
    }
    if let Some((id, secret)) = &options.access_key {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    }
    builder.build()
}

/// Seconds since the Unix epoch of an `X-Amz-Date`.
fn signing_second(date: &str) -> Option<i64> {
    chrono::NaiveDateTime::parse_from_str(date, "%Y%m%dT%H%M%SZ").ok().map(|date| date.and_utc().timestamp())
}

fn stat_of(object: &ObjectMeta) -> Stat {
    Stat { size: object.size, modified: StoreTime(object.last_modified.timestamp_millis().unsigned_abs()) }
}

/// Names a failure by what the caller can do about it. Only some of S3's codes have an error of their own in
/// the library; the rest are in the text, which holds the store's answer.
fn explain(about: &str, error: &object_store::Error) -> StorageError {
    let about = about.to_owned();
    let text = text_of(error);
    let says = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    match error {
        object_store::Error::NotFound { .. } if !says(&["NoSuchBucket"]) => StorageError::NotFound(about),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StorageError::Refused(about, text)
        }
        _ if says(&["AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"]) => {
            StorageError::Refused(about, text)
        }
        _ if says(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"]) => StorageError::Full(about),
        _ if says(&["InvalidPart"]) => StorageError::PartChanged(about),
        _ => StorageError::Unavailable(about, text),
    }
}

/// An error and its causes on one line.
fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace(['\n', '\r'], " ")
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
        self.connector.clock.now().unwrap_or(StoreTime(0))
    }

    /// S3 can't refuse a late write, so one that is late already isn't sent, and one with a deadline is sent
    /// at most once.
    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        if deadline.is_some_and(|deadline| self.now() > deadline) {
            return Err(StorageError::TooLate(key.to_string()));
        }
        let handle = if deadline.is_some() { &self.once } else { &self.writes };
        let put = handle.put(&self.path(key)?, PutPayload::from_iter(bytes)).await;
        put.map(drop).map_err(|error| explain(&key.to_string(), &error))
    }

    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        let begun = self.calls.create_multipart(&self.path(key)?).await;
        begun.map(MultipartId).map_err(|error| explain(&key.to_string(), &error))
    }

    async fn put_part(
        &self,
        key: &Key,
        upload: &MultipartId,
        number: usize,
        _part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        let put = self.writes.put_part(&self.path(key)?, &upload.0, number, PutPayload::from_iter(bytes)).await;
        put.map(|part| PartId(part.content_id)).map_err(|error| explain(&key.to_string(), &error))
    }

    async fn complete(&self, key: &Key, upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        let parts = parts.iter().map(|part| object_store::multipart::PartId { content_id: part.0.clone() }).collect();
        match self.writes.complete_multipart(&self.path(key)?, &upload.0, parts).await {
            Ok(_) => Ok(()),
            Err(error) if text_of(&error).contains("NoSuchUpload") => self.completed_before(key).await,
            Err(error) => Err(explain(&key.to_string(), &error)),
        }
    }

    async fn abort(&self, key: &Key, upload: &MultipartId) -> Result<(), StorageError> {
        match self.calls.abort_multipart(&self.path(key)?, &upload.0).await {
            Ok(()) => Ok(()),
            Err(error) if text_of(&error).contains("NoSuchUpload") => Ok(()),
            Err(error) => Err(explain(&key.to_string(), &error)),
        }
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        let about = key.to_string();
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..Default::default() };
        let path = self.path(key)?;
        let got = tokio::time::timeout(STALL, self.bodies.get_opts(&path, options)).await;
        let got = got.map_err(|_| stalled(&about))?.map_err(|error| explain(&about, &error))?;
        // A store cuts a range that reaches past the end down to what there is.
        if range.is_some_and(|range| range != got.range) {
            return Err(StorageError::Unavailable(about, format!("it has {} bytes", got.meta.size)));
        }
        Ok(watched(about, got.into_stream()))
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        match self.calls.head(&self.path(key)?).await {
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
        let about = key.to_string();
        if self.now() > deadline {
            return Err(StorageError::TooLate(about));
        }
        let failed = |text: String| StorageError::Unavailable(about.clone(), text);
        let url = self.sign_delete(key, deadline).await?;
        let request = http::Request::delete(url).body(HttpRequestBody::empty());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let response = self.client.execute(request).await.map_err(|error| failed(text_of(&error)))?;
        let (parts, body) = response.into_parts();
        if parts.status.is_success() {
            return Ok(());
        }
        let body = body.bytes().await.map_err(|error| failed(text_of(&error)))?;
        refused_delete(&about, parts.status, &String::from_utf8_lossy(&body), self.now() > deadline)
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let life = life.min(LONGEST_SIGNATURE);
        let fixed = SignedUrlOptions::new().with_query([("response-content-type", "application/octet-stream")]);
        let signed = self.public.signed_url_opts(Method::GET, &self.path(key)?, life, &fixed).await;
        let url = signed.map_err(|error| explain(&key.to_string(), &error))?.into();
        Ok(Some(SignedUrl { url, life }))
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

fn stalled(about: &str) -> StorageError {
    StorageError::Unavailable(about.to_owned(), format!("nothing came for {} s", STALL.as_secs()))
}

/// A stream that ends with an error when the store is silent for too long while it is being asked.
fn watched(about: String, bytes: BoxStream<'static, object_store::Result<bytes::Bytes>>) -> ByteStream {
    Box::pin(futures_util::stream::unfold(Some((about, bytes)), |state| async move {
        let (about, mut bytes) = state?;
        match tokio::time::timeout(STALL, bytes.next()).await {
            Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some((about, bytes)))),
            Ok(Some(Err(error))) => Some((Err(explain(&about, &error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(stalled(&about)), None)),
        }
    }))
}
