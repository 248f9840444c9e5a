//! The one way out: every request to the store, and to whoever gives credentials for it, passes here.
//!
//! Here the store's clock is read, requests are slowed down, and silence is noticed. There is no limit on how
//! long a request may take as a whole: it would include the time for which a slow client keeps us waiting, and
//! cut off whatever is large. What ends a request is that no byte has moved for too long. It must not try
//! anything again: what may be repeated is for its callers to know.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    },
};
use tokio::time::{Instant, Sleep};

use super::{
    super::StorageError,
    clock::{Clock, uptime},
    egress::{Egress, Patience},
    pace::Pace,
};
use crate::outbound::{self, Way, is_near, text_of};

/// For how long a connection that nobody uses is kept. Shorter than any store keeps it, so that no request
/// meets one that is being closed.
const POOL_IDLE: Duration = Duration::from_secs(15);

/// How many bytes are handed to the socket at once: progress is seen in steps of these.
const STEP: usize = 64 << 10;

/// A way to the store. Clones share connections, clock and pace.
#[derive(Clone, Debug)]
pub(in crate::storage) struct Transport {
    pub(in crate::storage) way: Way,
    pub(in crate::storage) clock: Clock,
    pace: Pace,
    /// For an answer, once the request is sent.
    answer: Duration,
    /// For more bytes of a body.
    stall: Duration,
}

impl Transport {
    /// Makes the clients; nothing is sent yet.
    ///
    /// # Errors
    /// One line that says which of the options can't be used.
    pub(in crate::storage) fn new(egress: &Egress, patience: Patience) -> Result<Self, StorageError> {
        Ok(Self {
            way: Way::new(client(egress, patience)?, built(builder(egress, patience)?.no_proxy())?),
            clock: Clock::default(),
            pace: Pace::default(),
            answer: patience.call,
            stall: patience.stall,
        })
    }

    /// The same way, for requests that are answered within `answer` of their last byte.
    pub(in crate::storage) fn answered_within(&self, answer: Duration) -> Self {
        Self { answer, ..self.clone() }
    }

    /// The same connections to somebody else, whose clock and complaints are not the store's.
    pub(in crate::storage) fn for_others(&self) -> Self {
        Self { clock: Clock::default(), pace: Pace::default(), ..self.clone() }
    }

    /// Sends one request, and gives its answer as soon as the head is there.
    pub(in crate::storage) async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.pace.turn().await;
        let (parts, body) = request.into_parts();
        let progress = Progress::default();
        let url = parts.uri.to_string().parse().map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut outgoing = reqwest::Request::new(parts.method, url);
        *outgoing.headers_mut() = parts.headers;
        *outgoing.body_mut() = Some(Sending::gather(body, &progress).await?.into_body());
        let client = self.way.to(outgoing.url().host_str());
        let sent = uptime();
        let answer = self.while_it_moves(client.execute(outgoing), &progress).await?;
        self.clock.observe(answer.headers(), sent);
        if matches!(answer.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            self.pace.slow_down();
        }
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        // Whoever may take long to answer may also take long over the body of the answer.
        let body = Receiving { body, stall: self.stall.max(self.answer), timer: None };
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }

    /// Waits for an answer as long as the request's bytes move, and then for as long as an answer may take.
    async fn while_it_moves<T>(
        &self,
        answer: impl Future<Output = reqwest::Result<T>>,
        progress: &Progress,
    ) -> Result<T, HttpError> {
        let mut answer = pin!(answer);
        loop {
            let deadline = progress.deadline(self.stall, self.answer);
            match tokio::time::timeout_at(deadline, &mut answer).await {
                Ok(answered) => return answered.map_err(failed),
                Err(_) if progress.deadline(self.stall, self.answer) > deadline => {}
                Err(_) => return Err(silent(progress.wait(self.stall, self.answer))),
            }
        }
    }
}

/// A client for whatever isn't near.
fn client(egress: &Egress, patience: Patience) -> Result<reqwest::Client, StorageError> {
    let through = outbound::through(egress.proxy.as_ref(), builder(egress, patience)?);
    built(through.map_err(|error| unusable("the proxy", &error))?)
}

