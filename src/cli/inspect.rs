//! `berth inspect`: what index and bucket say of one thing, as text for people or as JSON.

use std::{fmt::Write, str::FromStr};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, index::describe, load, print};
use crate::{
    app,
    config::LoadArgs,
    index::facts::DataState,
    inspect::{
        About, BlobFacts, BlobReport, DataReport, EntryReport, IndexState, Inspector, KeyReport, ManifestReport,
        Object, TagReport, Verify,
    },
    oci::{Digest, RepositoryName, Tag},
    storage::{Key, StoreTime},
};

/// What to look at, and how to print it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    subject: Subject,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Read all bytes of the blob and hash them.
    #[arg(long, global = true)]
    verify: bool,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// A blob in a repository: its link, its bytes, who needs them.
    Blob {
        /// REPOSITORY@DIGEST, such as team/app@sha256:…
        blob: String,
    },
    /// A tag: what it points at, its history, writes going on.
    Tag {
        /// REPOSITORY:TAG, such as team/app:v1
        tag: String,
    },
    /// A manifest: its objects, what names it, what it needs.
    Manifest {
        /// REPOSITORY@DIGEST, such as team/app@sha256:…
        manifest: String,
    },
    /// An object of the bucket: what it is and what it belongs to.
    Key {
        /// Its key under the bucket's prefix, such as data/5f/01J…
        key: String,
    },
}

/// The same, parsed.
enum Wanted {
    Blob(RepositoryName, Digest),
    Tag(RepositoryName, Tag),
    Manifest(RepositoryName, Digest),
    Key(Key),
}

/// What was found of it.
enum Found {
    Blob(BlobReport),
    Tag(TagReport),
    Manifest(ManifestReport),
    Key(KeyReport),
}

/// Looks at it and prints what was found.
pub(super) fn run(arguments: &Arguments, args: LoadArgs) -> Result<(), Failure> {
    let wanted = parse(&arguments.subject)?;
    let loaded = load(args)?;
    let verify = if arguments.verify { Verify::Bytes } else { Verify::Nothing };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (state, found) = runtime.block_on(async {
        let inspector = app::open_inspector(&loaded.config).await?;
        let found = look(&inspector, wanted, verify).await?;
        Ok::<_, Failure>((inspector.state().clone(), found))
    })?;
    let text = if arguments.json { found.json(&state) } else { found.text(&state) };
    print(text.as_bytes())?;
    match found.disagreements() {
        0 => Ok(()),
        count => Err(Failure::Disagree(count)),
    }
}

fn parse(subject: &Subject) -> Result<Wanted, Failure> {
    Ok(match subject {
        Subject::Blob { blob } => {
            let (repository, digest) = halves(blob, '@', "REPOSITORY@DIGEST")?;
            Wanted::Blob(repository, digest)
        }
        Subject::Manifest { manifest } => {
            let (repository, digest) = halves(manifest, '@', "REPOSITORY@DIGEST")?;
            Wanted::Manifest(repository, digest)
        }
        Subject::Tag { tag } => {
            let (repository, tag) = halves(tag, ':', "REPOSITORY:TAG")?;
            Wanted::Tag(repository, tag)
        }
        Subject::Key { key } => Wanted::Key(
            Key::parse(key).ok_or_else(|| Failure::Argument(format!("{key:?} is not a key that Berth writes")))?,
        ),
    })
}

/// A repository and what stands behind it.
fn halves<T>(text: &str, between: char, want: &str) -> Result<(RepositoryName, T), Failure>
where
    T: FromStr<Err: std::fmt::Display>,
{
    let (repository, rest) =
        text.split_once(between).ok_or_else(|| Failure::Argument(format!("found {text:?}, want {want}")))?;
    let wrong = |error: &dyn std::fmt::Display| Failure::Argument(format!("{text:?}: {error}"));
    Ok((repository.parse().map_err(|error| wrong(&error))?, rest.parse().map_err(|error| wrong(&error))?))
}

async fn look(inspector: &Inspector, wanted: Wanted, verify: Verify) -> Result<Found, Failure> {
    Ok(match wanted {
        Wanted::Blob(repository, digest) => Found::Blob(inspector.blob(&repository, &digest, verify).await?),
        Wanted::Tag(repository, tag) => Found::Tag(inspector.tag(&repository, &tag).await?),
        Wanted::Manifest(repository, digest) => Found::Manifest(inspector.manifest(&repository, &digest).await?),
        Wanted::Key(key) => Found::Key(inspector.key(&key, verify).await?),
    })
}

