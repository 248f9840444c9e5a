//! TLS in the binary: what it speaks, how its certificate changes, and the clients that trust a CA of their own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use reqwest::tls::Version;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    authority::Authority,
    berth::{Berth, Setup},
    docker_daemon::Daemon,
    e2e_client::{Client, closing, noise, sha256},
    e2e_tools::Tool,
};

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let authority = Authority::new();
    let berth = authority.setup(&[]).start();
    let url = format!("https://{}/v2/", berth.public());
    for (builder, expected) in [
        (authority.builder(), reqwest::Version::HTTP_2),
        (authority.builder().http1_only(), reqwest::Version::HTTP_11),
        (authority.builder().tls_version_max(Version::TLS_1_2), reqwest::Version::HTTP_2),
    ] {
        let answer = builder.build().unwrap().get(&url).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, expected));
    }
    let client = authority.client(berth.public());
    let layer = noise(1, 3 << 20);
    client.push_image("team/app", "v1", std::slice::from_ref(&layer)).await;
    client.expect_blob("team/app", &sha256(&layer), &layer).await;
    // Who trusts nobody but the machine's authorities is not let in by their own word.
    let stranger = reqwest::Client::new().get(&url).send().await.unwrap_err();
    assert!(format!("{stranger:?}").contains("UnknownIssuer"), "{stranger:?}");
}

#[tokio::test]
async fn an_older_version_than_the_configured_one_is_refused() {
    let authority = Authority::new();
    let berth = authority.setup(&[("BERTH_TLS__MIN_VERSION", "1.3")]).start();
    let url = format!("https://{}/v2/", berth.public());
    let old = authority.builder().tls_version_max(Version::TLS_1_2).build().unwrap();
    let refused = old.get(&url).send().await.unwrap_err();
    assert!(format!("{refused:?}").contains("ProtocolVersion"), "{refused:?}");
    let new = authority.builder().build().unwrap();
    assert_eq!(new.get(&url).send().await.unwrap().status().as_u16(), 200);
}

