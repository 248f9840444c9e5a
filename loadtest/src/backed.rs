//! `loadtest backed`: Berth over versitygw and Redis, by one to three replicas, and CNCF Distribution over versitygw
//! beside it.
//!
//! In each round every one of them is started on an empty bucket, in turn. Time and CPU are measured with nothing in
//! between; then all of it is started once more behind proxies, which count what is asked of the store and of Redis.
//! Replicas share this machine's cores, so their throughput says nothing: what each operation costs and asks does.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use chrono::Utc;
use serde::Serialize;
use tokio::process::Command;

use crate::{
    client::Client,
    content::{Image, MANIFEST, digest},
    cost::{Crowd, Extent, Manifest, Operation, anywhere, put, upload},
    ground::{BUCKET, Bucket, Way},
    growth_report::{median, spread},
    instance::{Instance, empty_directory},
    proc,
    recover::{ACCESS_KEY, SECRET_KEY},
    server::free_address,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each workload runs, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The most replicas of Berth.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// Berth's binary.
    #[arg(long, default_value = "target/release/berth")]
    berth: PathBuf,
    /// Distribution's binary, to measure it as well; `loadtest compare` installs it as target/tools/registry.
    #[arg(long)]
    distribution: Option<PathBuf>,
    /// Where the buckets are.
    #[arg(long, default_value = "target/loadtest")]
    data: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = "loadtest/results")]
    results: PathBuf,
}

/// How many clients ask at once.
const CONNECTIONS: usize = 16;

/// How many tags the repository has that is read.
const TAGS: u64 = 2000;

/// How many operations one client does on each replica while round trips are counted.
const COUNTED: u64 = 50;

/// How long a workload runs before it is measured, and how long it is counted under load.
const SHORT: Duration = Duration::from_millis(500);

/// What is measured: a registry, and how many of it.
#[derive(Clone, Debug)]
struct Subject {
    name: String,
    binary: PathBuf,
    kind: Kind,
    replicas: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Berth,
    Distribution,
}

/// What one workload cost in one round.
#[derive(Debug, Serialize)]
struct Sample {
    subject: String,
    workload: &'static str,
    /// CPU of the registry, of all its replicas together, in microseconds for one operation.
    cpu_us: f64,
    /// CPU of Redis, likewise.
    redis_cpu_us: f64,
    /// CPU of the S3 server, likewise.
    store_cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    /// The share of its core that the generator used.
    generator_cores: f64,
    /// Requests to the store for one operation, 16 clients at once.
    store_requests: f64,
    /// Calls to Redis for one operation, 16 clients at once; a script or a transaction is one.
    redis_calls: f64,
    /// Round trips to Redis that follow one another within one operation.
    redis_round_trips: f64,
}

/// Everything that is written.
#[derive(Debug, Serialize)]
struct Report {
    date: String,
    processor: String,
    cores: usize,
    /// As each round began.
    load_average: Vec<f64>,
    samples: Vec<Sample>,
}

/// A figure of a sample.
type Figure = fn(&Sample) -> f64;

/// The table's columns.
const COLUMNS: [(&str, Figure); 9] = [
    ("CPU, µs", |sample| sample.cpu_us),
    ("p50, ms", |sample| sample.p50_ms),
    ("p99, ms", |sample| sample.p99_ms),
    ("per second", |sample| sample.per_second),
    ("requests to the store", |sample| sample.store_requests),
    ("round trips to Redis", |sample| sample.redis_round_trips),
    ("calls to Redis", |sample| sample.redis_calls),
    ("Redis: CPU, µs", |sample| sample.redis_cpu_us),
    ("store: CPU, µs", |sample| sample.store_cpu_us),
];

/// The most CPU that one replica of Berth may use, in microseconds.
const GOALS: [(&str, f64); 4] =
    [("manifest by tag", 30.0), ("blob redirect", 35.0), ("tag page of 100", 100.0), ("push of a small image", 2000.0)];

/// Measures all of it; prints a table and writes a JSON file.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    let mut report = Report {
        date: Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string(),
        processor: proc::field("/proc/cpuinfo", "model name")?,
        cores: std::thread::available_parallelism()?.get(),
        load_average: Vec::new(),
        samples: Vec::new(),
    };
    let subjects = options.subjects();
    for round in 0..options.rounds {
        report.load_average.push(proc::load_average()?);
        for place in 0..subjects.len() {
            let subject = &subjects[(place + round) % subjects.len()];
            eprintln!(
                "round {} of {}: {} (load average {})",
                round + 1,
                options.rounds,
                subject.name,
                proc::load_average()?
            );
            report.samples.extend(subject.measure(options, round).await.with_context(|| subject.name.clone())?);
        }
    }
    println!("{}", report.table(&subjects));
    fs::create_dir_all(&options.results)?;
    let path = options.results.join(format!("backed-{}.json", report.date.split('T').next().unwrap_or_default()));
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("written to {}", path.display());
    Ok(())
}

