//! `berth gc`: how collection of garbage stands, a round of it now, and what one would remove.

use std::{
    fmt::Write as _,
    io::{self, Write},
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde_json::json;
use ulid::Ulid;

use super::{Failure, inspect::when, print};
use crate::{
    app,
    collect::{
        self,
        garbage::Garbage,
        round::{self, Begin, Step},
    },
    config::{Config, Loaded},
    error::Error,
    index::facts::{CollectionFact, Found},
    registry::Registry,
};

/// Look at what nothing needs, or remove it.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print when the bucket was last looked through for garbage, what was found, and how far a round is. Changes nothing.
    Status(Status),
    /// Look through the whole bucket now, and remove what nothing needs. A running server does that by itself.
    Run(Run),
}

/// How to print the status.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How to run.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Print what would be removed and why, and remove nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Does one of them.
pub(super) fn run(command: &Command, loaded: &Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Status(status) => runtime.block_on(print_status(&loaded.config, status)),
        Command::Run(Run { dry_run: true }) => runtime.block_on(examine(&loaded.config)),
        Command::Run(Run { dry_run: false }) => runtime.block_on(collect_now(&loaded.config)),
    }
}

async fn print_status(config: &Config, status: &Status) -> Result<(), Failure> {
    let registry = app::open_existing(config).await?;
    let waiting = collect::waiting(&registry).await?;
    let fact = round::status(&registry).await?;
    let next = round::next_round(&registry, fact.last);
    if status.json {
        return print(format!("{:#}\n", json!({ "collection": fact, "trash": waiting, "next": next })).as_bytes());
    }
    let CollectionFact { round, last } = fact;
    let mut text = String::new();
    match last {
        Some(last) => {
            let _ = writeln!(text, "last round from {} to {}", when(last.began), when(last.ended));
            describe(&mut text, &last.found);
        }
        None => text.push_str("last round: none yet\n"),
    }
    if let Some(round) = round {
        let _ = writeln!(text, "a round goes on since {}, behind {}", when(round.began), round.after);
        describe(&mut text, &round.found);
    } else {
        let _ = writeln!(text, "next round at {}, or when a server next looks", when(next));
    }
    let _ = writeln!(text, "trash {waiting}");
    print(text.as_bytes())
}

/// What was found, as indented lines; nothing where that is nothing.
fn describe(text: &mut String, found: &Found) {
    let Found { links, manifests, revisions, data, uses, bytes } = found;
    let _ = writeln!(
        text,
        "  links {links}\n  manifests {manifests}\n  revisions {revisions}\n  data {data}\n  uses {uses}\n  bytes {bytes}"
    );
}

/// What there is goes to standard output as it is found, a line each; what is printed is not kept.
async fn examine(config: &Config) -> Result<(), Failure> {
    let registry = app::open_existing(config).await?;
    let mut out = io::stdout().lock();
    let mut printed = Ok(());
    let found = round::examine(&registry, |Garbage { key, size, why }| {
        if printed.is_ok() {
            printed = writeln!(out, "would remove {key} ({size} bytes): {why}");
        }
    })
    .await?;
    drop(out);
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let mut text = String::from("all that would be removed\n");
    describe(&mut text, &found);
    text.push_str("and the bytes that are not used any more once those links are gone\n");
    print(text.as_bytes())
}

/// A round without rests, then everything that is in the trash.
async fn collect_now(config: &Config) -> Result<(), Failure> {
    let registry = app::open_existing(config).await?;
    let found = one_round(&registry).await?;
    let removed = collect::empty_all_trash(&registry).await?;
    let mut text = String::from("found\n");
    describe(&mut text, &found);
    let _ = writeln!(text, "emptied from the trash {removed}");
    print(text.as_bytes())
}

async fn one_round(registry: &Arc<Registry>) -> Result<Found, Failure> {
    let owner = Ulid::r#gen();
    let mut begin = Begin::Now;
    loop {
        match round::step(registry, owner, begin).await? {
            Step::Over(finished) => return Ok(finished.found),
            Step::Went => begin = Begin::WhenDue,
            Step::Elsewhere => {
                return Err(Error::unavailable(
                    "a server is in the middle of a round; `berth gc status` shows how far",
                )
                .into());
            }
            Step::NotYet => {
                return Err(Error::unavailable(
                    "nothing is old enough: the index is younger than collect.grace, or still being filled from the bucket",
                )
                .into());
            }
        }
    }
}
