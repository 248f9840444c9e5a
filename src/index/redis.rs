//! The index in Redis: facts that many replicas share, in one server, in the master that Sentinels name, or
//! in a cluster.
//!
//! It keeps the promises of [`Index`] with one script per batch and knows nothing of what the facts mean.
//! Only masters are asked, and a connection ends with the first of them that goes (`connection`).
//!
//! A group is a hash, `<namespace>{s07}:values:<group>`, and the order of its members a sorted set,
//! `<namespace>{s07}:members:<group>`; both can be read with redis-cli. The braces keep a shard in one
//! slot of a cluster.

mod access;
mod cluster;
mod connection;
mod failure;
mod judge;
mod request;
mod sentinel;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::try_join_all;

pub use access::{Login, Tls};

use super::{Connect, Index, IndexError};
use crate::config::{RedisLayout, RedisUrl};
use access::Access;
use connection::{Connection, Link, Wakes};
use failure::{of_server, why_not_connected};
use judge::Expected;
use request::Requests;
use sentinel::Sentinels;

/// How long making a connection may take: with TLS that is several round trips, and work for both sides. Requests
/// don't wait that long: who looks for an index that is away does.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long any one call may take, from when it is made to the last byte of its answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a node that the configuration names has to say who the others are. Half of the whole: another one may be up.
const SEED_TIMEOUT: Duration = Duration::from_secs(1);

/// An index in Redis: where it is, and the namespace of the keys in it that are ours. Other namespaces, and
/// whatever else is kept in the servers, are never touched.
#[derive(Clone)]
pub struct Redis {
    url: RedisUrl,
    place: Arc<Place>,
    namespace: Arc<str>,
    requests: Arc<Requests>,
    /// Whether it was looked at what the servers keep of their data.
    judged: Arc<AtomicBool>,
}

/// Where the last word is.
enum Place {
    /// With this server.
    Server(Access),
    /// With the one that these name.
    Sentinels(Sentinels),
    /// With the masters of a cluster, of which these are some nodes. The number is the place of the one that
    /// was asked last with success.
    Cluster(Vec<Access>, AtomicUsize),
}

impl Redis {
    /// Names servers by their URL, as [`RedisUrl::parse`] reads it, and the namespace that starts each of our keys.
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// [`IndexError::Broken`] for a URL that isn't one, and for a namespace with a brace (which would move
    /// keys to other slots), a space or a control character.
    pub fn new(url: &str, namespace: &str) -> Result<Self, IndexError> {
        let url = RedisUrl::parse(url).ok_or_else(|| IndexError::Broken("that is no URL of Redis".to_owned()))?;
        Self::with(&url, namespace, None, &Login::default())
    }

    /// The same, with what connections of a `rediss` URL are encrypted by, and who we are to Sentinels.
    ///
    /// # Errors
    /// Also [`IndexError::Broken`] for what rustls can't use, or no `rediss` URL.
    pub fn with(url: &RedisUrl, namespace: &str, tls: Option<&Tls>, for_sentinels: &Login) -> Result<Self, IndexError> {
        if namespace.chars().any(|c| c == '{' || c == '}' || c.is_whitespace() || c.is_control()) {
            return Err(IndexError::Broken(format!("{namespace:?} can't be a namespace")));
        }
        let servers = url.reveal_servers().iter().map(|server| Access::new(server, tls));
        let mut servers = servers.collect::<Result<Vec<_>, _>>()?;
        let place = match url.layout() {
            RedisLayout::Single => Place::Server(servers.remove(0)),
            RedisLayout::Sentinel { service } => Place::Sentinels(Sentinels::new(&servers, service, for_sentinels)?),
            RedisLayout::Cluster => Place::Cluster(servers, AtomicUsize::new(0)),
        };
        Ok(Self {
            url: url.clone(),
            place: Arc::new(place),
            namespace: namespace.into(),
            requests: Arc::new(Requests::new(namespace)),
            judged: Arc::default(),
        })
    }

