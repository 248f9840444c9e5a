//! What it would cost to fill an index from this bucket, before anybody begins to.
//!
//! It counts what [`crate::reconcile`] would ask for, request by request, so the two have to change together; a
//! test holds them to each other. Where an index is believed it is counted there, and the bucket isn't walked.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{Inspector, members};
use crate::{
    epoch::Lease,
    error::Result,
    index::Shard,
    oci::{RepositoryName, Tag},
    reconcile::{AT_ONCE, SIDE_BY_SIDE},
    storage::{
        Key, Stat,
        key::{self, RosterList},
    },
};

/// How many objects a page of a listing has.
const PAGE: usize = 1000;

/// How many pages are listed to count a bucket of which no index is believed: 20,000 objects, in seconds.
const MOST_PAGES: usize = 20;

/// How often the store is asked to see how long it takes.
const ASKED: usize = 5;

/// Dollars for a LIST on S3 Standard in us-east-1: $0.005 for 1,000. <https://aws.amazon.com/s3/pricing/>
const LIST_PRICE: f64 = 0.005 / 1000.0;

/// Dollars for a GET, or for any other request that only reads: $0.0004 for 1,000.
const READ_PRICE: f64 = 0.0004 / 1000.0;

/// What a reconciliation would ask the bucket for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Where that was counted.
    pub counted: Counted,
    /// Repositories.
    pub repositories: u64,
    /// Listings. Where a tag's history is as long as it may become they are this many, else fewer.
    pub lists: u64,
    /// Manifests, tags, accounts and rules that are read.
    pub gets: u64,
    /// Blobs that are looked for.
    pub heads: u64,
    /// The list price on S3 Standard in us-east-1, in US dollars.
    pub dollars: f64,
    /// How long those requests take, in seconds, as fast as the store is now. The index's own time comes on top.
    pub seconds: f64,
    /// How long a listing takes now, in seconds.
    pub list_seconds: f64,
    /// How long any other request takes now, in seconds.
    pub read_seconds: f64,
    /// What is waited for, one after the other, to find the repositories and for the roster.
    #[serde(skip)]
    in_sequence: Waits,
    /// The same within repositories, of which some are gone through side by side.
    #[serde(skip)]
    in_repositories: Waits,
    /// And in the one that takes the longest.
    #[serde(skip)]
    in_longest: Waits,
}

/// Requests that wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Waits {
    lists: u64,
    reads: u64,
}

impl Waits {
    fn add(&mut self, lists: u64, reads: u64) {
        self.lists += lists;
        self.reads += reads;
    }

    fn seconds(self, list: Duration, read: Duration) -> f64 {
        self.lists as f64 * list.as_secs_f64() + self.reads as f64 * read.as_secs_f64()
    }
}

/// Where something was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// In the index.
    #[default]
    Index,
    /// In the bucket, all of it.
    Bucket {
        /// How many objects were listed.
        objects: u64,
    },
    /// In the bucket, as far as so many objects: there are more, and it costs more.
    BeginningOfBucket {
        /// How many objects were listed.
        objects: u64,
    },
}

/// How much is in one repository.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    links: usize,
    manifests: usize,
    tags: usize,
    revisions: usize,
}

impl Cost {
    /// Adds what a repository costs: each of its folders is found, listed, and gone through.
    fn add(&mut self, content: Content) {
        let Content { links, manifests, tags, revisions } = content;
        let folders = [links, manifests, revisions];
        let found = folders.iter().filter(|objects| **objects > 0).count() as u64;
        let listed = folders.into_iter().map(pages).sum();
        self.repositories += 1;
        self.lists += found + listed;
        self.heads += links as u64;
        self.gets += (manifests + tags) as u64;
        let reads = [links, manifests, tags].map(|count| count.div_ceil(SIDE_BY_SIDE) as u64).iter().sum::<u64>();
        self.in_sequence.add(found, 0);
        self.in_repositories.add(listed, reads);
        if listed + reads > self.in_longest.lists + self.in_longest.reads {
            self.in_longest = Waits { lists: listed, reads };
        }
    }

    /// Adds a list of the roster.
    fn add_roster(&mut self, revisions: usize, entries: usize) {
        self.lists += pages(revisions);
        self.gets += entries as u64;
        self.in_sequence.add(pages(revisions), entries as u64);
    }

    /// Adds the looks that find no further repository, and reckons time and money.
    fn finish(mut self, list: Duration, read: Duration) -> Self {
        let at_once = AT_ONCE as u64;
        // Where the last few are fewer than those that are gone through at once, that is seen twice.
        let looks = 1 + u64::from(!self.repositories.is_multiple_of(at_once));
        self.lists += looks;
        self.in_sequence.add(looks, 0);
        self.dollars = self.lists as f64 * LIST_PRICE + (self.gets + self.heads) as f64 * READ_PRICE;
        let shared = self.in_repositories.seconds(list, read) / at_once as f64;
        self.seconds = self.in_sequence.seconds(list, read) + shared.max(self.in_longest.seconds(list, read));
        (self.list_seconds, self.read_seconds) = (list.as_secs_f64(), read.as_secs_f64());
        self
    }
}

/// How many listings it takes to see so many objects. To see that there are none takes one.
fn pages(objects: usize) -> u64 {
    objects.div_ceil(PAGE).max(1) as u64
}

