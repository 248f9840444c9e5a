//! Reading a repository: by the index where it is believed and knows the repository, else from the bucket.
//!
//! A [`Reader`] can't write: what changes anything needs a [`Repository`], which only a lease gives. What reads the bucket is
//! boxed, so that the futures of those who don't need it stay small.

use std::sync::Arc;

use crate::{
    blob::{self, Blob},
    bucket::InBucket,
    error::{Error, Result},
    event::Cause,
    index::facts::{Action, EventFact, EventTarget},
    manifest::{self, FoundManifest},
    oci::{Digest, Manifest, Reference, RepositoryName, Tag},
    registry::{Registry, Repository},
};

/// One repository for who only reads it, for the length of one request.
#[derive(Clone, Debug)]
pub struct Reader {
    /// By the index, where it may be believed.
    indexed: Option<Repository>,
    bucket: InBucket,
    registry: Arc<Registry>,
    name: RepositoryName,
}

impl Registry {
    /// A repository for who only reads it, whether anything is in it or not, and whether the index is there or
    /// not. An error is the bucket's.
    pub async fn reader(self: &Arc<Self>, name: &RepositoryName) -> Result<Reader> {
        let bucket = InBucket::new(Arc::clone(self), name.clone());
        let (registry, name) = (Arc::clone(self), name.clone());
        Ok(Reader { indexed: believed(self.known(&name).await)?.flatten(), bucket, registry, name })
    }

    /// The handle on a repository of which the index knows everything. One that isn't reconciled yet is, in
    /// the background.
    async fn known(self: &Arc<Self>, name: &RepositoryName) -> Result<Option<Repository>> {
        let repository = self.unreconciled(name).await?;
        if repository.is_known().await? {
            return Ok(Some(repository));
        }
        repository.reconcile_soon();
        Ok(None)
    }
}

impl Reader {
    /// Finds a manifest by what a tag points at now, or by its digest.
    pub async fn find_manifest(&self, reference: &Reference) -> Result<FoundManifest> {
        if let Some(repository) = &self.indexed
            && let Some(found) = believed(repository.find_manifest(reference).await)?
        {
            return Ok(found);
        }
        match reference {
            Reference::Tag(tag) => {
                let to = Box::pin(self.bucket.tag(tag)).await?.and_then(|(_, state)| state.to);
                Ok(to.ok_or_else(|| crate::tag::unknown(tag))?.into())
            }
            Reference::Digest(digest) => {
                let bytes = Box::pin(self.bucket.manifest(digest)).await?.ok_or_else(|| manifest::unknown(digest))?;
                let media_type = Manifest::parse(&bytes, None)?.media_type;
                Ok(FoundManifest { digest: digest.clone(), media_type, size: bytes.len() as u64 })
            }
        }
    }

    /// A manifest's exact bytes.
    pub async fn manifest_bytes(&self, found: &FoundManifest) -> Result<bytes::Bytes> {
        if let Some(repository) = &self.indexed
            && let Some(bytes) = believed(repository.manifest_bytes(found).await)?
        {
            return Ok(bytes);
        }
        Box::pin(self.bucket.manifest(&found.digest)).await?.ok_or_else(|| manifest::unknown(&found.digest))
    }

    /// A blob of this repository.
    pub async fn blob(&self, digest: &Digest) -> Result<Blob> {
        if let Some(repository) = &self.indexed
            && let Some(blob) = believed(repository.blob(digest).await)?
        {
            return Ok(blob);
        }
        Box::pin(self.bucket.blob(digest)).await?.ok_or_else(|| blob::unknown(digest))
    }

    /// A blob of this repository, for one who may be about to push a manifest that needs it. From the bucket
    /// it is no promise: nothing is pushed before the index is back, and then the manifest's push looks again.
    pub async fn blob_to_keep(&self, digest: &Digest) -> Result<Blob> {
        if let Some(repository) = &self.indexed
            && let Some(blob) = believed(repository.blob_to_keep(digest).await)?
        {
            return Ok(blob);
        }
        Box::pin(self.bucket.blob(digest)).await?.ok_or_else(|| blob::unknown(digest))
    }

    /// Tells those who want to know that something is read here, before it is. It is read as well where that fails: then
    /// it is only counted.
    pub async fn tell_pull(&self, tag: Option<&Tag>, target: EventTarget, cause: impl FnOnce() -> Cause) {
        if !self.registry.interests().want_pulls() {
            return;
        }
        let told = match &self.indexed {
            Some(repository) => {
                let repository = repository.clone().caused_by(cause());
                let event = || EventFact { tag: tag.cloned(), ..repository.event(Action::Pull, target) };
                Box::pin(repository.tell(event)).await
            }
            None => Err(Error::suspect("the repository is read from the bucket")),
        };
        if let Err(error) = told {
            tracing::debug!(%error, repository = %self.name, "nobody is told of a pull");
            self.registry.options.untold.pulls.inc();
        }
    }

    /// The names of a page of the tags that exist, in byte order, after `after`, at most `limit`, and whether more follow;
    /// `None` where there is no such repository.
    pub async fn tags(&self, after: Option<&str>, limit: usize) -> Result<Option<(Vec<String>, bool)>> {
        if let Some(repository) = &self.indexed
            && let Some(page) = believed(repository.tag_names(after, limit).await)?
        {
            return Ok(page);
        }
        let Some(tags) = Box::pin(self.bucket.tags()).await? else { return Ok(None) };
        let mut rest = tags.iter().filter(|tag| after.is_none_or(|after| tag.as_str() > after));
        let page = rest.by_ref().take(limit).map(Tag::to_string).collect();
        Ok(Some((page, limit > 0 && rest.next().is_some())))
    }
}

/// What the index answered; `None` where it can't be believed.
fn believed<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.is_suspect() => {
            tracing::debug!(%error, "reading from the bucket");
            Ok(None)
        }
        answer => answer.map(Some),
    }
}
