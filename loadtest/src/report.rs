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

use crate::{load::Figures, proc, server::Product};

/// The generator has one thread. With this much of a core used, rates and latencies are its own.
const BUSY: f64 = 0.9;

/// A figure that is worth a line: its name, what the table calls it, and how many digits it has behind the point.
type Shown = (&'static str, &'static str, usize);

/// The workloads in the table's order, with what is shown of each.
const LINES: [(&str, &[Shown]); 12] = [
    ("start", &[("first_answer_ms", "first answer, ms", 0)]),
    ("idle", &[("resident_mib", "memory, MiB", 1)]),
    ("GET /v2/", SMALL),
    ("manifest by tag", SMALL),
    ("manifest by digest", SMALL),
    ("blob of 1 KiB", SMALL),
    (
        "push of a small image",
        &[("cpu_ms", "CPU, ms", 2), ("per_second", "images/s", 0), ("p50_ms", "p50, ms", 1), ("p99_ms", "p99, ms", 1)],
    ),
    ("push of 1 GiB", TRANSFER),
    ("pull of 1 GiB", TRANSFER),
    ("1,000 idle connections", &[("kib_each", "memory each, KiB", 1)]),
    (
        "500 active connections",
        &[
            ("cpu_us", "CPU, µs", 1),
            ("per_second", "requests/s", 0),
            ("p99_ms", "p99, ms", 1),
            ("resident_mib", "memory, MiB", 1),
        ],
    ),
    ("whole round", &[("peak_mib", "peak memory, MiB", 1)]),
];

const SMALL: &[Shown] =
    &[("cpu_us", "CPU, µs", 1), ("per_second", "requests/s", 0), ("p50_ms", "p50, ms", 2), ("p99_ms", "p99, ms", 2)];

const TRANSFER: &[Shown] = &[("cpu_s", "CPU, s", 2), ("mib_per_second", "MiB/s", 0)];

/// What Berth is meant to reach: a workload, one of its figures, and the goal.
const GOALS: [(&str, &str, Goal); 6] = [
    ("manifest by tag", "cpu_us", Goal::TimesLess(5.0)),
    ("manifest by tag", "cpu_us", Goal::AtMost(16.0)),
    ("GET /v2/", "cpu_us", Goal::AtMost(9.0)),
    ("push of 1 GiB", "cpu_s", Goal::AtMost(1.1)),
    ("pull of 1 GiB", "cpu_s", Goal::AtMost(0.3)),
    ("push of a small image", "cpu_ms", Goal::AtMost(1.0)),
];

#[derive(Clone, Copy, Debug)]
enum Goal {
    /// So many times less than Distribution, by the medians of one run.
    TimesLess(f64),
    /// No more than this; on another machine it would be another number.
    AtMost(f64),
}

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
    summary: Vec<Line>,
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
    name: &'static str,
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
    pub(crate) server: &'static str,
    pub(crate) workload: &'static str,
    pub(crate) figures: Figures,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    workload: &'static str,
    figure: &'static str,
    unit: &'static str,
    #[serde(skip)]
    digits: usize,
    berth: Range,
    distribution: Range,
    /// Whether the generator, and not Berth, or not Distribution, was the limit.
    generator_was_the_limit: [bool; 2],
}

