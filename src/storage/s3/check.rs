//! Whether a bucket is what Berth needs, asked once at the start; and what it has half finished.
//!
//! Each failure is one line that says what to set or what to grant, so that nobody has to know S3's codes.

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::list_objects_v2::ListObjectsV2Error,
    types::MultipartUpload,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;
use futures_util::TryStreamExt;
use ulid::Ulid;

use super::{
    super::remote::code_in, Encryption, Key, MultipartId, S3, StorageError, Store, StoreTime, Unfinished,
    UnfinishedPage,
};
use crate::outbound::{on_one_line, text_of};

/// What the probe holds.
const PROBE: &[u8] = b"Berth wrote this to see whether it may, and can remove it.";

impl S3 {
    /// Lists one object: there are credentials, the bucket is there, it is in that region, it may be listed,
    /// and it says what its time is.
    pub(super) async fn check_reach(&self) -> Result<(), StorageError> {
        self.credentials.life().await.map_err(|why| {
            let set = "set storage.s3.access_key_id and storage.s3.secret_access_key, or AWS_PROFILE, or give this \
                       machine a role";
            StorageError::Refused(self.name.clone(), format!("there are no credentials: {set} ({why})"))
        })?;
        let listing = self.place.kit.list_objects_v2().bucket(&self.bucket).prefix(&self.prefix).max_keys(1);
        if let Err(error) = listing.send().await {
            return Err(self.unreached(&error));
        }
        match self.transport.clock.now() {
            Some(_) => Ok(()),
            None => Err(StorageError::Unavailable(self.name.clone(), "its answers have no Date".to_owned())),
        }
    }

    /// Why the bucket could not be listed.
    fn unreached(&self, error: &SdkError<ListObjectsV2Error, HttpResponse>) -> StorageError {
        let refused = |why: String| StorageError::Refused(self.name.clone(), why);
        let Some(answer) = error.raw_response() else {
            let check = "see whether storage.s3.endpoint, storage.s3.ca_bundle and [proxy] are right";
            return StorageError::Unavailable(self.name.clone(), format!("{}; {check}", text_of(error)));
        };
        let region = region_said(answer).filter(|region| *region != self.place.region);
        let code = error.code().unwrap_or("no code");
        if let Some(region) = region {
            let set = format!("set storage.s3.region to {region:?}, it is {:?}", self.place.region);
            return refused(format!("the bucket is in another region: {set}"));
        }
        match code {
            "NoSuchBucket" => refused(format!("there is no such bucket ({code}): make it, or correct storage.url")),
            "PermanentRedirect" | "TemporaryRedirect" => {
                refused(format!("the bucket is elsewhere ({code}): correct storage.s3.region or storage.s3.endpoint"))
            }
            // The last is versitygw's.
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "XAdminUserNotFound" => {
                refused(format!("the store doesn't accept the credentials ({code}): correct them"))
            }
            "RequestTimeTooSkewed" => refused(format!("this machine's clock is wrong ({code}): set it")),
            "AccessDenied" => {
                refused(format!("it may not be listed ({code}): grant s3:ListBucket on {:?}", self.bucket))
            }
            _ => {
                let said = on_one_line(error.message().unwrap_or_default());
                StorageError::Unavailable(self.name.clone(), format!("{} {code}: {said}", answer.status().as_u16()))
            }
        }
    }

