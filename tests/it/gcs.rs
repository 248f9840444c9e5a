//! What only Google Cloud Storage has: its ways to credentials, who signs, what is said at a start that can't work.
//! The contract of every store is in `storage.rs`. The server is `gcs_server.rs`, which is not Google.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use berth::{
    app::App,
    config::{Config, LoadArgs},
    outbound::Proxy,
    registry::OtherIndex,
    storage::{
        Egress, Key, Patience, StorageError, Store,
        gcs::{CredentialsJson, Gcs, GcsOptions},
        read_small,
    },
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, get},
    docker_daemon::Daemon,
    e2e_client::Client,
    e2e_tools::{Tool, push_index},
    gcs_identity::{ACCOUNT, SUBJECT, key_file},
    gcs_server::{self, BUCKET, GcsServer},
    storage::{data, pattern},
    storage_front::{self, Fault, Front, Seen},
};

const R: &str = "team/app";

async fn put(store: &Gcs, bytes: Bytes) -> Key {
    let key = data();
    store.put(&key, vec![bytes], None).await.unwrap();
    key
}

/// The bucket for a pod elsewhere, whose token is in a file; it stands in for `account`.
fn federated(server: &GcsServer, home: &TempDir, account: Option<&str>) -> GcsOptions {
    let file = home.path().join("token");
    std::fs::write(&file, format!("{SUBJECT}\n")).unwrap();
    let credentials = server.federation(json!({"file": file}), account);
    GcsOptions { credentials: Some(CredentialsJson(credentials)), ..server.options() }
}

#[tokio::test]
async fn blobs_are_written_as_what_no_browser_shows_and_alone_have_a_storage_class() {
    let server = gcs_server::start().await;
    let options = GcsOptions { storage_class: Some("NEARLINE".to_owned()), ..server.options() };
    let store = Gcs::open(options).await.unwrap();
    let (blob, parts) = (put(&store, pattern(10)).await, data());
    let upload = store.begin(&parts).await.unwrap();
    let part = store.put_part(&parts, &upload, 0, 5 << 20, vec![pattern(10)]).await.unwrap();
    store.complete(&parts, &upload, &[part]).await.unwrap();
    store.put(&Key::Format, vec![pattern(1)], None).await.unwrap();
    for (key, class) in [(&blob, "NEARLINE"), (&parts, "NEARLINE"), (&Key::Format, "")] {
        let headers = server.google.headers_of(&format!("some/where/{key}"));
        let header = |name| headers.get(name).map_or("", |value: &http::HeaderValue| value.to_str().unwrap());
        assert_eq!((header("content-type"), header("x-goog-storage-class")), ("application/octet-stream", class));
    }
}

/// A bucket that another registry wrote may have blobs without a type.
#[tokio::test]
async fn a_signed_url_says_what_the_object_does_not() {
    let server = gcs_server::start().await;
    let store = Gcs::open(server.options()).await.unwrap();
    let key = put(&store, pattern(10)).await;
    let url = store.sign(&key, Duration::from_secs(60)).await.unwrap().unwrap().url;
    let got = reqwest::get(&url).await.unwrap();
    assert_eq!(got.headers()["content-type"], "application/octet-stream");
    assert_eq!(got.headers()["content-disposition"], "attachment");
    for (word, other) in
        [("attachment", "inline"), ("octet-stream", "html"), ("X-Goog-Expires=60", "X-Goog-Expires=61")]
    {
        let changed = url.replacen(word, other, 1);
        assert!(changed != url);
        assert_eq!(reqwest::get(&changed).await.unwrap().status().as_u16(), 403, "{other}");
    }
}

