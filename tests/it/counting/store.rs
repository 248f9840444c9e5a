//! A proxy between a registry and its store that writes down every request, and can make each take longer.
//!
//! It passes on what it gets as it is, the `Host` that was signed included, and knows of S3 only how to tell
//! what the background asks for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper::{Method, Request, Response, body::Incoming, client::conn::http1 as client, server::conn::http1 as server};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request as it went by.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Path and query, as they were sent.
    pub(crate) target: String,
}

impl Asked {
    /// What the background asks it for, where no push waits for it: which index may be believed is asked by
    /// the clock, and the collection deletes, and lists a tag's history to see whether it has become too long.
    pub(crate) fn background(&self) -> Option<&'static str> {
        let lists = |what| self.target.contains("list-type=2") && self.target.contains(what);
        match () {
            () if self.method == Method::DELETE => Some("what was thrown away"),
            () if lists("epochs%2F") => Some("which index is believed"),
            () if lists("%2F_tags%2F") => Some("the histories of tags"),
            () => None,
        }
    }

    /// Whether it carries one part of a larger object.
    pub(crate) fn is_part(&self) -> bool {
        self.method == Method::PUT && self.target.contains("partNumber=")
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)
    }
}

/// A running proxy; it stops taking connections when this is dropped.
#[derive(Debug)]
pub(crate) struct StoreProxy {
    /// `http://127.0.0.1:<port>`, to be given out as the store's.
    pub(crate) endpoint: String,
    seen: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl StoreProxy {
    /// One before the store at `endpoint` (`http://HOST:PORT`) that lets each request wait for `delay` first.
    pub(crate) async fn start(endpoint: &str, delay: Duration) -> Self {
        let store = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Vec<Asked>>>::default();
        let route = Route { store, delay, seen: Arc::clone(&seen) };
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                // A connection that breaks is reported by the client that it breaks for.
                tokio::spawn(route.clone().serve(socket));
            }
        });
        Self { endpoint, seen, accepting }
    }

    /// What was asked of the store since the last call, oldest first.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What each connection needs.
#[derive(Clone)]
struct Route {
    store: String,
    delay: Duration,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl Route {
    /// Passes on what comes over one connection, over one connection of its own.
    async fn serve(self, socket: TcpStream) -> Result<(), hyper::Error> {
        let store = TcpStream::connect(&self.store).await.unwrap();
        store.set_nodelay(true).unwrap();
        let (sender, connection) = client::handshake(TokioIo::new(store)).await?;
        tokio::spawn(connection);
        let sender = Arc::new(tokio::sync::Mutex::new(sender));
        let pass = hyper::service::service_fn(move |request| self.clone().pass(request, Arc::clone(&sender)));
        server::Builder::new().serve_connection(TokioIo::new(socket), pass).await
    }

    async fn pass(
        self,
        request: Request<Incoming>,
        sender: Arc<tokio::sync::Mutex<client::SendRequest<Incoming>>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let asked = Asked { method: request.method().clone(), target: request.uri().to_string() };
        self.seen.lock().unwrap().push(asked);
        tokio::time::sleep(self.delay).await;
        let mut sender = sender.lock().await;
        sender.ready().await?;
        sender.send_request(request).await
    }
}
