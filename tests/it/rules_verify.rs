//! Verifying: each way in which an index can be wrong is seen, mended where the bucket proves what is right, and
//! nothing is said of what is just going on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth::{
    epoch::Lease,
    index::{
        Ask, Batch, Fact, Shard, Write,
        facts::{self, DataFact, DataState, LinkFact, ManifestFact, TagFact, TrashFact},
    },
    oci::{Digest, RepositoryName},
    registry::Options,
    storage::{DataKey, Key},
    verify::{self, About, Repair, Verified},
    worker,
};
use bytes::Bytes;
use ulid::Ulid;

use crate::{
    rules_bench::{self as bench, Bench, bytes_of, code, on, sha256, tag_of},
    rules_faults::assert_at_rest,
    wrappers::How,
};

/// A repository with an image under a tag, a signature of it, and what index and bucket say of them.
struct Broken {
    bench: Bench,
    name: RepositoryName,
    image: Bytes,
    lease: Arc<Lease>,
}

impl Broken {
    async fn prepare() -> Self {
        let bench = bench::local(bench::options()).await;
        let image = bench.image("app", "one").await;
        bench.push("app", &image, &["v1"]).await.unwrap();
        let signature = bench.image("app", "signature").await;
        bench.push("app", &bench::with_subject(&signature, &image, "application/signature"), &[]).await.unwrap();
        let two = bench.image("app", "two").await;
        bench.push("app", &two, &["v2"]).await.unwrap();
        bench.push("app", &two, &["gone"]).await.unwrap();
        bench.repo("app").await.delete_tag(&"gone".parse().unwrap()).await.unwrap();
        bench.work().await;
        let lease = bench.a.lease().await.unwrap();
        Self { bench, name: "app".parse().unwrap(), image, lease }
    }

    fn shard(&self) -> Shard {
        self.lease.names.shard_of(&self.name)
    }

    /// Reads and writes the index past all rules.
    async fn raw(&self, shard: Shard, write: Write) {
        self.lease.index.commit(shard, Batch { writes: vec![write], ..Batch::default() }).await.unwrap();
    }

    async fn value(&self, shard: Shard, fact: &Fact) -> Bytes {
        self.lease.index.get(shard, &[Ask::Value(fact.clone())]).await.unwrap().remove(0).unwrap()
    }

    fn layer(&self) -> Digest {
        sha256(b"layer of one")
    }

    fn manifest(&self) -> Digest {
        sha256(&self.image)
    }

    async fn link(&self) -> LinkFact {
        let fact = self.lease.names.link(&self.name, &self.layer());
        facts::decode(&self.value(self.shard(), &fact).await).unwrap()
    }

    /// Removes an object behind everybody's back.
    async fn remove(&self, key: &Key) {
        let store = &self.bench.store;
        store.delete(key, store.now().plus(Duration::from_secs(60))).await.unwrap();
    }

    async fn link_key(&self) -> Key {
        let LinkFact { link, data, size, .. } = self.link().await;
        Key::Link { repository: self.name.clone(), digest: self.layer(), link, data, size }
    }

    async fn verify(&self, repair: Repair) -> (Vec<(About, bool)>, Verified) {
        let mut told = Vec::new();
        let tell = |told: &mut Vec<_>, about: &verify::Disagreement, mended| {
            println!("{about} ({mended})");
            told.push((about.about.clone(), mended));
        };
        let verified =
            verify::verify(&self.bench.a, Vec::new(), repair, |about, mended| tell(&mut told, about, mended));
        let verified = verified.await.unwrap();
        (told, verified)
    }

    /// Sees something wrong and changes nothing, mends it, and then finds nothing.
    async fn assert_mends(self, what: &str, is_it: impl Fn(&About) -> bool) {
        let before = self.bench.keys().await;
        let (told, verified) = self.verify(Repair::Nothing).await;
        assert!(told.iter().any(|(about, mended)| is_it(about) && !mended), "{what}: {told:?}");
        assert_eq!((verified.found, verified.left), (told.len(), told.len()), "{what}");
        assert_eq!(self.verify(Repair::Nothing).await.0, told, "{what}: telling changes nothing");
        let (told, verified) = self.verify(Repair::Index).await;
        assert!(told.iter().any(|(about, mended)| is_it(about) && *mended), "{what}: {told:?}");
        assert_eq!(verified.left, 0, "{what}: {told:?}");
        assert_eq!(
            self.verify(Repair::Nothing).await,
            (Vec::new(), Verified { repositories: 1, found: 0, left: 0 }),
            "{what}"
        );
        assert!(self.bench.keys().await.is_superset(&before), "{what}: something left the bucket");
        self.assert_whole(what).await;
    }

