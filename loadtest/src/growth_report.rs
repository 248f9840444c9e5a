//! What a course of growth has shown: a table of medians, a JSON file of every round, and a plot.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use chrono::Utc;
use serde::Serialize;

use crate::{growth_plot, proc};

/// Everything that is written.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What grew.
    course: String,
    /// When it ended, as `2026-11-21T12:00:00Z`.
    date: String,
    /// What the binary says of itself.
    berth: String,
    machine: Machine,
    points: Vec<Point>,
    /// The figures that are drawn end like this.
    #[serde(skip)]
    drawn: &'static str,
    /// Where it is written.
    #[serde(skip)]
    directory: PathBuf,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory: String,
    kernel: String,
}

/// What was measured at one size.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    /// In what the course grows in: names, connections, bytes.
    pub(crate) size: u64,
    /// How many tasks ran or wanted to in the minute before it began, and in the one before it ended: what else the
    /// machine did, and this.
    load_average: [f64; 2],
    /// Every round's figure, by a name that says what it is of and its unit.
    figures: BTreeMap<String, Vec<f64>>,
}

impl Point {
    /// Begins with nothing.
    pub(crate) fn at(size: u64) -> Result<Self> {
        Ok(Self { size, load_average: [proc::load_average()?, 0.0], figures: BTreeMap::new() })
    }

    /// One round's figure.
    pub(crate) fn note(&mut self, name: String, value: f64) {
        self.figures.entry(name).or_default().push(value);
    }
}

impl Report {
    /// Of a course that is about to begin, on this machine.
    pub(crate) fn new(course: String, drawn: &'static str, berth: &Path, directory: &Path) -> Result<Self> {
        let says = Command::new(std::path::absolute(berth)?).arg("--version").output()?;
        let machine = Machine {
            processor: proc::field("/proc/cpuinfo", "model name")?,
            cores: std::thread::available_parallelism()?.get(),
            memory: proc::field("/proc/meminfo", "MemTotal")?,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        };
        let berth = String::from_utf8_lossy(&says.stdout).trim().to_owned();
        Ok(Self {
            course,
            date: String::new(),
            berth,
            machine,
            points: Vec::new(),
            drawn,
            directory: directory.to_owned(),
        })
    }

    /// Adds what was measured at one size, and writes all that there is so far: the next size may take long.
    pub(crate) fn add(&mut self, mut point: Point) -> Result<()> {
        point.load_average[1] = proc::load_average()?;
        self.date = Utc::now().format("%Y-%m-%dT%H:%M:%SZ").to_string();
        eprintln!(
            "{} {} done (load average {})",
            growth_plot::brief(point.size as f64),
            self.course,
            point.load_average[1]
        );
        self.points.push(point);
        self.write()?;
        Ok(())
    }

    /// A row for each figure, a column for each size.
    pub(crate) fn table(&self) -> String {
        let Machine { processor, cores, memory, kernel } = &self.machine;
        let mut text =
            format!("{}: {}, {processor}, {cores} cores, {memory}, Linux {kernel}\n", self.course, self.berth);
        let loads: Vec<_> = self.points.iter().map(|point| point.load_average[0].to_string()).collect();
        text += &format!("load average as each began: {}\n\n| what |", loads.join(", "));
        self.points.iter().for_each(|point| text += &format!(" {} |", growth_plot::brief(point.size as f64)));
        text += &format!("\n|---|{}\n", "---|".repeat(self.points.len()));
        for name in self.names() {
            text += &format!("| {name} |");
            for point in &self.points {
                text += &format!(" {} |", point.figures.get(name).map(|values| spread(values)).unwrap_or_default());
            }
            text.push('\n');
        }
        text + "\nMedian (least–most) of all rounds.\n"
    }

    fn names(&self) -> Vec<&String> {
        let mut names: Vec<_> = self.points.iter().flat_map(|point| point.figures.keys()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Writes the JSON file and the plot; returns where they are.
    pub(crate) fn write(&self) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(&self.directory)?;
        let name = format!("growth-{}-{}", self.course, self.date.split('T').next().unwrap_or_default());
        let paths = ["json", "svg"].map(|kind| self.directory.join(format!("{name}.{kind}")));
        fs::write(&paths[0], serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(&paths[1], growth_plot::svg(&format!("{}: {}", self.course, self.drawn), &self.lines()))?;
        Ok(paths)
    }

    fn lines(&self) -> Vec<growth_plot::Line<'_>> {
        let drawn = self.names().into_iter().filter(|name| name.ends_with(self.drawn));
        let at = |point: &Point, name: &String| Some((point.size as f64, median(point.figures.get(name)?)));
        drawn
            .map(|name| growth_plot::Line {
                name: name.trim_end_matches(self.drawn).trim_end_matches([' ', ':']),
                points: self.points.iter().filter_map(|point| at(point, name)).collect(),
            })
            .collect()
    }
}

/// The middle of some values; of an even number, the higher of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A median, and the least and the most where there are any others.
pub(crate) fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match least == most {
        true => short(most),
        false => format!("{} ({}–{})", short(median(values)), short(least), short(most)),
    }
}

/// As many digits as mean something.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), "2.00 (1.00–3.00)");
        assert_eq!((spread(&[250.0]), spread(&[0.0, 0.0])), ("250".to_owned(), "0".to_owned()));
    }
}
