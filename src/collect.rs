//! What is thrown away: objects leave the bucket through the trash, one confirmed request at a time.
//!
//! What nothing needs is found by [`round`]s; uploads and attempts that don't move expire. A trash record is made in the commit that made a thing unneeded, so a crash leaves garbage and never a
//! hole. Each removal is a request that the store itself refuses after its time, so that a replica which
//! stalls between its check and its request can't remove what a later epoch believes in.

pub mod garbage;
pub mod round;

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use ulid::Ulid;

use crate::{
    epoch::Lease,
    error::{Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Shard, Write,
        facts::{self, AttemptFact, DataFact, DataState, Hint, LinkFact, TagFact, TrashFact, UploadFact, UploadState},
    },
    oci::{Digest, RepositoryName, Tag},
    registry::{Registry, Repository, ask},
    storage::{DataKey, Key, Revision, Store, Unfinished, key},
    upload::trash_of,
};

/// Removes what one trash record names, forgets what must be forgotten after it, then the record.
pub(crate) async fn discard(
    registry: &Registry,
    lease: &Lease,
    shard: Shard,
    ulid: Ulid,
    trash: &TrashFact,
) -> Result<()> {
    // Parts first: once they are given up, they can't become an object any more.
    if let Some((data, upload)) = &trash.multipart {
        lease.live().await?;
        registry.store.abort(&Key::Data(*data), upload).await?;
    }
    for text in &trash.keys {
        let key =
            Key::parse(text).ok_or_else(|| Error::internal(format!("the trash holds {text}, which is no key")))?;
        remove(registry, lease, &key).await?;
    }
    if let Some((data, repository, link)) = &trash.user {
        let writes = vec![Write::Delete(lease.names.user(*data, repository, *link))];
        lease.commit(lease.names.home_of(*data), Batch { writes, ..Batch::default() }).await?;
        if release(registry, lease, *data).await? {
            registry.work.notify_one();
        }
    }
    let record = lease.names.trashed(ulid);
    let mut writes = vec![Write::Delete(record.clone())];
    if let Some(data) = trash.data {
        forget_hint(lease, data).await?;
        writes.push(Write::Delete(lease.names.data(data)));
    }
    if unless_changed(lease, shard, record, facts::encode(trash), writes).await? {
        registry.options.collected.bytes.inc_by(trash.size);
    }
    Ok(())
}

/// Lets go of a data object that no link uses: nobody joins it any more from here on, and it goes to the trash.
/// Only in a settled shard: until then a link that nobody has adopted yet may need it. False where it is used.
pub(crate) async fn release(registry: &Registry, lease: &Lease, data: DataKey) -> Result<bool> {
    let names = &lease.names;
    let (home, fact, users) = (names.home_of(data), names.data(data), names.users(data));
    let asks = vec![Ask::Value(fact.clone()), Ask::First(users.clone()), Ask::Value(names.settled())];
    let answers = ask(lease, home, asks).await?;
    let [Some(value), None, Some(_)] = &answers[..] else { return Ok(false) };
    let live: DataFact = facts::decode(value)?;
    if live.state == DataState::Dying {
        return Ok(false);
    }
    let keys = vec![Key::Data(data).to_string()];
    let trash = TrashFact { keys, data: Some(data), size: live.size, ..TrashFact::default() };
    let dying = DataFact { state: DataState::Dying, ..live };
    let checks = vec![Check::Equals(fact.clone(), value.clone()), Check::Empty(users)];
    let writes = vec![Write::Put(fact, facts::encode(&dying)), throw_away(&*registry.store, lease, &trash)];
    let outcome = lease.commit(home, Batch { checks, writes, ..Batch::default() }).await?;
    Ok(matches!(outcome, Outcome::Committed { .. }))
}

/// Forgets the hint to a data object that is gone, unless it names another by now.
async fn forget_hint(lease: &Lease, data: DataKey) -> Result<()> {
    let names = &lease.names;
    let fact = ask(lease, names.home_of(data), vec![Ask::Value(names.data(data))]).await?.pop().flatten();
    let Some(value) = fact else { return Ok(()) };
    let DataFact { digest, size, .. } = facts::decode(&value)?;
    let hint = names.hint(&digest);
    let writes = vec![Write::Delete(hint.clone())];
    let value = facts::encode(&Hint { data, size });
    unless_changed(lease, names.hint_shard(&digest), hint, value, writes).await.map(drop)
}

