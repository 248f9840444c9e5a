//! The embedded index: facts in one file, for a registry on one machine.
//!
//! It keeps the promises of [`Index`] with redb and knows nothing of what the facts mean. Only one process
//! can have the file open. Reads run where they are called, as a point read takes about a microsecond;
//! every batch goes through one writer thread, which commits all that are queued by one write to the disk:
//! to the journal, before anyone sees them. The database follows in memory, and is made durable now and then.

mod journal;
mod judge;
mod table;
mod unsynced;

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    ops::Bound,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use self::{
    journal::Journal,
    judge::{Answer, Changes, replay},
    table::{FACTS, answer, end_of, key},
    unsynced::Unsynced,
};
use super::{Ask, Batch, Connect, Index, IndexError, Outcome, Shard, wake::Topics};

/// The database's name in its directory.
const FILE: &str = "facts.redb";

/// The journal's name there.
const JOURNAL: &str = "facts.journal";

/// What is known of the database itself: its random `identity`, made with it, and the number of the journal's last
/// record that is `made` in it.
const ABOUT: TableDefinition<&str, &str> = TableDefinition::new("about");
const IDENTITY: &str = "identity";
const MADE: &str = "made";

/// Pages kept in memory, in bytes; beneath it is the system's own cache, so it needn't be large.
const CACHE: usize = 64 << 20;

/// The most batches that wait for the writer, and the most that it commits together. Several times what
/// arrives during one fsync; callers beyond it wait in [`Index::commit`].
const QUEUE: usize = 256;

/// How soon after a failure to open the file another attempt is made.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// The embedded index of one directory. Clones share it. When the last clone and the last connection are
/// gone the file is closed, and can be opened again.
#[derive(Clone, Debug)]
pub struct Embedded(Arc<Facts>);

/// What connections share: here a connection is just another handle.
struct Facts {
    file: Arc<File>,
    topics: Topics,
    jobs: mpsc::Sender<Job>,
    writer: Option<JoinHandle<()>>,
}

/// A batch on its way to the writer thread.
struct Job {
    shard: Shard,
    batch: Batch,
    answer: oneshot::Sender<Answer>,
}

/// The open database, and the way to open it again: after one failed write (a full disk) redb refuses all
/// further work on a handle.
struct File {
    open: Box<dyn Fn() -> Result<Opened, redb::Error> + Send + Sync>,
    /// Which database it was at first, and has to be.
    identity: String,
    state: RwLock<State>,
}

struct State {
    file: Option<Opened>,
    opened: Instant,
}

/// The database, its journal, and its facts as of the last commit: to open a table for each read would take longer than to
/// read. The facts come first, as they keep the database open.
struct Opened {
    facts: RwLock<Arc<Snapshot>>,
    database: Database,
    identity: String,
    journal: Mutex<Journal>,
}

type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl Embedded {
    /// Opens the index in `directory`, made with its parents if it isn't there. With `sync`, a commit is
    /// on the disk before it is acknowledged; without, it survives the death of the process only.
    ///
    /// # Errors
    /// [`IndexError::Broken`] where the file can't be opened: it is open already, or isn't readable.
    pub fn open(directory: &Path, sync: bool) -> Result<Self, IndexError> {
        let broken = |error: io::Error| IndexError::Broken(format!("{}: {error}", directory.display()));
        fs::create_dir_all(directory).map_err(broken)?;
        let (file, journal) = (directory.join(FILE), directory.join(JOURNAL));
        let open = move || Opened::new(open_database(&file, sync)?, &journal, sync);
        let index = Self::start(open).map_err(|error| match error {
            redb::Error::DatabaseAlreadyOpen => {
                IndexError::Broken(format!("{} is open in another process", directory.join(FILE).display()))
            }
            error => IndexError::Broken(format!("{}: {error}", directory.join(FILE).display())),
        })?;
        if sync {
            // The files' names must be as durable as what is in them.
            fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(broken)?;
        }
        Ok(index)
    }

    /// Whether there is an index in `directory`: opening makes one where there isn't.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).is_file()
    }

    fn start(open: impl Fn() -> Result<Opened, redb::Error> + Send + Sync + 'static) -> Result<Self, redb::Error> {
        let file = open()?;
        let identity = file.identity.clone();
        let state = RwLock::new(State { file: Some(file), opened: Instant::now() });
        let file = Arc::new(File { open: Box::new(open), identity, state });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new().name("index-writer".to_owned()).spawn({
            let file = Arc::clone(&file);
            move || write_queued(&file, queue)
        })?;
        Ok(Self(Arc::new(Facts { file, topics: Topics::default(), jobs, writer: Some(writer) })))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Embedded").field("identity", &self.file.identity).finish_non_exhaustive()
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        // The writer ends when nobody can send to it; it is waited for, as the file stays open until then.
        self.jobs = mpsc::channel(1).0;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was already reported to whoever waited for an answer.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Connect for Embedded {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        let facts: Arc<Facts> = Arc::clone(&self.0);
        Ok(facts)
    }
}

