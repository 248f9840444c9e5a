//! One process of a registry, over data that outlives it: so that it can be filled with one setting and measured
//! with another, or be one of several replicas.
//!
//! It must not know what is asked of the registry.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{client::Client, server::free_address};

/// How long one may take to answer for the first time, over a million names that it finds in its data.
const START: Duration = Duration::from_secs(120);

/// How long one may take to end.
const END: Duration = Duration::from_secs(60);

/// What a process is told, as environment variables.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// A registry that runs.
#[derive(Debug)]
pub(crate) struct Instance {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) pid: u32,
}

impl Instance {
    /// A Berth with these settings, on addresses that it is given here; what it says goes to the file `log`.
    pub(crate) async fn berth(binary: &Path, settings: &Settings, log: &Path) -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::path::absolute(binary)?);
        command.arg("serve").env_clear().envs(settings.iter().map(|(key, value)| (key, value)));
        command.env("BERTH_SERVER__LISTEN", address.to_string());
        command.env("BERTH_ADMIN__LISTEN", free_address()?.to_string());
        let berth = Self::start(command, address, log).await?;
        // Until it has looked for what the bucket holds, lists are unavailable and pulls go to the bucket.
        let (mut client, began) = (Client::connect(address).await?, Instant::now());
        while client.ask("GET", "/v2/_catalog?n=1").await?.status != 200 {
            ensure!(began.elapsed() < START, "the catalog is unavailable; see {}", log.display());
            sleep(Duration::from_millis(50)).await;
        }
        Ok(berth)
    }

    /// Whatever answers at `address` once `command` runs.
    pub(crate) async fn start(mut command: Command, address: SocketAddr, log: &Path) -> Result<Self> {
        let file = File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child.id().context("it ended at once")?;
        let began = Instant::now();
        loop {
            let answered = async { Client::connect(address).await?.ask("GET", "/v2/").await };
            if answered.await.is_ok_and(|answer| answer.status == 200) {
                return Ok(Self { child, address, pid });
            }
            let runs = child.try_wait()?.is_none() && began.elapsed() < START;
            ensure!(runs, "no answer from {address}; see {}", log.display());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks it to end and waits until it has, so that nothing that it was told is lost.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("a process has a number")?;
        kill_process(pid, Signal::TERM)?;
        timeout(END, self.child.wait()).await.context("it was told to end and didn't")??;
        Ok(())
    }
}

/// An empty directory of this name under `data`.
pub(crate) fn empty_directory(data: &Path, name: &str) -> Result<PathBuf> {
    let directory = std::path::absolute(data)?.join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Lets this process, and those that it starts, open as many files as the system allows; at least `needed`.
pub(crate) fn raise_file_limit(needed: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    ensure!(allowed >= needed, "{needed} open files are needed and {allowed} allowed: see `ulimit -Hn`");
    Ok(())
}
