//! What only the store in a local directory promises: one process at a time, durability before the answer,
//! and errors that say what an operator can do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use berth::storage::{
    Key, PartId, StorageError, Store,
    local::{Local, OpenError},
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tempfile::TempDir;

use crate::{
    storage::{data, pattern, whole},
    strace,
};

fn open(directory: &Path) -> Arc<dyn Store> {
    Arc::new(Local::open(directory, true).expect("open"))
}

/// Everything under `.tmp`.
fn temporary(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory.join(".tmp")).expect("directory");
    entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect()
}

/// A small file system of its own, unmounted at the end.
struct Tmpfs {
    directory: TempDir,
}

impl Tmpfs {
    fn mount(size: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(directory.path()));
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn remount_read_only(&self) {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("start");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said} (this test mounts a tmpfs: run it as root, e.g. by sudo)");
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_directory() {
    let directory = tempfile::tempdir().expect("directory");
    let first = open(directory.path());
    let error = Local::open(directory.path(), true).expect_err("locked");
    assert!(matches!(error, OpenError::Locked { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    assert!(text.contains(&directory.path().display().to_string()) && !text.contains('\n'), "{text}");
    drop(first);
    open(directory.path());
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("file"), "").expect("file");
    let error = Local::open(&directory.path().join("file/store"), true).expect_err("not a directory");
    assert!(error.to_string().contains("file/store"), "{error}");
    open(&directory.path().join("several/new/ones"));
}

#[tokio::test]
async fn what_a_dead_process_left_is_removed_but_not_its_uploads() {
    let directory = tempfile::tempdir().expect("directory");
    let (key, upload) = {
        let store = open(directory.path());
        let key = data();
        let upload = store.begin(&key).await.expect("begin");
        (key, upload)
    };
    fs::write(directory.path().join(".tmp/put-01JD5K3X5Z0000000000000000"), "half").expect("file");
    let store = open(directory.path());
    assert_eq!(temporary(directory.path()), [upload.0.as_str()]);
    store.abort(&key, &upload).await.expect("abort");
    assert!(temporary(directory.path()).is_empty());
}

#[tokio::test]
async fn dotfiles_are_not_part_of_the_layout_and_no_prefix_leads_outside() {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("outside"), "x").expect("file");
    let store = open(&directory.path().join("store"));
    fs::create_dir(directory.path().join("store/.index")).expect("directory");
    fs::write(directory.path().join("store/.index/db"), "x").expect("file");
    store.begin(&data()).await.expect("begin");
    for prefix in ["", ".tmp/", ".index/"] {
        assert!(store.list(prefix, None, 10).await.expect("list").objects.is_empty(), "{prefix}");
    }
    for prefix in ["../", "data/../../", "/", "//", "data//", "./", "data", "a/./"] {
        let refused = store.list(prefix, None, 10).await;
        assert!(matches!(refused, Err(StorageError::Refused(..))), "{prefix} {refused:?}");
    }
}

#[tokio::test]
async fn a_delete_leaves_no_empty_directories_but_the_top() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let key = data();
    store.put(&key, vec![pattern(10)], None).await.expect("put");
    store.delete(&key, store.now().plus(Duration::from_secs(9))).await.expect("delete");
    assert_eq!(fs::read_dir(directory.path().join("data")).expect("directory").count(), 0);
    assert!(temporary(directory.path()).is_empty());
}

#[tokio::test]
async fn a_full_disk_is_said_and_its_space_is_given_back() {
    let disk = Tmpfs::mount("2m");
    let store = open(disk.path());
    let key = data();
    let refused = store.put(&key, vec![pattern(1 << 20), pattern(2 << 20)], None).await;
    assert!(matches!(refused, Err(StorageError::Full(_))), "{refused:?}");
    assert_eq!(store.stat(&key).await.expect("stat"), None);
    assert!(temporary(disk.path()).is_empty());
    let upload = store.begin(&key).await.expect("begin");
    let refused = store.put_part(&key, &upload, 0, 4 << 20, vec![pattern(3 << 20)]).await;
    assert!(matches!(refused, Err(StorageError::Full(_))), "{refused:?}");
    // And a full disk can be deleted from.
    store.abort(&key, &upload).await.expect("abort");
    let room = data();
    store.put(&room, vec![pattern(3 << 19)], None).await.expect("the space of both is back");
    store.delete(&room, store.now().plus(Duration::from_secs(9))).await.expect("delete");
    store.put(&key, vec![pattern(3 << 19)], None).await.expect("and the space of what was deleted");
}

#[tokio::test]
async fn a_read_only_file_system_refuses_and_still_serves() {
    let disk = Tmpfs::mount("2m");
    let store = open(disk.path());
    let key = data();
    store.put(&key, vec![pattern(10)], None).await.expect("put");
    disk.remount_read_only();
    let refused = store.put(&data(), vec![pattern(10)], None).await;
    assert!(matches!(refused, Err(StorageError::Refused(..))), "{refused:?}");
    let refused = store.delete(&key, store.now().plus(Duration::from_secs(9))).await;
    assert!(matches!(refused, Err(StorageError::Refused(..))), "{refused:?}");
    let refused = store.begin(&key).await;
    assert!(matches!(refused, Err(StorageError::Refused(..))), "{refused:?}");
    assert!(whole(&store, &key).await.expect("read") == pattern(10));
}

#[tokio::test]
async fn a_file_that_is_cut_short_while_it_is_read_is_an_error() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let key = data();
    store.put(&key, vec![pattern(4 << 20)], None).await.expect("put");
    let mut stream = store.read(&key, None).await.expect("read");
    stream.try_next().await.expect("bytes").expect("some");
    let file = fs::File::options().write(true).open(directory.path().join(key.to_string())).expect("file");
    file.set_len(1 << 20).expect("cut");
    let rest: Result<Vec<Bytes>, _> = stream.try_collect().await;
    assert!(matches!(rest, Err(StorageError::Unavailable(..))));
}

