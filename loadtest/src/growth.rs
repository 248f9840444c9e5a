//! `loadtest growth`: what one operation costs as a registry grows, in names, connections and bytes.
//!
//! Each course is a run of its own, with sizes that grow tenfold. It must not compare with other registries: what is
//! asked is whether a figure stays the same.

use std::{ops::Range, path::PathBuf, time::Duration};

use anyhow::{Result, bail};

use crate::{growth_blobs, growth_connections, growth_names, growth_report::Report};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What grows.
    #[arg(value_enum)]
    course: Course,
    /// The last size; without, all that the course has. A number, or bytes such as 64KiB, 5GiB.
    #[arg(long, value_parser = size)]
    up_to: Option<u64>,
    /// What the registry stands on, while its tags or repositories grow.
    #[arg(long, value_enum, default_value_t = Over::Directory)]
    pub(crate) over: Over,
    /// How often everything is measured at each size.
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: usize,
    /// How long each workload of many small requests runs, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Berth's binary.
    #[arg(long, default_value = "target/release/berth")]
    pub(crate) berth: PathBuf,
    /// Where the registry keeps its data.
    #[arg(long, default_value = "target/loadtest")]
    pub(crate) data: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = "loadtest/results")]
    results: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Course {
    /// 1,000 to 1,000,000 tags in one repository.
    Tags,
    /// 100 to 1,000,000 repositories of one tag.
    Repositories,
    /// 10 to 10,000 connections, idle and active.
    Connections,
    /// Blobs of 1 KiB to 5 GiB in a directory.
    Blobs,
    /// Blobs of 1 GiB to 150 GiB, to an S3 server that counts and discards.
    Stream,
}

/// What a registry stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Over {
    /// A directory, with its index in it.
    Directory,
    /// versitygw and Redis, which are started for it.
    Bucket,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Course {
    /// The sizes, in names, connections or bytes. The largest stream is what 10,000 parts of 16 MiB have room for.
    fn sizes(self) -> Vec<u64> {
        match self {
            Self::Tags => powers_of_ten(3..7),
            Self::Repositories => powers_of_ten(2..7),
            Self::Connections => powers_of_ten(1..5),
            Self::Blobs => vec![KIB, 16 * KIB, 256 * KIB, 4 * MIB, 64 * MIB, GIB, 5 * GIB],
            Self::Stream => vec![GIB, 5 * GIB, 20 * GIB, 50 * GIB, 150 * GIB],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Repositories => "repositories",
            Self::Connections => "connections",
            Self::Blobs => "blobs",
            Self::Stream => "stream",
        }
    }

    /// What is drawn: the figures whose names end like this.
    fn drawn(self) -> &'static str {
        match self {
            Self::Tags | Self::Repositories => "CPU, µs",
            Self::Connections => "each, KiB",
            Self::Blobs => "MiB/s",
            Self::Stream => "peak memory, MiB",
        }
    }
}

fn powers_of_ten(exponents: Range<u32>) -> Vec<u64> {
    exponents.map(|exponent| 10_u64.pow(exponent)).collect()
}

impl Options {
    /// How long a workload of small requests runs.
    pub(crate) fn span(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Whether names and not bytes or connections grow is what a bucket is there for.
    fn check(&self) -> Result<()> {
        let names = matches!(self.course, Course::Tags | Course::Repositories);
        if self.over == Over::Bucket && !names {
            bail!("--over bucket is for tags and repositories; {} have a store of their own", self.course.name());
        }
        Ok(())
    }
}

/// Follows one course; prints a table, and writes a JSON file and a plot.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    options.check()?;
    let mut sizes = options.course.sizes();
    sizes.retain(|&size| options.up_to.is_none_or(|last| size <= last));
    let over = if options.over == Over::Bucket { "-bucket" } else { "" };
    let name = format!("{}{over}", options.course.name());
    let mut report = Report::new(name, options.course.drawn(), &options.berth, &options.results)?;
    match options.course {
        Course::Tags => growth_names::measure(options, growth_names::TAGS, &sizes, &mut report).await?,
        Course::Repositories => growth_names::measure(options, growth_names::REPOSITORIES, &sizes, &mut report).await?,
        Course::Connections => growth_connections::measure(options, &sizes, &mut report).await?,
        Course::Blobs => growth_blobs::measure(options, &sizes, &mut report).await?,
        Course::Stream => growth_blobs::measure_stream(options, &sizes, &mut report).await?,
    }
    println!("{}", report.table());
    for path in report.write()? {
        println!("written to {}", path.display());
    }
    Ok(())
}

/// Reads a number that may end in KiB, MiB or GiB.
fn size(text: &str) -> Result<u64> {
    let units = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB)];
    let unit = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    Ok(number.trim().replace([',', '_'], "").parse::<u64>()? * unit)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_bytes() {
        assert_eq!((size("1,000").unwrap(), size("64KiB").unwrap(), size("150GiB").unwrap()), (1000, 65536, 150 * GIB));
        assert!(size("many").is_err());
    }

    #[test]
    fn courses_grow() {
        for course in [Course::Tags, Course::Repositories, Course::Connections, Course::Blobs, Course::Stream] {
            assert!(course.sizes().is_sorted() && course.sizes().len() >= 4);
        }
    }
}
