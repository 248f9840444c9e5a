//! A cluster of three masters and a replica of each, and what goes wrong with it: a replica takes the place of a master
//! that is away, or because its operator says so, and slots go from one master to another while they are in use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Stdio},
};

use redis::cmd;

use crate::{
    berth::own_address,
    dice::Dice,
    faults::Spans,
    redis_fleet::{Cluster, role, until},
    redis_server::RedisServer,
    servers::{AWAY, KEEPS, RedisFault, cut, pause, restart, stop},
    weather::Tally,
};

/// How long a master may be away before it is replaced, in milliseconds: longer than a busy machine hesitates.
const PATIENCE: &str = "2500";

/// What a node knows of the others, which it keeps whatever it loses.
const NODES: &str = "nodes.conf";

/// The cluster.
pub(crate) struct Slotted {
    cluster: Cluster,
}

impl Slotted {
    pub(crate) async fn start() -> Self {
        let arguments = [&KEEPS[..], &["--cluster-node-timeout", PATIENCE]].concat();
        Self { cluster: Cluster::start_with(&own_address().to_string(), &arguments).await }
    }

    pub(crate) fn url(&self) -> String {
        self.cluster.url()
    }

    /// Waits until all nodes take requests, and each that is a replica follows its master.
    pub(crate) async fn agreed(&self) {
        until(async || self.masters().await.len() == 3).await;
        self.cluster.settled().await;
    }

    /// The places of the masters.
    async fn masters(&self) -> Vec<usize> {
        let mut masters = Vec::new();
        for (place, node) in self.cluster.nodes.iter().enumerate() {
            if role(node).await == "master" {
                masters.push(place);
            }
        }
        masters
    }

    pub(crate) async fn suffer(&mut self, fault: RedisFault, dice: &mut Dice, spans: Spans, tally: &Tally) {
        let masters = self.masters().await;
        let place = *dice.pick(&masters);
        let master = &self.cluster.nodes[place];
        match fault {
            RedisFault::KilledAndKept => self.kill(place, dice, false).await,
            RedisFault::KilledAndEmptied => self.kill(place, dice, true).await,
            RedisFault::Flushed => {
                for place in masters {
                    self.cluster.nodes[place].flush().await;
                }
            }
            RedisFault::Stopped => stop(master, dice, spans).await,
            RedisFault::Paused => pause(master, dice, spans).await,
            RedisFault::Cut => {
                for place in masters {
                    cut(&self.cluster.nodes[place]).await;
                }
            }
            RedisFault::Switched => self.switch(&masters, dice).await,
            RedisFault::Resharded => {
                let others: Vec<usize> = masters.into_iter().filter(|other| *other != place).collect();
                self.reshard(place, *dice.pick(&others), dice, tally).await;
            }
            other => panic!("{other:?} happens to no cluster"),
        }
    }

    async fn kill(&mut self, place: usize, dice: &mut Dice, emptied: bool) {
        let node = &mut self.cluster.nodes[place];
        node.stop();
        tokio::time::sleep(dice.span(AWAY)).await;
        if emptied {
            let known = fs::read(node.directory().join(NODES)).unwrap();
            node.forget();
            fs::write(node.directory().join(NODES), known).unwrap();
        }
        restart(node).await;
    }

    /// One of the replicas takes its master's place: asking it, without asking it, or without asking anybody, so that
    /// what the master has done meanwhile is lost.
    async fn switch(&self, masters: &[usize], dice: &mut Dice) {
        let replicas: Vec<usize> = (0..self.cluster.nodes.len()).filter(|place| !masters.contains(place)).collect();
        let replica = &self.cluster.nodes[*dice.pick(&replicas)];
        let mut failover = cmd("CLUSTER");
        failover.arg("FAILOVER").arg(*dice.pick(&[&[][..], &["FORCE"], &["TAKEOVER"]]));
        // It may be a master by now.
        failover.exec_async(&mut replica.operator().await).await.ok();
    }

    /// Moves some of the slots of a master as operators do, and has what breaks off mended as they do.
    async fn reshard(&self, from: usize, to: usize, dice: &mut Dice, tally: &Tally) {
        let (from, to) = (&self.cluster.nodes[from], &self.cluster.nodes[to]);
        let (from_id, to_id, count) = (id(from).await, id(to).await, dice.range(200..1200).to_string());
        let slots = ["--cluster-from", &from_id, "--cluster-to", &to_id, "--cluster-slots", &count, "--cluster-yes"];
        if !redis_cli(from, "reshard", &slots).await {
            tally.add("redis: reshard that broke off");
            redis_cli(from, "fix", &["--cluster-yes"]).await;
        }
    }
}

/// What a node calls itself.
async fn id(node: &RedisServer) -> String {
    cmd("CLUSTER").arg("MYID").query_async(&mut node.operator().await).await.unwrap()
}

/// Has the cluster's own tool do something. Returns whether it was done.
async fn redis_cli(node: &RedisServer, what: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", what, &format!("{}:{}", node.host(), node.port())]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tokio::task::spawn_blocking(move || command.status().unwrap().success()).await.unwrap()
}
