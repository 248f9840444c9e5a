//! `loadtest events`: what it costs a push of a manifest that somebody is told of it, beside nobody.
//!
//! Three servers alike, but for their endpoints. What is measured takes turns, round by round; who comes first
//! alternates. The CPU time is all that a push costs in the end: it is read when its event has been delivered.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::{
    client::Client,
    content::{Image, MANIFEST, digest},
    latency::Recorder,
    load::Meter,
    report::Range,
    server::{Product, Server, Site, free_address},
    workload::{CONNECTIONS, begin_upload, created},
};

/// How many push at once: one, whose latency is that of a push alone, and as many as keep the server busy.
const LOADS: [usize; 2] = [1, CONNECTIONS];

/// How much longer a push may take.
const GOAL: f64 = 5.0;

/// Whom a server tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nobody,
    /// One that isn't there: events are written, and wait.
    Absent,
    Somebody,
}

impl Told {
    const ALL: [Self; 3] = [Self::Nobody, Self::Absent, Self::Somebody];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "no endpoint",
            Self::Absent => "an endpoint that is away",
            Self::Somebody => "an endpoint that takes all",
        }
    }
}

/// CPU of one push in microseconds, and the median latency in milliseconds.
type Figure = (f64, f64);

/// The figures by how many pushed and who was told, in the table's order.
type Found = BTreeMap<(usize, Told), Vec<Figure>>;

/// Measures all of it, and prints a table.
pub(crate) async fn measure(product: &Product, data: &Path, rounds: usize, span: Duration) -> Result<()> {
    let _site = Site::empty(data)?;
    let endpoint = Endpoint::start()?;
    let mut benches = Vec::new();
    for told in Told::ALL {
        benches.push(Bench::start(product, data, told, &endpoint).await?);
    }
    let mut found = Found::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for load in LOADS {
            for place in 0..benches.len() {
                let place = (round + place) % benches.len();
                let bench = &mut benches[place];
                found.entry((load, bench.told)).or_default().push(bench.push(load, span, &endpoint).await?);
            }
        }
    }
    for bench in benches {
        bench.server.stop().await?;
    }
    println!("{}", table(&found, rounds));
    Ok(())
}

/// A server, and who pushes to it.
struct Bench {
    told: Told,
    server: Server,
    /// Counts manifests: each is new.
    next: Arc<AtomicU64>,
}

impl Bench {
    async fn start(product: &Product, data: &Path, told: Told, endpoint: &Endpoint) -> Result<Self> {
        let url = match told {
            Told::Nobody => None,
            Told::Absent => Some(format!("http://{}/", free_address()?)),
            Told::Somebody => Some(format!("http://{}/", endpoint.address)),
        };
        let product = match &url {
            None => product.clone(),
            Some(url) => product.clone().with(&[
                ("BERTH_EVENTS__ENDPOINTS__CI__FORMAT", "distribution"),
                ("BERTH_EVENTS__ENDPOINTS__CI__URL", url),
                ("BERTH_EVENTS__ENDPOINTS__CI__ALLOW", "127.0.0.0/8"),
            ]),
        };
        let (server, _) = Server::start(&product, data).await?;
        let mut client = Client::connect(server.address).await?;
        let image = Image::new(0);
        for number in 0..CONNECTIONS {
            for blob in [&image.layer, &image.config] {
                let target = begin_upload(&mut client, &repository(number), &digest([&blob[..]])).await?;
                created(&client.send("PUT", &target, "application/octet-stream", blob).await?)?;
            }
        }
        Ok(Self { told, server, next: Arc::default() })
    }

