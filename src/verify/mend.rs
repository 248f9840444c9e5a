//! Mending: what the bucket proves is put into the index, each time by a batch that checks what was read.
//!
//! A link or a manifest is not adopted under its old name, which the collection may have condemned: it is made
//! anew by the steps of a push, which hold beside anything. Only a data object has to come back as what it was, and
//! for that it is held first.

use bytes::Bytes;

use super::{About, Linked};
use crate::{
    blob::{self, Attempt},
    error::Result,
    index::{
        Ask, Batch, Check, Fact, Outcome, Write,
        facts::{self, DataFact, DataState, Hint, LinkFact, ManifestFact, TagFact, TrashFact},
    },
    manifest::Push,
    oci::{Digest, Manifest, Tag, manifest::MAX_MANIFEST},
    reconcile::newest_of_each,
    registry::{Repository, ask, found},
    storage::{DataKey, Key, key, read_small},
};

impl Repository {
    /// Mends one thing; false where that can't be done, or something else happened to it meanwhile. Only an index
    /// that isn't believed any more is an error.
    pub(super) async fn mend(&self, about: &About) -> Result<bool> {
        let mended = match about {
            About::LinkUnknown(of) => self.link_anew(of).await,
            About::LinkGone(of) => self.replace_link(of).await,
            About::DataUnknown(of) => self.revive(of).await,
            About::UserUnknown(of) => self.note_user(of).await,
            About::ManifestUnknown(digest, object) => self.push_anew(digest, *object).await,
            About::ManifestFacts(digest) => self.complete_facts(digest).await,
            About::TagBehind(tag, _) | About::TagUnnamed(tag) => self.raise_tag(tag).await,
            About::DataGone(_)
            | About::ManifestGone(_)
            | About::BlobGone(..)
            | About::TagGone(..)
            | About::TagDangles(..) => Ok(false),
        };
        match mended {
            Err(error) if error.is_suspect() => Err(error),
            Err(error) => {
                tracing::warn!(%error, repository = %self.name, "something was not mended");
                Ok(false)
            }
            mended => mended,
        }
    }

    /// Links a blob as a mount does, to the bytes that an unknown link names. That one is left to the collection.
    async fn link_anew(&self, of: &Linked) -> Result<bool> {
        let attempt = self.attempt();
        if !self.note_mount(attempt, &of.digest).await? {
            return Ok(true);
        }
        let there = Hint { data: of.data, size: of.size };
        let is_known = self.revive_data(of).await;
        let linked = match is_known {
            Ok(true) => self.mount_data(attempt, &of.digest, &there, &self.name).await.map(|blob| blob.is_some()),
            other => other,
        };
        self.forget_unless(matches!(linked, Ok(true)), attempt, of).await;
        linked
    }

    /// Gives a link another object, and the index the link of that name.
    async fn replace_link(&self, of: &Linked) -> Result<bool> {
        let fact = self.lease.names.link(&self.name, &of.digest);
        let Some(value) = self.value(&fact).await? else { return Ok(false) };
        let known: LinkFact = facts::decode(&value)?;
        if known.link != of.link {
            return Ok(false);
        }
        let attempt = self.attempt();
        let still = Check::Equals(fact.clone(), value);
        let noted = Batch { checks: vec![still.clone()], writes: vec![self.note(attempt)], ..Batch::default() };
        if !is_done(&self.commit(noted).await?) {
            return Ok(false);
        }
        let replaced = self.commit_replacement(attempt, of, known, still).await;
        self.forget_unless(matches!(replaced, Ok(true)), attempt, of).await;
        replaced
    }

