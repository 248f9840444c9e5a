//! What can be said about a bucket, seen on the wire; what is said at a start that can't work; and each way by
//! which credentials are found.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Request, response::IntoResponse};
use berth::{
    outbound::Proxy,
    storage::{
        Egress, Key, StorageError, Store, StoreTime,
        s3::{AccessKey, Checksum, Encryption, S3, S3Options},
    },
};
use bytes::Bytes;
use http::Method;
use tempfile::TempDir;

use crate::{
    s3_server::{self, S3Server},
    storage::{data, key, options, pattern},
    storage_front::{self, Fault, Front, Seen},
    versitygw,
};

async fn front() -> (S3Server, Front, S3Options) {
    let server = s3_server::start().await;
    let front = storage_front::start(&server.endpoint).await;
    let options = S3Options { endpoint: Some(front.endpoint.clone()), ..options(&server) };
    (server, front, options)
}

/// What passes when an object and an upload in parts are written: PUT, POST, PUT, POST.
async fn written(front: &Front, options: S3Options, key: &Key) -> Vec<Seen> {
    let store = S3::open(options).await.unwrap();
    front.seen();
    store.put(key, vec![pattern(10)], None).await.unwrap();
    let upload = store.begin(key).await.unwrap();
    let part = store.put_part(key, &upload, 0, 5 << 20, vec![pattern(10)]).await.unwrap();
    store.complete(key, &upload, &[part]).await.unwrap();
    let seen = front.seen();
    assert_eq!(seen.len(), 4);
    seen
}

fn headers<'a>(seen: &'a [Seen], name: &str) -> Vec<&'a str> {
    seen.iter().map(|seen| seen.header(name)).collect()
}

/// A machine whose clock is minutes ahead of the store's could remove nothing, and refused to start.
#[tokio::test]
async fn a_delete_is_dated_by_the_stores_clock() {
    let (_server, front, options) = front().await;
    front.strike(|_| Some(Fault::Dated("Sat, 21 Nov 2026 10:00:05 GMT")));
    let store = S3::open(options).await.unwrap();
    front.seen();
    // What the server makes of it goes by its own clock, which is this machine's.
    drop(store.delete(&data(), StoreTime(1_795_255_265_000)).await);
    let seen = front.seen();
    let query = &seen.iter().find(|seen| seen.method == Method::DELETE).unwrap().query;
    let dated = (5..60).find(|second| query.contains(&format!("X-Amz-Date=20261121T1000{second:02}Z")));
    let life = 65 - dated.unwrap_or_else(|| panic!("not by the store's clock: {query}"));
    assert!(query.contains(&format!("X-Amz-Expires={life}")), "{query}");
    let late = store.delete(&data(), StoreTime(1_795_255_200_000)).await;
    assert!(matches!(late, Err(StorageError::TooLate(_))), "{late:?}");
}

#[tokio::test]
async fn objects_are_encrypted_as_was_said() {
    let (_server, front, options) = front().await;
    let (kind, named, bucket_key) = (
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
    );
    let cases = [
        (Encryption::Bucket, ["", "", ""]),
        (Encryption::S3, ["AES256", "", ""]),
        (Encryption::Kms { key: None, bucket_key: None }, ["aws:kms", "", ""]),
        (Encryption::Kms { key: Some("a-key".into()), bucket_key: Some(true) }, ["aws:kms", "a-key", "true"]),
    ];
    for (encryption, expected) in cases {
        let seen = written(&front, S3Options { encryption, ..options.clone() }, &data()).await;
        for (name, expected) in [kind, named, bucket_key].into_iter().zip(expected) {
            // Where an object or an upload begins; the parts follow their upload.
            assert_eq!(headers(&seen, name), [expected, expected, "", ""], "{name}");
        }
    }
}

#[tokio::test]
async fn blobs_have_their_storage_class_and_nothing_else_has() {
    let (_server, front, options) = front().await;
    let options = S3Options { storage_class: Some("STANDARD_IA".to_owned()), ..options };
    let seen = written(&front, options.clone(), &data()).await;
    assert_eq!(headers(&seen, "x-amz-storage-class"), ["STANDARD_IA", "STANDARD_IA", "", ""]);
    let seen = written(&front, options, &Key::Format).await;
    assert_eq!(headers(&seen, "x-amz-storage-class"), ["", "", "", ""]);
}

