//! The settings of a bucket of Google Cloud Storage.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    address::Site,
    text::{GoogleCredentials, StorageClass, Text, Word},
};

/// `[storage.gcs]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gcs {
    /// The store's URL, where it is not `https://storage.googleapis.com`: a private or a regional endpoint. Where
    /// it is not set and `STORAGE_EMULATOR_HOST` is, that emulator's, which is asked without credentials unless
    /// some are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Text<Site>>,
    /// The URL at which clients reach the store, where it is not the one that Berth uses itself. Only what
    /// clients are redirected to names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Text<Site>>,
    /// The URL of IAM's credentials service, where it is not `https://iamcredentials.googleapis.com`. It is asked
    /// to sign where Berth has no private key of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam_endpoint: Option<Text<Site>>,
    /// The JSON of a service account's key, of a workload identity (`external_account`) or of a login
    /// (`authorized_user`). Where it is not set, what Google's own tools would use counts: the file that
    /// `GOOGLE_APPLICATION_CREDENTIALS` names, that of `gcloud auth application-default login`, the metadata server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub credentials: Option<Text<GoogleCredentials>>,
    /// The service account, by its email address, in whose name IAM signs URLs. Where it is not set, the one that
    /// the credentials stand for. Only credentials that stand for none need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_as: Option<Text<Word>>,
    /// The storage class of blobs. Where it is not set, the bucket's own. What Berth keeps beside them is small,
    /// and always in the bucket's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<Text<StorageClass>>,
    /// A file of certificates in PEM that are trusted beside the system's own. It is read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<Text<PathBuf>>,
}
