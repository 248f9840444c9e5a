//! Every operation, with each of its calls to the store and to the index failing in turn, before it happened
//! and after it happened, and with the process dying in it. Then time goes on, the workers clean up, and everything must be whole.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, time::Duration};

use berth::{
    error::{Code, Error},
    index::{
        Ask,
        facts::{Action, EventFact, EventTarget},
    },
    oci::{Algorithm, Digest, Manifest, Tag},
    reconcile,
    registry::Options,
    storage::Key,
    upload::Incoming,
};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream};

use crate::{
    rules_bench::{self as bench, Bench, PART, bytes_of, on, push, pushed, sha256, tag_of, whole_manifest},
    rules_events,
    storage::pattern,
    wrappers::How,
};

const EXPIRY: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(1200);

/// The repositories that the operations use.
const NAMES: &[&str] = &["app", "source"];

/// What is true once an operation was acknowledged, and what may be if it was not.
#[derive(Clone, Debug)]
enum Claim {
    /// The repository `app` has this blob.
    Blob(Digest),
    /// It hasn't.
    NoBlob(Digest),
    /// It has this manifest.
    Manifest(Digest),
    NoManifest(Digest),
    /// The tag points there.
    Tag(&'static str, Option<Digest>),
}

/// What the bench looks like before, and what is done to it.
struct Operation {
    name: &'static str,
    run: for<'a> fn(&'a Bench) -> BoxFuture<'a, Result<(), Error>>,
    claims: fn() -> Vec<Claim>,
}

fn one() -> Bytes {
    bench::image(b"config of one", &[b"layer of one"])
}

fn two() -> Bytes {
    bench::image(b"config of two", &[b"layer of two"])
}

fn large() -> Bytes {
    pattern(3 * PART + 17)
}

/// `app` has two images, `one` tagged `v1` and `both`; `source` has a blob that `app` hasn't.
async fn prepare(bench: &Bench) {
    for seed in ["one", "two"] {
        bench.image("app", seed).await;
    }
    push(&on(&bench.b, "app").await, &one(), &["v1", "both"]).await.unwrap();
    bench.blob("app", b"unneeded").await;
    bench.blob("source", b"to be mounted").await;
    bench.blob("source", &large()).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
}

async fn put(bench: &Bench, bytes: Bytes) -> Result<(), Error> {
    let repository = bench.a.repository(&"app".parse().unwrap()).await?;
    let (id, progress) = repository.start_upload("me");
    let digest = sha256(&bytes);
    repository.finish(&id, Some(&progress.proof), None, &digest, Incoming::of(bytes)).await.map(drop)
}

async fn patches(bench: &Bench, bytes: Bytes, sizes: &[usize], algorithm: Algorithm) -> Result<(), Error> {
    let repository = bench.a.repository(&"app".parse().unwrap()).await?;
    let (id, progress) = repository.start_upload("me");
    let mut proof = progress.proof;
    let mut at = 0;
    for size in sizes {
        let body = Incoming::of(bytes.slice(at..at + size));
        proof = repository.append(&id, Some(&proof), Some(at as u64), Algorithm::Sha256, body).await?.proof;
        at += size;
    }
    let digest = Digest::of(algorithm, &bytes);
    let body = Incoming::of(bytes.slice(at..));
    repository.finish(&id, Some(&proof), Some(at as u64), &digest, body).await.map(drop)
}

