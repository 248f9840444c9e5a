//! Removing, by a request that Azure itself refuses after a deadline. A replica that stalls between its last check
//! and its sending can do no harm then.
//!
//! Who can sign sends a signature that ends with the deadline. Who was given a signature can't make one that ends
//! sooner, but can take a lease on the blob, and break it so that it ends in time: a removal that names a lease
//! which has ended is refused.
//! <https://learn.microsoft.com/rest/api/storageservices/lease-blob>

use std::time::Duration;

use http::{Method, StatusCode};
use ulid::Ulid;

use super::{
    super::{Key, StorageError, Store, StoreTime},
    Azure,
    fault::Fault,
    identity::Identity,
    request::Ask,
    sas::Permission,
};

/// The longest that a lease with an end lasts, in seconds.
const LONGEST_LEASE: u64 = 60;

impl Azure {
    /// As [`super::Store::delete`].
    pub(super) async fn remove(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let removed = match self.calls.identity {
            Identity::Signature(_) => self.remove_leased(key, deadline).await,
            Identity::Key(..) | Identity::Known(_) => {
                let ask = Ask::new(Method::DELETE, self.url(key));
                self.ask_until(deadline, Permission::Delete, key, ask).await
            }
        };
        match removed {
            Err(StorageError::NotFound(_)) => Ok(()),
            removed => removed,
        }
    }

    async fn remove_leased(&self, key: &Key, deadline: StoreTime) -> Result<(), StorageError> {
        let about = key.to_string();
        let left = deadline.0.saturating_sub(self.now().0) / 1000;
        // The lease lasts for half of what is left: taking and breaking it have the other half.
        let span = left.min(LONGEST_LEASE) / 2;
        if span == 0 {
            return Err(StorageError::TooLate(about));
        }
        let failed = |fault: Fault| fault.explain(&about);
        let (lease, longest) = (guid(Ulid::r#gen()), LONGEST_LEASE.to_string());
        let taken = self.lease(key, "acquire").with_header("x-ms-lease-duration", longest);
        let taken = taken.with_header("x-ms-proposed-lease-id", lease.as_str());
        self.calls.ask_before(deadline, &taken).await.map_err(failed)?;
        let broken = self.lease(key, "break").with_header("x-ms-lease-break-period", span.to_string());
        self.calls.ask_before(deadline, &broken).await.map_err(failed)?;
        // It was broken no later than a second after the time that the answer says, and lasts from then on. If
        // that is too long, the lease ends by itself with nothing done.
        if self.now().plus(Duration::from_secs(span + 1)) > deadline {
            return Err(StorageError::TooLate(about));
        }
        let ask = Ask::new(Method::DELETE, self.url(key)).with_header("x-ms-lease-id", lease);
        match self.calls.ask_before(deadline, &ask).await {
            Err(Fault::Refusal(refusal)) if refusal.status == StatusCode::PRECONDITION_FAILED => {
                Err(StorageError::TooLate(about))
            }
            removed => removed.map(drop).map_err(|fault| fault.explain(&about)),
        }
    }

    fn lease(&self, key: &Key, action: &str) -> Ask {
        let ask = Ask::new(Method::PUT, self.url(key)).with_query("comp", "lease");
        ask.with_header("x-ms-lease-action", action)
    }
}

/// A ULID as a GUID.
fn guid(ulid: Ulid) -> String {
    let text = format!("{:032x}", u128::from(ulid));
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}
