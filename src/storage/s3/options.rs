//! What can be said about a bucket: where it is, who asks, and how its objects are kept.
//!
//! Nothing is looked up here; what is left open is for `place` and `credentials` to find.

use std::fmt;

use super::super::remote::{Egress, Patience};
use crate::config::{Config, S3Checksum, S3Encryption, Site, Text};

/// Where the bucket is, who asks, and how its objects are kept.
#[derive(Clone, Debug, Default)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What precedes every key, with or without slashes at its ends; may be empty.
    pub prefix: String,
    /// The URL of the server; `None` for what AWS' own tools would use. With `http:` nothing is encrypted.
    pub endpoint: Option<String>,
    /// The URL at which clients outside reach the same server, for what is signed; `None` where that is
    /// `endpoint` as well.
    pub public_endpoint: Option<String>,
    /// The region that signatures name; `None` for what AWS' own tools would use, else us-east-1.
    pub region: Option<String>,
    /// Whether the bucket is in the path rather than in the host name; `None` for: unless it is Amazon's own.
    pub path_style: Option<bool>,
    /// Who asks; `None` for whatever AWS' own tools would find.
    pub access_key: Option<AccessKey>,
    /// How objects are encrypted at rest.
    pub encryption: Encryption,
    /// The storage class of blobs; `None` for the bucket's own.
    pub storage_class: Option<String>,
    /// What protects the bytes on their way, and each part until its upload is complete.
    pub checksum: Checksum,
    /// How to reach the store.
    pub egress: Egress,
    /// How long to wait for it.
    pub patience: Patience,
}

impl S3Options {
    /// What the configuration says of a bucket.
    pub fn configured(config: &Config, bucket: &str, prefix: &str) -> Self {
        let s3 = &config.storage.s3;
        let site = |site: &Option<Text<Site>>| site.as_ref().map(|site| site.as_str().to_owned());
        let access_key = s3.access_key_id.as_ref().zip(s3.secret_access_key.as_ref()).map(|(id, secret)| AccessKey {
            id: id.to_string(),
            secret: secret.reveal().to_owned(),
            session_token: s3.session_token.as_ref().map(|token| token.reveal().to_owned()),
        });
        Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: site(&s3.endpoint),
            public_endpoint: site(&s3.public_endpoint),
            region: s3.region.as_ref().map(ToString::to_string),
            path_style: s3.path_style,
            access_key,
            encryption: match s3.encryption {
                S3Encryption::Bucket => Encryption::Bucket,
                S3Encryption::S3 => Encryption::S3,
                S3Encryption::Kms => {
                    Encryption::Kms { key: s3.kms_key.as_ref().map(ToString::to_string), bucket_key: s3.bucket_key }
                }
            },
            storage_class: s3.storage_class.as_ref().map(ToString::to_string),
            checksum: match s3.checksum {
                S3Checksum::Sha256 => Checksum::Sha256,
                S3Checksum::None => Checksum::None,
            },
            egress: Egress::configured(config, s3.ca_bundle.as_ref()),
            patience: Patience::default(),
        }
    }
}

/// A key that is written down rather than found.
#[derive(Clone)]
pub struct AccessKey {
    /// Its public half.
    pub id: String,
    /// Its secret half.
    pub secret: String,
    /// What makes it good for a while only, if it is such a one.
    pub session_token: Option<String>,
}

/// The secrets stay out of logs.
impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How the store encrypts what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket is set up.
    #[default]
    Bucket,
    /// With keys that S3 manages (SSE-S3).
    S3,
    /// With a key of the key management service (SSE-KMS).
    Kms {
        /// The key's id or ARN; `None` for the account's own key for S3.
        key: Option<String>,
        /// Whether S3 asks for one data key for many objects, which costs less; `None` as the bucket says.
        bucket_key: Option<bool>,
    },
}

/// What is sent along with the bytes for the store to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Each object's and each part's SHA-256. A store that keeps them refuses to complete an upload with a
    /// part that was overwritten by another of the same MD5.
    #[default]
    Sha256,
    /// Nothing, for stores that choke on it.
    None,
}
