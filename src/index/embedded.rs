//! The embedded index: facts in one file, for a registry on one machine.
//!
//! It keeps the promises of [`Index`] with redb and knows nothing of what the facts mean. Only one process
//! can have the file open. Reads run where they are called, as a point read takes about a microsecond;
//! every batch goes through one writer thread, which commits all that are queued by one write to the disk.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io,
    ops::Bound,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use redb::{
    BackendError, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, Table, TableDefinition,
    backends::FileBackend,
};
use tokio::sync::{mpsc, oneshot};

use super::{Ask, Batch, Check, Connect, Fact, Index, IndexError, Outcome, Shard, Write, wake::Topics};

/// The database's name in its directory.
const FILE: &str = "facts.redb";

/// All facts. A key is the shard (big-endian), the group, a zero byte, and the member: as neither name has
/// control characters, byte order is that of shards, then groups, then members.
const FACTS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("facts");

/// What is known of the database itself: its random `identity`, made with it.
const ABOUT: TableDefinition<&str, &str> = TableDefinition::new("about");

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
    identity: String,
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

/// What becomes of one batch of a group.
type Answer = Result<Outcome, IndexError>;

/// The open database, and the way to open it again: after one failed write (a full disk) redb refuses all
/// further work on a handle.
struct File {
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    state: RwLock<State>,
}

struct State {
    database: Option<Database>,
    opened: Instant,
}

/// A file whose fsync does nothing. A commit still writes every page, and the head that points at them,
/// before it returns: what was acknowledged survives the death of the process, as the system has it, but
/// perhaps not the loss of power. (`redb::Durability::None` would keep commits in the process' memory.)
#[derive(Debug)]
struct Unsynced(FileBackend);

impl Embedded {
    /// Opens the index in `directory`, made with its parents if it isn't there. With `sync`, a commit is
    /// on the disk before it is acknowledged; without, it survives the death of the process only.
    ///
    /// # Errors
    /// [`IndexError::Broken`] where the file can't be opened: it is open already, or isn't readable.
    pub fn open(directory: &Path, sync: bool) -> Result<Self, IndexError> {
        let broken = |error: io::Error| IndexError::Broken(format!("{}: {error}", directory.display()));
        fs::create_dir_all(directory).map_err(broken)?;
        let path = directory.join(FILE);
        let index = Self::start(move || open_database(&path, sync)).map_err(|error| match error {
            redb::Error::DatabaseAlreadyOpen => {
                IndexError::Broken(format!("{} is open in another process", directory.join(FILE).display()))
            }
            error => IndexError::Broken(format!("{}: {error}", directory.join(FILE).display())),
        })?;
        if sync {
            // The file's name must be as durable as what is in it.
            fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(broken)?;
        }
        Ok(index)
    }

