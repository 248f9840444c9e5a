//! The command line: what `berth` can be told to do, and how it ends.
//!
//! Each command is one variant here and one file beside this one. Nothing here does the work.

mod access;
mod account;
mod config;
mod configure_docker;
pub mod credential;
mod desk;
mod events;
mod gc;
mod health;
mod index;
mod inspect;
mod keys;
mod rule;
mod serve;
mod storage;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::LazyLock,
};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    app::StartError,
    config::{Config, ConfigError, LoadArgs, Loaded, environment},
    error::Error,
    index::IndexError,
    storage::local::OpenError,
};

/// How `berth --help` ends.
const AFTER_HELP: &str = "\
Examples:
  berth serve                                 a registry on 127.0.0.1:5000, in ./berth-data
  berth serve --config /srv/berth.toml        settings from a file
  BERTH_STORAGE__URL=s3://my-bucket berth serve
                                              a setting from the environment
  berth config check                          what counts, and where each setting came from
  berth account create ci --role writer --repository 'team/*' > key.json
                                              a service account, and its key
  berth access explain --as ci --repository team/app --action push
                                              what it may do, and the rule that says so
  berth events test ci                        send an endpoint a sample, and see what comes back
  berth index rebuild                         fill a new index from the bucket
  berth index verify                          compare the index with the bucket
  berth storage check                         try whether the store is what Berth needs
  berth gc run --dry-run                      what nothing needs, and why
  berth inspect tag team/app:v1               what index and bucket say of a tag
  berth configure-docker r.example.com        let docker log in by docker-credential-berth

Configuration:
  One TOML file: --config, else BERTH_CONFIG, else /etc/berth/berth.toml. Each key is also an environment
  variable, which wins: server.listen is BERTH_SERVER__LISTEN.

Exit status: 0 done; 2 a mistake in the configuration or the command line; 1 anything else, also where
index and bucket disagree.";

/// Berth: a container registry in one binary.
#[derive(Debug, Parser)]
#[command(name = "berth", version = version(), arg_required_else_help = true, after_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file. [default: the one that BERTH_CONFIG names, else /etc/berth/berth.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the registry until it is told to stop.
    Serve,
    /// Look at the configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Look at what nothing needs, or remove it.
    #[command(subcommand)]
    Gc(gc::Command),
    /// Manage service accounts: who isn't a person, and logs in with a key.
    #[command(subcommand)]
    Account(account::Command),
    /// Manage access rules, beside those of the configuration.
    #[command(subcommand)]
    Rule(rule::Command),
    /// See what somebody may do, and which rule says so.
    #[command(subcommand)]
    Access(access::Command),
    /// See what is told to endpoints, and what could not be.
    #[command(subcommand)]
    Events(events::Command),
    /// See, make and change the keys that sign tokens.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Look at the index, compare it with the bucket, or begin a new one.
    #[command(subcommand)]
    Index(index::Command),
    /// Try whether the store is what Berth needs.
    #[command(subcommand)]
    Storage(storage::Command),
    /// Show what the index says of a thing, what the bucket says, and where they disagree. Changes nothing.
    Inspect(inspect::Arguments),
    /// Have Docker log in to registries through docker-credential-berth, which must be in the PATH.
    ConfigureDocker(configure_docker::Arguments),
    /// Ask the server that runs here whether it is ready: exit status 0 if it is.
    Health,
    /// Print a completion script for a shell, such as: berth completions bash > /etc/bash_completion.d/berth
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The settings are wrong: exit status 2, as for a wrong command line.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An argument is not what it should be: exit status 2.
    #[error("{0}")]
    Argument(String),
    /// What the configuration names can't be used: exit status 1, as all that follow.
    #[error(transparent)]
    Start(StartError),
    /// A running server has what the command needs.
    #[error(
        "{0}; stop the server that uses it first (with a bucket on S3 and an index in Redis this works beside one)"
    )]
    Held(String),
    /// The keys that sign tokens can't be read, made or written.
    #[error("the keys for tokens: {0}")]
    Keys(String),
    /// The registry did not do it.
    #[error(transparent)]
    Registry(#[from] Error),
    /// A server did not do it, or was not reached.
    #[error("{0}")]
    Refused(String),
    /// Things were found of which the index and the bucket say different things.
    #[error("index and bucket disagree: {0} found")]
    Disagree(usize),
    /// The store isn't what Berth needs.
    #[error("the store breaks {0} of the promises that Berth rests on")]
    Broken(usize),
    /// The rebuild left out what isn't whole.
    #[error("{0} things in the bucket lack what they need and were left out; each has a line above")]
    Dangling(usize),
    /// The server that runs here wants no requests, or none runs.
    #[error("not ready: {0}")]
    NotReady(String),
    /// Somebody asked twice to stop, and requests were still running.
    #[error("stopped at once, at the second signal")]
    Forced,
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Argument(_) => ExitCode::from(2),
            Self::Start(_)
            | Self::Held(_)
            | Self::Keys(_)
            | Self::Registry(_)
            | Self::Refused(_)
            | Self::Disagree(_)
            | Self::Broken(_)
            | Self::Dangling(_)
            | Self::NotReady(_)
            | Self::Forced
            | Self::Io(_) => ExitCode::FAILURE,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Directory(OpenError::Locked { directory, holder }) => {
                Self::Held(format!("{} is in use by another process ({holder})", directory.display()))
            }
            StartError::Index(IndexError::Broken(why)) if why.ends_with("is open in another process") => {
                Self::Held(why)
            }
            other => Self::Start(other),
        }
    }
}

/// The release, and the commit where the build was told of one.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let release = env!("CARGO_PKG_VERSION");
        option_env!("SOURCE_COMMIT").map_or_else(|| release.to_owned(), |commit| format!("{release} ({commit})"))
    });
    &VERSION
}

/// Does what the process's arguments say. A failure is one line on standard error.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody may be listening on standard error; the exit status still says it.
            let _ = writeln!(io::stderr(), "berth: {failure}");
            failure.exit_code()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let args = LoadArgs { config: arguments.config };
    match arguments.command {
        Command::Serve => serve::serve(load(args.clone())?, args),
        Command::Config(command) => config::run(&command, args),
        Command::Gc(command) => gc::run(&command, &load(args)?),
        Command::Account(command) => account::run(&command, args),
        Command::Rule(command) => rule::run(&command, args),
        Command::Access(command) => access::run(&command, args),
        Command::Events(command) => events::run(&command, args),
        Command::Keys(command) => keys::run(&command, || load(args)),
        Command::Index(command) => index::run(command, &load(args)?),
        Command::Storage(command) => storage::run(&command, &load(args)?),
        Command::Health => health::run(&load(args)?.config),
        Command::Inspect(arguments) => inspect::run(&arguments, args),
        Command::ConfigureDocker(arguments) => configure_docker::run(&arguments),
        Command::Completions { shell } => completions(shell),
    }
}

fn load(args: LoadArgs) -> Result<Loaded, Failure> {
    Ok(Config::load(args, environment()?)?)
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "berth", &mut script);
    print(&script)
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