    async fn commit_replacement(&self, attempt: Attempt, of: &Linked, known: LinkFact, still: Check) -> Result<bool> {
        let hint = Hint { data: of.data, size: of.size };
        if !self.join(attempt, &of.digest, &hint).await? {
            return Ok(false);
        }
        self.put_link(attempt, &of.digest, blob::Bytes::Joined(of.data), of.size).await?;
        let names = &self.lease.names;
        let old = Key::Link {
            repository: self.name.clone(),
            digest: of.digest.clone(),
            link: of.link,
            data: of.data,
            size: of.size,
        };
        let trash = TrashFact {
            keys: vec![old.to_string()],
            user: Some((of.data, self.name.clone(), of.link)),
            ..TrashFact::default()
        };
        let noted = names.attempt(attempt.link);
        let fact = LinkFact { link: attempt.link, renewed: self.store().now(), ..known };
        let batch = Batch {
            checks: vec![Check::Present(noted.clone()), still],
            writes: vec![
                Write::Put(names.link(&self.name, &of.digest), facts::encode(&fact)),
                Write::Delete(noted),
                Write::Put(names.trashed(of.link), facts::encode(&trash)),
            ],
            ..Batch::default()
        };
        Ok(is_done(&self.commit(batch).await?))
    }

    /// Forgets an attempt that came to nothing.
    async fn forget_unless(&self, is_done: bool, attempt: Attempt, of: &Linked) {
        if !is_done {
            let link = self.attempted_link(attempt, &of.digest, blob::Bytes::Joined(of.data), of.size);
            self.forget(attempt, Some(of.data), Some(&link)).await;
        }
    }

    /// Makes the bytes of a link known again, and that it needs them.
    async fn revive(&self, of: &Linked) -> Result<bool> {
        Ok(self.revive_data(of).await? && self.note_user(of).await?)
    }

    /// Notes that a link needs its bytes, if they are live. If the link goes meanwhile, the collection finds the use.
    async fn note_user(&self, of: &Linked) -> Result<bool> {
        let Some(value) = self.home_value(of.data).await? else { return Ok(false) };
        if !facts::decode::<DataFact>(&value)?.is_live(of) {
            return Ok(false);
        }
        let check = Check::Equals(self.lease.names.data(of.data), value);
        self.set_data(of.data, check, self.use_of(of.data, of.link, &of.digest)).await
    }

    /// Makes a data object live whose home has forgotten it, or has its size wrong. True where it is live.
    ///
    /// It is called dying first: from then on nobody throws it away and nobody joins it. What was thrown away
    /// before has a record in the trash until it is gone, so where there is no such record and the object is there
    /// afterwards, no request is on its way that removes it.
    async fn revive_data(&self, of: &Linked) -> Result<bool> {
        let fact = self.lease.names.data(of.data);
        let live = DataFact { digest: of.digest.clone(), size: of.size, state: DataState::Live };
        let held = facts::encode(&DataFact { state: DataState::Dying, ..live.clone() });
        let value = self.home_value(of.data).await?;
        let check = match value.as_ref().map(|value| facts::decode::<DataFact>(value)).transpose()? {
            Some(known) if known.is_live(of) => return Ok(true),
            // Other links rest on what it says.
            Some(known) if known.digest != of.digest => return Ok(false),
            _ => value.map_or_else(|| Check::Absent(fact.clone()), |value| Check::Equals(fact.clone(), value)),
        };
        if !self.set_data(of.data, check, Write::Put(fact.clone(), held.clone())).await? {
            return Ok(false);
        }
        let is_doomed = self.is_trashed(of.data).await?;
        let stat = self.store().stat(&Key::Data(of.data)).await?;
        let is_held = Check::Equals(fact.clone(), held);
        if is_doomed || stat.is_none_or(|stat| stat.size != of.size) {
            self.set_data(of.data, is_held, Write::Delete(fact)).await?;
            return Ok(false);
        }
        self.set_data(of.data, is_held, Write::Put(fact, facts::encode(&live))).await
    }

    /// One write in the home of a data object, under a check.
    async fn set_data(&self, data: DataKey, check: Check, write: Write) -> Result<bool> {
        let batch = Batch { checks: vec![check], writes: vec![write], ..Batch::default() };
        Ok(is_done(&self.lease.commit(self.lease.names.home_of(data), batch).await?))
    }

