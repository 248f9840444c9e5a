//! Work in the background: the recovery of writes, and the trimming of the history.

use std::collections::BTreeSet;

use super::{
    Action, Check, State, Tags,
    state::{Object, Place, Recovery, Revision, Trim},
};

impl Tags {
    pub(super) fn recovery_actions(&self, state: &State, recoverer: usize, actions: &mut Vec<Action>) {
        if state.recoveries[recoverer] != Recovery::Idle {
            actions.push(Action::CommitRecovery(recoverer));
            return;
        }
        for replica in 0..state.replicas.len() {
            let Some(facts) = state.place(replica).and_then(|place| state.facts(place)) else { continue };
            for &write in facts.open.keys() {
                if state.writes[write].overdue || !self.checks(Check::RecoverLate) {
                    actions.push(Action::Recover(recoverer, replica, write));
                }
            }
        }
    }

    pub(super) fn next_recovery(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Recover(recoverer, replica, write) => {
                let Some(place) = state.place(replica) else { return };
                let revision = state.facts(place).and_then(|facts| facts.open.get(&write)).copied();
                let is_own = |object: &&Object| Some(object.revision) == revision && object.to == self.target(write);
                let counts = state.objects.iter().find(is_own).is_some_and(|object| self.counts(state, object));
                state.recoveries[recoverer] = Recovery::Looked { place, write, counts };
            }
            Action::CommitRecovery(recoverer) => {
                let Recovery::Looked { place, write, counts } = state.recoveries[recoverer] else { return };
                state.recoveries[recoverer] = Recovery::Idle;
                if counts {
                    self.commit(state, place, write);
                } else if let Some(facts) = self.facts(state, place) {
                    facts.open.remove(&write);
                }
            }
            _ => {}
        }
    }

    pub(super) fn trim_actions(&self, state: &State, trimmer: usize, actions: &mut Vec<Action>) {
        let goes_on = |replica: usize, place: Place| state.place(replica) == Some(place);
        match &state.trims[trimmer] {
            Trim::Idle => {
                let may_trim = |&replica: &usize| self.may_trim(state, replica);
                let replicas = (0..state.replicas.len()).filter(may_trim);
                actions.extend(replicas.map(|replica| Action::TrimHistory(trimmer, replica)));
            }
            Trim::Looked { replica, place, .. } if goes_on(*replica, *place) => {
                actions.push(Action::ListHistory(trimmer));
            }
            Trim::Listed { replica, place, current, older, rest } if goes_on(*replica, *place) => {
                let is_gone = current.1.is_none();
                if !self.checks(Check::TrimOldestFirst) && is_gone {
                    let all = 0..(older.len() + rest.len()) as u8;
                    actions.extend(all.map(|at| Action::RemoveRevision(trimmer, Some(at))));
                } else if !older.is_empty() {
                    actions.push(Action::RemoveRevision(trimmer, None));
                }
                if older.is_empty() {
                    actions.push(Action::ForgetTag(trimmer));
                }
            }
            Trim::Discarding { replica, place, .. } if goes_on(*replica, *place) => {
                actions.push(Action::Discard(trimmer));
            }
            Trim::Looked { .. } | Trim::Listed { .. } | Trim::Discarding { .. } => {}
        }
    }

    /// Whether there is something to trim: older revisions, or all of a tag that is gone.
    fn may_trim(&self, state: &State, replica: usize) -> bool {
        let Some(place) = state.place(replica) else { return false };
        let Some(facts) = state.facts(place).filter(|facts| facts.is_known()) else { return false };
        let Some((current, value)) = facts.tag else { return false };
        let has_older = state.objects.iter().any(|object| object.revision < current);
        (facts.open.is_empty() || !self.checks(Check::TrimAlone)) && (value.is_none() || has_older)
    }

    pub(super) fn next_trim(&self, state: &mut State, action: &Action) {
        match *action {
            Action::TrimHistory(trimmer, replica) => {
                let Some(place) = state.place(replica) else { return };
                let Some(current) = state.facts(place).and_then(|facts| facts.tag) else { return };
                state.trims[trimmer] = Trim::Looked { replica, place, current };
            }
            Action::ListHistory(trimmer) => {
                let Trim::Looked { replica, place, current } = state.trims[trimmer] else { return };
                let revisions = state.objects.iter().map(|object| object.revision);
                let (older, rest) = revisions.partition(|revision| *revision < current.0);
                state.trims[trimmer] = Trim::Listed { replica, place, current, older, rest };
            }
            Action::RemoveRevision(trimmer, at) => {
                let Trim::Listed { older, rest, .. } = &mut state.trims[trimmer] else { return };
                let Some(revision) = older.iter().chain(rest.iter()).nth(at.unwrap_or(0).into()).copied() else {
                    return;
                };
                older.remove(&revision);
                rest.remove(&revision);
                Self::remove(state, revision);
            }
            Action::ForgetTag(trimmer) => self.forget_tag(state, trimmer),
            Action::Discard(trimmer) => {
                let Trim::Discarding { trash, .. } = &mut state.trims[trimmer] else { return };
                let removed = trash.pop_first();
                match removed {
                    Some(revision) => Self::remove(state, revision),
                    None => state.trims[trimmer] = Trim::Idle,
                }
            }
            _ => {}
        }
    }

    fn remove(state: &mut State, revision: Revision) {
        state.objects.retain(|object| object.revision != revision);
    }

    /// The end of a trim: of a tag that is there nothing else is to be done; one that is gone is forgotten, and what
    /// is left of it goes to the trash.
    fn forget_tag(&self, state: &mut State, trimmer: usize) {
        let Trim::Listed { replica, place, current, rest, .. } = state.trims[trimmer].clone() else { return };
        state.trims[trimmer] = Trim::Idle;
        if current.1.is_some() {
            return;
        }
        let is_checked = self.checks(Check::TrimAlone);
        let Some(facts) = self.facts(state, place) else { return };
        if is_checked && (facts.tag != Some(current) || !facts.open.is_empty()) {
            return;
        }
        facts.tag = None;
        let trash: BTreeSet<Revision> = rest;
        state.trims[trimmer] = Trim::Discarding { replica, place, trash };
    }
}
