//! Service accounts and rules at run time: the command line, the admin API, and released clients that log in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, fails, free_port, piped, run},
    docker_daemon::Daemon,
    e2e_client::{Answer, Client},
    e2e_tools::Tool,
    redis_server, s3_server,
};

/// A registry that lets nobody in but whom the roster names, and the settings that say so.
struct Closed {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Closed {
    fn new(more: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let admin = format!("127.0.0.1:{}", free_port());
        let settings = [("BERTH_AUTH__ANONYMOUS", "none"), ("BERTH_ADMIN__LISTEN", admin.as_str())];
        let environment = settings.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Self { environment: environment.collect(), directory }
    }

    fn start(&self) -> Berth {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        Setup::of(&environment).over(&self.bucket()).start()
    }

    fn bucket(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// `berth` with the server's settings.
    fn berth(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(arguments).env_clear();
        command.env("BERTH_STORAGE__URL", format!("file:{}", self.bucket().display()));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.berth(arguments))
    }

    /// Makes an account; its key file.
    fn create(&self, name: &str, role: &str, repository: &str) -> String {
        self.run(&["account", "create", name, "--role", role, "--repository", repository])
    }

    fn accounts(&self) -> Value {
        serde_json::from_str::<Value>(&self.run(&["account", "list", "--json"])).unwrap()["accounts"].take()
    }
}

fn secret_of(key: &str) -> String {
    serde_json::from_str::<Value>(key).unwrap()["private_key"].as_str().unwrap().to_owned()
}

fn basic(name: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")))
}

async fn ask(client: &Client, method: &str, path: &str, authorization: &str, body: impl Into<Bytes>) -> Answer {
    client.send(method, path, &[("authorization", authorization)], body).await
}

/// Whether a name and a secret are let in.
async fn is_let_in(client: &Client, name: &str, secret: &str) -> bool {
    match ask(client, "GET", "/v2/", &basic(name, secret), "").await.status {
        200 => true,
        401 => false,
        other => panic!("{other}"),
    }
}

/// Docker, crane, skopeo and podman, each with an image of its own at hand.
pub(crate) struct Clients {
    docker: Daemon,
    crane: Tool,
    skopeo: Tool,
    podman: Tool,
}

const PLAIN: &str = "--tls-verify=false";

impl Clients {
    pub(crate) fn new() -> Self {
        let (docker, crane) = (Daemon::start(), Tool::new("crane"));
        let (skopeo, podman) = (Tool::new("skopeo"), Tool::new("podman"));
        crane.tar("layer.tar", 1, 1000);
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(podman.path().join("policy.json"), policy).unwrap();
        let path = podman.path().display();
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{path}/graph\"\nrunroot = \"{path}/run\"\n");
        fs::write(podman.path().join("storage.conf"), storage).unwrap();
        Self { docker, crane, skopeo, podman }
    }

    /// Each logs in, pushes into `team/<name>-<client>`, and pulls it.
    pub(crate) fn use_credential(&self, host: &str, name: &str, user: &str, password: &str) {
        let login = ["login", host, "-u", user, "--password-stdin"];
        let image = |client: &str| format!("{host}/team/{name}-{client}:1");

        run(&mut piped(&self.crane.command(&[&["auth"], &login[..]].concat()), password));
        self.crane.run(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image("crane")]);
        self.crane.run(&["validate", "--remote", &image("crane")]);

        run(&mut piped(&self.skopeo.command(&[&login[..], &[PLAIN]].concat()), password));
        let (from, to) = (format!("docker://{}", image("crane")), format!("docker://{}", image("skopeo")));
        self.skopeo.run(&[
            "--insecure-policy",
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &from,
            &to,
        ]);
        self.skopeo.run(&["inspect", PLAIN, &to]);

        run(&mut piped(&self.podman.command(&[&login[..], &[PLAIN]].concat()), password));
        let policy = ["--signature-policy", "policy.json", PLAIN];
        let podman = |verb: &str, images: &[&str]| self.podman.run(&[&[verb], &policy[..], images].concat());
        podman("pull", &[&image("crane")]);
        podman("push", &[&image("crane"), &image("podman")]);
        podman("pull", &[&image("podman")]);

