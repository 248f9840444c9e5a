//! The two bodies of a request as they pass through the server.
//!
//! A refusal is often sent before the request's body has come. Closing then would reset the connection, and a client
//! that sends all before it reads would see a broken pipe in the place of the answer. So what a handler leaves unread
//! is read here, within bounds, and dropped.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep, timeout},
};

use super::activity::Turn;

/// How many bytes are read that no handler wanted, and for how long: so that a client on a usual line gets to its
/// answer, and nobody has a place to pour bytes into. nginx reads on for 30 s; most clients read while they send, and
/// hang up at once.
const LINGER_BYTES: usize = 64 << 20;
const LINGER: Duration = Duration::from_secs(5);

/// A request's body that ends in an error ([`io::ErrorKind::TimedOut`]) if the client sends nothing of it for
/// too long while somebody waits for it. A handler that isn't reading costs the client no time.
pub(super) struct Incoming {
    /// `None` once it is over.
    inner: Option<hyper::body::Incoming>,
    patience: Duration,
    /// Made at the first wait: a body that is there already needs none.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
    /// On whose account the rest is read, if this is dropped before it is over.
    rest: Option<Turn>,
}

impl Incoming {
    /// Without `rest`, what is left unread ends the connection, or the stream of HTTP/2.
    pub(super) fn new(inner: hyper::body::Incoming, patience: Duration, rest: Option<Turn>) -> Self {
        Self { inner: Some(inner), patience, timer: None, is_waiting: false, rest }
    }

    /// Ready once nothing has come for too long.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        if !self.is_waiting {
            timer.as_mut().reset(Instant::now() + patience);
            self.is_waiting = true;
        }
        timer.as_mut().poll(cx)
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            this.is_waiting = false;
            if !matches!(frame, Some(Ok(_))) {
                this.inner = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        if this.poll_patience(cx).is_pending() {
            return Poll::Pending;
        }
        this.inner = None;
        let message = format!("the client sent nothing for {} ms", this.patience.as_millis());
        Poll::Ready(Some(Err(axum::Error::new(io::Error::new(io::ErrorKind::TimedOut, message)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let (Some(body), Some(turn)) = (self.inner.take(), self.rest.take()) else { return };
        let runtime = Handle::try_current().ok().filter(|_| !body.is_end_stream());
        if let Some(runtime) = runtime {
            let patience = self.patience.min(LINGER);
            runtime.spawn(async move {
                // The rest, the bound or the time: whatever comes first ends it.
                let _ = timeout(patience, discard(body)).await;
                drop(turn);
            });
        }
    }
}

/// Reads a body to its end, or as far as the bound.
async fn discard(mut body: hyper::body::Incoming) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(less) = left.checked_sub(length) else { return };
        left = less;
    }
}

/// A response's body that says whose turn it is.
pub(super) struct Outgoing {
    inner: Body,
    turn: Turn,
}

impl Outgoing {
    pub(super) fn new(inner: Body, turn: Turn) -> Self {
        Self { inner, turn }
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.turn.asked();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        if let Poll::Ready(Some(_)) = &frame {
            this.turn.gave();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