/// As a client that tries each step again until it is told how it ended.
async fn insists(bench: &Bench) -> Result<(), Error> {
    let bytes = pattern(2 * PART + 99);
    let digest = sha256(&bytes);
    let repository = bench.a.repository(&"app".parse().unwrap()).await?;
    let (id, _) = repository.start_upload("me");
    for _ in 0..4 {
        let offset = match repository.upload_progress(&id).await {
            Ok(progress) => progress.offset as usize,
            Err(error) if error.code == Code::BlobUploadUnknown => {
                return repository.finish(&id, None, None, &digest, Incoming::empty()).await.map(drop);
            }
            Err(_) => continue,
        };
        let end = (offset + PART + 50).min(bytes.len());
        let body = Incoming::of(bytes.slice(offset..end));
        if end < bytes.len() {
            drop(repository.append(&id, None, Some(offset as u64), Algorithm::Sha256, body).await);
        } else if repository.finish(&id, None, Some(offset as u64), &digest, body).await.is_ok() {
            return Ok(());
        }
    }
    Err(Error::unavailable("four tries"))
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "PUT of a small blob",
        run: |bench| Box::pin(put(bench, pattern(100))),
        claims: || vec![Claim::Blob(sha256(&pattern(100)))],
    },
    Operation {
        name: "PUT of a large blob",
        run: |bench| Box::pin(put(bench, pattern(2 * PART + 9))),
        claims: || vec![Claim::Blob(sha256(&pattern(2 * PART + 9)))],
    },
    Operation {
        name: "PUT of a large blob that is stored elsewhere",
        run: |bench| Box::pin(put(bench, large())),
        claims: || vec![Claim::Blob(sha256(&large()))],
    },
    Operation {
        name: "PUT of a blob that is there",
        run: |bench| Box::pin(put(bench, "layer of one".into())),
        claims: || vec![Claim::Blob(sha256(b"layer of one"))],
    },
    Operation {
        name: "PATCH and PUT",
        run: |bench| Box::pin(patches(bench, pattern(100), &[100], Algorithm::Sha256)),
        claims: || vec![Claim::Blob(sha256(&pattern(100)))],
    },
    Operation {
        name: "many PATCHes and a PUT",
        run: |bench| Box::pin(patches(bench, pattern(4 * PART), &[10, PART, 2 * PART], Algorithm::Sha256)),
        claims: || vec![Claim::Blob(sha256(&pattern(4 * PART)))],
    },
    Operation {
        name: "PATCHes and a PUT that names another algorithm",
        run: |bench| Box::pin(patches(bench, pattern(PART + 40), &[20, PART], Algorithm::Sha512)),
        claims: || vec![Claim::Blob(Digest::of(Algorithm::Sha512, &pattern(PART + 40)))],
    },
    Operation {
        name: "an upload by a client that insists",
        run: |bench| Box::pin(insists(bench)),
        claims: || vec![Claim::Blob(sha256(&pattern(2 * PART + 99)))],
    },
    Operation {
        name: "an upload that is cancelled",
        run: |bench| {
            Box::pin(async move {
                let repository = bench.a.repository(&"app".parse().unwrap()).await?;
                let (id, _) = repository.start_upload("me");
                repository.append(&id, None, None, Algorithm::Sha256, Incoming::of(pattern(PART + 10))).await?;
                repository.cancel_upload(&id).await
            })
        },
        claims: || vec![Claim::NoBlob(sha256(&pattern(PART + 10)))],
    },
    Operation {
        name: "mount",
        run: |bench| {
            Box::pin(async move {
                let source = bench.a.repository(&"source".parse().unwrap()).await?;
                let repository = bench.a.repository(&"app".parse().unwrap()).await?;
                let blob = repository.mount(&source, &sha256(b"to be mounted")).await?;
                blob.map(drop).ok_or_else(|| Error::unavailable("not mounted"))
            })
        },
        claims: || vec![Claim::Blob(sha256(b"to be mounted"))],
    },
    Operation {
        name: "push without a tag",
        run: |bench| Box::pin(pushing(bench, two(), &[])),
        claims: || vec![Claim::Manifest(sha256(&two()))],
    },
    Operation {
        name: "push with a tag",
        run: |bench| Box::pin(pushing(bench, two(), &["v2"])),
        claims: || vec![Claim::Manifest(sha256(&two())), Claim::Tag("v2", Some(sha256(&two())))],
    },
    Operation {
        name: "push that moves two tags",
        run: |bench| Box::pin(pushing(bench, two(), &["v1", "both"])),
        claims: || vec![Claim::Tag("v1", Some(sha256(&two()))), Claim::Tag("both", Some(sha256(&two())))],
    },
    Operation {
        name: "push of a tag that is so",
        run: |bench| Box::pin(pushing(bench, one(), &["v1"])),
        claims: || vec![Claim::Tag("v1", Some(sha256(&one())))],
    },
    Operation {
        name: "push of another tag of a manifest that is there",
        run: |bench| Box::pin(pushing(bench, one(), &["v3"])),
        claims: || vec![Claim::Tag("v3", Some(sha256(&one())))],
    },
    Operation {
        name: "push of what only creates",
        run: |bench| {
            Box::pin(async move {
                let repository = bench.a.repository(&"app".parse().unwrap()).await?;
                let mut push = pushed(&two(), &["new"]);
                push.create_only = true;
                repository.push_manifest(push).await
            })
        },
        claims: || vec![Claim::Tag("new", Some(sha256(&two())))],
    },
    Operation {
        name: "delete of a tag",
        run: |bench| {
            Box::pin(async move {
                bench.a.repository(&"app".parse().unwrap()).await?.delete_tag(&"v1".parse().unwrap()).await
            })
        },
        claims: || vec![Claim::Tag("v1", None), Claim::Tag("both", Some(sha256(&one())))],
    },
    Operation {
        name: "delete of a manifest with two tags",
        run: |bench| {
            Box::pin(async move {
                bench.a.repository(&"app".parse().unwrap()).await?.delete_manifest(&sha256(&one())).await
            })
        },
        claims: || vec![Claim::NoManifest(sha256(&one())), Claim::Tag("v1", None), Claim::Tag("both", None)],
    },
    Operation {
        name: "delete of a blob",
        run: |bench| {
            Box::pin(async move {
                bench.a.repository(&"app".parse().unwrap()).await?.delete_blob(&sha256(b"unneeded")).await
            })
        },
        claims: || vec![Claim::NoBlob(sha256(b"unneeded"))],
    },
];

