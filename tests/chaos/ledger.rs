//! What clients did to a registry under chaos, and whether it kept its word.
//!
//! A request that was not answered, or by a 5xx, has an unknown outcome: it may happen later or never, and is
//! never a failure. What is surely there, or surely gone, is judged at each read as it ends: everything that
//! could matter to it had been sent by then. The histories of tags are judged at the end, by [`crate::linear`].
//! Whether each change of a tag was told is judged from them too, by [`crate::told`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::linear::{self, Event, Op, Ret};

/// A moment in the history: nothing else happened at the same one.
pub(crate) type Moment = usize;

/// What was done to each tag, the deletions of its manifests included.
pub(crate) type Histories = BTreeMap<Name, Vec<Event>>;

/// A repository and a digest, or a repository and a tag.
pub(crate) type Name = (String, String);

/// A write or a removal: until when, if it was acknowledged, and when it was sent.
#[derive(Clone, Copy, Debug)]
struct Span {
    ended: Option<Moment>,
    sent: Instant,
}

/// When something was written, and when removed, by the moments at which that began.
#[derive(Clone, Debug, Default)]
struct Life {
    written: BTreeMap<Moment, Span>,
    removed: BTreeMap<Moment, Span>,
}

impl Life {
    /// Whether a removal may have had an effect at some time from `from` to `to`.
    fn may_be_removed(&self, from: Moment, to: Moment) -> bool {
        self.removed.range(..to).any(|(_, removal)| removal.ended.is_none_or(|ended| ended > from))
    }

    /// The last write that was acknowledged before `from`, if nothing can have removed it until `to`.
    fn surely_there(&self, from: Moment, to: Moment) -> Option<Span> {
        let known = |(began, write): (&Moment, &Span)| {
            let is_known = write.ended.is_some_and(|ended| ended < from) && !self.may_be_removed(*began, to);
            is_known.then_some(*write)
        };
        self.written.iter().rev().find_map(known)
    }

    /// Whether a removal was acknowledged before `from`, and nothing can have been written since.
    fn surely_gone(&self, from: Moment) -> bool {
        let is_last =
            |removal: &Moment| self.written.values().all(|write| write.ended.is_some_and(|end| end < *removal));
        let mut known = self.removed.iter().filter(|(_, removal)| removal.ended.is_some_and(|ended| ended < from));
        known.any(|(began, _)| is_last(began))
    }
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// By one request, or two.
    Blob,
    /// In chunks, each sent to any replica.
    BlobInChunks,
    Mount,
    /// An upload that is begun and given up.
    AbandonedUpload,
    /// A new manifest, to one tag.
    Push,
    PushOfSeveralTags,
    PushByDigest,
    /// A manifest that is there, to a tag.
    Retag,
    DeleteOfTag,
    DeleteOfManifest,
    DeleteOfBlob,
    PullByTag,
    PullByDigest,
    /// One of a pull's, with its bytes.
    BlobRead,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done, and the client was told.
    Done,
    /// Nobody knows.
    Unknown,
    /// The registry said no, for a reason that is the client's.
    Refused,
}

/// How many ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) done: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
}

/// A change of a registry.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A manifest of this digest is pushed to these tags.
    Push(String, Vec<String>),
    DeleteTag(String),
    /// And all tags that point at it.
    DeleteManifest(String),
    Blob(String),
    DeleteBlob(String),
}

/// A change that has been sent.
#[derive(Debug)]
pub(crate) struct Change {
    repository: String,
    what: What,
    pub(crate) began: Moment,
}

#[derive(Debug, Default)]
struct Inner {
    now: Moment,
    tags: BTreeMap<Name, BTreeMap<Moment, Event>>,
    manifests: BTreeMap<Name, Life>,
    blobs: BTreeMap<Name, Life>,
    counts: BTreeMap<Kind, Count>,
    complaints: Vec<String>,
}

/// What all clients did. Clones share one ledger.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Inner>>);

/// What the checker found an order for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ordered {
    pub(crate) tags: usize,
    pub(crate) events: usize,
}

fn name(repository: &str, what: &str) -> Name {
    (repository.to_owned(), what.to_owned())
}

