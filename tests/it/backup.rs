//! A copy that is made while people push, move tags and the collection runs is whole, if it is made in the order that
//! docs/backup.md says; in another order it isn't.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth::{
    collect::round::{self, Begin},
    epoch::Timing,
    error::Code,
    index::embedded::Embedded,
    oci::Digest,
    reconcile,
    registry::{Options, OtherIndex, Registry, Repository},
    storage::{
        Key, Store,
        key::RosterList,
        local::Local,
        read_small,
        s3::{S3, S3Options},
    },
    upload::Incoming,
    worker,
};
use tempfile::TempDir;
use ulid::Ulid;

use crate::{
    rules_bench::{self as bench, image, on, push, sha256, tag_of},
    s3_server,
};

/// What is copied together, first to last. A tag is written after its manifest, that after the links of its blobs, and
/// those after the bytes: so who copies the other way finds everything that what was copied before needs. The epochs
/// come behind the tags: none may be copied that is of a newer epoch than those.
const ORDER: [fn(&Key) -> bool; 6] = [
    |key| matches!(key, Key::Tag { .. } | Key::Entry { .. }),
    // Once more, for those that moved so often meanwhile that what was listed was gone.
    |key| matches!(key, Key::Tag { .. } | Key::Entry { .. }),
    |key| matches!(key, Key::Manifest { .. }),
    |key| matches!(key, Key::Link { .. }),
    |key| matches!(key, Key::Data(_)),
    |key| matches!(key, Key::Epoch(_) | Key::Format),
];

fn options() -> Options {
    Options {
        timing: Timing {
            lease: Duration::from_millis(600),
            deadline: Duration::from_secs(1),
            margin: Duration::from_millis(200),
        },
        shards: 4,
        upload_memory: 64 << 20,
        grace: Duration::from_secs(3),
        collect_period: Duration::ZERO,
        ..Options::default()
    }
}

async fn registry(store: Arc<dyn Store>, index: &Path, other: OtherIndex) -> Arc<Registry> {
    let index = Arc::new(Embedded::open(index, false).unwrap());
    Registry::open(store, index, options(), other).await.unwrap()
}

/// All that was pushed to a tag, in order, and how many of those were acknowledged.
type History = (Vec<Digest>, usize);

/// What was pushed, by repository and tag.
#[derive(Default)]
struct Pushed(Mutex<BTreeMap<(String, String), History>>);

impl Pushed {
    async fn push(&self, repository: &Repository, seed: &str, tags: &[String]) {
        let (config, layer) = (format!("config of {seed}").into_bytes(), format!("layer of {seed}").into_bytes());
        let manifest = image(&config, &[&layer]);
        let names: Vec<&str> = tags.iter().map(String::as_str).collect();
        for tag in tags {
            let mut pushed = self.0.lock().unwrap();
            pushed.entry((repository.name().to_string(), tag.clone())).or_default().0.push(sha256(&manifest));
        }
        loop {
            for blob in [&config, &layer] {
                let (id, progress) = repository.start_upload("me");
                let body = Incoming::of(blob.clone());
                repository.finish(&id, Some(&progress.proof), None, &sha256(blob), body).await.unwrap();
            }
            match push(repository, &manifest, &names).await {
                // On a slow machine the grace may be over before the manifest comes, and clients begin again.
                Err(error) if error.code == Code::ManifestBlobUnknown => {}
                pushed => break drop(pushed.unwrap()),
            }
        }
        for tag in tags {
            let mut pushed = self.0.lock().unwrap();
            let (tried, acknowledged) = pushed.get_mut(&(repository.name().to_string(), tag.clone())).unwrap();
            *acknowledged = tried.len();
        }
    }

    /// What each tag had last been acknowledged to be: its place.
    fn acknowledged(&self) -> BTreeMap<(String, String), usize> {
        self.0.lock().unwrap().iter().map(|(tag, (_, count))| (tag.clone(), *count)).collect()
    }