#[tokio::test]
async fn an_upload_that_lost_its_end_is_not_completed() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let key = data();
    let upload = store.begin(&key).await.expect("begin");
    let part = store.put_part(&key, &upload, 0, 1000, vec![pattern(1000)]).await.expect("part");
    let path = directory.path().join(".tmp").join(&upload.0);
    fs::File::options().write(true).open(path).expect("file").set_len(900).expect("cut");
    let refused = store.complete(&key, &upload, std::slice::from_ref(&part)).await;
    assert!(matches!(refused, Err(StorageError::Unavailable(..))), "{refused:?}");
    let twice = store.complete(&key, &upload, &[part.clone(), part]).await;
    assert!(matches!(twice, Err(StorageError::Unavailable(..))), "{twice:?}");
    assert_eq!(store.stat(&key).await.expect("stat"), None);
}

/// Parts are not synced one by one: what one boot wrote may not be there in the next.
#[tokio::test]
async fn a_part_that_was_written_before_the_machine_went_down_is_lost() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    let key = data();
    let upload = store.begin(&key).await.expect("begin");
    let part = store.put_part(&key, &upload, 0, 4, vec![Bytes::from_static(b"part")]).await.expect("part");
    let (of_this_boot, _) = part.0.rsplit_once('.').expect("a boot");
    let earlier = PartId(format!("{of_this_boot}.another"));
    let refused = store.complete(&key, &upload, &[earlier]).await;
    assert!(matches!(refused, Err(StorageError::PartChanged(_))), "{refused:?}");
    store.complete(&key, &upload, &[part]).await.expect("complete");
}

/// Writers of one part take turns, so the version that counts is whole.
#[tokio::test]
async fn of_two_writers_of_one_part_the_latest_is_whole() {
    let directory = tempfile::tempdir().expect("directory");
    let store: Arc<dyn Store> = Arc::new(Local::open(directory.path(), false).expect("open"));
    for _ in 0..20 {
        let key = data();
        let upload = store.begin(&key).await.expect("begin");
        let one = |byte: u8| vec![Bytes::from(vec![byte; 1 << 18]); 4];
        let (a, b) = tokio::join!(
            store.put_part(&key, &upload, 0, 1 << 20, one(b'a')),
            store.put_part(&key, &upload, 0, 1 << 20, one(b'b')),
        );
        let (a, b) = (a.expect("part"), b.expect("part"));
        let with_a = store.complete(&key, &upload, &[a]).await;
        let expected = if with_a.is_ok() { b'a' } else { b'b' };
        if let Err(error) = with_a {
            assert!(matches!(error, StorageError::PartChanged(_)), "{error}");
            store.complete(&key, &upload, &[b]).await.expect("complete");
        }
        assert!(whole(&store, &key).await.expect("read").iter().all(|byte| *byte == expected));
    }
}

