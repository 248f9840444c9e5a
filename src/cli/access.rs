//! `berth access`: what somebody may do, and which rule says so.

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Failure, desk::Where, load, print};
use crate::{
    auth::{Subject, htpasswd::Users},
    config::{Config, LoadArgs},
    oci::RepositoryName,
};

/// See what somebody may do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print whether somebody may do something, and the rule that decides it: one of the configuration, or one
    /// that was made at run time.
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
        repository: RepositoryName,
        /// What they want to do.
        #[arg(long, value_enum)]
        action: Wanted,
        #[command(flatten)]
        place: Where,
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

impl Wanted {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// Does it. Exit status 0 for a yes and for a no: both are answers.
pub(super) fn run(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(explain(command, args))
}

async fn explain(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    let Command::Explain { who, groups, repository, action, place } = command;
    let (who, action) = (subject(who, &load(args.clone())?.config)?.to_string(), action.as_str());
    let question = json!({ "who": who, "groups": groups, "repository": repository.as_str(), "action": action });
    let answer = place.open(args).await?.ask(Method::POST, "explain", Some(question)).await?;
    print(format!("{who}: {action} in {repository}: {}", told(&answer)).as_bytes())
}

/// The decision, and what it rests on.
fn told(answer: &Value) -> String {
    let rule = &answer["rule"];
    let decision = match (answer["allowed"].as_bool(), answer["create_only"].as_bool()) {
        (Some(true), Some(true)) => "allowed, but no tag that exists is moved",
        (Some(true), _) => "allowed",
        _ => "denied",
    };
    if rule.is_null() {
        return format!("{decision}\nno rule is about them and this repository\n");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| {
        let items: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        items.join(", ")
    };
    format!(
        "{decision}\n{} gives the role {} to {} in {}; no other rule gives them more here\n",
        text(&rule["name"]),
        text(&rule["role"]),
        list(&rule["who"]),
        list(&rule["repositories"])
    )
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
