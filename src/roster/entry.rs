//! How an entry of the roster is written, finished for whoever died over it, and found again in the bucket.
//!
//! It is written as a tag is moved: *reserved* in the index (a counter, a deadline, a mark that it is being
//! written), *written* to the bucket as a new revision, *committed* in the index. What an entry says is not looked
//! at here.

use bytes::Bytes;

use super::{CHANGED, PAGE, version};
use crate::{
    blob::fresh,
    epoch::Lease,
    error::{Error, Result},
    index::{
        Batch, Check, Outcome, Write,
        facts::{self, AdoptedRoster, EntryFact, PendingFact, TrashFact},
    },
    registry::{Registry, found},
    storage::{
        Key, Revision,
        key::{EntryName, RosterList},
        read_small,
    },
};

/// The largest body of an entry's object, in bytes.
const MAX_ENTRY: usize = 64 << 10;

/// A write of an entry that is reserved in the index.
struct Reserved {
    list: RosterList,
    name: EntryName,
    revision: Revision,
    pending: PendingFact,
}

impl Reserved {
    fn key(&self) -> Key {
        Key::Entry {
            roster: self.list,
            name: self.name.clone(),
            revision: self.revision,
            deadline: self.pending.deadline,
            deleted: self.pending.deleted,
        }
    }

    /// The check that nobody else has ended this write.
    fn is_open(&self, lease: &Lease) -> Check {
        let value = self.pending.encode_numbered(self.revision.counter);
        Check::Equals(lease.names.pending_entry(self.list, &self.name), value)
    }
}

/// Sets an entry to `body`, or deletes it, if its fact still is `there` and nobody else is writing it; says
/// whether that was so.
pub(super) async fn write(
    registry: &Registry,
    lease: &Lease,
    list: RosterList,
    name: &EntryName,
    there: Option<Bytes>,
    body: Option<Bytes>,
) -> Result<bool> {
    let Some(reserved) = reserve(registry, lease, list, name, there, body.is_none()).await? else { return Ok(false) };
    registry.put_in_time(&[reserved.key()], body.clone().unwrap_or_default(), reserved.pending.deadline).await?;
    // The object counts from here on: if only the commit fails, recovery does the same later.
    if let Err(error) = commit(registry, lease, &reserved, body).await {
        tracing::warn!(%error, list = list.as_str(), %name, "an acknowledged change is not in the index yet; recovery will put it there");
    }
    registry.work.notify_one();
    Ok(true)
}

async fn reserve(
    registry: &Registry,
    lease: &Lease,
    list: RosterList,
    name: &EntryName,
    there: Option<Bytes>,
    deleted: bool,
) -> Result<Option<Reserved>> {
    let names = &lease.names;
    let (fact, open) = (names.entry(list, name), names.pending_entry(list, name));
    let unchanged = match there {
        Some(value) => Check::Equals(fact, value),
        None => Check::Absent(fact),
    };
    let pending = PendingFact { deadline: registry.store.now().plus(registry.options.timing.deadline), deleted };
    let batch = Batch {
        checks: vec![unchanged, Check::Absent(open.clone()), Check::Present(names.roster_version())],
        sequence: Some(names.counter()),
        writes: vec![Write::PutNumbered(open, facts::encode(&pending))],
        ..Batch::default()
    };
    let Outcome::Committed { sequence, .. } = lease.commit(names.roster_shard(), batch).await? else { return Ok(None) };
    let revision = Revision { epoch: lease.epoch, counter: sequence };
    Ok(Some(Reserved { list, name: name.clone(), revision, pending }))
}

/// Makes a write that counts a fact. What it outranks goes to the trash, and so does the entry's end itself,
/// behind all that it ends.
async fn commit(registry: &Registry, lease: &Lease, reserved: &Reserved, body: Option<Bytes>) -> Result<bool> {
    let Reserved { list, name, revision, .. } = reserved;
    let names = &lease.names;
    let (own, fact) = (reserved.key().to_string(), names.entry(*list, name));
    let mut writes = vec![
        Write::Delete(names.pending_entry(*list, name)),
        Write::Put(names.roster_version(), Bytes::from(revision.to_string())),
    ];
    match body {
        Some(body) => {
            let entry: serde_json::Value = serde_json::from_slice(&body).map_err(Error::internal)?;
            writes.push(Write::Put(fact, facts::encode(&EntryFact { object: own, entry })));
        }
        None => writes.extend([Write::Delete(fact), Write::Delete(names.account_use(name))]),
    }
    let history = listed(registry, &list.history(name)).await?;
    writes.extend(discard_outranked(registry, lease, &history, *revision, reserved.pending.deleted));
    let checks = vec![reserved.is_open(lease)];
    let outcome = lease.commit(names.roster_shard(), Batch { checks, writes, ..Batch::default() }).await?;
    if let Err(error) = lease.live().await?.notify(names.roster_shard(), CHANGED).await {
        tracing::debug!(%error, "nobody was woken; who watches the roster looks again by itself");
    }
    Ok(matches!(outcome, Outcome::Committed { .. }))
}

