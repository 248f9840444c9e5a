//! `berth events`: what is told to endpoints.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};
use ulid::Ulid;

use super::{Failure, account::columns, desk::Where, print};
use crate::{config::LoadArgs, storage::key::EntryName};

/// See what is told to endpoints, and what could not be.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the endpoints, and what waits for each.
    Endpoints {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
    /// List the oldest events that wait for an endpoint: how often each was sent, what came back, when it is sent
    /// next.
    Pending {
        /// The endpoint's name.
        endpoint: EntryName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
    /// List an endpoint's dead letters, the oldest first: events that could not be delivered in time.
    Dead {
        /// The endpoint's name.
        endpoint: EntryName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
    /// Deliver dead letters again, in the order in which they happened.
    Replay {
        /// The endpoint's name; without it, those of all endpoints.
        endpoint: Option<EntryName>,
        /// The id of an event; without it, all. May be given several times.
        #[arg(long = "id", value_name = "ID", requires = "endpoint")]
        ids: Vec<Ulid>,
        #[command(flatten)]
        place: Where,
    },
    /// Send an endpoint a sample, the push of berth/sample:test, and print what came back.
    Test {
        /// The endpoint's name.
        endpoint: EntryName,
        #[command(flatten)]
        place: Where,
    },
}

/// Does one of them.
pub(super) fn run(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(manage(command, args))
}

async fn manage(command: &Command, args: LoadArgs) -> Result<(), Failure> {
    match command {
        Command::Endpoints { json, place } => {
            let found = place.open(args).await?.ask(Method::GET, "events/endpoints", None).await?;
            show(*json, &found, || endpoints(&found["endpoints"]))
        }
        Command::Pending { endpoint, json, place } => letters(endpoint, "pending", *json, place, args).await,
        Command::Dead { endpoint, json, place } => letters(endpoint, "dead", *json, place, args).await,
        Command::Replay { endpoint, ids, place } => replay(endpoint.as_ref(), ids, place, args).await,
        Command::Test { endpoint, place } => {
            let path = format!("events/endpoints/{endpoint}/test");
            let tried = place.open(args).await?.ask(Method::POST, &path, None).await?;
            let said = tried["said"].as_str().unwrap_or_default();
            if tried["taken"] != true {
                return Err(Failure::Refused(format!("{endpoint} did not take the sample: {said}")));
            }
            print(format!("{endpoint} took the sample: {said}, after {} ms\n", tried["milliseconds"]).as_bytes())
        }
    }
}

async fn letters(endpoint: &EntryName, which: &str, json: bool, place: &Where, args: LoadArgs) -> Result<(), Failure> {
    let path = format!("events/endpoints/{endpoint}/{which}");
    let found = place.open(args).await?.ask(Method::GET, &path, None).await?;
    show(json, &found, || table(&found))
}

async fn replay(endpoint: Option<&EntryName>, ids: &[Ulid], place: &Where, args: LoadArgs) -> Result<(), Failure> {
    let desk = place.open(args).await?;
    let names: Vec<String> = match endpoint {
        Some(name) => vec![name.to_string()],
        None => {
            let found = desk.ask(Method::GET, "events/endpoints", None).await?;
            // One without a format is in no configuration: nobody would deliver them.
            let served = items(&found["endpoints"]).filter(|endpoint| endpoint["format"].is_string());
            served.map(|endpoint| text(&endpoint["name"])).collect()
        }
    };
    for name in names {
        let path = format!("events/endpoints/{name}/replay");
        let done = desk.ask(Method::POST, &path, Some(json!({ "ids": ids }))).await?;
        print(format!("{name}: {} dead letters are delivered again\n", done["replayed"]).as_bytes())?;
    }
    Ok(())
}

fn show(json: bool, found: &Value, table: impl Fn() -> String) -> Result<(), Failure> {
    let text = if json { format!("{found:#}\n") } else { table() };
    print(text.as_bytes())
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn endpoints(endpoints: &Value) -> String {
    let rows = items(endpoints).map(|endpoint| {
        let field = |key: &str| text(&endpoint[key]);
        [field("name"), field("format"), field("place"), field("pending"), field("oldest"), field("dead")]
    });
    columns(["NAME", "FORMAT", "PLACE", "PENDING", "SINCE", "DEAD"], rows)
}

fn table(found: &Value) -> String {
    let letters = &found["letters"];
    let rows = items(letters).map(|letter| {
        let field = |key: &str| text(&letter[key]);
        let what = match (&letter["tag"], &letter["digest"]) {
            (Value::String(tag), _) => format!("{}:{tag}", field("repository")),
            (_, Value::String(digest)) => format!("{}@{digest}", field("repository")),
            _ => field("repository"),
        };
        [field("id"), field("at"), field("action"), what, field("attempts"), field("last"), field("next")]
    });
    let mut shown = columns(["ID", "AT", "ACTION", "WHAT", "ATTEMPTS", "LAST", "NEXT"], rows);
    let more = found["count"].as_u64().unwrap_or_default().saturating_sub(items(letters).count() as u64);
    if more > 0 {
        shown += &format!("and {more} more\n");
    }
    shown
}
