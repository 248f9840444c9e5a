//! Real Redis servers that belong together: a master with replicas and Sentinels, and a cluster. Each fleet has an
//! address of this machine to itself, so that its ports are known beforehand.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Duration};

use redis::{aio::MultiplexedConnection, cmd};

use crate::{berth::own_address, redis_server::RedisServer};

/// What the Sentinels of a fleet call its master.
pub(crate) const SERVICE: &str = "registry";

/// A master, two replicas of it, and three Sentinels, which replace a master that was away for half a second.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) servers: Vec<RedisServer>,
    pub(crate) sentinels: Vec<RedisServer>,
    host: String,
}

/// Three masters, which share the slots, and a replica of each.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The masters first.
    pub(crate) nodes: Vec<RedisServer>,
    host: String,
}

/// Waits until something is so.
pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A line of `INFO`, or what stands for it while nobody answers.
async fn info(connection: &mut MultiplexedConnection, name: &str) -> String {
    let info: redis::RedisResult<redis::InfoDict> = cmd("INFO").query_async(connection).await;
    info.ok().and_then(|info| info.get(name)).unwrap_or_default()
}

/// What a server is now, `master` or `slave`. By a connection of its own: who becomes another ends those it has.
pub(crate) async fn role(server: &RedisServer) -> String {
    info(&mut server.operator().await, "role").await
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Servers with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let host = own_address().to_string();
        let servers = (0..3).map(|place| {
            let replicates: &[&str] = if place == 0 { &[] } else { &["--replicaof", &host, "7000"] };
            let own = ["--repl-diskless-sync-delay", "0", "--replica-announce-ip", &host];
            RedisServer::stopped(&host, 7000 + place, &[&own[..], replicates, arguments].concat())
        });
        let servers: Vec<RedisServer> = servers.collect();
        // A Sentinel alone would wait for the others to introduce themselves.
        let others = |own: u16| (7100..7103).filter(move |port| *port != own);
        let sentinels = (7100..7103).map(|port| {
            let known =
                others(port).map(|other| format!("sentinel known-sentinel {SERVICE} {host} {other} {other:040x}"));
            sentinel(&host, port, (&host, 7000), &known.collect::<Vec<_>>())
        });
        let sentinels = sentinels.collect();
        let mut fleet = Self { servers, sentinels, host };
        for server in fleet.servers.iter_mut().chain(&mut fleet.sentinels) {
            server.restart().await;
        }
        until(async || fleet.follow(0).await).await;
        for sentinel in &fleet.sentinels {
            fleet.knows_replicas(sentinel).await;
        }
        fleet
    }

    pub(crate) fn url(&self) -> String {
        let Self { host, .. } = self;
        format!("redis-sentinel://{host}:7100,{host}:7101,{host}:7102/{SERVICE}")
    }

    /// Whether one server is a master, and the others follow it.
    pub(crate) async fn follow(&self, master: usize) -> bool {
        for (place, server) in self.servers.iter().enumerate() {
            let mut operator = server.operator().await;
            let is_right = match place == master {
                true => info(&mut operator, "role").await == "master",
                false => {
                    info(&mut operator, "master_link_status").await == "up"
                        && info(&mut operator, "master_port").await == self.servers[master].port().to_string()
                }
            };
            if !is_right {
                return false;
            }
        }
        true
    }

    /// Waits until a Sentinel could replace the master: until then it knows nobody to take its place.
    pub(crate) async fn knows_replicas(&self, sentinel: &RedisServer) {
        let mut operator = sentinel.operator().await;
        until(async || {
            let line = info(&mut operator, "master0").await;
            line.contains("status=ok") && line.contains("slaves=2,sentinels=3")
        })
        .await;
    }

    /// The place of the running server that is this index.
    pub(crate) async fn place_of(&self, identity: &str, running: &[usize]) -> usize {
        for place in running {
            if identity.starts_with(&info(&mut self.servers[*place].operator().await, "run_id").await) {
                return *place;
            }
        }
        panic!("none of {running:?} is {identity}");
    }
}

