//! The life of one blob in two repositories: pushes, mounts, a manifest that needs it, collection, the loss of the
//! index, adoption.
//!
//! Each repository has its shard, and a data object's home is the shard of the repository whose push wrote it. Any
//! request may arrive late or never, any actor may stop anywhere, and age is never assumed: collection may take
//! what nothing needs at any moment, so nothing here rests on a grace period or on fast clients.

use stateright::{Model, Property};

/// What the protocol checks. Each can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// An attempt is noted before anything is put for it.
    NoteFirst,
    /// A link is committed once its bytes are confirmed.
    BytesFirst,
    /// A link is committed only while its attempt is noted.
    CommitNoted,
    /// A link, and data of its own, become facts in one batch.
    LinkBesideData,
    /// Who links data is noted beside the data.
    Users,
    /// Data is let go of by a batch that checks that it has no users.
    UsersInBatch,
    /// Dying data is not joined.
    JoinRefusesDying,
    /// A manifest that is being pushed pins the link that it needs.
    Pins,
    /// A link is unlinked by a batch that checks that no manifest needs it.
    RefsInBatch,
    /// A key is never used again.
    FreshKeys,
    /// The store refuses a removal that comes too late.
    RemovalsExpire,
    /// Adoption passes over a link of which the shard has a note.
    AdoptUnknown,
    /// A link is adopted only while its repository isn't reconciled.
    AdoptOnce,
    /// Data is adopted only while its home isn't settled.
    AdoptUnsettled,
    /// Data is let go of only in a settled shard.
    ReleaseSettled,
    /// Nobody begins to push to a repository that isn't reconciled.
    ReconcileFirst,
    /// Who looks for unknown data reads the notes before the facts.
    NotesFirst,
    /// A use is stale only if there is no attempt of that link either.
    AuditAttempts,
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// The blob shall be in this repository.
    Blob(usize),
    /// And then a manifest that needs it.
    Image(usize),
}

impl Wish {
    fn repository(self) -> usize {
        match self {
            Self::Blob(repository) | Self::Image(repository) => repository,
        }
    }
}

/// What is there in the beginning, in the first repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// Nothing.
    Nothing,
    /// The blob, which no manifest needs.
    Blob,
    /// The blob, and a manifest that needs it.
    Image,
}

/// What is tried, and without which check.
#[derive(Clone, Debug)]
pub struct Blobs {
    /// What clients want, each once, all at the same time.
    pub pushes: Vec<Wish>,
    /// What is there before.
    pub first: First,
    /// How many delete the first repository's manifest, each once.
    pub deletes: usize,
    /// How many collect.
    pub collectors: usize,
    /// How often the index is lost.
    pub losses: u8,
    /// How many reconcile.
    pub adopters: usize,
    /// The checks that are left out.
    pub without: Vec<Check>,
}

impl Default for Blobs {
    fn default() -> Self {
        let pushes = vec![Wish::Image(0)];
        Self { pushes, first: First::Blob, deletes: 0, collectors: 1, losses: 0, adopters: 0, without: Vec::new() }
    }
}

/// Links and data objects by number: that of the push that draws them; the last are those of the beginning.
type Set = u8;

/// The most pushes, and one for the beginning.
const MOST: usize = 4;

fn has(set: Set, number: usize) -> bool {
    set & (1 << number) != 0
}

fn each(set: Set) -> impl Iterator<Item = usize> {
    (0..MOST).filter(move |&number| has(set, number))
}

/// What became of a request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Put {
    No,
    Sent,
    Landed,
}

