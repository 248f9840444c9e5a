//! The roster: service accounts and access rules that are made at run time. They are kept in the bucket, are
//! facts of the index, and are remembered by each replica until they change.
//!
//! Nothing here decides who may change what: that is asked by whoever calls.

mod entry;
mod logins;
pub mod manage;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use entry::{reconcile, recover, restamp};
pub use logins::AccountLogins;

use crate::{
    auth::Authority,
    bucket::Shared,
    epoch::Lease,
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Write,
        facts::{self, Account, EntryFact, RosterRule},
    },
    oci::{Algorithm, Digest},
    registry::Registry,
    storage::{
        StoreTime,
        key::{EntryName, RosterList},
    },
};

/// The most entries that either list holds: each replica has all of them in memory, about 1 KiB each.
pub const MAX_ENTRIES: usize = 10_000;

/// How many entries are read or committed together.
const PAGE: usize = 500;

/// How many objects one look at the bucket reads at once.
const AT_ONCE: usize = 16;

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

impl Entries {
    fn add(&mut self, list: RosterList, name: EntryName, body: &[u8]) -> Result<()> {
        match list {
            RosterList::Accounts => drop(self.accounts.insert(name, parse(body)?)),
            RosterList::Rules => drop(self.rules.insert(name, parse(body)?)),
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(Error::internal)
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
    /// Looks at the bucket, of all who need one.
    looks: Shared<Arc<Entries>>,
}

impl Roster {
    /// The roster of a registry, with nothing read yet.
    pub fn new(registry: Arc<Registry>) -> Self {
        let (authority, noted) = (OnceLock::new(), Mutex::default());
        Self { registry, seen: RwLock::default(), authority, noted, looks: Shared::default() }
    }

    /// Names the authority that goes by this roster's rules. Only the first that is named counts.
    pub fn govern(&self, authority: &Arc<Authority>) {
        let _ = self.authority.set(Arc::downgrade(authority));
    }

    /// What the bucket's clock says: by it, accounts and keys expire.
    pub fn now(&self) -> StoreTime {
        self.registry.store.now()
    }

    /// The roster as it is now. Where nothing has changed it costs one round trip to the index; two listings of
    /// the bucket for as long as the index can't be believed.
    pub async fn current(&self) -> Result<Arc<Entries>> {
        match self.in_index().await {
            Err(error) if error.is_suspect() => {
                let turns = &self.registry.questions.turns;
                self.looks.ask(turns, String::new(), self.in_bucket()).await
            }
            entries => entries,
        }
    }

    async fn in_index(&self) -> Result<Arc<Entries>> {
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
        Ok(self.go_by(Entries { accounts, rules, version }))
    }

    /// What a new index would adopt. A write that nobody has committed yet may be among it; recovery commits it.
    async fn in_bucket(&self) -> Result<Arc<Entries>> {
        loop {
            let existing = entry::existing(&self.registry).await?;
            let keys: Vec<String> = existing.iter().map(|entry| entry.key.to_string()).collect();
            let version = Bytes::from(Digest::of(Algorithm::Sha256, keys.join("\n").as_bytes()).to_string());
            let seen = self.last_seen();
            if seen.version == version {
                return Ok(seen);
            }
            let read = stream::iter(existing).map(|entry| entry::read(&self.registry, entry)).buffered(AT_ONCE);
            let read: Vec<_> = read.try_collect().await?;
            // One that is gone was outranked since it was listed: look again.
            let Some(read) = read.into_iter().collect::<Option<Vec<_>>>() else { continue };
            let mut entries = Entries { version, ..Entries::default() };
            for (entry, body) in read {
                entries.add(entry.list, entry.name, &body)?;
            }
            return Ok(self.go_by(entries));
        }
    }

    /// Goes by these from now on.
    fn go_by(&self, entries: Entries) -> Arc<Entries> {
        let entries = Arc::new(entries);
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        *seen = Arc::clone(&entries);
        // Under the lock, so that two that read at once leave what is remembered and what is decided by the same.
        if let Some(authority) = self.authority.get().and_then(Weak::upgrade) {
            authority.set_run_time_rules(entries.as_rules());
        }
        drop(seen);
        entries
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
            if entry::write(&self.registry, &lease, list, name, value, body.map(Bytes::from)).await? {
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
            // Names that nobody uses any more must not pile up.
            if noted.len() >= MAX_ENTRIES {
                noted.retain(|_, before| before.plus(USE) > now);
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
