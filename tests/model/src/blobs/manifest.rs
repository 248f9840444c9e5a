//! A manifest that names blobs: its push, the recovery of that, its delete.

use super::{
    Action, Blobs, Check, State,
    state::{Deletion, Push, Put, Set, Shard, Step, each, has},
};

impl Blobs {
    pub(super) fn linked(shard: &Shard) -> Set {
        let linked = |blob: &usize| shard.links[*blob].is_some();
        (0..shard.links.len()).filter(linked).fold(0, |set, blob| set | 1 << blob)
    }

    /// The links that a manifest that is there, or one that is being pushed, needs.
    pub(super) fn needed(&self, shard: &Shard) -> Set {
        let is_pinned = shard.intents != 0 && self.checks(Check::Pins);
        let named = if self.checks(Check::PinChildren) { self.named() } else { self.needs };
        if shard.manifest.is_some() || is_pinned { named } else { 0 }
    }

    pub(super) fn manifest_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, epoch, own, is_there, is_committed, is_answered, .. } = state.pushes[push];
        let shard = self.shard(state, push);
        let lacks = self.needs & !Self::linked(shard);
        if step == Step::Start && shard.is_known() && (lacks == 0 || !self.checks(Check::LinksPresent)) {
            actions.push(Action::Reserve(push));
        }
        if step == Step::Reserved && epoch == state.epoch {
            if !is_there && own == Put::No {
                actions.push(Action::PutManifest(push));
            }
            if is_there || own == Put::Landed {
                actions.extend((!is_answered).then_some(Action::Answer(push)));
                actions.extend((!is_committed).then_some(Action::CommitPush(push)));
            }
        }
        if has(shard.intents, push) {
            actions.push(Action::Recover(push));
        }
        if own == Put::Sent {
            actions.push(Action::ManifestLands(push));
        }
    }

    pub(super) fn next_manifest(&self, state: &mut State, action: Action) {
        match action {
            Action::Reserve(push) => {
                let epoch = state.epoch;
                let shard = self.shard_mut(state, push);
                shard.intents |= 1 << push;
                let (is_there, kept) = (shard.manifest.is_some(), Self::linked(shard) & self.named());
                let put = &mut state.pushes[push];
                (put.step, put.epoch, put.is_there, put.kept) = (Step::Reserved, epoch, is_there, kept);
                if self.repository(push) == 0 {
                    (state.is_unpushed, state.is_gone) = (false, false);
                }
            }
            Action::PutManifest(push) => state.pushes[push].own = Put::Sent,
            Action::ManifestLands(push) => {
                state.manifests |= 1 << push;
                state.pushes[push].own = Put::Landed;
            }
            Action::Answer(push) => {
                state.pushes[push].is_answered = true;
                let shard = self.shard(state, push);
                // Where it was committed before, somebody may have deleted it since: the push was before that.
                if has(shard.intents, push) || shard.manifest.is_some() {
                    let owed = &mut state.owed[self.repository(push)];
                    *owed = Some(owed.unwrap_or(0) | state.pushes[push].kept);
                }
            }
            Action::CommitPush(push) => {
                self.commit_push(state, push);
                state.pushes[push].is_committed = true;
            }
            Action::Recover(push) => {
                let Push { own, is_there, .. } = state.pushes[push];
                if is_there || own == Put::Landed {
                    self.commit_push(state, push);
                } else {
                    // Its writer has seen no confirmation in time, and answers with an error.
                    state.pushes[push].step = Step::Over;
                    let shard = self.shard_mut(state, push);
                    shard.intents &= !(1 << push);
                    shard.strays |= 1 << push;
                }
            }
            _ => self.next_deletion(state, action),
        }
    }

    /// The batch that makes a manifest a fact. If another push of it was first, its object is the one.
    fn commit_push(&self, state: &mut State, push: usize) {
        let is_there = state.pushes[push].is_there;
        let shard = self.shard_mut(state, push);
        if !has(shard.intents, push) && self.checks(Check::IntentThere) {
            return;
        }
        shard.intents &= !(1 << push);
        match shard.manifest {
            None if !is_there => shard.manifest = Some(push),
            Some(object) if object != push && !is_there => shard.strays |= 1 << push,
            _ => {}
        }
    }

    pub(super) fn deletion_actions(&self, state: &State, deletion: usize, actions: &mut Vec<Action>) {
        let shard = &state.facts.shards[0];
        let is_unnamed = shard.intents == 0 || !self.checks(Check::DeleteUnnamed);
        match state.deletions[deletion] {
            Deletion::NotBegun if shard.is_known() && shard.manifest.is_some() && is_unnamed => {
                actions.push(Action::UnmakeManifest(deletion));
            }
            Deletion::Removing(_) => actions.push(Action::DiscardManifest(deletion)),
            Deletion::Removed => actions.push(Action::ListSeconds(deletion)),
            Deletion::Listed(_) => actions.push(Action::DiscardSeconds(deletion)),
            Deletion::NotBegun | Deletion::Over => {}
        }
    }

    fn next_deletion(&self, state: &mut State, action: Action) {
        match action {
            Action::UnmakeManifest(deletion) => {
                let shard = &mut state.facts.shards[0];
                let Some(object) = shard.manifest.take() else { return };
                shard.strays |= 1 << object;
                (state.owed[0], state.is_unpushed) = (None, true);
                state.is_gone = !self.checks(Check::DeleteConfirmed);
                state.deletions[deletion] = Deletion::Removing(object);
            }
            Action::DiscardManifest(deletion) => {
                let Deletion::Removing(object) = state.deletions[deletion] else { return };
                state.manifests &= !(1 << object);
                state.facts.shards[0].strays &= !(1 << object);
                state.deletions[deletion] = Deletion::Removed;
            }
            Action::ListSeconds(deletion) => {
                let left = if self.checks(Check::DeleteSeconds) { self.strays(state, 0) } else { 0 };
                state.deletions[deletion] = Deletion::Listed(left);
            }
            Action::DiscardSeconds(deletion) => {
                let Deletion::Listed(left) = state.deletions[deletion] else { return };
                let shard = &state.facts.shards[0];
                if shard.intents == 0 && shard.manifest.is_none() {
                    state.manifests &= !left;
                }
                state.is_gone |= state.is_unpushed;
                state.deletions[deletion] = Deletion::Over;
            }
            _ => {}
        }
    }

    /// The objects of a repository's manifest in the bucket that aren't the one of which the index knows.
    pub(super) fn strays(&self, state: &State, repository: usize) -> Set {
        let shard = &state.facts.shards[repository];
        let is_stray = |&object: &usize| self.repository(object) == repository && shard.manifest != Some(object);
        each(state.manifests).filter(is_stray).fold(0, |set, object| set | 1 << object)
    }
}
