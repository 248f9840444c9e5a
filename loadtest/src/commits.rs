//! `loadtest compare BASE HEAD`: two commits of Berth, built here and measured side by side, as ratios.
//!
//! It is the tool for each change: a difference counts only where its interval leaves out 1.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Common, instructions,
    products::{Bench, Selection},
    ratio::Ratio,
    report::{Report, SHOWN, output},
    server::Product,
};

/// What the two are called in the results.
const NAMES: [&str; 2] = ["base", "head"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The commit that is compared with: anything that Git understands.
    base: String,
    /// The commit that is compared.
    head: String,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    selection: Selection,
    /// Count the instructions of the hot paths with valgrind, once, where time is too noisy
    #[arg(long)]
    instructions: bool,
    /// Where the results go: <date>.json and plots.
    #[arg(long, default_value = "target/loadtest/compare")]
    results: PathBuf,
}

/// Builds and measures both, and prints a table.
pub(crate) async fn measure(options: Options) -> Result<()> {
    let data = std::path::absolute(&options.common.data)?;
    let mut products = Vec::new();
    for (name, commit) in NAMES.into_iter().zip([&options.base, &options.head]) {
        let binary = build(commit, &data, options.instructions)?;
        products.push(Product::berth(&binary)?.named(name));
    }
    if options.instructions {
        println!("{}", instructions::compare(&products, &data).await?);
        return Ok(());
    }
    let report = Bench::new(products, &options.common, &options.selection)?.run(options.common.rounds).await?;
    println!("{}\n{}", report.table(), ratios(&report));
    println!("written to {}", report.write(&options.results)?.display());
    Ok(())
}

/// Builds a commit in a work tree of its own, unless it was built before; with its binary.
///
/// `for_valgrind`: so that rustix makes its system calls by way of libc; else it ends under valgrind as it looks for what the
/// kernel has told the process.
fn build(commit: &str, data: &Path, for_valgrind: bool) -> Result<PathBuf> {
    let id = output("git", &["rev-parse", "--verify", "--quiet", &format!("{commit}^{{commit}}")]);
    ensure!(!id.is_empty(), "{commit} is no commit");
    let builds = data.join("builds");
    let (suffix, flags) = if for_valgrind { ("-valgrind", "--cfg=rustix_use_libc") } else { ("", "") };
    let binary = builds.join(format!("{}{suffix}", &id[..12]));
    if binary.exists() {
        return Ok(binary);
    }
    fs::create_dir_all(&builds)?;
    // Always at the same place, so that Cargo takes what hasn't changed from the build before.
    let (tree, target) = (builds.join("tree"), builds.join(format!("target{suffix}")));
    let tree_path = tree.display().to_string();
    if tree.exists() {
        run(Command::new("git").args(["worktree", "remove", "--force", &tree_path]))?;
    }
    run(Command::new("git").args(["worktree", "add", "--detach", "--force", &tree_path, &id]))?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--bin", "berth"]).current_dir(&tree);
    run(cargo.env("CARGO_TARGET_DIR", &target).env("SOURCE_COMMIT", &id[..12]).env("RUSTFLAGS", flags))?;
    fs::copy(target.join("release/berth"), &binary)?;
    run(Command::new("git").args(["worktree", "remove", "--force", &tree_path]))?;
    Ok(binary)
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("{command:?}");
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

/// A line for each figure that both have.
fn ratios(report: &Report) -> String {
    let mut text = String::from("| workload | figure | head / base | |\n|---|---|---|---|\n");
    for workload in report.workloads() {
        for (figure, unit, _) in SHOWN {
            let [base, head] = NAMES.map(|name| report.values(name, workload, figure));
            let Some(ratio) = Ratio::of(&base, &head) else { continue };
            let verdict = match ratio.middle {
                _ if !ratio.is_a_difference() => "no difference seen",
                middle if middle > 1.0 => "more",
                _ => "less",
            };
            text.push_str(&format!("| {workload} | {unit} | {} | {verdict} |\n", ratio.text()));
        }
    }
    let rounds = report.rounds.len();
    text + &format!("\nGeometric mean of {rounds} rounds' ratios, with its 95 % interval (bootstrap of the rounds).\n")
        + if rounds < 8 { "Fewer than 8 rounds make that interval too narrow: take --rounds 10 or more.\n" } else { "" }
}
