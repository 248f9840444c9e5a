//! What there is at one moment: the bucket, the facts, how far everybody is, and what was promised.

use super::{BLOBS, MOST};

/// Links, data objects, manifests' objects, or blobs, by number: a link, a data object and a manifest's object have
/// that of the push that draws them; the last are those of the beginning.
pub type Set = u8;

pub(super) fn has(set: Set, number: usize) -> bool {
    set & (1 << number) != 0
}

pub(super) fn each(set: Set) -> impl Iterator<Item = usize> {
    (0..MOST).filter(move |&number| has(set, number))
}

/// What became of a request to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Put {
    #[default]
    No,
    Sent,
    Landed,
}

/// How far a push is. One that stopped is one that takes no further step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Step {
    #[default]
    Start,
    /// The attempt is noted, or the upload's record read; nothing is known of the bytes yet.
    Noted,
    /// It writes bytes of its own, or has joined others.
    Writes,
    /// Only without [`super::Check::LinkBesideData`]: its data is a fact, its link not yet.
    Claimed,
    /// The manifest is reserved.
    Reserved,
    /// It is over; a blob is acknowledged.
    Over,
}

/// What the record of the upload says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Upload {
    /// There is none: nothing has come in.
    #[default]
    Absent,
    /// All bytes were put aside, in this data object.
    Open(usize),
    /// It was closed, or ended without a blob.
    Over,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Push {
    pub(super) step: Step,
    /// The epoch in which the attempt or the intent was noted, or the record read.
    pub(super) epoch: u8,
    /// Where the bytes are that it links.
    pub(super) data: Option<usize>,
    /// The data object, or the manifest's object, that it writes.
    pub(super) own: Put,
    pub(super) link: Put,
    /// The upload's record, as it was read.
    pub(super) seen: Upload,
    /// The repository had the manifest when it was reserved, and this push writes none.
    pub(super) is_there: bool,
    /// The blobs of the manifest that were linked then.
    pub(super) kept: Set,
    pub(super) is_committed: bool,
    pub(super) is_answered: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Data {
    #[default]
    Absent,
    Live,
    Dying,
}

/// The facts of one repository's shard, but for the data that is at home there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Shard {
    /// By blob.
    pub(super) links: [Option<usize>; BLOBS],
    /// The object of the manifest.
    pub(super) manifest: Option<usize>,
    /// The open intents of pushes of the manifest: they name it, and pin what it names.
    pub(super) intents: Set,
    pub(super) attempts: Set,
    /// The upload is to the first repository.
    pub(super) upload: Upload,
    /// Links in the trash; with each goes its use of data.
    pub(super) trash: Set,
    /// Data objects in the trash that are no facts.
    pub(super) waste: Set,
    /// Manifests' objects in the trash.
    pub(super) strays: Set,
    pub(super) reconciled: bool,
    pub(super) settled: bool,
}

impl Shard {
    /// Whether what is missed isn't there: settled implies reconciled.
    pub(super) fn is_known(&self) -> bool {
        self.reconciled || self.settled
    }
}

/// The index under the newest epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) shards: [Shard; 2],
    pub(super) data: [Data; MOST],
    pub(super) users: [Set; MOST],
}

/// What a removal is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Removed {
    /// A link's object, whose record is in the trash.
    Link(usize),
    /// A dying data object.
    Dying(usize),
    /// A data object that is no fact.
    Waste(usize),
    /// A manifest's object.
    Manifest(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Collector {
    Idle,
    /// It saw a link that nothing needs.
    Unneeded(usize),
    /// It saw data that no link uses.
    Unused(usize),
    /// It found no note of a data object (or no fact, without [`super::Check::NotesFirst`]).
    Unknown(usize),
    /// It saw a use of data by a link.
    Use(usize, usize),
    /// It saw a manifest's object that isn't the fact's.
    Stray(usize),
    /// A removal is on the way.
    Removing(Removed),
    /// It is confirmed.
    Confirmed(Removed),
    /// The use that the link made is forgotten as well.
    Forgotten(usize),
}

/// How far the adoption of one link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holds {
    Nothing,
    /// The link's data is there.
    Seen(usize),
    /// It is a fact.
    Data(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Adopter {
    Idle,
    /// What it listed of a repository and hasn't adopted yet, and the link that it is about to adopt.
    Listed {
        repository: usize,
        links: Set,
        manifests: Set,
        holds: Holds,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Deletion {
    NotBegun,
    /// The fact is gone, the object's removal is on the way.
    Removing(usize),
    /// That object is gone.
    Removed,
    /// These are left in the bucket.
    Listed(Set),
    Over,
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) epoch: u8,
    pub(super) facts: Facts,
    /// The objects of the bucket.
    pub(super) data: Set,
    pub(super) links: Set,
    pub(super) manifests: Set,
    /// What was put aside longer ago than the grace.
    pub(super) old: Set,
    /// By repository: a manifest was acknowledged, and nobody has begun to delete it; these blobs were there.
    pub(super) owed: [Option<Set>; 2],
    /// The first repository's manifest has begun to be deleted, and nobody has begun to push it since.
    pub(super) is_unpushed: bool,
    /// That delete was acknowledged.
    pub(super) is_gone: bool,
    pub(super) pushes: Vec<Push>,
    pub(super) collectors: Vec<Collector>,
    pub(super) adopters: Vec<Adopter>,
    pub(super) deletions: Vec<Deletion>,
}
