//! Digests, repositories, tags, upload ids, and what stands in a query.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target makes one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &str| checks::names(input));
