//! What a registry runs over: which set-up of Redis, and which kind of store.

use crate::{
    azurite::{self, Container},
    gcs_server::{self, GcsServer},
    s3_server::{self, S3Server},
};

/// Names the set-up, where it isn't the first of [`SETUPS`].
const OVER: &str = "BERTH_CHAOS_OVER";

/// How the index is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IndexKind {
    /// In one server.
    Lone,
    /// In a master with replicas, which Sentinels watch over.
    Sentinel,
    /// In the masters of a cluster.
    Cluster,
}

/// How the bucket is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    S3,
    /// What plays Google Cloud Storage.
    Gcs,
    /// azurite.
    Azure,
}

/// What a registry runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) index: IndexKind,
    pub(crate) store: StoreKind,
}

const SETUPS: [(&str, Over); 5] = [
    ("redis+s3", Over { index: IndexKind::Lone, store: StoreKind::S3 }),
    ("sentinel+s3", Over { index: IndexKind::Sentinel, store: StoreKind::S3 }),
    ("cluster+s3", Over { index: IndexKind::Cluster, store: StoreKind::S3 }),
    ("redis+gcs", Over { index: IndexKind::Lone, store: StoreKind::Gcs }),
    ("redis+azure", Over { index: IndexKind::Lone, store: StoreKind::Azure }),
];

impl Over {
    /// As `BERTH_CHAOS_OVER` says.
    pub(crate) fn chosen() -> Self {
        let name = std::env::var(OVER).unwrap_or_else(|_| SETUPS[0].0.to_owned());
        let names = SETUPS.map(|(name, _)| name).join(", ");
        let found = SETUPS.iter().find(|(other, _)| *other == name);
        found.unwrap_or_else(|| panic!("{OVER} is one of {names}, not {name}")).1
    }
}

/// An empty bucket.
pub(crate) enum Bucket {
    S3(S3Server),
    Gcs(GcsServer),
    Azure(Container),
}

impl Bucket {
    pub(crate) async fn start(kind: StoreKind) -> Self {
        match kind {
            StoreKind::S3 => Self::S3(s3_server::start().await),
            StoreKind::Gcs => Self::Gcs(gcs_server::start().await),
            StoreKind::Azure => Self::Azure(azurite::start().await),
        }
    }

    /// Where its store is: what it is to be asked for by default.
    pub(crate) fn endpoint(&mut self) -> &mut String {
        match self {
            Self::S3(S3Server { endpoint, .. })
            | Self::Gcs(GcsServer { endpoint, .. })
            | Self::Azure(Container { endpoint, .. }) => endpoint,
        }
    }

    /// What makes Berth keep a registry in it, as environment variables.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::S3(server) => server.settings(),
            Self::Gcs(server) => server.settings(),
            Self::Azure(container) => container.settings(),
        }
    }
}