        run(&mut piped(&self.docker.docker(&login), password));
        self.docker.import(&image("docker"), 1000);
        self.docker.run(&["push", &image("docker")]);
        self.docker.pull_again(&image("docker"));
        self.log_out(host);
    }

    fn log_out(&self, host: &str) {
        self.crane.run(&["auth", "logout", host]);
        self.skopeo.run(&["logout", host]);
        self.podman.run(&["logout", host]);
        self.docker.run(&["logout", host]);
        let image = format!("{host}/team/any:1");
        for refused in [
            self.crane.fails(&["digest", &image]),
            self.skopeo.fails(&["inspect", PLAIN, &format!("docker://{image}")]),
        ] {
            let refused = refused.to_lowercase();
            assert!(refused.contains("unauthorized") || refused.contains("authentication required"), "{refused}");
        }
    }
}

/// Every credential but the ID token, which [`crate::oidc`] has, by every client.
#[test]
fn clients_log_in_with_a_password_and_with_a_key_in_each_form() {
    let folder = TempDir::new().unwrap();
    let users = folder.path().join("users");
    fs::write(&users, format!("ann:{}\n", bcrypt::hash("ann-secret", 4).unwrap())).unwrap();
    let closed = Closed::new(&[
        ("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()),
        ("BERTH_AUTH__RULES__ANN__WHO", "user:ann"),
        ("BERTH_AUTH__RULES__ANN__ROLE", "writer"),
        ("BERTH_AUTH__RULES__ANN__REPOSITORIES", "team/*"),
    ]);
    let key = closed.create("ci", "writer", "team/*");
    let berth = closed.start();
    let clients = Clients::new();
    let encoded = STANDARD.encode(&key);
    for (name, user, password) in [
        ("user", "ann", "ann-secret"),
        ("file", "_json_key", &key),
        ("encoded", "_json_key_base64", &encoded),
        ("secret", "ci", &secret_of(&key)),
    ] {
        clients.use_credential(&berth.host(), name, user, password);
    }
    let crane = Tool::new("crane");
    crane.tar("layer.tar", 1, 1000);
    run(&mut piped(&crane.command(&["auth", "login", &berth.host(), "-u", "_json_key", "--password-stdin"]), &key));
    let elsewhere = format!("{}/other/app:1", berth.host());
    let refused = crane.fails(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &elsewhere]);
    assert!(refused.contains("401 Unauthorized"), "{refused}");
    let used = closed.accounts();
    assert!(used[0]["last_used"].is_string(), "{used}");
}

/// On a directory: before the first start, beside a server, after it, and once the index is lost.
#[tokio::test]
async fn the_command_line_manages_with_a_server_and_without() {
    let closed = Closed::new(&[]);
    let first = closed.create("first", "reader", "team/*");
    let mut berth = closed.start();
    let second = closed.create("second", "writer", "team/*");
    let client = berth.client();
    for (name, key) in [("first", &first), ("second", &second)] {
        assert!(is_let_in(&client, name, &secret_of(key)).await, "{name}");
    }
    let tags = "/v2/open/app/tags/list";
    assert_eq!(ask(&client, "GET", tags, &basic("first", &secret_of(&first)), "").await.status, 401);
    let rule = ["rule", "add", "open", "--who", "account:first", "--role", "reader", "--repository", "open/**"];
    closed.run(&rule);
    assert_eq!(ask(&client, "GET", tags, &basic("first", &secret_of(&first)), "").await.status, 404);
    assert!(closed.run(&["rule", "list"]).contains("account:first"));
    let explain = |action: &str| {
        closed.run(&["access", "explain", "--as", "first", "--repository", "open/app", "--action", action])
    };
    let because = "rule open gives the role reader to account:first in open/**; no other rule gives them more here\n";
    assert_eq!(explain("pull"), format!("account:first: pull in open/app: allowed\n{because}"));
    assert_eq!(explain("push"), format!("account:first: push in open/app: denied\n{because}"));
    let again = fails(&mut closed.berth(&["account", "create", "second"]));
    assert!(again.contains("there is an account second already"), "{again}");

    berth.terminate();
    assert!(explain("pull").contains(&format!("allowed\n{because}")));
    closed.run(&["account", "disable", "second"]);
    let table = closed.run(&["account", "list"]);
    let line = table.lines().find(|line| line.starts_with("second")).unwrap();
    assert!(line.contains("disabled") && line.contains("writer") && line.contains("team/*"), "{table}");
    fs::remove_dir_all(closed.bucket().join(".index")).unwrap();
    berth.restart();
    let client = berth.client();
    assert!(is_let_in(&client, "first", &secret_of(&first)).await);
    assert!(!is_let_in(&client, "second", &secret_of(&second)).await);
    assert_eq!(ask(&client, "GET", tags, &basic("first", &secret_of(&first)), "").await.status, 404);
    closed.run(&["account", "enable", "second"]);
    assert!(is_let_in(&client, "second", &secret_of(&second)).await);
    closed.run(&["rule", "remove", "open"]);
    assert_eq!(ask(&client, "GET", tags, &basic("first", &secret_of(&first)), "").await.status, 401);
    berth.terminate();

    // A copy of the bucket that kept no times, with nobody beside it.
    let copy = Closed::new(&[]);
    thread::sleep(Duration::from_millis(10));
    run(Command::new("cp").arg("-r").arg(closed.bucket()).arg(copy.bucket()));
    fs::remove_dir_all(copy.bucket().join(".index")).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(3600);
    for list in ["accounts", "rules"] {
        make_later(&copy.bucket().join(list), later);
    }
    let said = copy.run(&["index", "rebuild", "--copied"]);
    assert!(said.contains("accounts 2\nrules 0\n"), "{said}");
    assert_eq!(copy.accounts().as_array().unwrap().len(), 2);
    let berth = copy.start();
    assert!(is_let_in(&berth.client(), "first", &secret_of(&first)).await);
}