    /// Pushes manifests for `span`, and waits until all are told.
    async fn push(&mut self, load: usize, span: Duration, endpoint: &Endpoint) -> Result<Figure> {
        let heard = endpoint.heard.load(SeqCst);
        let meter = Meter::start(self.server.pid)?;
        let until = Instant::now() + span;
        let (mut tasks, recorder) = (JoinSet::new(), Recorder::new());
        for number in 0..load {
            let (address, next, recorder) = (self.server.address, Arc::clone(&self.next), recorder.clone());
            tasks.spawn(push_manifests(address, repository(number), next, until, recorder));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let latencies = recorder.take();
        while self.told == Told::Somebody && endpoint.heard.load(SeqCst) < heard + latencies.count() {
            sleep(Duration::from_millis(10)).await;
        }
        let figures = meter.stop().await?.per_operation(&latencies, "cpu_us", 1e6);
        Ok((figures["cpu_us"], figures["p50_ms"]))
    }
}

fn repository(number: usize) -> String {
    format!("bench/{number}/image")
}

/// New manifests of the same blobs, each under a tag of its own.
async fn push_manifests(
    address: SocketAddr,
    repository: String,
    next: Arc<AtomicU64>,
    until: Instant,
    recorder: Recorder,
) -> Result<()> {
    let mut client = Client::connect(address).await?;
    let image = Image::new(0);
    while Instant::now() < until {
        let number = next.fetch_add(1, SeqCst);
        let (target, body) = (format!("/v2/{repository}/manifests/v{number}"), image.noted(number)?);
        let started = Instant::now();
        created(&client.send("PUT", &target, MANIFEST, &body).await?)?;
        recorder.record(started.elapsed());
    }
    Ok(())
}

/// Who takes all events: on a thread of its own, so that nobody who pushes waits for it.
struct Endpoint {
    address: SocketAddr,
    heard: Arc<AtomicU64>,
}

impl Endpoint {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, heard) = (listener.local_addr()?, Arc::<AtomicU64>::default());
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counter = Arc::clone(&heard);
        // It ends with the program.
        thread::spawn(move || runtime.block_on(listen(listener, counter)));
        Ok(Self { address, heard })
    }
}

async fn listen(listener: TcpListener, heard: Arc<AtomicU64>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let heard = Arc::clone(&heard);
        // One that breaks is the sender's to report.
        tokio::spawn(async move { answer(stream, &heard).await.ok() });
    }
}

/// Answers each request of a connection.
async fn answer(mut stream: TcpStream, heard: &AtomicU64) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut buffer, mut filled) = (vec![0; 64 << 10], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        ensure!(read > 0, "the sender hung up");
        filled += read;
        while let Some(length) = request_length(&buffer[..filled]).filter(|&length| length <= filled) {
            buffer.copy_within(length..filled, 0);
            filled -= length;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
            heard.fetch_add(1, SeqCst);
        }
    }
}

/// The length of a request with its body, once its head is there.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let lines = std::str::from_utf8(&bytes[..head]).ok()?.split("\r\n");
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    };
    Some(head + lines.filter_map(value).next().unwrap_or(0_usize))
}

/// In Markdown, with the goal and whether it is reached.
fn table(found: &Found, rounds: usize) -> String {
    let range = |figures: &[Figure], of: fn(&Figure) -> f64| Range::of(figures.iter().map(of).collect());
    let mut text = String::from("| clients | who is told | CPU, µs | p50, ms |\n|---|---|---|---|\n");
    for ((load, told), figures) in found {
        if let (Some(cpu), Some(latency)) = (range(figures, |figure| figure.0), range(figures, |figure| figure.1)) {
            text.push_str(&format!("| {load} | {} | {} | {} |\n", told.name(), cpu.text(0), latency.text(2)));
        }
    }
    text.push_str(&format!(
        "\nPushes of a manifest. Median of {rounds} rounds (least–most). CPU is the server's, until all is delivered.\n"
    ));
    let median = |load, told, of: fn(&Figure) -> f64| {
        found.get(&(load, told)).and_then(|figures| range(figures, of)).map_or(f64::NAN, |range| range.median)
    };
    for load in LOADS {
        for told in [Told::Absent, Told::Somebody] {
            let more = |of| (median(load, told, of) / median(load, Told::Nobody, of) - 1.0) * 100.0;
            let (cpu, latency) = (more(|figure| figure.0), more(|figure| figure.1));
            let verdict = if latency <= GOAL { "reached" } else { "not reached" };
            text.push_str(&format!(
                "{load} clients, {}: CPU {cpu:+.1} %, p50 {latency:+.1} % (goal: at most {GOAL} % more: {verdict})\n",
                told.name()
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_with_its_body() {
        let request = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST";
        assert_eq!(request_length(request), Some(request.len() - 4));
        assert_eq!(request_length(b"POST / HTTP/1.1\r\n\r\n"), Some(19));
        assert_eq!(request_length(b"POST / HTTP/1.1\r\n"), None);
    }
}
