//! What may happen to blobs. A step of the protocol names the code's function of which it is one, in the file that
//! has it; `tests/names.rs` looks there. What names none is what the world does.

use super::Removed;

/// Something that happens. The first number names who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `upload/closing.rs`: `open_attempt`; `blob.rs`: `note_mount`.
    OpenAttempt(usize),
    /// `upload/closing.rs`: `assemble`; `upload.rs`: `put_aside_first`, `put_rest`.
    PutData(usize),
    /// `blob.rs`: `join`.
    Join(usize, usize),
    /// It is in the bucket.
    DataLands(usize),
    /// `blob.rs`: `put_link`.
    PutLink(usize),
    /// It is in the bucket.
    LinkLands(usize),
    /// Its own data becomes a fact before its link does.
    ClaimData(usize),
    /// `blob.rs`: `commit_link`, `yield_to_link`.
    CommitLink(usize),
    /// `blob.rs`: `forget`.
    Forget(usize),
    /// `collect.rs`: `expire_attempts`.
    ExpireAttempt(usize),
    /// `upload.rs`: `stored`.
    OpenUpload(usize),
    /// `upload.rs`: `put_aside_first`, `put_rest` note what was put aside.
    NoteAside(usize),
    /// What was put aside is older than the grace.
    Age(usize),
    /// `upload.rs`: `confirm_aside`, `may_be_collected`.
    ConfirmAside(usize),
    /// `collect.rs`: `expire_uploads`; `upload.rs`: `cancel_upload`.
    ExpireUpload,
    /// `manifest/push.rs`: `reserve_push`.
    Reserve(usize),
    /// `manifest/push.rs`: `push_manifest` puts the manifest.
    PutManifest(usize),
    /// It is in the bucket.
    ManifestLands(usize),
    /// The client hears that its manifest is there.
    Answer(usize),
    /// `manifest/push.rs`: `commit_push`.
    CommitPush(usize),
    /// `manifest/push.rs`: `recover`, past the deadline.
    Recover(usize),
    /// `manifest.rs`: `delete_manifest`, `unmake_manifest`.
    UnmakeManifest(usize),
    /// `collect.rs`: `discard` of the manifest's object.
    DiscardManifest(usize),
    /// `manifest.rs`: `discard_seconds` lists what other pushes of the manifest wrote.
    ListSeconds(usize),
    /// `manifest.rs`: `discard_seconds` removes that.
    DiscardSeconds(usize),
    /// `collect/garbage.rs`: `links` that no manifest needs.
    LookForUnneeded(usize, usize),
    /// `collect.rs`: `unlink`.
    Unlink(usize),
    /// `collect/garbage.rs`: `data` that no link uses.
    LookForUnused(usize, usize),
    /// `collect.rs`: `release`.
    Release(usize),
    /// `collect/garbage.rs`: `unknown_data`, `strike_noted`.
    LookForUnknown(usize, usize),
    /// `collect/round.rs`: `throw_away` unknown data.
    ThrowAway(usize),
    /// `collect/garbage.rs`: `stale_uses`.
    LookForUse(usize, usize, usize),
    /// `collect/round.rs`: `throw_away` a use.
    DropUse(usize),
    /// `collect/garbage.rs`: `links` of which the shard doesn't know.
    ThrowAwayLink(usize, usize),
    /// `collect/garbage.rs`: `manifests`.
    LookForStray(usize, usize),
    /// `collect/round.rs`: `throw_away` a manifest's object.
    ThrowAwayManifest(usize),
    /// `collect.rs`: `empty_trash`, `discard`; the removal is sent.
    Remove(usize, Removed),
    /// The store does it.
    RemovalLands(usize),
    /// `collect.rs`: `discard` forgets what must be forgotten after the object.
    ForgetUser(usize),
    /// `collect.rs`: `discard` forgets the record in the trash.
    DropTrash(usize),
    /// The index is lost, and `epoch/succession.rs`: `begin` has begun the next epoch.
    BeginEpoch,
    /// `reconcile.rs`: `listed`.
    ListForAdoption(usize, usize),
    /// `reconcile.rs`: `adopt_link` looks for its bytes.
    LookForData(usize, usize),
    /// `reconcile.rs`: `adopt_data`.
    AdoptData(usize),
    /// `reconcile.rs`: `adopt_link`.
    AdoptLink(usize),
    /// `reconcile.rs`: `adopt_manifest`, `yield_to_manifest`.
    AdoptManifest(usize, usize),
    /// `reconcile.rs`: `adopt_all` ends.
    MarkReconciled(usize),
    /// `reconcile/walk.rs`: `settle`.
    Settle(usize),
}
