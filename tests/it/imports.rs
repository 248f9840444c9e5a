//! Which part of Berth may know of which: the sources are read, and what points the wrong way is named.
//!
//! The order is the one that ARCHITECTURE.md draws. A part may import from its own level and those before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The levels, lowest first.
const LEVELS: [&[&str]; 16] = [
    &["oci"],
    &["telemetry"],
    &["config"],
    &["outbound"],
    &["google"],
    &["storage"],
    &["index"],
    &["error"],
    &["auth", "event"],
    &[
        "blob",
        "bucket",
        "collect",
        "delivery",
        "epoch",
        "inspect",
        "manifest",
        "outbox",
        "reader",
        "reconcile",
        "registry",
        "roster",
        "tag",
        "upload",
        "verify",
        "worker",
    ],
    &["redirect"],
    &["api"],
    &["server"],
    &["app"],
    &["cli"],
    &["allocator", "main", "lib", "bin"],
];

/// The foreign crates that have owners, and exactly who imports each.
const OWNED: [(&str, &[&str]); 41] = [
    ("argon2", &["auth"]),
    ("aws_config", &["storage"]),
    ("aws_credential_types", &["storage"]),
    ("aws_lc_rs", &["auth", "google", "redirect", "storage"]),
    ("aws_sdk_s3", &["storage"]),
    ("aws_smithy_runtime_api", &["storage"]),
    ("aws_types", &["storage"]),
    ("axum", &["api", "app", "server"]),
    ("base64", &["auth", "cli", "config", "delivery", "google", "redirect", "registry", "storage", "upload"]),
    ("bcrypt", &["auth"]),
    ("crc32fast", &["index"]),
    ("chrono", &["auth", "cli", "google", "storage", "telemetry"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("hmac", &["delivery", "storage", "upload"]),
    ("http", &["api", "cli", "config", "delivery", "server", "storage"]),
    ("http_body", &["api", "server", "storage"]),
    ("http_body_util", &["api"]),
    ("hyper", &["server"]),
    ("hyper_util", &["server"]),
    ("ipnet", &["api", "config", "delivery", "redirect"]),
    ("jsonwebtoken", &["auth"]),
    ("libmimalloc_sys", &["allocator"]),
    ("mimalloc", &["allocator"]),
    ("object_store", &["storage"]),
    ("prometheus_client", &["server", "telemetry"]),
    ("quick_cache", &["auth", "redirect", "registry"]),
    ("quick_xml", &["storage"]),
    ("redb", &["index"]),
    ("redis", &["index"]),
    ("reqwest", &["auth", "cli", "delivery", "google", "outbound", "storage"]),
    ("rustix", &["epoch", "storage", "telemetry"]),
    ("rustls", &["google", "index", "redirect", "server"]),
    ("schemars", &["config"]),
    ("serde_path_to_error", &["config"]),
    ("sha2", &["auth", "delivery", "oci", "storage", "upload"]),
    ("strsim", &["config"]),
    ("tokio_rustls", &["server"]),
    ("tokio_util", &["server"]),
    ("toml", &["config"]),
    ("tracing_subscriber", &["config", "telemetry"]),
];

/// The foreign crates that any part may import.
const SHARED: [&str; 9] =
    ["async_trait", "bytes", "futures_util", "serde", "serde_json", "thiserror", "tokio", "tracing", "ulid"];

/// One path in a source file, by its first two segments.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    line: usize,
    root: String,
    next: String,
}

/// The sources, each with its part: the first folder or file under `src`.
fn sources() -> Vec<(PathBuf, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(&root).unwrap();
            let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
            let part = first.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, part, text));
        }
    }
    found.sort();
    assert!(found.len() > 40, "the sources were not found");
    found
}

