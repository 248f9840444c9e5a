//! Collection: what nothing needs leaves the bucket, what is needed never does, whatever the two do at once; and
//! each check of it is seen to matter, by an index that leaves that one check out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use berth::{
    collect::{
        garbage::Why,
        round::{self, Begin, Step},
    },
    error::Error,
    index::{Ask, Batch, Check, Write, facts::Found},
    oci::Digest,
    registry::Options,
    storage::{DataKey, Key, StoreTime},
    upload::Incoming,
    worker,
};
use bytes::Bytes;
use ulid::Ulid;

use crate::{
    rules_bench::{self as bench, Bench, bytes_of, image, on, push, sha256, tag_of},
    rules_faults::assert_at_rest,
    wrappers::{How, LaxConnect, LeftOut, is_of},
};

const GRACE: Duration = Duration::from_secs(3600);
const EXPIRY: Duration = Duration::from_secs(600);
const NAMES: &[&str] = &["app", "other"];

fn options() -> Options {
    Options { grace: GRACE, upload_expiry: EXPIRY, ..bench::options() }
}

/// An image that is needed, one that was deleted, a blob that nothing ever needed, and objects of writers that
/// stopped.
async fn prepare(bench: &Bench) -> Digest {
    let kept = bench.image("app", "kept").await;
    bench.push("app", &kept, &["v1"]).await.unwrap();
    let deleted = bench.image("app", "deleted").await;
    let digest = bench.push("app", &deleted, &["old"]).await.unwrap();
    bench.blob("app", b"never needed").await;
    bench.repo("app").await.delete_manifest(&digest).await.unwrap();
    bench.work().await;
    sha256(&kept)
}

