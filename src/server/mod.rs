//! The sockets: accepting connections, bounding them, and ending well.
//!
//! It is a loop of our own because `axum::serve` has no deadlines: a client that stops in the middle of a
//! head would hold its connection for ever. Everything that waits here is bounded: connections by a limit,
//! still ones by deadlines, the end by the drain's. It knows nothing of what is served.

mod activity;
mod body;
mod connection;
mod drain;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::Router;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use self::{
    activity::Patience,
    connection::{Client, Phase, Shared},
    tls::{NOT_TLS, Stranger},
};
use crate::{
    api::{health::Readiness, origin::Scheme},
    telemetry::Metrics,
};
pub use drain::Drain;
pub use tls::{Files, Oldest, Tls, TlsError};

/// What a client too many is told. It is written before its request was read, so it can't be more specific.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
Connection: close\r\nContent-Length: 102\r\n\r\n\
{\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"too many connections are open; try again\",\"detail\":null}]}";

/// How many refused clients may take their time reading that; further ones are reset.
const LINGERING: usize = 64;

/// How long each of them may take.
const LINGER: Duration = Duration::from_secs(1);

/// Connections to the admin listeners: a scraper, an orchestrator and an operator need a handful, and no
/// crowd on the public side takes them away.
const ADMIN_CONNECTIONS: usize = 256;

/// The pauses after an accept that failed for want of something (file descriptors, memory): it stays wanting
/// for a while, and trying at once would spin.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// For how long a kept connection still takes a request after the end was asked for: a proxy that has many of them
/// uses each again within that time, if it uses it at all, and hears that it was the last.
const PARTING: Duration = Duration::from_secs(1);

/// How long a listener that is about to close waits for the next connection that the system has accepted for it.
const QUEUED: Duration = Duration::from_millis(10);

/// How long connections to the admin listeners get to finish after everything else has ended.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// How many clients the server bears with, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Open connections to public listeners, together; further ones are told 503.
    pub connections: usize,
    /// From a connection's or request's first byte to the end of its head.
    pub head_timeout: Duration,
    /// A connection without a request.
    pub idle_timeout: Duration,
    /// A body that doesn't move because the client neither sends nor reads. The kernel buffers some megabytes
    /// of a response, and takes no more before a good part of that is read; so this is no place for a few
    /// seconds.
    pub body_idle_timeout: Duration,
    /// Running requests, once the process is asked to end.
    pub drain_timeout: Duration,
}

impl Default for Options {
    /// 10,000 connections; 30 s for a head; 3 minutes idle, longer than the minute of the usual load balancer,
    /// which must be the one to close; 1 minute for a body that doesn't move; 25 s to drain, as an
    /// orchestrator kills after 30.
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(180),
            body_idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(25),
        }
    }
}

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clients. It closes as soon as a drain begins.
    Public,
    /// Operators and their machines. It stays open until a drain has ended, so that the drain can be watched.
    Admin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Admin => "admin",
        }
    }
}

/// An open socket and what is served there.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    role: Role,
    router: Router,
    tls: Option<Tls>,
}

impl Listener {
    /// Opens `address`; port 0 takes a free one.
    pub async fn bind(address: SocketAddr, role: Role, router: Router) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(address).await?, role, router, tls: None })
    }

    /// Speaks TLS there, and nothing else.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// `https` where it speaks TLS, else `http`.
    pub fn scheme(&self) -> &'static str {
        let scheme = if self.tls.is_some() { Scheme::Https } else { Scheme::Http };
        scheme.as_str()
    }

    /// For whom it is, as metrics and the log call them.
    pub fn role(&self) -> &'static str {
        self.role.name()
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every request was finished.
    Clean,
    /// The drain took too long; so many connections were cut.
    Cut(usize),
    /// Somebody asked twice. The process should exit with a code other than zero.
    Forced,
}

/// Serves until `drain` is asked for and has ended. `readiness` is turned off as it begins.
pub async fn serve(
    listeners: Vec<Listener>,
    options: Options,
    drain: Drain,
    readiness: Readiness,
    metrics: Arc<Metrics>,
) -> End {
    let patience =
        Patience { head: options.head_timeout, idle: options.idle_timeout, stall: options.body_idle_timeout };
    let parting = PARTING.min(options.drain_timeout / 2);
    let shared = Arc::new(Shared { builder: connection::builder(), patience, parting, metrics });
    let public = Side::new(Role::Public, options.connections, shared.clone());
    let admin = Side::new(Role::Admin, ADMIN_CONNECTIONS, shared);
    for listener in listeners {
        let side = match listener.role {
            Role::Public => &public,
            Role::Admin => &admin,
        };
        side.open(listener);
    }

    drain.asked().await;
    readiness.drain();
    tracing::info!(timeout_s = options.drain_timeout.as_secs_f64(), "draining: no new connections");
    let end = public.drain(options.drain_timeout, &drain).await;
    if end != End::Forced {
        admin.drain(ADMIN_DRAIN, &drain).await;
    }
    end
}

/// The listeners of one role, and their connections.
struct Side {
    phase: watch::Sender<Phase>,
    tasks: TaskTracker,
    connections: Arc<Connections>,
    shared: Arc<Shared>,
}

