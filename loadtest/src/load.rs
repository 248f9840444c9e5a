//! Many connections that do one thing over and over, and what that cost.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{task::JoinSet, time::sleep};

use crate::{client::Client, proc};

/// What a server gets after a load to finish what it does behind its answers (logs, its collector of garbage),
/// before its CPU time is read.
const SETTLE: Duration = Duration::from_millis(100);

/// How long a load of small requests runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// Figures by name; the name says the unit.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// The CPU time of all that is running, from when it was started.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    started: Instant,
    server: f64,
    own: f64,
    busy: f64,
}

/// What was spent while a meter ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Time on the clock, in seconds.
    pub(crate) seconds: f64,
    /// The server's CPU time, in seconds.
    pub(crate) server: f64,
    /// How much of a core this program used. It has one thread: near 1, it was the bottleneck.
    pub(crate) generator_cores: f64,
    /// How many cores were busy with something else.
    pub(crate) other_cores: f64,
}

impl Meter {
    pub(crate) fn start(pid: u32) -> Result<Self> {
        let (server, own, busy) = (proc::cpu_seconds(pid)?, proc::own_cpu_seconds()?, proc::busy_seconds()?);
        Ok(Self { pid, started: Instant::now(), server, own, busy })
    }

    pub(crate) async fn stop(self) -> Result<Spent> {
        let seconds = self.started.elapsed().as_secs_f64();
        let own = proc::own_cpu_seconds()? - self.own;
        sleep(SETTLE).await;
        let server = proc::cpu_seconds(self.pid)? - self.server;
        let others = proc::busy_seconds()? - self.busy - server - own;
        let watched = self.started.elapsed().as_secs_f64();
        Ok(Spent { seconds, server, generator_cores: own / seconds, other_cores: (others / watched).max(0.0) })
    }
}

impl Spent {
    /// What qualifies every other figure.
    pub(crate) fn circumstances(&self) -> Figures {
        Figures::from([("generator_cores", self.generator_cores), ("other_cores", self.other_cores)])
    }

    /// The figures of many operations. `scale` is what the CPU time of one is multiplied by, for its unit.
    pub(crate) fn per_operation(&self, latencies: &mut [u32], cpu: &'static str, scale: f64) -> Figures {
        latencies.sort_unstable();
        let mut figures = self.circumstances();
        figures.insert(cpu, self.server / latencies.len().max(1) as f64 * scale);
        figures.insert("per_second", latencies.len() as f64 / self.seconds);
        figures.insert("p50_ms", percentile(latencies, 0.5));
        figures.insert("p99_ms", percentile(latencies, 0.99));
        figures.insert("max_ms", percentile(latencies, 1.0));
        figures
    }
}

/// A percentile of sorted latencies in microseconds, in milliseconds. All latencies are kept, so it is exact.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).map_or(0.0, |&microseconds| f64::from(microseconds) / 1000.0)
}

/// The time since `started` in microseconds, as latencies are kept.
pub(crate) fn microseconds(started: Instant) -> u32 {
    u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Opens connections, and makes one request on each, so that the server has them for good.
pub(crate) async fn connect(address: SocketAddr, connections: usize, request: &[u8]) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut client = Client::connect(address).await?;
        ensure!(client.exchange(request).await?.status == 200, "the first request on a connection failed");
        clients.push(client);
    }
    Ok(clients)
}

/// Repeats one request on all connections: once to warm up, then for `span`, with its latencies in microseconds.
pub(crate) async fn repeat(
    clients: Vec<Client>,
    request: Vec<u8>,
    span: Duration,
    pid: u32,
) -> Result<(Vec<u32>, Spent, Vec<Client>)> {
    let request: Arc<[u8]> = request.into();
    let (_, clients) = all(clients, &request, WARM_UP).await?;
    let meter = Meter::start(pid)?;
    let (latencies, clients) = all(clients, &request, span).await?;
    Ok((latencies, meter.stop().await?, clients))
}

async fn all(clients: Vec<Client>, request: &Arc<[u8]>, span: Duration) -> Result<(Vec<u32>, Vec<Client>)> {
    let until = Instant::now() + span;
    let mut tasks = JoinSet::new();
    let connections = clients.len();
    for client in clients {
        tasks.spawn(one(client, Arc::clone(request), until));
    }
    let (mut latencies, mut clients) = (Vec::new(), Vec::with_capacity(connections));
    while let Some(done) = tasks.join_next().await {
        let (some, client) = done??;
        latencies.extend(some);
        clients.push(client);
    }
    Ok((latencies, clients))
}

async fn one(mut client: Client, request: Arc<[u8]>, until: Instant) -> Result<(Vec<u32>, Client)> {
    let mut latencies = Vec::new();
    loop {
        let started = Instant::now();
        if started >= until {
            return Ok((latencies, client));
        }
        let status = client.exchange(&request).await?.status;
        ensure!(status == 200, "the answer was {status}");
        latencies.push(microseconds(started));
    }
}

/// Makes each of these requests once, with their latencies in microseconds.
pub(crate) async fn each_once(mut client: Client, requests: Vec<Vec<u8>>) -> Result<Vec<u32>> {
    let mut latencies = Vec::with_capacity(requests.len());
    for request in requests {
        let started = Instant::now();
        let status = client.exchange(&request).await?.status;
        ensure!(status == 200, "the answer was {status}");
        latencies.push(microseconds(started));
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let sorted: Vec<u32> = (1..=200).map(|place| place * 1000).collect();
        assert_eq!(percentile(&sorted, 0.5), 100.0);
        assert_eq!(percentile(&sorted, 0.99), 198.0);
        assert_eq!(percentile(&sorted, 1.0), 200.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
