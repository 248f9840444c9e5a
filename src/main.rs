//! `berth`, the command: its result becomes an exit status, and nothing else happens here.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::cli::main()
}
