//! How many instructions a request takes, counted by valgrind's callgrind: what the machine does beside doesn't change
//! that, so a change of a percent is seen.
//!
//! It counts the process's own instructions, not the kernel's, on a processor without the newest extensions; hashing
//! costs more of them than it would. So only counts of two builds say something, beside one another.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    client::Client,
    content::Image,
    server::{Product, Server},
    workload::{self, Setting, push_image},
};

/// The hot paths that are one request each.
const READS: [&str; 6] =
    ["GET /v2/", "manifest by tag", "manifest by digest", "HEAD of a blob", "blob of 1 KiB", "tag page, 100 of 1,000"];

/// And the one that is five.
const PUSH: &str = "push of a small image";

/// How many are asked before counting begins, and how many are counted.
const REQUESTS: (u64, u64) = (200, 1000);
const PUSHES: (u64, u64) = (20, 100);

/// Counts of each product, in the order of the table.
type Counts = Vec<(&'static str, f64)>;

/// Counts for both, as a table.
pub(crate) async fn compare(products: &[Product], data: &Path) -> Result<String> {
    let mut columns = Vec::new();
    for product in products {
        eprintln!("counting instructions of {}", product.name());
        columns.push(count(product, data).await?);
    }
    let names: Vec<&str> = products.iter().map(Product::name).collect();
    let mut text =
        format!("| instructions | {} | ratio |\n|---|{}---|\n", names.join(" | "), "---|".repeat(names.len()));
    for (row, (name, first)) in columns[0].iter().enumerate() {
        let cells: Vec<String> = columns.iter().map(|column| format!("{:.0}", column[row].1)).collect();
        let last = columns[columns.len() - 1][row].1;
        text.push_str(&format!("| {name} | {} | {:.4} |\n", cells.join(" | "), last / first));
    }
    Ok(text + "\nOf the process itself, for one request or image, counted by callgrind.\n")
}

async fn count(product: &Product, data: &Path) -> Result<Counts> {
    let out = data.join(format!("callgrind-{}", product.name()));
    let valgrind = ["/usr/bin/env", "valgrind", "--tool=callgrind", "--trace-children=no"].map(str::to_owned);
    let file = format!("--callgrind-out-file={}", out.display());
    let product = product.clone().under(valgrind.into_iter().chain([file]).collect());
    let (server, _) = Server::start(&product, data).await.context("is valgrind installed?")?;
    workload::seed(&server).await?;
    let counter = Counter { pid: server.pid, out: &out };
    let setting = Setting::new(Duration::ZERO, 1.0);
    let mut counts = Counts::new();
    for name in READS {
        let workloads = workload::selected(&[name.to_owned()], false)?;
        let workload = workloads.iter().find(|workload| workload.name() == name).context(name)?;
        let requests = workload.requests(&server, &setting).await?.context(name)?;
        let mut client = Client::connect(server.address).await?;
        for place in 0..REQUESTS.0 as usize {
            requests.at(place).make(&mut client).await?;
        }
        counter.zero()?;
        for place in 0..REQUESTS.1 as usize {
            requests.at(place).make(&mut client).await?;
        }
        counts.push((name, counter.dump()? / REQUESTS.1 as f64));
    }
    counts.push((PUSH, pushes(&server, &counter).await?));
    server.stop().await?;
    Ok(counts)
}

async fn pushes(server: &Server, counter: &Counter<'_>) -> Result<f64> {
    let mut client = server.connect().await?;
    for number in 0..PUSHES.0 + PUSHES.1 {
        if number == PUSHES.0 {
            counter.zero()?;
        }
        push_image(&mut client, "bench/counted", &format!("v{number}"), &Image::new(1 << 32 | number)).await?;
    }
    Ok(counter.dump()? / PUSHES.1 as f64)
}

/// The callgrind that a server runs under.
struct Counter<'a> {
    pid: u32,
    out: &'a Path,
}

impl Counter<'_> {
    /// Begins at zero.
    fn zero(&self) -> Result<()> {
        self.tell("zero")
    }

    /// What was counted since.
    fn dump(&self) -> Result<f64> {
        self.tell("dump")?;
        let (directory, name) = (self.out.parent().context("a path")?, self.out.file_name().context("a name")?);
        let prefix = format!("{}.", name.display());
        let mut counted = None;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.display().to_string().starts_with(&prefix)) {
                counted = total(&fs::read_to_string(&path)?);
                fs::remove_file(path)?;
            }
        }
        counted.context("callgrind wrote no counts")
    }

    fn tell(&self, what: &str) -> Result<()> {
        let output = Command::new("vgdb").args([&format!("--pid={}", self.pid), what]).output()?;
        ensure!(output.status.success(), "vgdb {what}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// The sum that callgrind writes into its file.
fn total(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_dump_is_found() {
        assert_eq!(total("events: Ir\nfn=(1) main\n0 12\ntotals: 123456\n"), Some(123_456.0));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn all_hot_paths_are_workloads() {
        let names: Vec<_> =
            workload::selected(&[], false).into_iter().flatten().map(|workload| workload.name()).collect();
        assert!(READS.iter().all(|name| names.contains(name)));
    }
}
