//! The registries: finding or installing their binaries, starting them as they ship, and ending them.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command as Blocking, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::{client::Client, description::Description, load::Figures, login::Login, proc, report::Sample};

/// Berth's own description.
const BERTH: &str = include_str!("../servers/berth.toml");

/// The name that it has there: goals are its.
pub(crate) const BERTH_NAME: &str = "Berth";

/// Where what is installed for this goes.
const TOOLS: &str = "target/tools";

/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(20);

/// How long after its first answer a server counts as idle.
const IDLE: Duration = Duration::from_secs(1);

/// A registry that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    description: Description,
    binary: PathBuf,
    /// What the binary says of itself.
    pub(crate) version: String,
    /// Settings beside the description's, as environment variables.
    settings: Vec<(String, String)>,
    /// The program that runs it, with its options; none where it runs by itself.
    under: Vec<String>,
}

impl Product {
    /// Berth's release binary.
    pub(crate) fn berth(binary: &Path) -> Result<Self> {
        ensure!(binary.exists(), "{} is missing: run `cargo build --release`", binary.display());
        Self::new(Description::parse(BERTH)?, std::path::absolute(binary)?)
    }

    /// What a file describes, installed where it isn't there yet. Where it is a Berth, `berth` is its binary.
    pub(crate) fn described(path: &Path, berth: &Path) -> Result<Self> {
        let description = Description::read(path)?;
        if description.name.starts_with(BERTH_NAME) {
            ensure!(berth.exists(), "{} is missing: run `cargo build --release`", berth.display());
            return Self::new(description, std::path::absolute(berth)?);
        }
        let binary = match locate(&description.command[0]) {
            Ok(binary) => binary,
            Err(missing) if description.install.is_empty() => return Err(missing),
            Err(_) => {
                install(&description.install)?;
                locate(&description.command[0])?
            }
        };
        Self::new(description, binary)
    }

    fn new(description: Description, binary: PathBuf) -> Result<Self> {
        let output = Blocking::new(&binary).args(&description.version).output();
        let output = output.with_context(|| format!("{} can't be run", binary.display()))?;
        // Some say it on one, some on the other.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let version = text.split_whitespace().last().unwrap_or_default().trim_end_matches("+unknown").to_owned();
        Ok(Self { description, binary, version, settings: Vec::new(), under: Vec::new() })
    }

    /// The same, with settings.
    pub(crate) fn with(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())));
        self
    }

    /// The same, run by a program that becomes it, such as valgrind.
    pub(crate) fn under(self, program: Vec<String>) -> Self {
        Self { under: program, ..self }
    }

    /// The same under another name.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.description.name);
        self
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &str {
        &self.description.name
    }

    /// Whether it takes part in a workload.
    pub(crate) fn takes(&self, workload: &str) -> bool {
        let only = &self.description.only;
        only.is_empty() || only.iter().any(|part| workload.contains(part.as_str()))
    }

    /// The size of the binary, in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.binary)?.len())
    }

    /// The command that serves `directory` at `address`.
    fn command(&self, directory: &Path, address: SocketAddr) -> Result<Command> {
        let filled = self.description.fill(directory, address, free_address()?)?;
        let binary = self.binary.display().to_string();
        let mut line = self.under.iter().chain([&binary]).chain(&filled.arguments);
        let mut command = Command::new(line.next().context("no command")?);
        command.env_clear().args(line).envs(filled.environment);
        command.envs(self.settings.iter().map(|(key, value)| (key, value)));
        let log = File::create(directory.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        Ok(command)
    }
}