/// The text with comments and what stands in quotes blanked out, line by line as before.
fn code(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let end = match text[at..] {
            ['/', '/', ..] => find(&text, at, |rest| rest[0] == '\n'),
            ['/', '*', ..] => find(&text, at + 2, |rest| rest.starts_with(&['*', '/'])) + 2,
            ['r', '#', '"', ..] => find(&text, at + 3, |rest| rest.starts_with(&['"', '#'])) + 2,
            ['"', ..] => end_of_quote(&text, at + 1),
            ['\'', '\\', ..] => find(&text, at + 3, |rest| rest[0] == '\'') + 1,
            ['\'', _, '\'', ..] => at + 3,
            _ => {
                code.push(text[at]);
                at += 1;
                continue;
            }
        };
        code.extend(text[at..end.min(text.len())].iter().map(|&char| if char == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

fn find(text: &[char], from: usize, is_end: impl Fn(&[char]) -> bool) -> usize {
    (from..text.len()).find(|&at| is_end(&text[at..])).unwrap_or(text.len())
}

fn end_of_quote(text: &[char], mut at: usize) -> usize {
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The tokens of code that paths are made of, each with its line: names, `::`, and single characters.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    let mut joins = false;
    for (number, line) in code.lines().enumerate() {
        for char in line.chars() {
            let in_name = char.is_alphanumeric() || char == '_';
            match tokens.last_mut() {
                Some((_, last)) if joins && (in_name || (char == ':' && *last == ":")) => last.push(char),
                _ if char.is_whitespace() => {}
                _ => tokens.push((number + 1, char.to_string())),
            }
            joins = in_name || (char == ':' && tokens.last().is_some_and(|(_, last)| last == ":"));
        }
        joins = false;
    }
    tokens
}

/// All paths of a source: in code by how they begin, in a tree of `use` by each of its branches.
fn imports(text: &str) -> Vec<Import> {
    let tokens = tokens(&code(text));
    let mut imports = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].1 == "use" {
            at = read_use(&tokens, at + 1, &mut Vec::new(), &mut imports);
            continue;
        }
        let word = |place: usize| tokens.get(place).map(|(_, text)| text.as_str());
        let begins = at == 0 || word(at - 1) != Some("::");
        if begins && word(at + 1) == Some("::") && is_name(&tokens[at].1) {
            let next = word(at + 2).unwrap_or_default().to_owned();
            imports.push(Import { line: tokens[at].0, root: tokens[at].1.clone(), next });
        }
        at += 1;
    }
    imports
}

fn is_name(text: &str) -> bool {
    text.starts_with(|char: char| char.is_alphabetic() || char == '_')
}

/// Reads a tree of `use` below a path, up to what ends it; each branch is noted by its first two segments.
fn read_use(tokens: &[(usize, String)], mut at: usize, path: &mut Vec<String>, found: &mut Vec<Import>) -> usize {
    let depth = path.len();
    while let Some((line, token)) = tokens.get(at) {
        match token.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                loop {
                    at = read_use(tokens, at, path, found);
                    if tokens.get(at).is_none_or(|(_, text)| text != ",") {
                        break;
                    }
                    at += 1;
                }
                // Behind the brace that ends the group.
                at += 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 2,
            name => {
                path.push(name.to_owned());
                let is_last = tokens.get(at + 1).is_none_or(|(_, text)| text != "::");
                if path.len() == 2 || (path.len() == 1 && is_last) {
                    let next = path.get(1).cloned().unwrap_or_default();
                    found.push(Import { line: *line, root: path[0].clone(), next });
                }
                at += 1;
            }
        }
    }
    path.truncate(depth);
    at
}

fn level(part: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&part))
}

/// The part of Berth that an import reaches, if it does.
fn reaches(import: &Import, is_at_top: bool) -> Option<&str> {
    let is_from_root = import.root == "crate" || import.root == "berth" || (import.root == "super" && is_at_top);
    (is_from_root && level(&import.next).is_some()).then_some(import.next.as_str())
}

#[test]
fn imports_point_one_way() {
    let mut broken = Vec::new();
    let mut edges = 0;
    for (path, part, text) in sources() {
        let own = level(&part).unwrap_or_else(|| panic!("{} is in no level: give it one", path.display()));
        let is_at_top = path.parent().unwrap().ends_with("src") || path.ends_with("mod.rs");
        for import in imports(&text) {
            let Some(other) = reaches(&import, is_at_top) else { continue };
            edges += 1;
            if level(other).unwrap() > own {
                broken.push(format!("{}:{}: {part} may not import {other}", path.display(), import.line));
            }
        }
    }
    assert!(edges > 100, "only {edges} imports were found: the reading is broken");
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn each_foreign_crate_has_its_owners() {
    let mut users: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for (path, part, text) in sources() {
        for import in imports(&text) {
            if let Some((owned, _)) = OWNED.iter().find(|(owned, _)| import.root == *owned) {
                let place = format!("{}:{}", path.display(), import.line);
                users.entry(owned).or_default().entry(part.clone()).or_insert(place);
            }
        }
    }
    let mut broken = Vec::new();
    for (owned, owners) in OWNED {
        let used = users.remove(owned).unwrap_or_default();
        for (part, place) in used.iter().filter(|(part, _)| !owners.contains(&part.as_str())) {
            broken.push(format!("{place}: {owned} belongs to {owners:?}, not to {part}"));
        }
        for owner in owners.iter().filter(|owner| !used.contains_key(**owner)) {
            broken.push(format!("{owner} no longer imports {owned}: take it off the list"));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// A new dependency is either anybody's or has owners: somebody decides.
#[test]
fn each_dependency_is_listed() {
    let manifest: toml::Table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap().parse().unwrap();
    let named: BTreeSet<String> =
        manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect();
    let listed: BTreeSet<String> = OWNED.iter().map(|(name, _)| *name).chain(SHARED).map(ToOwned::to_owned).collect();
    assert_eq!(listed, named);
}

#[test]
fn paths_are_read_wherever_they_stand() {
    let text = r#"
//! Not [`crate::api`].
use crate::{
    blob::{self, Blob},
    error::{Error, Result}, index, // crate::server
};
use super::tag;
use std::fmt as f;
fn x<'a>() -> crate::app::App { "crate::cli"; '"'; redb::x(); a::redis::y() }
"#;
    let found: Vec<(usize, String)> =
        imports(text).into_iter().map(|Import { line, root, next }| (line, format!("{root}::{next}"))).collect();
    let expected = [
        (4, "crate::blob"),
        (5, "crate::error"),
        (5, "crate::index"),
        (7, "super::tag"),
        (8, "std::fmt"),
        (9, "crate::app"),
        (9, "redb::x"),
        (9, "a::redis"),
    ];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}
