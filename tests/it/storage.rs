//! What [`Store`] promises beside its contract (`storage_contract.rs`), kept to by a local directory (synced and
//! not), by S3 in this process, by a real S3 server and by what plays Google Cloud Storage and Azure Blob Storage. What only a directory
//! promises is in `storage_local.rs`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use berth::{
    oci::{Algorithm, Digest},
    storage::{
        DataKey, Key, MultipartId, Stat, StorageError, Store, StoreTime,
        azure::Azure,
        gcs::Gcs,
        key::EpochNumber,
        local::Local,
        read_small,
        s3::{AccessKey, S3, S3Options},
    },
};
use bytes::Bytes;
use futures_util::{TryStreamExt, future::join_all};
use tempfile::TempDir;
use ulid::Ulid;

use crate::{
    azurite::{self, Container},
    fake_gcs::{self, FakeGcs},
    gcs_server::{self, GcsServer},
    s3_server::{self, S3Server},
    storage_options::gateway,
    versitygw::{self, Versitygw},
};

/// Where a store is, apart from the object that opens it: opened again it is another process.
pub(crate) enum Place {
    Directory { directory: TempDir, sync: bool },
    Bucket(S3Server),
    Gateway(Versitygw),
    Google(GcsServer),
    Emulator(FakeGcs),
    Container(Container),
}

impl Place {
    pub(crate) async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Directory { directory, sync } => Arc::new(Local::open(directory.path(), *sync).expect("open")),
            Self::Bucket(server) => Arc::new(S3::open(options(server)).await.expect("open")),
            Self::Gateway(server) => Arc::new(S3::open(gateway(server)).await.expect("open")),
            Self::Google(server) => Arc::new(Gcs::open(server.options()).await.expect("open")),
            Self::Emulator(server) => Arc::new(Gcs::open(gcs_server::options(&server.endpoint)).await.expect("open")),
            Self::Container(container) => Arc::new(Azure::open(container.options()).await.expect("open")),
        }
    }

    /// Whether it looks at signatures, and knows uploads in parts.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self, Self::Emulator(_))
    }

    /// Whether an upload in parts ends, so that nothing more can be done with it. Azure knows of none: what holds
    /// there instead is in `azure.rs`.
    fn ends_uploads(&self) -> bool {
        self.is_whole() && !matches!(self, Self::Container(_))
    }
}

pub(crate) fn options(server: &S3Server) -> S3Options {
    S3Options {
        bucket: server.bucket.clone(),
        prefix: "some/where".to_owned(),
        endpoint: Some(server.endpoint.clone()),
        public_endpoint: None,
        region: Some("us-east-1".to_owned()),
        path_style: Some(true),
        access_key: Some(key(&server.access_key, &server.secret_key)),
        ..S3Options::default()
    }
}

pub(crate) fn key(id: &str, secret: &str) -> AccessKey {
    AccessKey { id: id.to_owned(), secret: secret.to_owned(), session_token: None }
}

/// One of each kind of store, empty.
async fn places() -> Vec<Place> {
    let directory = || tempfile::tempdir().expect("directory");
    let emulator = fake_gcs::start_where_named().await.map(Place::Emulator);
    let places = [
        Place::Directory { directory: directory(), sync: true },
        Place::Directory { directory: directory(), sync: false },
        Place::Bucket(s3_server::start().await),
        Place::Gateway(versitygw::start().await),
        Place::Google(gcs_server::start().await),
        Place::Container(azurite::start().await),
    ];
    places.into_iter().chain(emulator).collect()
}

pub(crate) async fn stores() -> Vec<(Place, Arc<dyn Store>)> {
    let mut stores = Vec::new();
    for place in places().await {
        let store = place.open().await;
        stores.push((place, store));
    }
    stores
}

/// Those that look at signatures and know uploads in parts.
async fn whole_stores() -> Vec<(Place, Arc<dyn Store>)> {
    stores().await.into_iter().filter(|(place, _)| place.is_whole()).collect()
}

/// Those in which an upload in parts ends.
async fn stores_that_end_uploads() -> Vec<(Place, Arc<dyn Store>)> {
    stores().await.into_iter().filter(|(place, _)| place.ends_uploads()).collect()
}

