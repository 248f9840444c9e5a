//! The life of one tag: writes, reads, recovery, the trimming of its history, the loss of the index, the next epoch,
//! reconciliation.
//!
//! Two replicas write and read one tag. Any request may arrive late or never, any of them may stop anywhere, a
//! lease may run out at any time, and the index may be lost in the ways in which Redis loses things.

mod action;
mod epoch;
mod read;
mod reconcile;
mod state;
mod work;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use crate::linear::{Monitor, Value, Wish};

pub use action::Action;
pub use state::State;
use state::{Epoch, Facts, Identity, Object, Replica, Revision, Server};

/// The promise that the tag is linearizable.
pub const EXPLAINED: &str = "every answer can be explained";

/// What the protocol checks. Each can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Who reads a tag with an open intent asks the bucket.
    OpenIntents,
    /// A revision that came past its deadline doesn't count.
    Deadlines,
    /// A commit makes the tag the greatest of what it was and what was written.
    Greatest,
    /// A write is answered once its revision counts.
    AnswerOnceItCounts,
    /// A push of what the tag is already does nothing only where nobody else writes the tag.
    SameAlone,
    /// Every batch, and what is missed, is believed only with the shard's fence.
    Fence,
    /// An index is known by its replication id too, not by its run id alone.
    ReplicationId,
    /// An index is asked, and a batch sent, only while the lease lasts.
    LeaseChecked,
    /// A lease belongs to one connection.
    LeaseOfConnection,
    /// A lease counts from the moment before `epochs/` is listed.
    LeaseFromQuestion,
    /// A part of an epoch's number is random, so that no two are the same.
    RandomEpoch,
    /// The next epoch waits for the leases under the old one.
    WaitForLeases,
    /// The next epoch waits for the deadlines that were fixed under the old one.
    WaitForDeadlines,
    /// Who has waited sets the fence only if no newer epoch has been written meanwhile.
    NewestAfterWait,
    /// A new epoch starts empty, on whatever server.
    StartsEmpty,
    /// Who asks the bucket shares an answer only if it was asked for after they came.
    ShareLater,
    /// Until the repository is reconciled, its tags are read from the bucket.
    Reconciled,
    /// Whether it is reconciled is asked before the tag is.
    ReconciledFirst,
    /// A shard is settled once each repository that the bucket has is reconciled.
    SettleReconciled,
    /// Who makes a tag that mustn't be there reserves only in a reconciled repository, without an open intent.
    CreateAlone,
    /// Recovery looks only once the deadline has passed.
    RecoverLate,
    /// The manifest is confirmed before its revision is sent.
    ManifestFirst,
    /// A tag is deleted only while nobody else writes it.
    DeleteAlone,
    /// A deleted tag stays as a fact.
    DeletedStays,
    /// What was listed is adopted only while nobody has reconciled the repository.
    AdoptOnce,
    /// Tag, open intents and fence are read in one snapshot.
    OneSnapshot,
    /// The history of a tag that is gone goes oldest first, each removal confirmed, its end last.
    TrimOldestFirst,
    /// A tag is forgotten only if it still is what it was, and nobody writes it.
    TrimAlone,
    /// A revision that is gone when it is read was outranked: who listed it lists anew.
    LookAgain,
}

impl Check {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::OpenIntents,
        Self::Deadlines,
        Self::Greatest,
        Self::AnswerOnceItCounts,
        Self::SameAlone,
        Self::Fence,
        Self::ReplicationId,
        Self::LeaseChecked,
        Self::LeaseOfConnection,
        Self::LeaseFromQuestion,
        Self::RandomEpoch,
        Self::WaitForLeases,
        Self::WaitForDeadlines,
        Self::NewestAfterWait,
        Self::StartsEmpty,
        Self::ShareLater,
        Self::Reconciled,
        Self::ReconciledFirst,
        Self::SettleReconciled,
        Self::CreateAlone,
        Self::RecoverLate,
        Self::ManifestFirst,
        Self::DeleteAlone,
        Self::DeletedStays,
        Self::AdoptOnce,
        Self::OneSnapshot,
        Self::TrimOldestFirst,
        Self::TrimAlone,
        Self::LookAgain,
    ];
}

