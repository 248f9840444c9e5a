//! What a registry stands on: an empty directory, or an S3 server and a Redis that are started for it, with a
//! proxy before each.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tokio::process::Child;

use crate::{
    counting::{Counts, RedisProxy, StoreProxy},
    instance::Settings,
    proc,
    recover::{ACCESS_KEY, Gateway, SECRET_KEY, start_redis},
    server::free_address,
};

/// The bucket on the S3 server.
pub(crate) const BUCKET: &str = "registry";

/// Which way a registry reaches its store and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Without anything in between, for what time and CPU it takes.
    Straight,
    /// Through the proxies that count.
    Counted,
}

/// A bucket on versitygw, and a Redis that keeps nothing on a disk.
#[derive(Debug)]
pub(crate) struct Bucket {
    gateway: Gateway,
    redis: Child,
    redis_address: SocketAddr,
    store_proxy: StoreProxy,
    redis_proxy: RedisProxy,
}

impl Bucket {
    /// Starts all of it in `directory`.
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory.join("buckets").join(BUCKET))?;
        let (gateway, redis_address) = (Gateway::start(directory).await?, free_address()?);
        let redis = start_redis(redis_address).await?;
        let (store_proxy, redis_proxy) =
            (StoreProxy::start(gateway.address).await?, RedisProxy::start(redis_address).await?);
        Ok(Self { gateway, redis, redis_address, store_proxy, redis_proxy })
    }

    /// Where the store is reached.
    pub(crate) fn endpoint(&self, way: Way) -> String {
        let address = match way {
            Way::Straight => self.gateway.address,
            Way::Counted => self.store_proxy.address,
        };
        format!("http://{address}")
    }

    /// The settings of a Berth that uses it.
    pub(crate) fn settings(&self, way: Way) -> Settings {
        let redis = match way {
            Way::Straight => self.redis_address,
            Way::Counted => self.redis_proxy.address,
        };
        vec![
            ("BERTH_STORAGE__URL", format!("s3://{BUCKET}")),
            ("BERTH_STORAGE__S3__ENDPOINT", self.endpoint(way)),
            ("BERTH_STORAGE__S3__REGION", "us-east-1".to_owned()),
            ("BERTH_STORAGE__S3__ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("BERTH_INDEX__URL", format!("redis://{redis}")),
        ]
    }

    /// The processes of Redis and of the S3 server, in this order.
    pub(crate) fn processes(&self) -> Result<[u32; 2]> {
        let ended = "Redis or versitygw has ended";
        Ok([self.redis.id().context(ended)?, self.gateway.child.id().context(ended)?])
    }

    /// The memory that Redis has, in MiB.
    pub(crate) fn redis_memory(&self) -> Result<f64> {
        Ok(proc::memory(self.processes()?[0])?.resident)
    }

    /// What went by the proxies since the last call. Nothing may be under way.
    pub(crate) fn take(&self) -> Counts {
        let (store, redis) = (self.store_proxy.take(), self.redis_proxy.take());
        Counts { requests: store.requests, background: store.background, ..redis }
    }
}

/// The settings of a Berth in a directory; `sync` is whether it keeps to the disk what it acknowledges.
pub(crate) fn directory_settings(directory: &Path, sync: bool) -> Settings {
    let data: PathBuf = directory.join("data");
    vec![("BERTH_STORAGE__URL", format!("file:{}", data.display())), ("BERTH_STORAGE__SYNC", sync.to_string())]
}