/// Takes a link from its repository, by this batch, if it is still exactly `value` and no manifest needs it. What is
/// to be discarded then, or nothing where that isn't so.
pub(crate) async fn unlink(
    lease: &Lease,
    repository: &RepositoryName,
    digest: &Digest,
    value: Bytes,
    mut batch: Batch,
) -> Result<Option<(Ulid, TrashFact)>> {
    let names = &lease.names;
    let LinkFact { link, data, size, .. } = facts::decode(&value)?;
    let fact = names.link(repository, digest);
    let key = Key::Link { repository: repository.clone(), digest: digest.clone(), link, data, size };
    let trash = link_trash(&key);
    batch.checks.extend([Check::Equals(fact.clone(), value), Check::Empty(names.refs(repository, digest))]);
    batch.writes.extend([Write::Delete(fact), Write::Put(names.trashed(link), facts::encode(&trash))]);
    let outcome = lease.commit(names.shard_of(repository), batch).await?;
    Ok(matches!(outcome, Outcome::Committed { .. }).then_some((link, trash)))
}

/// What becomes of a link's object, and after it of its use of the data.
fn link_trash(key: &Key) -> TrashFact {
    let user = match key {
        Key::Link { repository, link, data, .. } => Some((*data, repository.clone(), *link)),
        _ => None,
    };
    TrashFact { keys: vec![key.to_string()], user, ..TrashFact::default() }
}

/// Removes one object, by a request whose end is fixed before the lease is checked.
pub(crate) async fn remove(registry: &Registry, lease: &Lease, key: &Key) -> Result<()> {
    let until = registry.store.now().plus(registry.options.timing.deadline);
    lease.live().await?;
    registry.store.delete(key, until).await?;
    registry.options.collected.removed(kind(key));
    Ok(())
}

/// What the metrics call an object.
fn kind(key: &Key) -> &'static str {
    match key {
        Key::Data(_) => "data",
        Key::Link { .. } => "link",
        Key::Manifest { .. } => "manifest",
        Key::Tag { .. } => "revision",
        Key::Format | Key::Entry { .. } | Key::Epoch(_) | Key::Checkpoint { .. } | Key::Probe(_) => "other",
    }
}

/// Empties a shard's trash, a page at a time. What fails stays for the next time. Not before the shard is settled:
/// what was adopted meanwhile from an older listing would lose its object.
pub(crate) async fn empty_trash(registry: &Registry, lease: &Lease, shard: Shard) -> Result<usize> {
    if ask(lease, shard, vec![Ask::Value(lease.names.settled())]).await?[0].is_none() {
        return Ok(0);
    }
    let group = lease.names.trash();
    let mut after: Option<String> = None;
    let mut removed = 0;
    loop {
        let page = lease.scan(shard, &group, after.as_deref(), 100).await?;
        for (member, value) in &page {
            let ulid = Ulid::from_string(member).map_err(Error::internal)?;
            match discard(registry, lease, shard, ulid, &facts::decode(value)?).await {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(%error, record = %member, "something in the trash was not removed; it will be tried again");
                    // Without a lease the others would fail alike, each with such a line.
                    lease.live().await?;
                }
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == 100 => after = Some(last.clone()),
            _ => return Ok(removed),
        }
    }
}

/// How many records are in the trash.
pub async fn waiting(registry: &Registry) -> Result<usize> {
    let lease = registry.lease().await?;
    let mut count = 0;
    for shard in lease.names.shards() {
        let mut after: Option<String> = None;
        loop {
            let page = lease.scan(shard, &lease.names.trash(), after.as_deref(), 1000).await?;
            count += page.len();
            match page.last() {
                Some((last, _)) if page.len() == 1000 => after = Some(last.clone()),
                _ => break,
            }
        }
    }
    Ok(count)
}

/// Removes all that is in the trash, also what that puts there. Returns how many records that were.
pub async fn empty_all_trash(registry: &Registry) -> Result<usize> {
    let lease = registry.lease().await?;
    let mut total = 0;
    loop {
        let mut removed = 0;
        for shard in lease.names.shards() {
            removed += empty_trash(registry, &lease, shard).await?;
        }
        total += removed;
        if removed == 0 {
            return Ok(total);
        }
    }
}

