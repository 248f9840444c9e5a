//! Request lines: a byte for the method, the path, and behind the first line break the query.
#![no_main]

#[path = "../checks.rs"]
#[expect(dead_code, reason = "each target makes one check")]
mod checks;

/// Those that mean something, and one that doesn't.
const METHODS: [http::Method; 7] = [
    http::Method::GET,
    http::Method::HEAD,
    http::Method::PUT,
    http::Method::POST,
    http::Method::PATCH,
    http::Method::DELETE,
    http::Method::TRACE,
];

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (method, target) = input;
    let (path, query) = target.split_once('\n').map_or((target, None), |(path, query)| (path, Some(query)));
    checks::route(&METHODS[usize::from(method) % METHODS.len()], path, query);
});