impl Inner {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn complain(&mut self, text: String) {
        println!("VIOLATION at moment {}: {text}", self.now);
        self.complaints.push(text);
    }

    /// Where a change of a manifest or a blob is noted.
    fn spans(&mut self, change: &Change) -> Option<&mut BTreeMap<Moment, Span>> {
        let key = |digest: &str| name(&change.repository, digest);
        Some(match &change.what {
            What::Push(digest, _) => &mut self.manifests.entry(key(digest)).or_default().written,
            What::DeleteManifest(digest) => &mut self.manifests.entry(key(digest)).or_default().removed,
            What::Blob(digest) => &mut self.blobs.entry(key(digest)).or_default().written,
            What::DeleteBlob(digest) => &mut self.blobs.entry(key(digest)).or_default().removed,
            What::DeleteTag(_) => return None,
        })
    }

    /// The tags that a change is about, and what it does to them.
    fn histories(&mut self, change: &Change, mut each: impl FnMut(&mut BTreeMap<Moment, Event>)) {
        let tags = match &change.what {
            What::Push(_, tags) => tags.as_slice(),
            What::DeleteTag(tag) => std::slice::from_ref(tag),
            _ => &[],
        };
        for tag in tags {
            each(self.tags.entry(name(&change.repository, tag)).or_default());
        }
    }
}

impl Change {
    /// What it does to each of its tags.
    fn op(&self) -> Op {
        match &self.what {
            What::Push(digest, _) => Op::Set(digest.clone()),
            _ => Op::Delete,
        }
    }
}

