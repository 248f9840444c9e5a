//! `berth`, the command.

fn main() {}
