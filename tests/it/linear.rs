//! Whether what many clients saw of one tag can be explained by an order of what they did.
//!
//! `stateright` searches for the order. Three things keep its search short, and none changes its verdict. The
//! histories are short, as clients move on to fresh tags. A push of a manifest that only this push put on
//! the tag, whose outcome nobody knows, is left out if nobody ever saw it, and ends at the end of the first
//! read that did. And the steps are counted: a history that takes too many is said to be undecided.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use crate::ledger::Moment;

/// How many steps a search may take. Those of healthy histories take some hundreds.
const STEPS: u64 = 20_000_000;

/// What is done to a tag, by what names a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// It shall point at this manifest.
    Set(String),
    /// There shall be no such tag.
    Delete,
    /// This manifest shall go, and with it the tag if it points there.
    DeleteManifest(String),
    /// Where does it point?
    Read,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ret {
    Done,
    /// The tag that was to be deleted isn't there.
    Missing,
    Saw(Option<String>),
}

/// Something that a client did; one that was never answered has no end.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) op: Op,
    pub(crate) began: Moment,
    pub(crate) ended: Option<(Moment, Ret)>,
}

/// One tag.
#[derive(Clone, Debug)]
struct Tag {
    to: Option<String>,
    steps: Rc<Cell<u64>>,
}

impl SequentialSpec for Tag {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match op {
            Op::Set(digest) => self.to = Some(digest.clone()),
            Op::Delete if self.to.take().is_none() => return Ret::Missing,
            Op::DeleteManifest(digest) => {
                self.to.take_if(|to| to == digest);
            }
            Op::Delete => {}
            Op::Read => return Ret::Saw(self.to.clone()),
        }
        Ret::Done
    }

    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        self.steps.set(self.steps.get().saturating_sub(1));
        self.steps.get() > 0 && self.invoke(op) == *ret
    }
}

/// Looks for an order that explains the history of a tag that wasn't there at first. Returns how many events
/// were explained; or else what is wrong.
pub(crate) fn explain(history: &[Event]) -> Result<usize, String> {
    let events = shortened(history);
    let steps = Rc::new(Cell::new(STEPS));
    let mut tester = LinearizabilityTester::new(Tag { to: None, steps: Rc::clone(&steps) });
    for (_, thread, call) in in_order(&events) {
        let told = match call {
            Call::Invoke(op) => tester.on_invoke(thread, op).map(drop),
            Call::Return(ret) => tester.on_return(thread, ret).map(drop),
        };
        told.map_err(|error| format!("the history is not one: {error}"))?;
    }
    match tester.is_consistent() {
        true => Ok(history.len()),
        false if steps.get() == 0 => Err(format!("undecided after {STEPS} steps:{}", written(history))),
        false => Err(format!("no order explains it:{}", written(history))),
    }
}

enum Call {
    Invoke(Op),
    Return(Ret),
}

/// The calls and returns in the order of their moments, each by a thread that does one thing at a time.
fn in_order(events: &[Event]) -> Vec<(Moment, usize, Call)> {
    let mut free_from: Vec<Option<Moment>> = Vec::new();
    let mut calls = Vec::new();
    for event in events {
        let ended = event.ended.as_ref().map(|(moment, _)| *moment);
        let free = free_from.iter().position(|from| from.is_some_and(|from| from < event.began));
        let thread = free.unwrap_or_else(|| {
            free_from.push(None);
            free_from.len() - 1
        });
        free_from[thread] = ended;
        calls.push((event.began, thread, Call::Invoke(event.op.clone())));
        if let Some((moment, ret)) = &event.ended {
            calls.push((*moment, thread, Call::Return(ret.clone())));
        }
    }
    calls.sort_by_key(|(moment, ..)| *moment);
    calls
}

/// The same history, by its beginnings, without what never mattered.
fn shortened(history: &[Event]) -> Vec<Event> {
    let mut pushes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut seen: BTreeMap<&str, Moment> = BTreeMap::new();
    for event in history {
        match (&event.op, &event.ended) {
            (Op::Set(digest), _) => *pushes.entry(digest).or_default() += 1,
            (Op::Read, Some((ended, Ret::Saw(Some(digest))))) => {
                let first = seen.entry(digest).or_insert(*ended);
                *first = (*first).min(*ended);
            }
            _ => {}
        }
    }
    let mut events: Vec<Event> = history
        .iter()
        .filter_map(|event| match (&event.op, &event.ended) {
            (Op::Read, None) => None,
            (Op::Set(digest), None) if pushes[digest.as_str()] == 1 => {
                let ended = *seen.get(digest.as_str())?;
                // A read that ended before the push began saw what nobody had sent: that stays unexplained.
                let ended = (ended > event.began).then_some((ended, Ret::Done));
                Some(Event { ended, ..event.clone() })
            }
            _ => Some(event.clone()),
        })
        .collect();
    events.iter_mut().for_each(spread);
    events.sort_by_key(|event| event.began);
    events
}

