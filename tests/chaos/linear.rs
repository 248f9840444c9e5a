//! Whether what many clients saw of one tag can be explained by an order of what they did.
//!
//! The tag is one of `stateright`'s sequential specifications, and its tester for recorded histories says what an
//! order is; a test compares the two. The search is ours, for that tester forgets what it has tried: a few
//! operations that were never answered, each of which may have happened at any moment since, keep it busy for
//! hours. Here each set of operations that have happened is looked at once for each state of the tag.

use std::collections::{HashMap, HashSet};

use stateright::semantics::SequentialSpec;

use crate::ledger::Moment;

/// How many events a history may have: a bit for each.
const LONGEST: usize = 128;

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

/// One tag: what it points at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Tag(Option<String>);

impl SequentialSpec for Tag {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        match op {
            Op::Set(digest) => self.0 = Some(digest.clone()),
            Op::Delete if self.0.take().is_none() => return Ret::Missing,
            Op::DeleteManifest(digest) => {
                self.0.take_if(|to| to == digest);
            }
            Op::Delete => {}
            Op::Read => return Ret::Saw(self.0.clone()),
        }
        Ret::Done
    }
}

/// Looks for an order that explains the history of a tag that wasn't there at first. Returns how many events
/// were explained; or else what is wrong.
pub(crate) fn explain(history: &[Event]) -> Result<usize, String> {
    let events = shortened(history);
    if events.len() > LONGEST {
        return Err(format!("{} events are too many to look for their order", events.len()));
    }
    match Search::of(&events).go_on(0, &Tag::default()) {
        true => Ok(history.len()),
        false => Err(format!("no order explains it:{}", written(history))),
    }
}

/// The same history without what can't matter: of operations that were never answered, each may happen at any
/// moment or never, and all of them would have to be tried. None of this changes the verdict.
///
/// - A push of what only it put on the tag ends before the end of the first read that saw that.
/// - One of what nobody saw or deleted can only have made the tag be there for a deletion that was done: the first
///   of them are as good as any, as many as there are such deletions.
/// - A deletion of a manifest has an effect once for each push of it at most: again the first ones are kept.
fn shortened(history: &[Event]) -> Vec<Event> {
    let pushes =
        |of: &String| history.iter().filter(|event| matches!(&event.op, Op::Set(digest) if digest == of)).count();
    let first_seen = |of: &String| {
        let saw = |event: &Event| match &event.ended {
            Some((ended, Ret::Saw(Some(digest)))) if digest == of => Some(*ended),
            _ => None,
        };
        history.iter().filter_map(saw).min()
    };
    let is_deleted =
        |of: &String| history.iter().any(|event| matches!(&event.op, Op::DeleteManifest(digest) if digest == of));
    let is_deletion = |event: &&Event| event.op == Op::Delete && matches!(event.ended, Some((_, Ret::Done)));
    let mut unseen = history.iter().filter(is_deletion).count() as isize;
    let mut deletions: HashMap<String, usize> = HashMap::new();
    let mut events = Vec::new();
    for event in in_order(history) {
        let mut event = Event { began: event.began * 2, ..event.clone() };
        if let Some((ended, _)) = &mut event.ended {
            *ended *= 2;
        }
        let is_kept = match (&event.op, &event.ended) {
            (_, Some(_)) | (Op::Delete, None) => true,
            (Op::Read, None) => false,
            (Op::Set(digest), None) => match first_seen(digest) {
                None if is_deleted(digest) => true,
                None => {
                    unseen -= 1;
                    unseen >= 0
                }
                Some(seen) => {
                    if pushes(digest) == 1 && seen * 2 > event.began {
                        event.ended = Some((seen * 2 - 1, Ret::Done));
                    }
                    true
                }
            },
            (Op::DeleteManifest(digest), None) => {
                let kept = deletions.entry(digest.clone()).or_default();
                *kept += 1;
                *kept <= pushes(digest)
            }
        };
        if is_kept {
            events.push(event);
        }
    }
    // What must happen is tried before what may.
    events.sort_by_key(|event| event.ended.as_ref().map_or(Moment::MAX, |(ended, _)| *ended));
    events
}

fn in_order(history: &[Event]) -> Vec<&Event> {
    let mut events: Vec<&Event> = history.iter().collect();
    events.sort_by_key(|event| event.began);
    events
}

/// What has been tried.
struct Search<'a> {
    history: &'a [Event],
    /// For each event, those that had ended before it began.
    before: Vec<u128>,
    /// Those that were answered, and so must have happened.
    answered: u128,
    seen: HashSet<(u128, Tag)>,
}