#[tokio::test]
async fn a_signed_url_names_the_public_endpoint_and_lives_for_a_week_at_most() {
    let server = gcs_server::start().await;
    let public_endpoint = Some("https://gcs.example.com".to_owned());
    let store = Gcs::open(GcsOptions { public_endpoint, ..server.options() }).await.unwrap();
    let signed = store.sign(&data(), Duration::from_secs(30 * 24 * 3600)).await.unwrap().unwrap();
    assert!(signed.url.starts_with("https://gcs.example.com/bucket/some/where/data/"), "{}", signed.url);
    assert!(signed.url.contains("X-Goog-Expires=604800&"), "{}", signed.url);
    assert_eq!(signed.life, Duration::from_secs(7 * 24 * 3600));
    put(&store, pattern(1)).await;
}

/// The bucket's own rules move objects to other storage classes, which is a change of the object to Google.
#[tokio::test]
async fn a_revision_still_counts_when_it_is_moved_to_another_storage_class() {
    let server = gcs_server::start().await;
    let store = Gcs::open(server.options()).await.unwrap();
    let key = put(&store, pattern(10)).await;
    let before = store.stat(&key).await.unwrap();
    server.google.move_all();
    assert_eq!(store.stat(&key).await.unwrap(), before);
    let page = store.list("data/", None, 10).await.unwrap();
    assert_eq!(page.objects.first().map(|(_, stat)| *stat), before);
}

#[tokio::test]
async fn an_empty_page_is_not_the_end() {
    let server = gcs_server::start().await;
    let store = Gcs::open(server.options()).await.unwrap();
    let keys = [put(&store, pattern(1)).await, put(&store, pattern(1)).await];
    server.google.hesitates.store(true, Ordering::Relaxed);
    let page = store.list("data/", None, 1).await.unwrap();
    assert_eq!((page.objects.len(), page.more), (1, true));
    let page = store.list("data/", Some(&page.objects[0].0), 1).await.unwrap();
    assert_eq!((page.objects.len(), page.more), (1, false));
    assert!(keys.iter().any(|key| key.to_string() == page.objects[0].0));
    assert!(store.list("repos/", None, 1).await.unwrap().objects.is_empty());
}

/// What removes an object comes too late by the store's own clock, long after it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_comes_too_late_is_refused_by_the_store() {
    let (server, front, options) = front().await;
    let store = Gcs::open(options).await.unwrap();
    let key = put(&store, pattern(10)).await;
    front.strike(|seen| {
        if seen.method == Method::DELETE {
            std::thread::sleep(Duration::from_millis(2500));
        }
        None
    });
    let refused = store.delete(&key, store.now().plus(Duration::from_millis(1500))).await;
    assert!(matches!(refused, Err(StorageError::TooLate(_))), "{refused:?}");
    let seen = front.seen();
    let removal = seen.iter().find(|seen| seen.method == Method::DELETE).expect("it was sent");
    assert!(removal.query.contains("X-Goog-Signature=") && removal.header("authorization").is_empty());
    assert!(store.stat(&key).await.unwrap().is_some());
    drop(server);
}

#[tokio::test]
async fn iam_signs_for_whom_has_no_key() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let store = Gcs::open(federated(&server, &home, Some(ACCOUNT))).await.unwrap();
    store.check_rights().await.unwrap();
    server.google.asked();
    let key = put(&store, Bytes::from_static(b"signed")).await;
    let signed = store.sign(&key, Duration::from_secs(24 * 3600)).await.unwrap().unwrap();
    assert_eq!(signed.life, Duration::from_secs(12 * 3600), "its keys may be gone after that");
    assert_eq!(reqwest::get(&signed.url).await.unwrap().text().await.unwrap(), "signed");
    store.delete(&key, store.now().plus(Duration::from_secs(10))).await.unwrap();
    assert_eq!(store.stat(&key).await.unwrap(), None);
    let asked = server.google.asked();
    assert_eq!(asked, vec![format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob"); 2], "one call each, no token");
}

#[tokio::test]
async fn somebody_elses_token_comes_from_a_file_or_a_url() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let file = home.path().join("token.json");
    std::fs::write(&file, json!({"access": SUBJECT}).to_string()).unwrap();
    let url = format!("{}/subject", server.endpoint);
    let field = |name| json!({"type": "json", "subject_token_field_name": name});
    let sources = [
        json!({"file": file, "format": field("access")}),
        json!({"url": url, "headers": {"x-pod": "yes"}, "format": field("value")}),
    ];
    for source in sources {
        let credentials = Some(CredentialsJson(server.federation(source, Some(ACCOUNT))));
        let store = Gcs::open(GcsOptions { credentials, ..server.options() }).await.unwrap();
        put(&store, pattern(1)).await;
    }
    let asked = server.google.asked();
    let impersonated = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
    assert_eq!(asked, ["/sts/v1/token", &impersonated, "/subject", "/sts/v1/token", &impersonated]);
}

