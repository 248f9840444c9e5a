//! The API in process, over a local directory and the embedded index: what is asked, and what is answered.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body};
use berth::{
    api::{self, route::Route},
    auth::{AccessRules, Authority, NamedRule},
    config::{RepositoryPattern, Role, Rule, Text, Who, Written},
    index::{Connect, embedded::Embedded},
    oci::{Algorithm, Digest},
    reconcile,
    registry::{Options, OtherIndex, Registry},
    storage::{Store, local::Local},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry in a directory of its own, and a router to it for each set of rules.
struct Berth {
    registry: Arc<Registry>,
    _directory: TempDir,
}

impl Berth {
    async fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Local::open(&directory.path().join("data"), false).unwrap());
        let index: Arc<dyn Connect> = Arc::new(Embedded::open(&directory.path().join("index"), false).unwrap());
        let registry = Registry::open(store, index, Options::default(), OtherIndex::Refuse).await.unwrap();
        // Nothing is in it yet, and from now on the index knows that.
        reconcile::walk(&registry, |_| {}).await.unwrap();
        Self { registry, _directory: directory }
    }

    /// What those see who may do this in these repositories, and nothing elsewhere.
    fn with(&self, rules: &[(Role, &str)]) -> Client {
        let rule = |(role, pattern): &(Role, &str)| NamedRule {
            name: (*pattern).to_owned(),
            rule: Rule {
                who: vec![Text(Who::Everyone)],
                role: *role,
                repositories: vec![Text(RepositoryPattern::read(pattern).unwrap())],
            },
        };
        let authority = Authority::of_rules(AccessRules::new(None, rules.iter().map(rule))).unwrap();
        Client(api::router(Arc::clone(&self.registry), authority, None))
    }

    fn admin(&self) -> Client {
        self.with(&[(Role::Admin, "**")])
    }
}

struct Client(Router);

/// An answer, whole.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.0.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }

    async fn ask(&self, method: &str, target: &str) -> Answer {
        self.send(method, target, &[], Body::empty()).await
    }

    async fn push_blob(&self, repository: &str, bytes: &'static [u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let target = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        assert_eq!(self.send("POST", &target, &[], bytes).await.status, StatusCode::CREATED);
        digest
    }

    /// A manifest with this config, under this reference; also the status.
    async fn push_manifest(&self, repository: &str, reference: &str, config: &Digest) -> (StatusCode, Digest) {
        let body = manifest(config);
        let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
        let target = format!("/v2/{repository}/manifests/{reference}");
        let answer = self.send("PUT", &target, &[("content-type", MANIFEST)], body).await;
        (answer.status, digest)
    }

    /// Pushes one image, and tags it.
    async fn push_image(&self, repository: &str, tag: &str) -> Digest {
        let config = self.push_blob(repository, b"{}").await;
        let (status, digest) = self.push_manifest(repository, tag, &config).await;
        assert_eq!(status, StatusCode::CREATED);
        digest
    }
}

fn manifest(config: &Digest) -> String {
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 });
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] }).to_string()
}

/// One request for each operation on a repository, with what it needs.
fn operations(repository: &str) -> Vec<(&'static str, String, Role)> {
    let digest = Digest::of(Algorithm::Sha256, b"{}");
    let blob = format!("/v2/{repository}/blobs/{digest}");
    let uploads = format!("/v2/{repository}/blobs/uploads/");
    let upload = format!("{uploads}01ARZ3NDEKTSV4RRFFQ69G5FAV.x");
    let manifest = format!("/v2/{repository}/manifests/latest");
    vec![
        ("GET", format!("/v2/{repository}/tags/list"), Role::Reader),
        ("GET", manifest.clone(), Role::Reader),
        ("PUT", manifest.clone(), Role::Creator),
        ("DELETE", manifest, Role::Admin),
        ("GET", blob.clone(), Role::Reader),
        ("DELETE", blob, Role::Admin),
        ("POST", uploads, Role::Creator),
        ("GET", upload.clone(), Role::Creator),
        ("PATCH", upload.clone(), Role::Creator),
        ("PUT", format!("{upload}?digest={digest}"), Role::Creator),
        ("DELETE", upload, Role::Creator),
        ("GET", format!("/v2/{repository}/referrers/{digest}"), Role::Reader),
    ]
}

