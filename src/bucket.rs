//! A repository as the bucket alone shows it: right at any time, and slower than the index.
//!
//! It is read where the index can't be believed, where it doesn't know a repository yet, and where a write is
//! under way. What counts here is what a new index would adopt. It only reads, and it must not need the index.

mod shared;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Semaphore;

use crate::{
    blob::Blob,
    error::{Error, Result},
    index::facts::TagState,
    oci::{Digest, RepositoryName, Tag, manifest::MAX_MANIFEST},
    registry::{Registry, found},
    storage::{DataKey, Key, Revision, key, read_small},
};

pub(crate) use shared::Shared;

/// How many questions the bucket is asked at once: at 50 ms each they answer a thousand pulls a second, and a
/// store takes that many connections from each of many replicas.
const AT_ONCE: usize = 64;

/// The largest body of a revision, in bytes.
const MAX_STATE: usize = 64 << 10;

/// What is being asked of the bucket now, by all requests of this process.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) turns: Semaphore,
    tags: Shared<Option<(Revision, TagState)>>,
    lists: Shared<Option<Arc<[Tag]>>>,
    manifests: Shared<Option<bytes::Bytes>>,
    blobs: Shared<Option<FoundLink>>,
}

impl Default for Questions {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(AT_ONCE),
            tags: Shared::default(),
            lists: Shared::default(),
            manifests: Shared::default(),
            blobs: Shared::default(),
        }
    }
}

/// Where a link says that a blob's bytes are, and how many.
type FoundLink = (DataKey, u64);

/// The bucket's side of one repository.
#[derive(Clone, Debug)]
pub(crate) struct InBucket {
    registry: Arc<Registry>,
    name: RepositoryName,
}

impl InBucket {
    pub(crate) fn new(registry: Arc<Registry>, name: RepositoryName) -> Self {
        Self { registry, name }
    }

    /// The newest revision of a tag that counts.
    pub(crate) async fn tag(&self, tag: &Tag) -> Result<Option<(Revision, TagState)>> {
        let questions = &self.registry.questions;
        questions.tags.ask(&questions.turns, key::history(&self.name, tag), self.look_for_tag(tag)).await
    }

    async fn look_for_tag(&self, tag: &Tag) -> Result<Option<(Revision, TagState)>> {
        loop {
            let Some((key, revision)) = self.newest_that_counts(tag).await? else { return Ok(None) };
            // One that is gone was trimmed since it was listed, because a newer one counts: look again.
            let Some(bytes) = found(read_small(&self.registry.store, &key, MAX_STATE).await)? else { continue };
            let state = serde_json::from_slice(&bytes).map_err(|error| Error::internal(format!("{key}: {error}")))?;
            return Ok(Some((revision, state)));
        }
    }

    async fn newest_that_counts(&self, tag: &Tag) -> Result<Option<(Key, Revision)>> {
        let prefix = key::history(&self.name, tag);
        let mut after: Option<String> = None;
        loop {
            let page = self.registry.store.list(&prefix, after.as_deref(), 100).await?;
            for (text, stat) in &page.objects {
                if let Some(key @ Key::Tag { revision, deadline, .. }) = Key::parse(text)
                    && stat.modified <= deadline
                {
                    return Ok(Some((key, revision)));
                }
            }
            match page.objects.last() {
                Some((last, _)) if page.more => after = Some(last.clone()),
                _ => return Ok(None),
            }
        }
    }

    /// The tags that exist, in byte order; `None` where the repository has neither a tag nor a manifest.
    pub(crate) async fn tags(&self) -> Result<Option<Arc<[Tag]>>> {
        let questions = &self.registry.questions;
        questions.lists.ask(&questions.turns, self.name.to_string(), self.look_for_tags()).await
    }

