//! Managing accounts and rules: what may be done to them, and by whom.
//!
//! Whoever administers a prefix of repositories manages what is below it and nothing else. A credential is
//! only ever given to who could do by themselves all that it can do: so nobody gets further by making, or
//! taking over, an account.

use std::{sync::Arc, time::Duration};

use super::{Entries, Roster};
use crate::{
    auth::{AccessRules, Identity, Subject, account::NewKey},
    config::{RepositoryPattern, Role, Rule, Text, Who, Written},
    error::{Code, Error, Result},
    index::facts::{Account, AccountKey, RosterRule},
    oci::RepositoryName,
    storage::{StoreTime, key::EntryName},
};

/// Who manages.
#[derive(Clone, Debug)]
pub enum Manager {
    /// Whoever holds the bucket, or may use the machine that serves it. The text says which, for the record.
    Root(&'static str),
    /// Somebody who logged in.
    Admin {
        /// Who.
        identity: Arc<Identity>,
        /// What they and others may do.
        rules: Arc<AccessRules>,
    },
}

/// What an account shall be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What it may do, and where; `None` leaves that as it is.
    pub grant: Option<(Role, Vec<Text<RepositoryPattern>>)>,
    /// When it ends, or that it doesn't; `None` leaves that as it is.
    pub expires: Option<Option<StoreTime>>,
    /// Whether it is disabled; `None` leaves that as it is.
    pub disabled: Option<bool>,
}

impl Manager {
    fn by(&self) -> String {
        match self {
            Self::Root(by) => (*by).to_owned(),
            Self::Admin { identity, .. } => identity.to_string(),
        }
    }

    /// Whether they administer every repository that the patterns mean; of none at all, whether they
    /// administer everything: what has no rights yet may be given any.
    fn administers<'a>(&self, patterns: impl IntoIterator<Item = &'a RepositoryPattern>) -> bool {
        let Self::Admin { identity, rules } = self else { return true };
        let own: Vec<&RepositoryPattern> = rules
            .of(identity)
            .filter(|named| named.rule.role == Role::Admin)
            .flat_map(|named| named.rule.repositories.iter().map(|pattern| &pattern.0))
            .collect();
        let covered = |pattern: &RepositoryPattern| own.iter().any(|admin| admin.covers(pattern));
        let mut patterns = patterns.into_iter().peekable();
        if patterns.peek().is_none() { covered(&RepositoryPattern::every()) } else { patterns.all(covered) }
    }

    /// Refuses whoever doesn't administer all of it.
    fn require<'a>(&self, patterns: impl IntoIterator<Item = &'a Text<RepositoryPattern>>) -> Result<()> {
        if self.administers(patterns.into_iter().map(|pattern| &pattern.0)) {
            return Ok(());
        }
        Err(Error::new(Code::Denied, "this takes the role admin in every repository that it is about"))
    }

    /// Refuses whoever doesn't administer all that an account of this name may do by any rule that is about
    /// it. A rule can name an account before there is one, and whoever makes it then gets what the rule gives.
    fn require_rights_of(&self, name: &EntryName) -> Result<()> {
        let Self::Admin { rules, .. } = self else { return Ok(()) };
        let account = Identity { subject: Subject::Account(name.to_string()), groups: Vec::new() };
        for named in rules.of(&account) {
            // What everyone may do is nobody's gain.
            if !named.rule.who.iter().any(|who| **who == Who::Everyone) {
                self.require(&named.rule.repositories)?;
            }
        }
        Ok(())
    }

    /// Whether there is anything that they manage.
    pub fn manages_anything(&self) -> bool {
        let Self::Admin { identity, rules } = self else { return true };
        identity.subject != Subject::Anonymous && rules.of(identity).any(|named| named.rule.role == Role::Admin)
    }

    /// Whether they manage an account.
    pub fn manages_account(&self, account: &Account) -> bool {
        self.administers(account.repositories.iter().map(|pattern| &pattern.0))
    }

    /// Refuses whoever doesn't administer a repository.
    ///
    /// # Errors
    /// 403
    pub fn require_repository(&self, repository: &RepositoryName) -> Result<()> {
        // A name is a pattern that means itself.
        self.require(RepositoryPattern::read(repository.as_str()).map(Text).as_ref())
    }

    /// Refuses whoever doesn't administer every repository.
    ///
    /// # Errors
    /// 403
    pub fn require_everything(&self) -> Result<()> {
        self.require([])
    }

    /// Whether they manage a rule.
    pub fn manages_rule(&self, rule: &RosterRule) -> bool {
        self.administers(rule.rule.repositories.iter().map(|pattern| &pattern.0))
    }
}

