//! The real binary, as an operator runs it: on ports of its own, over a directory of the test, logs kept.
//!
//! It is told apart from the tests that run in process by what it can do to a server: kill it, stop it, start
//! it again over what it left. Nothing here knows the protocol; that is [`crate::e2e_client`]'s.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{e2e_client::Client, strace};

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// The data directory, where it isn't one of the server's own.
    pub(crate) directory: Option<PathBuf>,
    /// Settings, as environment variables.
    pub(crate) environment: Vec<(String, String)>,
    /// Where `strace` writes what the server calls.
    pub(crate) trace: Option<PathBuf>,
    /// The binary, where it isn't the one that was built with the tests.
    pub(crate) binary: Option<PathBuf>,
}

impl Setup {
    /// The defaults, but for these environment variables.
    pub(crate) fn of(environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Self { environment: environment.collect(), ..Self::default() }
    }

    /// The same over a given directory.
    pub(crate) fn over(self, directory: &Path) -> Self {
        Self { directory: Some(directory.to_owned()), ..self }
    }

    /// Starts it, and waits until it is ready.
    pub(crate) fn start(self) -> Berth {
        let mut berth = self.stopped();
        berth.restart();
        berth
    }

    fn stopped(self) -> Berth {
        let scratch = TempDir::new().unwrap();
        let directory = self.directory.clone().unwrap_or_else(|| scratch.path().join("data"));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Berth { setup: self, directory, scratch, child: None, public: nowhere, admin: nowhere }
    }

    /// Starts it with an admin listener that can't be asked in the clear whether it is ready; it listens then.
    pub(crate) fn start_with_admin_tls(self) -> Berth {
        let mut berth = self.stopped();
        berth.launch();
        berth
    }

    /// Runs it to an end that comes by itself: what a server does that refuses to start.
    pub(crate) fn refused(self) -> (ExitStatus, String) {
        let scratch = TempDir::new().unwrap();
        let directory = self.directory.clone().unwrap_or_else(|| scratch.path().join("data"));
        let output = bare(&self, &directory).arg("serve").output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }
}

/// A server; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Berth {
    setup: Setup,
    directory: PathBuf,
    scratch: TempDir,
    child: Option<Child>,
    public: SocketAddr,
    admin: SocketAddr,
}

impl Berth {
    /// A server with every default.
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    /// `127.0.0.1:<port>`, as clients write it in a reference.
    pub(crate) fn host(&self) -> String {
        self.public.to_string()
    }

    /// The address of the API.
    pub(crate) fn public(&self) -> SocketAddr {
        self.public
    }

    /// The address of health and metrics.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The data directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A client of it, as it runs now: a restart changes its port.
    pub(crate) fn client(&self) -> Client {
        Client::remote(&format!("http://{}", self.public))
    }

    /// Everything that it logged, over all its runs. A request's line may still be on its way for some milliseconds after
    /// the answer; so who needs one looks until it is there.
    pub(crate) fn log(&self) -> String {
        thread::sleep(Duration::from_millis(20));
        fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// The process of the server itself, not of what traces it.
    pub(crate) fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("a running server");
        if self.setup.trace.is_none() {
            return Pid::from_child(child);
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        Pid::from_raw(children.split_whitespace().next().expect("a traced process").parse().unwrap()).unwrap()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it as a power switch does: nothing of it runs any more when this returns.
    pub(crate) fn kill9(&mut self) {
        if self.is_running() {
            self.signal(Signal::KILL);
            self.wait();
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.take().expect("a running server").wait().unwrap()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Starts it again over the same directory, after killing it if it runs. Returns once it is ready.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.launch();
        while !get(self.admin, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            self.pause();
        }
    }

    /// Starts it, and learns where it listens.
    fn launch(&mut self) {
        let before = self.log().len();
        let log = fs::File::options().create(true).append(true).open(self.scratch.path().join("log")).unwrap();
        self.child = Some(bare(&self.setup, &self.directory).arg("serve").stderr(log).spawn().unwrap());
        self.public = self.announced(before, "public");
        self.admin = self.announced(before, "admin");
    }

    /// The address that it says it listens on.
    fn announced(&mut self, before: usize, role: &str) -> SocketAddr {
        loop {
            for line in self.log()[before..].lines() {
                let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
                if fields["message"] == "listening" && fields["role"] == role {
                    return fields["address"].as_str().expect("an address").parse().unwrap();
                }
            }
            self.pause();
        }
    }

    /// Waits a little for a server that must still be there.
    fn pause(&mut self) {
        if !self.is_running() {
            // Nobody is there whom the destructor could end.
            self.child = None;
            panic!("the server ended at its start:\n{}", self.log());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("the end of the server's log:\n{}", tail.join("\n"));
        }
        self.kill9();
    }
}

/// The binary with settings that put `directory` on ports that the system chooses, and nothing of our environment
/// that is a setting; what it is to do is still to be said.
pub(crate) fn bare(setup: &Setup, directory: &Path) -> Command {
    let binary = setup.binary.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_berth").into());
    let mut command = match &setup.trace {
        Some(trace) => {
            let mut command = strace::command(trace);
            command.arg(binary);
            command
        }
        None => Command::new(binary),
    };
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BERTH_") || name == "PORT") {
        command.env_remove(name);
    }
    command
        .env("BERTH_STORAGE__URL", format!("file:{}", directory.display()))
        .env("BERTH_SERVER__LISTEN", "127.0.0.1:0")
        .env("BERTH_ADMIN__LISTEN", "127.0.0.1:0")
        .env("BERTH_LOG__FORMAT", "json")
        .envs(setup.environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // An empty value stands for a variable that isn't set.
    for (name, _) in setup.environment.iter().filter(|(_, value)| value.is_empty()) {
        command.env_remove(name);
    }
    command
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An address of this machine that nobody else listens on: it can't be told to find a free port by itself, and one
/// that is free now may not be when it starts.
pub(crate) fn own_address() -> Ipv4Addr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let [.., process, more] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, process.max(1), more, LAST.fetch_add(1, Ordering::Relaxed))
}

/// What a GET answers, head and body as they came; `None` where nobody listens or the answer breaks off.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect(address).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

/// Runs a program to its end and returns what it printed. An unexpected exit status fails the test with
/// everything that it said.
pub(crate) fn run(command: &mut Command) -> String {
    let (status, said) = outcome(command);
    assert!(status.success(), "{command:?} ended with {status}:\n{said}");
    said
}

/// A command line that is run by a shell, so that a password comes by standard input as people are told to.
pub(crate) fn piped(command: &Command, password: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf %s \"$PASSWORD\" | \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell.env("PASSWORD", password);
    shell
}

/// Runs a program that has to fail, and returns what it said.
pub(crate) fn fails(command: &mut Command) -> String {
    let (status, said) = outcome(command);
    assert!(!status.success(), "{command:?} should have failed:\n{said}");
    said
}

/// A program's exit status, and its standard output; where it failed also its standard error.
fn outcome(command: &mut Command) -> (ExitStatus, String) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| {
        panic!("{command:?} can't be started ({error}): scripts/setup-tests installs what the tests need")
    });
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        said.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status, said)
}
