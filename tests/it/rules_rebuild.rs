//! What comes too late, and what the bucket gives back once the index is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    error::Code,
    oci::{Digest, Reference},
    reconcile::{self, Adopted, Walked},
    registry::Options,
};

use crate::{
    rules_bench::{self as bench, Bench, bytes_of, code, kinds, on, push, sha256, tag_of},
    wrappers::How,
};

fn is_revision(call: &crate::wrappers::Call) -> bool {
    call.kind == "put" && call.about.contains("/_tags/")
}

/// The store takes a revision an hour too late. It is not acknowledged, never seen, not recovered and not
/// adopted.
#[tokio::test]
async fn a_revision_that_comes_too_late_does_not_count() {
    for deleting in [false, true] {
        let bench = bench::local(bench::options()).await;
        let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
        push(&on(&bench.b, "app").await, &one, &["v1"]).await.unwrap();
        bench.probe.strike(How::Late, |_, call| is_revision(call));
        let repository = on(&bench.a, "app").await;
        let late = match deleting {
            false => push(&repository, &two, &["v1"]).await.map(drop),
            true => repository.delete_tag(&"v1".parse().unwrap()).await,
        };
        assert_eq!(code(late), Code::Unavailable);
        assert!(bench.probe.spare().is_some());
        assert_eq!(kinds(&bench.keys().await)["tag"], 2, "it is in the bucket");
        for _ in 0..2 {
            assert_eq!(bench.tag("app", "v1").await, Some(sha256(&one)));
        }
        bench.work().await;
        assert!(bench.members(|names| names.intents()).await.is_empty());
        assert_eq!(bench.tag("app", "v1").await, Some(sha256(&one)));
        let bench = bench.with_new_index().await;
        assert_eq!(bench.tag("app", "v1").await, Some(sha256(&one)));
        bench.push("app", &two, &["v1"]).await.unwrap();
        assert_eq!(bench.tag("app", "v1").await, Some(sha256(&two)));
    }
}

/// A writer dies right after a step; the other engine answers the same before and after recovery.
#[tokio::test]
async fn a_writer_that_dies_leaves_one_answer() {
    for (what, how, expected) in [
        ("before the manifest", How::HangBefore, "one"),
        ("after the manifest", How::HangAfter, "one"),
        ("before the revision", How::HangBefore, "one"),
        ("after the revision", How::HangAfter, "two"),
    ] {
        let bench = bench::local(bench::options()).await;
        let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
        push(&on(&bench.b, "app").await, &one, &["v1"]).await.unwrap();
        let folder = if what.ends_with("revision") { "/_tags/" } else { "/_manifests/" };
        bench.probe.strike(how, move |_, call| call.kind == "put" && call.about.contains(folder));
        let repository = on(&bench.a, "app").await;
        let dying = tokio::spawn({
            let two = two.clone();
            async move { push(&repository, &two, &["v1"]).await }
        });
        while !bench.probe.has_struck() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        dying.abort();
        let expected = sha256(if expected == "one" { &one } else { &two });
        assert_eq!(tag_of(&on(&bench.b, "app").await, "v1").await.unwrap(), Some(expected.clone()), "{what}");
        bench.clock.advance(Duration::from_secs(3600));
        assert_eq!(tag_of(&on(&bench.b, "app").await, "v1").await.unwrap(), Some(expected.clone()), "{what}");
        bench.work().await;
        assert!(bench.members(|names| names.intents()).await.is_empty(), "{what}");
        assert_eq!(bench.tag("app", "v1").await, Some(expected.clone()), "{what}");
        bench.repo("app").await.delete_tag(&"v1".parse().unwrap()).await.unwrap();
        assert_eq!(bench.tag("app", "v1").await, None);
    }
}

