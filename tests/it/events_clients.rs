//! Real clients push, and real consumers hear of it: by the binary, over sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use axum::response::IntoResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    berth::{Berth, Setup, bare, run},
    docker_daemon::Daemon,
    e2e_tools::Tool,
    hook::{Hook, Told},
    rules_bench::sha256,
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const HEADER: &str = "X-Key: a-header-s3cret";

/// A server that tells an endpoint of this format, and more settings of it.
fn start(format: &str, url: &str, more: &[(&str, &str)]) -> Berth {
    let key = |name: &str| format!("BERTH_EVENTS__ENDPOINTS__CI__{name}");
    let mut environment = vec![(key("FORMAT"), format.to_owned())];
    if !url.is_empty() {
        environment.push((key("URL"), url.to_owned()));
        environment.push((key("ALLOW"), "127.0.0.0/8".to_owned()));
    }
    environment.extend(more.iter().map(|(name, value)| {
        let is_whole = name.starts_with("BERTH_") || name.starts_with("PUBSUB_");
        (if is_whole { (*name).to_owned() } else { key(name) }, (*value).to_owned())
    }));
    Setup { environment, ..Setup::default() }.start()
}

/// Pushes an image, retags it, pulls it and deletes it, by crane; its digest.
fn doings(berth: &Berth) -> String {
    let crane = Tool::new("crane");
    let image = format!("{}/team/app", berth.host());
    crane.tar("layer.tar", 1, 1000);
    crane.run(&["append", "-f", "layer.tar", "-t", &format!("{image}:v1")]);
    let digest = crane.run(&["digest", &format!("{image}:v1")]).trim().to_owned();
    crane.run(&["tag", &format!("{image}:v1"), "stable"]);
    crane.run(&["pull", &format!("{image}:v1"), "pulled.tar"]);
    crane.run(&["delete", &format!("{image}@{digest}")]);
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crane_does_is_what_is_told() {
    let hook = Hook::start().await;
    let berth = start("distribution", &hook.url(), &[("ACTIONS", "push,pull,delete")]);
    let digest = tokio::task::block_in_place(|| doings(&berth));
    hook.until_holds(|told| told.last().is_some_and(|told| told.line() == format!("delete team/app {digest}"))).await;
    let told = hook.told();
    let lines: Vec<String> = told.iter().map(Told::line).collect();
    // Crane asks for the digest by HEAD, which is no pull, and reads the manifest that it tags anew.
    let (pulls, changes): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.starts_with("pull "));
    let last = format!("delete team/app {digest}");
    let expected =
        ["push team/app v1", "push team/app stable", "delete team/app stable", "delete team/app v1", last.as_str()];
    assert_eq!(changes, expected);
    assert!(!pulls.is_empty(), "{lines:?}");
    for told in &told {
        check_envelope(told, &berth, &digest);
    }
}

/// A rebuild by an operator's hand is a loss of the index like any other.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_took_waits_again_after_a_rebuild() {
    let (hook, directory) = (Hook::start().await, tempfile::tempdir().unwrap());
    hook.says(500);
    let setup = Setup::of(&[
        ("BERTH_EVENTS__ENDPOINTS__CI__FORMAT", "distribution"),
        ("BERTH_EVENTS__ENDPOINTS__CI__URL", &hook.url()),
        ("BERTH_EVENTS__ENDPOINTS__CI__ALLOW", "127.0.0.0/8"),
    ])
    .over(directory.path());
    let mut berth = setup.clone().start();
    // An endpoint isn't told of what was before its first checkpoint.
    while !directory.path().join("checkpoints").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    berth.client().push_image("team/app", "v1", &["layer".into()]).await;
    hook.until(1).await;
    tokio::task::block_in_place(|| berth.terminate());
    std::fs::remove_dir_all(directory.path().join(".index")).unwrap();
    tokio::task::block_in_place(|| {
        let command = |arguments: &[&str]| run(bare(&setup, directory.path()).args(arguments).stdout(Stdio::piped()));
        command(&["index", "rebuild"]);
        let pending = command(&["events", "pending", "ci"]);
        assert!(pending.contains("team/app"), "{pending}");
    });
}

