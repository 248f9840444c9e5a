//! `loadtest recover`: what is noticed when Redis is lost with everything in it, and what filling a new one takes.
//!
//! One Berth, over versitygw and a Redis that keeps nothing. The bucket is filled by pushes; then Redis is killed
//! and an empty one started in its place, while one client goes on pushing and some go on pulling.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::sleep,
};

use crate::{
    client::{Client, request},
    content::{Image, MANIFEST, digest},
    latency::{Latencies, Recorder},
    proc,
    server::{Product, Server, free_address},
    workload::{CONNECTIONS, begin_upload, created},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many repositories there are.
    #[arg(long, default_value_t = 100)]
    repositories: u64,
    /// How many manifests each has.
    #[arg(long, default_value_t = 200)]
    manifests: u64,
    /// How many tags point at each manifest.
    #[arg(long, default_value_t = 5)]
    tags: u64,
    /// Berth's binary.
    #[arg(long, default_value = "target/release/berth")]
    berth: PathBuf,
    /// Where the bucket is.
    #[arg(long, default_value = "target/loadtest")]
    data: PathBuf,
}

/// The keys of the bucket, which nobody else can reach.
pub(crate) const ACCESS_KEY: &str = "loadtest";
pub(crate) const SECRET_KEY: &str = "loadtest-secret";

/// How long pulls are measured before Redis is lost.
const BEFORE: Duration = Duration::from_secs(3);

/// And for how long from then on: less than the pause that the default settings make, so no index answers yet.
const WITHOUT: Duration = Duration::from_secs(20);

/// How often the one who pushes tries.
const PUSH_EVERY: Duration = Duration::from_millis(100);

/// What Berth says once its index knows the whole bucket.
const FILLED: &str = "the index was filled from the bucket";

/// Does it once and prints a table.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    let directory = std::path::absolute(&options.data)?.join("recover");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(directory.join("buckets/registry"))?;
    let (bucket, redis) = (Gateway::start(&directory).await?, free_address()?);
    let mut first_redis = start_redis(redis).await?;
    let product = Product::berth(&options.berth)?.with(&[
        ("BERTH_STORAGE__URL", "s3://registry"),
        ("BERTH_STORAGE__S3__ENDPOINT", &format!("http://{}", bucket.address)),
        ("BERTH_STORAGE__S3__REGION", "us-east-1"),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", ACCESS_KEY),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", SECRET_KEY),
        ("BERTH_INDEX__URL", &format!("redis://{redis}")),
    ]);
    let (server, _) = Server::start(&product, &options.data).await?;
    fill(&server, options).await?;

    let calm = pulls(server.address, options, Instant::now() + BEFORE).await?;
    let memory_before = proc::memory(server.pid)?;
    let lost = Instant::now();
    // Until it is gone no other can have its port.
    first_redis.kill().await?;
    let _second_redis = start_redis(redis).await?;
    let pulled = async {
        let suspect = pulls(server.address, options, lost + WITHOUT).await?;
        anyhow::Ok((suspect, bucket.requests()?))
    };
    let (pause, (suspect, asked_before)) = tokio::try_join!(first_push(server.address, lost), pulled)?;
    let filled = until_filled(&server, lost).await?;
    let (asked, memory) = (bucket.requests()? - asked_before, proc::memory(server.pid)?);
    let tags = options.repositories * options.manifests * options.tags;
    println!(
        "{tags} tags of {} manifests in {} repositories; load average {:.1}\n\n\
         | what | measured |\n|---|---|\n\
         | pushes pause | {pause:.1} s |\n\
         | a pull by tag, before: p50, p99 | {} |\n\
         | a pull by tag, in the 20 s after: p50, p99 | {} |\n\
         | the index knows the whole bucket again after | {filled:.0} s |\n\
         | requests to the store for that | {asked} |\n\
         | memory before; at most | {:.0} MiB; {:.0} MiB |",
        options.repositories * options.manifests,
        options.repositories,
        proc::load_average()?,
        calm.text(),
        suspect.text(),
        memory_before.resident,
        memory.peak,
    );
    server.stop().await?;
    drop(bucket);
    fs::remove_dir_all(&directory)?;
    Ok(())
}

/// An S3 server over a directory.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Its process, which ends with this.
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Gateway {
    /// One over `directory/buckets`, in which each directory is a bucket.
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let (address, log) = (free_address()?, directory.join("access.log"));
        let child = Command::new("versitygw")
            .args(["--port", &address.to_string(), "--access", ACCESS_KEY, "--secret", SECRET_KEY])
            .args(["--region", "us-east-1", "--quiet", "--keep-alive", "--access-log"])
            .arg(&log)
            .arg("posix")
            .arg(directory.join("buckets"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("versitygw is needed: scripts/setup-tests installs it")?;
        until_reachable(address).await?;
        Ok(Self { child, address, log })
    }

    /// How many it has answered.
    fn requests(&self) -> Result<usize> {
        Ok(fs::read_to_string(&self.log)?.lines().count())
    }
}

/// A Redis that keeps nothing on a disk.
pub(crate) async fn start_redis(address: SocketAddr) -> Result<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().context("redis-server is needed: scripts/setup-tests installs it")?;
    until_reachable(address).await?;
    Ok(child)
}

