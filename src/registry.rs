//! A registry: one bucket, one index, one epoch; and the handle on one of its repositories.
//!
//! [`Registry::repository`] is the only way to a bucket or an index from above. What can be done with a
//! repository is in [`crate::blob`], [`crate::upload`], [`crate::manifest`] and [`crate::tag`].

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::{
    bucket::{InBucket, Questions},
    config::TagPattern,
    epoch::{self, Lease, Leases, Standing, Timing},
    error::{Code, Error, Result},
    event::{Cause, Interests},
    index::{Ask, Batch, Connect, IndexError, Outcome, Shard, Write},
    oci::{Digest, RepositoryName},
    outbox::Coverage,
    storage::{Key, StorageError, Store, StoreTime, key::EpochNumber},
    telemetry::{Collected, Untold},
    upload::memory::{Budget, Room},
};

/// What a registry may use, and how long it keeps things.
#[derive(Clone, Debug)]
pub struct Options {
    /// Lease, deadline and margin.
    pub timing: Timing,
    /// How many shards a new epoch has.
    pub shards: u16,
    /// The memory in bytes that uploads may hold, all together; at least two parts of the store.
    pub upload_memory: usize,
    /// A directory for what that has no room for; without it, uploads wait.
    pub upload_scratch: Option<PathBuf>,
    /// The largest blob in bytes; the store's own limit holds as well.
    pub blob_size: u64,
    /// The memory in bytes for manifests that were read.
    pub manifest_cache: u64,
    /// How long an upload that doesn't move is kept.
    pub upload_expiry: Duration,
    /// How old something that nothing needs must be before it is collected. Longer than `upload_expiry`.
    pub grace: Duration,
    /// How long after the beginning of a round of collection the next one begins.
    pub collect_period: Duration,
    /// Where what is collected is counted.
    pub collected: Collected,
    /// Where it is counted what nobody is told of.
    pub untold: Untold,
    /// How many revisions of a tag are kept.
    pub history: usize,
    /// Tags that can't be moved or deleted once they exist.
    pub immutable_tags: Vec<TagPattern>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            shards: 16,
            upload_memory: 256 << 20,
            upload_scratch: None,
            blob_size: u64::MAX,
            manifest_cache: 64 << 20,
            upload_expiry: Duration::from_secs(24 * 3600),
            grace: Duration::from_secs(48 * 3600),
            collect_period: Duration::from_secs(24 * 3600),
            collected: Collected::default(),
            untold: Untold::default(),
            history: 10,
            immutable_tags: Vec::new(),
        }
    }
}

/// How many repositories are reconciled at once because somebody reads them: each looks at 32 objects at a time.
const RECONCILING_SOON: usize = 4;

/// The layout's version that this release writes, and the oldest that it reads.
const FORMAT: u32 = 1;

/// `berth.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Format {
    /// The layout's version.
    version: u32,
    /// The oldest release that may read, by the layout's version that it knows.
    min_reader: u32,
    /// The oldest release that may write.
    min_writer: u32,
    /// The bucket's own name, drawn at random.
    bucket: Ulid,
    /// The key for upload ids, 32 bytes in base64.
    upload_key: String,
}

/// The manifests that were read, by digest: immutable, so never wrong. Weighed by their bytes.
pub(crate) type ManifestCache = quick_cache::sync::Cache<Digest, Bytes, BytesOf>;

/// Weighs a manifest by its bytes, and what keeping it costs beside them.
#[derive(Clone, Debug)]
pub(crate) struct BytesOf;

impl quick_cache::Weighter<Digest, Bytes> for BytesOf {
    fn weight(&self, _: &Digest, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 256
    }
}

/// One registry.
#[derive(Debug)]
pub struct Registry {
    /// This process, among all that serve the bucket.
    pub(crate) process: Ulid,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) options: Options,
    pub(crate) upload_key: Vec<u8>,
    pub(crate) manifests: ManifestCache,
    /// The memory for uploads.
    pub(crate) memory: Arc<Budget>,
    /// Wakes the background worker when this process left something for it.
    pub(crate) work: tokio::sync::Notify,
    /// Repositories that are being reconciled by this process.
    pub(crate) reconciling: std::sync::Mutex<HashMap<RepositoryName, Arc<tokio::sync::Mutex<()>>>>,
    /// A permit is one repository that is reconciled because somebody reads it.
    pub(crate) reconciling_soon: Arc<tokio::sync::Semaphore>,
    /// What is being asked of the bucket in place of the index.
    pub(crate) questions: Questions,
    /// What the endpoints were told, as it was read last.
    pub(crate) coverage: tokio::sync::Mutex<Arc<Coverage>>,
    interests: std::sync::RwLock<Arc<Interests>>,
    leases: Arc<Leases>,
}

