//! Helm: charts are pushed, found by version and by digest, and come back byte for byte; and Helm logs in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::Algorithm;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    authority::Authority,
    berth::{Berth, Setup, fails, piped, run},
    issuer::{Issuer, Key},
    tool::{Timed, Tool},
};

/// The digest that Helm says it pushed.
fn digest(said: &str) -> String {
    let line = said.lines().find_map(|line| line.strip_prefix("Digest: "));
    line.unwrap_or_else(|| panic!("no digest: {said}")).trim().to_owned()
}

#[test]
fn helm_pulls_the_chart_that_it_pushed() {
    let (_timed, berth, helm) = (Timed::client("helm"), Berth::start(), Tool::new("helm"));
    let (charts, chart) = (format!("oci://{}/charts", berth.host()), format!("oci://{}/charts/app", berth.host()));
    helm.run(&["create", "app"]);
    // A `+` can't be in a tag: Helm writes `_` for it.
    for version in ["0.1.0", "0.2.0", "1.0.0+build.7"] {
        helm.run(&["package", "app", "--version", version]);
        let said = helm.says(&["push", &format!("app-{version}.tgz"), &charts, "--plain-http"]);
        let digest = digest(&said);
        let pull = |target: &str, arguments: &[&str]| {
            fs::create_dir(helm.home().join("pulled")).unwrap();
            let pulled = helm.says(&[&["pull", "--plain-http", "-d", "pulled"], arguments].concat());
            assert!(pulled.contains(&digest), "{pulled}");
            let (pulled, packaged) = (helm.read(&format!("pulled/{target}")), helm.read(&format!("app-{version}.tgz")));
            assert!(pulled == packaged, "{target} differs");
            fs::remove_dir_all(helm.home().join("pulled")).unwrap();
        };
        pull(&format!("app-{version}.tgz"), &[&chart, "--version", version]);
        pull(&format!("app@{}.tgz", digest.replace(':', "-")), &[&format!("{chart}@{digest}")]);
    }
    let shown = |arguments: &[&str]| helm.run(&[&["show", "chart", "--plain-http", &chart], arguments].concat());
    // Which versions there are, Helm learns from the tags.
    assert!(shown(&[]).contains("version: 1.0.0+build.7"), "{}", shown(&[]));
    assert!(shown(&["--version", "^0.1"]).contains("version: 0.1.0"));
    let values = helm.run(&["show", "values", "--plain-http", &chart, "--version", "0.2.0"]);
    assert_eq!(values.as_bytes(), helm.read("app/values.yaml").trim_ascii_end());
    let rendered = helm.run(&["template", "released", &chart, "--plain-http", "--version", "0.2.0"]);
    assert!(rendered.contains("helm.sh/chart: app-0.2.0"), "{rendered}");

    let missing = helm.fails(&["pull", "--plain-http", &chart, "--version", "0.3.0"]);
    assert!(missing.contains("not found"), "{missing}");
    let unknown = format!("{chart}@sha256:{}", "0".repeat(64));
    assert!(helm.fails(&["pull", "--plain-http", &unknown]).contains("not found"));
}

/// A user of an htpasswd file, a service account's key in each form, and an ID token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_logs_in_with_each_kind_of_credential() {
    let (_timed, helm, folder) = (Timed::client("helm"), Tool::new("helm"), TempDir::new().unwrap());
    let signer = Key::new(Algorithm::RS256, "key");
    let issuer = Issuer::start(&[&signer]).await;
    let [users, file, data] = ["users", "berth.toml", "data"].map(|name| folder.path().join(name));
    fs::write(&users, format!("ann:{}\n", bcrypt::hash("ann-secret", 4).unwrap())).unwrap();
    let rule = "who = [\"user:ann\", \"oidc:hub:repo:team/*\"]\nrole = \"writer\"\nrepositories = [\"charts/*\"]";
    let settings = format!("[auth]\nhtpasswd = {users:?}\n[auth.rules.all]\n{rule}\n{}", issuer.settings());
    fs::write(&file, settings).unwrap();
    let create = ["account", "create", "ci", "--role", "writer", "--repository", "charts/*"];
    let mut create_account = Command::new(env!("CARGO_BIN_EXE_berth"));
    create_account.args(create).env("BERTH_CONFIG", &file);
    let key = run(create_account.env("BERTH_STORAGE__URL", format!("file:{}", data.display())));
    let secret = serde_json::from_str::<Value>(&key).unwrap()["private_key"].as_str().unwrap().to_owned();
    let berth = Setup::of(&[("BERTH_CONFIG", file.to_str().unwrap())]).over(&data).start();

    helm.run(&["create", "app"]);
    fs::create_dir(helm.home().join("pulled")).unwrap();
    let (host, charts) = (berth.host(), format!("oci://{}/charts", berth.host()));
    for (number, (user, password)) in [
        ("ann", "ann-secret".to_owned()),
        ("_json_key", key.clone()),
        ("_json_key_base64", STANDARD.encode(&key)),
        ("ci", secret),
        ("oidc", signer.sign(&issuer.claims())),
    ]
    .into_iter()
    .enumerate()
    {
        let version = format!("0.{number}.0");
        let (package, chart) = (format!("app-{version}.tgz"), format!("{charts}/app"));
        helm.run(&["package", "app", "--version", &version]);
        let pull = ["pull", "--plain-http", "-d", "pulled", &chart, "--version", &version];
        assert!(helm.fails(&["push", &package, &charts, "--plain-http"]).contains("401"), "{user}");
        let login = ["registry", "login", &host, "-u", user, "--password-stdin", "--plain-http"];
        assert!(fails(&mut piped(&helm.command(&login), "wrong")).contains("401"), "{user}");
        run(&mut piped(&helm.command(&login), &password));
        helm.run(&["push", &package, &charts, "--plain-http"]);
        helm.run(&pull);
        assert!(helm.read(&format!("pulled/{package}")) == helm.read(&package), "{user}");
        helm.run(&["registry", "logout", &host]);
        assert!(helm.fails(&pull).contains("401"), "{user}");
    }
}

/// By TLS with an authority that only Helm is told of, and a password.
#[test]
fn helm_logs_in_by_tls() {
    let (_timed, authority, helm) = (Timed::client("helm"), Authority::new(), Tool::new("helm"));
    let berth = authority.closed().start();
    let (host, ca) = (berth.host(), authority.path("ca.crt"));
    let ca = ["--ca-file", ca.to_str().unwrap()];
    let login = |password: &str, more: &[&str]| {
        helm.command(&[&["registry", "login", &host, "-u", "ann", "-p", password], more].concat())
    };
    let distrusted = fails(&mut login("secret", &[]));
    assert!(distrusted.contains("certificate signed by unknown authority"), "{distrusted}");
    fails(&mut login("wrong", &ca));
    run(&mut login("secret", &ca));
    helm.run(&["create", "app"]);
    fs::create_dir(helm.home().join("pulled")).unwrap();
    helm.run(&["package", "app", "--version", "0.1.0"]);
    let charts = format!("oci://{host}/team/charts");
    helm.run(&[&["push", "app-0.1.0.tgz", &charts], &ca[..]].concat());
    let chart = format!("{charts}/app");
    helm.run(&[&["pull", &chart, "--version", "0.1.0", "-d", "pulled"], &ca[..]].concat());
    assert!(helm.read("pulled/app-0.1.0.tgz") == helm.read("app-0.1.0.tgz"));
    helm.run(&["registry", "logout", &host]);
    helm.fails(&[&["pull", &chart, "--version", "0.1.0"], &ca[..]].concat());
}
