//! What was measured: as a table for people and as JSON for whoever wants to check it.
//!
//! The JSON has every figure of every round. The table has the median of the rounds and between which values
//! they lay; it must not show what was not measured, nor leave out what turned out badly.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde::Serialize;

use crate::{load::Figures, open::SLIPPED, plots, proc, server::Product};

/// The generator has one thread. With this much of a core used, rates and latencies are its own.
const BUSY: f64 = 0.9;

/// Which share of requests at a fixed rate the generator may send late before their latencies are its own.
const LATE: f64 = 0.01;

/// The figures that the table shows, in its order: their name, what it calls them, and how many digits they have
/// behind the point. All others are in the JSON.
pub(crate) const SHOWN: [(&str, &str, usize); 13] = [
    ("first_answer_ms", "first answer, ms", 0),
    ("cpu_us", "CPU, µs", 1),
    ("cpu_ms", "CPU, ms", 2),
    ("cpu_s", "CPU, s", 2),
    ("per_second", "a second", 0),
    ("mib_per_second", "MiB/s", 0),
    ("p50_ms", "p50, ms", 2),
    ("p99_ms", "p99, ms", 2),
    ("kib_each", "memory each, KiB", 1),
    ("resident_mib", "memory, MiB", 1),
    ("peak_mib", "peak memory, MiB", 1),
    ("disk_kib", "disk, KiB", 1),
    ("disk_mib", "disk, MiB", 0),
];

/// What the generator itself can be the limit of.
const ITS_OWN: [&str; 4] = ["per_second", "mib_per_second", "p50_ms", "p99_ms"];

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// When it began, in UTC.
    date: String,
    /// The commit that was checked out, where Git knows it; `+` where files differed from it.
    commit: String,
    machine: Machine,
    servers: Vec<About>,
    pub(crate) rounds: Vec<Round>,
    pub(crate) summary: Vec<Line>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory: String,
    kernel: String,
    /// The file system of the servers' data.
    file_system: String,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct About {
    name: String,
    version: String,
    binary_bytes: u64,
}

/// One pass over all workloads.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    /// As it began.
    pub(crate) load_average: f64,
    pub(crate) samples: Vec<Sample>,
}

/// One workload on one server, once.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) server: String,
    pub(crate) workload: &'static str,
    pub(crate) figures: Figures,
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) workload: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) unit: &'static str,
    #[serde(skip)]
    pub(crate) digits: usize,
    /// In the order of the report's servers; none where one doesn't take part.
    pub(crate) servers: Vec<Option<Found>>,
}

/// What was found of one server.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Found {
    #[serde(flatten)]
    pub(crate) range: Range,
    /// Whether the generator, and not the server, was the limit.
    generator_was_the_limit: bool,
}

/// What all rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Range {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Machine {
    /// This one, with the data in a directory.
    pub(crate) fn look(data: &Path) -> Result<Self> {
        let listed = output("df", &["--output=fstype", &data.display().to_string()]);
        let file_system = listed.lines().last().unwrap_or_default().to_owned();
        Ok(Self {
            processor: proc::field("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory: proc::field("/proc/meminfo", "MemTotal")?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system,
        })
    }
}

/// What a command prints; nothing where it fails, as nothing but a note depends on it.
pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

impl Range {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] };
        Some(Self { median, least, most })
    }

    pub(crate) fn text(self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.least, self.most)
    }
}

/// The figures that the table would show, with their unit and as it writes them.
pub(crate) fn shown(figures: &Figures) -> impl Iterator<Item = (&'static str, String)> {
    SHOWN.into_iter().filter_map(|(figure, unit, digits)| Some((unit, format!("{:.digits$}", figures.get(figure)?))))
}

impl Report {
    pub(crate) fn new(machine: Machine, products: &[Product]) -> Result<Self> {
        let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
        let changed = if output("git", &["status", "--porcelain", "src", "Cargo.lock"]).is_empty() { "" } else { "+" };
        let about = |product: &Product| {
            Ok(About {
                name: product.name().to_owned(),
                version: product.version.clone(),
                binary_bytes: product.size()?,
            })
        };
        Ok(Self {
            date: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            commit: format!("{commit}{changed}"),
            machine,
            servers: products.iter().map(about).collect::<Result<_>>()?,
            rounds: Vec::new(),
            summary: Vec::new(),
        })
    }