async fn pushing(bench: &Bench, bytes: Bytes, tags: &[&str]) -> Result<(), Error> {
    push(&bench.a.repository(&"app".parse().unwrap()).await?, &bytes, tags).await.map(drop)
}

/// Whether a claim holds, as `engine` sees it. A manifest or a blob that is there must be whole.
async fn holds(engine: &std::sync::Arc<berth::registry::Registry>, claim: &Claim) -> bool {
    let repository = on(engine, "app").await;
    let has_blob = async |digest: &Digest| match repository.blob(digest).await {
        Ok(blob) => {
            bytes_of(&blob).await.unwrap();
            true
        }
        Err(error) => {
            assert_eq!(error.code, Code::BlobUnknown, "{error}");
            false
        }
    };
    let has_manifest = async |digest: &Digest| match whole_manifest(&repository, digest).await {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.code, Code::ManifestUnknown, "{error}");
            false
        }
    };
    match claim {
        Claim::Blob(digest) => has_blob(digest).await,
        Claim::NoBlob(digest) => !has_blob(digest).await,
        Claim::Manifest(digest) => has_manifest(digest).await,
        Claim::NoManifest(digest) => !has_manifest(digest).await,
        Claim::Tag(tag, digest) => tag_of(&repository, tag).await.unwrap() == *digest,
    }
}

/// What must be so of any registry that is at rest: nothing is left open, every link has its data, every tag
/// its manifest, every manifest its blobs. Returns how many objects are garbage.
pub(crate) async fn assert_at_rest(bench: &Bench, names: &[&str], what: &str) -> usize {
    for (noun, left) in [
        ("intents", bench.members(|names| names.intents()).await),
        ("attempts", bench.members(|names| names.attempts()).await),
        ("uploads", bench.members(|names| names.uploads()).await),
        ("trash", bench.members(|names| names.trash()).await),
    ] {
        assert!(left.is_empty(), "{what}: {noun}: {left:?}");
    }
    let names: Vec<berth::oci::RepositoryName> = names.iter().map(|name| name.parse().unwrap()).collect();
    let mut used = BTreeSet::new();
    for name in &names {
        let repository = on(&bench.b, name.as_str()).await;
        let lease = bench.b.lease().await.unwrap();
        let shard = lease.names.shard_of(name);
        let links = lease.names.link(name, &sha256(b"")).group;
        for (digest, value) in lease.scan(shard, &links, None, 1000).await.unwrap() {
            let digest: Digest = digest.parse().unwrap();
            let fact: berth::index::facts::LinkFact = berth::index::facts::decode(&value).unwrap();
            bytes_of(&repository.blob(&digest).await.unwrap()).await.unwrap();
            let users = lease.names.home_of(fact.data);
            let user = lease.names.user(fact.data, name, fact.link);
            let known = lease.get(users, &[Ask::Value(user), Ask::Value(lease.names.data(fact.data))]).await.unwrap();
            assert!(known.iter().all(Option::is_some), "{what}: a link whose data doesn't know it");
            let first = lease.get(shard, &[Ask::First(lease.names.refs(name, &digest))]).await.unwrap().remove(0);
            assert!(first.is_none_or(|first| first.starts_with(b"m:")), "{what}: a pin is left");
            used.insert(Key::Data(fact.data).to_string());
            let (data, link, size) = (fact.data, fact.link, fact.size);
            used.insert(Key::Link { repository: name.clone(), digest, link, data, size }.to_string());
        }
        for (digest, fact) in repository.manifests().await.unwrap() {
            whole_manifest(&repository, &digest).await.unwrap();
            let object = fact.object;
            used.insert(Key::Manifest { repository: name.clone(), digest, object }.to_string());
        }
        for (tag, fact) in repository.tags(None, 1000).await.unwrap().0 {
            let digest = tag_of(&repository, tag.as_str()).await.unwrap();
            assert_eq!(digest, fact.state.to.map(|to| to.digest), "{what}");
            assert!(bench.is_empty(name.as_str(), |names| names.open(name, &tag)).await, "{what}: an open intent");
        }
    }
    let mut garbage = 0;
    for key in bench.keys().await {
        match Key::parse(&key).unwrap() {
            Key::Data(_) | Key::Manifest { .. } | Key::Link { .. } => garbage += usize::from(!used.contains(&key)),
            _ => {}
        }
    }
    garbage
}

