//! One connection to the index: to one server, or to each master of a cluster.
//!
//! It is never restored behind the caller's back: what was learnt of the servers holds as long as all of its
//! parts stand, so that another server can't take one's place unseen. A batch is sent again only where a
//! server has answered that it did nothing; where none has answered, nobody knows.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::{
    ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{sync::OnceCell, time::Instant};

use super::{
    super::{Ask, Batch, Index, IndexError, Outcome, Shard, wake::Topics},
    RESPONSE_TIMEOUT,
    access::{Access, Address, written},
    cluster::{Redirect, Routes, View},
    failure::{Failure, of_server, silent, why_not_read},
    judge::{self, Expected},
    request::{self, Requests, topic_of},
};

/// How long a call waits before it asks again about a slot that is just being moved.
const PAUSE: Duration = Duration::from_millis(20);

/// How many answers that send a call elsewhere are followed at once. Two are what may be, while a slot is moved:
/// more is a cluster whose nodes don't agree.
const HOPS: usize = 3;

/// One connection to an index.
pub(super) struct Connection {
    requests: Arc<Requests>,
    expected: Expected,
    /// At least one; those of a cluster in the order of `routes`.
    links: Vec<Link>,
    /// Who serves which shard, where that is a question.
    routes: Option<Routes>,
    wakes: Arc<Wakes>,
    subscribed: OnceCell<()>,
}

/// A connection to one server.
pub(super) struct Link {
    address: Address,
    connection: MultiplexedConnection,
}

/// What the servers tell at any time: notifications, and the end of the connection to one of them.
#[derive(Default)]
pub(super) struct Wakes {
    topics: Topics,
    ended: AtomicBool,
}

/// Where a call is sent.
#[derive(Clone, Copy)]
struct Turn {
    node: usize,
    /// Whether the node is about to get the slot, and must be told that we know.
    asking: bool,
}

impl Link {
    /// Connects to a server, of which nothing is known yet.
    pub(super) async fn open(access: &Access, wakes: &Arc<Wakes>) -> RedisResult<Self> {
        let hears = Arc::clone(wakes);
        let connection = access.open_hearing(move |push| hears.hear(&push)).await?;
        Ok(Self { address: access.address(), connection })
    }

    /// Who serves which slots, as this node sees it.
    pub(super) async fn view(&self) -> Result<View, IndexError> {
        let mut asks = redis::pipe();
        asks.cmd("CLUSTER").arg("SLOTS");
        View::read(self.send(&asks).await.map_err(why_not_read)?, &self.address)
    }

    /// The server's address as people write it.
    pub(super) fn name(&self) -> String {
        written(&self.address)
    }