impl Inspector {
    /// What a reconciliation of this bucket would cost now, where tags keep up to `history` revisions.
    pub async fn reconciliation(&self, history: usize) -> Result<Cost> {
        let cost = match self.lease.as_deref() {
            Some(lease) => count_in_index(lease, history).await?,
            None => self.count_in_bucket().await?,
        };
        let list = self.time(async || self.store.list(key::REPOSITORIES, None, PAGE).await.map(drop)).await?;
        let read = self.time(async || self.store.stat(&Key::Format).await.map(drop)).await?;
        Ok(cost.finish(list, read))
    }

    /// How long the store takes over something: the median.
    async fn time(
        &self,
        ask: impl AsyncFn() -> std::result::Result<(), crate::storage::StorageError>,
    ) -> Result<Duration> {
        let mut took = [Duration::ZERO; ASKED];
        for took in &mut took {
            let since = Instant::now();
            ask().await?;
            *took = since.elapsed();
        }
        took.sort_unstable();
        Ok(took[ASKED / 2])
    }

    /// Counts by listing, as far as that is bounded. The folders of one repository follow each other in the
    /// listing, and so do the revisions of one tag.
    async fn count_in_bucket(&self) -> Result<Cost> {
        let mut cost = Cost::default();
        for list in RosterList::ALL {
            let (revisions, names) = self.count_entries(list).await?;
            cost.add_roster(revisions, names);
        }
        let (mut after, mut objects, mut repository) = (None::<String>, 0, Tally::default());
        for _ in 0..MOST_PAGES {
            let page = self.store.list(key::REPOSITORIES, after.as_deref(), PAGE).await?;
            objects += page.objects.len() as u64;
            for (text, stat) in &page.objects {
                if let Some(finished) = Key::parse(text).and_then(|key| repository.see(key, *stat)) {
                    cost.add(finished);
                }
            }
            after = page.objects.last().map(|(key, _)| key.clone()).filter(|_| page.more);
            if after.is_none() {
                break;
            }
        }
        if repository.name.is_some() {
            cost.add(repository.content);
        }
        let is_all = after.is_none();
        let counted = if is_all { Counted::Bucket { objects } } else { Counted::BeginningOfBucket { objects } };
        Ok(Cost { counted, ..cost })
    }

    /// How many revisions a list of the roster has, and of how many entries.
    async fn count_entries(&self, list: RosterList) -> Result<(usize, usize)> {
        let listed = self.list(&list.prefix()).await?;
        let names: BTreeSet<String> = listed
            .iter()
            .filter_map(|(key, _)| match key {
                Key::Entry { name, .. } => Some(name.to_string()),
                _ => None,
            })
            .collect();
        Ok((listed.len(), names.len()))
    }
}

/// A repository as it goes by in a listing.
#[derive(Default)]
struct Tally {
    name: Option<RepositoryName>,
    content: Content,
    tag: Option<Tag>,
}

impl Tally {
    /// Counts one object; what the repository before it had, where this is the first of another.
    fn see(&mut self, key: Key, stat: Stat) -> Option<Content> {
        let (Key::Link { repository, .. } | Key::Manifest { repository, .. } | Key::Tag { repository, .. }) = &key
        else {
            return None;
        };
        let is_next = self.name.as_ref() != Some(repository);
        let before = if is_next {
            std::mem::replace(self, Self { name: Some(repository.clone()), ..Self::default() })
        } else {
            Self::default()
        };
        match key {
            Key::Link { .. } => self.content.links += 1,
            Key::Manifest { .. } => self.content.manifests += 1,
            Key::Tag { tag, deadline, .. } => {
                self.content.revisions += 1;
                if stat.modified <= deadline && self.tag.as_ref() != Some(&tag) {
                    self.content.tags += 1;
                    self.tag = Some(tag);
                }
            }
            _ => {}
        }
        before.name.map(|_| before.content)
    }
}

/// Counts what the index knows.
async fn count_in_index(lease: &Lease, history: usize) -> Result<Cost> {
    let names = &lease.names;
    let mut cost = Cost::default();
    for list in RosterList::ALL {
        let entries = count(lease, names.roster_shard(), &names.roster(list)).await?;
        cost.add_roster(entries, entries);
    }
    for shard in names.shards() {
        let mut repositories = BTreeSet::new();
        for group in [names.repositories(), names.all_reconciled()] {
            repositories.extend(members(lease, shard, &group).await?.into_iter().map(|(name, _)| name));
        }
        for name in repositories {
            let name: RepositoryName = name.parse()?;
            let tags = count(lease, shard, &names.tags(&name)).await?;
            let content = Content {
                links: count(lease, shard, &names.links(&name)).await?,
                manifests: count(lease, shard, &names.manifests(&name)).await?,
                tags,
                revisions: tags * history,
            };
            cost.add(content);
        }
    }
    Ok(cost)
}

/// How many members a group has.
async fn count(lease: &Lease, shard: Shard, group: &str) -> Result<usize> {
    let (mut count, mut after) = (0, None::<String>);
    loop {
        let page = lease.index.scan(shard, group, after.as_deref(), PAGE).await?;
        count += page.len();
        match page.into_iter().next_back() {
            Some((last, _)) if count % PAGE == 0 => after = Some(last),
            _ => return Ok(count),
        }
    }
}
