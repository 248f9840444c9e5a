//! `loadtest compare`: Berth beside CNCF Distribution, on this machine, in one run. (`loadtest access` is Berth
//! alone, with tokens and without; `loadtest events` the same with endpoints and without.)
//!
//! Both are started here, as they ship, on empty directories and loopback. Each round loads them one after the
//! other, workload by workload, so that whatever else the machine does meets both alike; a figure is the median
//! of the rounds. What a request costs is read from the outside, as the CPU time that the system has charged to
//! the server's process. Nothing here is part of Berth, and nothing of Berth is used but its binary.

mod access;
mod backed;
mod client;
mod content;
mod cost;
mod counting;
mod events;
mod ground;
mod growth;
mod growth_blobs;
mod growth_connections;
mod growth_names;
mod growth_plot;
mod growth_report;
mod instance;
mod load;
mod proc;
mod recover;
mod report;
mod server;
mod sink;
mod workload;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{
    content::Noise,
    report::{Machine, Report, Round},
    server::{Product, Server},
    workload::Workload,
};

/// Compares container registries on one machine.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load Berth and CNCF Distribution in turn; print a table and write a JSON file.
    Compare(Compare),
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

#[derive(Debug, clap::Args)]
struct Compare {
    #[command(flatten)]
    common: Common,
    /// Only the workloads whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Distribution's binary; without, the right version is installed into target/tools.
    #[arg(long)]
    distribution: Option<PathBuf>,
    /// Where the results go, as <date>.json.
    #[arg(long, default_value = "loadtest/results")]
    results: PathBuf,
}

impl Common {
    fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Any run ends by itself after this long.
const AT_MOST: Duration = Duration::from_secs(40 * 60);

/// One thread drives everything: a generator that needs more than one core would take from the servers what it
/// is there to measure. Where that thread is busy, the report says so.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let run = async {
        match Arguments::parse().command {
            Command::Compare(options) => compare(options).await,
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
    tokio::time::timeout(AT_MOST, run).await.context("the run took longer than 40 minutes")?
}

async fn compare(options: Compare) -> Result<()> {
    let products = [Product::berth(&options.common.berth)?, Product::distribution(options.distribution.as_deref())?];
    let noise = Arc::new(Noise::new());
    std::fs::create_dir_all(&options.common.data)?;
    content::warm_page_cache(&options.common.data, &noise)?;
    let mut report = Report::new(Machine::look(&options.common.data)?, &products)?;
    for number in 0..options.common.rounds {
        eprintln!("round {} of {} (load average {})", number + 1, options.common.rounds, proc::load_average()?);
        report.rounds.push(round(&options, &products, number, &noise).await?);
    }
    report.summarise();
    println!("{}", report.table());
    let path = report.write(&options.results)?;
    println!("written to {}", path.display());
    Ok(())
}

/// Measures everything once, on servers started for it. Who comes first alternates.
async fn round(options: &Compare, products: &[Product], number: usize, noise: &Arc<Noise>) -> Result<Round> {
    let mut order: Vec<usize> = (0..products.len()).collect();
    order.rotate_left(number % products.len());
    let mut round = Round { load_average: proc::load_average()?, samples: Vec::new() };
    let mut servers = Vec::new();
    for &place in &order {
        let (server, samples) = Server::start(&products[place], &options.common.data).await?;
        round.samples.extend(samples);
        servers.push(server);
    }
    let workloads = Workload::all(number, noise, Duration::from_secs_f64(options.common.seconds));
    for server in &servers {
        workload::seed(server).await?;
    }
    for workload in workloads.iter().filter(|workload| workload.name().contains(&options.only)) {
        for server in &servers {
            let sample = workload.measure(server).await;
            round.samples.push(sample.with_context(|| format!("{} on {}", workload.name(), server.name()))?);
        }
    }
    for server in servers {
        round.samples.push(server.stop().await?);
    }
    Ok(round)
}