#[tokio::test]
async fn bytes_go_with_their_checksum_unless_it_is_said_otherwise() {
    let (_server, front, options) = front().await;
    let seen = written(&front, options.clone(), &data()).await;
    let sums = headers(&seen, "x-amz-checksum-sha256");
    assert_eq!(sums[0].len(), 44, "32 bytes in base64");
    assert_eq!(sums, [sums[0], "", sums[0], ""]);
    assert_eq!(headers(&seen, "x-amz-checksum-algorithm"), ["", "SHA256", "", ""]);
    let seen = written(&front, S3Options { checksum: Checksum::None, ..options }, &data()).await;
    assert_eq!(headers(&seen, "x-amz-checksum-sha256"), [""; 4]);
    assert_eq!(headers(&seen, "x-amz-checksum-algorithm"), [""; 4]);
}

#[tokio::test]
async fn a_temporary_key_goes_with_its_token_and_signatures_name_the_region() {
    let (_server, front, options) = front().await;
    let token = AccessKey { session_token: Some("a-token".to_owned()), ..options.access_key.clone().unwrap() };
    let options = S3Options { access_key: Some(token), region: Some("eu-north-1".to_owned()), ..options };
    let seen = written(&front, options, &data()).await;
    assert_eq!(headers(&seen, "x-amz-security-token"), ["a-token"; 4]);
    assert!(seen.iter().all(|seen| seen.header("authorization").contains("/eu-north-1/s3/aws4_request")));
    assert!(seen.iter().all(|seen| seen.path.starts_with("/bucket/some/where/data/")));
}

/// Amazon's own rules say which bucket is in the host.
#[tokio::test]
async fn the_bucket_is_in_the_host_or_in_the_path() {
    let (_server, front, options) = front().await;
    let proxy = Some(Proxy { url: front.endpoint.clone(), except: Vec::new() });
    let options = S3Options { egress: Egress { proxy, ..Egress::default() }, ..options };
    let at = async |bucket: &str, endpoint: Option<&str>, region: &str, path_style| {
        let region = Some(region.to_owned());
        let endpoint = endpoint.map(ToOwned::to_owned);
        let bucket = bucket.to_owned();
        let opened = S3::open(S3Options { bucket, endpoint, region, path_style, ..options.clone() }).await;
        opened.expect_err("the front is no such server").to_string()
    };
    front.strike(|_| Some(Fault::Denied));
    for (bucket, endpoint, region, path_style, url) in [
        ("bucket", None, "eu-west-1", None, "https://bucket.s3.eu-west-1.amazonaws.com:"),
        ("bucket", None, "eu-west-1", Some(true), "https://s3.eu-west-1.amazonaws.com/bucket:"),
        ("bucket", None, "cn-north-1", None, "https://bucket.s3.cn-north-1.amazonaws.com.cn:"),
        ("my.bucket", None, "eu-west-1", None, "https://s3.eu-west-1.amazonaws.com/my.bucket:"),
        ("bucket", Some("http://s3.example.test"), "us-east-1", None, "http://s3.example.test/bucket:"),
        ("bucket", Some("http://s3.example.test"), "us-east-1", Some(false), "http://bucket.s3.example.test:"),
    ] {
        let said = at(bucket, endpoint, region, path_style).await;
        assert!(said.contains(url), "{url}: {said}");
    }
}

#[tokio::test]
async fn what_goes_outside_goes_through_the_proxy() {
    let server = s3_server::start().await;
    let front = storage_front::start(&server.endpoint).await;
    let through = |except: &[&str]| Egress {
        proxy: Some(Proxy { url: front.endpoint.clone(), except: except.iter().map(ToString::to_string).collect() }),
        ..Egress::default()
    };
    let outside = S3Options { endpoint: Some("http://s3.example.test".to_owned()), ..options(&server) };
    let store = S3::open(S3Options { egress: through(&["example.org"]), ..outside.clone() }).await.unwrap();
    let blob = data();
    store.put(&blob, vec![pattern(10)], None).await.unwrap();
    store.delete(&blob, store.now().plus(Duration::from_secs(60))).await.unwrap();
    let seen = front.seen();
    assert_eq!(seen.len(), 3, "the listing of the start, too, which AWS' own kit makes");
    assert!(seen.iter().all(|seen| seen.authority.as_deref() == Some("s3.example.test")), "{seen:?}");
    let opened = S3::open(S3Options { egress: through(&["example.test"]), ..outside }).await;
    let said = opened.expect_err("there is no such host").to_string();
    assert!(said.contains("see whether storage.s3.endpoint, storage.s3.ca_bundle and [proxy] are right"), "{said}");
    S3::open(S3Options { egress: through(&[]), ..options(&server) }).await.expect("this machine needs no proxy");
    assert!(front.seen().is_empty());
}