    /// Of each server, what it is called.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.servers.iter().map(|about| about.name.as_str()).collect()
    }

    /// A figure of one server in each round that has it.
    pub(crate) fn values(&self, server: &str, workload: &str, figure: &str) -> Vec<f64> {
        let samples = self.rounds.iter().flat_map(|round| &round.samples);
        let ours = samples.filter(|sample| sample.server == server && sample.workload == workload);
        ours.filter_map(|sample| sample.figures.get(figure).copied()).collect()
    }

    /// What all rounds gave for one figure.
    pub(crate) fn range(&self, server: &str, workload: &str, figure: &str) -> Option<Range> {
        Range::of(self.values(server, workload, figure))
    }

    /// The workloads in the order in which they were measured.
    pub(crate) fn workloads(&self) -> Vec<&'static str> {
        let mut workloads = Vec::new();
        for sample in self.rounds.iter().flat_map(|round| &round.samples) {
            if !workloads.contains(&sample.workload) {
                workloads.push(sample.workload);
            }
        }
        workloads
    }

    /// Works out the lines of the table.
    pub(crate) fn summarise(&mut self) {
        let mut summary = Vec::new();
        for workload in self.workloads() {
            for (figure, unit, digits) in SHOWN {
                let servers: Vec<_> =
                    self.names().into_iter().map(|server| self.found(server, workload, figure)).collect();
                if servers.iter().any(Option::is_some) {
                    summary.push(Line { workload, figure, unit, digits, servers });
                }
            }
        }
        self.summary = summary;
    }

    fn found(&self, server: &str, workload: &str, figure: &str) -> Option<Found> {
        let is_above =
            |name, limit| self.range(server, workload, name).is_some_and(|range: Range| range.median > limit);
        let was_the_limit = is_above("generator_cores", BUSY) || is_above(SLIPPED, LATE);
        let range = self.range(server, workload, figure)?;
        Some(Found { range, generator_was_the_limit: was_the_limit && ITS_OWN.contains(&figure) })
    }

    /// The table, in Markdown, with what has to be known to read it.
    pub(crate) fn table(&self) -> String {
        let names = self.names();
        let mut text =
            format!("| workload | figure | {} |\n|---|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
        let mut before = "";
        for line in &self.summary {
            let workload = if line.workload == before { "" } else { line.workload };
            before = line.workload;
            let cell = |found: &Option<Found>| {
                found.map_or_else(String::new, |found| {
                    found.range.text(line.digits) + if found.generator_was_the_limit { " *" } else { "" }
                })
            };
            let cells: Vec<String> = line.servers.iter().map(cell).collect();
            let _ = writeln!(text, "| {workload} | {} | {} |", line.unit, cells.join(" | "));
        }
        text + &self.notes()
    }

    fn notes(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "\nMedian of {} rounds (least–most). CPU is the server's, user and system.",
            self.rounds.len()
        );
        let founds = self.summary.iter().flat_map(|line| &line.servers).flatten();
        if founds.into_iter().any(|found| found.generator_was_the_limit) {
            text.push_str(
                "* The generator was the limit: it used more than 90 % of its core, or sent more than 1 % of what was \
                 due over 1 ms late.\n",
            );
        }
        if let Some(others) = self.other_cores() {
            let _ = writeln!(
                text,
                "Other programs kept {:.2} of {} cores busy meanwhile (least {:.2}, most {:.2}).",
                others.median, self.machine.cores, others.least, others.most
            );
        }
        text
    }

    /// How busy other programs were, over all samples.
    fn other_cores(&self) -> Option<Range> {
        let samples = self.rounds.iter().flat_map(|round| &round.samples);
        Range::of(samples.filter_map(|sample| sample.figures.get("other_cores").copied()).collect())
    }

    /// Writes all of it to `<date>.json`, with the plots beside it; a second run of a day replaces the first.
    pub(crate) fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let day = &self.date[..10];
        for (name, plot) in plots::all(self) {
            fs::write(directory.join(format!("{day}-{name}.svg")), plot)?;
        }
        let path = directory.join(format!("{day}.json"));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(path)
    }
}

/// A report of Berth and Distribution, one workload, with what its CPU was in each round.
#[cfg(test)]
pub(crate) fn sample(berth: &[f64], distribution: &[f64]) -> Report {
    let nothing = String::new;
    let machine =
        Machine { processor: nothing(), cores: 2, memory: nothing(), kernel: nothing(), file_system: nothing() };
    let about = |name: &str| About { name: name.to_owned(), version: nothing(), binary_bytes: 0 };
    let sample = |server: &str, cpu: f64, cores: f64| Sample {
        server: server.to_owned(),
        workload: "manifest by tag",
        figures: Figures::from([
            ("cpu_us", cpu),
            ("per_second", 1e6 / cpu),
            ("generator_cores", cores),
            ("p50_ms", cpu / 100.0),
            ("p99_ms", cpu / 10.0),
        ]),
    };
    let rounds = berth.iter().zip(distribution).map(|(&berth, &distribution)| Round {
        load_average: 0.0,
        samples: vec![sample("Berth", berth, 0.95), sample("Distribution", distribution, 0.2)],
    });
    let (date, commit, rounds) = (nothing(), nothing(), rounds.collect());
    let servers = vec![about("Berth"), about("Distribution")];
    let mut report = Report { date, commit, machine, servers, rounds, summary: Vec::new() };
    report.summarise();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_is_the_generators_own_is_marked() {
        let table = sample(&[20.0], &[100.0]).table();
        assert!(table.contains("a second | 50000 (50000–50000) * | 10000 (10000–10000) |"), "{table}");
        assert!(table.contains("CPU, µs | 20.0 (20.0–20.0) | 100.0"), "{table}");
    }

    #[test]
    fn who_does_not_take_part_has_an_empty_cell() {
        let mut report = sample(&[20.0], &[100.0]);
        report.rounds[0].samples.retain(|sample| sample.server == "Berth");
        report.summarise();
        assert!(report.table().contains("CPU, µs | 20.0 (20.0–20.0) |  |"), "{}", report.table());
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Range::of(vec![3.0, 1.0, 2.0]), Some(Range { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Range::of(vec![4.0, 1.0, 2.0, 3.0]).map(|range| range.median), Some(2.5));
        assert_eq!(Range::of(Vec::new()), None);
    }
}
