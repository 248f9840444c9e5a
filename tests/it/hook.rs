//! Somebody who is told of events: a server on an address of this machine that answers as the test says, and keeps
//! what it was sent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The event of Distribution's envelope as a line: what, where, of what.
    pub(crate) fn line(&self) -> String {
        let envelope = self.json();
        let events = envelope["events"].as_array().unwrap();
        assert_eq!(events.len(), 1, "{envelope}");
        let (event, target) = (&events[0], &events[0]["target"]);
        let what = target["tag"].as_str().or(target["digest"].as_str()).unwrap();
        format!("{} {} {what}", event["action"].as_str().unwrap(), target["repository"].as_str().unwrap())
    }
}

type Answer = Box<dyn Fn(&Told) -> Response + Send + Sync>;

/// The server; it ends when this is dropped.
pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
    news: Arc<Notify>,
    answer: Arc<Mutex<Answer>>,
    /// Whether it answers at all for now.
    is_open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Hook {
    /// One on the loopback address, that takes everything.
    pub(crate) async fn start() -> Self {
        Self::at([127, 0, 0, 1].into()).await
    }

    pub(crate) async fn at(ip: IpAddr) -> Self {
        Self::listening(SocketAddr::new(ip, 0)).await
    }

    pub(crate) async fn listening(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, news) = (Arc::<Mutex<Vec<Told>>>::default(), Arc::<Notify>::default());
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(|_| StatusCode::NO_CONTENT.into_response())));
        let is_open = watch::Sender::new(true);
        let (kept, bell, says, opens) = (Arc::clone(&told), Arc::clone(&news), Arc::clone(&answer), is_open.clone());
        let hear = move |request: Request| {
            let (kept, bell, says) = (Arc::clone(&kept), Arc::clone(&bell), Arc::clone(&says));
            let mut opens = opens.subscribe();
            async move {
                let (head, body) = request.into_parts();
                let body = to_bytes(body, 1 << 20).await.unwrap();
                let told = Told { path: head.uri.to_string(), headers: head.headers, body };
                let answer = (says.lock().unwrap())(&told);
                kept.lock().unwrap().push(told);
                bell.notify_waiters();
                opens.wait_for(|is_open| *is_open).await.unwrap();
                answer
            }
        };
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, Router::new().fallback(hear)).await.unwrap() });
        Self { address, told, news, answer, is_open, _task: task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// From now on it answers so.
    pub(crate) fn answer(&self, answer: impl Fn(&Told) -> Response + Send + Sync + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    /// The same with nothing but a status.
    pub(crate) fn says(&self, status: u16) {
        self.answer(move |_| StatusCode::from_u16(status).unwrap().into_response());
    }

    /// Whether it answers what comes, and has come, or keeps all waiting.
    pub(crate) fn answers(&self, does: bool) {
        self.is_open.send_replace(does);
    }

    /// What it was sent so far.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// What it was sent so far, as lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.told().iter().map(Told::line).collect()
    }

    pub(crate) fn forget(&self) {
        self.told.lock().unwrap().clear();
    }

    /// Waits until it was sent so much, and a moment more for what would be too much.
    pub(crate) async fn until(&self, count: usize) -> Vec<Told> {
        self.until_holds(|told| told.len() >= count).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.told()
    }

    /// Waits until this holds of what it was sent.
    pub(crate) async fn until_holds(&self, holds: impl Fn(&[Told]) -> bool) {
        loop {
            let news = self.news.notified();
            if holds(&self.told()) {
                return;
            }
            news.await;
        }
    }
}
