//! Whether an endpoint for events was told what it had to be told of tags, by what clients know was done.
//!
//! What is promised (`docs/notifications.md`): each acknowledged change of a tag is told once at least, whatever dies and
//! whether the index is lost or not, and nothing is told that nobody did; and what is told for the first time comes in
//! the order of the changes of its repository. Not promised through the loss of an index, and not asked for here, is
//! that a push is told which changed nothing: the bucket knows of none.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    ledger::{Histories, Moment, Name},
    linear::{Event, Op, Ret},
};

/// What a tag became: it points at this manifest, or is gone.
type State = Option<String>;

/// An event of a tag, as the endpoint took it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) id: String,
    pub(crate) tag: Name,
    pub(crate) to: State,
}

/// What the endpoint took, in its order, put by what it says.
pub(crate) struct Told<'a> {
    taken: &'a [Taken],
    /// The place at which it was said first, and under which ids.
    said: HashMap<(&'a Name, &'a State), (usize, BTreeSet<&'a str>)>,
}

/// An acknowledged change: what it made of the tag, and when.
#[derive(Clone, Debug)]
struct Change {
    to: State,
    began: Moment,
    ended: Moment,
}

/// The acknowledged changes of a tag, as they began. The deletion of a manifest isn't among them: whether it changed
/// the tag isn't known.
fn acknowledged(history: &[Event]) -> Vec<Change> {
    let change = |event: &Event| {
        let Some((ended, Ret::Done)) = event.ended else { return None };
        let to = match &event.op {
            Op::Set(digest) => Some(digest.clone()),
            Op::Delete => None,
            Op::DeleteManifest(_) | Op::Read => return None,
        };
        Some(Change { to, began: event.began, ended })
    };
    let mut changes: Vec<Change> = history.iter().filter_map(change).collect();
    changes.sort_by_key(|change| change.began);
    changes
}

/// Whether the tag wasn't in this state at some moment of this event, for it was acknowledged that it wasn't.
fn leaves(event: &Event, state: &State) -> bool {
    let becomes = match &event.op {
        Op::Set(digest) => Some(digest) != state.as_ref(),
        Op::Delete => state.is_some(),
        Op::DeleteManifest(digest) => Some(digest) == state.as_ref(),
        Op::Read => false,
    };
    becomes && matches!(event.ended, Some((_, Ret::Done)))
}

/// How often a tag came to this state at least: of two changes to the same, the second changed something for sure only
/// if between them something else was acknowledged.
fn least(history: &[Event], changes: &[Change], state: &State) -> usize {
    let leaving = |from: Moment, to: Moment| {
        let is_between =
            |event: &&Event| event.began > from && event.ended.as_ref().is_some_and(|(ended, _)| *ended < to);
        history.iter().filter(is_between).any(|event| leaves(event, state))
    };
    let (mut count, mut last) = (0, None);
    for change in changes.iter().filter(|change| change.to == *state) {
        if last.is_none_or(|last| leaving(last, change.began)) {
            count += 1;
            last = Some(change.ended);
        }
    }
    count
}

/// Whether only one request can have brought the tag to this state, so that the place of its event is known.
fn is_the_only_one(history: &[Event], state: &State) -> bool {
    let may_do = |event: &&Event| match (&event.op, state) {
        (Op::Set(digest), Some(state)) => digest == state,
        (Op::Delete, None) => !matches!(event.ended, Some((_, Ret::Missing))),
        (Op::DeleteManifest(_), None) => true,
        _ => false,
    };
    history.iter().filter(may_do).count() == 1
}

impl<'a> Told<'a> {
    pub(crate) fn of(taken: &'a [Taken]) -> Self {
        let mut said = HashMap::<_, (usize, BTreeSet<&str>)>::new();
        for (place, Taken { id, tag, to }) in taken.iter().enumerate() {
            said.entry((tag, to)).or_insert((place, BTreeSet::new())).1.insert(id);
        }
        Self { taken, said }
    }

