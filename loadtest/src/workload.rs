//! What is asked of a registry, and how each is measured.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::{
    client::{Answer, Client, request},
    content::{Image, LARGE, MANIFEST, Noise, digest},
    load::{self, Figures, Meter, microseconds},
    proc,
    report::Sample,
    server::Server,
};

/// How many clients ask at once, as a busy cluster's nodes do.
pub(crate) const CONNECTIONS: usize = 16;

/// Connections that are only kept, as by proxies and idle clients.
const IDLE: usize = 1000;

/// Connections that all ask at once: half of the requests that Berth admits by default.
const ACTIVE: usize = 500;

/// The repository that is read from.
pub(crate) const REPOSITORY: &str = "bench/image";

/// How many repositories each client pushes small images into, in turn.
const REPOSITORIES: u64 = 8;

/// One thing that is measured.
#[derive(Debug)]
pub(crate) struct Workload {
    name: &'static str,
    task: Task,
    /// How long it runs, where it runs for a time.
    span: Duration,
}

#[derive(Debug)]
enum Task {
    /// The same GET, over and over, on so many connections.
    Get { target: String, connections: usize },
    /// Small images, from the one of this number on, each new in all its parts.
    Images { first: u64 },
    /// A large blob, pushed by POST and PUT.
    Push(Large),
    /// The same blob, pulled.
    Pull(Large),
    /// Connections without requests.
    Idle,
}

/// The large blob of a round.
#[derive(Clone, Debug)]
struct Large {
    noise: Arc<Noise>,
    number: [u8; 8],
    digest: String,
}

