//! Logins by the released clients: docker, podman, skopeo and crane log in as a user of an htpasswd file, push
//! and pull, and are refused where they should be. No answer is asked for by anything but the client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use berth::{
    api::{self, observe::Observer, origin::Proxies},
    auth::{
        AccessRules, Authority, Caller, Logins, Offline, TokenIssuers, TokenOptions,
        htpasswd::{Htpasswd, Users},
        keys::{KeyRing, Kind},
        scope::Scope,
    },
    config::Config,
    telemetry::Metrics,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, fails, piped, run},
    conformance::open,
    docker_daemon::Daemon,
    e2e_client::{Client, noise},
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

#[test]
fn docker_logs_in_and_pushes_and_pulls() {
    let ((berth, _folder), daemon) = (server(), Daemon::start());
    let image = format!("{}/team/app:1", berth.host());
    daemon.import(&image, 200_000);
    let unknown = fails(&mut daemon.docker(&["push", &image]));
    assert!(unknown.contains("denied: requested access"), "{unknown}");
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
    let refused = fails(&mut daemon.docker(&["push", &image]));
    assert!(refused.contains("denied: requested access"), "{refused}");
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
    await_log(&berth, "rules, groups, users, keys and endpoints count as they are now");
    crane.run(&["delete", &image]);

    // A rotation by the command goes by unseen, and what was there before goes on.
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(arguments).env("BERTH_STORAGE__URL", format!("file:{}", berth.directory().display()));
        // The directory is the server's, so what opens it asks the server.
        run(command.env("BERTH_CONFIG", &file).env("BERTH_ADMIN__LISTEN", berth.admin().to_string()))
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

/// On the way of each page that is asked for the first time its token ends, so that the client learns of it in the
/// middle of the pull, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pull_goes_on_after_its_token_has_ended() {
    let folder = TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().join("data").display());
    let (app, client) = open(&[("BERTH_STORAGE__URL", url.as_str()), ("BERTH_STORAGE__SYNC", "false")]).await;
    client.push_image("team/app", "1", &[noise(1, 1000), noise(2, 2000)]).await;
    let users = folder.path().join("users");
    fs::write(&users, format!("bob:{}", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    let config = Config::parse(Path::new("x"), &settings(folder.path(), "reader")).unwrap().config;
    let keys = KeyRing::make(Kind::EdDsa, 1).unwrap().text();
    let authority = |ttl| {
        let logins: Vec<Arc<dyn Logins>> = vec![Arc::new(Htpasswd::new(Users::open(&users).unwrap()).unwrap())];
        let options = TokenOptions { ttl, ..TokenOptions::default() };
        let (rules, keys) = (AccessRules::configured(&config.auth), KeyRing::read(&keys).unwrap());
        Authority::new(rules, logins, options, keys, TokenIssuers::default())
    };
    let (lasting, ending) = (authority(Duration::from_secs(300)), authority(Duration::ZERO));
    let ended = ending.issue(&Caller::anonymous(), &Scope::default(), Offline::No).unwrap().token;
    let way = Arc::new(Way { ended, seen: Mutex::default() });
    let router = api::router(Arc::clone(&app.registry), lasting, None)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&way), end_at_first));
    let router = Observer::new(Metrics::new("test"), 100, Proxies::default()).around(router);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let crane = Tool::new("crane");
    run(&mut piped(&crane.command(&["auth", "login", "-u", "bob", "--password-stdin", &host]), SECRET));
    tokio::task::spawn_blocking(move || crane.run(&["pull", "--format=oci", &format!("{host}/team/app:1"), "layout"]))
        .await
        .unwrap();
    // The manifest, its configuration and two layers.
    assert!(way.seen.lock().unwrap().len() >= 4, "{:?}", way.seen);
    server.abort();
}

/// A way on which tokens end.
struct Way {
    ended: String,
    seen: Mutex<BTreeSet<String>>,
}

async fn end_at_first(State(way): State<Arc<Way>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let has_token = request.headers().get("authorization").is_some_and(|value| value.as_bytes().starts_with(b"Bearer"));
    if has_token && path.contains("/app/") && way.seen.lock().unwrap().insert(path) {
        request.headers_mut().insert("authorization", format!("Bearer {}", way.ended).parse().unwrap());
    }
    next.run(request).await
}