/// Ends uploads that have not moved for longer than they are kept, and forgets those that were over.
pub(crate) async fn expire_uploads(registry: &Registry, lease: &Lease, shard: Shard) -> Result<usize> {
    let group = lease.names.uploads();
    let mut expired = 0;
    for (member, value) in old(registry, lease, shard, &group).await? {
        let upload: UploadFact = facts::decode(&value)?;
        if upload.touched.plus(registry.options.upload_expiry) > registry.store.now() {
            continue;
        }
        let mut writes = vec![Write::Delete(Fact::new(group.clone(), member.clone()))];
        if let UploadState::Open(open) = &upload.state {
            writes.push(throw_away(&*registry.store, lease, &trash_of(open)));
        }
        expired += usize::from(unless_changed(lease, shard, Fact::new(group.clone(), member), value, writes).await?);
    }
    Ok(expired)
}

/// Ends attempts to link something whose request must be long over. Their commit is refused from then on.
pub(crate) async fn expire_attempts(registry: &Registry, lease: &Lease, shard: Shard) -> Result<usize> {
    let group = lease.names.attempts();
    let mut expired = 0;
    for (member, value) in old(registry, lease, shard, &group).await? {
        let attempt: AttemptFact = facts::decode(&value)?;
        let trash = TrashFact { keys: vec![Key::Data(attempt.data).to_string()], ..TrashFact::default() };
        let fact = Fact::new(group.clone(), member);
        let writes = vec![Write::Delete(fact.clone()), throw_away(&*registry.store, lease, &trash)];
        expired += usize::from(unless_changed(lease, shard, fact, value, writes).await?);
    }
    Ok(expired)
}

/// How much longer than an upload's record an upload in parts is left alone. An operator's clock, and a
/// request that is about to note what it began, need less.
const ORPHAN_MARGIN: Duration = Duration::from_secs(24 * 3600);

/// Ends the uploads in parts that no record knows of, which nobody can go on with: their request died before
/// it could note them, or the index that knew them is lost. Their parts take room, and cost money, that no
/// listing of objects shows.
pub(crate) async fn abort_orphans(registry: &Registry, lease: &Lease) -> Result<usize> {
    let (now, age) = (registry.store.now(), registry.options.upload_expiry + ORPHAN_MARGIN);
    if lease.record.at.plus(age) > now {
        return Ok(0);
    }
    let (mut old, mut after): (Vec<Unfinished>, Option<Unfinished>) = (Vec::new(), None);
    loop {
        let page = registry.store.unfinished(after.as_ref()).await?;
        after = page.uploads.last().cloned();
        old.extend(page.uploads.into_iter().filter(|upload| upload.since.plus(age) < now));
        if !page.more {
            break;
        }
    }
    // The records are read after the listing, and only if there is something to look up in them.
    let known = if old.is_empty() { HashSet::new() } else { uploads_in_parts(lease).await? };
    let mut aborted = 0;
    for upload in old.iter().filter(|upload| !known.contains(&upload.id.0)) {
        lease.live().await?;
        let key = upload.key.clone().unwrap_or(Key::Data(DataKey(Ulid::nil())));
        registry.store.abort(&key, &upload.id).await?;
        aborted += 1;
    }
    Ok(aborted)
}