#[tokio::test]
async fn who_has_no_right_is_told_the_same_whether_a_thing_exists_or_not() {
    let berth = Berth::open().await;
    let stranger = berth.with(&[(Role::Admin, "elsewhere")]);
    let mut before = Vec::new();
    for (method, target, _) in operations("team/app") {
        before.push(stranger.ask(method, &target).await);
    }
    berth.admin().push_image("team/app", "latest").await;
    for ((method, target, _), before) in operations("team/app").iter().zip(before) {
        let answer = stranger.ask(method, target).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {target}");
        let challenge = answer.header("www-authenticate");
        assert!(challenge.starts_with("Bearer realm=\"/v2/token\",service=\"berth\",scope=\"repository:team/app:"));
        assert!(challenge.ends_with(",error=\"insufficient_scope\""), "{challenge}");
        assert_eq!(answer.code(), "UNAUTHORIZED");
        assert_eq!((&answer.headers, &answer.body), (&before.headers, &before.body), "{method} {target}");
    }
}

#[tokio::test]
async fn each_operation_needs_its_role_and_no_more() {
    let berth = Berth::open().await;
    let names: std::collections::BTreeSet<_> = operations("a")
        .iter()
        .map(|(method, target, _)| {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let method: Method = method.parse().unwrap();
            Route::parse(&method, path, Some(query), &HeaderMap::new()).unwrap().name()
        })
        .collect();
    assert_eq!(names.len(), 12, "an operation is missing from the list: {names:?}");
    for role in [Role::Reader, Role::Creator, Role::Writer, Role::Admin] {
        let client = berth.with(&[(role, "a/*")]);
        for (method, target, needs) in operations("a/b") {
            let is_refused = client.ask(method, &target).await.status == StatusCode::UNAUTHORIZED;
            assert_eq!(is_refused, role < needs, "{role:?} {method} {target}");
        }
    }
}