pub(crate) fn data() -> Key {
    Key::Data(DataKey(Ulid::r#gen()))
}

/// A manifest's key in `repository`; with `object` counting up they sort in that order.
fn manifest(repository: &str, object: u128) -> Key {
    let digest = Digest::of(Algorithm::Sha256, b"a manifest");
    Key::Manifest { repository: repository.parse().expect("name"), digest, object: Ulid::from(object) }
}

/// Bytes that are different at every position that matters.
pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect::<Vec<u8>>().into()
}

pub(crate) async fn whole(store: &Arc<dyn Store>, key: &Key) -> Result<Bytes, StorageError> {
    read_small(store, key, 1 << 30).await
}

fn past(store: &Arc<dyn Store>) -> StoreTime {
    store.now().minus(Duration::from_secs(3))
}

fn soon(store: &Arc<dyn Store>) -> StoreTime {
    store.now().plus(Duration::from_secs(60))
}

async fn names(store: &Arc<dyn Store>, prefix: &str) -> Vec<String> {
    let page = store.list(prefix, None, 1000).await.expect("list");
    assert!(!page.more);
    page.objects.into_iter().map(|(key, _)| key).collect()
}

#[tokio::test]
async fn what_was_put_is_read_listed_and_known() {
    for (_place, store) in stores().await {
        let key = data();
        let chunks = vec![Bytes::from_static(b"in "), Bytes::new(), Bytes::from_static(b"pieces")];
        store.put(&key, chunks, Some(soon(&store))).await.expect("put");
        assert_eq!(whole(&store, &key).await.expect("read"), "in pieces");
        let stat = store.stat(&key).await.expect("stat").expect("there");
        assert_eq!(stat.size, 9);
        let page = store.list("data/", None, 10).await.expect("list");
        assert_eq!(page.objects.len(), 1);
        let (listed, Stat { size, .. }) = &page.objects[0];
        assert_eq!((listed, *size, page.more), (&key.to_string(), 9, false), "{store:?}");
    }
}

#[tokio::test]
async fn an_empty_object_is_an_object() {
    for (_place, store) in stores().await {
        for chunks in [Vec::new(), vec![Bytes::new()]] {
            let key = data();
            store.put(&key, chunks, None).await.expect("put");
            assert_eq!(store.stat(&key).await.expect("stat").map(|stat| stat.size), Some(0));
            assert_eq!(whole(&store, &key).await.expect("read"), "");
        }
        assert_eq!(names(&store, "data/").await.len(), 2);
    }
}

#[tokio::test]
async fn ranges_and_objects_of_many_blocks_are_read_exactly() {
    for (_place, store) in stores().await {
        let (key, bytes) = (data(), pattern((5 << 20) + 12_345));
        let chunks = bytes.chunks(100_000).map(|chunk| bytes.slice_ref(chunk)).collect();
        store.put(&key, chunks, None).await.expect("put");
        assert!(whole(&store, &key).await.expect("read") == bytes);
        let end = bytes.len() as u64;
        let block = 256 << 10;
        let ranges = [
            0..1,
            end - 1..end,
            0..end,
            1000..2000,
            block - 1..block + 1,
            block..2 * block,
            block - 7..4 * block + 7,
            3..end,
        ];
        for range in ranges {
            let chunks: Vec<Bytes> =
                store.read(&key, Some(range.clone())).await.expect("read").try_collect().await.expect("bytes");
            assert!(chunks.concat() == bytes[range.start as usize..range.end as usize], "{range:?} {store:?}");
        }
        for outside in [end - 1..end + 1, end..end + 1, end + 5..end + 9] {
            let refused = store.read(&key, Some(outside.clone())).await.err();
            assert!(matches!(refused, Some(StorageError::Unavailable(..))), "{outside:?} {refused:?}");
        }
    }
}

#[tokio::test]
async fn a_reader_keeps_what_it_opened_while_it_is_deleted() {
    for (_place, store) in stores().await {
        let (key, bytes) = (data(), pattern(3 << 20));
        store.put(&key, vec![bytes.clone()], None).await.expect("put");
        let mut stream = store.read(&key, None).await.expect("read");
        let first = stream.try_next().await.expect("bytes").expect("some");
        store.delete(&key, soon(&store)).await.expect("delete");
        let rest: Vec<Bytes> = stream.try_collect().await.expect("bytes");
        assert!([first, rest.concat().into()].concat() == bytes);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    for (place, store) in whole_stores().await {
        let key = data();
        assert!(matches!(whole(&store, &key).await, Err(StorageError::NotFound(name)) if name == key.to_string()));
        assert_eq!(store.stat(&key).await.expect("stat"), None);
        if !place.ends_uploads() {
            continue;
        }
        let gone = MultipartId("01JD5K3X5Z0000000000000000".to_owned());
        let part = store.put_part(&key, &gone, 0, store.part_size(), vec![Bytes::from_static(b"x")]).await;
        assert!(matches!(part, Err(StorageError::NotFound(_))), "{part:?}");
        let name = match place {
            Place::Directory { .. } => "0.8.1.01JD5K3X5Z0000000000000000",
            Place::Bucket(_) | Place::Gateway(_) | Place::Google(_) | Place::Emulator(_) | Place::Container(_) => {
                "\"9a0364b9e99bb480dd25e1f0284c8555\""
            }
        };
        let parts = vec![berth::storage::PartId(name.to_owned())];
        let completed = store.complete(&key, &gone, &parts).await;
        assert!(matches!(completed, Err(StorageError::NotFound(_))), "{completed:?}");
        store.abort(&key, &gone).await.expect("abort");
    }
}

#[tokio::test]
async fn an_upload_begun_by_one_process_is_completed_by_another() {
    for place in places().await.into_iter().filter(Place::is_whole) {
        let (key, bytes) = (data(), pattern((5 << 20) + (5 << 20) + 77));
        let size = 5 << 20;
        let part = |number: usize| vec![bytes.slice(number * size..bytes.len().min((number + 1) * size))];
        let (upload, first) = {
            let store = place.open().await;
            let upload = store.begin(&key).await.expect("begin");
            (upload.clone(), store.put_part(&key, &upload, 0, size, part(0)).await.expect("part"))
        };
        let store = place.open().await;
        assert_eq!(store.stat(&key).await.expect("stat"), None, "nothing is there before it is complete");
        assert!(names(&store, "").await.is_empty(), "{store:?}");
        // Side by side, and not in order.
        let (third, second) = tokio::join!(
            store.put_part(&key, &upload, 2, size, part(2)),
            store.put_part(&key, &upload, 1, size, part(1)),
        );
        let parts = [first, second.expect("part"), third.expect("part")];
        store.complete(&key, &upload, &parts).await.expect("complete");
        assert!(whole(&store, &key).await.expect("read") == bytes);
        assert_eq!(names(&store, "").await, [key.to_string()]);
        store.complete(&key, &upload, &parts).await.expect("complete again");
        drop(store);
        let store = place.open().await;
        store.complete(&key, &upload, &parts).await.expect("complete again, elsewhere");
        let late = store.put_part(&key, &upload, 0, size, part(0)).await;
        let is_refused = match place {
            // It hangs up while the part is still being sent, so its answer may get lost.
            Place::Gateway(_) => matches!(late, Err(StorageError::NotFound(_) | StorageError::Unavailable(..))),
            // It lies beside the blob for a week.
            Place::Container(_) => late.is_ok(),
            _ => matches!(late, Err(StorageError::NotFound(_))),
        };
        assert!(is_refused, "{late:?}");
        assert!(whole(&store, &key).await.expect("read") == bytes);
    }
}

#[tokio::test]
async fn an_aborted_upload_is_gone() {
    for (_place, store) in stores_that_end_uploads().await {
        let key = data();
        let upload = store.begin(&key).await.expect("begin");
        let part = store.put_part(&key, &upload, 0, store.part_size(), vec![pattern(10)]).await.expect("part");
        store.abort(&key, &upload).await.expect("abort");
        store.abort(&key, &upload).await.expect("abort again");
        let completed = store.complete(&key, &upload, std::slice::from_ref(&part)).await;
        assert!(matches!(completed, Err(StorageError::NotFound(_))), "{completed:?}");
        let late = store.put_part(&key, &upload, 0, store.part_size(), vec![pattern(10)]).await;
        assert!(matches!(late, Err(StorageError::NotFound(_))), "{late:?}");
        assert_eq!(store.stat(&key).await.expect("stat"), None);
    }
}

#[tokio::test]
async fn an_upload_without_parts_is_an_empty_object() {
    for (_place, store) in whole_stores().await {
        let key = data();
        let upload = store.begin(&key).await.expect("begin");
        store.complete(&key, &upload, &[]).await.expect("complete");
        assert_eq!(store.stat(&key).await.expect("stat").map(|stat| stat.size), Some(0));
    }
}

#[tokio::test]
async fn a_put_after_its_deadline_is_refused() {
    for (_place, store) in stores().await {
        let key = data();
        let refused = store.put(&key, vec![pattern(10)], Some(past(&store))).await;
        assert!(matches!(refused, Err(StorageError::TooLate(_))), "{refused:?}");
        assert_eq!(store.stat(&key).await.expect("stat"), None);
        assert!(names(&store, "").await.is_empty());
    }
}

#[tokio::test]
async fn modified_is_the_store_s_own_time() {
    // The margin that the protocols allow a store; a `Date` and a `Last-Modified` are whole seconds, each rounded down.
    let margin = Duration::from_secs(3);
    for (_place, store) in stores().await {
        for _ in 0..20 {
            let (key, before) = (data(), store.now());
            let deadline = store.now().plus(Duration::from_secs(60));
            store.put(&key, vec![pattern(10)], Some(deadline)).await.expect("put");
            let modified = store.stat(&key).await.expect("stat").expect("there").modified;
            assert!(
                modified >= before.minus(margin) && modified <= store.now().plus(margin),
                "{before:?} {modified:?}"
            );
            assert!(modified <= deadline);
            if store.sign(&key, margin).await.expect("sign").is_none() {
                assert!(modified <= store.now(), "a directory's clock is the one that dates its files");
            }
        }
    }
}

/// Deletes remove the directories that they empty, and puts need them.
/// Some stores list milliseconds, and a HEAD has seconds: a writer was told that its revision counts, and readers
/// that it doesn't.
#[tokio::test]
async fn a_listing_and_a_question_tell_the_same_time() {
    for (_place, store) in stores().await {
        let key = data();
        store.put(&key, vec![pattern(1)], None).await.expect("put");
        let asked = store.stat(&key).await.expect("stat").expect("there");
        let listed = store.list("data/", None, 10).await.expect("list").objects;
        assert_eq!(listed, [(key.to_string(), asked)], "{store:?}");
    }
}

#[tokio::test]
async fn puts_and_deletes_of_neighbours_do_not_disturb_each_other() {
    for (_place, store) in stores().await {
        let busy = (0..4).map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..25 {
                    let key = manifest("busy/one", task * 1000 + round);
                    store.put(&key, vec![pattern(3)], None).await.expect("put");
                    assert!(store.stat(&key).await.expect("stat").is_some());
                    store.delete(&key, soon(&store)).await.expect("delete");
                }
            })
        });
        for task in join_all(busy).await {
            task.expect("task");
        }
        assert!(names(&store, "").await.is_empty());
    }
}

