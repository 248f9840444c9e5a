//! BuildKit: images of several platforms with their attestations, and a build cache that lives in the
//! registry, in each form that it has.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;

use crate::{
    berth::Berth,
    e2e_client::noise,
    tool::{Daemon, Timed, Tool},
};

/// Two stages, so that a cache of every stage holds more than the image.
const DOCKERFILE: &str = "\
FROM scratch AS first
COPY large /large
COPY small /small
FROM scratch
COPY --from=first /large /kept
COPY changing /changing
";

/// `buildctl`, and a daemon that has never built anything.
struct Builder {
    buildctl: Tool,
    _daemon: Daemon,
}

impl Builder {
    fn start(berth: &Berth) -> Self {
        let (server, buildctl) = (Tool::new("buildkitd"), Tool::new("buildctl"));
        let address = format!("unix://{}", buildctl.path("sock"));
        buildctl.write("buildkitd.toml", format!("[registry.\"{}\"]\nhttp = true\n", berth.host()));
        let (config, root) = (buildctl.path("buildkitd.toml"), buildctl.path("root"));
        let buildctl = buildctl.with(&["--addr", &address]);
        let is_ready = || buildctl.command(&["debug", "workers"]).output().is_ok_and(|output| output.status.success());
        let workers = ["--containerd-worker=false", "--oci-worker-net=host", "--oci-worker-snapshotter=native"];
        let arguments = [&["--config", &config, "--addr", &address, "--root", &root], &workers[..]].concat();
        let daemon = Daemon::start(server, &arguments, is_ready);
        let builder = Self { buildctl, _daemon: daemon };
        builder.buildctl.write("context/Dockerfile", DOCKERFILE);
        builder.buildctl.write("context/large", noise(9, 6 << 20));
        builder.buildctl.write("context/small", "small");
        builder.change("at first");
        builder
    }

    /// Changes what the last step copies.
    fn change(&self, text: &str) {
        self.buildctl.write("context/changing", text);
    }

    /// Builds and pushes `image`; returns what it said. The config says no time, but layers hold those of the
    /// files, which are new with each builder.
    fn build(&self, image: &str, more: &[&str]) -> String {
        let output = format!("type=image,name={image},push=true");
        let build = [
            &["build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=context"][..],
            &["--local=dockerfile=context", "--opt=build-arg:SOURCE_DATE_EPOCH=0", "--output", &output],
            more,
        ];
        self.buildctl.says(&build.concat())
    }
}

/// A manifest, as crane gets it.
fn manifest(image: &str) -> Value {
    Tool::new("crane").json(&["manifest", image])
}

/// Builds into a cache in the registry, and again with builders that have nothing but that cache.
fn use_cache(form: &str, is_expected: impl Fn(&Value) -> bool) {
    let (_timed, berth) = (Timed::client("buildkitd"), Berth::start());
    let (cache, image) = (format!("{}/team/cache:main", berth.host()), format!("{}/team/app:1", berth.host()));
    let export = format!("type=registry,ref={cache},mode=max,{form}");
    let import = format!("type=registry,ref={cache}");
    let first = Builder::start(&berth).build(&image, &["--export-cache", &export, "--import-cache", &import]);
    assert_eq!(first.matches(" CACHED").count(), 0, "{first}");
    assert!(is_expected(&manifest(&cache)), "{form}: {:#}", manifest(&cache));

    let other = Builder::start(&berth);
    let again = format!("{}/team/app:2", berth.host());
    let second = other.build(&again, &["--import-cache", &import]);
    assert!(second.contains("importing cache manifest from"), "{second}");
    // No step was run again, so that even the times in the layers are the same.
    assert_eq!(second.matches(" CACHED").count(), 4, "{second}");
    assert_eq!(manifest(&again), manifest(&image));
    Tool::new("crane").run(&["validate", "--remote", &again]);

    let third = Builder::start(&berth);
    third.change("and now another");
    let changed = format!("{}/team/app:3", berth.host());
    let said = third.build(&changed, &["--import-cache", &import, "--export-cache", &export]);
    assert!(said.contains(" CACHED"), "{said}");
    let (before, after) = (manifest(&image), manifest(&changed));
    assert_eq!(after["layers"][0], before["layers"][0], "{said}");
    assert_ne!(after["layers"][1], before["layers"][1], "{said}");
    Tool::new("crane").run(&["validate", "--remote", &changed]);
}

#[test]
fn buildkit_builds_from_a_cache_that_is_an_image_manifest() {
    use_cache("image-manifest=true,oci-mediatypes=true", |cache| {
        cache["config"]["mediaType"] == "application/vnd.buildkit.cacheconfig.v0"
    });
}

/// The older form, whose children are blobs, not manifests.
#[test]
fn buildkit_builds_from_a_cache_that_is_an_image_index() {
    for (types, media_type) in [
        ("true", "application/vnd.oci.image.index.v1+json"),
        ("false", "application/vnd.docker.distribution.manifest.list.v2+json"),
    ] {
        use_cache(&format!("image-manifest=false,oci-mediatypes={types}"), |cache| {
            cache["mediaType"] == media_type
                && cache["manifests"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|child| child["mediaType"].as_str().unwrap().contains(".tar"))
        });
    }
}

#[test]
fn buildkit_pushes_platforms_attestations_and_zstd() {
    let (_timed, berth) = (Timed::client("buildkitd"), Berth::start());
    let builder = Builder::start(&berth);
    let image = format!("{}/team/app:all", berth.host());
    builder.build(&image, &["--opt=platform=linux/amd64,linux/arm64", "--opt=attest:provenance=mode=max"]);
    let index = manifest(&image);
    let children = index["manifests"].as_array().unwrap();
    assert_eq!(children.len(), 4, "{index:#}");
    let of = |annotation: &str| children.iter().filter(|child| child["annotations"][annotation].is_string()).count();
    assert_eq!(of("vnd.docker.reference.digest"), 2, "{index:#}");
    Tool::new("crane").run(&["validate", "--remote", &image]);

    let zstd = format!("{}/team/app:zstd", berth.host());
    let output =
        format!("type=image,name={zstd},push=true,compression=zstd,force-compression=true,oci-mediatypes=true");
    let build =
        ["build", "--frontend=dockerfile.v0", "--local=context=context", "--local=dockerfile=context", "--output"];
    builder.buildctl.run(&[&build[..], &[&output]].concat());
    let pushed = manifest(&zstd);
    for layer in pushed["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    }
    // Another build starts from what was pushed.
    builder.buildctl.write("context/Dockerfile", format!("FROM {zstd}\nCOPY small /again\n"));
    let onto = format!("{}/team/app:onto", berth.host());
    builder.build(&onto, &["--opt=no-cache="]);
    assert_eq!(manifest(&onto)["layers"].as_array().unwrap().len(), 3);
}