#[async_trait]
impl Index for Facts {
    async fn identity(&self) -> Result<String, IndexError> {
        Ok(self.file.identity.clone())
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        self.file.read(|facts| asks.iter().map(|ask| answer(facts, shard, ask)).collect())
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        let start = key(shard, group, after.unwrap_or_default());
        let members = start.len() - after.unwrap_or_default().len();
        let start = if after.is_some() { Bound::Excluded(&*start) } else { Bound::Included(&*start) };
        let end = end_of(shard, group);
        self.file.read(|facts| {
            // The values share one buffer: one for each would be a third of the allocations of a page.
            let (mut found, mut values) = (Vec::new(), Vec::new());
            for entry in facts.range::<&[u8]>((start, Bound::Excluded(&*end)))?.take(limit) {
                let (key, value) = entry?;
                let begin = values.len();
                values.extend_from_slice(value.value());
                found.push((String::from_utf8_lossy(&key.value()[members..]).into_owned(), begin..values.len()));
            }
            let values = Bytes::from(values);
            Ok(found.into_iter().map(|(member, place)| (member, values.slice(place))).collect())
        })
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        if batch.lacks_sequence() {
            return Err(IndexError::Broken("a numbered write in a batch without a sequence".to_owned()));
        }
        let (answer, outcome) = oneshot::channel();
        let stopped = || "its writer has stopped".to_owned();
        let job = Job { shard, batch, answer };
        self.jobs.send(job).await.map_err(|_| IndexError::Unreachable(stopped()))?;
        outcome.await.map_err(|_| IndexError::Unknown(stopped()))?
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        self.topics.notify(&name_of(shard, topic));
        Ok(())
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        self.topics.wait(&name_of(shard, topic), patience).await;
    }
}

impl File {
    /// Answers from one snapshot of the facts.
    fn read<T>(&self, work: impl FnOnce(&Snapshot) -> Result<T, redb::Error>) -> Result<T, IndexError> {
        self.using(|file| {
            let facts = Arc::clone(&file.facts.read().unwrap_or_else(PoisonError::into_inner));
            work(&facts).map_err(nothing_happened)
        })
    }

    /// Works on the open database, and opens it anew after a failure.
    fn using<T>(&self, work: impl FnOnce(&Opened) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let result = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &state.file {
                Some(file) => work(file),
                None => Err(IndexError::Unreachable("its file could not be opened again".to_owned())),
            }
        };
        if result.is_err() {
            self.reopen();
        }
        result
    }

    /// Opens the database anew, but for one that was opened just now: several tasks may have met the same
    /// failure, and an attempt is not cheap. Whoever meets it again later tries again.
    fn reopen(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.opened.elapsed() < REOPEN_AFTER {
            return;
        }
        // The old handle first: it holds the lock on the file.
        state.file = None;
        match (self.open)() {
            Ok(file) if file.identity == self.identity => state.file = Some(file),
            Ok(_) => tracing::error!("the embedded index was removed, and another stands in its place: restart Berth"),
            Err(error) => tracing::error!(%error, "the embedded index could not be opened again"),
        }
        state.opened = Instant::now();
    }
}