/// A Sentinel that watches over a server, with further lines in its configuration; not started yet.
pub(crate) fn sentinel(host: &str, port: u16, (at, master): (&str, u16), extra: &[String]) -> RedisServer {
    let own = [
        format!("sentinel myid {port:040x}"),
        format!("sentinel announce-ip {host}"),
        format!("sentinel monitor {SERVICE} {at} {master} 2"),
        format!("sentinel down-after-milliseconds {SERVICE} 500"),
        format!("sentinel failover-timeout {SERVICE} 2000"),
    ];
    let server = RedisServer::stopped(host, port, &[]);
    let config = server.directory().join("sentinel.conf");
    fs::write(&config, [&own[..], extra].concat().join("\n") + "\n").unwrap();
    server.into_sentinel(&config)
}

/// The id of a cluster's node.
fn id(place: usize) -> String {
    format!("{:040x}", place + 1)
}

/// The slots of a master, first and last.
const RANGES: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(&own_address().to_string(), &[]).await
    }

    /// On this address, with further arguments.
    pub(crate) async fn start_with(host: &str, arguments: &[&str]) -> Self {
        let mut nodes: Vec<RedisServer> = (0..6).map(|place| node(host, place, arguments)).collect();
        for (place, server) in nodes.iter_mut().enumerate() {
            // As if they had met before.
            let line = |other: usize| {
                let (port, bus) = (client_port(other, arguments), 17000 + other);
                let myself = if other == place { "myself," } else { "" };
                let role = match other.checked_sub(3) {
                    None => {
                        let (first, last) = RANGES[other];
                        format!("{myself}master - 0 0 {} connected {first}-{last}", other + 1)
                    }
                    Some(master) => format!("{myself}slave {} 0 0 {} connected", id(master), master + 1),
                };
                format!("{} {host}:{port}@{bus} {role}\n", id(other))
            };
            let lines: String = (0..6).map(line).collect();
            fs::write(server.directory().join("nodes.conf"), lines + "vars currentEpoch 3 lastVoteEpoch 0\n").unwrap();
            server.restart().await;
        }
        let fleet = Self { nodes, host: host.to_owned() };
        fleet.settled().await;
        fleet
    }

    pub(crate) fn url(&self) -> String {
        let nodes: Vec<String> = (7000..7006).map(|port| format!("{}:{port}", self.host)).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// Waits until all nodes take requests and all replicas follow their masters.
    pub(crate) async fn settled(&self) {
        for server in &self.nodes {
            let mut operator = server.operator().await;
            until(async || cluster_info(&mut operator).await.contains("cluster_state:ok")).await;
            until(async || {
                info(&mut operator, "role").await == "master" || info(&mut operator, "master_link_status").await == "up"
            })
            .await;
        }
    }

    /// One more master, without slots, that all others know.
    pub(crate) async fn add_master(&mut self) -> usize {
        let place = self.nodes.len();
        let mut server = node(&self.host, place, &[]);
        let line =
            format!("{} {}:{}@{} myself,master - 0 0 9 connected\n", id(place), self.host, 7000 + place, 17000 + place);
        fs::write(server.directory().join("nodes.conf"), line + "vars currentEpoch 9 lastVoteEpoch 0\n").unwrap();
        server.restart().await;
        let mut operator = server.operator().await;
        let mut meet = cmd("CLUSTER");
        meet.arg("MEET").arg(&self.host).arg(7000).arg(17000).exec_async(&mut operator).await.unwrap();
        until(async || cluster_info(&mut operator).await.contains("cluster_state:ok")).await;
        self.nodes.push(server);
        for server in &self.nodes {
            let mut operator = server.operator().await;
            let known = format!("cluster_known_nodes:{}", self.nodes.len());
            until(async || cluster_info(&mut operator).await.contains(&known)).await;
        }
        place
    }

    /// The place of the master that serves a slot, by what a node says.
    pub(crate) async fn owner(&self, slot: u16, by: usize) -> usize {
        let slots: Vec<Vec<redis::Value>> =
            cmd("CLUSTER").arg("SLOTS").query_async(&mut self.nodes[by].operator().await).await.unwrap();
        let number = |value: &redis::Value| redis::from_redis_value::<u16>(value.clone()).unwrap();
        let range = slots.iter().find(|range| (number(&range[0])..=number(&range[1])).contains(&slot)).unwrap();
        let redis::Value::Array(node) = &range[2] else { panic!("{range:?}") };
        usize::from(number(&node[1]) - 7000)
    }

    /// Begins to move a slot, which can be used from then on by who asks for that.
    pub(crate) async fn begin_move(&self, slot: u16, from: usize, to: usize) {
        self.set_slot(to, slot, &["IMPORTING", &id(from)]).await;
        self.set_slot(from, slot, &["MIGRATING", &id(to)]).await;
    }

    /// The keys of a slot that a node has, at most so many.
    pub(crate) async fn keys(&self, place: usize, slot: u16, count: usize) -> Vec<String> {
        let mut keys = cmd("CLUSTER");
        keys.arg("GETKEYSINSLOT").arg(slot).arg(count);
        let mut keys: Vec<String> = keys.query_async(&mut self.nodes[place].operator().await).await.unwrap();
        keys.sort();
        keys
    }

    pub(crate) async fn move_keys(&self, keys: &[String], from: usize, to: usize) {
        let mut migrate = cmd("MIGRATE");
        migrate.arg(&self.host).arg(7000 + to).arg("").arg(0).arg(5000).arg("KEYS").arg(keys);
        migrate.exec_async(&mut self.nodes[from].operator().await).await.unwrap();
    }

    /// Ends a move, on the node that has the slot now, on the one that had it, and on the others.
    pub(crate) async fn end_move(&self, slot: u16, from: usize, to: usize) {
        let others = (0..self.nodes.len()).filter(|place| *place != from && *place != to && !(3..6).contains(place));
        for place in [to, from].into_iter().chain(others) {
            self.set_slot(place, slot, &["NODE", &id(to)]).await;
        }
    }

    /// Moves what is left of a slot that is being moved, and ends that.
    pub(crate) async fn finish_move(&self, slot: u16, from: usize, to: usize) {
        loop {
            let keys = self.keys(from, slot, 10).await;
            if keys.is_empty() {
                break;
            }
            self.move_keys(&keys, from, to).await;
        }
        self.end_move(slot, from, to).await;
    }

    /// All of it, as `redis-cli --cluster reshard` does it.
    pub(crate) async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to).await;
        self.finish_move(slot, from, to).await;
    }

    async fn set_slot(&self, place: usize, slot: u16, what: &[&str]) {
        let mut set = cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg(what);
        set.exec_async(&mut self.nodes[place].operator().await).await.unwrap();
    }
}

