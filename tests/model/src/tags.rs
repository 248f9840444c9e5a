//! The life of one tag: writes, reads, recovery, the loss of the index, the next epoch, reconciliation.
//!
//! Two replicas write and read one tag. Any request may arrive late or never, any of them may stop anywhere, a
//! lease may run out at any time, and the index may be lost in the ways in which Redis loses things.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Model, Property};

use crate::linear::{Answer, Monitor, Value, Wish};

/// What the protocol checks. Each can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Who reads a tag with an open intent asks the bucket.
    OpenIntents,
    /// A revision that came past its deadline doesn't count.
    Deadlines,
    /// Every batch, and what is missed, is believed only with the shard's fence.
    Fence,
    /// An index is known by its replication id too, not by its run id alone.
    ReplicationId,
    /// A lease belongs to one connection.
    LeaseOfConnection,
    /// A part of an epoch's number is random, so that no two are the same.
    RandomEpoch,
    /// The next epoch waits for the leases under the old one.
    WaitForLeases,
    /// The next epoch waits for the deadlines that were fixed under the old one.
    WaitForDeadlines,
    /// Until the repository is reconciled, its tags are read from the bucket.
    Reconciled,
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
    /// Tag, open intents, `reconciled` and fence are read in one snapshot.
    OneSnapshot,
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
    /// What the tag points at in the beginning.
    pub first: Value,
    /// What may be lost, each once.
    pub losses: Vec<Loss>,
    /// How many finish writes whose writers stopped.
    pub recoverers: usize,
    /// How many begin an epoch, each once.
    pub beginners: usize,
    /// How many reconcile.
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
            beginners: 0,
            reconcilers: 0,
            without: Vec::new(),
        }
    }
}

/// An epoch's number. The greatest is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch {
    generation: u8,
    random: u8,
}

/// A position in the tag's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision {
    epoch: Epoch,
    counter: u8,
}

/// An index, as it names itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    run: u8,
    replication: u8,
}

/// What an index knows under one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Facts {
    counter: u8,
    tag: Option<(Revision, Value)>,
    /// The open intents, by write.
    open: BTreeMap<usize, Revision>,
    reconciled: bool,
}

impl Facts {
    fn raise(&mut self, revision: Revision, to: Value) {
        if self.tag.is_none_or(|(there, _)| there < revision) {
            self.tag = Some((revision, to));
        }
    }
}

/// An index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Server {
    identity: Identity,
    fence: Option<Epoch>,
    facts: BTreeMap<Epoch, Facts>,
}

impl Server {
    fn empty(identity: Identity) -> Self {
        Self { identity, fence: None, facts: BTreeMap::new() }
    }
}

/// Which index, and which epoch, a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    server: usize,
    epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    server: usize,
    lease: Option<Epoch>,
}

/// What became of a request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Put {
    No,
    Sent,
    Landed,
}

/// How far a write is. A writer that stopped is one that takes no further step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    NotCalled,
    Called,
    /// It has seen what the tag is.
    Looked(Option<(Revision, Value)>),
    /// Its reservation is on the way.
    Reserving(Place, Option<(Revision, Value)>),
    Reserved(Place, Revision),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    step: Step,
    overdue: bool,
    manifest: Put,
    revision: Put,
    commit: Put,
    answered: bool,
}

