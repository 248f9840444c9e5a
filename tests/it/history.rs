//! What clients did to a registry, and whether it kept its word: a recorder and a checker.
//!
//! Each manifest that is pushed to a tag has a number of its own, growing with every attempt. A write that
//! was acknowledged counts from its answer on; one whose answer never came counts from some moment on or
//! never, and once it was seen it counts. So:
//!
//! - a read that began after a write of number n was acknowledged, or after a read that saw n ended, must not
//!   see less than n;
//! - no read may see a number that nobody had sent when it ended;
//! - what a tag pointed at must be readable, all of it.
//!
//! Several writers of one tag would make "less" wrong, as the order of their writes is the registry's; each
//! tag has one writer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// A moment in the history: nothing else happened at the same one.
type Moment = usize;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// No such tag.
    Nothing,
    /// The manifest of this number, with all its blobs.
    Whole(u64),
    /// The manifest of this number, or what it names, could not be read.
    Broken(u64),
}

/// One thing that a client did.
#[derive(Clone, Debug)]
enum Done {
    /// The manifest of this number was pushed; `ended` is when it was acknowledged, if it was.
    Write { number: u64, began: Moment, ended: Option<Moment> },
    /// The tag was read.
    Read { seen: Seen, began: Moment, ended: Moment },
}

#[derive(Debug, Default)]
struct Inner {
    now: Moment,
    tags: BTreeMap<String, Vec<Done>>,
}

/// Records what clients do. Clones share one history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<Inner>>);

/// A write that has begun: where it stands in the history.
#[derive(Debug)]
pub(crate) struct Writing {
    tag: String,
    index: usize,
}

/// How much was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) reads: usize,
}

impl Recorder {
    /// A push of `number` to `tag` is about to be sent.
    pub(crate) fn write(&self, tag: &str, number: u64) -> Writing {
        let mut inner = self.0.lock().expect("lock");
        let began = inner.tick();
        let done = inner.tags.entry(tag.to_owned()).or_default();
        done.push(Done::Write { number, began, ended: None });
        Writing { tag: tag.to_owned(), index: done.len() - 1 }
    }

    /// It was acknowledged. One that never is stays open.
    pub(crate) fn acknowledged(&self, writing: &Writing) {
        let mut inner = self.0.lock().expect("lock");
        let now = inner.tick();
        let done = inner.tags.get_mut(&writing.tag).and_then(|done| done.get_mut(writing.index));
        if let Some(Done::Write { ended, .. }) = done {
            *ended = Some(now);
        }
    }

    /// A read is about to be sent.
    pub(crate) fn read(&self) -> Moment {
        self.0.lock().expect("lock").tick()
    }

    /// It was answered. One that never is says nothing.
    pub(crate) fn saw(&self, tag: &str, began: Moment, seen: Seen) {
        let mut inner = self.0.lock().expect("lock");
        let ended = inner.tick();
        inner.tags.entry(tag.to_owned()).or_default().push(Done::Read { seen, began, ended });
    }

    /// What was wrong, one line each; and how much there was.
    pub(crate) fn check(&self) -> (Vec<String>, Checked) {
        let inner = self.0.lock().expect("lock");
        let mut checked = Checked::default();
        let complaints = inner.tags.iter().flat_map(|(tag, done)| check_tag(tag, done, &mut checked));
        (complaints.collect(), checked)
    }
}

impl Inner {
    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }
}

fn check_tag(tag: &str, done: &[Done], checked: &mut Checked) -> Vec<String> {
    let mut complaints = Vec::new();
    for done_here in done {
        match done_here {
            Done::Write { ended: Some(_), .. } => checked.acknowledged += 1,
            Done::Write { ended: None, .. } => checked.unknown += 1,
            Done::Read { seen, began, ended } => {
                checked.reads += 1;
                let least = least(done, *began);
                match *seen {
                    Seen::Broken(number) => complaints.push(format!("{tag}: {number} can't be read whole")),
                    Seen::Nothing if least > 0 => complaints.push(format!("{tag}: {least} is gone")),
                    Seen::Whole(number) if number < least => {
                        complaints.push(format!("{tag}: back from {least} to {number}"));
                    }
                    Seen::Whole(number) if !was_sent(done, number, *ended) => {
                        complaints.push(format!("{tag}: {number} was seen before anybody sent it"));
                    }
                    Seen::Nothing | Seen::Whole(_) => {}
                }
            }
        }
    }
    complaints
}