/// Some repositories with what they shall have after any loss: tag by tag.
async fn fill(bench: &Bench) -> Vec<(String, &'static str, Option<Digest>)> {
    let mut expected = Vec::new();
    for name in ["app", "team/app", "team/app/nested", "a0/b", "z"] {
        let (one, two) = (bench.image(name, "one").await, bench.image(name, "two").await);
        bench.push(name, &one, &["v1", "gone", "moved"]).await.unwrap();
        bench.push(name, &two, &["moved", "latest"]).await.unwrap();
        bench.repo(name).await.delete_tag(&"gone".parse().unwrap()).await.unwrap();
        let signature = bench.image(name, "signature").await;
        bench.push(name, &bench::with_subject(&signature, &one, "application/signature"), &[]).await.unwrap();
        let deleted = bench.image(name, "deleted").await;
        let deleted = bench.push(name, &deleted, &["with"]).await.unwrap();
        bench.repo(name).await.delete_manifest(&deleted).await.unwrap();
        bench.repo(name).await.delete_blob(&sha256(b"layer of deleted")).await.unwrap();
        for (tag, to) in [
            ("v1", Some(sha256(&one))),
            ("gone", None),
            ("moved", Some(sha256(&two))),
            ("latest", Some(sha256(&two))),
            ("with", None),
        ] {
            expected.push((name.to_owned(), tag, to));
        }
    }
    bench.work().await;
    expected
}

