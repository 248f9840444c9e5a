//! With every check on, no answer is ever wrong; with one of them left out, one is. Each search prints how many
//! states there were. Those that take longer than a change should wait for are `make model`'s.

mod search;

use berth_model::{
    linear::Wish::{self, Create, Delete, DeleteManifest, Push},
    tags::{
        Check::{self, *},
        EXPLAINED,
        Loss::{self, FailBack, FailOver, Flush, Wipe},
        Tags,
    },
};
use search::{Case, case};

fn writes(writes: &[Wish]) -> Tags {
    Tags { writes: writes.to_vec(), ..Tags::default() }
}

/// An index that is lost amid these writes.
fn losing(losses: &[Loss], of: &[Wish]) -> Tags {
    Tags { losses: losses.to_vec(), beginners: 1, reconcilers: 1, ..writes(of) }
}

/// Nobody finishes what a writer left.
fn alone(tags: Tags) -> Tags {
    Tags { recoverers: 0, ..tags }
}

fn without(tags: &Tags, checks: &[Check]) -> Tags {
    Tags { without: checks.to_vec(), ..tags.clone() }
}

fn cases() -> Vec<Case<Tags, Check>> {
    vec![
        case(writes(&[Push(1), Push(2)])).alone(
            EXPLAINED,
            &[OpenIntents, Deadlines, Greatest, RecoverLate, ManifestFirst, AnswerOnceItCounts, OneSnapshot],
        ),
        case(writes(&[Push(1), Push(0)])).alone(EXPLAINED, &[SameAlone]),
        case(writes(&[DeleteManifest(0), Push(1)])).alone(EXPLAINED, &[DeleteAlone]),
        case(Tags { first: None, ..writes(&[Create(1), Create(2)]) }).alone(EXPLAINED, &[CreateAlone]),
        // A deleted tag that is forgotten comes back by a lower open push.
        case(writes(&[Delete, Push(1)])).together(EXPLAINED, [DeletedStays, DeleteAlone]),
        case(Tags { trimmers: 1, ..writes(&[Delete, Push(1)]) })
            .alone(EXPLAINED, &[TrimOldestFirst, TrimAlone, LookAgain]),
        // It comes back by an older listing, too, once its history is trimmed.
        case(Tags { trimmers: 1, reconcilers: 2, ..alone(losing(&[Flush], &[Delete])) }).alone(EXPLAINED, &[AdoptOnce]),
        case(losing(&[Flush], &[Push(1)]))
            .alone(EXPLAINED, &[WaitForDeadlines, Reconciled, ReconciledFirst, SettleReconciled]),
        case(Tags { first: None, ..losing(&[Flush], &[Push(1)]) }),
        case(alone(Tags { losses: vec![Flush], ..writes(&[Push(1), Push(2)]) })).alone(EXPLAINED, &[Fence]),
        case(losing(&[Wipe], &[Push(1)])).alone(EXPLAINED, &[WaitForDeadlines]),
        case(losing(&[FailOver], &[Push(1)])).alone(
            EXPLAINED,
            &[WaitForLeases, WaitForDeadlines, StartsEmpty, LeaseOfConnection, LeaseChecked, LeaseFromQuestion],
        ),
        case(losing(&[FailOver, FailBack], &[Push(1)])).alone(EXPLAINED, &[ReplicationId]),
        // Who leases looks for the newest epoch too.
        case(alone(Tags { beginners: 2, ..losing(&[Wipe], &[Push(1)]) })).spare(&[NewestAfterWait]),
        case(Tags { readers: 2, ..writes(&[Push(1)]) }).alone(EXPLAINED, &[OneSnapshot, ShareLater]),
    ]
}

#[test]
fn each_check_is_needed_and_together_they_suffice() {
    let mut tried = search::all(&cases(), without);
    // That two begin epochs at once is searched to the end by `make model`.
    let two = alone(Tags { beginners: 2, ..losing(&[Wipe, Flush], &[Push(1)]) });
    search::fails(without(&two, &[RandomEpoch]), EXPLAINED);
    tried.push(RandomEpoch);
    assert_eq!(search::missing(Check::ALL, &tried), [], "checks without which nothing goes wrong");
}

#[test]
#[ignore = "takes minutes: make model"]
fn larger_ones_hold() {
    for tags in [
        // Overlapping reads.
        Tags { readers: 2, ..writes(&[Push(1), Push(2)]) },
        Tags { readers: 2, ..losing(&[Flush], &[Push(1)]) },
        Tags { readers: 2, ..losing(&[FailOver], &[Push(1)]) },
        // Several at once of those who do the rest.
        alone(Tags { beginners: 2, ..losing(&[Wipe, Flush], &[Push(1)]) }),
        Tags { recoverers: 2, ..writes(&[Push(1), Push(2)]) },
        Tags { trimmers: 1, ..losing(&[Flush], &[Delete]) },
        // More writes.
        Tags { first: None, ..losing(&[Flush], &[Create(1), Delete]) },
        alone(writes(&[DeleteManifest(0), Push(1), Create(2)])),
        alone(writes(&[Delete, Create(1), Delete, Create(2)])),
    ] {
        search::holds(tags);
    }
}
