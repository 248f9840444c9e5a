//! What goes on on one connection, and when it has been still for too long.
//!
//! Three deadlines, one timer. A request's head must arrive whole within `head`; a connection without a
//! request is closed after `idle`; a client whose turn it is to read, and who doesn't, is cut after `stall`.
//! (A client whose turn it is to *send* a body is cut by [`super::body::Incoming`], so that the handler gets
//! to know.) hyper's own timer for heads is not used: it also runs between requests, and would close kept
//! connections far too early.
//!
//! Whoever moves something leaves a time stamp here; the timer looks at the stamps when it fires and sleeps
//! on from the latest, so that moving bytes costs no timer at all.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// How long a connection may be still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// With a request's head half sent, or on a new connection with none.
    pub(super) head: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// With bytes that the client doesn't read.
    pub(super) stall: Duration,
}

/// What is to be done with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; look again then.
    Leave(Instant),
    /// It is idle: say goodbye.
    Close,
    /// The client is stuck: drop it.
    Cut,
}

/// The stamps of one connection, in milliseconds since `began`. They are read and written by several tasks
/// (HTTP/2 has one per stream) without an order among them: an old one costs one more look.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    /// Requests between their head and the end of their response.
    requests: AtomicU32,
    /// Responses that have handed out bytes and were not asked for more yet.
    owed: AtomicU32,
    /// Whether the socket took no more at the last try.
    is_blocked: AtomicBool,
    is_http2: AtomicBool,
    /// Whether the next request's head has begun to arrive, and when. A new connection counts as begun.
    in_head: AtomicBool,
    head_began: AtomicU64,
    last_request_ended: AtomicU64,
    last_written: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            requests: AtomicU32::new(0),
            owed: AtomicU32::new(0),
            is_blocked: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            in_head: AtomicBool::new(true),
            head_began: AtomicU64::new(0),
            last_request_ended: AtomicU64::new(0),
            last_written: AtomicU64::new(0),
        })
    }

    fn stamp(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    fn at(&self, stamp: &AtomicU64) -> Instant {
        self.began + Duration::from_millis(stamp.load(Relaxed))
    }

    /// Notes that a request's head has arrived; it lasts until what is returned is dropped.
    pub(super) fn request_began(self: &Arc<Self>, is_http2: bool) -> Turn {
        self.requests.fetch_add(1, Relaxed);
        self.in_head.store(false, Relaxed);
        self.is_http2.store(is_http2, Relaxed);
        Turn { activity: self.clone(), is_owed: false }
    }

    fn read(&self) {
        if self.requests.load(Relaxed) == 0 && !self.in_head.load(Relaxed) {
            self.head_began.store(self.stamp(), Relaxed);
            self.in_head.store(true, Relaxed);
        }
    }

    fn tried_to_write<T>(&self, result: &Poll<io::Result<T>>) {
        self.is_blocked.store(result.is_pending(), Relaxed);
        if result.is_ready() {
            self.last_written.store(self.stamp(), Relaxed);
        }
    }

    /// Whether no request was begun on it that an end would break off.
    pub(super) fn has_no_request(&self) -> bool {
        // HTTP/2 says goodbye by itself, and a response may still be on its way out.
        let is_quiet = self.requests.load(Relaxed) == 0 && !self.is_blocked.load(Relaxed);
        is_quiet && self.in_head.load(Relaxed) && !self.is_http2.load(Relaxed)
    }

    pub(super) fn judge(&self, patience: &Patience) -> Verdict {
        let now = Instant::now();
        if self.is_blocked.load(Relaxed) || self.owed.load(Relaxed) > 0 {
            let due = self.at(&self.last_written) + patience.stall;
            return if now >= due { Verdict::Cut } else { Verdict::Leave(due) };
        }
        // The soonest that anything which begins only now may fall due.
        let soonest = now + patience.head.min(patience.idle).min(patience.stall);
        if self.requests.load(Relaxed) > 0 {
            return Verdict::Leave(soonest);
        }
        // On an idle HTTP/2 connection bytes are pings as a rule, and no head.
        if self.in_head.load(Relaxed) && !self.is_http2.load(Relaxed) {
            let due = self.at(&self.head_began) + patience.head;
            return if now >= due { Verdict::Cut } else { Verdict::Leave(due) };
        }
        let due = self.at(&self.last_request_ended) + patience.idle;
        if now >= due { Verdict::Close } else { Verdict::Leave(due.min(soonest)) }
    }
}

/// One request and its response, on the connection's account.
#[derive(Debug)]
pub(super) struct Turn {
    activity: Arc<Activity>,
    is_owed: bool,
}

impl Turn {
    /// The response was asked for bytes: the client has taken what there was.
    pub(super) fn asked(&mut self) {
        if self.is_owed {
            self.is_owed = false;
            self.activity.owed.fetch_sub(1, Relaxed);
        }
    }

    /// The response handed out bytes: it is the client's turn.
    pub(super) fn gave(&mut self) {
        if !self.is_owed {
            self.is_owed = true;
            self.activity.last_written.store(self.activity.stamp(), Relaxed);
            self.activity.owed.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.asked();
        self.activity.last_request_ended.store(self.activity.stamp(), Relaxed);
        self.activity.requests.fetch_sub(1, Relaxed);
    }
}

/// A connection's bytes, watched.
#[derive(Debug)]
pub(super) struct Watched<I> {
    inner: I,
    activity: Arc<Activity>,
}

impl<I> Watched<I> {
    pub(super) fn new(inner: I, activity: Arc<Activity>) -> Self {
        Self { inner, activity }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.read();
        }
        result
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.activity.tried_to_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.activity.tried_to_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        // TLS takes what is written before the socket does; only the flush says whether the client reads.
        self.activity.tried_to_write(&result);
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60), stall: Duration::from_secs(30) };

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_must_send_a_head() {
        let activity = Activity::new();
        assert_eq!(activity.judge(&PATIENCE), Verdict::Leave(activity.began + PATIENCE.head));
        pass(5).await;
        // Bytes that trickle in don't put the deadline off.
        activity.read();
        pass(5).await;
        assert_eq!(activity.judge(&PATIENCE), Verdict::Cut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_idle_longer_than_a_head_may_take() {
        let activity = Activity::new();
        drop(activity.request_began(false));
        pass(59).await;
        assert_eq!(activity.judge(&PATIENCE), Verdict::Leave(activity.began + PATIENCE.idle));
        activity.read();
        assert_eq!(activity.judge(&PATIENCE), Verdict::Leave(activity.began + Duration::from_secs(69)));
        drop(activity.request_began(false));
        pass(60).await;
        assert_eq!(activity.judge(&PATIENCE), Verdict::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_may_think_for_as_long_as_it_likes() {
        let activity = Activity::new();
        let _turn = activity.request_began(false);
        pass(3600).await;
        assert!(matches!(activity.judge(&PATIENCE), Verdict::Leave(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_and_who_reads_slowly_is_not() {
        let activity = Activity::new();
        let mut turn = activity.request_began(true);
        pass(100).await;
        turn.gave();
        for _ in 0..5 {
            pass(29).await;
            assert!(matches!(activity.judge(&PATIENCE), Verdict::Leave(_)));
            activity.tried_to_write(&Poll::Ready(Ok(1)));
        }
        pass(30).await;
        assert_eq!(activity.judge(&PATIENCE), Verdict::Cut);
        turn.asked();
        assert!(matches!(activity.judge(&PATIENCE), Verdict::Leave(_)));
    }
}
