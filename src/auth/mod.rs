//! Access: who asks, and what they may do.
//!
//! An [`Identity`] is made here and nowhere else, and [`AccessRules`] decide from it and a repository's
//! *name* alone: nothing here knows whether anything exists, so no answer can tell.

use std::fmt;

use crate::{
    config::{Auth, Role, Rule, Who},
    oci::RepositoryName,
};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Somebody who didn't say.
    Anonymous,
}

impl Identity {
    fn is(&self, who: Who) -> bool {
        match (who, self) {
            (Who::Everyone, _) | (Who::Anonymous, Self::Anonymous) => true,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

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
    /// Its name in the scope of a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
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

/// All rules. They only add up: none takes away what another gives.
#[derive(Clone, Debug, Default)]
pub struct AccessRules {
    /// What those who didn't say who they are may do everywhere.
    anonymous: Option<Role>,
    rules: Vec<Rule>,
}

impl AccessRules {
    /// The rules as they are configured.
    pub fn new(auth: &Auth) -> Self {
        Self { anonymous: auth.anonymous.role(), rules: auth.rules.values().cloned().collect() }
    }

    /// The role of `identity` in `repository`: the highest that any rule gives.
    fn role(&self, identity: &Identity, repository: &RepositoryName) -> Option<Role> {
        let is_meant = |rule: &&Rule| rule.repositories.iter().any(|pattern| pattern.matches(repository));
        let by_rules = self.about(identity).filter(is_meant).map(|rule| rule.role).max();
        by_rules.max(self.everywhere(identity))
    }

    fn everywhere(&self, identity: &Identity) -> Option<Role> {
        match identity {
            Identity::Anonymous => self.anonymous,
        }
    }

    fn about<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(|rule| rule.who.iter().any(|who| identity.is(*who)))
    }

    /// Whether `identity` may do `action` in `repository`, and how far; `None` if not at all.
    pub fn decide(&self, identity: &Identity, repository: &RepositoryName, action: Action) -> Option<Grant> {
        let role = self.role(identity, repository).filter(|role| *role >= action.needs())?;
        Some(Grant { create_only: role == Role::Creator })
    }

    /// Whether `identity` may pull from `repository`: what catalogs show, and what may be mounted from.
    pub fn may_pull(&self, identity: &Identity, repository: &RepositoryName) -> bool {
        self.decide(identity, repository, Action::Pull).is_some()
    }

    /// Whether there is anything at all that `identity` may do.
    pub fn may_anything(&self, identity: &Identity) -> bool {
        self.everywhere(identity).is_some() || self.about(identity).any(|rule| !rule.repositories.is_empty())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::config::{Anonymous, RepositoryPattern, Text, Written};

    fn rules(anonymous: Anonymous, rules: &[(Who, Role, &[&str])]) -> AccessRules {
        let rule = |(who, role, repositories): &(Who, Role, &[&str])| Rule {
            who: vec![*who],
            role: *role,
            repositories: repositories.iter().map(|text| Text(RepositoryPattern::read(text).unwrap())).collect(),
        };
        let named = rules.iter().enumerate().map(|(number, given)| (number.to_string(), rule(given)));
        AccessRules::new(&Auth { anonymous, rules: named.collect() })
    }

    fn may(rules: &AccessRules, repository: &str, action: Action) -> Option<bool> {
        let grant = rules.decide(&Identity::Anonymous, &repository.parse().unwrap(), action);
        grant.map(|grant| grant.create_only)
    }

    #[test]
    fn a_role_may_what_the_lesser_ones_may() {
        use Action::{Delete, Pull, Push};
        let table = [
            (Anonymous::None, [None, None, None]),
            (Anonymous::Reader, [Some(false), None, None]),
            (Anonymous::Creator, [Some(true), Some(true), None]),
            (Anonymous::Writer, [Some(false), Some(false), None]),
            (Anonymous::Admin, [Some(false), Some(false), Some(false)]),
        ];
        for (role, expected) in table {
            let rules = rules(role, &[]);
            assert_eq!([Pull, Push, Delete].map(|action| may(&rules, "a/b", action)), expected, "{role:?}");
            assert_eq!(rules.may_anything(&Identity::Anonymous), role != Anonymous::None);
        }
    }

    #[test]
    fn rules_only_add_up() {
        let rules = rules(
            Anonymous::Reader,
            &[
                (Who::Everyone, Role::Creator, &["team/*"]),
                (Who::Anonymous, Role::Writer, &["team/app", "x/**"]),
                (Who::Anonymous, Role::Reader, &["team/app"]),
            ],
        );
        assert_eq!(may(&rules, "team/other", Action::Push), Some(true));
        assert_eq!(may(&rules, "team/app", Action::Push), Some(false));
        assert_eq!(may(&rules, "team/app/deep", Action::Push), None);
        assert_eq!(may(&rules, "elsewhere", Action::Pull), Some(false));
        assert_eq!(may(&rules, "team/app", Action::Delete), None);
    }

    #[test]
    fn a_rule_on_nothing_gives_nothing() {
        let rules = rules(Anonymous::None, &[(Who::Everyone, Role::Admin, &[])]);
        assert!(!rules.may_anything(&Identity::Anonymous));
        assert_eq!(may(&rules, "a", Action::Pull), None);
    }
}
