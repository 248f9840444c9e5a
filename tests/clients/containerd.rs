//! Containerd, by `ctr`, with a daemon of the test's own: images by tag and by digest, each platform of an
//! image index, content by digest, and Berth as the mirror of another name.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::Value;

use crate::{
    berth::{Berth, run},
    e2e_client::sha256,
    tool::{Daemon, Timed, Tool, push_index},
};

/// `ctr`, and the daemon that it talks to.
struct Containerd {
    ctr: Tool,
    _daemon: Daemon,
}

impl Containerd {
    /// Starts a daemon without what needs more of the machine than a directory.
    fn start() -> Self {
        let server = Tool::new("containerd");
        let ctr = Tool::new("ctr");
        let socket = ctr.path("sock");
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{socket}\"\n",
            ctr.home().display()
        );
        ctr.write("config.toml", config);
        let config = ctr.path("config.toml");
        let ctr = ctr.with(&["--address", &socket]);
        let is_ready = || ctr.command(&["version"]).output().is_ok_and(|output| output.status.success());
        let daemon = Daemon::start(server, &["--config", &config], is_ready);
        Self { ctr, _daemon: daemon }
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.ctr.run(arguments)
    }

    /// Pulls, of each platform, and unpacks.
    fn pull(&self, image: &str) {
        self.run(&["images", "pull", "--plain-http", "--all-platforms", "--snapshotter", "native", image]);
    }

    fn push(&self, target: &str, image: &str) {
        self.run(&["images", "push", "--plain-http", target, image]);
    }

    /// The digest of an image that the daemon has.
    fn digest(&self, image: &str) -> String {
        let listed = self.run(&["images", "ls", &format!("name=={image}")]);
        let digest =
            listed.lines().nth(1).and_then(|line| line.split_whitespace().find(|word| word.starts_with("sha256:")));
        digest.unwrap_or_else(|| panic!("no {image}: {listed}")).to_owned()
    }

    /// The digests of the content that the daemon has, sorted.
    fn content(&self) -> Vec<String> {
        let mut digests: Vec<String> = self.run(&["content", "ls", "-q"]).lines().map(str::to_owned).collect();
        digests.sort_unstable();
        digests
    }

    /// Makes it forget every image and all content.
    fn forget(&self) {
        for image in self.run(&["images", "ls", "-q"]).lines() {
            self.run(&["images", "rm", "--sync", image]);
        }
        assert_eq!(self.content(), Vec::<String>::new());
    }
}

#[test]
fn containerd_pulls_what_it_pushed() {
    let version = run(&mut Tool::new("containerd").command(&["--version"]));
    let (_timed, berth, containerd) = (Timed::of(version.trim()), Berth::start(), Containerd::start());
    // By crane into one registry, so that what containerd pushes to the other is all its own doing.
    let source = Berth::start();
    let image = format!("{}/team/app:all", source.host());
    let digest = push_index(&image);
    containerd.pull(&image);
    assert_eq!(containerd.digest(&image), digest);
    let content = containerd.content();
    // An index; and a manifest, a config and two layers for each of two platforms.
    assert_eq!(content.len(), 9, "{content:?}");

    let pushed = format!("{}/team/app:all", berth.host());
    containerd.push(&pushed, &image);
    // What is there already goes nowhere again.
    containerd.push(&pushed, &image);
    // Another repository of the same registry, where the layers can be mounted from the first.
    let again = format!("{}/again/app:all", berth.host());
    containerd.run(&["images", "tag", &image, &pushed]);
    containerd.push(&again, &pushed);
    drop(source);
    let mounted = |line: &&str| line.contains("/v2/again/app/blobs/uploads/?mount=") && line.contains("\"status\":201");
    assert_eq!(berth.log().lines().filter(mounted).count(), 6, "each config and layer");
    for target in [&pushed, &again] {
        containerd.forget();
        containerd.pull(target);
        assert_eq!(containerd.digest(target), digest, "{target}");
        assert_eq!(containerd.content(), content, "{target}");
    }
    containerd.forget();
    let by_digest = format!("{}/team/app@{digest}", berth.host());
    containerd.run(&["content", "fetch", "--plain-http", "--all-platforms", &by_digest]);
    assert_eq!(containerd.content(), content);
    for digest in &content {
        let output = containerd.ctr.command(&["content", "get", digest]).output().unwrap();
        assert_eq!(&sha256(&output.stdout), digest);
    }
    let missing = format!("{}/team/app:none", berth.host());
    let said = containerd.ctr.fails(&["images", "pull", "--plain-http", &missing]);
    assert!(said.contains("not found"), "{said}");
}

/// Kubernetes' nodes are told of a mirror by such a file; requests then name the registry that it stands for.
#[test]
fn containerd_pulls_from_a_mirror_of_another_name() {
    let (_timed, berth, containerd) = (Timed::of("containerd, as a mirror"), Berth::start(), Containerd::start());
    let digest = push_index(&format!("{}/team/app:all", berth.host()));
    let hosts = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        berth.host()
    );
    containerd.ctr.write("hosts/registry.test/hosts.toml", hosts);
    let image = "registry.test/team/app:all";
    let directory = containerd.ctr.path("hosts");
    containerd.run(&[
        "images",
        "pull",
        "--hosts-dir",
        &directory,
        "--platform",
        "linux/arm64",
        "--snapshotter",
        "native",
        image,
    ]);
    assert_eq!(containerd.digest(image), digest);
    // Only what that platform needs, beside the index.
    assert_eq!(containerd.content().len(), 5);
}

/// An archive of an image, and from it into the registry.
#[test]
fn containerd_exports_and_imports_what_it_pulled() {
    let (_timed, berth, containerd) = (Timed::of("containerd, export and import"), Berth::start(), Containerd::start());
    let image = format!("{}/team/app:all", berth.host());
    let digest = push_index(&image);
    containerd.pull(&image);
    let archive = containerd.ctr.path("image.tar");
    containerd.run(&["images", "export", "--all-platforms", &archive, &image]);
    assert!(fs::metadata(&archive).unwrap().len() > 12 << 20);
    containerd.forget();
    containerd.run(&["images", "import", "--all-platforms", "--no-unpack", "--digests", &archive]);
    let imported: Value = serde_json::from_str(&containerd.run(&["content", "get", &digest])).unwrap();
    assert_eq!(imported["manifests"].as_array().unwrap().len(), 2);
    let pushed = format!("{}/imported/app:all", berth.host());
    containerd.push(&pushed, &image);
    assert_eq!(Tool::new("crane").run(&["digest", &pushed]), digest);
    Tool::new("crane").run(&["validate", "--remote", &pushed]);
}
