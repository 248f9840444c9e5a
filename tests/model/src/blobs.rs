//! The life of blobs in two repositories: uploads, pushes, mounts, manifests that need them, collection, the loss of
//! the index, adoption.
//!
//! Each repository has its shard, and a data object's home is the shard of the repository whose push wrote it. Any
//! request may arrive late or never, any actor may stop anywhere, and age is hardly ever assumed: collection may take
//! what nothing needs at any moment, so nothing here rests on fast clients, and only what an upload has put aside
//! rests on the grace.

mod action;
mod adopt;
mod blob;
mod collect;
mod manifest;
mod promise;
mod state;
mod upload;

use stateright::{Model, Property};

pub use action::Action;
use state::{Adopter, Collector, Data, Deletion, Facts, Push, Step, has};
pub use state::{Removed, Set, State};

/// The promise that what is acknowledged, and what is a fact, can be read.
pub const WHOLE: &str = "what is there is whole";
/// The promise that a manifest whose delete was acknowledged isn't there again.
pub const AWAY: &str = "what was deleted stays away";
/// The promise that there is no garbage for ever.
pub const TIDY: &str = "what nothing needs goes";

/// What the protocol checks. Each can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// An attempt is noted before anything is put for it.
    NoteFirst,
    /// A link is committed once its bytes are confirmed.
    BytesFirst,
    /// A link is committed only while its attempt is noted.
    CommitNoted,
    /// An attempt that failed is forgotten, and what it wrote thrown away, only while it is noted.
    ForgetNoted,
    /// A link, and data of its own, become facts in one batch.
    LinkBesideData,
    /// Who links data is noted beside the data.
    Users,
    /// Data is let go of by a batch that checks that it has no users.
    UsersInBatch,
    /// Dying data is not joined.
    JoinRefusesDying,
    /// An upload is closed only if nobody has moved it.
    CloseUnmoved,
    /// More is appended to an upload only if nobody has moved it.
    AppendUnmoved,
    /// What the record of an upload says was put aside is looked for.
    ConfirmAside,
    /// What was put aside longer ago than the grace is not taken up.
    AsideYoung,
    /// A manifest is reserved only if the blobs that it needs are linked.
    LinksPresent,
    /// A manifest that is being pushed pins the links that it needs.
    Pins,
    /// It pins those as well that an image index names, though they needn't be there.
    PinChildren,
    /// A link is unlinked by a batch that checks that no manifest needs it.
    RefsInBatch,
    /// A manifest is committed only while its intent is there.
    IntentThere,
    /// A manifest is deleted only while nobody pushes it.
    DeleteUnnamed,
    /// A manifest's delete is acknowledged once its object is gone.
    DeleteConfirmed,
    /// So are the objects of other pushes of the same manifest.
    DeleteSeconds,
    /// A key is never used again.
    FreshKeys,
    /// The store refuses a removal that comes too late.
    RemovalsExpire,
    /// The trash is emptied only in a settled shard.
    HoldTrash,
    /// Adoption passes over a link of which the shard has a note.
    AdoptUnknown,
    /// What was listed is adopted only while its repository isn't reconciled.
    AdoptOnce,
    /// A link is adopted only if its bytes are there.
    AdoptWhole,
    /// A manifest is adopted only if the links that it needs are.
    AdoptNeeds,
    /// Data is adopted only while its home isn't settled.
    AdoptUnsettled,
    /// Shards are settled once every repository is reconciled.
    SettleLast,
    /// Data is let go of only in a settled shard.
    ReleaseSettled,
    /// Nobody begins to push to a repository that isn't reconciled.
    ReconcileFirst,
    /// Who looks for unknown data reads the notes before the facts.
    NotesFirst,
    /// A use is stale only if there is no attempt of that link either.
    AuditAttempts,
    /// A manifest's object is unknown only if nobody pushes that manifest.
    ScanIntents,
}

impl Check {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::NoteFirst,
        Self::BytesFirst,
        Self::CommitNoted,
        Self::ForgetNoted,
        Self::LinkBesideData,
        Self::Users,
        Self::UsersInBatch,
        Self::JoinRefusesDying,
        Self::CloseUnmoved,
        Self::AppendUnmoved,
        Self::ConfirmAside,
        Self::AsideYoung,
        Self::LinksPresent,
        Self::Pins,
        Self::PinChildren,
        Self::RefsInBatch,
        Self::IntentThere,
        Self::DeleteUnnamed,
        Self::DeleteConfirmed,
        Self::DeleteSeconds,
        Self::FreshKeys,
        Self::RemovalsExpire,
        Self::HoldTrash,
        Self::AdoptUnknown,
        Self::AdoptOnce,
        Self::AdoptWhole,
        Self::AdoptNeeds,
        Self::AdoptUnsettled,
        Self::SettleLast,
        Self::ReleaseSettled,
        Self::ReconcileFirst,
        Self::NotesFirst,
        Self::AuditAttempts,
        Self::ScanIntents,
    ];
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// A blob shall be in a repository: the first number says in which, the second which blob.
    Blob(usize, usize),
    /// The first blob's bytes shall be put aside, for an upload to the first repository that any replica may go on
    /// with.
    Aside,
    /// That upload shall be closed.
    Close,
    /// The manifest shall be in this repository.
    Manifest(usize),
}

/// What is there in the beginning, in the first repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// Nothing.
    Nothing,
    /// All blobs that the manifest names.
    Blobs,
    /// And the manifest.
    Image,
}

