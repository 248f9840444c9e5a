//! `berth index` and `berth inspect`: the real binary, over what a real server left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};

use berth::storage::{Key, Store, s3::S3};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{redis_server, s3_server};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Settings as environment variables.
type Settings = BTreeMap<&'static str, String>;

/// The binary with these settings and no others.
fn berth(settings: &Settings, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(arguments).env_clear().envs(settings).stdin(Stdio::null());
    command
}

/// Runs a command to its end.
fn run(settings: &Settings, arguments: &[&str]) -> Output {
    berth(settings, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What a command that succeeds prints as JSON.
fn json_of(settings: &Settings, arguments: &[&str]) -> Value {
    let output = run(settings, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A running `berth serve`; it is told to stop when this is dropped.
struct Server {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Server {
    /// Starts it on a free port, and returns once it listens.
    fn start(settings: &Settings) -> Self {
        let mut settings = settings.clone();
        settings.insert("BERTH_SERVER__LISTEN", "127.0.0.1:0".to_owned());
        settings.insert("BERTH_ADMIN__LISTEN", "127.0.0.1:0".to_owned());
        settings.insert("BERTH_LOG__FORMAT", "json".to_owned());
        let mut child = berth(&settings, &["serve"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let address = loop {
            let Some(line) = lines.next() else { panic!("berth ended: {said:#?}") };
            let line = line.unwrap();
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "listening" && event["role"] == "public" {
                break event["address"].as_str().unwrap().to_owned();
            }
            said.push(line);
        };
        // Read on, so that a full pipe never holds the server up.
        thread::spawn(move || lines.for_each(drop));
        Self { child, url: format!("http://{address}"), http: reqwest::Client::new() }
    }

    /// Pushes a blob and a manifest that needs it, under a tag; the digests of both.
    async fn push(&self, repository: &str, tag: &str, layer: &[u8]) -> (String, String) {
        let blob = digest(layer);
        let start = self.http.post(format!("{}/v2/{repository}/blobs/uploads/", self.url)).send().await.unwrap();
        assert_eq!(start.status(), 202);
        let location = start.headers()["location"].to_str().unwrap();
        let location = if location.starts_with('/') { format!("{}{location}", self.url) } else { location.to_owned() };
        let between = if location.contains('?') { '&' } else { '?' };
        let put = self.http.put(format!("{location}{between}digest={blob}")).body(layer.to_vec()).send().await.unwrap();
        assert_eq!(put.status(), 201);
        let described = |media_type: &str| json!({ "mediaType": media_type, "digest": blob, "size": layer.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described("application/vnd.oci.image.config.v1+json"),
            "layers": [described("application/vnd.oci.image.layer.v1.tar")],
        })
        .to_string();
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.url);
        let name = digest(manifest.as_bytes());
        let put = self.http.put(url).header("content-type", MANIFEST).body(manifest).send().await.unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
        (blob, name)
    }

    /// The status of a GET, and the bytes.
    async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
    }

    /// Tells it to stop, and waits until it has.
    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.end();
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn settings(directory: &Path) -> Settings {
    BTreeMap::from([("BERTH_STORAGE__URL", format!("file:{}", directory.display()))])
}

/// A directory with one image in it, whose server has stopped.
struct Prepared {
    directory: TempDir,
    settings: Settings,
    blob: String,
    manifest: String,
}

const LAYER: &[u8] = b"the bytes of a layer";

async fn prepared() -> Prepared {
    prepared_with(&[]).await
}

async fn prepared_with(more: &[(&'static str, &str)]) -> Prepared {
    let directory = TempDir::new().unwrap();
    let mut settings = settings(directory.path());
    settings.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
    let server = Server::start(&settings);
    let (blob, manifest) = server.push("team/app", "v1", LAYER).await;
    server.push("team/app", "v2", b"another layer").await;
    server.push("other", "v1", LAYER).await;
    server.stop();
    Prepared { directory, settings, blob, manifest }
}

impl Prepared {
    async fn assert_is_all_there(&self) {
        let server = Server::start(&self.settings);
        for path in ["team/app/manifests/v1".to_owned(), format!("team/app/manifests/{}", self.manifest)] {
            let (status, bytes) = server.get(&format!("/v2/{path}")).await;
            assert_eq!((status, digest(&bytes)), (200, self.manifest.clone()), "{path}");
        }
        for repository in ["team/app", "other"] {
            let blob = server.get(&format!("/v2/{repository}/blobs/{}", self.blob)).await;
            assert_eq!(blob, (200, LAYER.to_vec()));
        }
        let (_, tags) = server.get("/v2/team/app/tags/list").await;
        assert_eq!(serde_json::from_slice::<Value>(&tags).unwrap()["tags"], json!(["v1", "v2"]));
        server.stop();
    }

    fn lose_index(&self) {
        std::fs::remove_dir_all(self.directory.path().join(".index")).unwrap();
    }

    /// The only file under a directory of the bucket whose path holds `part`.
    fn file(&self, under: &str, part: &str) -> std::path::PathBuf {
        let found: Vec<_> = files(&self.directory.path().join(under)).into_keys().collect();
        let found: Vec<_> = found.into_iter().filter(|path| path.contains(part)).collect();
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        found[0].clone().into()
    }
}

/// All files under a directory, and their bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// All files of the bucket: what isn't hidden at the top.
fn bucket(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let hidden = format!("{}/.", directory.display());
    files(directory).into_iter().filter(|(path, _)| !path.starts_with(&hidden)).collect()
}

#[tokio::test]
async fn a_rebuild_brings_everything_back() {
    let prepared = prepared().await;
    prepared.lose_index();
    let status = run(&prepared.settings, &["index", "status"]);
    assert!(stdout(&status).contains("there is none"), "{}", stdout(&status));
    assert!(!prepared.directory.path().join(".index/facts.redb").exists(), "looking must not make an index");

    let rebuilt = run(&prepared.settings, &["index", "rebuild"]);
    assert!(rebuilt.status.success(), "{}", stderr(&rebuilt));
    assert_eq!(stdout(&rebuilt), "repositories 2\nlinks 3\nmanifests 3\ntags 3\ndangling 0\naccounts 0\nrules 0\n");
    assert!(stderr(&rebuilt).contains("2 repositories, up to team/app (3 links"), "{}", stderr(&rebuilt));

    let status = json_of(&prepared.settings, &["index", "status", "--json"]);
    assert_eq!(status["index"]["state"], "believed");
    assert_eq!(status["index"]["settled"], true);
    assert_eq!(status["counts"]["repositories"], 2);
    prepared.assert_is_all_there().await;
}

#[tokio::test]
async fn a_rebuild_of_the_buckets_own_index_begins_a_new_epoch() {
    let prepared = prepared().await;
    let epoch = || json_of(&prepared.settings, &["index", "status", "--json"])["index"]["epoch"].to_string();
    let before = epoch();
    let rebuilt = run(&prepared.settings, &["index", "rebuild"]);
    assert!(rebuilt.status.success(), "{}", stderr(&rebuilt));
    assert!(stdout(&rebuilt).contains("tags 3\n"), "{}", stdout(&rebuilt));
    assert!(epoch() > before);
    prepared.assert_is_all_there().await;
}

#[tokio::test]
async fn a_server_that_lost_its_index_fills_it_by_itself() {
    let prepared = prepared().await;
    prepared.lose_index();
    prepared.assert_is_all_there().await;
}

/// As docs/one-machine.md says: a copy has everything, if it keeps the times of the files.
#[tokio::test]
async fn a_copy_that_keeps_the_times_is_a_backup() {
    let mut prepared = prepared().await;
    prepared.lose_index();
    let (kept, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let from = format!("{}/.", prepared.directory.path().display());
    for (how, to) in [("-a", &kept), ("-r", &new)] {
        assert!(Command::new("cp").args([how, &from]).arg(to.path()).status().unwrap().success());
    }
    // What was written long before it was copied.
    for path in files(&new.path().join("repos")).keys() {
        std::fs::File::options().append(true).open(path).unwrap().set_modified(long_after()).unwrap();
    }
    let tag = json_of(&settings(new.path()), &["inspect", "tag", "team/app:v1", "--json"]);
    assert_eq!(tag["found"]["history"][0]["counts"], false);
    prepared.settings = settings(kept.path());
    prepared.directory = kept;
    prepared.assert_is_all_there().await;
}

/// As docs/bucket-and-redis.md says: a directory moves to a bucket by being copied, although the copies are
/// written long after the deadlines of what they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_moves_to_a_bucket() {
    let quick =
        [("BERTH_INDEX__LEASE", "300ms"), ("BERTH_INDEX__WRITE_DEADLINE", "1s"), ("BERTH_INDEX__MARGIN", "300ms")];
    let mut prepared = prepared_with(&quick).await;
    let s3 = s3_server::start().await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let bucket = S3::open(crate::storage::options(&s3)).await.unwrap();
    let root = format!("{}/", prepared.directory.path().display());
    for (path, bytes) in files(prepared.directory.path()) {
        if let Some(key) = Key::parse(path.strip_prefix(&root).unwrap()) {
            bucket.put(&key, vec![bytes.into()], None).await.unwrap();
        }
    }
    let index = TempDir::new().unwrap();
    prepared.settings = bucket_settings(&s3, "some/where");
    prepared.settings.insert("BERTH_INDEX__URL", format!("embedded:{}", index.path().display()));
    let without = run(&prepared.settings, &["index", "rebuild"]);
    assert!(stdout(&without).contains("\ntags 0\n"), "{}{}", stdout(&without), stderr(&without));
    let copied = run(&prepared.settings, &["index", "rebuild", "--copied"]);
    assert!(copied.status.success(), "{}", stderr(&copied));
    assert!(stdout(&copied).contains("\ntags 3\n"), "{}", stdout(&copied));
    prepared.assert_is_all_there().await;
    // It needs to be said once: what was written anew counts.
    let again = run(&prepared.settings, &["index", "rebuild"]);
    assert!(stdout(&again).contains("\ntags 3\n"), "{}", stdout(&again));
    prepared.assert_is_all_there().await;
}

fn bucket_settings(s3: &s3_server::S3Server, prefix: &str) -> Settings {
    BTreeMap::from([
        ("BERTH_STORAGE__URL", format!("s3://{}/{prefix}", s3.bucket)),
        ("BERTH_STORAGE__S3__ENDPOINT", s3.endpoint.clone()),
        ("BERTH_STORAGE__S3__PATH_STYLE", "true".to_owned()),
        ("BERTH_STORAGE__S3__REGION", "us-east-1".to_owned()),
        ("BERTH_STORAGE__S3__ACCESS_KEY_ID", s3.access_key.clone()),
        ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", s3.secret_key.clone()),
        ("BERTH_INDEX__LEASE", "300ms".to_owned()),
        ("BERTH_INDEX__WRITE_DEADLINE", "4s".to_owned()),
        ("BERTH_INDEX__MARGIN", "1s".to_owned()),
    ])
}

fn long_after() -> std::time::SystemTime {
    std::time::SystemTime::now() + std::time::Duration::from_secs(3600)
}

#[tokio::test]
async fn a_rebuild_says_what_dangles() {
    let prepared = prepared().await;
    let data = prepared.file("repos/team/app/_blobs", &digest(b"another layer"));
    let data = data.file_name().unwrap().to_str().unwrap().split('.').nth(1).unwrap().to_owned();
    std::fs::remove_file(prepared.file("data", &data)).unwrap();
    let rebuilt = run(&prepared.settings, &["index", "rebuild"]);
    assert_eq!(rebuilt.status.code(), Some(1));
    // The link, the manifest that needs it, the tag that points at that.
    assert_eq!(stdout(&rebuilt), "repositories 2\nlinks 2\nmanifests 2\ntags 2\ndangling 3\naccounts 0\nrules 0\n");
    assert!(stderr(&rebuilt).contains(&data), "{}", stderr(&rebuilt));
}

#[tokio::test]
async fn a_running_server_keeps_commands_out() {
    let directory = TempDir::new().unwrap();
    let settings = settings(directory.path());
    let _server = Server::start(&settings);
    for arguments in [&["index", "rebuild"][..], &["index", "status"], &["inspect", "tag", "a:b"]] {
        let output = run(&settings, arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains("in use by another process (pid ") && said.contains("stop the server"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn inspecting_shows_both_sides_and_writes_nothing() {
    let prepared = prepared().await;
    let before = bucket(prepared.directory.path());
    let (blob, manifest) = (format!("team/app@{}", prepared.blob), format!("team/app@{}", prepared.manifest));

    let report = json_of(&prepared.settings, &["inspect", "blob", &blob, "--verify", "--json"]);
    let found = &report["found"];
    assert_eq!(report["index"]["state"], "believed");
    assert_eq!(found["index"]["link"]["size"], LAYER.len());
    assert_eq!(found["index"]["refs"], json!([format!("m:{}", prepared.manifest)]));
    assert_eq!(found["links"].as_array().unwrap().len(), 1);
    assert_eq!(found["data"][0]["verified"], true);
    assert_eq!(found["data"][0]["fact"]["state"], "live");
    assert_eq!(found["data"][0]["users"].as_array().unwrap().len(), 2, "the other repository joined");

    let tag = json_of(&prepared.settings, &["inspect", "tag", "team/app:v1", "--json"]);
    assert_eq!(tag["found"]["index"]["state"]["to"]["digest"], json!(prepared.manifest));
    assert_eq!(tag["found"]["history"][0]["counts"], true);
    assert_eq!(tag["found"]["history"][0]["revision"], tag["found"]["index"]["revision"]);

    let report = json_of(&prepared.settings, &["inspect", "manifest", &manifest, "--json"]);
    assert_eq!(report["found"]["index"]["names"], json!(["t:v1"]));
    assert_eq!(report["found"]["needs"][0], json!(prepared.blob));
    assert_eq!(report["found"]["objects"].as_array().unwrap().len(), 1);

    for key in before.keys() {
        let key = key.strip_prefix(&format!("{}/", prepared.directory.path().display())).unwrap();
        let output = run(&prepared.settings, &["inspect", "key", key, "--verify"]);
        assert!(output.status.success(), "{key}: {}", stderr(&output));
        assert!(stdout(&output).contains(&format!("key {key}\n")), "{}", stdout(&output));
    }
    let text = stdout(&run(&prepared.settings, &["inspect", "blob", &blob, "--verify"]));
    assert!(text.contains("its bytes hash to the digest") && !text.contains("DISAGREE"), "{text}");
    let secret = std::fs::read_to_string(prepared.directory.path().join("berth.json")).unwrap();
    let secret = serde_json::from_str::<Value>(&secret).unwrap()["upload_key"].as_str().unwrap().to_owned();
    assert!(!stdout(&run(&prepared.settings, &["inspect", "key", "berth.json"])).contains(&secret));
    assert_eq!(bucket(prepared.directory.path()), before);
}

#[tokio::test]
async fn inspecting_without_the_buckets_index_shows_the_bucket() {
    let prepared = prepared().await;
    prepared.lose_index();
    let blob = format!("team/app@{}", prepared.blob);
    let report = json_of(&prepared.settings, &["inspect", "blob", &blob, "--json"]);
    assert_eq!(report["index"]["state"], "missing");
    assert_eq!(report["found"]["index"], Value::Null);
    assert_eq!(report["found"]["data"][0]["object"]["size"], LAYER.len());
    assert!(!prepared.directory.path().join(".index/facts.redb").exists());

    // Another index, which has an epoch of its own elsewhere.
    let elsewhere = TempDir::new().unwrap();
    Server::start(&settings(elsewhere.path())).stop();
    let mut others = prepared.settings.clone();
    others.insert("BERTH_INDEX__URL", format!("embedded:{}", elsewhere.path().join(".index").display()));
    let before = bucket(prepared.directory.path());
    let report = json_of(&others, &["inspect", "tag", "team/app:v1", "--json"]);
    assert_eq!(report["index"]["state"], "other");
    assert_eq!(report["found"]["history"][0]["to"], json!(prepared.manifest));
    assert_eq!(bucket(prepared.directory.path()), before, "looking must not begin an epoch");
}

/// Each way of damaging a bucket is found by what inspects the damaged thing.
#[tokio::test]
async fn inspecting_says_where_index_and_bucket_disagree() {
    let prepared = prepared().await;
    let (blob, manifest) = (format!("team/app@{}", prepared.blob), format!("team/app@{}", prepared.manifest));
    let disagrees = |arguments: &[&str], sentence: &str| {
        let output = run(&prepared.settings, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
        assert!(stdout(&output).contains("DISAGREEMENT"), "{}", stdout(&output));
        assert!(stdout(&output).contains(sentence), "{sentence}: {}", stdout(&output));
    };
    let link = prepared.file("repos/team/app/_blobs", &prepared.blob);
    let data = link.file_name().unwrap().to_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let data = prepared.file("data", &data);

    std::fs::write(&data, b"THE BYTES of a layer").unwrap();
    disagrees(&["inspect", "blob", &blob, "--verify"], "don't hash to the digest");
    std::fs::write(&data, b"short").unwrap();
    disagrees(&["inspect", "blob", &blob], "has 5 bytes, and the index says 20");
    std::fs::remove_file(&data).unwrap();
    disagrees(&["inspect", "blob", &blob], "the link's bytes are missing");

    let known = link.file_name().unwrap().to_str().unwrap();
    let unknown = format!("7ZZZZZZZZZZZZZZZZZZZZZZZZZ{}", &known[26..]);
    std::fs::rename(&link, link.with_file_name(unknown)).unwrap();
    disagrees(&["inspect", "blob", &blob], "the index knows nothing of repos/team/app/_blobs/");
    disagrees(&["inspect", "blob", &blob], "and the bucket has no such object");

    std::fs::remove_file(prepared.file("repos/team/app/_manifests", &prepared.manifest)).unwrap();
    disagrees(&["inspect", "manifest", &manifest], "and the bucket has no such object");
    disagrees(&["inspect", "tag", "team/app:v1"], "which the tag points at");
    std::fs::remove_file(prepared.file("repos/team/app/_tags", "/v2/")).unwrap();
    disagrees(&["inspect", "tag", "team/app:v2"], "the newest in the bucket that counts is no revision");
}

#[test]
fn a_wrong_argument_is_one_clear_line() {
    let directory = TempDir::new().unwrap();
    let settings = settings(directory.path());
    let table = [
        (&["inspect", "blob", "team/app"][..], "want REPOSITORY@DIGEST"),
        (&["inspect", "blob", "team/app@sha256:12"], "team/app@sha256:12"),
        (&["inspect", "manifest", "TEAM@sha256:12"], "TEAM@sha256:12"),
        (&["inspect", "tag", "team/app"], "want REPOSITORY:TAG"),
        (&["inspect", "tag", "team/app:.."], "team/app:.."),
        (&["inspect", "key", "data/elsewhere"], "is not a key that Berth writes"),
    ];
    for (arguments, said) in table {
        let output = run(&settings, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    }
}

#[test]
fn a_registry_that_is_not_there_is_not_made() {
    let parent = TempDir::new().unwrap();
    let settings = settings(&parent.path().join("nowhere"));
    for arguments in [&["index", "rebuild"][..], &["index", "status"], &["inspect", "tag", "a:b"]] {
        let output = run(&settings, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("there is no registry in"), "{}", stderr(&output));
        assert!(!parent.path().join("nowhere").exists());
    }
}

/// With the bucket on S3 and the index in Redis, everything works beside running replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_a_remote_bucket_commands_work_beside_servers() {
    let (s3, mut redis) = (s3_server::start().await, redis_server::start().await);
    let mut settings = bucket_settings(&s3, "registry");
    settings.insert("BERTH_INDEX__URL", redis.url());
    let (first, second) = (Server::start(&settings), Server::start(&settings));
    let (blob, manifest) = first.push("team/app", "v1", LAYER).await;
    assert_eq!(digest(&second.get("/v2/team/app/manifests/v1").await.1), manifest);
    let tag = json_of(&settings, &["inspect", "tag", "team/app:v1", "--json"]);
    assert_eq!(tag["found"]["index"]["state"]["to"]["digest"], json!(manifest));

    // Redis loses everything: inspecting shows the bucket, a rebuild brings the servers back.
    redis.restart().await;
    let report = json_of(&settings, &["inspect", "blob", &format!("team/app@{blob}"), "--verify", "--json"]);
    assert_eq!(report["index"]["state"], "other");
    assert_eq!(report["found"]["data"][0]["verified"], true);
    let rebuilt = run(&settings, &["index", "rebuild"]);
    assert!(rebuilt.status.success(), "{}", stderr(&rebuilt));
    assert_eq!(stdout(&rebuilt), "repositories 1\nlinks 1\nmanifests 1\ntags 1\ndangling 0\naccounts 0\nrules 0\n");
    for server in [first, second] {
        assert_eq!(digest(&server.get("/v2/team/app/manifests/v1").await.1), manifest);
        assert_eq!(server.get(&format!("/v2/team/app/blobs/{blob}")).await, (200, LAYER.to_vec()));
        server.stop();
    }
}

/// Another index takes the bucket over once that is asked for twice; servers with it fill it as they serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bucket_is_taken_on_purpose() {
    let (s3, first, second) = (s3_server::start().await, redis_server::start().await, redis_server::start().await);
    let mut settings = bucket_settings(&s3, "registry");
    let fresh = settings.clone().into_iter().chain([("BERTH_INDEX__URL", first.url())]).collect();
    let refused = run(&fresh, &["index", "take", "--yes"]);
    assert!(stderr(&refused).contains("`berth serve` begins with this one"), "{}", stderr(&refused));
    settings.insert("BERTH_INDEX__URL", first.url());
    let server = Server::start(&settings);
    let (blob, manifest) = server.push("team/app", "v1", LAYER).await;
    let own = run(&settings, &["index", "take", "--yes"]);
    assert_eq!(own.status.code(), Some(1));
    assert!(stderr(&own).contains("this index is the bucket's own already"), "{}", stderr(&own));

    let mut others = settings.clone();
    others.insert("BERTH_INDEX__URL", second.url());
    let before = json_of(&settings, &["index", "status", "--json"])["index"]["epoch"].clone();
    let asked = run(&others, &["index", "take"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(stdout(&asked).contains("another index owns this bucket"), "{}", stdout(&asked));
    assert!(stdout(&asked).contains("answer pushes with 503"), "{}", stdout(&asked));
    assert_eq!(json_of(&settings, &["index", "status", "--json"])["index"]["epoch"], before, "nothing was done");

    let taken = run(&others, &["index", "take", "--yes"]);
    assert!(taken.status.success(), "{}", stderr(&taken));
    assert!(stdout(&taken).contains("this index owns the bucket now"), "{}", stdout(&taken));
    // The other index's replica goes on with pulls.
    let by_tag = "/v2/team/app/manifests/v1";
    assert_eq!(digest(&server.get(by_tag).await.1), manifest);
    let upload = server.http.post(format!("{}/v2/team/app/blobs/uploads/?mount={blob}&from=other", server.url));
    assert_eq!(upload.send().await.unwrap().status(), 503);
    assert_eq!(json_of(&settings, &["index", "status", "--json"])["index"]["state"], "other");
    let mended = Server::start(&others);
    assert_eq!(digest(&mended.get(by_tag).await.1), manifest);
    let (_, newer) = mended.push("team/app", "v2", b"another layer").await;
    assert_eq!(digest(&server.get("/v2/team/app/manifests/v2").await.1), newer);
    let verified = run(&others, &["index", "verify"]);
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
}

/// One line each, a sum, and the exit status.
#[tokio::test]
async fn verifying_tells_and_mends() {
    let prepared = prepared().await;
    let whole = run(&prepared.settings, &["index", "verify"]);
    assert_eq!((whole.status.code(), stdout(&whole).as_str()), (Some(0), "repositories 2\ndisagreements 0\nleft 0\n"));
    // The link's object is gone, and one manifest's bytes.
    std::fs::remove_file(prepared.file("repos/team/app/_blobs", &prepared.blob)).unwrap();
    std::fs::remove_file(prepared.file("repos/other/_manifests", &prepared.manifest)).unwrap();
    let link = "team/app: the bucket has no object of link";
    let manifest = format!("other: the bucket doesn't have the bytes of manifest {}\n", prepared.manifest);
    let told = run(&prepared.settings, &["index", "verify"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(stdout(&told).contains(&manifest) && stdout(&told).contains(link), "{}", stdout(&told));
    assert!(stdout(&told).ends_with("repositories 2\ndisagreements 2\nleft 2\n"), "{}", stdout(&told));
    let one = run(&prepared.settings, &["index", "verify", "other"]);
    assert!(stdout(&one).ends_with("repositories 1\ndisagreements 1\nleft 1\n"), "{}", stdout(&one));
    let mended = run(&prepared.settings, &["index", "verify", "--repair"]);
    assert_eq!(mended.status.code(), Some(1), "{}", stdout(&mended));
    assert!(stdout(&mended).contains(&format!("not mended: {manifest}")), "{}", stdout(&mended));
    assert!(stdout(&mended).contains(&format!("\nmended: {link}")), "{}", stdout(&mended));
    assert!(stdout(&mended).ends_with("repositories 2\ndisagreements 2\nleft 1\n"), "{}", stdout(&mended));
    assert!(run(&prepared.settings, &["index", "verify", "team/app"]).status.success());
}

/// What a dry run prints is what a run removes, and nothing else.
#[tokio::test]
async fn garbage_is_shown_and_then_removed() {
    let prepared = prepared().await;
    let key = "data/00/01HZZZZZZZZZZZZZZZZZZZZZ00";
    let orphan = prepared.directory.path().join(key);
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, "orphan").unwrap();
    let young = run(&prepared.settings, &["gc", "run"]);
    assert_eq!(young.status.code(), Some(1));
    assert!(stderr(&young).contains("nothing is old enough"), "{}", stderr(&young));

    let mut settings = prepared.settings.clone();
    for (name, value) in [
        ("BERTH_COLLECT__GRACE", "1s"),
        ("BERTH_LIMITS__UPLOAD_EXPIRY", "100ms"),
        ("BERTH_INDEX__WRITE_DEADLINE", "300ms"),
        ("BERTH_INDEX__MARGIN", "100ms"),
    ] {
        settings.insert(name, value.to_owned());
    }
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    let before = bucket(prepared.directory.path());
    let dry = run(&settings, &["gc", "run", "--dry-run"]);
    assert!(dry.status.success(), "{}", stderr(&dry));
    assert!(
        stdout(&dry).contains(&format!("would remove {key} (6 bytes): the index knows nothing of it\n")),
        "{}",
        stdout(&dry)
    );
    assert_eq!(bucket(prepared.directory.path()), before, "a dry run wrote something");
    let status = json_of(&settings, &["gc", "status", "--json"]);
    assert_eq!(status["collection"]["last"], Value::Null);

    let done = run(&settings, &["gc", "run"]);
    assert!(stdout(&done).contains("data 1\n"), "{}{}", stdout(&done), stderr(&done));
    let mut kept = before;
    kept.remove(orphan.to_str().unwrap());
    assert_eq!(bucket(prepared.directory.path()), kept);
    assert_eq!(json_of(&settings, &["gc", "status", "--json"])["collection"]["last"]["found"]["data"], 1);
    assert!(stdout(&run(&settings, &["gc", "status"])).contains("trash 0\n"));
    prepared.assert_is_all_there().await;
}
