//! The registries: finding or installing their binaries, starting them as they ship, and ending them.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command as Blocking, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::{client::Client, load::Figures, proc, report::Sample};

/// The version of CNCF Distribution that Berth is measured against.
const DISTRIBUTION: &str = "v3.1.1";

/// Where what is installed for this goes.
const TOOLS: &str = "target/tools";

/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(20);

/// How long after its first answer a server counts as idle.
const IDLE: Duration = Duration::from_secs(1);

/// Which registry a product is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Berth,
    Distribution,
}

/// A registry that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    kind: Kind,
    binary: PathBuf,
    /// What the binary says of itself.
    pub(crate) version: String,
    /// Settings beside the defaults, as environment variables.
    settings: Vec<(String, String)>,
}

impl Product {
    /// Berth's release binary.
    pub(crate) fn berth(binary: &Path) -> Result<Self> {
        ensure!(binary.exists(), "{} is missing: run `cargo build --release`", binary.display());
        Self::new(Kind::Berth, binary.to_owned())
    }

    /// CNCF Distribution, installed by Go where it isn't there yet.
    pub(crate) fn distribution(binary: Option<&Path>) -> Result<Self> {
        if let Some(binary) = binary {
            return Self::new(Kind::Distribution, binary.to_owned());
        }
        let tools = std::path::absolute(TOOLS)?;
        let binary = tools.join("registry");
        if !binary.exists() {
            let package = format!("github.com/distribution/distribution/v3/cmd/registry@{DISTRIBUTION}");
            eprintln!("installing {package}");
            let go = Blocking::new("go").args(["install", &package]).env("GOBIN", &tools).status();
            ensure!(go.context("Go is needed to install Distribution")?.success(), "go install failed");
        }
        Self::new(Kind::Distribution, binary)
    }

    fn new(kind: Kind, binary: PathBuf) -> Result<Self> {
        let output = Blocking::new(&binary).arg("--version").output();
        let output = output.with_context(|| format!("{} can't be run", binary.display()))?;
        let text = String::from_utf8(output.stdout)?;
        let version = text.split_whitespace().last().unwrap_or_default().trim_end_matches("+unknown").to_owned();
        Ok(Self { kind, binary: std::path::absolute(binary)?, version, settings: Vec::new() })
    }

    /// The same, with settings.
    pub(crate) fn with(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())));
        self
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Berth => "Berth",
            Kind::Distribution => "Distribution",
        }
    }

    /// The size of the binary, in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.binary)?.len())
    }

    /// The command that serves `directory` at `address`, with every default but where its data is and where it
    /// listens: access log on, fsync on. (Distribution's delete is on as Berth's is; its image turns traces off,
    /// so they are off here.)
    fn command(&self, directory: &Path, address: SocketAddr) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command.env_clear();
        match self.kind {
            Kind::Berth => {
                command.arg("serve");
                command.env("BERTH_SERVER__LISTEN", address.to_string());
                command.env("BERTH_ADMIN__LISTEN", free_address()?.to_string());
                command.env("BERTH_STORAGE__URL", format!("file:{}", directory.join("data").display()));
            }
            Kind::Distribution => {
                let config = directory.join("config.yml");
                fs::write(&config, distribution_config(&directory.join("data"), address))?;
                command.arg("serve").arg(config).env("OTEL_TRACES_EXPORTER", "none");
            }
        }
        command.envs(self.settings.iter().map(|(key, value)| (key, value)));
        let log = File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(command)
    }
}

fn distribution_config(data: &Path, address: SocketAddr) -> String {
    let data = data.display();
    format!(
        "version: 0.1\n\
         log:\n  accesslog:\n    disabled: false\n  level: info\n\
         storage:\n  filesystem:\n    rootdirectory: {data}\n  delete:\n    enabled: true\n\
         http:\n  addr: {address}\n"
    )
}

/// An address on loopback that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A registry that runs.
#[derive(Debug)]
pub(crate) struct Server {
    product: Product,
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) pid: u32,
    directory: PathBuf,
}

impl Server {
    /// Starts one on an empty directory under `data`; with how long it took to answer and what it then holds.
    pub(crate) async fn start(product: &Product, data: &Path) -> Result<(Self, Vec<Sample>)> {
        let directory = std::path::absolute(data)?.join(product.name().to_lowercase());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let address = free_address()?;
        let mut command = product.command(&directory, address)?;
        let started = Instant::now();
        let child = command.spawn()?;
        let pid = child.id().context("it ended at once")?;
        let server = Self { product: product.clone(), child, address, pid, directory };
        server.wait_for_answer(started).await?;
        let took = started.elapsed();
        sleep(IDLE).await;
        let memory = proc::memory(pid)?;
        let samples = vec![
            server.sample("start", Figures::from([("first_answer_ms", took.as_secs_f64() * 1000.0)])),
            server.sample("idle", Figures::from([("resident_mib", memory.resident)])),
        ];
        Ok((server, samples))
    }

    async fn wait_for_answer(&self, started: Instant) -> Result<()> {
        loop {
            let answered = async { Client::connect(self.address).await?.ask("GET", "/v2/").await };
            if answered.await.is_ok_and(|answer| matches!(answer.status, 200 | 401)) {
                return Ok(());
            }
            ensure!(started.elapsed() < START, "{} doesn't answer; see {}/log", self.name(), self.directory.display());
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &'static str {
        self.product.name()
    }

    /// What it has written to its log so far.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("log"))?)
    }

    /// Figures, as this server's.
    pub(crate) fn sample(&self, workload: &'static str, figures: Figures) -> Sample {
        Sample { server: self.name(), workload, figures }
    }

    /// Ends it and removes its data; with the most memory that it ever had.
    pub(crate) async fn stop(mut self) -> Result<Sample> {
        let memory = proc::memory(self.pid)?;
        self.child.kill().await?;
        fs::remove_dir_all(&self.directory)?;
        Ok(self.sample("whole round", Figures::from([("peak_mib", memory.peak), ("resident_mib", memory.resident)])))
    }
}