/// One revision of an entry in the bucket.
struct Listed {
    key: Key,
    name: EntryName,
    revision: Revision,
    deleted: bool,
    counts: bool,
}

/// All revisions under a prefix, entry by entry, the newest of each first.
async fn listed(registry: &Registry, prefix: &str) -> Result<Vec<Listed>> {
    let mut after: Option<String> = None;
    let mut found = Vec::new();
    loop {
        let page = registry.store.list(prefix, after.as_deref(), 1000).await?;
        for (text, stat) in &page.objects {
            if let Some(key @ Key::Entry { revision, deadline, deleted, .. }) = Key::parse(text)
                && let Key::Entry { name, .. } = &key
            {
                let (name, counts) = (name.clone(), stat.modified <= deadline);
                found.push(Listed { key, name, revision, deleted, counts });
            }
        }
        match page.objects.last() {
            Some((last, _)) if page.more => after = Some(last.clone()),
            _ => return Ok(found),
        }
    }
}

/// Trash of the revisions before `newest`, the oldest first, and of itself behind them where it is an end:
/// as long as one that it outranks is there, the end has to stay.
fn discard_outranked(
    registry: &Registry,
    lease: &Lease,
    history: &[Listed],
    newest: Revision,
    deleted: bool,
) -> Option<Write> {
    let goes = |listed: &&Listed| listed.revision < newest || (deleted && listed.revision == newest);
    let keys: Vec<String> = history.iter().rev().filter(goes).map(|listed| listed.key.to_string()).collect();
    let trash = TrashFact { keys, ..TrashFact::default() };
    let record = lease.names.trashed(fresh(&*registry.store));
    (!trash.keys.is_empty()).then(|| Write::Put(record, facts::encode(&trash)))
}

/// Ends the writes whose deadline, and the margin, have passed: commits those whose objects count, drops the
/// others. Both are final, so any replica may do it, and twice. Returns how many those were.
pub(crate) async fn recover(registry: &Registry, lease: &Lease) -> Result<usize> {
    let shard = lease.names.roster_shard();
    let mut recovered = 0;
    for (member, value) in lease.scan(shard, &lease.names.pending(), None, PAGE).await? {
        let (counter, pending) = PendingFact::decode(&value)?;
        if pending.deadline.plus(registry.options.timing.margin) >= registry.store.now() {
            continue;
        }
        let (list, name) = parse_pending(&member)?;
        let revision = Revision { epoch: lease.epoch, counter };
        let reserved = Reserved { list, name, revision, pending };
        let history = listed(registry, &list.history(&reserved.name)).await?;
        if history.iter().any(|listed| listed.revision == revision && listed.counts) {
            let body = match reserved.pending.deleted {
                true => None,
                false => Some(read_small(&registry.store, &reserved.key(), MAX_ENTRY).await?),
            };
            commit(registry, lease, &reserved, body).await?;
        } else {
            let checks = vec![reserved.is_open(lease)];
            let writes = vec![Write::Delete(lease.names.pending_entry(list, &reserved.name))];
            lease.commit(shard, Batch { checks, writes, ..Batch::default() }).await?;
        }
        recovered += 1;
    }
    Ok(recovered)
}

fn parse_pending(member: &str) -> Result<(RosterList, EntryName)> {
    let broken = || Error::internal(format!("{member:?} names no entry of the roster"));
    let (list, name) = member.split_once('/').ok_or_else(broken)?;
    let list = RosterList::ALL.into_iter().find(|known| known.as_str() == list).ok_or_else(broken)?;
    Ok((list, name.parse().map_err(|_| broken())?))
}

/// An entry that exists, and the object that says so.
pub(super) struct Existing {
    pub(super) list: RosterList,
    pub(super) name: EntryName,
    pub(super) key: Key,
}

