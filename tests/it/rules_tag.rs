//! Manifests and tags: pushed by one engine, read by the other.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    error::Code,
    index::facts::Names,
    oci::{Digest, Reference},
    registry::Options,
};

use crate::{
    rules_bench::{self as bench, Bench, code, kinds, on, push, pushed, sha256, tag_of},
    wrappers::How,
};

async fn untag(bench: &Bench, name: &str, tag: &str) -> Result<(), berth::error::Error> {
    bench.repo(name).await.delete_tag(&tag.parse().unwrap()).await
}

async fn tags(bench: &Bench, name: &str) -> Vec<String> {
    let (tags, more) = bench.repo(name).await.tags(None, 1000).await.unwrap();
    assert!(!more);
    tags.into_iter().map(|(tag, _)| tag.as_str().to_owned()).collect()
}

async fn life_of_a_tag(bench: &Bench) {
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    assert_eq!(bench.tag("app", "v1").await, None);
    let first = bench.push("app", &one, &[]).await.unwrap();
    bench::whole_manifest(&bench.repo("app").await, &first).await.unwrap();
    let many: Vec<String> = (0..20).map(|number| format!("t{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    bench.push("app", &one, &["v1"]).await.unwrap();
    bench.push("app", &one, &many).await.unwrap();
    for tag in many.iter().chain(&["v1"]) {
        assert_eq!(bench.tag("app", tag).await, Some(first.clone()));
    }
    let second = bench.push("app", &two, &["v1"]).await.unwrap();
    assert_eq!(bench.tag("app", "v1").await, Some(second.clone()));
    bench.push("app", &two, &["v1"]).await.unwrap();
    bench.push("app", &one, &["v1", "t0"]).await.unwrap();
    assert_eq!(bench.tag("app", "v1").await, Some(first.clone()));
    assert_eq!(tags(bench, "app").await.len(), 21);
    untag(bench, "app", "t3").await.unwrap();
    assert_eq!(bench.tag("app", "t3").await, None);
    assert_eq!(code(untag(bench, "app", "t3").await), Code::ManifestUnknown);
    assert_eq!(tags(bench, "app").await.len(), 20);
    bench.push("app", &two, &["t3"]).await.unwrap();
    assert_eq!(bench.tag("app", "t3").await, Some(second.clone()));
    bench.repo("app").await.delete_manifest(&first).await.unwrap();
    assert_eq!(tags(bench, "app").await, ["t3"]);
    assert_eq!(
        code(bench.repo("app").await.find_manifest(&Reference::Digest(first.clone())).await),
        Code::ManifestUnknown
    );
    assert_eq!(code(bench.repo("app").await.delete_manifest(&first).await), Code::ManifestUnknown);
    let layer = sha256(b"layer of two");
    assert_eq!(code(bench.repo("app").await.delete_blob(&layer).await), Code::Denied);
    bench.repo("app").await.delete_blob(&sha256(b"layer of one")).await.unwrap();
    let missing = bench.push("app", &one, &["v1"]).await.unwrap_err();
    assert_eq!(missing.code, Code::ManifestBlobUnknown);
    assert!(missing.detail.unwrap().to_string().contains(sha256(b"layer of one").as_str()));
    assert_eq!(bench.tag("app", "v1").await, None);
    bench.repo("app").await.delete_manifest(&second).await.unwrap();
    bench.repo("app").await.delete_blob(&layer).await.unwrap();
    assert!(!bench.repo("app").await.exists().await.unwrap());
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await).get("manifest"), None);
}

#[tokio::test]
async fn a_tag_lives_over_an_embedded_index_and_a_directory() {
    life_of_a_tag(&bench::in_directory(bench::options()).await).await;
}

#[tokio::test]
async fn a_tag_lives_over_redis_and_s3() {
    life_of_a_tag(&bench::remote(bench::options()).await).await;
}

#[tokio::test]
async fn a_tag_lives_over_an_embedded_index_and_s3() {
    life_of_a_tag(&bench::alone(bench::options()).await).await;
}

