//! Access: who asks, and what they may do.
//!
//! An [`Identity`] is made here and nowhere else, and [`AccessRules`] decide from it and a repository's
//! *name* alone: nothing here knows whether anything exists, so no answer can tell.

mod identity;

use crate::{
    config::{RepositoryPattern, Role, Rule, Text, Who},
    oci::RepositoryName,
};

pub use identity::{Identity, Subject};

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
    /// Its name in a token's scope.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    rules: Vec<Rule>,
}

impl AccessRules {
    /// `rules`, and the role that those who didn't say who they are have in every repository, if any.
    pub fn new(anonymous: Option<Role>, rules: impl IntoIterator<Item = Rule>) -> Self {
        let anonymous = anonymous.map(|role| Rule {
            who: vec![Who::Anonymous],
            role,
            repositories: vec![Text(RepositoryPattern::every())],
        });
        Self { rules: rules.into_iter().chain(anonymous).collect() }
    }

    /// The role of `identity` in `repository`: the highest that any rule gives.
    fn role(&self, identity: &Identity, repository: &RepositoryName) -> Option<Role> {
        let of = |rule: &&Rule| rule.repositories.iter().any(|pattern| pattern.matches(repository));
        self.of(identity).filter(of).map(|rule| rule.role).max()
    }

    fn of<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(|rule| rule.who.iter().any(|who| is(*who, identity)))
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
        self.of(identity).any(|rule| !rule.repositories.is_empty())
    }
}

/// Whether `who` covers an identity.
fn is(who: Who, identity: &Identity) -> bool {
    match who {
        Who::Everyone => true,
        Who::Anonymous => identity.subject == Subject::Anonymous,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::config::Written;

    fn rule(who: Who, role: Role, repositories: &[&str]) -> Rule {
        let pattern = |text: &&str| Text(RepositoryPattern::read(text).unwrap());
        Rule { who: vec![who], role, repositories: repositories.iter().map(pattern).collect() }
    }

    fn may(rules: &AccessRules, repository: &str, action: Action) -> Option<bool> {
        let grant = rules.decide(&Identity::ANONYMOUS, &repository.parse().unwrap(), action);
        grant.map(|grant| grant.create_only)
    }

    #[test]
    fn a_role_may_what_the_lesser_ones_may() {
        use Action::{Delete, Pull, Push};
        let table = [
            (None, [None, None, None]),
            (Some(Role::Reader), [Some(false), None, None]),
            (Some(Role::Creator), [Some(true), Some(true), None]),
            (Some(Role::Writer), [Some(false), Some(false), None]),
            (Some(Role::Admin), [Some(false), Some(false), Some(false)]),
        ];
        for (role, expected) in table {
            let rules = AccessRules::new(role, Vec::new());
            assert_eq!([Pull, Push, Delete].map(|action| may(&rules, "a/b", action)), expected, "{role:?}");
            assert_eq!(rules.may_anything(&Identity::ANONYMOUS), role.is_some());
        }
    }

    #[test]
    fn rules_only_add_up() {
        let rules = AccessRules::new(
            Some(Role::Reader),
            vec![
                rule(Who::Everyone, Role::Creator, &["team/*"]),
                rule(Who::Anonymous, Role::Writer, &["team/app", "x/**"]),
                rule(Who::Anonymous, Role::Reader, &["team/app"]),
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
        let rules = AccessRules::new(None, vec![rule(Who::Everyone, Role::Admin, &[])]);
        assert!(!rules.may_anything(&Identity::ANONYMOUS));
        assert_eq!(may(&rules, "a", Action::Pull), None);
    }
}