/// One case: the `k`th call fails in one way, or the process dies in it. How many objects of garbage are
/// left; nothing once the operation needs fewer calls.
async fn case(operation: &Operation, k: usize, how: How, lost: bool) -> Option<usize> {
    let what = format!("{}, call {k}, {how:?}", operation.name);
    let mut options = Options { upload_expiry: EXPIRY, grace: GRACE, ..bench::options() };
    // Who finds another's open intent waits this long, and a little more.
    options.timing.deadline = Duration::from_secs(2);
    let bench = bench::in_directory(options).await;
    prepare(&bench).await;
    rules_events::listen(&bench).await;
    bench.probe.strike_at(k, how);
    let done = tokio::select! {
        done = (operation.run)(&bench) => done,
        () = death(&bench, how) => Err(Error::unavailable("the process died")),
    };
    let struck = bench.probe.spare();
    let what = format!("{what}: {struck:?} -> {done:?}");
    if struck.is_none() {
        done.as_ref().unwrap();
    } else if done.is_ok() {
        assert_claims(&bench, operation, &what).await;
    }
    let acknowledged = done.is_ok();
    let mut seen = Vec::new();
    for claim in (operation.claims)() {
        // By digest a manifest can be found before its push is decided.
        if !matches!(claim, Claim::Manifest(_)) && holds(&bench.b, &claim).await {
            seen.push(claim);
        }
    }
    bench.clock.advance(EXPIRY * 2);
    bench.work().await;
    if acknowledged {
        assert_claims(&bench, operation, &what).await;
    }
    for claim in &seen {
        assert!(holds(&bench.b, claim).await, "{what}: {claim:?} was seen and un-happened");
    }
    let claims = (operation.claims)();
    let mut first = Vec::new();
    for claim in &claims {
        first.push(holds(&bench.a, claim).await);
    }
    for (claim, before) in claims.iter().zip(&first) {
        assert_eq!(holds(&bench.b, claim).await, *before, "{what}: {claim:?} flips");
    }
    let garbage = assert_at_rest(&bench, NAMES, &what).await;
    assert_told(&bench, operation, acknowledged, &what).await;
    // What was left half done is collected under the index that knows of it, or after its loss.
    let is_collected = how == How::HangBefore;
    if is_collected {
        assert_collected(&bench, operation, acknowledged, &what).await;
    }
    if lost {
        let tags = |claim: &Claim| match claim {
            Claim::Tag(..) | Claim::Manifest(_) => true,
            Claim::Blob(_) => !is_collected,
            Claim::NoBlob(_) | Claim::NoManifest(_) => false,
        };
        let bench = bench.with_new_index().await;
        for engine in [&bench.a, &bench.b] {
            engine.set_interests(rules_events::interests(false));
        }
        for (claim, before) in claims.iter().zip(&first).filter(|(claim, before)| tags(claim) && **before) {
            assert_eq!(holds(&bench.b, claim).await, *before, "{what}: {claim:?} after the loss of the index");
        }
        if acknowledged && !is_collected {
            assert_claims(&bench, operation, &what).await;
        }
        reconcile::walk(&bench.a, |_| {}).await.unwrap();
        assert_told_again(&bench, operation, &what).await;
        assert_collected(&bench, operation, acknowledged, &what).await;
    }
    struck.map(|_| garbage)
}