#[tokio::test]
async fn an_identity_without_an_account_has_one_sign_for_it() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let options = federated(&server, &home, None);
    let said = Gcs::open(options.clone()).await.expect_err("nobody signs").to_string();
    assert!(said.contains("set storage.gcs.sign_as") && !said.contains('\n'), "{said}");
    let store = Gcs::open(GcsOptions { sign_as: Some(ACCOUNT.to_owned()), ..options.clone() }).await.unwrap();
    store.check_rights().await.unwrap();
    // The one that signs is another than the one that asks.
    server.google.bar(ACCOUNT);
    let said = store.check_rights().await.expect_err("it may not read").to_string();
    assert!(said.contains(&format!("grant {ACCOUNT} storage.objects.get and storage.objects.delete")), "{said}");
    let other = GcsOptions { sign_as: Some("other@project.iam.gserviceaccount.com".to_owned()), ..options };
    let said = Gcs::open(other).await.unwrap().check_rights().await.expect_err("not allowed").to_string();
    assert!(said.contains("grant iam.serviceAccounts.signBlob on other@project.iam.gserviceaccount.com"), "{said}");
    assert!(said.contains("127.0.0.1") && said.contains("answered 403") && !said.contains('\n'), "{said}");
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_said_in_one_line() {
    let (server, home, other) = (gcs_server::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let right = server.options();
    let with = |json: String| GcsOptions { credentials: Some(CredentialsJson(json)), ..right.clone() };
    let mut other_key: serde_json::Value = serde_json::from_str(&key_file()).unwrap();
    other_key["client_email"] = "other@project.iam.gserviceaccount.com".into();
    let mut no_key = other_key.clone();
    no_key["private_key"] = "hush".into();
    let expired = federated(&server, &home, Some(ACCOUNT));
    std::fs::write(home.path().join("token"), "hush").unwrap();
    let aws = server.federation(json!({"environment_id": "aws1", "url": "http://169.254.169.254"}), None);
    let cases = [
        (GcsOptions { bucket: "missing".to_owned(), ..right.clone() }, "make it, or correct storage.url"),
        (with(other_key.to_string()), "doesn't accept the credentials (401 Invalid Credentials): correct them"),
        (with("{".to_owned()), "storage.gcs.credentials: it is not JSON"),
        (with("{}".to_owned()), "storage.gcs.credentials: its type is missing; want service_account, external_account"),
        (with(json!({"type": "service_account"}).to_string()), "storage.gcs.credentials: missing field"),
        (with(no_key.to_string()), "storage.gcs.credentials: its private_key is no key in PEM"),
        (with(aws), "its credential_source is neither a file nor a url"),
        (expired, "answered 400: The given credential is rejected."),
        (federated(&server, &other, Some("nobody@example.com")), "'iam.serviceAccounts.generateAccessToken' denied"),
        (
            GcsOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..right.clone() },
            "see whether storage.gcs.endpoint",
        ),
    ];
    for (options, says) in cases {
        let said = Gcs::open(options).await.expect_err("refused").to_string();
        assert!(said.contains(says) && said.contains("the bucket") && !said.contains('\n'), "{says}: {said}");
        assert!(!said.contains("hush") && !said.contains("PRIVATE KEY"), "a secret is never said: {said}");
    }
    let store = Gcs::open(right.clone()).await.unwrap();
    store.check_rights().await.unwrap();
    assert!(!format!("{store:?} {right:?}").contains("PRIVATE KEY"));
    assert!(store.list("", None, 10).await.unwrap().objects.is_empty(), "the probe is gone");
}