/// I2, as far as a test without crashes can show it: each write is by another manifest, one reader by each
/// engine; no read goes back behind what was acknowledged before it began, nor behind an earlier read.
async fn race(bench: &Bench, writes: usize) {
    let mut manifests = Vec::new();
    for number in 0..2 * writes {
        manifests.push(bench.image("app", &format!("seed {number}")).await);
    }
    let digests: Vec<Digest> = manifests.iter().map(|bytes| sha256(bytes)).collect();
    push(&on(&bench.a, "app").await, &manifests[0], &["hot"]).await.unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let write = |engine, offset: usize| {
        let manifests = &manifests;
        async move {
            for bytes in manifests.iter().skip(offset).step_by(2) {
                push(&on(engine, "app").await, bytes, &["hot"]).await.unwrap();
                // What was acknowledged is read at once, unless another write came after.
                assert!(tag_of(&on(engine, "app").await, "hot").await.unwrap().is_some());
            }
        }
    };
    let read = |engine| {
        let (digests, done) = (&digests, &done);
        async move {
            let mut seen: Vec<usize> = Vec::new();
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                let digest = tag_of(&on(engine, "app").await, "hot").await.unwrap().unwrap();
                let number = digests.iter().position(|known| *known == digest).unwrap();
                if seen.last() != Some(&number) {
                    assert!(!seen.contains(&number), "the tag went back to {number} after {seen:?}");
                    seen.push(number);
                }
            }
            seen.len()
        }
    };
    let writes = async {
        futures_util::join!(write(&bench.a, 1), write(&bench.b, 2));
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let ((), by_a, by_b) = futures_util::join!(writes, read(&bench.a), read(&bench.b));
    println!("{by_a} and {by_b} values seen");
    let last = bench.tag("app", "hot").await.unwrap();
    assert_eq!(bench.tag("app", "hot").await, Some(last.clone()));
    assert!(digests[digests.len() - 2..].contains(&last));
}

#[tokio::test]
async fn no_read_of_a_tag_goes_back() {
    race(&bench::in_directory(bench::options()).await, 60).await;
}

#[tokio::test]
async fn no_read_of_a_tag_goes_back_over_redis_and_s3() {
    race(&bench::remote(bench::options()).await, 20).await;
}

#[tokio::test]
async fn referrers_are_listed_by_type_and_page() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    let subject = sha256(&image);
    let mut all = Vec::new();
    for number in 0..9 {
        let seed = format!("signature {number}");
        let signature = bench.image("app", &seed).await;
        let kind = if number % 3 == 0 { "application/sbom" } else { "application/signature" };
        // A referrer may come before its subject.
        all.push(bench.push("app", &bench::with_subject(&signature, &image, kind), &[]).await.unwrap());
    }
    bench.push("app", &image, &["v1"]).await.unwrap();
    all.sort();
    for (kind, expected) in
        [(None, 9), (Some("application/sbom"), 3), (Some("application/signature"), 6), (Some("no"), 0)]
    {
        for limit in [1, 2, 3, 6, 9, 100] {
            let mut found = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let (page, next) =
                    bench.repo("app").await.referrers(&subject, kind, after.as_deref(), limit).await.unwrap();
                assert!(page.len() <= limit);
                found.extend(page.iter().map(|raw| raw.get().to_owned()));
                after = next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found.len(), expected, "{kind:?} by {limit}");
            assert!(found.iter().all(|raw| raw.contains("artifactType")));
        }
    }
    bench.repo("app").await.delete_manifest(&all[0]).await.unwrap();
    assert_eq!(bench.repo("app").await.referrers(&subject, None, None, 100).await.unwrap().0.len(), 8);
    bench.repo("app").await.delete_manifest(&subject).await.unwrap();
    assert_eq!(bench.repo("app").await.referrers(&subject, None, None, 100).await.unwrap().0.len(), 8);
}

