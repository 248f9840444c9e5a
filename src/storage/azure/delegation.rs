//! The key that signs for an identity: asked for once in some days, and kept.
//!
//! <https://learn.microsoft.com/rest/api/storageservices/get-user-delegation-key>. The identity needs the right
//! to ask for it on the whole account.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::Method;
use object_store::PutPayload;

use super::{
    super::StoreTime,
    fault::Fault,
    request::{Ask, Service},
    sas::DelegationKey,
};
use crate::outbound::Source;

/// For how long a key is asked for: a little less than the seven days that Azure gives at most.
const LIFE: Duration = Duration::from_secs((7 * 24 - 1) * 60 * 60);

/// Where keys that sign for an identity come from.
#[derive(Debug)]
pub(super) struct Delegation {
    pub(super) service: Service,
    /// The URL of the account's blob service.
    pub(super) endpoint: String,
}

#[async_trait]
impl Source for Delegation {
    type Value = DelegationKey;

    async fn find(&self) -> Result<(DelegationKey, Option<SystemTime>), String> {
        // A start in Azure's own time: by a clock that is ahead, nothing that is signed would be good yet.
        let now = self.service.now();
        let info = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><KeyInfo><Start>{}</Start><Expiry>{}</Expiry></KeyInfo>",
            now.rfc3339(),
            now.plus(LIFE).rfc3339()
        );
        let ask = Ask::new(Method::POST, self.endpoint.clone())
            .with_query("restype", "service")
            .with_query("comp", "userdelegationkey")
            .with_header("content-type", "application/xml")
            .with_body(PutPayload::from(info));
        let answer = self.service.ask(&ask).await.map_err(|fault| match fault {
            Fault::Unproven(why) | Fault::Silence(why) => why,
            Fault::Refusal(refusal) => format!("{}: {}", refusal.word(), refusal.said),
        })?;
        let key: DelegationKey = quick_xml::de::from_reader(&*answer.body)
            .map_err(|error| format!("the key that signs for an identity can't be read: {error}"))?;
        let until = StoreTime::from_rfc3339(&key.signed_expiry).unwrap_or(now.plus(LIFE));
        let left = Duration::from_millis(until.0.saturating_sub(now.0));
        Ok((key, Some(SystemTime::now() + left)))
    }
}
