//! The index in Redis: facts that many replicas share.
//!
//! It keeps the promises of [`Index`] with one script per batch and knows nothing of what the facts mean.
//! A connection is never restored behind the caller's back: what was learnt of a server holds for one
//! connection, so that another server can't take its place unseen.
//!
//! A group is a hash, `<namespace>{s07}:values:<group>`, and the order of its members a sorted set,
//! `<namespace>{s07}:members:<group>`; both can be read with redis-cli. The braces keep a shard in one
//! slot of a cluster.

use std::{
    collections::HashMap,
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
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, InfoDict,
    IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult, Script, ServerErrorKind,
    TlsCertificates, Value, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::OnceCell;

use super::{Ask, Batch, Check, Connect, Fact, Index, IndexError, Outcome, Shard, Write, wake::Topics};

/// How long making a connection may take: with TLS that is several round trips, and work for both sides. Requests
/// don't wait that long: who looks for an index that is away does.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long any one call may take, from when it is made to the last byte of its answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The oldest server with all that the scripts need (ZRANGE BYLEX), as major and minor version. Valkey goes by
/// the version of Redis that it is compatible with, 7.2.
const OLDEST: (u32, u32) = (6, 2);

/// A Redis server, and the namespace of the keys in it that are ours. Other namespaces, and whatever else
/// is kept in the server, are never touched.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    namespace: Arc<str>,
    commit: Arc<Script>,
    scan: Arc<Script>,
    /// Whether it was looked at what the server keeps of its data.
    judged: Arc<AtomicBool>,
}

/// What a `rediss://` server is met with, each in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// The certificates that vouch for the server; the system's where there are none.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate and its private key, for a server that asks for one.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Whether a file's bytes are at least one certificate in PEM. A file without any would go unnoticed: then
    /// nobody vouches for the server.
    pub fn is_certificate(pem: &[u8]) -> bool {
        let mut certificates = CertificateDer::pem_slice_iter(pem).peekable();
        certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
    }

    /// Whether a file's bytes hold a private key in PEM.
    pub fn is_key(pem: &[u8]) -> bool {
        PrivateKeyDer::from_pem_slice(pem).is_ok()
    }
}

/// One connection to the server.
struct Connection {
    redis: Redis,
    link: MultiplexedConnection,
    wakes: Arc<Wakes>,
    subscribed: OnceCell<()>,
}

/// What the connection's driver tells at any time: notifications, and the connection's end.
#[derive(Default)]
struct Wakes {
    topics: Topics,
    ended: AtomicBool,
}

/// The keys that a batch touches, two for each group, and each group's place among them.
#[derive(Default)]
struct Groups<'a> {
    places: HashMap<&'a str, usize>,
    names: Vec<&'a str>,
}

impl Redis {
    /// Names a server by its URL (`redis://[user:password@]host[:port][/database]`, `unix:`), and the
    /// namespace that starts each of our keys. Nothing is connected yet.
    ///
    /// # Errors
    /// [`IndexError::Broken`] for a URL that isn't one, and for a namespace with a brace (which would move
    /// keys to other slots), a space or a control character.
    pub fn new(url: &str, namespace: &str) -> Result<Self, IndexError> {
        Self::with_tls(url, namespace, None)
    }

    /// The same for a `rediss://` URL, with what the connection is encrypted by.
    ///
    /// # Errors
    /// Also [`IndexError::Broken`] for what rustls can't use, or no `rediss://` URL.
    pub fn with_tls(url: &str, namespace: &str, tls: Option<Tls>) -> Result<Self, IndexError> {
        if namespace.chars().any(|c| c == '{' || c == '}' || c.is_whitespace() || c.is_control()) {
            return Err(IndexError::Broken(format!("{namespace:?} can't be a namespace")));
        }
        // The URL is not repeated: it may hold a password.
        let info = url.into_connection_info().map_err(|error| IndexError::Broken(error.to_string()))?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match tls {
            None => Client::open(info),
            Some(Tls { ca, own }) => {
                let own = own.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
                Client::build_with_tls(info, TlsCertificates { client_tls: own, root_cert: ca })
            }
        };
        Ok(Self {
            client: client.map_err(|error| IndexError::Broken(error.to_string()))?,
            namespace: namespace.into(),
            commit: Arc::new(Script::new(include_str!("commit.lua"))),
            scan: Arc::new(Script::new(include_str!("scan.lua"))),
            judged: Arc::default(),
        })
    }

    /// The hash of a group's values and the sorted set of its members. The kind comes before the group, so
    /// that no group's name can make one key into another.
    fn keys(&self, shard: Shard, group: &str) -> [String; 2] {
        ["values", "members"].map(|kind| format!("{}{{s{:02}}}:{kind}:{group}", self.namespace, shard.0))
    }

