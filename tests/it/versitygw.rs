//! A real S3 server for a test: versitygw over a directory of its own, gone with the value that stands for it.
//! It checks signatures, regions and checksums end to end, and speaks TLS.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::TcpStream;

/// The only bucket.
pub(crate) const BUCKET: &str = "bucket";
/// Who may use it.
pub(crate) const ACCESS_KEY: &str = "gateway";
/// And with what.
pub(crate) const SECRET_KEY: &str = "gateway-secret";
/// Where it is.
pub(crate) const REGION: &str = "eu-central-1";

/// A running server with one empty bucket.
#[derive(Debug)]
pub(crate) struct Versitygw {
    /// `http://127.0.0.1:<port>`, or `https:`.
    pub(crate) endpoint: String,
    directory: TempDir,
    child: Child,
}

/// Starts a server and waits until it takes connections.
pub(crate) async fn start() -> Versitygw {
    let directory = TempDir::new().unwrap();
    launch(directory, "http", &[]).await
}

/// The same over TLS, with a certificate that nobody trusts; also the file that makes one trust it.
pub(crate) async fn start_with_tls() -> (Versitygw, PathBuf) {
    let directory = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let arguments = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    (launch(directory, "https", &arguments).await, certificate)
}

async fn launch(directory: TempDir, scheme: &str, arguments: &[&str]) -> Versitygw {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (root, beside) = (directory.path().join("buckets"), directory.path().join("metadata"));
    std::fs::create_dir_all(root.join(BUCKET)).unwrap();
    std::fs::create_dir_all(&beside).unwrap();
    let mut child = Command::new("versitygw")
        .args(["--port", &format!("127.0.0.1:{port}"), "--access", ACCESS_KEY, "--secret", SECRET_KEY])
        .args(["--region", REGION, "--quiet", "--keep-alive"])
        .args(arguments)
        // Not every file system keeps extended attributes.
        .args(["posix", "--sidecar", beside.to_str().unwrap(), root.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("versitygw is needed: scripts/setup-tests installs it");
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "versitygw ended: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Versitygw { endpoint: format!("{scheme}://127.0.0.1:{port}"), directory, child }
}

impl Drop for Versitygw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The directory goes after its writer.
        let _ = self.directory.path();
    }
}