impl Options {
    fn subjects(&self) -> Vec<Subject> {
        let berth = |replicas| Subject {
            name: format!("Berth, {replicas} replica{}", if replicas == 1 { "" } else { "s" }),
            binary: self.berth.clone(),
            kind: Kind::Berth,
            replicas,
        };
        let distribution = self.distribution.iter().map(|binary| Subject {
            name: "Distribution".to_owned(),
            binary: binary.clone(),
            kind: Kind::Distribution,
            replicas: 1,
        });
        (1..=self.replicas).map(berth).chain(distribution).collect()
    }
}

impl Subject {
    /// One round: filled and timed, then started anew behind the proxies and counted.
    async fn measure(&self, options: &Options, round: usize) -> Result<Vec<Sample>> {
        let directory = empty_directory(&options.data, "backed")?;
        let bucket = Bucket::start(&directory).await?;
        let span = Duration::from_secs_f64(options.seconds);
        let workloads = workloads(self.kind, (round as u64 + 1) << 40);

        let replicas = self.start(&bucket, Way::Straight, &directory).await?;
        fill(&replicas[0]).await?;
        let mut samples = Vec::new();
        for (workload, operation) in &workloads {
            samples.push(self.time(&replicas, &bucket, workload, operation, span).await?);
        }
        stop(replicas).await?;

        let replicas = self.start(&bucket, Way::Counted, &directory).await?;
        for ((_, operation), sample) in workloads.iter().zip(&mut samples) {
            count(&replicas, &bucket, operation, sample).await?;
        }
        stop(replicas).await?;
        drop(bucket);
        fs::remove_dir_all(&directory)?;
        Ok(samples)
    }

    async fn start(&self, bucket: &Bucket, way: Way, directory: &Path) -> Result<Vec<Instance>> {
        let mut replicas = Vec::new();
        for number in 0..self.replicas {
            let log = directory.join(format!("log-{number}"));
            replicas.push(match self.kind {
                Kind::Berth => Instance::berth(&self.binary, &bucket.settings(way), &log).await?,
                Kind::Distribution => distribution(&self.binary, &bucket.endpoint(way), directory, &log).await?,
            });
        }
        Ok(replicas)
    }

    async fn time(
        &self,
        replicas: &[Instance],
        bucket: &Bucket,
        workload: &'static str,
        operation: &Arc<Operation>,
        span: Duration,
    ) -> Result<Sample> {
        let (crowd, count) = (crowd(replicas), replicas.len());
        let mut watched: Vec<u32> = replicas.iter().map(|replica| replica.pid).collect();
        watched.extend(bucket.processes()?);
        let warm = crowd.repeat(operation, 0, Extent::For(SHORT), &[]).await?;
        let seen = crowd.repeat(operation, warm.operations() + PAST, Extent::For(span), &watched).await?;
        Ok(Sample {
            subject: self.name.clone(),
            workload,
            cpu_us: seen.cpu_us(0..count),
            redis_cpu_us: seen.cpu_us(count..count + 1),
            store_cpu_us: seen.cpu_us(count + 1..count + 2),
            p50_ms: seen.percentile(0.5),
            p99_ms: seen.percentile(0.99),
            per_second: seen.per_second(),
            generator_cores: seen.generator,
            store_requests: 0.0,
            redis_calls: 0.0,
            redis_round_trips: 0.0,
        })
    }
}

/// Numbers that are skipped between two loads: those that clients had taken as the first one ended.
const PAST: u64 = 1 << 16;

/// First one client on each replica, one operation after the other, for the round trips; then many on all.
async fn count(replicas: &[Instance], bucket: &Bucket, operation: &Arc<Operation>, sample: &mut Sample) -> Result<()> {
    let (mut first, mut round_trips) = (1 << 30, 0);
    let mut sequence = async |replica: &Instance| {
        let one = Crowd { addresses: vec![replica.address], connections: 1 };
        bucket.take();
        one.repeat(operation, first, Extent::Times(COUNTED), &[]).await?;
        first += PAST;
        anyhow::Ok(bucket.take().round_trips)
    };
    for replica in replicas {
        // The first time nothing is warm.
        sequence(replica).await?;
        round_trips += sequence(replica).await?;
    }
    sample.redis_round_trips = round_trips as f64 / (COUNTED * replicas.len() as u64) as f64;
    bucket.take();
    let seen = crowd(replicas).repeat(operation, first, Extent::For(SHORT), &[]).await?;
    let counts = bucket.take();
    let each = |count: u64| count as f64 / seen.operations().max(1) as f64;
    (sample.store_requests, sample.redis_calls) = (each(counts.requests), each(counts.calls));
    Ok(())
}

fn crowd(replicas: &[Instance]) -> Crowd {
    Crowd { addresses: replicas.iter().map(|replica| replica.address).collect(), connections: CONNECTIONS }
}