/// What is tried, and without which check.
#[derive(Clone, Debug)]
pub struct Blobs {
    /// What clients want, each once, all at the same time.
    pub pushes: Vec<Wish>,
    /// What is there before.
    pub first: First,
    /// The blobs that the manifest needs.
    pub needs: Set,
    /// The blobs that it names, as an image index does, and that needn't be there.
    pub children: Set,
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
        Self {
            pushes: vec![Wish::Manifest(0)],
            first: First::Blobs,
            needs: 0b01,
            children: 0,
            deletes: 0,
            collectors: 1,
            losses: 0,
            adopters: 0,
            without: Vec::new(),
        }
    }
}

/// The most links and data objects: one of each push, and one of each blob for the beginning.
const MOST: usize = 8;

/// The most blobs.
const BLOBS: usize = 2;

impl Blobs {
    fn checks(&self, check: Check) -> bool {
        !self.without.contains(&check)
    }

    /// The blobs that the manifest names.
    fn named(&self) -> Set {
        self.needs | self.children
    }

    /// The number of a blob's link and data in the beginning, and of the manifest's object.
    fn first(&self, blob: usize) -> usize {
        self.pushes.len() + blob
    }

    /// All numbers of links, data objects and manifests' objects.
    fn numbers(&self) -> std::ops::Range<usize> {
        0..self.first(BLOBS)
    }

    /// Whose link, data or object that is.
    fn repository(&self, number: usize) -> usize {
        match self.pushes.get(number) {
            Some(Wish::Blob(repository, _) | Wish::Manifest(repository)) => *repository,
            Some(Wish::Aside | Wish::Close) | None => 0,
        }
    }

    /// Of which blob a link or data object is.
    fn blob(&self, number: usize) -> usize {
        match self.pushes.get(number) {
            Some(Wish::Blob(_, blob)) => *blob,
            Some(_) => 0,
            None => number - self.pushes.len(),
        }
    }

    fn is_manifest(&self, number: usize) -> bool {
        matches!(self.pushes.get(number), Some(Wish::Manifest(_)))
    }

    /// All that may happen but the loss of the index.
    fn work(&self, state: &State, actions: &mut Vec<Action>) {
        for push in 0..self.pushes.len() {
            match self.pushes[push] {
                Wish::Blob(..) => self.blob_actions(state, push, actions),
                Wish::Aside => self.aside_actions(state, push, actions),
                Wish::Close => self.close_actions(state, push, actions),
                Wish::Manifest(_) => self.manifest_actions(state, push, actions),
            }
        }
        self.expiry_actions(state, actions);
        (0..state.deletions.len()).for_each(|deletion| self.deletion_actions(state, deletion, actions));
        (0..state.adopters.len()).for_each(|adopter| self.adopter_actions(state, adopter, actions));
        (0..state.collectors.len()).for_each(|collector| self.collector_actions(state, collector, actions));
        self.settle_actions(state, actions);
    }

    /// The index is lost, and the next epoch has begun: nobody does anything any more that takes a lease under the
    /// old one. What is on the way to the store may still arrive.
    fn begin_epoch(&self, state: &mut State) {
        state.epoch += 1;
        state.facts = Facts::default();
        state.is_unpushed = false;
        for push in &mut state.pushes {
            if push.step != Step::Start {
                push.step = Step::Over;
            }
        }
        let is_refused = self.checks(Check::RemovalsExpire);
        for collector in &mut state.collectors {
            if !matches!(collector, Collector::Removing(_)) || is_refused {
                *collector = Collector::Idle;
            }
        }
        for deletion in &mut state.deletions {
            let is_on_the_way = matches!(deletion, Deletion::Removing(_));
            if *deletion != Deletion::NotBegun && (!is_on_the_way || is_refused) {
                *deletion = Deletion::Over;
            }
        }
        state.adopters.fill(Adopter::Idle);
    }
}

impl Model for Blobs {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        assert!(self.first(BLOBS) <= MOST, "a set holds {MOST} numbers");
        let mut facts = Facts::default();
        for shard in &mut facts.shards {
            (shard.reconciled, shard.settled) = (true, true);
        }
        let (mut there, mut manifests) = (0, 0);
        for blob in (0..BLOBS).filter(|&blob| self.first != First::Nothing && has(self.named(), blob)) {
            let number = self.first(blob);
            there |= 1 << number;
            facts.shards[0].links[blob] = Some(number);
            facts.data[number] = Data::Live;
            if self.checks(Check::Users) {
                facts.users[number] = 1 << number;
            }
        }
        if self.first == First::Image {
            manifests = 1 << self.first(0);
            facts.shards[0].manifest = Some(self.first(0));
        }
        vec![State {
            epoch: 0,
            facts,
            data: there,
            links: there,
            manifests,
            old: 0,
            owed: [(self.first == First::Image).then_some(self.named()), None],
            is_unpushed: false,
            is_gone: false,
            pushes: vec![Push::default(); self.pushes.len()],
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
        self.next_blob(&mut state, action);
        self.next_upload(&mut state, action);
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
            Property::always(WHOLE, |model: &Self, state: &State| model.is_whole(state)),
            Property::always(AWAY, |model: &Self, state: &State| model.stays_away(state)),
            Property::always(TIDY, |model: &Self, state: &State| model.is_tidy(state)),
        ]
    }
}