/// The event that an operation tells because of a claim, if it is the operation that makes it true.
fn tells(operation: &Operation, claim: &Claim, event: &EventFact) -> bool {
    let is_delete = operation.name.starts_with("delete");
    let target = match &event.target {
        Some(EventTarget::Manifest(target)) => Some(&target.digest),
        Some(EventTarget::Blob(digest, _)) => Some(digest),
        None => None,
    };
    let tag = event.tag.as_ref().map(Tag::as_str);
    match claim {
        Claim::Blob(digest) => matches!(event.action, Action::Push | Action::Mount) && target == Some(digest),
        Claim::Manifest(digest) => event.action == Action::Push && target == Some(digest),
        Claim::Tag(name, None) => event.action == Action::Delete && tag == Some(name),
        Claim::Tag(name, to) => event.action == Action::Push && tag == Some(name) && target == to.as_ref(),
        Claim::NoBlob(digest) | Claim::NoManifest(digest) => {
            is_delete && event.action == Action::Delete && tag.is_none() && target == Some(digest)
        }
    }
}

/// Whether an operation is what makes a claim true, so that it tells of it.
fn is_news(operation: &Operation, claim: &Claim) -> bool {
    let is_delete = operation.name.starts_with("delete");
    match claim {
        Claim::Tag(_, Some(_)) => !is_delete,
        Claim::NoBlob(_) => is_delete,
        _ => true,
    }
}

/// What was acknowledged has its event, and no event is there without its change (I6).
async fn assert_told(bench: &Bench, operation: &Operation, acknowledged: bool, what: &str) {
    let events = rules_events::pending(bench).await;
    let claims = (operation.claims)();
    for claim in claims.iter().filter(|claim| acknowledged && is_news(operation, claim)) {
        assert!(
            events.iter().any(|event| tells(operation, claim, event)),
            "{what}: {claim:?} has no event: {events:?}"
        );
    }
    for event in &events {
        let claim = claims.iter().find(|claim| tells(operation, claim, event));
        let claim = claim.unwrap_or_else(|| panic!("{what}: told of nothing that was done: {event:?}"));
        assert!(holds(&bench.b, claim).await, "{what}: {claim:?} is told, and not so");
    }
}

/// After the loss of the index every change of a tag that the bucket shows is told.
async fn assert_told_again(bench: &Bench, operation: &Operation, what: &str) {
    let events = rules_events::pending(bench).await;
    for claim in (operation.claims)() {
        let is_proven = matches!(claim, Claim::Tag(..)) && operation.name != "push of a tag that is so";
        if is_proven && is_news(operation, &claim) && holds(&bench.b, &claim).await {
            let is_told = events.iter().any(|event| tells(operation, &claim, event));
            assert!(is_told, "{what}: {claim:?} is not told again: {events:?}");
        }
    }
}

/// Two grace periods later nothing is left that nothing needs (I7), and what was acknowledged is still there.
async fn assert_collected(bench: &Bench, operation: &Operation, acknowledged: bool, what: &str) {
    for _ in 0..2 {
        bench.clock.advance(GRACE + Duration::from_secs(1));
        bench.collect().await;
    }
    let garbage = assert_at_rest(bench, NAMES, what).await;
    assert_eq!(garbage, 0, "{what}: collection left it: {:?}", bench.keys().await);
    for claim in (operation.claims)().iter().filter(|claim| acknowledged && !matches!(claim, Claim::Blob(_))) {
        assert!(holds(&bench.b, claim).await, "{what}: acknowledged, and collected: {claim:?}");
    }
}

/// Returns a little after a call was struck that never returns: what goes on beside it may end first.
async fn death(bench: &Bench, how: How) {
    if !matches!(how, How::HangBefore | How::HangAfter) {
        std::future::pending::<()>().await;
    }
    while !bench.probe.has_struck() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
}

async fn assert_claims(bench: &Bench, operation: &Operation, what: &str) {
    for claim in (operation.claims)() {
        for engine in [&bench.b, &bench.a] {
            assert!(holds(engine, &claim).await, "{what}: acknowledged, and not so: {claim:?}");
        }
    }
}

