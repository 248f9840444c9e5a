//! With every check on, nothing that is needed is ever missing, and nothing is left that nothing needs; with one of
//! them left out, something is. Each search prints how many states there were. Those that take longer than a change
//! should wait for are `make model`'s.

use berth_model::blobs::{
    Blobs,
    Check::{self, *},
    First,
    Wish::{self, Blob, Image},
};
use stateright::{Checker, Model};

/// Searches every state, and says what went wrong after how many steps, if something did.
fn search(blobs: Blobs) -> Option<(&'static str, usize)> {
    let named = format!("{blobs:?}");
    let checker = blobs.checker().threads(2).spawn_bfs().join();
    let wrong = checker.discoveries().into_iter().min_by_key(|(name, _)| *name);
    let wrong = wrong.map(|(name, path)| (name, path.into_actions().len()));
    let states = checker.unique_state_count();
    match wrong {
        Some((name, steps)) => println!("not {name:?} after {steps} steps, {states} states: {named}"),
        None => println!("right in all {states} states: {named}"),
    }
    wrong
}

/// Nothing goes wrong with all checks on.
#[track_caller]
fn holds(blobs: &Blobs) {
    assert_eq!(search(blobs.clone()), None, "{blobs:?}");
}

/// Something goes wrong without these checks.
#[track_caller]
fn fails_without(blobs: &Blobs, without: &[Check]) {
    let blobs = Blobs { without: without.to_vec(), ..blobs.clone() };
    assert!(search(blobs.clone()).is_some(), "nothing went wrong: {blobs:?}");
}

fn pushes(first: First, pushes: &[Wish]) -> Blobs {
    Blobs { first, pushes: pushes.to_vec(), ..Blobs::default() }
}

#[test]
fn a_push_beside_collection() {
    let push = pushes(First::Blob, &[Image(1)]);
    holds(&push);
    for check in [NoteFirst, BytesFirst, CommitNoted, Users, UsersInBatch, JoinRefusesDying, NotesFirst, AuditAttempts]
    {
        fails_without(&push, &[check]);
    }
    let again = Blobs { deletes: 1, ..pushes(First::Image, &[Image(0)]) };
    holds(&again);
    for check in [Pins, RefsInBatch] {
        fails_without(&again, &[check]);
    }
}

/// One that stopped when it had claimed its data, and one that joins that.
#[test]
fn two_pushes_beside_collection() {
    let same = pushes(First::Nothing, &[Blob(0), Blob(0)]);
    holds(&same);
    fails_without(&same, &[FreshKeys]);
    let two = pushes(First::Nothing, &[Blob(0), Blob(1)]);
    holds(&two);
    fails_without(&two, &[LinkBesideData]);
}

#[test]
fn two_who_collect() {
    holds(&Blobs { collectors: 2, ..pushes(First::Blob, &[Image(0)]) });
    holds(&Blobs { collectors: 2, ..pushes(First::Blob, &[Blob(1)]) });
}

#[test]
fn the_index_is_lost() {
    let image = Blobs { losses: 1, adopters: 1, deletes: 1, ..pushes(First::Image, &[Image(0)]) };
    holds(&image);
    fails_without(&image, &[RemovalsExpire]);
    let mount = Blobs { losses: 1, adopters: 2, deletes: 1, ..pushes(First::Image, &[Blob(1)]) };
    holds(&mount);
    for check in [AdoptOnce, AdoptUnsettled, ReleaseSettled] {
        fails_without(&mount, &[check]);
    }
}

/// A link that somebody is about to commit is adopted, and its attempt expires: it is kept and thrown away at once.
/// That nobody pushes to a repository that isn't reconciled closes the same way, so either fails only with the other.
#[test]
fn a_push_amid_adoption() {
    let push = Blobs { losses: 1, adopters: 1, ..pushes(First::Blob, &[Blob(0)]) };
    holds(&push);
    holds(&Blobs { without: vec![AdoptUnknown], ..push.clone() });
    fails_without(&push, &[AdoptUnknown, ReconcileFirst]);
}

#[test]
#[ignore = "takes minutes: make model"]
fn larger_ones_hold() {
    holds(&Blobs { collectors: 2, ..pushes(First::Blob, &[Image(0), Image(1)]) });
    holds(&Blobs { collectors: 2, losses: 1, adopters: 1, deletes: 1, ..pushes(First::Image, &[Image(0)]) });
    holds(&Blobs { losses: 2, adopters: 1, ..pushes(First::Blob, &[Image(1)]) });
    holds(&Blobs { losses: 1, adopters: 1, deletes: 1, ..pushes(First::Image, &[Blob(0), Blob(1)]) });
}
