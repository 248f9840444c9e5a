//! A container of Azure Blob Storage as a [`Store`].
//!
//! What is read, and who asks, is for the object library; writes, removals and listings are requests of our own,
//! since they carry a signature with a deadline, name blocks, or begin in the middle. It must not copy, rename, or
//! list all of a container to answer for a part of it.

mod blocks;
mod check;
mod delegation;
mod fault;
mod identity;
mod listing;
mod names;
mod options;
mod removal;
mod request;
mod sas;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use http::Method;
use object_store::{ObjectStore, PutPayload, azure::MicrosoftAzureBuilder, path::Path};

use super::{
    ByteStream, Chunks, Key, MultipartId, Page, PartId, SignedUrl, Stat, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
    remote::{Patience, RETRIES, Transport, client_for, explain, read, retry},
};
use crate::outbound::{Kept, text_of};
use delegation::Delegation;
use identity::Identity;
pub use options::{Asks, AzureOptions};
use request::{Ask, Service};
use sas::{Permission, SigningKey, Target};

/// The size of a part, in bytes. With 10,000 parts, 16 MiB allow 156 GiB.
const PART_SIZE: usize = 16 << 20;

/// The most parts of one upload. Azure takes 50,000, but the note of an upload names each.
const MAX_PARTS: usize = 10_000;

/// A store in a container.
#[derive(Debug)]
pub struct Azure {
    /// The container and where it is, for people.
    name: String,
    account: String,
    /// The container's name, and its URL.
    container_name: String,
    container: String,
    /// The container's URL for clients outside.
    public: String,
    names: names::Names,
    access_tier: Option<&'static str>,
    /// What signs where there is no account key; `None` where there is one, or where nothing can sign.
    delegation: Option<Kept<Delegation>>,
    /// What a missing proof is called.
    kind: &'static str,
    /// For requests that cost the store little.
    calls: Service,
    /// For parts and whole objects.
    writes: Service,
    /// For completing an upload, over which a store may take minutes.
    completions: Service,
    /// For streaming. It tries again only what fails at the beginning: the rest is for `remote::read`.
    bodies: Arc<dyn ObjectStore>,
}

/// The client by which a URL that such a store signs is tried, as its clients outside would.
///
/// # Errors
/// One line that says which of the options can't be used.
pub fn signed_url_client(options: &AzureOptions) -> Result<reqwest::Client, StorageError> {
    client_for(Some(&options.public_endpoint), &options.egress, options.patience)
}

impl Azure {
    /// Finds whoever asks, and lists one blob to know that the container answers and what its time is.
    ///
    /// # Errors
    /// One line that names the container, what went wrong, and what to set or grant.
    pub async fn open(options: AzureOptions) -> Result<Self, StorageError> {
        if options.account.is_empty() {
            let set = "set storage.azure.account or AZURE_STORAGE_ACCOUNT";
            return Err(StorageError::Refused("the storage account".to_owned(), format!("it has no name: {set}")));
        }
        let transport = Transport::new(&options.egress, options.patience)?;
        let identity = Identity::find(&options, &transport)?;
        let Patience { call, write, complete, .. } = options.patience;
        let bodies = bodies(&options, &identity, &transport, call);
        let service = Service { account: options.account.clone(), identity, transport };
        let calls = service.answered_within(call);
        let delegation = matches!(calls.identity, Identity::Known(_))
            .then(|| Kept::new(Delegation { service: calls.clone(), endpoint: options.endpoint.clone() }));
        let name = format!("the container {:?} at {}", options.container, options.endpoint);
        let store = Self {
            bodies: bodies.map_err(|error| explain(&name, &error))?,
            name,
            account: options.account,
            container: format!("{}/{}", options.endpoint, options.container),
            public: format!("{}/{}", options.public_endpoint, options.container),
            container_name: options.container,
            names: names::Names::under(&options.prefix),
            access_tier: options.access_tier,
            delegation,
            kind: options.asks.kind(),
            calls,
            writes: service.answered_within(write),
            completions: service.answered_within(complete),
        };
        store.check_reach().await?;
        Ok(store)
    }