/// A revision in the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Object {
    revision: Revision,
    to: Value,
    in_time: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Read {
    Idle,
    Asked(Place),
    /// Tag and open intents were read, in a snapshot of their own.
    Half(Place, Option<(Revision, Value)>, bool),
    Bucket,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Recovery {
    Idle,
    Looked { place: Place, write: usize, counts: bool },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Beginning {
    Idle,
    /// It knows the number of the next epoch, and for which server.
    Listed(usize, u8),
    Written(Place),
    Waited(Place),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reconciliation {
    Idle,
    Listed(Place, Option<(Revision, Value)>),
    Adopted(Place),
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    monitor: Monitor,
    servers: Vec<Server>,
    /// What the replica of the first server has of it.
    copy: Option<Server>,
    epochs: BTreeMap<Epoch, Identity>,
    objects: BTreeSet<Object>,
    replicas: Vec<Replica>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    recoveries: Vec<Recovery>,
    beginnings: Vec<Beginning>,
    reconciliations: Vec<Reconciliation>,
    lost: Vec<Loss>,
    drawn: u8,
}

/// Something that happens. Numbers name a write, a replica, or one of those who do the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is named as the step of the protocol that it is")]
pub enum Action {
    Call(usize),
    Look(usize),
    SendReserve(usize),
    Reserve(usize),
    DeadlinePasses(usize),
    SendManifest(usize),
    ManifestLands(usize),
    SendRevision(usize),
    RevisionLands(usize),
    Answer(usize),
    SendCommit(usize),
    Commit(usize),
    Lease(usize),
    LeaseRunsOut(usize),
    Reconnect(usize, usize),
    Read(usize, usize),
    Ask(usize),
    AskReconciled(usize),
    ReadFromBucket(usize),
    Recover(usize, usize, usize),
    CommitRecovery(usize),
    ListEpochs(usize, usize),
    WriteEpoch(usize),
    Wait(usize),
    SetFence(usize),
    ListForAdoption(usize, usize),
    Adopt(usize),
    MarkReconciled(usize),
    CopyToReplica,
    Lose(Loss),
}

impl Tags {
    fn checks(&self, check: Check) -> bool {
        !self.without.contains(&check)
    }

    fn counts(&self, state: &State, object: &Object) -> bool {
        object.in_time && (self.checks(Check::ManifestFirst) || self.has_manifest(state, object))
    }

    fn has_manifest(&self, state: &State, object: &Object) -> bool {
        let of = |write: &Write| matches!(write.step, Step::Reserved(_, revision) if revision == object.revision);
        state.writes.iter().filter(|write| of(write)).all(|write| object.to.is_none() || write.manifest == Put::Landed)
    }

    /// The newest revision that counts, from the bucket alone.
    fn read_from_bucket(&self, state: &State) -> Option<(Revision, Value)> {
        let counting = state.objects.iter().filter(|object| self.counts(state, object));
        counting.map(|object| (object.revision, object.to)).max()
    }

    fn fenced(&self, state: &State, place: Place) -> bool {
        !self.checks(Check::Fence) || state.servers[place.server].fence == Some(place.epoch)
    }

    /// The facts under an epoch, for a batch.
    fn facts<'a>(&self, state: &'a mut State, place: Place) -> Option<&'a mut Facts> {
        let fenced = self.fenced(state, place);
        fenced.then(|| state.servers[place.server].facts.entry(place.epoch).or_default())
    }

    fn is_same(&self, one: Identity, other: Identity) -> bool {
        one.run == other.run && (!self.checks(Check::ReplicationId) || one.replication == other.replication)
    }

    /// Where a replica may ask, if it has a lease.
    fn place(state: &State, replica: usize) -> Option<Place> {
        let Replica { server, lease } = state.replicas[replica];
        lease.map(|epoch| Place { server, epoch })
    }

    fn replica_of(write: usize) -> usize {
        write % 2
    }

    fn target(&self, write: usize) -> Value {
        match self.writes[write] {
            Wish::Push(to) | Wish::Create(to) => Some(to),
            Wish::Delete | Wish::DeleteManifest(_) => None,
        }
    }

    fn looks_first(&self, write: usize) -> bool {
        !matches!(self.writes[write], Wish::Push(_))
    }

    /// What a writer sees who has to know what the tag is: nothing while it has to wait.
    fn look(&self, state: &State, write: usize) -> Option<Option<(Revision, Value)>> {
        let place = Self::place(state, Self::replica_of(write))?;
        let facts = state.servers[place.server].facts.get(&place.epoch)?;
        let waits = match self.writes[write] {
            Wish::Create(_) => self.checks(Check::CreateAlone) && (!facts.reconciled || !facts.open.is_empty()),
            _ => !facts.reconciled || (self.checks(Check::DeleteAlone) && !facts.open.is_empty()),
        };
        (self.fenced(state, place) && !waits).then_some(facts.tag)
    }

    /// Whether a reservation is taken.
    fn may_reserve(&self, facts: &Facts, write: usize, looked: Option<(Revision, Value)>) -> bool {
        match self.writes[write] {
            Wish::Push(_) => true,
            Wish::Create(_) => {
                let alone = facts.reconciled && facts.open.is_empty();
                facts.tag == looked && (alone || !self.checks(Check::CreateAlone))
            }
            Wish::Delete | Wish::DeleteManifest(_) => {
                facts.tag == looked && (facts.open.is_empty() || !self.checks(Check::DeleteAlone))
            }
        }
    }

    fn reserve(&self, state: &mut State, write: usize) {
        let Step::Reserving(place, looked) = state.writes[write].step.clone() else { return };
        let Some(facts) = self.facts(state, place) else {
            state.writes[write].step = Step::Over;
            return;
        };
        state.writes[write].step = if self.may_reserve(facts, write, looked) {
            facts.counter += 1;
            let revision = Revision { epoch: place.epoch, counter: facts.counter };
            facts.open.insert(write, revision);
            Step::Reserved(place, revision)
        } else {
            Step::Called
        };
    }

    /// The batch that makes a write a fact.
    fn commit(&self, state: &mut State, place: Place, write: usize, to: Value) {
        let stays = self.checks(Check::DeletedStays) || to.is_some();
        let Some(facts) = self.facts(state, place) else { return };
        let Some(revision) = facts.open.remove(&write) else { return };
        facts.raise(revision, to);
        if !stays && facts.tag == Some((revision, to)) {
            facts.tag = None;
        }
    }

    fn answer_look(&self, state: &mut State, write: usize, there: Option<(Revision, Value)>) {
        let value = there.and_then(|(_, value)| value);
        let answer = match (self.writes[write], value) {
            (Wish::Create(_), Some(_)) | (Wish::Delete, None) => Some(Answer::Refused),
            (Wish::DeleteManifest(at), value) if value != Some(at) => Some(Answer::Done),
            _ => None,
        };
        state.writes[write].step = match answer {
            Some(answer) => {
                state.monitor.answer(write, answer);
                state.writes[write].answered = true;
                Step::Over
            }
            None => Step::Looked(there),
        };
    }

    fn own(&self, state: &State, write: usize) -> Option<(Place, Object)> {
        let Step::Reserved(place, revision) = state.writes[write].step else { return None };
        let to = self.target(write);
        let own = state.objects.iter().find(|object| object.revision == revision && object.to == to);
        own.map(|object| (place, *object))
    }

    fn write_actions(&self, state: &State, write: usize, actions: &mut Vec<Action>) {
        let Write { step, overdue, manifest, revision, commit, answered } = &state.writes[write];
        let is_leased = Self::place(state, Self::replica_of(write)).is_some();
        match step {
            Step::NotCalled => actions.push(Action::Call(write)),
            Step::Called if self.looks_first(write) => {
                if self.look(state, write).is_some() {
                    actions.push(Action::Look(write));
                }
            }
            Step::Called | Step::Looked(_) if is_leased => actions.push(Action::SendReserve(write)),
            Step::Reserving(..) => actions.push(Action::Reserve(write)),
            Step::Reserved(..) => {
                let needs_manifest = self.target(write).is_some();
                let must_wait = needs_manifest && self.checks(Check::ManifestFirst) && *manifest != Put::Landed;
                if *manifest == Put::No && needs_manifest {
                    actions.push(Action::SendManifest(write));
                } else if *revision == Put::No && !must_wait {
                    actions.push(Action::SendRevision(write));
                }
                if let Some((_, object)) = self.own(state, write)
                    && self.counts(state, &object)
                {
                    if !answered {
                        actions.push(Action::Answer(write));
                    }
                    if *commit == Put::No {
                        actions.push(Action::SendCommit(write));
                    }
                }
            }
            Step::Called | Step::Looked(_) | Step::Over => {}
        }
        if matches!(step, Step::Reserving(..) | Step::Reserved(..)) && !overdue {
            actions.push(Action::DeadlinePasses(write));
        }
        let on_the_way = [
            (*manifest, Action::ManifestLands(write)),
            (*revision, Action::RevisionLands(write)),
            (*commit, Action::Commit(write)),
        ];
        actions.extend(on_the_way.into_iter().filter(|(put, _)| *put == Put::Sent).map(|(_, action)| action));
    }

    fn next_write(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Call(write) => {
                state.monitor.call(write, self.writes[write]);
                state.writes[write].step = Step::Called;
            }
            Action::Look(write) => {
                if let Some(there) = self.look(state, write) {
                    self.answer_look(state, write, there);
                }
            }
            Action::SendReserve(write) => {
                let looked = match state.writes[write].step {
                    Step::Looked(there) => there,
                    _ => None,
                };
                if let Some(place) = Self::place(state, Self::replica_of(write)) {
                    state.writes[write].step = Step::Reserving(place, looked);
                    state.writes[write].overdue = false;
                }
            }
            Action::Reserve(write) => self.reserve(state, write),
            Action::DeadlinePasses(write) => state.writes[write].overdue = true,
            Action::SendManifest(write) => state.writes[write].manifest = Put::Sent,
            Action::ManifestLands(write) => state.writes[write].manifest = Put::Landed,
            Action::SendRevision(write) => state.writes[write].revision = Put::Sent,
            Action::RevisionLands(write) => {
                let Step::Reserved(_, revision) = state.writes[write].step else { return };
                let in_time = !state.writes[write].overdue || !self.checks(Check::Deadlines);
                state.objects.insert(Object { revision, to: self.target(write), in_time });
                state.writes[write].revision = Put::Landed;
            }
            Action::Answer(write) => {
                state.monitor.answer(write, Answer::Done);
                state.writes[write].answered = true;
            }
            Action::SendCommit(write) => state.writes[write].commit = Put::Sent,
            Action::Commit(write) => {
                let Step::Reserved(place, _) = state.writes[write].step else { return };
                state.writes[write].commit = Put::Landed;
                self.commit(state, place, write, self.target(write));
            }
            _ => {}
        }
    }

    fn read_actions(&self, state: &State, reader: usize, actions: &mut Vec<Action>) {
        match state.reads[reader] {
            Read::Idle => actions.extend((0..state.replicas.len()).map(|replica| Action::Read(reader, replica))),
            Read::Asked(_) => actions.push(Action::Ask(reader)),
            Read::Half(..) => actions.push(Action::AskReconciled(reader)),
            Read::Bucket => actions.push(Action::ReadFromBucket(reader)),
        }
    }

    /// What the index answers a reader; `None` if it has to ask the bucket.
    fn ask(&self, state: &State, place: Place, tag: Option<(Revision, Value)>, is_open: bool) -> Option<Value> {
        let facts = state.servers[place.server].facts.get(&place.epoch);
        let is_reconciled = facts.is_some_and(|facts| facts.reconciled) || !self.checks(Check::Reconciled);
        if !is_reconciled || (is_open && self.checks(Check::OpenIntents)) {
            return None;
        }
        match tag {
            Some((_, value)) => Some(value),
            None => self.fenced(state, place).then_some(None),
        }
    }

    fn answer_read(&self, state: &mut State, reader: usize, answer: Option<Value>) {
        state.reads[reader] = match answer {
            Some(value) => {
                state.monitor.saw(reader, value);
                Read::Idle
            }
            None => Read::Bucket,
        };
    }

    fn next_read(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Read(reader, replica) => {
                state.monitor.read(reader);
                state.reads[reader] = Self::place(state, replica).map_or(Read::Bucket, Read::Asked);
            }
            Action::Ask(reader) => {
                let Read::Asked(place) = state.reads[reader] else { return };
                let facts = state.servers[place.server].facts.get(&place.epoch);
                let (tag, is_open) = facts.map_or((None, false), |facts| (facts.tag, !facts.open.is_empty()));
                if self.checks(Check::OneSnapshot) {
                    let answer = self.ask(state, place, tag, is_open);
                    self.answer_read(state, reader, answer);
                } else {
                    state.reads[reader] = Read::Half(place, tag, is_open);
                }
            }
            Action::AskReconciled(reader) => {
                let Read::Half(place, tag, is_open) = state.reads[reader] else { return };
                let answer = self.ask(state, place, tag, is_open);
                self.answer_read(state, reader, answer);
            }
            Action::ReadFromBucket(reader) => {
                let found = self.read_from_bucket(state).and_then(|(_, value)| value);
                self.answer_read(state, reader, Some(found));
            }
            _ => {}
        }
    }

    fn recovery_actions(&self, state: &State, recoverer: usize, actions: &mut Vec<Action>) {
        if state.recoveries[recoverer] != Recovery::Idle {
            actions.push(Action::CommitRecovery(recoverer));
            return;
        }
        for replica in 0..state.replicas.len() {
            let Some(place) = Self::place(state, replica) else { continue };
            let Some(facts) = state.servers[place.server].facts.get(&place.epoch) else { continue };
            for &write in facts.open.keys() {
                if state.writes[write].overdue || !self.checks(Check::RecoverLate) {
                    actions.push(Action::Recover(recoverer, replica, write));
                }
            }
        }
    }

    fn next_recovery(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Recover(recoverer, replica, write) => {
                let Some(place) = Self::place(state, replica) else { return };
                let facts = state.servers[place.server].facts.get(&place.epoch);
                let revision = facts.and_then(|facts| facts.open.get(&write)).copied();
                let is_ours = |object: &&Object| Some(object.revision) == revision && object.to == self.target(write);
                let counts = state.objects.iter().find(is_ours).is_some_and(|object| self.counts(state, object));
                state.recoveries[recoverer] = Recovery::Looked { place, write, counts };
            }
            Action::CommitRecovery(recoverer) => {
                let Recovery::Looked { place, write, counts } = state.recoveries[recoverer] else { return };
                state.recoveries[recoverer] = Recovery::Idle;
                if counts {
                    self.commit(state, place, write, self.target(write));
                } else if let Some(facts) = self.facts(state, place) {
                    facts.open.remove(&write);
                }
            }
            _ => {}
        }
    }

    fn newest(state: &State) -> Option<(Epoch, Identity)> {
        state.epochs.last_key_value().map(|(&epoch, &identity)| (epoch, identity))
    }

    /// Whether the index that a replica reaches is the one that the bucket names, and serves its epoch.
    fn may_lease(&self, state: &State, replica: usize) -> Option<Epoch> {
        let server = &state.servers[state.replicas[replica].server];
        let (epoch, identity) = Self::newest(state)?;
        (self.is_same(identity, server.identity) && server.fence == Some(epoch)).then_some(epoch)
    }

    fn replica_actions(&self, state: &State, replica: usize, actions: &mut Vec<Action>) {
        let Replica { server, lease } = state.replicas[replica];
        match (lease, self.may_lease(state, replica)) {
            (held, Some(epoch)) if held != Some(epoch) => actions.push(Action::Lease(replica)),
            _ => {}
        }
        if lease.is_some() && !state.lost.is_empty() {
            actions.push(Action::LeaseRunsOut(replica));
        }
        let others = (0..state.servers.len()).filter(|&other| other != server);
        actions.extend(others.map(|other| Action::Reconnect(replica, other)));
    }

    fn next_replica(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Lease(replica) => state.replicas[replica].lease = self.may_lease(state, replica),
            Action::LeaseRunsOut(replica) => state.replicas[replica].lease = None,
            Action::Reconnect(replica, server) => {
                state.replicas[replica].server = server;
                if self.checks(Check::LeaseOfConnection) {
                    state.replicas[replica].lease = None;
                }
            }
            _ => {}
        }
    }

    fn beginning_actions(&self, state: &State, beginner: usize, actions: &mut Vec<Action>) {
        match state.beginnings[beginner] {
            Beginning::Idle if !state.lost.is_empty() => {
                let lacks = |&replica: &usize| self.may_lease(state, replica).is_none();
                let replicas = (0..state.replicas.len()).filter(lacks);
                actions.extend(replicas.map(|replica| Action::ListEpochs(beginner, replica)));
            }
            Beginning::Listed(..) => actions.push(Action::WriteEpoch(beginner)),
            Beginning::Written(_) => actions.push(Action::Wait(beginner)),
            Beginning::Waited(_) => actions.push(Action::SetFence(beginner)),
            Beginning::Idle | Beginning::Over => {}
        }
    }

    /// What can't happen any more once all leases under older epochs, and all deadlines fixed under them, have passed.
    fn pass_time(&self, state: &mut State, before: Epoch) {
        if self.checks(Check::WaitForLeases) {
            let old = state.replicas.iter_mut().filter(|replica| replica.lease.is_some_and(|epoch| epoch < before));
            old.for_each(|replica| replica.lease = None);
        }
        if self.checks(Check::WaitForDeadlines) {
            for write in &mut state.writes {
                match write.step {
                    Step::Reserving(place, _) | Step::Reserved(place, _) if place.epoch < before => {
                        write.overdue = true
                    }
                    _ => {}
                }
            }
        }
    }

    fn next_beginning(&self, state: &mut State, action: &Action) {
        match *action {
            Action::ListEpochs(beginner, replica) => {
                let generation = Self::newest(state).map_or(1, |(epoch, _)| epoch.generation + 1);
                state.beginnings[beginner] = Beginning::Listed(state.replicas[replica].server, generation);
            }
            Action::WriteEpoch(beginner) => {
                let Beginning::Listed(server, generation) = state.beginnings[beginner] else { return };
                state.drawn += 1;
                let random = if self.checks(Check::RandomEpoch) { state.drawn } else { 0 };
                let epoch = Epoch { generation, random };
                state.epochs.insert(epoch, state.servers[server].identity);
                state.beginnings[beginner] = Beginning::Written(Place { server, epoch });
            }
            Action::Wait(beginner) => {
                let Beginning::Written(place) = state.beginnings[beginner] else { return };
                self.pass_time(state, place.epoch);
                let is_newest = Self::newest(state).is_some_and(|(epoch, _)| epoch == place.epoch);
                state.beginnings[beginner] = if is_newest { Beginning::Waited(place) } else { Beginning::Over };
            }
            Action::SetFence(beginner) => {
                let Beginning::Waited(place) = state.beginnings[beginner] else { return };
                let server = &mut state.servers[place.server];
                if server.fence.is_none_or(|fence| fence < place.epoch) {
                    server.fence = Some(place.epoch);
                }
                state.beginnings[beginner] = Beginning::Over;
            }
            _ => {}
        }
    }

    fn reconciliation_actions(&self, state: &State, reconciler: usize, actions: &mut Vec<Action>) {
        match state.reconciliations[reconciler] {
            Reconciliation::Idle => {
                for replica in 0..state.replicas.len() {
                    let Some(place) = Self::place(state, replica) else { continue };
                    let server = &state.servers[place.server];
                    let is_reconciled = server.facts.get(&place.epoch).is_some_and(|facts| facts.reconciled);
                    if server.fence == Some(place.epoch) && !is_reconciled {
                        actions.push(Action::ListForAdoption(reconciler, replica));
                    }
                }
            }
            Reconciliation::Listed(..) => actions.push(Action::Adopt(reconciler)),
            Reconciliation::Adopted(_) => actions.push(Action::MarkReconciled(reconciler)),
        }
    }

    fn next_reconciliation(&self, state: &mut State, action: &Action) {
        match *action {
            Action::ListForAdoption(reconciler, replica) => {
                let Some(place) = Self::place(state, replica) else { return };
                let found = self.read_from_bucket(state);
                state.reconciliations[reconciler] = Reconciliation::Listed(place, found);
            }
            Action::Adopt(reconciler) => {
                let Reconciliation::Listed(place, found) = state.reconciliations[reconciler] else { return };
                state.reconciliations[reconciler] = match self.facts(state, place) {
                    Some(facts) if !facts.reconciled || !self.checks(Check::AdoptOnce) => {
                        if let Some((revision, value)) = found {
                            facts.raise(revision, value);
                        }
                        Reconciliation::Adopted(place)
                    }
                    _ => Reconciliation::Idle,
                };
            }
            Action::MarkReconciled(reconciler) => {
                let Reconciliation::Adopted(place) = state.reconciliations[reconciler] else { return };
                if let Some(facts) = self.facts(state, place) {
                    facts.reconciled = true;
                }
                state.reconciliations[reconciler] = Reconciliation::Idle;
            }
            _ => {}
        }
    }

    fn loss_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = self.losses.iter().filter(|loss| !state.lost.contains(loss));
        for &loss in left {
            let is_possible = match loss {
                Loss::FailOver => state.copy.is_some(),
                Loss::FailBack => state.servers.len() == 2,
                Loss::Wipe | Loss::Flush => true,
            };
            if is_possible {
                actions.push(Action::Lose(loss));
            }
        }
        if self.losses.contains(&Loss::FailOver) && !state.lost.contains(&Loss::FailOver) && state.copy.is_none() {
            actions.push(Action::CopyToReplica);
        }
    }

    fn lose(state: &mut State, loss: Loss) {
        state.lost.push(loss);
        let fresh = state.lost.len() as u8;
        match loss {
            Loss::FailOver => {
                if let Some(copy) = state.copy.take() {
                    state.servers.push(Server { identity: Identity { run: fresh, replication: fresh }, ..copy });
                }
            }
            Loss::FailBack => {
                let identity = Identity { replication: fresh, ..state.servers[0].identity };
                state.servers[0] = Server { identity, ..state.servers[1].clone() };
                Self::disconnect(state, 0);
            }
            Loss::Wipe => {
                state.servers[0] = Server::empty(Identity { run: fresh, replication: fresh });
                Self::disconnect(state, 0);
            }
            Loss::Flush => state.servers[0] = Server::empty(state.servers[0].identity),
        }
    }

    /// The server's connections break: no lease on it is left, and what was on the way to it is not done.
    fn disconnect(state: &mut State, server: usize) {
        let there = state.replicas.iter_mut().filter(|replica| replica.server == server);
        there.for_each(|replica| replica.lease = None);
        for read in &mut state.reads {
            if let Read::Asked(place) | Read::Half(place, ..) = read
                && place.server == server
            {
                *read = Read::Bucket;
            }
        }
        for write in &mut state.writes {
            match write.step {
                Step::Reserving(place, _) if place.server == server => write.step = Step::Over,
                Step::Reserved(place, _) if place.server == server && write.commit == Put::Sent => {
                    write.commit = Put::Landed
                }
                _ => {}
            }
        }
        for recovery in &mut state.recoveries {
            if let Recovery::Looked { place, .. } = recovery
                && place.server == server
            {
                *recovery = Recovery::Idle;
            }
        }
        for reconciliation in &mut state.reconciliations {
            if let Reconciliation::Listed(place, _) | Reconciliation::Adopted(place) = reconciliation
                && place.server == server
            {
                *reconciliation = Reconciliation::Idle;
            }
        }
    }
}