    /// Writes, reads, lists and removes a probe: whatever Berth will do, it may do.
    ///
    /// # Errors
    /// One line that names the bucket and what to grant.
    pub async fn check_rights(&self) -> Result<(), StorageError> {
        let probe = Key::Probe(Ulid::r#gen());
        let tried = self.try_rights(&probe).await;
        let until = self.now().plus(std::time::Duration::from_secs(60));
        // Also after a failure: what was written is not left behind.
        let removed = self.delete(&probe, until).await;
        tried?;
        removed.map_err(|error| self.lacks("removed from", "s3:DeleteObject", error))
    }

    async fn try_rights(&self, probe: &Key) -> Result<(), StorageError> {
        let (write, read) = match self.encryption {
            Encryption::Kms { .. } => {
                ("s3:PutObject, and kms:GenerateDataKey on the key,", "s3:GetObject, and kms:Decrypt on the key,")
            }
            Encryption::Bucket | Encryption::S3 => ("s3:PutObject", "s3:GetObject"),
        };
        let bytes = vec![Bytes::from_static(PROBE)];
        self.put(probe, bytes, None).await.map_err(|error| self.lacks("written to", write, error))?;
        let stream = self.read(probe, None).await.map_err(|error| self.lacks("read", read, error))?;
        let chunks: Vec<Bytes> = stream.try_collect().await.map_err(|error| self.lacks("read", read, error))?;
        if chunks.concat() != PROBE {
            return Err(StorageError::Unavailable(
                self.name.clone(),
                "it gives back other bytes than it got".to_owned(),
            ));
        }
        let upload = self.begin(probe).await.map_err(|error| self.lacks("written to", write, error))?;
        let aborted = self.abort(probe, &upload).await;
        aborted.map_err(|error| self.lacks("kept clean", "s3:AbortMultipartUpload", error))?;
        match self.unfinished(None).await {
            Err(StorageError::Refused(_, code)) => {
                let grant = format!("grant s3:ListBucketMultipartUploads on {:?}", self.bucket);
                let why = format!("it may not be asked for its unfinished uploads ({code}): {grant}");
                Err(StorageError::Refused(self.name.clone(), why))
            }
            // A store that has no such list is good enough without.
            _ => Ok(()),
        }
    }

    /// One line about a right that is missing, or about whatever else came in the way of seeing it.
    fn lacks(&self, what: &str, right: &str, error: StorageError) -> StorageError {
        match error {
            StorageError::Refused(_, why) => {
                let (place, code) = (format!("{}/{}*", self.bucket, self.prefix), code_in(&why).unwrap_or(&why));
                StorageError::Refused(
                    self.name.clone(),
                    format!("it may not be {what} ({code}): grant {right} on {place:?}"),
                )
            }
            other => StorageError::Unavailable(self.name.clone(), format!("it can't be {what}: {other}")),
        }
    }

    /// As [`Store::unfinished`].
    pub(super) async fn list_unfinished(&self, after: Option<&Unfinished>) -> Result<UnfinishedPage, StorageError> {
        let mut marker = after.and_then(|Unfinished { key, id, .. }| {
            let key = key.as_ref()?;
            Some((format!("{}{key}", self.prefix), id.0.clone()))
        });
        loop {
            let (uploads, next) = self.unfinished_page(marker.clone()).await?;
            // A store that doesn't look at the marker would give its first page for ever.
            let more = next.is_some() && next != marker;
            // A page of others' uploads has no last one of ours to go on from.
            if !uploads.is_empty() || !more {
                return Ok(UnfinishedPage { uploads, more });
            }
            marker = next;
        }
    }

    /// A page as the store gives it, and the key and the upload after which the next one begins.
    async fn unfinished_page(
        &self,
        after: Option<(String, String)>,
    ) -> Result<(Vec<Unfinished>, Option<(String, String)>), StorageError> {
        let (key, upload) = after.unzip();
        let listing = self.place.kit.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
        let listing = listing.set_key_marker(key).set_upload_id_marker(upload);
        let listed = listing.send().await.map_err(|error| match error.code() {
            Some(code @ "AccessDenied") => StorageError::Refused(self.name.clone(), code.to_owned()),
            _ => StorageError::Unavailable(self.name.clone(), text_of(&error)),
        })?;
        let uploads = listed.uploads().iter().filter_map(|upload| self.unfinished_of(upload)).collect();
        // Not every store says where the next page begins: it is after the last upload of this one.
        let last = listed.uploads().last().filter(|_| listed.is_truncated().unwrap_or(false));
        Ok((uploads, last.and_then(|last| Some((last.key()?.to_owned(), last.upload_id()?.to_owned())))))
    }

    /// `None` for what would end at a key that is not ours.
    fn unfinished_of(&self, upload: &MultipartUpload) -> Option<Unfinished> {
        let key = Key::parse(upload.key()?.strip_prefix(&self.prefix)?)?;
        let since = u64::try_from(upload.initiated()?.to_millis().ok()?).ok()?;
        Some(Unfinished { key: Some(key), id: MultipartId(upload.upload_id()?.to_owned()), since: StoreTime(since) })
    }
}

/// Where the bucket is by its own word, which a store gives together with a refusal.
fn region_said(answer: &HttpResponse) -> Option<&str> {
    if let Some(region) = answer.headers().get("x-amz-bucket-region") {
        return Some(region);
    }
    let body = std::str::from_utf8(answer.body().bytes()?).ok()?;
    let (_, rest) = body.split_once("<Region>")?;
    Some(rest.split_once("</Region>")?.0)
}