impl Found {
    fn json(&self, state: &IndexState) -> String {
        let report = match self {
            Self::Blob(report) => json!(report),
            Self::Tag(report) => json!(report),
            Self::Manifest(report) => json!(report),
            Self::Key(report) => json!(report),
        };
        format!("{:#}\n", json!({ "index": state, "found": report }))
    }

    fn text(&self, state: &IndexState) -> String {
        let mut page = Page(describe(state));
        match self {
            Self::Blob(report) => page.blob(report),
            Self::Tag(report) => page.tag(report),
            Self::Manifest(report) => page.manifest(report),
            Self::Key(report) => page.key(report),
        }
        page.0
    }

    fn disagreements(&self) -> usize {
        match self {
            Self::Blob(report) => of_blob(report),
            Self::Tag(report) => report.disagreements.len(),
            Self::Manifest(report) => report.disagreements.len(),
            Self::Key(report) => match &report.about {
                About::Data(data) => data.disagreements.len(),
                About::Blob(blob) => of_blob(blob),
                About::Manifest(manifest) => manifest.disagreements.len(),
                About::Tag(tag) => tag.disagreements.len(),
                About::Format | About::Entry(_) | About::Epoch(_) | About::Checkpoint(_) | About::Probe => 0,
            },
        }
    }
}

fn of_blob(report: &BlobReport) -> usize {
    report.disagreements.len() + report.data.iter().map(|data| data.disagreements.len()).sum::<usize>()
}

