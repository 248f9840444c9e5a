//! Whether a bucket is what Berth needs, asked once at the start.
//!
//! Each failure is one line that says what to set or what to grant, so that nobody has to know Google's codes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, StatusCode};
use ulid::Ulid;

use super::{super::remote::code_in, Gcs, Key, Signer, StorageError, Store, requests::Failure};

/// What the probe holds.
const PROBE: &[u8] = b"Berth wrote this to see whether it may, and can remove it.";

/// For how long a URL is good that is only tried out.
const TRIAL: Duration = Duration::from_secs(60);

impl Gcs {
    /// Lists one object: the bucket is there, it may be listed, and it says what its time is.
    pub(super) async fn check_reach(&self) -> Result<(), StorageError> {
        if let Err(failure) = self.list_objects("", None, 1).await {
            return Err(self.unreached(failure));
        }
        match self.transport.clock.now() {
            Some(_) => Ok(()),
            None => Err(self.unusable("its answers have no Date".to_owned())),
        }
    }

    fn refused(&self, why: String) -> StorageError {
        StorageError::Refused(self.name.clone(), why)
    }

    fn unusable(&self, why: String) -> StorageError {
        StorageError::Unavailable(self.name.clone(), why)
    }

    /// Why the bucket could not be listed.
    fn unreached(&self, Failure { status, text }: Failure) -> StorageError {
        let text = code_in(&text).map(str::to_owned).unwrap_or(text);
        match status {
            None => self.unusable(format!(
                "{text}; see whether storage.gcs.endpoint, storage.gcs.ca_bundle and [proxy] are right"
            )),
            Some(StatusCode::UNAUTHORIZED) => {
                self.refused(format!("the store doesn't accept the credentials ({text}): correct them"))
            }
            Some(StatusCode::FORBIDDEN) => {
                self.refused(format!("it may not be listed ({text}): grant storage.objects.list on {:?}", self.bucket))
            }
            Some(StatusCode::NOT_FOUND) => {
                self.refused(format!("there is no such bucket ({text}): make it, or correct storage.url"))
            }
            Some(_) => self.unusable(text),
        }
    }

    /// Writes, reads, signs, lists and removes a probe: whatever Berth will do, it may do.
    ///
    /// # Errors
    /// One line that names the bucket and what to grant.
    pub async fn check_rights(&self) -> Result<(), StorageError> {
        let probe = Key::Probe(Ulid::r#gen());
        let tried = self.try_rights(&probe).await;
        // Also after a failure: what was written is not left behind.
        let removed = self.delete(&probe, self.now().plus(TRIAL)).await;
        tried?;
        let signer = self.signer.as_ref().map_or("", Signer::email);
        removed.map_err(|error| self.lacks(&format!("removed from by {signer}"), "storage.objects.delete", error))
    }

    async fn try_rights(&self, probe: &Key) -> Result<(), StorageError> {
        let bytes = vec![Bytes::from_static(PROBE)];
        let (write, read) = ("storage.objects.create", "storage.objects.get");
        self.put(probe, bytes, None).await.map_err(|error| self.lacks("written to", write, error))?;
        let stream = self.read(probe, None).await.map_err(|error| self.lacks("read", read, error))?;
        let chunks: Vec<Bytes> = stream.try_collect().await.map_err(|error| self.lacks("read", read, error))?;
        if chunks.concat() != PROBE {
            return Err(self.unusable("it gives back other bytes than it got".to_owned()));
        }
        if let Some(signer) = &self.signer {
            self.try_signature(signer, probe).await?;
        }
        let begin = "storage.multipartUploads.create";
        let upload = self.begin(probe).await.map_err(|error| self.lacks("uploaded to in parts", begin, error))?;
        let aborted = self.abort(probe, &upload).await;
        aborted.map_err(|error| self.lacks("kept clean", "storage.multipartUploads.abort", error))?;
        let list = "storage.multipartUploads.list";
        let listed = self.unfinished(None).await;
        listed.map(drop).map_err(|error| self.lacks("asked for its unfinished uploads", list, error))
    }

    /// Reads the probe by a URL like those that clients get: the account that signs may be another than the one
    /// that asks, and its rights are what counts for them.
    async fn try_signature(&self, signer: &Signer, probe: &Key) -> Result<(), StorageError> {
        let email = signer.email();
        let span = (self.this_second(), TRIAL.as_secs());
        let url = self.signed(signer, &Method::GET, &self.endpoint, probe, span).await.map_err(|why| {
            let grant = format!("grant iam.serviceAccounts.signBlob on {email} (Service Account Token Creator)");
            self.refused(format!("nobody signs URLs as {email} ({why}): {grant}"))
        })?;
        let (status, body) = self.ask(Method::GET, &url, None).await.map_err(|text| self.unusable(text))?;
        if status.is_success() && body == PROBE {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&body);
        let code = code_in(&text).unwrap_or("no code");
        let grant = format!("grant {email} storage.objects.get and storage.objects.delete on {:?}", self.bucket);
        Err(self.refused(format!("a URL that {email} signed opens nothing ({} {code}): {grant}", status.as_u16())))
    }

    /// One line about a right that is missing, or about whatever else came in the way of seeing it.
    fn lacks(&self, what: &str, right: &str, error: StorageError) -> StorageError {
        match error {
            StorageError::Refused(_, why) => {
                let code = code_in(&why).unwrap_or(&why);
                self.refused(format!("it may not be {what} ({code}): grant {right} on {:?}", self.bucket))
            }
            other => self.unusable(format!("it can't be {what}: {other}")),
        }
    }
}
