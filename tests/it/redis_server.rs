//! A real Redis server for a test: on a free port, empty, gone with the value that stands for it. Another one
//! that speaks the same, such as Valkey, where `BERTH_TEST_REDIS_SERVER` names its program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::berth::own_address;

/// A running (or stopped) server. Unless its arguments say otherwise it keeps nothing: after a restart it is empty.
#[derive(Debug)]
pub(crate) struct RedisServer {
    host: String,
    port: u16,
    /// What comes before all else.
    first: Vec<String>,
    arguments: Vec<String>,
    directory: TempDir,
    child: Option<Child>,
}

/// Starts a server and waits until it takes connections.
pub(crate) async fn start() -> RedisServer {
    start_with(&[]).await
}

/// Starts a server with further arguments, for instance `["--maxmemory-policy", "allkeys-lru"]`.
pub(crate) async fn start_with(arguments: &[&str]) -> RedisServer {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = RedisServer::stopped("127.0.0.1", port, arguments);
    server.restart().await;
    server
}

/// Starts a server at an address that nobody else uses while it is stopped.
pub(crate) async fn start_elsewhere(arguments: &[&str]) -> RedisServer {
    let mut server = RedisServer::stopped(&own_address().to_string(), 6379, arguments);
    server.restart().await;
    server
}

impl RedisServer {
    /// One that is not started yet.
    pub(crate) fn stopped(host: &str, port: u16, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let (host, first, directory) = (host.to_owned(), Vec::new(), TempDir::new().unwrap());
        Self { host, port, first, arguments, directory, child: None }
    }

    /// The same as a Sentinel, with a configuration that it also writes.
    pub(crate) fn into_sentinel(mut self, config: &Path) -> Self {
        self.first = vec![config.display().to_string(), "--sentinel".to_owned()];
        self
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{}/", self.host, self.port)
    }

    /// With further arguments.
    pub(crate) fn with(mut self, arguments: &[String]) -> Self {
        self.arguments.extend_from_slice(arguments);
        self
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Where it runs, and keeps what it keeps.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A connection of an operator's, who may do anything, and has time.
    pub(crate) async fn operator(&self) -> redis::aio::MultiplexedConnection {
        let patient = redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
    }

    pub(crate) async fn flush(&self) {
        redis::cmd("FLUSHALL").exec_async(&mut self.operator().await).await.unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn place(&self) -> (Ipv4Addr, u16) {
        (self.host.parse().unwrap(), self.port)
    }

    /// Removes what it has written down. Only while it is stopped.
    pub(crate) fn forget(&self) {
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
    }

    /// Kills the server; connections to it break.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks the server to end (SIGTERM), and waits until it has.
    pub(crate) fn shut_down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let process = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts the server on the same port, empty unless its arguments say otherwise, after stopping it if it runs.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        let program = std::env::var("BERTH_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let child = Command::new(program)
            .args(&self.first)
            .args(["--port", &self.port.to_string(), "--bind", &self.host, "--save", "", "--appendonly", "no"])
            .args(&self.arguments)
            .current_dir(self.directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed: apt-get install redis-server");
        self.child = Some(child);
        while TcpStream::connect((&*self.host, self.port)).await.is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "redis-server ended: {ended:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the process without closing its connections (SIGSTOP), as a stalled host does; or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        let signal = if paused { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        let child = self.child.as_ref().expect("a running server");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}