/// The entries that exist in the bucket: what a new index would adopt.
pub(super) async fn existing(registry: &Registry) -> Result<Vec<Existing>> {
    let mut existing = Vec::new();
    for list in RosterList::ALL {
        let history = listed(registry, &list.prefix()).await?;
        for history in history.chunk_by(|one, other| one.name == other.name) {
            if let Some(Listed { key, name, deleted: false, .. }) = newest(history) {
                existing.push(Existing { list, name: name.clone(), key: key.clone() });
            }
        }
    }
    Ok(existing)
}

/// An entry with what its object says; `None` where that is gone, as something outranked it.
pub(super) async fn read(registry: &Registry, entry: Existing) -> Result<Option<(Existing, Bytes)>> {
    let body = found(read_small(&registry.store, &entry.key, MAX_ENTRY).await)?;
    Ok(body.map(|body| (entry, body)))
}

/// The one of an entry's revisions that says what it is.
fn newest(history: &[Listed]) -> Option<&Listed> {
    history.iter().find(|listed| listed.counts)
}

/// Makes sure that the index has the bucket's accounts and rules, each by its newest revision that counts.
pub(crate) async fn reconcile(registry: &Registry) -> Result<AdoptedRoster> {
    let lease = registry.lease().await?;
    let mut adopted = AdoptedRoster::default();
    if version(&lease).await?.is_some() {
        return Ok(adopted);
    }
    let mut writes = Vec::new();
    for list in RosterList::ALL {
        let history = listed(registry, &list.prefix()).await?;
        let count = match list {
            RosterList::Accounts => &mut adopted.accounts,
            RosterList::Rules => &mut adopted.rules,
        };
        for history in history.chunk_by(|one, other| one.name == other.name) {
            let Some(newest) = newest(history) else { continue };
            if !newest.deleted {
                writes.push(adopt(registry, &lease, list, newest).await?);
                *count += 1;
            }
            writes.extend(discard_outranked(registry, &lease, history, newest.revision, newest.deleted));
        }
    }
    let shard = lease.names.roster_shard();
    // Until the last batch nobody writes, so every replica that adopts finds the same.
    let not_yet = Check::Absent(lease.names.roster_version());
    while writes.len() > PAGE {
        let rest = writes.split_off(PAGE);
        let batch = Batch { checks: vec![not_yet.clone()], writes, ..Batch::default() };
        lease.commit(shard, batch).await?;
        writes = rest;
    }
    // No version of another epoch is the same.
    writes.push(Write::PutNumbered(lease.names.roster_version(), Bytes::from(lease.epoch.to_string())));
    let sequence = Some(lease.names.counter());
    lease.commit(shard, Batch { checks: vec![not_yet], sequence, writes, ..Batch::default() }).await?;
    if adopted != AdoptedRoster::default() {
        let AdoptedRoster { accounts, rules } = adopted;
        tracing::info!(accounts, rules, "accounts and rules were reconciled with the bucket");
    }
    Ok(adopted)
}

async fn adopt(registry: &Registry, lease: &Lease, list: RosterList, newest: &Listed) -> Result<Write> {
    let body = read_small(&registry.store, &newest.key, MAX_ENTRY).await?;
    let entry: serde_json::Value = serde_json::from_slice(&body).map_err(Error::internal)?;
    let fact = EntryFact { object: newest.key.to_string(), entry };
    Ok(Write::Put(lease.names.entry(list, &newest.name), facts::encode(&fact)))
}

/// Makes the entries of a bucket that is a copy count, as [`crate::reconcile::restamp`] does tags. Returns how
/// many those were.
pub(crate) async fn restamp(registry: &Registry) -> Result<usize> {
    let lease = registry.lease().await?;
    let mut restamped = 0;
    for list in RosterList::ALL {
        let history = listed(registry, &list.prefix()).await?;
        for history in history.chunk_by(|one, other| one.name == other.name) {
            let Some(newest) = history.first().filter(|newest| !newest.counts) else { continue };
            let batch = Batch { sequence: Some(lease.names.counter()), ..Batch::default() };
            let Outcome::Committed { sequence, .. } = lease.commit(lease.names.roster_shard(), batch).await? else {
                continue;
            };
            let body = read_small(&registry.store, &newest.key, MAX_ENTRY).await?;
            let deadline = registry.store.now().plus(registry.options.timing.deadline);
            let revision = Revision { epoch: lease.epoch, counter: sequence };
            let pending = PendingFact { deadline, deleted: newest.deleted };
            let anew = Reserved { list, name: newest.name.clone(), revision, pending };
            registry.put_in_time(&[anew.key()], body, deadline).await?;
            restamped += 1;
        }
    }
    Ok(restamped)
}
