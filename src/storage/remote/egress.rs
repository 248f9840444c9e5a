//! How to reach a store, and how long to wait for it.

use std::{path::PathBuf, time::Duration};

use crate::{
    config::{Config, Text},
    outbound::Proxy,
};

/// How to reach what is outside.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// A file of PEM certificates that are trusted beside the system's own. For S3, `None` stands for the one
    /// that `AWS_CA_BUNDLE` names, if it does.
    pub ca_bundle: Option<PathBuf>,
    /// The proxy; `None` for the one that `HTTPS_PROXY` and its kin name, if they do.
    pub proxy: Option<Proxy>,
}

impl Egress {
    /// What the configuration says, with the certificates that it names for this kind of store.
    pub(in crate::storage) fn configured(config: &Config, ca_bundle: Option<&Text<PathBuf>>) -> Self {
        Self { ca_bundle: ca_bundle.map(|file| file.0.clone()), proxy: Proxy::of(&config.proxy) }
    }

    /// The same, with the certificates of `AWS_CA_BUNDLE` where no others are named.
    pub(in crate::storage) fn as_aws_tools_would(&self) -> Self {
        let bundle = std::env::var_os("AWS_CA_BUNDLE").filter(|file| !file.is_empty()).map(PathBuf::from);
        Self { ca_bundle: self.ca_bundle.clone().or(bundle), ..self.clone() }
    }
}

/// For how long the store may be silent. While bytes move, in either direction, nothing is ever cut off.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the handshakes.
    pub connect: Duration,
    /// For the answer to a request that costs the store little.
    pub call: Duration,
    /// For the answer to a whole object or a part, once all its bytes are sent.
    pub write: Duration,
    /// For the answer to the completion of an upload, over which a store may take minutes:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>.
    pub complete: Duration,
    /// For more bytes of a body, whichever way it goes.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(10),
            write: Duration::from_secs(60),
            complete: Duration::from_secs(300),
            stall: Duration::from_secs(30),
        }
    }
}
