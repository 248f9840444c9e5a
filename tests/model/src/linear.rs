//! Whether what clients saw of one tag can be explained by an order of what they did: each write and each read
//! happens at one moment between its call and its answer, and a write that was never answered happens at one
//! moment after its call, or never.
//!
//! The monitor holds every explanation that is still possible; when there is none left, a promise is broken.

use std::collections::BTreeSet;

/// What a tag points at: one of the manifests, or nothing.
pub type Value = Option<u8>;

/// What a client wants of the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wish {
    /// It shall point at this manifest.
    Push(u8),
    /// It shall point at this manifest, if there is no such tag.
    Create(u8),
    /// There shall be no such tag.
    Delete,
    /// This manifest shall go, and with it the tag if it points there.
    DeleteManifest(u8),
}

/// How a write was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// It is done.
    Done,
    /// The tag was there, for [`Wish::Create`], or wasn't, for [`Wish::Delete`]; nothing was done.
    Refused,
}

impl Wish {
    /// What the tag points at afterwards, and the answer.
    fn apply(self, before: Value) -> (Value, Answer) {
        match (self, before) {
            (Self::Push(to), _) | (Self::Create(to), None) => (Some(to), Answer::Done),
            (Self::Create(_), there) => (there, Answer::Refused),
            (Self::Delete, Some(_)) => (None, Answer::Done),
            (Self::Delete, None) => (None, Answer::Refused),
            (Self::DeleteManifest(at), Some(there)) if at == there => (None, Answer::Done),
            (Self::DeleteManifest(_), there) => (there, Answer::Done),
        }
    }
}

/// One explanation: what has happened so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Explanation {
    value: Value,
    /// By write: the answer that it must get, once it has happened.
    writes: Vec<Option<Answer>>,
    /// By reader: what it must be answered, once its read has happened.
    reads: Vec<Option<Value>>,
}

/// Every explanation that is still possible.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monitor {
    /// By write: what was wanted, once it was called.
    called: Vec<Option<Wish>>,
    /// By reader: whether it waits for an answer.
    reading: Vec<bool>,
    possible: BTreeSet<Explanation>,
}

impl Monitor {
    /// A tag that points at `value`, before `writes` writes and any number of reads by `readers` readers.
    pub fn new(value: Value, writes: usize, readers: usize) -> Self {
        let start = Explanation { value, writes: vec![None; writes], reads: vec![None; readers] };
        Self { called: vec![None; writes], reading: vec![false; readers], possible: BTreeSet::from([start]) }
    }

    /// A write was called.
    pub fn call(&mut self, write: usize, wish: Wish) {
        self.called[write] = Some(wish);
    }

    /// It was answered. A write that is never answered stays open.
    pub fn answer(&mut self, write: usize, answer: Answer) {
        self.explain();
        self.possible.retain(|explanation| explanation.writes[write] == Some(answer));
    }

    /// A read was called.
    pub fn read(&mut self, reader: usize) {
        self.reading[reader] = true;
    }

    /// It was answered.
    pub fn saw(&mut self, reader: usize, value: Value) {
        self.explain();
        self.reading[reader] = false;
        let kept = self.possible.iter().filter(|explanation| explanation.reads[reader] == Some(value)).cloned();
        let forgotten = kept.map(|mut explanation| {
            explanation.reads[reader] = None;
            explanation
        });
        self.possible = forgotten.collect();
    }

    /// Whether there is still an explanation.
    pub fn is_explained(&self) -> bool {
        !self.possible.is_empty()
    }

    /// Lets everything that was called and has not happened happen, in every order.
    fn explain(&mut self) {
        let mut todo: Vec<Explanation> = self.possible.iter().cloned().collect();
        while let Some(explanation) = todo.pop() {
            for next in self.next(&explanation) {
                if self.possible.insert(next.clone()) {
                    todo.push(next);
                }
            }
        }
    }

    fn next(&self, now: &Explanation) -> Vec<Explanation> {
        let mut next = Vec::new();
        for (write, wish) in self.called.iter().enumerate() {
            if let (Some(wish), None) = (wish, now.writes[write]) {
                let mut then = now.clone();
                let (value, answer) = wish.apply(now.value);
                then.value = value;
                then.writes[write] = Some(answer);
                next.push(then);
            }
        }
        for (reader, reading) in self.reading.iter().enumerate() {
            if *reading && now.reads[reader].is_none() {
                let mut then = now.clone();
                then.reads[reader] = Some(now.value);
                next.push(then);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_goes_back_has_no_explanation() {
        let mut monitor = Monitor::new(Some(0), 1, 1);
        monitor.call(0, Wish::Push(1));
        monitor.read(0);
        monitor.saw(0, Some(1));
        assert!(monitor.is_explained(), "a write may happen before it is answered");
        monitor.read(0);
        monitor.saw(0, Some(0));
        assert!(!monitor.is_explained());
    }

    #[test]
    fn a_write_that_was_answered_has_happened() {
        let mut monitor = Monitor::new(Some(0), 1, 1);
        monitor.call(0, Wish::Delete);
        monitor.answer(0, Answer::Done);
        monitor.read(0);
        monitor.saw(0, Some(0));
        assert!(!monitor.is_explained());
    }

    #[test]
    fn of_two_who_create_one_is_refused() {
        let mut monitor = Monitor::new(None, 2, 0);
        monitor.call(0, Wish::Create(1));
        monitor.call(1, Wish::Create(2));
        monitor.answer(0, Answer::Done);
        monitor.answer(1, Answer::Done);
        assert!(!monitor.is_explained());
    }

    #[test]
    fn two_readers_agree_on_an_order() {
        let mut monitor = Monitor::new(Some(0), 2, 2);
        monitor.call(0, Wish::Push(1));
        monitor.call(1, Wish::Push(2));
        for (reader, value) in [(0, 1), (1, 2), (0, 2)] {
            monitor.read(reader);
            monitor.saw(reader, Some(value));
        }
        assert!(monitor.is_explained());
        monitor.read(1);
        monitor.saw(1, Some(1));
        assert!(!monitor.is_explained());
    }
}
