//! Filling a new index from the bucket, and settling its shard.

use super::{
    Action, Check, State, Tags,
    state::{Place, Reconciliation},
};

impl Tags {
    pub(super) fn reconciliation_actions(&self, state: &State, reconciler: usize, actions: &mut Vec<Action>) {
        match state.reconciliations[reconciler] {
            Reconciliation::Idle => {
                for replica in (0..state.replicas.len()).filter(|&replica| self.unknown(state, replica).is_some()) {
                    actions.push(Action::ListForAdoption(reconciler, replica));
                    // The walk finds what the bucket has: a repository of which there is nothing isn't among it.
                    if state.objects.is_empty() || !self.checks(Check::SettleReconciled) {
                        actions.push(Action::Walk(reconciler, replica));
                    }
                }
            }
            Reconciliation::Listed(..) => actions.push(Action::AdoptTag(reconciler)),
            Reconciliation::Adopted(_) => actions.push(Action::MarkReconciled(reconciler)),
            Reconciliation::Walked(_) => actions.push(Action::Settle(reconciler)),
        }
    }

    /// Where a replica may reconcile, if there is something to reconcile.
    fn unknown(&self, state: &State, replica: usize) -> Option<Place> {
        let place = state.place(replica)?;
        let is_known = state.facts(place).is_some_and(|facts| facts.is_known());
        (state.servers[place.server].fence == Some(place.epoch) && !is_known).then_some(place)
    }

    pub(super) fn next_reconciliation(&self, state: &mut State, action: &Action) {
        match *action {
            Action::ListForAdoption(reconciler, replica) => {
                let Some(place) = self.unknown(state, replica) else { return };
                let found = self.newest_that_counts(state);
                state.reconciliations[reconciler] = Reconciliation::Listed(place, found);
            }
            Action::AdoptTag(reconciler) => {
                let Reconciliation::Listed(place, found) = state.reconciliations[reconciler] else { return };
                state.reconciliations[reconciler] = match self.facts(state, place) {
                    Some(facts) if !facts.is_known() || !self.checks(Check::AdoptOnce) => {
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
                state.reconciliations[reconciler] = Reconciliation::Idle;
                if let Some(facts) = self.facts(state, place) {
                    facts.reconciled = true;
                }
            }
            Action::Walk(reconciler, replica) => {
                let Some(place) = self.unknown(state, replica) else { return };
                state.reconciliations[reconciler] = Reconciliation::Walked(place);
            }
            Action::Settle(reconciler) => {
                let Reconciliation::Walked(place) = state.reconciliations[reconciler] else { return };
                state.reconciliations[reconciler] = Reconciliation::Idle;
                if let Some(facts) = self.facts(state, place) {
                    facts.settled = true;
                }
            }
            _ => {}
        }
    }
}
