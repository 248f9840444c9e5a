//! A Docker daemon of a test's own, on a socket of its own.
//!
//! It shares nothing with one that runs on the machine but, where a test asks for a network, the bridge.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{PoisonError, RwLock, RwLockWriteGuard},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{berth::run, e2e_client::noise};

/// A daemon without a network removes the machine's bridge as it starts, under the containers of one with.
static BRIDGE: RwLock<()> = RwLock::new(());

/// A Docker daemon; it ends when this is dropped.
pub(crate) struct Daemon {
    directory: TempDir,
    child: Option<Child>,
    /// Held by one with a network for as long as it runs.
    _bridge: Option<RwLockWriteGuard<'static, ()>>,
}

impl Daemon {
    /// Starts one with overlay2, or with vfs where the file system can't carry that.
    pub(crate) fn start() -> Self {
        let _starting = BRIDGE.read().unwrap_or_else(PoisonError::into_inner);
        Self::on(&["--bridge=none"], None)
    }

    /// The same with a network for containers.
    pub(crate) fn with_network() -> Self {
        let bridge = BRIDGE.write().unwrap_or_else(PoisonError::into_inner);
        Self::on(&[], Some(bridge))
    }

    fn on(network: &[&str], bridge: Option<RwLockWriteGuard<'static, ()>>) -> Self {
        let mut daemon = Self { directory: TempDir::new().unwrap(), child: None, _bridge: bridge };
        let started = daemon.starts_with("overlay2", network) || daemon.starts_with("vfs", network);
        assert!(started, "{}", daemon.log());
        daemon
    }

    fn starts_with(&mut self, driver: &str, network: &[&str]) -> bool {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut child = Command::new("dockerd")
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .arg("-H")
            .arg(self.socket())
            .args(["--iptables=false", "--ip6tables=false"])
            .args(network)
            .args(["--storage-driver", driver, "--insecure-registry", "127.0.0.0/8"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd is needed: scripts/setup-tests installs it");
        while child.try_wait().unwrap().is_none() {
            if self.docker(&["info"]).output().is_ok_and(|output| output.status.success()) {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(100));
        }
        false
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What `DOCKER_HOST` names it by.
    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.path("sock").display())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.socket()]).args(arguments);
        command.env("DOCKER_CONFIG", self.path("config")).env("DOCKER_BUILDKIT", "0");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.docker(arguments))
    }

    /// Builds the image `berth` as `make image` does, of the binary that is tested.
    pub(crate) fn build_berth(&self) {
        let (project, context) = (Path::new(env!("CARGO_MANIFEST_DIR")), self.path("berth"));
        let mut stage = Command::new(project.join("scripts/stage-image"));
        run(stage.arg(env!("CARGO_BIN_EXE_berth")).arg(&context));
        // What is only there to be read by a debugger would be most of the image.
        run(Command::new("strip").arg(context.join("root/usr/bin/berth")));
        let dockerfile = project.join("infra/Dockerfile");
        let (dockerfile, context) = (dockerfile.to_str().unwrap(), context.to_str().unwrap());
        self.run(&["build", "--tag", "berth", "--build-arg", "SOURCE_COMMIT=abc", "--file", dockerfile, context]);
    }

    /// The id of an image: the digest of its config, so the same bytes have the same.
    pub(crate) fn id(&self, image: &str) -> String {
        self.run(&["image", "inspect", "--format", "{{.Id}}", image])
    }

    /// An image of one layer, a tar of one file with these many bytes that can't be compressed.
    pub(crate) fn import(&self, image: &str, size: usize) {
        fs::write(self.path("noise"), noise(size as u64, size)).unwrap();
        let tar = self.path(&format!("{size}.tar"));
        run(Command::new("tar").arg("-C").arg(self.directory.path()).arg("-cf").arg(&tar).arg("noise"));
        self.run(&["import", tar.to_str().unwrap(), image]);
    }

    /// Takes an image away and pulls it again; fails unless it is the same.
    pub(crate) fn pull_again(&self, image: &str) {
        let id = self.id(image);
        self.run(&["rmi", "--force", id.trim()]);
        self.run(&["pull", image]);
        assert_eq!(self.id(image), id);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }
}
