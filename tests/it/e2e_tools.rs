//! The other clients: crane, skopeo and buildah, each against a server of its own. An exit status that
//! wasn't expected fails the test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    berth::{Berth, fails, run},
    e2e_client::{INDEX, noise},
};

/// A tool, with nothing of the user's own settings.
pub(crate) struct Tool {
    name: &'static str,
    home: TempDir,
}

impl Tool {
    pub(crate) fn new(name: &'static str) -> Self {
        let home = TempDir::new().unwrap();
        // Buildah wants the file of credentials that `DOCKER_CONFIG` names to exist.
        fs::write(home.path().join("config.json"), "{}").unwrap();
        Self { name, home }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.name);
        command.args(arguments).current_dir(self.path()).env("HOME", self.path());
        command.env("XDG_RUNTIME_DIR", self.path()).env("DOCKER_CONFIG", self.path());
        command.env("STORAGE_DRIVER", "vfs").env("CONTAINERS_STORAGE_CONF", self.path().join("storage.conf"));
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        fails(&mut self.command(arguments))
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    /// Lets it take any image, and keep what it takes in its own home.
    pub(crate) fn write_policy(&self) {
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(self.path().join("policy.json"), policy).unwrap();
        // Podman looks for it where a user has it.
        fs::create_dir_all(self.path().join(".config/containers")).unwrap();
        fs::write(self.path().join(".config/containers/policy.json"), policy).unwrap();
        self.use_own_storage();
    }

    /// For a tool that keeps images: not where the user's own are.
    pub(crate) fn use_own_storage(&self) {
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
            self.path().display()
        );
        fs::write(self.path().join("storage.conf"), storage).unwrap();
    }

    /// A tar of one file, at `name` in the tool's own directory.
    pub(crate) fn tar(&self, name: &str, seed: u64, size: usize) {
        fs::write(self.path().join("file"), noise(seed, size)).unwrap();
        run(Command::new("tar").current_dir(self.path()).args(["-cf", name, "file"]));
    }
}

/// Two images for two platforms, and an image index of both, by crane.
pub(crate) fn push_index(crane: &Tool, host: &str) -> String {
    for (platform, seed, size) in [("linux/amd64", 1, 1000), ("linux/arm64", 2, 6 << 20)] {
        let architecture = platform.split('/').nth(1).unwrap();
        crane.tar("layer.tar", seed, size);
        let image = format!("{host}/multi/app:{architecture}");
        crane.run(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image]);
        crane.run(&["mutate", "--set-platform", platform, "-t", &image, &image]);
    }
    let index = format!("{host}/multi/app:all");
    let (amd64, arm64) = (format!("{host}/multi/app:amd64"), format!("{host}/multi/app:arm64"));
    crane.run(&["index", "append", "-m", &amd64, "-m", &arm64, "-t", &index]);
    index
}

#[test]
fn crane_pushes_copies_lists_and_deletes() {
    let (berth, crane) = (Berth::start(), Tool::new("crane"));
    let host = berth.host();
    let image = format!("{host}/team/app:1");
    crane.tar("one.tar", 1, 1000);
    crane.tar("two.tar", 2, 9 << 20);
    crane.run(&["append", "-f", "one.tar", "-f", "two.tar", "-t", &image]);
    crane.run(&["validate", "--remote", &image]);
    let digest = crane.run(&["digest", &image]);
    crane.run(&["pull", &image, "pulled.tar"]);
    crane.run(&["push", "pulled.tar", &format!("{host}/team/again:1")]);
    crane.run(&["validate", "--remote", &format!("{host}/team/again:1")]);
    crane.run(&["cp", &image, &format!("{host}/other/app:1")]);
    assert_eq!(crane.run(&["digest", &format!("{host}/other/app:1")]), digest);
    crane.run(&["tag", &image, "stable"]);
    assert_eq!(crane.run(&["ls", &format!("{host}/team/app")]), "1\nstable\n");
    assert_eq!(crane.run(&["catalog", &host]), "other/app\nteam/again\nteam/app\n");
    let manifest: Value = serde_json::from_str(&crane.run(&["manifest", &image])).unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    crane.run(&["blob", &format!("{host}/team/app@{layer}")]);
    crane.run(&["delete", &format!("{host}/team/app@{}", digest.trim())]);
    for reference in [&image, &format!("{host}/team/app:stable")] {
        let said = crane.fails(&["manifest", reference]);
        assert!(said.contains("MANIFEST_UNKNOWN"), "{said}");
    }
    crane.run(&["validate", "--remote", &format!("{host}/other/app:1")]);
}