/// Objects that no fact knows, put where a writer that stopped would have left them.
async fn orphans(bench: &Bench) -> Vec<Key> {
    let (repository, digest) = ("app".parse().unwrap(), sha256(b"orphan"));
    let (link, data) = (Ulid::r#gen(), DataKey(Ulid::r#gen()));
    let lease = bench.a.lease().await.unwrap();
    let revision = berth::storage::Revision { epoch: lease.epoch, counter: 1 << 40 };
    let late = StoreTime(1_000_000_000_000);
    let orphans = vec![
        Key::Data(data),
        Key::Link {
            repository: berth::oci::RepositoryName::clone(&repository),
            digest: digest.clone(),
            link,
            data,
            size: 6,
        },
        Key::Manifest { repository: repository.clone(), digest: digest.clone(), object: Ulid::r#gen() },
        Key::Tag { repository, tag: "late".parse().unwrap(), revision, deadline: late, to: Some(digest) },
    ];
    for key in &orphans {
        bench.store.put(key, vec![Bytes::from_static(b"orphan")], None).await.unwrap();
    }
    orphans
}

async fn what_nothing_needs_goes(bench: Bench) {
    let kept = prepare(&bench).await;
    let before = bench.keys().await;
    let orphans = orphans(&bench).await;
    bench.clock.advance(GRACE / 2);
    assert!(
        matches!(round::step(&bench.a, Ulid::r#gen(), Begin::Now).await.unwrap(), Step::NotYet),
        "the epoch is young"
    );
    bench.clock.advance(GRACE);

    let mut seen = Vec::new();
    let examined = round::examine(&bench.b, |garbage| seen.push(garbage.clone())).await.unwrap();
    assert_eq!((examined.links, examined.manifests, examined.revisions, examined.data), (4, 1, 1, 1), "{seen:?}");
    assert!(orphans.iter().all(|orphan| seen.iter().any(|garbage| garbage.key == *orphan)), "{seen:?}");
    assert_eq!(seen.iter().filter(|garbage| matches!(garbage.why, Why::Unneeded(_))).count(), 3);
    assert!(bench.keys().await.is_superset(&before), "a dry run removed something");

    let found = bench.collect().await;
    assert_eq!(found, examined);
    assert_eq!(assert_at_rest(&bench, NAMES, "collected").await, 0);
    assert_eq!(bench.tag("app", "v1").await, Some(kept));
    let kinds = bench::kinds(&bench.keys().await);
    assert_eq!((kinds["data"], kinds["link"], kinds["manifest"]), (2, 2, 1));
    assert_eq!(bench.collect().await, Found::default(), "a second round finds nothing");
}

#[tokio::test]
async fn what_nothing_needs_goes_locally() {
    what_nothing_needs_goes(bench::local(options()).await).await;
}

#[tokio::test]
async fn what_nothing_needs_goes_over_redis_and_s3() {
    what_nothing_needs_goes(bench::remote(options()).await).await;
}

/// A blob that somebody asked for lately may be about to be needed.
#[tokio::test]
async fn a_push_that_asks_for_a_blob_keeps_it() {
    let bench = bench::local(options()).await;
    let digest = bench.blob("app", b"layer").await;
    bench.clock.advance(GRACE * 2);
    bench.repo("app").await.blob_to_keep(&digest).await.unwrap();
    bench.clock.advance(GRACE / 2);
    assert_eq!(bench.collect().await, Found::default());
    bench.read("app", &digest).await.unwrap();
    bench.clock.advance(GRACE);
    assert_eq!(bench.collect().await.links, 1);
    assert!(bench.read("app", &digest).await.is_err());
}

/// Bytes that two repositories use stay until both links are gone, then go at once, and what hints at them too.
#[tokio::test]
async fn the_bytes_go_with_their_last_link() {
    let bench = bench::local(options()).await;
    let digest = bench.blob("app", b"shared").await;
    bench.repo("other").await.mount(&bench.repo("app").await, &digest).await.unwrap().unwrap();
    let data = |keys: BTreeSet<String>| keys.iter().filter(|key| key.starts_with("data/")).count();
    bench.repo("app").await.delete_blob(&digest).await.unwrap();
    bench.work().await;
    bench.read("other", &digest).await.unwrap();
    assert_eq!(data(bench.keys().await), 1);
    bench.repo("other").await.delete_blob(&digest).await.unwrap();
    bench.work().await;
    assert_eq!(bench.keys().await, BTreeSet::new());
    let lease = bench.a.lease().await.unwrap();
    let hint = lease.get(lease.names.hint_shard(&digest), &[Ask::Value(lease.names.hint(&digest))]).await.unwrap();
    assert_eq!(hint, [None]);
}

/// A use that no link makes any more keeps nothing.
#[tokio::test]
async fn a_stale_use_goes_and_with_it_the_bytes() {
    let bench = bench::local(options()).await;
    let kept = prepare(&bench).await;
    let lease = bench.a.lease().await.unwrap();
    let digest = sha256(b"never needed");
    let blob = bench.repo("app").await.blob(&digest).await.unwrap();
    for _ in 0..3 {
        let user = lease.names.user(blob.data(), &"other".parse().unwrap(), Ulid::r#gen());
        let writes = vec![Write::Put(user, Bytes::from(digest.to_string()))];
        lease.commit(lease.names.home_of(blob.data()), Batch { writes, ..Batch::default() }).await.unwrap();
    }
    bench.clock.advance(GRACE * 2);
    let first = bench.collect().await;
    let second = bench.collect().await;
    assert_eq!((first.uses + second.uses, second.links), (3, 0));
    assert_eq!(assert_at_rest(&bench, NAMES, "stale uses").await, 0);
    assert_eq!(bench.tag("app", "v1").await, Some(kept));
}

/// While the index doesn't know the whole bucket, nothing is removed: a link that nobody has adopted may need it.
#[tokio::test]
async fn nothing_is_removed_before_the_index_is_filled() {
    let bench = bench::local(options()).await;
    let digest = bench.blob("app", b"shared").await;
    bench.repo("other").await.mount(&bench.repo("app").await, &digest).await.unwrap().unwrap();
    let bench = bench.with_new_index().await;
    bench.clock.advance(GRACE * 2);
    bench.repo("app").await.delete_blob(&digest).await.unwrap();
    bench.work().await;
    assert!(matches!(round::step(&bench.a, Ulid::r#gen(), Begin::Now).await.unwrap(), Step::NotYet));
    bench.read("other", &digest).await.unwrap();
    berth::reconcile::walk(&bench.a, |_| {}).await.unwrap();
    bench.work().await;
    bench.read("other", &digest).await.unwrap();
    bench.collect().await;
    assert_eq!(bench.keys().await, BTreeSet::new(), "no manifest needs it");
}

/// A removal that the store gets too late is not done.
#[tokio::test]
async fn a_removal_that_comes_late_is_refused() {
    let bench = bench::local(options()).await;
    let digest = bench.blob("app", b"late").await;
    let data = bench.repo("app").await.blob(&digest).await.unwrap().data();
    bench.probe.strike(How::Stall, |_, call| call.kind == "delete" && call.about.contains("/_blobs/"));
    let repository = on(&bench.a, "app").await;
    let stalled = async { repository.delete_blob(&digest).await.unwrap_err() };
    let others = async {
        until_struck(&bench).await;
        bench.clock.advance(Duration::from_secs(60));
        bench.probe.release();
    };
    tokio::join!(stalled, others);
    assert!(bench.keys().await.iter().any(|key| key.contains("/_blobs/")));
    bench.work().await;
    assert!(!bench.keys().await.contains(&Key::Data(data).to_string()));
}

/// Two replicas at it: one round goes on, and where its replica has died, another takes it up.
#[tokio::test]
async fn another_replica_takes_a_round_up() {
    let bench = bench::local(options()).await;
    prepare(&bench).await;
    bench.clock.advance(GRACE * 2);
    let (one, two) = (Ulid::from(1_u128), Ulid::from(2_u128));
    assert_eq!(round::step(&bench.a, one, Begin::WhenDue).await.unwrap(), Step::Went);
    assert_eq!(round::step(&bench.a, one, Begin::WhenDue).await.unwrap(), Step::Went);
    assert_eq!(round::step(&bench.b, two, Begin::WhenDue).await.unwrap(), Step::Elsewhere);
    bench.clock.advance(Duration::from_secs(61));
    let taken = round::status(&bench.b).await.unwrap().round.unwrap();
    assert_eq!(round::step(&bench.b, two, Begin::WhenDue).await.unwrap(), Step::Went);
    let round = round::status(&bench.b).await.unwrap().round.unwrap();
    assert_eq!((round.by.owner, round.after, round.found), (two, taken.after, taken.found));
    assert_eq!(round::step(&bench.a, one, Begin::WhenDue).await.unwrap(), Step::Elsewhere);
    let Step::Over(finished) = round::step(&bench.b, two, Begin::WhenDue).await.unwrap() else { panic!("not over") };
    assert_eq!(finished.found.links, 3);
    assert_eq!(round::step(&bench.a, one, Begin::WhenDue).await.unwrap(), Step::NotYet, "the next one isn't due");
    bench.clock.advance(options().collect_period);
    assert_eq!(round::step(&bench.a, one, Begin::WhenDue).await.unwrap(), Step::Went);
}

async fn until_struck(bench: &Bench) {
    while !bench.probe.has_struck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A whole push by engine B: its layer's bytes are there already in another repository, and are about to go.
async fn racing_push(bench: &Bench) -> Result<(), Error> {
    let (config, layer) = (&b"never needed"[..], &b"layer of deleted"[..]);
    for bytes in [config, layer] {
        let digest = sha256(bytes);
        let repository = on(&bench.b, "app").await;
        if repository.blob_to_keep(&digest).await.is_err() {
            let (id, progress) = repository.start_upload("me");
            let body = Incoming::of(bytes.to_vec());
            repository.finish(&id, Some(&progress.proof), None, &digest, body).await?;
        }
    }
    push(&on(&bench.b, "app").await, &image(config, &[layer]), &["raced"]).await.map(drop)
}

/// I7: collection is stopped before each of its calls in turn, an image that needs what is being collected is
/// pushed meanwhile, and collection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_amid_any_step_of_a_collection_is_whole() {
    let mut refused = 0;
    for k in 1.. {
        let bench = bench::local(options()).await;
        let kept = prepare(&bench).await;
        bench.clock.advance(GRACE * 2);
        bench.probe.strike_at(k, How::Stall);
        let collection = async {
            collect_by_a(&bench).await;
            bench.probe.spare()
        };
        let pushing = async {
            tokio::select! { () = until_struck(&bench) => {}, () = tokio::time::sleep(Duration::from_secs(2)) => {} }
            let pushed = racing_push(&bench).await;
            bench.probe.release();
            pushed
        };
        let (struck, pushed) = tokio::join!(collection, pushing);
        // What it had was collected between its steps: a client pushes again.
        if pushed.is_err() {
            refused += 1;
            racing_push(&bench).await.unwrap();
        }
        let what = format!("call {k}: {struck:?}");
        let raced = sha256(&image(b"never needed", &[b"layer of deleted"]));
        for _ in 0..2 {
            assert_eq!(tag_of(&on(&bench.b, "app").await, "raced").await.unwrap(), Some(raced.clone()), "{what}");
            assert_eq!(bench.tag("app", "v1").await, Some(kept.clone()), "{what}");
            bench.clock.advance(GRACE * 2);
            bench.collect().await;
        }
        assert_eq!(assert_at_rest(&bench, NAMES, &what).await, 0, "{what}");
        if struck.is_none() {
            println!("{k} places, {refused} pushes that had to be made again");
            assert!(k > 30);
            return;
        }
    }
}

/// A round by engine A, and its background work. It may fail where something was struck.
async fn collect_by_a(bench: &Bench) {
    let (owner, mut begin) = (Ulid::from(1_u128), Begin::Now);
    while let Ok(Step::Went) = round::step(&bench.a, owner, begin).await {
        begin = Begin::WhenDue;
    }
    for _ in 0..2 {
        let _ = worker::work_once(&bench.a, owner).await;
    }
}

/// The replica that collects dies after each of its calls in turn: another one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_dies_anywhere_is_finished_by_another() {
    for k in 1.. {
        let bench = bench::local(options()).await;
        let kept = prepare(&bench).await;
        orphans(&bench).await;
        bench.clock.advance(GRACE * 2);
        bench.probe.strike_at(k, How::HangAfter);
        tokio::select! { () = collect_by_a(&bench) => {}, () = until_struck(&bench) => {} }
        let struck = bench.probe.spare();
        let what = format!("call {k}: {struck:?}");
        bench.clock.advance(GRACE);
        bench.work().await;
        bench.collect().await;
        bench.collect().await;
        assert_eq!(assert_at_rest(&bench, NAMES, &what).await, 0, "{what}");
        assert_eq!(bench.tag("app", "v1").await, Some(kept), "{what}");
        if struck.is_none() {
            println!("{k} places");
            assert!(k > 40);
            return;
        }
    }
}

/// An upload that was stopped between its bytes and the note of them: when it wakes, collection may have them.
#[tokio::test]
async fn bytes_that_were_put_aside_too_long_ago_are_not_taken_up() {
    for age in [EXPIRY / 2, GRACE] {
        let bench = bench::local(Options { upload_expiry: GRACE * 10, ..options() }).await;
        let repository = on(&bench.a, "app").await;
        let (id, progress) = repository.start_upload("me");
        bench.probe.strike(How::Stall, |_, call| call.kind == "commit" && call.about.contains(":uploads"));
        let proof = progress.proof.clone();
        let append = repository.append(&id, Some(&proof), None, berth::oci::Algorithm::Sha256, Incoming::of("aside"));
        let others = async {
            until_struck(&bench).await;
            while !bench.keys().await.iter().any(|key| key.starts_with("data/")) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            bench.clock.advance(age);
            if age == GRACE {
                let mut begin = Begin::Now;
                while round::step(&bench.b, Ulid::from(2_u128), begin).await.unwrap() == Step::Went {
                    begin = Begin::WhenDue;
                }
            }
            bench.probe.release();
        };
        let (progress, ()) = tokio::join!(append, others);
        let progress = progress.unwrap();
        let finished = repository.finish(&id, Some(&progress.proof), None, &sha256(b"aside"), Incoming::empty()).await;
        bench.work().await;
        match finished {
            Ok(blob) if age < GRACE => assert_eq!(bytes_of(&blob).await.unwrap(), "aside"),
            Err(error) if age == GRACE => assert_eq!(error.code, berth::error::Code::BlobUploadUnknown),
            other => panic!("{age:?}: {other:?}"),
        }
    }
}

/// One race, at one place, without one check.
struct Race {
    name: &'static str,
    /// Engine A is stopped before this call.
    stopped_at: fn(&crate::wrappers::Call) -> bool,
    /// What is left out.
    left_out: LeftOut,
    /// What engine A does; its failure is no matter.
    a: for<'a> fn(&'a Bench) -> futures_util::future::BoxFuture<'a, ()>,
    /// What is done meanwhile by engine B.
    b: for<'a> fn(&'a Bench) -> futures_util::future::BoxFuture<'a, ()>,
}

const BLOB: &[u8] = b"never needed";

fn uploading<'a>(bench: &'a Bench, name: &'a str) -> futures_util::future::BoxFuture<'a, ()> {
    Box::pin(async move {
        let repository = on(&bench.b, name).await;
        let (id, progress) = repository.start_upload("me");
        let _ = repository.finish(&id, Some(&progress.proof), None, &sha256(BLOB), Incoming::of(BLOB.to_vec())).await;
        bench.probe.release();
    })
}

fn deleting(bench: &Bench) -> futures_util::future::BoxFuture<'_, ()> {
    Box::pin(async move {
        let _ = on(&bench.a, "app").await.delete_blob(&sha256(BLOB)).await;
        let _ = worker::work_once(&bench.a, Ulid::from(1_u128)).await;
        let _ = worker::work_once(&bench.a, Ulid::from(1_u128)).await;
    })
}

const RACES: &[Race] = &[
    Race {
        name: "a link is unlinked while a manifest that needs it is pushed",
        stopped_at: |call| {
            call.kind == "commit" && call.about.contains("Delete(Fact") && call.about.contains(":links:")
        },
        left_out: |_, check| matches!(check, Check::Empty(group) if group.contains(":refs:")),
        a: |bench| Box::pin(collect_by_a(bench)),
        b: |bench| {
            Box::pin(async move {
                push(&on(&bench.b, "app").await, &image(BLOB, &[]), &["needs"]).await.unwrap();
                bench.probe.release();
            })
        },
    },
    Race {
        name: "data is let go while another link joins it",
        stopped_at: |call| call.kind == "commit" && call.about.contains(":data:") && call.about.contains(":trash"),
        left_out: |_, check| matches!(check, Check::Empty(group) if group.contains(":users:")),
        a: deleting,
        b: |bench| uploading(bench, "other"),
    },
    Race {
        name: "dying data is joined",
        stopped_at: |call| call.kind == "delete" && call.about.starts_with("data/"),
        left_out: |batch, check| is_of(check, ":data:") && batch.writes.len() == 1,
        a: deleting,
        b: |bench| uploading(bench, "other"),
    },
    Race {
        name: "a link is committed whose attempt has expired",
        stopped_at: |call| call.kind == "commit" && call.about.contains("Put(Fact") && call.about.contains(":links:"),
        left_out: |_, check| matches!(check, Check::Present(fact) if fact.group.ends_with(":attempts")),
        a: |bench| {
            Box::pin(async move {
                let source = on(&bench.a, "app").await;
                let _ = on(&bench.a, "other").await.mount(&source, &sha256(BLOB)).await;
            })
        },
        b: |bench| {
            Box::pin(async move {
                // It had joined what was there: that goes, and so does the use that the attempt made of it.
                on(&bench.b, "app").await.delete_blob(&sha256(BLOB)).await.unwrap();
                bench.clock.advance(GRACE * 2);
                let mut begin = Begin::Now;
                for owner in [2_u128, 3] {
                    for _ in 0..3 {
                        worker::work_once(&bench.b, Ulid::from(owner)).await.unwrap();
                    }
                    while round::step(&bench.b, Ulid::from(owner), begin).await.unwrap() == Step::Went {
                        begin = Begin::WhenDue;
                    }
                    begin = Begin::Now;
                }
                for _ in 0..3 {
                    worker::work_once(&bench.b, Ulid::from(2_u128)).await.unwrap();
                }
                bench.probe.release();
            })
        },
    },
];

/// Whether everything that the index says is there can be read, after the race and when all is done.
async fn is_whole_after(race: &Race, left_out: LeftOut) -> bool {
    let bench = bench::local_with(options(), |connect| Arc::new(LaxConnect(connect, left_out))).await;
    bench.blob("app", BLOB).await;
    bench.clock.advance(GRACE * 2);
    let stopped_at = race.stopped_at;
    bench.probe.strike(How::Stall, move |_, call| stopped_at(call));
    let meanwhile = async {
        until_struck(&bench).await;
        (race.b)(&bench).await;
        bench.probe.release();
    };
    tokio::join!((race.a)(&bench), meanwhile);
    bench.work().await;
    let mut whole = true;
    for name in NAMES {
        if let Ok(blob) = on(&bench.b, name).await.blob(&sha256(BLOB)).await {
            whole &= blob.open(None).await.is_ok();
        }
    }
    match on(&bench.b, "app").await.find_manifest(&berth::oci::Reference::Digest(sha256(&image(BLOB, &[])))).await {
        Ok(_) => whole && bench.read("app", &sha256(BLOB)).await.is_ok(),
        Err(_) => whole,
    }
}

#[tokio::test]
async fn each_check_matters() {
    for race in RACES {
        assert!(is_whole_after(race, |_, _| false).await, "{}", race.name);
        assert!(!is_whole_after(race, race.left_out).await, "without its check nothing went wrong: {}", race.name);
    }
}
