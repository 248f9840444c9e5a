//! Who asks: what proves it to Azure, and what signs for it.
//!
//! Tokens come from the object library, which knows where to ask; they are looked for in the background, so that
//! no request waits for one while the last is good. A key that signs for an identity is asked for likewise.
//! Nothing here is ever logged.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use object_store::{
    BackoffConfig, CredentialProvider, RetryConfig,
    azure::{AzureAccessKey, AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder, split_sas},
};

use super::{
    super::{StorageError, remote::Transport},
    options::{Asks, AzureOptions},
    sas::AccountKey,
};
use crate::outbound::{Kept, Source, text_of};

/// For how long a token is used before the library is asked for it again: less than the five minutes for which
/// each that it gives is good at the least.
const HOLD: Duration = Duration::from_secs(4 * 60);

/// How often asking for a token is tried again, and for how long.
const RETRY: RetryConfig = RetryConfig {
    backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2. },
    max_retries: 2,
    retry_timeout: Duration::from_secs(12),
};

/// Who asks. Clones share tokens.
#[derive(Clone)]
pub(super) enum Identity {
    /// Somebody who has the account's key, which also signs.
    Key(Arc<AzureCredential>, AccountKey),
    /// Somebody who has a signature, and can make no other.
    Signature(Arc<AzureCredential>),
    /// Somebody whom Microsoft Entra knows.
    Known(Kept<Tokens>),
}

/// Proofs stay out of logs.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(..) => "Key",
            Self::Signature(_) => "Signature",
            Self::Known(_) => "Known",
        })
    }
}

impl Identity {
    /// Finds out where proofs come from; nobody is asked yet.
    ///
    /// # Errors
    /// One line that says which setting can't be used.
    pub(super) fn find(options: &AzureOptions, transport: &Transport) -> Result<Self, StorageError> {
        let unusable = |what: &str, why: String| StorageError::Refused(what.to_owned(), why);
        match &options.asks {
            Asks::Key(key) => {
                let text = key.trim();
                let own = AccountKey::new(text).zip(AzureAccessKey::try_new(text).ok());
                let (own, theirs) = own.ok_or_else(|| {
                    unusable("storage.azure.account_key", "it is no account key: want one of the two, in base64".into())
                })?;
                Ok(Self::Key(Arc::new(AzureCredential::AccessKey(theirs)), own))
            }
            Asks::Signature(query) => {
                let query = query.trim().trim_start_matches('?');
                let pairs = split_sas(query).ok().filter(|pairs| pairs.iter().any(|(name, _)| name == "sig"));
                let pairs = pairs.ok_or_else(|| {
                    unusable("storage.azure.sas", "it is no shared access signature: want sv=…&sig=…".into())
                })?;
                Ok(Self::Signature(Arc::new(AzureCredential::SASToken(pairs))))
            }
            asks => {
                let provider = provider(asks, transport).map_err(|error| unusable(asks.kind(), text_of(&error)))?;
                Ok(Self::Known(Kept::new(Tokens(provider))))
            }
        }
    }
}

/// Tokens of an identity, from wherever the library gets them.
pub(super) struct Tokens(AzureCredentialProvider);

#[async_trait]
impl Source for Tokens {
    type Value = Arc<AzureCredential>;

    async fn find(&self) -> Result<(Arc<AzureCredential>, Option<SystemTime>), String> {
        let token = self.0.get_credential().await.map_err(|error| text_of(&error))?;
        Ok((token, Some(SystemTime::now() + HOLD)))
    }
}

/// The library's way to an identity's tokens. It wants an account and a container as well, which count for
/// nothing.
fn provider(asks: &Asks, transport: &Transport) -> object_store::Result<AzureCredentialProvider> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account("none")
        .with_container_name("none")
        .with_retry(RETRY)
        .with_http_connector(transport.for_others());
    match asks {
        Asks::Secret { authority, tenant, client, secret } => {
            builder = builder
                .with_credential_type("client_secret")
                .with_authority_host(authority)
                .with_client_secret_authorization(client, secret, tenant);
        }
        Asks::Workload { authority, tenant, client, token_file } => {
            builder = builder
                .with_credential_type("workload_identity")
                .with_authority_host(authority)
                .with_tenant_id(tenant)
                .with_client_id(client)
                .with_federated_token_file(token_file.to_string_lossy());
        }
        Asks::Machine { client, endpoint } => {
            builder = builder.with_credential_type("managed_identity");
            if let Some(client) = client {
                builder = builder.with_client_id(client);
            }
            if let Some(endpoint) = endpoint {
                builder = builder.with_msi_endpoint(endpoint);
            }
        }
        Asks::Key(_) | Asks::Signature(_) => {}
    }
    Ok(Arc::clone(builder.build()?.credentials()))
}

#[async_trait]
impl CredentialProvider for Identity {
    type Credential = AzureCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AzureCredential>> {
        match self {
            Self::Key(credential, _) | Self::Signature(credential) => Ok(Arc::clone(credential)),
            Self::Known(tokens) => match tokens.get(SystemTime::now()).await {
                Ok(held) => Ok(held.value),
                Err(why) => Err(object_store::Error::Unauthenticated {
                    path: "credentials".to_owned(),
                    source: format!("there is no token: {why}").into(),
                }),
            },
        }
    }
}
