//! Azure Blob Storage beyond the contract of all stores: uploads that the service knows nothing of, what is seen on
//! the wire, deadlines that the service itself keeps, a signature in place of a key, and starts that can't work.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Request, response::IntoResponse};
use berth::{
    oci::{Algorithm, Digest},
    storage::{
        Key, Revision, StorageError, Store, StoreTime,
        azure::{Asks, Azure, AzureOptions},
        key::EpochNumber,
        read_small,
    },
};
use bytes::Bytes;
use http::{Method, StatusCode};
use tempfile::TempDir;

use crate::{
    azurite::{self, Container},
    berth::{Berth, Setup, get},
    e2e_tools::{Tool, push_index},
    storage::{data, pattern, whole},
    storage_front::{self, Fault, Front, Seen},
};

async fn behind_a_front() -> (Front, Container, AzureOptions) {
    let container = azurite::start().await;
    let (site, account) = container.endpoint.rsplit_once('/').unwrap();
    let front = storage_front::start(site).await;
    let options = AzureOptions { endpoint: format!("{}/{account}", front.endpoint), ..container.options() };
    (front, container, options)
}

fn soon(store: &Azure) -> StoreTime {
    store.now().plus(Duration::from_secs(60))
}

/// Two requests that go on with one upload never mix their bytes: each gets what it put, or learns that it doesn't.
#[tokio::test]
async fn whoever_completes_gets_what_they_put() {
    let store = azurite::start().await.open().await;
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let put =
        async |number, length| store.put_part(&key, &upload, number, 16 << 20, vec![pattern(length)]).await.unwrap();
    let (first, mine, yours) = (put(0, 1000).await, put(1, 20).await, put(1, 30).await);
    let mine = [first.clone(), mine];
    store.complete(&key, &upload, &mine).await.unwrap();
    store.complete(&key, &upload, &mine).await.expect("completing again");
    let refused = store.complete(&key, &upload, &[first, yours]).await;
    assert!(matches!(refused, Err(StorageError::PartChanged(_))), "{refused:?}");
    let late = put(0, 5).await;
    let refused = store.complete(&key, &upload, &[late]).await;
    assert!(matches!(refused, Err(StorageError::PartChanged(_))), "{refused:?}");
    store.abort(&key, &upload).await.expect("what is complete isn't undone by it");
    let store: Arc<dyn Store> = Arc::new(store);
    assert!(whole(&store, &key).await.unwrap() == [pattern(1000), pattern(20)].concat());
}

#[tokio::test]
async fn an_upload_whose_blob_is_gone_cannot_be_completed() {
    let store = azurite::start().await.open().await;
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let part = store.put_part(&key, &upload, 0, 16 << 20, vec![pattern(10)]).await.unwrap();
    store.complete(&key, &upload, std::slice::from_ref(&part)).await.unwrap();
    store.delete(&key, soon(&store)).await.unwrap();
    let refused = store.complete(&key, &upload, &[part]).await;
    assert!(matches!(refused, Err(StorageError::NotFound(_))), "{refused:?}");
}

/// A tag may end with a dot, which no segment of a blob's name should.
#[tokio::test]
async fn no_segment_of_a_name_ends_with_a_dot() {
    let (front, _container, options) = behind_a_front().await;
    let store = Azure::open(options).await.unwrap();
    let revision = Revision { epoch: EpochNumber { generation: 1, random: 2 }, counter: 3 };
    let to = Some(Digest::of(Algorithm::Sha256, b"a manifest"));
    let of = |tag: &str| Key::Tag {
        repository: "team/app".parse().unwrap(),
        tag: tag.parse().unwrap(),
        revision,
        deadline: soon(&store),
        to: to.clone(),
    };
    let (dotted, plain) = (of("v1."), of("v1"));
    for key in [&dotted, &plain] {
        store.put(key, vec![Bytes::from(key.to_string())], Some(soon(&store))).await.unwrap();
    }
    assert!(front.seen().iter().any(|seen| seen.path.contains("/_tags/v1.~/")));
    let page = store.list("repos/team/app/_tags/v1./", None, 10).await.unwrap();
    assert_eq!(page.objects.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), [dotted.to_string()]);
    let store: Arc<dyn Store> = Arc::new(store);
    assert_eq!(read_small(&store, &dotted, 1000).await.unwrap(), dotted.to_string());
    assert_eq!(read_small(&store, &plain, 1000).await.unwrap(), plain.to_string());
}