/// Where a program is: at a path, or else where the shell would find it.
fn locate(program: &str) -> Result<PathBuf> {
    if program.contains('/') {
        ensure!(Path::new(program).exists(), "{program} is missing");
        return Ok(std::path::absolute(program)?);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is not on the PATH"))
}

fn install(command: &[String]) -> Result<()> {
    let tools = std::path::absolute(TOOLS)?.display().to_string();
    let command: Vec<String> = command.iter().map(|part| part.replace("{tools}", &tools)).collect();
    let Some((program, arguments)) = command.split_first() else { bail!("nothing to install with") };
    eprintln!("{}", command.join(" "));
    let status = Blocking::new(program).args(arguments).status().with_context(|| program.clone())?;
    ensure!(status.success(), "`{}` failed", command.join(" "));
    Ok(())
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
    login: Option<Arc<Login>>,
}

impl Server {
    /// Starts one on an empty directory under `data`; with how long it took to answer and what it then holds.
    pub(crate) async fn start(product: &Product, data: &Path) -> Result<(Self, Vec<Sample>)> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let name = product.name().to_lowercase().replace([' ', ','], "-");
        let name = format!("{name}-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let directory = std::path::absolute(data)?.join(SITE).join(name);
        fs::create_dir_all(&directory)?;
        let address = free_address()?;
        let mut command = product.command(&directory, address)?;
        let started = Instant::now();
        let child = command.spawn()?;
        let pid = child.id().context("it ended at once")?;
        let login = product.description.login.clone().map(Arc::new);
        let server = Self { product: product.clone(), child, address, pid, directory, login };
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
            let answered =
                async { Client::connect(self.address).await?.ask("GET", &self.product.description.ready).await };
            if answered.await.is_ok_and(|answer| matches!(answer.status, 200 | 401)) {
                return Ok(());
            }
            ensure!(started.elapsed() < START, "{} doesn't answer; see {}/log", self.name(), self.directory.display());
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What the report calls it.
    pub(crate) fn name(&self) -> &str {
        self.product.name()
    }

    /// A connection to it, by which one logs in where that is asked for.
    pub(crate) async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(self.address).await?.with_login(self.login.clone()))
    }

    /// What its files take on the disk, in bytes, without its log.
    pub(crate) fn disk_bytes(&self) -> u64 {
        let log = fs::metadata(self.directory.join("log")).map_or(0, |log| proc::disk_bytes_of(&log));
        proc::disk_bytes(&self.directory).saturating_sub(log)
    }

    /// Whether it takes part in a workload.
    pub(crate) fn takes(&self, workload: &str) -> bool {
        self.product.takes(workload)
    }

    /// What it has written to its log so far.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("log"))?)
    }

    /// Figures, as this server's.
    pub(crate) fn sample(&self, workload: &'static str, figures: Figures) -> Sample {
        Sample { server: self.name().to_owned(), workload, figures }
    }

    /// Ends it and removes what is large of its data; with the most memory that it ever had, and what its data took on the disk.
    pub(crate) async fn stop(mut self) -> Result<Sample> {
        let memory = proc::memory(self.pid)?;
        let disk = self.disk_bytes() as f64 / f64::from(1 << 20);
        self.child.kill().await?;
        remove_large(&self.directory)?;
        let figures =
            Figures::from([("peak_mib", memory.peak), ("resident_mib_at_end", memory.resident), ("disk_mib", disk)]);
        Ok(self.sample("whole round", figures))
    }
}

/// Where servers have their data while a run lasts. An ext4 without a journal passes over each inode that was freed
/// lately when it makes a file: who removes small files between rounds slows the next one down, by several times.
/// So they stay to the end.
#[derive(Debug)]
pub(crate) struct Site(PathBuf);

/// Its name below the directory for data.
const SITE: &str = "servers";

/// From this size on, in bytes, files go as their server ends: few have it, and they would fill the disk.
const LARGE: u64 = 1 << 20;

impl Site {
    /// An empty one. What a run that was killed has left goes first.
    pub(crate) fn empty(data: &Path) -> Result<Self> {
        let site = Self(std::path::absolute(data)?.join(SITE));
        site.remove()?;
        Ok(site)
    }

    fn remove(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("{} is left over: {error}", self.0.display());
        }
    }
}

fn remove_large(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            remove_large(&entry.path())?;
        } else if found.len() >= LARGE {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
