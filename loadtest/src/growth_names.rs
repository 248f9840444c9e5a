//! Tags of one repository, and repositories of one tag, from few to a million.
//!
//! They are made through the API. While they are, a directory isn't synced, and 100 tags come with each push, as the
//! API allows; then Berth is started anew, as it ships, and only that is measured.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    cost::{Crowd, Extent, Manifest, Operation, Seen, anywhere},
    counting::Counts,
    ground::{Bucket, Way, directory_settings},
    growth::{Options, Over},
    growth_report::{Point, Report},
    instance::{Instance, empty_directory},
    proc,
};

/// How many clients ask at once.
const CONNECTIONS: usize = 16;

/// How many clients fill.
const FILLING: usize = 64;

/// How many tags come with one push: as many as Berth takes.
const AT_ONCE: u64 = 100;

/// How many names a page has.
const PAGE: u64 = 100;

/// How many tags are pushed, one by one, in a round. The repository grows by them, so there are few; and enough for
/// CPU time that is read in ticks of 10 ms.
const PUSHES: u64 = 400;

/// How many operations one client does while they are counted.
const COUNTED: u64 = 50;

/// How long a workload runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// Which names grow.
pub(crate) struct Names {
    /// Puts of manifests for a number of names.
    puts: fn(u64) -> u64,
    fill: fn(u64) -> Manifest,
    /// What is asked of so many names.
    workloads: fn(u64) -> Vec<(&'static str, Operation)>,
    /// What is pushed one by one.
    push: Option<fn(u64) -> Manifest>,
}

/// Tags of one repository.
pub(crate) const TAGS: Names =
    Names { puts: |tags| tags / AT_ONCE, fill: hundred_tags, workloads: of_tags, push: Some(one_tag) };

/// Repositories of one tag.
pub(crate) const REPOSITORIES: Names =
    Names { puts: |repositories| repositories, fill: one_repository, workloads: of_repositories, push: None };

fn tag(number: u64) -> String {
    format!("t{number:07}")
}

fn hundred_tags(put: u64) -> Manifest {
    let names: Vec<String> =
        (put * AT_ONCE..(put + 1) * AT_ONCE).map(|number| format!("tag={}", tag(number))).collect();
    let mut manifest = Manifest::empty_index(String::new(), put);
    let digest = crate::content::digest([&manifest.bytes[..]]);
    manifest.target = format!("/v2/grow/tags/manifests/{digest}?{}", names.join("&"));
    manifest
}

/// A tag that sorts behind all others, with a manifest of its own.
fn one_tag(number: u64) -> Manifest {
    Manifest::empty_index(format!("/v2/grow/tags/manifests/u{number}"), 1 << 32 | number)
}

/// What a page may begin after, of so many names, so that it is full; of 100 names, the first.
fn page_start(number: u64, count: u64) -> u64 {
    anywhere(number, count.saturating_sub(PAGE).max(1))
}

fn of_tags(count: u64) -> Vec<(&'static str, Operation)> {
    let manifest = move |number| format!("/v2/grow/tags/manifests/{}", tag(anywhere(number, count)));
    let page = move |number| format!("/v2/grow/tags/tags/list?n={PAGE}&last={}", tag(page_start(number, count)));
    vec![("manifest by tag", Operation::get(manifest)), ("tag page of 100", Operation::get(page))]
}

fn repository(number: u64) -> String {
    format!("grow/{:04}/r{number:07}", number / 1000)
}

fn one_repository(number: u64) -> Manifest {
    Manifest::empty_index(format!("/v2/{}/manifests/latest", repository(number)), number)
}

fn of_repositories(count: u64) -> Vec<(&'static str, Operation)> {
    let manifest = move |number| format!("/v2/{}/manifests/latest", repository(anywhere(number, count)));
    let page = move |number| format!("/v2/_catalog?n={PAGE}&last={}", repository(page_start(number, count)));
    vec![("manifest by tag", Operation::get(manifest)), ("catalog page of 100", Operation::get(page))]
}

/// Where Berth is, and what it stands on.
struct Scene<'a> {
    options: &'a Options,
    directory: PathBuf,
    bucket: Option<Bucket>,
}

/// Fills and measures, size after size, in the same registry.
pub(crate) async fn measure(options: &Options, names: Names, sizes: &[u64], report: &mut Report) -> Result<()> {
    let directory = empty_directory(&options.data, "growth")?;
    let bucket = match options.over {
        Over::Directory => None,
        Over::Bucket => Some(Bucket::start(&directory).await?),
    };
    let scene = Scene { options, directory, bucket };
    let (mut filled, mut pushed) = (0, 0);
    for &size in sizes {
        scene.fill(&names, filled..(names.puts)(size)).await?;
        filled = (names.puts)(size);
        let mut point = Point::at(size)?;
        scene.time(&names, &mut pushed, &mut point).await?;
        scene.count(&names, &mut pushed, &mut point).await?;
        report.add(point)?;
    }
    std::fs::remove_dir_all(&scene.directory)?;
    Ok(())
}

