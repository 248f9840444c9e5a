//! Reads of the tag: by the index where it is believed and knows the repository, else from the bucket.

use super::{
    Action, Check, State, Tags,
    state::{Place, Read, Tag},
};
use crate::linear::Value;

impl Tags {
    pub(super) fn read_actions(&self, state: &State, reader: usize, actions: &mut Vec<Action>) {
        match state.reads[reader] {
            Read::Idle => {
                actions.push(Action::Read(reader, None));
                let leased = (0..state.replicas.len()).filter(|&replica| state.place(replica).is_some());
                let mut distinct: Vec<usize> = leased.collect();
                distinct.dedup_by_key(|replica| state.place(*replica));
                actions.extend(distinct.into_iter().map(|replica| Action::Read(reader, Some(replica))));
            }
            Read::Asked(_) if !self.checks(Check::ReconciledFirst) => actions.push(Action::Resolve(reader)),
            Read::Asked(_) | Read::Unconfirmed(..) => actions.push(Action::AskReconciled(reader)),
            Read::Known(_) => actions.push(Action::Resolve(reader)),
            Read::Half(..) => actions.push(Action::ResolveOpen(reader)),
            Read::Bucket => {
                actions.push(Action::LookForTag(reader));
                if !self.checks(Check::ShareLater) {
                    actions.push(Action::Share(reader));
                }
            }
            Read::Listed(_) => actions.push(Action::ReadRevision(reader)),
        }
    }

    /// What the index answers; `None` if the bucket has to be asked.
    fn resolved(&self, state: &State, place: Place, tag: Option<Tag>) -> Option<Value> {
        let is_open = state.facts(place).is_some_and(|facts| !facts.open.is_empty());
        if is_open && self.checks(Check::OpenIntents) {
            return None;
        }
        match tag {
            Some((_, value)) => Some(value),
            None => self.is_fenced(state, place).then_some(None),
        }
    }

    /// Whether a repository is known to be reconciled. In the first epoch every replica has seen that long ago.
    fn is_known(&self, state: &State, place: Place) -> bool {
        let is_known = state.facts(place).is_some_and(|facts| facts.is_known());
        is_known || place.epoch == Self::FIRST || !self.checks(Check::Reconciled)
    }

    fn answer_read(&self, state: &mut State, reader: usize, place: Place, answer: Option<Value>) {
        let is_confirmed = self.checks(Check::ReconciledFirst) || place.epoch == Self::FIRST;
        state.reads[reader] = match answer {
            Some(value) if is_confirmed => return Self::saw(state, reader, value),
            Some(value) => Read::Unconfirmed(place, value),
            None => Read::Bucket,
        };
    }

    fn saw(state: &mut State, reader: usize, value: Value) {
        state.monitor.saw(reader, value);
        state.reads[reader] = Read::Idle;
    }

    pub(super) fn next_read(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Read(reader, replica) => {
                state.monitor.read(reader);
                let place = replica.and_then(|replica| state.place(replica));
                state.reads[reader] = match place {
                    Some(place) if place.epoch == Self::FIRST => Read::Known(place),
                    Some(place) => Read::Asked(place),
                    None => Read::Bucket,
                };
            }
            Action::AskReconciled(reader) => match state.reads[reader] {
                Read::Asked(place) if self.is_known(state, place) => state.reads[reader] = Read::Known(place),
                Read::Unconfirmed(place, value) if self.is_known(state, place) => Self::saw(state, reader, value),
                _ => state.reads[reader] = Read::Bucket,
            },
            Action::Resolve(reader) => {
                let (Read::Known(place) | Read::Asked(place)) = state.reads[reader] else { return };
                let tag = state.facts(place).and_then(|facts| facts.tag);
                if self.checks(Check::OneSnapshot) {
                    let answer = self.resolved(state, place, tag);
                    self.answer_read(state, reader, place, answer);
                } else {
                    state.reads[reader] = Read::Half(place, tag);
                }
            }
            Action::ResolveOpen(reader) => {
                let Read::Half(place, tag) = state.reads[reader] else { return };
                let answer = self.resolved(state, place, tag);
                self.answer_read(state, reader, place, answer);
            }
            Action::LookForTag(reader) => {
                let newest = self.newest_that_counts(state);
                match newest {
                    // Where nothing happens between the two, they are one step.
                    Some(_) if self.trimmers > 0 || self.readers > 1 => state.reads[reader] = Read::Listed(newest),
                    newest => Self::saw(state, reader, newest.and_then(|(_, value)| value)),
                }
            }
            Action::Share(reader) => {
                let listed = state.reads.iter().find(|read| matches!(read, Read::Listed(_))).cloned();
                if let Some(listed) = listed {
                    state.reads[reader] = listed;
                }
            }
            Action::ReadRevision(reader) => {
                let Read::Listed(Some((revision, value))) = state.reads[reader] else { return };
                let is_there = state.objects.iter().any(|object| object.revision == revision);
                match is_there {
                    true => Self::saw(state, reader, value),
                    false if self.checks(Check::LookAgain) => state.reads[reader] = Read::Bucket,
                    false => Self::saw(state, reader, None),
                }
            }
            _ => {}
        }
    }
}