    /// The channel that carries all notifications. One for all topics: they are few and small, and a
    /// connection then has nothing to give back when a wait ends.
    fn channel(&self) -> String {
        format!("{}:wake", self.namespace)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        let info: &ConnectionInfo = self.client.get_connection_info();
        write!(formatter, "Redis({} {})", info.addr(), self.namespace)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.redis.fmt(formatter)
    }
}

#[async_trait]
impl Connect for Redis {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        let wakes = Arc::<Wakes>::default();
        let config = AsyncConnectionConfig::new()
            // Our own limits cover the whole of a call, waiting for its turn included.
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender({
                let wakes = Arc::clone(&wakes);
                move |push| wakes.hear(push)
            });
        let connecting = async {
            let link = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            // Loaded now, so that the first call of each is not told first that it isn't.
            self.commit.load_async(&mut link.clone()).await?;
            self.scan.load_async(&mut link.clone()).await?;
            Ok(link)
        };
        let link = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(link) => link.map_err(why_not_connected)?,
            Err(_) => return Err(IndexError::Unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        };
        let connection = Connection { redis: self.clone(), link, wakes, subscribed: OnceCell::new() };
        connection.identity().await?;
        if !self.judged.swap(true, Ordering::Relaxed) {
            connection.warn_of_loss().await;
        }
        Ok(Arc::new(connection))
    }
}

#[async_trait]
impl Index for Connection {
    async fn identity(&self) -> Result<String, IndexError> {
        let mut asks = redis::pipe();
        for section in ["server", "replication", "memory"] {
            asks.cmd("INFO").arg(section);
        }
        let mut link = self.link.clone();
        let (server, replication, memory): (InfoDict, InfoDict, InfoDict) =
            self.reading(async move { asks.query_async(&mut link).await }).await?;
        judge_server(&server, &replication, &memory)?;
        let run: String = field(&server, "run_id")?;
        let history: String = field(&replication, "master_replid")?;
        Ok(format!("{run} {history}"))
    }

    async fn get(&self, shard: Shard, asks: &[Ask]) -> Result<Vec<Option<Bytes>>, IndexError> {
        let mut link = self.link.clone();
        let mut commands = asks.iter().map(|ask| self.question(shard, ask));
        let answers: Vec<Value> = match asks.len() {
            0 => return Ok(Vec::new()),
            // A transaction of one would only cost.
            1 => {
                let command = commands.next().unwrap_or_default();
                vec![self.reading(async move { command.query_async(&mut link).await }).await?]
            }
            _ => {
                let mut transaction = redis::pipe();
                transaction.atomic();
                for command in commands {
                    transaction.add_command(command);
                }
                self.reading(async move { transaction.query_async(&mut link).await }).await?
            }
        };
        asks.iter().zip(answers).map(|(ask, answer)| answered(ask, answer)).collect()
    }

    async fn scan(
        &self,
        shard: Shard,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Bytes)>, IndexError> {
        let least = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let [values, members] = self.redis.keys(shard, group);
        let mut call = self.redis.scan.key(values);
        call.key(members).arg(least).arg(limit);
        let mut link = self.link.clone();
        let found: Vec<(Bytes, Bytes)> = self.reading(async move { call.invoke_async(&mut link).await }).await?;
        let named = |(member, value): (Bytes, Bytes)| (String::from_utf8_lossy(&member).into_owned(), value);
        Ok(found.into_iter().map(named).collect())
    }

    async fn commit(&self, shard: Shard, batch: Batch) -> Result<Outcome, IndexError> {
        if batch.lacks_sequence() {
            return Err(IndexError::Broken("a numbered write in a batch without a sequence".to_owned()));
        }
        self.check_open()?;
        let call = spell_out(&self.redis, shard, &batch);
        let mut link = self.link.clone();
        let answer: RedisResult<(i64, u64, Vec<Option<Bytes>>)> =
            match tokio::time::timeout(RESPONSE_TIMEOUT, call.invoke_async(&mut link)).await {
                Ok(answer) => answer,
                Err(_) => return Err(silent()),
            };
        match answer.map_err(why_not_committed)? {
            (0, sequence, reads) => Ok(Outcome::Committed { sequence, reads }),
            (_, check, _) => Ok(Outcome::Refused { check: check as usize }),
        }
    }

