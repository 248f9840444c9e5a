//! `docker-credential-berth`, the command: what it does is in [`berth::cli::credential`].

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::cli::credential::main()
}