impl<'a> Search<'a> {
    fn of(history: &'a [Event]) -> Self {
        let those = |is_so: &dyn Fn(&Event) -> bool| {
            history.iter().enumerate().filter(|(_, event)| is_so(event)).fold(0, |bits, (at, _)| bits | 1 << at)
        };
        let ended_before =
            |event: &Event| those(&|other| other.ended.as_ref().is_some_and(|(end, _)| *end < event.began));
        Self {
            history,
            before: history.iter().map(ended_before).collect(),
            answered: those(&|event| event.ended.is_some()),
            seen: HashSet::new(),
        }
    }

    /// Whether what has not happened yet can happen in some order, from this state on.
    fn go_on(&mut self, happened: u128, tag: &Tag) -> bool {
        if self.answered & !happened == 0 {
            return true;
        }
        if !self.seen.insert((happened, tag.clone())) {
            return false;
        }
        for (at, event) in self.history.iter().enumerate() {
            let bit = 1 << at;
            if happened & bit != 0 || self.before[at] & !happened != 0 {
                continue;
            }
            let mut then = tag.clone();
            let ret = then.invoke(&event.op);
            let fits = event.ended.as_ref().is_none_or(|(_, told)| *told == ret);
            if fits && self.go_on(happened | bit, &then) {
                return true;
            }
        }
        false
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
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

    use super::*;
    use crate::e2e_client::noise;

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

    /// `stateright`'s verdict.
    fn is_consistent(history: &[Event]) -> bool {
        let mut calls = Vec::new();
        for (thread, event) in history.iter().enumerate() {
            calls.push((event.began, thread, Err(event.op.clone())));
            calls.extend(event.ended.clone().map(|(moment, ret)| (moment, thread, Ok(ret))));
        }
        calls.sort_by_key(|(moment, ..)| *moment);
        let mut tester = LinearizabilityTester::new(Tag::default());
        for (_, thread, call) in calls {
            match call {
                Err(op) => tester.on_invoke(thread, op).map(drop).unwrap(),
                Ok(ret) => tester.on_return(thread, ret).map(drop).unwrap(),
            }
        }
        tester.is_consistent()
    }

    /// Seven operations at random moments, answered at random as they may be.
    fn random(seed: u64) -> Vec<Event> {
        let mut numbers =
            (0_u64..).map(|at| u64::from_le_bytes(noise(seed * 1000 + at, 8)[..].try_into().unwrap()) >> 7);
        let mut number = |below: u64| numbers.next().unwrap() % below;
        let mut history = Vec::new();
        for _ in 0..7 {
            let digest = ["a", "b"][number(2) as usize].to_owned();
            let began = 2 * number(40) as usize;
            let op = match number(8) {
                0..3 => Op::Set(digest.clone()),
                3 => Op::Delete,
                4 => Op::DeleteManifest(digest.clone()),
                _ => Op::Read,
            };
            let ret = match op {
                Op::Read => Ret::Saw((number(3) > 0).then_some(digest)),
                Op::Delete if number(2) == 0 => Ret::Missing,
                _ => Ret::Done,
            };
            let ended = (number(5) > 0).then(|| (began + 1 + 2 * number(20) as usize, ret));
            history.push(Event { op, began, ended });
        }
        history.sort_by_key(|event| event.began);
        history.dedup_by_key(|event| event.began);
        history
    }

    #[test]
    fn the_search_agrees_with_stateright() {
        let mut consistent = 0;
        for seed in 0..4000 {
            let history = random(seed);
            let expected = is_consistent(&history);
            assert_eq!(explain(&history).is_ok(), expected, "{history:#?}");
            consistent += usize::from(expected);
        }
        println!("{consistent} of 4000 have an order");
        assert!((500..3500).contains(&consistent));
    }

    /// One that kept `stateright`'s tester busy: many that were never answered, and no order at the end.
    #[test]
    fn open_operations_cost_little() {
        let mut history: Vec<Event> = (0..10).map(|at| event(Op::DeleteManifest("a".to_owned()), at, None)).collect();
        history.extend((10..40).map(|at| set(&format!("unseen {at}"), at, None)));
        history.push(event(Op::Delete, 50, None));
        for at in 0..20 {
            history.push(set(&format!("{at}"), 100 + at * 10, Some(115 + at * 10)));
            history.push(saw(Some(&format!("{at}")), 116 + at * 10, 117 + at * 10));
        }
        assert_eq!(explain(&history), Ok(81));
        history.push(saw(Some("never"), 1000, 1001));
        assert!(explain(&history).is_err());
    }
}
