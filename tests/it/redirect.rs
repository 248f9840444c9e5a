//! Redirects: who is sent to the store or a CDN for a blob's bytes, by which URL, and what it is good for. The
//! store checks signatures; the clients are real.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, path::Path, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    hmac, rsa, signature,
};
use axum::{Router, body::Body};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use berth::{
    api::observe::Peer,
    app::App,
    config::{Config, LoadArgs, Text},
    registry::OtherIndex,
};
use bytes::Bytes;
use http::Request;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::{
    berth::{Berth, Setup, get},
    conformance,
    docker_daemon::Daemon,
    e2e_client::{Answer, Client, noise, sha256},
    e2e_tools::{Tool, push_index},
    s3_server::{self, S3Server},
};

const R: &str = "team/app";

/// The settings of a registry in a bucket, with its index in a directory.
fn over(s3: &S3Server, index: &Path, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = [
        ("BERTH_STORAGE__URL", format!("s3://{}/registry", s3.bucket)),
        ("BERTH_STORAGE__S3__ENDPOINT", s3.endpoint.clone()),
        ("BERTH_STORAGE__S3__REGION", "us-east-1".to_owned()),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", s3.access_key.clone()),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", s3.secret_key.clone()),
        ("BERTH_INDEX__URL", format!("embedded:{}", index.display())),
        // A start waits for as long.
        ("BERTH_INDEX__MARGIN", "200ms".to_owned()),
    ];
    let more = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    own.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(more).collect()
}

/// A registry in this process over a bucket of its own.
struct Redirecting {
    app: App,
    client: Client,
    s3: S3Server,
    _index: TempDir,
}

impl Redirecting {
    async fn open(more: &[(&str, &str)]) -> Self {
        Self::changed(more, |_| {}).await
    }

    /// The same with a setting that is refused where people write it.
    async fn changed(more: &[(&str, &str)], change: impl FnOnce(&mut Config)) -> Self {
        let (s3, index) = (s3_server::start().await, TempDir::new().unwrap());
        let mut config = Config::load(LoadArgs::default(), over(&s3, index.path(), more)).unwrap().config;
        change(&mut config);
        let app = App::open(config, OtherIndex::Refuse).await.unwrap();
        let client = Client::router(app.router().unwrap());
        Self { app, client, s3, _index: index }
    }

    async fn ask(&self, method: &str, digest: &str, headers: &[(&str, &str)]) -> Answer {
        self.client.send(method, &path(digest), headers, "").await
    }

    /// Where a GET is sent.
    async fn sent(&self, digest: &str, headers: &[(&str, &str)]) -> String {
        self.ask("GET", digest, headers).await.expect(307).header("location").to_owned()
    }
}

fn path(digest: &str) -> String {
    format!("/v2/{R}/blobs/{digest}")
}

async fn fetch(method: &str, url: &str, range: Option<&str>) -> (u16, http::HeaderMap, Bytes) {
    let mut request = reqwest::Client::new().request(method.parse().unwrap(), url);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.headers().clone(), answer.bytes().await.unwrap())
}

#[tokio::test]
async fn a_get_is_sent_to_the_store_and_all_else_is_answered_here() {
    let berth = Redirecting::open(&[]).await;
    // To a browser this would be a page, if anybody said or guessed so.
    let bytes = Bytes::from_static(b"<html><script>alert(1)</script></html>");
    let digest = berth.client.push_blob(R, bytes.clone()).await;

    let answer = berth.ask("GET", &digest, &[]).await.expect(307);
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("content-length"), "0");
    let url = answer.header("location");
    assert!(url.starts_with(&format!("{}/{}/registry/data/", berth.s3.endpoint, berth.s3.bucket)), "{url}");
    assert!(answer.headers["location"].is_sensitive(), "HTTP/2 would put it into its table");

    let (status, headers, body) = fetch("GET", url, None).await;
    assert_eq!((status, &headers["content-type"], body), (200, &"application/octet-stream".parse().unwrap(), bytes));
    for method in ["PUT", "DELETE", "POST"] {
        assert_eq!(fetch(method, url, None).await.0, 403, "{method}");
    }

    let head = berth.ask("HEAD", &digest, &[]).await.expect(200);
    assert_eq!(head.header("content-length"), "38");
    let known = format!("\"{digest}\"");
    berth.ask("GET", &digest, &[("if-none-match", &known)]).await.expect(304);
    berth.ask("GET", &sha256(b"other"), &[]).await.expect_error(404, "BLOB_UNKNOWN");
    let manifest = berth.client.push_image(R, "1", &[]).await;
    let answer = berth.client.get(&format!("/v2/{R}/manifests/1")).await.expect(200);
    assert_eq!(answer.json(), manifest);
}

