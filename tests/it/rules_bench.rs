//! What the tests of the rules share: two engines over one index and one store, and a client's doings.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth::{
    blob::Blob,
    collect::round::{self, Begin, Step},
    epoch::Timing,
    error::{Code, Error},
    index::{Ask, Connect, embedded::Embedded, facts::Found, redis::Redis},
    manifest::Push,
    oci::{Algorithm, Digest, Manifest, Reference, RepositoryName, Tag},
    reader::Reader,
    reconcile,
    registry::{Options, OtherIndex, Registry, Repository},
    storage::{Key, Store, gcs::Gcs, local::Local, s3::S3},
    upload::Incoming,
    worker,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use ulid::Ulid;

use crate::{
    azurite, gcs_server,
    redis_fleet::{Cluster, Sentinels},
    redis_server, s3_server, storage,
    wrappers::{Clock, Probe, WatchedConnect, WatchedStore},
};

/// Small, so that an upload of many parts is cheap. S3 wants larger ones: see [`Bench::part`].
pub(crate) const PART: usize = 64 << 10;

pub(crate) fn options() -> Options {
    Options {
        timing: Timing {
            lease: Duration::from_secs(3),
            deadline: Duration::from_secs(4),
            margin: Duration::from_millis(200),
        },
        shards: 4,
        upload_memory: 64 << 20,
        ..Options::default()
    }
}

/// Two engines over one index and one store.
pub(crate) struct Bench {
    pub(crate) a: Arc<Registry>,
    pub(crate) b: Arc<Registry>,
    /// Watches engine A.
    pub(crate) probe: Arc<Probe>,
    /// Watches engine B.
    pub(crate) probe_b: Arc<Probe>,
    pub(crate) clock: Arc<Clock>,
    /// The store, unwatched.
    pub(crate) store: Arc<dyn Store>,
    connect: Arc<dyn Connect>,
    pub(crate) part: usize,
    options: Options,
    turn: AtomicUsize,
    _held: Vec<Box<dyn Any + Send + Sync>>,
}

/// What the tests of the rules run over, where they don't say it themselves: `redis`, `sentinel` or `cluster` with `+s3`,
/// `embedded+s3`, or either of `redis` and `embedded` with `+gcs` or `+azure` in this variable, else a directory with its
/// embedded index.
const OVER: &str = "BERTH_TEST_OVER";

/// Over an embedded index and a local directory, or what [`OVER`] says.
pub(crate) async fn local(options: Options) -> Bench {
    match std::env::var(OVER).as_deref() {
        Ok("redis+s3") => remote(options).await,
        Ok("sentinel+s3") => {
            let fleet = Sentinels::start().await;
            shared(&fleet.url(), Box::new(fleet), options).await
        }
        Ok("cluster+s3") => {
            let fleet = Cluster::start().await;
            shared(&fleet.url(), Box::new(fleet), options).await
        }
        Ok("embedded+s3") => alone(options).await,
        Ok("redis+gcs") => google(options, true).await,
        Ok("embedded+gcs") => google(options, false).await,
        Ok("redis+azure") => azure(options, true).await,
        Ok("embedded+azure") => azure(options, false).await,
        Ok(other) => panic!("{OVER}: {other}"),
        Err(_) => in_directory(options).await,
    }
}

/// Over an embedded index and a local directory: for tests whose parts are small, or that open hundreds.
pub(crate) async fn in_directory(options: Options) -> Bench {
    local_with(options, |connect| connect).await
}

/// The same over an embedded index that is not quite what it was.
pub(crate) async fn local_with(options: Options, wrap: impl FnOnce(Arc<dyn Connect>) -> Arc<dyn Connect>) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Local::open(directory.path(), false).unwrap());
    let connect = wrap(Arc::new(Embedded::open(&directory.path().join(".index"), false).unwrap()));
    Bench::open(store, connect, PART, options, vec![Box::new(directory)]).await
}

/// Over Redis and S3.
pub(crate) async fn remote(options: Options) -> Bench {
    let redis = redis_server::start().await;
    shared(&redis.url(), Box::new(redis), options).await
}

/// Over the Redis at `url`, which is kept as long as the bench, and S3.
async fn shared(url: &str, redis: Box<dyn Any + Send + Sync>, options: Options) -> Bench {
    let bucket = s3_server::start().await;
    let mut bench = over_url(url, &bucket, options).await;
    bench._held = vec![redis, Box::new(bucket)];
    bench
}

/// Over an embedded index and S3: one replica that needs nothing else to run.
pub(crate) async fn alone(options: Options) -> Bench {
    let (directory, bucket) = (tempfile::tempdir().unwrap(), s3_server::start().await);
    let store: Arc<dyn Store> = Arc::new(S3::open(storage::options(&bucket)).await.unwrap());
    let connect = Arc::new(Embedded::open(directory.path(), false).unwrap());
    Bench::open(store, connect, 5 << 20, options, vec![Box::new(directory), Box::new(bucket)]).await
}

