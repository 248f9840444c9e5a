//! With every check on, no answer is ever wrong; with one of them left out, one is. Each search prints how many
//! states there were. Those that take longer than a change should wait for are `make model`'s.

use berth_model::{
    linear::Wish::{self, Create, Delete, DeleteManifest, Push},
    tags::{
        Check::{self, *},
        Loss::{self, FailBack, FailOver, Flush, Wipe},
        Tags,
    },
};
use stateright::{Checker, Model};

/// Searches every state, and says how many steps led to a wrong answer, if one did.
fn search(tags: Tags) -> Option<usize> {
    let named = format!("{tags:?}");
    let checker = tags.checker().threads(2).spawn_bfs().join();
    let wrong = checker.discoveries().into_values().next().map(|path| path.into_actions().len());
    let states = checker.unique_state_count();
    match wrong {
        Some(steps) => println!("wrong after {steps} steps, {states} states: {named}"),
        None => println!("right in all {states} states: {named}"),
    }
    wrong
}

/// Nothing goes wrong with all checks on.
#[track_caller]
fn holds(tags: &Tags) {
    assert_eq!(search(tags.clone()), None, "{tags:?}");
}

/// Something goes wrong without these checks.
#[track_caller]
fn fails_without(tags: &Tags, without: &[Check]) {
    let tags = Tags { without: without.to_vec(), ..tags.clone() };
    assert!(search(tags.clone()).is_some(), "nothing went wrong: {tags:?}");
}

fn writes(writes: &[Wish]) -> Tags {
    Tags { writes: writes.to_vec(), ..Tags::default() }
}

/// One push, and an index that is lost.
fn losing(losses: &[Loss]) -> Tags {
    Tags { losses: losses.to_vec(), beginners: 1, reconcilers: 1, ..writes(&[Push(1)]) }
}

#[test]
fn two_pushes() {
    let pushes = writes(&[Push(1), Push(2)]);
    holds(&pushes);
    for check in [OpenIntents, Deadlines, RecoverLate, ManifestFirst] {
        fails_without(&pushes, &[check]);
    }
}

#[test]
fn a_manifest_is_deleted_beside_a_push() {
    let delete = writes(&[DeleteManifest(0), Push(1)]);
    holds(&delete);
    fails_without(&delete, &[DeleteAlone]);
}

#[test]
fn two_who_create_a_tag() {
    let create = Tags { first: None, ..writes(&[Create(1), Create(2)]) };
    holds(&create);
    fails_without(&create, &[CreateAlone]);
}

/// A deleted tag that is forgotten can come back by a lower open push or by an older listing. Either way is closed
/// by another check too, so each of them fails only together with it.
#[test]
fn a_deleted_tag_stays_a_fact() {
    let push = writes(&[Delete, Push(1)]);
    holds(&push);
    fails_without(&push, &[DeletedStays, DeleteAlone]);
    let listing = Tags { reconcilers: 2, writes: vec![Delete], ..losing(&[Wipe]) };
    holds(&listing);
    fails_without(&listing, &[DeletedStays, AdoptOnce]);
}

#[test]
fn an_index_is_emptied_in_place() {
    let flush = losing(&[Flush]);
    holds(&flush);
    for check in [WaitForDeadlines, Reconciled, OneSnapshot] {
        fails_without(&flush, &[check]);
    }
    let two = Tags { losses: vec![Flush], recoverers: 0, ..writes(&[Push(1), Push(2)]) };
    holds(&two);
    fails_without(&two, &[Fence]);
}

#[test]
fn an_index_starts_anew() {
    let wipe = losing(&[Wipe]);
    holds(&wipe);
    fails_without(&wipe, &[WaitForDeadlines]);
}

#[test]
fn a_replica_takes_over_that_lacks_the_last_writes() {
    let fail_over = losing(&[FailOver]);
    holds(&fail_over);
    for check in [WaitForLeases, WaitForDeadlines, LeaseOfConnection] {
        fails_without(&fail_over, &[check]);
    }
    fails_without(&losing(&[FailOver, FailBack]), &[ReplicationId]);
}

#[test]
fn two_begin_an_epoch() {
    let two = Tags { recoverers: 0, beginners: 2, ..losing(&[Wipe, Flush]) };
    fails_without(&two, &[RandomEpoch]);
}

#[test]
#[ignore = "takes minutes: make model"]
fn larger_ones_hold() {
    holds(&losing(&[FailOver, FailBack]));
    holds(&Tags { recoverers: 0, beginners: 2, ..losing(&[Wipe, Flush]) });
    holds(&Tags { writes: vec![Push(1), Push(2)], ..losing(&[Flush]) });
    holds(&Tags { writes: vec![Push(1), Push(2)], ..losing(&[Wipe]) });
    holds(&Tags { readers: 2, ..writes(&[Push(1), Push(2)]) });
    holds(&writes(&[DeleteManifest(0), Push(1), Create(2)]));
    holds(&Tags { recoverers: 2, ..writes(&[Push(1), Push(2), Delete]) });
}
