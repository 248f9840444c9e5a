//! A power failure after any 201 takes nothing back: the whole server is traced while an image is pushed, and
//! what it wrote must be synced before each answer is sent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use tempfile::{NamedTempFile, TempDir};

use crate::{
    berth::Setup,
    e2e_client::{closing, noise, sha256},
    strace,
};

/// Whether a call tells a client that something was created.
fn is_created(arguments: &str) -> bool {
    arguments.contains("HTTP/1.1 201 ")
}

/// Pushes an image and more to a traced server; returns what was not synced in time, of the layout and of the
/// index beside it, which is one file that each commit syncs by itself.
async fn unsynced(sync: &str) -> [Vec<String>; 2] {
    let (trace, directory) = (NamedTempFile::new().unwrap(), TempDir::new().unwrap());
    let data = directory.path().canonicalize().unwrap().join("data");
    let setup = Setup { trace: Some(trace.path().to_owned()), ..Setup::of(&[("BERTH_STORAGE__SYNC", sync)]) };
    let mut berth = setup.over(&data).start();
    let client = berth.client();
    client.push_image("team/app", "1", &[noise(1, 1000), noise(2, 9 << 20)]).await;
    let patched = noise(3, 5000);
    let location = client.start_upload("team/app").await;
    let location = client.send("PATCH", &location, &[], patched.clone()).await.expect(202).location();
    client.send("PUT", &closing(&location, &sha256(&patched)), &[], "").await.expect(201);
    let mount = format!("/v2/team/other/blobs/uploads/?from=team/app&mount={}", sha256(&patched));
    client.post(&mount).await.expect(201);
    assert_eq!(berth.terminate().code(), Some(0));
    let trace = fs::read_to_string(trace.path()).unwrap();
    assert_eq!(trace.lines().filter(|line| is_created(line)).count(), 6, "each push was seen");
    [strace::unsynced_before(&trace, &data, is_created), uncommitted(&trace)]
}

/// The 201s before which the index did not sync its file. That the file is clean at that moment can't be
/// asked: the next commit, of a hint, may be on its way already.
fn uncommitted(trace: &str) -> Vec<String> {
    let (mut synced, mut complaints) = (false, Vec::new());
    for line in trace.lines() {
        synced |= line.contains("sync(") && line.contains("facts.journal");
        if is_created(line) && !std::mem::take(&mut synced) {
            complaints.push(line.to_owned());
        }
    }
    complaints
}

#[tokio::test]
async fn what_was_created_was_synced_before_it_was_said() {
    assert_eq!(unsynced("true").await, [Vec::<String>::new(), Vec::new()]);
}

/// The same look at a server that was told not to sync finds it out.
#[tokio::test]
async fn what_was_not_synced_is_seen() {
    let [layout, index] = unsynced("false").await;
    assert!(!layout.is_empty() && !index.is_empty(), "{layout:?} {index:?}");
}