async fn until_reachable(address: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        ensure!(began.elapsed() < Duration::from_secs(20), "{address} doesn't answer");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn repository(number: u64) -> String {
    format!("recover/{number}")
}

/// Pushes everything: the same two blobs into each repository, and manifests that differ in a note.
async fn fill(server: &Server, options: &Options) -> Result<()> {
    let mut tasks = JoinSet::new();
    for client in 0..CONNECTIONS as u64 {
        let address = server.address;
        let mine: Vec<u64> = (client..options.repositories).step_by(CONNECTIONS).collect();
        let (manifests, tags) = (options.manifests, options.tags);
        tasks.spawn(async move {
            let mut connection = Client::connect(address).await?;
            for repository in mine {
                fill_one(&mut connection, &self::repository(repository), manifests, tags).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn fill_one(client: &mut Client, repository: &str, manifests: u64, tags: u64) -> Result<()> {
    let image = Image::new(0);
    for blob in [&image.layer, &image.config] {
        let target = begin_upload(client, repository, &digest([&blob[..]])).await?;
        created(&client.send("PUT", &target, "application/octet-stream", blob).await?)?;
    }
    for number in 0..manifests {
        let bytes = image.noted(number)?;
        let names: Vec<String> = (0..tags).map(|tag| format!("tag=m{number}-{tag}")).collect();
        let target = format!("/v2/{repository}/manifests/{}?{}", digest([&bytes[..]]), names.join("&"));
        created(&client.send("PUT", &target, MANIFEST, &bytes).await?)?;
    }
    Ok(())
}

/// The latencies of pulls.
struct Pulls(Latencies);

impl Pulls {
    fn text(&self) -> String {
        let milliseconds = |share| self.0.percentile(share);
        format!("{:.2} ms, {:.2} ms ({} pulls)", milliseconds(0.5), milliseconds(0.99), self.0.count())
    }
}

/// Pulls one tag after the other, every client in repositories of its own, until then. Each must be answered.
async fn pulls(address: SocketAddr, options: &Options, until: Instant) -> Result<Pulls> {
    let (mut tasks, recorder) = (JoinSet::new(), Recorder::new());
    for client in 0..CONNECTIONS as u64 {
        let (repositories, manifests) = (options.repositories, options.manifests);
        let recorder = recorder.clone();
        tasks.spawn(async move {
            let mut connection = Client::connect(address).await?;
            for pull in 0.. {
                if Instant::now() >= until {
                    break;
                }
                let place = client + pull * CONNECTIONS as u64;
                let (repository, number) = (repository(place % repositories), place / repositories % manifests);
                let target = format!("/v2/{repository}/manifests/m{number}-0");
                let began = Instant::now();
                let status = connection.exchange(request(address, "GET", &target, "", 0).as_bytes()).await?.status;
                ensure!(status == 200, "a pull was answered by {status}");
                recorder.record(began.elapsed());
                // Not as fast as possible: what is asked is how long one takes.
                sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(Pulls(recorder.take()))
}

/// How long after `lost` a push is acknowledged again, in seconds: the first that began after one was refused.
async fn first_push(address: SocketAddr, lost: Instant) -> Result<f64> {
    let image = Image::new(0);
    let mut was_refused = false;
    for number in 0.. {
        let bytes = image.noted(1 << 32 | number)?;
        let target = format!("/v2/{}/manifests/pushed-{number}", repository(0));
        let mut client = Client::connect(address).await?;
        let answer = client.send("PUT", &target, MANIFEST, &bytes).await;
        match answer {
            Ok(answer) if answer.status == 201 && was_refused => return Ok(lost.elapsed().as_secs_f64()),
            Ok(answer) if answer.status == 201 => {}
            _ => was_refused = true,
        }
        ensure!(lost.elapsed() < Duration::from_secs(120), "no push was acknowledged for two minutes");
        sleep(PUSH_EVERY).await;
    }
    unreachable!("the numbers don't end")
}

/// How long after `lost` the index is full again, in seconds.
async fn until_filled(server: &Server, lost: Instant) -> Result<f64> {
    loop {
        if server.log()?.contains(FILLED) {
            return Ok(lost.elapsed().as_secs_f64());
        }
        sleep(Duration::from_millis(200)).await;
    }
}