/// How a start that found another index in the bucket's newest epoch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherIndex {
    /// Refuse: somebody may be using it.
    Refuse,
    /// Begin the next epoch, with this index.
    Replace,
}

impl Registry {
    /// Opens the registry that a store holds, or makes a new one there, and takes the lease.
    ///
    /// An index that isn't the one that the bucket names is an error, but where nobody else can be using
    /// the bucket ([`Store::is_exclusive`]) or `other` says so: then it becomes the bucket's index, empty,
    /// to be filled by [`crate::reconcile`]. One that can't be reached is none where the bucket has been in use:
    /// then pulls are served from the bucket until the index is there.
    pub async fn open(
        store: Arc<dyn Store>,
        connect: Arc<dyn Connect>,
        options: Options,
        other: OtherIndex,
    ) -> Result<Arc<Self>> {
        let least = 2 * store.part_size();
        if options.upload_memory < least {
            return Err(Error::internal(format!(
                "limits.upload_memory must be at least {least} bytes, two parts of the store"
            )));
        }
        let memory = Budget::open(options.upload_memory, store.part_size(), options.upload_scratch.as_deref())?;
        let is_new = open_format(&store).await?;
        let leases =
            Leases::new(Arc::clone(&store), Arc::clone(&connect), options.timing).with_succession(options.shards);
        let leases = Arc::new(leases);
        match connect.connect().await {
            Err(away @ (IndexError::Unreachable(_) | IndexError::TimedOut(_)))
                if !is_new && other == OtherIndex::Refuse =>
            {
                leases.give_up(away.into());
            }
            // What it is reached by is wrong, or what it is: waiting would not help.
            Err(error) => return Err(error.into()),
            Ok(_) => take_index(&leases, &*store, &options, other).await?,
        }
        // Where two replicas made the first one at the same time, what stands there now is what both go by.
        let format = check_format(epoch::read_json(&store, &Key::Format).await?)?;
        let upload_key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &format.upload_key)
            .map_err(|error| Error::internal(format!("berth.json has a broken upload_key: {error}")))?;
        Ok(Arc::new(Self {
            process: Ulid::r#gen(),
            manifests: quick_cache::sync::Cache::with_weighter(
                (options.manifest_cache / 1024).max(16) as usize,
                options.manifest_cache,
                BytesOf,
            ),
            memory,
            work: tokio::sync::Notify::new(),
            reconciling: std::sync::Mutex::default(),
            reconciling_soon: Arc::new(tokio::sync::Semaphore::new(RECONCILING_SOON)),
            questions: Questions::default(),
            coverage: tokio::sync::Mutex::default(),
            interests: std::sync::RwLock::default(),
            upload_key,
            leases,
            options,
            store,
        }))
    }

    /// Waits for memory to hold a body of `bytes`, out of what uploads may use; it is given back on drop.
    pub(crate) async fn reserve_memory(&self, bytes: usize) -> Result<Option<Room>> {
        self.memory.reserve(bytes).await
    }

    /// The endpoints that are told what happens; none until [`Registry::set_interests`].
    pub fn interests(&self) -> Arc<Interests> {
        Arc::clone(&self.interests.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Replaces the endpoints: what happens from now on is told to these.
    pub fn set_interests(&self, interests: Interests) {
        *self.interests.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(interests);
    }

    /// This replica's right to believe the index.
    pub async fn lease(&self) -> Result<Arc<Lease>> {
        self.leases.lease().await
    }

    /// Why no index is believed, and each change of that.
    pub fn trouble(&self) -> tokio::sync::watch::Receiver<Option<Error>> {
        self.leases.trouble()
    }

    /// Whether the bucket can be read, which is enough to serve pulls.
    pub async fn check_bucket(&self) -> Result<()> {
        self.store.stat(&Key::Format).await.map(drop).map_err(Error::from)
    }

    /// The handle on a repository, whether anything is in it or not, for who changes it or needs what only the
    /// index knows; see [`Registry::reader`] for who only reads. From here on what the index misses is
    /// not there: the repository is reconciled first, if nobody has done that yet.
    pub async fn repository(self: &Arc<Self>, name: &RepositoryName) -> Result<Repository> {
        let repository = self.unreconciled(name).await?;
        if !repository.lease.knows_settled(repository.shard) {
            repository.ensure_reconciled().await?;
        }
        Ok(repository)
    }

    /// The handle on a repository of which the index may not know everything yet.
    pub(crate) async fn unreconciled(self: &Arc<Self>, name: &RepositoryName) -> Result<Repository> {
        let lease = self.lease().await?;
        let shard = lease.names.shard_of(name);
        let cause = Arc::default();
        Ok(Repository { registry: Arc::clone(self), lease, shard, name: name.clone(), cause })
    }

    /// Whether every repository of the bucket is known to be reconciled.
    pub async fn is_settled(&self) -> Result<bool> {
        let lease = self.lease().await?;
        for shard in lease.names.shards().filter(|&shard| !lease.knows_settled(shard)) {
            if lease.get(shard, &[Ask::Value(lease.names.settled())]).await?[0].is_none() {
                return Ok(false);
            }
            lease.saw_settled(shard);
        }
        Ok(true)
    }

    /// A page of the names of repositories that have a manifest, in byte order, after `after`, at most
    /// `limit`, for which `visible` holds; and whether more may follow.
    pub async fn catalog(
        &self,
        after: Option<&str>,
        limit: usize,
        visible: impl Fn(&RepositoryName) -> bool,
    ) -> Result<(Vec<RepositoryName>, bool)> {
        if !self.is_settled().await? {
            return Err(Error::unavailable("the index is still being filled from the bucket"));
        }
        let lease = self.lease().await?;
        let mut after = after.map(str::to_owned);
        let mut page = Vec::new();
        loop {
            let names = self.catalog_of_all_shards(&lease, after.as_deref(), limit + 1).await?;
            let (full, last) = (names.len() > limit, names.last().cloned());
            for name in names {
                let name: RepositoryName = name.parse().map_err(Error::internal)?;
                if !visible(&name) {
                    continue;
                }
                if page.len() == limit {
                    return Ok((page, true));
                }
                page.push(name);
            }
            if !full {
                return Ok((page, false));
            }
            after = last;
        }
    }

    /// The next `limit` names. Each shard is asked for a good part of them at first, which is nearly always enough: a page
    /// of 100 from 16 shards reads 352 names and not 1,616.
    async fn catalog_of_all_shards(&self, lease: &Lease, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        let group = lease.names.repositories();
        let mut ask = (limit.div_ceil(lease.names.shards().count()) * 2 + 8).min(limit);
        loop {
            let scans = lease.names.shards().map(|shard| lease.scan(shard, &group, after, ask));
            let found = futures_util::future::try_join_all(scans).await?;
            // A shard that gave as many as it was asked for may have more behind its last.
            let last_known =
                found.iter().filter(|page| page.len() == ask).filter_map(|page| Some(&page.last()?.0)).min();
            let last_known = last_known.cloned();
            let is_known = |name: &String| last_known.as_ref().is_none_or(|last| name <= last);
            let mut names: Vec<String> = found.into_iter().flatten().map(|(name, _)| name).filter(is_known).collect();
            if names.len() >= limit || last_known.is_none() {
                names.sort_unstable();
                names.truncate(limit);
                return Ok(names);
            }
            ask = limit;
        }
    }

    /// The path components right under a path, of repositories that have a manifest, in byte order.
    pub async fn children(&self, path: &str, visible: impl Fn(&RepositoryName) -> bool) -> Result<Vec<String>> {
        let prefix = format!("{path}/");
        let mut children = std::collections::BTreeSet::new();
        let mut after = prefix.clone();
        loop {
            let (names, more) = self.catalog(Some(&after), 1000, &visible).await?;
            for name in &names {
                let Some(rest) = name.as_str().strip_prefix(&prefix) else { return Ok(Vec::from_iter(children)) };
                children.insert(rest.split('/').next().unwrap_or_default().to_owned());
            }
            match names.last() {
                Some(last) if more => after = last.as_str().to_owned(),
                _ => return Ok(Vec::from_iter(children)),
            }
        }
    }

    /// Writes objects that count only if the store takes them by `deadline`, side by side and with one body.
    /// They count if this succeeds; an error means that they may count all the same.
    pub(crate) async fn put_in_time(&self, keys: &[Key], body: Bytes, deadline: StoreTime) -> Result<()> {
        let puts = keys.iter().map(|key| self.store.put(key, vec![body.clone()], Some(deadline)));
        for put in futures_util::future::join_all(puts).await {
            put?;
        }
        if self.store.now() < deadline.minus(self.options.timing.margin) {
            return Ok(());
        }
        for key in keys {
            let stat = self.store.stat(key).await?;
            if stat.is_none_or(|stat| stat.modified > deadline) {
                return Err(Error::unavailable(format!("{key} was written after its deadline")));
            }
        }
        Ok(())
    }

    /// Whether a tag can't be moved or deleted once it exists.
    pub fn is_immutable(&self, tag: &crate::oci::Tag) -> bool {
        self.options.immutable_tags.iter().any(|pattern| pattern.matches(tag))
    }
}

/// The handle on one repository of a registry, for the length of one request.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) registry: Arc<Registry>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) shard: Shard,
    pub(crate) name: RepositoryName,
    /// Of what all comes that is done with this handle.
    pub(crate) cause: Arc<Cause>,
}

