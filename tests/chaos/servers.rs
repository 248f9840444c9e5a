//! The Redis of a registry, and what goes wrong with it: killed, emptied, stopped, and replaced by a replica of
//! itself that had been cut off, while it goes on serving some.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::redis_server::{self, RedisServer};
use crate::{dice::Dice, faults::Spans, links::Link, weather::Tally};

/// What may happen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RedisFault {
    /// Killed, and started again with what it had written down.
    KilledAndKept,
    /// Killed, and started again with nothing.
    KilledAndEmptied,
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
}

pub(crate) const REDIS_FAULTS: [RedisFault; 9] = [
    RedisFault::KilledAndKept,
    RedisFault::KilledAndEmptied,
    RedisFault::Flushed,
    RedisFault::Stopped,
    RedisFault::Paused,
    RedisFault::Cut,
    RedisFault::Held,
    RedisFault::FailedOver,
    RedisFault::FailedBack,
];

/// It writes down every command, in the kernel's own time.
const KEEPS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// The server that is the right one now, and each replica's way to it.
#[derive(Debug)]
pub(crate) struct Servers {
    master: RedisServer,
    links: Vec<Link>,
    tally: Tally,
}

impl Servers {
    pub(crate) async fn start(replicas: usize, tally: Tally) -> Self {
        let master = redis_server::start_elsewhere(&KEEPS).await;
        let mut links = Vec::new();
        for _ in 0..replicas {
            links.push(Link::start(master.place()).await);
        }
        Self { master, links, tally }
    }

    pub(crate) fn url(&self, replica: usize) -> String {
        self.links[replica].url()
    }

    /// Lets something go wrong, and mends it.
    pub(crate) async fn suffer(&mut self, fault: RedisFault, dice: &mut Dice, spans: Spans) {
        self.tally.add(&format!("redis: {fault:?}").to_lowercase());
        let while_away = dice.span(100..6000);
        match fault {
            RedisFault::KilledAndKept => self.kill(while_away, false).await,
            RedisFault::KilledAndEmptied => self.kill(while_away, true).await,
            RedisFault::Flushed => self.master.flush().await,
            RedisFault::Stopped => {
                self.master.pause(true);
                tokio::time::sleep(dice.span(300..spans.longest_stop())).await;
                self.master.pause(false);
            }
            RedisFault::Paused => {
                let span = dice.range(300..spans.longest_stop());
                let mut operator = self.master.operator().await;
                redis::cmd("CLIENT").arg("PAUSE").arg(span).arg("ALL").exec_async(&mut operator).await.unwrap();
                tokio::time::sleep(Duration::from_millis(span)).await;
            }
            RedisFault::Cut => self.links.iter().for_each(Link::cut),
            RedisFault::Held => {
                let link = dice.index(self.links.len());
                self.links[link].hold(true);
                tokio::time::sleep(dice.span(300..spans.longest_stop())).await;
                self.links[link].hold(false);
            }
            RedisFault::FailedOver => drop(self.fail_over(dice, spans).await),
            RedisFault::FailedBack => {
                let old = self.fail_over(dice, spans).await;
                tokio::time::sleep(dice.span(0..spans.succession() * 2)).await;
                self.replace(old);
            }
        }
    }

    async fn kill(&mut self, away: Duration, emptied: bool) {
        self.master.stop();
        tokio::time::sleep(away).await;
        if emptied {
            self.master.forget();
        }
        self.master.restart().await;
    }

    /// A replica takes the master's place for some, and then for all. Returns the old master, which runs on.
    async fn fail_over(&mut self, dice: &mut Dice, spans: Spans) -> RedisServer {
        let (host, port) = self.master.place();
        let spare = redis_server::start_elsewhere(&KEEPS).await;
        let mut operator = spare.operator().await;
        redis::cmd("REPLICAOF").arg(host.to_string()).arg(port).exec_async(&mut operator).await.unwrap();
        loop {
            let info: String = redis::cmd("INFO").arg("replication").query_async(&mut operator).await.unwrap();
            if info.contains("master_link_status:up") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(dice.span(0..1500)).await;
        // Cut off: it is to follow somebody who isn't there.
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec_async(&mut operator).await.unwrap();
        tokio::time::sleep(dice.span(200..6000)).await;
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut operator).await.unwrap();
        let behind = dice.index(self.links.len());
        for (number, link) in self.links.iter().enumerate() {
            // Most follow at once, and one of them may stay with the old master for a while.
            if number != behind {
                link.point(spare.place());
            }
        }
        tokio::time::sleep(dice.span(0..spans.succession() * 2)).await;
        self.replace(spare)
    }

    /// Sends everybody to another server, which is the right one from now on. Returns the one before.
    fn replace(&mut self, by: RedisServer) -> RedisServer {
        self.links.iter().for_each(|link| link.point(by.place()));
        std::mem::replace(&mut self.master, by)
    }
}