/// How far a push is. One that stopped is one that takes no further step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Start,
    /// The attempt is noted; nothing is known of the bytes yet.
    Noted,
    /// It writes bytes of its own, or has joined others.
    Writes,
    /// Only without [`Check::LinkBesideData`]: its data is a fact, its link not yet.
    Claimed,
    /// The blob is acknowledged.
    Acknowledged,
    /// The manifest is reserved.
    Reserved,
    /// The manifest's object is confirmed.
    Written,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Push {
    step: Step,
    /// The epoch in which the attempt or the intent was noted.
    epoch: u8,
    /// Where the bytes are that it links.
    data: Option<usize>,
    own: Put,
    link: Put,
    /// The repository had the manifest when it was reserved, and this push writes none.
    is_there: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Data {
    #[default]
    Absent,
    Live,
    Dying,
}

/// The facts of one repository's shard, but for the data that is at home there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Shard {
    link: Option<usize>,
    /// The object of the manifest that needs the link.
    manifest: Option<usize>,
    /// Manifests that are being pushed need it.
    pins: Set,
    attempts: Set,
    /// Links in the trash; with each goes its use of data.
    trash: Set,
    /// Data objects in the trash that are no facts.
    waste: Set,
    reconciled: bool,
    settled: bool,
}

/// The index under the newest epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Facts {
    shards: [Shard; 2],
    data: [Data; MOST],
    users: [Set; MOST],
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Collector {
    Idle,
    /// It saw a link that nothing needs.
    Unneeded(usize, usize),
    /// It saw data that no link uses.
    Unused(usize),
    /// It found no note of a data object (or no fact, without [`Check::NotesFirst`]).
    Unknown(usize),
    /// It saw a use of data by a link.
    Use(usize, usize),
    /// A removal is on the way.
    Removing(Removed),
    /// It is confirmed.
    Confirmed(Removed),
    /// The use that the link made is forgotten as well.
    Forgotten(usize),
}

