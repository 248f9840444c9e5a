//! Ranges and validators: the size of the blob, then two headers.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target makes one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: (u64, &[u8], &[u8])| checks::ranges(input.1, input.2, input.0));
