//! What is asked of a registry: the list of all workloads. How each is measured is in the module of its family.

mod large;
mod lists;
mod mix;
mod nodes;
mod pushes;
mod reads;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Result, ensure};

pub(crate) use self::{
    pushes::{begin_upload, created, push_image},
    reads::seed,
};
use crate::{
    content::Noise,
    load::{self, Figures},
    open,
    requests::Requests,
    server::Server,
};

/// How many clients ask at once, as a busy cluster's nodes do.
pub(crate) const CONNECTIONS: usize = 16;

/// How many connections there are for what arrives at a fixed rate: enough that one is free while the server keeps up.
const OPEN_CONNECTIONS: usize = 64;

/// The repository that is read from.
pub(crate) const REPOSITORY: &str = "bench/image";

/// All that is measured, in this order. A workload's name is part of the results: goals and old files refer to it.
const ALL: [Workload; 26] = [
    Workload("GET /v2/", Task::Read(reads::Read::Version)),
    Workload("manifest by tag", Task::Read(reads::Read::ByTag)),
    Workload("manifest by digest", Task::Read(reads::Read::ByDigest)),
    Workload("manifest by tag at a fixed rate", Task::ByTagAtRate),
    Workload("HEAD of a blob", Task::Read(reads::Read::BlobHead)),
    Workload("HEAD storm", Task::HeadStorm),
    Workload("blob of 1 KiB", Task::Read(reads::Read::Blob)),
    Workload("blob redirect", Task::Read(reads::Read::Redirect)),
    Workload("production mix", Task::Mix),
    Workload("production mix at a fixed rate", Task::MixAtRate),
    Workload("push of a small image", Task::Push(pushes::Push::IntoMany)),
    Workload("push of a small image into one repository", Task::Push(pushes::Push::IntoOne)),
    Workload("2,000 tags into one repository", Task::Push(pushes::Push::Tags)),
    Workload("retag", Task::Push(pushes::Push::Retag)),
    Workload("tag page, all of 10", Task::Tags(10)),
    Workload("tag page, 100 of 1,000", Task::Tags(1000)),
    Workload("tag page, 100 of 2,000", Task::Tags(2000)),
    Workload("tag page, 100 of 100,000", Task::Tags(100_000)),
    Workload("catalog page, 100 of what was pushed", Task::Catalog(0)),
    Workload("catalog page, 100 of 100,000", Task::Catalog(100_000)),
    Workload("push of 1 GiB", Task::Large(large::Transfer::Push)),
    Workload("pull of 1 GiB", Task::Large(large::Transfer::Pull)),
    Workload("push of 1 GiB in chunks", Task::Large(large::Transfer::PushInChunks)),
    Workload("cold start of 32 nodes", Task::ColdStart),
    Workload("1,000 idle connections", Task::Idle),
    Workload("500 active connections", Task::Active),
];

/// One thing that is measured: its name, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload(&'static str, Task);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// The same request, over and over.
    Read(reads::Read),
    ByTagAtRate,
    /// HEADs of blobs, most of which are there.
    HeadStorm,
    Mix,
    MixAtRate,
    Push(pushes::Push),
    /// A page of a repository with so many tags.
    Tags(usize),
    /// A page of the catalog, filled up to so many repositories before.
    Catalog(usize),
    Large(large::Transfer),
    ColdStart,
    Idle,
    Active,
}

/// What a round's workloads have in common.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Counts rounds: each has content of its own.
    pub(crate) round: u64,
    /// How long what runs for a time does.
    pub(crate) span: Duration,
    /// How many requests arrive in a second, where the rate is fixed.
    pub(crate) rate: f64,
    pub(crate) noise: Arc<Noise>,
    /// The images of the mix, the same in every round, once they are needed.
    images: Arc<OnceLock<mix::Images>>,
    /// The digests of the round's two large blobs, which take a second each.
    digests: [OnceLock<String>; 2],
}

impl Setting {
    /// That of the first round.
    pub(crate) fn new(span: Duration, rate: f64) -> Self {
        let (noise, images) = (Arc::new(Noise::new()), Arc::default());
        Self { round: 0, span, rate, noise, images, digests: [const { OnceLock::new() }; 2] }
    }

    fn images(&self) -> &mix::Images {
        self.images.get_or_init(mix::Images::new)
    }

