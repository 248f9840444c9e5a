//! Attacks that registries have fallen to, each by its number: what applies to a registry without tokens.
//!
//! Bodies that are sent to exhaust memory (CVE-2017-11468) are in [`crate::e2e_conditions`], over the real
//! binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use berth::{
    api::route::{Access, Read, Route, Start, TagsForm},
    app::App,
    auth::{AccessRules, Action, Authority},
    config::Role,
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    conformance::open,
    e2e_client::{CONFIG, Client, INDEX, LAYER, MANIFEST, closing, descriptor, noise, sha256, with},
};

/// A registry in this process, over a directory that lives as long.
struct Registry {
    client: Client,
    app: App,
    _directory: TempDir,
}

impl Registry {
    /// A client of the same registry that may do everything.
    fn admin(&self) -> Client {
        let access = Authority::of_rules(AccessRules::new(Some(Role::Admin), [])).unwrap();
        Client::router(berth::api::router(Arc::clone(&self.app.registry), access, None))
    }
}

/// Opens one in which those who don't say who they are have a role, and what `settings` adds.
async fn registry(anonymous: &str, settings: &[(&str, &str)]) -> Registry {
    let directory = TempDir::new().unwrap();
    let url = format!("file:{}", directory.path().display());
    let own =
        [("BERTH_STORAGE__URL", url.as_str()), ("BERTH_STORAGE__SYNC", "false"), ("BERTH_AUTH__ANONYMOUS", anonymous)];
    let (app, client) = open(&[&own[..], settings].concat()).await;
    Registry { client, app, _directory: directory }
}

/// CVE-2023-2253: the size of a page was allocated before it was known to exist.
#[tokio::test]
async fn cve_2023_2253_a_page_is_no_larger_than_what_there_is() {
    let registry = registry("admin", &[]).await;
    let client = &registry.client;
    let image = client.push_image("a/b", "1", &[noise(1, 10)]).await;
    let subject = sha256(image.to_string().as_bytes());
    for path in ["/v2/_catalog".to_owned(), "/v2/a/b/tags/list".to_owned(), format!("/v2/a/b/referrers/{subject}")] {
        for huge in ["2147483648", "18446744073709551615", "99999999999999999999999999999"] {
            let page = client.get(&format!("{path}?n={huge}")).await.expect(200);
            assert!(page.body.len() < 200, "{page:?}");
        }
        for wrong in ["-1", "abc", "1e9", "+1", "0x10", "%00"] {
            client.get(&format!("{path}?n={wrong}")).await.expect_error(400, "PAGINATION_NUMBER_INVALID");
        }
    }
}

/// CVE-2021-41190: one body that is a manifest to one reader and an image index to another.
#[tokio::test]
async fn cve_2021_41190_a_manifest_is_one_thing_alone() {
    let registry = registry("admin", &[]).await;
    let client = &registry.client;
    client.push_blob("a/b", "config").await;
    client.push_blob("a/b", "layer").await;
    let (config, layers) = (descriptor(CONFIG, b"config"), json!([descriptor(LAYER, b"layer")]));
    let both = json!({"schemaVersion": 2, "config": config, "layers": layers, "manifests": []});
    let plain = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let put = async |media_type: &str, body: String| {
        client.send("PUT", "/v2/a/b/manifests/1", &[("content-type", media_type)], body).await
    };
    for media_type in [MANIFEST, INDEX] {
        put(media_type, both.to_string()).await.expect_error(400, "MANIFEST_INVALID");
        let mut both = both.clone();
        both["mediaType"] = json!(media_type);
        put(media_type, both.to_string()).await.expect_error(400, "MANIFEST_INVALID");
    }
    put(INDEX, plain.to_string()).await.expect_error(400, "MANIFEST_INVALID");
    // A key twice is read by one parser as the first and by another as the last.
    let twice = plain.to_string().replacen('{', "{\"layers\":[],", 1);
    put(MANIFEST, twice).await.expect_error(400, "MANIFEST_INVALID");
    client.get("/v2/a/b/manifests/1").await.expect_error(404, "MANIFEST_UNKNOWN");
    put(MANIFEST, plain.to_string()).await.expect(201);
    let read = client.send("GET", "/v2/a/b/manifests/1", &[("accept", INDEX)], "").await.expect(200);
    assert_eq!(read.header("content-type"), MANIFEST);
}