#[tokio::test]
async fn the_children_of_an_image_index_may_be_missing_or_blobs() {
    let bench = bench::local(bench::options()).await;
    let child = bench.image("app", "one").await;
    let cache = bench.blob("app", b"a layer of BuildKit's cache").await;
    let index = bench::image_index(&[
        (berth::oci::manifest::OCI_MANIFEST, &child),
        (berth::oci::manifest::OCI_MANIFEST, b"{never pushed}"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", b"a layer of BuildKit's cache"),
    ]);
    let digest = bench.push("app", &index, &["multi"]).await.unwrap();
    assert_eq!(bench.tag("app", "multi").await, Some(digest.clone()));
    assert_eq!(code(bench.repo("app").await.delete_blob(&cache).await), Code::Denied);
    bench.repo("app").await.delete_manifest(&digest).await.unwrap();
    bench.repo("app").await.delete_blob(&cache).await.unwrap();
}

#[tokio::test]
async fn tags_that_may_not_be_moved_are_not() {
    let options =
        Options { immutable_tags: vec![berth::config::Written::read("v*").expect("a pattern")], ..bench::options() };
    let bench = bench::local(options).await;
    let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
    let first = bench.push("app", &one, &["v1", "latest"]).await.unwrap();
    bench.push("app", &one, &["v1"]).await.unwrap();
    assert_eq!(code(bench.push("app", &two, &["latest", "v1"]).await), Code::Denied);
    assert_eq!(bench.tag("app", "latest").await, Some(first.clone()), "all or nothing");
    assert_eq!(code(untag(&bench, "app", "v1").await), Code::Denied);
    assert_eq!(code(bench.repo("app").await.delete_manifest(&first).await), Code::Denied);
    assert_eq!(bench.tag("app", "v1").await, Some(first));
    let mut create = pushed(&two, &["latest"]);
    create.create_only = true;
    assert_eq!(code(bench.repo("app").await.push_manifest(create.clone()).await), Code::Denied);
    create.tags = vec!["new".parse().unwrap()];
    bench.repo("app").await.push_manifest(create.clone()).await.unwrap();
    bench.repo("app").await.push_manifest(create.clone()).await.unwrap();
    untag(&bench, "app", "new").await.unwrap();
    bench.repo("app").await.push_manifest(create).await.unwrap();
    assert_eq!(bench.tag("app", "new").await, Some(sha256(&two)));
}

#[tokio::test]
async fn of_two_who_create_a_tag_one_does() {
    let bench = bench::local(bench::options()).await;
    for round in 0..20 {
        let (one, two) = (bench.image("app", "one").await, bench.image("app", "two").await);
        let tag = format!("new{round}");
        let [mut first, mut second] = [&one, &two].map(|bytes| pushed(bytes, &[&tag]));
        (first.create_only, second.create_only) = (true, true);
        let (a, b) = (on(&bench.a, "app").await, on(&bench.b, "app").await);
        let (first, second) = futures_util::join!(a.push_manifest(first), b.push_manifest(second));
        let expected = match (&first, &second) {
            (Ok(()), Err(error)) if error.code == Code::Denied => sha256(&one),
            (Err(error), Ok(())) if error.code == Code::Denied => sha256(&two),
            other => panic!("{other:?}"),
        };
        assert_eq!(bench.tag("app", &tag).await, Some(expected));
    }
}

#[tokio::test]
async fn the_catalog_and_the_tags_come_in_pages() {
    let bench = bench::local(bench::options()).await;
    let mut names = Vec::new();
    for number in 0..13 {
        let name = format!("team/app{number:02}");
        let image = bench.image(&name, "one").await;
        bench.push(&name, &image, &["v1"]).await.unwrap();
        names.push(name);
    }
    bench.blob("only/blobs", b"x").await;
    for limit in [1, 2, 5, 13, 100] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().cloned();
            let (page, more) =
                bench.b.catalog(after.as_deref(), limit, |name| !name.as_str().ends_with('7')).await.unwrap();
            found.extend(page.iter().map(|name| name.as_str().to_owned()));
            if !more {
                break;
            }
        }
        let expected: Vec<&String> = names.iter().filter(|name| !name.ends_with('7')).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "by {limit}");
    }
    assert_eq!(bench.a.children("team", |_| true).await.unwrap().len(), 13);
    let image = bench.image("many", "one").await;
    for number in 0..25 {
        bench.push("many", &image, &[&format!("t{number:02}")]).await.unwrap();
    }
    for number in (0..25).step_by(4) {
        untag(&bench, "many", &format!("t{number:02}")).await.unwrap();
    }
    for limit in [1, 3, 17, 18, 19] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().cloned();
            let (page, more) = bench.repo("many").await.tags(after.as_deref(), limit).await.unwrap();
            found.extend(page.into_iter().map(|(tag, _)| tag.as_str().to_owned()));
            if !more {
                break;
            }
        }
        assert_eq!(found.len(), 18, "by {limit}: {found:?}");
    }
}

#[tokio::test]
async fn a_page_of_the_catalog_is_whole_where_one_shard_has_most_of_it() {
    let options = bench::options();
    let shards = Names::new("0".repeat(16).parse().unwrap(), options.shards);
    let bench = bench::local(options).await;
    let of_one = |name: &String| shards.shard_of(&name.parse().unwrap()) == shards.shard_of(&"a/0".parse().unwrap());
    let mut names: Vec<String> = (0..).map(|number| format!("a/{number}")).filter(of_one).take(24).collect();
    names.extend((0..9).map(|number| format!("b/{number}")));
    names.sort_unstable();
    for name in &names {
        let image = bench.image(name, "one").await;
        bench.push(name, &image, &["v1"]).await.unwrap();
    }
    for limit in [11, 12, 20, 32, 33] {
        let (mut found, mut more) = (Vec::<String>::new(), true);
        while more {
            let (page, is_more) = bench.b.catalog(found.last().map(String::as_str), limit, |_| true).await.unwrap();
            assert!(page.len() == limit || !is_more, "by {limit}");
            found.extend(page.iter().map(ToString::to_string));
            more = is_more;
        }
        assert_eq!(found, names, "by {limit}");
    }
}