/// Over what plays Google Cloud Storage, and Redis or an embedded index.
async fn google(options: Options, with_redis: bool) -> Bench {
    let bucket = gcs_server::start().await;
    let store: Arc<dyn Store> = Arc::new(Gcs::open(bucket.options()).await.unwrap());
    in_bucket(store, Box::new(bucket), 5 << 20, options, with_redis).await
}

/// Over what plays Azure Blob Storage, and Redis or an embedded index.
async fn azure(options: Options, with_redis: bool) -> Bench {
    let container = azurite::start().await;
    let store: Arc<dyn Store> = Arc::new(container.open().await);
    in_bucket(store, Box::new(container), PART, options, with_redis).await
}

async fn in_bucket(
    store: Arc<dyn Store>,
    bucket: Box<dyn Any + Send + Sync>,
    part: usize,
    options: Options,
    with_redis: bool,
) -> Bench {
    let mut held = vec![bucket];
    let connect: Arc<dyn Connect> = if with_redis {
        let redis = redis_server::start().await;
        let connect = Arc::new(Redis::new(&redis.url(), "berth").unwrap());
        held.push(Box::new(redis));
        connect
    } else {
        let directory = tempfile::tempdir().unwrap();
        let connect = Arc::new(Embedded::open(directory.path(), false).unwrap());
        held.push(Box::new(directory));
        connect
    };
    Bench::open(store, connect, part, options, held).await
}

/// Over a Redis and a bucket that the test keeps.
pub(crate) async fn over(redis: &redis_server::RedisServer, bucket: &s3_server::S3Server, options: Options) -> Bench {
    over_url(&redis.url(), bucket, options).await
}

/// The same, for one or several servers.
pub(crate) async fn over_url(redis: &str, bucket: &s3_server::S3Server, options: Options) -> Bench {
    let store: Arc<dyn Store> = Arc::new(S3::open(storage::options(bucket)).await.unwrap());
    let connect = Arc::new(Redis::new(redis, "berth").unwrap());
    Bench::open(store, connect, 5 << 20, options, Vec::new()).await
}

/// One engine over a Redis and a bucket that the test keeps, without anything being there before.
pub(crate) async fn engine(
    redis: &redis_server::RedisServer,
    bucket: &s3_server::S3Server,
    options: Options,
) -> Result<Arc<Registry>, Error> {
    let store: Arc<dyn Store> = Arc::new(S3::open(storage::options(bucket)).await.unwrap());
    let connect = Arc::new(Redis::new(&redis.url(), "berth").unwrap());
    Registry::open(store, connect, Options { upload_memory: 64 << 20, ..options }, OtherIndex::Refuse).await
}

impl Bench {
    async fn open(
        store: Arc<dyn Store>,
        connect: Arc<dyn Connect>,
        part: usize,
        options: Options,
        held: Vec<Box<dyn Any + Send + Sync>>,
    ) -> Self {
        let (probe, probe_b, clock) = (Arc::<Probe>::default(), Arc::<Probe>::default(), Arc::<Clock>::default());
        let make = Engine { store: &store, connect: &connect, clock: &clock, part, options: &options };
        let a = make.open(&probe, OtherIndex::Refuse).await.unwrap();
        let b = make.open(&probe_b, OtherIndex::Refuse).await.unwrap();
        reconcile::walk(&a, |_| {}).await.unwrap();
        assert!(b.is_settled().await.unwrap());
        let turn = AtomicUsize::new(0);
        Self { a, b, probe, probe_b, clock, store, connect, part, options, turn, _held: held }
    }

    /// The same bucket under another index, with nothing in it: as after the loss of the first.
    pub(crate) async fn with_new_index(self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let connect: Arc<dyn Connect> = Arc::new(Embedded::open(directory.path(), false).unwrap());
        let Self { probe, probe_b, clock, store, part, options, mut _held, .. } = self;
        _held.push(Box::new(directory));
        let make = Engine { store: &store, connect: &connect, clock: &clock, part, options: &options };
        let a = make.open(&probe, OtherIndex::Replace).await.unwrap();
        let b = make.open(&probe_b, OtherIndex::Refuse).await.unwrap();
        Self { a, b, probe, probe_b, clock, store, connect, part, options, turn: AtomicUsize::new(0), _held }
    }

    /// One more engine over the same index and store, watched as engine A is.
    pub(crate) async fn again(&self, other: OtherIndex) -> Result<Arc<Registry>, Error> {
        let Self { store, connect, clock, part, options, .. } = self;
        Engine { store, connect, clock, part: *part, options }.open(&self.probe, other).await
    }

