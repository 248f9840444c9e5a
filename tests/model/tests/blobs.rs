//! With every check on, nothing that is needed is ever missing, what was deleted stays away, and nothing is left that
//! nothing needs; with one of them left out, that isn't so. Each search prints how many states there were. Those that
//! take longer than a change should wait for are `make model`'s.

mod search;

use berth_model::blobs::{
    AWAY, Blobs,
    Check::{self, *},
    First, WHOLE,
    Wish::{self, Aside, Blob, Close, Manifest},
};
use search::{Case, case};

fn pushes(first: First, pushes: &[Wish]) -> Blobs {
    Blobs { first, pushes: pushes.to_vec(), ..Blobs::default() }
}

/// An index that is lost once, and filled by so many.
fn losing(adopters: usize, blobs: Blobs) -> Blobs {
    Blobs { losses: 1, adopters, ..blobs }
}

fn without(blobs: &Blobs, checks: &[Check]) -> Blobs {
    Blobs { without: checks.to_vec(), ..blobs.clone() }
}

fn cases() -> Vec<Case<Blobs, Check>> {
    vec![
        case(pushes(First::Blobs, &[Blob(1, 0), Manifest(1)]))
            .alone(WHOLE, &[NoteFirst, BytesFirst, CommitNoted, ForgetNoted, Users, UsersInBatch])
            .alone(WHOLE, &[JoinRefusesDying, NotesFirst, AuditAttempts]),
        case(pushes(First::Blobs, &[Manifest(0)])).alone(WHOLE, &[LinksPresent, Pins, RefsInBatch, ScanIntents]),
        case(Blobs { deletes: 1, ..pushes(First::Blobs, &[Manifest(0)]) }).alone(WHOLE, &[IntentThere]),
        case(Blobs { deletes: 1, ..pushes(First::Image, &[Manifest(0)]) })
            .alone(WHOLE, &[Pins, RefsInBatch, DeleteUnnamed]),
        case(Blobs { needs: 0b11, ..pushes(First::Blobs, &[Manifest(0)]) }).alone(WHOLE, &[LinksPresent, Pins]),
        case(Blobs { children: 0b10, ..pushes(First::Blobs, &[Manifest(0)]) }).alone(WHOLE, &[PinChildren]),
        case(pushes(First::Nothing, &[Blob(0, 0), Blob(0, 0)])).alone(WHOLE, &[FreshKeys]),
        // One stopped when it had claimed its data, and another joins that.
        case(pushes(First::Nothing, &[Blob(0, 0), Blob(1, 0)])).alone(WHOLE, &[LinkBesideData]),
        case(pushes(First::Nothing, &[Aside, Close])).alone(WHOLE, &[ConfirmAside, AsideYoung, CloseUnmoved]),
        case(pushes(First::Nothing, &[Aside, Aside, Close])).alone(WHOLE, &[AppendUnmoved]),
        case(pushes(First::Nothing, &[Aside, Close, Close])).alone(WHOLE, &[CloseUnmoved]),
        case(losing(1, Blobs { deletes: 1, ..pushes(First::Image, &[Manifest(0)]) }))
            .alone(WHOLE, &[RemovalsExpire])
            .alone(AWAY, &[DeleteConfirmed]),
        case(losing(1, Blobs { deletes: 1, ..pushes(First::Blobs, &[Manifest(0), Manifest(0)]) }))
            .alone(AWAY, &[DeleteSeconds]),
        case(losing(1, pushes(First::Nothing, &[Blob(0, 0), Manifest(0)])))
            .alone(WHOLE, &[AdoptWhole, AdoptNeeds, SettleLast]),
        case(losing(2, pushes(First::Blobs, &[Blob(1, 0)])))
            .alone(WHOLE, &[AdoptOnce, AdoptUnsettled])
            .together(WHOLE, [ReleaseSettled, HoldTrash]),
        // A link that somebody is about to commit is adopted, and its attempt expires: it is kept and thrown away at
        // once. As nobody pushes to a repository that isn't reconciled, the shard has no notes to look at.
        case(losing(1, pushes(First::Blobs, &[Blob(0, 0)]))).alone(WHOLE, &[ReconcileFirst]).spare(&[AdoptUnknown]),
    ]
}

#[test]
fn each_check_is_needed_and_together_they_suffice() {
    let tried = search::all(&cases(), without);
    assert_eq!(search::missing(Check::ALL, &tried), [], "checks without which nothing goes wrong");
}

#[test]
#[ignore = "takes minutes: make model"]
fn larger_ones_hold() {
    let named = |blobs: Blobs| Blobs { needs: 0b11, ..blobs };
    let deleted = |first, wishes: &[Wish]| Blobs { deletes: 1, ..pushes(first, wishes) };
    for blobs in [
        // A push while two collect, and a mount while two collect.
        Blobs { collectors: 2, ..pushes(First::Blobs, &[Blob(0, 0), Manifest(0)]) },
        Blobs { collectors: 2, ..pushes(First::Blobs, &[Blob(1, 0), Manifest(1)]) },
        // Two blobs of one manifest, pushed while both are collected; an image index that names another blob.
        named(pushes(First::Blobs, &[Blob(0, 0), Blob(0, 1), Manifest(0)])),
        Blobs { children: 0b10, ..deleted(First::Image, &[Blob(0, 1), Manifest(0)]) },
        named(losing(1, deleted(First::Image, &[Manifest(0)]))),
        // Two pushes of a manifest beside its delete, from either repository.
        deleted(First::Image, &[Manifest(0), Manifest(0)]),
        losing(1, deleted(First::Image, &[Blob(1, 0), Manifest(0)])),
        losing(2, deleted(First::Image, &[Blob(1, 0)])),
        losing(2, pushes(First::Blobs, &[Blob(0, 0)])),
        // An upload that three requests go on with, and whose index is lost.
        pushes(First::Nothing, &[Aside, Aside, Close, Close]),
        losing(1, pushes(First::Nothing, &[Aside, Close, Close])),
        Blobs { losses: 2, adopters: 1, ..pushes(First::Blobs, &[Blob(0, 0)]) },
    ] {
        search::holds(blobs);
    }
}
