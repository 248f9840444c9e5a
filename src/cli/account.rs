//! `berth account`: service accounts and their keys.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Failure, desk::Where, print};
use crate::{
    config::{LoadArgs, RepositoryPattern, Role, Written},
    storage::key::EntryName,
};

/// Manage service accounts: who isn't a person, and logs in with a key.
///
/// A command works on the bucket and the index that the configuration names, beside running servers or without
/// any; with --server it asks a running one.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make an account, and print its key file: for `docker login -u _json_key --password-stdin`. It is shown
    /// this once.
    Create {
        #[command(flatten)]
        account: Named,
        #[command(flatten)]
        rights: Rights,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        place: Where,
    },
    /// List the accounts, and when each was last used, give or take an hour.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
    /// Change what an account may do, or when it ends.
    Change {
        #[command(flatten)]
        account: Named,
        #[command(flatten)]
        rights: Rights,
        #[command(flatten)]
        place: Where,
    },
    /// Refuse an account's keys until it is enabled again. A token that it has lives on until it ends.
    Disable {
        #[command(flatten)]
        account: Named,
        #[command(flatten)]
        place: Where,
    },
    /// Take an account's keys again.
    Enable {
        #[command(flatten)]
        account: Named,
        #[command(flatten)]
        place: Where,
    },
    /// Give an account another key, and print it. The keys so far end at once, or after --overlap.
    Rotate {
        #[command(flatten)]
        account: Named,
        /// For how long the keys so far are still taken, such as 1h or 7d.
        #[arg(long, value_name = "SPAN", value_parser = span)]
        overlap: Option<Duration>,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        place: Where,
    },
    /// Delete an account. Its keys never work again, also not with another account of its name.
    Delete {
        #[command(flatten)]
        account: Named,
        #[command(flatten)]
        place: Where,
    },
}

/// Which account.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The account's name.
    name: EntryName,
}

/// What an account may do, and for how long.
#[derive(Debug, Args)]
pub(super) struct Rights {
    /// What it may do: reader, creator, writer or admin.
    #[arg(long, value_parser = role, requires = "repositories")]
    role: Option<Role>,
    /// Where it may do that: a repository, or a pattern such as 'team/*'; may be given several times.
    #[arg(long = "repository", value_name = "PATTERN", value_parser = pattern, requires = "role")]
    repositories: Vec<String>,
    /// When the account ends: a time such as 2027-01-31T12:00:00Z, or a span from now on, such as 90d or 12h;
    /// `never` takes an end away.
    #[arg(long, value_name = "TIME", value_parser = end)]
    expires: Option<End>,
}

/// When an account ends.
#[derive(Clone, Debug)]
enum End {
    Never,
    At(String),
}

/// How a key is printed.
#[derive(Debug, Args)]
pub(super) struct Key {
    /// What to print: the key file, or the bare secret, which is a password under the account's name.
    #[arg(long, value_enum, default_value_t = Form::File)]
    print: Form,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    File,
    Secret,
}

/// Reads a role as the configuration does.
pub(super) fn role(text: &str) -> Result<Role, String> {
    serde_json::from_value(json!(text)).map_err(|_| "want reader, creator, writer or admin".to_owned())
}

/// Checks a pattern of repositories.
pub(super) fn pattern(text: &str) -> Result<String, String> {
    RepositoryPattern::read(text)
        .map(|pattern| pattern.write())
        .ok_or_else(|| format!("want {}", RepositoryPattern::WANT))
}

fn end(text: &str) -> Result<End, String> {
    if text == "never" {
        return Ok(End::Never);
    }
    if let Ok(span) = span(text) {
        let at = chrono::Utc::now() + chrono::TimeDelta::from_std(span).map_err(|error| error.to_string())?;
        return Ok(End::At(at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)));
    }
    let at = chrono::DateTime::parse_from_rfc3339(text);
    let want = "want a time such as 2027-01-31T12:00:00Z, a span such as 90d or 12h, or never";
    at.map(|at| End::At(at.to_rfc3339())).map_err(|_| want.to_owned())
}