    /// That of another round.
    pub(crate) fn of_round(&self, round: usize) -> Self {
        let (noise, images) = (Arc::clone(&self.noise), Arc::clone(&self.images));
        Self { round: round as u64, noise, images, digests: [const { OnceLock::new() }; 2], ..*self }
    }
}

/// The workloads whose name contains one of `only`, or all where that is empty; those that take minutes to prepare
/// only with `slow`.
pub(crate) fn selected(only: &[String], slow: bool) -> Result<Vec<Workload>> {
    let is_wanted =
        |workload: &&Workload| only.is_empty() || only.iter().any(|part| workload.0.contains(part.as_str()));
    let found: Vec<_> = ALL.iter().filter(is_wanted).filter(|workload| slow || !workload.is_slow()).copied().collect();
    let names = || ALL.map(|workload| workload.0).join("\n  ");
    ensure!(!found.is_empty(), "no workload is called so. There are, some of them with --slow:\n  {}", names());
    Ok(found)
}

impl Workload {
    /// What the report calls it.
    pub(crate) fn name(&self) -> &'static str {
        self.0
    }

    /// Whether it moves gigabytes.
    pub(crate) fn is_large(&self) -> bool {
        matches!(self.1, Task::Large(_))
    }

    fn is_slow(&self) -> bool {
        matches!(self.1, Task::Tags(count) | Task::Catalog(count) if count >= 100_000)
    }

    /// Measures it once; nothing where the server has no such thing.
    pub(crate) async fn measure(&self, server: &Server, setting: &Setting) -> Result<Option<Figures>> {
        let figures = match self.1 {
            Task::Push(push) => pushes::measure(server, push, setting).await?,
            Task::Large(transfer) => large::measure(server, transfer, setting).await?,
            Task::ColdStart => nodes::cold_start(server, setting).await?,
            Task::Idle => nodes::idle(server).await?,
            Task::Active => nodes::active(server, setting.span).await?,
            task => {
                let Some(requests) = self.requests(server, setting).await? else { return Ok(None) };
                let is_fixed = matches!(task, Task::ByTagAtRate | Task::MixAtRate);
                if is_fixed {
                    arriving(server, requests, setting).await?
                } else {
                    closed(server, requests, setting).await?
                }
            }
        };
        Ok(Some(figures))
    }

    /// What it asks, once that is there to be asked for; nothing where it is more than requests, or where the server
    /// has no such thing.
    pub(crate) async fn requests(&self, server: &Server, setting: &Setting) -> Result<Option<Requests>> {
        let requests = match self.1 {
            Task::Read(read) => return reads::requests(server, read).await,
            Task::ByTagAtRate => reads::by_tag(server).await?,
            Task::HeadStorm => mix::storm(server, setting.images()).await?,
            Task::Mix | Task::MixAtRate => mix::requests(server, setting.images()).await?,
            Task::Tags(count) => lists::tags(server, count).await?,
            Task::Catalog(count) => lists::catalog(server, count).await?,
            Task::Push(_) | Task::Large(_) | Task::ColdStart | Task::Idle | Task::Active => return Ok(None),
        };
        Ok(Some(requests))
    }
}

/// As fast as the server answers.
async fn closed(server: &Server, requests: Requests, setting: &Setting) -> Result<Figures> {
    let clients = load::connect(server.address, CONNECTIONS, &requests).await?;
    let (latencies, spent, _clients) = load::repeat(clients, requests, setting.span, server.pid).await?;
    Ok(spent.per_operation(&latencies, "cpu_us", 1e6))
}

/// At a fixed rate.
async fn arriving(server: &Server, requests: Requests, setting: &Setting) -> Result<Figures> {
    let clients = load::connect(server.address, OPEN_CONNECTIONS, &requests).await?;
    open::arrive(clients, requests, setting.rate, setting.span, server.pid).await
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let mut names = ALL.map(|workload| workload.0).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn workloads_are_chosen_by_a_part_of_their_names() {
        let names = |only: &[&str], slow| {
            let only: Vec<String> = only.iter().map(|&part| part.to_owned()).collect();
            selected(&only, slow).unwrap().iter().map(Workload::name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["retag", "GET"], false), ["GET /v2/", "retag"]);
        assert_eq!(names(&["of 100,000"], true), ["tag page, 100 of 100,000", "catalog page, 100 of 100,000"]);
        assert!(selected(&["of 100,000".to_owned()], false).is_err());
        assert_eq!((names(&[], false).len(), names(&[], true).len()), (ALL.len() - 2, ALL.len()));
    }
}
