//! Writes of the tag: reserve, write, commit.

use super::{
    Action, Check, State, Tags,
    state::{Facts, Object, Place, Put, Revision, Step, Tag, Write},
};
use crate::linear::{Answer, Value, Wish};

impl Tags {
    /// Whether a revision counts. Its manifest was confirmed before it was sent, so nobody looks for that.
    pub(super) fn counts(&self, state: &State, object: &Object) -> bool {
        object.in_time && (self.checks(Check::ManifestFirst) || self.has_manifest(state, object))
    }

    fn has_manifest(&self, state: &State, object: &Object) -> bool {
        let of = |write: usize| matches!(state.writes[write].step, Step::Reserved(_, revision) if revision == object.revision);
        let is_there = |write: usize| !self.needs_manifest(write) || state.writes[write].manifest == Put::Landed;
        (0..self.writes.len()).filter(|&write| of(write)).all(is_there)
    }

    /// The newest revision that counts, from the bucket alone.
    pub(super) fn newest_that_counts(&self, state: &State) -> Option<Tag> {
        let counting = state.objects.iter().filter(|object| self.counts(state, object));
        counting.map(|object| (object.revision, object.to)).max()
    }

    /// Whether a batch is taken.
    pub(super) fn is_fenced(&self, state: &State, place: Place) -> bool {
        !self.checks(Check::Fence) || state.servers[place.server].fence == Some(place.epoch)
    }

