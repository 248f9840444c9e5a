//! Values of the index.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target makes one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::facts(input));