#[tokio::test]
async fn an_epoch_is_found_at_its_place() {
    for (_place, store) in stores().await {
        let key = Key::Epoch(EpochNumber { generation: 1, random: 7 });
        store.put(&key, vec![Bytes::from_static(b"{}")], Some(soon(&store))).await.expect("put");
        store.put(&Key::Format, vec![Bytes::from_static(b"{}")], None).await.expect("put");
        assert_eq!(names(&store, berth::storage::key::EPOCHS).await, [key.to_string()]);
        assert_eq!(names(&store, "").await, ["berth.json".to_owned(), key.to_string()]);
    }
}

/// Clients outside may reach the store by another name than Berth does, which the signature covers.
#[tokio::test]
async fn a_signed_url_names_the_public_endpoint_and_nothing_else_does() {
    let server = s3_server::start().await;
    let public_endpoint = Some("https://s3.example.com".to_owned());
    let store = S3::open(S3Options { public_endpoint, ..options(&server) }).await.expect("open");
    let key = data();
    store.put(&key, vec![pattern(1)], None).await.expect("put");
    let signed = store.sign(&key, Duration::from_secs(60)).await.expect("sign").expect("url");
    assert!(signed.url.starts_with(&format!("https://s3.example.com/bucket/some/where/{key}?")), "{}", signed.url);
    assert_eq!(signed.life, Duration::from_secs(60));
    assert!(!format!("{signed:?}").contains("Signature"), "a URL is as good as a password");
    assert!(store.stat(&key).await.expect("stat").is_some());
    store.delete(&key, store.now().plus(Duration::from_secs(60))).await.expect("delete");
}

#[tokio::test]
async fn unfinished_uploads_are_listed_until_they_end() {
    for (_place, store) in stores_that_end_uploads().await {
        let before = store.now().minus(Duration::from_secs(3));
        let mut begun = BTreeSet::new();
        for _ in 0..3 {
            begun.insert(store.begin(&data()).await.expect("begin").0);
        }
        let listed = store.unfinished(None).await.expect("list");
        assert_eq!(listed.uploads.iter().map(|upload| upload.id.0.clone()).collect::<BTreeSet<_>>(), begun);
        assert!(!listed.more);
        for upload in &listed.uploads {
            assert!(upload.since >= before && upload.since <= soon(&store), "{upload:?}");
            store.abort(upload.key.as_ref().unwrap_or(&data()), &upload.id).await.expect("abort");
        }
        assert!(store.unfinished(None).await.expect("list").uploads.is_empty(), "{store:?}");
    }
}