#[test]
fn crane_pushes_an_index_of_several_platforms() {
    let (berth, crane) = (Berth::start(), Tool::new("crane"));
    let index = push_index(&crane, &berth.host());
    crane.run(&["validate", "--remote", &index]);
    let manifest: Value = serde_json::from_str(&crane.run(&["manifest", &index])).unwrap();
    assert_eq!(manifest["mediaType"], INDEX);
    assert_eq!(manifest["manifests"].as_array().unwrap().len(), 2);
    let of = |platform: &str| crane.run(&["digest", "--platform", platform, &index]);
    assert_ne!(of("linux/amd64"), of("linux/arm64"));
    let copy = format!("{}/copied/app:all", berth.host());
    crane.run(&["cp", &index, &copy]);
    crane.run(&["validate", "--remote", &copy]);
}

/// The digests of the images that an image index names.
fn images_of(skopeo: &Tool, index: &str) -> Vec<String> {
    let raw: Value = serde_json::from_str(&skopeo.run(&["inspect", "--raw", "--tls-verify=false", index])).unwrap();
    let digest = |image: &Value| image["digest"].as_str().unwrap().to_owned();
    raw["manifests"].as_array().unwrap().iter().map(digest).collect()
}

#[test]
fn skopeo_copies_inspects_lists_and_deletes() {
    let (berth, crane, skopeo) = (Berth::start(), Tool::new("crane"), Tool::new("skopeo"));
    let host = berth.host();
    let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy = |more: &[&str]| skopeo.run(&[&["--insecure-policy", "copy"], &plain[..], more].concat());
    let source = format!("docker://{}", push_index(&crane, &host));
    // Out of the registry into each form of a directory, and from there into it again.
    for (form, target) in [("oci:layout:app", "from-oci"), ("dir:plain", "from-dir")] {
        let target = format!("docker://{host}/{target}/app:1");
        copy(&["--all", &source, form]);
        copy(&["--all", form, &target]);
        // Skopeo writes the index anew; the images are the same.
        assert_eq!(images_of(&skopeo, &source), images_of(&skopeo, &target), "{form}");
    }
    copy(&[&format!("docker://{host}/from-oci/app:1"), "oci:one:app"]);
    copy(&["oci:one:app", &format!("docker://{host}/single/app:2")]);
    copy(&["--all", &source, &format!("docker://{host}/across/app:1")]);
    let single = format!("docker://{host}/single/app:2");
    let seen: Value = serde_json::from_str(&skopeo.run(&["inspect", "--tls-verify=false", &single])).unwrap();
    assert_eq!(seen["RepoTags"], serde_json::json!(["2"]));
    let tags = skopeo.run(&["list-tags", "--tls-verify=false", &source.replace(":all", "")]);
    let tags: Value = serde_json::from_str(&tags).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["all", "amd64", "arm64"]));
    skopeo.run(&["delete", "--tls-verify=false", &single]);
    let said = skopeo.fails(&["inspect", "--tls-verify=false", &single]);
    assert!(said.contains("manifest unknown") || said.contains("no such manifest"), "{said}");
}

#[test]
fn buildah_commits_pushes_pulls_and_pushes_a_list() {
    let (berth, buildah) = (Berth::start(), Tool::new("buildah"));
    let host = berth.host();
    buildah.write_policy();
    let policy = ["--signature-policy", "policy.json", "--tls-verify=false"];
    let transport = |verb: &[&str], more: &[&str]| buildah.run(&[verb, &policy[..], more].concat());

    fs::write(buildah.path().join("big"), noise(3, 7 << 20)).unwrap();
    let mut images = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let container = buildah.run(&["from", "scratch"]);
        let container = container.trim();
        fs::write(buildah.path().join("small"), architecture).unwrap();
        buildah.run(&["copy", container, "small", "/small"]);
        buildah.run(&["copy", container, "big", "/big"]);
        buildah.run(&["config", "--arch", architecture, "--cmd", "/small", container]);
        let image = format!("{host}/built/app:{architecture}");
        buildah.run(&["commit", "--signature-policy", "policy.json", container, &image]);
        transport(&["push"], &[&image]);
        images.push(image);
    }
    buildah.run(&["manifest", "create", "list"]);
    for image in &images {
        buildah.run(&["manifest", "add", "--tls-verify=false", "list", &format!("docker://{image}")]);
    }
    let target = format!("docker://{host}/built/app:all");
    transport(&["manifest", "push", "--all"], &["list", &target]);
    let raw = run(Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &target]));
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(raw["manifests"].as_array().unwrap().len(), 2);

    let id = |image: &str| buildah.run(&["inspect", "--type", "image", "--format", "{{.FromImageID}}", image]);
    let before = id(&images[0]);
    buildah.run(&["rm", "--all"]);
    buildah.run(&["rmi", "--force", &images[0]]);
    transport(&["pull"], &[&images[0]]);
    assert_eq!(id(&images[0]), before);
}