/// How an index is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// A replica that lacks the last writes takes over; the old master goes on.
    FailOver,
    /// After a fail-over, the old master is filled from the new one and takes over again.
    FailBack,
    /// The server starts anew, empty.
    Wipe,
    /// The server is emptied in place, and its connections stay.
    Flush,
}

/// What is tried, and without which check.
#[derive(Clone, Debug)]
pub struct Tags {
    /// The writes; the first is by the first replica, the second by the other, and so on.
    pub writes: Vec<Wish>,
    /// How many read at the same time, as often as they like.
    pub readers: usize,
    /// What the tag points at in the beginning; a tag that points at nothing has never been there.
    pub first: Value,
    /// What may be lost, each once.
    pub losses: Vec<Loss>,
    /// How many finish writes whose writers stopped.
    pub recoverers: usize,
    /// How many trim the history.
    pub trimmers: usize,
    /// How many begin an epoch, each once.
    pub beginners: usize,
    /// How many reconcile, and settle the shard.
    pub reconcilers: usize,
    /// The checks that are left out.
    pub without: Vec<Check>,
}

impl Default for Tags {
    fn default() -> Self {
        Self {
            writes: vec![Wish::Push(1), Wish::Push(2)],
            readers: 1,
            first: Some(0),
            losses: Vec::new(),
            recoverers: 1,
            trimmers: 0,
            beginners: 0,
            reconcilers: 0,
            without: Vec::new(),
        }
    }
}

impl Tags {
    fn checks(&self, check: Check) -> bool {
        !self.without.contains(&check)
    }

    /// The epoch of the beginning, which is settled.
    const FIRST: Epoch = Epoch { generation: 1, random: 0 };
}

impl Model for Tags {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let revision = Revision { epoch: Self::FIRST, counter: 0 };
        let identity = Identity { run: 0, replication: 0 };
        let tag = self.first.is_some().then_some((revision, self.first));
        let facts = Facts { tag, reconciled: true, ..Facts::default() };
        let object = self.first.map(|_| Object { revision, to: self.first, in_time: true });
        let replica = Replica { server: 0, asked: None, lease: Some(Self::FIRST) };
        vec![State {
            monitor: Monitor::new(self.first, self.writes.len(), self.readers),
            servers: vec![Server { identity, fence: Some(Self::FIRST), facts: BTreeMap::from([(Self::FIRST, facts)]) }],
            copy: None,
            epochs: BTreeMap::from([(Self::FIRST, identity)]),
            objects: BTreeSet::from_iter(object),
            replicas: vec![replica; 2],
            writes: vec![state::Write::default(); self.writes.len()],
            reads: vec![state::Read::Idle; self.readers],
            recoveries: vec![state::Recovery::Idle; self.recoverers],
            trims: vec![state::Trim::Idle; self.trimmers],
            beginnings: vec![state::Beginning::Idle; self.beginners],
            reconciliations: vec![state::Reconciliation::Idle; self.reconcilers],
            lost: Vec::new(),
            drawn: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.writes.len()).for_each(|write| self.write_actions(state, write, actions));
        (0..self.readers).for_each(|reader| self.read_actions(state, reader, actions));
        (0..state.replicas.len()).for_each(|replica| self.replica_actions(state, replica, actions));
        (0..self.recoverers).for_each(|recoverer| self.recovery_actions(state, recoverer, actions));
        (0..self.trimmers).for_each(|trimmer| self.trim_actions(state, trimmer, actions));
        (0..self.beginners).for_each(|beginner| self.beginning_actions(state, beginner, actions));
        (0..self.reconcilers).for_each(|reconciler| self.reconciliation_actions(state, reconciler, actions));
        self.loss_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.next_write(&mut state, &action);
        self.next_read(&mut state, &action);
        self.next_replica(&mut state, &action);
        self.next_recovery(&mut state, &action);
        self.next_trim(&mut state, &action);
        self.next_beginning(&mut state, &action);
        self.next_reconciliation(&mut state, &action);
        match action {
            Action::CopyToReplica => state.copy = Some(state.servers[0].clone()),
            Action::Lose(loss) => Self::lose(&mut state, loss),
            _ => {}
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(EXPLAINED, |_, state: &State| state.monitor.is_explained())]
    }
}
