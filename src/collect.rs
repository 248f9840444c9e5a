//! What is thrown away: objects leave the bucket through the trash, one confirmed request at a time.
//!
//! A trash record is made in the commit that made a thing unneeded, so a crash leaves garbage and never a
//! hole. Each removal is a request that the store itself refuses after its time, so that a replica which
//! stalls between its check and its request can't remove what a later epoch believes in.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use ulid::Ulid;

use crate::{
    epoch::Lease,
    error::{Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Shard, Write,
        facts::{self, AttemptFact, TagFact, TrashFact, UploadFact, UploadState},
    },
    oci::Tag,
    registry::{Registry, Repository},
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
    }
    let record = lease.names.trashed(ulid);
    let checks = vec![Check::Equals(record.clone(), facts::encode(trash))];
    let writes = vec![Write::Delete(record)];
    lease.commit(shard, Batch { checks, writes, ..Batch::default() }).await.map(drop)
}

/// Removes one object, by a request whose end is fixed before the lease is checked.
async fn remove(registry: &Registry, lease: &Lease, key: &Key) -> Result<()> {
    let until = registry.store.now().plus(registry.options.timing.deadline);
    lease.live().await?;
    Ok(registry.store.delete(key, until).await?)
}

/// Empties a shard's trash, a page at a time. What fails stays for the next time.
pub(crate) async fn empty_trash(registry: &Registry, lease: &Lease, shard: Shard) -> Result<usize> {
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
                    tracing::warn!(%error, record = %member, "something in the trash was not removed; it will be tried again")
                }
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == 100 => after = Some(last.clone()),
            _ => return Ok(removed),
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
    /// True once nothing is left to do until the tag moves again.
    pub(crate) async fn trim_history(&self, tag: &Tag) -> Result<bool> {
        let names = &self.lease.names;
        let (fact, open) = (names.tag(&self.name, tag), names.open(&self.name, tag));
        let asks = vec![Ask::Value(fact.clone()), Ask::First(open.clone())];
        let answers = self.ask(asks).await?;
        let (Some(value), None) = (&answers[0], &answers[1]) else { return Ok(answers[0].is_none()) };
        let TagFact { revision: current, state } = TagFact::decode(value)?;
        let is_gone = state.to.is_none() && state.at.plus(self.registry.options.grace) < self.store().now();
        if state.to.is_none() && !is_gone {
            return Ok(false);
        }
        let history = self.history(tag).await?;
        let older = history.iter().filter(|(revision, _)| *revision < current);
        let keep = if is_gone { 0 } else { self.registry.options.history - 1 };
        for (_, key) in older.skip(keep).collect::<Vec<_>>().into_iter().rev() {
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