impl Ledger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("lock")
    }

    /// Something that is never right was seen.
    pub(crate) fn complain(&self, text: String) {
        self.inner().complain(text);
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        self.inner().complaints.clone()
    }

    pub(crate) fn count(&self, kind: Kind, outcome: Outcome) {
        let mut inner = self.inner();
        let count = inner.counts.entry(kind).or_default();
        match outcome {
            Outcome::Done => count.done += 1,
            Outcome::Unknown => count.unknown += 1,
            Outcome::Refused => count.refused += 1,
        }
    }

    pub(crate) fn counts(&self) -> BTreeMap<Kind, Count> {
        self.inner().counts.clone()
    }

    /// A change is about to be sent. It stays open until [`Ledger::done`] or [`Ledger::refused`].
    pub(crate) fn begin(&self, repository: &str, what: What) -> Change {
        let mut inner = self.inner();
        let began = inner.tick();
        let change = Change { repository: repository.to_owned(), what, began };
        if let Some(spans) = inner.spans(&change) {
            spans.insert(began, Span { ended: None, sent: Instant::now() });
        }
        let event = Event { op: change.op(), began, ended: None };
        inner.histories(&change, |history| drop(history.insert(began, event.clone())));
        change
    }

    /// It was acknowledged.
    pub(crate) fn done(&self, change: &Change) {
        let mut inner = self.inner();
        let now = inner.tick();
        if let Some(span) = inner.spans(change).and_then(|spans| spans.get_mut(&change.began)) {
            span.ended = Some(now);
        }
        inner.histories(change, |history| {
            if let Some(event) = history.get_mut(&change.began) {
                event.ended = Some((now, Ret::Done));
            }
        });
    }

    /// It surely didn't happen. The deletion of a tag has seen that there is no such tag; all else is forgotten.
    pub(crate) fn refused(&self, change: &Change) {
        let mut inner = self.inner();
        let now = inner.tick();
        if let Some(spans) = inner.spans(change) {
            spans.remove(&change.began);
        }
        inner.histories(change, |history| match change.what {
            What::DeleteTag(_) => {
                if let Some(event) = history.get_mut(&change.began) {
                    event.ended = Some((now, Ret::Missing));
                }
            }
            _ => drop(history.remove(&change.began)),
        });
    }

    /// A read is about to be sent.
    pub(crate) fn read(&self) -> Moment {
        self.inner().tick()
    }

    /// A tag was read.
    pub(crate) fn saw(&self, repository: &str, tag: &str, began: Moment, to: Option<&str>) {
        let mut inner = self.inner();
        let ended = Some((inner.tick(), Ret::Saw(to.map(str::to_owned))));
        inner.tags.entry(name(repository, tag)).or_default().insert(began, Event { op: Op::Read, began, ended });
    }

    /// A manifest was asked for by its digest, and wasn't there.
    pub(crate) fn missed(&self, repository: &str, digest: &str, began: Moment, how: &str) {
        let mut inner = self.inner();
        let now = inner.tick();
        let life = inner.manifests.get(&name(repository, digest));
        if life.is_some_and(|life| life.surely_there(began, now).is_some()) {
            inner.complain(format!("{repository}@{digest} is gone ({how}, asked at {began})"));
        }
    }

    /// A manifest was asked for by its digest, and was there.
    pub(crate) fn found(&self, repository: &str, digest: &str, began: Moment, how: &str) {
        let mut inner = self.inner();
        inner.tick();
        let life = inner.manifests.get(&name(repository, digest));
        if life.is_some_and(|life| life.surely_gone(began)) {
            inner.complain(format!("{repository}@{digest} was deleted and is back ({how}, asked at {began})"));
        }
    }

    /// Something that a manifest needs could not be read, from `began` on. That is no wonder only where somebody
    /// may be deleting the manifest.
    pub(crate) fn broken(&self, repository: &str, digest: &str, began: Moment, how: &str) {
        let mut inner = self.inner();
        let now = inner.tick();
        let life = inner.manifests.get(&name(repository, digest));
        if life.is_none_or(|life| !life.may_be_removed(began, now)) {
            inner.complain(format!("{repository}@{digest} can't be read whole: {how} (asked at {began})"));
        }
    }

    /// A push was told that the repository lacks a blob. That is right only for one that nobody pushed or that
    /// somebody deleted, and for one that may have been collected: `grace` is how old it must be for that.
    pub(crate) fn unknown_blob(&self, change: &Change, blob: &str, grace: Option<Duration>) {
        let mut inner = self.inner();
        let now = inner.tick();
        let life = inner.blobs.get(&name(&change.repository, blob));
        let Some(pushed) = life.and_then(|life| life.surely_there(change.began, now)) else { return };
        let age = pushed.sent.elapsed();
        if grace.is_none_or(|grace| age < grace) {
            let text =
                format!("{}: {blob}, pushed {age:?} ago, is unknown (asked at {})", change.repository, change.began);
            inner.complain(text);
        }
    }

    /// All tags that anybody wrote to.
    pub(crate) fn tags(&self) -> Vec<Name> {
        self.inner().tags.keys().cloned().collect()
    }

    /// The manifests that are surely there now, and those that are surely gone.
    pub(crate) fn manifests(&self) -> (Vec<Name>, Vec<Name>) {
        let mut inner = self.inner();
        let now = inner.tick();
        let those = |is_so: &dyn Fn(&Life) -> bool| {
            let those = inner.manifests.iter().filter(|(_, life)| is_so(life));
            those.map(|(name, _)| name.clone()).collect()
        };
        (those(&|life| life.surely_there(now, now).is_some()), those(&|life| life.surely_gone(now)))
    }

    /// What was done to each tag so far.
    pub(crate) fn histories(&self) -> Histories {
        let Inner { tags, manifests, .. } = &*self.inner();
        tags.iter().map(|(name, history)| (name.clone(), with_deletions(&name.0, history, manifests))).collect()
    }

    /// Looks for an order of each tag's history, and complains where there is none.
    pub(crate) fn explain(&self) -> Ordered {
        let mut ordered = Ordered::default();
        for ((repository, tag), events) in self.histories() {
            match linear::explain(&events) {
                Ok(events) => {
                    ordered.tags += 1;
                    ordered.events += events;
                }
                Err(why) => self.complain(format!("{repository}:{tag}: {why}")),
            }
        }
        ordered
    }
}