    /// Sends commands with nothing of anybody else's between them. All answers, or the first that is an error.
    async fn answers(&self, request: &Pipeline) -> RedisResult<Vec<Value>> {
        let mut connection = self.connection.clone();
        let answers = connection.req_packed_commands(request, 0, request.len()).await?;
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// The same, for the last answer.
    async fn send(&self, request: &Pipeline) -> RedisResult<Value> {
        Ok(self.answers(request).await?.pop().unwrap_or(Value::Nil))
    }

    async fn send_asking(&self, request: &Pipeline) -> RedisResult<Value> {
        let mut whole = Pipeline::with_capacity(request.len() + 1);
        whole.cmd("ASKING");
        for command in request.cmd_iter() {
            whole.add_command(command.clone());
        }
        self.send(&whole).await
    }
}

impl Wakes {
    fn hear(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.end(),
            PushKind::Message => {
                // The channel and what was said on it.
                if let Some(Value::BulkString(name)) = push.data.get(1) {
                    self.topics.notify(&String::from_utf8_lossy(name));
                }
            }
            _ => {}
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Connection {
    /// To one server.
    pub(super) fn to_server(requests: Arc<Requests>, expected: Expected, link: Link, wakes: Arc<Wakes>) -> Self {
        Self { requests, expected, links: vec![link], routes: None, wakes, subscribed: OnceCell::new() }
    }

    /// To the masters of a cluster, in the order of `routes`.
    pub(super) fn to_cluster(requests: Arc<Requests>, links: Vec<Link>, routes: Routes, wakes: Arc<Wakes>) -> Self {
        let (expected, routes) = (Expected::Node, Some(routes));
        Self { requests, expected, links, routes, wakes, subscribed: OnceCell::new() }
    }

    /// Makes all servers know the scripts, so that the first call of each is not told first that they aren't there.
    pub(super) async fn load_scripts(&self) -> Result<(), IndexError> {
        let load = self.requests.load();
        try_join_all(self.links.iter().map(|link| self.reading(link.send(&load)))).await?;
        Ok(())
    }

    /// Makes a call about a shard, by whoever serves it.
    async fn call(&self, shard: Shard, request: &Pipeline) -> Result<Value, Failure> {
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let mut turn = self.turn_of(shard)?;
        let mut hops = 0;
        loop {
            let error = match self.send(turn, request, deadline).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            // What is sent again from here on was not done: the server has said so.
            let ErrorKind::Server(kind) = error.kind() else { return Err(Failure::Redis(error)) };
            turn = match kind {
                ServerErrorKind::NoScript => self.load_again(turn, deadline).await?,
                ServerErrorKind::Moved | ServerErrorKind::Ask => self.redirected(turn, &error)?,
                ServerErrorKind::TryAgain if self.routes.is_some() => self.turn_of(shard)?,
                ServerErrorKind::ReadOnly => {
                    // It is a replica now. Nothing that it says counts any more.
                    self.wakes.end();
                    return Err(Failure::Redis(error));
                }
                _ => return Err(Failure::Redis(error)),
            };
            hops += 1;
            if kind == ServerErrorKind::TryAgain || hops >= HOPS {
                pause(deadline, &error).await?;
            }
        }
    }

    async fn send(&self, turn: Turn, request: &Pipeline, deadline: Instant) -> Result<RedisResult<Value>, Failure> {
        self.check_open()?;
        let link = &self.links[turn.node];
        let sending = async { if turn.asking { link.send_asking(request).await } else { link.send(request).await } };
        let silent = |_| Failure::Known(silent(RESPONSE_TIMEOUT));
        tokio::time::timeout_at(deadline, sending).await.map_err(silent)
    }

    fn turn_of(&self, shard: Shard) -> Result<Turn, Failure> {
        let node = self.routes.as_ref().map_or(Ok(0), |routes| routes.node_of(shard)).map_err(Failure::Known)?;
        Ok(Turn { node, asking: false })
    }

    /// Somebody made the server forget the scripts.
    async fn load_again(&self, turn: Turn, deadline: Instant) -> Result<Turn, Failure> {
        let loading = Turn { asking: false, ..turn };
        self.send(loading, &self.requests.load(), deadline).await?.map_err(Failure::Redis)?;
        Ok(turn)
    }

    /// Whom a node sends us to. A node that this connection doesn't know can't be believed by it: it belongs to
    /// another identity, which only a new connection has.
    fn redirected(&self, turn: Turn, error: &RedisError) -> Result<Turn, Failure> {
        let answering = &self.links[turn.node].address;
        let (Some(routes), Some(redirect)) = (&self.routes, Redirect::read(error, answering)) else {
            return Err(Failure::Redis(error.clone()));
        };
        let asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
        let Some(node) = routes.find(&redirect.to) else {
            if !asking {
                self.wakes.end();
            }
            let (slot, to) = (redirect.slot, written(&redirect.to));
            let text = format!("slot {slot} of the cluster goes to {to}, which was no master when it was connected to");
            return Err(Failure::Known(IndexError::Unreachable(text)));
        };
        if !asking {
            routes.moved(redirect.slot, node);
        }
        Ok(Turn { node, asking })
    }

    /// Runs a call that changes no facts and is about no shard.
    async fn reading<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, IndexError> {
        self.check_open().map_err(Failure::of_reading)?;
        match tokio::time::timeout(RESPONSE_TIMEOUT, call).await {
            Ok(result) => result.map_err(why_not_read),
            Err(_) => Err(silent(RESPONSE_TIMEOUT)),
        }
    }

    /// Fails where the connection has ended, so that nobody has to wonder what became of a batch that was
    /// never sent.
    fn check_open(&self) -> Result<(), Failure> {
        if self.wakes.ended.load(Ordering::Acquire) {
            return Err(Failure::Known(IndexError::Unreachable("the connection was lost".to_owned())));
        }
        Ok(())
    }

    /// The server by which notifications go: each node of a cluster passes them on to all others.
    fn herald(&self) -> MultiplexedConnection {
        self.links[0].connection.clone()
    }

    /// Asks for notifications, once for the life of the connection. Where that fails the waits just end by
    /// their patience; the next one tries again.
    async fn subscribe(&self) {
        let subscribing = self.subscribed.get_or_try_init(|| {
            let mut herald = self.herald();
            self.reading(async move { herald.subscribe(self.requests.channel()).await })
        });
        if let Err(error) = subscribing.await {
            tracing::debug!(%error, "notifications could not be subscribed to");
        }
    }

    /// Says so where a restart of a server will lose everything. Managed services and restricted users don't
    /// let anybody ask (`CONFIG`); then nothing is known, and nothing said.
    pub(super) async fn warn_of_loss(&self) {
        let question = judge::question_of_disk();
        for link in &self.links {
            if let Ok(answers) = self.reading(link.answers(&question)).await
                && judge::keeps_nothing(answers)
            {
                tracing::warn!(
                    server = link.name(),
                    "Redis keeps nothing on its disk (save \"\", appendonly no): after a restart the index is filled from the bucket again, and where all replicas restart with it that takes `berth index take`"
                );
                return;
            }
        }
    }
}

/// Waits until the same may be tried again, if there is time for that: half of it is kept for the answer, as one that
/// doesn't come would make the whole server suspect.
async fn pause(deadline: Instant, error: &RedisError) -> Result<(), Failure> {
    if Instant::now() + PAUSE + RESPONSE_TIMEOUT / 2 >= deadline {
        return Err(Failure::Known(IndexError::Unreachable(error.to_string())));
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.links.iter().map(Link::name).collect();
        write!(formatter, "Redis({})", servers.join(" "))
    }
}

#[async_trait]
impl Index for Connection {
    /// Of each server by its process and the history of its facts: of a cluster, of all masters that have slots.
    /// Which of them has which slot is no part of it, as a slot that is moved loses nothing on the way.
    async fn identity(&self) -> Result<String, IndexError> {
        let question = judge::question();
        let each = try_join_all(self.links.iter().map(async |link| {
            let identity = self.reading(link.answers(&question)).await;
            let identity = identity.and_then(|answers| judge::identity(answers, self.expected));
            match self.expected {
                Expected::Single => identity,
                Expected::Named | Expected::Node => identity.map_err(|error| of_server(&link.name(), error)),
            }
        }));
        let mut each = each.await?;
        each.sort_unstable();
        Ok(each.join(", "))
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.call(shard, &self.requests.get(shard, asks)).await.map_err(Failure::of_reading)?;
        request::answers(asks, answer)
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        let call = self.requests.scan(shard, group, after, limit);
        request::page(self.call(shard, &call).await.map_err(Failure::of_reading)?)
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        if batch.lacks_sequence() {
            return Err(IndexError::Broken("a numbered write in a batch without a sequence".to_owned()));
        }
        let call = self.requests.commit(shard, &batch);
        request::outcome(self.call(shard, &call).await.map_err(Failure::of_commit)?)
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.requests.channel()).arg(topic_of(shard, topic));
        let mut herald = self.herald();
        self.reading(async move { publish.query_async(&mut herald).await }).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        let name = topic_of(shard, topic);
        let waiting = self.wakes.topics.wait(&name, patience);
        // At the same time, so that nothing published after the server knows of us is missed.
        tokio::pin!(waiting);
        tokio::select! {
            () = &mut waiting => return,
            () = self.subscribe() => {}
        }
        waiting.await;
    }
}
