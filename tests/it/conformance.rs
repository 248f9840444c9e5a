//! What the distribution spec asks of a registry, group by group as its conformance suite tests it, in our
//! own words: through the router in this process, over the embedded index and a directory, and over an S3 server
//! with Redis and with the embedded index, where the bytes of blobs are then fetched.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use berth::{
    app::App,
    config::{Config, LoadArgs},
    reconcile,
    registry::OtherIndex,
};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    e2e_client::{Client, INDEX, LAYER, MANIFEST, closing, descriptor, image, noise, sha256, sha512, with},
    redis_server, s3_server,
};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const R: &str = "suite/main";

/// A registry in this process, without a socket.
pub(crate) async fn open(settings: &[(&str, impl AsRef<str>)]) -> (App, Client) {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), value.as_ref().to_owned()));
    let loaded = Config::load(LoadArgs::default(), settings).unwrap();
    let app = App::open(loaded.config, OtherIndex::Refuse).await.unwrap();
    // What the background does at a start: the catalog waits for it.
    reconcile::walk(&app.registry, |_| {}).await.unwrap();
    let client = Client::router(app.router().unwrap());
    (app, client)
}

/// Runs the same checks over each pair of store and index that is served.
async fn over_all(check: impl AsyncFn(Client)) {
    let directory = TempDir::new().unwrap();
    let url = format!("file:{}", directory.path().display());
    let (_app, client) = open(&[("BERTH_STORAGE__URL", url.as_str()), ("BERTH_STORAGE__SYNC", "false")]).await;
    check(client).await;
    let (shared, redis) = (s3_server::start().await, redis_server::start().await);
    let settings = [shared.settings(), vec![("BERTH_INDEX__URL", redis.url())]].concat();
    let (_app, client) = open(&settings).await;
    check(client).await;
    let (alone, index) = (s3_server::start().await, TempDir::new().unwrap());
    let index = format!("embedded:{}", index.path().display());
    let settings = [alone.settings(), vec![("BERTH_INDEX__URL", index), ("BERTH_STORAGE__SYNC", "false".to_owned())]];
    let (_app, client) = open(&settings.concat()).await;
    check(client).await;
}

fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{R}/manifests/{reference}")
}

/// A blob that was just pushed: HEAD and GET tell it, DELETE ends it.
async fn has_and_deletes(client: &Client, repository: &str, digest: &str, bytes: &[u8]) {
    let path = blob_path(repository, digest);
    let head = client.head(&path).await.expect(200);
    assert_eq!(head.header("content-length"), bytes.len().to_string());
    assert_eq!(head.header("docker-content-digest"), digest);
    assert!(head.body.is_empty());
    client.expect_blob(repository, digest, bytes).await;
    client.delete(&path).await.expect(202);
    client.get(&path).await.expect_error(404, "BLOB_UNKNOWN");
    client.head(&path).await.expect(404);
    client.delete(&path).await.expect_error(404, "BLOB_UNKNOWN");
}

/// A blob's digest by each algorithm.
fn digests(bytes: &[u8]) -> [String; 2] {
    [sha256(bytes), sha512(bytes)]
}

#[tokio::test]
async fn ping() {
    over_all(async |client| {
        for path in ["/v2", "/v2/"] {
            client.get(path).await.expect(200);
        }
    })
    .await;
}

