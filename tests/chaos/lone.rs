//! One Redis, and what goes wrong with it: killed, emptied, stopped, and replaced by a replica of itself that had been
//! cut off, while it goes on serving some.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use crate::{
    dice::Dice,
    faults::Spans,
    links::Link,
    redis_server::{self, RedisServer},
    servers::{AWAY, KEEPS, RedisFault, pause, restart, stop},
};

/// The server that is the right one now, and each replica's way to it.
#[derive(Debug)]
pub(crate) struct Lone {
    master: RedisServer,
    links: Vec<Link>,
}

impl Lone {
    pub(crate) async fn start(replicas: usize) -> Self {
        let master = redis_server::start_elsewhere(&KEEPS).await;
        let mut links = Vec::new();
        for _ in 0..replicas {
            links.push(Link::start(master.place()).await);
        }
        Self { master, links }
    }

    pub(crate) fn url(&self, replica: usize) -> String {
        self.links[replica].url()
    }

    /// Lets something go wrong, and mends it.
    pub(crate) async fn suffer(&mut self, fault: RedisFault, dice: &mut Dice, spans: Spans) {
        match fault {
            RedisFault::KilledAndKept => self.kill(dice.span(AWAY), false).await,
            RedisFault::KilledAndEmptied => self.kill(dice.span(AWAY), true).await,
            RedisFault::Flushed => self.master.flush().await,
            RedisFault::Stopped => stop(&self.master, dice, spans).await,
            RedisFault::Paused => pause(&self.master, dice, spans).await,
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
            other => panic!("{other:?} happens to no single server"),
        }
    }

    async fn kill(&mut self, away: Duration, emptied: bool) {
        self.master.stop();
        tokio::time::sleep(away).await;
        if emptied {
            self.master.forget();
        }
        restart(&mut self.master).await;
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
