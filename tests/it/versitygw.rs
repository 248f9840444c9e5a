//! A real S3 server for a test: versitygw over a directory of its own, gone with the value that stands for it.
//! It checks signatures, regions and checksums end to end, and speaks TLS.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use berth::storage::{StorageError, Store, s3::S3};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    berth::own_address,
    storage::{data, whole},
    storage_options::gateway,
};

/// The only bucket.
pub(crate) const BUCKET: &str = "bucket";
/// Who may use it.
pub(crate) const ACCESS_KEY: &str = "gateway";
/// And with what.
pub(crate) const SECRET_KEY: &str = "gateway-secret";
/// Where it is.
pub(crate) const REGION: &str = "eu-central-1";

const PORT: u16 = 7070;

/// A running server with one empty bucket.
#[derive(Debug)]
pub(crate) struct Versitygw {
    /// `http://127.<its own>:7070`, or `https:`.
    pub(crate) endpoint: String,
    directory: TempDir,
    child: Child,
}

/// Starts a server and waits until it takes connections.
pub(crate) async fn start() -> Versitygw {
    let directory = TempDir::new().unwrap();
    launch(directory, own_address(), "http", &[]).await
}

/// The same over TLS, with a certificate that nobody trusts; also the file that makes one trust it.
pub(crate) async fn start_with_tls() -> (Versitygw, PathBuf) {
    let directory = TempDir::new().unwrap();
    let address = own_address();
    let made = rcgen::generate_simple_self_signed([address.to_string()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let arguments = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    (launch(directory, address, "https", &arguments).await, certificate)
}

async fn launch(directory: TempDir, address: Ipv4Addr, scheme: &str, arguments: &[&str]) -> Versitygw {
    let (root, beside) = (directory.path().join("buckets"), directory.path().join("metadata"));
    std::fs::create_dir_all(root.join(BUCKET)).unwrap();
    std::fs::create_dir_all(&beside).unwrap();
    let mut child = Command::new("versitygw")
        .args(["--port", &format!("{address}:{PORT}"), "--access", ACCESS_KEY, "--secret", SECRET_KEY])
        .args(["--region", REGION, "--quiet", "--keep-alive"])
        .args(arguments)
        // Not every file system keeps extended attributes.
        .args(["posix", "--sidecar", beside.to_str().unwrap(), root.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("versitygw is needed: scripts/setup-tests installs it");
    while TcpStream::connect((address, PORT)).await.is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "versitygw ended: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Versitygw { endpoint: format!("{scheme}://{address}:{PORT}"), directory, child }
}

/// Two parts of 128 bytes that have one MD5, and so one ETag: the second differs from the first in the topmost
/// bit of six bytes. They are the pair that Wang and Yu published in "How to Break MD5 and Other Hash Functions".
const COLLIDING: &str = "\
    d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89\
    55ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b\
    d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0\
    e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70";

/// Two sessions that race on one upload each put their own part. Whoever completes gets what they put, or learns
/// that they don't, also where the store tells parts apart by MD5.
#[tokio::test]
async fn a_part_that_was_replaced_by_one_of_the_same_md5_cannot_be_completed_with() {
    let server = start().await;
    let store = S3::open(gateway(&server)).await.unwrap();
    let byte = |at: usize| u8::from_str_radix(&COLLIDING[at..at + 2], 16).unwrap();
    let first: Vec<u8> = (0..COLLIDING.len()).step_by(2).map(byte).collect();
    let mut second = first.clone();
    [19, 45, 59, 83, 109, 123].into_iter().for_each(|at: usize| second[at] ^= 0x80);
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let put = async |bytes: &[u8]| {
        store.put_part(&key, &upload, 0, 5 << 20, vec![Bytes::copy_from_slice(bytes)]).await.unwrap()
    };
    let (old, new) = (put(&first).await, put(&second).await);
    let refused = store.complete(&key, &upload, std::slice::from_ref(&old)).await;
    assert!(matches!(refused, Err(StorageError::PartChanged(_))), "{old:?} {new:?} {refused:?}");
    store.complete(&key, &upload, &[new]).await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    assert_eq!(whole(&store, &key).await.unwrap(), second);
}

impl Drop for Versitygw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The directory goes after its writer.
        let _ = self.directory.path();
    }
}
