//! How each promise is tried. What one of them needs of another it waits for, so that a store which breaks one is
//! found at that one.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures_util::{TryStreamExt, future::try_join_all};
use http::Method;
use ulid::Ulid;

use super::{
    super::{DataKey, Key, PartId, Revision, StorageError, key::EpochNumber},
    Broken, Promise, SHORT_LIFE, Subject, broken, manifest,
};
use crate::oci::{Algorithm, Digest, RepositoryName, name::MAX_REPOSITORY};

/// The least that S3 takes for a part that isn't the last, in bytes:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
const LEAST_PART: usize = 5 << 20;

/// How long what was written may take to show in a listing before its order is judged. That it shows at once is a
/// promise of its own.
const SETTLING: Duration = Duration::from_secs(10);

/// How much longer than its life something is waited for that is to have expired: a store may count from the second
/// in which it was signed, and its clock shows whole seconds.
const EXPIRED: Duration = Duration::from_secs(2);

/// How many objects a promise about what is seen at once is tried with: a store that keeps it by luck fails one.
const TRIES: u128 = 8;

impl Promise {
    pub(super) async fn reads_writes(self, subject: &Subject) -> Result<(), Broken> {
        for object in 0..TRIES {
            // The last is empty, as links are.
            let bytes = Bytes::from(vec![b'x'; (TRIES - 1 - object) as usize]);
            let key = self.key(object)?;
            subject.put(&key, bytes.clone()).await?;
            subject.expect(&key, &bytes).await?;
        }
        // A blob's objects may have a storage class of their own.
        let blob = Key::Data(DataKey(Ulid::r#gen()));
        subject.put(&blob, Bytes::from_static(b"a blob")).await?;
        subject.expect(&blob, b"a blob").await
    }

    pub(super) async fn lists_writes(self, subject: &Subject) -> Result<(), Broken> {
        for object in 0..TRIES {
            let key = self.key(object)?;
            subject.put(&key, Bytes::from_static(b"listed")).await?;
            let listed = subject.list(&self.place(), 1000).await?;
            if !listed.iter().any(|(name, stat)| *name == key.to_string() && stat.size == 6) {
                return broken(format!("{key} was written, and the next listing didn't show it"));
            }
        }
        Ok(())
    }

    pub(super) async fn forgets_removed(self, subject: &Subject) -> Result<(), Broken> {
        for object in 0..TRIES {
            let key = self.key(object)?;
            subject.put(&key, Bytes::from_static(b"to be removed")).await?;
            subject.store.delete(&key, subject.soon()).await?;
            if subject.store.stat(&key).await?.is_some() || !is_not_found(&subject.read(&key).await) {
                return broken(format!("{key} was removed, and could still be read"));
            }
            if !subject.list(&self.place(), 1000).await?.is_empty() {
                return broken(format!("{key} was removed, and the next listing still showed it"));
            }
            // What is gone already is removed with success.
            subject.store.delete(&key, subject.soon()).await?;
        }
        Ok(())
    }

    pub(super) async fn keeps_order(self, subject: &Subject) -> Result<(), Broken> {
        let mut expected = BTreeSet::new();
        for name in ["a", "a/b", "a-b", "a.b", "a/b/c", "a0", "b"] {
            let repository = format!("{}/{name}", self.repository()?).parse().or_else(|_| broken("not a name"))?;
            for object in 0..3 {
                let key = manifest(RepositoryName::clone(&repository), object);
                subject.put(&key, Bytes::from_static(b"x")).await?;
                expected.insert(key.to_string());
            }
        }
        let expected: Vec<String> = expected.into_iter().collect();
        self.settle(subject, expected.len()).await?;
        for limit in [1, 2, 5, expected.len(), 1000] {
            let listed: Vec<String> =
                subject.list(&self.place(), limit).await?.into_iter().map(|(key, _)| key).collect();
            if listed != expected {
                return broken(format!("by pages of {limit} the order was {listed:?}"));
            }
        }
        // Whole keys, beginnings of keys, and what stands between two.
        for after in expected.iter().flat_map(|key| [key.clone(), key[..key.len() - 30].to_owned(), format!("{key}0")])
        {
            let page = subject.store.list(&self.place(), Some(&after), 1000).await?;
            let listed: Vec<&String> = page.objects.iter().map(|(key, _)| key).collect();
            if listed != expected.iter().filter(|key| **key > after).collect::<Vec<_>>() {
                return broken(format!("after {after} it listed {listed:?}"));
            }
        }
        Ok(())
    }

    /// Waits until so many objects are listed.
    async fn settle(self, subject: &Subject, count: usize) -> Result<(), Broken> {
        let until = subject.store.now().plus(SETTLING);
        while subject.list(&self.place(), 1000).await?.len() < count {
            if subject.store.now() > until {
                return broken("not all that was written was listed, even later");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    pub(super) async fn dates(self, subject: &Subject) -> Result<(), Broken> {
        for object in 0..TRIES {
            let (key, before) = (self.key(object)?, subject.store.now());
            subject.put(&key, Bytes::from_static(b"dated")).await?;
            let modified = subject.stat(&key).await?.modified;
            let after = subject.store.now();
            if modified < before.minus(subject.margin) || modified > after.plus(subject.margin) {
                return broken(format!(
                    "{key} was written between {} and {} by the store's clock, and has the time {}",
                    before.rfc3339(),
                    after.rfc3339(),
                    modified.rfc3339()
                ));
            }
        }
        Ok(())
    }

    pub(super) async fn late_writes(self, subject: &Subject) -> Result<(), Broken> {
        let (key, deadline) = (self.key(0)?, subject.store.now().minus(EXPIRED));
        subject.note(&key);
        match subject.store.put(&key, vec![Bytes::from_static(b"late")], Some(deadline)).await {
            Err(StorageError::TooLate(_)) if subject.store.stat(&key).await?.is_none() => Ok(()),
            Err(StorageError::TooLate(_)) => broken("it was refused, and done"),
            Err(error) => Err(error.into()),
            Ok(()) if subject.stat(&key).await?.modified > deadline => Ok(()),
            Ok(()) => broken("it was taken, and dated before its deadline"),
        }
    }

    pub(super) async fn late_removals(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        subject.put(&key, Bytes::from_static(b"stays")).await?;
        let removed = subject.store.delete(&key, subject.store.now().minus(EXPIRED)).await;
        match removed {
            Err(StorageError::TooLate(_)) => subject.expect(&key, b"stays").await,
            Err(error) => Err(error.into()),
            Ok(()) => broken("it was done"),
        }
    }

    pub(super) async fn expired_removals(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        subject.put(&key, Bytes::from_static(b"stays")).await?;
        let deadline = subject.store.now().plus(SHORT_LIFE);
        let Some(url) = subject.store.sign_delete(&key, deadline).await? else { return Ok(()) };
        tokio::time::sleep(SHORT_LIFE + EXPIRED).await;
        let status = subject.ask(Method::DELETE, &url, None).await?.status;
        match subject.read(&key).await {
            Ok(_) if status >= 400 => Ok(()),
            Ok(_) => broken(format!("it was answered with {status}")),
            Err(_) => broken(format!("it was done, {EXPIRED:?} after its time")),
        }
    }

    pub(super) async fn ranges(self, subject: &Subject) -> Result<(), Broken> {
        let (key, bytes) = (self.key(0)?, pattern(1_000_003));
        subject.put(&key, bytes.clone()).await?;
        let end = bytes.len() as u64;
        for range in [0..1, end - 1..end, 0..end, 1000..2000, 262_143..262_145, 3..end] {
            let chunks: Vec<Bytes> = subject.store.read(&key, Some(range.clone())).await?.try_collect().await?;
            if chunks.concat() != bytes[range.start as usize..range.end as usize] {
                return broken(format!("{} to {} of {end} were other bytes", range.start, range.end));
            }
        }
        Ok(())
    }

    pub(super) async fn parts(self, subject: &Subject) -> Result<(), Broken> {
        let (key, bytes) = (self.key(0)?, pattern(LEAST_PART + 77));
        let upload = subject.begin(&key).await?;
        let part = |range: std::ops::Range<usize>| vec![bytes.slice(range)];
        // Side by side, the last one first.
        let (last, first) = tokio::try_join!(
            subject.store.put_part(&key, &upload, 1, LEAST_PART, part(LEAST_PART..bytes.len())),
            subject.store.put_part(&key, &upload, 0, LEAST_PART, part(0..LEAST_PART)),
        )?;
        if subject.store.stat(&key).await?.is_some() {
            return broken("it was there before it was completed");
        }
        let parts = [first, last];
        subject.store.complete(&key, &upload, &parts).await?;
        subject.expect(&key, &bytes).await?;
        // Whose answer got lost asks again.
        subject.store.complete(&key, &upload, &parts).await?;
        subject.expect(&key, &bytes).await
    }

    pub(super) async fn replaced_parts(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        let upload = subject.begin(&key).await?;
        let put = |bytes| subject.store.put_part(&key, &upload, 0, LEAST_PART, vec![bytes]);
        let old: PartId = put(pattern(1000)).await?;
        let new: PartId = put(pattern(900)).await?;
        match subject.store.complete(&key, &upload, &[old]).await {
            Err(StorageError::PartChanged(_)) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => return broken("it was completed with the part that was replaced"),
        }
        subject.store.complete(&key, &upload, &[new]).await?;
        subject.expect(&key, &pattern(900)).await
    }

    pub(super) async fn given_up_uploads(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        let upload = subject.begin(&key).await?;
        let part = subject.store.put_part(&key, &upload, 0, LEAST_PART, vec![pattern(10)]).await?;
        subject.store.abort(&key, &upload).await?;
        subject.store.abort(&key, &upload).await?;
        match subject.store.complete(&key, &upload, &[part]).await {
            Ok(()) => return broken("it was completed afterwards"),
            Err(StorageError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match subject.store.stat(&key).await? {
            None => Ok(()),
            Some(_) => broken("it became an object afterwards"),
        }
    }

    pub(super) async fn long_keys(self, subject: &Subject) -> Result<(), Broken> {
        let component = "x".repeat(76);
        let name = [&self.repository()?.to_string(), &component, &component, &component].map(String::as_str).join("/");
        let repository = name.get(..MAX_REPOSITORY).unwrap_or(&name).parse().or_else(|_| broken("not a name"))?;
        let key = Key::Tag {
            repository,
            tag: "t".repeat(128).parse().or_else(|_| broken("not a tag"))?,
            revision: Revision { epoch: EpochNumber { generation: 1, random: 1 }, counter: 1 },
            deadline: subject.soon(),
            to: Some(Digest::of(Algorithm::Sha512, b"long")),
        };
        subject.put(&key, Bytes::from_static(b"long")).await?;
        subject.expect(&key, b"long").await?;
        self.settle(subject, 1).await?;
        match subject.list(&self.place(), 1000).await?.first() {
            Some((listed, _)) if *listed == key.to_string() => Ok(()),
            listed => broken(format!("instead of {key} it listed {listed:?}")),
        }
    }

    pub(super) async fn side_by_side(self, subject: &Subject) -> Result<(), Broken> {
        let keys = (0..64).map(|object| self.key(object)).collect::<Result<Vec<Key>, Broken>>()?;
        try_join_all(keys.iter().map(|key| subject.put(key, key.to_string().into()))).await?;
        for key in &keys {
            subject.expect(key, key.to_string().as_bytes()).await?;
        }
        Ok(())
    }

    pub(super) async fn signed_reads(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        subject.put(&key, Bytes::from_static(b"signed")).await?;
        let Some(signed) = subject.store.sign(&key, Duration::from_secs(60)).await? else { return Ok(()) };
        let got = subject.ask(Method::GET, &signed.url, None).await?;
        if (got.status, &got.body[..]) != (200, b"signed") {
            return broken(format!("it was answered with {}", got.status));
        }
        if got.content_type != "application/octet-stream" {
            return broken(format!("the bytes are called {:?}, and not application/octet-stream", got.content_type));
        }
        let part = subject.ask(Method::GET, &signed.url, Some("bytes=2-3")).await?;
        if (part.status, &part.body[..]) != (206, b"gn") {
            return broken(format!("a range was answered with {}", part.status));
        }
        for method in [Method::PUT, Method::DELETE] {
            let status = subject.ask(method.clone(), &signed.url, None).await?.status;
            if status < 400 {
                return broken(format!("{method} by it was answered with {status}"));
            }
        }
        subject.expect(&key, b"signed").await
    }

    pub(super) async fn expired_reads(self, subject: &Subject) -> Result<(), Broken> {
        let key = self.key(0)?;
        subject.put(&key, Bytes::from_static(b"secret")).await?;
        let Some(signed) = subject.store.sign(&key, SHORT_LIFE).await? else { return Ok(()) };
        tokio::time::sleep(SHORT_LIFE + EXPIRED).await;
        let status = subject.ask(Method::GET, &signed.url, None).await?.status;
        if status >= 400 { Ok(()) } else { broken(format!("{EXPIRED:?} after its time it was answered with {status}")) }
    }
}

fn is_not_found(read: &Result<Bytes, StorageError>) -> bool {
    matches!(read, Err(StorageError::NotFound(_)))
}

/// Bytes that are different at every position that matters.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect::<Vec<u8>>().into()
}
