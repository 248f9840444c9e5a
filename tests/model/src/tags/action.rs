//! What may happen to a tag. A step of the protocol names the code's function of which it is one, in the file that
//! has it; `tests/names.rs` looks there. What names none is what the world does.

use super::Loss;

/// Something that happens. Numbers name a write, a replica, or one of those who do the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client's write arrives.
    Call(usize),
    /// `manifest/push.rs`: `check_fixed_tags`; `tag.rs`: `delete_tag`; `manifest.rs`: `untag`.
    Look(usize),
    /// `tag.rs`: `reserve` fixes the deadline, looks at the lease, and sends its batch.
    SendReserve(usize),
    /// `tag.rs`: `reserve`, as the index does it.
    Reserve(usize),
    /// A write's deadline, and the margin, have passed.
    DeadlinePasses(usize),
    /// `manifest/push.rs`: `push_manifest` puts the manifest.
    PutManifest(usize),
    /// It is in the bucket.
    ManifestLands(usize),
    /// `tag.rs`: `write_revisions`.
    WriteRevision(usize),
    /// It is in the bucket.
    RevisionLands(usize),
    /// The client hears that its write is done.
    Answer(usize),
    /// `manifest/push.rs`: `commit_push`; `tag.rs`: `commit_tags`.
    SendCommit(usize),
    /// That batch, as the index does it.
    Commit(usize),
    /// `tag.rs`: `drop_intent`, after a push that had nothing to do.
    DropIntent(usize),
    /// `epoch/leases.rs`: `ask` lists the epochs.
    AskForLease(usize),
    /// `epoch/leases.rs`: `ask`, `renew` look at the index's identity and fence.
    Lease(usize),
    /// A lease's time is over.
    LeaseRunsOut(usize),
    /// A replica reaches another server.
    Reconnect(usize, usize),
    /// A client's read arrives, at a replica with a lease or at one without.
    Read(usize, Option<usize>),
    /// `reconcile.rs`: `is_known`.
    AskReconciled(usize),
    /// `tag.rs`: `resolve`.
    Resolve(usize),
    /// The second half of that, where it isn't one snapshot.
    ResolveOpen(usize),
    /// `bucket.rs`: `look_for_tag` lists the revisions.
    LookForTag(usize),
    /// `bucket/shared.rs`: `ask`, of an answer that was asked for before.
    Share(usize),
    /// `bucket.rs`: `look_for_tag` reads the newest that counts.
    ReadRevision(usize),
    /// `manifest/push.rs`: `recover` looks whether a write counts.
    Recover(usize, usize, usize),
    /// `manifest/push.rs`: `recover` commits it, or drops it.
    CommitRecovery(usize),
    /// `collect.rs`: `trim_history` looks at the tag.
    TrimHistory(usize, usize),
    /// `collect.rs`: `trim_history` lists the `history`.
    ListHistory(usize),
    /// `collect.rs`: `remove`, of this revision or of the oldest that is left.
    RemoveRevision(usize, Option<u8>),
    /// `collect.rs`: `trim_history` forgets a tag that is gone, and puts the rest into the trash.
    ForgetTag(usize),
    /// `collect.rs`: `discard`, of the oldest that is left.
    Discard(usize),
    /// `epoch/succession.rs`: `begin` lists the epochs.
    ListEpochs(usize, usize),
    /// `epoch/succession.rs`: `begin` writes the next one.
    WriteEpoch(usize),
    /// `epoch/succession.rs`: `begin` waits, and lists them again.
    Wait(usize),
    /// `epoch/succession.rs`: `set_fence`.
    SetFence(usize),
    /// `reconcile.rs`: `adopt_tags` lists the revisions.
    ListForAdoption(usize, usize),
    /// `reconcile.rs`: `adopt_tag`.
    AdoptTag(usize),
    /// `reconcile.rs`: `adopt_all` ends.
    MarkReconciled(usize),
    /// `reconcile/walk.rs`: `walk` finds no repository that isn't reconciled.
    Walk(usize, usize),
    /// `reconcile/walk.rs`: `settle`.
    Settle(usize),
    /// The server's replica gets what the server has.
    CopyToReplica,
    /// The index loses something.
    Lose(Loss),
}
