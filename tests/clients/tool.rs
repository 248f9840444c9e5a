//! How a client is found and run, with nothing of the user's own settings.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    berth::{fails, run},
    e2e_client::noise,
};

/// What `scripts/setup-check-all` built.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools");

/// A client with a home of its own, where it also works.
pub(crate) struct Tool {
    program: PathBuf,
    /// What it gets before all else.
    options: Vec<String>,
    home: TempDir,
}

impl Tool {
    /// The client of this name, where the script put it or else from the `PATH`.
    pub(crate) fn new(name: &str) -> Self {
        let program = find(name).unwrap_or_else(|| panic!("{name} is missing: scripts/setup-check-all installs it"));
        let home = TempDir::new().unwrap();
        fs::write(home.path().join("config.json"), "{}").unwrap();
        Self { program, options: Vec::new(), home }
    }

    /// The same with options that come before the subcommand of each call.
    pub(crate) fn with(self, options: &[&str]) -> Self {
        Self { options: options.iter().map(|option| (*option).to_owned()).collect(), ..self }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.options).args(arguments).current_dir(self.home()).env("HOME", self.home());
        command.env("XDG_RUNTIME_DIR", self.home()).env("DOCKER_CONFIG", self.home());
        for variable in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "REGCTL_CONFIG"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs it; returns what it printed, without the line feed at the end. Fails if it fails.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments)).trim_end().to_owned()
    }

    /// The same for what is printed as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.run(arguments);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
    }

    /// Runs it and returns what it said on both outputs, the standard one first. Fails if it fails.
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
        assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
        said
    }

    /// Runs it where it has to fail; returns what it said.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        fails(&mut self.command(arguments))
    }

    /// The directory that it works in.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// A path in that directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.home().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file there, and the directories that it is in.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.home().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Reads a file there.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.home().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// Where a program is.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Daemons live in sbin, which an ordinary user's PATH may lack.
    let directories = [PathBuf::from(TOOLS)].into_iter().chain(env::split_paths(&path)).chain(["/usr/sbin".into()]);
    directories.map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// Says at its end how long a test took, and with which client.
pub(crate) struct Timed {
    what: String,
    since: Instant,
}

impl Timed {
    /// The client is the one of this name that the script built.
    pub(crate) fn client(name: &str) -> Self {
        let file = Path::new(TOOLS).join(format!("{name}.version"));
        let version =
            fs::read_to_string(file).unwrap_or_else(|_| panic!("{name}: scripts/setup-check-all installs it"));
        Self::of(version.trim())
    }

    /// Anything else.
    pub(crate) fn of(what: &str) -> Self {
        Self { what: what.to_owned(), since: Instant::now() }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        println!("{}: {:.1} s", self.what, self.since.elapsed().as_secs_f64());
    }
}

/// A server beside Berth that a client needs; it ends when this is dropped.
pub(crate) struct Daemon {
    child: Child,
    /// It works in its home as long as it runs.
    _tool: Tool,
}

impl Daemon {
    /// Starts one, and waits until it is ready.
    pub(crate) fn start(tool: Tool, arguments: &[&str], is_ready: impl Fn() -> bool) -> Self {
        let log = tool.home().join("log");
        let file = fs::File::create(&log).unwrap();
        let mut command = tool.command(arguments);
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut daemon = Self { child: command.spawn().unwrap(), _tool: tool };
        while !is_ready() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended:\n{}", fs::read_to_string(log).unwrap());
            thread::sleep(Duration::from_millis(100));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        self.child.wait().unwrap();
    }
}

/// Pushes an image of a small and a large layer for each platform, as `<image>-<architecture>`, and an image
/// index of them as `image`; returns the index's digest.
pub(crate) fn push_index(image: &str) -> String {
    let crane = Tool::new("crane");
    let mut images = Vec::new();
    for (seed, architecture) in ["amd64", "arm64"].into_iter().enumerate() {
        let (one, platform) = (format!("{image}-{architecture}"), format!("linux/{architecture}"));
        let seed = seed as u64;
        for (layer, size) in [("small", 1000), ("large", 6 << 20)] {
            crane.write(layer, noise(seed + size as u64, size));
            run(Command::new("tar").current_dir(crane.home()).args(["-cf", &format!("{layer}.tar"), layer]));
        }
        crane.run(&["append", "--oci-empty-base", "-f", "small.tar", "-f", "large.tar", "-t", &one]);
        crane.run(&["mutate", "--set-platform", &platform, "-t", &one, &one]);
        images.extend(["-m".to_owned(), one]);
    }
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    crane.run(&[&["index", "append", "-t", image], &images[..]].concat());
    crane.run(&["digest", image])
}