    /// Whether there is an index in `directory`: opening makes one where there isn't.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).is_file()
    }

    fn start(open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static) -> Result<Self, redb::Error> {
        let database = open()?;
        let identity = identify(&database)?;
        let state = State { database: Some(database), opened: Instant::now() };
        let file = Arc::new(File { open: Box::new(open), state: RwLock::new(state) });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new().name("index-writer".to_owned()).spawn({
            let file = Arc::clone(&file);
            move || write_queued(&file, queue)
        })?;
        Ok(Self(Arc::new(Facts { file, identity, topics: Topics::default(), jobs, writer: Some(writer) })))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Embedded").field("identity", &self.identity).finish_non_exhaustive()
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
        Ok(self.identity.clone())
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
            let mut found = Vec::new();
            for entry in facts.range::<&[u8]>((start, Bound::Excluded(&*end)))?.take(limit) {
                let (key, value) = entry?;
                let member = String::from_utf8_lossy(&key.value()[members..]).into_owned();
                found.push((member, Bytes::copy_from_slice(value.value())));
            }
            Ok(found)
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
    fn read<T>(
        &self,
        work: impl FnOnce(&redb::ReadOnlyTable<&[u8], &[u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, IndexError> {
        self.using(|database| {
            let facts = database.begin_read().map_err(redb::Error::from);
            let facts = facts.and_then(|snapshot| Ok(snapshot.open_table(FACTS)?));
            facts.and_then(|facts| work(&facts)).map_err(nothing_happened)
        })
    }

    /// Works on the open database, and opens it anew after a failure.
    fn using<T>(&self, work: impl FnOnce(&Database) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let result = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            match &state.database {
                Some(database) => work(database),
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
        state.database = None;
        match (self.open)() {
            Ok(database) => state.database = Some(database),
            Err(error) => tracing::error!(%error, "the embedded index could not be opened again"),
        }
        state.opened = Instant::now();
    }
}

/// Opens or creates the database at `path`.
fn open_database(path: &Path, sync: bool) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    if sync {
        return builder.create(path);
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    builder.create_with_backend(Unsynced(FileBackend::new(file)?))
}

/// The database's identity; a new database gets one, and its tables.
fn identify(database: &Database) -> Result<String, redb::Error> {
    let transaction = database.begin_write()?;
    let mut about = transaction.open_table(ABOUT)?;
    let known = about.get("identity")?.map(|identity| identity.value().to_owned());
    if let Some(identity) = known {
        return Ok(identity);
    }
    let identity = ulid::Ulid::r#gen().to_string();
    about.insert("identity", identity.as_str())?;
    drop(about);
    transaction.open_table(FACTS)?;
    transaction.commit()?;
    Ok(identity)
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
        let answers = match file.using(|database| commit_group(database, &group)) {
            Ok(answers) => answers,
            Err(error) => vec![Err(error); group.len()],
        };
        for (job, answer) in group.into_iter().zip(answers) {
            // Whoever dropped the call doesn't want to know.
            let _ = job.answer.send(answer);
        }
    }
}

/// Judges the batches one after the other, each on what the earlier ones wrote, and makes all their writes
/// durable at once.
fn commit_group(database: &Database, group: &[Job]) -> Result<Vec<Answer>, IndexError> {
    let transaction = database.begin_write().map_err(nothing_happened)?;
    let mut answers = Vec::with_capacity(group.len());
    let mut changed = false;
    {
        let mut facts = transaction.open_table(FACTS).map_err(nothing_happened)?;
        for job in group {
            let answer = judge(&mut facts, job.shard, &job.batch).map_err(nothing_happened)?;
            let writes = job.batch.sequence.is_some() || !job.batch.writes.is_empty();
            changed |= writes && matches!(answer, Ok(Outcome::Committed { .. }));
            answers.push(answer);
        }
    }
    if changed {
        transaction.commit().map_err(|error| IndexError::Unknown(error.to_string()))?;
    }
    Ok(answers)
}

/// Makes one batch's writes if its checks hold. The inner error is the batch's own, and leaves the table as
/// it was; the outer one is the file's.
fn judge(facts: &mut Table<'_, &[u8], &[u8]>, shard: Shard, batch: &Batch) -> Result<Answer, redb::Error> {
    for (check, what) in batch.checks.iter().enumerate() {
        if !holds(facts, shard, what)? {
            return Ok(Ok(Outcome::Refused { check }));
        }
    }
    let reads = batch.reads.iter().map(|ask| answer(facts, shard, ask)).collect::<Result<_, _>>()?;
    let mut sequence = 0;
    if let Some(counter) = &batch.sequence {
        let Some(next) = next_number(value(facts, shard, counter)?) else {
            let text = format!("the counter {} {} is no number", counter.group, counter.member);
            return Ok(Err(IndexError::Broken(text)));
        };
        sequence = next;
        put(facts, shard, counter, sequence.to_string().as_bytes())?;
    }
    for write in &batch.writes {
        make(facts, shard, write, sequence)?;
    }
    Ok(Ok(Outcome::Committed { sequence, reads }))
}

/// The number after the one that a counter stands at; `None` where its value is no number.
fn next_number(value: Option<Bytes>) -> Option<u64> {
    let Some(value) = value else { return Some(1) };
    std::str::from_utf8(&value).ok()?.parse::<u64>().ok()?.checked_add(1)
}

fn holds(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    check: &Check,
) -> Result<bool, redb::Error> {
    Ok(match check {
        Check::Absent(fact) => facts.get(&*key_of(shard, fact))?.is_none(),
        Check::Present(fact) => facts.get(&*key_of(shard, fact))?.is_some(),
        Check::Equals(fact, wanted) => facts.get(&*key_of(shard, fact))?.is_some_and(|found| found.value() == wanted),
        Check::Empty(group) => first(facts, shard, group)?.is_none(),
    })
}

fn make(facts: &mut Table<'_, &[u8], &[u8]>, shard: Shard, write: &Write, sequence: u64) -> Result<(), redb::Error> {
    match write {
        Write::Put(fact, value) => put(facts, shard, fact, value),
        Write::PutNumbered(fact, value) => {
            let mut numbered = format!("{sequence:016x}").into_bytes();
            numbered.extend_from_slice(value);
            put(facts, shard, fact, &numbered)
        }
        Write::PutAtNumber(fact, value) => {
            let member = format!("{sequence:016x}{}", fact.member);
            put(facts, shard, &Fact::new(&fact.group, member), value)
        }
        Write::Raise(fact, value) => {
            let greater = facts.get(&*key_of(shard, fact))?.is_some_and(|found| found.value() > &**value);
            if greater { Ok(()) } else { put(facts, shard, fact, value) }
        }
        Write::Delete(fact) => {
            facts.remove(&*key_of(shard, fact))?;
            Ok(())
        }
    }
}

fn put(facts: &mut Table<'_, &[u8], &[u8]>, shard: Shard, fact: &Fact, value: &[u8]) -> Result<(), redb::Error> {
    facts.insert(&*key_of(shard, fact), value)?;
    Ok(())
}

fn value(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    fact: &Fact,
) -> Result<Option<Bytes>, redb::Error> {
    Ok(facts.get(&*key_of(shard, fact))?.map(|value| Bytes::copy_from_slice(value.value())))
}

/// The least member of a group.
fn answer(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    ask: &Ask,
) -> Result<Option<Bytes>, redb::Error> {
    match ask {
        Ask::Value(fact) => value(facts, shard, fact),
        Ask::First(group) => first(facts, shard, group),
        Ask::Count(group) => count(facts, shard, group).map(Some),
    }
}

/// By looking at each member: who counts does so now and then.
fn count(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    group: &str,
) -> Result<Bytes, redb::Error> {
    let mut count: u64 = 0;
    for entry in facts.range::<&[u8]>(&*key(shard, group, "")..&*end_of(shard, group))? {
        entry?;
        count += 1;
    }
    Ok(count.to_string().into())
}

fn first(
    facts: &impl ReadableTable<&'static [u8], &'static [u8]>,
    shard: Shard,
    group: &str,
) -> Result<Option<Bytes>, redb::Error> {
    let start = key(shard, group, "");
    let Some(entry) = facts.range::<&[u8]>(&*start..&*end_of(shard, group))?.next() else { return Ok(None) };
    Ok(Some(Bytes::copy_from_slice(&entry?.0.value()[start.len()..])))
}

fn key_of(shard: Shard, fact: &Fact) -> Vec<u8> {
    key(shard, &fact.group, &fact.member)
}

fn key(shard: Shard, group: &str, member: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(3 + group.len() + member.len());
    key.extend_from_slice(&shard.0.to_be_bytes());
    key.extend_from_slice(group.as_bytes());
    key.push(0);
    key.extend_from_slice(member.as_bytes());
    key
}

/// The least key after all members of a group.
fn end_of(shard: Shard, group: &str) -> Vec<u8> {
    let mut end = key(shard, group, "");
    end.pop();
    end.push(1);
    end
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

impl StorageBackend for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

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

    fn put_one(member: &str) -> Batch {
        let fact = Fact::new("group", member);
        Batch { writes: vec![Write::Put(fact, Bytes::from_static(b"x"))], ..Batch::default() }
    }

    #[tokio::test]
    async fn a_full_disk_fails_batches_and_nothing_else() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join(FILE);
        let full = Arc::new(AtomicBool::new(false));
        let disk_is_full = Arc::clone(&full);
        let index = Embedded::start(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let disk = Disk { file: FileBackend::new(file)?, full: Arc::clone(&disk_is_full) };
            Database::builder().create_with_backend(disk)
        });
        let index = index.expect("a database").connect().await.expect("a connection");
        let shard = Shard(0);
        index.commit(shard, put_one("before")).await.expect("a commit");
        full.store(true, Ordering::SeqCst);
        let error = index.commit(shard, put_one("full")).await.expect_err("no room");
        assert!(matches!(error, IndexError::Unknown(_)), "{error:?}");
        tokio::time::sleep(REOPEN_AFTER).await;
        assert!(index.commit(shard, put_one("full")).await.is_err());
        full.store(false, Ordering::SeqCst);
        while index.commit(shard, put_one("after")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for member in ["before", "after"] {
            let found = index.get(shard, &[Ask::Value(Fact::new("group", member))]).await.expect("an answer");
            assert_eq!(found, [Some(Bytes::from_static(b"x"))], "{member}");
        }
        // A batch that failed wholly before it was committed was never made, and none is half made.
        index.commit(shard, put_one("last")).await.expect("a commit");
    }
}
