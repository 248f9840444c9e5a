//! What the admin API reads and writes. No shape has room for the hash of a secret.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    auth::{Action, Grant, Identity, NamedRule, Subject, account::KeyFile},
    config::{RepositoryPattern, Role, Text, Who},
    error::{Code, Error, Result},
    index::facts::{Account, RosterRule},
    oci::RepositoryName,
    roster::manage::Wanted,
    storage::{StoreTime, key::EntryName},
};

/// A list of accounts.
#[derive(Serialize)]
pub(super) struct Accounts {
    pub(super) accounts: Vec<AccountShape>,
}

/// An account as it is shown.
#[derive(Serialize)]
pub(super) struct AccountShape {
    name: EntryName,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    repositories: Vec<Text<RepositoryPattern>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    created: String,
    changed: String,
    changed_by: String,
    keys: Vec<KeyShape>,
    /// Give or take an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used: Option<String>,
}

/// Whether an account's keys are taken.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Active,
    Disabled,
    Expired,
}

/// A key as it is shown.
#[derive(Serialize)]
struct KeyShape {
    id: String,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

impl AccountShape {
    pub(super) fn of(name: &EntryName, account: &Account, last_used: Option<StoreTime>, now: StoreTime) -> Self {
        let state = match account {
            Account { disabled: true, .. } => State::Disabled,
            Account { expires: Some(expires), .. } if *expires <= now => State::Expired,
            _ => State::Active,
        };
        // A key that is over is as if it weren't there.
        let good = account.keys.iter().filter(|key| key.until.is_none_or(|until| until > now));
        let keys = good.map(|key| KeyShape {
            id: key.id.clone(),
            created: key.at.rfc3339(),
            expires: key.until.map(StoreTime::rfc3339),
        });
        Self {
            name: name.clone(),
            state,
            role: account.role,
            repositories: account.repositories.clone(),
            expires: account.expires.map(StoreTime::rfc3339),
            created: account.created.rfc3339(),
            changed: account.at.rfc3339(),
            changed_by: account.by.clone(),
            keys: keys.collect(),
            last_used: last_used.map(StoreTime::rfc3339),
        }
    }
}

/// An account and the key that it was just given, which is shown this once.
#[derive(Serialize)]
pub(super) struct NewKeyShape {
    pub(super) account: AccountShape,
    pub(super) key: KeyFile,
}

/// What an account shall be when it is made.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAccount {
    pub(super) name: EntryName,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    repositories: Option<Vec<Text<RepositoryPattern>>>,
    #[serde(default, deserialize_with = "time")]
    expires: Option<StoreTime>,
}

impl NewAccount {
    pub(super) fn wanted(self) -> Result<Wanted> {
        Ok(Wanted { grant: grant(self.role, self.repositories)?, expires: Some(self.expires), disabled: None })
    }
}

/// What of an account shall be different. What is missing stays as it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedAccount {
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    repositories: Option<Vec<Text<RepositoryPattern>>>,
    /// `null` takes the end away.
    #[serde(default, deserialize_with = "perhaps_time")]
    expires: Option<Option<StoreTime>>,
    #[serde(default)]
    disabled: Option<bool>,
}

impl ChangedAccount {
    pub(super) fn wanted(self) -> Result<Wanted> {
        Ok(Wanted { grant: grant(self.role, self.repositories)?, expires: self.expires, disabled: self.disabled })
    }
}

/// Which role, and where: the one means nothing without the other.
fn grant(
    role: Option<Role>,
    repositories: Option<Vec<Text<RepositoryPattern>>>,
) -> Result<Option<(Role, Vec<Text<RepositoryPattern>>)>> {
    match (role, repositories) {
        (Some(role), Some(repositories)) => Ok(Some((role, repositories))),
        (None, None) => Ok(None),
        _ => Err(Error::new(Code::RequestInvalid, "role and repositories go together: both or neither")),
    }
}

/// How a key is put in the place of another.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// For how long the keys so far are still taken.
    #[serde(default)]
    pub(super) overlap_seconds: u64,
}

/// A list of rules.
#[derive(Serialize)]
pub(super) struct Rules {
    pub(super) rules: Vec<RuleShape>,
}

/// A rule as it is shown.
#[derive(Serialize)]
pub(super) struct RuleShape {
    name: EntryName,
    who: Vec<Text<Who>>,
    role: Role,
    repositories: Vec<Text<RepositoryPattern>>,
    changed: String,
    changed_by: String,
}

impl RuleShape {
    pub(super) fn of(name: &EntryName, rule: &RosterRule) -> Self {
        let crate::config::Rule { who, role, repositories } = rule.rule.clone();
        Self { name: name.clone(), who, role, repositories, changed: rule.at.rfc3339(), changed_by: rule.by.clone() }
    }
}

/// Whether somebody may do something.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// As rules name them.
    who: String,
    /// Groups that they are in by what their issuer says of them.
    #[serde(default)]
    groups: Vec<String>,
    repository: String,
    action: String,
}

impl Question {
    pub(super) fn read(self) -> Result<(Identity, RepositoryName, Action)> {
        let wrong = |key: &str, found: &str| Error::new(Code::RequestInvalid, format!("{key}: found {found:?}"));
        let subject = Subject::read(&self.who).ok_or_else(|| wrong("who", &self.who))?;
        let repository = self.repository.parse().map_err(|_| wrong("repository", &self.repository))?;
        let action = Action::named(&self.action).ok_or_else(|| wrong("action", &self.action))?;
        Ok((Identity { subject, groups: self.groups }, repository, action))
    }
}

/// A decision, and what it rests on.
#[derive(Serialize)]
pub(super) struct Explained {
    allowed: bool,
    /// Whether a push moves no tag that exists.
    create_only: bool,
    /// The rule that gives the highest role, whether or not that is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<DecidingRule>,
}

/// A rule of the configuration or of the roster.
#[derive(Serialize)]
struct DecidingRule {
    name: String,
    who: Vec<Text<Who>>,
    role: Role,
    repositories: Vec<Text<RepositoryPattern>>,
}

impl Explained {
    pub(super) fn of(grant: Option<Grant>, action: Action, rule: Option<&NamedRule>) -> Self {
        let rule = rule.map(|NamedRule { name, rule }| DecidingRule {
            name: name.clone(),
            who: rule.who.clone(),
            role: rule.role,
            repositories: rule.repositories.clone(),
        });
        let create_only = action == Action::Push && grant.is_some_and(|grant| grant.create_only);
        Self { allowed: grant.is_some(), create_only, rule }
    }
}

/// A time by RFC 3339, if there is one.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<StoreTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let read = |text: &String| StoreTime::from_rfc3339(text).ok_or_else(|| text.clone());
    let wrong = |text: String| D::Error::custom(format!("found {text:?}, want a time such as 2027-01-31T12:00:00Z"));
    text.as_ref().map(read).transpose().map_err(wrong)
}

fn perhaps_time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Option<StoreTime>>, D::Error> {
    time(deserializer).map(Some)
}