impl Side {
    fn new(role: Role, limit: usize, shared: Arc<Shared>) -> Self {
        let gauge = shared.metrics.connections(role.name());
        let connections = Arc::new(Connections {
            limit,
            open: AtomicUsize::new(0),
            lingering: Arc::new(Semaphore::new(LINGERING)),
            gauge,
        });
        Self { phase: watch::Sender::new(Phase::Serve), tasks: TaskTracker::new(), connections, shared }
    }

    fn open(&self, listener: Listener) {
        let door = Door {
            listener,
            connections: self.connections.clone(),
            shared: self.shared.clone(),
            tasks: self.tasks.clone(),
            phase: self.phase.subscribe(),
        };
        self.tasks.spawn(door.keep());
    }

    /// Closes the listeners, lets requests finish for as long as `patience`, cuts what is left.
    async fn drain(&self, patience: Duration, drain: &Drain) -> End {
        self.tasks.close();
        self.phase.send_replace(Phase::Finish);
        let end = tokio::select! {
            biased;
            () = drain.insisted() => End::Forced,
            () = self.tasks.wait() => End::Clean,
            () = sleep(patience) => End::Cut(self.connections.open.load(Relaxed)),
        };
        self.phase.send_replace(Phase::Cut);
        self.tasks.wait().await;
        end
    }
}

/// The open connections of one side.
struct Connections {
    limit: usize,
    open: AtomicUsize,
    /// Places for refused clients that take their time.
    lingering: Arc<Semaphore>,
    gauge: Gauge,
}

impl Connections {
    /// A place for one more; `None` if there is none.
    fn admit(self: &Arc<Self>) -> Option<Place> {
        let place = Place(self.clone());
        self.gauge.inc();
        // A place too many is given back by its drop.
        (self.open.fetch_add(1, Relaxed) < self.limit).then_some(place)
    }
}

/// A connection's place, given back when it is dropped.
struct Place(Arc<Connections>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.gauge.dec();
    }
}

/// One listener at work.
struct Door {
    listener: Listener,
    connections: Arc<Connections>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    phase: watch::Receiver<Phase>,
}

impl Door {
    /// Accepts until the phase changes; the socket closes as this returns.
    async fn keep(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = tokio::select! {
                _ = self.phase.changed() => return self.let_in_who_waits().await,
                accepted = self.listener.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = FIRST_PAUSE;
                    self.let_in(stream, peer);
                }
                Err(error) if is_clients_affair(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "no connection can be accepted");
                    sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    /// Who has connected already would be reset as the socket closes, perhaps with a request that a proxy must not
    /// send twice.
    async fn let_in_who_waits(self) {
        let until = Instant::now() + self.shared.parting;
        while Instant::now() < until
            && let Ok(Ok((stream, peer))) = timeout(QUEUED, self.listener.socket.accept()).await
        {
            self.let_in(stream, peer);
        }
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        let Some(place) = self.connections.admit() else {
            self.refuse(stream);
            return;
        };
        // Answers are small and written at once; waiting for more of them would only delay them.
        if stream.set_nodelay(true).is_err() {
            return; // The client is gone already.
        }
        let (shared, router, mut phase) = (self.shared.clone(), self.listener.router.clone(), self.phase.clone());
        if *phase.borrow() != Phase::Serve {
            phase.mark_changed(); // This door knows already, the connection doesn't.
        }
        let Some(tls) = self.listener.tls.clone() else {
            let client = Client { peer, scheme: Scheme::Http };
            self.tasks.spawn(async move {
                connection::run(&shared, stream, client, router, phase).await;
                drop(place);
            });
            return;
        };
        self.tasks.spawn(async move {
            if let Some(stream) = shake_hands(&shared, &tls, stream, peer, phase.clone()).await {
                connection::run(&shared, stream, Client { peer, scheme: Scheme::Https }, router, phase).await;
            }
            drop(place);
        });
    }

    fn refuse(&self, stream: TcpStream) {
        self.shared.metrics.connections_refused.inc();
        if self.listener.tls.is_some() {
            return; // To say it would take a handshake, which is what there is no room for.
        }
        let Ok(place) = self.connections.lingering.clone().try_acquire_owned() else { return };
        self.tasks.spawn(async move {
            let _ = timeout(LINGER, say(stream, REFUSAL)).await;
            drop(place);
        });
    }
}

/// Whether an accept failed because the client had left again, which is no reason to wait.
fn is_clients_affair(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

/// A client's TLS connection; `None` if there will be none. It ends with `phase`, as no request has begun on it.
async fn shake_hands(
    shared: &Shared,
    tls: &Tls,
    stream: TcpStream,
    peer: SocketAddr,
    mut phase: watch::Receiver<Phase>,
) -> Option<TlsStream<TcpStream>> {
    let accepted = tokio::select! {
        _ = phase.changed() => return None,
        accepted = tls.accept(stream, shared.patience.head) => accepted,
    };
    match accepted {
        Ok(stream) => return Some(stream),
        Err(Stranger::Plain(stream)) => _ = timeout(LINGER, say(stream, NOT_TLS)).await,
        Err(Stranger::Silent) => _ = shared.metrics.connections_cut.inc(),
        Err(Stranger::Failed(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
    }
    None
}

/// Says it, and reads what the client sends until it hangs up: closing over unread bytes would reset the
/// connection, and take the answer away before it was read.
async fn say(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_announces_its_length() {
        let text = String::from_utf8_lossy(REFUSAL);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let announced = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        assert_eq!(announced, Some(body.len().to_string().as_str()));
    }
}