#[tokio::test]
async fn the_proxy_of_the_environment_counts_where_nothing_else_is_said() {
    let (server, home) = bucket_with_a_registry().await;
    let front = storage_front::start(&server.endpoint).await;
    let environment = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test-secret"),
        ("AWS_ENDPOINT_URL_S3", "http://s3.example.test"),
        ("HTTP_PROXY", front.endpoint.as_str()),
        ("NO_PROXY", "example.org"),
    ];
    assert_found(&look(&server, home.path(), &environment).await);
    assert!(front.seen().iter().all(|seen| seen.authority.as_deref() == Some("s3.example.test")));
    let mut except = environment;
    except[4].1 = "example.test";
    assert!(!look(&server, home.path(), &except).await.status.success(), "there is no such host");
    assert!(front.seen().is_empty());
}

#[tokio::test]
async fn a_certificate_of_ones_own_is_trusted_once_it_is_said() {
    let (server, certificate) = versitygw::start_with_tls().await;
    let with = |ca_bundle| S3Options { egress: Egress { ca_bundle, ..Egress::default() }, ..gateway(&server) };
    let store = S3::open(with(Some(certificate.clone()))).await.unwrap();
    store.check_rights().await.unwrap();
    let said = S3::open(with(None)).await.expect_err("nobody knows it").to_string();
    assert!(said.contains("storage.s3.ca_bundle") && !said.contains('\n'), "{said}");
    for (content, says) in [(None, "No such file"), (Some("no certificate"), "there is none in PEM form")] {
        let file = certificate.with_file_name("other.pem");
        let _ = std::fs::remove_file(&file);
        content.map_or(Ok(()), |content| std::fs::write(&file, content)).unwrap();
        let said = S3::open(with(Some(file))).await.expect_err("unusable").to_string();
        assert!(said.contains(says) && said.contains("other.pem"), "{said}");
    }
}

/// For the bucket of a real server.
pub(crate) fn gateway(server: &versitygw::Versitygw) -> S3Options {
    S3Options {
        bucket: versitygw::BUCKET.to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        region: Some(versitygw::REGION.to_owned()),
        access_key: Some(key(versitygw::ACCESS_KEY, versitygw::SECRET_KEY)),
        ..S3Options::default()
    }
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_said_in_one_line() {
    let server = versitygw::start().await;
    let right = gateway(&server);
    let cases = [
        (S3Options { bucket: "missing".to_owned(), ..right.clone() }, "make it, or correct storage.url"),
        (
            S3Options { access_key: Some(key("gateway", "wrong")), ..right.clone() },
            "(SignatureDoesNotMatch): correct them",
        ),
        (S3Options { access_key: Some(key("wrong", "wrong")), ..right.clone() }, "(XAdminUserNotFound): correct them"),
        (
            S3Options { region: Some("us-west-2".to_owned()), ..right.clone() },
            "set storage.s3.region to \"eu-central-1\"",
        ),
        (S3Options { endpoint: Some("http://127.0.0.1:9".to_owned()), ..right.clone() }, "http://127.0.0.1:9"),
        (
            S3Options { endpoint: Some("http://127.0.0.1:9".to_owned()), ..right.clone() },
            "see whether storage.s3.endpoint",
        ),
    ];
    for (options, says) in cases {
        let said = S3::open(options).await.expect_err("refused").to_string();
        assert!(said.contains(says) && said.contains("the bucket") && !said.contains('\n'), "{says}: {said}");
        assert!(!said.contains("gateway-secret"), "a secret is never said: {said}");
    }
    S3::open(right).await.unwrap().check_rights().await.unwrap();
}

/// Whether a request is the one that isn't allowed.
type Which = Box<dyn Fn(&Seen) -> bool + Send>;

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let (_server, front, options) = front().await;
    let kms = S3Options { encryption: Encryption::Kms { key: None, bucket_key: None }, ..options.clone() };
    let store = S3::open(options).await.unwrap();
    store.check_rights().await.expect("nothing is missing");
    let is = |method, query: &'static str| move |seen: &Seen| seen.method == method && seen.query.contains(query);
    let may_not = async |store: &S3, which: Which| {
        front.strike(move |seen| which(seen).then_some(Fault::Denied));
        let refused = store.check_rights().await;
        assert!(matches!(refused, Err(StorageError::Refused(..))), "{refused:?}");
        refused.expect_err("refused").to_string()
    };
    let cases: [(Which, &str); 4] = [
        (Box::new(is(Method::PUT, "")), "(AccessDenied): grant s3:PutObject on \"bucket/some/where/*\""),
        (Box::new(is(Method::DELETE, "uploadId")), "grant s3:AbortMultipartUpload on \"bucket/some/where/*\""),
        (Box::new(is(Method::GET, "uploads")), "(AccessDenied): grant s3:ListBucketMultipartUploads on \"bucket\""),
        (Box::new(is(Method::DELETE, "X-Amz-Signature")), "grant s3:DeleteObject"),
    ];
    for (which, says) in cases {
        let said = may_not(&store, which).await;
        assert!(said.contains(says) && !said.contains('\n'), "{says}: {said}");
    }
    let said = may_not(&store, Box::new(|seen| seen.method == Method::GET && seen.path.contains("/probe/"))).await;
    assert!(said.contains("grant s3:GetObject"), "{said}");
    front.strike(|_| None);
    let store = S3::open(kms).await.unwrap();
    let said = may_not(&store, Box::new(is(Method::PUT, ""))).await;
    assert!(said.contains("kms:GenerateDataKey"), "{said}");
    front.strike(|_| None);
    let left = store.list("probe/", None, 10).await.unwrap().objects.len();
    assert_eq!(left, 1, "only where it may not be removed");
}