impl Repository {
    /// The same handle, for what is done by somebody.
    pub fn caused_by(self, cause: impl Into<Cause>) -> Self {
        Self { cause: Arc::new(cause.into()), ..self }
    }

    /// Its name.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.registry.store
    }

    /// The same repository as the bucket shows it.
    pub(crate) fn in_bucket(&self) -> InBucket {
        InBucket::new(Arc::clone(&self.registry), self.name.clone())
    }

    /// Asks this repository's shard, and its fence in the same snapshot; a miss is only believed with it.
    pub(crate) async fn ask(&self, asks: Vec<Ask>) -> Result<Vec<Option<Bytes>>> {
        ask(&self.lease, self.shard, asks).await
    }

    pub(crate) async fn commit(&self, batch: Batch) -> Result<Outcome> {
        self.lease.commit(self.shard, batch).await
    }

    /// Commits writes that only have to happen behind the fence.
    pub(crate) async fn write(&self, writes: Vec<Write>) -> Result<()> {
        self.commit(Batch { writes, ..Batch::default() }).await.map(drop)
    }
}

/// Asks a shard, and its fence in the same snapshot; a miss is only believed with it.
pub(crate) async fn ask(lease: &Lease, shard: Shard, mut asks: Vec<Ask>) -> Result<Vec<Option<Bytes>>> {
    asks.push(lease.ask_fence());
    let mut answers = lease.get(shard, &asks).await?;
    let fence = answers.pop().flatten();
    if answers.iter().any(Option::is_none) {
        lease.confirm(fence.as_ref())?;
    }
    Ok(answers)
}