fn built(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, StorageError> {
    builder.build().map_err(|error| unusable("TLS", &error))
}

/// A client by which signed URLs of the store at `site` can be asked for as Berth's own requests are: with the
/// same certificates and the same proxy, and with no credentials.
///
/// # Errors
/// One line that says which of the options can't be used.
pub(in crate::storage) fn client_for(
    site: Option<&String>,
    egress: &Egress,
    patience: Patience,
) -> Result<reqwest::Client, StorageError> {
    let url = site.and_then(|site| site.parse::<http::Uri>().ok());
    if is_near(url.as_ref().and_then(http::Uri::host)) {
        return built(builder(egress, patience)?.no_proxy());
    }
    client(egress, patience)
}

fn builder(egress: &Egress, patience: Patience) -> Result<reqwest::ClientBuilder, StorageError> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(patience.connect)
        .pool_idle_timeout(POOL_IDLE);
    if let Some(file) = &egress.ca_bundle {
        let about = format!("the certificates in {}", file.display());
        let pem = std::fs::read(file).map_err(|error| unusable(&about, &error))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(&about, &error))?;
        if certificates.is_empty() {
            return Err(StorageError::Refused(about, "there is none in PEM form".to_owned()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    Ok(builder)
}

fn unusable(about: &str, error: &dyn Error) -> StorageError {
    StorageError::Refused(about.to_owned(), text_of(error))
}

/// Whether a request was taken cannot be told from most errors; the caller knows whether that matters.
fn failed(error: reqwest::Error) -> HttpError {
    let kind = match &error {
        error if error.is_connect() => HttpErrorKind::Connect,
        error if error.is_timeout() => HttpErrorKind::Timeout,
        error if error.is_builder() => HttpErrorKind::Unknown,
        _ => HttpErrorKind::Request,
    };
    HttpError::new(kind, error.without_url())
}

/// What it means that nothing came.
#[derive(Debug)]
struct Silence(Duration);

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing moved for {:?}", self.0)
    }
}

impl Error for Silence {}

fn silent(span: Duration) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, Silence(span))
}

/// When a byte of the request last left, and whether all have.
#[derive(Clone, Debug)]
struct Progress(Arc<Mutex<(Instant, bool)>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((Instant::now(), true))))
    }
}

impl Progress {
    fn note(&self, is_sent: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), is_sent);
    }

    fn last(&self) -> (Instant, bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, stall: Duration, answer: Duration) -> Duration {
        if self.last().1 { answer } else { stall }
    }

    fn deadline(&self, stall: Duration, answer: Duration) -> Instant {
        self.last().0 + self.wait(stall, answer)
    }
}

/// A request's body that notes how it moves.
struct Sending {
    chunks: VecDeque<Bytes>,
    left: u64,
    progress: Progress,
}

impl Sending {
    /// Takes the chunks out of a body that has them all in memory.
    async fn gather(mut body: object_store::client::HttpRequestBody, progress: &Progress) -> Result<Self, HttpError> {
        let mut chunks = VecDeque::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            chunks.extend(frame?.into_data().ok().filter(|chunk| !chunk.is_empty()));
        }
        let left = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        progress.note(chunks.is_empty());
        Ok(Self { chunks, left, progress: progress.clone() })
    }

    fn into_body(self) -> reqwest::Body {
        if self.left == 0 { reqwest::Body::from(Bytes::new()) } else { reqwest::Body::wrap(self) }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = self.get_mut();
        let Some(mut chunk) = this.chunks.pop_front() else { return Poll::Ready(None) };
        if chunk.len() > STEP {
            this.chunks.push_front(chunk.split_off(STEP));
        }
        this.left -= chunk.len() as u64;
        this.progress.note(this.chunks.is_empty());
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// An answer's body that ends with an error when the store is silent for too long while it is being asked.
/// The time for which nobody asks doesn't count.
struct Receiving {
    body: reqwest::Body,
    stall: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.timer = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(failed)));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.stall)));
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Err(silent(this.stall))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.send(request).await
    }
}

impl HttpConnector for Transport {
    /// The options are of no effect: what they could say is said to [`Transport::new`].
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}
