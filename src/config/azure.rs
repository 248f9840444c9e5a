//! The settings of a container of Azure Blob Storage.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    address::UrlStart,
    text::{Secret, Text, Word},
};

/// `[storage.azure]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Azure {
    /// The name of the storage account. Where it is not set, `AZURE_STORAGE_ACCOUNT` counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Text<Word>>,
    /// The URL of the account's blob service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`https://ACCOUNT.blob.core.windows.net`"))]
    pub endpoint: Option<Text<UrlStart>>,
    /// The URL at which clients reach the blob service, where it is not the one that Berth uses itself. Only what
    /// clients are redirected to names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Text<UrlStart>>,
    /// One of the account's two keys. Where neither it nor `storage.azure.sas` is set, what the environment has
    /// counts: `AZURE_STORAGE_KEY`, `AZURE_STORAGE_SAS_TOKEN`, an application (`AZURE_TENANT_ID` and
    /// `AZURE_CLIENT_ID` with `AZURE_CLIENT_SECRET` or, as a pod on Kubernetes has it,
    /// `AZURE_FEDERATED_TOKEN_FILE`); else the machine's managed identity, where there are several the one that
    /// `AZURE_CLIENT_ID` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub account_key: Option<Text<Secret>>,
    /// A shared access signature for the container that permits `racwdl`, in place of a key. Clients are not
    /// redirected then, as no signature of less can be made of it; and it is not renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub sas: Option<Text<Secret>>,
    /// The access tier of blobs. Where it is not set, the account's own. What Berth keeps beside them is small,
    /// and always in the account's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_tier: Option<AccessTier>,
    /// A file of certificates in PEM that are trusted beside the system's own. It is read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<Text<PathBuf>>,
}

/// The access tier of blobs: one whose blobs can be read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum AccessTier {
    /// For what is read often.
    Hot,
    /// Cheaper to keep, dearer to read.
    Cool,
    /// Cheaper and dearer still.
    Cold,
}

impl AccessTier {
    /// As Azure writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hot => "Hot",
            Self::Cool => "Cool",
            Self::Cold => "Cold",
        }
    }
}