impl Roster {
    /// Makes an account with its first key.
    ///
    /// # Errors
    /// 409 if there is one of that name; 403 if it isn't theirs to make.
    pub async fn create_account(
        &self,
        manager: &Manager,
        name: &EntryName,
        wanted: &Wanted,
    ) -> Result<(Account, NewKey)> {
        manager.require_rights_of(name)?;
        let now = self.now();
        let key = NewKey::draw(now)?;
        let empty = Account {
            keys: vec![key.kept.clone()],
            role: None,
            repositories: Vec::new(),
            disabled: false,
            expires: None,
            created: now,
            at: now,
            by: manager.by(),
        };
        let account = applied(&empty, wanted, now)?;
        manager.require(&account.repositories)?;
        self.change_account(name, |there| match there {
            Some(_) => Err(Error::new(Code::Conflict, format!("there is an account {name} already"))),
            None => Ok(Some(account.clone())),
        })
        .await?;
        record(manager, "account", name, "created");
        Ok((account, key))
    }

    /// Changes an account: its rights, its end, whether it is disabled.
    ///
    /// # Errors
    /// 404 if there is none of that name; 403 if it isn't theirs to change, or what it shall be isn't theirs to
    /// give.
    pub async fn change_account_to(&self, manager: &Manager, name: &EntryName, wanted: &Wanted) -> Result<Account> {
        let now = self.now();
        let only_disables = wanted.disabled == Some(true) && wanted.grant.is_none() && wanted.expires.is_none();
        let account = self
            .change_account(name, |there| {
                let there = theirs(manager, name, there)?;
                if !only_disables {
                    manager.require_rights_of(name)?;
                }
                let account = Account { by: manager.by(), at: now, ..applied(there, wanted, now)? };
                manager.require(&account.repositories)?;
                Ok(Some(account))
            })
            .await?;
        record(manager, "account", name, if wanted.disabled == Some(true) { "disabled" } else { "changed" });
        account.ok_or_else(|| no_account(name))
    }

    /// Gives an account another key. Its keys so far end after `overlap`, if they don't end before.
    ///
    /// # Errors
    /// As [`Roster::change_account_to`].
    pub async fn rotate_account(
        &self,
        manager: &Manager,
        name: &EntryName,
        overlap: Duration,
    ) -> Result<(Account, NewKey)> {
        let now = self.now();
        let key = NewKey::draw(now)?;
        let end = now.plus(overlap);
        let account = self
            .change_account(name, |there| {
                let there = theirs(manager, name, there)?;
                manager.require_rights_of(name)?;
                let ending = |key: &AccountKey| AccountKey {
                    until: Some(key.until.map_or(end, |until| until.min(end))),
                    ..key.clone()
                };
                let old = there.keys.iter().map(ending).filter(|key| key.until.is_some_and(|until| until > now));
                let keys = [key.kept.clone()].into_iter().chain(old.take(MAX_KEYS - 1)).collect();
                Ok(Some(Account { keys, at: now, by: manager.by(), ..there.clone() }))
            })
            .await?;
        record(manager, "account", name, "given a new key");
        Ok((account.ok_or_else(|| no_account(name))?, key))
    }