async fn every_call(operation: &Operation, lost: bool) -> (usize, usize) {
    let (mut cases, mut garbage) = (0, 0);
    for how in [How::Before, How::After, How::HangBefore, How::HangAfter] {
        for k in 1.. {
            cases += 1;
            match case(operation, k, how, lost).await {
                Some(left) => garbage += left,
                None => break,
            }
        }
    }
    println!("{}: {cases} cases, {garbage} objects of garbage", operation.name);
    (cases, garbage)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_call_fails_everything_is_whole_afterwards() {
    let results: Vec<(usize, usize)> =
        stream::iter(OPERATIONS).map(|operation| every_call(operation, true)).buffer_unordered(8).collect().await;
    let cases: usize = results.iter().map(|(cases, _)| cases).sum();
    let garbage: usize = results.iter().map(|(_, garbage)| garbage).sum();
    println!("{cases} cases of {} operations; {garbage} objects of garbage", OPERATIONS.len());
    assert!(cases > 200);
}

/// The parsed form of what the tests push is what they think it is.
#[test]
fn the_images_need_what_they_name() {
    assert_eq!(Manifest::parse(&one(), None).unwrap().needs.len(), 2);
}

/// A manifest of its own for each number, of blobs that are there.
fn variant(number: u64) -> Bytes {
    let mut manifest: serde_json::Value = serde_json::from_slice(&one()).unwrap();
    manifest["annotations"] = serde_json::json!({ "number": number.to_string() });
    serde_json::to_vec(&manifest).unwrap().into()
}

/// What was seen of one tag, by reads one after the other: it never goes back.
struct Watched(Vec<Digest>);

impl Watched {
    async fn look(&mut self, bench: &Bench, what: &str) -> Digest {
        let digest = bench.tag("app", "hot").await.unwrap();
        if self.0.last() != Some(&digest) {
            assert!(!self.0.contains(&digest), "{what}: the tag went back");
            self.0.push(digest.clone());
        }
        digest
    }
}

/// I2 under failures: in each round both engines write the tag at once, each with one of its calls failing or
/// its process dying in it, while somebody reads; then recovery, late. No read goes back; what was
/// acknowledged is there, unless a write of the same round came after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_of_a_tag_goes_back_whatever_fails() {
    const HOWS: [How; 5] = [How::Before, How::After, How::HangBefore, How::HangAfter, How::Late];
    let mut options = bench::options();
    options.timing.deadline = Duration::from_secs(2);
    let bench = bench::in_directory(options).await;
    bench.image("app", "one").await;
    push(&on(&bench.a, "app").await, &variant(0), &["hot"]).await.unwrap();
    let mut watched = Watched(Vec::new());
    let (mut acknowledged, mut unfinished) = (0, 0);
    for round in 1..150_u64 {
        let before = watched.look(&bench, "before").await;
        // The late write moves the clock, so it is alone in its round.
        let how = HOWS[(round % 5) as usize];
        let second = if how == How::Late { How::Before } else { HOWS[(round / 5 % 4) as usize] };
        let what = format!("round {round}, {how:?} and {second:?}");
        if how == How::Late {
            bench.probe.strike(how, |_, call| call.kind == "put" && call.about.contains("/_tags/"));
        } else {
            bench.probe.strike_at(1 + (round / 7 % 6) as usize, how);
            bench.probe_b.strike_at(1 + (round / 3 % 6) as usize, second);
        }
        let write = |engine, number| {
            let bytes = variant(number);
            async move { push(&on(engine, "app").await, &bytes, &["hot"]).await }
        };
        let dying = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
        };
        let first = async {
            tokio::select! { done = write(&bench.a, 2 * round) => done.is_ok(), () = dying => false }
        };
        let other = async {
            if how == How::Late {
                return false;
            }
            let dying = tokio::time::sleep(Duration::from_millis(60));
            tokio::select! { done = write(&bench.b, 2 * round + 1) => done.is_ok(), () = dying => false }
        };
        let (first, other) = futures_util::join!(first, other);
        bench.probe.spare();
        bench.probe_b.spare();
        for _ in 0..4 {
            watched.look(&bench, &what).await;
        }
        bench.clock.advance(Duration::from_secs(60));
        watched.look(&bench, &what).await;
        bench.work().await;
        let after = watched.look(&bench, &what).await;
        let written = [sha256(&variant(2 * round)), sha256(&variant(2 * round + 1))];
        if first || other {
            acknowledged += 1;
            assert!(written.contains(&after), "{what}: acknowledged, and not there");
        } else {
            unfinished += 1;
            assert!(written.contains(&after) || after == before, "{what}");
        }
    }
    assert!(bench.members(|names| names.intents()).await.is_empty());
    println!("{acknowledged} rounds with an acknowledged write, {unfinished} without; {} values seen", watched.0.len());
    assert!(acknowledged > 20 && unfinished > 20);
}
