//! What one operation costs: one thing done over and over on some connections, for a time or so many times, with
//! the CPU time that processes were charged meanwhile.
//!
//! It must not start or choose what is measured.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    client::{Client, request},
    content::{Image, MANIFEST, digest},
    proc,
};

/// What a server gets to finish what it does behind its answers before its CPU time is read.
const SETTLE: Duration = Duration::from_millis(100);

/// The media type of an image index, which may name nothing at all: the smallest thing that a tag can point at.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How often a manifest that fills is tried again, a second later each time.
const PATIENCE: usize = 60;

/// The target of an operation by its number.
type Target = Box<dyn Fn(u64) -> String + Send + Sync>;

/// What is put where.
pub(crate) struct Manifest {
    pub(crate) target: String,
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl Manifest {
    /// One that needs no blob and is like no other number's.
    pub(crate) fn empty_index(target: String, number: u64) -> Self {
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": { "number": number.to_string() },
        });
        Self { target, media_type: INDEX, bytes: index.to_string().into_bytes() }
    }
}

/// What is done over and over. Every time has a number of its own, from 0 on.
pub(crate) enum Operation {
    /// A GET or HEAD, which must be answered by this status.
    Ask { method: &'static str, target: Target, status: u16 },
    /// A PUT of a manifest.
    Put(Box<dyn Fn(u64) -> Manifest + Send + Sync>),
    /// The same, tried again while the registry is unavailable: for what is only there to be measured later.
    Fill(Box<dyn Fn(u64) -> Manifest + Send + Sync>),
    /// A small image, new in all its parts, from this number on: five requests.
    Push { first: u64 },
}

impl Operation {
    /// A GET that is answered by 200.
    pub(crate) fn get(target: impl Fn(u64) -> String + Send + Sync + 'static) -> Self {
        Self::Ask { method: "GET", target: Box::new(target), status: 200 }
    }

    async fn perform(&self, client: &mut Client, address: SocketAddr, number: u64) -> Result<()> {
        match self {
            Self::Ask { method, target, status } => {
                let head = request(address, method, &target(number), "", 0);
                let answer = client.exchange(head.as_bytes()).await?;
                ensure!(answer.status == *status, "{method} {} was answered by {}", target(number), answer.status);
            }
            Self::Put(manifest) => {
                let Manifest { target, media_type, bytes } = manifest(number);
                put(client, &target, media_type, &bytes).await?;
            }
            Self::Fill(manifest) => {
                let Manifest { target, media_type, bytes } = manifest(number);
                for _ in 0..PATIENCE {
                    match client.send("PUT", &target, media_type, &bytes).await?.status {
                        201 => return Ok(()),
                        503 => sleep(Duration::from_secs(1)).await,
                        other => bail!("PUT {target} was answered by {other}"),
                    }
                }
                bail!("the registry was unavailable for a minute");
            }
            Self::Push { first } => push_image(client, first + number).await?,
        }
        Ok(())
    }
}

/// Puts a blob or manifest, which must be taken.
pub(crate) async fn put(client: &mut Client, target: &str, media_type: &str, bytes: &[u8]) -> Result<()> {
    let answer = client.send("PUT", target, media_type, bytes).await?;
    ensure!(answer.status == 201, "PUT {target} was answered by {}", answer.status);
    Ok(())
}

/// How many repositories small images go into, in turn.
const REPOSITORIES: u64 = 128;

async fn push_image(client: &mut Client, number: u64) -> Result<()> {
    let (image, repository) = (Image::new(number), format!("small/{}", number % REPOSITORIES));
    for blob in [&image.layer, &image.config] {
        let target = upload(client, &repository, &digest([&blob[..]])).await?;
        put(client, &target, "application/octet-stream", blob).await?;
    }
    put(client, &format!("/v2/{repository}/manifests/v{number}"), MANIFEST, &image.manifest).await
}

/// Begins an upload; with where the PUT goes that brings all its bytes.
pub(crate) async fn upload(client: &mut Client, repository: &str, digest: &str) -> Result<String> {
    let answer = client.ask("POST", &format!("/v2/{repository}/blobs/uploads/")).await?;
    let Some(location) = answer.location.filter(|_| answer.status == 202) else {
        bail!("an upload's POST was answered by {}", answer.status);
    };
    let joint = if location.contains('?') { '&' } else { '?' };
    Ok(format!("{location}{joint}digest={digest}"))
}

/// Spreads numbers evenly and without an order over `0..count`.
pub(crate) fn anywhere(number: u64, count: u64) -> u64 {
    // The golden ratio of 2^64, as in Fibonacci hashing; the upper bits are the ones that are well mixed.
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count
}

/// How long something is repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    For(Duration),
    Times(u64),
}