/// CVE-2026-35172: a cache that knew a blob after it was deleted in the repository.
#[tokio::test]
async fn cve_2026_35172_what_was_deleted_here_is_not_remembered_from_elsewhere() {
    let registry = registry("admin", &[]).await;
    let client = &registry.client;
    let digest = client.push_blob("a/one", "shared").await;
    client.push_blob("a/two", "shared").await;
    client.expect_blob("a/one", &digest, b"shared").await;
    client.delete(&format!("/v2/a/one/blobs/{digest}")).await.expect(202);
    for _ in 0..3 {
        client.expect_blob("a/two", &digest, b"shared").await;
        client.get(&format!("/v2/a/one/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN");
        client.head(&format!("/v2/a/one/blobs/{digest}")).await.expect(404);
    }
    let image = client.push_image("a/one", "1", &[noise(2, 10)]).await;
    let digest = sha256(image.to_string().as_bytes());
    client.push_image("a/two", "1", &[noise(2, 10)]).await;
    client.get(&format!("/v2/a/one/manifests/{digest}")).await.expect(200);
    client.delete(&format!("/v2/a/one/manifests/{digest}")).await.expect(202);
    client.get(&format!("/v2/a/two/manifests/{digest}")).await.expect(200);
    client.get(&format!("/v2/a/one/manifests/{digest}")).await.expect_error(404, "MANIFEST_UNKNOWN");
}

/// Rules by which nobody may see `secret`, and everybody may push to `open/**`.
const SECRET: &[(&str, &str)] = &[
    ("BERTH_AUTH__RULES__OPEN__WHO", "everyone"),
    ("BERTH_AUTH__RULES__OPEN__ROLE", "writer"),
    ("BERTH_AUTH__RULES__OPEN__REPOSITORIES", "open/**"),
];

/// CVE-2024-39897: a blob that anybody had was anybody's, by HEAD and by mount.
#[tokio::test]
async fn cve_2024_39897_a_blob_is_had_by_those_who_may_pull_it() {
    let registry = registry("none", SECRET).await;
    let client = &registry.client;
    let digest = registry.admin().push_blob("secret/app", "the secret").await;
    let unknown = sha256(b"nobody has this");
    let mut answers = Vec::new();
    for digest in [&digest, &unknown] {
        client.head(&format!("/v2/open/app/blobs/{digest}")).await.expect(404);
        client.get(&format!("/v2/open/app/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN");
        client.get(&format!("/v2/secret/app/blobs/{digest}")).await.expect_error(401, "UNAUTHORIZED");
        for from in ["&from=secret/app", "&from=nowhere/app", "&from=open/none", ""] {
            let answer = client.post(&format!("/v2/open/app/blobs/uploads/?mount={digest}{from}")).await.expect(202);
            // All of it is the same, but for the names that are new each time.
            let location = answer.location();
            let shape = (answer.body.clone(), location.len(), answer.header("range").to_owned(), answer.headers.len());
            answers.push(shape);
        }
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    // Who has the bytes may push them, and doesn't learn whether they were there.
    client.push_blob("open/app", "the secret").await;
}

/// CVE-2026-31801: a role that may only create could move a tag.
#[tokio::test]
async fn cve_2026_31801_a_creator_moves_no_tag() {
    let registry = registry("creator", &[]).await;
    let client = &registry.client;
    let first = client.push_image("a/b", "latest", &[noise(3, 10)]).await;
    let digest = sha256(first.to_string().as_bytes());
    client.push_blob("a/b", "other").await;
    let mut other = first.clone();
    other["layers"] = json!([descriptor(LAYER, b"other")]);
    client.push_manifest("a/b", "latest", &other).await.expect_error(403, "DENIED");
    let by_digest = with(&format!("/v2/a/b/manifests/{}", sha256(other.to_string().as_bytes())), "tag=new&tag=latest");
    let pushed = client.send("PUT", &by_digest, &[("content-type", MANIFEST)], other.to_string()).await;
    pushed.expect_error(403, "DENIED");
    client.get("/v2/a/b/manifests/new").await.expect_error(404, "MANIFEST_UNKNOWN");
    client.delete("/v2/a/b/manifests/latest").await.expect_error(401, "UNAUTHORIZED");
    assert_eq!(client.head("/v2/a/b/manifests/latest").await.expect(200).header("docker-content-digest"), digest);
    // Of several at once, each with another manifest, one makes the tag.
    let pushes = (0..8).map(|number| {
        let mut manifest = first.clone();
        manifest["annotations"] = json!({"number": number.to_string()});
        let client = client.clone();
        tokio::spawn(async move { client.push_manifest("a/b", "race", &manifest).await.status })
    });
    let mut made = 0;
    for push in pushes.collect::<Vec<_>>() {
        let status = push.await.unwrap();
        assert!(matches!(status, 201 | 403), "{status}");
        made += usize::from(status == 201);
    }
    assert_eq!(made, 1);
}

/// CVE-2026-32589: an upload's id was good in any repository.
#[tokio::test]
async fn cve_2026_32589_an_upload_belongs_to_its_repository() {
    let registry = registry("admin", &[]).await;
    let client = &registry.client;
    let location = client.start_upload("a/b").await;
    let location = client.send("PATCH", &location, &[], "mine").await.expect(202).location();
    let (path, state) = location.split_once('?').unwrap();
    let id = path.rsplit('/').next().unwrap();
    let forged: Vec<String> = vec![
        format!("/v2/a/c/blobs/uploads/{id}?{state}"),
        format!("/v2/a/blobs/uploads/{id}?{state}"),
        format!("/v2/a/b/blobs/uploads/{}?{state}", &id[..26]),
        format!("/v2/a/b/blobs/uploads/{}A?{state}", &id[..id.len() - 1]).replace("AA?", "BA?"),
    ];
    for forged in forged.iter().filter(|forged| **forged != location) {
        let close = closing(forged, &sha256(b"mine"));
        for (method, path) in [("GET", forged), ("PATCH", forged), ("PUT", &close), ("DELETE", forged)] {
            client.send(method, path, &[], "").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
    client.send("PUT", &closing(&location, &sha256(b"mine")), &[], "").await.expect(201);
}

/// CVE-2026-103667: a blob was served as the page that its pusher said it was.
#[tokio::test]
async fn cve_2026_103667_a_blob_is_no_page() {
    let registry = registry("admin", &[]).await;
    let client = &registry.client;
    let page = Bytes::from_static(b"<script>alert(document.domain)</script>");
    let digest = sha256(&page);
    let post = format!("/v2/a/b/blobs/uploads/?digest={digest}");
    client.send("POST", &post, &[("content-type", "text/html")], page).await.expect(201);
    for range in ["", "bytes=0-6", "bytes=0-1,3-4"] {
        let headers: &[(&str, &str)] = if range.is_empty() { &[] } else { &[("range", range)] };
        let blob = client.send("GET", &format!("/v2/a/b/blobs/{digest}"), headers, "").await;
        let media_type = blob.header("content-type");
        assert!(media_type == "application/octet-stream" || media_type.starts_with("multipart/byteranges"), "{blob:?}");
        assert_eq!(blob.header("x-content-type-options"), "nosniff");
        assert!(blob.header("content-security-policy").contains("sandbox"), "{blob:?}");
    }
    let image = json!({"schemaVersion": 2, "mediaType": "text/html", "config": {}, "layers": []});
    let pushed = client.send("PUT", "/v2/a/b/manifests/1", &[("content-type", "text/html")], image.to_string()).await;
    pushed.expect_error(400, "MANIFEST_INVALID");
}

/// CVE-2026-42018: what decided about access and what served read the same path differently.
#[tokio::test]
async fn cve_2026_42018_a_path_means_one_thing() {
    let registry = registry("none", SECRET).await;
    let client = &registry.client;
    registry.admin().push_image("secret/app", "1", &[noise(4, 10)]).await;
    for path in [
        "/v2/secret/app/manifests/1",
        "/v2/secret/app/manifests/1/",
        "/v2/secret/app//manifests/1",
        "/v2//secret/app/manifests/1",
        "//v2/secret/app/manifests/1",
        "/v2/open/../secret/app/manifests/1",
        "/v2/open/%2e%2e/secret/app/manifests/1",
        "/v2/open/..%2fsecret/app/manifests/1",
        "/v2/open%2f..%2fsecret/app/manifests/1",
        "/v2/secret%2fapp/manifests/1",
        "/v2/secret/app/manifests%2f1",
        "/v2/./secret/app/manifests/1",
        "/v2/secret/app/manifests/1;x",
        "/v2/secret/app/manifests/1%00",
        "/V2/secret/app/manifests/1",
        "/v2/Secret/app/manifests/1",
        "/v2/secret/app/tags/list/",
        "/v2/secret/app/tags/list",
    ] {
        for method in ["GET", "HEAD"] {
            let answer = client.send(method, path, &[], "").await;
            assert!(matches!(answer.status, 400 | 401 | 404), "{method} {path}: {answer:?}");
            assert_eq!(answer.header("docker-content-digest"), "", "{method} {path}");
        }
    }
    let catalog = client.get("/v2/_catalog").await.expect(200).json();
    assert_eq!(catalog["repositories"], json!([]), "what may not be pulled is not listed");
}

/// A request for each route, and one for each way to ask for it that has a variant of its own. The match has
/// no wildcard: a new route doesn't compile until it is here.
fn requests() -> Vec<(Method, String)> {
    let digest = sha256(b"x");
    let id = "01M7YX49N94SS0HRXV4N2DEZCX.AAAAAAAAAAAAAAAAAAAAAA";
    let list = [
        ("GET", "/v2/".to_owned()),
        ("GET", "/v2/_catalog".to_owned()),
        ("GET", "/v2/a/b/tags/list".to_owned()),
        ("GET", "/v2/a/b/tags/list?gcr=true".to_owned()),
        ("GET", "/v2/a/b/manifests/1".to_owned()),
        ("HEAD", "/v2/a/b/manifests/1".to_owned()),
        ("PUT", "/v2/a/b/manifests/1".to_owned()),
        ("DELETE", "/v2/a/b/manifests/1".to_owned()),
        ("GET", format!("/v2/a/b/blobs/{digest}")),
        ("HEAD", format!("/v2/a/b/blobs/{digest}")),
        ("DELETE", format!("/v2/a/b/blobs/{digest}")),
        ("POST", "/v2/a/b/blobs/uploads/".to_owned()),
        ("POST", format!("/v2/a/b/blobs/uploads/?digest={digest}")),
        ("POST", format!("/v2/a/b/blobs/uploads/?mount={digest}&from=c/d")),
        ("GET", format!("/v2/a/b/blobs/uploads/{id}")),
        ("PATCH", format!("/v2/a/b/blobs/uploads/{id}")),
        ("PUT", format!("/v2/a/b/blobs/uploads/{id}?digest={digest}")),
        ("DELETE", format!("/v2/a/b/blobs/uploads/{id}")),
        ("GET", format!("/v2/a/b/referrers/{digest}")),
    ];
    list.into_iter().map(|(method, path)| (method.parse().unwrap(), path)).collect()
}

/// The place of a route in the list of all of them.
fn place(route: &Route) -> usize {
    match route {
        Route::Ping => 0,
        Route::Catalog { .. } => 1,
        Route::Tags { form: TagsForm::Plain, .. } => 2,
        Route::Tags { form: TagsForm::Gcr, .. } => 3,
        Route::ReadManifest { read: Read::Get, .. } => 4,
        Route::ReadManifest { read: Read::Head, .. } => 5,
        Route::PushManifest { .. } => 6,
        Route::DeleteManifest { .. } => 7,
        Route::ReadBlob { read: Read::Get, .. } => 8,
        Route::ReadBlob { read: Read::Head, .. } => 9,
        Route::DeleteBlob { .. } => 10,
        Route::StartUpload { start: Start::Session(_), .. } => 11,
        Route::StartUpload { start: Start::Whole(_), .. } => 12,
        Route::StartUpload { start: Start::Mount { .. }, .. } => 13,
        Route::UploadStatus { .. } => 14,
        Route::Append { .. } => 15,
        Route::Finish { .. } => 16,
        Route::Cancel { .. } => 17,
        Route::Referrers { .. } => 18,
    }
}

fn parsed(method: &Method, path: &str) -> Route {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Route::parse(method, path, query, &HeaderMap::new()).unwrap()
}

/// CVE-2020-29662: one route that the check of access had forgotten.
#[tokio::test]
async fn cve_2020_29662_no_route_is_open_to_those_without_a_right() {
    let registry = registry("none", &[]).await;
    for (expected, (method, path)) in requests().into_iter().enumerate() {
        assert_eq!(place(&parsed(&method, &path)), expected, "{method} {path}");
        let answer = registry.client.send(method.as_str(), &path, &[], "").await.expect(401);
        assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{answer:?}");
        if method != Method::HEAD {
            answer.expect_error(401, "UNAUTHORIZED");
        }
    }
}

/// The same with each right that is one too few.
#[tokio::test]
async fn no_route_is_open_to_those_with_a_lesser_right() {
    for (role, may) in [("reader", &[Action::Pull][..]), ("creator", &[Action::Pull, Action::Push])] {
        let registry = registry(role, &[]).await;
        for (method, path) in requests() {
            let allowed = match parsed(&method, &path).access() {
                Access::Any | Access::Catalog => true,
                Access::Repository(_, action) => may.contains(&action),
            };
            let status = registry.client.send(method.as_str(), &path, &[], "").await.status;
            assert_eq!(status != 401, allowed, "{role}: {method} {path}: {status}");
        }
    }
}