    async fn notify(&self, shard: Shard, topic: &str) -> Result<(), IndexError> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.redis.channel()).arg(name_of(shard, topic));
        let mut link = self.link.clone();
        self.reading(async move { publish.query_async(&mut link).await }).await
    }

    async fn wait(&self, shard: Shard, topic: &str, patience: Duration) {
        let name = name_of(shard, topic);
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

impl Connection {
    /// Asks for notifications, once for the life of the connection. Where that fails the waits just end by
    /// their patience; the next one tries again.
    async fn subscribe(&self) {
        let subscribing = self.subscribed.get_or_try_init(|| {
            let mut link = self.link.clone();
            self.reading(async move { link.subscribe(self.redis.channel()).await })
        });
        if let Err(error) = subscribing.await {
            tracing::debug!(%error, "notifications could not be subscribed to");
        }
    }

    /// Says so where a restart of the server will lose everything. Managed services and restricted users don't
    /// let anybody ask (`CONFIG`); then nothing is known, and nothing said.
    async fn warn_of_loss(&self) {
        let mut asks = redis::pipe();
        asks.cmd("CONFIG").arg("GET").arg("save").cmd("CONFIG").arg("GET").arg("appendonly");
        let mut link = self.link.clone();
        type Settings = HashMap<String, String>;
        let answer: Result<(Settings, Settings), _> =
            self.reading(async move { asks.query_async(&mut link).await }).await;
        let Ok((save, append)) = answer else { return };
        let is = |settings: &Settings, name: &str, value: &str| settings.get(name).is_some_and(|found| found == value);
        if is(&save, "save", "") && is(&append, "appendonly", "no") {
            tracing::warn!(
                "Redis keeps nothing on its disk (save \"\", appendonly no): after a restart the index is filled from the bucket again, and where all replicas restart with it that takes `berth index rebuild`"
            );
        }
    }

    /// Runs a call that changes no facts.
    async fn reading<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, IndexError> {
        self.check_open()?;
        match tokio::time::timeout(RESPONSE_TIMEOUT, call).await {
            Ok(result) => result.map_err(why_not_read),
            Err(_) => Err(silent()),
        }
    }

    /// Fails where the connection has ended, so that nobody has to wonder what became of a batch that was
    /// never sent.
    fn check_open(&self) -> Result<(), IndexError> {
        if self.wakes.ended.load(Ordering::Acquire) {
            return Err(IndexError::Unreachable("the connection was lost".to_owned()));
        }
        Ok(())
    }

    fn question(&self, shard: Shard, ask: &Ask) -> Cmd {
        match ask {
            Ask::Value(fact) => {
                let [values, _] = self.redis.keys(shard, &fact.group);
                Cmd::hget(values, &fact.member)
            }
            Ask::First(group) => {
                let [_, members] = self.redis.keys(shard, group);
                Cmd::zrange(members, 0, 0)
            }
            Ask::Count(group) => {
                let [_, members] = self.redis.keys(shard, group);
                Cmd::zcard(members)
            }
        }
    }
}

impl Wakes {
    fn hear(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        match push.kind {
            PushKind::Disconnection => self.ended.store(true, Ordering::Release),
            PushKind::Message => {
                // The channel and what was said on it.
                if let Some(Value::BulkString(name)) = push.data.get(1) {
                    self.topics.notify(&String::from_utf8_lossy(name));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl<'a> Groups<'a> {
    /// The place of a group, counted from 1 as Lua does.
    fn place(&mut self, group: &'a str) -> usize {
        *self.places.entry(group).or_insert_with(|| {
            self.names.push(group);
            self.names.len()
        })
    }
}

/// What a shard's topic is called on the channel of all topics.
fn name_of(shard: Shard, topic: &str) -> String {
    format!("s{:02}:{topic}", shard.0)
}

/// A batch as the script's keys and arguments; `commit.lua` says what they are.
fn spell_out<'a>(redis: &'a Redis, shard: Shard, batch: &Batch) -> redis::ScriptInvocation<'a> {
    let mut groups = Groups::default();
    let mut call = redis.commit.prepare_invoke();
    match &batch.sequence {
        Some(counter) => call.arg(groups.place(&counter.group)).arg(&counter.member),
        None => call.arg(0).arg(""),
    };
    call.arg(batch.checks.len()).arg(batch.reads.len());
    let nothing = Bytes::new();
    for check in &batch.checks {
        let (kind, group, member, value) = match check {
            Check::Absent(Fact { group, member }) => ("absent", group, &**member, &nothing),
            Check::Present(Fact { group, member }) => ("present", group, &**member, &nothing),
            Check::Equals(Fact { group, member }, value) => ("equals", group, &**member, value),
            Check::Empty(group) => ("empty", group, "", &nothing),
        };
        call.arg(kind).arg(groups.place(group)).arg(member).arg(&**value);
    }
    for ask in &batch.reads {
        let (kind, group, member) = match ask {
            Ask::Value(Fact { group, member }) => ("value", group, &**member),
            Ask::First(group) => ("first", group, ""),
            Ask::Count(group) => ("count", group, ""),
        };
        call.arg(kind).arg(groups.place(group)).arg(member);
    }
    for write in &batch.writes {
        let (kind, fact, value) = match write {
            Write::Put(fact, value) => ("put", fact, value),
            Write::PutNumbered(fact, value) => ("number", fact, value),
            Write::PutAtNumber(fact, value) => ("at number", fact, value),
            Write::Raise(fact, value) => ("raise", fact, value),
            Write::Delete(fact) => ("delete", fact, &nothing),
        };
        call.arg(kind).arg(groups.place(&fact.group)).arg(&fact.member).arg(&**value);
    }
    for group in groups.names {
        let [values, members] = redis.keys(shard, group);
        call.key(values).key(members);
    }
    call
}

fn answered(ask: &Ask, answer: Value) -> Result<Option<Bytes>, IndexError> {
    let read = match ask {
        Ask::Value(_) => Option::<Bytes>::from_redis_value(answer),
        Ask::First(_) => Vec::<Bytes>::from_redis_value(answer).map(|members| members.into_iter().next()),
        Ask::Count(_) => u64::from_redis_value(answer).map(|count| Some(Bytes::from(count.to_string()))),
    };
    read.map_err(|error| IndexError::Broken(error.to_string()))
}

/// Refuses a server that can't keep the promises of an index.
fn judge_server(server: &InfoDict, replication: &InfoDict, memory: &InfoDict) -> Result<(), IndexError> {
    let version: String = field(server, "redis_version")?;
    let role: String = field(replication, "role")?;
    let eviction: String = field(memory, "maxmemory_policy")?;
    if version_of(&version).is_none_or(|version| version < OLDEST) {
        return Err(IndexError::Broken(format!("Redis {version} is too old: {}.{} is needed", OLDEST.0, OLDEST.1)));
    }
    if role != "master" {
        return Err(IndexError::Broken(format!("the server is a {role}: only a master has the last word")));
    }
    // Our keys have no time to live, so the volatile-* policies leave them alone.
    if eviction.starts_with("allkeys") {
        let text = format!("maxmemory-policy is {eviction}, which drops facts at random: set it to noeviction");
        return Err(IndexError::Broken(text));
    }
    Ok(())
}

/// Major and minor version.
fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn field(info: &InfoDict, name: &str) -> Result<String, IndexError> {
    info.get(name).ok_or_else(|| IndexError::Broken(format!("the server does not say its {name}")))
}

fn why_not_connected(error: RedisError) -> IndexError {
    match error.kind() {
        ErrorKind::RESP3NotSupported => IndexError::Broken(format!("the server is too old: {error}")),
        // A certificate that isn't trusted, or a server that doesn't speak TLS: waiting would not help.
        ErrorKind::Io if is_about_tls(&error) => IndexError::Broken(error.to_string()),
        _ => why_not_read(error),
    }
}

fn is_about_tls(error: &RedisError) -> bool {
    type Shared = Arc<dyn std::error::Error + Send + Sync>;
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<Shared>());
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

fn why_not_read(error: RedisError) -> IndexError {
    if error.is_io_error() || is_refusal(&error) {
        return IndexError::Unreachable(error.to_string());
    }
    IndexError::Broken(error.to_string())
}

fn why_not_committed(error: RedisError) -> IndexError {
    match error.kind() {
        // The script was not run, or stopped at the counter, before its first write.
        ErrorKind::Server(_) | ErrorKind::Extension => why_not_read(error),
        _ => IndexError::Unknown(error.to_string()),
    }
}

fn silent() -> IndexError {
    IndexError::TimedOut(format!("no answer within {RESPONSE_TIMEOUT:?}"))
}

/// Whether the server says that it does nothing for now.
fn is_refusal(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        ErrorKind::Server(kind) => matches!(kind, BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain),
        // Out of memory, no room or too few replicas to keep writes, a script that doesn't end.
        _ => matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_compared_by_number() {
        assert!(version_of("6.10.1") > Some(OLDEST));
        assert!(version_of("6.0.16") < Some(OLDEST));
        assert!(version_of("7") < Some(OLDEST));
        assert_eq!(version_of("8.2.1-rc1"), Some((8, 2)));
    }

    #[test]
    fn a_password_is_never_shown() {
        let redis = Redis::new("redis://:hunter2@localhost/", "berth").expect("a good URL");
        assert!(!format!("{redis:?}").contains("hunter2"));
    }

    #[test]
    fn a_namespace_with_braces_is_refused() {
        for namespace in ["a{b}", "a b", "a\n"] {
            assert!(matches!(Redis::new("redis://localhost/", namespace), Err(IndexError::Broken(_))));
        }
    }
}
