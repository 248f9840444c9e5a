//! The roster: service accounts and access rules that are made at run time. They are kept in the bucket, are
//! facts of the index, and are remembered by each replica until they change.
//!
//! An entry is written as a tag is moved: *reserved* in the index (a counter, a deadline, a mark that it is
//! being written), *written* to the bucket as a new revision, *committed* in the index. Nobody reads an entry
//! from the bucket but who finishes or rebuilds, so a write that isn't committed is seen by nobody. Nothing
//! here decides who may change what: that is asked by whoever calls.

mod logins;
pub mod manage;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

pub use logins::AccountLogins;

use crate::{
    auth::Authority,
    blob::fresh,
    epoch::Lease,
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Outcome, Write,
        facts::{self, Account, EntryFact, PendingFact, RosterRule, TrashFact},
    },
    registry::Registry,
    storage::{
        Key, Revision, StoreTime,
        key::{EntryName, RosterList},
        read_small,
    },
};

/// The most entries that either list holds: each replica has all of them in memory, about 1 KiB each.
pub const MAX_ENTRIES: usize = 10_000;

/// The largest body of an entry's object, in bytes.
const MAX_ENTRY: usize = 64 << 10;

/// How many entries are read or committed together.
const PAGE: usize = 500;

/// The topic on which replicas are woken that watch the roster.
const CHANGED: &str = "roster";

/// How long until a replica sees a change of which it was not woken.
const LOOK: Duration = Duration::from_secs(5);

/// How often who waits for another write of the same entry looks again, if nothing wakes it before.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How exactly it is known when an account was last used.
const USE: Duration = Duration::from_secs(3600);

/// All that was granted at run time, as it stood at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The service accounts.
    pub accounts: BTreeMap<EntryName, Account>,
    /// The rules.
    pub rules: BTreeMap<EntryName, RosterRule>,
    /// See [`facts::Names::roster_version`]; empty where nothing was read yet.
    version: Bytes,
}

/// One replica's view of the roster, and the way to change it.
#[derive(Debug)]
pub struct Roster {
    registry: Arc<Registry>,
    seen: RwLock<Arc<Entries>>,
    /// Is told the rules whenever they change. It holds the roster, so it isn't held here.
    authority: OnceLock<Weak<Authority>>,
    /// When this process last noted the use of each account.
    noted: Mutex<BTreeMap<EntryName, StoreTime>>,
}