/// What all rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Range {
    pub(crate) median: f64,
    least: f64,
    most: f64,
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
fn output(program: &str, arguments: &[&str]) -> String {
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

impl Report {
    pub(crate) fn new(machine: Machine, products: &[Product]) -> Result<Self> {
        let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
        let changed = if output("git", &["status", "--porcelain", "src", "Cargo.lock"]).is_empty() { "" } else { "+" };
        let about = |product: &Product| {
            Ok(About { name: product.name(), version: product.version.clone(), binary_bytes: product.size()? })
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

    /// What all rounds gave for one figure.
    fn range(&self, server: &str, workload: &str, figure: &str) -> Option<Range> {
        let samples = self.rounds.iter().flat_map(|round| &round.samples);
        let ours = samples.filter(|sample| sample.server == server && sample.workload == workload);
        Range::of(ours.filter_map(|sample| sample.figures.get(figure).copied()).collect())
    }

    /// Works out the lines of the table.
    pub(crate) fn summarise(&mut self) {
        let mut summary = Vec::new();
        for (workload, figures) in LINES {
            for &(figure, unit, digits) in figures {
                let berth = self.range("Berth", workload, figure);
                let distribution = self.range("Distribution", workload, figure);
                let (Some(berth), Some(distribution)) = (berth, distribution) else { continue };
                let generator_was_the_limit = ["Berth", "Distribution"].map(|server| {
                    self.range(server, workload, "generator_cores").is_some_and(|cores| cores.median > BUSY)
                });
                summary.push(Line { workload, figure, unit, digits, berth, distribution, generator_was_the_limit });
            }
        }
        self.summary = summary;
    }

    /// The table, in Markdown, with what has to be known to read it.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("| workload | figure | Berth | Distribution |\n|---|---|---|---|\n");
        let mut before = "";
        for line in &self.summary {
            let workload = if line.workload == before { "" } else { line.workload };
            before = line.workload;
            let is_rate = !line.figure.starts_with("cpu") && !line.figure.ends_with("mib");
            let mark = |side: usize| if is_rate && line.generator_was_the_limit[side] { " *" } else { "" };
            let (berth, distribution) = (line.berth.text(line.digits), line.distribution.text(line.digits));
            let _ = writeln!(text, "| {workload} | {} | {berth}{} | {distribution}{} |", line.unit, mark(0), mark(1));
        }
        let _ = writeln!(
            text,
            "\nMedian of {} rounds (least–most). CPU is the server's, user and system.",
            self.rounds.len()
        );
        if self.summary.iter().any(|line| line.generator_was_the_limit.contains(&true)) {
            text.push_str("* The generator used more than 90 % of its core: the server could have done more.\n");
        }
        if let Some(others) = self.other_cores() {
            let _ = writeln!(
                text,
                "Other programs kept {:.2} of {} cores busy meanwhile (least {:.2}, most {:.2}).",
                others.median, self.machine.cores, others.least, others.most
            );
        }
        text.push('\n');
        GOALS.iter().filter_map(|(workload, figure, goal)| self.judge(workload, figure, *goal)).for_each(|goal| {
            text.push_str(&goal);
        });
        text
    }

    /// How busy other programs were, over all samples.
    fn other_cores(&self) -> Option<Range> {
        let samples = self.rounds.iter().flat_map(|round| &round.samples);
        Range::of(samples.filter_map(|sample| sample.figures.get("other_cores").copied()).collect())
    }

    /// A goal and whether it is reached; nothing where it wasn't measured.
    fn judge(&self, workload: &str, figure: &str, goal: Goal) -> Option<String> {
        let line = self.summary.iter().find(|line| line.workload == workload && line.figure == figure)?;
        let (wanted, found, is_reached) = match goal {
            Goal::TimesLess(times) => {
                let found = line.distribution.median / line.berth.median;
                (format!("{times} times less than Distribution"), format!("{found:.1} times"), found >= times)
            }
            Goal::AtMost(most) => {
                let found = line.berth.median;
                (format!("at most {most}"), format!("{found:.*}", line.digits), found <= most)
            }
        };
        let verdict = if is_reached { "reached" } else { "not reached" };
        Some(format!("goal: {workload}, {}: {wanted}: {verdict} ({found})\n", line.unit))
    }

    /// Writes all of it to `<date>.json`; a second run of a day replaces the first.
    pub(crate) fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{}.json", &self.date[..10]));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(berth: &[f64], distribution: &[f64]) -> Report {
        let machine = Machine {
            processor: String::new(),
            cores: 2,
            memory: String::new(),
            kernel: String::new(),
            file_system: String::new(),
        };
        let sample = |server, cpu: f64, cores: f64| Sample {
            server,
            workload: "manifest by tag",
            figures: Figures::from([("cpu_us", cpu), ("per_second", 1e6 / cpu), ("generator_cores", cores)]),
        };
        let rounds = berth.iter().zip(distribution).map(|(&berth, &distribution)| Round {
            load_average: 0.0,
            samples: vec![sample("Berth", berth, 0.95), sample("Distribution", distribution, 0.2)],
        });
        let (date, commit, rounds) = (String::new(), String::new(), rounds.collect());
        let mut report = Report { date, commit, machine, servers: Vec::new(), rounds, summary: Vec::new() };
        report.summarise();
        report
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Range::of(vec![3.0, 1.0, 2.0]), Some(Range { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Range::of(vec![4.0, 1.0, 2.0, 3.0]).map(|range| range.median), Some(2.5));
        assert_eq!(Range::of(Vec::new()), None);
    }

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        let table = report(&[20.0, 30.0, 10.0], &[120.0, 90.0, 110.0]).table();
        assert!(table.contains("5 times less than Distribution: reached (5.5 times)"), "{table}");
        assert!(table.contains("at most 16: not reached (20.0)"), "{table}");
    }

    #[test]
    fn a_rate_that_is_the_generators_own_is_marked() {
        let table = report(&[20.0], &[100.0]).table();
        assert!(table.contains("requests/s | 50000 (50000–50000) * | 10000 (10000–10000) |"), "{table}");
        assert!(table.contains("CPU, µs | 20.0 (20.0–20.0) | 100.0"), "{table}");
    }
}
