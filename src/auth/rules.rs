//! The rules: what each identity may do, and which rule says so. Where they come from is not known here.

use std::collections::BTreeMap;

use super::{Action, Grant, Identity, Subject};
use crate::{
    config::{Auth, Member, RepositoryPattern, Role, Rule, Text, Who},
    oci::RepositoryName,
};

/// A rule, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRule {
    /// As its maker knows it: `auth.rules.ci` is in the configuration.
    pub name: String,
    /// What it says.
    pub rule: Rule,
}

/// All rules. They only add up: none takes away what another gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    rules: Vec<NamedRule>,
    groups: BTreeMap<String, Vec<Text<Member>>>,
}

impl AccessRules {
    /// `rules`, and the role that anybody has in every repository, if any.
    pub fn new(anonymous: Option<Role>, rules: impl IntoIterator<Item = NamedRule>) -> Self {
        // What one may do without logging in, one may do all the more after it.
        let anonymous = anonymous.map(|role| NamedRule {
            name: "auth.anonymous".to_owned(),
            rule: Rule { who: vec![Text(Who::Everyone)], role, repositories: vec![Text(RepositoryPattern::every())] },
        });
        Self { rules: rules.into_iter().chain(anonymous).collect(), groups: BTreeMap::new() }
    }

    /// Those of the configuration.
    pub fn configured(auth: &Auth) -> Self {
        let named =
            |(name, rule): (&String, &Rule)| NamedRule { name: format!("auth.rules.{name}"), rule: rule.clone() };
        Self { groups: auth.groups.clone(), ..Self::new(auth.anonymous.role(), auth.rules.iter().map(named)) }
    }

    /// These and `more`.
    pub(super) fn with(&self, more: &[NamedRule]) -> Self {
        Self { rules: self.rules.iter().chain(more).cloned().collect(), groups: self.groups.clone() }
    }

    /// The rule that gives `identity` the highest role in `repository`, if any gives one.
    pub fn best<'a>(&'a self, identity: &'a Identity, repository: &RepositoryName) -> Option<&'a NamedRule> {
        let covers = |named: &&NamedRule| named.rule.repositories.iter().any(|pattern| pattern.matches(repository));
        self.of(identity).filter(covers).max_by_key(|named| named.rule.role)
    }

    /// The rules that are about `identity`.
    pub fn of<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = &'a NamedRule> {
        self.rules.iter().filter(|named| named.rule.who.iter().any(|who| self.is(who, identity)))
    }

    /// Whether `identity` may do `action` in `repository`, and how far; `None` if not at all.
    pub fn decide(&self, identity: &Identity, repository: &RepositoryName, action: Action) -> Option<Grant> {
        let role = self.best(identity, repository)?.rule.role;
        (role >= action.needs()).then_some(Grant { create_only: role == Role::Creator })
    }

    /// Whether there is anything at all that `identity` may do.
    pub fn may_anything(&self, identity: &Identity) -> bool {
        self.of(identity).any(|named| !named.rule.repositories.is_empty())
    }

    /// Whether `who` covers an identity.
    fn is(&self, who: &Who, identity: &Identity) -> bool {
        match (who, &identity.subject) {
            (Who::Everyone, _) | (Who::Anonymous, Subject::Anonymous) => true,
            (Who::User(name), Subject::User(user)) => name == user,
            (Who::Account(name), Subject::Account(account)) => name == account,
            (Who::Federated { issuer, subject }, Subject::Federated { issuer: by, subject: called }) => {
                issuer == by && Who::matches_subject(subject, called)
            }
            (Who::Group(group), _) => identity.groups.contains(group) || self.is_member(group, identity),
            _ => false,
        }
    }

    fn is_member(&self, group: &str, identity: &Identity) -> bool {
        // A member is never a group itself, so that this ends.
        self.groups.get(group).is_some_and(|members| members.iter().any(|member| self.is(&member.0.0, identity)))
    }
}
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::config::Written;

    fn rule(who: &str, role: Role, repositories: &[&str]) -> NamedRule {
        let pattern = |text: &&str| Text(RepositoryPattern::read(text).unwrap());
        let repositories = repositories.iter().map(pattern).collect();
        let rule = Rule { who: vec![Text(Who::read(who).unwrap())], role, repositories };
        NamedRule { name: who.to_owned(), rule }
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
                rule("everyone", Role::Creator, &["team/*"]),
                rule("anonymous", Role::Writer, &["team/app", "x/**"]),
                rule("anonymous", Role::Reader, &["team/app"]),
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
        let rules = AccessRules::new(None, vec![rule("everyone", Role::Admin, &[])]);
        assert!(!rules.may_anything(&Identity::ANONYMOUS));
        assert_eq!(may(&rules, "a", Action::Pull), None);
    }

    #[test]
    fn a_rule_is_about_those_whom_it_names() {
        let federated =
            |issuer: &str, subject: &str| Subject::Federated { issuer: issuer.into(), subject: subject.into() };
        let (bob, ci) = (Subject::User("bob".into()), Subject::Account("bob".into()));
        let (main, other) = (federated("hub", "repo:a/b:main"), federated("lab", "repo:a/b:main"));
        for (who, expected) in [
            ("user:bob", [true, false, false, false, false]),
            ("account:bob", [false, true, false, false, false]),
            ("oidc:hub:repo:a/*", [false, false, true, false, false]),
            ("group:dev", [true, false, false, true, false]),
            ("anonymous", [false, false, false, false, true]),
            ("everyone", [true; 5]),
        ] {
            let mut rules = AccessRules::new(None, [rule(who, Role::Reader, &["**"])]);
            rules.groups.insert("dev".into(), vec![Text(Member::read("bob").unwrap())]);
            let may = [&bob, &ci, &main, &other, &Subject::Anonymous].map(|subject| {
                // The issuer called lab says of its own that they are in that group.
                let groups = if *subject == other { vec!["dev".to_owned()] } else { Vec::new() };
                rules.may_anything(&Identity { subject: subject.clone(), groups })
            });
            assert_eq!(may, expected, "{who}");
        }
    }
}