/// How far the adoption of one link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holds {
    Nothing,
    /// The link's data is there.
    Seen(usize),
    /// It is a fact.
    Data(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Adopter {
    Idle,
    /// What it listed of a repository and hasn't adopted yet, and the link that it is about to adopt.
    Listed {
        repository: usize,
        left: Set,
        manifest: Option<usize>,
        holds: Holds,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Deletion {
    NotBegun,
    /// The fact is gone, the object's removal is on the way.
    Removing(usize),
    Over,
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    epoch: u8,
    facts: Facts,
    /// The objects of the bucket.
    data: Set,
    links: Set,
    manifests: Set,
    /// A manifest was acknowledged, and nobody has begun to delete it.
    owed: [bool; 2],
    pushes: Vec<Push>,
    collectors: Vec<Collector>,
    adopters: Vec<Adopter>,
    deletions: Vec<Deletion>,
}

/// Something that happens. The first number names who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named as the step of the protocol that it is")]
pub enum Action {
    NoteAttempt(usize),
    PutAside(usize),
    Join(usize, usize),
    DataLands(usize),
    PutLink(usize),
    LinkLands(usize),
    ClaimData(usize),
    CommitLink(usize),
    Reserve(usize),
    PutManifest(usize),
    CommitPush(usize),
    Recover(usize),
    UnmakeManifest(usize),
    ManifestRemoved(usize),
    ExpireAttempt(usize),
    LookForUnneeded(usize, usize),
    Unlink(usize),
    LookForUnused(usize, usize),
    Release(usize),
    LookForUnknown(usize, usize),
    ThrowAway(usize),
    LookForUse(usize, usize, usize),
    Audit(usize),
    UnknownLink(usize, usize),
    Remove(usize, Removed),
    RemovalLands(usize),
    ForgetUser(usize),
    DropTrash(usize),
    BeginEpoch,
    ListForAdoption(usize, usize),
    LookForData(usize, usize),
    AdoptData(usize),
    AdoptLink(usize),
    AdoptManifest(usize),
    MarkReconciled(usize),
    Settle(usize),
}

impl Blobs {
    fn checks(&self, check: Check) -> bool {
        !self.without.contains(&check)
    }

    /// The number of what is there in the beginning.
    fn first(&self) -> usize {
        self.pushes.len()
    }

    /// Whose link or data that is.
    fn repository(&self, number: usize) -> usize {
        self.pushes.get(number).map_or(0, |wish| wish.repository())
    }

    /// The data key that a push draws.
    fn own(&self, push: usize) -> usize {
        let same = |other: &usize| self.repository(*other) == self.repository(push);
        if self.checks(Check::FreshKeys) { push } else { (0..=self.first()).rev().find(same).unwrap_or(push) }
    }

    /// The data that a link names.
    fn data_of(&self, state: &State, link: usize) -> Option<usize> {
        if link == self.first() { Some(link) } else { state.pushes[link].data }
    }

    /// The batch that lets a link's attempt become a fact, or gives way to the link that is there.
    fn commit_link(&self, state: &mut State, push: usize) {
        let Push { data: Some(data), .. } = state.pushes[push] else { return };
        let is_own = data == self.own(push);
        let shard = &mut state.facts.shards[self.repository(push)];
        let is_noted = has(shard.attempts, push);
        state.pushes[push].step = Step::Acknowledged;
        if !is_noted && self.checks(Check::CommitNoted) {
            // The request fails, unless the repository has the blob all the same.
            if shard.link.is_none() {
                state.pushes[push].step = Step::Over;
            }
            return;
        }
        shard.attempts &= !(1 << push);
        if shard.link.is_some() {
            shard.trash |= 1 << push;
            if is_own {
                shard.waste |= 1 << data;
            }
            return;
        }
        shard.link = Some(push);
        if is_own && self.checks(Check::LinkBesideData) {
            state.facts.data[data] = Data::Live;
            self.add_user(state, data, push);
        }
    }

    fn add_user(&self, state: &mut State, data: usize, link: usize) {
        if self.checks(Check::Users) {
            state.facts.users[data] |= 1 << link;
        }
    }

    /// Whether nothing uses a data object, as far as its home knows.
    fn is_unused(&self, state: &State, data: usize) -> bool {
        if self.checks(Check::Users) {
            return state.facts.users[data] == 0;
        }
        state.facts.shards.iter().filter_map(|shard| shard.link).all(|link| self.data_of(state, link) != Some(data))
    }

    fn push_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, epoch, data, own, link, .. } = state.pushes[push];
        let shard = &state.facts.shards[self.repository(push)];
        let is_current = epoch == state.epoch;
        match step {
            Step::Start if shard.reconciled || !self.checks(Check::ReconcileFirst) => {
                actions.push(Action::NoteAttempt(push));
                if !self.checks(Check::NoteFirst) && own == Put::No {
                    actions.push(Action::PutAside(push));
                }
            }
            Step::Noted if is_current => {
                actions.push(Action::PutAside(push));
                let joinable = |&other: &usize| state.facts.data[other] != Data::Absent && other != self.own(push);
                actions.extend((0..=self.first()).filter(joinable).map(|other| Action::Join(push, other)));
            }
            Step::Writes | Step::Claimed if is_current => {
                let is_own = data == Some(self.own(push));
                if link == Put::No {
                    actions.push(Action::PutLink(push));
                }
                let is_confirmed = !is_own || own == Put::Landed || !self.checks(Check::BytesFirst);
                if is_own && step == Step::Writes && !self.checks(Check::LinkBesideData) {
                    if own == Put::Landed {
                        actions.push(Action::ClaimData(push));
                    }
                } else if link == Put::Landed && is_confirmed {
                    actions.push(Action::CommitLink(push));
                }
            }
            Step::Acknowledged if matches!(self.pushes[push], Wish::Image(_)) && shard.reconciled => {
                actions.push(Action::Reserve(push));
            }
            Step::Reserved if is_current => actions.push(Action::PutManifest(push)),
            Step::Written if is_current => actions.push(Action::CommitPush(push)),
            _ => {}
        }
        if matches!(step, Step::Reserved | Step::Written) && is_current && has(shard.pins, push) {
            actions.push(Action::Recover(push));
        }
        if own == Put::Sent {
            actions.push(Action::DataLands(push));
        }
        if link == Put::Sent {
            actions.push(Action::LinkLands(push));
        }
    }

    fn next_push(&self, state: &mut State, action: Action) {
        match action {
            Action::NoteAttempt(push) => {
                let shard = &mut state.facts.shards[self.repository(push)];
                let put = &mut state.pushes[push];
                put.epoch = state.epoch;
                if shard.link.is_some() && put.own == Put::No {
                    put.step = Step::Acknowledged;
                } else {
                    shard.attempts |= 1 << push;
                    put.step = if put.own == Put::No { Step::Noted } else { Step::Writes };
                }
            }
            Action::PutAside(push) => {
                let own = self.own(push);
                let put = &mut state.pushes[push];
                (put.own, put.data) = (Put::Sent, Some(own));
                if put.step == Step::Noted {
                    put.step = Step::Writes;
                }
            }
            Action::Join(push, data) => {
                let is_live = state.facts.data[data] == Data::Live || !self.checks(Check::JoinRefusesDying);
                if is_live {
                    self.add_user(state, data, push);
                    (state.pushes[push].data, state.pushes[push].step) = (Some(data), Step::Writes);
                } else {
                    self.next_push(state, Action::PutAside(push));
                }
            }
            Action::DataLands(push) => {
                state.data |= 1 << self.own(push);
                state.pushes[push].own = Put::Landed;
            }
            Action::PutLink(push) => state.pushes[push].link = Put::Sent,
            Action::LinkLands(push) => {
                state.links |= 1 << push;
                state.pushes[push].link = Put::Landed;
            }
            Action::ClaimData(push) => {
                let own = self.own(push);
                state.facts.data[own] = Data::Live;
                self.add_user(state, own, push);
                state.pushes[push].step = Step::Claimed;
            }
            Action::CommitLink(push) => self.commit_link(state, push),
            _ => {}
        }
    }

    fn next_manifest(&self, state: &mut State, action: Action) {
        match action {
            Action::Reserve(push) => {
                let shard = &mut state.facts.shards[self.repository(push)];
                let put = &mut state.pushes[push];
                put.epoch = state.epoch;
                put.is_there = shard.manifest.is_some();
                put.step = if shard.link.is_some() { Step::Reserved } else { Step::Over };
                if put.step == Step::Reserved {
                    shard.pins |= 1 << push;
                }
            }
            Action::PutManifest(push) => {
                if !state.pushes[push].is_there {
                    state.manifests |= 1 << push;
                }
                state.pushes[push].step = Step::Written;
            }
            Action::CommitPush(push) => {
                self.make_manifest(state, push);
                let repository = self.repository(push);
                // Where recovery was first, somebody may have deleted the manifest since: the push was before that.
                state.owed[repository] = state.facts.shards[repository].manifest.is_some();
                state.pushes[push].step = Step::Over;
            }
            Action::Recover(push) => {
                // Past its deadline: a writer that had not got so far by then answers with an error.
                if state.pushes[push].step == Step::Written {
                    self.make_manifest(state, push);
                } else {
                    state.pushes[push].step = Step::Over;
                    state.facts.shards[self.repository(push)].pins &= !(1 << push);
                }
            }
            Action::UnmakeManifest(deletion) => {
                let Some(object) = state.facts.shards[0].manifest.take() else { return };
                state.owed[0] = false;
                state.deletions[deletion] = Deletion::Removing(object);
            }
            Action::ManifestRemoved(deletion) => {
                let Deletion::Removing(object) = state.deletions[deletion] else { return };
                state.manifests &= !(1 << object);
                state.deletions[deletion] = Deletion::Over;
            }
            _ => {}
        }
    }

    /// The batch that makes a manifest a fact, unless somebody has done so.
    fn make_manifest(&self, state: &mut State, push: usize) {
        let shard = &mut state.facts.shards[self.repository(push)];
        if has(shard.pins, push) {
            shard.pins &= !(1 << push);
            shard.manifest = shard.manifest.or(Some(push));
        }
    }

    fn deletion_actions(&self, state: &State, deletion: usize, actions: &mut Vec<Action>) {
        let shard = &state.facts.shards[0];
        match state.deletions[deletion] {
            Deletion::NotBegun if shard.reconciled && shard.manifest.is_some() && shard.pins == 0 => {
                actions.push(Action::UnmakeManifest(deletion));
            }
            Deletion::Removing(_) => actions.push(Action::ManifestRemoved(deletion)),
            Deletion::NotBegun | Deletion::Over => {}
        }
    }

    fn is_needed(&self, shard: &Shard) -> bool {
        shard.manifest.is_some() || (shard.pins != 0 && self.checks(Check::Pins))
    }

    /// Whether a repository has, is about to have, or is about to lose a link.
    fn knows(&self, state: &State, link: usize) -> bool {
        let shard = &state.facts.shards[self.repository(link)];
        let is_attempted = has(shard.attempts, link) && self.checks(Check::AuditAttempts);
        shard.link == Some(link) || is_attempted || has(shard.trash, link)
    }

    fn is_noted(&self, state: &State, data: usize) -> bool {
        let shard = &state.facts.shards[self.repository(data)];
        let attempted = each(shard.attempts).any(|push| self.own(push) == data);
        attempted || has(shard.waste, data)
    }

    fn may_release(&self, state: &State, data: usize) -> bool {
        let is_settled = state.facts.shards[self.repository(data)].settled || !self.checks(Check::ReleaseSettled);
        is_settled && state.facts.data[data] == Data::Live && self.is_unused(state, data)
    }

    fn collector_actions(&self, state: &State, collector: usize, actions: &mut Vec<Action>) {
        match state.collectors[collector] {
            Collector::Idle => self.looks(state, collector, actions),
            Collector::Unneeded(..) => actions.push(Action::Unlink(collector)),
            Collector::Unused(_) => actions.push(Action::Release(collector)),
            Collector::Unknown(_) => actions.push(Action::ThrowAway(collector)),
            Collector::Use(..) => actions.push(Action::Audit(collector)),
            Collector::Removing(_) => actions.push(Action::RemovalLands(collector)),
            Collector::Confirmed(_) => actions.push(Action::ForgetUser(collector)),
            Collector::Forgotten(_) => actions.push(Action::DropTrash(collector)),
        }
    }

    /// All that somebody who collects may find to do.
    fn looks(&self, state: &State, collector: usize, actions: &mut Vec<Action>) {
        let Facts { shards, data, users } = &state.facts;
        for (repository, shard) in shards.iter().enumerate() {
            if shard.reconciled && shard.link.is_some() && !self.is_needed(shard) {
                actions.push(Action::LookForUnneeded(collector, repository));
            }
            if shard.reconciled {
                actions.extend(each(shard.trash).map(|link| Action::Remove(collector, Removed::Link(link))));
                actions.extend(each(shard.waste).map(|data| Action::Remove(collector, Removed::Waste(data))));
            }
        }
        for number in 0..=self.first() {
            let home = &shards[self.repository(number)];
            if self.may_release(state, number) {
                actions.push(Action::LookForUnused(collector, number));
            }
            if data[number] == Data::Dying {
                actions.push(Action::Remove(collector, Removed::Dying(number)));
            }
            let looks_first = match self.checks(Check::NotesFirst) {
                true => !self.is_noted(state, number),
                false => data[number] == Data::Absent,
            };
            if home.settled && has(state.data, number) && data[number] == Data::Absent && looks_first {
                actions.push(Action::LookForUnknown(collector, number));
            }
            if home.settled {
                let stale = each(users[number]).filter(|&link| !self.knows(state, link));
                actions.extend(stale.map(|link| Action::LookForUse(collector, number, link)));
            }
            let is_unknown = has(state.links, number) && !self.knows(state, number) && !has(home.attempts, number);
            if home.reconciled && is_unknown {
                actions.push(Action::UnknownLink(collector, number));
            }
        }
    }

    fn next_look(&self, state: &mut State, action: Action) {
        match action {
            Action::LookForUnneeded(collector, repository) => {
                let Some(link) = state.facts.shards[repository].link else { return };
                state.collectors[collector] = Collector::Unneeded(repository, link);
            }
            Action::Unlink(collector) => {
                let Collector::Unneeded(repository, link) = state.collectors[collector] else { return };
                let is_needed = self.is_needed(&state.facts.shards[repository]) && self.checks(Check::RefsInBatch);
                let shard = &mut state.facts.shards[repository];
                if shard.link == Some(link) && !is_needed {
                    shard.link = None;
                    shard.trash |= 1 << link;
                }
                state.collectors[collector] = Collector::Idle;
            }
            Action::LookForUnused(collector, data) => state.collectors[collector] = Collector::Unused(data),
            Action::Release(collector) => {
                let Collector::Unused(data) = state.collectors[collector] else { return };
                let is_unused = self.is_unused(state, data) || !self.checks(Check::UsersInBatch);
                if state.facts.data[data] == Data::Live && is_unused {
                    state.facts.data[data] = Data::Dying;
                }
                state.collectors[collector] = Collector::Idle;
            }
            Action::LookForUnknown(collector, data) => state.collectors[collector] = Collector::Unknown(data),
            Action::ThrowAway(collector) => {
                let Collector::Unknown(data) = state.collectors[collector] else { return };
                let is_unknown = match self.checks(Check::NotesFirst) {
                    true => state.facts.data[data] == Data::Absent,
                    false => !self.is_noted(state, data),
                };
                if is_unknown {
                    state.facts.shards[self.repository(data)].waste |= 1 << data;
                }
                state.collectors[collector] = Collector::Idle;
            }
            Action::LookForUse(collector, data, link) => state.collectors[collector] = Collector::Use(data, link),
            Action::Audit(collector) => {
                let Collector::Use(data, link) = state.collectors[collector] else { return };
                state.facts.users[data] &= !(1 << link);
                state.collectors[collector] = Collector::Idle;
            }
            Action::UnknownLink(_, link) => state.facts.shards[self.repository(link)].trash |= 1 << link,
            Action::ExpireAttempt(push) => {
                let shard = &mut state.facts.shards[self.repository(push)];
                shard.attempts &= !(1 << push);
                shard.waste |= 1 << self.own(push);
            }
            _ => {}
        }
    }

    fn next_removal(&self, state: &mut State, action: Action) {
        match action {
            Action::Remove(collector, removed) => state.collectors[collector] = Collector::Removing(removed),
            Action::RemovalLands(collector) => {
                let Collector::Removing(removed) = state.collectors[collector] else { return };
                match removed {
                    Removed::Link(link) => state.links &= !(1 << link),
                    Removed::Dying(data) | Removed::Waste(data) => state.data &= !(1 << data),
                }
                state.collectors[collector] = Collector::Confirmed(removed);
            }
            Action::ForgetUser(collector) => {
                let Collector::Confirmed(removed) = state.collectors[collector] else { return };
                state.collectors[collector] = Collector::Idle;
                match removed {
                    Removed::Link(link) => {
                        if let Some(data) = self.data_of(state, link) {
                            state.facts.users[data] &= !(1 << link);
                        }
                        state.collectors[collector] = Collector::Forgotten(link);
                    }
                    Removed::Dying(data) if state.facts.data[data] == Data::Dying => {
                        state.facts.data[data] = Data::Absent;
                    }
                    Removed::Dying(_) => {}
                    Removed::Waste(data) => state.facts.shards[self.repository(data)].waste &= !(1 << data),
                }
            }
            Action::DropTrash(collector) => {
                let Collector::Forgotten(link) = state.collectors[collector] else { return };
                state.facts.shards[self.repository(link)].trash &= !(1 << link);
                state.collectors[collector] = Collector::Idle;
            }
            _ => {}
        }
    }

    /// The index is lost, and the next epoch has begun: nobody does anything any more that takes a lease under the
    /// old one. What is on the way to the store may still arrive.
    fn begin_epoch(&self, state: &mut State) {
        state.epoch += 1;
        state.facts = Facts::default();
        for push in &mut state.pushes {
            if !matches!(push.step, Step::Start | Step::Acknowledged) {
                push.step = Step::Over;
            }
        }
        for collector in &mut state.collectors {
            if !matches!(collector, Collector::Removing(_)) || self.checks(Check::RemovalsExpire) {
                *collector = Collector::Idle;
            }
        }
        for deletion in &mut state.deletions {
            if matches!(deletion, Deletion::Removing(_)) {
                *deletion = Deletion::Over;
            }
        }
        state.adopters.fill(Adopter::Idle);
    }

    fn adopter_actions(&self, state: &State, adopter: usize, actions: &mut Vec<Action>) {
        match state.adopters[adopter] {
            Adopter::Idle => {
                let unreconciled = (0..2).filter(|&repository| !state.facts.shards[repository].reconciled);
                actions.extend(unreconciled.map(|repository| Action::ListForAdoption(adopter, repository)));
            }
            Adopter::Listed { holds: Holds::Seen(_), .. } => actions.push(Action::AdoptData(adopter)),
            Adopter::Listed { holds: Holds::Data(_), .. } => actions.push(Action::AdoptLink(adopter)),
            Adopter::Listed { left: 0, manifest: Some(_), .. } => actions.push(Action::AdoptManifest(adopter)),
            Adopter::Listed { left: 0, .. } => actions.push(Action::MarkReconciled(adopter)),
            Adopter::Listed { left, .. } => {
                actions.extend(each(left).take(1).map(|link| Action::LookForData(adopter, link)));
            }
        }
    }

    fn next_adoption(&self, state: &mut State, action: Action) {
        match action {
            Action::ListForAdoption(adopter, repository) => {
                let left = each(state.links).filter(|&link| self.repository(link) == repository);
                let left = left.fold(0, |left, link| left | 1 << link);
                let manifest = each(state.manifests).find(|&object| self.repository(object) == repository);
                state.adopters[adopter] = Adopter::Listed { repository, left, manifest, holds: Holds::Nothing };
            }
            Action::LookForData(adopter, link) => {
                let Some(data) = self.data_of(state, link) else { return };
                let Adopter::Listed { left, holds, .. } = &mut state.adopters[adopter] else { return };
                *left &= !(1 << link);
                if has(state.data, data) {
                    *holds = Holds::Seen(link);
                }
            }
            Action::AdoptData(adopter) => {
                let Adopter::Listed { holds: Holds::Seen(link), .. } = state.adopters[adopter] else { return };
                let Some(data) = self.data_of(state, link) else { return };
                let is_open = !state.facts.shards[self.repository(data)].settled || !self.checks(Check::AdoptUnsettled);
                let is_adopted = is_open && state.facts.data[data] != Data::Dying;
                if is_adopted {
                    state.facts.data[data] = Data::Live;
                    self.add_user(state, data, link);
                }
                let Adopter::Listed { holds, .. } = &mut state.adopters[adopter] else { return };
                *holds = if is_adopted { Holds::Data(link) } else { Holds::Nothing };
            }
            Action::AdoptLink(adopter) => {
                let Adopter::Listed { repository, holds, .. } = &mut state.adopters[adopter] else { return };
                let repository = *repository;
                let Holds::Data(link) = std::mem::replace(holds, Holds::Nothing) else { return };
                let shard = &mut state.facts.shards[repository];
                let is_noted = has(shard.attempts, link) || has(shard.trash, link);
                let is_known = shard.link == Some(link) || (is_noted && self.checks(Check::AdoptUnknown));
                if is_known || (shard.reconciled && self.checks(Check::AdoptOnce)) {
                    return;
                }
                match shard.link {
                    None => shard.link = Some(link),
                    Some(_) => shard.trash |= 1 << link,
                }
            }
            Action::AdoptManifest(adopter) => {
                let Adopter::Listed { repository, manifest, .. } = &mut state.adopters[adopter] else { return };
                let object = manifest.take();
                let shard = &mut state.facts.shards[*repository];
                if shard.link.is_some() && (!shard.reconciled || !self.checks(Check::AdoptOnce)) {
                    shard.manifest = shard.manifest.or(object);
                }
            }
            Action::MarkReconciled(adopter) => {
                let Adopter::Listed { repository, .. } = state.adopters[adopter] else { return };
                state.facts.shards[repository].reconciled = true;
                state.adopters[adopter] = Adopter::Idle;
            }
            Action::Settle(repository) => state.facts.shards[repository].settled = true,
            _ => {}
        }
    }

    /// Every link that is a fact has its bytes, and so has every manifest that is owed.
    fn is_whole(&self, state: &State) -> bool {
        let has_bytes = |link: usize| self.data_of(state, link).is_some_and(|data| has(state.data, data));
        let is_linked = |repository: usize| {
            let shard = &state.facts.shards[repository];
            let of = |&number: &usize| self.repository(number) == repository;
            if shard.reconciled {
                return shard.link.is_some() && shard.manifest.is_some_and(|object| has(state.manifests, object));
            }
            let is_manifest = each(state.manifests).any(|object| of(&object));
            is_manifest && each(state.links).filter(of).any(has_bytes)
        };
        let links = state.facts.shards.iter().filter_map(|shard| shard.link);
        links.into_iter().all(has_bytes) && (0..2).all(|repository| !state.owed[repository] || is_linked(repository))
    }

    /// Once nothing more is to be done, nothing is left that nothing needs.
    fn is_tidy(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.work(state, &mut actions);
        if !actions.is_empty() {
            return true;
        }
        let linked = state.facts.shards.iter().filter_map(|shard| shard.link);
        let (links, data) = linked.fold((0, 0), |(links, data), link| {
            (links | 1 << link, data | self.data_of(state, link).map_or(0, |data| 1 << data))
        });
        let is_known = |number: usize| state.facts.data[number] == Data::Absent || has(data, number);
        state.links == links && state.data == data && (0..MOST).all(is_known)
    }

    /// All that may happen but the loss of the index.
    fn work(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.pushes.len()).for_each(|push| self.push_actions(state, push, actions));
        (0..state.deletions.len()).for_each(|deletion| self.deletion_actions(state, deletion, actions));
        (0..state.adopters.len()).for_each(|adopter| self.adopter_actions(state, adopter, actions));
        (0..state.collectors.len()).for_each(|collector| self.collector_actions(state, collector, actions));
        let attempts = state.facts.shards.iter().flat_map(|shard| each(shard.attempts));
        actions.extend(attempts.map(Action::ExpireAttempt));
        if state.facts.shards.iter().all(|shard| shard.reconciled) {
            let unsettled = (0..2).filter(|&repository| !state.facts.shards[repository].settled);
            actions.extend(unsettled.map(Action::Settle));
        }
    }
}