    /// One more engine, with a scratch directory.
    pub(crate) async fn with_scratch(&self, directory: &std::path::Path) -> Result<Arc<Registry>, Error> {
        let Self { store, connect, clock, part, options, .. } = self;
        let options = &Options { upload_scratch: Some(directory.to_owned()), ..options.clone() };
        Engine { store, connect, clock, part: *part, options }.open(&self.probe, OtherIndex::Refuse).await
    }

    /// The handle on a repository by the one engine, then by the other.
    pub(crate) async fn repo(&self, name: &str) -> Repository {
        let engine = if self.turn.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) { &self.a } else { &self.b };
        on(engine, name).await
    }

    /// Whole uploads, as POST and PUT.
    pub(crate) async fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let (id, progress) = self.repo(name).await.start_upload("me");
        let body = Incoming::of(bytes.to_vec());
        self.repo(name).await.finish(&id, Some(&progress.proof), None, &digest, body).await.unwrap();
        digest
    }

    pub(crate) async fn read(&self, name: &str, digest: &Digest) -> Result<Bytes, Error> {
        bytes_of(&self.repo(name).await.blob(digest).await?).await
    }

    /// An image of a config and some layers, and its manifest.
    pub(crate) async fn image(&self, name: &str, seed: &str) -> Bytes {
        let config = format!("config of {seed}").into_bytes();
        let layer = format!("layer of {seed}").into_bytes();
        self.blob(name, &config).await;
        self.blob(name, &layer).await;
        image(&config, &[&layer])
    }

    pub(crate) async fn push(&self, name: &str, bytes: &Bytes, tags: &[&str]) -> Result<Digest, Error> {
        push(&self.repo(name).await, bytes, tags).await
    }

    pub(crate) async fn tag(&self, name: &str, tag: &str) -> Option<Digest> {
        tag_of(&self.repo(name).await, tag).await.unwrap()
    }

    /// Background work by both engines, until nothing more is done.
    pub(crate) async fn work(&self) {
        for _ in 0..3 {
            worker::work_once(&self.a, Ulid::from(1_u128)).await.unwrap();
            worker::work_once(&self.b, Ulid::from(2_u128)).await.unwrap();
        }
    }

    /// One round of collection by engine A, and everything that comes of it.
    pub(crate) async fn collect(&self) -> Found {
        let (owner, mut begin) = (Ulid::r#gen(), Begin::Now);
        let found = loop {
            match round::step(&self.a, owner, begin).await.unwrap() {
                Step::Over(finished) => break finished.found,
                Step::Went => begin = Begin::WhenDue,
                step => panic!("a round doesn't go on: {step:?}"),
            }
        };
        self.work().await;
        found
    }

    /// All keys of the bucket.
    pub(crate) async fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        for prefix in ["repos/", "data/", "accounts/", "rules/"] {
            let mut after: Option<String> = None;
            loop {
                let page = self.store.list(prefix, after.as_deref(), 1000).await.unwrap();
                keys.extend(page.objects.iter().map(|(key, _)| key.clone()));
                after = page.objects.last().map(|(key, _)| key.clone());
                if !page.more {
                    break;
                }
            }
        }
        keys
    }

    /// The members of a group of every shard's.
    pub(crate) async fn members(&self, group: impl Fn(&berth::index::facts::Names) -> String) -> Vec<(String, Bytes)> {
        let lease = self.a.lease().await.unwrap();
        let mut members = Vec::new();
        for shard in lease.names.shards() {
            members.extend(lease.scan(shard, &group(&lease.names), None, 1000).await.unwrap());
        }
        members
    }

    /// Whether a group in a repository's shard is empty.
    pub(crate) async fn is_empty(&self, name: &str, group: impl Fn(&berth::index::facts::Names) -> String) -> bool {
        let lease = self.a.lease().await.unwrap();
        let shard = lease.names.shard_of(&name.parse().unwrap());
        lease.get(shard, &[Ask::First(group(&lease.names))]).await.unwrap()[0].is_none()
    }
}

/// What an engine is made of.
struct Engine<'a> {
    store: &'a Arc<dyn Store>,
    connect: &'a Arc<dyn Connect>,
    clock: &'a Arc<Clock>,
    part: usize,
    options: &'a Options,
}

impl Engine<'_> {
    async fn open(&self, probe: &Arc<Probe>, other: OtherIndex) -> Result<Arc<Registry>, Error> {
        let connect = Arc::new(WatchedConnect { inner: Arc::clone(self.connect), probe: Arc::clone(probe) });
        let store = Arc::new(WatchedStore {
            inner: Arc::clone(self.store),
            probe: Arc::clone(probe),
            clock: Arc::clone(self.clock),
            part_size: self.part,
            exclusive: self.store.is_exclusive(),
        });
        Registry::open(store, connect, self.options.clone(), other).await
    }
}