impl Scene<'_> {
    async fn start(&self, sync: bool, way: Way) -> Result<Instance> {
        let settings = match &self.bucket {
            Some(bucket) => bucket.settings(way),
            None => directory_settings(&self.directory, sync),
        };
        Instance::berth(&self.options.berth, &settings, &self.directory.join("log")).await
    }

    async fn fill(&self, names: &Names, puts: std::ops::Range<u64>) -> Result<()> {
        let berth = self.start(false, Way::Straight).await?;
        let crowd = Crowd { addresses: vec![berth.address], connections: FILLING };
        let put = Arc::new(Operation::Fill(Box::new(names.fill)));
        let step = (puts.end - puts.start).div_ceil(10).max(1);
        for first in puts.clone().step_by(usize::try_from(step)?) {
            let times = step.min(puts.end - first);
            let seen = crowd.repeat(&put, first, Extent::Times(times), &[berth.pid]).await?;
            ensure!(seen.operations() == times, "{times} pushes were to be made");
            eprintln!("filled {} of {}: {:.0} pushes/s", first + times, puts.end, seen.per_second());
        }
        berth.stop().await?;
        // Or the disk would write what a million pushes left in memory while they are measured.
        ensure!(Command::new("sync").status()?.success(), "sync failed");
        Ok(())
    }

    /// What takes time and CPU, with nothing between Berth and what it stands on.
    async fn time(&self, names: &Names, pushed: &mut u64, point: &mut Point) -> Result<()> {
        let berth = self.start(true, Way::Straight).await?;
        let crowd = Crowd { addresses: vec![berth.address], connections: CONNECTIONS };
        let workloads: Vec<_> =
            (names.workloads)(point.size).into_iter().map(|(name, operation)| (name, Arc::new(operation))).collect();
        for (_, operation) in &workloads {
            crowd.repeat(operation, 0, Extent::For(WARM_UP), &[]).await?;
        }
        let mut first = 1 << 20;
        for _ in 0..self.options.rounds {
            for (name, operation) in &workloads {
                let seen = crowd.repeat(operation, first, Extent::For(self.options.span()), &[berth.pid]).await?;
                first += seen.operations();
                note(point, name, &seen);
            }
        }
        // Last, so that what is read has exactly as many names as it says.
        for _ in 0..self.options.rounds {
            if let Some(push) = names.push {
                let push = Arc::new(Operation::Put(Box::new(push)));
                let seen = crowd.repeat(&push, *pushed, Extent::Times(PUSHES), &[berth.pid]).await?;
                *pushed += PUSHES;
                note(point, "push of one tag", &seen);
            }
        }
        point.note("memory, MiB".to_owned(), proc::memory(berth.pid)?.resident);
        if let Some(bucket) = &self.bucket {
            point.note("Redis: memory, MiB".to_owned(), bucket.redis_memory()?);
        }
        berth.stop().await
    }

    /// What is asked of the store and of Redis, by one client that does one thing after the other.
    async fn count(&self, names: &Names, pushed: &mut u64, point: &mut Point) -> Result<()> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let berth = self.start(true, Way::Counted).await?;
        let crowd = Crowd { addresses: vec![berth.address], connections: 1 };
        for (name, operation) in (names.workloads)(point.size) {
            let operation = Arc::new(operation);
            // The same ones twice: the first time nothing is warm.
            crowd.repeat(&operation, 0, Extent::Times(COUNTED), &[]).await?;
            bucket.take();
            crowd.repeat(&operation, 0, Extent::Times(COUNTED), &[]).await?;
            note_counts(point, name, bucket.take());
        }
        if let Some(push) = names.push {
            bucket.take();
            crowd.repeat(&Arc::new(Operation::Put(Box::new(push))), *pushed, Extent::Times(COUNTED), &[]).await?;
            note_counts(point, "push of one tag", bucket.take());
            *pushed += COUNTED;
        }
        berth.stop().await.context("Berth before its proxies")
    }
}

fn note(point: &mut Point, workload: &str, seen: &Seen) {
    point.note(format!("{workload}: CPU, µs"), seen.cpu_us(0..1));
    point.note(format!("{workload}: p50, ms"), seen.percentile(0.5));
    point.note(format!("{workload}: p99, ms"), seen.percentile(0.99));
    point.note(format!("{workload}: per second"), seen.per_second());
    point.note(format!("{workload}: generator, cores"), seen.generator);
}

fn note_counts(point: &mut Point, workload: &str, counts: Counts) {
    let each = |count: u64| count as f64 / COUNTED as f64;
    point.note(format!("{workload}: requests to the store"), each(counts.requests));
    point.note(format!("{workload}: round trips to Redis"), each(counts.round_trips));
    point.note(format!("{workload}: calls to Redis"), each(counts.calls));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_full_and_within() {
        for number in 0..1000 {
            assert!(page_start(number, 1000) < 900);
            assert_eq!(page_start(number, 100), 0);
        }
    }

    #[test]
    fn a_push_brings_a_hundred_tags() {
        let manifest = hundred_tags(3);
        assert_eq!(manifest.target.matches("tag=").count(), 100);
        assert!(manifest.target.contains("tag=t0000300&") && manifest.target.ends_with("tag=t0000399"));
    }
}
