//! One connection, from its first byte to its end.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{
    HeaderValue, Request, Response, Version,
    header::{CONNECTION, EXPECT},
};
use http_body::Body as _;
use hyper::service::Service;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    activity::{Activity, Patience, Turn, Verdict, Watched},
    body::{Incoming, Outgoing},
};
use crate::{
    api::{observe::Peer, origin::Scheme},
    telemetry::Metrics,
};

/// Limits of HTTP/2, which multiplies what one connection can hold. Streams: as many as Go's and nginx's
/// servers allow, within a factor of two. Windows: a stream gets 1 MiB, enough for 80 MB/s at 100 ms; all of a
/// connection together 4 MiB. What waits to be sent is bounded by stream.
const MAX_STREAMS: u32 = 128;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const SEND_BUFFER: usize = 256 << 10;

/// The most bytes of one request's head in HTTP/2: a token with many grants needs some ten thousand.
const MAX_HEAD: u32 = 64 << 10;

/// What HTTP/1 reads at once, which bounds a head there as well: half-sent ones on 10,000 connections hold no more
/// than 650 MB for as long as a head may take. An upload that waits for memory holds two of them: with 128 KiB, a
/// hundred of 1 GiB took 325 MiB where 320 are promised.
const HTTP1_BUFFER: usize = 64 << 10;

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Go on.
    Serve,
    /// Finish the requests that have begun, and close.
    Finish,
    /// End here.
    Cut,
}

/// Who is at the other end of a connection, and how bytes travel there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) peer: SocketAddr,
    pub(super) scheme: Scheme,
}

/// What all connections have in common.
pub(super) struct Shared {
    pub(super) builder: Builder<TokioExecutor>,
    pub(super) patience: Patience,
    /// For how long a kept connection still takes a request after the end was asked for.
    pub(super) parting: Duration,
    pub(super) metrics: Arc<Metrics>,
}

/// hyper's part of the settings.
pub(super) fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // See `activity` for why hyper's own deadline for heads is off.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD);
    builder
}

/// Serves one connection until it ends, is closed for idleness, or `phase` says so. It works on any stream of
/// bytes.
pub(super) async fn run<I>(shared: &Shared, io: I, client: Client, router: Router, mut phase: watch::Receiver<Phase>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Activity::new();
    let service = Requests {
        router: TowerToHyperService::new(router),
        activity: activity.clone(),
        client,
        patience: shared.patience,
        phase: phase.clone(),
    };
    let io = TokioIo::new(Watched::new(io, activity.clone()));
    let mut connection = pin!(shared.builder.serve_connection(io, service));
    let mut timer = pin!(sleep_until(Instant::now() + shared.patience.head.min(shared.patience.stall)));
    let (mut is_closing, mut is_parting) = (false, false);
    loop {
        tokio::select! {
            // How a connection ended is the client's affair; what it broke off is in the access log.
            _ = connection.as_mut() => return,
            Ok(()) = phase.changed() => match *phase.borrow_and_update() {
                Phase::Serve => {}
                // Closed now, it would cross with a request that is on its way, and a proxy doesn't send a POST
                // a second time. So that request is answered, and told that it was the last.
                Phase::Finish if activity.is_idle() => {
                    is_parting = true;
                    timer.as_mut().reset(Instant::now() + shared.parting);
                }
                Phase::Finish => connection.as_mut().graceful_shutdown(),
                Phase::Cut => return,
            },
            () = timer.as_mut() => match activity.judge(&shared.patience) {
                _ if is_parting && activity.has_begun_none() => return,
                _ if is_parting => {
                    is_parting = false;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Leave(until) => timer.as_mut().reset(until),
                // An HTTP/2 client gets to know, and one that doesn't answer has had its time.
                Verdict::Close if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                    timer.as_mut().reset(Instant::now() + shared.patience.stall);
                }
                Verdict::Close => return,
                Verdict::Cut => {
                    shared.metrics.connections_cut.inc();
                    return;
                }
            },
        }
    }
}

/// The router, with what the connection adds to each request and notes of each response.
struct Requests {
    router: TowerToHyperService<Router>,
    activity: Arc<Activity>,
    client: Client,
    patience: Patience,
    /// Changes when the end is asked for.
    phase: watch::Receiver<Phase>,
}

impl Service<Request<hyper::body::Incoming>> for Requests {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let is_http2 = request.version() == Version::HTTP_2;
        let turn = self.activity.request_began(is_http2);
        let stall = self.patience.stall;
        // HTTP/2 ends a stream without a reset of the connection; who waits for a word before sending (100 Continue)
        // has the answer in its place.
        let lingers = !is_http2 && !request.headers().contains_key(EXPECT);
        let mut request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(Incoming::new(body, stall, lingers.then(|| self.activity.request_began(is_http2)))),
        });
        request.extensions_mut().insert(Peer(self.client.peer));
        request.extensions_mut().insert(self.client.scheme);
        let is_last = !is_http2 && self.phase.has_changed().unwrap_or(true);
        Box::pin(answer(self.router.call(request), turn, is_last))
    }
}

async fn answer(
    response: impl Future<Output = Result<Response<Body>, Infallible>>,
    turn: Turn,
    is_last: bool,
) -> Result<Response<Outgoing>, Infallible> {
    let mut response = response.await?.map(|body| Outgoing::new(body, turn));
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