/// Makes room between moments: a push that ends at the end of a read ends just before it.
fn spread(event: &mut Event) {
    event.began *= 2;
    if let Some((ended, _)) = &mut event.ended {
        *ended = *ended * 2 - usize::from(matches!(event.op, Op::Set(_)));
    }
}

/// The history for people: manifests by the first characters of their digests.
fn written(history: &[Event]) -> String {
    let mut events = history.to_vec();
    events.sort_by_key(|event| event.began);
    let line = |event: &Event| {
        let ended = match &event.ended {
            Some((moment, ret)) => format!("{moment} {ret:?}"),
            None => "never answered".to_owned(),
        };
        format!("\n    {:?} from {} to {ended}", event.op, event.began)
    };
    let text: String = events.iter().map(line).collect();
    shorter(&text)
}

/// Cuts digests short.
fn shorter(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hex = part.chars().take_while(char::is_ascii_hexdigit).count();
        short.push_str(&part[..hex.min(8)]);
        short.push_str(&part[hex..]);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(op: Op, began: Moment, ended: Option<(Moment, Ret)>) -> Event {
        Event { op, began, ended }
    }

    fn set(digest: &str, began: Moment, ended: Option<Moment>) -> Event {
        event(Op::Set(digest.to_owned()), began, ended.map(|ended| (ended, Ret::Done)))
    }

    fn saw(digest: Option<&str>, began: Moment, ended: Moment) -> Event {
        event(Op::Read, began, Some((ended, Ret::Saw(digest.map(str::to_owned)))))
    }

    #[test]
    fn writers_that_overlap_may_come_in_either_order() {
        let history = [set("a", 1, Some(4)), set("b", 2, Some(3)), saw(Some("a"), 5, 6), saw(Some("a"), 7, 8)];
        assert_eq!(explain(&history), Ok(4));
        let torn = [set("a", 1, Some(4)), set("b", 2, Some(3)), saw(Some("a"), 5, 6), saw(Some("b"), 7, 8)];
        assert!(explain(&torn).is_err());
    }

    #[test]
    fn what_was_never_answered_happens_later_or_never_and_never_un_happens() {
        let open = [set("a", 1, Some(2)), set("b", 3, None)];
        let with = |reads: &[Event]| explain(&[&open[..], reads].concat());
        assert_eq!(with(&[saw(Some("a"), 4, 5), saw(Some("b"), 6, 7)]), Ok(4));
        assert_eq!(with(&[saw(Some("a"), 4, 5), saw(Some("a"), 6, 7)]), Ok(4));
        assert!(with(&[saw(Some("b"), 4, 5), saw(Some("a"), 6, 7)]).is_err());
        assert!(with(&[saw(None, 4, 5)]).is_err());
    }

    #[test]
    fn what_was_seen_before_it_was_sent_has_no_explanation() {
        assert!(explain(&[saw(Some("a"), 1, 2), set("a", 3, None)]).is_err());
        assert!(explain(&[saw(Some("a"), 1, 2), set("a", 3, Some(4))]).is_err());
    }

    #[test]
    fn the_same_manifest_twice_may_come_back() {
        let again = [set("a", 1, Some(2)), set("b", 3, Some(4)), set("a", 5, None), saw(Some("b"), 6, 7)];
        assert_eq!(explain(&[&again[..], &[saw(Some("a"), 8, 9)]].concat()), Ok(5));
    }

    #[test]
    fn deletes_count_for_what_they_answered() {
        let delete = |began, ret| event(Op::Delete, began, Some((began + 1, ret)));
        let gone = event(Op::DeleteManifest("a".to_owned()), 3, Some((4, Ret::Done)));
        assert_eq!(explain(&[set("a", 1, Some(2)), gone.clone(), saw(None, 5, 6)]), Ok(3));
        assert!(explain(&[set("a", 1, Some(2)), gone, saw(Some("a"), 5, 6)]).is_err());
        assert_eq!(explain(&[set("a", 1, Some(2)), delete(3, Ret::Done), delete(5, Ret::Missing)]), Ok(3));
        assert!(explain(&[set("a", 1, Some(2)), delete(3, Ret::Missing)]).is_err());
        let unknown = event(Op::Delete, 3, None);
        assert_eq!(explain(&[set("a", 1, Some(2)), unknown, saw(Some("a"), 4, 5), saw(None, 6, 7)]), Ok(4));
    }
}