async fn front() -> (GcsServer, Front, GcsOptions) {
    let server = gcs_server::start().await;
    let front = storage_front::start(&server.endpoint).await;
    let options = GcsOptions { endpoint: Some(front.endpoint.clone()), ..server.options() };
    (server, front, options)
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let (_server, front, options) = front().await;
    let store = Gcs::open(options).await.unwrap();
    let is = |method, query: &'static str| move |seen: &Seen| seen.method == method && seen.query.contains(query);
    type Which = Box<dyn Fn(&Seen) -> bool + Send>;
    let cases: [(Which, &str); 6] = [
        (Box::new(is(Method::PUT, "")), "(AccessDenied): grant storage.objects.create on \"bucket\""),
        (
            Box::new(|seen| seen.method == Method::GET && seen.query.is_empty()),
            "grant storage.objects.get on \"bucket\"",
        ),
        (Box::new(is(Method::POST, "uploads")), "grant storage.multipartUploads.create"),
        (Box::new(is(Method::DELETE, "uploadId")), "grant storage.multipartUploads.abort"),
        (Box::new(is(Method::GET, "uploads")), "grant storage.multipartUploads.list"),
        (Box::new(is(Method::DELETE, "X-Goog-Signature")), "grant storage.objects.delete"),
    ];
    for (which, says) in cases {
        front.strike(move |seen| which(seen).then_some(Fault::Denied));
        let refused = store.check_rights().await;
        assert!(matches!(refused, Err(StorageError::Refused(..))), "{refused:?}");
        let said = refused.expect_err("refused").to_string();
        assert!(said.contains(says) && !said.contains('\n'), "{says}: {said}");
    }
    let left = store.list("probe/", None, 10).await.unwrap().objects.len();
    assert_eq!(left, 1, "only where it may not be removed");
    front.strike(|_| Some(Fault::Denied));
    let options = GcsOptions { endpoint: Some(front.endpoint.clone()), ..gcs_server::options(&front.endpoint) };
    let said = Gcs::open(options).await.expect_err("refused").to_string();
    assert!(said.contains("it may not be listed (AccessDenied): grant storage.objects.list on \"bucket\""), "{said}");
}

const SHORT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_bad_network_is_lived_with() {
    let (_server, front, options) = front().await;
    let patience = Patience { connect: SHORT * 5, call: SHORT, write: SHORT * 2, complete: SHORT, stall: SHORT };
    let store: Arc<dyn Store> = Arc::new(Gcs::open(GcsOptions { patience, ..options }).await.unwrap());
    let (key, bytes) = (data(), pattern(3 << 20));
    store.put(&key, vec![bytes.clone()], None).await.unwrap();
    let mut faults = vec![Fault::StallAfter(300_000), Fault::CutAfter(1_000_000), Fault::CutAfter(200_000)];
    front.strike(move |_| faults.pop());
    assert!(read_small(&store, &key, 1 << 30).await.unwrap() == bytes, "it goes on from where it was");
    // Each request is refused before it is taken.
    let mut last = String::new();
    front.strike(move |seen| {
        let this = format!("{} {} {}", seen.method, seen.path, seen.query);
        let before = std::mem::replace(&mut last, this.clone());
        (before != this).then_some(Fault::SlowDown)
    });
    let deadline = store.now().plus(Duration::from_secs(60));
    store.put(&data(), vec![pattern(100)], Some(deadline)).await.unwrap();
    assert!(store.stat(&key).await.unwrap().is_some());
    assert_eq!(store.list("data/", None, 10).await.unwrap().objects.len(), 2);
    // What became of it isn't known, so it is sent once.
    front.strike(|seen| (seen.method == Method::PUT).then_some(Fault::Lost));
    front.seen();
    let lost = store.put(&data(), vec![pattern(100)], Some(deadline)).await;
    assert!(matches!(lost, Err(StorageError::Unavailable(..))), "{lost:?}");
    assert_eq!(front.seen().len(), 1);
}

