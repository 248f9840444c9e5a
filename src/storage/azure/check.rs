//! Whether a container is what Berth needs, asked once at the start.
//!
//! Each failure is one line that says what to set or what to grant, so that nobody has to know Azure's codes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Method, StatusCode};
use object_store::CredentialProvider;
use ulid::Ulid;

use super::{
    super::{Key, StorageError, Store, remote::code_in},
    Azure,
    fault::{Fault, Refusal},
    identity::Identity,
    request::Ask,
};
use crate::outbound::text_of;

/// What the probe holds.
const PROBE: &[u8] = b"Berth wrote this to see whether it may, and can remove it.";

/// The role that allows all that Berth does in a container.
const ROLE: &str = "Storage Blob Data Contributor";

impl Azure {
    /// Lists one blob: somebody asks, the container is there and may be listed, and it says what its time is.
    pub(super) async fn check_reach(&self) -> Result<(), StorageError> {
        self.calls.identity.get_credential().await.map_err(|error| {
            let set =
                "set storage.azure.account_key or storage.azure.sas, or give this machine or this pod an identity";
            let kind = self.kind;
            self.refused(format!("there are no credentials: {set} ({kind} was looked for: {})", text_of(&error)))
        })?;
        let ask = Ask::new(Method::GET, self.container.clone())
            .with_query("restype", "container")
            .with_query("comp", "list")
            .with_query("prefix", self.names.prefix())
            .with_query("maxresults", "1");
        self.calls.ask(&ask).await.map_err(|fault| self.unreached(fault))?;
        match self.calls.transport.clock.now() {
            Some(_) => Ok(()),
            None => Err(StorageError::Unavailable(self.name.clone(), "its answers have no Date".to_owned())),
        }
    }

    fn refused(&self, why: String) -> StorageError {
        StorageError::Refused(self.name.clone(), why)
    }

    /// Why the container could not be listed.
    fn unreached(&self, fault: Fault) -> StorageError {
        let refusal = match fault {
            Fault::Unproven(why) => return self.refused(why),
            Fault::Silence(why) => {
                let check = "see whether storage.azure.account, storage.azure.endpoint, storage.azure.ca_bundle and \
                             [proxy] are right";
                return StorageError::Unavailable(self.name.clone(), format!("{why}; {check}"));
            }
            Fault::Refusal(refusal) => refusal,
        };
        let (word, kind) = (refusal.word(), self.kind);
        match refusal.code.as_str() {
            "ContainerNotFound" => {
                self.refused(format!("there is no such container ({word}): make it, or correct storage.url"))
            }
            "AuthenticationFailed" if refusal.said.contains("date header") => {
                self.refused(format!("this machine's clock is wrong ({word}): set it"))
            }
            "AuthenticationFailed" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => {
                self.refused(format!("Azure doesn't accept {kind} ({word}): correct it"))
            }
            "AuthorizationFailure" => self.refused(format!(
                "Azure doesn't accept {kind} from here ({word}): correct it, or let this machine through the account's \
                 firewall"
            )),
            "KeyBasedAuthenticationNotPermitted" => {
                self.refused(format!("the account takes no key ({word}): give Berth an identity, or allow keys"))
            }
            _ if matches!(refusal.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                self.may_not("listed", "l", &refusal)
            }
            _ => StorageError::Unavailable(self.name.clone(), format!("{word}: {}", refusal.said)),
        }
    }

    /// One line about something that may not be done. `letter` is its permission in a signature.
    fn may_not(&self, what: &str, letter: &str, refusal: &Refusal) -> StorageError {
        self.refused(format!("it may not be {what} ({}): {}", refusal.word(), self.grant(letter)))
    }

    /// What to grant to whoever asks.
    fn grant(&self, letter: &str) -> String {
        match self.calls.identity {
            Identity::Known(_) => format!("grant {ROLE:?} on the container"),
            Identity::Signature(_) => format!("make a signature that permits {letter:?}"),
            Identity::Key(..) => "see whether the account or the container is locked".to_owned(),
        }
    }

    /// Writes, reads and removes a probe: whatever Berth will do, it may do.
    ///
    /// # Errors
    /// One line that names the container and what to grant.
    pub async fn check_rights(&self) -> Result<(), StorageError> {
        if let Err(why) = self.signing_key().await {
            let grant = "grant \"Storage Blob Delegator\" on the storage account";
            return Err(self.refused(format!("nothing can be signed for {}: {grant} ({why})", self.kind)));
        }
        let probe = Key::Probe(Ulid::r#gen());
        let tried = self.try_rights(&probe).await;
        let until = self.now().plus(Duration::from_secs(60));
        // Also after a failure: what was written is not left behind.
        let removed = self.delete(&probe, until).await;
        tried?;
        removed.map_err(|error| self.lacks("removed from", "d", error))
    }

    async fn try_rights(&self, probe: &Key) -> Result<(), StorageError> {
        let bytes = vec![Bytes::from_static(PROBE)];
        self.put(probe, bytes, None).await.map_err(|error| self.lacks("written to", "cw", error))?;
        let stream = self.read(probe, None).await.map_err(|error| self.lacks("read", "r", error))?;
        let chunks: Vec<Bytes> = stream.try_collect().await.map_err(|error| self.lacks("read", "r", error))?;
        if chunks.concat() != PROBE {
            let why = "it gives back other bytes than it got".to_owned();
            return Err(StorageError::Unavailable(self.name.clone(), why));
        }
        let head = self.calls.ask(&Ask::new(Method::HEAD, self.url(probe))).await;
        let head = head.map_err(|fault| self.lacks("read", "r", fault.explain(&probe.to_string())))?;
        // Only there files and folders are told apart, and a listing is not in the order of whole names.
        if head.headers.contains_key("x-ms-resource-type") {
            let why = "the account has a hierarchical namespace, which Berth can't use: take one without";
            return Err(self.refused(why.to_owned()));
        }
        Ok(())
    }

    /// One line about a right that is missing, or about whatever else came in the way of seeing it.
    fn lacks(&self, what: &str, letter: &str, error: StorageError) -> StorageError {
        match error {
            StorageError::Refused(_, why) => {
                let code = code_in(&why).unwrap_or(&why);
                self.refused(format!("it may not be {what} ({code}): {}", self.grant(letter)))
            }
            other => StorageError::Unavailable(self.name.clone(), format!("it can't be {what}: {other}")),
        }
    }
}