/// What another repository links isn't given out by a repository that doesn't, however warm the URL is (I5).
#[tokio::test]
async fn a_url_is_given_only_for_what_the_repository_links() {
    let berth = Redirecting::open(&[]).await;
    let digest = berth.client.push_blob(R, "secret").await;
    berth.sent(&digest, &[]).await;
    berth.client.get(&format!("/v2/other/app/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN");
    berth.client.delete(&path(&digest)).await.expect(202);
    berth.ask("GET", &digest, &[]).await.expect_error(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_range_is_fetched_from_the_store() {
    let berth = Redirecting::open(&[]).await;
    let bytes = noise(1, 5000);
    let digest = berth.client.push_blob(R, bytes.clone()).await;
    for (range, from, to) in [("bytes=10-19", 10, 20), ("bytes=4000-", 4000, 5000), ("bytes=-1", 4999, 5000)] {
        let url = berth.sent(&digest, &[("range", range)]).await;
        let (status, headers, body) = fetch("GET", &url, Some(range)).await;
        assert_eq!((status, body), (206, bytes.slice(from..to)), "{range}");
        assert_eq!(headers["content-range"], format!("bytes {from}-{}/5000", to - 1));
    }
    // What a store would answer otherwise, or not at all.
    let nothing = berth.ask("GET", &digest, &[("range", "bytes=5000-")]).await.expect(416);
    assert_eq!(nothing.header("content-range"), "bytes */5000");
    let several = berth.ask("GET", &digest, &[("range", "bytes=0-9,20-29")]).await.expect(206);
    assert!(several.header("content-type").starts_with("multipart/byteranges"));
    let known = format!("\"{digest}\"");
    let part = berth.ask("GET", &digest, &[("range", "bytes=0-9"), ("if-range", &known)]).await.expect(206);
    assert_eq!(part.body, bytes.slice(..10));
    berth.ask("GET", &digest, &[("if-match", &known)]).await.expect(200);
}

/// A second is the shortest life that S3 knows.
#[tokio::test]
async fn a_url_is_given_again_and_ends_after_its_life() {
    let second = Text(Duration::from_secs(1));
    let berth = Redirecting::changed(&[], |config| config.redirect.ttl = second).await;
    let (one, two) = (berth.client.push_blob(R, "one").await, berth.client.push_blob(R, "two").await);
    let url = berth.sent(&one, &[]).await;
    assert_ne!(berth.sent(&two, &[]).await, url);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let (status, _, body) = fetch("GET", &url, None).await;
    assert_eq!(status, 403, "{body:?}");
    let fresh = berth.sent(&one, &[]).await;
    assert_ne!(fresh, url);

    let berth = Redirecting::open(&[]).await;
    let digest = berth.client.push_blob(R, "one").await;
    let url = berth.sent(&digest, &[]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(berth.sent(&digest, &[("range", "bytes=0-0")]).await, url, "signed once");
}

#[tokio::test]
async fn some_fetch_the_bytes_here() {
    let berth = Redirecting::open(&[
        ("BERTH_REDIRECT__MIN_SIZE", "1KiB"),
        ("BERTH_REDIRECT__EXCEPT_USER_AGENTS", "old/*,*(no redirects)*"),
        ("BERTH_REDIRECT__EXCEPT_REPOSITORIES", "here/**,*/here"),
    ])
    .await;
    let (large, small) = (noise(1, 1024), noise(2, 1023));
    let client = &berth.client;
    for (repository, bytes, headers, status) in [
        (R, &large, &[][..], 307),
        (R, &large, &[("user-agent", "new/1")], 307),
        (R, &large, &[("user-agent", "old/1")], 200),
        (R, &large, &[("user-agent", "x (no redirects) y")], 200),
        (R, &large, &[("origin", "https://ui.example.com")], 200),
        (R, &small, &[], 200),
        (R, &Bytes::new(), &[], 200),
        ("here", &large, &[], 200),
        ("here/a/b", &large, &[], 200),
        ("a/here", &large, &[], 200),
        ("a/b/here", &large, &[], 307),
    ] {
        let digest = client.push_blob(repository, bytes.clone()).await;
        let blob = format!("/v2/{repository}/blobs/{digest}");
        let answer = client.send("GET", &blob, headers, "").await.expect(status);
        assert!(status == 307 || answer.body == bytes, "{repository} {headers:?}");
    }
}

/// The answer to a client at an address.
async fn from(router: &Router, address: &str, target: &str) -> u16 {
    let peer = Peer(SocketAddr::new(address.parse().unwrap(), 40_000));
    let request = Request::get(target).extension(peer).body(Body::empty()).unwrap();
    router.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn some_networks_fetch_the_bytes_here() {
    let berth = Redirecting::open(&[("BERTH_REDIRECT__EXCEPT_NETWORKS", "10.0.0.0/8,192.0.2.7,fd00::/8")]).await;
    let target = path(&berth.client.push_blob(R, "bytes").await);
    let router = berth.app.router().unwrap();
    for (address, status) in [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("11.1.2.3", 307),
        ("192.0.2.7", 200),
        ("192.0.2.8", 307),
        ("fd12::1", 200),
        ("2001:db8::1", 307),
    ] {
        assert_eq!(from(&router, address, &target).await, status, "{address}");
    }
}

#[tokio::test]
async fn nobody_is_sent_away_where_that_is_off_or_nothing_is_signed() {
    let berth = Redirecting::open(&[("BERTH_REDIRECT__ENABLED", "false")]).await;
    let digest = berth.client.push_blob(R, "bytes").await;
    assert_eq!(berth.ask("GET", &digest, &[]).await.expect(200).body, "bytes");

    let directory = TempDir::new().unwrap();
    let url = format!("file:{}", directory.path().display());
    let (_app, client) = conformance::open(&[("BERTH_STORAGE__URL", &url)]).await;
    let digest = client.push_blob(R, "bytes").await;
    assert_eq!(client.get(&path(&digest)).await.expect(200).body, "bytes");
}

/// A private key in PEM, and what verifies its signatures.
struct Pair {
    pem: String,
    verify: signature::UnparsedPublicKey<Vec<u8>>,
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// The keys that CloudFront takes, as tools write them.
fn key_pairs() -> Vec<Pair> {
    let rsa = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = rsa.as_der().unwrap();
    let pkcs8 = pkcs8.as_ref();
    // What PKCS#8 says of such a key before the key itself, in PKCS#1, always takes 26 bytes.
    let rsa_pems = [pem("PRIVATE KEY", pkcs8), pem("RSA PRIVATE KEY", &pkcs8[26..])];
    let rsa = rsa_pems.map(|pem| Pair {
        pem,
        verify: signature::UnparsedPublicKey::new(
            &signature::RSA_PKCS1_2048_8192_SHA256,
            signature::KeyPair::public_key(&rsa).as_ref().to_vec(),
        ),
    });
    let ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let verify = signature::UnparsedPublicKey::new(
        &signature::ECDSA_P256_SHA256_ASN1,
        rcgen::PublicKeyData::der_bytes(&ecdsa).to_vec(),
    );
    rsa.into_iter().chain([Pair { pem: ecdsa.serialize_pem(), verify }]).collect()
}

const CDN: &str = "https://d111111abcdef8.cloudfront.net/registry";

fn cdn(pem: &str) -> [(&str, &str); 4] {
    [
        ("BERTH_REDIRECT__CDN__KIND", "cloudfront"),
        ("BERTH_REDIRECT__CDN__URL", CDN),
        ("BERTH_REDIRECT__CDN__KEY_PAIR_ID", "K2JCJMDEHXQW5F"),
        ("BERTH_REDIRECT__CDN__PRIVATE_KEY", pem),
    ]
}

/// Checks a URL as CloudFront says that it does: the policy is made anew from the URL, without the parameters
/// that sign it, and its time.
fn verified(url: &str, key: &Pair) -> u64 {
    let (resource, query) = url.split_once('?').unwrap();
    let parameters: Vec<(&str, &str)> = query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
    let [("Expires", expires), ("Signature", signature), ("Key-Pair-Id", id), ("Hash-Algorithm", "SHA256")] =
        parameters[..]
    else {
        panic!("{url}");
    };
    assert_eq!(id, "K2JCJMDEHXQW5F");
    let policy = format!(
        "{{\"Statement\":[{{\"Resource\":\"{resource}\",\"Condition\":{{\"DateLessThan\":{{\"AWS:EpochTime\":{expires}}}}}}}]}}"
    );
    let signature = signature.replace('-', "+").replace('_', "=").replace('~', "/");
    key.verify.verify(policy.as_bytes(), &STANDARD.decode(signature).unwrap()).expect("a signature of this policy");
    expires.parse().unwrap()
}

#[tokio::test]
async fn cloudfront_urls_are_signed_by_a_canned_policy() {
    for key in key_pairs() {
        let berth = Redirecting::open(&cdn(&key.pem)).await;
        let digest = berth.client.push_blob(R, "bytes").await;
        let url = berth.sent(&digest, &[]).await;
        let object = url.strip_prefix(&format!("{CDN}/data/")).unwrap().split('?').next().unwrap();
        // The CDN has the bucket under the registry's prefix as its origin, so the rest is the object's key.
        let direct = Redirecting::direct(&berth, &digest).await;
        assert!(direct.contains(&format!("/registry/data/{object}?")), "{direct}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let left = verified(&url, &key) - now;
        assert!((1190..=1200).contains(&left), "{left} s left of 20 min");
        assert_eq!(berth.sent(&digest, &[]).await, url, "signed once");
        berth.ask("HEAD", &digest, &[]).await.expect(200);
    }
}

/// What is signed is the URL as far as the signature, letter by letter.
#[tokio::test]
async fn cloud_cdn_urls_are_signed_with_the_shared_key() {
    let key = [7; 16];
    let berth = Redirecting::open(&[
        ("BERTH_REDIRECT__CDN__KIND", "cloud-cdn"),
        ("BERTH_REDIRECT__CDN__URL", "https://cdn.example.com/registry"),
        ("BERTH_REDIRECT__CDN__KEY_NAME", "berth-1"),
        ("BERTH_REDIRECT__CDN__KEY", &URL_SAFE.encode(key)),
    ])
    .await;
    let digest = berth.client.push_blob(R, "bytes").await;
    let url = berth.sent(&digest, &[]).await;
    let object = url.strip_prefix("https://cdn.example.com/registry/data/").unwrap().split('?').next().unwrap();
    let direct = Redirecting::direct(&berth, &digest).await;
    assert!(direct.contains(&format!("/registry/data/{object}?")), "{direct}");
    let (signed, signature) = url.split_once("&Signature=").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    hmac::verify(&key, signed.as_bytes(), &URL_SAFE.decode(signature).unwrap())
        .expect("a signature of the URL before it");
    let (_, query) = signed.split_once('?').unwrap();
    let (expires, name) = query.strip_prefix("Expires=").unwrap().split_once('&').unwrap();
    assert_eq!(name, "KeyName=berth-1");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let left = expires.parse::<u64>().unwrap() - now;
    assert!((1190..=1200).contains(&left), "{left} s left of 20 min");
    assert_eq!(berth.sent(&digest, &[]).await, url, "signed once");
}

#[tokio::test]
async fn a_cdn_that_cannot_be_used_stops_the_start() {
    let another = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let longer = rsa::KeyPair::generate(rsa::KeySize::Rsa3072).unwrap();
    let longer: Pkcs8V1Der<'_> = longer.as_der().unwrap();
    for (pem, found) in [
        (another, "a key of another kind"),
        (pem("PRIVATE KEY", longer.as_ref()), "an RSA key of another length"),
        ("-----BEGIN PRIVATE KEY-----".to_owned(), "no private key in PEM"),
    ] {
        let (s3, index) = (s3_server::start().await, TempDir::new().unwrap());
        let config = Config::load(LoadArgs::default(), over(&s3, index.path(), &cdn(&pem))).unwrap().config;
        let app = App::open(config, OtherIndex::Refuse).await.unwrap();
        assert_eq!(
            app.router().unwrap_err().to_string(),
            format!(
                "redirect.cdn.private_key: found {found}; want an RSA key of 2048 bits or an ECDSA key on P-256, in PEM"
            )
        );
    }
}

impl Redirecting {
    /// Where a registry over the same bucket and index, but without a CDN, sends a GET.
    async fn direct(other: &Self, digest: &str) -> String {
        let blob = other.app.registry.repository(&R.parse().unwrap()).await.unwrap();
        let blob = blob.blob(&digest.parse().unwrap()).await.unwrap();
        blob.sign(Duration::from_secs(60)).await.unwrap().unwrap().url
    }
}

/// A real server over a bucket, for real clients.
struct Served {
    berth: Berth,
    _s3: S3Server,
    _index: TempDir,
}

impl Served {
    async fn start() -> Self {
        let (s3, index) = (s3_server::start().await, TempDir::new().unwrap());
        let environment = over(&s3, index.path(), &[]);
        let berth = Setup { environment, ..Setup::default() }.start();
        Self { berth, _s3: s3, _index: index }
    }

    /// Fails unless clients fetched bytes of blobs, and all of them from the store.
    fn has_sent_nothing_itself(&self) {
        let page = get(self.berth.admin(), "/metrics").unwrap();
        let value = |way: &str| -> u64 {
            let series = format!("berth_blob_bytes_total{{way=\"{way}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
        };
        assert!(value("redirected") > 1000, "{page}");
        assert_eq!(value("streamed"), 0, "{page}");
        let log = self.berth.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let line = lines.find(|line| line["status"] == 307).unwrap();
        assert!(line["redirected_bytes"].as_u64().unwrap() > 0 && line["bytes_out"] == 0, "{line}");
        assert!(!log.contains("X-Amz-Signature"), "a signed URL is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_from_the_store() {
    let (served, daemon) = (Served::start().await, Daemon::start());
    let image = format!("{}/team/app:1", served.berth.host());
    daemon.import(&image, 6 << 20);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
    served.has_sent_nothing_itself();
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_and_skopeo_pull_from_the_store() {
    let (served, crane, skopeo) = (Served::start().await, Tool::new("crane"), Tool::new("skopeo"));
    let image = push_index(&crane, &served.berth.host());
    crane.run(&["validate", "--remote", &image]);
    crane.run(&["pull", "--platform", "linux/arm64", &image, "pulled.tar"]);
    served.has_sent_nothing_itself();
    let source = format!("docker://{image}");
    skopeo.run(&["--insecure-policy", "copy", "--all", "--src-tls-verify=false", &source, "oci:layout:app"]);
    served.has_sent_nothing_itself();
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_from_the_store() {
    let (served, crane, podman) = (Served::start().await, Tool::new("crane"), Tool::new("podman"));
    crane.tar("layer.tar", 1, 6 << 20);
    let image = format!("{}/team/app:1", served.berth.host());
    crane.run(&["append", "-f", "layer.tar", "-t", &image]);
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
        podman.path().display()
    );
    std::fs::write(podman.path().join("storage.conf"), storage).unwrap();
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    std::fs::write(podman.path().join("policy.json"), policy).unwrap();
    let plain = ["pull", "--quiet", "--tls-verify=false", "--signature-policy", "policy.json", &image];
    let id = podman.run(&[&["--events-backend=none"], &plain[..]].concat());
    assert_eq!(id.trim().len(), 64, "{id}");
    served.has_sent_nothing_itself();
}