fn node(host: &str, place: usize, arguments: &[&str]) -> RedisServer {
    let bus = (17000 + place).to_string();
    let port = client_port(place, arguments).to_string();
    let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-announce-ip", host];
    let quick = ["--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"];
    let tls = ["--tls-port", &port, "--tls-cluster", "yes", "--tls-replication", "yes"];
    let tls = if is_by_tls(arguments) { &tls[..] } else { &[] };
    RedisServer::stopped(host, 7000 + place as u16, &[&own[..], &quick, tls, arguments].concat())
}

fn is_by_tls(arguments: &[&str]) -> bool {
    arguments.contains(&"--tls-cert-file")
}

/// The port that the other nodes know: 7000 and on, or 8000 and on by TLS.
fn client_port(place: usize, arguments: &[&str]) -> usize {
    place + if is_by_tls(arguments) { 8000 } else { 7000 }
}

async fn cluster_info(connection: &mut MultiplexedConnection) -> String {
    // One that was just started refuses while it reads what it has kept.
    cmd("CLUSTER").arg("INFO").query_async(connection).await.unwrap_or_default()
}

/// The slot of a shard's keys, by what a server says.
pub(crate) async fn slot_of(server: &RedisServer, shard: u16) -> u16 {
    let mut slot = cmd("CLUSTER");
    slot.arg("KEYSLOT").arg(format!("berth{{s{shard:02}}}"));
    slot.query_async(&mut server.operator().await).await.unwrap()
}