#[tokio::test]
async fn a_history_is_trimmed_to_its_depth_and_a_deleted_tag_at_last_forgotten() {
    let grace = Duration::from_secs(3600);
    let bench = bench::local(Options { history: 3, grace, ..bench::options() }).await;
    let mut manifests = Vec::new();
    for number in 0..8 {
        manifests.push(bench.image("app", &format!("seed {number}")).await);
    }
    for bytes in &manifests {
        bench.push("app", bytes, &["v1"]).await.unwrap();
    }
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["tag"], 3);
    assert_eq!(bench.tag("app", "v1").await, Some(sha256(&manifests[7])));
    untag(&bench, "app", "v1").await.unwrap();
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["tag"], 4, "a deleted tag can still be restored");
    bench.clock.advance(grace + Duration::from_secs(1));
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await).get("tag"), None);
    assert!(bench.members(|names| names.trims()).await.is_empty());
    assert_eq!(bench.tag("app", "v1").await, None);
    bench.push("app", &manifests[1], &["v1"]).await.unwrap();
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["tag"], 1);
    assert_eq!(bench.tag("app", "v1").await, Some(sha256(&manifests[1])));
}

/// The fence says that an index was emptied in place: no listing and no miss is believed.
#[tokio::test]
async fn an_emptied_redis_is_never_believed() {
    let redis = crate::redis_server::start().await;
    let bucket = crate::s3_server::start().await;
    let bench = bench::over(&redis, &bucket, bench::options()).await;
    let image = bench.image("app", "one").await;
    let digest = bench.push("app", &image, &["v1"]).await.unwrap();
    let (a, b) = (bench.repo("app").await, bench.repo("app").await);
    let client = redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
    for repository in [a, b] {
        assert_eq!(code(tag_of(&repository, "v1").await), Code::Suspect);
        assert_eq!(code(repository.tags(None, 10).await), Code::Suspect);
        assert_eq!(code(repository.referrers(&digest, None, None, 10).await), Code::Suspect);
        assert_eq!(code(repository.manifests().await), Code::Suspect);
        assert_eq!(code(repository.exists().await), Code::Suspect);
        assert_eq!(code(repository.blob(&sha256(b"layer of one")).await), Code::Suspect);
        assert_eq!(code(push(&repository, &image, &["v2"]).await), Code::Suspect);
    }
    assert_eq!(code(bench.a.catalog(None, 10, |_| true).await), Code::Suspect);
}

/// A connection that breaks costs nobody a request, as far as it is known that nothing happened.
#[tokio::test]
async fn a_call_whose_connection_broke_is_sent_again_by_a_new_one() {
    let mut options = bench::options();
    options.timing.lease = Duration::from_secs(3600);
    let bench = bench::local(options).await;
    let image = bench.image("app", "one").await;
    bench.push("app", &image, &["v1"]).await.unwrap();
    let repository = on(&bench.a, "app").await;
    bench.probe.reset();
    bench.probe.strike(How::Before, |_, call| call.kind == "get");
    assert!(tag_of(&repository, "v1").await.unwrap().is_some());
    assert!(bench.probe.cost().counts["list"] >= 1, "the bucket was asked again");
    bench.probe.strike(How::Before, |_, call| call.kind == "commit");
    push(&repository, &image, &["v2"]).await.unwrap();
    // A batch may have been committed when its answer was lost, so it is the client's to try again.
    bench.probe.strike(How::After, |_, call| call.kind == "commit");
    assert_eq!(code(push(&repository, &image, &["v3"]).await), Code::Suspect);
}

/// A bucket that never answers whether the index may still be believed keeps one question waiting for the
/// time of a lease, and then nobody: neither the request that asked nor those behind it.
#[tokio::test]
async fn a_question_that_is_never_answered_does_not_stop_the_others() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    bench.push("app", &image, &["v1"]).await.unwrap();
    tokio::time::sleep(bench::options().timing.lease * 2).await;
    bench.probe.strike(How::HangBefore, |_, call| call.kind == "list");
    let name = "app".parse().unwrap();
    assert_eq!(code(bench.a.repository(&name).await), Code::Unavailable);
    assert!(bench.probe.spare().is_some());
    let repository = bench.a.repository(&name).await.unwrap();
    assert!(tag_of(&repository, "v1").await.unwrap().is_some());
}

