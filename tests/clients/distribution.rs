//! CNCF Distribution, as it is released, believes Berth's tokens by Berth's published keys.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, fails, piped, run},
    e2e_client::noise,
    tool::{Daemon, Timed, Tool},
};

/// The password of everybody.
const SECRET: &str = "correct horse";

/// A server whose user ann writes in `team/**`, and with whom nobody else may do anything; and what it reads.
fn server() -> (Berth, TempDir) {
    let folder = TempDir::new().unwrap();
    let users = folder.path().join("users");
    fs::write(&users, format!("ann:{}\n", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    let berth = Setup::of(&[
        ("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()),
        ("BERTH_AUTH__RULES__ANN__WHO", "user:ann"),
        ("BERTH_AUTH__RULES__ANN__ROLE", "writer"),
        ("BERTH_AUTH__RULES__ANN__REPOSITORIES", "team/**"),
    ]);
    (berth.start(), folder)
}

#[tokio::test]
async fn distribution_serves_who_has_a_token_of_ours() {
    let _timed = Timed::client("registry");
    let ((berth, _folder), registry, crane) = (server(), Tool::new("registry"), Tool::new("crane"));
    let keys = berth.client().get("/.well-known/jwks.json").await.expect(200);
    registry.write("jwks.json", &keys.body);
    // A port that was free a moment ago: Distribution doesn't say which one it took.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Crane goes to no realm on a private address; a name it takes.
    let realm = format!("http://localhost:{}/v2/token", berth.public().port());
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n\
         auth: {{token: {{realm: {realm}, service: berth, issuer: berth, jwks: {}}}}}\n",
        registry.path("data"),
        registry.path("jwks.json")
    );
    registry.write("config.yml", config);
    let config = registry.path("config.yml");
    let _daemon = Daemon::start(registry, &["serve", &config], || TcpStream::connect(address).is_ok());

    let image = format!("{address}/team/app:1");
    crane.write("layer", noise(1, 1000));
    run(Command::new("tar").current_dir(crane.home()).args(["-cf", "layer.tar", "layer"]));
    let push = |image: &str| crane.command(&["append", "-f", "layer.tar", "-t", image]);
    assert!(fails(&mut push(&image)).contains("401 Unauthorized"));
    let login = crane.command(&["auth", "login", "-u", "ann", "--password-stdin", &address.to_string()]);
    run(&mut piped(&login, SECRET));
    run(&mut push(&image));
    crane.run(&["validate", "--remote", &image]);
    crane.run(&["pull", &image, "image.tar"]);
    assert!(fails(&mut push(&format!("{address}/other/app:1"))).contains("401 Unauthorized"));
}
