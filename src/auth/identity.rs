//! Who asks. An [`Identity`] is made in this module's siblings and nowhere else: each of them has checked a
//! credential, or a token that one of them issued.

use std::fmt;

/// Who somebody is, by the one who knows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Somebody who didn't say.
    Anonymous,
    /// A user with a password, by name.
    User(String),
    /// A service account, by name.
    Account(String),
    /// Somebody whom an OpenID Connect issuer vouches for.
    Federated {
        /// The issuer, by the name that the configuration gives it.
        issuer: String,
        /// What the issuer calls them: the `sub` of its token, or what the configuration takes instead.
        subject: String,
    },
}

impl Subject {
    /// Reads what [`fmt::Display`] writes.
    pub fn read(text: &str) -> Option<Self> {
        if text == "anonymous" {
            return Some(Self::Anonymous);
        }
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty())?;
        match kind {
            "user" => Some(Self::User(rest.to_owned())),
            "account" => Some(Self::Account(rest.to_owned())),
            "oidc" => {
                let (issuer, subject) = rest.split_once(':')?;
                Some(Self::Federated { issuer: issuer.to_owned(), subject: subject.to_owned() })
            }
            _ => None,
        }
    }
}

/// Written as rules name them: `user:alice`, `account:ci`, `oidc:github:repo:team/app`, `anonymous`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Account(name) => write!(f, "account:{name}"),
            Self::Federated { issuer, subject } => write!(f, "oidc:{issuer}:{subject}"),
        }
    }
}

/// Somebody, and the groups that they are in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Who.
    pub subject: Subject,
    /// The names of their groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// Whoever didn't say who they are.
    pub const ANONYMOUS: Self = Self { subject: Subject::Anonymous, groups: Vec::new() };
}

/// As [`Subject`].
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subject.fmt(f)
    }
}
