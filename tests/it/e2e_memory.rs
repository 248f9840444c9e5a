//! I8 from the outside: what a server holds while more is pushed at once than it has memory for. The issue's own
//! numbers are in `tests/clients/large.rs`.

use tempfile::TempDir;

use crate::many_pushes::Pushes;

/// What a server may hold beside the budget of uploads and what it holds without any, in MiB.
const BESIDE: u64 = 48;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_pushes_at_once_stay_within_the_budget() {
    let pushes = Pushes { count: 40, mebibytes: 32, budget: 64, scratch: None };
    let growth = pushes.growth().await;
    assert!(growth < 64 + BESIDE, "{growth} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_budget_has_no_room_for_goes_through_the_scratch_directory() {
    let scratch = TempDir::new().expect("scratch");
    let pushes = Pushes { count: 40, mebibytes: 32, budget: 64, scratch: Some(scratch) };
    let growth = pushes.growth().await;
    assert!(growth < 64 + BESIDE, "{growth} MiB");
}
