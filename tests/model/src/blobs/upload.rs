//! An upload that goes on from replica to replica: bytes are put aside, the record says where, anybody closes it.

use super::{
    Action, Blobs, Check, State,
    state::{Push, Put, Step, Upload, has},
};

impl Blobs {
    /// A request that brings bytes, and puts them aside.
    pub(super) fn aside_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, epoch, own, seen, .. } = state.pushes[push];
        match step {
            Step::Start if self.shard(state, push).is_known() => actions.push(Action::OpenUpload(push)),
            Step::Noted if epoch == state.epoch => {
                if own == Put::No {
                    actions.push(Action::PutData(push));
                }
                // The first bytes are put beside their note, later ones before it.
                let may_note = if seen == Upload::Absent { own != Put::No } else { own == Put::Landed };
                if may_note {
                    actions.push(Action::NoteAside(push));
                }
            }
            _ => {}
        }
        if own == Put::Sent {
            actions.push(Action::DataLands(push));
        }
        if has(state.data, push) && !has(state.old, push) {
            actions.push(Action::Age(push));
        }
    }

    /// A request that makes the upload a blob.
    pub(super) fn close_actions(&self, state: &State, push: usize, actions: &mut Vec<Action>) {
        let Push { step, epoch, .. } = state.pushes[push];
        let shard = self.shard(state, push);
        if step == Step::Start && shard.is_known() && matches!(shard.upload, Upload::Open(_)) {
            actions.push(Action::OpenAttempt(push));
        }
        if step == Step::Noted && epoch == state.epoch {
            actions.push(Action::ConfirmAside(push));
        }
        self.link_actions(state, push, actions);
    }

    pub(super) fn next_upload(&self, state: &mut State, action: Action) {
        match action {
            Action::OpenUpload(push) => {
                let (seen, epoch) = (state.facts.shards[0].upload, state.epoch);
                let put = &mut state.pushes[push];
                (put.seen, put.epoch) = (seen, epoch);
                put.step = if seen == Upload::Over { Step::Over } else { Step::Noted };
            }
            Action::NoteAside(push) => self.note_aside(state, push),
            Action::Age(push) => state.old |= 1 << push,
            Action::ConfirmAside(push) => self.confirm_aside(state, push),
            Action::ExpireUpload => Self::end_upload(state),
            _ => {}
        }
    }

    fn note_aside(&self, state: &mut State, push: usize) {
        let seen = state.pushes[push].seen;
        let shard = &mut state.facts.shards[0];
        if shard.upload == seen || !self.checks(Check::AppendUnmoved) {
            shard.upload = Upload::Open(push);
            if let Upload::Open(before) = seen {
                shard.waste |= 1 << before;
            }
        } else {
            shard.waste |= 1 << push;
        }
        state.pushes[push].step = Step::Over;
    }

    /// Makes sure that what was put aside is there, and will be: else the upload is abandoned. Who has the proof
    /// knows that it was there.
    fn confirm_aside(&self, state: &mut State, push: usize) {
        let Upload::Open(aside) = state.pushes[push].seen else { return };
        let was_put = state.pushes[aside].own == Put::Landed || !self.checks(Check::ConfirmAside);
        let is_young = !has(state.old, aside) || !self.checks(Check::AsideYoung);
        if was_put && is_young {
            (state.pushes[push].data, state.pushes[push].step) = (Some(aside), Step::Writes);
            return;
        }
        state.pushes[push].step = Step::Over;
        if state.facts.shards[0].upload == Upload::Open(aside) {
            Self::end_upload(state);
        }
    }

    fn end_upload(state: &mut State) {
        let shard = &mut state.facts.shards[0];
        if let Upload::Open(aside) = shard.upload {
            shard.waste |= 1 << aside;
        }
        shard.upload = Upload::Over;
    }
}
