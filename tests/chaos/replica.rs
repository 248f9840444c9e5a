//! One replica: the real binary at an address that it keeps, started again whenever it ends, as an orchestrator
//! does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::weather::Tally;
use crate::{
    berth::{Setup, bare, get, own_address},
    e2e_client::Client,
};

/// Names the binary to run, where it isn't the one that was built with the tests.
const BINARY: &str = "BERTH_CHAOS_BINARY";

/// A library that makes a process believe another time; monotonic clocks are left alone.
const FAKETIME: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];

/// A replica; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    setup: Setup,
    address: Ipv4Addr,
    log: PathBuf,
    child: Option<Child>,
    tally: Tally,
}

impl Replica {
    /// One that isn't started yet, with a wall clock that is `skew` seconds ahead.
    pub(crate) fn new(settings: &[(&str, String)], skew: i64, log: PathBuf, tally: Tally) -> Self {
        let address = own_address();
        let mut setup = Setup { binary: std::env::var_os(BINARY).map(PathBuf::from), ..Setup::default() };
        let own = [
            ("BERTH_SERVER__LISTEN", format!("{address}:5000")),
            ("BERTH_ADMIN__LISTEN", format!("{address}:5001")),
            ("BERTH_LOG__LEVEL", "info".to_owned()),
        ];
        for (name, value) in settings.iter().chain(&own) {
            setup.environment.push(((*name).to_owned(), value.clone()));
        }
        if skew != 0 {
            let library = FAKETIME.iter().find(|library| Path::new(library).exists());
            let library = library.expect("libfaketime is needed: scripts/setup-tests installs it");
            let faked = [
                ("LD_PRELOAD", (*library).to_owned()),
                ("FAKETIME", format!("{skew:+}s")),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            setup.environment.extend(faked.map(|(name, value)| (name.to_owned(), value)));
        }
        Self { setup, address, log, child: None, tally }
    }

    pub(crate) fn client(&self, with: &reqwest::Client) -> Client {
        Client::with(with.clone(), &format!("http://{}:5000", self.address))
    }

    /// What its operator has of it.
    pub(crate) fn console(&self) -> Console {
        Console { setup: self.setup.clone(), admin: (self.address, 5001).into() }
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self) {
        if let Some(child) = &mut self.child {
            match child.try_wait().unwrap() {
                None => return,
                Some(status) => self.tally.add(&format!("a replica ended by itself ({status})")),
            }
        }
        let log = fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = bare(&self.setup, Path::new("unused"));
        self.child = Some(command.arg("serve").stderr(log).spawn().unwrap());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may have ended by itself.
            kill_process(Pid::from_child(child), signal).ok();
        }
    }

    /// Ends it as a power switch does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    /// The lines of its log that say that something in it is broken.
    pub(crate) fn defects(&self) -> Vec<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let is_defect = |line: &&str| line.contains("panicked") || line.contains(r#""error":"UNKNOWN""#);
        log.lines().filter(is_defect).map(str::to_owned).collect()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What an operator has of a replica, whether it runs or not.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    setup: Setup,
    admin: SocketAddr,
}

impl Console {
    /// What it says of itself; nothing where it isn't there.
    async fn says(&self) -> String {
        let admin = self.admin;
        tokio::task::spawn_blocking(move || get(admin, "/readyz")).await.unwrap().unwrap_or_default()
    }

    /// Whether it believes its index, and sees no event in it that waits for this endpoint.
    pub(crate) async fn has_told(&self, endpoint: &str) -> bool {
        let admin = self.admin;
        let metrics = tokio::task::spawn_blocking(move || get(admin, "/metrics")).await.unwrap().unwrap_or_default();
        self.is_ready().await && metrics.contains(&format!("berth_events_pending{{endpoint=\"{endpoint}\"}} 0\n"))
    }

    /// Whether it says that it can do everything.
    pub(crate) async fn is_ready(&self) -> bool {
        self.says().await.contains(r#""status":"ready""#)
    }

    /// Whether only an operator can help: it doesn't start, or the bucket is another index's.
    pub(crate) async fn is_helpless(&self) -> bool {
        let said = self.says().await;
        said.is_empty() || said.contains("another index owns this bucket")
    }

    /// Runs another of the binary's commands with the replica's settings.
    pub(crate) async fn run(&self, arguments: &'static [&'static str]) -> Output {
        let mut command: Command = bare(&self.setup, Path::new("unused"));
        command.args(arguments).stdout(Stdio::piped());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}