/// Two servers with the same file of keys, over data of their own: a token of the one is good at the other, and
/// whoever goes on asking while the keys are rotated is never refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_with_the_same_keys_believe_each_other_also_while_they_rotate() {
    let folder = TempDir::new().unwrap();
    let (users, keys) = (folder.path().join("users"), folder.path().join("keys.pem"));
    fs::write(&users, format!("ann:{}", bcrypt::hash(SECRET, 4).unwrap())).unwrap();
    let set =
        [("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()), ("BERTH_AUTH__TOKEN__KEYS_FILE", keys.to_str().unwrap())];
    let berth = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        run(command.args(arguments).env("BERTH_CONFIG", "/dev/null").envs(set))
    };
    // A key of an hour ago, so that the rotation has one to go on with.
    let long_ago = |text: String| -> String {
        let line = |line: &str| {
            if line.starts_with("# made") { "# made 2026-01-01T00:00:00Z" } else { line }.to_owned() + "\n"
        };
        text.lines().map(line).collect()
    };
    fs::write(&keys, long_ago(berth(&["keys", "new"]))).unwrap();
    let servers = [Setup::of(&set).start(), Setup::of(&set).start()];
    let clients = servers.each_ref().map(|server| server.client());
    let basic = format!("Basic {}", STANDARD.encode(format!("ann:{SECRET}")));
    let token = async |client: &Client| {
        let said = client.send("GET", "/v2/token", &[("authorization", &basic)], "").await.expect(200).json();
        said["token"].as_str().unwrap().to_owned()
    };
    let is_good = async |client: &Client, token: &str| {
        client.send("GET", "/v2/", &[("authorization", &format!("Bearer {token}"))], "").await.expect(200);
    };
    let key_of = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let old = token(&clients[0]).await;
    is_good(&clients[1], &old).await;

    // The new key doesn't sign yet, and does once its time has come, as this file then says.
    berth(&["keys", "rotate"]);
    let rotated = fs::read_to_string(&keys).unwrap();
    for text in [rotated.clone(), long_ago(rotated)] {
        fs::write(&keys, text).unwrap();
        for server in &servers {
            let before = server.log().matches("keys and endpoints count as they are now").count();
            server.signal(Signal::HUP);
            while server.log().matches("keys and endpoints count as they are now").count() == before {
                for client in &clients {
                    is_good(client, &old).await;
                    is_good(client, &token(&clients[0]).await).await;
                }
            }
        }
    }
    assert_eq!(clients[0].get("/.well-known/jwks.json").await.json()["keys"].as_array().unwrap().len(), 2);
    let new = token(&clients[1]).await;
    for client in &clients {
        is_good(client, &old).await;
        is_good(client, &new).await;
    }
    assert!(clients[0].get("/.well-known/jwks.json").await.json().to_string().contains(&key_of(&new)));
}

/// Whatever comes of a request, no password, token or key is in the log, a metric, an answer, or what a command
/// shows of the configuration.
#[tokio::test]
async fn no_secret_is_shown_anywhere() {
    let (mut berth, folder) = server();
    let client = berth.client();
    let mut seen = String::new();
    let mut secrets = vec![SECRET.to_owned(), "guess-of-a-password".to_owned()];
    let users = fs::read_to_string(folder.path().join("users")).unwrap();
    secrets.extend(users.lines().map(|line| line.split_once(':').unwrap().1.to_owned()));
    let keys = fs::read_to_string(berth.directory().join(".keys")).unwrap();
    secrets.extend(keys.lines().filter(|line| !line.starts_with(['#', '-'])).map(str::to_owned));
    let pair = |name: &str, secret: &str| format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")));
    let login =
        client.send("GET", "/v2/token?offline_token=true", &[("authorization", &pair("ann", SECRET))], "").await;
    let login = login.expect(200).json();
    let (token, refresh) = (login["token"].as_str().unwrap(), login["refresh_token"].as_str().unwrap());
    secrets.extend([token.to_owned(), refresh.to_owned(), token.rsplit('.').next().unwrap().to_owned()]);
    let tampered = format!("{}x", &token[..token.len() - 1]);
    for authorization in [
        pair("ann", "guess-of-a-password"),
        pair("nobody", "guess-of-a-password"),
        pair("_token", token),
        pair("_token", &tampered),
        format!("Bearer {token}"),
        format!("Bearer {tampered}"),
        format!("Bearer {refresh}"),
        format!("Digest {SECRET}"),
        format!("Basic {SECRET}"),
    ] {
        for path in ["/v2/", "/v2/token", "/v2/team/app/tags/list", "/v2/_catalog"] {
            let answer = client.send("GET", path, &[("authorization", &authorization)], "").await;
            if path != "/v2/token" || answer.status != 200 {
                seen.push_str(&format!("{answer:?}{}", String::from_utf8_lossy(&answer.body)));
            }
        }
    }
    for form in [
        "grant_type=password&username=ann&password=guess-of-a-password".to_owned(),
        format!("grant_type=refresh_token&refresh_token={tampered}"),
        format!("grant_type=refresh_token&refresh_token={token}"),
        format!("grant_type={SECRET}&password={SECRET}"),
    ] {
        let answer = client.send("POST", "/v2/token", &[], form).await;
        assert!(answer.status >= 400, "{answer:?}");
        seen.push_str(&format!("{answer:?}{}", String::from_utf8_lossy(&answer.body)));
    }
    let metrics = Client::remote(&format!("http://{}", berth.admin())).get("/metrics").await.expect(200);
    seen.push_str(&String::from_utf8_lossy(&metrics.body));
    let checked = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["config", "check"])
        .env("BERTH_CONFIG", folder.path().join("berth.toml"))
        .env("BERTH_AUTH__TOKEN__KEYS", &keys)
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    seen.push_str(&String::from_utf8_lossy(&checked.stdout));
    berth.terminate();
    seen.push_str(&berth.log());
    for secret in secrets {
        assert!(!seen.contains(&secret), "{secret} was shown");
    }
}
