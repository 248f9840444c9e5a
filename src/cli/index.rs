//! `berth index`: looks at the index, compares it with the bucket, makes it the bucket's own, or fills it anew.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, inspect::when, print};
use crate::{
    app::{self, Takeover},
    config::{Config, Loaded},
    epoch::Standing,
    index::facts::AdoptedRoster,
    inspect::{Cost, Counted, Counts, IndexState},
    oci::RepositoryName,
    reconcile::{self, Adopted, Walked},
    telemetry::{self, Log},
    verify::{self, Repair, Verified},
};

/// Look at the index, compare it with the bucket, or begin a new one.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make the configured index the bucket's own, in place of another one: begin a new epoch with it, empty. Servers
    /// fill it from the bucket while they serve.
    Take(Take),
    /// The same with any index, also the bucket's own, and fill it from the bucket before returning.
    Rebuild(Rebuild),
    /// Print which index the bucket believes, how much is in it, and what it would cost to fill it anew. Changes nothing.
    Status(Status),
    /// Compare the index with the bucket, both ways. A line for each disagreement; exit status 1 if there is one.
    Verify(Verify),
}

/// How to take a bucket.
#[derive(Debug, Args)]
pub(super) struct Take {
    /// Do it. Without this, only what would happen is printed.
    #[arg(long)]
    yes: bool,
}

/// How to rebuild.
#[derive(Debug, Args)]
pub(super) struct Rebuild {
    /// The bucket is a copy that kept no file times (cp, an upload to S3): take each tag, account and rule
    /// as its newest revision has it, whenever that was written. Nobody else may be using the bucket.
    #[arg(long)]
    copied: bool,
}

/// How to print the status.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What to compare.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Put into the index what the bucket proves. Nothing is removed from either.
    #[arg(long)]
    repair: bool,
    /// Only these repositories. [default: all]
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<RepositoryName>,
}

/// Does one of them.
pub(super) fn run(command: Command, loaded: &Loaded) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Take(how) => runtime.block_on(take(&loaded.config, &how)),
        Command::Rebuild(how) => runtime.block_on(rebuild(&loaded.config, &how)),
        Command::Status(status) => runtime.block_on(print_status(&loaded.config, &status)),
        Command::Verify(what) => runtime.block_on(compare(&loaded.config, what)),
    }
}

/// What goes wrong in between is a warning of the log; that a new epoch has to be waited for is news from `epoch`.
fn log() -> Result<Log, Failure> {
    Ok(telemetry::init(telemetry::Format::Text, "warn,berth::epoch=info").map_err(io::Error::other)?)
}

async fn take(config: &Config, how: &Take) -> Result<(), Failure> {
    let _log = log()?;
    let takeover = Takeover::open(config).await?;
    let owner = match takeover.standing().await? {
        Standing::Ours(lease) => {
            let epoch = lease.epoch;
            return Err(Failure::Refused(format!(
                "this index is the bucket's own already (epoch {epoch}); `berth index rebuild` replaces it all the same"
            )));
        }
        Standing::Fresh => {
            return Err(Failure::Refused(
                "the bucket names no index yet; `berth serve` begins with this one".to_owned(),
            ));
        }
        Standing::Others(epoch, record) => {
            format!("another index owns this bucket: {} (epoch {epoch})", record.identity)
        }
        Standing::Replaced(epoch, _) => {
            format!("the index that owns this bucket was restarted or replaced by this one (epoch {epoch})")
        }
        Standing::Unserved(epoch) => format!("this index owns the bucket, and was emptied (epoch {epoch})"),
    };
    print(format!("{owner}\n").as_bytes())?;
    if !how.yes {
        let timing = config.index.lease.as_secs_f64() * 2.0
            + config.index.write_deadline.as_secs_f64()
            + config.index.margin.as_secs_f64();
        let told = format!(
            "with --yes a new epoch begins with the configured index, empty, in {timing:.0} s. Servers with this index fill it from\n\
             the bucket while they serve, and lose uploads in progress. Servers with the other index serve pulls from the bucket\n\
             from then on, and answer pushes with 503, until they are given this one.\n"
        );
        print(told.as_bytes())?;
        return Err(Failure::Argument("nothing was done: add --yes to do it".to_owned()));
    }
    let epoch = takeover.begin().await?;
    print(format!("this index owns the bucket now (epoch {epoch}); servers fill it while they serve\n").as_bytes())
}

