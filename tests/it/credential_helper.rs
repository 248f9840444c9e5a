//! `docker-credential-berth` and `berth configure-docker`: their protocols word by word, and the clients that
//! use them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use http::{StatusCode, header::AUTHORIZATION};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    authority::Authority,
    berth::{Berth, Setup, run},
    docker_daemon::Daemon,
    e2e_tools::Tool,
    issuer::{Issuer, Key},
};

/// An ID token as a platform gives it out; only its end is ever looked at.
fn id_token(lasts: i64) -> String {
    let claims = json!({ "sub": "repo:team/app", "exp": chrono::Utc::now().timestamp() + lasts });
    ["{}", &claims.to_string(), "signature"].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".")
}

/// A home with the helper in it: its settings, and Docker's.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("HOME", self.0.path()).env("PATH", env::var_os("PATH").unwrap());
        command
    }

    /// The helper with what it is told on standard input: whether it went well, and what it printed.
    fn ask(&self, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> (bool, String) {
        let mut command = self.of(env!("CARGO_BIN_EXE_docker-credential-berth"), arguments);
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
        (output.status.success(), said.trim_end().to_owned())
    }

    /// The same where it has to go well.
    fn helper(&self, arguments: &[&str], input: &str) -> String {
        let (is_good, said) = self.ask(arguments, input, &[]);
        assert!(is_good, "{said}");
        said
    }

    fn get(&self, host: &str, environment: &[(&str, &str)]) -> Value {
        let (is_good, said) = self.ask(&["get"], host, environment);
        assert!(is_good, "{said}");
        serde_json::from_str(&said).unwrap()
    }

    fn configure(&self, arguments: &[&str]) {
        run(&mut self.of(env!("CARGO_BIN_EXE_berth"), &[&["configure-docker"], arguments].concat()));
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_stored_is_found_listed_and_forgotten() {
    let home = Home::new();
    let not_found = (false, "credentials not found in native keychain".to_owned());
    assert_eq!(home.ask(&["get"], "r.example.com", &[]), not_found);
    assert_eq!(home.helper(&["list"], ""), "{}");
    let entry = r#"{"ServerURL":"https://r.example.com","Username":"alice","Secret":"s3cret"}"#;
    assert_eq!(home.helper(&["store"], entry), "");
    assert_eq!(home.helper(&["get"], "https://r.example.com\n"), entry);
    assert_eq!(home.get("r.example.com", &[])["Secret"], "s3cret");
    assert_eq!(home.helper(&["list"], ""), r#"{"r.example.com":"alice"}"#);
    let file = home.path(".config/berth/credentials.json");
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    home.helper(&["store"], r#"{"ServerURL":"other:5000","Username":"<token>","Secret":"refresh"}"#);
    home.helper(&["erase"], "r.example.com");
    assert_eq!(home.ask(&["get"], "r.example.com", &[]), not_found);
    assert_eq!(home.get("other:5000", &[])["Username"], "<token>");
    // Docker erases before it stores, and again at a logout.
    home.helper(&["erase"], "r.example.com");
    assert!(home.helper(&["version"], "").starts_with("docker-credential-berth "));
}

/// The words that clients know, and none that quote a secret.
#[test]
fn mistakes_are_told_in_words_that_clients_know() {
    let home = Home::new();
    let told = |verb: &str, input: &str| {
        let (is_good, said) = home.ask(&[verb], input, &[]);
        assert!(!is_good, "{said}");
        said
    };
    assert_eq!(told("get", ""), "no credentials server URL");
    assert_eq!(told("erase", "\n"), "no credentials server URL");
    assert_eq!(told("store", r#"{"ServerURL":"","Username":"a","Secret":"b"}"#), "no credentials server URL");
    assert_eq!(told("store", r#"{"ServerURL":"r","Username":"","Secret":"b"}"#), "no credentials username");
    assert_eq!(told("store", r#"{"ServerURL":"r","Username":5,"Secret":"hush"}"#), "the credential is not as JSON");
    home.helper(&["store"], r#"{"ServerURL":"r","Username":"a","Secret":"hush"}"#);
    let file = home.path(".config/berth/credentials.json");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("\"hush\"", "5")).unwrap();
    assert!(told("get", "r").ends_with("credentials.json: not what was written there"), "{}", told("get", "r"));
}

#[test]
fn dockers_configuration_keeps_everything_else() {
    let home = Home::new();
    home.configure(&["r.example.com", "https://Other.example.com:5000/v2/"]);
    let config = home.path(".docker/config.json");
    let read = |path: &Path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let expected = json!({"credHelpers": {"r.example.com": "berth", "other.example.com:5000": "berth"}});
    assert_eq!(read(&config), expected);
    assert_eq!(mode(&config), 0o600);

    // What stands there already stays, in a file that is a link and that others may read.
    let before = json!({"auths": {"x": {"auth": "YTpi"}}, "credHelpers": {"y": "z"}, "psFormat": "{{.ID}}"});
    fs::create_dir(home.path("dotfiles")).unwrap();
    let file = home.path("dotfiles/docker.json");
    fs::write(&file, before.to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(home.path("elsewhere")).unwrap();
    let link = home.path("elsewhere/config.json");
    symlink(&file, &link).unwrap();
    let elsewhere = home.path("elsewhere");
    let configure = || {
        let mut command = home.of(env!("CARGO_BIN_EXE_berth"), &["configure-docker", "r.example.com"]);
        command.env("DOCKER_CONFIG", &elsewhere);
        command
    };
    run(&mut configure());
    let mut after = before;
    after["credHelpers"]["r.example.com"] = json!("berth");
    assert_eq!(read(&link), after);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(mode(&file), 0o644);

    // One that can't be read is left as it is.
    for broken in ["{\"auths\": ", "[]", "{\"credHelpers\": 5}"] {
        fs::write(&file, broken).unwrap();
        let said = crate::berth::fails(&mut configure());
        assert!(said.contains("config.json") || said.contains("docker.json"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    }
    assert_eq!(fs::read_dir(home.path("dotfiles")).unwrap().count(), 1, "nothing is left over");
}

/// A registry with a token service in front of Berth: it knows one key and one ID token, gives out refresh
/// tokens, and notes by what each token was had.
struct Front {
    host: String,
    _berth: Berth,
    behind: String,
    client: reqwest::Client,
    /// `<grant> <user>` of each token that it gave out.
    granted: Mutex<Vec<String>>,
    id_token: String,
}

const KEY: &str = r#"{"type": "service_account", "client_email": "ci", "private_key": "k"}"#;

impl Front {
    async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let berth = tokio::task::spawn_blocking(Berth::start).await.unwrap();
        let front = Arc::new(Self {
            host: listener.local_addr().unwrap().to_string(),
            behind: format!("http://{}", berth.public()),
            _berth: berth,
            client: reqwest::Client::new(),
            granted: Mutex::new(Vec::new()),
            id_token: id_token(300),
        });
        let routes = Router::new().fallback(answer).with_state(front.clone());
        tokio::spawn(async { axum::serve(listener, routes).await });
        front
    }

    fn granted(&self) -> Vec<String> {
        std::mem::take(&mut *self.granted.lock().unwrap())
    }

    /// A token for these fields of a form, or of a Basic login.
    fn token(&self, fields: &BTreeMap<String, String>) -> Response {
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let is_known = match (field("grant_type"), field("username")) {
            ("refresh_token", _) => field("refresh_token") == "refresh",
            (_, "_json_key") => field("password") == KEY,
            (_, "_oidc") => field("password") == self.id_token,
            _ => false,
        };
        if !is_known || field("service") != "front" {
            return status(StatusCode::UNAUTHORIZED);
        }
        self.granted.lock().unwrap().push(format!("{} {}", field("grant_type"), field("username")));
        let mut token = json!({"token": "pass", "access_token": "pass", "expires_in": 300});
        if field("access_type") == "offline" {
            token["refresh_token"] = json!("refresh");
        }
        Response::new(Body::from(token.to_string()))
    }

    async fn forward(&self, request: Request) -> Response {
        let (mut head, body) = request.into_parts();
        head.headers.remove(AUTHORIZATION);
        let body = to_bytes(body, 64 << 20).await.unwrap();
        let url = format!("{}{}", self.behind, head.uri);
        let request = self.client.request(head.method, url).headers(head.headers).body(body);
        let answer = request.send().await.unwrap();
        let mut response = status(answer.status());
        *response.headers_mut() = answer.headers().clone();
        *response.body_mut() = Body::from(answer.bytes().await.unwrap());
        response
    }
}

fn status(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn fields(encoded: &str) -> BTreeMap<String, String> {
    let url: reqwest::Url = format!("http://x/?{encoded}").parse().unwrap();
    url.query_pairs().into_owned().collect()
}

async fn answer(State(front): State<Arc<Front>>, request: Request) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
    let authorization = authorization.unwrap_or_default();
    match request.uri().path() {
        // The runner of GitHub Actions.
        "/idtoken" => {
            let fields = fields(request.uri().query().unwrap());
            assert_eq!((fields["audience"].as_str(), fields["api-version"].as_str()), (front.host.as_str(), "2.0"));
            assert_eq!(authorization, "Bearer runner");
            Response::new(Body::from(json!({"count": 1, "value": front.id_token}).to_string()))
        }
        "/v2/token" if request.method() == "POST" => {
            let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
            front.token(&fields(std::str::from_utf8(&body).unwrap()))
        }
        "/v2/token" => {
            let mut fields = fields(request.uri().query().unwrap_or_default());
            let basic = authorization.strip_prefix("Basic ").unwrap_or_default();
            let basic = String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap();
            let (username, password) = basic.split_once(':').unwrap_or_default();
            fields.extend([("username".to_owned(), username.to_owned()), ("password".to_owned(), password.to_owned())]);
            fields.insert("grant_type".to_owned(), "basic".to_owned());
            front.token(&fields)
        }
        _ if authorization == "Bearer pass" => front.forward(request).await,
        _ => {
            let mut response = status(StatusCode::UNAUTHORIZED);
            let challenge = format!("Bearer realm=\"http://{}/v2/token\",service=\"front\"", front.host);
            response.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            response
        }
    }
}

impl Front {
    /// The variables by which a job of GitHub Actions gets its ID token.
    fn runner(&self) -> [(String, String); 2] {
        let url = format!("http://{}/idtoken?api-version=2.0", self.host);
        [("ACTIONS_ID_TOKEN_REQUEST_URL", url), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner".to_owned())]
            .map(|(name, value)| (name.to_owned(), value))
    }
}

/// Each platform's ID token becomes a refresh token of the registry's.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_token_is_exchanged() {
    let front = Front::start().await;
    let home = Home::new();
    let file = home.path("token");
    fs::write(&file, format!("{}\n", front.id_token)).unwrap();
    let runner = front.runner();
    let runner: Vec<(&str, &str)> = runner.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let sources: [(&str, &[(&str, &str)]); 3] = [
        ("github", &runner),
        ("gitlab:REGISTRY_TOKEN", &[("REGISTRY_TOKEN", &front.id_token)]),
        (&format!("kubernetes:{}", file.display()), &[]),
    ];
    for (source, environment) in sources {
        home.configure(&["--token-source", source, &front.host]);
        let got = home.get(&front.host, environment);
        assert_eq!(got, json!({"ServerURL": front.host, "Username": "<token>", "Secret": "refresh"}));
        assert_eq!(front.granted(), ["password _oidc"], "{source}");
        assert_eq!(home.helper(&["list"], ""), json!({&front.host: "<token>"}).to_string());
    }
    let (is_good, said) = home.ask(&["--token-source", "gitlab", "get"], &front.host, &[("BERTH_ID_TOKEN", "forged")]);
    assert!(!is_good && said.ends_with("did not take the ID token: 401 Unauthorized"), "{said}");
    let (is_good, said) = home.ask(&["--token-source", "gitlab", "get"], &front.host, &[]);
    assert!(!is_good && said.starts_with("BERTH_ID_TOKEN is not set"), "{said}");
    let kept = fs::read_to_string(home.path(".config/berth/credentials.json")).unwrap();
    assert!(!kept.contains("refresh") && !kept.contains(&front.id_token), "no token is kept");
}

/// A registry that has no token service takes the ID token itself; and the helper trusts the machine's
/// authorities, or those of `SSL_CERT_FILE`.
#[test]
fn an_id_token_is_a_password_where_nothing_is_given_for_it() {
    let (authority, home) = (Authority::new(), Home::new());
    let berth = authority.setup(&[]).start();
    let token = id_token(300);
    let (ca, host) = (authority.path("ca.crt"), berth.host());
    let ask = |more: &[(&str, &str)]| {
        let environment = [&[("BERTH_ID_TOKEN", token.as_str())], more].concat();
        home.ask(&["--token-source", "gitlab", "get"], &host, &environment)
    };
    let (is_good, said) = ask(&[("SSL_CERT_FILE", ca.to_str().unwrap())]);
    assert!(is_good, "{said}");
    let expected = json!({"ServerURL": host, "Username": "_oidc", "Secret": token});
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), expected);
    assert!(!ask(&[]).0);
}

#[test]
fn the_kubelet_is_told_a_password_and_how_long_it_is_good() {
    let home = Home::new();
    let request = |image: &str, more: Value| {
        let mut request = json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": image,
        });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request.to_string()
    };
    let answer = |arguments: &[&str], request: &str| -> Value {
        let answer: Value = serde_json::from_str(&home.helper(arguments, request)).unwrap();
        assert_eq!(answer["apiVersion"], "credentialprovider.kubelet.k8s.io/v1");
        assert_eq!(answer["kind"], "CredentialProviderResponse");
        assert_eq!(answer["cacheKeyType"], "Registry");
        answer
    };
    let image = "r.example.com:5000/team/app:v1";
    let nothing = answer(&["kubelet"], &request(image, json!({})));
    assert_eq!((&nothing["auth"], &nothing["cacheDuration"]), (&json!({}), &json!("0s")));

    let key = home.path("key.json");
    fs::write(&key, KEY).unwrap();
    let source = format!("key:{}", key.display());
    let found = answer(&["--token-source", &source, "kubelet"], &request(image, json!({})));
    assert_eq!(found["auth"], json!({"r.example.com:5000": {"username": "_json_key", "password": KEY}}));
    assert_eq!(found["cacheDuration"], "600s");

    // The token of the pod's own service account counts before all.
    let token = id_token(3600);
    let more = json!({"serviceAccountToken": token, "serviceAccountAnnotations": {}});
    let found = answer(&["--token-source", &source, "kubelet"], &request(image, more));
    assert_eq!(found["auth"]["r.example.com:5000"], json!({"username": "_oidc", "password": token}));
    let seconds: u64 = found["cacheDuration"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!((3000..=3540).contains(&seconds), "{seconds}");

    let old = request(image, json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1alpha1"}));
    assert!(!home.ask(&["kubelet"], &old, &[]).0);
}

/// The same, for a client that is told by `credHelpers` alone.
fn with_helper(command: &mut Command, environment: &[(String, String)]) {
    let helpers = Path::new(env!("CARGO_BIN_EXE_docker-credential-berth")).parent().unwrap().to_owned();
    let path = env::split_paths(&env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    let path = env::join_paths([helpers].into_iter().chain(path)).unwrap();
    command.env("PATH", path).env_remove("XDG_CONFIG_HOME").envs(environment.iter().cloned());
}

/// Docker, crane, skopeo and podman push and pull with a key and with an ID token, and none of them is told
/// either.
#[tokio::test(flavor = "multi_thread")]
async fn clients_log_in_by_the_helper() {
    let front = Front::start().await;
    let shared = front.clone();
    tokio::task::spawn_blocking(move || log_in(&shared)).await.unwrap();
}

fn log_in(front: &Front) {
    let (crane, skopeo, podman, daemon) =
        (Tool::new("crane"), Tool::new("skopeo"), Tool::new("podman"), Daemon::start());
    let key = crane.path().join("key.json");
    fs::write(&key, KEY).unwrap();
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    fs::write(podman.path().join("policy.json"), policy).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
        podman.path().display()
    );
    fs::write(podman.path().join("storage.conf"), storage).unwrap();
    crane.tar("layer.tar", 1, 1 << 20);
    let image = |name: &str| format!("{}/team/{name}:1", front.host);
    daemon.import(&image("docker"), 1 << 20);

    let tool = |tool: &Tool, arguments: &[&str]| {
        let mut command = tool.command(arguments);
        with_helper(&mut command, &front.runner());
        run(&mut command)
    };
    let docker = |arguments: &[&str]| {
        let mut command = daemon.docker(arguments);
        command.env("HOME", crane.path());
        with_helper(&mut command, &front.runner());
        run(&mut command)
    };
    for (source, grant) in [(format!("key:{}", key.display()), "_json_key"), ("github".to_owned(), "refresh_token ")] {
        for home in [crane.path(), skopeo.path(), podman.path()] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
            command.args(["configure-docker", "--token-source", &source, &front.host]);
            command.env("HOME", home).env("DOCKER_CONFIG", home).env_remove("XDG_CONFIG_HOME");
            run(&mut command);
        }
        fs::create_dir_all(daemon.path("config")).unwrap();
        fs::copy(crane.path().join("config.json"), daemon.path("config").join("config.json")).unwrap();
        let is_by = |client: &str| {
            let granted = front.granted();
            assert!(granted.iter().any(|by| by.contains(grant)), "{client}, {source}: {granted:?}");
        };
        tool(&crane, &["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image("crane")]);
        tool(&crane, &["validate", "--remote", &image("crane")]);
        is_by("crane");
        let (from, to) = (format!("docker://{}", image("crane")), format!("docker://{}", image("skopeo")));
        let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        tool(&skopeo, &[&["--insecure-policy", "copy"], &plain[..], &[&from, &to]].concat());
        is_by("skopeo");
        let plain = ["--signature-policy", "policy.json", "--tls-verify=false"];
        tool(&podman, &[&["pull"], &plain[..], &[&image("crane")]].concat());
        tool(&podman, &[&["push"], &plain[..], &[&image("crane"), &image("podman")]].concat());
        is_by("podman");
        docker(&["push", &image("docker")]);
        docker(&["pull", &image("podman")]);
        is_by("docker");
    }
}

/// Berth itself at the other end: an account's key, an ID token of an issuer that it trusts, and a user's password
/// that `docker login` hands to the helper.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn berth_takes_what_the_helper_gives() {
    let signer = Key::new(jsonwebtoken::Algorithm::ES256, "signer");
    let issuer = Issuer::start(&[&signer]).await;
    let token = signer.sign(&issuer.claims());
    tokio::task::block_in_place(|| use_helper(&issuer, &token));
}

fn use_helper(issuer: &Issuer, token: &str) {
    let (home, crane, daemon) = (Home::new(), Tool::new("crane"), Daemon::start());
    fs::write(home.path("users"), format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let path = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let mut account = home.of(env!("CARGO_BIN_EXE_berth"), &["account", "create", "ci", "--role", "writer"]);
    account.args(["--repository", "team/*"]).env("BERTH_STORAGE__URL", format!("file:{}", path("data")));
    fs::write(home.path("key.json"), run(&mut account)).unwrap();
    let berth = Setup::of(&[
        ("BERTH_AUTH__HTPASSWD", &path("users")),
        ("BERTH_AUTH__OIDC__HUB__ISSUER", &issuer.url),
        ("BERTH_AUTH__OIDC__HUB__AUDIENCE", "berth.example"),
        ("BERTH_AUTH__OIDC__HUB__CA", issuer.ca.to_str().unwrap()),
        ("BERTH_AUTH__RULES__TEAM__WHO", "oidc:hub:repo:team/*,user:alice"),
        ("BERTH_AUTH__RULES__TEAM__ROLE", "writer"),
        ("BERTH_AUTH__RULES__TEAM__REPOSITORIES", "team/*"),
    ])
    .over(&home.path("data"))
    .start();
    let host = berth.host();
    crane.tar("layer.tar", 1, 1000);
    daemon.import(&format!("{host}/team/docker:1"), 1000);
    let environment = [("BERTH_ID_TOKEN".to_owned(), token.to_owned()), ("HOME".to_owned(), path(""))];
    let configure = |arguments: &[&str]| {
        let mut command = home.of(env!("CARGO_BIN_EXE_berth"), &["configure-docker", &host]);
        run(command.args(arguments).env("DOCKER_CONFIG", daemon.path("config")));
    };
    let with = |command: &mut Command| {
        with_helper(command.env("DOCKER_CONFIG", daemon.path("config")), &environment);
        run(command)
    };
    let push = || {
        with(&mut crane.command(&[
            "append",
            "--oci-empty-base",
            "-f",
            "layer.tar",
            "-t",
            &format!("{host}/team/app:1"),
        ]));
        with(&mut crane.command(&["validate", "--remote", &format!("{host}/team/app:1")]));
        with(&mut daemon.docker(&["push", &format!("{host}/team/docker:1")]));
    };
    for source in [format!("key:{}", path("key.json")), "gitlab".to_owned()] {
        configure(&["--token-source", &source]);
        push();
    }
    assert_eq!(home.get(&host, &[("BERTH_ID_TOKEN", token)])["Username"], "<token>");
    home.helper(&["erase"], &host);

    configure(&[]);
    with(&mut daemon.docker(&["login", "-u", "alice", "-p", "secret", &host]));
    // Docker was given a refresh token, and lets the helper keep that in the place of the password.
    assert_eq!(home.helper(&["list"], ""), json!({ &host: "<token>" }).to_string());
    push();
    with(&mut daemon.docker(&["logout", &host]));
    assert_eq!(home.helper(&["list"], ""), "{}");
}