#[tokio::test]
async fn ping_and_catalog_need_some_right_and_show_what_may_be_pulled() {
    let berth = Berth::open().await;
    for repository in ["a", "b/c", "b/d", "e"] {
        berth.admin().push_image(repository, "1").await;
    }
    let (nobody, some) = (berth.with(&[]), berth.with(&[(Role::Reader, "b/*"), (Role::Reader, "e")]));
    for target in ["/v2/", "/v2", "/v2/_catalog"] {
        assert_eq!(nobody.ask("GET", target).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(some.ask("GET", target).await.status, StatusCode::OK);
    }
    assert_eq!(some.ask("GET", "/v2/").await.body, "{}");
    let page = some.ask("GET", "/v2/_catalog?n=2").await;
    assert_eq!(page.json(), json!({ "repositories": ["b/c", "b/d"] }));
    assert_eq!(page.header("link"), "</v2/_catalog?n=2&last=b/d>; rel=\"next\"");
    let page = some.ask("GET", "/v2/_catalog?n=2&last=b/d").await;
    assert_eq!((page.json(), page.header("link")), (json!({ "repositories": ["e"] }), ""));
}

#[tokio::test]
async fn a_creator_moves_no_tag() {
    let berth = Berth::open().await;
    let creator = berth.with(&[(Role::Creator, "**")]);
    creator.push_image("a", "1").await;
    let other = creator.push_blob("a", b"[]").await;
    assert_eq!(creator.push_manifest("a", "1", &other).await.0, StatusCode::FORBIDDEN);
    assert_eq!(creator.push_manifest("a", "2", &other).await.0, StatusCode::CREATED);
    assert_eq!(berth.admin().push_manifest("a", "1", &other).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_mount_that_fails_looks_as_if_nobody_had_asked() {
    let berth = Berth::open().await;
    let digest = berth.admin().push_blob("secret/app", b"layer").await;
    let client = berth.with(&[(Role::Writer, "mine/*")]);
    let looks = async |query: String| {
        let answer = client.ask("POST", &format!("/v2/mine/app/blobs/uploads/{query}")).await;
        let names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
        (answer.status, names, answer.header("range").to_owned(), answer.header("location").len(), answer.body)
    };
    let plain = looks(String::new()).await;
    assert_eq!(plain.0, StatusCode::ACCEPTED);
    for query in [
        format!("?mount={digest}&from=secret/app"),
        format!("?mount={digest}&from=secret/none"),
        format!("?mount={digest}&from=mine/none"),
        format!("?mount={digest}&from=NO"),
        format!("?mount={digest}"),
    ] {
        assert_eq!(looks(query.clone()).await, plain, "{query}");
    }
    let both = berth.with(&[(Role::Writer, "mine/*"), (Role::Reader, "secret/*")]);
    let mounted = both.ask("POST", &format!("/v2/mine/app/blobs/uploads/?mount={digest}&from=secret/app")).await;
    assert_eq!(mounted.status, StatusCode::CREATED);
    assert_eq!(both.ask("GET", mounted.header("location")).await.body, "layer");
}

#[tokio::test]
async fn a_blob_is_served_in_ranges_and_not_twice() {
    let berth = Berth::open().await;
    let client = berth.admin();
    let digest = client.push_blob("a", b"0123456789").await;
    let target = format!("/v2/a/blobs/{digest}");
    let get = async |name: &str, value: &str| client.send("GET", &target, &[(name, value)], Body::empty()).await;

    let head = client.ask("HEAD", &target).await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "10", 0));
    assert_eq!(head.header("docker-content-digest"), digest.as_str());
    assert_eq!(head.header("content-type"), "application/octet-stream");
    assert_eq!(head.header("x-content-type-options"), "nosniff");
    assert_eq!(head.header("content-security-policy"), "default-src 'none'; sandbox");

    let one = get("range", "bytes=-3").await;
    assert_eq!((one.status, &one.body[..]), (StatusCode::PARTIAL_CONTENT, &b"789"[..]));
    assert_eq!(one.header("content-range"), "bytes 7-9/10");
    let two = get("range", "bytes=0-1,4-5").await;
    let boundary = two.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    let part = |range: &str, bytes: &str| {
        let head = "Content-Type: application/octet-stream\r\nContent-Range: bytes";
        format!("\r\n--{boundary}\r\n{head} {range}/10\r\n\r\n{bytes}")
    };
    assert_eq!(two.body, format!("{}{}\r\n--{boundary}--\r\n", part("0-1", "01"), part("4-5", "45")));
    assert_eq!(two.header("content-length"), two.body.len().to_string());
    let none = get("range", "bytes=10-").await;
    assert_eq!((none.status, none.header("content-range")), (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */10"));
    assert_eq!(none.header("cache-control"), "");

    let same = get("if-none-match", &format!("\"{digest}\"")).await;
    assert_eq!((same.status, same.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(get("if-none-match", "\"other\"").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_upload_goes_in_order_and_only_for_its_repository() {
    let berth = Berth::open().await;
    let client = berth.admin();
    let digest = Digest::of(Algorithm::Sha512, b"hello world");
    let started = client.ask("POST", "/v2/a/blobs/uploads/?digest-algorithm=sha512").await;
    let location = started.header("location").to_owned();
    assert!(location.ends_with("&digest-algorithm=sha512"), "{location}");
    assert_eq!(started.header("range"), "0-0");

    let chunk = async |location: &str, range: &str, bytes: &'static str| {
        client.send("PATCH", location, &[("content-range", range)], bytes).await
    };
    for (range, bytes, status, code) in [
        ("1-5", "hello", 416, "RANGE_INVALID"),
        ("0-5", "hello", 400, "SIZE_INVALID"),
        ("5-0", "hello", 416, "RANGE_INVALID"),
        ("x", "hello", 416, "RANGE_INVALID"),
    ] {
        let refused = chunk(&location, range, bytes).await;
        assert_eq!((refused.status.as_u16(), refused.code().as_str()), (status, code), "{range}");
    }
    let first = chunk(&location, "bytes 0-4/11", "hello").await;
    assert_eq!((first.status, first.header("range")), (StatusCode::ACCEPTED, "0-4"));
    let status = client.ask("GET", &location).await;
    assert_eq!((status.status, status.header("range")), (StatusCode::NO_CONTENT, "0-4"));
    assert_eq!(status.header("location"), first.header("location"));
    assert_eq!(client.ask("GET", &location.replace("/a/", "/b/")).await.code(), "BLOB_UPLOAD_UNKNOWN");

    let end = format!("{}&digest={digest}", first.header("location"));
    let done = client.send("PUT", &end, &[("content-range", "5-10")], " world").await;
    assert_eq!((done.status, done.header("docker-content-digest")), (StatusCode::CREATED, digest.as_str()));
    assert_eq!(client.ask("GET", done.header("location")).await.body, "hello world");

    let other = client.ask("POST", "/v2/a/blobs/uploads/").await.header("location").to_owned();
    assert_eq!(client.ask("DELETE", &other).await.status, StatusCode::NO_CONTENT);
    assert_eq!(client.ask("DELETE", &other).await.status, StatusCode::NOT_FOUND);
    assert_eq!(client.ask("PUT", &other).await.code(), "DIGEST_INVALID");
}

#[tokio::test]
async fn a_write_ends_even_if_its_client_leaves() {
    let berth = Berth::open().await;
    let digest = Digest::of(Algorithm::Sha256, b"first second");
    let (sender, mut receiver) = mpsc::unbounded_channel::<Bytes>();
    let is_reading = Arc::new(Notify::new());
    let read = Arc::clone(&is_reading);
    let body = Body::from_stream(stream::poll_fn(move |cx| {
        read.notify_one();
        receiver.poll_recv(cx).map(|chunk| chunk.map(Ok::<_, std::io::Error>))
    }));
    let request = Request::post(format!("/v2/a/blobs/uploads/?digest={digest}")).body(body).unwrap();
    sender.send(Bytes::from_static(b"first ")).unwrap();
    tokio::select! {
        () = is_reading.notified() => {}
        _ = berth.admin().0.oneshot(request) => panic!("it was answered before its body ended"),
    }
    sender.send(Bytes::from_static(b"second")).unwrap();
    drop(sender);
    let target = format!("/v2/a/blobs/{digest}");
    while berth.admin().ask("HEAD", &target).await.status != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_manifest_is_what_was_pushed_or_refused() {
    let berth = Berth::open().await;
    let client = berth.admin();
    let config = client.push_blob("a", b"{}").await;
    let body = manifest(&config);
    let sha512 = Digest::of(Algorithm::Sha512, body.as_bytes());
    let target = format!("/v2/a/manifests/{sha512}?tag=1&tag=1.0");
    let pushed = client.send("PUT", &target, &[("content-type", MANIFEST)], body.clone()).await;
    assert_eq!((pushed.status, pushed.header("docker-content-digest")), (StatusCode::CREATED, sha512.as_str()));
    assert_eq!(pushed.headers.get_all("oci-tag").iter().collect::<Vec<_>>(), ["1", "1.0"]);
    let by_tag = client.send("GET", "/v2/a/manifests/1.0", &[("accept", "text/plain")], Body::empty()).await;
    assert_eq!((by_tag.status, by_tag.header("content-type")), (StatusCode::OK, MANIFEST));
    assert_eq!((&by_tag.body[..], by_tag.header("etag")), (body.as_bytes(), format!("\"{sha512}\"").as_str()));
    assert_eq!(by_tag.header("cache-control"), "no-cache");
    let head = client.ask("HEAD", &format!("/v2/a/manifests/{sha512}")).await;
    assert_eq!((head.header("content-length"), head.body.len()), (body.len().to_string().as_str(), 0));
    assert_eq!(head.header("cache-control"), "max-age=31536000, immutable");

    let wrong = Digest::of(Algorithm::Sha256, b"other");
    assert_eq!(client.send("PUT", &format!("/v2/a/manifests/{wrong}"), &[], body).await.code(), "DIGEST_INVALID");
    let large = client.send("PUT", "/v2/a/manifests/big", &[], vec![b' '; (4 << 20) + 1]).await;
    assert_eq!((large.status, large.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"));
    let missing = Digest::of(Algorithm::Sha256, b"missing");
    assert_eq!(client.push_manifest("a", "x", &missing).await.0, StatusCode::BAD_REQUEST);
    let gone = client.ask("HEAD", "/v2/a/manifests/x").await;
    assert_eq!((gone.status, gone.body.len()), (StatusCode::NOT_FOUND, 0));
    assert_eq!(gone.header(header::CACHE_CONTROL.as_str()), "no-store");
}

#[tokio::test]
async fn tags_are_listed_in_pages_that_end_where_they_end() {
    let berth = Berth::open().await;
    let client = berth.admin();
    assert_eq!(client.ask("GET", "/v2/a/tags/list").await.code(), "NAME_UNKNOWN");
    assert_eq!(client.ask("GET", "/v2/a/tags/list?n=0").await.code(), "NAME_UNKNOWN");
    for tag in ["b", "a", "C", "1"] {
        client.push_image("a", tag).await;
    }
    for (query, tags, link) in [
        ("", vec!["1", "C", "a", "b"], ""),
        ("?n=0", vec![], ""),
        ("?n=4", vec!["1", "C", "a", "b"], ""),
        ("?n=3", vec!["1", "C", "a"], "</v2/a/tags/list?n=3&last=a>; rel=\"next\""),
        ("?n=3&last=a", vec!["b"], ""),
        ("?n=99999999999999999999", vec!["1", "C", "a", "b"], ""),
        ("?last=b", vec![], ""),
    ] {
        let page = client.ask("GET", &format!("/v2/a/tags/list{query}")).await;
        assert_eq!(page.json(), json!({ "name": "a", "tags": tags }), "{query}");
        assert_eq!(page.header("link"), link, "{query}");
    }
}

#[tokio::test]
async fn gcr_lists_what_is_below_as_far_as_the_caller_may_see() {
    let berth = Berth::open().await;
    let digest = berth.admin().push_image("p/img", "1").await;
    berth.admin().push_image("p/img/deep/er", "1").await;
    berth.admin().push_image("p/hidden", "1").await;
    let client = berth.with(&[(Role::Reader, "p"), (Role::Reader, "p/img/**")]);
    let list = client.ask("GET", "/v2/p/tags/list?gcr=true").await.json();
    assert_eq!(list, json!({ "child": ["img"], "manifest": {}, "name": "p", "tags": [] }));
    let list = client.send("GET", "/v2/p/img/tags/list", &[("user-agent", "gcrane/1")], Body::empty()).await.json();
    assert_eq!((&list["child"], &list["tags"]), (&json!(["deep"]), &json!(["1"])));
    let manifest = &list["manifest"][digest.as_str()];
    assert_eq!((&manifest["tag"], &manifest["imageSizeBytes"]), (&json!(["1"]), &json!("2")));
    assert_eq!(client.ask("GET", "/v2/p/img/none/tags/list?gcr=true").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn referrers_are_listed_in_pages_and_by_type() {
    let berth = Berth::open().await;
    let client = berth.admin();
    let subject = Digest::of(Algorithm::Sha256, b"nobody has it");
    let target = format!("/v2/a/referrers/{subject}");
    let empty = client.ask("GET", &target).await;
    assert_eq!((empty.status, &empty.json()["manifests"]), (StatusCode::OK, &json!([])));
    let config = client.push_blob("a", b"{}").await;
    for kind in ["x/one", "x/two", "x/two+json"] {
        let mut body: Value = serde_json::from_str(&manifest(&config)).unwrap();
        body["artifactType"] = json!(kind);
        body["subject"] = json!({ "mediaType": MANIFEST, "digest": subject, "size": 1 });
        let body = body.to_string();
        let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
        let pushed = client.send("PUT", &format!("/v2/a/manifests/{digest}"), &[], body).await;
        assert_eq!((pushed.status, pushed.header("oci-subject")), (StatusCode::CREATED, subject.as_str()));
    }
    let mut next = format!("{target}?n=2");
    let mut sizes = Vec::new();
    while !next.is_empty() {
        let page = client.ask("GET", &next).await;
        assert_eq!(page.header("content-type"), "application/vnd.oci.image.index.v1+json");
        sizes.push(page.json()["manifests"].as_array().unwrap().len());
        next = page.header("link").split(['<', '>']).nth(1).unwrap_or_default().to_owned();
    }
    assert_eq!(sizes, [2, 1]);
    let filtered = client.ask("GET", &format!("{target}?artifactType=x/two+json")).await;
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), 1);
}
