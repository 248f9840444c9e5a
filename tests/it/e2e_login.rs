//! Logins by the released clients: docker, podman, skopeo and crane log in as a user of an htpasswd file, push
//! and pull, and are refused where they should be. No answer is asked for by anything but the client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use axum::extract::{Request, State};
use berth::{
    api,
    auth::{
        AccessRules, Authority, Logins, TokenOptions,
        htpasswd::{Htpasswd, Users},
        keys::{KeyRing, Kind},
    },
    config::Config,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, fails, run},
    conformance::open,
    e2e_client::noise,
    e2e_docker::Daemon,
    e2e_tools::Tool,
};

/// What nobody may see in any output.
const SECRET: &str = "wrong-or-right-but-secret";

/// A server with users ann, who writes in `team/**`, and bob, who reads there; and its folder of settings.
fn server() -> (Berth, TempDir) {
    let folder = TempDir::new().unwrap();
    let hash = bcrypt::hash(SECRET, 4).unwrap();
    fs::write(folder.path().join("users"), format!("ann:{hash}\nbob:{hash}\n")).unwrap();
    fs::write(folder.path().join("berth.toml"), settings(folder.path(), "writer")).unwrap();
    let file = folder.path().join("berth.toml");
    let berth = Setup::of(&[("BERTH_CONFIG", file.to_str().unwrap()), ("BERTH_LOG__LEVEL", "debug")]).start();
    (berth, folder)
}

fn settings(folder: &Path, role: &str) -> String {
    format!(
        "[auth]\nhtpasswd = {:?}\n[auth.rules.ann]\nwho = [\"user:ann\"]\nrole = {role:?}\nrepositories = [\"team/**\"]\n\
         [auth.rules.bob]\nwho = [\"user:bob\"]\nrole = \"reader\"\nrepositories = [\"team/**\"]\n",
        folder.join("users")
    )
}

/// A command line that is run by a shell, so that a password comes by standard input as people are told to.
fn piped(command: &Command, password: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf %s \"$PASSWORD\" | \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell.env("PASSWORD", password);
    shell
}

#[test]
fn docker_logs_in_and_pushes_and_pulls() {
    let ((berth, _folder), daemon) = (server(), Daemon::start());
    let image = format!("{}/team/app:1", berth.host());
    daemon.import(&image, 200_000);
    assert!(fails(&mut daemon.docker(&["push", &image])).contains("authentication required"));
    let login = |name: &str| daemon.docker(&["login", "--username", name, "--password-stdin", &berth.host()]);
    let refused = fails(&mut piped(&login("ann"), "no"));
    assert!(refused.contains("unauthorized"), "{refused}");
    run(&mut piped(&login("ann"), SECRET));
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
    // Docker keeps the refresh token, and no longer the password.
    let kept = fs::read_to_string(daemon.path("config").join("config.json")).unwrap();
    assert!(kept.contains("identitytoken"), "{kept}");
    daemon.run(&["logout", &berth.host()]);
    run(&mut piped(&login("bob"), SECRET));
    daemon.pull_again(&image);
    assert!(fails(&mut daemon.docker(&["push", &image])).contains("user:bob has no right"));
    assert!(!berth.log().contains(SECRET) && !berth.log().contains("eyJ"), "a secret is in the log");
}

