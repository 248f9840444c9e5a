//! The Redis of a registry in one of its set-ups, and what may go wrong with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{ops::Range, time::Duration};

use crate::{
    dice::Dice, faults::Spans, lone::Lone, over::IndexKind, redis_fleet::until, redis_server::RedisServer,
    slotted::Slotted, watched::Watched, weather::Tally,
};

/// What may happen to it. Where there are several masters it happens to one of them, if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisFault {
    /// Killed, and started again with what it had written down.
    KilledAndKept,
    /// Killed, and started again with nothing.
    KilledAndEmptied,
    /// All that there are.
    Flushed,
    /// Its process stands still.
    Stopped,
    /// It takes commands and does none.
    Paused,
    /// Its connections break.
    Cut,
    /// One replica waits for it.
    Held,
    /// A replica of it, which had been cut off for a while, takes its place; it goes on serving some.
    FailedOver,
    /// The same, and later the old one is back in its place.
    FailedBack,
    /// Its operator has a replica of it take its place.
    Switched,
    /// One of those that watch over it is killed, and started again.
    WatcherKilled,
    /// Slots of it go to another master.
    Resharded,
}

impl RedisFault {
    /// What may happen in this set-up.
    pub(crate) fn all(index: IndexKind) -> Vec<Self> {
        use RedisFault::*;
        let everywhere = [KilledAndKept, KilledAndEmptied, Flushed, Stopped, Paused, Cut];
        let own: &[Self] = match index {
            IndexKind::Lone => &[Held, FailedOver, FailedBack],
            IndexKind::Sentinel => &[FailedOver, Switched, WatcherKilled],
            IndexKind::Cluster => &[Switched, Resharded, Resharded],
        };
        [&everywhere, own].concat()
    }
}

/// It writes down every command, in the kernel's own time.
pub(crate) const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// For how long what was killed is away, in milliseconds.
pub(crate) const AWAY: Range<u64> = 100..6000;

/// How long servers that belong together may take to agree, after one thing has gone wrong, before the next does.
const AGREEMENT: Duration = Duration::from_secs(60);

/// All servers of a registry.
pub(crate) enum Servers {
    Lone(Lone),
    Watched(Watched),
    Slotted(Slotted),
}

impl Servers {
    /// For so many replicas.
    pub(crate) async fn start(index: IndexKind, replicas: usize) -> Self {
        match index {
            IndexKind::Lone => Self::Lone(Lone::start(replicas).await),
            IndexKind::Sentinel => Self::Watched(Watched::start().await),
            IndexKind::Cluster => Self::Slotted(Slotted::start().await),
        }
    }

    /// What a replica is to connect to.
    pub(crate) fn url(&self, replica: usize) -> String {
        match self {
            Self::Lone(lone) => lone.url(replica),
            Self::Watched(watched) => watched.url(),
            Self::Slotted(slotted) => slotted.url(),
        }
    }

    /// Lets something go wrong, and mends it. Nothing happens where the servers don't agree yet after what went wrong
    /// before: then it would be an operator who breaks them.
    pub(crate) async fn suffer(&mut self, fault: RedisFault, dice: &mut Dice, spans: Spans, tally: &Tally) {
        let agreed = match self {
            Self::Lone(_) => true,
            Self::Watched(watched) => tokio::time::timeout(AGREEMENT, watched.agreed()).await.is_ok(),
            Self::Slotted(slotted) => tokio::time::timeout(AGREEMENT, slotted.agreed()).await.is_ok(),
        };
        if !agreed {
            return tally.add("redis: not agreed yet");
        }
        tally.add(&format!("redis: {fault:?}").to_lowercase());
        match self {
            Self::Lone(lone) => lone.suffer(fault, dice, spans).await,
            Self::Watched(watched) => watched.suffer(fault, dice, spans).await,
            Self::Slotted(slotted) => slotted.suffer(fault, dice, spans, tally).await,
        }
    }
}

/// A server that was killed starts again, and has read what it kept: until then it refuses its operator too.
pub(crate) async fn restart(server: &mut RedisServer) {
    server.restart().await;
    let mut operator = server.operator().await;
    until(async || redis::cmd("PING").exec_async(&mut operator).await.is_ok()).await;
}

/// A server stands still for a while.
pub(crate) async fn stop(server: &RedisServer, dice: &mut Dice, spans: Spans) {
    server.pause(true);
    tokio::time::sleep(dice.span(300..spans.longest_stop())).await;
    server.pause(false);
}

/// A server does no command for a while.
pub(crate) async fn pause(server: &RedisServer, dice: &mut Dice, spans: Spans) {
    let span = dice.range(300..spans.longest_stop());
    let mut operator = server.operator().await;
    redis::cmd("CLIENT").arg("PAUSE").arg(span).arg("ALL").exec_async(&mut operator).await.unwrap();
    tokio::time::sleep(Duration::from_millis(span)).await;
}

/// All connections of clients break.
pub(crate) async fn cut(server: &RedisServer) {
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").exec_async(&mut server.operator().await).await.unwrap();
}
