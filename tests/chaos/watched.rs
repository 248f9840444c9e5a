//! A master with two replicas and three Sentinels, and what goes wrong with them: Sentinels replace a master that is
//! away, and one that stood still says for seconds that it is a master still.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use redis::cmd;

use crate::{
    dice::Dice,
    faults::Spans,
    redis_fleet::{SERVICE, Sentinels, role, until},
    redis_server::RedisServer,
    servers::{AWAY, KEEPS, RedisFault, cut, pause, restart, stop},
};

/// How long a master may be away before it is replaced, in milliseconds: longer than a busy machine hesitates.
const PATIENCE: u64 = 2000;

/// The fleet.
pub(crate) struct Watched {
    fleet: Sentinels,
}

impl Watched {
    pub(crate) async fn start() -> Self {
        let fleet = Sentinels::start_with(&KEEPS).await;
        for sentinel in &fleet.sentinels {
            let mut set = cmd("SENTINEL");
            set.arg("SET").arg(SERVICE).arg("down-after-milliseconds").arg(PATIENCE);
            set.exec_async(&mut sentinel.operator().await).await.unwrap();
        }
        Self { fleet }
    }

    pub(crate) fn url(&self) -> String {
        self.fleet.url()
    }

    /// Waits until all Sentinels name the same master, which is one, and the others follow it.
    pub(crate) async fn agreed(&self) {
        until(async || {
            let master = self.master().await;
            for number in 0..self.fleet.sentinels.len() {
                if self.master_by(number).await != master {
                    return false;
                }
            }
            self.fleet.follow(master).await
        })
        .await;
        for sentinel in &self.fleet.sentinels {
            self.fleet.knows_replicas(sentinel).await;
        }
    }

    /// The place of the master, by what a Sentinel says.
    async fn master_by(&self, sentinel: usize) -> usize {
        let mut ask = cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(SERVICE);
        let mut operator = self.fleet.sentinels[sentinel].operator().await;
        let (_, port): (String, u16) = ask.query_async(&mut operator).await.unwrap();
        usize::from(port - self.fleet.servers[0].port())
    }

    async fn master(&self) -> usize {
        self.master_by(0).await
    }

    pub(crate) async fn suffer(&mut self, fault: RedisFault, dice: &mut Dice, spans: Spans) {
        let place = self.master().await;
        let master = &self.fleet.servers[place];
        match fault {
            RedisFault::KilledAndKept => self.kill(place, dice, false).await,
            RedisFault::KilledAndEmptied => self.kill(place, dice, true).await,
            RedisFault::Flushed => master.flush().await,
            RedisFault::Stopped => stop(master, dice, spans).await,
            RedisFault::Paused => pause(master, dice, spans).await,
            RedisFault::Cut => cut(master).await,
            RedisFault::FailedOver => self.fail_over(place, dice, spans).await,
            RedisFault::Switched => {
                let sentinel = dice.pick(&self.fleet.sentinels);
                // One that has just seen another fail-over refuses.
                cmd("SENTINEL").arg("FAILOVER").arg(SERVICE).exec_async(&mut sentinel.operator().await).await.ok();
            }
            RedisFault::WatcherKilled => {
                let sentinel = dice.index(self.fleet.sentinels.len());
                self.fleet.sentinels[sentinel].stop();
                tokio::time::sleep(dice.span(AWAY)).await;
                self.fleet.sentinels[sentinel].restart().await;
            }
            other => panic!("{other:?} happens to no master that is watched"),
        }
    }

    /// Kills the master. It comes back as what Sentinels say that it is, as one whose configuration they have written.
    async fn kill(&mut self, place: usize, dice: &mut Dice, emptied: bool) {
        let server = &mut self.fleet.servers[place];
        server.stop();
        tokio::time::sleep(dice.span(AWAY)).await;
        if emptied {
            server.forget();
        }
        restart(server).await;
        let (master, server) = (self.master().await, &self.fleet.servers[place]);
        let to = &self.fleet.servers[master];
        match master == place {
            true => follow(server, "NO", "ONE").await,
            false => follow(server, to.host(), &to.port().to_string()).await,
        }
    }

    /// The replicas are cut off, and one of them takes the place of the master, which stands still for as long as that
    /// takes, and then believes for a while that it is the master.
    async fn fail_over(&self, place: usize, dice: &mut Dice, spans: Spans) {
        for (other, server) in self.fleet.servers.iter().enumerate() {
            if other != place {
                follow(server, "127.0.0.1", "1").await;
            }
        }
        tokio::time::sleep(dice.span(200..3000)).await;
        self.fleet.servers[place].pause(true);
        tokio::time::sleep(Duration::from_millis(PATIENCE) + dice.span(300..spans.longest_stop())).await;
        self.fleet.servers[place].pause(false);
        let is_master = role(&self.fleet.servers[place]).await == "master";
        // Where nobody took its place they follow it again.
        if is_master && self.master().await == place {
            let (host, port) = (self.fleet.servers[place].host(), self.fleet.servers[place].port().to_string());
            for (other, server) in self.fleet.servers.iter().enumerate() {
                if other != place {
                    follow(server, host, &port).await;
                }
            }
        }
    }
}

/// Has a server follow another one.
async fn follow(server: &RedisServer, host: &str, port: &str) {
    cmd("REPLICAOF").arg(host).arg(port).exec_async(&mut server.operator().await).await.unwrap();
}