/// Waits until engine A's stalled call has begun.
async fn stalled(bench: &Bench) {
    while !bench.probe.has_struck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// I7: from its reservation on a push holds what it needs, and the manifest that it found.
#[tokio::test]
async fn nothing_that_a_push_needs_is_deleted_under_it() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    for folder in ["/_manifests/", "/_tags/"] {
        bench.probe.strike(How::Stall, move |_, call| call.kind == "put" && call.about.contains(folder));
        let pushing = tokio::spawn({
            let (repository, image) = (on(&bench.a, "app").await, image.clone());
            async move { push(&repository, &image, &["v1"]).await }
        });
        stalled(&bench).await;
        let other = on(&bench.b, "app").await;
        assert_eq!(code(other.delete_blob(&sha256(b"layer of one")).await), Code::Denied);
        assert_eq!(bench.tag("app", "v1").await, None);
        let (digest, deleting) = (sha256(&image), on(&bench.b, "app").await);
        let deleting = tokio::spawn(async move { deleting.delete_manifest(&digest).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.probe.release();
        pushing.await.unwrap().unwrap();
        let deleted = deleting.await.unwrap();
        let expected = if deleted.is_ok() { None } else { Some(sha256(&image)) };
        assert_eq!(bench.tag("app", "v1").await, expected);
        // For the second round the manifest is there, by another tag.
        bench.push("app", &image, &["other"]).await.unwrap();
        if expected.is_some() {
            untag(&bench, "app", "v1").await.unwrap();
        }
    }
    bench::whole_manifest(&bench.repo("app").await, &sha256(&image)).await.unwrap();
}

/// A push was acknowledged whose commit hadn't got through: a deletion of it was told that there is no such manifest,
/// and then there was.
#[tokio::test]
async fn what_the_index_does_not_have_yet_is_deleted_all_the_same() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    bench.probe.strike(How::Before, |_, call| call.kind == "commit" && call.about.contains(":manifests:"));
    push(&on(&bench.a, "app").await, &image, &["v1"]).await.unwrap();
    assert!(bench.probe.has_struck());
    let deleting = tokio::spawn({
        let (repository, digest) = (on(&bench.b, "app").await, sha256(&image));
        async move { repository.delete_manifest(&digest).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // The push may be recovered now, and the deletion still waits for that.
    let timing = bench::options().timing;
    bench.clock.advance(timing.deadline + timing.margin + Duration::from_millis(50));
    bench.work().await;
    deleting.await.unwrap().unwrap();
    assert_eq!(bench.tag("app", "v1").await, None);
    let gone = on(&bench.a, "app").await.find_manifest(&Reference::Digest(sha256(&image))).await;
    assert_eq!(code(gone), Code::ManifestUnknown);
}

/// The object of a manifest was sent again where its connection broke. The first attempt arrived after the manifest was
/// deleted, and the next index found it.
#[tokio::test]
async fn a_manifest_is_sent_to_the_store_only_once() {
    let bench = bench::local(bench::options()).await;
    let image = bench.image("app", "one").await;
    bench.probe.strike(How::Before, |_, call| {
        call.kind == "put" && call.about.contains("/_manifests/") && call.about.ends_with("without a deadline")
    });
    push(&on(&bench.a, "app").await, &image, &["v1"]).await.unwrap();
    assert!(!bench.probe.has_struck(), "only what has a deadline is never sent again");
}

/// An attempt to link that was given up for dead can't commit any more.
#[tokio::test]
async fn a_mount_that_stalled_past_its_time_links_nothing() {
    let expiry = Duration::from_secs(60);
    let bench = bench::local(Options { upload_expiry: expiry, ..bench::options() }).await;
    let digest = bench.blob("a", b"bytes").await;
    bench.probe.strike(How::Stall, |_, call| call.kind == "put" && call.about.contains("/_blobs/"));
    let mounting = tokio::spawn({
        let (source, target, digest) = (on(&bench.a, "a").await, on(&bench.a, "b").await, digest.clone());
        async move { target.mount(&source, &digest).await }
    });
    stalled(&bench).await;
    bench.clock.advance(expiry * 2);
    bench.work().await;
    bench.probe.release();
    assert!(mounting.await.unwrap().is_err());
    assert_eq!(code(bench.read("b", &digest).await), Code::BlobUnknown);
    bench.work().await;
    assert_eq!(kinds(&bench.keys().await)["link"], 1, "its link is gone");
    assert_eq!(bench.read("a", &digest).await.unwrap(), "bytes");
}
