//! Collection: what nothing needs is found, becomes trash, and leaves the bucket.

use super::{
    Action, Blobs, Check, Removed, State, Wish,
    state::{Collector, Data, Facts, Upload, each, has},
};

impl Blobs {
    /// Whether nothing uses a data object, as far as its home knows.
    fn is_unused(&self, state: &State, data: usize) -> bool {
        if self.checks(Check::Users) {
            return state.facts.users[data] == 0;
        }
        let mut links = state.facts.shards.iter().flat_map(|shard| shard.links).flatten();
        links.all(|link| self.data_of(state, link) != Some(data))
    }

    /// Whether a repository has, is about to have, or is about to lose a link.
    fn knows(&self, state: &State, link: usize) -> bool {
        let shard = self.shard(state, link);
        let is_attempted = has(shard.attempts, link) && self.checks(Check::AuditAttempts);
        shard.links[self.blob(link)] == Some(link) || is_attempted || has(shard.trash, link)
    }

    /// Whether there is a note of a data object: of an upload, an attempt, or in the trash.
    fn is_noted(&self, state: &State, data: usize) -> bool {
        let shard = self.shard(state, data);
        let is_attempted = each(shard.attempts).any(|push| self.own(push) == data);
        is_attempted || shard.upload == Upload::Open(data) || has(shard.waste, data)
    }

    fn may_release(&self, state: &State, data: usize) -> bool {
        let is_settled = self.shard(state, data).settled || !self.checks(Check::ReleaseSettled);
        is_settled && state.facts.data[data] == Data::Live && self.is_unused(state, data)
    }

    pub(super) fn collector_actions(&self, state: &State, collector: usize, actions: &mut Vec<Action>) {
        match state.collectors[collector] {
            Collector::Idle => {
                self.removals(state, collector, actions);
                for number in self.numbers() {
                    self.looks(state, collector, number, actions);
                }
            }
            Collector::Unneeded(_) => actions.push(Action::Unlink(collector)),
            Collector::Unused(_) => actions.push(Action::Release(collector)),
            Collector::Unknown(_) => actions.push(Action::ThrowAway(collector)),
            Collector::Use(..) => actions.push(Action::DropUse(collector)),
            Collector::Stray(_) => actions.push(Action::ThrowAwayManifest(collector)),
            Collector::Removing(_) => actions.push(Action::RemovalLands(collector)),
            Collector::Confirmed(_) => actions.push(Action::ForgetUser(collector)),
            Collector::Forgotten(_) => actions.push(Action::DropTrash(collector)),
        }
    }

    /// What is in the trash.
    fn removals(&self, state: &State, collector: usize, actions: &mut Vec<Action>) {
        let holds = self.checks(Check::HoldTrash);
        for shard in state.facts.shards.iter().filter(|shard| shard.settled || !holds) {
            let links = each(shard.trash).map(Removed::Link);
            let data = each(shard.waste).map(Removed::Waste);
            let manifests = each(shard.strays).map(Removed::Manifest);
            actions.extend(links.chain(data).chain(manifests).map(|removed| Action::Remove(collector, removed)));
        }
    }

    /// What somebody who collects may find to do about the link, the data and the manifest's object of one number.
    fn looks(&self, state: &State, collector: usize, number: usize, actions: &mut Vec<Action>) {
        let Facts { data, users, .. } = &state.facts;
        let shard = self.shard(state, number);
        if shard.is_known() {
            let is_linked = shard.links[self.blob(number)] == Some(number);
            if is_linked && !has(self.needed(shard), self.blob(number)) {
                actions.push(Action::LookForUnneeded(collector, number));
            }
            let is_noted = has(shard.attempts, number) || has(shard.trash, number);
            if has(state.links, number) && !is_linked && !is_noted {
                actions.push(Action::ThrowAwayLink(collector, number));
            }
        }
        if self.may_release(state, number) {
            actions.push(Action::LookForUnused(collector, number));
        }
        if data[number] == Data::Dying {
            actions.push(Action::Remove(collector, Removed::Dying(number)));
        }
        if shard.settled {
            if self.may_be_unknown(state, number) {
                actions.push(Action::LookForUnknown(collector, number));
            }
            let stale = each(users[number]).filter(|&link| !self.knows(state, link));
            actions.extend(stale.map(|link| Action::LookForUse(collector, number, link)));
            let is_pushed = shard.intents != 0 && self.checks(Check::ScanIntents);
            let is_stray = has(self.strays(state, self.repository(number)), number) && !has(shard.strays, number);
            if is_stray && !is_pushed {
                actions.push(Action::LookForStray(collector, number));
            }
        }
    }

    /// Whether the first half of a look finds data unknown. What was put aside is not looked at before it is old.
    fn may_be_unknown(&self, state: &State, data: usize) -> bool {
        let is_young = self.pushes.get(data) == Some(&Wish::Aside) && !has(state.old, data);
        let is_absent = state.facts.data[data] == Data::Absent;
        let is_noted = self.is_noted(state, data) && self.checks(Check::NotesFirst);
        has(state.data, data) && !is_young && is_absent && !is_noted
    }

    pub(super) fn next_look(&self, state: &mut State, action: Action) {
        match action {
            Action::LookForUnneeded(collector, link) => state.collectors[collector] = Collector::Unneeded(link),
            Action::Unlink(collector) => {
                let Collector::Unneeded(link) = state.collectors[collector] else { return };
                let blob = self.blob(link);
                let is_needed = has(self.needed(self.shard(state, link)), blob) && self.checks(Check::RefsInBatch);
                let shard = self.shard_mut(state, link);
                if shard.links[blob] == Some(link) && !is_needed {
                    shard.links[blob] = None;
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
                    self.shard_mut(state, data).waste |= 1 << data;
                }
                state.collectors[collector] = Collector::Idle;
            }
            Action::LookForUse(collector, data, link) => state.collectors[collector] = Collector::Use(data, link),
            Action::DropUse(collector) => {
                let Collector::Use(data, link) = state.collectors[collector] else { return };
                state.facts.users[data] &= !(1 << link);
                state.collectors[collector] = Collector::Idle;
            }
            Action::ThrowAwayLink(_, link) => self.shard_mut(state, link).trash |= 1 << link,
            Action::LookForStray(collector, object) => state.collectors[collector] = Collector::Stray(object),
            Action::ThrowAwayManifest(collector) => {
                let Collector::Stray(object) = state.collectors[collector] else { return };
                self.shard_mut(state, object).strays |= 1 << object;
                state.collectors[collector] = Collector::Idle;
            }
            _ => {}
        }
    }

    pub(super) fn next_removal(&self, state: &mut State, action: Action) {
        match action {
            Action::Remove(collector, removed) => state.collectors[collector] = Collector::Removing(removed),
            Action::RemovalLands(collector) => {
                let Collector::Removing(removed) = state.collectors[collector] else { return };
                match removed {
                    Removed::Link(link) => state.links &= !(1 << link),
                    Removed::Dying(data) | Removed::Waste(data) => state.data &= !(1 << data),
                    Removed::Manifest(object) => state.manifests &= !(1 << object),
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
                    Removed::Waste(data) => self.shard_mut(state, data).waste &= !(1 << data),
                    Removed::Manifest(object) => self.shard_mut(state, object).strays &= !(1 << object),
                }
            }
            Action::DropTrash(collector) => {
                let Collector::Forgotten(link) = state.collectors[collector] else { return };
                self.shard_mut(state, link).trash &= !(1 << link);
                state.collectors[collector] = Collector::Idle;
            }
            _ => {}
        }
    }
}
