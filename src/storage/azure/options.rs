//! What can be said about a container: where it is, who asks, and how long to wait.
//!
//! What the settings leave open is read from the environment, by the names that Azure's own tools use. Nothing
//! is asked of anybody here; that is for `identity`.

use std::{env, fmt, path::PathBuf};

use super::super::remote::{Egress, Patience};
use crate::config::{self, Config, Text, UrlStart};

/// The end of a storage account's name in Azure's public cloud.
const PUBLIC_CLOUD: &str = "blob.core.windows.net";

/// Where identities of Azure's public cloud get their tokens.
const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";

/// Where the container is, and who asks.
#[derive(Clone, Debug)]
pub struct AzureOptions {
    /// The storage account's name.
    pub account: String,
    /// The container's name.
    pub container: String,
    /// What precedes every key, with or without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of the account's blob service, without a slash at its end. With `http:` nothing is encrypted.
    pub endpoint: String,
    /// The URL at which clients outside reach the same service, for what is signed.
    pub public_endpoint: String,
    /// Who asks.
    pub asks: Asks,
    /// The access tier of blobs; `None` for the account's own.
    pub access_tier: Option<&'static str>,
    /// How to reach the store.
    pub egress: Egress,
    /// How long to wait for it.
    pub patience: Patience,
}

impl AzureOptions {
    /// What the configuration and the environment say of a container. Without an account's name in either, it
    /// is empty, and `open` says so.
    pub fn configured(config: &Config, container: &str, prefix: &str) -> Self {
        let azure = &config.storage.azure;
        let site = |site: &Option<Text<UrlStart>>| site.as_ref().map(|site| site.as_str().to_owned());
        let account = azure.account.as_ref().map(ToString::to_string).or_else(|| said("AZURE_STORAGE_ACCOUNT"));
        let account = account.unwrap_or_default();
        let endpoint = site(&azure.endpoint).unwrap_or_else(|| format!("https://{account}.{PUBLIC_CLOUD}"));
        Self {
            container: container.to_owned(),
            prefix: prefix.to_owned(),
            public_endpoint: site(&azure.public_endpoint).unwrap_or_else(|| endpoint.clone()),
            endpoint,
            asks: Asks::configured(azure),
            access_tier: azure.access_tier.map(config::AccessTier::as_str),
            egress: Egress::configured(config, azure.ca_bundle.as_ref()),
            patience: Patience::default(),
            account,
        }
    }
}

/// Who asks, and by what they prove it.
#[derive(Clone)]
pub enum Asks {
    /// Whoever has one of the account's two keys, in base64.
    Key(String),
    /// Whoever has a shared access signature: the query of a URL, with or without its question mark.
    Signature(String),
    /// An application, by its secret.
    Secret {
        /// The URL that gives tokens, up to the tenant's name.
        authority: String,
        /// The directory that knows the application.
        tenant: String,
        /// The application.
        client: String,
        /// Its secret.
        secret: String,
    },
    /// An application, by a token that somebody else gave it: Kubernetes to a pod's service account.
    Workload {
        /// The URL that gives tokens, up to the tenant's name.
        authority: String,
        /// The directory that knows the application.
        tenant: String,
        /// The application, or the managed identity.
        client: String,
        /// The file that the token is in. It is read again for each new token of Azure's.
        token_file: PathBuf,
    },
    /// This machine, by asking what it runs on.
    Machine {
        /// Which of its identities, by client id; `None` where it has one.
        client: Option<String>,
        /// The URL that gives tokens; `None` for the one that each virtual machine has.
        endpoint: Option<String>,
    },
}

/// Nothing of it is for a log but its kind.
impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Asks {
    /// What is written down counts, else what the environment has, in the order of Azure's own tools; without
    /// anything, this machine is asked for its identity.
    fn configured(azure: &config::Azure) -> Self {
        let key = azure.account_key.as_ref().map(|key| key.reveal().to_owned());
        let signature = azure.sas.as_ref().map(|sas| sas.reveal().to_owned());
        if let Some(written) = key.map(Self::Key).or(signature.map(Self::Signature)) {
            return written;
        }
        let found = said("AZURE_STORAGE_KEY").map(Self::Key);
        let found = found.or_else(|| said("AZURE_STORAGE_SAS_TOKEN").map(Self::Signature));
        found
            .or_else(Self::application)
            .unwrap_or_else(|| Self::Machine { client: said("AZURE_CLIENT_ID"), endpoint: said("IDENTITY_ENDPOINT") })
    }

    fn application() -> Option<Self> {
        let (tenant, client) = (said("AZURE_TENANT_ID")?, said("AZURE_CLIENT_ID")?);
        // On Kubernetes it ends with a slash.
        let authority = said("AZURE_AUTHORITY_HOST").unwrap_or_else(|| PUBLIC_AUTHORITY.to_owned());
        let authority = authority.trim_end_matches('/').to_owned();
        if let Some(secret) = said("AZURE_CLIENT_SECRET") {
            return Some(Self::Secret { authority, tenant, client, secret });
        }
        let token_file = said("AZURE_FEDERATED_TOKEN_FILE")?.into();
        Some(Self::Workload { authority, tenant, client, token_file })
    }

    /// What kind of proof it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "an account key",
            Self::Signature(_) => "a shared access signature",
            Self::Secret { .. } => "a client secret",
            Self::Workload { .. } => "a workload identity",
            Self::Machine { .. } => "a managed identity",
        }
    }
}

/// What a variable of the environment says, if it says anything.
fn said(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
