//! Tags: what one points at now, how it is moved, and its history.
//!
//! A tag is moved in three steps: *reserve* in the index (a counter, a deadline, an open intent), *write*
//! the revision to the bucket, *commit* in the index. Who reads meanwhile and finds an open intent asks the
//! bucket, where a revision counts if the store wrote it by its deadline. So the answer is the same whether
//! a writer finishes, dies, or is finished by recovery.

use std::time::Duration;

use serde_json::json;
use ulid::Ulid;

use crate::{
    error::{Code, Error, Result},
    index::{
        Ask, Batch, Check, Fact, Outcome, Write,
        facts::{self, IntendedManifest, IntentFact, TagFact, TagState, Target},
    },
    oci::{Digest, RepositoryName, Tag},
    outbox::TOLD,
    registry::Repository,
    storage::{Key, Revision, StoreTime},
};

/// How often who waits for an open intent to close looks again, if nothing wakes it before.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A write of tags that is reserved in the index.
#[derive(Clone, Debug)]
pub(crate) struct Reserved {
    pub(crate) intent: Ulid,
    pub(crate) fact: IntentFact,
    pub(crate) revision: Revision,
}

impl Reserved {
    /// The key of the revision that this write gives a tag.
    pub(crate) fn revision_key(&self, tag: &Tag) -> Key {
        Key::Tag {
            repository: self.fact.repository.clone(),
            tag: tag.clone(),
            revision: self.revision,
            deadline: self.fact.deadline,
            to: self.fact.manifest.as_ref().map(|manifest| manifest.digest.clone()),
        }
    }
}

/// What a reservation is for.
pub(crate) struct Wanted {
    /// The tags to be moved.
    pub(crate) tags: Vec<Tag>,
    /// The manifest that they shall point at; nothing for a delete.
    pub(crate) manifest: Option<IntendedManifest>,
    /// The same with its size and type, for who is told.
    pub(crate) target: Option<Target>,
    /// What the manifest needs.
    pub(crate) needs: Vec<Digest>,
}

/// The topic on which who waits for an open intent is woken.
pub(crate) const CLOSED: &str = "closed";

impl Repository {
    /// What a tag points at now; `None` where it doesn't exist.
    pub(crate) async fn resolve(&self, tag: &Tag) -> Result<Option<Target>> {
        let names = &self.lease.names;
        let asks = vec![Ask::Value(names.tag(&self.name, tag)), Ask::First(names.open(&self.name, tag))];
        let answers = self.ask(asks).await?;
        if answers[1].is_some() {
            return Ok(self.in_bucket().tag(tag).await?.and_then(|(_, state)| state.to));
        }
        let Some(value) = &answers[0] else { return Ok(None) };
        Ok(TagFact::decode(value)?.state.to)
    }

    /// The names of a page of [`Repository::tags`], none where `limit` is 0; `None` where there is no such
    /// repository.
    pub async fn tag_names(&self, after: Option<&str>, limit: usize) -> Result<Option<(Vec<String>, bool)>> {
        let (tags, more) = match limit {
            0 => (Vec::new(), false),
            limit => self.page(after, limit, |value| Ok(TagFact::exists(value)?.then_some(()))).await?,
        };
        if tags.is_empty() && !self.exists().await? {
            return Ok(None);
        }
        Ok(Some((tags.into_iter().map(|(name, ())| name).collect(), more)))
    }

    /// A page of the tags that exist, in byte order, after `after`, at most `limit`; and whether more follow.
    pub async fn tags(&self, after: Option<&str>, limit: usize) -> Result<(Vec<(Tag, TagFact)>, bool)> {
        let existing = |value: &[u8]| Ok(Some(TagFact::decode(value)?).filter(|fact| fact.state.to.is_some()));
        let (page, more) = self.page(after, limit, existing).await?;
        let tags = page.into_iter().map(|(name, fact)| Ok((name.parse()?, fact))).collect::<Result<_>>()?;
        Ok((tags, more))
    }

    /// The same, with what `read` finds in a tag's value; nothing of those that don't exist.
    async fn page<T: Send>(
        &self,
        after: Option<&str>,
        limit: usize,
        read: impl Fn(&[u8]) -> Result<Option<T>> + Send,
    ) -> Result<(Vec<(String, T)>, bool)> {
        let group = self.lease.names.tags(&self.name);
        let mut after = after.map(str::to_owned);
        let mut page = Vec::new();
        loop {
            let ask = limit + 1;
            let found = self.lease.scan(self.shard, &group, after.as_deref(), ask).await?;
            let full = found.len() == ask;
            after = found.last().map(|(member, _)| member.clone());
            for (member, value) in found {
                let Some(kept) = read(&value)? else { continue };
                if page.len() == limit {
                    return Ok((page, true));
                }
                page.push((member, kept));
            }
            if !full {
                return Ok((page, false));
            }
        }
    }