#[tokio::test]
async fn blobs_have_their_tier_and_all_are_of_no_kind_in_particular() {
    let (front, _container, options) = behind_a_front().await;
    let store = Azure::open(AzureOptions { access_tier: Some("Cool"), ..options }).await.unwrap();
    front.seen();
    for (key, tier) in [(data(), "Cool"), (Key::Format, "")] {
        store.put(&key, vec![pattern(10)], None).await.unwrap();
        if let Key::Format = key {
            store.delete(&key, soon(&store)).await.unwrap();
        }
        let key = if let Key::Format = key { key } else { data() };
        let upload = store.begin(&key).await.unwrap();
        let part = store.put_part(&key, &upload, 0, 16 << 20, vec![pattern(10)]).await.unwrap();
        store.complete(&key, &upload, &[part]).await.unwrap();
        let seen: Vec<Seen> = front.seen().into_iter().filter(|seen| seen.method == Method::PUT).collect();
        let headers = |name: &str| seen.iter().map(|seen| seen.header(name)).collect::<Vec<_>>();
        assert_eq!(headers("x-ms-access-tier"), [tier, "", tier]);
        let kind = "application/octet-stream";
        assert_eq!(headers("x-ms-blob-content-type"), [kind, "", kind]);
    }
}

/// A write with a deadline and a removal carry a signature that ends with it. The same request again, once that is
/// over, is refused by the service itself.
#[tokio::test]
async fn a_deadline_is_kept_by_the_service() {
    let (front, container, options) = behind_a_front().await;
    let store = Azure::open(options).await.unwrap();
    let key = data();
    front.seen();
    let deadline = store.now().plus(Duration::from_secs(6));
    store.put(&key, vec![pattern(10)], Some(deadline)).await.unwrap();
    let other = data();
    store.put(&other, vec![pattern(10)], None).await.unwrap();
    store.delete(&other, deadline).await.unwrap();
    let seen = front.seen();
    let signed: Vec<&Seen> = seen.iter().filter(|seen| seen.query.contains("sig=")).collect();
    assert_eq!(signed.iter().map(|seen| seen.method.clone()).collect::<Vec<_>>(), [Method::PUT, Method::DELETE]);
    let end = format!("se={}", StoreTime(deadline.0).rfc3339().replace(':', "%3A"));
    assert!(signed.iter().all(|seen| seen.query.contains(&end) && seen.header("authorization").is_empty()), "{end}");
    while store.now() <= deadline {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let delete = signed[1].query.clone();
    let again = async |method: Method, key: &Key, query: &str| {
        let url = format!("{}/some/where/{key}?{query}", container.url());
        let asked = reqwest::Client::new().request(method, url).header("x-ms-blob-type", "BlockBlob");
        let answer = asked.header("content-length", "0").send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    for (method, key, query) in [(Method::PUT, &key, &signed[0].query), (Method::DELETE, &other, &delete)] {
        let (status, said) = again(method, key, query).await;
        assert_eq!(status, 403, "{said}");
    }
    // A signature is for one blob and one thing.
    let fresh = store.sign(&key, Duration::from_secs(60)).await.unwrap().unwrap();
    let query = fresh.url.split_once('?').unwrap().1.to_owned();
    assert_eq!(again(Method::DELETE, &key, &query).await.0, 403);
    assert_eq!(again(Method::GET, &other, &query).await.0, 403);
    assert_eq!(store.stat(&key).await.unwrap().map(|stat| stat.size), Some(10));
    for late in [store.put(&data(), vec![], Some(deadline)).await, store.delete(&key, deadline).await] {
        assert!(matches!(late, Err(StorageError::TooLate(_))), "{late:?}");
    }
}

/// The service refuses what arrives late; what it was is said.
#[tokio::test]
async fn what_arrives_late_is_said_to_be_late() {
    let (front, _container, options) = behind_a_front().await;
    let store = Azure::open(options).await.unwrap();
    front.strike(|seen| seen.query.contains("sig=").then_some(Fault::Slurp(Duration::from_secs(2))));
    let deadline = store.now().plus(Duration::from_millis(2500));
    let late = store.put(&data(), vec![pattern(2 << 20)], Some(deadline)).await;
    assert!(matches!(late, Err(StorageError::TooLate(_))), "{late:?}");
}

#[tokio::test]
async fn a_service_with_too_much_to_do_is_waited_for() {
    let (front, _container, options) = behind_a_front().await;
    let store = Azure::open(options).await.unwrap();
    let mut last = String::new();
    front.seen();
    front.strike(move |seen| {
        let this = format!("{} {} {}", seen.method, seen.path, seen.query);
        let before = std::mem::replace(&mut last, this.clone());
        (before != this).then_some(Fault::SlowDown)
    });
    let key = data();
    store.put(&key, vec![pattern(100)], Some(soon(&store))).await.unwrap();
    store.put(&data(), vec![pattern(100)], None).await.unwrap();
    assert!(store.stat(&key).await.unwrap().is_some());
    assert_eq!(store.list("data/", None, 10).await.unwrap().objects.len(), 2);
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let part = store.put_part(&key, &upload, 0, 16 << 20, vec![pattern(10)]).await.unwrap();
    store.complete(&key, &upload, &[part]).await.unwrap();
    store.delete(&key, soon(&store)).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    assert!(matches!(whole(&store, &key).await, Err(StorageError::NotFound(_))));
    assert_eq!(front.seen().len(), 16, "each was tried twice");
}

#[tokio::test]
async fn a_write_with_a_deadline_is_never_sent_again_while_its_fate_is_unknown() {
    let (front, _container, mut options) = behind_a_front().await;
    options.patience.call = Duration::from_secs(2);
    let store = Azure::open(options).await.unwrap();
    front.seen();
    front.strike(|_| Some(Fault::Lost));
    let key = data();
    let lost = store.put(&key, vec![pattern(100)], Some(soon(&store))).await;
    assert!(matches!(lost, Err(StorageError::Unavailable(..))), "{lost:?}");
    assert_eq!(front.seen().len(), 1);
    front.strike(|_| None);
    assert!(store.stat(&key).await.unwrap().is_some(), "it had happened");
}

/// A completion whose answer was lost is asked for again, and finds that it has happened.
#[tokio::test]
async fn a_completion_whose_answer_was_lost_is_found_out() {
    let (front, _container, mut options) = behind_a_front().await;
    options.patience.complete = Duration::from_secs(2);
    let store = Azure::open(options).await.unwrap();
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let part = store.put_part(&key, &upload, 0, 16 << 20, vec![pattern(10)]).await.unwrap();
    let mut lost = false;
    front.strike(move |seen| {
        let strikes = seen.query.contains("comp=blocklist") && !std::mem::replace(&mut lost, true);
        strikes.then_some(Fault::Lost)
    });
    store.complete(&key, &upload, &[part]).await.unwrap();
    assert_eq!(store.stat(&key).await.unwrap().map(|stat| stat.size), Some(10));
}

#[tokio::test]
async fn a_container_that_cannot_be_used_is_said_in_one_line() {
    let container = azurite::start().await;
    let right = container.options();
    let nowhere = "http://127.0.0.1:9/berth".to_owned();
    let cases = [
        (AzureOptions { container: "missing".to_owned(), ..right.clone() }, "(ContainerNotFound): make it, or correct"),
        (container.asked_by(Asks::Key("d3Jvbmc=".to_owned())), "doesn't accept an account key"),
        (container.asked_by(Asks::Key("no base64".to_owned())), "storage.azure.account_key"),
        (container.asked_by(Asks::Signature("sv=2023-11-03".to_owned())), "storage.azure.sas"),
        (
            AzureOptions { account: String::new(), ..right.clone() },
            "set storage.azure.account or AZURE_STORAGE_ACCOUNT",
        ),
        (AzureOptions { endpoint: nowhere, ..right.clone() }, "see whether storage.azure.account"),
    ];
    for (options, says) in cases {
        let said = Azure::open(options).await.expect_err("refused").to_string();
        assert!(said.contains(says) && !said.contains('\n'), "{says}: {said}");
        assert!(!said.contains(azurite::KEY) && !said.contains("d3Jvbmc="), "a secret is never said: {said}");
    }
    let store = container.open().await;
    store.check_rights().await.unwrap();
    assert!(store.list("probe/", None, 10).await.unwrap().objects.is_empty());
}

/// Where files and folders are told apart, each answer about a blob says which it is.
#[tokio::test]
async fn a_hierarchical_namespace_is_refused() {
    let kept = Arc::new(Mutex::new(Bytes::new()));
    let answer = move |request: Request| async move {
        let list = "<?xml version=\"1.0\"?><EnumerationResults><Blobs /><NextMarker /></EnumerationResults>";
        let kind = [("x-ms-resource-type", "file"), ("etag", "1"), ("last-modified", "Sat, 21 Nov 2026 10:00:05 GMT")];
        if request.uri().path() == "/container" {
            return list.into_response();
        }
        if request.method() == Method::PUT {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            *kept.lock().unwrap() = body;
            return StatusCode::CREATED.into_response();
        }
        let body = kept.lock().unwrap().clone();
        (kind, body).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let options = azurite::start().await.options();
    let store = Azure::open(AzureOptions { endpoint, container: "container".to_owned(), ..options }).await.unwrap();
    let said = store.check_rights().await.expect_err("refused").to_string();
    assert!(said.contains("the account has a hierarchical namespace") && !said.contains('\n'), "{said}");
}

#[tokio::test]
async fn a_pull_that_breaks_goes_on_from_where_it_was() {
    let (front, _container, options) = behind_a_front().await;
    let store: Arc<dyn Store> = Arc::new(Azure::open(options).await.unwrap());
    let key = data();
    store.put(&key, vec![pattern(1 << 20)], None).await.unwrap();
    front.seen();
    let mut faults = vec![Fault::CutAfter(300_000), Fault::CutAfter(200_000)];
    front.strike(move |_| faults.pop());
    assert!(whole(&store, &key).await.unwrap() == pattern(1 << 20));
    let ranges: Vec<String> = front.seen().iter().map(|seen| seen.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=200000-1048575", "bytes=500000-1048575"]);
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    let (front, _container, options) = behind_a_front().await;
    let store = Azure::open(options.clone()).await.unwrap();
    for (method, says) in [
        (Method::PUT, "it may not be written to (AccessDenied)"),
        (Method::GET, "it may not be read"),
        (Method::DELETE, "it may not be removed from"),
    ] {
        front.strike(move |seen| (seen.method == method).then_some(Fault::Denied));
        let said = store.check_rights().await.expect_err("refused").to_string();
        assert!(said.contains(says) && said.contains("the container") && !said.contains('\n'), "{says}: {said}");
    }
    front.strike(|_| Some(Fault::Denied));
    let said = Azure::open(options).await.expect_err("refused").to_string();
    assert!(said.contains("it may not be listed (AccessDenied)"), "{said}");
}

/// Real clients push, and fetch every blob from the service, by URLs that it checks.
#[tokio::test(flavor = "multi_thread")]
async fn crane_pushes_and_pulls_from_the_service() {
    let (container, index, crane) = (azurite::start().await, TempDir::new().unwrap(), Tool::new("crane"));
    let mut environment: Vec<(String, String)> =
        container.settings().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    environment.push(("BERTH_INDEX__URL".to_owned(), format!("embedded:{}", index.path().display())));
    environment.push(("BERTH_INDEX__MARGIN".to_owned(), "200ms".to_owned()));
    // Crane follows no redirect to another host of this machine.
    let (site, account) = container.endpoint.rsplit_once('/').unwrap();
    let front = storage_front::start(site).await;
    environment.push(("BERTH_STORAGE__AZURE__PUBLIC_ENDPOINT".to_owned(), format!("{}/{account}", front.endpoint)));
    let berth: Berth = Setup { environment, ..Setup::default() }.start();
    let image = push_index(&crane, &berth.host());
    crane.run(&["validate", "--remote", &image]);
    crane.run(&["pull", "--platform", "linux/arm64", &image, "pulled.tar"]);
    let page = get(berth.admin(), "/metrics").unwrap();
    let value = |way: &str| -> u64 {
        let series = format!("berth_blob_bytes_total{{way=\"{way}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    };
    assert!(value("redirected") > 6 << 20, "{page}");
    assert_eq!(value("streamed"), 0, "{page}");
    assert!(!berth.log().contains("sig="), "a signed URL is in the log");
    let fetched = front.seen();
    assert!(!fetched.is_empty() && fetched.iter().all(|seen| seen.query.contains("sig=")), "{fetched:?}");
    // A large layer goes up in blocks.
    crane.tar("large.tar", 3, 40 << 20);
    let large = format!("{}/team/large:1", berth.host());
    crane.run(&["append", "--oci-empty-base", "-f", "large.tar", "-t", &large]);
    crane.run(&["validate", "--remote", &large]);
}
