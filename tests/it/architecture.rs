//! The papers stay true: links lead somewhere, commands are ones that Berth knows, settings are settings, and
//! what ARCHITECTURE.md names is there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The markdown files of the project: those at the top and those in `docs`.
fn papers() -> Vec<(PathBuf, String)> {
    let mut papers = Vec::new();
    for folder in [root().to_owned(), root().join("docs")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                papers.push((path, text));
            }
        }
    }
    assert!(papers.len() > 8, "the papers were not found");
    papers
}

/// What stands between `open` and `close`, wherever that is in one line.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().flat_map(move |line| line.split(open).skip(1).filter_map(move |rest| rest.split(close).next()))
}

/// What is set as code within a line.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The fenced blocks in a language.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}");
    let (mut found, mut block): (Vec<String>, Option<&str>) = (Vec::new(), None);
    for line in text.lines() {
        match (line.starts_with("```"), block) {
            (true, None) => {
                block = Some(line);
                if line == begin {
                    found.push(String::new());
                }
            }
            (true, Some(_)) => block = None,
            (false, Some(opened)) if opened == begin => {
                if let Some(last) = found.last_mut() {
                    *last += &format!("{line}\n");
                }
            }
            (false, _) => {}
        }
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for (path, text) in papers() {
        for link in between(&text, "](", ")").filter(|link| !link.starts_with("https://")) {
            let file = link.split('#').next().unwrap();
            assert!(path.parent().unwrap().join(file).exists(), "{}: {link} leads nowhere", path.display());
            count += 1;
        }
    }
    assert!(count > 8, "only {count} links were found");
}

/// `--help` makes clap parse everything before it, and run nothing.
fn assert_is_command(command: &str) {
    // A shell takes the quotes away.
    let words =
        command.split_whitespace().skip(1).filter(|word| !word.contains('=')).map(|word| word.trim_matches('\''));
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(words)
        .arg("--help")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let usage = String::from_utf8(output.stdout).unwrap();
    let named = usage.lines().find(|line| line.starts_with("Usage:")).unwrap();
    let subcommand = command.split_whitespace().nth(1).unwrap();
    assert!(named.contains(&format!("berth {subcommand}")), "{command}: {named}");
}

#[test]
fn every_command_is_one() {
    let mut count = 0;
    for (path, text) in papers() {
        let shown = blocks(&text, "sh").concat();
        // Behind the command there may be a remark, or the file that it writes to.
        let command = |line: &'_ str| line.split(" #").next().unwrap().split(" > ").next().unwrap().trim().to_owned();
        let lines: Vec<String> = shown.lines().map(command).collect();
        let spans = spans(&text).filter(|span| span.starts_with("berth ") && !span.contains('…'));
        let lines = lines.iter().map(String::as_str).filter(|line| line.starts_with("berth "));
        for command in lines.chain(spans) {
            println!("{}: {command}", path.display());
            assert_is_command(command);
            count += 1;
        }
    }
    assert!(count > 10, "only {count} commands were found");
}

/// A file of settings that is shown can be used as it is.
#[test]
fn every_example_of_settings_is_accepted() {
    let mut count = 0;
    for (path, text) in papers() {
        for block in blocks(&text, "toml") {
            if !block.starts_with('[') {
                continue;
            }
            // The files that secrets are read from are not on this machine.
            let block = block.replace("secret_access_key_file", "secret_access_key");
            let secret = "secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"";
            let block = block
                .replace("secret_file = \"/run/secrets/berth-webhook\"", secret)
                .replace("headers_file = \"/run/secrets/github-headers\"", "");
            let key = "key = \"-----BEGIN PRIVATE KEY-----\"";
            let block = block
                .replace("private_key_file = \"/etc/berth/cloudfront.pem\"", &format!("private_{key}"))
                .replace("key_file = \"/etc/berth/cdn.key\"", "key = \"AAAAAAAAAAAAAAAAAAAAAA==\"")
                .replace("credentials_file = \"/etc/berth/google.json\"", "credentials = \"{}\"")
                .replace("credentials_file = \"/run/secrets/publisher.json\"", "credentials = \"{}\"")
                .replace("keys_file = \"/etc/berth/keys.pem\"", &key.replace("key =", "keys ="));
            if let Err(error) = berth::config::Config::parse(Path::new("example.toml"), &block) {
                panic!("{}: {error}", path.display());
            }
            count += 1;
        }
    }
    assert!(count >= 3, "only {count} examples were found");
}

/// Every source and every test that ARCHITECTURE.md names is there, and no part is left out of its map.
#[test]
fn the_architecture_is_that_of_the_code() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 200, "ARCHITECTURE.md is longer than 200 lines");
    let before_walks = text.split("## Three walks").next().unwrap();
    for span in spans(before_walks) {
        if span.starts_with("src/") || span.starts_with("tests/") {
            assert!(root().join(span).exists(), "{span} isn't there");
        }
        if let Some((file, name)) =
            span.split_once("::").filter(|(file, _)| root().join(format!("tests/it/{file}.rs")).exists())
        {
            let test = fs::read_to_string(root().join(format!("tests/it/{file}.rs"))).unwrap();
            assert!(test.contains(&format!("fn {name}(")), "there is no test {span}");
        }
    }
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !matches!(name.as_str(), "main.rs" | "lib.rs") {
            assert!(text.contains(&format!("`src/{name}")), "src/{name} is missing in the map");
        }
    }
}

/// What the walks name is a function, a type or a module of ours.
#[test]
fn the_walks_name_what_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let walks = text.split("## Three walks").nth(1).unwrap();
    let (mut folders, mut sources) = (vec![root().join("src")], String::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    for span in spans(walks) {
        let last = span.rsplit("::").next().unwrap();
        let is_there = ["fn ", "struct ", "enum ", "trait ", "mod "].iter().any(|kind| {
            sources.match_indices(&format!("{kind}{last}")).any(|(at, found)| {
                !sources[at + found.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
            })
        });
        assert!(is_there || last == "Replace" || last == "settled", "nothing is called {span}");
    }
}

/// Every metric that a running Berth shows is explained, and none that it doesn't show.
#[test]
fn every_metric_is_explained() {
    let text = fs::read_to_string(root().join("docs/metrics-and-logs.md")).unwrap();
    let metrics = berth::telemetry::Metrics::new("test");
    // A family without a series is not shown.
    metrics.request_ended("GET", "blob", 200, std::time::Duration::ZERO);
    metrics.connections("public").inc();
    metrics.collected.found("link");
    metrics.events.counted("ci", 0, std::time::Duration::ZERO, 0);
    metrics.events.became("ci", berth::telemetry::DeliveryOutcome::Delivered, 1);
    metrics.collected.removed("link");
    for calls in [&metrics.store, &metrics.index] {
        calls.operation("read").ended(std::time::Instant::now(), "ok");
    }
    let shown = metrics.encode().unwrap();
    let shown: Vec<&str> = between(&shown, "# TYPE ", " ").collect();
    assert!(shown.len() > 10, "{shown:?}");
    for name in &shown {
        assert!(text.contains(&format!("`{name}`")), "{name} is not explained");
    }
    let is_metric = |span: &&str| ["berth_", "http_server_", "process_"].iter().any(|start| span.starts_with(start));
    for named in spans(&text).filter(is_metric) {
        assert!(shown.contains(&named), "there is no metric {named}");
    }
}