async fn stop(replicas: Vec<Instance>) -> Result<()> {
    for replica in replicas {
        replica.stop().await?;
    }
    Ok(())
}

fn tag(number: u64) -> String {
    format!("/v2/backed/image/manifests/t{number:04}")
}

/// Pushes one small image, and points every tag at it.
async fn fill(replica: &Instance) -> Result<()> {
    let (mut client, image) = (Client::connect(replica.address).await?, Image::new(0));
    for blob in [&image.layer, &image.config] {
        let target = upload(&mut client, "backed/image", &digest([&blob[..]])).await?;
        put(&mut client, &target, "application/octet-stream", blob).await?;
    }
    let manifest = move |number| Manifest { target: tag(number), media_type: MANIFEST, bytes: image.manifest.clone() };
    let crowd = Crowd { addresses: vec![replica.address], connections: CONNECTIONS };
    crowd.repeat(&Arc::new(Operation::Fill(Box::new(manifest))), 0, Extent::Times(TAGS), &[]).await?;
    Ok(())
}

/// What is asked of a registry of this kind. Images that are pushed have numbers from `first` on.
fn workloads(kind: Kind, first: u64) -> Vec<(&'static str, Arc<Operation>)> {
    let blob = format!("/v2/backed/image/blobs/{}", digest([&Image::new(0).layer[..]]));
    let (to_head, to_get) = (blob.clone(), blob);
    let page = |number| format!("/v2/backed/image/tags/list?n=100&last=t{:04}", anywhere(number, TAGS - 100));
    // Distribution sends who asks for a blob elsewhere even with HEAD.
    let head_status = match kind {
        Kind::Berth => 200,
        Kind::Distribution => 307,
    };
    let ask =
        |method, status, target: Box<dyn Fn(u64) -> String + Send + Sync>| Operation::Ask { method, target, status };
    [
        ("manifest by tag", Operation::get(|_| tag(7))),
        ("blob redirect", ask("GET", 307, Box::new(move |_| to_get.clone()))),
        ("HEAD of a blob", ask("HEAD", head_status, Box::new(move |_| to_head.clone()))),
        ("tag page of 100", Operation::get(page)),
        ("push of a small image", Operation::Push { first }),
    ]
    .map(|(name, operation)| (name, Arc::new(operation)))
    .into()
}

/// Distribution over the bucket, as it ships: its cache of blobs' sizes in memory, redirects on.
async fn distribution(binary: &Path, endpoint: &str, directory: &Path, log: &Path) -> Result<Instance> {
    let (address, path) = (free_address()?, directory.join("distribution.yml"));
    let text = format!(
        "version: 0.1\n\
         log:\n  accesslog:\n    disabled: false\n  level: info\n\
         storage:\n  s3:\n    region: us-east-1\n    regionendpoint: {endpoint}\n    forcepathstyle: true\n    \
         secure: false\n    bucket: {BUCKET}\n    accesskey: {ACCESS_KEY}\n    secretkey: {SECRET_KEY}\n  \
         delete:\n    enabled: true\n  cache:\n    blobdescriptor: inmemory\n\
         http:\n  addr: {address}\n"
    );
    fs::write(&path, text)?;
    let mut command = Command::new(std::path::absolute(binary)?);
    command.env_clear().arg("serve").arg(path).env("OTEL_TRACES_EXPORTER", "none");
    Instance::start(command, address, log).await
}

impl Report {
    fn of<'a>(&'a self, subject: &'a str, workload: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.subject == subject && sample.workload == workload)
    }

    fn table(&self, subjects: &[Subject]) -> String {
        let columns: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut text = format!("{}, {} cores; load average as the rounds began: ", self.processor, self.cores);
        text += &self.load_average.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        text += &format!(
            "\n\n| workload | registry | {} |\n|---|---|{}\n",
            columns.join(" | "),
            "---|".repeat(columns.len())
        );
        for (workload, _) in workloads(Kind::Berth, 0) {
            for subject in subjects {
                let column = |(_, figure): &(&str, Figure)| {
                    spread(&self.of(&subject.name, workload).map(figure).collect::<Vec<_>>())
                };
                let cells: Vec<_> = COLUMNS.iter().map(column).collect();
                text += &format!("| {workload} | {} | {} |\n", subject.name, cells.join(" | "));
            }
        }
        text += "\nMedian (least–most) of the rounds, for one operation; CPU is that of all replicas together.\n\n";
        for (workload, most) in GOALS {
            let cpu = median(&self.of("Berth, 1 replica", workload).map(|sample| sample.cpu_us).collect::<Vec<_>>());
            let reached = if cpu <= most { "reached" } else { "not reached" };
            text += &format!("goal: {workload}, CPU, µs: at most {most}: {reached} ({cpu:.1})\n");
        }
        text
    }
}
