//! Docker, with a daemon of the test's own: what it pushes is what it pulls.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    berth::{Berth, fails, run},
    e2e_client::noise,
};

/// A Docker daemon; it ends when this is dropped.
pub(crate) struct Daemon {
    directory: TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one with overlay2, or with vfs where the file system can't carry that.
    pub(crate) fn start() -> Self {
        let mut daemon = Self { directory: TempDir::new().unwrap(), child: None };
        assert!(daemon.starts_with("overlay2") || daemon.starts_with("vfs"), "{}", daemon.log());
        daemon
    }

    fn starts_with(&mut self, driver: &str) -> bool {
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
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
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

    fn socket(&self) -> String {
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

    /// The id of an image: the digest of its config, so the same bytes have the same.
    fn id(&self, image: &str) -> String {
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

/// Images of one small and one large layer, pushed, pushed again, retagged, and pulled.
#[test]
fn docker_pulls_what_it_pushed() {
    let (berth, daemon) = (Berth::start(), Daemon::start());
    for (name, size) in [("small", 1000), ("large", 11 << 20)] {
        let image = format!("{}/team/{name}:1", berth.host());
        daemon.import(&image, size);
        daemon.run(&["push", &image]);
        let again = daemon.run(&["push", &image]);
        assert!(again.contains("Layer already exists") && !again.contains("Pushed"), "{again}");
        let retagged = format!("{}/team/{name}:2", berth.host());
        daemon.run(&["tag", &image, &retagged]);
        daemon.run(&["push", &retagged]);
        daemon.pull_again(&image);
        assert_eq!(daemon.run(&["pull", "--quiet", &retagged]).trim(), retagged);
        assert_eq!(daemon.id(&retagged), daemon.id(&image));
    }
}

#[tokio::test]
async fn docker_builds_pushes_mounts_and_sees_a_manifest_go() {
    let (berth, daemon) = (Berth::start(), Daemon::start());
    let context = daemon.path("context");
    fs::create_dir(&context).unwrap();
    for name in ["one", "two", "three"] {
        fs::write(context.join(name), noise(name.len() as u64, 50_000)).unwrap();
    }
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY one /\nCOPY two /\nCOPY three /\nCMD [\"/one\"]\n")
        .unwrap();
    let image = format!("{}/team/app:1", berth.host());
    daemon.run(&["build", "--tag", &image, context.to_str().unwrap()]);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);

    let other = format!("{}/other/app:1", berth.host());
    daemon.run(&["tag", &image, &other]);
    let mounted = daemon.run(&["push", &other]);
    assert_eq!(mounted.matches("Mounted from team/app").count(), 3, "{mounted}");
    daemon.pull_again(&other);

    let client = berth.client();
    let digest = client.head("/v2/team/app/manifests/1").await.expect(200).header("docker-content-digest").to_owned();
    client.delete(&format!("/v2/team/app/manifests/{digest}")).await.expect(202);
    let said = fails(&mut daemon.docker(&["pull", &image]));
    assert!(said.contains("manifest unknown") || said.contains("not found"), "{said}");
    daemon.pull_again(&other);
}