    /// Each tag is whole, and as it was then or later.
    async fn assert_in(&self, copy: &Arc<Registry>, then: &BTreeMap<(String, String), usize>) -> usize {
        let mut later = 0;
        for ((repository, tag), count) in then.iter().filter(|(_, count)| **count > 0) {
            let found = tag_of(&on(copy, repository).await, tag).await.unwrap();
            let tried = self.0.lock().unwrap()[&(repository.clone(), tag.clone())].0.clone();
            let at = found.as_ref().and_then(|found| tried.iter().rposition(|digest| digest == found));
            assert!(at.is_some_and(|at| at + 1 >= *count), "{repository}:{tag} is {found:?}, not {count} of {tried:?}");
            later += usize::from(at.is_some_and(|at| at + 1 > *count));
        }
        later
    }
}

/// Writers, a worker and a collector, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    pushed: Arc<Pushed>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn start(registry: &Arc<Registry>) -> Self {
        let (stop, pushed) = (Arc::<AtomicBool>::default(), Arc::<Pushed>::default());
        // Garbage, old enough when the copy begins.
        for number in 0..6 {
            let repository = on(registry, "team/garbage").await;
            pushed.push(&repository, &format!("garbage {number}"), &[format!("g{number}")]).await;
            let digest = pushed
                .0
                .lock()
                .unwrap()
                .remove(&("team/garbage".to_owned(), format!("g{number}")))
                .unwrap()
                .0
                .remove(0);
            repository.delete_manifest(&digest).await.unwrap();
        }
        let mut tasks: Vec<_> = (0..4)
            .map(|writer| tokio::spawn(write(Arc::clone(registry), Arc::clone(&stop), Arc::clone(&pushed), writer)))
            .collect();
        tasks.push(tokio::spawn(work(Arc::clone(registry), Arc::clone(&stop))));
        Self { stop, pushed, tasks }
    }

    async fn stop(self) -> Arc<Pushed> {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.pushed
    }
}