    /// Removes a tag.
    pub async fn delete_tag(&self, tag: &Tag) -> Result<()> {
        let fact = self.lease.names.tag(&self.name, tag);
        let patience = self.patience();
        loop {
            let asks = vec![Ask::Value(fact.clone()), Ask::First(self.lease.names.open(&self.name, tag))];
            let answers = self.ask(asks).await?;
            if answers[1].is_some() {
                self.wait_for_open(patience).await?;
                continue;
            }
            let there = answers[0].clone().ok_or_else(|| unknown(tag))?;
            if TagFact::decode(&there)?.state.to.is_none() {
                return Err(unknown(tag));
            }
            if self.registry.is_immutable(tag) {
                return Err(Error::new(Code::Denied, format!("tag {tag} is immutable")));
            }
            if self.delete_tag_at(tag, there).await? {
                return Ok(());
            }
        }
    }

    /// Removes a tag if it still has exactly this value and nobody is moving it; false where that isn't so.
    pub(crate) async fn delete_tag_at(&self, tag: &Tag, value: bytes::Bytes) -> Result<bool> {
        let names = &self.lease.names;
        let checks = vec![Check::Equals(names.tag(&self.name, tag), value), Check::Empty(names.open(&self.name, tag))];
        let wanted = Wanted { tags: vec![tag.clone()], manifest: None, target: None, needs: Vec::new() };
        let Ok((reserved, _)) = self.reserve(wanted, checks, Vec::new()).await? else { return Ok(false) };
        let state = TagState { to: None, at: reserved.fact.at, by: reserved.fact.by.clone() };
        self.write_revisions(&reserved, &state).await?;
        self.commit_or_leave(&reserved, self.commit_tags(&reserved, &reserved.fact.tags, &state)).await;
        Ok(true)
    }

    /// The first step: draws the counter and the deadline and opens the intent, if all checks hold. With it
    /// come the answers to `reads`; without it, the place of the check that doesn't hold.
    pub(crate) async fn reserve(
        &self,
        wanted: Wanted,
        checks: Vec<Check>,
        reads: Vec<Ask>,
    ) -> Result<std::result::Result<(Reserved, Vec<Option<bytes::Bytes>>), usize>> {
        let names = &self.lease.names;
        let Wanted { tags, manifest, target, needs } = wanted;
        let intent = self.fresh();
        let at = self.store().now();
        let deadline = at.plus(self.registry.options.timing.deadline);
        let (repository, by) = (self.name.clone(), self.cause.by.clone());
        let mut fact = IntentFact { repository, tags, deadline, manifest, needs, at, by, request: None };
        fact.request = self.request_to_tell(&fact, target.as_ref());
        let mut writes: Vec<Write> =
            self.held_by(intent, &fact).into_iter().map(|held| Write::Put(held, bytes::Bytes::new())).collect();
        writes.push(Write::PutNumbered(names.intent(intent), facts::encode(&fact)));
        let batch = Batch { checks, sequence: Some(names.counter()), writes, reads };
        match self.commit(batch).await? {
            Outcome::Committed { sequence, reads } => {
                let revision = Revision { epoch: self.lease.epoch, counter: sequence };
                Ok(Ok((Reserved { intent, fact, revision }, reads)))
            }
            Outcome::Refused { check } => Ok(Err(check)),
        }
    }

    /// Every fact that says that an intent is open: on its tags, on the manifest that it names, and the
    /// pins on what that needs.
    fn held_by(&self, intent: Ulid, fact: &IntentFact) -> Vec<Fact> {
        let names = &self.lease.names;
        let open = fact.tags.iter().map(|tag| Fact::new(names.open(&self.name, tag), intent.to_string()));
        let naming = fact
            .manifest
            .iter()
            .map(|manifest| Fact::new(names.names_of(&self.name, &manifest.digest), format!("i:{intent}")));
        let pins = fact.needs.iter().map(|digest| Fact::new(names.refs(&self.name, digest), format!("p:{intent}")));
        open.chain(naming).chain(pins).collect()
    }

    /// The second step: the revisions, side by side. An error means that they may count all the same.
    pub(crate) async fn write_revisions(&self, reserved: &Reserved, state: &TagState) -> Result<()> {
        let body = serde_json::to_vec(state).map_err(Error::internal)?;
        let keys: Vec<Key> = reserved.fact.tags.iter().map(|tag| reserved.revision_key(tag)).collect();
        self.registry.put_in_time(&keys, body.into(), reserved.fact.deadline).await
    }

