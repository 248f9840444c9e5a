//! Connections, from ten to ten thousand: what one costs that waits, and what a request costs while all of them ask.
//!
//! Each size has a process of its own: what an allocator has got from the system once, it gives to whoever comes next.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::time::sleep;

use crate::{
    client::Client,
    cost::{Crowd, Extent, Manifest, Operation, put},
    ground::directory_settings,
    growth::Options,
    growth_report::{Point, Report},
    instance::{Instance, empty_directory, raise_file_limit},
    proc,
};

/// As many connections as there may be, and as many requests in flight, with some to spare.
const ALLOWED: u64 = 12_000;

/// What a connection has before it counts as idle, for the server to settle.
const IDLE: Duration = Duration::from_secs(1);

/// The one manifest that all ask for.
const TARGET: &str = "/v2/grow/connections/manifests/latest";

/// Measures every size in turn, `rounds` times.
pub(crate) async fn measure(options: &Options, sizes: &[u64], report: &mut Report) -> Result<()> {
    raise_file_limit(ALLOWED)?;
    let directory = empty_directory(&options.data, "growth")?;
    for &size in sizes {
        let mut point = Point::at(size)?;
        for _ in 0..options.rounds {
            idle(options, &directory, &mut point).await?;
            active(options, &directory, &mut point).await?;
        }
        report.add(point)?;
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// As it ships, but for what would turn the last connections away.
async fn start(options: &Options, directory: &Path) -> Result<Instance> {
    let mut settings = directory_settings(directory, true);
    settings.push(("BERTH_LIMITS__CONNECTIONS", ALLOWED.to_string()));
    settings.push(("BERTH_LIMITS__REQUESTS", ALLOWED.to_string()));
    let berth = Instance::berth(&options.berth, &settings, &directory.join("log")).await?;
    let Manifest { target, media_type, bytes } = Manifest::empty_index(TARGET.to_owned(), 0);
    let mut client = Client::connect(berth.address).await?;
    put(&mut client, &target, media_type, &bytes).await?;
    Ok(berth)
}

/// Connections that have had one answer each, and wait.
async fn idle(options: &Options, directory: &Path, point: &mut Point) -> Result<()> {
    let berth = start(options, directory).await?;
    sleep(IDLE).await;
    let before = proc::memory(berth.pid)?.resident;
    let mut clients = Vec::new();
    for _ in 0..point.size {
        let mut client = Client::connect(berth.address).await?;
        ensure!(client.ask("GET", TARGET).await?.status == 200, "a connection was turned away");
        clients.push(client);
    }
    sleep(IDLE).await;
    let after = proc::memory(berth.pid)?.resident;
    drop(clients);
    point.note("idle: memory, MiB".to_owned(), after);
    point.note("idle: each, KiB".to_owned(), (after - before) * 1024.0 / point.size as f64);
    berth.stop().await
}

/// Connections that all ask for the same manifest, each as soon as it has been answered.
async fn active(options: &Options, directory: &Path, point: &mut Point) -> Result<()> {
    let berth = start(options, directory).await?;
    sleep(IDLE).await;
    let before = proc::memory(berth.pid)?.resident;
    let crowd = Crowd { addresses: vec![berth.address], connections: usize::try_from(point.size)? };
    let get = Arc::new(Operation::get(|_| TARGET.to_owned()));
    let seen = crowd.repeat(&get, 0, Extent::For(options.span()), &[berth.pid]).await?;
    let peak = proc::memory(berth.pid)?.peak;
    point.note("active: memory, MiB".to_owned(), peak);
    point.note("active: each, KiB".to_owned(), (peak - before) * 1024.0 / point.size as f64);
    point.note("active: CPU, µs".to_owned(), seen.cpu_us(0..1));
    point.note("active: per second".to_owned(), seen.per_second());
    point.note("active: p50, ms".to_owned(), seen.percentile(0.5));
    point.note("active: p99, ms".to_owned(), seen.percentile(0.99));
    point.note("active: generator, cores".to_owned(), seen.generator);
    berth.stop().await
}