    /// The URL of an object, without a query. No letter of a name needs escaping.
    fn url(&self, key: &Key) -> String {
        format!("{}/{}", self.container, self.names.of(&key.to_string()))
    }

    /// Says of an object that is written what kind it is of, and for a blob how it is kept: cheap tiers bill
    /// each object as if it were old, which the many small ones beside the blobs are not.
    fn described(&self, ask: Ask, key: &Key) -> Ask {
        let ask = ask.with_header("x-ms-blob-content-type", "application/octet-stream");
        match self.access_tier.filter(|_| matches!(key, Key::Data(_))) {
            Some(tier) => ask.with_header("x-ms-access-tier", tier),
            None => ask,
        }
    }

    /// What signs, and for how long what it signs is good; `None` where nothing can.
    ///
    /// # Errors
    /// In one line, why an identity was given no key.
    async fn signing_key(&self) -> Result<Option<(SigningKey, Option<Duration>)>, String> {
        if let Identity::Key(_, key) = &self.calls.identity {
            return Ok(Some((SigningKey::Account(key.clone()), None)));
        }
        let Some(delegation) = &self.delegation else { return Ok(None) };
        let now = SystemTime::now();
        let held = delegation.get(now).await?;
        let life = held.expires.map(|expires| expires.duration_since(now).unwrap_or_default());
        Ok(Some((SigningKey::Delegated(held.value), life)))
    }

    /// A signature for one object, as a query. `by` is where it will be used.
    fn signature(
        &self,
        key: &SigningKey,
        permission: Permission,
        object: &Key,
        until: StoreTime,
        by: &str,
    ) -> Result<String, StorageError> {
        let blob = self.names.of(&object.to_string());
        let (account, container) = (self.account.as_str(), self.container_name.as_str());
        let target = Target { account, container, blob: &blob, https: by.starts_with("https:") };
        let unfit = || StorageError::Refused(object.to_string(), "the key that signs is none".to_owned());
        sas::query(key, permission, target, until).ok_or_else(unfit)
    }

    /// Sends a request that changes an object, signed so that Azure refuses it after `deadline`. Where nothing
    /// can sign, it goes as any other.
    async fn ask_until(
        &self,
        deadline: StoreTime,
        permission: Permission,
        key: &Key,
        ask: Ask,
    ) -> Result<(), StorageError> {
        let about = key.to_string();
        let signing = self.signing_key().await.map_err(|why| StorageError::Refused(about.clone(), why))?;
        if self.now() > deadline {
            return Err(StorageError::TooLate(about));
        }
        let signature =
            signing.map(|(signing, _)| self.signature(&signing, permission, key, deadline, &self.container));
        let ask = Ask { signature: signature.transpose()?, ..ask };
        match self.calls.ask_before(deadline, &ask).await {
            Ok(_) => Ok(()),
            // A signature ends with a whole second.
            Err(fault) if fault.is_expired(self.now().plus(Duration::from_secs(1)) > deadline) => {
                Err(StorageError::TooLate(about))
            }
            Err(fault) => Err(fault.explain(&about)),
        }
    }
}

/// The library's way to the bodies of objects.
fn bodies(
    options: &AzureOptions,
    identity: &Identity,
    transport: &Transport,
    call: Duration,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let store = MicrosoftAzureBuilder::new()
        .with_account(&options.account)
        .with_container_name(&options.container)
        .with_endpoint(options.endpoint.clone())
        .with_credentials(Arc::new(identity.clone()))
        .with_retry(retry(RETRIES, call))
        .with_http_connector(transport.answered_within(call))
        .build()?;
    Ok(Arc::new(store))
}

#[async_trait]
impl Store for Azure {
    fn is_exclusive(&self) -> bool {
        false
    }

    fn part_size(&self) -> usize {
        PART_SIZE
    }

    fn max_parts(&self) -> usize {
        MAX_PARTS
    }

    fn names_uploads(&self) -> bool {
        false
    }