#[tokio::test]
async fn a_bucket_that_may_not_be_listed_is_said_at_the_start() {
    let (_server, front, options) = front().await;
    front.strike(|_| Some(Fault::Denied));
    let said = S3::open(options).await.expect_err("refused").to_string();
    assert!(said.contains("grant s3:ListBucket on \"bucket\""), "{said}");
}

/// What each of the clouds' own ways gives: a path asked, and its answer.
async fn keeper(answers: &[(&'static str, String)]) -> (String, Arc<Mutex<Vec<String>>>) {
    let answers: HashMap<&str, String> = answers.iter().cloned().collect();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let router = Router::new().fallback(move |request: Request| {
        let path = request.uri().path().to_owned();
        noted.lock().unwrap().push(path.clone());
        let answer = answers.get(path.as_str()).cloned();
        // The life of a machine's token; nobody else minds.
        let life = [("x-aws-ec2-metadata-token-ttl-seconds", "600")];
        async move { answer.map_or(http::StatusCode::NOT_FOUND.into_response(), |text| (life, text).into_response()) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// Looks into the bucket in a process of its own, whose environment has only what is given. A registry is
/// there, so that what is wrong can only be the way to it.
async fn look(server: &S3Server, home: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    let index = format!("embedded:{}", home.join("index").display());
    command
        .args(["inspect", "key", "berth.json"])
        .env_clear()
        .env("BERTH_STORAGE__URL", "s3://bucket/some/where")
        .env("BERTH_INDEX__URL", index)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL_S3", &server.endpoint)
        .env("PATH", std::env::var_os("PATH").unwrap())
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

async fn bucket_with_a_registry() -> (S3Server, TempDir) {
    let server = s3_server::start().await;
    let store = S3::open(options(&server)).await.unwrap();
    store.put(&Key::Format, vec![Bytes::from_static(b"{}")], None).await.unwrap();
    (server, TempDir::new().unwrap())
}

const KEYS: &str = r#"{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test-secret", "SessionToken": "t",
    "Token": "t", "Expiration": "2099-01-01T00:00:00Z", "Code": "Success", "Type": "AWS-HMAC"}"#;

#[tokio::test]
async fn credentials_come_from_the_environment_or_a_profile() {
    let (server, home) = bucket_with_a_registry().await;
    let none = look(&server, home.path(), &[]).await;
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(
        !none.status.success() && said.contains("there are no credentials: set storage.s3.access_key_id"),
        "{said}"
    );
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    let environment = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test-secret")];
    assert_found(&look(&server, home.path(), &environment).await);
    // A process that the profile names. It also names the region and the endpoint.
    let process = home.path().join("process");
    std::fs::write(&process, format!("#!/bin/sh\ncat <<'END'\n{KEYS}\nEND\n")).unwrap();
    std::fs::set_permissions(&process, std::fs::Permissions::from_mode(0o755)).unwrap();
    let profile = format!(
        "[profile registry]\nregion = eu-west-3\nendpoint_url = {}\ncredential_process = {}\n",
        server.endpoint,
        process.display()
    );
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/config"), profile).unwrap();
    let by_profile = [("AWS_PROFILE", "registry"), ("AWS_ENDPOINT_URL_S3", "")];
    assert_found(&look(&server, home.path(), &by_profile).await);
    // What the configuration says counts more.
    let wrong = [
        ("AWS_PROFILE", "registry"),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", "test"),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", "another"),
    ];
    let refused = look(&server, home.path(), &wrong).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("SignatureDoesNotMatch"), "{refused:?}");
}

#[tokio::test]
async fn credentials_come_from_the_role_of_a_container_or_a_machine() {
    let (server, home) = bucket_with_a_registry().await;
    let (keeper, asked) = keeper(&[
        ("/container", KEYS.to_owned()),
        ("/latest/api/token", "a-token".to_owned()),
        ("/latest/meta-data/iam/security-credentials/", "a-role".to_owned()),
        ("/latest/meta-data/iam/security-credentials/a-role", KEYS.to_owned()),
        ("/latest/meta-data/placement/region", "eu-west-3".to_owned()),
    ])
    .await;
    let token = home.path().join("token");
    std::fs::write(&token, "the pod's own").unwrap();
    let full = format!("{keeper}/container");
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", full.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ];
    assert_found(&look(&server, home.path(), &container).await);
    assert!(asked.lock().unwrap().contains(&"/container".to_owned()));
    let machine = [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", keeper.as_str())];
    assert_found(&look(&server, home.path(), &machine).await);
    assert!(asked.lock().unwrap().iter().any(|path| path.ends_with("/a-role")));
}

/// How the service that lends roles answers.
fn lent(operation: &str) -> String {
    format!(
        "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{operation}Result><Credentials>\
         <AccessKeyId>test</AccessKeyId><SecretAccessKey>test-secret</SecretAccessKey>\
         <SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
         </{operation}Result></{operation}Response>"
    )
}

#[tokio::test]
async fn credentials_come_from_a_role_that_a_profile_assumes_or_from_a_login() {
    let (server, home) = bucket_with_a_registry().await;
    let login = r#"{"roleCredentials": {"accessKeyId": "test", "secretAccessKey": "test-secret",
        "sessionToken": "t", "expiration": 4070908800000}}"#;
    let (keeper, asked) = keeper(&[("/", lent("AssumeRole")), ("/federation/credentials", login.to_owned())]).await;
    let profiles = "[profile base]\naws_access_key_id = other\naws_secret_access_key = other\n\
        [profile role]\nrole_arn = arn:aws:iam::123456789012:role/registry\nsource_profile = base\n\
        [profile login]\nsso_session = company\nsso_account_id = 123456789012\nsso_role_name = registry\n\
        [sso-session company]\nsso_region = eu-west-3\nsso_start_url = https://company.example.com/start\n";
    let tokens = home.path().join(".aws/sso/cache");
    std::fs::create_dir_all(&tokens).unwrap();
    std::fs::write(home.path().join(".aws/config"), profiles).unwrap();
    // Named by the SHA-1 of the session's name: that is where `aws sso login` puts it.
    let token = r#"{"accessToken": "a-token", "expiresAt": "2099-01-01T00:00:00Z"}"#;
    std::fs::write(tokens.join("71b21161ffa1e6516bcc072aaf5ef38cbe85b511.json"), token).unwrap();
    let by = |profile| {
        [
            ("AWS_PROFILE", profile),
            ("AWS_REGION", "eu-west-3"),
            ("AWS_ENDPOINT_URL_STS", keeper.as_str()),
            ("AWS_ENDPOINT_URL_SSO", keeper.as_str()),
        ]
    };
    assert_found(&look(&server, home.path(), &by("role")).await);
    assert_found(&look(&server, home.path(), &by("login")).await);
    assert_eq!(*asked.lock().unwrap(), ["/", "/federation/credentials"]);
}

#[tokio::test]
async fn credentials_come_from_a_web_identity() {
    let (server, home) = bucket_with_a_registry().await;
    let (keeper, asked) = keeper(&[("/", lent("AssumeRoleWithWebIdentity"))]).await;
    let token = home.path().join("token");
    std::fs::write(&token, "an identity").unwrap();
    let identity = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/registry"),
        ("AWS_REGION", "eu-west-3"),
        ("AWS_ENDPOINT_URL_STS", keeper.as_str()),
    ];
    assert_found(&look(&server, home.path(), &identity).await);
    assert_eq!(*asked.lock().unwrap(), ["/"]);
}
