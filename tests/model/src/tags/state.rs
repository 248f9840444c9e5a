//! What there is at one moment: the bucket, the servers of the index, and how far everybody is.

use std::collections::{BTreeMap, BTreeSet};

use super::Loss;
use crate::linear::{Monitor, Value};

/// An epoch's number. The greatest is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Epoch {
    pub(super) generation: u8,
    pub(super) random: u8,
}

/// A position in the tag's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Revision {
    pub(super) epoch: Epoch,
    pub(super) counter: u8,
}

/// What the tag is, and since which revision.
pub(super) type Tag = (Revision, Value);

/// An index, as it names itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) run: u8,
    pub(super) replication: u8,
}

/// What an index knows under one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) counter: u8,
    pub(super) tag: Option<Tag>,
    /// The open intents, by write.
    pub(super) open: BTreeMap<usize, Revision>,
    pub(super) reconciled: bool,
    pub(super) settled: bool,
}

impl Facts {
    pub(super) fn raise(&mut self, revision: Revision, to: Value) {
        if self.tag.is_none_or(|(there, _)| there < revision) {
            self.tag = Some((revision, to));
        }
    }

    /// Whether what is missed isn't there: settled implies reconciled.
    pub(super) fn is_known(&self) -> bool {
        self.reconciled || self.settled
    }
}

/// A server of the index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) identity: Identity,
    pub(super) fence: Option<Epoch>,
    pub(super) facts: BTreeMap<Epoch, Facts>,
}

impl Server {
    pub(super) fn empty(identity: Identity) -> Self {
        Self { identity, fence: None, facts: BTreeMap::new() }
    }
}

/// Which server, and which epoch, a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) server: usize,
    pub(super) epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) server: usize,
    /// The newest epoch that it has listed, and whose that is; its lease will count from then.
    pub(super) asked: Option<(Epoch, Identity)>,
    pub(super) lease: Option<Epoch>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Put {
    #[default]
    No,
    Sent,
    Landed,
}

/// How far a write is. A writer that stopped is one that takes no further step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Step {
    #[default]
    NotCalled,
    Called,
    /// It has seen what the tag is.
    Looked(Option<Tag>),
    /// Its reservation is on the way.
    Reserving(Place, Option<Tag>),
    Reserved(Place, Revision),
    /// The tag is already what it shall be; the intent is open.
    NothingToDo(Place),
    Over,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Write {
    pub(super) step: Step,
    pub(super) overdue: bool,
    pub(super) manifest: Put,
    pub(super) revision: Put,
    pub(super) commit: Put,
    pub(super) answered: bool,
}

/// A revision in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Object {
    pub(super) revision: Revision,
    pub(super) to: Value,
    pub(super) in_time: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Read {
    Idle,
    Asked(Place),
    /// The index knows all of the repository.
    Known(Place),
    /// The tag was read in a snapshot of its own.
    Half(Place, Option<Tag>),
    /// What the index answers, if the repository is reconciled.
    Unconfirmed(Place, Value),
    Bucket,
    /// The newest revision that counts was listed.
    Listed(Option<Tag>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Recovery {
    Idle,
    Looked { place: Place, write: usize, counts: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trim {
    Idle,
    Looked {
        replica: usize,
        place: Place,
        current: Tag,
    },
    /// What was listed and is outranked, and what isn't.
    Listed {
        replica: usize,
        place: Place,
        current: Tag,
        older: BTreeSet<Revision>,
        rest: BTreeSet<Revision>,
    },
    /// The tag is forgotten; these are in the trash.
    Discarding {
        replica: usize,
        place: Place,
        trash: BTreeSet<Revision>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Beginning {
    Idle,
    /// It knows the number of the next epoch, and for which server.
    Listed(usize, u8),
    Written(Place),
    Waited(Place),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reconciliation {
    Idle,
    Listed(Place, Option<Tag>),
    Adopted(Place),
    /// The bucket has no repository that isn't reconciled.
    Walked(Place),
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) monitor: Monitor,
    pub(super) servers: Vec<Server>,
    /// What the replica of the first server has of it.
    pub(super) copy: Option<Server>,
    pub(super) epochs: BTreeMap<Epoch, Identity>,
    pub(super) objects: BTreeSet<Object>,
    pub(super) replicas: Vec<Replica>,
    pub(super) writes: Vec<Write>,
    pub(super) reads: Vec<Read>,
    pub(super) recoveries: Vec<Recovery>,
    pub(super) trims: Vec<Trim>,
    pub(super) beginnings: Vec<Beginning>,
    pub(super) reconciliations: Vec<Reconciliation>,
    pub(super) lost: Vec<Loss>,
    pub(super) drawn: u8,
}

impl State {
    /// Where a replica may ask, if it has a lease.
    pub(super) fn place(&self, replica: usize) -> Option<Place> {
        let Replica { server, lease, .. } = self.replicas[replica];
        lease.map(|epoch| Place { server, epoch })
    }

    /// What there is under an epoch, for a question.
    pub(super) fn facts(&self, place: Place) -> Option<&Facts> {
        self.servers[place.server].facts.get(&place.epoch)
    }

    /// The newest epoch, and which index it names.
    pub(super) fn newest(&self) -> Option<(Epoch, Identity)> {
        self.epochs.last_key_value().map(|(&epoch, &identity)| (epoch, identity))
    }
}