/// The least number that a read which began at `at` may see; 0 if the tag may be missing.
fn least(done: &[Done], at: Moment) -> u64 {
    let known = |done: &Done| match *done {
        Done::Write { number, ended: Some(ended), .. } if ended < at => Some(number),
        Done::Read { seen: Seen::Whole(number) | Seen::Broken(number), ended, .. } if ended < at => Some(number),
        Done::Write { .. } | Done::Read { .. } => None,
    };
    done.iter().filter_map(known).max().unwrap_or(0)
}

fn was_sent(done: &[Done], wanted: u64, by: Moment) -> bool {
    done.iter().any(|done| matches!(done, Done::Write { number, began, .. } if *number == wanted && *began < by))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(recorder: &Recorder, number: u64) {
        let writing = recorder.write("t", number);
        recorder.acknowledged(&writing);
    }

    fn saw(recorder: &Recorder, seen: Seen) {
        let began = recorder.read();
        recorder.saw("t", began, seen);
    }

    fn complaints(recorder: &Recorder) -> Vec<String> {
        recorder.check().0
    }

    #[test]
    fn a_good_history_with_an_unknown_outcome_is_good() {
        let recorder = Recorder::default();
        saw(&recorder, Seen::Nothing);
        pushed(&recorder, 1);
        saw(&recorder, Seen::Whole(1));
        recorder.write("t", 2);
        saw(&recorder, Seen::Whole(1));
        saw(&recorder, Seen::Whole(2));
        recorder.write("t", 3);
        pushed(&recorder, 4);
        saw(&recorder, Seen::Whole(4));
        assert_eq!(recorder.check(), (Vec::new(), Checked { acknowledged: 2, unknown: 2, reads: 5 }));
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        let recorder = Recorder::default();
        pushed(&recorder, 1);
        let writing = recorder.write("t", 2);
        let (early, late) = (recorder.read(), recorder.read());
        recorder.saw("t", late, Seen::Whole(2));
        recorder.saw("t", early, Seen::Whole(1));
        recorder.acknowledged(&writing);
        assert_eq!(complaints(&recorder), Vec::<String>::new());
    }

    #[test]
    fn an_answer_before_the_tag_is_written_is_caught() {
        let recorder = Recorder::default();
        pushed(&recorder, 1);
        saw(&recorder, Seen::Nothing);
        assert_eq!(complaints(&recorder), ["t: 1 is gone"]);
        pushed(&recorder, 2);
        saw(&recorder, Seen::Whole(1));
        assert_eq!(complaints(&recorder).len(), 2);
    }

    #[test]
    fn a_revision_that_goes_back_is_caught() {
        let recorder = Recorder::default();
        pushed(&recorder, 1);
        recorder.write("t", 2);
        // Nobody was told that 2 was done, but it was seen.
        saw(&recorder, Seen::Whole(2));
        saw(&recorder, Seen::Whole(1));
        assert_eq!(complaints(&recorder), ["t: back from 2 to 1"]);
    }

    #[test]
    fn a_blob_that_is_missing_is_caught() {
        let recorder = Recorder::default();
        pushed(&recorder, 1);
        saw(&recorder, Seen::Broken(1));
        assert_eq!(complaints(&recorder), ["t: 1 can't be read whole"]);
    }

    #[test]
    fn what_nobody_sent_is_caught() {
        let recorder = Recorder::default();
        saw(&recorder, Seen::Whole(7));
        assert_eq!(complaints(&recorder), ["t: 7 was seen before anybody sent it"]);
    }
}