    /// Whether a data object waits to be removed, by its home's records.
    async fn is_trashed(&self, data: DataKey) -> Result<bool> {
        let (home, key) = (self.lease.names.home_of(data), Key::Data(data).to_string());
        let mut after: Option<String> = None;
        loop {
            let page = self.lease.scan(home, &self.lease.names.trash(), after.as_deref(), 1000).await?;
            for (_, value) in &page {
                let trash: TrashFact = facts::decode(value)?;
                if trash.data == Some(data) || trash.keys.contains(&key) {
                    return Ok(true);
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == 1000 => after = Some(last.clone()),
                _ => return Ok(false),
            }
        }
    }

    /// Pushes a manifest, by digest alone, from the object that the index doesn't know.
    async fn push_anew(&self, digest: &Digest, object: ulid::Ulid) -> Result<bool> {
        let key = self.manifest_key(digest, object);
        let Some(bytes) = found(read_small(self.store(), &key, MAX_MANIFEST).await)? else { return Ok(false) };
        let manifest = Manifest::parse(&bytes, None)?;
        let push = Push { digest: digest.clone(), bytes, manifest, tags: Vec::new(), create_only: false };
        self.push_manifest(push).await.map(|()| true)
    }

    /// Writes all that follows from a manifest, while its links are there.
    async fn complete_facts(&self, digest: &Digest) -> Result<bool> {
        let fact = self.lease.names.manifest(&self.name, digest);
        let Some(value) = self.value(&fact).await? else { return Ok(false) };
        let there: ManifestFact = facts::decode(&value)?;
        let Some((manifest, size)) = self.read_manifest(digest, there.object).await? else { return Ok(false) };
        let linked = manifest.needs.iter().map(|needs| Check::Present(self.lease.names.link(&self.name, needs)));
        let checks = std::iter::once(Check::Equals(fact, value)).chain(linked).collect();
        let expected = self.facts_of(digest, &manifest, size, &there);
        let writes = expected.into_iter().map(|(fact, value)| Write::Put(fact, value)).collect();
        Ok(is_done(&self.commit(Batch { checks, writes, ..Batch::default() }).await?))
    }

    /// Sets a tag to its newest revision that counts, while nobody is moving it.
    async fn raise_tag(&self, tag: &Tag) -> Result<bool> {
        let names = &self.lease.names;
        let fact = names.tag(&self.name, tag);
        let value = self.value(&fact).await?;
        let listed = self.listed_under(&key::history(&self.name, tag)).await?;
        let newest = newest_of_each(listed.into_iter().filter(|(_, counts)| *counts)).remove(tag);
        let Some(newest) = newest else { return Ok(false) };
        let mut checks = vec![Check::Empty(names.open(&self.name, tag))];
        checks.push(match value {
            Some(value) if TagFact::decode(&value)?.revision > newest.revision => return Ok(false),
            Some(value) => Check::Equals(fact.clone(), value),
            None => Check::Absent(fact.clone()),
        });
        let state = self.tag_state(&newest.key).await?;
        let mut writes = vec![
            Write::Put(fact, TagFact { revision: newest.revision, state }.encode()),
            Write::Put(names.trim(&self.name, tag), Bytes::new()),
        ];
        if let Some(digest) = &newest.to {
            checks.push(Check::Present(names.manifest(&self.name, digest)));
            let name = Fact::new(names.names_of(&self.name, digest), format!("t:{tag}"));
            writes.push(Write::Put(name, Bytes::new()));
        }
        Ok(is_done(&self.commit(Batch { checks, writes, ..Batch::default() }).await?))
    }

    async fn value(&self, fact: &Fact) -> Result<Option<Bytes>> {
        Ok(self.ask(vec![Ask::Value(fact.clone())]).await?.pop().flatten())
    }

    async fn home_value(&self, data: DataKey) -> Result<Option<Bytes>> {
        let names = &self.lease.names;
        Ok(ask(&self.lease, names.home_of(data), vec![Ask::Value(names.data(data))]).await?.pop().flatten())
    }
}

fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Committed { .. })
}
