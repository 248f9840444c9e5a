//! The program as it is run, for seconds: against Berth alone, whose binary a build of the workspace's root has left
//! beside this one's. No figure is judged: the machine may be busy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A workload of each kind that is quick.
const ONLY: &str = "manifest by tag,retag,all of 10";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn products_are_measured() {
    let berth = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("berth");
    assert!(berth.exists(), "{} is missing: run `cargo build` first", berth.display());
    let directory = workspace().join(format!("target/loadtest/smoke-{}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["products", "--rounds", "1", "--seconds", "0.2", "--rate", "50", "--only", ONLY])
        .args(["--server", "loadtest/servers/berth.toml", "--berth"])
        .arg(&berth)
        .arg("--data")
        .arg(&directory)
        .arg("--results")
        .arg(directory.join("results"))
        .current_dir(workspace())
        .output()
        .expect("loadtest runs");
    let (table, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{progress}");
    for workload in ["start", "manifest by tag", "manifest by tag at a fixed rate", "retag", "tag page, all of 10"] {
        assert!(table.contains(&format!("| {workload} |")), "{workload} is missing in\n{table}");
    }
    assert!(table.contains("goal: Berth, manifest by tag, CPU, µs: at most 16: "), "{table}");
    assert!(!table.contains("push of 1 GiB"), "{table}");
    let mut kinds: Vec<String> = fs::read_dir(directory.join("results"))
        .expect("results")
        .map(|entry| entry.expect("a file").path().extension().unwrap_or_default().display().to_string())
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["json", "svg", "svg", "svg"]);
    fs::remove_dir_all(directory).expect("results are removed");
}
