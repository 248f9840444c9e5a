//! Docker, with a daemon of the test's own: what it pushes is what it pulls.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use crate::{
    berth::{Berth, fails},
    docker_daemon::Daemon,
    e2e_client::noise,
};

/// Images of one small and one large layer, pushed, pushed again, retagged, and pulled.
#[test]
fn docker_pulls_what_it_pushed() {
    let (berth, daemon) = (Berth::start(), Daemon::start());
    for (name, size) in [("small", 1000), ("large", 11 << 20)] {
        let image = format!("{}/team/{name}:1", berth.host());
        daemon.import(&image, size);
        daemon.run(&["push", &image]);
        let again = daemon.run(&["push", &image]);
        assert!(again.contains("Layer already exists") && !again.contains("Pushed"), "{again}");
        let retagged = format!("{}/team/{name}:2", berth.host());
        daemon.run(&["tag", &image, &retagged]);
        daemon.run(&["push", &retagged]);
        daemon.pull_again(&image);
        assert_eq!(daemon.run(&["pull", "--quiet", &retagged]).trim(), retagged);
        assert_eq!(daemon.id(&retagged), daemon.id(&image));
    }
}

#[tokio::test]
async fn docker_builds_pushes_mounts_and_sees_a_manifest_go() {
    let (berth, daemon) = (Berth::start(), Daemon::start());
    let context = daemon.path("context");
    fs::create_dir(&context).unwrap();
    for name in ["one", "two", "three"] {
        fs::write(context.join(name), noise(name.len() as u64, 50_000)).unwrap();
    }
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY one /\nCOPY two /\nCOPY three /\nCMD [\"/one\"]\n")
        .unwrap();
    let image = format!("{}/team/app:1", berth.host());
    daemon.run(&["build", "--tag", &image, context.to_str().unwrap()]);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);

    let other = format!("{}/other/app:1", berth.host());
    daemon.run(&["tag", &image, &other]);
    let mounted = daemon.run(&["push", &other]);
    assert_eq!(mounted.matches("Mounted from team/app").count(), 3, "{mounted}");
    daemon.pull_again(&other);

    let client = berth.client();
    let digest = client.head("/v2/team/app/manifests/1").await.expect(200).header("docker-content-digest").to_owned();
    client.delete(&format!("/v2/team/app/manifests/{digest}")).await.expect(202);
    let said = fails(&mut daemon.docker(&["pull", &image]));
    assert!(said.contains("manifest unknown") || said.contains("not found"), "{said}");
    daemon.pull_again(&other);
}