    async fn look_for_tags(&self) -> Result<Option<Arc<[Tag]>>> {
        let prefix = key::folder(&self.name, key::Folder::Tags);
        let mut after: Option<String> = None;
        // The order of keys is not that of tags (`a-b/` comes before `a/`), so all have to be seen.
        let mut newest: BTreeMap<Tag, (Revision, bool)> = BTreeMap::new();
        loop {
            let page = self.registry.store.list(&prefix, after.as_deref(), 1000).await?;
            for (text, stat) in &page.objects {
                if let Some(Key::Tag { tag, revision, deadline, to, .. }) = Key::parse(text)
                    && stat.modified <= deadline
                {
                    let exists = (revision, to.is_some());
                    newest.entry(tag).and_modify(|known| *known = exists.max(*known)).or_insert(exists);
                }
            }
            match page.objects.last() {
                Some((last, _)) if page.more => after = Some(last.clone()),
                _ => break,
            }
        }
        let tags: Arc<[Tag]> = newest.into_iter().filter(|(_, (_, exists))| *exists).map(|(tag, _)| tag).collect();
        Ok(if tags.is_empty() && !self.has_manifest().await? { None } else { Some(tags) })
    }

    async fn has_manifest(&self) -> Result<bool> {
        let prefix = key::folder(&self.name, key::Folder::Manifests);
        let page = self.registry.store.list(&prefix, None, 10).await?;
        Ok(page.objects.iter().any(|(text, _)| matches!(Key::parse(text), Some(Key::Manifest { .. }))))
    }

    /// A manifest's exact bytes; `None` where the repository doesn't have it.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Option<bytes::Bytes>> {
        let questions = &self.registry.questions;
        let prefix = format!("{}{digest}/", key::folder(&self.name, key::Folder::Manifests));
        questions.manifests.ask(&questions.turns, prefix.clone(), self.look_for_manifest(&prefix, digest)).await
    }

    async fn look_for_manifest(&self, prefix: &str, digest: &Digest) -> Result<Option<bytes::Bytes>> {
        let page = self.registry.store.list(prefix, None, 10).await?;
        for (text, _) in &page.objects {
            let Some(key @ Key::Manifest { .. }) = Key::parse(text) else { continue };
            if let Some(bytes) = self.registry.manifests.get(digest) {
                return Ok(Some(bytes));
            }
            // One that is gone was the second of two: the other is as good.
            let Some(bytes) = found(read_small(&self.registry.store, &key, MAX_MANIFEST).await)? else { continue };
            if Digest::of(digest.algorithm(), &bytes) != *digest {
                return Err(Error::internal(format!("the object of manifest {digest} doesn't hash to it")));
            }
            self.registry.manifests.insert(digest.clone(), bytes.clone());
            return Ok(Some(bytes));
        }
        Ok(None)
    }

    /// A blob that the repository links; `None` where it has no link to bytes that are there.
    ///
    /// A link's object is written once the digest was verified, perhaps before its bytes, so these are looked
    /// for. It is removed before the blob's deletion is acknowledged. But where two pushes of one blob met, the
    /// second link waits for the workers to remove it, and they need the index: so for as long as that is away,
    /// a blob that was deleted shortly before may still be read here, by who may read the repository. A new
    /// index would find it too.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        let questions = &self.registry.questions;
        let prefix = format!("{}{digest}/", key::folder(&self.name, key::Folder::Blobs));
        let there = questions.blobs.ask(&questions.turns, prefix.clone(), self.look_for_blob(&prefix)).await?;
        Ok(there.map(|(data, size)| Blob::stored(digest.clone(), size, data, Arc::clone(&self.registry.store))))
    }

    async fn look_for_blob(&self, prefix: &str) -> Result<Option<FoundLink>> {
        let page = self.registry.store.list(prefix, None, 100).await?;
        for (text, _) in &page.objects {
            let Some(Key::Link { data, size, .. }) = Key::parse(text) else { continue };
            let stat = self.registry.store.stat(&Key::Data(data)).await?;
            if stat.is_some_and(|stat| stat.size == size) {
                return Ok(Some((data, size)));
            }
        }
        Ok(None)
    }
}
