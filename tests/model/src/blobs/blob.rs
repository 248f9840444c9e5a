//! Linking a blob: the attempt, bytes of its own or joined ones, the link, the commit.

use super::{
    Action, Blobs, Check, State, Wish,
    state::{Data, Push, Put, Shard, Step, Upload, each, has},
};

impl Blobs {
    /// The data key that a push draws.
    pub(super) fn own(&self, push: usize) -> usize {
        let place = |number: usize| (self.repository(number), self.blob(number));
        let is_same = |other: &usize| !self.is_manifest(*other) && place(*other) == place(push);
        if self.checks(Check::FreshKeys) { push } else { self.numbers().rev().find(is_same).unwrap_or(push) }
    }

    /// The data that a link names.
    pub(super) fn data_of(&self, state: &State, link: usize) -> Option<usize> {
        match state.pushes.get(link) {
            Some(push) => push.data,
            None => Some(link),
        }
    }

    pub(super) fn shard<'a>(&self, state: &'a State, number: usize) -> &'a Shard {
        &state.facts.shards[self.repository(number)]
    }

    pub(super) fn shard_mut<'a>(&self, state: &'a mut State, number: usize) -> &'a mut Shard {
        &mut state.facts.shards[self.repository(number)]
    }

    /// Whether the bytes that a push links become a fact together with its link.
    fn links_own(&self, push: usize, state: &State) -> bool {
        let Push { data, seen, .. } = state.pushes[push];
        match self.pushes[push] {
            Wish::Close => data.is_some() && seen == data.map_or(Upload::Absent, Upload::Open),
            _ => data == Some(self.own(push)),
        }
    }

    /// The batch that lets a link's attempt become a fact, or gives way to the link that is there.
    fn commit_link(&self, state: &mut State, push: usize) {
        let Push { data: Some(data), seen, .. } = state.pushes[push] else { return };
        let (links_own, blob) = (self.links_own(push, state), self.blob(push));
        let (is_closing, is_guarded) = (self.pushes[push] == Wish::Close, self.checks(Check::CloseUnmoved));
        let shard = self.shard_mut(state, push);
        let is_noted = has(shard.attempts, push) || !self.checks(Check::CommitNoted);
        let is_unmoved = !is_closing || shard.upload == seen || !is_guarded;
        shard.attempts &= !(1 << push);
        if !is_noted || !is_unmoved {
            // Another request has ended the upload, or this attempt. What only it wrote is garbage.
            shard.trash |= 1 << push;
            shard.waste |= if is_closing { 0 } else { 1 << self.own(push) };
            state.pushes[push].step = Step::Over;
            return;
        }
        if is_closing {
            shard.upload = Upload::Over;
        }
        let aside = if let (true, Upload::Open(aside)) = (is_closing, seen) { 1 << aside } else { 0 };
        if shard.links[blob].is_some() {
            shard.trash |= 1 << push;
            shard.waste |= aside | if links_own { 1 << data } else { 0 };
        } else {
            shard.links[blob] = Some(push);
            shard.waste |= if links_own { 0 } else { aside };
            if links_own && self.checks(Check::LinkBesideData) {
                state.facts.data[data] = Data::Live;
                self.use_of(state, data, push);
            }
        }
        state.pushes[push].step = Step::Over;
        state.pushes[push].is_committed = true;
    }

    /// A link becomes a user of data.
    pub(super) fn use_of(&self, state: &mut State, data: usize, link: usize) {
        if self.checks(Check::Users) {
            state.facts.users[data] |= 1 << link;
        }
    }

    pub(super) fn blob_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, own, .. } = state.pushes[push];
        let is_known = self.shard(state, push).is_known();
        if step == Step::Start && (is_known || !self.checks(Check::ReconcileFirst)) {
            actions.push(Action::OpenAttempt(push));
            if !self.checks(Check::NoteFirst) && own == Put::No {
                actions.push(Action::PutData(push));
            }
        }
        if step == Step::Noted && state.pushes[push].epoch == state.epoch {
            actions.push(Action::PutData(push));
        }
        self.link_actions(state, push, actions);
    }

    /// What blobs and closing uploads have in common.
    pub(super) fn link_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, epoch, own, link, is_committed, .. } = state.pushes[push];
        let is_current = epoch == state.epoch;
        if step == Step::Noted && is_current {
            let is_joinable = |&other: &usize| self.is_hinted(state, push, other);
            actions.extend(self.numbers().filter(is_joinable).map(|other| Action::Join(push, other)));
        }
        if matches!(step, Step::Writes | Step::Claimed) && is_current {
            if link == Put::No {
                actions.push(Action::PutLink(push));
            }
            let is_claimed = step == Step::Claimed || self.checks(Check::LinkBesideData);
            if self.links_own(push, state) && !is_claimed {
                if own == Put::Landed {
                    actions.push(Action::ClaimData(push));
                }
            } else if link == Put::Landed && self.has_bytes(state, push) {
                actions.push(Action::CommitLink(push));
            }
        }
        let is_noted = has(self.shard(state, push).attempts, push);
        if is_current && (is_noted || (is_committed && !self.checks(Check::ForgetNoted))) {
            actions.push(Action::Forget(push));
        }
        if own == Put::Sent {
            actions.push(Action::DataLands(push));
        }
        if link == Put::Sent {
            actions.push(Action::LinkLands(push));
        }
    }

    /// Whether a hint may name these data to a push; it is never trusted.
    fn is_hinted(&self, state: &State, push: usize, data: usize) -> bool {
        data != self.own(push) && self.blob(data) == self.blob(push) && state.facts.data[data] != Data::Absent
    }

    fn may_join(&self, state: &State, data: usize) -> bool {
        state.facts.data[data] == Data::Live || !self.checks(Check::JoinRefusesDying)
    }

    /// Whether the bytes that a push links were confirmed.
    fn has_bytes(&self, state: &State, push: usize) -> bool {
        let Push { own, data, .. } = state.pushes[push];
        data != Some(self.own(push)) || own == Put::Landed || !self.checks(Check::BytesFirst)
    }

    pub(super) fn next_blob(&self, state: &mut State, action: Action) {
        match action {
            Action::OpenAttempt(push) => {
                let has_link = self.shard(state, push).links[self.blob(push)].is_some();
                let epoch = state.epoch;
                let shard = self.shard_mut(state, push);
                let seen = shard.upload;
                shard.attempts |= 1 << push;
                let put = &mut state.pushes[push];
                (put.epoch, put.seen) = (epoch, seen);
                put.step = if put.own == Put::No { Step::Noted } else { Step::Writes };
                if has_link && put.own == Put::No && self.pushes[push] != Wish::Close {
                    // It is renewed, and nothing is written.
                    put.step = Step::Over;
                    self.shard_mut(state, push).attempts &= !(1 << push);
                }
            }
            Action::PutData(push) => {
                let own = self.own(push);
                let put = &mut state.pushes[push];
                (put.own, put.data) = (Put::Sent, Some(own));
                if put.step == Step::Noted && self.pushes[push] != Wish::Aside {
                    put.step = Step::Writes;
                }
            }
            Action::Join(push, data) if self.may_join(state, data) => {
                self.use_of(state, data, push);
                (state.pushes[push].data, state.pushes[push].step) = (Some(data), Step::Writes);
            }
            Action::DataLands(push) => {
                state.data |= 1 << self.own(push);
                state.pushes[push].own = Put::Landed;
            }
            Action::PutLink(push) => state.pushes[push].link = Put::Sent,
            Action::LinkLands(push) => {
                state.links |= 1 << push;
                state.pushes[push].link = Put::Landed;
            }
            Action::ClaimData(push) => {
                let own = self.own(push);
                state.facts.data[own] = Data::Live;
                self.use_of(state, own, push);
                state.pushes[push].step = Step::Claimed;
            }
            Action::CommitLink(push) => self.commit_link(state, push),
            Action::Forget(push) => {
                self.end_attempt(state, push);
                self.shard_mut(state, push).trash |= 1 << push;
            }
            Action::ExpireAttempt(push) => self.end_attempt(state, push),
            _ => {}
        }
    }

    /// Ends an attempt. A commit of it that is on the way is refused from then on.
    fn end_attempt(&self, state: &mut State, push: usize) {
        let has_own = self.pushes[push] != Wish::Close;
        let own = self.own(push);
        let shard = self.shard_mut(state, push);
        shard.attempts &= !(1 << push);
        shard.waste |= if has_own { 1 << own } else { 0 };
    }

    /// Attempts, and the upload, that don't move.
    pub(super) fn expiry_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let attempts = state.facts.shards.iter().flat_map(|shard| each(shard.attempts));
        actions.extend(attempts.map(Action::ExpireAttempt));
        if let Upload::Open(_) = state.facts.shards[0].upload {
            actions.push(Action::ExpireUpload);
        }
    }
}