/// Docker asks for a manifest by its digest once it knows that from a HEAD.
#[tokio::test(flavor = "multi_thread")]
async fn what_docker_does_is_what_is_told() {
    let (hook, daemon) = (Hook::start().await, tokio::task::block_in_place(Daemon::start));
    let berth = start("distribution", &hook.url(), &[("ACTIONS", "push,pull,delete")]);
    let image = |tag: &str| format!("{}/team/app:{tag}", berth.host());
    tokio::task::block_in_place(|| {
        daemon.import(&image("v1"), 1000);
        daemon.run(&["push", &image("v1")]);
        daemon.run(&["tag", &image("v1"), &image("stable")]);
        daemon.run(&["push", &image("stable")]);
        daemon.pull_again(&image("v1"));
    });
    let client = berth.client();
    let head = client.head("/v2/team/app/manifests/v1").await.expect(200);
    let digest = head.header("docker-content-digest");
    client.delete("/v2/team/app/manifests/stable").await.expect(202);
    client.delete(&format!("/v2/team/app/manifests/{digest}")).await.expect(202);
    let by_digest = ["pull", "delete"].map(|action| format!("{action} team/app {digest}"));
    let [pull, delete] = by_digest.each_ref().map(String::as_str);
    let expected =
        ["push team/app v1", "push team/app stable", pull, "delete team/app stable", "delete team/app v1", delete];
    hook.until(expected.len()).await;
    assert_eq!(hook.lines(), expected);
}

/// Distribution's envelope, as strictly as can be read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that each has its type is what is tested")]
struct Event {
    id: String,
    timestamp: String,
    action: String,
    target: Target,
    request: Request,
    actor: Actor,
    source: Source,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Target {
    media_type: Option<String>,
    size: Option<u64>,
    digest: Option<String>,
    length: Option<u64>,
    repository: String,
    url: Option<String>,
    tag: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    id: String,
    addr: String,
    host: String,
    method: String,
    useragent: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Actor {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that each has its type is what is tested")]
struct Source {
    addr: String,
    #[serde(rename = "instanceID")]
    instance_id: String,
}

fn check_envelope(told: &Told, berth: &Berth, digest: &str) {
    assert_eq!(told.header("content-type"), "application/vnd.docker.distribution.events.v2+json");
    let envelope: Envelope = serde_json::from_slice(&told.body).unwrap();
    let [event] = &*envelope.events else { panic!("one event") };
    assert_eq!(event.id, told.header("webhook-id"));
    let Target { media_type, size, digest: of, length, repository, url, tag } = &event.target;
    assert_eq!((repository.as_str(), size), ("team/app", length));
    assert_eq!(media_type.is_some(), of.is_some());
    assert!(of.is_some() || tag.is_some());
    if let Some(of) = of {
        assert_eq!(
            (of.as_str(), url.as_deref()),
            (digest, Some(&*format!("http://{}/v2/team/app/manifests/{digest}", berth.host())))
        );
    }
    let Request { id, addr, host, method, useragent } = &event.request;
    assert!(!id.is_empty() && addr == "127.0.0.1" && *host == berth.host(), "{id} {addr} {host}");
    assert!(
        ["PUT", "GET", "DELETE"].contains(&method.as_str()) && useragent.starts_with("crane/"),
        "{method} {useragent}"
    );
    assert_eq!(event.actor.name, "anonymous");
}

/// The request as a proxy saw it, where the proxy is trusted; else as it came from there. And whose it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_told_as_a_trusted_proxy_had_it() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, format!("ann:{}\n", bcrypt::hash("ann-secret", 4).unwrap())).unwrap();
    let basic = format!("Basic {}", STANDARD.encode("ann:ann-secret"));
    for (trusted, is_trusted) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let hook = Hook::start().await;
        let more = [
            ("BLOBS", "true"),
            ("BERTH_SERVER__TRUSTED_PROXIES", trusted),
            ("BERTH_AUTH__HTPASSWD", users.to_str().unwrap()),
            ("BERTH_AUTH__RULES__ANN__WHO", "user:ann"),
            ("BERTH_AUTH__RULES__ANN__ROLE", "writer"),
            ("BERTH_AUTH__RULES__ANN__REPOSITORIES", "team/*"),
        ];
        let berth = start("distribution", &hook.url(), &more);
        let headers = [
            ("authorization", basic.as_str()),
            ("user-agent", "probe/1.0"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "r.example.com"),
        ];
        let path = format!("/v2/team/app/blobs/uploads/?digest={}", sha256(b"bytes"));
        let answer = berth.client().send("POST", &path, &headers, "bytes").await.expect(201);
        let told = hook.until(1).await;
        let envelope: Envelope = serde_json::from_slice(&told[0].body).unwrap();
        let Request { id, addr, host, method, useragent } = &envelope.events[0].request;
        let (seen_addr, seen_host) =
            if is_trusted { ("203.0.113.9", "r.example.com".to_owned()) } else { ("127.0.0.1", berth.host()) };
        assert_eq!((addr.as_str(), host), (seen_addr, &seen_host));
        assert_eq!((method.as_str(), useragent.as_str()), ("POST", "probe/1.0"));
        assert_eq!(id, answer.header("x-request-id"));
        assert_eq!(envelope.events[0].actor.name, "user:ann");
    }
}

/// A Python with the libraries that receivers use.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
    assert!(python.exists(), "{} is missing: scripts/setup-tests makes it", python.display());
    python
}

