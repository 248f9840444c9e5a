//! Many connections: nodes that all start the same image, and those that only wait.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{Setting, pushes, reads};
use crate::{
    client::Client,
    content::{digest, manifest},
    latency::Recorder,
    load::{self, Figures, Meter},
    proc,
    server::Server,
};

/// How many nodes start at once.
const NODES: usize = 32;

/// Their image: so many layers of so many MiB.
const LAYERS: (usize, usize) = (5, 2);

const REPOSITORY: &str = "bench/start";

/// Connections that are only kept, as by proxies and idle clients.
const IDLE: usize = 1000;

/// Connections that all ask at once: half of the requests that Berth admits by default.
const ACTIVE: usize = 500;

/// All nodes pull the same image at once, each on a connection of its own that is new; one after the other they ask
/// for the tag, the manifest, and each blob.
pub(crate) async fn cold_start(server: &Server, setting: &Setting) -> Result<Figures> {
    let targets = push(server, setting).await?;
    let (mut tasks, recorder) = (JoinSet::new(), Recorder::new());
    let meter = Meter::start(server.pid)?;
    for _ in 0..NODES {
        let (targets, recorder, client) = (targets.clone(), recorder.clone(), server.connect().await?);
        tasks.spawn(async move {
            let began = Instant::now();
            node(client, targets).await?;
            recorder.record(began.elapsed());
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let spent = meter.stop().await?;
    let mut figures = spent.per_operation(&recorder.take(), "cpu_ms", 1e3);
    figures.remove("per_second");
    figures.insert("mib_per_second", (NODES * LAYERS.0 * LAYERS.1) as f64 / spent.seconds);
    Ok(figures)
}

/// Pushes the image; with what a node then asks for, and whether it only asks if it is there.
async fn push(server: &Server, setting: &Setting) -> Result<Vec<(&'static str, String)>> {
    let mut client = server.connect().await?;
    let layers: Vec<&[u8]> = (0..LAYERS.0).map(|layer| setting.noise.mebibytes(layer * LAYERS.1, LAYERS.1)).collect();
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let manifest = manifest(config, &layers);
    let path = |kind, reference: &str| format!("/v2/{REPOSITORY}/{kind}/{reference}");
    let mut targets = vec![
        ("GET", "/v2/".to_owned()),
        ("HEAD", path("manifests", "latest")),
        ("GET", path("manifests", &digest([&manifest[..]]))),
    ];
    for blob in [&config[..]].into_iter().chain(layers) {
        pushes::push_blob(&mut client, REPOSITORY, blob).await?;
        targets.push(("GET", path("blobs", &digest([blob]))));
    }
    pushes::put(&mut client, REPOSITORY, "latest", &manifest).await?;
    Ok(targets)
}

async fn node(mut client: Client, targets: Vec<(&'static str, String)>) -> Result<()> {
    for (method, target) in targets {
        let answer = match method {
            "HEAD" => client.ask("HEAD", &target).await?,
            _ => client.pull(&target).await?,
        };
        ensure!(answer.status == 200, "{method} {target} was answered by {}", answer.status);
    }
    Ok(())
}

/// What a connection holds that has had one answer and waits for its next request.
pub(crate) async fn idle(server: &Server) -> Result<Figures> {
    let requests = reads::requests(server, reads::Read::Version).await?.context("GET /v2/")?;
    let before = proc::memory(server.pid)?.resident;
    let clients = load::connect(server.address, IDLE, &requests).await?;
    let after = proc::memory(server.pid)?.resident;
    drop(clients);
    Ok(Figures::from([("kib_each", (after - before) * 1024.0 / IDLE as f64)]))
}

/// Many connections that all ask for a manifest by its tag.
pub(crate) async fn active(server: &Server, span: Duration) -> Result<Figures> {
    let requests = reads::by_tag(server).await?;
    let clients = load::connect(server.address, ACTIVE, &requests).await?;
    let (latencies, spent, clients) = load::repeat(clients, requests, span, server.pid).await?;
    let mut figures = spent.per_operation(&latencies, "cpu_us", 1e6);
    figures.insert("resident_mib", proc::memory(server.pid)?.resident);
    drop(clients);
    Ok(figures)
}