    /// The facts under an epoch, for a batch.
    pub(super) fn facts<'a>(&self, state: &'a mut State, place: Place) -> Option<&'a mut Facts> {
        let is_fenced = self.is_fenced(state, place);
        is_fenced.then(|| state.servers[place.server].facts.entry(place.epoch).or_default())
    }

    /// Which replica does a write.
    fn replica_of(write: usize) -> usize {
        write % 2
    }

    /// What the tag shall point at.
    pub(super) fn target(&self, write: usize) -> Value {
        match self.writes[write] {
            Wish::Push(to) | Wish::Create(to) => Some(to),
            Wish::Delete | Wish::DeleteManifest(_) => None,
        }
    }

    /// The manifest of the beginning is there, and needn't be put.
    fn needs_manifest(&self, write: usize) -> bool {
        let to = self.target(write);
        to.is_some() && to != self.first
    }

    fn looks_first(&self, write: usize) -> bool {
        !matches!(self.writes[write], Wish::Push(_))
    }

    /// What a writer sees who has to know what the tag is: nothing while it has to wait.
    fn look(&self, state: &State, write: usize) -> Option<Option<Tag>> {
        let place = state.place(Self::replica_of(write))?;
        let facts = state.facts(place)?;
        let waits = match self.writes[write] {
            Wish::Create(_) => self.checks(Check::CreateAlone) && (!facts.is_known() || !facts.open.is_empty()),
            _ => !facts.is_known() || (self.checks(Check::DeleteAlone) && !facts.open.is_empty()),
        };
        (self.is_fenced(state, place) && !waits).then_some(facts.tag)
    }

    /// Whether a reservation is taken.
    fn may_reserve(&self, facts: &Facts, write: usize, looked: Option<Tag>) -> bool {
        match self.writes[write] {
            Wish::Push(_) => true,
            Wish::Create(_) => {
                let alone = facts.is_known() && facts.open.is_empty();
                facts.tag == looked && (alone || !self.checks(Check::CreateAlone))
            }
            Wish::Delete | Wish::DeleteManifest(_) => {
                facts.tag == looked && (facts.open.is_empty() || !self.checks(Check::DeleteAlone))
            }
        }
    }

    /// Whether the tag is already what a push wants, as its reservation's snapshot shows.
    fn is_so_already(&self, facts: &Facts, write: usize) -> bool {
        let Wish::Push(to) = self.writes[write] else { return false };
        let is_alone = facts.open.is_empty() || !self.checks(Check::SameAlone);
        facts.is_known() && is_alone && facts.tag.is_some_and(|(_, there)| there == Some(to))
    }

    fn reserve(&self, state: &mut State, write: usize) {
        let Step::Reserving(place, looked) = state.writes[write].step.clone() else { return };
        let Some(facts) = self.facts(state, place) else {
            state.writes[write].step = Step::Over;
            return;
        };
        if !self.may_reserve(facts, write, looked) {
            state.writes[write].step = Step::Called;
            return;
        }
        let is_so_already = self.is_so_already(facts, write);
        facts.counter += 1;
        let revision = Revision { epoch: place.epoch, counter: facts.counter };
        facts.open.insert(write, revision);
        state.writes[write].step = Step::Reserved(place, revision);
        if is_so_already {
            state.writes[write].step = Step::NothingToDo(place);
            Self::answer(state, write, Answer::Done);
        }
    }

    fn answer(state: &mut State, write: usize, answer: Answer) {
        state.monitor.answer(write, answer);
        state.writes[write].answered = true;
    }

    /// The batch that makes a write a fact.
    pub(super) fn commit(&self, state: &mut State, place: Place, write: usize) {
        let to = self.target(write);
        let stays = self.checks(Check::DeletedStays) || to.is_some();
        let is_raised = self.checks(Check::Greatest);
        let Some(facts) = self.facts(state, place) else { return };
        let Some(revision) = facts.open.remove(&write) else { return };
        if is_raised {
            facts.raise(revision, to);
        } else {
            facts.tag = Some((revision, to));
        }
        if !stays && facts.tag == Some((revision, to)) {
            facts.tag = None;
        }
    }

    fn answer_look(&self, state: &mut State, write: usize, there: Option<Tag>) {
        let value = there.and_then(|(_, value)| value);
        let answer = match (self.writes[write], value) {
            (Wish::Create(_), Some(_)) | (Wish::Delete, None) => Some(Answer::Refused),
            (Wish::DeleteManifest(at), value) if value != Some(at) => Some(Answer::Done),
            _ => None,
        };
        state.writes[write].step = if answer.is_some() { Step::Over } else { Step::Looked(there) };
        if let Some(answer) = answer {
            Self::answer(state, write, answer);
        }
    }

    /// Whether a write's revision counts.
    fn is_confirmed(&self, state: &State, write: usize) -> bool {
        let Step::Reserved(_, revision) = state.writes[write].step else { return false };
        let is_own = |object: &&Object| object.revision == revision && object.to == self.target(write);
        state.objects.iter().find(is_own).is_some_and(|object| self.counts(state, object))
    }

    pub(super) fn write_actions(&self, state: &State, write: usize, actions: &mut Vec<Action>) {
        let Write { step, overdue, manifest, revision, commit, .. } = &state.writes[write];
        let is_leased = state.place(Self::replica_of(write)).is_some();
        match step {
            Step::NotCalled => actions.push(Action::Call(write)),
            Step::Called if self.looks_first(write) => {
                if self.look(state, write).is_some() {
                    actions.push(Action::Look(write));
                }
            }
            Step::Called | Step::Looked(_) if is_leased => actions.push(Action::SendReserve(write)),
            Step::Reserving(..) => actions.push(Action::Reserve(write)),
            Step::Reserved(..) => self.reserved_actions(state, write, actions),
            Step::NothingToDo(_) => actions.push(Action::DropIntent(write)),
            Step::Called | Step::Looked(_) | Step::Over => {}
        }
        let is_reserved = matches!(step, Step::Reserving(..) | Step::Reserved(..) | Step::NothingToDo(_));
        if is_reserved && !overdue {
            actions.push(Action::DeadlinePasses(write));
        }
        let on_the_way = [
            (*manifest, Action::ManifestLands(write)),
            (*revision, Action::RevisionLands(write)),
            (*commit, Action::Commit(write)),
        ];
        actions.extend(on_the_way.into_iter().filter(|(put, _)| *put == Put::Sent).map(|(_, action)| action));
    }

    fn reserved_actions(&self, state: &State, write: usize, actions: &mut Vec<Action>) {
        let Write { manifest, revision, commit, answered, .. } = state.writes[write];
        let must_wait = self.needs_manifest(write) && self.checks(Check::ManifestFirst) && manifest != Put::Landed;
        if manifest == Put::No && self.needs_manifest(write) {
            actions.push(Action::PutManifest(write));
        } else if revision == Put::No && !must_wait {
            actions.push(Action::WriteRevision(write));
        }
        let is_confirmed = self.is_confirmed(state, write);
        let is_put = revision == Put::Landed && !self.checks(Check::AnswerOnceItCounts);
        if !answered && (is_confirmed || is_put) {
            actions.push(Action::Answer(write));
        }
        if is_confirmed && commit == Put::No {
            actions.push(Action::SendCommit(write));
        }
    }

    pub(super) fn next_write(&self, state: &mut State, action: &Action) {
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
                if let Some(place) = state.place(Self::replica_of(write)) {
                    state.writes[write].step = Step::Reserving(place, looked);
                    state.writes[write].overdue = false;
                }
            }
            Action::Reserve(write) => self.reserve(state, write),
            Action::DeadlinePasses(write) => state.writes[write].overdue = true,
            Action::PutManifest(write) => state.writes[write].manifest = Put::Sent,
            Action::ManifestLands(write) => state.writes[write].manifest = Put::Landed,
            Action::WriteRevision(write) => state.writes[write].revision = Put::Sent,
            Action::RevisionLands(write) => {
                let Step::Reserved(_, revision) = state.writes[write].step else { return };
                let in_time = !state.writes[write].overdue || !self.checks(Check::Deadlines);
                state.objects.insert(Object { revision, to: self.target(write), in_time });
                state.writes[write].revision = Put::Landed;
            }
            Action::Answer(write) => Self::answer(state, write, Answer::Done),
            Action::SendCommit(write) => state.writes[write].commit = Put::Sent,
            Action::Commit(write) => {
                let Step::Reserved(place, _) = state.writes[write].step else { return };
                state.writes[write].commit = Put::Landed;
                self.commit(state, place, write);
            }
            Action::DropIntent(write) => {
                let Step::NothingToDo(place) = state.writes[write].step else { return };
                state.writes[write].step = Step::Over;
                if let Some(facts) = self.facts(state, place) {
                    facts.open.remove(&write);
                }
            }
            _ => {}
        }
    }
}