#[tokio::test]
async fn empty_and_missing() {
    over_all(async |client| {
        client.get(&format!("/v2/{R}/tags/list")).await.expect_error(404, "NAME_UNKNOWN");
        let referrers = client.get(&format!("/v2/{R}/referrers/{}", sha256(b"x"))).await.expect(200);
        assert_eq!(referrers.header("content-type"), INDEX);
        assert_eq!(referrers.json()["manifests"], json!([]));
        for reference in ["latest", &sha256(b"x"), &sha512(b"x")] {
            client.get(&manifest_path(reference)).await.expect_error(404, "MANIFEST_UNKNOWN");
            client.head(&manifest_path(reference)).await.expect(404);
        }
        for digest in digests(b"x") {
            client.get(&blob_path(R, &digest)).await.expect_error(404, "BLOB_UNKNOWN");
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_digest_format() {
    over_all(async |client| {
        for digest in ["sha256:abc", "sha256:", "baddigeststring:x", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"] {
            let close = closing(&client.start_upload(R).await, digest);
            client.send("PUT", &close, &[], "x").await.expect_error(400, "DIGEST_INVALID");
            client.get(&manifest_path(digest)).await.expect_error(404, "MANIFEST_UNKNOWN");
            client.send("PUT", &manifest_path(digest), &[], "{}").await.expect_error(400, "DIGEST_INVALID");
            client.delete(&manifest_path(digest)).await.expect_error(400, "DIGEST_INVALID");
        }
    })
    .await;
}

#[tokio::test]
async fn blob_post_only() {
    over_all(async |client| {
        let bytes = noise(1, 3000);
        for digest in digests(&bytes) {
            let path = format!("/v2/{R}/blobs/uploads/?digest={digest}");
            let made = client.send("POST", &path, &[], bytes.clone()).await.expect(201);
            assert_eq!(made.location(), blob_path(R, &digest));
            assert_eq!(made.header("docker-content-digest"), digest);
            has_and_deletes(&client, R, &digest, &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn blob_post_put() {
    over_all(async |client| {
        for bytes in [noise(2, 3000), Bytes::new(), Bytes::from_static(b"{}")] {
            for digest in digests(&bytes) {
                let close = closing(&client.start_upload(R).await, &digest);
                let made = client.send("PUT", &close, &[], bytes.clone()).await.expect(201);
                assert_eq!(made.location(), blob_path(R, &digest));
                has_and_deletes(&client, R, &digest, &bytes).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn blob_chunked() {
    over_all(async |client| {
        let bytes = noise(3, 3000);
        for (digest, algorithm) in digests(&bytes).into_iter().zip(["", "?digest-algorithm=sha512"]) {
            // One chunk; several; and the last of them in the closing request.
            for (ends, in_put) in [(&[3000][..], 0), (&[1000, 2000, 3000], 0), (&[1000, 2000], 1000)] {
                let start = format!("/v2/{R}/blobs/uploads/{algorithm}");
                let mut location = client.post(&start).await.expect(202).location();
                let mut at = 0;
                for &end in ends {
                    let range = format!("{at}-{}", end - 1);
                    let chunk = bytes.slice(at..end);
                    let patched =
                        client.send("PATCH", &location, &[("content-range", &range)], chunk).await.expect(202);
                    assert_eq!(patched.header("range"), format!("0-{}", end - 1));
                    location = patched.location();
                    let status = client.get(&location).await.expect(204);
                    assert_eq!(status.header("range"), format!("0-{}", end - 1));
                    location = status.location();
                    at = end;
                }
                let range = format!("{at}-{}", 2999);
                let headers: &[(&str, &str)] = if in_put > 0 { &[("content-range", &range)] } else { &[] };
                client.send("PUT", &closing(&location, &digest), headers, bytes.slice(at..)).await.expect(201);
                has_and_deletes(&client, R, &digest, &bytes).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn blob_chunked_out_of_order() {
    over_all(async |client| {
        let bytes = noise(4, 3000);
        for digest in digests(&bytes) {
            let location = client.start_upload(R).await;
            let range = |text: &'static str| [("content-range", text)];
            client
                .send("PATCH", &location, &range("1000-1999"), bytes.slice(1000..2000))
                .await
                .expect_error(416, "RANGE_INVALID");
            let location =
                client.send("PATCH", &location, &range("0-999"), bytes.slice(..1000)).await.expect(202).location();
            for wrong in ["2000-2999", "0-999"] {
                let refused = client.send("PATCH", &location, &[("content-range", wrong)], bytes.slice(2000..)).await;
                refused.expect_error(416, "RANGE_INVALID");
            }
            let close = closing(&location, &digest);
            client
                .send("PUT", &close, &range("2000-2999"), bytes.slice(2000..))
                .await
                .expect_error(416, "RANGE_INVALID");
            let status = client.get(&location).await.expect(204);
            assert_eq!(status.header("range"), "0-999");
            let close = closing(&status.location(), &digest);
            client.send("PUT", &close, &range("1000-2999"), bytes.slice(1000..)).await.expect(201);
            has_and_deletes(&client, R, &digest, &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn blob_stream() {
    over_all(async |client| {
        let bytes = noise(5, 300_000);
        for digest in digests(&bytes) {
            let pieces: Vec<Bytes> = bytes.chunks(7000).map(Bytes::copy_from_slice).collect();
            let location = client.start_upload(R).await;
            let location = client.stream("PATCH", &location, &[], pieces.into_iter()).await.expect(202).location();
            client.send("PUT", &closing(&location, &digest), &[], "").await.expect(201);
            has_and_deletes(&client, R, &digest, &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn blob_mount() {
    over_all(async |client| {
        let bytes = noise(6, 3000);
        for digest in digests(&bytes) {
            let post = format!("/v2/{R}/blobs/uploads/?digest={digest}");
            client.send("POST", &post, &[], bytes.clone()).await.expect(201);
            let mount = |from: &str| format!("/v2/suite/other/blobs/uploads/?mount={digest}{from}");
            let made = client.post(&mount(&format!("&from={R}"))).await.expect(201);
            assert_eq!(made.location(), blob_path("suite/other", &digest));
            has_and_deletes(&client, "suite/other", &digest, &bytes).await;
            // Nowhere to look, or not there: an upload like any other.
            for from in ["", "&from=suite/nowhere", "&from=Not%20a%20name"] {
                let location = client.post(&mount(from)).await.expect(202).location();
                client.send("PUT", &closing(&location, &digest), &[], bytes.clone()).await.expect(201);
                has_and_deletes(&client, "suite/other", &digest, &bytes).await;
            }
            has_and_deletes(&client, R, &digest, &bytes).await;
        }
    })
    .await;
}

#[tokio::test]
async fn blob_upload_cancel() {
    over_all(async |client| {
        for with_bytes in [false, true] {
            let mut location = client.start_upload(R).await;
            if with_bytes {
                location = client.send("PATCH", &location, &[], "bytes").await.expect(202).location();
            }
            client.delete(&location).await.expect(204);
            client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
            let close = closing(&location, &sha256(b"bytes"));
            client.send("PUT", &close, &[], "bytes").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    })
    .await;
}

#[tokio::test]
async fn blob_range_requests() {
    over_all(async |client| {
        let bytes = noise(7, 4000);
        let digest = client.push_blob(R, bytes.clone()).await;
        let path = blob_path(R, &digest);
        for (range, from, to) in
            [("500-1499", 500, 1500), ("500-", 500, 4000), ("-500", 3500, 4000), ("2000-5000", 2000, 4000)]
        {
            let part = client.fetch(&path, &[("range", &format!("bytes={range}"))]).await.expect(206);
            assert_eq!(part.header("content-range"), format!("bytes {from}-{}/4000", to - 1));
            assert_eq!(part.header("content-length"), (to - from).to_string());
            assert!(part.body == bytes[from..to], "{range}");
        }
        for nothing in ["bytes=5000-10000", "bytes=500-0"] {
            client.send("GET", &path, &[("range", nothing)], "").await.expect(416);
        }
    })
    .await;
}

#[tokio::test]
async fn blob_bad_digest() {
    over_all(async |client| {
        let bytes = noise(8, 3000);
        for digest in digests(b"something else") {
            let post = format!("/v2/{R}/blobs/uploads/?digest={digest}");
            client.send("POST", &post, &[], bytes.clone()).await.expect_error(400, "DIGEST_INVALID");
            let close = closing(&client.start_upload(R).await, &digest);
            client.send("PUT", &close, &[], bytes.clone()).await.expect_error(400, "DIGEST_INVALID");
            for last in [0, 1000] {
                let location = client.start_upload(R).await;
                let chunk = bytes.slice(..3000 - last);
                let location = client.send("PATCH", &location, &[], chunk).await.expect(202).location();
                let close = closing(&location, &digest);
                let answer = client.send("PUT", &close, &[], bytes.slice(3000 - last..)).await;
                answer.expect_error(400, "DIGEST_INVALID");
                client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
            }
            client.get(&blob_path(R, &digest)).await.expect_error(404, "BLOB_UNKNOWN");
        }
    })
    .await;
}

/// Pushes a manifest by digest and by tag, reads it in each way, lists its tag, and deletes both.
async fn whole_life(client: &Client, tag: &str, manifest: &Value) {
    let media_type = manifest["mediaType"].as_str().unwrap();
    let bytes = Bytes::from(manifest.to_string());
    for digest in digests(&bytes) {
        let by_digest =
            client.send("PUT", &manifest_path(&digest), &[("content-type", media_type)], bytes.clone()).await;
        let pushed = by_digest.expect(201);
        assert_eq!(pushed.header("docker-content-digest"), digest);
        assert_eq!(pushed.location(), manifest_path(&digest));
        let subject = manifest["subject"]["digest"].as_str().unwrap_or("");
        assert_eq!(pushed.header("oci-subject"), subject);
        is_read(client, &digest, &digest, media_type, &bytes).await;
    }
    let digest = sha256(&bytes);
    client.push_manifest(R, tag, manifest).await.expect(201);
    is_read(client, tag, &digest, media_type, &bytes).await;
    let tags = client.get(&format!("/v2/{R}/tags/list")).await.expect(200).json();
    assert_eq!(tags, json!({"name": R, "tags": [tag]}));
    client.delete(&manifest_path(tag)).await.expect(202);
    client.get(&manifest_path(tag)).await.expect_error(404, "MANIFEST_UNKNOWN");
    client.get(&manifest_path(&digest)).await.expect(200);
    client.push_manifest(R, tag, manifest).await.expect(201);
    for digest in digests(&bytes) {
        client.delete(&manifest_path(&digest)).await.expect(202);
        client.get(&manifest_path(&digest)).await.expect_error(404, "MANIFEST_UNKNOWN");
        client.head(&manifest_path(&digest)).await.expect(404);
    }
    client.get(&manifest_path(tag)).await.expect_error(404, "MANIFEST_UNKNOWN");
}

async fn is_read(client: &Client, reference: &str, digest: &str, media_type: &str, bytes: &[u8]) {
    let head = client.head(&manifest_path(reference)).await.expect(200);
    let get = client.send("GET", &manifest_path(reference), &[("accept", media_type)], "").await.expect(200);
    for answer in [&head, &get] {
        assert_eq!(answer.header("content-type"), media_type);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
    }
    assert!(head.body.is_empty() && get.body == bytes);
}

/// The manifest of an image whose blobs are pushed.
async fn pushed_image(client: &Client, seed: u64) -> Value {
    let (config, layers) = (noise(seed, 200), [noise(seed + 100, 2000), noise(seed + 200, 3000)]);
    client.push_blob(R, config.clone()).await;
    for layer in &layers {
        client.push_blob(R, layer.clone()).await;
    }
    image(&config, &layers)
}

fn edited(mut manifest: Value, edit: impl FnOnce(&mut Value)) -> Value {
    edit(&mut manifest);
    manifest
}

fn describe(manifest: &Value) -> Value {
    descriptor(manifest["mediaType"].as_str().unwrap(), manifest.to_string().as_bytes())
}

fn index_of(manifests: &[&Value]) -> Value {
    let manifests: Vec<Value> = manifests.iter().map(|manifest| describe(manifest)).collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

async fn push_by_digest(client: &Client, manifest: &Value) {
    client.push_manifest(R, &sha256(manifest.to_string().as_bytes()), manifest).await.expect(201);
}

#[tokio::test]
async fn images_of_every_shape() {
    over_all(async |client| {
        let plain = pushed_image(&client, 10).await;
        whole_life(&client, "image", &plain).await;
        let no_layers = edited(plain.clone(), |image| image["layers"] = json!([]));
        whole_life(&client, "no-layers", &no_layers).await;
        let custom = edited(plain.clone(), |image| image["org.example.unknown"] = json!({"kept": [1, 2.5, null]}));
        whole_life(&client, "custom-fields", &custom).await;
        let data = edited(plain.clone(), |image| {
            let empty = client_empty();
            image["config"] = json!({"mediaType": EMPTY, "digest": sha256(&empty), "size": 2, "data": "e30="});
        });
        client.push_blob(R, client_empty()).await;
        whole_life(&client, "data-field", &data).await;
        let foreign = edited(plain.clone(), |image| {
            let never_pushed = json!({
                "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "digest": sha256(b"never pushed"), "size": 12, "urls": ["https://store.example.com/layer"],
            });
            image["layers"].as_array_mut().unwrap().push(never_pushed);
        });
        whole_life(&client, "non-distributable-layers", &foreign).await;
        let large = edited(plain, |image| {
            image["annotations"] = json!({"org.example.large": "x".repeat(3 << 20)});
        });
        whole_life(&client, "large-manifest", &large).await;
    })
    .await;
}

fn client_empty() -> Bytes {
    Bytes::from_static(b"{}")
}

#[tokio::test]
async fn image_indexes_of_every_shape() {
    over_all(async |client| {
        let (one, two) = (pushed_image(&client, 20).await, pushed_image(&client, 21).await);
        push_by_digest(&client, &one).await;
        push_by_digest(&client, &two).await;
        let index = index_of(&[&one, &two]);
        whole_life(&client, "index", &index).await;
        push_by_digest(&client, &index).await;
        whole_life(&client, "nested-index", &index_of(&[&index])).await;
        whole_life(&client, "empty-index", &index_of(&[])).await;
        let missing = edited(one.clone(), |image| image["annotations"] = json!({"never": "pushed"}));
        whole_life(&client, "sparse-index", &index_of(&[&one, &missing])).await;
        let artifact = edited(index_of(&[&one]), |index| index["artifactType"] = json!("application/vnd.example"));
        whole_life(&client, "artifact-index", &artifact).await;
    })
    .await;
}

#[tokio::test]
async fn artifacts_of_every_shape() {
    over_all(async |client| {
        client.push_blob(R, client_empty()).await;
        client.push_blob(R, "content").await;
        let empty = json!({"mediaType": EMPTY, "digest": sha256(b"{}"), "size": 2});
        let artifact = |layers: Value| {
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example",
                   "config": empty, "layers": layers})
        };
        whole_life(&client, "artifact", &artifact(json!([descriptor(LAYER, b"content")]))).await;
        whole_life(&client, "artifact-without-layers", &artifact(json!([empty]))).await;
        let subject = pushed_image(&client, 30).await;
        let missing = edited(artifact(json!([empty])), |artifact| artifact["subject"] = describe(&subject));
        whole_life(&client, "missing-subject", &missing).await;
    })
    .await;
}

#[tokio::test]
async fn a_manifest_with_a_wrong_digest_or_a_missing_blob_is_refused() {
    over_all(async |client| {
        let image = pushed_image(&client, 40).await;
        let headers = [("content-type", MANIFEST)];
        for digest in digests(b"something else") {
            let answer = client.send("PUT", &manifest_path(&digest), &headers, image.to_string()).await;
            answer.expect_error(400, "DIGEST_INVALID");
            client.get(&manifest_path(&digest)).await.expect_error(404, "MANIFEST_UNKNOWN");
        }
        let missing = edited(image, |image| image["layers"][0] = descriptor(LAYER, b"never pushed"));
        client.push_manifest(R, "1", &missing).await.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
        client.get(&manifest_path("1")).await.expect_error(404, "MANIFEST_UNKNOWN");
    })
    .await;
}

#[tokio::test]
async fn several_tags_in_one_push() {
    over_all(async |client| {
        let image = pushed_image(&client, 50).await;
        let digest = sha256(image.to_string().as_bytes());
        let tags: Vec<String> = (10..25).map(|number| format!("t{number}")).collect();
        let query: String = tags.iter().map(|tag| format!("&tag={tag}")).collect();
        let path = with(&manifest_path(&digest), query.trim_start_matches('&'));
        let pushed = client.send("PUT", &path, &[("content-type", MANIFEST)], image.to_string()).await.expect(201);
        let named: Vec<_> = pushed.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
        assert_eq!(named, tags);
        for tag in &tags {
            is_read(&client, tag, &digest, MANIFEST, image.to_string().as_bytes()).await;
        }
        let bad = with(&manifest_path(&digest), "tag=good&tag=-bad");
        client
            .send("PUT", &bad, &[("content-type", MANIFEST)], image.to_string())
            .await
            .expect_error(400, "TAG_INVALID");
        client.get(&manifest_path("good")).await.expect_error(404, "MANIFEST_UNKNOWN");
        let many: String = (0..101).map(|number| format!("&tag=m{number}")).collect();
        let path = with(&manifest_path(&digest), many.trim_start_matches('&'));
        client.send("PUT", &path, &[("content-type", MANIFEST)], image.to_string()).await.expect(414);
        client.delete(&manifest_path(&digest)).await.expect(202);
        for tag in &tags {
            client.get(&manifest_path(tag)).await.expect_error(404, "MANIFEST_UNKNOWN");
        }
    })
    .await;
}

#[tokio::test]
async fn tag_lists_come_in_order_and_in_pages() {
    over_all(async |client| {
        let image = pushed_image(&client, 60).await;
        for tag in ["b", "B", "a10", "a2", "_x", "0"] {
            client.push_manifest(R, tag, &image).await.expect(201);
        }
        let mut path = format!("/v2/{R}/tags/list?n=4");
        let mut pages = Vec::new();
        loop {
            let page = client.get(&path).await.expect(200);
            pages.push(page.json()["tags"].clone());
            let Some(next) = page.header("link").strip_prefix('<') else { break };
            assert!(next.ends_with(">; rel=\"next\""), "{next}");
            path = next.split('>').next().unwrap().to_owned();
        }
        assert_eq!(pages, [json!(["0", "B", "_x", "a10"]), json!(["a2", "b"])]);
        let after = client.get(&format!("/v2/{R}/tags/list?last=a10")).await.expect(200);
        assert_eq!(after.json()["tags"], json!(["a2", "b"]));
        assert_eq!(client.get(&format!("/v2/{R}/tags/list?n=0")).await.expect(200).json()["tags"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn referrers_of_a_subject() {
    over_all(async |client| {
        let subject = pushed_image(&client, 70).await;
        let subject_digest = sha256(subject.to_string().as_bytes());
        client.push_blob(R, client_empty()).await;
        let empty = json!({"mediaType": EMPTY, "digest": sha256(b"{}"), "size": 2});
        let mut digests = Vec::new();
        for (kind, number) in [("application/a", 1), ("application/a", 2), ("application/b", 3)] {
            let artifact = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty,
                "layers": [empty], "subject": describe(&subject), "annotations": {"number": number.to_string()}});
            push_by_digest(&client, &artifact).await;
            digests.push((kind, sha256(artifact.to_string().as_bytes())));
        }
        let index = edited(index_of(&[]), |index| {
            index["subject"] = describe(&subject);
            index["artifactType"] = json!("application/b");
        });
        push_by_digest(&client, &index).await;
        digests.push(("application/b", sha256(index.to_string().as_bytes())));
        // The subject may come last.
        push_by_digest(&client, &subject).await;
        let path = format!("/v2/{R}/referrers/{subject_digest}");
        let all = client.get(&path).await.expect(200);
        assert_eq!(all.header("content-type"), INDEX);
        assert_eq!(listed(&all.json()), sorted(digests.iter().map(|(_, digest)| digest.clone())));
        assert!(all.json()["manifests"][0]["artifactType"].is_string());
        let some = client.get(&format!("{path}?artifactType=application/b")).await.expect(200);
        assert_eq!(some.header("oci-filters-applied"), "artifactType");
        let of_b = digests.iter().filter(|(kind, _)| *kind == "application/b").map(|(_, digest)| digest.clone());
        assert_eq!(listed(&some.json()), sorted(of_b));
        client.delete(&manifest_path(&digests[0].1)).await.expect(202);
        assert_eq!(
            listed(&client.get(&path).await.json()),
            sorted(digests[1..].iter().map(|(_, digest)| digest.clone()))
        );
        client.delete(&manifest_path(&subject_digest)).await.expect(202);
        assert_eq!(listed(&client.get(&path).await.expect(200).json()).len(), 3);
    })
    .await;
}

fn listed(index: &Value) -> Vec<String> {
    let digest = |manifest: &Value| manifest["digest"].as_str().unwrap().to_owned();
    sorted(index["manifests"].as_array().unwrap().iter().map(digest))
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<String> = texts.collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn what_was_deleted_is_gone_for_the_next_request() {
    over_all(async |client| {
        let image = pushed_image(&client, 80).await;
        let digest = sha256(image.to_string().as_bytes());
        client.push_manifest(R, "1", &image).await.expect(201);
        client.push_manifest(R, "2", &image).await.expect(201);
        let layer = image["layers"][0]["digest"].as_str().unwrap();
        client.delete(&blob_path(R, layer)).await.expect_error(403, "DENIED");
        client.delete(&manifest_path(&digest)).await.expect(202);
        for reference in ["1", "2", digest.as_str()] {
            client.head(&manifest_path(reference)).await.expect(404);
        }
        client.delete(&manifest_path(&digest)).await.expect_error(404, "MANIFEST_UNKNOWN");
        client.delete(&blob_path(R, layer)).await.expect(202);
        client.head(&blob_path(R, layer)).await.expect(404);
        // It may come back, and must be pushed for that.
        client.push_manifest(R, "1", &image).await.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
        client.push_blob(R, noise(180, 2000)).await;
        client.push_manifest(R, "1", &image).await.expect(201);
    })
    .await;
}