    /// The third step of a delete, or of a recovery of one.
    pub(crate) async fn commit_tags(&self, reserved: &Reserved, tags: &[Tag], state: &TagState) -> Result<bool> {
        let checks = vec![Check::Present(self.lease.names.intent(reserved.intent))];
        let mut writes = self.raise_tags(reserved, tags, state);
        writes.extend(self.close_intent(reserved));
        writes.extend(self.deliveries(reserved, tags, None));
        let outcome = self.commit(Batch { checks, writes, ..Batch::default() }).await?;
        self.wake_waiting();
        Ok(matches!(outcome, Outcome::Committed { .. }))
    }

    /// The writes that make the greatest of what a tag was and what this write gives it the tag's value.
    pub(crate) fn raise_tags(&self, reserved: &Reserved, tags: &[Tag], state: &TagState) -> Vec<Write> {
        let names = &self.lease.names;
        let value = TagFact { revision: reserved.revision, state: state.clone() }.encode();
        let mut writes = Vec::new();
        for tag in tags {
            writes.push(Write::Raise(names.tag(&self.name, tag), value.clone()));
            writes.push(Write::Put(names.trim(&self.name, tag), bytes::Bytes::new()));
            if let Some(to) = &state.to {
                let group = names.names_of(&self.name, &to.digest);
                writes.push(Write::Put(Fact::new(group, format!("t:{tag}")), bytes::Bytes::new()));
            }
        }
        writes
    }

    /// The writes that end an intent.
    pub(crate) fn close_intent(&self, reserved: &Reserved) -> Vec<Write> {
        let held = self.held_by(reserved.intent, &reserved.fact);
        held.into_iter().chain([self.lease.names.intent(reserved.intent)]).map(Write::Delete).collect()
    }

    /// Ends an intent of which nothing shall count, together with `more`; false where it was ended before.
    pub(crate) async fn drop_intent(&self, reserved: &Reserved, more: impl IntoIterator<Item = Write>) -> Result<bool> {
        let checks = vec![Check::Present(self.lease.names.intent(reserved.intent))];
        let writes = self.close_intent(reserved).into_iter().chain(more).collect();
        let outcome = self.commit(Batch { checks, writes, ..Batch::default() }).await?;
        self.wake_waiting();
        Ok(matches!(outcome, Outcome::Committed { .. }))
    }

    /// Runs a commit whose writes count already: if it fails, recovery does the same later.
    pub(crate) async fn commit_or_leave(&self, reserved: &Reserved, commit: impl Future<Output = Result<bool>>) {
        if let Err(error) = commit.await {
            tracing::warn!(%error, intent = %reserved.intent, repository = %self.name,
                "an acknowledged write is not in the index yet; recovery will put it there");
        }
        self.registry.work.notify_one();
    }

    /// Wakes who waits for an open intent, and who may tell of later changes now that it isn't.
    pub(crate) fn wake_waiting(&self) {
        let is_told = !self.registry.interests().is_empty();
        self.wake(if is_told { &[CLOSED, TOLD] } else { &[CLOSED] });
    }

    /// Wakes who waits on these topics, without making this request wait for that.
    pub(crate) fn wake(&self, topics: &'static [&'static str]) {
        let (index, shard) = (std::sync::Arc::clone(&self.lease.index), self.shard);
        tokio::spawn(async move {
            for topic in topics {
                if let Err(error) = index.notify(shard, topic).await {
                    tracing::debug!(%error, topic, "nobody was woken; who waits looks again by itself");
                }
            }
        });
    }

    /// When waiting for an open intent is given up: recovery has had its time then.
    pub(crate) fn patience(&self) -> StoreTime {
        let timing = self.registry.options.timing;
        self.store().now().plus(timing.deadline + timing.margin * 2)
    }

    pub(crate) async fn wait_for_open(&self, patience: StoreTime) -> Result<()> {
        if self.store().now() > patience {
            return Err(Error::unavailable("another write of the same tag is not over yet"));
        }
        // Its writer may be dead: whoever waits has the worker look.
        self.registry.work.notify_one();
        self.lease.live().await?.wait(self.shard, CLOSED, LOOK_AGAIN).await;
        Ok(())
    }
}

/// The refusal for a tag that doesn't exist.
pub(crate) fn unknown(tag: &Tag) -> Error {
    Error::new(Code::ManifestUnknown, "the repository has no such tag").with_detail(json!({ "tag": tag }))
}

/// The repository and tag of a trim's member.
pub(crate) fn parse_trim(member: &str) -> Option<(RepositoryName, Tag)> {
    let (repository, tag) = member.split_once(':')?;
    Some((repository.parse().ok()?, tag.parse().ok()?))
}
