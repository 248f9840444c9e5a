//! The records of the roster: accounts and rules that were made at run time. What is kept of a secret is its
//! hash and nothing else.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{IndexError, decode, decode_numbered, encode};
use crate::{
    config::{RepositoryPattern, Role, Rule, Text},
    storage::StoreTime,
};

/// An account or a rule as the index has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFact<T> {
    /// The key of the object that says it.
    pub object: String,
    /// What it says.
    pub entry: T,
}

impl<T: Serialize + DeserializeOwned> EntryFact<T> {
    /// The value in the index.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads a value back.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        decode(bytes)
    }
}

/// A service account; also the body of its object in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its keys, the newest first. An older one is good for as long as it says.
    pub keys: Vec<AccountKey>,
    /// What it may do in `repositories`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Where it may do that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<Text<RepositoryPattern>>,
    /// Whether its keys are refused.
    #[serde(default)]
    pub disabled: bool,
    /// From when on its keys are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<StoreTime>,
    /// When it was made.
    pub created: StoreTime,
    /// When it was last changed.
    pub at: StoreTime,
    /// By whom.
    pub by: String,
}

/// One key of an account, as much as is kept of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountKey {
    /// Its name, which is no secret: 40 hex digits.
    pub id: String,
    /// The SHA-256 of the secret, in hex. The secret is 256 random bits: nobody guesses what hashes to this, so
    /// a slow hash would cost each login much and give nothing.
    pub hash: String,
    /// When it was made.
    pub at: StoreTime,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<StoreTime>,
}

/// A rule that was made at run time; also the body of its object in the bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterRule {
    /// Who may do what, and where.
    pub rule: Rule,
    /// When it was last changed.
    pub at: StoreTime,
    /// By whom.
    pub by: String,
}

/// A write of an account or a rule that was reserved and not yet committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingFact {
    /// Its object counts if the store wrote it no later than this.
    pub deadline: StoreTime,
    /// Whether the entry is being deleted.
    pub deleted: bool,
}

impl PendingFact {
    /// Reads a numbered value: the counter, then the record.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), IndexError> {
        decode_numbered(bytes)
    }

    /// The value that a batch with this number writes.
    pub fn encode_numbered(&self, counter: u64) -> Bytes {
        let mut bytes = format!("{counter:016x}").into_bytes();
        bytes.extend_from_slice(&encode(self));
        bytes.into()
    }
}
