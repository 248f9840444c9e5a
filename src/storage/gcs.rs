//! A bucket of Google Cloud Storage as a [`Store`].
//!
//! The object library puts, reads and uploads in parts, by Google's XML API. What it lacks is asked for here:
//! listings, removals that the store refuses after their time, URLs that carry their own leave, uploads that have
//! not ended. Who asks is for `google` to find. It must not copy, rename, or rely on generations: a key is written once.

mod check;
mod options;
mod requests;
mod signing;

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::Method;
use object_store::{
    Attribute, Attributes, CredentialProvider, RetryConfig,
    gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder},
};

use super::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
    remote::{Handles, Object, Patience, Transport, client_for, explain},
};
use crate::google::{Credentials, Exchange, Who, machine_email};
pub use options::{CredentialsJson, GcsOptions};
use signing::{Iam, Leave, Signer};

/// Where buckets are, unless somebody says otherwise.
const ENDPOINT: &str = "https://storage.googleapis.com";

/// Where IAM signs, unless somebody says otherwise.
const IAM_ENDPOINT: &str = "https://iamcredentials.googleapis.com";

/// The size of a part, in bytes. GCS wants at least 5 MiB; with 10,000 parts, 16 MiB allow 156 GiB.
const PART_SIZE: usize = 16 << 20;

/// The most parts that GCS takes: <https://cloud.google.com/storage/quotas#requests>.
const MAX_PARTS: usize = 10_000;

/// What a client is told of a blob, whatever was pushed: it is nothing that a browser shows. The store says the
/// first only of an object that has no content type of its own, so each is written with that one as well.
const ANSWER: [(&str, &str); 2] =
    [("response-content-disposition", "attachment"), ("response-content-type", "application/octet-stream")];

/// A store in a bucket.
#[derive(Debug)]
pub struct Gcs {
    /// The bucket and where it is, for people.
    name: String,
    bucket: String,
    /// Empty, or ends with a slash.
    prefix: String,
    /// The store's URL, without a slash at its end.
    endpoint: String,
    /// The same for clients outside.
    public_endpoint: String,
    storage_class: Option<String>,
    patience: Patience,
    transport: Transport,
    credentials: Credentials,
    /// `None` for an emulator, which looks at no signatures.
    signer: Option<Signer>,
    handles: Handles<GoogleCloudStorage>,
}

impl Gcs {
    /// Finds whoever asks and whoever signs, and lists one object to know that the bucket answers and what its
    /// time is.
    ///
    /// # Errors
    /// One line that names the bucket, what went wrong, and what to set or grant.
    pub async fn open(options: GcsOptions) -> Result<Self, StorageError> {
        let transport = Transport::new(&options.egress, options.patience)?;
        let emulator = emulator().filter(|_| options.endpoint.is_none());
        let is_emulator = emulator.is_some();
        let endpoint = options.endpoint.clone().or(emulator).unwrap_or_else(|| ENDPOINT.to_owned());
        let name = format!("the bucket {:?} at {endpoint}", options.bucket);
        let refused = |why: String| StorageError::Refused(name.clone(), why);
        let who = Arc::new(who(&options, is_emulator).map_err(refused)?);
        let exchange = Exchange::new(transport.way.clone(), options.patience.call);
        let credentials = Credentials::new(Arc::clone(&who), exchange.clone());
        credentials.token().await.map_err(|why| refused(no_credentials(&who, &why)))?;
        let signer = signer(&options, &who, &credentials, &exchange).await.map_err(refused)?;
        let failed = |error: object_store::Error| explain(&name, &error);
        let handles = Handles::new(options.patience, |answer, retry| {
            build(&options, &endpoint, &credentials, &transport.answered_within(answer), retry).map_err(failed)
        })?;
        let prefix = options.prefix.trim_matches('/');
        let store = Self {
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            handles,
            name,
            bucket: options.bucket,
            public_endpoint: options.public_endpoint.unwrap_or_else(|| endpoint.clone()),
            endpoint,
            storage_class: options.storage_class,
            patience: options.patience,
            transport,
            credentials,
            signer,
        };
        store.check_reach().await?;
        Ok(store)
    }

    /// The object's name in the bucket.
    fn object(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The object of a key, to be written or read.
    fn named<'a>(&self, key: &'a Key) -> Result<Object<'a>, StorageError> {
        Object::new(&self.prefix, key, self.attributes(key))
    }

    /// What is said of an object as it is written. Only blobs have a storage class: cheap ones bill each object as
    /// if it stayed for months, which the small ones beside the blobs don't.
    fn attributes(&self, key: &Key) -> Attributes {
        let class = self.storage_class.clone().filter(|_| matches!(key, Key::Data(_)));
        let class = class.map(|class| (Attribute::StorageClass, class));
        class.into_iter().chain([(Attribute::ContentType, "application/octet-stream".to_owned())]).collect()
    }

    /// Whether there is an object at `key`, in answer to an upload that the store no longer knows.
    async fn completed_before(&self, key: &Key) -> Result<(), StorageError> {
        match self.stat(key).await? {
            Some(_) => Ok(()),
            None => Err(StorageError::NotFound(key.to_string())),
        }
    }

    /// The second of the store's time that began last. URLs are dated by it, so that the store never sees a moment
    /// that is still to come.
    fn this_second(&self) -> StoreTime {
        StoreTime(self.now().0 / 1000 * 1000)
    }

    /// A URL for the object that is good for so many seconds from `from` on; or, in one line, why nobody signed it.
    async fn signed(
        &self,
        signer: &Signer,
        method: &Method,
        endpoint: &str,
        key: &Key,
        (from, seconds): (StoreTime, u64),
    ) -> Result<String, String> {
        let (bucket, name) = (&self.bucket, &self.object(key));
        let query: &[(&str, &str)] = if method == Method::GET { &ANSWER } else { &[] };
        signer.url(Leave { method, endpoint, bucket, name, query, from, seconds }).await
    }
}

