//! Cosign, with a key pair and no network: signatures as referrers and under tags, and attestations. What
//! was not signed, or by another key, is told apart.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

use crate::{
    berth::{Berth, fails, run},
    tool::{Timed, Tool, push_index},
};

/// What keeps it from asking any other server.
const OFFLINE: [&str; 3] = ["--allow-http-registry", "--allow-insecure-registry", "--key"];

/// Cosign with two key pairs, `ours` and `theirs`.
struct Cosign(Tool);

impl Cosign {
    fn new() -> Self {
        let cosign = Self(Tool::new("cosign"));
        for name in ["ours", "theirs"] {
            cosign.run(&["generate-key-pair", "--output-key-prefix", name]);
        }
        cosign
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.0.command(arguments);
        command.env("COSIGN_PASSWORD", "").env("COSIGN_EXPERIMENTAL", "1");
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Signs, or attests, in this mode.
    fn sign(&self, verb: &[&str], mode: &[&str], image: &str) {
        let key = ["ours.key", "--tlog-upload=false", "--use-signing-config=false", "--yes"];
        self.run(&[verb, &OFFLINE, &key, mode, &[image]].concat());
    }

    fn verify<'a>(&self, key: &'a str, mode: &[&'a str], image: &'a str) -> Vec<&'a str> {
        [&["verify"], &OFFLINE[..], &[key, "--insecure-ignore-tlog=true", "--private-infrastructure"], mode, &[image]]
            .concat()
    }

    /// The digests that a key's signatures of an image are about.
    fn verified(&self, mode: &[&str], image: &str) -> Vec<String> {
        let found: Value = serde_json::from_str(&self.run(&self.verify("ours.pub", mode, image))).unwrap();
        let digest = |one: &Value| one["critical"]["image"]["docker-manifest-digest"].as_str().unwrap().to_owned();
        found.as_array().unwrap().iter().map(digest).collect()
    }

    /// What is said of an image that must not verify.
    fn refused(&self, key: &str, mode: &[&str], image: &str) -> String {
        fails(&mut self.command(&self.verify(key, mode, image)))
    }
}

/// Signs in one mode; then only that image verifies, only with our key, and not once its tag has moved.
fn sign_and_verify(sign: &[&str], verify: &[&str]) {
    let (_timed, berth, cosign) = (Timed::client("cosign"), Berth::start(), Cosign::new());
    let (image, other) = (format!("{}/team/app:all", berth.host()), format!("{}/team/other:all", berth.host()));
    let digest = push_index(&image);
    Tool::new("crane").run(&["cp", &format!("{image}-arm64"), &other]);
    let unsigned = cosign.refused("ours.pub", verify, &image);
    assert!(unsigned.contains("no signatures found"), "{unsigned}");

    let by_digest = format!("{}/team/app@{digest}", berth.host());
    cosign.sign(&["sign"], sign, &by_digest);
    for reference in [&image, &by_digest] {
        assert_eq!(cosign.verified(verify, reference), [digest.as_str()], "{reference}");
    }
    cosign.refused("theirs.pub", verify, &image);
    cosign.refused("ours.pub", verify, &other);
    // Somebody puts another image in its place.
    Tool::new("crane").run(&["cp", &other, &image]);
    cosign.refused("ours.pub", verify, &image);
    assert_eq!(cosign.verified(verify, &by_digest), [digest.as_str()]);
}

/// What cosign does by default: a bundle that refers to the image.
#[test]
fn cosign_verifies_a_bundle_found_by_the_referrers_api() {
    sign_and_verify(&[], &[]);
}

/// What cosign did before: an image under a tag that is named after the image that it signs.
#[test]
fn cosign_verifies_a_signature_under_a_tag() {
    sign_and_verify(&["--new-bundle-format=false"], &["--new-bundle-format=false"]);
}

/// The step between those two: the same signature as a referrer.
#[test]
fn cosign_verifies_a_signature_that_is_a_referrer() {
    let mode = ["--new-bundle-format=false", "--registry-referrers-mode=oci-1-1"];
    sign_and_verify(&mode, &["--new-bundle-format=false", "--experimental-oci11"]);
}
