//! `berth`, the command: its result becomes an exit status, and nothing else happens here.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    allocator::give_back_at_once();
    berth::cli::main()
}
