//! Requests that arrive at a fixed rate, whether or not those before were answered: as a cluster's do.
//!
//! A latency counts from when a request was due, not from when a connection was free to send it; so a server that
//! falls behind can't hide that by being asked less. It must not blame the server for what the generator itself was
//! late with: that is counted apart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    client::Client,
    latency::{Latencies, Recorder},
    load::{Figures, Meter},
    requests::Requests,
};

/// How late the generator may send what is due while a connection is free.
const SLIP: Duration = Duration::from_millis(1);

/// The figure that says which share of requests was sent later than that.
pub(crate) const SLIPPED: &str = "slipped";

/// What is due, and what came of it.
#[derive(Clone, Debug)]
struct Schedule {
    requests: Arc<Requests>,
    began: Instant,
    /// Between two arrivals.
    every: Duration,
    /// How many arrive.
    count: u64,
    /// One permit for each that is due.
    due: Arc<Semaphore>,
    next: Arc<AtomicU64>,
    latencies: Recorder,
    /// How late those were that found a connection waiting for them.
    lateness: Recorder,
}

/// Lets requests arrive, `rate` a second, for `span`, and waits until all are answered; with figures as a load has
/// them, and how often the generator was late.
pub(crate) async fn arrive(
    clients: Vec<Client>,
    requests: Requests,
    rate: f64,
    span: Duration,
    pid: u32,
) -> Result<Figures> {
    let meter = Meter::start(pid)?;
    let schedule = Schedule {
        requests: Arc::new(requests),
        began: Instant::now(),
        every: Duration::from_secs_f64(1.0 / rate),
        count: (span.as_secs_f64() * rate) as u64,
        due: Arc::new(Semaphore::new(0)),
        next: Arc::default(),
        latencies: Recorder::new(),
        lateness: Recorder::new(),
    };
    let (pacer, connections) = (schedule.clone(), clients.len());
    // The runtime's clock is in milliseconds: too coarse to say when a request is due.
    thread::spawn(move || pacer.pace(connections));
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(schedule.clone().serve(client));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (latencies, lateness): (Latencies, Latencies) = (schedule.latencies.take(), schedule.lateness.take());
    let mut figures = meter.stop().await?.per_operation(&latencies, "cpu_us", 1e6);
    figures.insert("rate", rate);
    figures.insert(SLIPPED, lateness.share_above(SLIP) * lateness.count() as f64 / latencies.count().max(1) as f64);
    Ok(figures)
}

impl Schedule {
    /// When the `number`-th request is due.
    fn when(&self, number: u64) -> Instant {
        self.began + self.every.mul_f64(number as f64)
    }

    /// Gives a permit for each request as it falls due; and in the end one to each connection, to find that out.
    fn pace(&self, connections: usize) {
        for number in 0..self.count {
            thread::sleep(self.when(number).saturating_duration_since(Instant::now()));
            self.due.add_permits(1);
        }
        self.due.add_permits(connections);
    }

    /// Sends what is due, on one connection.
    async fn serve(self, mut client: Client) -> Result<()> {
        loop {
            let is_waited_for = self.due.available_permits() == 0;
            self.due.acquire().await?.forget();
            let number = self.next.fetch_add(1, Relaxed);
            if number >= self.count {
                return Ok(());
            }
            let due = self.when(number);
            if is_waited_for {
                self.lateness.record(due.elapsed());
            }
            self.requests.at(number as usize).make(&mut client).await?;
            self.latencies.record(due.elapsed());
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers whatever comes, one connection only, `pause` after it came.
    async fn slow_server(pause: Duration) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            while stream.read(&mut buffer).await.unwrap() > 0 {
                tokio::time::sleep(pause).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn waiting_for_a_connection_is_part_of_a_latency() {
        let address = slow_server(Duration::from_millis(20)).await;
        let clients = vec![Client::connect(address).await.unwrap()];
        let request = crate::client::request(address, "GET", "/", "", 0).into_bytes();
        // Ten requests, all within 10 ms; each takes 20 ms, so the last waits for nine others.
        let pid = std::process::id();
        let figures = arrive(clients, request.into(), 1000.0, Duration::from_millis(10), pid).await.unwrap();
        assert!(figures["max_ms"] > 150.0, "{figures:?}");
        assert!(figures["per_second"] < 60.0, "{figures:?}");
    }
}