impl Model for Blobs {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        assert!(self.pushes.len() < MOST, "a set holds {MOST} numbers");
        let mut facts = Facts::default();
        for shard in &mut facts.shards {
            (shard.reconciled, shard.settled) = (true, true);
        }
        let there = if self.first == First::Nothing { 0 } else { 1 << self.first() };
        let is_image = self.first == First::Image;
        if there != 0 {
            facts.shards[0].link = Some(self.first());
            facts.shards[0].manifest = is_image.then_some(self.first());
            facts.data[self.first()] = Data::Live;
            if self.checks(Check::Users) {
                facts.users[self.first()] = there;
            }
        }
        let push = Push { step: Step::Start, epoch: 0, data: None, own: Put::No, link: Put::No, is_there: false };
        vec![State {
            epoch: 0,
            facts,
            data: there,
            links: there,
            manifests: if is_image { there } else { 0 },
            owed: [is_image, false],
            pushes: vec![push; self.pushes.len()],
            collectors: vec![Collector::Idle; self.collectors],
            adopters: vec![Adopter::Idle; self.adopters],
            deletions: vec![Deletion::NotBegun; self.deletes],
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.work(state, actions);
        if state.epoch < self.losses {
            actions.push(Action::BeginEpoch);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.next_push(&mut state, action);
        self.next_manifest(&mut state, action);
        self.next_look(&mut state, action);
        self.next_removal(&mut state, action);
        self.next_adoption(&mut state, action);
        if action == Action::BeginEpoch {
            self.begin_epoch(&mut state);
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is there is whole", |model: &Self, state: &State| model.is_whole(state)),
            Property::always("what nothing needs goes", |model: &Self, state: &State| model.is_tidy(state)),
        ]
    }
}