fn make_later(folder: &Path, later: std::time::SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            make_later(&path, later);
        } else {
            fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        }
    }
}

/// With a bucket on S3 and an index in Redis, beside two servers, neither of which is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_command_line_works_on_the_bucket_beside_servers() {
    let (s3, redis) = (s3_server::start().await, redis_server::start().await);
    let keys = run(Command::new(env!("CARGO_BIN_EXE_berth")).args(["keys", "new"]).env("BERTH_CONFIG", "/dev/null"));
    let closed = Closed::new(&[
        ("BERTH_AUTH__TOKEN__KEYS", &keys),
        ("BERTH_STORAGE__URL", &format!("s3://{}/registry", s3.bucket)),
        ("BERTH_STORAGE__S3__ENDPOINT", &s3.endpoint),
        ("BERTH_STORAGE__S3__PATH_STYLE", "true"),
        ("BERTH_STORAGE__S3__REGION", "us-east-1"),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", &s3.access_key),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", &s3.secret_key),
        ("BERTH_INDEX__URL", &redis.url()),
    ]);
    let one = closed.start();
    let environment: Vec<(&str, &str)> =
        closed.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let two = Setup::of(&[&environment[..], &[("BERTH_ADMIN__LISTEN", "127.0.0.1:0")]].concat()).start();
    let key = closed.create("ci", "writer", "team/*");
    for berth in [&one, &two] {
        assert!(is_let_in(&berth.client(), "ci", &secret_of(&key)).await);
    }
    closed.run(&["account", "delete", "ci"]);
    for berth in [&one, &two] {
        assert!(!is_let_in(&berth.client(), "ci", &secret_of(&key)).await);
    }
    // A rule is told to those who watch; nobody asks for it.
    let everyone = ["rule", "add", "all", "--who", "everyone", "--role", "reader", "--repository", "**"];
    let began = std::time::Instant::now();
    closed.run(&everyone);
    for berth in [&one, &two] {
        while berth.client().get("/v2/team/app/tags/list").await.status != 404 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    println!("a rule was in force on both servers {:?} after its command began", began.elapsed());
}