async fn assert_there(bench: &Bench, expected: &[(String, &'static str, Option<Digest>)]) {
    for (name, tag, to) in expected {
        assert_eq!(bench.tag(name, tag).await, *to, "{name}:{tag}");
        let repository = bench.repo(name).await;
        assert_eq!(repository.tags(None, 100).await.unwrap().0.len(), 3);
        assert_eq!(repository.manifests().await.unwrap().len(), 3, "two images and a signature");
        assert_eq!(code(repository.blob(&sha256(b"layer of deleted")).await), Code::BlobUnknown);
        let one = bench::image(b"config of one", &[b"layer of one"]);
        assert_eq!(repository.referrers(&sha256(&one), None, None, 10).await.unwrap().0.len(), 1);
        assert_eq!(code(repository.delete_blob(&sha256(b"layer of one")).await), Code::Denied);
    }
}

/// What five filled repositories have: each has two images and a signature (three times config and layer, the
/// config of the deleted one), three manifests, and five tags of which two are deleted.
const ALL: Adopted = Adopted { links: 35, manifests: 15, tags: 25, dangling: 0 };

#[tokio::test]
async fn a_lost_index_is_filled_from_the_bucket_by_who_needs_it() {
    let bench = bench::local(bench::options()).await;
    let expected = fill(&bench).await;
    let before = bench.keys().await;
    let bench = bench.with_new_index().await;
    assert!(!bench.a.is_settled().await.unwrap());
    assert_there(&bench, &expected).await;
    let walked = reconcile::walk(&bench.a, |_| {}).await.unwrap();
    assert_eq!(walked, Walked { repositories: 5, ..Walked::default() }, "nothing is adopted twice");
    assert!(bench.b.is_settled().await.unwrap());
    assert_there(&bench, &expected).await;
    bench.work().await;
    assert_eq!(bench.keys().await, before);
    assert_eq!(bench.b.catalog(None, 100, |_| true).await.unwrap().0.len(), 5);
}

#[tokio::test]
async fn a_lost_index_is_filled_from_the_bucket_by_a_walk() {
    let bench = bench::local(bench::options()).await;
    let expected = fill(&bench).await;
    let mut bench = bench;
    for _ in 0..2 {
        bench = bench.with_new_index().await;
        let mut told = Vec::new();
        let walked = reconcile::walk(&bench.a, |so_far| told.push(so_far.walked.repositories)).await.unwrap();
        assert_eq!(walked, Walked { repositories: 5, adopted: ALL, ..Walked::default() });
        assert_eq!(told.last(), Some(&5));
        println!("{walked:?}");
        assert_there(&bench, &expected).await;
        let again = reconcile::walk(&bench.b, |_| {}).await.unwrap();
        assert_eq!(again, walked, "it is noted what was found, and not looked for again");
    }
    // What is pushed now comes after all that was pushed before.
    let one = bench::image(b"config of one", &[b"layer of one"]);
    bench.push("app", &one, &["moved"]).await.unwrap();
    assert_eq!(bench.tag("app", "moved").await, Some(sha256(&one)));
    let bench = bench.with_new_index().await;
    assert_eq!(bench.tag("app", "moved").await, Some(sha256(&one)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_that_was_interrupted_anywhere_is_taken_up_again() {
    let bench = bench::in_directory(bench::options()).await;
    let expected = fill(&bench).await;
    let mut bench = bench;
    let mut interrupted = 0;
    let mut k = 1;
    loop {
        bench = bench.with_new_index().await;
        let how = if k % 2 == 0 { How::Before } else { How::After };
        bench.probe.strike_at(k, how);
        let first = reconcile::walk(&bench.a, |_| {}).await;
        let struck = bench.probe.spare();
        if first.is_err() {
            interrupted += 1;
            assert!(!bench.b.is_settled().await.unwrap() || first.is_err());
        }
        reconcile::walk(&bench.a, |_| {}).await.unwrap();
        reconcile::walk(&bench.b, |_| {}).await.unwrap();
        assert_there(&bench, &expected).await;
        if struck.is_none() {
            break;
        }
        k += 7;
    }
    println!("{interrupted} walks were interrupted, up to call {k}");
    assert!(interrupted > 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_walks_beside_pushes_agree() {
    let bench = bench::local(bench::options()).await;
    let expected = fill(&bench).await;
    let bench = bench.with_new_index().await;
    let pushes = async {
        for round in 0..10 {
            for name in ["app", "team/app", "z"] {
                let seed = format!("beside {round}");
                let image = bench.image(name, &seed).await;
                let tag = format!("n{round}");
                push(&bench.repo(name).await, &image, &[&tag]).await.unwrap();
                assert_eq!(bench.tag(name, &tag).await, Some(sha256(&image)));
                bench.repo(name).await.delete_manifest(&sha256(&image)).await.unwrap();
                bench.repo(name).await.delete_blob(&sha256(format!("layer of {seed}").as_bytes())).await.unwrap();
                assert_eq!(bench.tag(name, &tag).await, None);
            }
        }
    };
    let (a, b, ()) = futures_util::join!(reconcile::walk(&bench.a, |_| {}), reconcile::walk(&bench.b, |_| {}), pushes);
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.adopted.dangling, b.adopted.dangling), (0, 0));
    assert_there(&bench, &expected).await;
    bench.work().await;
    assert_there(&bench, &expected).await;
    for name in ["app", "team/app", "z"] {
        assert_eq!(code(bench.read(name, &sha256(b"layer of beside 3")).await), Code::BlobUnknown);
    }
}

/// I3 with a store and an index that are real: the server is another, the bucket the same.
#[tokio::test]
async fn a_lost_redis_is_filled_from_s3() {
    let bench = bench::remote(bench::options()).await;
    let expected = fill(&bench).await;
    let bench = bench.with_new_index().await;
    assert_there(&bench, &expected).await;
    let image = bench::image(b"config of one", &[b"layer of one"]);
    let found = bench.repo("app").await.find_manifest(&Reference::Digest(sha256(&image))).await.unwrap();
    assert_eq!(bench.repo("app").await.manifest_bytes(&found).await.unwrap(), image);
    bytes_of(&bench.repo("app").await.blob(&sha256(b"layer of one")).await.unwrap()).await.unwrap();
}

/// A deleted tag that was forgotten stays deleted, and one whose history was trimmed keeps its newest.
#[tokio::test]
async fn a_trimmed_history_says_the_same_after_the_loss_of_the_index() {
    let grace = Duration::from_secs(3600);
    let bench = bench::local(Options { history: 1, grace, ..bench::options() }).await;
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    for _ in 0..3 {
        bench.push("app", &one, &["v1", "gone"]).await.unwrap();
        bench.push("app", &two, &["v1", "gone"]).await.unwrap();
    }
    bench.repo("app").await.delete_tag(&"gone".parse().unwrap()).await.unwrap();
    bench.work().await;
    bench.clock.advance(grace * 2);
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["tag"], 1);
    let bench = bench.with_new_index().await;
    assert_eq!(bench.tag("app", "gone").await, None);
    assert_eq!(bench.tag("app", "v1").await, Some(sha256(&two)));
}

/// Two replicas that are started at the same moment over an empty bucket agree on one epoch and one key.
#[tokio::test]
async fn replicas_that_start_together_agree() {
    let redis = crate::redis_server::start().await;
    let bucket = crate::s3_server::start().await;
    let engines =
        futures_util::future::join_all((0..4).map(|_| bench::engine(&redis, &bucket, bench::options()))).await;
    let image = bench::image(b"config", &[b"layer"]);
    let engines: Vec<_> = engines.into_iter().map(|engine| engine.unwrap()).collect();
    let (id, progress) = on(&engines[0], "app").await.start_upload("me");
    for engine in &engines {
        let repository = on(engine, "app").await;
        assert!(repository.upload_id(&id.to_string(), "me").is_ok(), "one key for all");
    }
    let body = berth::upload::Incoming::of("layer");
    on(&engines[1], "app").await.finish(&id, Some(&progress.proof), None, &sha256(b"layer"), body).await.unwrap();
    let (id, progress) = on(&engines[2], "app").await.start_upload("me");
    let body = berth::upload::Incoming::of("config");
    on(&engines[3], "app").await.finish(&id, Some(&progress.proof), None, &sha256(b"config"), body).await.unwrap();
    push(&on(&engines[0], "app").await, &image, &["v1"]).await.unwrap();
    for engine in &engines {
        assert_eq!(tag_of(&on(engine, "app").await, "v1").await.unwrap(), Some(sha256(&image)));
    }
}

/// An index that was emptied in place is the bucket's own still: a start begins the next epoch with it.
#[tokio::test]
async fn a_start_fills_its_own_emptied_index() {
    let redis = crate::redis_server::start().await;
    let bucket = crate::s3_server::start().await;
    let mut options = bench::options();
    options.timing.lease = Duration::from_millis(300);
    options.timing.deadline = Duration::from_millis(600);
    let bench = bench::over(&redis, &bucket, options).await;
    let image = bench.image("app", "one").await;
    bench.push("app", &image, &["v1"]).await.unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    let a = bench.again(berth::registry::OtherIndex::Refuse).await.unwrap();
    for engine in [&a, &bench.a, &bench.b] {
        assert_eq!(tag_of(&on(engine, "app").await, "v1").await.unwrap(), Some(sha256(&image)));
    }
}

/// A replica that listed the bucket long ago adopts nothing of what others have deleted since.
#[tokio::test]
async fn an_old_listing_brings_nothing_back() {
    for stalled in [":links:app", ":manifests:app", ":tags:app"] {
        let bench = bench::local(bench::options()).await;
        let image = bench.image("app", "one").await;
        let digest = bench.push("app", &image, &["v1"]).await.unwrap();
        let bench = bench.with_new_index().await;
        bench.probe_b.strike(How::Stall, move |_, call| call.kind == "commit" && call.about.contains(stalled));
        let walk = tokio::spawn({
            let b = std::sync::Arc::clone(&bench.b);
            async move { reconcile::walk(&b, |_| {}).await }
        });
        while !bench.probe_b.has_struck() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let repository = on(&bench.a, "app").await;
        repository.delete_manifest(&digest).await.unwrap();
        repository.delete_blob(&sha256(b"config of one")).await.unwrap();
        repository.delete_blob(&sha256(b"layer of one")).await.unwrap();
        berth::worker::work_once(&bench.a, ulid::Ulid::from(1_u128)).await.unwrap();
        bench.probe_b.release();
        walk.await.unwrap().unwrap();
        for engine in [&bench.a, &bench.b] {
            let repository = on(engine, "app").await;
            assert_eq!(tag_of(&repository, "v1").await.unwrap(), None, "{stalled}");
            assert!(repository.manifests().await.unwrap().is_empty(), "{stalled}");
            assert_eq!(code(repository.blob(&sha256(b"layer of one")).await), Code::BlobUnknown, "{stalled}");
            assert_eq!(code(repository.blob(&sha256(b"config of one")).await), Code::BlobUnknown, "{stalled}");
        }
    }
}

/// Two pushes of one manifest meet, each with an object of its own; the one that doesn't count waits in the trash.
#[tokio::test]
async fn a_deleted_manifest_does_not_come_back_by_another_pushs_object() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    bench.probe.strike(How::Stall, |_, call| call.kind == "put" && call.about.contains("/_manifests/"));
    let first = tokio::spawn({
        let (repository, image) = (on(&bench.a, "app").await, image.clone());
        async move { push(&repository, &image, &["v1"]).await }
    });
    while !bench.probe.has_struck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let digest = push(&on(&bench.b, "app").await, &image, &["v2"]).await.unwrap();
    bench.probe.release();
    first.await.unwrap().unwrap();
    assert_eq!(bench::kinds(&bench.keys().await)["manifest"], 2);
    bench.repo("app").await.delete_manifest(&digest).await.unwrap();
    assert_eq!(bench::kinds(&bench.keys().await).get("manifest"), None);
    let bench = bench.with_new_index().await;
    reconcile::walk(&bench.b, |_| {}).await.unwrap();
    assert!(on(&bench.b, "app").await.manifests().await.unwrap().is_empty());
}