    fn now(&self) -> StoreTime {
        self.calls.now()
    }

    /// One with a deadline carries a signature that ends with it, so that Azure refuses it when it is late, and
    /// is sent again only if Azure says that it did nothing.
    async fn put(&self, key: &Key, bytes: Chunks, deadline: Option<StoreTime>) -> Result<(), StorageError> {
        let ask = Ask::new(Method::PUT, self.url(key)).with_header("x-ms-blob-type", "BlockBlob");
        let ask = self.described(ask, key).with_body(PutPayload::from_iter(bytes));
        match deadline {
            Some(deadline) => self.ask_until(deadline, Permission::Write, key, ask).await,
            None => self.writes.ask(&ask).await.map(drop).map_err(|fault| fault.explain(&key.to_string())),
        }
    }

    /// The key is the upload: Azure knows of none.
    async fn begin(&self, key: &Key) -> Result<MultipartId, StorageError> {
        Ok(MultipartId(key.to_string()))
    }

    async fn put_part(
        &self,
        key: &Key,
        _upload: &MultipartId,
        _number: usize,
        _part_size: usize,
        bytes: Chunks,
    ) -> Result<PartId, StorageError> {
        self.put_block(key, bytes).await
    }

    async fn complete(&self, key: &Key, _upload: &MultipartId, parts: &[PartId]) -> Result<(), StorageError> {
        self.put_block_list(key, parts).await
    }

    /// What was put can't be removed before it goes by itself, a week after the last of it.
    async fn abort(&self, _key: &Key, _upload: &MultipartId) -> Result<(), StorageError> {
        Ok(())
    }

    async fn unfinished(&self, _after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        Ok(UnfinishedPage::default())
    }

    async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StorageError> {
        let about = key.to_string();
        let path = Path::parse(self.names.of(&about));
        let path = path.map_err(|error| StorageError::Unavailable(about.clone(), text_of(&error)))?;
        read(Arc::clone(&self.bodies), path, about, range).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Stat>, StorageError> {
        let about = key.to_string();
        let answer = match self.calls.ask(&Ask::new(Method::HEAD, self.url(key))).await {
            Ok(answer) => answer,
            Err(fault) => {
                return match fault.explain(&about) {
                    StorageError::NotFound(_) => Ok(None),
                    error => Err(error),
                };
            }
        };
        let said = |name| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let size = said(http::header::CONTENT_LENGTH).and_then(|size| size.parse().ok());
        let modified = said(http::header::LAST_MODIFIED).and_then(listing::time);
        let stat = size.zip(modified).map(|(size, modified)| Stat { size, modified });
        stat.map(Some).ok_or_else(|| StorageError::Unavailable(about, "it doesn't say how large or how old".to_owned()))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, StorageError> {
        self.list_after(prefix, after, limit).await
    }

    async fn delete(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        self.remove(key, deadline).await
    }

    /// By the account's key, or by one that the identity was given; with a signature that somebody else made, no
    /// other can be made, so nobody is sent to the store with it.
    async fn sign(&self, key: &Key, life: Duration) -> Result<Option<SignedUrl>, StorageError> {
        let signing = self.signing_key().await.map_err(|why| StorageError::Refused(key.to_string(), why))?;
        let Some((signing, most)) = signing else { return Ok(None) };
        let life = most.map_or(life, |most| life.min(most));
        let until = self.now().plus(life);
        let query = self.signature(&signing, Permission::Read, key, until, &self.public)?;
        let url = format!("{}/{}?{query}", self.public, self.names.of(&key.to_string()));
        Ok(Some(SignedUrl { url, life }))
    }

    async fn sign_delete(&self, key: &Key, deadline: StoreTime) -> Result<Option<String>, StorageError> {
        let signing = self.signing_key().await.map_err(|why| StorageError::Refused(key.to_string(), why))?;
        let Some((signing, _)) = signing else { return Ok(None) };
        let query = self.signature(&signing, Permission::Delete, key, deadline, &self.container)?;
        Ok(Some(format!("{}?{query}", self.url(key))))
    }
}
