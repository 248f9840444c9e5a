//! Filling a new index from the bucket, repository by repository, and settling its shards.

use super::{
    Action, Blobs, Check, State,
    state::{Adopter, Data, Holds, Set, each, has},
};

impl Blobs {
    /// What of a set belongs to a repository.
    fn of(&self, set: Set, repository: usize) -> Set {
        each(set).filter(|&number| self.repository(number) == repository).fold(0, |set, number| set | 1 << number)
    }

    pub(super) fn adopter_actions(&self, state: &State, adopter: usize, actions: &mut Vec<Action>) {
        match state.adopters[adopter] {
            Adopter::Idle => {
                let unknown = (0..2).filter(|&repository| !state.facts.shards[repository].is_known());
                actions.extend(unknown.map(|repository| Action::ListForAdoption(adopter, repository)));
            }
            Adopter::Listed { holds: Holds::Seen(_), .. } => actions.push(Action::AdoptData(adopter)),
            Adopter::Listed { holds: Holds::Data(_), .. } => actions.push(Action::AdoptLink(adopter)),
            Adopter::Listed { links: 0, manifests: 0, .. } => actions.push(Action::MarkReconciled(adopter)),
            Adopter::Listed { links: 0, manifests, .. } => {
                actions.extend(each(manifests).map(|object| Action::AdoptManifest(adopter, object)));
            }
            Adopter::Listed { links, .. } => {
                actions.extend(each(links).map(|link| Action::LookForData(adopter, link)));
            }
        }
    }

    /// A repository of which the bucket has nothing isn't walked over: settled implies reconciled.
    pub(super) fn settle_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let has_objects = |repository| self.of(state.links | state.manifests, repository) != 0;
        let is_walked = |repository: usize| state.facts.shards[repository].is_known() || !has_objects(repository);
        if (0..2).all(is_walked) || !self.checks(Check::SettleLast) {
            let unsettled = (0..2).filter(|&repository| !state.facts.shards[repository].settled);
            actions.extend(unsettled.map(Action::Settle));
        }
    }

    pub(super) fn next_adoption(&self, state: &mut State, action: Action) {
        match action {
            Action::ListForAdoption(adopter, repository) => {
                let (links, manifests) = (self.of(state.links, repository), self.of(state.manifests, repository));
                state.adopters[adopter] = Adopter::Listed { repository, links, manifests, holds: Holds::Nothing };
            }
            Action::LookForData(adopter, link) => {
                let Some(data) = self.data_of(state, link) else { return };
                let Adopter::Listed { links, holds, .. } = &mut state.adopters[adopter] else { return };
                *links &= !(1 << link);
                if has(state.data, data) || !self.checks(Check::AdoptWhole) {
                    *holds = Holds::Seen(link);
                }
            }
            Action::AdoptData(adopter) => self.adopt_data(state, adopter),
            Action::AdoptLink(adopter) => self.adopt_link(state, adopter),
            Action::AdoptManifest(adopter, object) => self.adopt_manifest(state, adopter, object),
            Action::MarkReconciled(adopter) => {
                let Adopter::Listed { repository, .. } = state.adopters[adopter] else { return };
                state.facts.shards[repository].reconciled = true;
                state.adopters[adopter] = Adopter::Idle;
            }
            Action::Settle(repository) => state.facts.shards[repository].settled = true,
            _ => {}
        }
    }

    /// Makes a link's data live, or joins it, in its home.
    fn adopt_data(&self, state: &mut State, adopter: usize) {
        let Adopter::Listed { holds: Holds::Seen(link), .. } = state.adopters[adopter] else { return };
        let Some(data) = self.data_of(state, link) else { return };
        let is_open = !self.shard(state, data).settled || !self.checks(Check::AdoptUnsettled);
        let is_adopted = is_open && state.facts.data[data] != Data::Dying;
        if is_adopted {
            state.facts.data[data] = Data::Live;
            self.use_of(state, data, link);
        }
        let Adopter::Listed { holds, .. } = &mut state.adopters[adopter] else { return };
        *holds = if is_adopted { Holds::Data(link) } else { Holds::Nothing };
    }

    fn adopt_link(&self, state: &mut State, adopter: usize) {
        let Adopter::Listed { repository, holds, .. } = &mut state.adopters[adopter] else { return };
        let repository = *repository;
        let Holds::Data(link) = std::mem::replace(holds, Holds::Nothing) else { return };
        let blob = self.blob(link);
        let shard = &mut state.facts.shards[repository];
        let is_noted = has(shard.attempts, link) || has(shard.trash, link);
        let is_known = shard.links[blob] == Some(link) || (is_noted && self.checks(Check::AdoptUnknown));
        if is_known || (shard.is_known() && self.checks(Check::AdoptOnce)) {
            return;
        }
        match shard.links[blob] {
            None => shard.links[blob] = Some(link),
            Some(_) => shard.trash |= 1 << link,
        }
    }

    fn adopt_manifest(&self, state: &mut State, adopter: usize, object: usize) {
        let Adopter::Listed { repository, manifests, .. } = &mut state.adopters[adopter] else { return };
        *manifests &= !(1 << object);
        let shard = &mut state.facts.shards[*repository];
        let is_whole = self.needs & !Self::linked(shard) == 0 || !self.checks(Check::AdoptNeeds);
        if shard.is_known() && self.checks(Check::AdoptOnce) {
            return;
        }
        match shard.manifest {
            None if is_whole && has(state.manifests, object) => shard.manifest = Some(object),
            Some(other) if other != object => shard.strays |= 1 << object,
            _ => {}
        }
    }
}
