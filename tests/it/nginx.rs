//! Behind nginx, configured as docs/behind-nginx.md says: what clients are told, and who Berth thinks they are.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    architecture::blocks,
    authority::Authority,
    berth::{Berth, Setup, fails, free_port, run},
    docker_daemon::Daemon,
    e2e_client::{Client, closing, noise, sha256},
    e2e_tools::Tool,
};

/// An nginx in front of a server; it ends when this is dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    authority: Authority,
    _directory: TempDir,
}

impl Nginx {
    /// Starts one with the configuration that is the paper's n-th, changed by `change` first.
    fn start(paper: usize, berth: &Berth, change: impl Fn(String) -> String) -> Self {
        let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let hash = bcrypt::hash("secret", 5).unwrap();
        fs::write(directory.path().join("htpasswd"), format!("alice:{hash}\n")).unwrap();
        let papers = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/behind-nginx.md");
        let mut config = change(blocks(&fs::read_to_string(papers).unwrap(), "nginx")[paper].clone());
        let place = |path: &Path| path.to_str().unwrap().to_owned();
        let (certificate, key) = (place(&authority.path("one.crt")), place(&authority.path("one.key")));
        // What is this machine's, in place of what is the reader's.
        for (written, here) in [
            ("listen 443", format!("listen {address}")),
            ("/etc/nginx/tls.crt", certificate.clone()),
            ("/etc/nginx/conf.d/domain.crt", certificate),
            ("/etc/nginx/tls.key", key.clone()),
            ("/etc/nginx/conf.d/domain.key", key),
            ("/etc/nginx/conf.d/nginx.htpasswd", place(&directory.path().join("htpasswd"))),
            ("127.0.0.1:5000", berth.host()),
            ("registry:5000", berth.host()),
        ] {
            config = config.replace(written, &here);
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};\n", directory.path().display()))
            .concat();
        config = config.replace("http {\n", &format!("http {{\naccess_log off;\n{temporary}"));
        let log = directory.path().join("log");
        let global = "daemon off;\nmaster_process off;\n";
        let pid = format!("pid {}/pid;\nerror_log {} warn;\n", directory.path().display(), log.display());
        fs::write(directory.path().join("nginx.conf"), format!("{global}{pid}{config}")).unwrap();
        // Servers live in sbin, which an ordinary user's PATH may lack.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let mut child = Command::new("nginx")
            .env("PATH", path)
            .args(["-e", log.to_str().unwrap(), "-c"])
            .arg(directory.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is needed: scripts/setup-tests installs it");
        while TcpStream::connect(address).is_err() {
            let log = fs::read_to_string(&log).unwrap_or_default();
            assert!(child.try_wait().unwrap().is_none(), "nginx ended at its start:\n{log}");
            thread::sleep(Duration::from_millis(10));
        }
        Self { child, address, authority, _directory: directory }
    }

    fn client(&self) -> Client {
        self.authority.client(self.address)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The addresses that the access log has of the clients that asked for `path`.
fn clients(berth: &Berth, path: &str) -> Vec<String> {
    let lines = berth.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let fields = lines.map(|line| if line["fields"].is_object() { line["fields"].clone() } else { line });
    fields.filter(|line| line["path"] == path).map(|line| line["client"].as_str().unwrap().to_owned()).collect()
}

/// A client that claims to be somebody: who it is to Berth, where nginx is trusted and where it isn't.
#[tokio::test]
async fn the_client_is_the_one_that_a_trusted_nginx_saw() {
    for (trusted, expected) in [("127.0.0.1", "198.51.100.7"), ("192.0.2.0/24", "127.0.0.1")] {
        let berth = Setup::of(&[("BERTH_SERVER__TRUSTED_PROXIES", trusted)]).start();
        let nginx = Nginx::start(0, &berth, |config| config);
        let claim = [("x-forwarded-for", "192.0.2.55, 198.51.100.7")];
        nginx.client().send("GET", "/v2/_catalog", &claim, "").await.expect(200);
        // A line is written once its answer has gone out.
        while clients(&berth, "/v2/_catalog").is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(clients(&berth, "/v2/_catalog"), [expected], "{trusted}");
    }
}

#[tokio::test]
async fn a_location_is_right_behind_nginx() {
    let berth = Berth::start();
    let nginx = Nginx::start(0, &berth, |config| config);
    let bytes = noise(1, 1000);
    let digest = nginx.client().push_blob("team/app", bytes.clone()).await;
    nginx.client().expect_blob("team/app", &digest, &bytes).await;

    let berth = Setup::of(&[("BERTH_SERVER__PUBLIC_URL", "https://r.example.com/")]).start();
    let nginx = Nginx::start(0, &berth, |config| config);
    let started = nginx.client().post("/v2/team/app/blobs/uploads/").await.expect(202);
    let path = started.header("location").strip_prefix("https://r.example.com/v2/team/app/blobs/uploads/");
    let path = format!("/v2/team/app/blobs/uploads/{}", path.expect("an absolute Location"));
    let created = nginx.client().send("PUT", &closing(&path, &digest), &[], bytes).await.expect(201);
    assert_eq!(created.header("location"), format!("https://r.example.com/v2/team/app/blobs/{digest}"));
    // The next page is always a relative one.
    let page = nginx.client().get("/v2/_catalog?n=1").await.expect(200);
    assert!(!page.header("link").contains("://"), "{page:?}");
}

/// With and without nginx taking the body to its disk first; announced lengths and unknown ones.
#[tokio::test]
async fn large_bodies_go_through() {
    let berth = Berth::start();
    let size = 48 << 20;
    for (seed, buffering) in [(1, "off"), (2, "on")] {
        let nginx = Nginx::start(0, &berth, |config| {
            config.replace("proxy_request_buffering off", &format!("proxy_request_buffering {buffering}"))
        });
        let client = nginx.client();
        let bytes = noise(seed, size);
        let digest = client.push_blob("team/app", bytes.clone()).await;
        client.expect_blob("team/app", &digest, &bytes).await;

        let bytes = noise(seed + 10, size);
        let pieces: Vec<bytes::Bytes> = bytes.chunks(1 << 20).map(bytes::Bytes::copy_from_slice).collect();
        let location = client.start_upload("team/app").await;
        let location = client.stream("PATCH", &location, &[], pieces.into_iter()).await.expect(202).location();
        let digest = sha256(&bytes);
        client.send("PUT", &closing(&location, &digest), &[], "").await.expect(201);
        client.expect_blob("team/app", &digest, &bytes).await;
    }
}

/// The configuration that people have today: TLS and passwords in nginx, which passes them on as well, and a
/// registry that lets everybody in.
#[test]
fn clients_log_in_to_an_nginx_with_passwords() {
    let berth = Setup::of(&[("BERTH_AUTH__ANONYMOUS", "admin")]).start();
    log_in_and_push(&Nginx::start(1, &berth, |config| config));
}

/// Berth knows the users, and nginx is believed on where clients get their tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_log_in_to_berth_behind_nginx() {
    let directory = TempDir::new().unwrap();
    let users = directory.path().join("users");
    fs::write(&users, format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let berth = Setup::of(&[
        ("BERTH_SERVER__TRUSTED_PROXIES", "127.0.0.1"),
        ("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()),
        ("BERTH_AUTH__RULES__TEAM__WHO", "user:alice"),
        ("BERTH_AUTH__RULES__TEAM__ROLE", "writer"),
        ("BERTH_AUTH__RULES__TEAM__REPOSITORIES", "team/**"),
    ])
    .start();
    let nginx = Nginx::start(0, &berth, |config| config);
    let challenge = nginx.client().get("/v2/").await.expect(401);
    let realm = format!("Bearer realm=\"https://{}/v2/token\",service=\"berth\"", nginx.address);
    assert_eq!(challenge.header("www-authenticate"), realm);
    tokio::task::block_in_place(|| log_in_and_push(&nginx));
}

/// Each client as alice, who is refused without her password.
fn log_in_and_push(nginx: &Nginx) {
    let (host, ca) = (nginx.address.to_string(), nginx.authority.path("ca.crt"));
    let certificates = TempDir::new().unwrap();
    fs::copy(&ca, certificates.path().join("ca.crt")).unwrap();
    let certificates = certificates.path().to_str().unwrap();

    let crane = Tool::new("crane");
    let with_ca = |arguments: &[&str]| {
        let mut command = crane.command(arguments);
        command.env("SSL_CERT_FILE", &ca);
        command
    };
    crane.tar("layer.tar", 1, 12 << 20);
    let image = format!("{host}/team/app:1");
    let refused = fails(&mut with_ca(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image]));
    assert!(refused.contains("401 Unauthorized"), "{refused}");
    run(&mut with_ca(&["auth", "login", &host, "-u", "alice", "-p", "secret"]));
    run(&mut with_ca(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image]));
    run(&mut with_ca(&["validate", "--remote", &image]));

    let skopeo = Tool::new("skopeo");
    let at = format!("--cert-dir={certificates}");
    assert!(skopeo.fails(&["login", &at, "-u", "alice", "-p", "wrong", &host]).contains("invalid username/password"));
    skopeo.run(&["login", &at, "-u", "alice", "-p", "secret", &host]);
    let (from, to) = (format!("--src-cert-dir={certificates}"), format!("--dest-cert-dir={certificates}"));
    let copy = format!("docker://{host}/team/copy:1");
    skopeo.run(&["--insecure-policy", "copy", &from, &to, &format!("docker://{image}"), &copy]);

    let podman = Tool::new("podman");
    podman.write_policy();
    podman.run(&["login", &at, "-u", "alice", "-p", "secret", &host]);
    podman.run(&["pull", &at, &image]);
    podman.run(&["push", &at, &image, &format!("{host}/team/podman:1")]);

    let daemon = Daemon::start();
    let image = format!("{host}/team/docker:1");
    daemon.import(&image, 12 << 20);
    fails(&mut daemon.docker(&["login", "-u", "alice", "-p", "wrong", &host]));
    daemon.run(&["login", "-u", "alice", "-p", "secret", &host]);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
}