    /// Acknowledged changes that were not told.
    pub(crate) fn missing(&self, histories: &Histories) -> Vec<String> {
        let mut missing = Vec::new();
        for (tag, history) in histories {
            let changes = acknowledged(history);
            let states: BTreeSet<&State> = changes.iter().map(|change| &change.to).collect();
            for state in states {
                let told = self.said.get(&(tag, state)).map_or(0, |(_, ids)| ids.len());
                let least = least(history, &changes, state);
                if told < least {
                    missing.push(format!("{}:{} became {state:?} {least} times, told are {told}", tag.0, tag.1));
                }
            }
        }
        missing
    }

    /// Events in the repositories of these histories that nobody asked for, and ids that say two things.
    pub(crate) fn invented(&self, histories: &Histories) -> Vec<String> {
        let repositories: BTreeSet<&String> = histories.keys().map(|(repository, _)| repository).collect();
        let mut ids: HashMap<&str, &Taken> = HashMap::new();
        let mut invented = Vec::new();
        for taken in self.taken.iter().filter(|taken| repositories.contains(&taken.tag.0)) {
            let is_asked = |event: &Event| match (&event.op, &taken.to) {
                (Op::Set(digest), Some(to)) => digest == to,
                (Op::Delete | Op::DeleteManifest(_), None) => true,
                _ => false,
            };
            if !histories.get(&taken.tag).is_some_and(|history| history.iter().any(is_asked)) {
                invented.push(format!("nobody did what was told: {taken:?}"));
            }
            if ids.insert(&taken.id, taken).is_some_and(|other| other != taken) {
                invented.push(format!("two events have the id of {taken:?}"));
            }
        }
        invented
    }

    /// Events that came before one of a change in the same repository that was acknowledged before theirs began.
    pub(crate) fn overtaken(&self, histories: &Histories) -> Vec<String> {
        let mut repositories: BTreeMap<&String, Vec<(Change, usize, &Name)>> = BTreeMap::new();
        for (tag, history) in histories {
            for change in acknowledged(history) {
                let place = self.said.get(&(tag, &change.to)).map(|(place, _)| *place);
                if let Some(place) = place.filter(|_| is_the_only_one(history, &change.to)) {
                    repositories.entry(&tag.0).or_default().push((change, place, tag));
                }
            }
        }
        repositories.into_values().flat_map(out_of_order).collect()
    }
}