/// Each answer comes after the change that it is about, so nothing has to be waited for.
#[tokio::test]
async fn what_ends_an_account_ends_it_at_once() {
    let closed = Closed::new(&[]);
    let key = closed.create("ci", "writer", "team/*");
    let berth = closed.start();
    let (client, admin) = (berth.client(), Client::remote(&format!("http://{}", berth.admin())));
    let old = secret_of(&key);
    assert!(is_let_in(&client, "ci", &old).await);

    let change = async |body: Value| admin.send("PATCH", "/_/v1/accounts/ci", &[], body.to_string()).await.expect(200);
    change(json!({ "disabled": true })).await;
    assert!(!is_let_in(&client, "ci", &old).await && !is_let_in(&client, "_json_key", &key).await);
    change(json!({ "disabled": false })).await;
    assert!(is_let_in(&client, "ci", &old).await);

    let rotate = async |body: &'static str| {
        let made = admin.send("POST", "/_/v1/accounts/ci/rotate", &[], body).await.expect(200).json();
        made["key"]["private_key"].as_str().unwrap().to_owned()
    };
    let new = rotate(r#"{"overlap_seconds": 3600}"#).await;
    assert!(is_let_in(&client, "ci", &old).await && is_let_in(&client, "ci", &new).await);
    let newest = rotate("").await;
    assert!(!is_let_in(&client, "ci", &old).await && !is_let_in(&client, "ci", &new).await);
    assert!(is_let_in(&client, "ci", &newest).await);

    let in_a_second = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
    change(json!({ "expires": in_a_second.to_rfc3339() })).await;
    assert!(is_let_in(&client, "ci", &newest).await);
    while is_let_in(&client, "ci", &newest).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(chrono::Utc::now() >= in_a_second);
    assert_eq!(admin.get("/_/v1/accounts/ci").await.expect(200).json()["state"], "expired");
    change(json!({ "expires": null })).await;
    assert!(is_let_in(&client, "ci", &newest).await);

    // Fewer rights are fewer at the next request.
    let tags = "/v2/team/app/tags/list";
    assert_eq!(ask(&client, "GET", tags, &basic("ci", &newest), "").await.status, 404);
    change(json!({ "role": "reader", "repositories": ["other"] })).await;
    assert_eq!(ask(&client, "GET", tags, &basic("ci", &newest), "").await.status, 401);

    admin.delete("/_/v1/accounts/ci").await.expect(204);
    assert!(!is_let_in(&client, "ci", &newest).await);
    closed.create("ci", "writer", "team/*");
    assert!(!is_let_in(&client, "ci", &newest).await);
}

