//! Many connections that ask over and over, each as soon as it was answered, and what that cost.
//!
//! Such a load is as fast as the server; one that arrives at a fixed rate is in `open`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client::Client,
    latency::{Latencies, Recorder},
    proc,
    requests::Requests,
};

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
    pub(crate) fn per_operation(&self, latencies: &Latencies, cpu: &'static str, scale: f64) -> Figures {
        let mut figures = self.circumstances();
        latencies.describe(&mut figures);
        figures.insert(cpu, self.server / latencies.count().max(1) as f64 * scale);
        figures.insert("per_second", latencies.count() as f64 / self.seconds);
        figures
    }
}

/// Opens connections, and makes one request on each, so that the server has them for good.
pub(crate) async fn connect(address: SocketAddr, connections: usize, requests: &Requests) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut client = Client::connect(address).await?;
        requests.first().make(&mut client).await?;
        clients.push(client);
    }
    Ok(clients)
}

/// Asks on all connections: once to warm up, then for `span`.
pub(crate) async fn repeat(
    clients: Vec<Client>,
    requests: impl Into<Requests>,
    span: Duration,
    pid: u32,
) -> Result<(Latencies, Spent, Vec<Client>)> {
    let requests = Arc::new(requests.into());
    let (_, clients) = all(clients, &requests, WARM_UP).await?;
    let meter = Meter::start(pid)?;
    let (latencies, clients) = all(clients, &requests, span).await?;
    Ok((latencies, meter.stop().await?, clients))
}

async fn all(clients: Vec<Client>, requests: &Arc<Requests>, span: Duration) -> Result<(Latencies, Vec<Client>)> {
    let (until, recorder) = (Instant::now() + span, Recorder::new());
    let mut tasks = JoinSet::new();
    let connections = clients.len();
    for (number, client) in clients.into_iter().enumerate() {
        tasks.spawn(one(client, number, Arc::clone(requests), until, recorder.clone()));
    }
    let mut clients = Vec::with_capacity(connections);
    while let Some(done) = tasks.join_next().await {
        clients.push(done??);
    }
    Ok((recorder.take(), clients))
}

async fn one(
    mut client: Client,
    number: usize,
    requests: Arc<Requests>,
    until: Instant,
    recorder: Recorder,
) -> Result<Client> {
    for request in requests.walk(number) {
        let started = Instant::now();
        if started >= until {
            break;
        }
        request.make(&mut client).await?;
        recorder.record(started.elapsed());
    }
    Ok(client)
}

/// Makes each of these requests once, and gives back how long each took.
pub(crate) async fn each_once(mut client: Client, requests: Vec<Vec<u8>>) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(requests.len());
    for request in requests {
        let started = Instant::now();
        let status = client.exchange(&request).await?.status;
        ensure!(status == 200, "the answer was {status}");
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}
