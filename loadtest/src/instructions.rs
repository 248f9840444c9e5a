//! How many instructions a request takes, counted by valgrind's callgrind: what the machine does beside doesn't change
//! that, so a change of a percent is seen.
//!
//! They are the process's own, without the system's, on a processor without the newest extensions: there hashing takes
//! more of them. So only the counts of two builds say something, beside one another.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    client::Client,
    content::Image,
    server::{Product, Server, Site},
    workload::{self, Setting, push_image},
};

/// The hot paths that are one request each.
const READS: [&str; 6] =
    ["GET /v2/", "manifest by tag", "manifest by digest", "HEAD of a blob", "blob of 1 KiB", "tag page, 100 of 1,000"];

/// And the one that is five.
const PUSH: &str = "push of a small image";

/// How many are asked before counting begins, and how many are counted.
const REQUESTS: (usize, usize) = (200, 1000);
const PUSHES: (u64, u64) = (20, 100);

/// What each took, in the order of the table.
type Counts = Vec<(&'static str, f64)>;

/// Counts for these, as a table; the ratio is the last one's to the first one's.
pub(crate) async fn compare(products: &[Product], data: &Path) -> Result<String> {
    let _site = Site::empty(data)?;
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
    let out = std::path::absolute(data)?.join(format!("callgrind-{}", product.name()));
    let file = format!("--callgrind-out-file={}", out.display());
    let product = product.clone().under(["valgrind".to_owned(), "--tool=callgrind".to_owned(), file].into());
    let (server, _) = Server::start(&product, data).await.context("Berth under valgrind (`apt install valgrind`)")?;
    workload::seed(&server).await?;
    let counter = Counter { pid: server.pid, out: &out };
    let setting = Setting::new(Duration::ZERO, 1.0);
    let mut counts = Counts::new();
    for name in READS {
        let workloads = workload::selected(&[name.to_owned()], false)?;
        let workload = workloads.iter().find(|workload| workload.name() == name).context(name)?;
        let requests = workload.requests(&server, &setting).await?.context(name)?;
        let mut client = Client::connect(server.address).await?;
        for place in 0..REQUESTS.0 {
            requests.at(place).make(&mut client).await?;
        }
        counter.take()?;
        for place in 0..REQUESTS.1 {
            requests.at(place).make(&mut client).await?;
        }
        counts.push((name, counter.take()? / REQUESTS.1 as f64));
    }
    counts.push((PUSH, pushes(&server, &counter).await?));
    server.stop().await?;
    Ok(counts)
}

async fn pushes(server: &Server, counter: &Counter<'_>) -> Result<f64> {
    let mut client = server.connect().await?;
    for number in 0..PUSHES.0 + PUSHES.1 {
        if number == PUSHES.0 {
            counter.take()?;
        }
        push_image(&mut client, "bench/counted", &format!("v{number}"), &Image::new(1 << 32 | number)).await?;
    }
    Ok(counter.take()? / PUSHES.1 as f64)
}

/// The callgrind that a server runs under.
struct Counter<'a> {
    pid: u32,
    out: &'a Path,
}

impl Counter<'_> {
    /// What was counted since the last call, of all threads.
    fn take(&self) -> Result<f64> {
        // Without the environment, as Berth is: the name of the pipe has the user in it.
        let output = Command::new("vgdb").env_clear().args([&format!("--pid={}", self.pid), "dump"]).output()?;
        ensure!(output.status.success(), "vgdb: {}", String::from_utf8_lossy(&output.stderr));
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
