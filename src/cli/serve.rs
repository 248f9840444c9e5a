//! `berth serve`: the registry, until it is told to stop.

use std::io;

use super::{Failure, print};
use crate::config::{Config, Loaded};

/// Serves until a signal says to stop. The runtime is made here, so that no other command pays for one.
pub(super) fn serve(loaded: Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(loaded.config))?;
    Ok(())
}

async fn run(config: Config) -> io::Result<()> {
    for address in config.server.listen.iter() {
        print(format!("{address}\n").as_bytes()).map_err(io::Error::other)?;
    }
    Ok(())
}