impl Opened {
    /// Brings the database to the end of its journal.
    fn new(database: Database, journal: &Path, sync: bool) -> Result<Self, redb::Error> {
        let (identity, made) = identify(&database)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("its {JOURNAL}: {error}"));
        let (mut journal, found) = Journal::open(journal, &identity, made.unwrap_or(0), sync).map_err(named)?;
        if found.is_new && made.is_some() {
            let text = format!("not there, or another's; without it the index counts as lost: remove {FILE} too");
            return Err(named(io::Error::new(io::ErrorKind::NotFound, text)).into());
        }
        if !found.records.is_empty() {
            let transaction = database.begin_write()?;
            let mut facts = transaction.open_table(FACTS)?;
            for record in &found.records {
                replay(&mut facts, record)?;
            }
            drop(facts);
            let made = made.unwrap_or(0) + found.records.len() as u64;
            transaction.open_table(ABOUT)?.insert(MADE, made.to_string().as_str())?;
            transaction.commit()?;
            journal.begin_anew(made);
        }
        let facts = RwLock::new(Arc::new(snapshot(&database)?));
        Ok(Self { facts, database, identity, journal: Mutex::new(journal) })
    }

    /// Judges the batches one after the other, each on what the earlier ones wrote; makes all their writes durable at
    /// once, and then visible.
    fn commit(&self, group: &[Job]) -> Result<Vec<Answer>, IndexError> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if journal.is_full() {
            self.make_durable(&mut journal).map_err(nothing_happened)?;
        }
        let mut transaction = self.database.begin_write().map_err(nothing_happened)?;
        transaction.set_durability(Durability::None).map_err(nothing_happened)?;
        let mut changes = Changes::of(transaction.open_table(FACTS).map_err(nothing_happened)?);
        let answers = group.iter().map(|job| changes.judge(job.shard, &job.batch)).collect::<Result<_, _>>();
        let (answers, record) = (answers.map_err(nothing_happened)?, changes.record());
        if record.is_empty() {
            return Ok(answers);
        }
        let unknown = |error: redb::Error| IndexError::Unknown(error.to_string());
        journal.append(&record).map_err(|error| unknown(error.into()))?;
        let made = transaction.commit().map_err(redb::Error::from).and_then(|()| snapshot(&self.database));
        let facts = made.map_err(|error| {
            journal.fail();
            unknown(error)
        })?;
        *self.facts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        Ok(answers)
    }

    /// Makes the database durable, so that it needs no journal.
    fn make_durable(&self, journal: &mut Journal) -> Result<(), redb::Error> {
        let made = journal.number();
        let transaction = self.database.begin_write()?;
        transaction.open_table(ABOUT)?.insert(MADE, made.to_string().as_str())?;
        transaction.commit()?;
        journal.begin_anew(made);
        Ok(())
    }
}

/// The facts as they are now.
fn snapshot(database: &Database) -> Result<Snapshot, redb::Error> {
    Ok(database.begin_read()?.open_table(FACTS)?)
}

/// Opens or creates the database at `path`.
fn open_database(path: &Path, sync: bool) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    if sync {
        return builder.create(path);
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    builder.create_with_backend(Unsynced::new(file)?)
}

/// The database's identity, and the number of the journal's record up to which it is made, if it ever was made durable
/// since it has a journal. A new database gets an identity, and its tables.
fn identify(database: &Database) -> Result<(String, Option<u64>), redb::Error> {
    let transaction = database.begin_write()?;
    let mut about = transaction.open_table(ABOUT)?;
    let text = |key| Ok::<_, redb::Error>(about.get(key)?.map(|value| value.value().to_owned()));
    if let Some(identity) = text(IDENTITY)? {
        let no_number = |_| redb::Error::Corrupted("its place in the journal is no number".to_owned());
        let made = text(MADE)?.map(|made| made.parse().map_err(no_number)).transpose()?;
        return Ok((identity, made));
    }
    let identity = ulid::Ulid::r#gen().to_string();
    about.insert(IDENTITY, identity.as_str())?;
    drop(about);
    transaction.open_table(FACTS)?;
    transaction.commit()?;
    Ok((identity, None))
}