/// Some connections, dealt out among these servers.
#[derive(Clone, Debug)]
pub(crate) struct Crowd {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) connections: usize,
}

/// What was seen while an operation was repeated.
#[derive(Debug)]
pub(crate) struct Seen {
    /// How long each took, in microseconds, sorted.
    latencies: Vec<u32>,
    seconds: f64,
    /// The CPU time of each process that was watched, in seconds.
    cpu: Vec<f64>,
    /// The share of its one core that the thread used which asked. Near 1, it was the bottleneck.
    pub(crate) generator: f64,
}

impl Seen {
    pub(crate) fn operations(&self) -> u64 {
        self.latencies.len() as u64
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.operations() as f64 / self.seconds
    }

    /// The CPU time of one operation in some of the processes that were watched, in microseconds.
    pub(crate) fn cpu_us(&self, processes: std::ops::Range<usize>) -> f64 {
        self.cpu[processes].iter().sum::<f64>() * 1e6 / self.latencies.len().max(1) as f64
    }

    /// A percentile of all latencies, in milliseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let place = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies.get(place.saturating_sub(1)).map_or(0.0, |&latency| f64::from(latency) / 1000.0)
    }
}

impl Crowd {
    /// Repeats an operation, whose first number is `first`, and watches the CPU time of these processes.
    pub(crate) async fn repeat(
        &self,
        operation: &Arc<Operation>,
        first: u64,
        extent: Extent,
        watched: &[u32],
    ) -> Result<Seen> {
        let mut clients = Vec::with_capacity(self.connections);
        for number in 0..self.connections {
            let address = self.addresses[number % self.addresses.len()];
            let mut client = Client::connect(address).await?;
            ensure!(client.ask("GET", "/v2/").await?.status == 200, "a new connection was refused");
            clients.push((client, address));
        }
        let before = cpu_of(watched)?;
        let (began, own) = (Instant::now(), own_thread());
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (client, address) in clients {
            tasks.spawn(one(client, address, Arc::clone(operation), first, Arc::clone(&next), extent));
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        let (seconds, generator) = (began.elapsed().as_secs_f64(), own_thread() - own);
        sleep(SETTLE).await;
        let cpu = cpu_of(watched)?.iter().zip(before).map(|(after, before)| after - before).collect();
        latencies.sort_unstable();
        Ok(Seen { latencies, seconds, cpu, generator: generator / seconds })
    }
}

async fn one(
    mut client: Client,
    address: SocketAddr,
    operation: Arc<Operation>,
    first: u64,
    next: Arc<AtomicU64>,
    extent: Extent,
) -> Result<Vec<u32>> {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    loop {
        let (number, started) = (next.fetch_add(1, Ordering::Relaxed), Instant::now());
        let over = match extent {
            Extent::For(span) => started - began >= span,
            Extent::Times(times) => number >= times,
        };
        if over {
            return Ok(latencies);
        }
        operation.perform(&mut client, address, first + number).await?;
        latencies.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

fn cpu_of(processes: &[u32]) -> Result<Vec<f64>> {
    processes.iter().map(|&pid| proc::cpu_seconds(pid)).collect()
}

/// The CPU time of this thread, which is the one that asks; what counts beside it has threads of its own.
fn own_thread() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anywhere_is_within_and_all_over() {
        let mut quarters = [0; 4];
        for number in 0..1000 {
            let place = anywhere(number, 1000);
            assert!(place < 1000);
            quarters[place as usize / 250] += 1;
        }
        assert!(quarters.iter().all(|&count| count > 150), "{quarters:?}");
    }

    #[test]
    fn costs_are_of_one_operation() {
        let latencies = (1..=100).map(|place| place * 1000).collect();
        let seen = Seen { latencies, seconds: 2.0, cpu: vec![0.001, 0.002, 0.5], generator: 0.5 };
        assert_eq!((seen.operations(), seen.per_second()), (100, 50.0));
        assert!((seen.cpu_us(0..2) - 30.0).abs() < 1e-9);
        assert_eq!((seen.percentile(0.5), seen.percentile(0.99)), (50.0, 99.0));
    }
}