    /// Everything is there again, and stays through a collection.
    async fn assert_whole(&self, what: &str) {
        let bench = &self.bench;
        bench.work().await;
        bench.clock.advance(Duration::from_secs(100 * 3600));
        bench.collect().await;
        for engine in [&bench.a, &bench.b] {
            let repository = on(engine, "app").await;
            assert_eq!(tag_of(&repository, "v1").await.unwrap(), Some(self.manifest()), "{what}");
            assert_eq!(repository.referrers(&self.manifest(), None, None, 10).await.unwrap().0.len(), 1, "{what}");
            bytes_of(&repository.blob(&self.layer()).await.unwrap()).await.unwrap();
            assert!(repository.delete_blob(&self.layer()).await.is_err(), "{what}: a manifest needs it");
        }
        let (names, _) = bench.a.catalog(None, 10, |_| true).await.unwrap();
        assert_eq!(names, std::slice::from_ref(&self.name), "{what}");
        assert_eq!(assert_at_rest(bench, &["app"], what).await, 0);
    }
}

#[tokio::test]
async fn an_index_that_is_right_is_silent() {
    let broken = Broken::prepare().await;
    assert_eq!(broken.verify(Repair::Index).await, (Vec::new(), Verified { repositories: 1, found: 0, left: 0 }));
    broken.assert_whole("nothing was broken").await;
}

#[tokio::test]
async fn a_lost_link_is_linked_anew() {
    let broken = Broken::prepare().await;
    let fact = broken.lease.names.link(&broken.name, &broken.layer());
    broken.raw(broken.shard(), Write::Delete(fact)).await;
    broken.assert_mends("link", |about| matches!(about, About::LinkUnknown(_))).await;
}

#[tokio::test]
async fn a_link_without_an_object_gets_one() {
    let broken = Broken::prepare().await;
    broken.remove(&broken.link_key().await).await;
    broken.assert_mends("link's object", |about| matches!(about, About::LinkGone(_))).await;
}

#[tokio::test]
async fn bytes_that_their_home_forgot_are_known_again() {
    for is_used in [true, false] {
        let broken = Broken::prepare().await;
        let LinkFact { link, data, .. } = broken.link().await;
        let names = &broken.lease.names;
        broken.raw(names.home_of(data), Write::Delete(names.data(data))).await;
        if !is_used {
            broken.raw(names.home_of(data), Write::Delete(names.user(data, &broken.name, link))).await;
        }
        broken.assert_mends("data", |about| matches!(about, About::DataUnknown(_))).await;
    }
}

#[tokio::test]
async fn bytes_of_a_wrong_size_in_the_index_are_known_right_again() {
    let broken = Broken::prepare().await;
    let LinkFact { data, size, .. } = broken.link().await;
    let wrong = DataFact { digest: broken.layer(), size: size + 1, state: DataState::Live };
    let names = &broken.lease.names;
    broken.raw(names.home_of(data), Write::Put(names.data(data), facts::encode(&wrong))).await;
    broken.assert_mends("size", |about| matches!(about, About::DataUnknown(_))).await;
}

#[tokio::test]
async fn a_lost_use_is_noted_again() {
    let broken = Broken::prepare().await;
    let LinkFact { link, data, .. } = broken.link().await;
    let names = &broken.lease.names;
    broken.raw(names.home_of(data), Write::Delete(names.user(data, &broken.name, link))).await;
    broken.assert_mends("user", |about| matches!(about, About::UserUnknown(_))).await;
}

#[tokio::test]
async fn a_lost_manifest_is_pushed_anew() {
    let broken = Broken::prepare().await;
    let fact = broken.lease.names.manifest(&broken.name, &broken.manifest());
    broken.raw(broken.shard(), Write::Delete(fact)).await;
    broken.assert_mends("manifest", |about| matches!(about, About::ManifestUnknown(..))).await;
}