impl Roster {
    /// The roster of a registry, with nothing read yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, seen: RwLock::default(), authority: OnceLock::new(), noted: Mutex::default() }
    }

    /// Names the authority that goes by this roster's rules. Only the first that is named counts.
    pub fn govern(&self, authority: &Arc<Authority>) {
        let _ = self.authority.set(Arc::downgrade(authority));
    }

    /// What the bucket's clock says: by it, accounts and keys expire.
    pub fn now(&self) -> StoreTime {
        self.registry.store.now()
    }

    /// The roster as it is now. It costs one round trip to the index where nothing has changed.
    pub async fn current(&self) -> Result<Arc<Entries>> {
        let lease = self.registry.lease().await?;
        let version = match version(&lease).await? {
            Some(version) => version,
            None => {
                reconcile(&self.registry).await?;
                version(&lease).await?.ok_or_else(|| Error::unavailable("the roster isn't in the index yet"))?
            }
        };
        let seen = self.last_seen();
        if seen.version == version {
            return Ok(seen);
        }
        // What changes while this is read makes another version, and the next look reads again.
        let accounts = load(&lease, RosterList::Accounts).await?;
        let rules = load(&lease, RosterList::Rules).await?;
        let entries = Arc::new(Entries { accounts, rules, version });
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        *seen = Arc::clone(&entries);
        // Under the lock, so that two that read at once leave what is remembered and what is decided by the same.
        if let Some(authority) = self.authority.get().and_then(Weak::upgrade) {
            authority.set_run_time_rules(entries.as_rules());
        }
        drop(seen);
        Ok(entries)
    }

    /// The roster as this replica last saw it.
    pub fn last_seen(&self) -> Arc<Entries> {
        Arc::clone(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps this replica's view up to date until it is dropped. Another replica's change is seen as soon as the
    /// index tells of it, or else within five seconds.
    pub async fn watch(&self) {
        loop {
            if let Err(error) = self.current().await {
                tracing::debug!(%error, "looking for changed accounts and rules has to wait");
            }
            if self.wait().await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn wait(&self) -> Result<()> {
        let lease = self.registry.lease().await?;
        let shard = lease.names.roster_shard();
        lease.live().await?.wait(shard, CHANGED, LOOK).await;
        Ok(())
    }

    /// Changes an account: `change` is given what there is, and returns what there shall be. It may be called
    /// again where somebody else was faster, and its errors are returned. Gives back what there is then.
    pub async fn change_account(
        &self,
        name: &EntryName,
        change: impl Fn(Option<&Account>) -> Result<Option<Account>>,
    ) -> Result<Option<Account>> {
        self.change(RosterList::Accounts, name, change).await
    }

    /// Changes a rule, as [`Roster::change_account`] does an account.
    pub async fn change_rule(
        &self,
        name: &EntryName,
        change: impl Fn(Option<&RosterRule>) -> Result<Option<RosterRule>>,
    ) -> Result<Option<RosterRule>> {
        self.change(RosterList::Rules, name, change).await
    }

    async fn change<T: Serialize + DeserializeOwned + PartialEq>(
        &self,
        list: RosterList,
        name: &EntryName,
        change: impl Fn(Option<&T>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let timing = self.registry.options.timing;
        let patience = self.now().plus(timing.deadline + timing.margin * 2);
        self.current().await?;
        loop {
            let lease = self.registry.lease().await?;
            let fact = lease.names.entry(list, name);
            let value = ask(&lease, Ask::Value(fact)).await?;
            let there = value.as_ref().map(|value| EntryFact::<T>::decode(value)).transpose()?.map(|fact| fact.entry);
            let next = change(there.as_ref())?;
            if next == there {
                return Ok(next);
            }
            if there.is_none() {
                self.refuse_too_many(list).await?;
            }
            let body = next.as_ref().map(serde_json::to_vec).transpose().map_err(Error::internal)?;
            if write(&self.registry, &lease, list, name, value, body.map(Bytes::from)).await? {
                return Ok(next);
            }
            if self.now() > patience {
                return Err(Error::unavailable("another write of the same entry is not over yet"));
            }
            recover(&self.registry, &lease).await?;
            lease.live().await?.wait(lease.names.roster_shard(), CHANGED, LOOK_AGAIN).await;
        }
    }

    async fn refuse_too_many(&self, list: RosterList) -> Result<()> {
        let entries = self.current().await?;
        let count = match list {
            RosterList::Accounts => entries.accounts.len(),
            RosterList::Rules => entries.rules.len(),
        };
        if count < MAX_ENTRIES {
            return Ok(());
        }
        Err(Error::new(
            Code::Denied,
            format!("there are {MAX_ENTRIES} {} already, the most there can be", list.as_str()),
        ))
    }

    /// Notes that an account was used, for who lists them: at most once an hour, and without keeping anybody
    /// waiting for it.
    pub fn note_use(&self, name: &EntryName) {
        let now = self.now();
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            if noted.get(name).is_some_and(|before| before.plus(USE) > now) {
                return;
            }
            noted.insert(name.clone(), now);
        }
        let (registry, name) = (Arc::clone(&self.registry), name.clone());
        tokio::spawn(async move {
            if let Err(error) = write_use(&registry, &name, now).await {
                tracing::debug!(%error, account = %name, "the use of an account was not noted");
            }
        });
    }

    /// When each account was last used, give or take an hour. An account that nobody used since the index was
    /// made is missing.
    pub async fn uses(&self) -> Result<BTreeMap<EntryName, StoreTime>> {
        let lease = self.registry.lease().await?;
        let read = |value: &Bytes| facts::decode::<StoreTime>(value);
        scan(&lease, &lease.names.account_uses(), read).await
    }
}

async fn write_use(registry: &Registry, name: &EntryName, now: StoreTime) -> Result<()> {
    let lease = registry.lease().await?;
    // An account that was deleted meanwhile leaves nothing behind.
    let checks = vec![Check::Present(lease.names.entry(RosterList::Accounts, name))];
    let writes = vec![Write::Put(lease.names.account_use(name), facts::encode(&now))];
    let shard = lease.names.roster_shard();
    lease.commit(shard, Batch { checks, writes, ..Batch::default() }).await.map(drop)
}

/// The answer to one question, and the fence with it, without which no miss is believed.
async fn ask(lease: &Lease, ask: Ask) -> Result<Option<Bytes>> {
    let mut answers = lease.get(lease.names.roster_shard(), &[ask, lease.ask_fence()]).await?;
    let fence = answers.pop().flatten();
    let answer = answers.pop().flatten();
    if answer.is_none() {
        lease.confirm(fence.as_ref())?;
    }
    Ok(answer)
}

async fn version(lease: &Lease) -> Result<Option<Bytes>> {
    ask(lease, Ask::Value(lease.names.roster_version())).await
}

async fn load<T: Serialize + DeserializeOwned>(lease: &Lease, list: RosterList) -> Result<BTreeMap<EntryName, T>> {
    let read = |value: &Bytes| EntryFact::<T>::decode(value).map(|fact| fact.entry);
    scan(lease, &lease.names.roster(list), read).await
}

async fn scan<T>(
    lease: &Lease,
    group: &str,
    read: impl Fn(&Bytes) -> std::result::Result<T, crate::index::IndexError>,
) -> Result<BTreeMap<EntryName, T>> {
    let shard = lease.names.roster_shard();
    let mut entries = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = lease.scan(shard, group, after.as_deref(), PAGE).await?;
        for (name, value) in &page {
            entries.insert(name.parse().map_err(Error::internal)?, read(value)?);
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
            _ => return Ok(entries),
        }
    }
}

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
async fn write(
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

/// How many accounts and rules were adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdoptedRoster {
    /// Accounts.
    pub accounts: usize,
    /// Rules.
    pub rules: usize,
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
            let Some(newest) = history.iter().find(|listed| listed.counts) else { continue };
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