pub(crate) async fn on(engine: &Arc<Registry>, name: &str) -> Repository {
    engine.repository(&name.parse::<RepositoryName>().unwrap()).await.unwrap().caused_by("me")
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

pub(crate) async fn bytes_of(blob: &Blob) -> Result<Bytes, Error> {
    let whole: Vec<u8> = blob
        .open(None)
        .await?
        .try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await?;
    assert_eq!(whole.len() as u64, blob.size());
    assert_eq!(Digest::of(blob.digest().algorithm(), &whole), *blob.digest(), "bytes that don't hash to their name");
    Ok(whole.into())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

pub(crate) fn image(config: &[u8], layers: &[&[u8]]) -> Bytes {
    let layer = |bytes: &&[u8]| descriptor("application/vnd.oci.image.layer.v1.tar", bytes);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": berth::oci::manifest::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&manifest).unwrap().into()
}

pub(crate) fn with_subject(manifest: &Bytes, subject: &Bytes, artifact_type: &str) -> Bytes {
    let mut manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    manifest["subject"] = descriptor(berth::oci::manifest::OCI_MANIFEST, subject);
    manifest["artifactType"] = artifact_type.into();
    serde_json::to_vec(&manifest).unwrap().into()
}

pub(crate) fn image_index(children: &[(&str, &[u8])]) -> Bytes {
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": berth::oci::manifest::OCI_INDEX,
        "manifests": children.iter().map(|(media_type, bytes)| descriptor(media_type, bytes)).collect::<Vec<_>>(),
    });
    serde_json::to_vec(&manifest).unwrap().into()
}

pub(crate) fn pushed(bytes: &Bytes, tags: &[&str]) -> Push {
    Push {
        digest: sha256(bytes),
        bytes: bytes.clone(),
        manifest: Manifest::parse(bytes, None).unwrap(),
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        create_only: false,
    }
}

pub(crate) async fn push(repository: &Repository, bytes: &Bytes, tags: &[&str]) -> Result<Digest, Error> {
    repository.push_manifest(pushed(bytes, tags)).await?;
    Ok(sha256(bytes))
}

/// What a tag points at; its manifest is read, and all that it needs.
pub(crate) async fn tag_of(repository: &Repository, tag: &str) -> Result<Option<Digest>, Error> {
    let tag: Tag = tag.parse().unwrap();
    let found = match repository.find_manifest(&Reference::Tag(tag)).await {
        Ok(found) => found,
        Err(error) if error.code == Code::ManifestUnknown => return Ok(None),
        Err(error) => return Err(error),
    };
    whole_manifest(repository, &found.digest).await?;
    Ok(Some(found.digest))
}

/// Reads a manifest by its digest, and every blob that it needs (I1, I4).
pub(crate) async fn whole_manifest(repository: &Repository, digest: &Digest) -> Result<(), Error> {
    let found = repository.find_manifest(&Reference::Digest(digest.clone())).await?;
    let bytes = repository.manifest_bytes(&found).await?;
    assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest);
    for needed in Manifest::parse(&bytes, None)?.needs {
        bytes_of(&repository.blob(&needed).await?).await?;
    }
    Ok(())
}

/// The same by who only reads.
pub(crate) async fn tag_read(reader: &Reader, tag: &str) -> Result<Option<Digest>, Error> {
    let found = match reader.find_manifest(&Reference::Tag(tag.parse().unwrap())).await {
        Ok(found) => found,
        Err(error) if error.code == Code::ManifestUnknown => return Ok(None),
        Err(error) => return Err(error),
    };
    let by_digest = reader.find_manifest(&Reference::Digest(found.digest.clone())).await?;
    assert_eq!(by_digest, found);
    let bytes = reader.manifest_bytes(&found).await?;
    assert_eq!(Digest::of(found.digest.algorithm(), &bytes), found.digest);
    for needed in Manifest::parse(&bytes, None)?.needs {
        bytes_of(&reader.blob(&needed).await?).await?;
    }
    Ok(Some(found.digest))
}

pub(crate) async fn reader(engine: &Arc<Registry>, name: &str) -> Reader {
    engine.reader(&name.parse::<RepositoryName>().unwrap()).await.unwrap()
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code
}

/// How many objects of each kind there are.
pub(crate) fn kinds(keys: &BTreeSet<String>) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for key in keys {
        let kind = match Key::parse(key).unwrap() {
            Key::Data(_) => "data",
            Key::Link { .. } => "link",
            Key::Manifest { .. } => "manifest",
            Key::Tag { .. } => "tag",
            Key::Entry { .. } => "entry",
            Key::Format | Key::Epoch(_) | Key::Checkpoint { .. } | Key::Probe(_) => "own",
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}
