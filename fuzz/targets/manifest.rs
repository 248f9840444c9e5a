//! Manifests: the Content-Type, a line break, the body.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target makes one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else { return checks::manifest(input, None) };
    let content_type = std::str::from_utf8(&input[..end]).ok();
    checks::manifest(&input[end + 1..], content_type);
});
