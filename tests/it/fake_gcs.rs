//! A real emulator of Google Cloud Storage for a test: fake-gcs-server, where `BERTH_TEST_GCS_SERVER` names its
//! program. It knows no uploads in parts, and looks at no tokens and no signatures.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::net::TcpStream;

use crate::{berth::own_address, gcs_server::BUCKET};

const PORT: u16 = 4443;

/// A running server with one empty bucket.
#[derive(Debug)]
pub(crate) struct FakeGcs {
    /// `http://127.<its own>:4443`.
    pub(crate) endpoint: String,
    child: Child,
}

/// Starts a server and makes the bucket; `None` where nobody named the program.
pub(crate) async fn start_where_named() -> Option<FakeGcs> {
    let program = std::env::var_os("BERTH_TEST_GCS_SERVER")?;
    let address = own_address();
    let place = format!("{address}:{PORT}");
    let mut child = Command::new(&program)
        .args(["-scheme", "http", "-backend", "memory", "-host", &address.to_string(), "-port", &PORT.to_string()])
        // Else only requests for Google's own host are for objects.
        .args(["-public-host", &place])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?}, which scripts/setup-check-all installs: {error}"));
    while TcpStream::connect(&place).await.is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let endpoint = format!("http://{place}");
    let bucket = serde_json::json!({"name": BUCKET});
    let made = reqwest::Client::new().post(format!("{endpoint}/storage/v1/b?project=p")).json(&bucket).send().await;
    assert!(made.unwrap().status().is_success());
    Some(FakeGcs { endpoint, child })
}

impl Drop for FakeGcs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