/// Hands what was told to a consumer; what it makes of it, a line each.
fn consumed(kind: &str, told: &[Told]) -> Vec<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/consumer.py");
    let child = Command::new(python())
        .arg(script)
        .args([kind, SECRET])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for told in told {
        let headers: serde_json::Map<String, Value> =
            told.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().into())).collect();
        let line = json!({ "headers": headers, "body": STANDARD.encode(&told.body) });
        writeln!(child.stdin.as_ref().unwrap(), "{line}").unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_verify_the_signature_and_read_the_event() {
    for (format, consumer) in
        [("cloudevents", "cloudevents"), ("cloudevents-binary", "cloudevents"), ("pubsub", "webhook")]
    {
        let hook = Hook::start().await;
        let both = format!("{OLD_SECRET} {SECRET}");
        let berth = start(format, &hook.url(), &[("SECRET", both.as_str()), ("HEADERS", HEADER)]);
        let digest = tokio::task::block_in_place(|| doings(&berth));
        let told = hook.until(5).await;
        assert!(told.iter().all(|told| told.header("x-key") == "a-header-s3cret"));
        assert!(told.iter().all(|told| told.header("webhook-signature").split(' ').count() == 2));
        let read = consumed(consumer, &told);
        assert_eq!(read.len(), 5, "{read:?}");
        if consumer == "cloudevents" {
            let kinds: Vec<_> = read.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect();
            let expected = ["tag.pushed", "tag.pushed", "tag.deleted", "tag.deleted", "manifest.deleted"];
            assert_eq!(kinds, expected.map(|kind| format!("io.github.berth-registry.{kind}")));
            assert_eq!(read[0]["source"], format!("http://{}/v2/team/app", berth.host()));
            assert_eq!((&read[0]["subject"], &read[4]["subject"]), (&json!("v1"), &json!(digest)));
            assert_eq!(read[0]["data"]["digest"], digest);
        } else {
            let message: Value =
                serde_json::from_slice(&STANDARD.decode(read[0]["message"]["data"].as_str().unwrap()).unwrap())
                    .unwrap();
            let image = format!("{}/team/app", berth.host());
            assert_eq!(
                message,
                json!({ "action": "INSERT", "digest": format!("{image}@{digest}"), "tag": format!("{image}:v1") })
            );
        }
    }
}

/// The request of `projects.topics.publish`, with the fields of `PubsubMessage` that a publisher may set, and no other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    messages: Vec<PubsubMessage>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PubsubMessage {
    data: String,
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    ordering_key: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_published_to_as_its_reference_says() {
    let pubsub = Hook::start().await;
    pubsub.answer(|told| match serde_json::from_slice::<Publish>(&told.body) {
        Ok(publish) if told.path == "/v1/projects/my-project/topics/gcr:publish" => {
            let ids: Vec<String> = (0..publish.messages.len()).map(|id| id.to_string()).collect();
            json!({ "messageIds": ids }).to_string().into_response()
        }
        _ => StatusCode::BAD_REQUEST.into_response(),
    });
    let host = pubsub.address.to_string();
    let more = [
        ("TOPIC", "projects/my-project/topics/gcr"),
        ("PUBSUB_EMULATOR_HOST", host.as_str()),
        // No emulator is shown a token.
        ("CREDENTIALS", "{}"),
    ];
    let berth = start("pubsub-topic", "", &more);
    let digest = tokio::task::block_in_place(|| doings(&berth));
    let told = pubsub.until(5).await;
    let image = format!("{}/team/app", berth.host());
    let messages: Vec<Value> = told
        .iter()
        .map(|told| {
            let mut publish: Publish = serde_json::from_slice(&told.body).unwrap();
            let message = publish.messages.remove(0);
            assert_eq!((message.ordering_key.as_str(), message.attributes.len()), ("team/app", 1));
            assert_eq!(told.header("authorization"), "");
            serde_json::from_slice(&STANDARD.decode(message.data).unwrap()).unwrap()
        })
        .collect();
    let by_digest = format!("{image}@{digest}");
    let deletes = |tag: &str| json!({ "action": "DELETE", "tag": format!("{image}:{tag}") });
    let inserts = |tag: &str| json!({ "action": "INSERT", "digest": by_digest, "tag": format!("{image}:{tag}") });
    let last = json!({ "action": "DELETE", "digest": by_digest });
    assert_eq!(messages, [inserts("v1"), inserts("stable"), deletes("stable"), deletes("v1"), last]);
}

