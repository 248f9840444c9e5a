//! Access: who asks, and what they may do.
//!
//! An [`Identity`] is made here and nowhere else, and every decision is made by [`Authority`] from it and a
//! repository's *name* alone: nothing here knows whether anything exists, so no answer can tell.

pub mod account;
mod authority;
mod credential;
mod foreign;
pub mod htpasswd;
mod identity;
mod issuer_keys;
pub mod key_file;
pub mod keys;
pub mod oidc;
mod outgoing;
mod rules;
pub mod scope;
mod throttle;
mod token;

pub use authority::{Authority, Caller, Issued, Offline};
pub use credential::{Login, Logins, Presented};
pub use foreign::TokenIssuers;
pub use identity::{Identity, Subject};
pub use issuer_keys::UnusableCa;
pub use rules::{AccessRules, NamedRule};
pub use token::{TokenOptions, now};

use crate::config::Role;

/// What a request does to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reads it.
    Pull,
    /// Adds to it.
    Push,
    /// Takes from it.
    Delete,
}

impl Action {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// Its name in a token's scope.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    /// The action of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }

    /// The least role that may do it.
    fn needs(self) -> Role {
        match self {
            Self::Pull => Role::Reader,
            Self::Push => Role::Creator,
            Self::Delete => Role::Admin,
        }
    }
}

/// What somebody was allowed to do: the proof that it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whether a tag that exists must stay as it is.
    pub create_only: bool,
}