#[tokio::test]
async fn what_follows_from_a_manifest_is_noted_again() {
    for lost in ["reference", "referrer", "catalog", "size"] {
        let broken = Broken::prepare().await;
        let (names, manifest) = (&broken.lease.names, broken.manifest());
        let write = match lost {
            "reference" => {
                let group = names.refs(&broken.name, &broken.layer());
                Write::Delete(Fact::new(group, format!("m:{manifest}")))
            }
            "referrer" => {
                let group = names.referrers(&broken.name, &manifest);
                let (member, _) = broken.lease.scan(broken.shard(), &group, None, 10).await.unwrap().remove(0);
                Write::Delete(Fact::new(group, member))
            }
            "catalog" => Write::Delete(Fact::new(names.repositories(), "app")),
            _ => {
                let fact = names.manifest(&broken.name, &manifest);
                let known: ManifestFact = facts::decode(&broken.value(broken.shard(), &fact).await).unwrap();
                Write::Put(fact, facts::encode(&ManifestFact { content_size: 1, ..known }))
            }
        };
        broken.raw(broken.shard(), write).await;
        broken.assert_mends(lost, |about| matches!(about, About::ManifestFacts(_))).await;
    }
}

#[tokio::test]
async fn a_tag_that_lags_behind_catches_up() {
    for how in ["lost", "older", "other", "deleted", "unnamed"] {
        let broken = Broken::prepare().await;
        let (names, name) = (&broken.lease.names, &broken.name);
        let v1 = names.tag(name, &"v1".parse().unwrap());
        let known = TagFact::decode(&broken.value(broken.shard(), &v1).await).unwrap();
        let write = match how {
            "lost" => Write::Delete(v1),
            "older" => {
                let mut older = known;
                older.revision.counter = 0;
                Write::Put(v1, older.encode())
            }
            "other" => {
                let v2 = broken.value(broken.shard(), &names.tag(name, &"v2".parse().unwrap())).await;
                let other = TagFact { state: TagFact::decode(&v2).unwrap().state, ..known };
                Write::Put(v1, other.encode())
            }
            "deleted" => {
                // A deletion that the index has lost: the tag is back.
                let gone = names.tag(name, &"gone".parse().unwrap());
                let mut back = TagFact::decode(&broken.value(broken.shard(), &gone).await).unwrap();
                back.revision.counter -= 1;
                back.state = known.state;
                Write::Put(gone, back.encode())
            }
            _ => Write::Delete(Fact::new(names.names_of(name, &broken.manifest()), "t:v1")),
        };
        broken.raw(broken.shard(), write).await;
        let is_it = |about: &About| match how {
            "unnamed" => matches!(about, About::TagUnnamed(_)),
            _ => matches!(about, About::TagBehind(..)),
        };
        broken.assert_mends(how, is_it).await;
    }
}

/// A repository of which the index knows nothing at all any more.
#[tokio::test]
async fn a_repository_that_was_lost_whole_comes_back() {
    let broken = Broken::prepare().await;
    let (names, name) = (&broken.lease.names, &broken.name);
    let refs = [b"config of one".as_slice(), b"layer of one"].map(|blob| names.refs(name, &sha256(blob)));
    let more = [names.names_of(name, &broken.manifest()), names.referrers(name, &broken.manifest())];
    for group in [names.links(name), names.manifests(name), names.tags(name), names.repositories()]
        .into_iter()
        .chain(refs)
        .chain(more)
    {
        for (member, _) in broken.lease.scan(broken.shard(), &group, None, 1000).await.unwrap() {
            broken.raw(broken.shard(), Write::Delete(Fact::new(group.clone(), member))).await;
        }
    }
    broken.assert_mends("everything", |about| matches!(about, About::LinkUnknown(_))).await;
}