impl Model for Tags {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let epoch = Epoch { generation: 1, random: 0 };
        let revision = Revision { epoch, counter: 0 };
        let identity = Identity { run: 0, replication: 0 };
        let facts = Facts { tag: Some((revision, self.first)), reconciled: true, ..Facts::default() };
        let write = Write {
            step: Step::NotCalled,
            overdue: false,
            manifest: Put::No,
            revision: Put::No,
            commit: Put::No,
            answered: false,
        };
        vec![State {
            monitor: Monitor::new(self.first, self.writes.len(), self.readers),
            servers: vec![Server { identity, fence: Some(epoch), facts: BTreeMap::from([(epoch, facts)]) }],
            copy: None,
            epochs: BTreeMap::from([(epoch, identity)]),
            objects: BTreeSet::from([Object { revision, to: self.first, in_time: true }]),
            replicas: vec![Replica { server: 0, lease: Some(epoch) }; 2],
            writes: vec![write; self.writes.len()],
            reads: vec![Read::Idle; self.readers],
            recoveries: vec![Recovery::Idle; self.recoverers],
            beginnings: vec![Beginning::Idle; self.beginners],
            reconciliations: vec![Reconciliation::Idle; self.reconcilers],
            lost: Vec::new(),
            drawn: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        (0..self.writes.len()).for_each(|write| self.write_actions(state, write, actions));
        (0..self.readers).for_each(|reader| self.read_actions(state, reader, actions));
        (0..state.replicas.len()).for_each(|replica| self.replica_actions(state, replica, actions));
        (0..self.recoverers).for_each(|recoverer| self.recovery_actions(state, recoverer, actions));
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
        vec![Property::always("every answer can be explained", |_, state: &State| state.monitor.is_explained())]
    }
}