#[tokio::test]
async fn everything_goes_by_the_proxy_that_is_said() {
    let (server, front, _) = front().await;
    // A name that only the proxy knows: it passes everything to the server.
    let proxy = Some(Proxy { url: front.endpoint.clone(), except: Vec::new() });
    let egress = Egress { proxy, ..Egress::default() };
    let options = GcsOptions { endpoint: Some("http://gcs.example.test".to_owned()), egress, ..server.options() };
    let store = Gcs::open(options).await.unwrap();
    put(&store, pattern(1)).await;
    assert!(front.seen().iter().all(|seen| seen.authority.as_deref() == Some("http://gcs.example.test")
        || seen.authority.as_deref() == Some("gcs.example.test")));
}

/// Looks into the bucket in a process of its own, whose environment has only what is given. A registry is
/// there, so that what is wrong can only be the way to it.
async fn look(home: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command
        .args(["inspect", "key", "berth.json"])
        .env_clear()
        .env("BERTH_STORAGE__URL", format!("gs://{BUCKET}/some/where"))
        .env("BERTH_INDEX__URL", format!("embedded:{}", home.join("index").display()))
        .env("HOME", home)
        .envs(more.iter().copied())
        .stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn assert_found(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("the bucket's own description"), "{output:?}");
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[tokio::test]
async fn credentials_come_from_the_environment_a_login_or_the_machine() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let store = Gcs::open(server.options()).await.unwrap();
    store.put(&Key::Format, vec![Bytes::from_static(b"{}")], None).await.unwrap();
    let home = home.path();
    let endpoint = ("BERTH_STORAGE__GCS__ENDPOINT", server.endpoint.as_str());
    let iam = ("BERTH_STORAGE__GCS__IAM_ENDPOINT", server.endpoint.as_str());
    // A file that the environment names.
    let file = home.join("key.json");
    std::fs::write(&file, key_file()).unwrap();
    let by_file = ("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap());
    assert_found(&look(home, &[endpoint, by_file]).await);
    assert!(server.google.asked().is_empty(), "the key is believed as it is");
    // The machine's own account, by IAM; and the pod that has none.
    let host = server.endpoint.strip_prefix("http://").unwrap();
    let machine = ("GCE_METADATA_HOST", host);
    assert_found(&look(home, &[endpoint, iam, machine]).await);
    let start = "/computeMetadata/v1/instance/service-accounts/default";
    assert_eq!(server.google.asked(), [format!("{start}/token"), format!("{start}/email")]);
    server.google.has_no_account.store(true, Ordering::Relaxed);
    let none = said(&look(home, &[endpoint, iam, machine]).await);
    assert!(none.contains("set storage.gcs.sign_as"), "{none}");
    let sign_as = ("BERTH_STORAGE__GCS__SIGN_AS", ACCOUNT);
    assert_found(&look(home, &[endpoint, iam, machine, sign_as]).await);
    // Nobody at all.
    let nobody = said(&look(home, &[endpoint, ("GCE_METADATA_HOST", "127.0.0.1:9")]).await);
    assert!(nobody.contains("set storage.gcs.credentials_file or GOOGLE_APPLICATION_CREDENTIALS"), "{nobody}");
    // What the configuration says counts more than the environment.
    let refused = said(&look(home, &[endpoint, by_file, ("BERTH_STORAGE__GCS__CREDENTIALS", "{}")]).await);
    assert!(refused.contains("storage.gcs.credentials: its type is missing"), "{refused}");
    // A login is found where Google's tools leave it.
    let kept = home.join(".config/gcloud");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(kept.join("application_default_credentials.json"), json!({"type": "gdch"}).to_string()).unwrap();
    let refused = said(&look(home, &[endpoint]).await);
    assert!(refused.contains("application_default_credentials.json: its type is gdch"), "{refused}");
}

/// The emulator that Google's own tools would use is asked without credentials.
#[tokio::test]
async fn an_emulator_needs_no_credentials() {
    let server = gcs_server::start().await;
    let home = TempDir::new().unwrap();
    // This one wants some; but it is found.
    for host in [server.endpoint.as_str(), server.endpoint.strip_prefix("http://").unwrap()] {
        let refused = said(&look(home.path(), &[("STORAGE_EMULATOR_HOST", host)]).await);
        assert!(refused.contains(&format!("at {}:", server.endpoint)), "{refused}");
        assert!(refused.contains("doesn't accept the credentials (401"), "{refused}");
    }
}

/// A registry in this process, in the bucket, for which IAM signs.
async fn registry(server: &GcsServer, home: &TempDir) -> Client {
    let credentials = federated(server, home, Some(ACCOUNT)).credentials.unwrap().0;
    let own = [
        ("BERTH_STORAGE__URL", format!("gs://{BUCKET}/registry")),
        ("BERTH_STORAGE__GCS__ENDPOINT", server.endpoint.clone()),
        ("BERTH_STORAGE__GCS__IAM_ENDPOINT", server.endpoint.clone()),
        ("BERTH_STORAGE__GCS__CREDENTIALS", credentials),
        ("BERTH_INDEX__URL", format!("embedded:{}", home.path().join("index").display())),
        ("BERTH_INDEX__MARGIN", "200ms".to_owned()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
    let config = Config::load(LoadArgs::default(), own).unwrap().config;
    let app = App::open(config, OtherIndex::Refuse).await.unwrap();
    Client::router(app.router().unwrap())
}

#[tokio::test]
async fn those_who_want_the_same_url_share_one_call_of_iam() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let client = registry(&server, &home).await;
    let digest = client.push_blob(R, "bytes").await;
    server.google.asked();
    server.google.iam_takes.store(300, Ordering::Relaxed);
    let path = format!("/v2/{R}/blobs/{digest}");
    let asked = join_all((0..50).map(|_| client.send("GET", &path, &[], ""))).await;
    let urls: Vec<String> = asked.into_iter().map(|answer| answer.expect(307).header("location").to_owned()).collect();
    assert!(urls.iter().all(|url| *url == urls[0]));
    assert_eq!(reqwest::get(&urls[0]).await.unwrap().text().await.unwrap(), "bytes");
    client.send("GET", &path, &[], "").await.expect(307);
    let calls = server.google.asked();
    assert_eq!(calls, [format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob")]);
}

/// A real server over the bucket, for real clients.
fn served(server: &GcsServer, home: &TempDir) -> Berth {
    let more = [
        ("BERTH_INDEX__URL", format!("embedded:{}", home.path().join("index").display())),
        ("BERTH_INDEX__MARGIN", "200ms".to_owned()),
    ];
    let environment = server.settings().into_iter().chain(more);
    let environment = environment.map(|(key, value)| (key.to_owned(), value)).collect();
    Setup { environment, ..Setup::default() }.start()
}

fn assert_sent_nothing_itself(berth: &Berth) {
    let page = get(berth.admin(), "/metrics").unwrap();
    assert!(page.contains("berth_blob_bytes_total{way=\"streamed\"} 0\n"), "{page}");
    assert!(!berth.log().contains("X-Goog-Signature"), "a signed URL is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_and_crane_push_and_pull_by_signed_urls() {
    let (server, home) = (gcs_server::start().await, TempDir::new().unwrap());
    let (berth, crane, daemon) = (served(&server, &home), Tool::new("crane"), Daemon::start());
    let index = push_index(&crane, &berth.host());
    crane.run(&["validate", "--remote", &index]);
    let image = format!("{}/team/app:1", berth.host());
    // More than one part.
    daemon.import(&image, 24 << 20);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
    assert_sent_nothing_itself(&berth);
}