impl Workload {
    /// All of a round. Every round has content of its own, so that nothing is there already.
    pub(crate) fn all(round: usize, noise: &Arc<Noise>, span: Duration) -> Vec<Self> {
        let image = Image::new(0);
        let number = (round as u64 + 1).to_le_bytes();
        let large = Large { noise: Arc::clone(noise), number, digest: digest(noise.pieces(&number)) };
        let path = |kind, reference: &str| format!("/v2/{REPOSITORY}/{kind}/{reference}");
        let get = |target, connections| Task::Get { target, connections };
        let by_tag = path("manifests", "latest");
        let tasks = [
            ("GET /v2/", get("/v2/".to_owned(), CONNECTIONS)),
            ("manifest by tag", get(by_tag.clone(), CONNECTIONS)),
            ("manifest by digest", get(path("manifests", &digest([&image.manifest[..]])), CONNECTIONS)),
            ("blob of 1 KiB", get(path("blobs", &digest([&image.layer[..]])), CONNECTIONS)),
            ("push of a small image", Task::Images { first: (round as u64 + 1) << 32 }),
            ("push of 1 GiB", Task::Push(large.clone())),
            ("pull of 1 GiB", Task::Pull(large)),
            ("1,000 idle connections", Task::Idle),
            ("500 active connections", get(by_tag, ACTIVE)),
        ];
        tasks.into_iter().map(|(name, task)| Self { name, task, span }).collect()
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Measures it once.
    pub(crate) async fn measure(&self, server: &Server) -> Result<Sample> {
        let figures = match &self.task {
            Task::Get { target, connections } => get(server, target, *connections, self.span).await?,
            Task::Images { first } => images(server, *first, self.span).await?,
            Task::Push(large) => push(server, large).await?,
            Task::Pull(large) => pull(server, large).await?,
            Task::Idle => idle(server).await?,
        };
        Ok(server.sample(self.name, figures))
    }
}

/// Pushes the image that is read by the others.
pub(crate) async fn seed(server: &Server) -> Result<()> {
    push_image(&mut Client::connect(server.address).await?, REPOSITORY, "latest", &Image::new(0)).await
}

async fn get(server: &Server, target: &str, connections: usize, span: Duration) -> Result<Figures> {
    let bytes = request(server.address, "GET", target, "", 0).into_bytes();
    let clients = load::connect(server.address, connections, &bytes).await?;
    let (mut latencies, spent, clients) = load::repeat(clients, bytes, span, server.pid).await?;
    let mut figures = spent.per_operation(&mut latencies, "cpu_us", 1e6);
    figures.insert("resident_mib", proc::memory(server.pid)?.resident);
    drop(clients);
    Ok(figures)
}

async fn images(server: &Server, first: u64, span: Duration) -> Result<Figures> {
    let meter = Meter::start(server.pid)?;
    let until = Instant::now() + span;
    let mut tasks = JoinSet::new();
    for client in 0..CONNECTIONS as u64 {
        tasks.spawn(push_images(server.address, client, first + (client << 20), until));
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    Ok(meter.stop().await?.per_operation(&mut latencies, "cpu_ms", 1e3))
}

/// One client's images; the latencies are of whole images, in microseconds.
async fn push_images(address: SocketAddr, client: u64, first: u64, until: Instant) -> Result<Vec<u32>> {
    let mut connection = Client::connect(address).await?;
    let mut latencies = Vec::new();
    for number in first.. {
        if Instant::now() >= until {
            break;
        }
        let image = Image::new(number);
        let repository = format!("bench/{client}/{}", number % REPOSITORIES);
        let started = Instant::now();
        push_image(&mut connection, &repository, &format!("v{number}"), &image).await?;
        latencies.push(microseconds(started));
    }
    Ok(latencies)
}

/// Five requests: POST and PUT for the layer and for the config, and the manifest under its tag.
async fn push_image(client: &mut Client, repository: &str, tag: &str, image: &Image) -> Result<()> {
    for blob in [&image.layer, &image.config] {
        let target = begin_upload(client, repository, &digest([&blob[..]])).await?;
        created(&client.send("PUT", &target, "application/octet-stream", blob).await?)?;
    }
    let target = format!("/v2/{repository}/manifests/{tag}");
    created(&client.send("PUT", &target, MANIFEST, &image.manifest).await?)
}

/// Where the closing PUT of a new upload goes.
pub(crate) async fn begin_upload(client: &mut Client, repository: &str, digest: &str) -> Result<String> {
    let answer = client.ask("POST", &format!("/v2/{repository}/blobs/uploads/")).await?;
    ensure!(answer.status == 202, "an upload's POST was answered by {}", answer.status);
    let location = answer.location.context("an upload without a Location")?;
    let joint = if location.contains('?') { '&' } else { '?' };
    Ok(format!("{location}{joint}digest={digest}"))
}

pub(crate) fn created(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 201, "a PUT was answered by {}", answer.status);
    Ok(())
}

async fn push(server: &Server, large: &Large) -> Result<Figures> {
    let mut client = Client::connect(server.address).await?;
    let meter = Meter::start(server.pid)?;
    let target = begin_upload(&mut client, "bench/large", &large.digest).await?;
    created(&client.stream("PUT", &target, &large.noise.pieces(&large.number)).await?)?;
    transferred(meter).await
}

async fn pull(server: &Server, large: &Large) -> Result<Figures> {
    let mut client = Client::connect(server.address).await?;
    let meter = Meter::start(server.pid)?;
    let answer = client.ask("GET", &format!("/v2/bench/large/blobs/{}", large.digest)).await?;
    ensure!(answer.status == 200 && answer.length == LARGE, "{} with {} bytes", answer.status, answer.length);
    transferred(meter).await
}

async fn transferred(meter: Meter) -> Result<Figures> {
    let spent = meter.stop().await?;
    let mut figures = spent.circumstances();
    figures.insert("cpu_s", spent.server);
    figures.insert("mib_per_second", LARGE as f64 / f64::from(1 << 20) / spent.seconds);
    Ok(figures)
}

/// What a connection holds that has had one answer and waits for its next request.
async fn idle(server: &Server) -> Result<Figures> {
    let bytes = request(server.address, "GET", "/v2/", "", 0).into_bytes();
    let before = proc::memory(server.pid)?.resident;
    let clients = load::connect(server.address, IDLE, &bytes).await?;
    let after = proc::memory(server.pid)?.resident;
    drop(clients);
    let each = (after - before) * 1024.0 / IDLE as f64;
    Ok(Figures::from([("kib_each", each), ("resident_mib", after)]))
}
