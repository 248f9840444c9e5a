//! `loadtest`: what registries cost, measured from the outside, on this machine, in one run. `products` has Berth
//! beside others, `compare` two commits of Berth; the other commands ask one question of Berth each.
//!
//! Servers are started here, as they ship, on empty directories and loopback. Each round loads them one after the
//! other, workload by workload, so that whatever else the machine does meets all alike; a figure is the median
//! of the rounds. What a request costs is read from the outside, as the CPU time that the system has charged to
//! the server's process. Nothing here is part of Berth, and nothing of Berth is used but its binary.

mod access;
mod backed;
mod client;
mod commits;
mod content;
mod cost;
mod counting;
mod description;
mod events;
mod goals;
mod ground;
mod growth;
mod growth_blobs;
mod growth_connections;
mod growth_names;
mod growth_plot;
mod growth_report;
mod instance;
mod instructions;
mod latency;
mod load;
mod login;
mod open;
mod plot;
mod plots;
mod proc;
mod products;
mod random;
mod ratio;
mod recover;
mod report;
mod requests;
mod server;
mod sink;
mod workload;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::server::Product;

/// Measures container registries on one machine.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load several registries in turn; print a table and goals, write JSON and plots.
    Products(products::Options),
    /// Build two commits of Berth and load them in turn; print by how much they differ, and how sure that is.
    Compare(commits::Options),
    /// Load Berth with and without tokens in turn; print a table.
    Access(Common),
    /// Push manifests to Berth with and without an endpoint that is told of them, in turn; print a table.
    Events(Common),
    /// Lose the index of a Berth over S3 and Redis; print what clients notice, and what filling a new one takes.
    Recover(recover::Options),
    /// Let a registry grow; print what an operation costs at each size.
    Growth(growth::Options),
    /// Load one to three replicas of Berth over S3 and Redis; print what an operation costs, and asks of those.
    Backed(backed::Options),
}

/// What every run needs.
#[derive(Debug, clap::Args)]
struct Common {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each workload of many small requests runs, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Berth's binary.
    #[arg(long, default_value = "target/release/berth")]
    berth: PathBuf,
    /// Where the servers keep their data: a file system like the one that you would use.
    #[arg(long, default_value = "target/loadtest")]
    data: PathBuf,
}

impl Common {
    fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Any run ends by itself after this long.
const AT_MOST: Duration = Duration::from_secs(3 * 60 * 60);

/// One thread drives everything: a generator that needs more than one core would take from the servers what it
/// is there to measure. Where that thread is busy, the report says so.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let run = async {
        match Arguments::parse().command {
            Command::Products(options) => products::measure(options).await,
            Command::Compare(options) => commits::measure(options).await,
            Command::Access(common) => {
                std::fs::create_dir_all(&common.data)?;
                access::measure(&Product::berth(&common.berth)?, &common.data, common.rounds, common.span()).await
            }
            Command::Events(common) => {
                events::measure(&Product::berth(&common.berth)?, &common.data, common.rounds, common.span()).await
            }
            Command::Recover(options) => recover::measure(&options).await,
            Command::Growth(options) => growth::measure(&options).await,
            Command::Backed(options) => backed::measure(&options).await,
        }
    };
    tokio::time::timeout(AT_MOST, run).await.context("the run took longer than three hours")?
}
