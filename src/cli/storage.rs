//! `berth storage`: tries on the configured bucket what Berth assumes of a store.

use clap::Subcommand;
use futures_util::{StreamExt, stream};

use super::{Failure, print};
use crate::{
    app,
    config::{Config, Loaded},
    storage::contract::{Kept, Promise},
};

/// Try whether the store is what Berth needs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Try each promise that Berth rests on, with objects of its own under probe/ that it removes again. A line says
    /// for each whether it is kept, and what would break without it. Safe beside running servers.
    Check,
}

/// Does one of them.
pub(super) fn run(command: &Command, loaded: &Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Check => runtime.block_on(check(&loaded.config)),
    }
}

/// Some wait until something has expired, so all are tried side by side; they are told in their order.
async fn check(config: &Config) -> Result<(), Failure> {
    let subject = app::open_subject(config).await?;
    let mut broken = 0;
    let tried = stream::iter(Promise::ALL).map(|promise| {
        let subject = &subject;
        async move { (promise, promise.try_on(subject).await) }
    });
    let mut tried = tried.buffered(Promise::ALL.len());
    let mut printed = Ok(());
    while let Some((promise, kept)) = tried.next().await {
        let line = match kept {
            Ok(Kept::Yes) => format!("ok     {}\n", promise.says()),
            Ok(Kept::NotAsked) => format!("       (not asked of a directory: {})\n", promise.says()),
            Err(why) => {
                broken += 1;
                format!("FAILS  {}: {why}\n       {}\n", promise.says(), promise.without_it())
            }
        };
        // What was written is removed even where nobody reads this.
        printed = printed.and(print(line.as_bytes()));
    }
    drop(tried);
    subject.clean().await.map_err(|error| Failure::Refused(format!("what the check wrote is still there: {error}")))?;
    printed?;
    match broken {
        0 => Ok(()),
        broken => Err(Failure::Broken(broken)),
    }
}