/// A tag's history, with the deletions of manifests that it was pushed at.
fn with_deletions(repository: &str, history: &BTreeMap<Moment, Event>, manifests: &BTreeMap<Name, Life>) -> Vec<Event> {
    let mut events: Vec<Event> = history.values().cloned().collect();
    let pushed: BTreeSet<&String> = history
        .values()
        .filter_map(|event| match &event.op {
            Op::Set(digest) => Some(digest),
            _ => None,
        })
        .collect();
    for digest in pushed {
        let Some(life) = manifests.get(&name(repository, digest)) else { continue };
        let deletions = life.removed.iter().map(|(began, removal)| Event {
            op: Op::DeleteManifest(digest.clone()),
            began: *began,
            ended: removal.ended.map(|ended| (ended, Ret::Done)),
        });
        events.extend(deletions);
    }
    events.sort_by_key(|event| event.began);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aa";

    fn push(ledger: &Ledger, tags: &[&str]) {
        let change = ledger.begin("r", What::Push(A.to_owned(), tags.iter().map(ToString::to_string).collect()));
        ledger.done(&change);
    }

    fn delete(ledger: &Ledger) -> Change {
        ledger.begin("r", What::DeleteManifest(A.to_owned()))
    }

    #[test]
    fn what_was_acknowledged_is_there_until_somebody_may_have_deleted_it() {
        let ledger = Ledger::default();
        ledger.missed("r", A, ledger.read(), "before");
        push(&ledger, &[]);
        assert_eq!(ledger.manifests().0.len(), 1);
        let open = delete(&ledger);
        ledger.missed("r", A, ledger.read(), "beside a deletion");
        ledger.found("r", A, ledger.read(), "beside a deletion");
        assert_eq!(ledger.complaints(), Vec::<String>::new());
        ledger.refused(&open);
        ledger.missed("r", A, ledger.read(), "after none");
        assert_eq!(ledger.complaints().len(), 1);
    }

    #[test]
    fn what_was_deleted_is_gone_until_somebody_may_have_pushed_it() {
        let ledger = Ledger::default();
        push(&ledger, &[]);
        let change = delete(&ledger);
        ledger.done(&change);
        assert_eq!((ledger.manifests().0.len(), ledger.manifests().1.len()), (0, 1));
        let open = ledger.begin("r", What::Push(A.to_owned(), Vec::new()));
        ledger.found("r", A, ledger.read(), "beside a push");
        assert_eq!(ledger.complaints(), Vec::<String>::new());
        ledger.refused(&open);
        ledger.found("r", A, ledger.read(), "after none");
        assert_eq!(ledger.complaints().len(), 1);
    }

    #[test]
    fn a_tag_goes_with_its_manifest() {
        let ledger = Ledger::default();
        push(&ledger, &["t", "u"]);
        let change = delete(&ledger);
        ledger.done(&change);
        ledger.saw("r", "t", ledger.read(), None);
        assert_eq!(ledger.explain(), Ordered { tags: 2, events: 5 });
        ledger.saw("r", "u", ledger.read(), Some(A));
        assert_eq!(ledger.explain().tags, 1);
        assert_eq!(ledger.complaints().len(), 1);
    }

    #[test]
    fn a_blob_is_unknown_only_once_it_is_old() {
        let ledger = Ledger::default();
        let blob = ledger.begin("r", What::Blob("sha256:bb".to_owned()));
        ledger.done(&blob);
        let change = ledger.begin("r", What::Push(A.to_owned(), Vec::new()));
        ledger.unknown_blob(&change, "sha256:cc", None);
        ledger.unknown_blob(&change, "sha256:bb", Some(Duration::ZERO));
        assert_eq!(ledger.complaints(), Vec::<String>::new());
        ledger.unknown_blob(&change, "sha256:bb", Some(Duration::from_secs(1000)));
        ledger.unknown_blob(&change, "sha256:bb", None);
        assert_eq!(ledger.complaints().len(), 2);
    }

    #[test]
    fn what_a_manifest_needs_is_there_while_it_is() {
        let ledger = Ledger::default();
        push(&ledger, &[]);
        let began = ledger.read();
        ledger.broken("r", A, began, "a layer is missing");
        assert_eq!(ledger.complaints().len(), 1);
        let _open = delete(&ledger);
        ledger.broken("r", A, began, "a layer is missing");
        assert_eq!(ledger.complaints().len(), 1);
    }
}