/// A time of the store as people read it.
pub(super) fn when(time: StoreTime) -> String {
    chrono::DateTime::from_timestamp_millis(time.0 as i64)
        .map_or_else(|| format!("{} ms", time.0), |at| at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

/// What is printed: headings at the margin, lines under them by two spaces.
struct Page(String);

impl Page {
    fn heading(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{text}");
    }

    fn line(&mut self, text: impl std::fmt::Display) {
        let _ = writeln!(self.0, "  {text}");
    }

    fn named(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.line(format_args!("{name} {}", values.join(", ")));
        }
    }

    fn objects(&mut self, objects: &[Object]) {
        self.heading("in the bucket");
        for Object { key, size, modified } in objects {
            self.line(format_args!("{key} ({size} bytes, written {})", when(*modified)));
        }
        if objects.is_empty() {
            self.line("nothing");
        }
    }

    fn reconciled(&mut self, reconciled: bool) {
        if !reconciled {
            self.line("this repository isn't filled from the bucket yet: what is missing here may be there");
        }
    }

    fn disagreements(&mut self, found: &[String]) {
        if !found.is_empty() {
            self.heading("DISAGREEMENT");
            found.iter().for_each(|sentence| self.line(sentence));
        }
    }

    fn blob(&mut self, report: &BlobReport) {
        self.heading(&format!("blob {}@{}", report.repository, report.digest));
        if let Some(facts) = &report.index {
            self.blob_facts(facts);
        }
        self.objects(&report.links);
        self.disagreements(&report.disagreements);
        report.data.iter().for_each(|data| self.data(data));
    }

    fn blob_facts(&mut self, facts: &BlobFacts) {
        self.heading("in the index");
        self.reconciled(facts.reconciled);
        match &facts.link {
            Some(link) => self.line(format_args!(
                "link {} to {} ({} bytes, renewed {})",
                link.link,
                link.data,
                link.size,
                when(link.renewed)
            )),
            None => self.line("no link"),
        }
        self.named("needed by", &facts.refs);
        self.named("about to be linked (in this repository)", &facts.attempts);
        self.named("to be removed", &facts.trash);
        if let Some(hint) = &facts.hint {
            self.line(format_args!("hint {} ({} bytes)", hint.data, hint.size));
        }
    }

    fn data(&mut self, report: &DataReport) {
        self.heading(&format!("data {}", report.key));
        match &report.object {
            Some(Object { size, modified, .. }) => {
                self.line(format_args!("in the bucket: {size} bytes, written {}", when(*modified)));
            }
            None => self.line("in the bucket: nothing"),
        }
        match &report.fact {
            Some(fact) => {
                let state = match fact.state {
                    DataState::Live => "live",
                    DataState::Dying => "being removed",
                };
                self.line(format_args!("in the index: {state}, {} bytes of {}", fact.size, fact.digest));
            }
            None => self.line("in the index: nothing"),
        }
        self.named("needed by", &report.users);
        match report.verified {
            Some(true) => self.line("its bytes hash to the digest"),
            Some(false) => self.line("its bytes DON'T hash to the digest"),
            None => {}
        }
        self.disagreements(&report.disagreements);
    }

    fn tag(&mut self, report: &TagReport) {
        self.heading(&format!("tag {}:{}", report.repository, report.tag));
        if let Some(facts) = &report.index {
            self.heading("in the index");
            self.reconciled(facts.reconciled);
            match (&facts.revision, &facts.state) {
                (Some(revision), Some(state)) => {
                    let to = state.to.as_ref().map_or("deleted".to_owned(), |to| {
                        format!("{} ({}, {} bytes)", to.digest, to.media_type, to.size)
                    });
                    self.line(format_args!("{revision} {to}, set {} by {}", when(state.at), state.by));
                }
                _ => self.line("no such tag"),
            }
            for (intent, fact) in &facts.open {
                match fact {
                    Some(fact) => self.line(format_args!(
                        "being written by intent {intent}, until {}, by {}",
                        when(fact.deadline),
                        fact.by
                    )),
                    None => self.line(format_args!("held by intent {intent}, which isn't there")),
                }
            }
            if facts.to_be_trimmed {
                self.line("its history waits to be trimmed");
            }
        }
        self.heading("in the bucket, newest first");
        for revision in &report.history {
            let to = revision.to.as_ref().map_or("deleted", |to| to.as_str());
            let late = if revision.counts { "" } else { ", TOO LATE: it doesn't count" };
            self.line(format_args!("{} {to}, written {}{late}", revision.revision, when(revision.modified)));
        }
        if report.history.is_empty() {
            self.line("nothing");
        }
        self.disagreements(&report.disagreements);
    }

    fn manifest(&mut self, report: &ManifestReport) {
        self.heading(&format!("manifest {}@{}", report.repository, report.digest));
        self.line(report.media_type.as_deref().unwrap_or("of unknown media type"));
        report.needs.iter().for_each(|digest| self.line(format_args!("needs {digest}")));
        if let Some(facts) = &report.index {
            self.heading("in the index");
            self.reconciled(facts.reconciled);
            match &facts.fact {
                Some(fact) => self.line(format_args!(
                    "object {} ({}, {} bytes, pushed {})",
                    fact.object,
                    fact.media_type,
                    fact.size,
                    when(fact.at)
                )),
                None => self.line("no such manifest"),
            }
            self.named("named by", &facts.names);
            self.named("referrers", &facts.referrers);
            facts.unlinked.iter().for_each(|digest| self.line(format_args!("lacks {digest}")));
        }
        self.objects(&report.objects);
        self.disagreements(&report.disagreements);
    }

    fn entry(&mut self, report: &EntryReport) {
        self.line(format_args!("of {}/{}; what it says is not shown", report.roster.as_str(), report.name));
        if report.counts == Some(false) {
            self.line("it came too late, and doesn't count");
        }
        match report.is_current {
            Some(true) => self.line("the index goes by it"),
            Some(false) => self.line("the index doesn't go by it"),
            None => {}
        }
    }

    fn key(&mut self, report: &KeyReport) {
        self.heading(&format!("key {}", report.key));
        match &report.object {
            Some(object) => self.line(format_args!("{} bytes, written {}", object.size, when(object.modified))),
            None => self.line("the bucket has no such object"),
        }
        match &report.about {
            About::Format => self.line("the bucket's own description; it holds a secret, which is not shown"),
            About::Data(data) => self.data(data),
            About::Blob(blob) => self.blob(blob),
            About::Manifest(manifest) => self.manifest(manifest),
            About::Tag(tag) => self.tag(tag),
            About::Entry(entry) => self.entry(entry),
            About::Epoch(Some(record)) => self.line(format_args!(
                "an epoch: index {}, {} shards, since {}",
                record.identity,
                record.shards,
                when(record.at)
            )),
            About::Checkpoint(Some(checkpoint)) => self.line(format_args!(
                "how far an endpoint was told what happened: under epoch {}, by shard, up to {:?}",
                checkpoint.epoch, checkpoint.delivered
            )),
            About::Epoch(None) | About::Checkpoint(None) => {}
            About::Probe => self.line("what a start wrote to see whether it may; nothing needs it"),
        }
    }
}
