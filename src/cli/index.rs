//! `berth index`: looks at the index, or fills a new one from the bucket.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, inspect::when, print};
use crate::{
    app,
    config::{Config, Loaded},
    index::facts::AdoptedRoster,
    inspect::{Counts, IndexState},
    reconcile::{self, Adopted, Walked},
    telemetry,
};

/// Look at the index, or fill a new one from the bucket.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Begin a new epoch with an empty index, make it the bucket's own, and fill it from the bucket.
    Rebuild(Rebuild),
    /// Print which index the bucket believes, and how much is in it. Changes nothing.
    Status(Status),
}

/// How to rebuild.
#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The bucket is a copy that kept no file times (cp, an upload to S3): take each tag, account and rule
    /// as its newest revision has it, whenever that was written. Nobody else may be using the bucket.
    #[arg(long)]
    copied: bool,
}

/// How to print the status.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Does one of them.
pub(super) fn run(command: &Command, loaded: Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Rebuild(how) => runtime.block_on(rebuild(&loaded.config, how)),
        Command::Status(status) => runtime.block_on(print_status(&loaded.config, status)),
    }
}

/// The progress and what dangles go to standard error, the sum to standard output.
async fn rebuild(config: &Config, how: &Rebuild) -> Result<(), Failure> {
    // What dangles is a warning of the log; that a new epoch has to be waited for is news from `epoch`.
    telemetry::init(telemetry::Format::Text, "warn,berth::epoch=info").map_err(io::Error::other)?;
    let registry = app::begin_rebuild(config).await?;
    if how.copied {
        let count = reconcile::restamp(&registry).await?;
        let _ = writeln!(
            io::stderr(),
            "{count} tags, accounts and rules written anew, because the copy has lost their times"
        );
    }
    let walked = reconcile::walk(&registry, |so_far| {
        let Walked { repositories, adopted: Adopted { links, manifests, tags, .. }, .. } = so_far.walked;
        let last = so_far.last.as_ref().map(ToString::to_string).unwrap_or_default();
        // Nobody may be listening; the rebuild goes on.
        let _ = writeln!(
            io::stderr(),
            "{repositories} repositories, up to {last} ({links} links, {manifests} manifests, {tags} tags)"
        );
    })
    .await?;
    let Walked { repositories, adopted: Adopted { links, manifests, tags, dangling }, roster } = walked;
    let AdoptedRoster { accounts, rules } = roster;
    let sum = format!(
        "repositories {repositories}\nlinks {links}\nmanifests {manifests}\ntags {tags}\ndangling {dangling}\naccounts {accounts}\nrules {rules}\n"
    );
    print(sum.as_bytes())?;
    if dangling > 0 { Err(Failure::Dangling(dangling)) } else { Ok(()) }
}

async fn print_status(config: &Config, status: &Status) -> Result<(), Failure> {
    let inspector = app::open_inspector(config).await?;
    let counts = inspector.counts().await?;
    if status.json {
        return print(format!("{:#}\n", json!({ "index": inspector.state(), "counts": counts })).as_bytes());
    }
    let mut text = describe(inspector.state());
    if let Some(Counts { repositories, uploads, intents, attempts, trash, trims, accounts, rules }) = counts {
        let _ = write!(
            text,
            "repositories {repositories}\nuploads {uploads}\nintents {intents}\nattempts {attempts}\ntrash {trash}\ntrims {trims}\naccounts {accounts}\nrules {rules}\n"
        );
    }
    print(text.as_bytes())
}

/// Which index was found, as lines.
pub(super) fn describe(state: &IndexState) -> String {
    match state {
        IndexState::Believed { epoch, identity, shards, since, settled } => {
            let settled = if *settled { "yes" } else { "no, it is still being filled from the bucket" };
            format!(
                "index: the bucket's own\nepoch {epoch} since {}\nidentity {identity}\nshards {shards}\nsettled {settled}\n",
                when(*since)
            )
        }
        IndexState::Other { epoch, identity } => {
            format!(
                "index: not the bucket's own, which is {identity} (epoch {epoch}); nothing that this one says counts\n"
            )
        }
        IndexState::Unserved { epoch } => {
            format!("index: empty, though the bucket names it (epoch {epoch}); `berth index rebuild` fills it\n")
        }
        IndexState::Unclaimed => "index: the bucket has never named one\n".to_owned(),
        IndexState::Missing => "index: there is none; `berth index rebuild` makes one\n".to_owned(),
        IndexState::Unreachable { why } => format!("index: not reachable ({why})\n"),
    }
}