    async fn reach(&self) -> Result<Connection, IndexError> {
        match &*self.place {
            Place::Server(server) => {
                let wakes = Arc::<Wakes>::default();
                let link = Link::open(server, &wakes).await.map_err(why_not_connected)?;
                Ok(Connection::to_server(Arc::clone(&self.requests), Expected::Single, link, wakes))
            }
            Place::Sentinels(sentinels) => {
                let wakes = Arc::<Wakes>::default();
                let link = self.open(&sentinels.master().await?, &wakes).await?;
                Ok(Connection::to_server(Arc::clone(&self.requests), Expected::Named, link, wakes))
            }
            Place::Cluster(seeds, last) => self.reach_cluster(seeds, last).await,
        }
    }

    /// By the first seed that leads to a cluster that agrees with it, beginning with the one that did so last.
    async fn reach_cluster(&self, seeds: &[Access], last: &AtomicUsize) -> Result<Connection, IndexError> {
        let first = last.load(Ordering::Relaxed);
        let mut failure = IndexError::Unreachable("no node is named".to_owned());
        for place in (0..seeds.len()).map(|n| (first + n) % seeds.len()) {
            match self.reach_masters(&seeds[place]).await {
                Ok(connection) => {
                    last.store(place, Ordering::Relaxed);
                    return Ok(connection);
                }
                // What waiting won't change says more than that a node is away.
                Err(_) if matches!(failure, IndexError::Broken(_)) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Connects to all masters that one node knows. They must agree on who serves what: while one of them
    /// hasn't heard of the last change, two replicas could see two different indexes.
    async fn reach_masters(&self, seed: &Access) -> Result<Connection, IndexError> {
        let wakes = Arc::<Wakes>::default();
        let name = access::written(&seed.address());
        let asking = async {
            let seed = self.open(seed, &Arc::default()).await?;
            seed.view().await.map_err(|error| of_server(&name, error))
        };
        let late = || IndexError::Unreachable(format!("{name}: no answer within {SEED_TIMEOUT:?}"));
        let view = tokio::time::timeout(SEED_TIMEOUT, asking).await.unwrap_or_else(|_| Err(late()))?;
        let links = view.masters().into_iter().map(async |address| {
            let link = self.open(&seed.at(address).map_err(why_not_connected)?, &wakes).await?;
            let other = link.view().await.map_err(|error| of_server(&link.name(), error))?;
            if other.agrees_with(&view) {
                return Ok(link);
            }
            let text = format!("{name} and {} do not agree yet on who serves which slots of the cluster", link.name());
            Err(IndexError::Unreachable(text))
        });
        let links = try_join_all(links).await?;
        if links.is_empty() {
            return Err(IndexError::Unreachable(format!("{name}: no node of the cluster serves any slot")));
        }
        Ok(Connection::to_cluster(Arc::clone(&self.requests), links, view.routes(), wakes))
    }

    /// Connects to one of several servers.
    async fn open(&self, server: &Access, wakes: &Arc<Wakes>) -> Result<Link, IndexError> {
        let link = Link::open(server, wakes).await;
        link.map_err(|error| of_server(&access::written(&server.address()), why_not_connected(error)))
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        write!(formatter, "Redis({} {})", self.url, self.namespace)
    }
}

#[async_trait]
impl Connect for Redis {
    async fn connect(&self) -> Result<Arc<dyn Index>, IndexError> {
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, self.reach()).await {
            Ok(connection) => connection?,
            Err(_) => return Err(IndexError::Unreachable(format!("no connection within {CONNECT_TIMEOUT:?}"))),
        };
        connection.identity().await?;
        connection.load_scripts().await?;
        if !self.judged.swap(true, Ordering::Relaxed) {
            connection.warn_of_loss().await;
        }
        Ok(Arc::new(connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for url in
            ["redis://:hunter2@localhost/", "redis-sentinel://u:hunter2@a,b/main", "redis-cluster://:hunter2@a,b"]
        {
            let redis = Redis::new(url, "berth").expect("a good URL");
            assert!(!format!("{redis:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_namespace_with_braces_is_refused() {
        for namespace in ["a{b}", "a b", "a\n"] {
            assert!(matches!(Redis::new("redis://localhost/", namespace), Err(IndexError::Broken(_))));
        }
    }
}