/// The writer thread: commits what is queued, together, until the queue is closed.
fn write_queued(file: &File, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < QUEUE
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        let answers = match file.using(|opened| opened.commit(&group)) {
            Ok(answers) => answers,
            Err(error) => vec![Err(error); group.len()],
        };
        for (job, answer) in group.into_iter().zip(answers) {
            // Whoever dropped the call doesn't want to know.
            let _ = job.answer.send(answer);
        }
    } // So that the next start has nothing to read from the journal; it would, if this failed.
    let durable = file.using(|opened| {
        let mut journal = opened.journal.lock().unwrap_or_else(PoisonError::into_inner);
        opened.make_durable(&mut journal).map_err(nothing_happened)
    });
    if let Err(error) = durable {
        tracing::debug!(%error, "the embedded index was not made durable at its end, and keeps its journal");
    }
}

/// How a shard's topic is called among all topics.
fn name_of(shard: Shard, topic: &str) -> String {
    format!("{}:{topic}", shard.0)
}

/// An error of the file before anything was committed.
fn nothing_happened(error: impl Into<redb::Error>) -> IndexError {
    match error.into() {
        error @ (redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. }) => {
            IndexError::Broken(error.to_string())
        }
        error => IndexError::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering},
    };

    use redb::{StorageBackend, backends::FileBackend};
    use tempfile::TempDir;

    use super::*;
    use crate::index::{Check, Fact, Write};

    const SHARD: Shard = Shard(0);

    /// A disk that is full while `full` is set.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(offset, data)
        }
    }

    fn put(member: &str, value: impl Into<Bytes>) -> Batch {
        Batch { writes: vec![Write::Put(Fact::new("group", member), value.into())], ..Batch::default() }
    }

    async fn all(index: &Arc<dyn Index>) -> BTreeMap<String, Bytes> {
        index.scan(SHARD, "group", None, usize::MAX).await.expect("a page").into_iter().collect()
    }

    /// What an index finds that is opened on a copy of the files in `directory`: as if the process ended now.
    async fn left_in(directory: &Path, prepare: impl FnOnce(&Path)) -> BTreeMap<String, Bytes> {
        let copy = TempDir::new().expect("a directory");
        for name in [FILE, JOURNAL] {
            fs::copy(directory.join(name), copy.path().join(name)).expect("a copy");
        }
        prepare(copy.path());
        let index = Embedded::open(copy.path(), false).expect("an index").connect().await.expect("a connection");
        all(&index).await
    }

    async fn commit_soon(index: &Arc<dyn Index>, batch: &Batch) {
        while index.commit(SHARD, batch.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[tokio::test]
    async fn a_full_disk_fails_batches_and_nothing_else() {
        let directory = TempDir::new().expect("a directory");
        let (path, journal) = (directory.path().join(FILE), directory.path().join(JOURNAL));
        let full = Arc::new(AtomicBool::new(false));
        let disk_is_full = Arc::clone(&full);
        let index = Embedded::start(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let disk = Disk { file: FileBackend::new(file).map_err(redb::Error::from)?, full: Arc::clone(&full) };
            Opened::new(Database::builder().create_with_backend(disk)?, &journal, true)
        });
        let index = index.expect("a database").connect().await.expect("a connection");
        disk_is_full.store(true, Ordering::SeqCst);
        // The journal has room, for a while.
        let mut acknowledged = 0;
        let error = loop {
            match index.commit(SHARD, put(&format!("{acknowledged:04}"), vec![7; 10_000])).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, IndexError::Unreachable(_)), "nothing happened: {error:?}");
        assert!(acknowledged > 100, "{acknowledged}");
        tokio::time::sleep(REOPEN_AFTER).await;
        assert!(index.commit(SHARD, put("full", "x")).await.is_err());
        disk_is_full.store(false, Ordering::SeqCst);
        commit_soon(&index, &put("last", "x")).await;
        assert_eq!(all(&index).await.len(), acknowledged + 1);
    }

    #[tokio::test]
    async fn after_a_write_that_failed_the_journal_says_what_happened() {
        let directory = TempDir::new().expect("a directory");
        let embedded = Embedded::open(directory.path(), true).expect("an index");
        let index = embedded.connect().await.expect("a connection");
        index.commit(SHARD, put("before", "x")).await.expect("a commit");
        embedded
            .0
            .file
            .using(|file| {
                file.journal.lock().expect("the journal").break_file(&directory.path().join(JOURNAL));
                Ok(())
            })
            .expect("an open file");
        let error = index.commit(SHARD, put("failed", "x")).await.expect_err("a broken journal");
        assert!(matches!(error, IndexError::Unknown(_)), "{error:?}");
        commit_soon(&index, &put("after", "x")).await;
        assert_eq!(all(&index).await.keys().collect::<Vec<_>>(), ["after", "before"]);
    }

    #[tokio::test]
    async fn an_index_that_was_removed_is_not_taken_for_an_empty_one() {
        let directory = TempDir::new().expect("a directory");
        let embedded = Embedded::open(directory.path(), true).expect("an index");
        let index = embedded.connect().await.expect("a connection");
        index.commit(SHARD, put("before", "x")).await.expect("a commit");
        for name in [FILE, JOURNAL] {
            fs::remove_file(directory.path().join(name)).expect("a file");
        }
        embedded.0.file.state.write().expect("the state").opened = Instant::now() - REOPEN_AFTER;
        embedded.0.file.reopen();
        let error = index.get(SHARD, &[Ask::Value(Fact::new("group", "before"))]).await.expect_err("no such index");
        assert!(matches!(error, IndexError::Unreachable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn whenever_the_process_ends_all_that_was_acknowledged_is_there() {
        let directory = TempDir::new().expect("a directory");
        let embedded = Embedded::open(directory.path(), false).expect("an index");
        let index = embedded.connect().await.expect("a connection");
        let mut known = BTreeMap::new();
        // Three journals full, of puts over what was there, removals, and batches that are refused.
        for number in 0_u32..700 {
            let member = format!("{:03}", number * 7919 % 101);
            let fact = Fact::new("group", &*member);
            let batch = match number % 5 {
                0 => Batch { writes: vec![Write::Delete(fact)], ..Batch::default() },
                1 => Batch { checks: vec![Check::Present(Fact::new("group", "never"))], ..put(&member, "refused") },
                _ => put(&member, vec![number as u8; 7_000]),
            };
            index.commit(SHARD, batch).await.expect("a commit");
            match number % 5 {
                0 => drop(known.remove(&member)),
                1 => (),
                _ => drop(known.insert(member, Bytes::from(vec![number as u8; 7_000]))),
            }
            if number % 23 == 0 {
                assert!(left_in(directory.path(), |_| ()).await == known, "after {number}");
            }
        }
        assert!(all(&index).await == known);
        drop((index, embedded));
        let index = Embedded::open(directory.path(), true).expect("an index").connect().await.expect("a connection");
        assert!(all(&index).await == known);
    }

    #[tokio::test]
    async fn of_a_record_that_was_cut_off_nothing_is_made() {
        let directory = TempDir::new().expect("a directory");
        let index = Embedded::open(directory.path(), false).expect("an index").connect().await.expect("a connection");
        index.commit(SHARD, put("one", "x")).await.expect("a commit");
        let two = Batch { writes: [put("two", "x").writes, put("three", "x").writes].concat(), ..Batch::default() };
        index.commit(SHARD, two).await.expect("a commit");
        let bytes = fs::read(directory.path().join(JOURNAL)).expect("the journal");
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("records") + 1;
        let mut found = Vec::new();
        for length in end - 80..=end {
            let cut = |copy: &Path| fs::write(copy.join(JOURNAL), &bytes[..length]).expect("a shorter journal");
            found.push(left_in(directory.path(), cut).await.len());
        }
        assert!(found.is_sorted() && found.iter().all(|count| [0, 1, 3].contains(count)), "{found:?}");
        assert_eq!((found[found.len() - 2], found[found.len() - 1]), (1, 3));
    }

    #[tokio::test]
    async fn a_journal_that_is_gone_stops_the_start() {
        let directory = TempDir::new().expect("a directory");
        drop(Embedded::open(directory.path(), true).expect("an index"));
        fs::remove_file(directory.path().join(JOURNAL)).expect("the journal");
        let error = Embedded::open(directory.path(), true).expect_err("no journal").to_string();
        assert!(error.contains("facts.redb: ") && error.contains("its facts.journal: not there"), "{error}");
    }
}
