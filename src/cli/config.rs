//! `berth config`: what counts, and what could be set.

use clap::Subcommand;

use super::{Failure, load, print};
use crate::config::{LoadArgs, schema};

/// Look at the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration and print what counts: TOML, each line with where its value came from.
    Check,
    /// Print the JSON Schema of the configuration file.
    Schema,
}

/// Does one of them.
pub(super) fn run(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    match command {
        Command::Check => print(load(args)?.render().as_bytes()),
        Command::Schema => print(format!("{:#}\n", schema()).as_bytes()),
    }
}
