//! The two bodies of a request as they pass through the server.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::activity::Turn;

/// A request's body that ends in an error ([`io::ErrorKind::TimedOut`]) if the client sends nothing of it for
/// too long while somebody waits for it. A handler that isn't reading costs the client no time.
pub(super) struct Incoming {
    inner: hyper::body::Incoming,
    patience: Duration,
    /// Made at the first wait: a body that is there already needs none.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl Incoming {
    pub(super) fn new(inner: hyper::body::Incoming, patience: Duration) -> Self {
        Self { inner, patience, timer: None, is_waiting: false }
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
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(axum::Error::new)));
        }
        if this.poll_patience(cx).is_pending() {
            return Poll::Pending;
        }
        this.is_waiting = false;
        let message = format!("the client sent nothing for {} ms", this.patience.as_millis());
        Poll::Ready(Some(Err(axum::Error::new(io::Error::new(io::ErrorKind::TimedOut, message)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
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
