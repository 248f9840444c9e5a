//! Whom a rule is about, and who is in a group, as settings write them. Nothing here knows whether anybody of
//! that name exists.

use super::{pattern::matches_text, text::Written};

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A user of the htpasswd file, by name.
    User(String),
    /// A service account, by name.
    Account(String),
    /// Everybody in a group, by its name.
    Group(String),
    /// Those whom an OpenID Connect issuer vouches for.
    Federated {
        /// The issuer's name in the configuration.
        issuer: String,
        /// A pattern of what it calls them; `*` is any characters, also none.
        subject: String,
    },
    /// Whoever has not logged in.
    Anonymous,
    /// Anybody at all.
    Everyone,
}

impl Who {
    /// Whether an issuer's `subject` is one of those meant. Only for [`Who::Federated`].
    pub fn matches_subject(pattern: &str, subject: &str) -> bool {
        matches_text(pattern, subject)
    }
}

impl Written for Who {
    const NAME: &'static str = "Who";
    const WANT: &'static str =
        "\"user:NAME\", \"account:NAME\", \"group:NAME\", \"oidc:ISSUER:SUBJECT\", \"anonymous\" or \"everyone\"";

    fn read(text: &str) -> Option<Self> {
        match text {
            "anonymous" => return Some(Self::Anonymous),
            "everyone" => return Some(Self::Everyone),
            _ => {}
        }
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "user" => name(rest).map(Self::User),
            "account" => name(rest).map(Self::Account),
            "group" => is_plain(rest).then(|| Self::Group(rest.to_owned())),
            "oidc" => {
                let (issuer, subject) = rest.split_once(':')?;
                let subject = is_plain(subject).then(|| subject.to_owned())?;
                Some(Self::Federated { issuer: name(issuer)?, subject })
            }
            _ => None,
        }
    }

    fn write(&self) -> String {
        match self {
            Self::User(name) => format!("user:{name}"),
            Self::Account(name) => format!("account:{name}"),
            Self::Group(name) => format!("group:{name}"),
            Self::Federated { issuer, subject } => format!("oidc:{issuer}:{subject}"),
            Self::Anonymous => "anonymous".to_owned(),
            Self::Everyone => "everyone".to_owned(),
        }
    }
}

/// Somebody in a group: a user's name as it is, or anybody that a rule can name but for groups, `anonymous`
/// and `everyone`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member(pub Who);

impl Written for Member {
    const NAME: &'static str = "Member";
    const WANT: &'static str = "a user's name, \"account:NAME\" or \"oidc:ISSUER:SUBJECT\"";

    fn read(text: &str) -> Option<Self> {
        if !text.contains(':') {
            return name(text).map(|name| Self(Who::User(name)));
        }
        match Who::read(text)? {
            Who::Group(_) | Who::Anonymous | Who::Everyone => None,
            one => Some(Self(one)),
        }
    }

    fn write(&self) -> String {
        match &self.0 {
            Who::User(name) => name.clone(),
            other => other.write(),
        }
    }
}

/// A name without a colon, which separates it from what stands around it.
fn name(text: &str) -> Option<String> {
    (is_plain(text) && !text.contains(':')).then(|| text.to_owned())
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_rule_names_is_written_as_it_was_read() {
        for good in ["user:bob", "account:ci", "group:dev", "oidc:github:repo:team/*", "anonymous", "everyone"] {
            assert_eq!(Who::read(good).map(|who| who.write()).as_deref(), Some(good));
        }
        for bad in ["", "bob", "user:", "user:a b", "user:a:b", "oidc:github", "oidc::x", "oidc:github:", "Everyone"] {
            assert_eq!(Who::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_member_is_somebody_and_no_group() {
        for good in ["alice", "account:ci", "oidc:github:*"] {
            assert_eq!(Member::read(good).map(|member| member.write()).as_deref(), Some(good));
        }
        assert_eq!(Member::read("user:alice").map(|member| member.write()).as_deref(), Some("alice"));
        for bad in ["", "group:dev", "a b", "account:"] {
            assert_eq!(Member::read(bad), None, "{bad}");
        }
    }
}