/// A client by which the bucket's signed URLs can be asked for as Berth's own requests are: with the same
/// certificates and the same proxy, and with no credentials.
///
/// # Errors
/// One line that says which of the options can't be used.
pub fn signed_url_client(options: &GcsOptions) -> Result<reqwest::Client, StorageError> {
    let site = options.public_endpoint.as_ref().or(options.endpoint.as_ref());
    client_for(site, &options.egress, options.patience)
}

/// The URL of the emulator that Google's own tools would use; some write it without the scheme.
fn emulator() -> Option<String> {
    let host = std::env::var("STORAGE_EMULATOR_HOST").ok().filter(|host| !host.is_empty())?;
    let url = if host.contains("://") { host } else { format!("http://{host}") };
    Some(url.trim_end_matches('/').to_owned())
}

/// Whom the options name, else whomever Google's own tools would find.
fn who(options: &GcsOptions, is_emulator: bool) -> Result<Who, String> {
    match &options.credentials {
        Some(CredentialsJson(json)) => Who::read(json).map_err(|why| format!("storage.gcs.credentials: {why}")),
        None => Who::find(is_emulator),
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = GcpCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<GcpCredential>> {
        let token = self.token().await.map_err(|why| object_store::Error::Unauthenticated {
            path: "credentials".to_owned(),
            source: format!("there are no credentials: {why}").into(),
        })?;
        Ok(Arc::new(GcpCredential { bearer: token.as_deref().unwrap_or_default().to_owned() }))
    }
}

/// What to do where there is no token.
fn no_credentials(who: &Who, why: &str) -> String {
    match who {
        Who::Machine { .. } => format!(
            "there are no credentials: set storage.gcs.credentials_file or GOOGLE_APPLICATION_CREDENTIALS, or give \
             this machine a service account ({why})"
        ),
        _ => format!("the credentials give no token: {why}"),
    }
}

/// Who signs: whom the options name, else the account that asks. Nobody needs to where nobody has to be believed.
async fn signer(
    options: &GcsOptions,
    who: &Who,
    credentials: &Credentials,
    exchange: &Exchange,
) -> Result<Option<Signer>, String> {
    let email = match (&options.sign_as, who) {
        (Some(email), _) => Some(email.clone()),
        (None, Who::Key(key)) => return Ok(Some(Signer::Key(Arc::clone(key)))),
        (None, Who::Nobody) => return Ok(None),
        (None, Who::Federated(federated)) => federated.email().map(str::to_owned),
        // A pod without a service account has the name of its pool there, in which nobody signs.
        (None, Who::Machine { host }) => Some(machine_email(exchange, host).await?).filter(|email| email.contains('@')),
        (None, Who::Login(_)) => None,
    };
    let Some(email) = email else {
        return Err("these credentials are no service account's, so nobody signs URLs and removals: set \
                    storage.gcs.sign_as to one for which they may ask IAM"
            .to_owned());
    };
    let endpoint = options.iam_endpoint.clone().unwrap_or_else(|| IAM_ENDPOINT.to_owned());
    let (credentials, exchange) = (credentials.clone(), exchange.clone());
    Ok(Some(Signer::Iam(Iam { email, endpoint, credentials, exchange })))
}

fn build(
    options: &GcsOptions,
    endpoint: &str,
    credentials: &Credentials,
    transport: &Transport,
    retry: RetryConfig,
) -> object_store::Result<GoogleCloudStorage> {
    GoogleCloudStorageBuilder::new()
        .with_bucket_name(&options.bucket)
        .with_base_url(endpoint)
        .with_credentials(Arc::new(credentials.clone()))
        .with_retry(retry)
        .with_http_connector(transport.clone())
        .build()
}

/// Whether the store says that it did nothing because it has too much to do. Of other failures on its side it isn't
/// known whether they came before or after.
fn is_too_busy(error: &StorageError) -> bool {
    let StorageError::Unavailable(_, text) = error else { return false };
    ["429 Too Many Requests", "<Code>SlowDown</Code>"].iter().any(|sign| text.contains(sign))
}

#[async_trait]
impl Store for Gcs {
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

    /// A late write is not refused: that would take a signature for each, and readers don't count it anyway.
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
        self.look_at(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        self.list_objects(prefix, after, limit).await.map_err(|failure| failure.at(prefix))
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        self.remove(key, deadline).await
    }

    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<Option<String>, StorageError> {
        match &self.signer {
            Some(signer) => self.removal_url(signer, key, deadline).await.map(Some),
            None => Ok(None),
        }
    }

    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let life = life.min(signer.longest());
        let span = (self.this_second(), life.as_secs());
        let signed = self.signed(signer, &Method::GET, &self.public_endpoint, key, span).await;
        let url = signed.map_err(|why| StorageError::Unavailable(key.to_string(), why))?;
        Ok(Some(SignedUrl { url, life }))
    }
}
