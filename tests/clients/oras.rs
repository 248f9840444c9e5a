//! ORAS: artifacts and what is attached to them, found by the referrers API and by the tag that stands in
//! for it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

use crate::{
    berth::Berth,
    e2e_client::noise,
    tool::{Timed, Tool},
};

/// The artifact types of the referrers that a discovery found, sorted.
fn types(found: &Value) -> Vec<&str> {
    let referrers = found["referrers"].as_array().unwrap();
    let mut types: Vec<&str> = referrers.iter().map(|referrer| referrer["artifactType"].as_str().unwrap()).collect();
    types.sort_unstable();
    types
}

#[test]
fn oras_attaches_discovers_and_copies() {
    let (_timed, berth, oras) = (Timed::client("oras"), Berth::start(), Tool::new("oras"));
    let subject = format!("{}/team/artifact:1", berth.host());
    oras.write("small.txt", "a small file");
    oras.write("large.bin", noise(1, 11 << 20));
    let push = ["push", "--plain-http", "--artifact-type", "application/vnd.test.thing", &subject];
    oras.run(&[&push[..], &["small.txt:text/plain", "large.bin"]].concat());
    oras.run(&["pull", "--plain-http", "-o", "pulled", &subject]);
    for file in ["small.txt", "large.bin"] {
        assert!(oras.read(&format!("pulled/{file}")) == oras.read(file), "{file} differs");
    }

    oras.write("sbom.json", "{}");
    let attach = |kind: &str, more: &[&str]| {
        let attach = ["attach", "--plain-http", "--artifact-type", kind, &subject, "sbom.json"];
        oras.json(&[&attach[..], &["--format", "json"], more].concat())
    };
    let sbom = attach("application/vnd.test.sbom", &[]);
    attach("application/vnd.test.signature", &["--distribution-spec", "v1.1-referrers-api"]);
    let nested = sbom["reference"].as_str().unwrap();
    oras.run(&["attach", "--plain-http", "--artifact-type", "application/vnd.test.nested", nested, "small.txt"]);
    let discover = |image: &str, more: &[&str]| {
        oras.json(&[&["discover", "--plain-http", "--format", "json", image], more].concat())
    };
    let both = ["application/vnd.test.sbom", "application/vnd.test.signature"];
    assert_eq!(types(&discover(&subject, &[])), both);
    let filtered = discover(&subject, &["--artifact-type", "application/vnd.test.sbom"]);
    assert_eq!(types(&filtered), ["application/vnd.test.sbom"]);
    assert_eq!(filtered["referrers"][0]["digest"], sbom["digest"]);

    // An old client's way: an image index under a tag that is named after the subject.
    attach("application/vnd.test.old", &["--distribution-spec", "v1.1-referrers-tag"]);
    let old = discover(&subject, &["--distribution-spec", "v1.1-referrers-tag"]);
    assert_eq!(types(&old), ["application/vnd.test.old"]);
    assert_eq!(types(&discover(&subject, &[])).len(), 3);

    let copy = format!("{}/copied/artifact:1", berth.host());
    oras.run(&["cp", "-r", "--from-plain-http", "--to-plain-http", &subject, &copy]);
    let resolve = |image: &str| oras.run(&["resolve", "--plain-http", image]);
    assert_eq!(resolve(&copy), resolve(&subject));
    assert_eq!(types(&discover(&copy, &[])), types(&discover(&subject, &[])));
    let copied_sbom = nested.replace("/team/", "/copied/");
    assert_eq!(types(&discover(&copied_sbom, &[])), ["application/vnd.test.nested"]);
}

#[test]
fn oras_lists_tags_fetches_and_deletes() {
    let (_timed, berth, oras) = (Timed::client("oras"), Berth::start(), Tool::new("oras"));
    let repository = format!("{}/team/artifact", berth.host());
    oras.write("file", noise(2, 100_000));
    for tag in ["1", "2"] {
        oras.run(&[
            "push",
            "--plain-http",
            "--annotation",
            &format!("tag={tag}"),
            &format!("{repository}:{tag}"),
            "file",
        ]);
    }
    oras.run(&["tag", "--plain-http", &format!("{repository}:2"), "latest"]);
    assert_eq!(oras.run(&["repo", "tags", "--plain-http", &repository]), "1\n2\nlatest");
    assert_eq!(oras.run(&["repo", "ls", "--plain-http", &berth.host()]), "team/artifact");

    let manifest = oras.json(&["manifest", "fetch", "--plain-http", &format!("{repository}:1")]);
    let blob = format!("{repository}@{}", manifest["layers"][0]["digest"].as_str().unwrap());
    oras.run(&["blob", "fetch", "--plain-http", "--output", "fetched", &blob]);
    assert!(oras.read("fetched") == oras.read("file"), "the blob differs");
    let refused = oras.fails(&["blob", "delete", "--plain-http", "--force", &blob]);
    assert!(refused.to_lowercase().contains("denied"), "{refused}");

    oras.run(&["manifest", "delete", "--plain-http", "--force", &format!("{repository}:2")]);
    let gone = oras.fails(&["manifest", "fetch", "--plain-http", &format!("{repository}:latest")]);
    assert!(gone.contains("not found"), "{gone}");
    assert_eq!(oras.run(&["repo", "tags", "--plain-http", &repository]), "1");
}