/// The progress and what dangles go to standard error, the sum to standard output.
async fn rebuild(config: &Config, how: &Rebuild) -> Result<(), Failure> {
    let _log = log()?;
    let takeover = Takeover::open(config).await?;
    takeover.begin().await?;
    let registry = takeover.into_registry().await?;
    if how.copied {
        let count = reconcile::restamp(&registry).await?;
        let _ = writeln!(
            io::stderr(),
            "{count} tags, accounts and rules written anew, because the copy has lost their times"
        );
    }
    let walked = reconcile::walk(&registry, |so_far| {
        let Walked { repositories, adopted: Adopted { links, manifests, tags, .. }, .. } = so_far.walked;
        let last = so_far.last.as_ref().map(ToString::to_string).unwrap_or_default();
        // Nobody may be listening; the rebuild goes on.
        let _ = writeln!(
            io::stderr(),
            "{repositories} repositories, up to {last} ({links} links, {manifests} manifests, {tags} tags)"
        );
    })
    .await?;
    let Walked { repositories, adopted: Adopted { links, manifests, tags, dangling }, roster } = walked;
    let AdoptedRoster { accounts, rules } = roster;
    let sum = format!(
        "repositories {repositories}\nlinks {links}\nmanifests {manifests}\ntags {tags}\ndangling {dangling}\naccounts {accounts}\nrules {rules}\n"
    );
    print(sum.as_bytes())?;
    if dangling > 0 { Err(Failure::Dangling(dangling)) } else { Ok(()) }
}

/// Each disagreement is printed as it is found.
async fn compare(config: &Config, what: Verify) -> Result<(), Failure> {
    let _log = log()?;
    let repair = if what.repair { Repair::Index } else { Repair::Nothing };
    let registry = app::open_existing(config).await?;
    let mut printed = Ok(());
    let verified = verify::verify(&registry, what.repositories, repair, |disagreement, is_mended| {
        let how = match (repair, is_mended) {
            (_, true) => "mended: ",
            (Repair::Index, false) => "not mended: ",
            (Repair::Nothing, false) => "",
        };
        if printed.is_ok() {
            printed = print(format!("{how}{disagreement}\n").as_bytes());
        }
    })
    .await?;
    printed?;
    let Verified { repositories, found, left } = verified;
    print(format!("repositories {repositories}\ndisagreements {found}\nleft {left}\n").as_bytes())?;
    if left > 0 { Err(Failure::Disagree(left)) } else { Ok(()) }
}

async fn print_status(config: &Config, status: &Status) -> Result<(), Failure> {
    let inspector = app::open_inspector(config).await?;
    let counts = inspector.counts().await?;
    let cost = inspector.reconciliation(config.tags.history.get() as usize).await?;
    if status.json {
        let all = json!({ "index": inspector.state(), "counts": counts, "reconciliation": cost });
        return print(format!("{all:#}\n").as_bytes());
    }
    let mut text = describe(inspector.state());
    if let Some(Counts { repositories, uploads, intents, attempts, trash, trims, accounts, rules }) = counts {
        let _ = write!(
            text,
            "repositories {repositories}\nuploads {uploads}\nintents {intents}\nattempts {attempts}\ntrash {trash}\ntrims {trims}\naccounts {accounts}\nrules {rules}\n"
        );
    }
    text.push_str(&price(&cost));
    print(text.as_bytes())
}

/// What a reconciliation would cost, as lines.
fn price(cost: &Cost) -> String {
    let Cost { lists, gets, heads, dollars, seconds, read_seconds, .. } = cost;
    let counted = match cost.counted {
        Counted::Index => "counted in the index".to_owned(),
        Counted::Bucket { objects } => format!("counted by listing {objects} objects, as no index is believed"),
        Counted::BeginningOfBucket { objects } => {
            format!(
                "AT LEAST, for the first {objects} objects that were listed, as no index is believed; there are more"
            )
        }
    };
    format!(
        "filling an index from this bucket ({counted}):\n  requests {} ({lists} LIST, {gets} GET, {heads} HEAD)\n  \
         minutes {:.1} (a read takes {:.1} ms now), and what the index takes\n  dollars {dollars:.4} (list price of S3 Standard)\n",
        lists + gets + heads,
        seconds / 60.0,
        read_seconds * 1000.0,
    )
}

/// Which index was found, as lines.
pub(super) fn describe(state: &IndexState) -> String {
    match state {
        IndexState::Believed { epoch, identity, shards, since, settled } => {
            let settled = if *settled { "yes" } else { "no, it is still being filled from the bucket" };
            format!(
                "index: the bucket's own\nepoch {epoch} since {}\nidentity {identity}\nshards {shards}\nsettled {settled}\n",
                when(*since)
            )
        }
        IndexState::Other { epoch, identity } => {
            format!(
                "index: not the bucket's own, which is {identity} (epoch {epoch}); nothing that this one says counts\n"
            )
        }
        IndexState::Unserved { epoch } => {
            format!("index: empty, though the bucket names it (epoch {epoch}); `berth index take` begins a new epoch\n")
        }
        IndexState::Unclaimed => "index: the bucket has never named one\n".to_owned(),
        IndexState::Missing => "index: there is none; `berth index rebuild` makes one\n".to_owned(),
        IndexState::Unreachable { why } => format!("index: not reachable ({why})\n"),
    }
}