/// What passed its deadline before a listing began is in it: the listing that decides that a write came too
/// late can't be overtaken by that write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_appears_after_a_listing_that_began_after_its_deadline() {
    let directory = tempfile::tempdir().expect("directory");
    let store = open(directory.path());
    for _ in 0..30 {
        let deadline = store.now().plus(Duration::from_millis(3));
        let keys: Vec<Key> = (0..8).map(|_| data()).collect();
        let puts: Vec<_> = keys
            .iter()
            .map(|key| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.put(&key, vec![pattern(10)], Some(deadline)).await })
            })
            .collect();
        while store.now() <= deadline {
            tokio::task::yield_now().await;
        }
        let page = store.list("data/", None, 1000).await.expect("list");
        for (key, put) in keys.iter().zip(puts) {
            let put = put.await.expect("task");
            let shown = page.objects.iter().find(|(listed, _)| *listed == key.to_string());
            assert_eq!(put.is_ok(), shown.is_some(), "{put:?}");
            assert!(shown.is_none_or(|(_, stat)| stat.modified <= deadline));
        }
    }
}

/// The variable by which the test below finds its directory.
const TRACED: &str = "BERTH_TEST_TRACED_DIRECTORY";

/// Not a test of its own: what [`everything_acknowledged_was_synced`] runs under strace.
#[tokio::test]
#[ignore = "run under strace by everything_acknowledged_was_synced"]
async fn traced() {
    let directory = PathBuf::from(std::env::var(TRACED).expect("run by everything_acknowledged_was_synced"));
    let mut markers = fs::File::options().write(true).open("/dev/null").expect("open");
    let mut mark =
        |what: &str| std::io::Write::write_all(&mut markers, format!("done {what}").as_bytes()).expect("mark");
    let store = open(&directory.join("new/store"));
    mark("open");
    let keys: Vec<Key> = (0..3).map(|_| data()).collect();
    for key in &keys {
        store.put(key, vec![pattern(10), pattern(20)], None).await.expect("put");
        mark("put");
    }
    // Side by side into a directory that none of them knows to be durable.
    let side_by_side = (0..8).map(|generation| {
        let repository = "some/deep/repository".parse().expect("name");
        let digest = berth::oci::Digest::of(berth::oci::Algorithm::Sha256, b"x");
        let key = Key::Manifest { repository, digest, object: ulid::Ulid::from(generation) };
        let store = store.clone();
        async move { store.put(&key, vec![pattern(10)], None).await.expect("put") }
    });
    futures_util::future::join_all(side_by_side).await;
    mark("puts side by side");
    let key = data();
    let upload = store.begin(&key).await.expect("begin");
    let first = store.put_part(&key, &upload, 0, 1000, vec![pattern(1000)]).await.expect("part");
    let second = store.put_part(&key, &upload, 1, 1000, vec![pattern(1)]).await.expect("part");
    store.complete(&key, &upload, &[first, second]).await.expect("complete");
    mark("multipart");
    store.delete(&keys[0], store.now().plus(Duration::from_secs(60))).await.expect("delete");
    mark("delete");
}

#[test]
fn everything_acknowledged_was_synced() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().canonicalize().expect("path");
    let trace = tempfile::NamedTempFile::new().expect("file");
    let output = strace::command(trace.path())
        .arg(std::env::current_exe().expect("path"))
        .args(["--exact", "storage_local::traced", "--ignored", "--nocapture"])
        .env(TRACED, &root)
        .output()
        .expect("start strace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "the traced test was not found");
    let trace = fs::read_to_string(trace.path()).expect("trace");
    let complaints = strace::unsynced_before(&trace, &root, |text| text.contains("\"done "));
    assert_eq!(complaints, Vec::<String>::new());
}