/// A token says by itself what its holder may do, and so it lives on; a refresh token goes with the key.
#[tokio::test]
async fn a_refresh_token_ends_with_its_key_and_a_token_by_itself() {
    let closed = Closed::new(&[]);
    let key = closed.create("ci", "writer", "team/*");
    let berth = closed.start();
    let (client, admin) = (berth.client(), Client::remote(&format!("http://{}", berth.admin())));
    let scope = "scope=repository:team/app:pull";
    let log_in = async |secret: &str| {
        let path = format!("/v2/token?offline_token=true&{scope}");
        let said = ask(&client, "GET", &path, &basic("ci", secret), "").await.expect(200).json();
        assert_eq!(said["expires_in"], 300);
        ["token", "refresh_token"].map(|token| said[token].as_str().unwrap().to_owned())
    };
    let refresh = async |token: &str| {
        let form = format!("grant_type=refresh_token&{scope}&refresh_token={token}");
        client.send("POST", "/v2/token", &[], form).await.status
    };
    let accounts = "/_/v1/accounts";
    let change = async |body: &'static str| admin.send("PATCH", &format!("{accounts}/ci"), &[], body).await.expect(200);
    let rotate = async |body: &'static str| {
        admin.send("POST", &format!("{accounts}/ci/rotate"), &[], body).await.expect(200).json()["key"].to_string()
    };

    let [token, first] = log_in(&secret_of(&key)).await;
    assert_eq!(refresh(&first).await, 200);
    change(r#"{"disabled": true}"#).await;
    assert_eq!(refresh(&first).await, 401);
    let bearer = format!("Bearer {token}");
    assert_eq!(ask(&client, "GET", "/v2/team/app/tags/list", &bearer, "").await.status, 404);
    change(r#"{"disabled": false}"#).await;
    let second = rotate(r#"{"overlap_seconds": 3600}"#).await;
    let [_, second] = log_in(&secret_of(&second)).await;
    assert_eq!((refresh(&first).await, refresh(&second).await), (200, 200));
    rotate("").await;
    assert_eq!((refresh(&first).await, refresh(&second).await), (401, 401));
    admin.delete(&format!("{accounts}/ci")).await.expect(204);
    let [_, third] = log_in(&secret_of(&closed.create("ci", "writer", "team/*"))).await;
    assert_eq!((refresh(&first).await, refresh(&third).await), (401, 200));
}

/// Who administers `team/**` manages that and nothing else, and gets no further by way of an account.
#[tokio::test]
async fn an_admin_of_a_prefix_manages_what_is_below_it() {
    let closed = Closed::new(&[
        ("BERTH_ADMIN__LISTEN", "0.0.0.0:0"),
        ("BERTH_AUTH__RULES__OPS__WHO", "account:ops,account:trusted"),
        ("BERTH_AUTH__RULES__OPS__ROLE", "writer"),
        ("BERTH_AUTH__RULES__OPS__REPOSITORIES", "production/**"),
    ]);
    let team = secret_of(&closed.create("team-admin", "admin", "team/**"));
    let root_key = closed.create("root", "admin", "**");
    let root = secret_of(&root_key);
    let reader = secret_of(&closed.create("reader", "writer", "team/**"));
    closed.create("trusted", "writer", "team/app");
    closed.create("foreign", "writer", "other/app");
    closed.run(&["account", "create", "bare"]);
    closed.run(&["rule", "add", "foreign", "--who", "everyone", "--role", "reader", "--repository", "other/**"]);
    let berth = closed.start();
    let admin = Client::remote(&format!("http://{}", berth.admin()));
    let (team, root, reader) = (basic("team-admin", &team), basic("root", &root), basic("reader", &reader));
    let bearer = format!("Bearer {}", "x".repeat(40));

    let new = |name: &str, role: &str, pattern: &str| {
        json!({ "name": name, "role": role, "repositories": [pattern] }).to_string()
    };
    let rule =
        |who: &str, pattern: &str| json!({ "who": [who], "role": "reader", "repositories": [pattern] }).to_string();
    let question = |name: &str| json!({ "who": "account:ops", "repository": name, "action": "pull" }).to_string();
    let (accounts, rules, explain) = ("/_/v1/accounts", "/_/v1/rules", "/_/v1/explain");
    let of = |list: &str, name: &str| format!("{list}/{name}");
    let table = [
        // Nobody, and who administers nothing.
        ("", "GET", accounts.to_owned(), String::new(), 401),
        (&bearer, "GET", accounts.to_owned(), String::new(), 401),
        (&reader, "GET", accounts.to_owned(), String::new(), 403),
        (&reader, "POST", accounts.to_owned(), new("x", "reader", "team/app"), 403),
        // Below the prefix, and not.
        (&team, "POST", accounts.to_owned(), new("mine", "admin", "team/**"), 201),
        (&team, "POST", accounts.to_owned(), new("mine-too", "writer", "team/a/*"), 201),
        (&team, "POST", accounts.to_owned(), new("x", "reader", "**"), 403),
        (&team, "POST", accounts.to_owned(), new("x", "reader", "*/app"), 403),
        (&team, "POST", accounts.to_owned(), new("x", "reader", "teams/app"), 403),
        (&team, "POST", accounts.to_owned(), r#"{"name": "x"}"#.to_owned(), 403),
        // An account that a rule gives more, also before there is one.
        (&team, "POST", accounts.to_owned(), new("ops", "reader", "team/app"), 403),
        (&team, "POST", of(accounts, "trusted/rotate"), String::new(), 403),
        (&team, "PATCH", of(accounts, "trusted"), r#"{"disabled": false}"#.to_owned(), 403),
        (&team, "PATCH", of(accounts, "trusted"), r#"{"disabled": true}"#.to_owned(), 200),
        // What is others'.
        (&team, "GET", of(accounts, "foreign"), String::new(), 404),
        (&team, "POST", of(accounts, "foreign/rotate"), String::new(), 403),
        (&team, "PATCH", of(accounts, "foreign"), r#"{"disabled": true}"#.to_owned(), 403),
        (&team, "DELETE", of(accounts, "foreign"), String::new(), 403),
        (&team, "POST", of(accounts, "bare/rotate"), String::new(), 403),
        (&team, "POST", of(accounts, "root/rotate"), String::new(), 403),
        (&team, "PATCH", of(accounts, "mine"), json!({ "role": "reader", "repositories": ["other"] }).to_string(), 403),
        // Rules likewise.
        (&team, "PUT", of(rules, "mine"), rule("everyone", "team/**"), 200),
        (&team, "PUT", of(rules, "x"), rule("everyone", "other/app"), 403),
        (&team, "PUT", of(rules, "foreign"), rule("everyone", "team/app"), 403),
        (&team, "DELETE", of(rules, "foreign"), String::new(), 403),
        (&team, "GET", of(rules, "foreign"), String::new(), 404),
        (&team, "DELETE", of(rules, "mine"), String::new(), 204),
        (&team, "DELETE", of(accounts, "mine-too"), String::new(), 204),
        // Whether somebody else may do something.
        (&team, "POST", explain.to_owned(), question("team/app"), 200),
        (&team, "POST", explain.to_owned(), question("other/app"), 403),
        (&root, "POST", explain.to_owned(), question("other/app"), 200),
        (&root, "POST", explain.to_owned(), question("Other"), 400),
        // Who administers everything.
        (&root, "POST", of(accounts, "trusted/rotate"), String::new(), 200),
        (&root, "DELETE", of(accounts, "foreign"), String::new(), 204),
        (&root, "DELETE", of(rules, "foreign"), String::new(), 204),
        (&root, "DELETE", of(accounts, "nobody"), String::new(), 404),
        // What isn't said as it should be.
        (&root, "POST", accounts.to_owned(), r#"{"name": "x", "created": "2020-01-01T00:00:00Z"}"#.to_owned(), 400),
        (&root, "POST", accounts.to_owned(), r#"{"name": "x", "role": "admin"}"#.to_owned(), 400),
        (&root, "POST", accounts.to_owned(), r#"{"name": "x", "expires": "2020-01-01T00:00:00Z"}"#.to_owned(), 400),
        (&root, "POST", accounts.to_owned(), r#"{"name": "X"}"#.to_owned(), 400),
        (&root, "PUT", of(rules, "x"), json!({ "who": [], "role": "reader", "repositories": ["a"] }).to_string(), 400),
        (&root, "PUT", accounts.to_owned(), String::new(), 405),
        (&root, "GET", "/_/v1/else".to_owned(), String::new(), 404),
    ];
    for (authorization, method, path, body, status) in table {
        let answer = match authorization {
            "" => admin.send(method, &path, &[], body.clone()).await,
            _ => ask(&admin, method, &path, authorization, body.clone()).await,
        };
        assert_eq!(answer.status, status, "{method} {path} {body}: {}", answer.json());
    }
    let seen = ask(&admin, "GET", accounts, &team, "").await.json();
    let names: Vec<&str> =
        seen["accounts"].as_array().unwrap().iter().map(|account| account["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mine", "reader", "team-admin", "trusted"]);
    assert_eq!(get_health(&admin).await, 200);

    // The same by the command line, with a key file.
    let file = closed.directory.path().join("key.json");
    let url = format!("http://{}", berth.admin());
    fs::write(&file, &root_key).unwrap();
    let listed = run(Command::new(env!("CARGO_BIN_EXE_berth"))
        .env_clear()
        .args(["account", "list", "--server", &url])
        .arg("--credential")
        .arg(&file));
    assert!(listed.contains("team-admin"), "{listed}");
    let refused =
        fails(Command::new(env!("CARGO_BIN_EXE_berth")).env_clear().args(["account", "list", "--server", &url]));
    assert!(refused.contains("authentication required"), "{refused}");
}

/// CVE-2019-16097: who registered made themselves an admin by a field that was not for them. The guard is
/// `deny_unknown_fields` on what the admin API reads.
#[tokio::test]
async fn cve_2019_16097_a_field_that_is_not_for_the_caller_is_refused() {
    let closed = Closed::new(&[]);
    closed.create("ci", "reader", "team/*");
    let berth = closed.start();
    let admin = Client::remote(&format!("http://{}", berth.admin()));
    let accounts = "/_/v1/accounts";
    for field in ["created", "changed_by", "keys", "is_admin"] {
        let change = json!({ field: "x" }).to_string();
        let ci = format!("{accounts}/ci");
        admin.send("PATCH", &ci, &[], change).await.expect_error(400, "REQUEST_INVALID");
        let new = json!({ "name": "new", field: "x" }).to_string();
        admin.send("POST", accounts, &[], new).await.expect_error(400, "REQUEST_INVALID");
    }
}

/// CVE-2022-31669 and CVE-2022-31670: what belongs to another project was changed by its id. The guards are
/// `theirs` for accounts, and `Manager::require` of the rule that is there in `put_rule` and `delete_rule`.
#[tokio::test]
async fn cve_2022_31669_what_is_others_is_not_changed_by_its_name() {
    let closed = Closed::new(&[("BERTH_ADMIN__LISTEN", "0.0.0.0:0")]);
    let admin = basic("admin", &secret_of(&closed.create("admin", "admin", "team/**")));
    closed.create("foreign", "writer", "other/app");
    closed.run(&["rule", "add", "foreign", "--who", "account:x", "--role", "reader", "--repository", "other/**"]);
    let berth = closed.start();
    let client = Client::remote(&format!("http://{}", berth.admin()));
    let rule = json!({ "who": ["account:x"], "role": "reader", "repositories": ["team/app"] }).to_string();
    let mine = json!({ "role": "reader", "repositories": ["team/app"] }).to_string();
    for (method, path, body) in [
        ("PATCH", "accounts/foreign", mine.as_str()),
        ("PATCH", "accounts/foreign", r#"{"disabled": true}"#),
        ("POST", "accounts/foreign/rotate", ""),
        ("DELETE", "accounts/foreign", ""),
        ("PUT", "rules/foreign", &rule),
        ("DELETE", "rules/foreign", ""),
    ] {
        let answer = ask(&client, method, &format!("/_/v1/{path}"), &admin, body.to_owned()).await;
        assert_eq!(answer.status, 403, "{method} {path} {body}: {answer:?}");
    }
}

async fn get_health(admin: &Client) -> u16 {
    admin.get("/readyz").await.status
}

/// On loopback nobody is asked who they are, but a page in a browser is refused.
#[tokio::test]
async fn a_page_in_a_browser_manages_nothing() {
    let closed = Closed::new(&[]);
    let berth = closed.start();
    let admin = Client::remote(&format!("http://{}", berth.admin()));
    admin.get("/_/v1/accounts").await.expect(200);
    let body = r#"{"name": "mine", "role": "admin", "repositories": ["**"]}"#;
    for header in [("origin", "http://evil.example"), ("host", "evil.example")] {
        admin.send("POST", "/_/v1/accounts", &[header], body).await.expect_error(403, "DENIED");
        admin.send("GET", "/_/v1/accounts", &[header], "").await.expect_error(403, "DENIED");
    }
    // The public listener has none of it.
    assert_eq!(berth.client().get("/_/v1/accounts").await.status, 404);
}

/// A secret is nowhere but with whom it was given to; nor is what is kept of it shown.
#[tokio::test]
async fn no_secret_is_kept_or_told() {
    let closed = Closed::new(&[("BERTH_LOG__LEVEL", "trace")]);
    let key = closed.create("ci", "writer", "team/*");
    let mut berth = closed.start();
    let secret = secret_of(&key);
    assert!(is_let_in(&berth.client(), "ci", &secret).await);
    assert!(is_let_in(&berth.client(), "_json_key", &key).await);
    assert!(!is_let_in(&berth.client(), "ci", &format!("{secret}x")).await);
    let admin = Client::remote(&format!("http://{}", berth.admin()));
    let told = admin.get("/_/v1/accounts").await.json().to_string();
    let object = found_in(&closed.bucket().join("accounts"), b"").pop().unwrap();
    let body: Value = serde_json::from_slice(&fs::read(&object).unwrap()).unwrap();
    let hash = body["keys"][0]["hash"].as_str().unwrap().to_owned();
    berth.terminate();
    let key_of_object = object.strip_prefix(closed.bucket()).unwrap().to_str().unwrap().to_owned();
    let inspected = closed.run(&["inspect", "key", &key_of_object]);
    assert!(inspected.contains("the index goes by it"), "{inspected}");
    for text in [told, inspected, closed.run(&["account", "list", "--json"]), berth.log()] {
        assert!(!text.contains(&secret) && !text.contains(&hash), "{text}");
    }
    assert!(berth.log().contains("account:ci"));
    assert_eq!(found_in(&closed.bucket(), secret.as_bytes()), Vec::<PathBuf>::new());
}

/// The files below a folder that hold some bytes.
fn found_in(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(found_in(&path, bytes));
        } else if bytes.is_empty() || fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes) {
            found.push(path);
        }
    }
    found
}
