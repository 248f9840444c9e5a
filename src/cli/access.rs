//! `berth access`: what somebody may do, and which rule says so.

use clap::{Subcommand, ValueEnum};

use super::{Failure, print};
use crate::{
    auth::{AccessRules, Action, Identity, Subject, htpasswd::Users},
    config::{Config, Role, Written},
    oci::RepositoryName,
};

/// See what somebody may do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print whether the configuration's rules let somebody do something, and the rule that decides it.
    Explain {
        /// Who: user:NAME, account:NAME, oidc:ISSUER:SUBJECT or anonymous. A bare name is a user's, or a
        /// service account's where the htpasswd file has no such user.
        #[arg(long = "as", value_name = "WHO")]
        who: String,
        /// A group that they are in by what their issuer says of them; may be given several times.
        #[arg(long = "group", value_name = "NAME")]
        groups: Vec<String>,
        /// The repository.
        #[arg(long, value_name = "NAME")]
        repository: String,
        /// What they want to do.
        #[arg(long, value_enum)]
        action: Wanted,
    },
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Wanted {
    /// Read.
    Pull,
    /// Add.
    Push,
    /// Take away.
    Delete,
}

/// Does it. Exit status 0 for a yes and for a no: both are answers.
pub(super) fn run(command: &Command, config: &Config) -> Result<(), Failure> {
    let Command::Explain { who, groups, repository, action } = command;
    let identity = Identity { subject: subject(who, config)?, groups: groups.clone() };
    let repository: RepositoryName = repository.parse().map_err(|error| Failure::Argument(format!("{error}")))?;
    let action = match action {
        Wanted::Pull => Action::Pull,
        Wanted::Push => Action::Push,
        Wanted::Delete => Action::Delete,
    };
    print(explain(&AccessRules::configured(&config.auth), &identity, &repository, action).as_bytes())
}

/// The decision, and what it rests on.
fn explain(rules: &AccessRules, identity: &Identity, repository: &RepositoryName, action: Action) -> String {
    let asked = format!("{identity}: {} in {repository}", action.as_str());
    let Some(best) = rules.best(identity, repository) else {
        return format!("{asked}: denied\nno rule is about them and this repository\n");
    };
    let role = role(best.rule.role);
    let decision = match rules.decide(identity, repository, action) {
        None => "denied",
        Some(grant) if grant.create_only && action == Action::Push => "allowed, but no tag that exists is moved",
        Some(_) => "allowed",
    };
    let who: Vec<String> = best.rule.who.iter().map(|who| who.write()).collect();
    let patterns: Vec<String> = best.rule.repositories.iter().map(|pattern| pattern.write()).collect();
    format!(
        "{asked}: {decision}\n{} gives the role {role} to {} in {}; no other rule gives them more here\n",
        best.name,
        who.join(", "),
        patterns.join(", ")
    )
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Reader => "reader",
        Role::Creator => "creator",
        Role::Writer => "writer",
        Role::Admin => "admin",
    }
}

fn subject(who: &str, config: &Config) -> Result<Subject, Failure> {
    if who == "anonymous" || who.contains(':') {
        let unknown = || {
            Failure::Argument(format!("--as {who:?}: want user:NAME, account:NAME, oidc:ISSUER:SUBJECT or anonymous"))
        };
        return Subject::read(who).ok_or_else(unknown);
    }
    let users = match &config.auth.htpasswd {
        Some(path) => Users::open(path).map_err(|error| Failure::Argument(format!("auth.htpasswd: {error}")))?,
        None => Users::default(),
    };
    Ok(if users.contains(who) { Subject::User(who.to_owned()) } else { Subject::Account(who.to_owned()) })
}
