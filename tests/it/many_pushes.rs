//! Many pushes of large blobs at once, to a Berth whose store throws the bytes away; and what it held meanwhile.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    berth::{Berth, Setup},
    discarding_s3,
    e2e_client::{Client, closing, hex, noise},
};

const PIECE: usize = 1 << 20;

/// What is pushed, and with what.
pub(crate) struct Pushes {
    /// How many at once.
    pub(crate) count: u64,
    /// The size of each in MiB.
    pub(crate) mebibytes: u64,
    /// `limits.upload_memory` in MiB.
    pub(crate) budget: u64,
    /// `limits.upload_scratch`.
    pub(crate) scratch: Option<TempDir>,
}

impl Pushes {
    /// Pushes all, and returns by how many MiB the server's memory grew at most. What it has before is mostly the pages of
    /// its binary, which are many where that isn't optimised.
    pub(crate) async fn growth(self) -> u64 {
        let (store, directory) = (discarding_s3::start().await, TempDir::new().unwrap());
        let mut environment = store.settings();
        environment.push(("BERTH_INDEX__URL", format!("embedded:{}", directory.path().join("index").display())));
        environment.push(("BERTH_LIMITS__UPLOAD_MEMORY", format!("{}MiB", self.budget)));
        if let Some(scratch) = &self.scratch {
            environment.push(("BERTH_LIMITS__UPLOAD_SCRATCH", scratch.path().display().to_string()));
        }
        // The clients hash what they send on the machine that the server is on: any of them may be slow.
        let timeouts =
            ["BERTH_LIMITS__HEADER_TIMEOUT", "BERTH_LIMITS__IDLE_TIMEOUT", "BERTH_LIMITS__BODY_IDLE_TIMEOUT"];
        environment.extend(timeouts.map(|timeout| (timeout, "1h".to_owned())));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let berth = Setup::of(&environment).start();
        let before = most_memory(&berth);
        let noise = noise(7, PIECE);
        let pushes: JoinSet<()> =
            (0..self.count).map(|number| push(berth.client(), number, self.mebibytes, noise.clone())).collect();
        pushes.join_all().await;
        let (parts, bytes) = store.discarded();
        let most = most_memory(&berth);
        let Self { count, mebibytes, budget, .. } = self;
        println!(
            "{count} pushes of {mebibytes} MiB: {parts} parts; {before} MiB held before and {most} at most, of which uploads may {budget}"
        );
        assert_eq!(bytes >> 20, count * mebibytes, "each byte goes to the store once");
        most - before
    }
}

/// One blob of its own content, of which every piece has its number in front, by PATCH and PUT.
async fn push(client: Client, number: u64, mebibytes: u64, noise: Bytes) {
    let repository = format!("many/{number}");
    let hasher = Arc::new(Mutex::new(Sha256::new()));
    let hashed = Arc::clone(&hasher);
    let pieces = (0..mebibytes).map(move |at| {
        let piece = Bytes::from([&number.to_le_bytes()[..], &at.to_le_bytes(), &noise[16..]].concat());
        hashed.lock().unwrap().update(&piece);
        piece
    });
    let location = client.start_upload(&repository).await;
    let patched = client.stream("PATCH", &location, &[], pieces).await.expect(202).location();
    let digest = format!("sha256:{}", hex(&hasher.lock().unwrap().clone().finalize()));
    client.send("PUT", &closing(&patched, &digest), &[], "").await.expect(201);
}

/// The most memory in MiB that the server ever held.
pub(crate) fn most_memory(berth: &Berth) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", berth.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
}
