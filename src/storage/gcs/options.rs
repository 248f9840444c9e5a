//! What can be said about a bucket of Google Cloud Storage: where it is, who asks, and how long to wait.
//!
//! Nothing is looked up here; what is left open is for `google` to find.

use std::fmt;

use super::super::remote::{Egress, Patience};
use crate::config::{Config, Site, Text};

/// Where the bucket is, and who asks.
#[derive(Clone, Debug, Default)]
pub struct GcsOptions {
    /// The bucket's name.
    pub bucket: String,
    /// What precedes every key, with or without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of the server, without a slash at its end; `None` for that of `STORAGE_EMULATOR_HOST`, else
    /// Google's own. With `http:` nothing is encrypted.
    pub endpoint: Option<String>,
    /// The URL at which clients outside reach the same server, for what is signed; `None` where that is
    /// `endpoint` as well.
    pub public_endpoint: Option<String>,
    /// The URL of IAM's credentials service; `None` for Google's own.
    pub iam_endpoint: Option<String>,
    /// Who asks, in Google's JSON; `None` for whatever Google's own tools would find.
    pub credentials: Option<CredentialsJson>,
    /// The email address of the service account that signs; `None` for the one that asks.
    pub sign_as: Option<String>,
    /// The storage class of blobs; `None` for the bucket's own.
    pub storage_class: Option<String>,
    /// How to reach the store.
    pub egress: Egress,
    /// How long to wait for it.
    pub patience: Patience,
}

impl GcsOptions {
    /// What the configuration says of a bucket.
    pub fn configured(config: &Config, bucket: &str, prefix: &str) -> Self {
        let gcs = &config.storage.gcs;
        let site = |site: &Option<Text<Site>>| site.as_ref().map(|site| site.as_str().to_owned());
        Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: site(&gcs.endpoint),
            public_endpoint: site(&gcs.public_endpoint),
            iam_endpoint: site(&gcs.iam_endpoint),
            credentials: gcs.credentials.as_ref().map(|json| CredentialsJson(json.reveal().to_owned())),
            sign_as: gcs.sign_as.as_ref().map(ToString::to_string),
            storage_class: gcs.storage_class.as_ref().map(ToString::to_string),
            egress: Egress::configured(config, gcs.ca_bundle.as_ref()),
            patience: Patience::default(),
        }
    }
}

/// Credentials as Google gives them out. They may hold a private key.
#[derive(Clone)]
pub struct CredentialsJson(pub String);

/// The secrets stay out of logs.
impl fmt::Debug for CredentialsJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialsJson").finish_non_exhaustive()
    }
}