async fn write(registry: Arc<Registry>, stop: Arc<AtomicBool>, pushed: Arc<Pushed>, writer: usize) {
    for round in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let repository = on(&registry, &format!("team/app{}", writer % 2)).await;
        let tags = [format!("latest-{writer}"), format!("v{writer}.{}", round % 40)];
        pushed.push(&repository, &format!("{writer}.{round}"), &tags).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn work(registry: Arc<Registry>, stop: Arc<AtomicBool>) {
    let (owner, mut collected) = (Ulid::r#gen(), 0);
    // Not before some of it was collected.
    while !stop.load(Ordering::SeqCst) || collected == 0 {
        worker::work_once(&registry, owner).await.unwrap();
        if let round::Step::Over(finished) = round::step(&registry, owner, Begin::WhenDue).await.unwrap() {
            collected += finished.found.links;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// All keys of a bucket, of one kind.
async fn listed(store: &Arc<dyn Store>, wanted: fn(&Key) -> bool) -> Vec<Key> {
    let mut keys: Vec<Key> = vec![Key::Format];
    let rosters = RosterList::ALL.map(RosterList::prefix);
    for prefix in ["repos/", "data/", "epochs/"].into_iter().chain(rosters.iter().map(String::as_str)) {
        let mut after: Option<String> = None;
        loop {
            let page = store.list(prefix, after.as_deref(), 1000).await.unwrap();
            after = page.objects.last().map(|(key, _)| key.clone());
            keys.extend(page.objects.iter().filter_map(|(key, _)| Key::parse(key)));
            if !page.more {
                break;
            }
        }
    }
    keys.into_iter().filter(wanted).collect()
}

/// Copies all keys of one kind: a listing first, then each of them. One that is gone meanwhile is passed over.
async fn copy_bucket(from: &Arc<dyn Store>, to: &Arc<dyn Store>, wanted: fn(&Key) -> bool) {
    for key in listed(from, wanted).await {
        if let Ok(bytes) = read_small(from, &key, 1 << 30).await {
            to.put(&key, vec![bytes], None).await.unwrap();
        }
    }
}

/// The same with files, which keep their times.
async fn copy_files(store: &Arc<dyn Store>, from: &Path, to: &Path, wanted: fn(&Key) -> bool) {
    for key in listed(store, wanted).await {
        let (from, to) = (from.join(key.to_string()), to.join(key.to_string()));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if fs::copy(&from, &to).is_ok()
            && let Ok(modified) = fs::metadata(&from).and_then(|known| known.modified())
        {
            fs::File::options().append(true).open(&to).unwrap().set_modified(modified).unwrap();
        } else {
            drop(fs::remove_file(&to));
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_directory_made_under_load_is_whole() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store: Arc<dyn Store> = Arc::new(Local::open(from.path(), false).unwrap());
    let source = registry(Arc::clone(&store), &from.path().join(".index"), OtherIndex::Refuse).await;
    reconcile::walk(&source, |_| {}).await.unwrap();
    let load = Load::start(&source).await;
    tokio::time::sleep(options().grace).await;
    let then = load.pushed.acknowledged();
    for wanted in ORDER {
        copy_files(&store, from.path(), to.path(), wanted).await;
    }
    let pushed = load.stop().await;
    let copy: Arc<dyn Store> = Arc::new(Local::open(to.path(), false).unwrap());
    let copy = registry(copy, &to.path().join(".index"), OtherIndex::Refuse).await;
    let walked = reconcile::walk(&copy, |_| {}).await.unwrap();
    let later = pushed.assert_in(&copy, &then).await;
    println!("{} tags, {later} of them later ones; {walked:?}", then.len());
    assert!(then.len() > 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_bucket_made_under_load_is_whole() {
    let (server, index, other) = (s3_server::start().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    let open = async |prefix: &str| -> Arc<dyn Store> {
        let prefix = prefix.to_owned();
        let store = S3::open(S3Options { prefix, ..crate::storage::options(&server) }).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        store
    };
    let (from, to) = (open("registry").await, open("copy").await);
    let source = registry(Arc::clone(&from), index.path(), OtherIndex::Refuse).await;
    reconcile::walk(&source, |_| {}).await.unwrap();
    let load = Load::start(&source).await;
    tokio::time::sleep(options().grace).await;
    let then = load.pushed.acknowledged();
    for wanted in ORDER {
        copy_bucket(&from, &to, wanted).await;
    }
    let pushed = load.stop().await;
    // As `berth index rebuild --copied` does: the copies are younger than the deadlines of what they hold.
    let copy = registry(to, other.path(), OtherIndex::Replace).await;
    let restamped = reconcile::restamp(&copy).await.unwrap();
    let walked = reconcile::walk(&copy, |_| {}).await.unwrap();
    let later = pushed.assert_in(&copy, &then).await;
    println!("{} tags, {later} of them later ones, {restamped} written anew; {walked:?}", then.len());
    assert!(restamped > 0 && then.len() > 20);
    // What is pushed to the copy comes after all that it has.
    pushed.push(&on(&copy, "team/app0").await, "after", &["latest-0".to_owned()]).await;
    pushed
        .assert_in(&copy, &pushed.acknowledged().into_iter().filter(|((_, tag), _)| tag == "latest-0").collect())
        .await;
}

/// The other way round: what was pushed meanwhile has a tag in the copy, and nothing that it points at.
#[tokio::test]
async fn a_copy_in_the_order_of_writing_is_not_whole() {
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store: Arc<dyn Store> = Arc::new(Local::open(from.path(), false).unwrap());
    let source = registry(Arc::clone(&store), &from.path().join(".index"), OtherIndex::Refuse).await;
    let pushed = Pushed::default();
    pushed.push(&on(&source, "app").await, "one", &["v1".to_owned()]).await;
    let mut order: Vec<_> = ORDER.into_iter().skip(1).collect();
    order.reverse();
    for (step, wanted) in order.into_iter().enumerate() {
        copy_files(&store, from.path(), to.path(), wanted).await;
        if step == 0 {
            pushed.push(&on(&source, "app").await, "two", &["v1".to_owned()]).await;
        }
        if step == 3 {
            pushed.push(&on(&source, "app").await, "three", &["v1".to_owned()]).await;
        }
    }
    let copy: Arc<dyn Store> = Arc::new(Local::open(to.path(), false).unwrap());
    let copy = registry(copy, &to.path().join(".index"), OtherIndex::Refuse).await;
    let walked = reconcile::walk(&copy, |_| {}).await.unwrap();
    assert!(walked.adopted.dangling > 0);
    assert_eq!(bench::tag_of(&on(&copy, "app").await, "v1").await.unwrap(), None);
}