#[test]
fn podman_and_skopeo_log_in_and_push_and_pull() {
    let ((berth, _folder), podman, skopeo) = (server(), Tool::new("podman"), Tool::new("skopeo"));
    let host = berth.host();
    podman.write_policy();
    let auth = podman.path().join("auth.json");
    let auth = ["--authfile", auth.to_str().unwrap(), "--tls-verify=false"];
    for tool in [&podman, &skopeo] {
        let login = tool.command(&[&["login", "--username", "ann", "--password-stdin"], &auth[..], &[&host]].concat());
        assert!(fails(&mut piped(&login, "no")).contains("invalid username/password"));
        run(&mut piped(&login, SECRET));
    }
    podman.tar("layer.tar", 7, 300_000);
    let image = format!("{host}/team/podman:1");
    let id = podman.run(&["import", "layer.tar", &image]);
    podman.run(&[&["push"], &auth[..], &[&image]].concat());
    podman.run(&["rmi", &image]);
    podman.run(&[&["pull"], &auth[..], &[&image]].concat());
    assert_eq!(
        podman.run(&["image", "inspect", "--format", "{{.Id}}", &image]).trim(),
        id.trim().trim_start_matches("sha256:")
    );

    let file = ["--authfile", auth[1]];
    let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let copy =
        |from: &str, to: &str| [&["--insecure-policy", "copy"], &file[..], &plain, &[from, to]].concat().join("\n");
    let run_copy = |from: &str, to: &str| skopeo.run(&copy(from, to).split('\n').collect::<Vec<_>>());
    run_copy(&format!("docker://{image}"), "oci:layout:1");
    run_copy("oci:layout:1", &format!("docker://{host}/team/skopeo:1"));
    run_copy(&format!("docker://{host}/team/skopeo:1"), &format!("docker://{host}/team/again:1"));
    let refused = copy("oci:layout:1", &format!("docker://{host}/other/skopeo:1"));
    skopeo.fails(&refused.split('\n').collect::<Vec<_>>());
    assert!(!berth.log().contains(SECRET) && !berth.log().contains("eyJ"), "a secret is in the log");
}