/// How often who waits for another replica to begin an epoch looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Takes the lease, after beginning an epoch if there is none of this index's.
async fn take_index(leases: &Arc<Leases>, store: &dyn Store, options: &Options, other: OtherIndex) -> Result<()> {
    let mut other = other;
    let patience = options.timing.succession() + options.timing.margin;
    // The epoch that no index serves yet, and since when this one knows it: who began it gets the time to finish, each
    // time anew, or replicas that start together would outbid each other without end.
    let mut vacant: Option<(EpochNumber, StoreTime)> = None;
    loop {
        match leases.standing().await? {
            Standing::Ours(_) => return Ok(()),
            Standing::Fresh => {}
            Standing::Unserved(number) => {
                let now = store.now();
                let since = vacant.filter(|(known, _)| *known == number).map_or(now, |(_, since)| since);
                vacant = Some((number, since));
                if !store.is_exclusive() && now < since.plus(patience) {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                tracing::warn!(epoch = %number, "the bucket's index is empty; it is filled from the bucket");
            }
            Standing::Replaced(number, _) => {
                tracing::warn!(epoch = %number, "the bucket's index was restarted; a new epoch begins, filled from the bucket");
            }
            Standing::Others(number, record) => {
                if !store.is_exclusive() && other == OtherIndex::Refuse {
                    return Err(Error::new(
                        Code::Unavailable,
                        format!(
                            "another index owns this bucket (epoch {number}, {} shards); `berth index take` makes this one the owner",
                            record.shards
                        ),
                    ));
                }
                tracing::warn!(epoch = %number, "the bucket names another index; this one takes over and is filled from the bucket");
            }
        }
        leases.begin(options.shards).await?;
        // Once: two replicas with an index each must not take turns.
        other = OtherIndex::Refuse;
    }
}

/// Checks `berth.json`, or writes the first one; whether it did.
async fn open_format(store: &Arc<dyn Store>) -> Result<bool> {
    match epoch::read_json::<Format>(store, &Key::Format).await {
        Ok(format) => return check_format(format).map(|_| false),
        Err(error) if error.code != Code::Unknown => return Err(error),
        // A replica that starts at the same time made it between the two looks.
        Err(_) if store.stat(&Key::Format).await?.is_some() => {
            return check_format(epoch::read_json(store, &Key::Format).await?).map(|_| false);
        }
        Err(_) => {}
    }
    let mut key = [0_u8; 32];
    for half in key.chunks_mut(8) {
        // The last 64 bits of a ULID are random.
        half.copy_from_slice(&u128::from(Ulid::r#gen()).to_be_bytes()[8..]);
    }
    let format = Format {
        version: FORMAT,
        min_reader: FORMAT,
        min_writer: FORMAT,
        bucket: Ulid::r#gen(),
        upload_key: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key),
    };
    let bytes = serde_json::to_vec_pretty(&format).map_err(Error::internal)?;
    store.put(&Key::Format, vec![bytes.into()], None).await?;
    Ok(true)
}

fn check_format(format: Format) -> Result<Format> {
    if format.min_reader > FORMAT || format.min_writer > FORMAT {
        return Err(Error::internal(format!(
            "the bucket's layout is version {}, which wants a newer release; this one knows version {FORMAT}",
            format.version
        )));
    }
    Ok(format)
}

/// A missing object as `None`.
pub(crate) fn found<T>(result: std::result::Result<T, StorageError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StorageError::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
