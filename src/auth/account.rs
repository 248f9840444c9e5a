//! The secrets of service accounts: how one is made, what is kept of it, and in which forms it comes back as a
//! password. Where accounts are kept is not known here, and no secret leaves but to whoever it is made for.

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    index::facts::{Account, AccountKey},
    storage::{StoreTime, key::EntryName},
};

/// What each secret begins with, so that scanners of leaked secrets, and we, know one when they see it.
const PREFIX: &str = "berth_";

/// The largest key file that is read, in bytes. Ours has some 400; those of clouds have 2,400.
const MAX_KEY_FILE: usize = 16 << 10;

/// A key that was just made.
pub struct NewKey {
    /// What is kept of it.
    pub kept: AccountKey,
    /// The secret, which is shown once.
    pub secret: String,
}

impl NewKey {
    /// Draws a key.
    ///
    /// # Errors
    /// 500 where the system has no randomness.
    pub fn draw(now: StoreTime) -> Result<Self> {
        let (mut secret, mut id) = ([0_u8; 32], [0_u8; 20]);
        for bytes in [&mut secret[..], &mut id[..]] {
            rand::fill(bytes).map_err(|_| Error::internal("the system has no randomness"))?;
        }
        let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { kept: AccountKey { id, hash: hash(&secret), at: now, until: None }, secret })
    }

    /// The key as a file of the shape that GCR's users have.
    pub fn file(&self, account: &EntryName) -> KeyFile {
        KeyFile {
            kind: SERVICE_ACCOUNT.to_owned(),
            private_key_id: self.kept.id.clone(),
            private_key: self.secret.clone(),
            client_email: format!("{account}@berth"),
            client_id: account.to_string(),
        }
    }
}

const SERVICE_ACCOUNT: &str = "service_account";

/// A JSON key file, in the shape that GCR's users have, so that what handles theirs handles ours.
#[derive(Serialize, Deserialize)]
pub struct KeyFile {
    /// `service_account`.
    #[serde(rename = "type")]
    pub kind: String,
    /// [`AccountKey::id`].
    pub private_key_id: String,
    /// The secret.
    pub private_key: String,
    /// The account's name, and behind an `@` what isn't looked at.
    pub client_email: String,
    /// The account's name again.
    pub client_id: String,
}

/// An account and its secret, as a user name and a password show them.
pub struct AccountPassword {
    /// The account.
    pub account: EntryName,
    /// What may be its secret.
    pub secret: String,
}

impl AccountPassword {
    /// Reads a user name and a password: a key file under `_json_key`, the same in base64 under
    /// `_json_key_base64`, or the secret under the account's name. `None` for a password of another kind.
    pub fn read(name: &str, password: &str) -> Option<Self> {
        let read = match name {
            "_json_key" => Self::of_file(password.as_bytes()),
            "_json_key_base64" => {
                // What `base64` prints is broken into lines.
                let lines: String = password.split_ascii_whitespace().collect();
                Self::of_file(&STANDARD.decode(lines).ok()?)
            }
            _ => Some(Self { account: name.parse().ok()?, secret: password.to_owned() }),
        };
        read.filter(|read| read.secret.starts_with(PREFIX))
    }

    fn of_file(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_KEY_FILE {
            return None;
        }
        let file: KeyFile = serde_json::from_slice(bytes).ok()?;
        let account = file.client_email.split('@').next()?.parse().ok()?;
        (file.kind == SERVICE_ACCOUNT).then_some(Self { account, secret: file.private_key })
    }
}

/// The key of an account that `secret` is of, if it is good at `now`.
pub fn matching_key<'a>(account: &'a Account, secret: &str, now: StoreTime) -> Option<&'a AccountKey> {
    let hash = hash(secret);
    let is_this = |key: &&AccountKey| {
        verify_slices_are_equal(key.hash.as_bytes(), hash.as_bytes()).is_ok() && is_good(account, key, now)
    };
    account.keys.iter().find(is_this)
}

/// Whether an account may be used at `now` by its key of this id.
pub fn key_stands(account: &Account, id: &str, now: StoreTime) -> bool {
    account.keys.iter().any(|key| key.id == id && is_good(account, key, now))
}

fn is_good(account: &Account, key: &AccountKey, now: StoreTime) -> bool {
    let is_over = |end: Option<StoreTime>| end.is_some_and(|end| end <= now);
    !account.disabled && !is_over(account.expires) && !is_over(key.until)
}

/// See [`AccountKey::hash`].
fn hash(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const NOW: StoreTime = StoreTime(1_000);

    fn account(keys: Vec<AccountKey>) -> Account {
        let (created, at) = (NOW, NOW);
        Account {
            keys,
            role: None,
            repositories: Vec::new(),
            disabled: false,
            expires: None,
            created,
            at,
            by: "me".into(),
        }
    }

    #[test]
    fn a_key_comes_back_in_each_form() {
        let key = NewKey::draw(NOW).unwrap();
        let file = serde_json::to_string_pretty(&key.file(&"ci".parse().unwrap())).unwrap();
        let encoded = STANDARD.encode(&file);
        let wrapped = format!("{}\n{}\n", &encoded[..76], &encoded[76..]);
        for (name, password) in
            [("_json_key", &file), ("_json_key_base64", &encoded), ("_json_key_base64", &wrapped), ("ci", &key.secret)]
        {
            let read = AccountPassword::read(name, password).unwrap();
            assert_eq!((read.account.as_str(), &read.secret), ("ci", &key.secret), "{name}");
        }
        let foreign = file.replace(PREFIX, "-----BEGIN PRIVATE KEY-----");
        let user = file.replace(SERVICE_ACCOUNT, "authorized_user");
        let wrong =
            [("_json_key", &foreign), ("_json_key", &user), ("_json_key", &encoded), ("_json_key_base64", &file)];
        for (name, password) in wrong.into_iter().chain([("ci", &"hunter2".to_owned()), ("c/i", &key.secret)]) {
            assert!(AccountPassword::read(name, password).is_none(), "{name}");
        }
    }

    #[test]
    fn a_key_is_good_until_something_ends_it() {
        let (one, two) = (NewKey::draw(NOW).unwrap(), NewKey::draw(NOW).unwrap());
        let until = Some(StoreTime(2_000));
        let keys = vec![two.kept.clone(), AccountKey { until, ..one.kept.clone() }];
        let good = account(keys);
        let id = |account: &Account, secret: &str, now| {
            matching_key(account, secret, StoreTime(now)).map(|key| key.id.clone())
        };
        assert_eq!(id(&good, &one.secret, 1_999), Some(one.kept.id.clone()));
        assert_eq!(id(&good, &one.secret, 2_000), None);
        assert_eq!(id(&good, &two.secret, 2_000), Some(two.kept.id.clone()));
        assert_eq!(id(&good, "berth_x", 1_000), None);
        assert!(key_stands(&good, &one.kept.id, NOW) && !key_stands(&good, "x", NOW));
        for bad in [Account { disabled: true, ..good.clone() }, Account { expires: Some(NOW), ..good.clone() }] {
            assert_eq!(id(&bad, &two.secret, 1_000), None);
            assert!(!key_stands(&bad, &two.kept.id, NOW));
        }
        assert_eq!(id(&Account { expires: until, ..good.clone() }, &two.secret, 1_999), Some(two.kept.id));
    }
}