/// What the bucket has lost is told, whatever is asked for, and a new epoch leaves it out.
#[tokio::test]
async fn what_is_gone_from_the_bucket_is_told_and_not_mended() {
    for lost in ["bytes", "shorter", "manifest", "revision", "link and bytes"] {
        let broken = Broken::prepare().await;
        let link = broken.link().await;
        let is_it: fn(&About) -> bool = match lost {
            "bytes" => {
                broken.remove(&Key::Data(link.data)).await;
                |about| matches!(about, About::DataGone(_))
            }
            "shorter" => {
                broken.bench.store.put(&Key::Data(link.data), vec![Bytes::from_static(b"x")], None).await.unwrap();
                |about| matches!(about, About::DataGone(_))
            }
            "manifest" => {
                let fact = broken.lease.names.manifest(&broken.name, &broken.manifest());
                let known: ManifestFact = facts::decode(&broken.value(broken.shard(), &fact).await).unwrap();
                let (repository, digest, object) = (broken.name.clone(), broken.manifest(), known.object);
                broken.remove(&Key::Manifest { repository, digest, object }).await;
                |about| matches!(about, About::ManifestGone(_))
            }
            "revision" => {
                for key in broken.bench.keys().await.iter().filter(|key| key.contains("/_tags/v1/")) {
                    broken.remove(&Key::parse(key).unwrap()).await;
                }
                |about| matches!(about, About::TagGone(..))
            }
            _ => {
                broken.remove(&broken.link_key().await).await;
                broken.remove(&Key::Data(link.data)).await;
                let fact = broken.lease.names.link(&broken.name, &broken.layer());
                broken.raw(broken.shard(), Write::Delete(fact)).await;
                |about| matches!(about, About::BlobGone(..))
            }
        };
        for repair in [Repair::Nothing, Repair::Index, Repair::Nothing] {
            let (told, verified) = broken.verify(repair).await;
            assert!(told.iter().any(|(about, mended)| is_it(about) && !mended), "{lost}: {told:?}");
            assert_eq!((verified.found, verified.left), (1, 1), "{lost}");
        }
        let bench = broken.bench.with_new_index().await;
        berth::reconcile::walk(&bench.a, |_| {}).await.unwrap();
        let told = verify::verify(&bench.a, Vec::new(), Repair::Nothing, |about, _| println!("{about}")).await.unwrap();
        // What needed it is left out as well, and what is left is whole.
        assert_eq!(told.found, 0, "{lost}");
        assert_eq!(bench.tag("app", "v1").await, None, "{lost}");
        assert!(bench.tag("app", "v2").await.is_some(), "{lost}");
    }
}