/// A number and s, m, h or d, up to a hundred years.
fn span(text: &str) -> Result<Duration, String> {
    let want = || "want a number and s, m, h or d, such as 12h or 90d".to_owned();
    let (at, unit) = text.char_indices().next_back().ok_or_else(want)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(want()),
    };
    let count: u32 = text[..at].parse().map_err(|_| want())?;
    let span = Duration::from_secs(u64::from(count) * seconds);
    if span > Duration::from_secs(100 * 365 * 24 * 3600) { Err(want()) } else { Ok(span) }
}

impl Rights {
    fn body(&self) -> Map<String, Value> {
        let mut body = Map::new();
        if let Some(role) = self.role {
            body.insert("role".to_owned(), json!(role));
            body.insert("repositories".to_owned(), json!(self.repositories));
        }
        match &self.expires {
            Some(End::At(at)) => body.insert("expires".to_owned(), json!(at)),
            Some(End::Never) => body.insert("expires".to_owned(), Value::Null),
            None => None,
        };
        body
    }
}

/// Does one of them.
pub(super) fn run(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(manage(command, args))
}

async fn manage(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    match command {
        Command::Create { account, rights, key, place } => {
            let mut body = rights.body();
            body.insert("name".to_owned(), json!(account.name));
            let made = place.open(args).await?.ask(Method::POST, "accounts", Some(body.into())).await?;
            print_key(&made["key"], key.print)
        }
        Command::Rotate { account, overlap, key, place } => {
            let body = json!({ "overlap_seconds": overlap.unwrap_or_default().as_secs() });
            let path = format!("accounts/{}/rotate", account.name);
            let made = place.open(args).await?.ask(Method::POST, &path, Some(body)).await?;
            print_key(&made["key"], key.print)
        }
        Command::List { json, place } => {
            let found = place.open(args).await?.ask(Method::GET, "accounts", None).await?;
            let text = if *json { format!("{found:#}\n") } else { table(&found["accounts"]) };
            print(text.as_bytes())
        }
        Command::Change { account, rights, place } => change(account, place, rights.body(), args).await,
        Command::Disable { account, place } => change(account, place, disabled(true), args).await,
        Command::Enable { account, place } => change(account, place, disabled(false), args).await,
        Command::Delete { account, place } => {
            let path = format!("accounts/{}", account.name);
            place.open(args).await?.ask(Method::DELETE, &path, None).await.map(drop)
        }
    }
}

fn disabled(disabled: bool) -> Map<String, Value> {
    Map::from_iter([("disabled".to_owned(), json!(disabled))])
}

async fn change(account: &Named, place: &Where, body: Map<String, Value>, args: LoadArgs) -> Result<(), Failure> {
    if body.is_empty() {
        return Err(Failure::Argument("nothing to change: want --role with --repository, or --expires".to_owned()));
    }
    let path = format!("accounts/{}", account.name);
    place.open(args).await?.ask(Method::PATCH, &path, Some(body.into())).await.map(drop)
}

fn print_key(key: &Value, form: Form) -> Result<(), Failure> {
    match form {
        Form::File => print(format!("{key:#}\n").as_bytes()),
        Form::Secret => print(format!("{}\n", key["private_key"].as_str().unwrap_or_default()).as_bytes()),
    }
}

fn table(accounts: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = accounts.as_array().into_iter().flatten().map(|account| {
        let repositories: Vec<&str> =
            account["repositories"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let repositories = if repositories.is_empty() { "-".to_owned() } else { repositories.join(",") };
        let cells = ["name", "state", "role"].map(|cell| text(&account[cell]));
        let [name, state, role] = cells;
        [name, state, role, repositories, text(&account["expires"]), text(&account["last_used"])]
    });
    columns(["NAME", "STATE", "ROLE", "REPOSITORIES", "EXPIRES", "LAST USED"], rows)
}

/// Rows under headings, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(headings: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = [headings.map(str::to_owned)].into_iter().chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_a_number_and_a_unit() {
        for (text, seconds) in
            [("90d", Some(90 * 24 * 3600)), ("12h", Some(12 * 3600)), ("5m", Some(300)), ("0s", Some(0))]
        {
            assert_eq!(span(text).ok().map(|span| span.as_secs()), seconds, "{text}");
        }
        for bad in ["", "d", "-1d", "1.5h", "1w", "99999d", "90", "1é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
        assert!(matches!(end("never"), Ok(End::Never)));
        assert!(matches!(end("2027-01-31T12:00:00+01:00"), Ok(End::At(_))));
        assert!(end("tomorrow").is_err());
    }
}