/// The uploads in parts that the records of all shards know of.
async fn uploads_in_parts(lease: &Lease) -> Result<HashSet<String>> {
    let group = lease.names.uploads();
    let mut known = HashSet::new();
    for shard in lease.names.shards() {
        let mut after: Option<String> = None;
        loop {
            let page = lease.scan(shard, &group, after.as_deref(), 200).await?;
            for (_, value) in &page {
                if let UploadState::Open(open) = facts::decode::<UploadFact>(value)?.state {
                    known.extend(open.parts.map(|parts| parts.id.0));
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == 200 => after = Some(last.clone()),
                _ => break,
            }
        }
    }
    Ok(known)
}

/// The members of a group of ULIDs that are older than uploads are kept. No age counts from before the epoch.
async fn old(registry: &Registry, lease: &Lease, shard: Shard, group: &str) -> Result<Vec<(String, Bytes)>> {
    let now = registry.store.now();
    let expiry = registry.options.upload_expiry;
    if lease.record.at.plus(expiry) > now {
        return Ok(Vec::new());
    }
    let newest = now.minus(expiry).0;
    let mut found = lease.scan(shard, group, None, 200).await?;
    found.retain(|(member, _)| Ulid::from_string(member).is_ok_and(|ulid| ulid.timestamp_ms() <= newest));
    Ok(found)
}

fn throw_away(store: &dyn Store, lease: &Lease, trash: &TrashFact) -> Write {
    Write::Put(lease.names.trashed(crate::blob::fresh(store)), facts::encode(trash))
}

async fn unless_changed(lease: &Lease, shard: Shard, fact: Fact, value: Bytes, writes: Vec<Write>) -> Result<bool> {
    let checks = vec![Check::Equals(fact, value)];
    let outcome = lease.commit(shard, Batch { checks, writes, ..Batch::default() }).await?;
    Ok(matches!(outcome, Outcome::Committed { .. }))
}

impl Repository {
    /// Trims a tag's history to its depth, oldest first, each removal confirmed before the next. The history
    /// of a tag that was deleted longer than the grace ago goes whole: its `-deleted` last, and only while
    /// nobody is making the tag anew; then the fact.
    ///
    /// What an endpoint was not told yet is kept for it, and goes with a later trim; of a tag that was deleted, all.
    ///
    /// True once nothing is left to do until the tag moves again.
    pub(crate) async fn trim_history(&self, tag: &Tag) -> Result<bool> {
        let names = &self.lease.names;
        let (fact, open) = (names.tag(&self.name, tag), names.open(&self.name, tag));
        let asks = vec![Ask::Value(fact.clone()), Ask::First(open.clone())];
        let answers = self.ask(asks).await?;
        let (Some(value), None) = (&answers[0], &answers[1]) else { return Ok(answers[0].is_none()) };
        let TagFact { revision: current, state } = TagFact::decode(value)?;
        let coverage = self.registry.coverage().await?;
        let is_gone = state.to.is_none() && state.at.plus(self.registry.options.grace) < self.store().now();
        if state.to.is_none() && !(is_gone && coverage.has(&self.name, current, state.at)) {
            return Ok(false);
        }
        let history = self.history(tag).await?;
        let older = history.iter().filter(|(revision, _)| *revision < current);
        let keep = if is_gone { 0 } else { self.registry.options.history - 1 };
        for (revision, key) in older.skip(keep).collect::<Vec<_>>().into_iter().rev() {
            // Of a tag each later one would be lacking as well.
            if matches!(key, Key::Tag { deadline, .. } if !coverage.has(&self.name, *revision, *deadline)) {
                break;
            }
            remove(&self.registry, &self.lease, key).await?;
        }
        if !is_gone {
            return Ok(true);
        }
        let rest = history.iter().filter(|(revision, _)| *revision >= current);
        let checks = vec![Check::Equals(fact.clone(), value.clone()), Check::Empty(open)];
        let trash = TrashFact { keys: rest.map(|(_, key)| key.to_string()).collect(), ..TrashFact::default() };
        let writes = vec![Write::Delete(fact), self.trash(&trash)];
        let outcome = self.commit(Batch { checks, writes, ..Batch::default() }).await?;
        Ok(matches!(outcome, Outcome::Committed { .. }))
    }

    /// A tag's revisions and their keys, newest first; also such as don't count.
    pub(crate) async fn history(&self, tag: &Tag) -> Result<Vec<(Revision, Key)>> {
        let prefix = key::history(&self.name, tag);
        let mut after: Option<String> = None;
        let mut keys = Vec::new();
        loop {
            let page = self.store().list(&prefix, after.as_deref(), 1000).await?;
            keys.extend(page.objects.iter().filter_map(|(text, _)| match Key::parse(text)? {
                key @ Key::Tag { revision, .. } => Some((revision, key)),
                _ => None,
            }));
            match page.objects.last() {
                Some((last, _)) if page.more => after = Some(last.clone()),
                _ => return Ok(keys),
            }
        }
    }
}

/// Trims the histories of a shard's tags that moved since they were last trimmed.
pub(crate) async fn trim_histories(registry: &std::sync::Arc<Registry>, lease: &Lease, shard: Shard) -> Result<usize> {
    let group = lease.names.trims();
    let mut after: Option<String> = None;
    let mut trimmed = 0;
    loop {
        let page = lease.scan(shard, &group, after.as_deref(), 100).await?;
        for (member, _) in &page {
            let done = match crate::tag::parse_trim(member) {
                Some((name, tag)) => registry.repository(&name).await?.trim_history(&tag).await?,
                None => true,
            };
            if done {
                // A move of the tag meanwhile wants a trim of its own, a little late: with the next move.
                let writes = vec![Write::Delete(Fact::new(group.clone(), member.clone()))];
                lease.commit(shard, Batch { writes, ..Batch::default() }).await?;
                trimmed += 1;
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == 100 => after = Some(last.clone()),
            _ => return Ok(trimmed),
        }
    }
}
