//! `loadtest products`: registries side by side, each on an empty directory, workload by workload.
//!
//! All servers of a round run at once, but only one is asked at a time; who comes first alternates.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::{
    Common, content, goals,
    load::Figures,
    proc,
    report::{Machine, Report, Round, shown},
    server::{Product, Server, Site},
    workload::{self, Setting, Workload},
};

/// What is compared unless something else is said.
const SERVERS: [&str; 3] =
    ["loadtest/servers/berth.toml", "loadtest/servers/berth-sync-off.toml", "loadtest/servers/distribution.toml"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    selection: Selection,
    /// A file that describes a registry; may be given several times. Without: Berth, Berth that doesn't sync, and
    /// CNCF Distribution.
    #[arg(long = "server")]
    servers: Vec<PathBuf>,
    /// Where the results go: <date>.json and plots.
    #[arg(long, default_value = "loadtest/results")]
    results: PathBuf,
}

/// What is measured of each server.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Only the workloads whose name contains one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Also what takes minutes to prepare: 100,000 tags in a repository, 100,000 repositories.
    #[arg(long)]
    pub(crate) slow: bool,
    /// How many requests a second arrive where the rate is fixed.
    #[arg(long, default_value_t = 500.0)]
    pub(crate) rate: f64,
}

/// Measures all of it, prints a table, and writes the results.
pub(crate) async fn measure(options: Options) -> Result<()> {
    let mut files = options.servers;
    if files.is_empty() {
        files = SERVERS.map(PathBuf::from).to_vec();
    }
    let products = files.iter().map(|file| Product::described(file, &options.common.berth));
    let products = products.collect::<Result<Vec<_>>>()?;
    let bench = Bench::new(products, &options.common, &options.selection)?;
    let report = bench.run(options.common.rounds).await?;
    println!("{}\n{}", report.table(), goals::judge(&report)?);
    println!("written to {}", report.write(&options.results)?.display());
    Ok(())
}

/// Products, and what is measured of them.
#[derive(Debug)]
pub(crate) struct Bench {
    products: Vec<Product>,
    data: PathBuf,
    workloads: Vec<Workload>,
    setting: Setting,
}

impl Bench {
    pub(crate) fn new(products: Vec<Product>, common: &Common, selection: &Selection) -> Result<Self> {
        ensure!(selection.rate > 0.0, "--rate: {}: must be more than 0", selection.rate);
        for (place, product) in products.iter().enumerate() {
            let is_new = products[..place].iter().all(|other| other.name() != product.name());
            ensure!(is_new, "two servers are called {}", product.name());
        }
        let workloads = workload::selected(&selection.only, selection.slow)?;
        let setting = Setting::new(common.span(), selection.rate);
        Ok(Self { products, data: common.data.clone(), workloads, setting })
    }

    /// All rounds.
    pub(crate) async fn run(&self, rounds: usize) -> Result<Report> {
        std::fs::create_dir_all(&self.data)?;
        let _site = Site::empty(&self.data)?;
        if self.workloads.iter().any(Workload::is_large) {
            content::warm_page_cache(&self.data, &self.setting.noise)?;
        }
        let mut report = Report::new(Machine::look(&self.data)?, &self.products)?;
        for number in 0..rounds {
            eprintln!("round {} of {rounds} (load average {})", number + 1, proc::load_average()?);
            report.rounds.push(self.round(number).await?);
        }
        report.summarise();
        Ok(report)
    }

    /// Measures everything once, on servers started for it.
    async fn round(&self, number: usize) -> Result<Round> {
        let mut order: Vec<usize> = (0..self.products.len()).collect();
        order.rotate_left(number % self.products.len().max(1));
        let mut round = Round { load_average: proc::load_average()?, samples: Vec::new() };
        let mut servers = Vec::new();
        for place in order {
            let (server, samples) = Server::start(&self.products[place], &self.data).await?;
            round.samples.extend(samples);
            workload::seed(&server).await.with_context(|| server.name().to_owned())?;
            servers.push(server);
        }
        let setting = self.setting.of_round(number);
        for workload in &self.workloads {
            eprint!("  {}", workload.name());
            for server in servers.iter().filter(|server| server.takes(workload.name())) {
                let figures = workload.measure(server, &setting).await;
                let figures = figures.with_context(|| format!("{} on {}", workload.name(), server.name()))?;
                let Some(figures) = figures else { continue };
                eprint!(" | {}: {}", server.name(), progress(&figures));
                round.samples.push(server.sample(workload.name(), figures));
            }
            eprintln!();
        }
        for server in servers {
            round.samples.push(server.stop().await?);
        }
        Ok(round)
    }
}

/// The first two figures, for who waits.
fn progress(figures: &Figures) -> String {
    shown(figures).take(2).map(|(unit, value)| format!("{unit} {value}")).collect::<Vec<_>>().join(", ")
}
