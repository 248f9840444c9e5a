//! `berth rule`: access rules that are made at run time.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    account::{columns, pattern, role},
    desk::Where,
    print,
};
use crate::{
    config::{LoadArgs, Role, Who, Written},
    storage::key::EntryName,
};

/// Manage access rules, beside those of the configuration.
///
/// Rules only add up: what one grants, no other takes away. Running servers go by a change at once, or within
/// five seconds where the index didn't tell them of it.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a rule, or put it in the place of the one of that name.
    Add {
        /// The rule's name.
        name: EntryName,
        /// Whom it is about: user:NAME, account:NAME, group:NAME, oidc:ISSUER:SUBJECT, anonymous or everyone;
        /// may be given several times.
        #[arg(long, required = true, value_parser = who)]
        who: Vec<String>,
        /// What they may do: reader, creator, writer or admin.
        #[arg(long, value_parser = role)]
        role: Role,
        /// Where they may do that: a repository, or a pattern such as 'team/*'; may be given several times.
        #[arg(long = "repository", value_name = "PATTERN", required = true, value_parser = pattern)]
        repositories: Vec<String>,
        #[command(flatten)]
        place: Where,
    },
    /// List the rules that were made at run time.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
    /// Remove a rule.
    Remove {
        /// The rule's name.
        name: EntryName,
        #[command(flatten)]
        place: Where,
    },
}

fn who(text: &str) -> Result<String, String> {
    Who::read(text).map(|who| who.write()).ok_or_else(|| format!("want {}", Who::WANT))
}

/// Does one of them.
pub(super) fn run(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(manage(command, args))
}

async fn manage(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    match command {
        Command::Add { name, who, role, repositories, place } => {
            let body = json!({ "who": who, "role": role, "repositories": repositories });
            place.open(args).await?.ask(Method::PUT, &format!("rules/{name}"), Some(body)).await.map(drop)
        }
        Command::List { json, place } => {
            let found = place.open(args).await?.ask(Method::GET, "rules", None).await?;
            let text = if *json { format!("{found:#}\n") } else { table(&found["rules"]) };
            print(text.as_bytes())
        }
        Command::Remove { name, place } => {
            place.open(args).await?.ask(Method::DELETE, &format!("rules/{name}"), None).await.map(drop)
        }
    }
}

fn table(rules: &Value) -> String {
    let list =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",");
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = rules
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| [text(&rule["name"]), list(&rule["who"]), text(&rule["role"]), list(&rule["repositories"])]);
    columns(["NAME", "WHO", "ROLE", "REPOSITORIES"], rows)
}