/// The changes of one repository whose events came in another order, each with the place of its event.
fn out_of_order(mut changes: Vec<(Change, usize, &Name)>) -> Vec<String> {
    let mut ended = changes.clone();
    ended.sort_by_key(|(change, ..)| change.ended);
    changes.sort_by_key(|(change, ..)| change.began);
    let (mut before, mut last) = (ended.into_iter().peekable(), None::<(Change, usize, &Name)>);
    let mut complaints = Vec::new();
    for (change, place, tag) in changes {
        while let Some(other) = before.next_if(|(other, ..)| other.ended < change.began) {
            if last.as_ref().is_none_or(|last| last.1 < other.1) {
                last = Some(other);
            }
        }
        if let Some((other, later, of)) = last.as_ref().filter(|(_, later, _)| *later > place) {
            complaints
                .push(format!("event {later} of {of:?}, {other:?}, came after event {place} of {tag:?}, {change:?}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, What};

    fn push(ledger: &Ledger, tag: &str, digest: &str) {
        ledger.done(&ledger.begin("r", What::Push(digest.to_owned(), vec![tag.to_owned()])));
    }

    fn delete(ledger: &Ledger, tag: &str) {
        ledger.done(&ledger.begin("r", What::DeleteTag(tag.to_owned())));
    }

    fn taken(id: &str, tag: &str, to: Option<&str>) -> Taken {
        Taken { id: id.to_owned(), tag: ("r".to_owned(), tag.to_owned()), to: to.map(str::to_owned) }
    }

    /// How many complaints of each kind there are: missing, invented, overtaken.
    fn complaints(ledger: &Ledger, taken: &[Taken]) -> [usize; 3] {
        let (told, histories) = (Told::of(taken), ledger.histories());
        [told.missing(&histories).len(), told.invented(&histories).len(), told.overtaken(&histories).len()]
    }

    #[test]
    fn an_event_that_is_left_out_is_missed() {
        let ledger = Ledger::default();
        push(&ledger, "t", "a");
        push(&ledger, "t", "b");
        delete(&ledger, "t");
        push(&ledger, "u", "a");
        let all =
            [taken("1", "t", Some("a")), taken("2", "t", Some("b")), taken("3", "t", None), taken("4", "u", Some("a"))];
        assert_eq!(complaints(&ledger, &all), [0, 0, 0]);
        for left_out in 0..all.len() {
            let mut some = all.to_vec();
            some.remove(left_out);
            assert_eq!(complaints(&ledger, &some), [1, 0, 0], "without {:?}", all[left_out]);
        }
    }

    #[test]
    fn a_tag_that_comes_back_to_what_it_was_is_told_again() {
        let ledger = Ledger::default();
        for digest in ["a", "a", "b", "a"] {
            push(&ledger, "t", digest);
        }
        let mut told = vec![taken("1", "t", Some("a")), taken("2", "t", Some("b")), taken("1", "t", Some("a"))];
        assert_eq!(complaints(&ledger, &told), [1, 0, 0], "the same event twice is one");
        told.push(taken("3", "t", Some("a")));
        assert_eq!(complaints(&ledger, &told), [0, 0, 0], "the second push of the same may not be told");
    }

    #[test]
    fn a_manifest_that_was_deleted_leaves_its_tags() {
        let ledger = Ledger::default();
        push(&ledger, "t", "a");
        ledger.done(&ledger.begin("r", What::DeleteManifest("a".to_owned())));
        push(&ledger, "t", "a");
        let mut told = vec![taken("1", "t", Some("a")), taken("2", "t", None)];
        assert_eq!(complaints(&ledger, &told), [1, 0, 0]);
        told.push(taken("3", "t", Some("a")));
        assert_eq!(complaints(&ledger, &told), [0, 0, 0]);
    }

    #[test]
    fn what_was_never_answered_may_be_told_or_not() {
        let ledger = Ledger::default();
        let _open = ledger.begin("r", What::Push("a".to_owned(), vec!["t".to_owned()]));
        assert_eq!(complaints(&ledger, &[]), [0, 0, 0]);
        assert_eq!(complaints(&ledger, &[taken("1", "t", Some("a"))]), [0, 0, 0]);
    }

    #[test]
    fn what_nobody_did_and_ids_of_two_events_are_seen() {
        let ledger = Ledger::default();
        push(&ledger, "t", "a");
        let refused = ledger.begin("r", What::Push("b".to_owned(), vec!["t".to_owned()]));
        ledger.refused(&refused);
        let told = [taken("1", "t", Some("a")), taken("2", "t", Some("b")), taken("1", "t", None)];
        assert_eq!(complaints(&ledger, &told), [0, 3, 0]);
    }

    #[test]
    fn an_event_that_overtakes_another_is_seen() {
        let ledger = Ledger::default();
        push(&ledger, "t", "a");
        let (one, other) = (
            ledger.begin("r", What::Push("b".to_owned(), vec!["t".to_owned()])),
            ledger.begin("r", What::Push("c".to_owned(), vec!["u".to_owned()])),
        );
        ledger.done(&one);
        ledger.done(&other);
        let event = |number: usize| {
            [taken("1", "t", Some("a")), taken("2", "t", Some("b")), taken("3", "u", Some("c"))][number].clone()
        };
        assert_eq!(complaints(&ledger, &[0, 2, 1].map(event)), [0, 0, 0], "these two were pushed side by side");
        assert_eq!(complaints(&ledger, &[1, 0, 2].map(event)), [0, 0, 1]);
        assert_eq!(complaints(&ledger, &[0, 1, 2, 0].map(event)), [0, 0, 0], "what comes again comes late");
    }
}