/// Everything that comes back on a connection of its own.
fn say(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn plain_http_is_told_that_this_is_tls() {
    let authority = Authority::new();
    let berth = authority.setup(&[]).start();
    let answer = say(berth.public(), b"GET /v2/ HTTP/1.1\r\nhost: r\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 "), "{answer}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["errors"][0]["code"], "UNSUPPORTED");
    // With a body that nobody reads, the answer still arrives.
    let long =
        [b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nhost: r\r\ncontent-length: 1000000\r\n\r\n", &[b'x'; 100_000][..]];
    assert!(say(berth.public(), &long.concat()).starts_with("HTTP/1.1 400 "));
}

#[test]
fn a_handshake_that_does_not_go_on_is_cut() {
    let authority = Authority::new();
    let berth = authority.setup(&[("BERTH_LIMITS__HEADER_TIMEOUT", "200ms")]).start();
    // Nothing at all, and the start of a hello.
    for start in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        assert_eq!(say(berth.public(), start), "");
    }
}

#[tokio::test]
async fn the_admin_listener_speaks_tls_where_it_should() {
    let authority = Authority::new();
    let berth = authority.setup(&[("BERTH_ADMIN__TLS", "true")]).start_with_admin_tls();
    let client = authority.client(berth.admin());
    client.get("/metrics").await.expect(200);
    let mut health = std::process::Command::new(env!("CARGO_BIN_EXE_berth"));
    let (certificate, key) = (authority.path("one.crt"), authority.path("one.key"));
    health.arg("health").envs([("BERTH_ADMIN__TLS", "true"), ("BERTH_ADMIN__LISTEN", &berth.admin().to_string())]);
    let health = health.env("BERTH_TLS__CERTIFICATE", certificate).env("BERTH_TLS__KEY", key).output().unwrap();
    assert!(health.status.success(), "{health:?}");
    let lacks = Setup::of(&[("BERTH_ADMIN__TLS", "true")]).refused().1;
    assert!(lacks.contains("admin.tls (BERTH_ADMIN__TLS): found without tls.certificate"), "{lacks}");
}

/// One line that names the setting, the file, what was found and what is allowed.
#[test]
fn a_pair_that_cannot_be_used_stops_the_start() {
    let authority = Authority::new();
    authority.issue("two");
    fs::write(authority.path("junk.key"), "junk").unwrap();
    let refused = |certificate: &str, key: &str| {
        let path = |file: &str| authority.path(file).to_str().unwrap().to_owned();
        let (certificate, key) = (path(certificate), path(key));
        let setup = Setup::of(&[("BERTH_TLS__CERTIFICATE", &certificate), ("BERTH_TLS__KEY", &key)]);
        let (status, said) = setup.refused();
        assert!(!status.success());
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    for (certificate, key, expected) in [
        (
            "one.crt",
            "two.key",
            "tls.key: DIR/two.key: found the key of another certificate; want that of the first in tls.certificate",
        ),
        (
            "one.crt",
            "junk.key",
            "tls.key: DIR/junk.key: found no private key; want a private key in PEM, without a password",
        ),
        (
            "one.key",
            "one.key",
            "tls.certificate: DIR/one.key: found no certificate; want certificates in PEM, the server's own first",
        ),
        (
            "none.crt",
            "one.key",
            "tls.certificate: DIR/none.crt: No such file or directory (os error 2); want certificates in PEM, the server's own first",
        ),
    ] {
        let expected = expected.replace("DIR", authority.path("").to_str().unwrap().trim_end_matches('/'));
        assert_eq!(refused(certificate, key).trim_end(), format!("berth: {expected}"));
    }
}

/// The common name in the certificate that a new connection is shown.
async fn shown(authority: &Authority, berth: &Berth) -> String {
    let client = authority.builder().tls_info(true).build().unwrap();
    let answer = client.get(format!("https://{}/v2/", berth.public())).send().await.unwrap();
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap();
    let certificate = String::from_utf8_lossy(info.peer_certificate().unwrap()).into_owned();
    ["one", "two"].into_iter().find(|name| certificate.contains(&format!("{name}0"))).unwrap_or("another").to_owned()
}

/// Puts a file in place of another at once, as tools that renew certificates do.
fn replace(from: &Path, to: &Path) {
    let between = to.with_extension("new");
    fs::copy(from, &between).unwrap();
    fs::rename(between, to).unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_no_connection_dropped() {
    let authority = Authority::new();
    authority.issue("two");
    let berth = authority.setup(&[]).start();
    assert_eq!(shown(&authority, &berth).await, "one");
    // An upload that began before, on one connection of which nothing is known to have broken.
    let kept = Client::with(
        authority.builder().http1_only().pool_max_idle_per_host(1).build().unwrap(),
        &format!("https://{}", berth.public()),
    );
    let location = kept.start_upload("team/app").await;

    // A file that can't be used changes nothing but the log.
    fs::write(authority.path("broken"), "-----BEGIN CERTIFICATE-----\n!").unwrap();
    replace(&authority.path("broken"), &authority.path("one.crt"));
    while !berth.log().contains("the new certificate can't be used; the old one stays in use") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shown(&authority, &berth).await, "one");

    replace(&authority.path("two.key"), &authority.path("one.key"));
    replace(&authority.path("two.crt"), &authority.path("one.crt"));
    while !berth.log().contains("a new certificate is in use") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shown(&authority, &berth).await, "two");
    let bytes = Bytes::from_static(b"bytes");
    kept.send("PUT", &closing(&location, &sha256(&bytes)), &[], bytes).await.expect(201);
    let peers: std::collections::BTreeSet<String> = berth
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| if line["fields"].is_object() { line["fields"].clone() } else { line })
        .filter(|line| line["repository"] == "team/app")
        // Only a request's line names its peer.
        .filter_map(|line| line["peer"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(peers.len(), 1, "the upload went on over the same connection");
}

/// Crane, skopeo and podman check the certificate by an authority that only they were told of.
#[test]
fn clients_with_a_ca_of_their_own_log_in_and_push_and_pull() {
    let authority = Authority::new();
    let berth = authority.closed().start();
    let (host, ca) = (berth.host(), authority.path("ca.crt"));
    let certificates = TempDir::new().unwrap();
    fs::copy(&ca, certificates.path().join("ca.crt")).unwrap();
    let certificates = certificates.path().to_str().unwrap();

    let crane = Tool::new("crane");
    crane.tar("layer.tar", 1, 6 << 20);
    let image = format!("{host}/team/app:1");
    let with_ca = |arguments: &[&str]| crate::berth::run(crane.command(arguments).env("SSL_CERT_FILE", &ca));
    let login = ["login", &host, "-u", "ann", "-p", "secret"];
    with_ca(&[&["auth"], &login[..]].concat());
    with_ca(&["append", "--oci-empty-base", "-f", "layer.tar", "-t", &image]);
    with_ca(&["validate", "--remote", &image]);
    let distrusted = crane.fails(&["digest", &image]);
    assert!(distrusted.contains("certificate signed by unknown authority"), "{distrusted}");

    let skopeo = Tool::new("skopeo");
    let (from, to) = (format!("--src-cert-dir={certificates}"), format!("--dest-cert-dir={certificates}"));
    let copy = format!("docker://{host}/team/copy:1");
    let at = format!("--cert-dir={certificates}");
    assert!(skopeo.fails(&login).contains("certificate signed by unknown authority"));
    skopeo.run(&[&login[..], &[&at]].concat());
    skopeo.run(&["--insecure-policy", "copy", &from, &to, &format!("docker://{image}"), &copy]);
    assert!(skopeo.fails(&["inspect", &copy]).contains("certificate signed by unknown authority"));

    let podman = Tool::new("podman");
    podman.write_policy();
    podman.run(&[&login[..], &[&at]].concat());
    podman.run(&["pull", &at, &image]);
    podman.run(&["push", &at, &image, &format!("{host}/team/podman:1")]);
    with_ca(&["validate", "--remote", &format!("{host}/team/podman:1")]);
}

/// A daemon reaches a registry on the machine itself by TLS without asking who it is.
#[test]
fn docker_logs_in_and_pushes_and_pulls_by_tls() {
    let authority = Authority::new();
    let (berth, daemon) = (authority.closed().start(), Daemon::start());
    let image = format!("{}/team/app:1", berth.host());
    daemon.import(&image, 1 << 20);
    daemon.run(&["login", "-u", "ann", "-p", "secret", &berth.host()]);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
}