#[test]
fn crane_logs_in_and_follows_what_the_rules_say_now() {
    let ((mut berth, folder), crane) = (server(), Tool::new("crane"));
    let host = berth.host();
    let login = crane.command(&["auth", "login", "--username", "ann", "--password-stdin", &host]);
    run(&mut piped(&login, SECRET));
    let image = format!("{host}/team/app:1");
    crane.tar("layer.tar", 1, 1000);
    crane.run(&["append", "-f", "layer.tar", "-t", &image]);
    crane.run(&["validate", "--remote", &image]);
    crane.run(&["cp", &image, &format!("{host}/team/copy:1")]);
    assert_eq!(crane.run(&["catalog", &host]), "team/app\nteam/copy\n");
    assert!(crane.fails(&["delete", &image]).contains("UNAUTHORIZED"));
    assert!(crane.fails(&["cp", &image, &format!("{host}/other/copy:1")]).contains("401 Unauthorized"));

    // What can't be used leaves what there was, and says so; what can counts a moment later, also by itself.
    let file = folder.path().join("berth.toml");
    fs::write(&file, "[auth]\nhtpasswd = 5\n").unwrap();
    berth.signal(Signal::HUP);
    await_log(&berth, "the configuration can't be used as it is now");
    crane.run(&["manifest", &image]);
    fs::write(folder.path().join("users"), "ann:plain\n").unwrap();
    fs::write(&file, settings(folder.path(), "admin")).unwrap();
    berth.signal(Signal::HUP);
    await_log(&berth, "line 1: the hash is neither bcrypt");
    assert!(crane.fails(&["delete", &image]).contains("UNAUTHORIZED"));
    fs::write(folder.path().join("users"), format!("ann:{}\n", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    await_log(&berth, "rules, groups, users and keys count as they are now");
    crane.run(&["delete", &image]);

    // A rotation by the command goes by unseen, and what was there before goes on.
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(arguments).env("BERTH_STORAGE__URL", format!("file:{}", berth.directory().display()));
        run(command.env("BERTH_CONFIG", &file))
    };
    assert_eq!(command(&["keys", "list"]).lines().count(), 1);
    assert!(command(&["keys", "rotate", "--algorithm", "ES256"]).contains("ES256 signs from"));
    assert_eq!(command(&["keys", "list"]).lines().count(), 2);
    berth.signal(Signal::HUP);
    crane.run(&["manifest", &format!("{host}/team/copy:1")]);
    let explained = command(&["access", "explain", "--as", "ann", "--repository", "team/app", "--action", "push"]);
    assert!(
        explained.contains("user:ann: push in team/app: allowed\nauth.rules.ann gives the role admin"),
        "{explained}"
    );
    let explained = command(&["access", "explain", "--as", "ci", "--repository", "team/app", "--action", "pull"]);
    assert!(explained.starts_with("account:ci: pull in team/app: denied\n"), "{explained}");
    assert!(command(&["config", "check"]).contains("[auth.token]"));
    assert!(!command(&["config", "check"]).contains("PRIVATE"));
    berth.restart();
    assert!(!berth.log().contains(SECRET) && !berth.log().contains("eyJ"), "a secret is in the log");
}

/// Waits until the server says something.
fn await_log(berth: &Berth, text: &str) {
    while !berth.log().contains(text) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A line of another kind of hash stops the start, with its number and nothing of it.
#[test]
fn a_hash_that_is_not_one_refuses_the_start() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("users");
    fs::write(&file, "# users\nbob:$apr1$abcdefgh$0123456789\n").unwrap();
    let (status, said) = Setup::of(&[("BERTH_AUTH__HTPASSWD", file.to_str().unwrap())]).refused();
    assert_eq!(status.code(), Some(1));
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    assert!(said.contains("users, line 2: the hash is neither bcrypt") && !said.contains("apr1$"), "{said}");
}

/// Keys have to be given where several replicas could serve.
#[test]
fn a_remote_bucket_without_keys_refuses_the_start() {
    let settings = [("BERTH_STORAGE__URL", "s3://b"), ("BERTH_INDEX__URL", "redis://127.0.0.1:1/0")];
    let (status, said) = Setup::of(&[&settings[..], &[("BERTH_AUTH__ANONYMOUS", "reader")]].concat()).refused();
    assert_eq!(status.code(), Some(2));
    assert!(
        said.starts_with("berth: auth.token.keys (default): found nothing") && said.contains("`berth keys new`"),
        "{said}"
    );
}

/// Tokens live for a second here, and each page is slow the first time that it is asked for: a token that was good
/// as the client sent it has ended when it is looked at, in the middle of the pull, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pull_goes_on_after_its_token_has_ended() {
    let folder = TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().join("data").display());
    let (app, client) = open(&[("BERTH_STORAGE__URL", url.as_str()), ("BERTH_STORAGE__SYNC", "false")]).await;
    client.push_image("team/app", "1", &[noise(1, 1000), noise(2, 2000)]).await;
    let users = folder.path().join("users");
    fs::write(&users, format!("bob:{}", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    let logins: Vec<Arc<dyn Logins>> = vec![Arc::new(Htpasswd::new(Users::open(&users).unwrap()).unwrap())];
    let config = Config::parse(Path::new("x"), &settings(folder.path(), "reader")).unwrap().config;
    let options = TokenOptions { ttl: Duration::from_secs(1), ..TokenOptions::default() };
    let keys = KeyRing::make(Kind::EdDsa, 1).unwrap();
    let authority = Authority::new(AccessRules::configured(&config.auth), logins, options, keys);
    let seen = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let router = berth::api::observe::Observer::new(
        berth::telemetry::Metrics::new("test"),
        100,
        api::origin::Proxies::default(),
    )
    .around(api::router(Arc::clone(&app.registry), authority, None))
    .layer(axum::middleware::from_fn_with_state(Arc::clone(&seen), slow_at_first));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let crane = Tool::new("crane");
    run(&mut piped(&crane.command(&["auth", "login", "-u", "bob", "--password-stdin", &host]), SECRET));
    tokio::task::spawn_blocking(move || crane.run(&["pull", "--format=oci", &format!("{host}/team/app:1"), "layout"]))
        .await
        .unwrap();
    assert!(seen.lock().unwrap().len() >= 4, "{seen:?}");
    server.abort();
}

type Seen = Arc<std::sync::Mutex<std::collections::BTreeSet<String>>>;

async fn slow_at_first(
    State(seen): State<Seen>,
    request: Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    let has_token = request.headers().get("authorization").is_some_and(|value| value.as_bytes().starts_with(b"Bearer"));
    if has_token && path.contains("/app/") && seen.lock().unwrap().insert(path) {
        tokio::time::sleep(Duration::from_millis(2100)).await;
    }
    next.run(request).await
}