/// Bytes that are on their way out are not brought back: the request that removes them may be on its way.
#[tokio::test]
async fn condemned_bytes_stay_condemned() {
    let broken = Broken::prepare().await;
    let LinkFact { data, .. } = broken.link().await;
    let names = &broken.lease.names;
    broken.raw(names.home_of(data), Write::Delete(names.data(data))).await;
    let trash = TrashFact { keys: vec![Key::Data(data).to_string()], ..TrashFact::default() };
    let record = names.trashed(Ulid::r#gen());
    broken.raw(names.home_of(data), Write::Put(record, facts::encode(&trash))).await;
    let (told, verified) = broken.verify(Repair::Index).await;
    assert!(matches!(told[..], [(About::DataUnknown(_), false)]), "{told:?}");
    assert_eq!(verified.left, 1);
    let left = broken.lease.index.get(names.home_of(data), &[Ask::Value(names.data(data))]).await.unwrap();
    assert_eq!(left, [None], "what was held is let go");
}

/// A tag that somebody is moving is the mover's.
#[tokio::test]
async fn a_tag_that_is_being_moved_is_left_alone() {
    let broken = Broken::prepare().await;
    let two = broken.bench.image("app", "two").await;
    broken.bench.probe_b.strike(How::Stall, |_, call| call.kind == "put" && call.about.contains("/_tags/v1/"));
    let repository = on(&broken.bench.b, "app").await;
    let moving = tokio::spawn(async move { bench::push(&repository, &two, &["v1"]).await });
    while !broken.bench.probe_b.has_struck() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let v1 = broken.lease.names.tag(&broken.name, &"v1".parse().unwrap());
    broken.raw(broken.shard(), Write::Delete(v1)).await;
    assert_eq!(broken.verify(Repair::Index).await.0, []);
    broken.bench.probe_b.release();
    moving.await.unwrap().unwrap();
    assert_eq!(broken.verify(Repair::Index).await.0, []);
}

/// An upload that was noted, a link whose commit is awaited, a writer that died: none of them is a disagreement.
#[tokio::test]
async fn what_writers_left_is_no_disagreement() {
    let broken = Broken::prepare().await;
    let (store, digest) = (&broken.bench.store, sha256(b"orphan"));
    let (link, data) = (Ulid::r#gen(), DataKey(Ulid::r#gen()));
    let repository = broken.name.clone();
    let orphans = [
        Key::Link { repository: repository.clone(), digest: digest.clone(), link, data, size: 6 },
        Key::Manifest { repository, digest, object: Ulid::r#gen() },
    ];
    for key in &orphans {
        store.put(key, vec![Bytes::from_static(b"orphan")], None).await.unwrap();
    }
    for (kind, what) in [("/_blobs/", How::HangAfter), ("/_manifests/", How::HangAfter), ("/_tags/", How::HangAfter)] {
        broken.bench.probe_b.strike(what, move |_, call| call.kind == "put" && call.about.contains(kind));
        let bench = &broken.bench;
        let repository = on(&bench.b, "app").await;
        let image = bench::image(b"config of dying", &[kind.as_bytes()]);
        let dying = async {
            let (id, progress) = repository.start_upload("me");
            for blob in [b"config of dying".as_slice(), kind.as_bytes()] {
                let body = berth::upload::Incoming::of(blob.to_vec());
                let (id, progress) = if blob == kind.as_bytes() {
                    (id.clone(), progress.clone())
                } else {
                    repository.start_upload("me")
                };
                repository.finish(&id, Some(&progress.proof), None, &sha256(blob), body).await.unwrap();
            }
            bench::push(&repository, &image, &["dying"]).await.unwrap();
        };
        tokio::select! { () = dying => panic!("{kind}"), () = async { while !bench.probe_b.has_hung() { tokio::task::yield_now().await; } } => {} }
        bench.probe_b.spare();
        assert_eq!(broken.verify(Repair::Index).await.0, [], "{kind}");
    }
}

/// Beside pushes, moves, deletes and the collection nothing is said, and nothing is mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_traffic_nothing_is_said() {
    let grace = Duration::from_millis(300);
    let options = Options { grace, upload_expiry: Duration::from_secs(60), ..bench::options() };
    for bench in [bench::local(options.clone()).await, bench::remote(options).await] {
        let (bench, stop, pushes) = (Arc::new(bench), Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let traffic: Vec<_> = ["app", "team/app", "app", "z"]
            .into_iter()
            .enumerate()
            .map(|(writer, name)| {
                let (bench, stop, pushes) = (Arc::clone(&bench), Arc::clone(&stop), Arc::clone(&pushes));
                tokio::spawn(async move {
                    for round in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let seed = format!("{writer} {}", round % 7);
                        // The collection may take a blob between its push and its manifest's: the grace is that short.
                        let image = bench.image(name, &seed).await;
                        let pushed = bench.push(name, &image, &["shared", &format!("w{writer}")]).await;
                        pushes.fetch_add(usize::from(pushed.is_ok()), Ordering::SeqCst);
                        if round % 3 == 0 {
                            drop(bench.repo(name).await.delete_manifest(&sha256(&image)).await);
                            drop(
                                bench
                                    .repo(name)
                                    .await
                                    .delete_blob(&sha256(format!("layer of {seed}").as_bytes()))
                                    .await,
                            );
                        }
                        worker::work_once(&bench.b, Ulid::from(2_u128)).await.unwrap();
                    }
                })
            })
            .collect();
        let mut rounds = 0;
        while rounds < 5 || pushes.load(Ordering::SeqCst) < 60 {
            let mut told = Vec::new();
            let verified = verify::verify(&bench.a, Vec::new(), Repair::Index, |about, _| told.push(about.to_string()))
                .await
                .unwrap();
            assert_eq!(told, Vec::<String>::new());
            assert_eq!(verified.left, 0);
            rounds += 1;
        }
        stop.store(true, Ordering::SeqCst);
        for traffic in traffic {
            traffic.await.unwrap();
        }
        println!("{rounds} verifications beside {} pushes", pushes.load(Ordering::SeqCst));
    }
}

#[tokio::test]
async fn an_index_that_is_being_filled_is_not_verified() {
    let broken = Broken::prepare().await;
    let bench = broken.bench.with_new_index().await;
    let refused = verify::verify(&bench.a, Vec::new(), Repair::Index, |_, _| {}).await;
    assert_eq!(code(refused), berth::error::Code::Unavailable);
}