/// Runs `berth events …` at a server; what it printed, and whether it succeeded.
fn events(berth: &Berth, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.arg("events").args(arguments).args(["--server", &format!("http://{}", berth.admin())]);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_all_but_the_secrets() {
    let hook = Hook::start().await;
    let url = format!("{}?token=a-url-s3cret", hook.url());
    let more = [("SECRET", SECRET), ("HEADERS", HEADER), ("MAX_AGE", "1m"), ("BERTH_LOG__LEVEL", "trace")];
    let berth = start("cloudevents", &url, &more);
    let (done, said) = events(&berth, &["test", "ci"]);
    assert!(done && said.starts_with("ci took the sample: 204, after "), "{said}");
    assert_eq!(hook.told()[0].json()["data"]["repository"], "berth/sample");
    hook.says(503);
    let (done, said) = events(&berth, &["test", "ci"]);
    assert!(!done && said.contains("ci did not take the sample: 503"), "{said}");
    assert!(!events(&berth, &["test", "nobody"]).0);
    tokio::task::block_in_place(|| doings(&berth));
    hook.until(3).await;
    let (_, endpoints) = events(&berth, &["endpoints"]);
    assert!(endpoints.contains(&format!("http://{}/***", hook.address)), "{endpoints}");
    let (_, pending) = events(&berth, &["pending", "ci"]);
    assert!(pending.contains("team/app:v1") && pending.contains("503"), "{pending}");
    assert_eq!(events(&berth, &["dead", "ci"]).1.lines().count(), 1);
    assert_eq!(events(&berth, &["replay"]).1, "ci: 0 dead letters are delivered again\n");
    let shown = run(Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["config", "check"])
        .env("BERTH_EVENTS__ENDPOINTS__CI__FORMAT", "cloudevents")
        .env("BERTH_EVENTS__ENDPOINTS__CI__URL", &url)
        .env("BERTH_EVENTS__ENDPOINTS__CI__SECRET", SECRET)
        .env("BERTH_EVENTS__ENDPOINTS__CI__HEADERS", HEADER));
    for text in [&berth.log(), &endpoints, &pending, &shown] {
        for secret in ["s3cret", &SECRET[6..]] {
            assert!(
                !text.contains(secret),
                "{secret} is shown: {}",
                text.lines().find(|line| line.contains(secret)).unwrap()
            );
        }
    }
}

#[test]
fn mistakes_stop_the_start_with_one_line() {
    for (more, said) in [
        (vec![("URL", "https://ci.example")], "events.endpoints.ci.format"),
        (vec![("FORMAT", "xml")], "events.endpoints.ci.format"),
        (vec![("FORMAT", "cloudevents")], "events.endpoints.ci.url (default): found nothing"),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://u:p@ci.example")], "events.endpoints.ci.url"),
        (vec![("FORMAT", "cloudevents"), ("URL", "http://127.0.0.1/")], "127.0.0.1 is not a public address"),
        (vec![("FORMAT", "pubsub-topic"), ("TOPIC", "gcr")], "projects/PROJECT/topics/TOPIC"),
        (vec![("FORMAT", "pubsub"), ("URL", "https://ci.example"), ("ACTIONS", "pull")], "events.endpoints.ci.actions"),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://ci.example"), ("HEADERS", "Host: other")], "the header host"),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://ci.example"), ("SECRET", "a-s3cret")], "whsec_"),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://ci.example"), ("TIMEOUT", "5m")], "want \"1s\" to \"1m\""),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://ci.example"), ("PROXY", "true")], "found without proxy.url"),
        (vec![("FORMAT", "cloudevents"), ("URL", "https://ci.example"), ("AUDIENCE", "x")], "found without bearer"),
    ] {
        let environment: Vec<(String, String)> = more
            .iter()
            .map(|(key, value)| (format!("BERTH_EVENTS__ENDPOINTS__CI__{key}"), (*value).to_owned()))
            .collect();
        let (status, shown) = Setup { environment, ..Setup::default() }.refused();
        assert!(!status.success() && shown.lines().count() == 1 && shown.contains(said), "{more:?}: {shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
