//! Service accounts as one kind of password.

use std::sync::Arc;

use async_trait::async_trait;

use super::Roster;
use crate::{
    auth::{
        Identity, Login, Logins, Subject,
        account::{AccountPassword, key_stands, matching_key},
    },
    error::Result,
};

/// The accounts of a roster.
#[derive(Debug)]
pub struct AccountLogins(pub Arc<Roster>);

#[async_trait]
impl Logins for AccountLogins {
    /// The index is asked each time, for one value: an account that was disabled a moment ago by another
    /// replica is refused.
    async fn check(&self, name: &str, secret: &str) -> Result<Option<Login>> {
        let Some(shown) = AccountPassword::read(name, secret) else { return Ok(None) };
        let entries = self.0.current().await?;
        let Some(account) = entries.accounts.get(&shown.account) else { return Ok(None) };
        let Some(key) = matching_key(account, &shown.secret, self.0.now()) else { return Ok(None) };
        self.0.note_use(&shown.account);
        let subject = Subject::Account(shown.account.to_string());
        let identity = Identity { subject, groups: Vec::new() };
        // The key's name: another key, or an account of the same name that was made anew, has another.
        Ok(Some(Login { identity, fingerprint: key.id.clone(), at_most: None }))
    }

    async fn stands(&self, identity: &Identity, fingerprint: &str) -> Result<Option<bool>> {
        let Subject::Account(name) = &identity.subject else { return Ok(None) };
        let Ok(name) = name.parse() else { return Ok(Some(false)) };
        let entries = self.0.current().await?;
        let Some(account) = entries.accounts.get(&name) else { return Ok(Some(false)) };
        let stands = key_stands(account, fingerprint, self.0.now());
        if stands {
            self.0.note_use(&name);
        }
        Ok(Some(stands))
    }

    fn is_offered(&self) -> bool {
        !self.0.last_seen().accounts.is_empty()
    }
}