    /// Deletes an account. Its name is free again, and its keys never work again.
    ///
    /// # Errors
    /// 404 if there is none; 403 if it isn't theirs.
    pub async fn delete_account(&self, manager: &Manager, name: &EntryName) -> Result<()> {
        self.change_account(name, |there| theirs(manager, name, there).map(|_| None)).await?;
        record(manager, "account", name, "deleted");
        Ok(())
    }

    /// Makes a rule, or puts it in the place of the one of that name.
    ///
    /// # Errors
    /// 403 if it isn't theirs to give, or the one that it would replace isn't theirs; 400 if it is about nobody
    /// or nothing.
    pub async fn put_rule(&self, manager: &Manager, name: &EntryName, rule: &Rule) -> Result<RosterRule> {
        if rule.who.is_empty() || rule.repositories.is_empty() {
            let message = "a rule names at least one identity and one pattern of repositories";
            return Err(Error::new(Code::RequestInvalid, message));
        }
        manager.require(&rule.repositories)?;
        let made = RosterRule { rule: rule.clone(), at: self.now(), by: manager.by() };
        self.change_rule(name, |there| match there {
            Some(there) if there.rule == *rule => Ok(Some(there.clone())),
            Some(there) => manager.require(&there.rule.repositories).map(|()| Some(made.clone())),
            None => Ok(Some(made.clone())),
        })
        .await?;
        record(manager, "rule", name, "set");
        Ok(made)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// 404 if there is none of that name; 403 if it isn't theirs.
    pub async fn delete_rule(&self, manager: &Manager, name: &EntryName) -> Result<()> {
        self.change_rule(name, |there| {
            let there = there.ok_or_else(|| Error::new(Code::NameUnknown, format!("there is no rule {name}")))?;
            manager.require(&there.rule.repositories).map(|()| None)
        })
        .await?;
        record(manager, "rule", name, "removed");
        Ok(())
    }
}

/// The most keys of an account that are good at the same time.
const MAX_KEYS: usize = 5;

/// An account that is there and that they manage.
fn theirs<'a>(manager: &Manager, name: &EntryName, there: Option<&'a Account>) -> Result<&'a Account> {
    let account = there.ok_or_else(|| no_account(name))?;
    manager.require(&account.repositories)?;
    Ok(account)
}

fn no_account(name: &EntryName) -> Error {
    Error::new(Code::NameUnknown, format!("there is no account {name}"))
}

/// An account as it shall be.
fn applied(account: &Account, wanted: &Wanted, now: StoreTime) -> Result<Account> {
    let mut account = account.clone();
    if let Some((role, repositories)) = &wanted.grant {
        if repositories.is_empty() {
            return Err(Error::new(Code::RequestInvalid, "a role goes with at least one pattern of repositories"));
        }
        (account.role, account.repositories) = (Some(*role), repositories.clone());
    }
    if let Some(expires) = wanted.expires {
        if expires.is_some_and(|expires| expires <= now) {
            return Err(Error::new(Code::RequestInvalid, "the time at which the account ends has passed"));
        }
        account.expires = expires;
    }
    account.disabled = wanted.disabled.unwrap_or(account.disabled);
    Ok(account)
}

/// One line in the log for each change: who did what.
fn record(manager: &Manager, kind: &'static str, name: &EntryName, what: &'static str) {
    tracing::info!(by = manager.by(), kind, %name, what, "the roster was changed");
}

impl Entries {
    /// What accounts and rules grant, as rules: `account ci` is what an account has of its own.
    pub(super) fn as_rules(&self) -> Vec<crate::auth::NamedRule> {
        let of_account = |(name, account): (&EntryName, &Account)| {
            let who = vec![Text(Who::Account(name.to_string()))];
            let rule = Rule { who, role: account.role?, repositories: account.repositories.clone() };
            Some(crate::auth::NamedRule { name: format!("account {name}"), rule })
        };
        let of_rule = |(name, rule): (&EntryName, &RosterRule)| crate::auth::NamedRule {
            name: format!("rule {name}"),
            rule: rule.rule.clone(),
        };
        self.accounts.iter().filter_map(of_account).chain(self.rules.iter().map(of_rule)).collect()
    }
}
