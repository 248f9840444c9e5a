//! Regctl, which asks for more of the specification than any other client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Stdio;

use serde_json::Value;

use crate::{
    berth::Berth,
    e2e_client::{noise, sha256},
    tool::{Timed, Tool, push_index},
};

/// Regctl, told that this server has no TLS.
fn regctl(berth: &Berth) -> Tool {
    let host = format!("reg={},tls=disabled", berth.host());
    Tool::new("regctl").with(&["--host", &host])
}

/// Runs it with these bytes as its input.
fn feed(regctl: &Tool, arguments: &[&str], bytes: &[u8]) -> String {
    regctl.write("input", bytes);
    let input = std::fs::File::open(regctl.home().join("input")).unwrap();
    let output = regctl.command(arguments).stdin(input).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

#[test]
fn regctl_copies_images_and_walks_what_there_is() {
    let (_timed, berth) = (Timed::client("regctl"), Berth::start());
    let regctl = regctl(&berth);
    let image = format!("{}/team/app:all", berth.host());
    let digest = push_index(&image);
    let of = |image: &str| regctl.run(&["image", "digest", image]);
    // Into another repository, and through a directory.
    let (copy, back) = (format!("{}/copied/app:all", berth.host()), format!("{}/back/app:all", berth.host()));
    regctl.run(&["image", "copy", &image, &copy]);
    regctl.run(&["image", "copy", &copy, "ocidir://layout:all"]);
    regctl.run(&["image", "copy", "ocidir://layout:all", &back]);
    for image in [&image, &copy, &back] {
        assert_eq!(of(image), digest, "{image}");
    }
    assert!(regctl.run(&["manifest", "head", &image, "--format", "raw-headers"]).to_lowercase().contains(&digest));
    let index = regctl.json(&["manifest", "get", &back, "--format", "raw-body"]);
    for child in index["manifests"].as_array().unwrap() {
        let child = child["digest"].as_str().unwrap();
        assert_eq!(of(&format!("{}/back/app@{child}", berth.host())), child);
    }

    let repository = format!("{}/team/app", berth.host());
    assert_eq!(regctl.run(&["tag", "ls", &repository]), "all\nall-amd64\nall-arm64");
    assert_eq!(regctl.run(&["tag", "ls", "--limit", "1", "--last", "all", &repository]), "all-amd64");
    assert_eq!(regctl.run(&["repo", "ls", &berth.host()]), "back/app\ncopied/app\nteam/app");
    assert_eq!(regctl.run(&["repo", "ls", "--limit", "1", "--last", "back/app", &berth.host()]), "copied/app");
    regctl.run(&["tag", "rm", &format!("{repository}:all")]);
    assert_eq!(regctl.run(&["tag", "ls", &repository]), "all-amd64\nall-arm64");
    // The tag went, and not what it pointed at.
    assert_eq!(of(&format!("{repository}@{digest}")), digest);
    regctl.run(&["manifest", "rm", &format!("{repository}@{digest}")]);
    let gone = regctl.fails(&["manifest", "get", &format!("{repository}@{digest}")]);
    assert!(gone.contains("not found") || gone.contains("404"), "{gone}");
}

#[test]
fn regctl_puts_and_gets_blobs_of_any_size() {
    let (_timed, berth) = (Timed::client("regctl"), Berth::start());
    let regctl = regctl(&berth);
    let repository = format!("{}/team/blobs", berth.host());
    for size in [0, 1, 5 << 20, (17 << 20) + 3] {
        let bytes = noise(7, size);
        let digest = sha256(&bytes);
        assert_eq!(feed(&regctl, &["blob", "put", &repository], &bytes), digest);
        let head = regctl.run(&["blob", "head", &repository, &digest]).to_lowercase();
        assert!(head.contains(&format!("content-length: {size}")), "{head}");
        let output = regctl.command(&["blob", "get", &repository, &digest]).output().unwrap();
        assert!(output.status.success() && output.stdout == bytes, "{size}");
    }
    let copied = format!("{}/copied/blobs", berth.host());
    let digest = sha256(&noise(7, 5 << 20));
    regctl.run(&["blob", "copy", &repository, &copied, &digest]);
    let output = regctl.command(&["blob", "get", &copied, &digest]).output().unwrap();
    assert!(output.stdout == noise(7, 5 << 20));
    regctl.run(&["blob", "delete", &copied, &digest]);
    regctl.fails(&["blob", "get", &copied, &digest]);
}

#[test]
fn regctl_lists_the_artifacts_of_a_subject() {
    let (_timed, berth) = (Timed::client("regctl"), Berth::start());
    let regctl = regctl(&berth);
    let subject = format!("{}/team/app:all", berth.host());
    push_index(&subject);
    let put = |subject: &str, kind: &str| {
        let by_digest = [
            "artifact",
            "put",
            "--artifact-type",
            kind,
            "--subject",
            subject,
            "--format",
            "{{.Manifest.GetDescriptor.Digest}}",
        ];
        feed(&regctl, &by_digest, kind.as_bytes())
    };
    let listed = |image: &str| -> Vec<String> {
        let list = regctl.json(&["artifact", "list", image, "--format", "{{json .Descriptors}}"]);
        let kind = |one: &Value| one["artifactType"].as_str().unwrap().to_owned();
        let mut kinds: Vec<String> = list.as_array().into_iter().flatten().map(kind).collect();
        kinds.sort_unstable();
        kinds
    };
    assert_eq!(listed(&subject), Vec::<String>::new());
    let sbom = put(&subject, "application/vnd.test.sbom");
    let signature = put(&subject, "application/vnd.test.signature");
    let both = ["application/vnd.test.sbom", "application/vnd.test.signature"];
    assert_eq!(listed(&subject), both);
    let of_type =
        ["artifact", "list", &subject, "--filter-artifact-type", both[0], "--format", "{{json .Descriptors}}"];
    let filtered = regctl.json(&of_type);
    assert_eq!(filtered.as_array().unwrap().len(), 1, "{filtered}");
    assert_eq!(filtered[0]["digest"], Value::from(sbom.as_str()));
    assert_eq!(regctl.run(&["artifact", "get", "--subject", &subject, "--filter-artifact-type", both[1]]), both[1]);

    let copy = format!("{}/copied/app:all", berth.host());
    regctl.run(&["image", "copy", "--referrers", &subject, &copy]);
    assert_eq!(listed(&copy), both);
    regctl.run(&["manifest", "rm", &format!("{}/team/app@{signature}", berth.host())]);
    assert_eq!(listed(&subject), both[..1]);
    assert_eq!(listed(&copy), both);
}
