//! One endpoint: where it is, how it is spoken to, and one attempt to tell it of an event.
//!
//! An attempt ends within the endpoint's time limit, reads no more than [`MAX_ANSWER`] of what comes back, and says
//! in one word what happened. What follows from that is the deliverer's to decide.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use reqwest::{Certificate, Client, Proxy, Response, Url, dns::Resolve, redirect::Policy};
use tokio::{sync::Semaphore, time::timeout};
use ulid::Ulid;

use super::{
    format::{Message, Teller, message},
    guard::{Checked, Guard, SystemNames},
    pubsub::Publisher,
    signature::signatures,
};
use crate::{
    auth::Authority,
    config::{self, Config},
    index::facts::EventFact,
    outbound::Way,
    storage::{StoreTime, key::EntryName},
};

/// How much of an answer is read, in bytes, so that its connection can be used again. Nothing of it is kept.
const MAX_ANSWER: usize = 64 << 10;

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// The longest wait that a `Retry-After` can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a connection without requests is kept.
const IDLE: Duration = Duration::from_secs(30);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// An endpoint can't be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("events.endpoints.{endpoint}.{key}: {why}")]
pub struct UnusableEndpoint {
    endpoint: String,
    key: &'static str,
    why: String,
}

impl UnusableEndpoint {
    pub(super) fn unnamed(name: &str) -> Self {
        Self { endpoint: name.to_owned(), key: "format", why: "the endpoint's name is none".to_owned() }
    }
}

/// An endpoint, ready to be told.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) name: EntryName,
    pub(super) config: config::Endpoint,
    /// How clients name the registry.
    public_url: Option<String>,
    /// A permit is one request.
    pub(super) permits: Semaphore,
    place: Place,
}

/// Where it is.
#[derive(Debug)]
enum Place {
    /// At a URL.
    Url { url: Url, http: Client, guard: Guard },
    /// In Pub/Sub.
    Topic(Publisher),
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It was taken, with this status.
    Taken(StatusCode),
    /// It was not, or nobody knows.
    Failed {
        /// In a few words: `503`, `no answer in time`, `connection refused`.
        why: String,
        /// How long to wait, where the endpoint said so.
        wait: Option<Duration>,
    },
}

impl Attempt {
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed { why: why.into(), wait: None }
    }
}

impl Endpoint {
    /// The endpoint of this name, by the system's own names.
    ///
    /// # Errors
    /// What can't be used, by its key.
    pub fn open(name: EntryName, config: &Config, endpoint: &config::Endpoint) -> Result<Self, UnusableEndpoint> {
        Self::with_names(name, config, endpoint, Arc::new(SystemNames))
    }

    /// The same, by other names.
    ///
    /// # Errors
    /// As [`Endpoint::open`].
    pub fn with_names(
        name: EntryName,
        config: &Config,
        endpoint: &config::Endpoint,
        names: Arc<dyn Resolve>,
    ) -> Result<Self, UnusableEndpoint> {
        let unusable = |key, why: String| UnusableEndpoint { endpoint: name.to_string(), key, why };
        let proxy = config.proxy.url.as_ref().filter(|_| endpoint.proxy).map(|url| url.reveal());
        let place = match (&endpoint.topic, &endpoint.url) {
            (Some(topic), _) => {
                let way = Way::new(client(&name, endpoint, proxy, None)?, client(&name, endpoint, None, None)?);
                let named = endpoint.credentials.as_ref().map(|named| &named.0);
                Place::Topic(Publisher::new(topic, named, way).map_err(|why| unusable("credentials", why))?)
            }
            (None, Some(url)) => {
                let url: Url = url.reveal().parse().map_err(|_| unusable("url", "it is no URL".to_owned()))?;
                let guard = Guard::new(endpoint.allow.iter().map(|network| network.0));
                if !endpoint.proxy {
                    guard.check_url(&url).map_err(|why| unusable("url", why.to_string()))?;
                }
                let http = client(&name, endpoint, proxy, Some(Checked { guard: guard.clone(), names }))?;
                Place::Url { url, http, guard }
            }
            // The configuration is refused without.
            (None, None) => return Err(unusable("url", "it is missing".to_owned())),
        };
        let permits = Semaphore::new(endpoint.concurrency.get() as usize);
        let public_url = config.server.public_url.as_ref().map(|url| url.as_str().to_owned());
        Ok(Self { name, config: endpoint.clone(), public_url, permits, place })
    }

    /// Where it is, as far as that is shown.
    pub fn shown(&self) -> String {
        let url = self.config.url.as_ref().map(ToString::to_string);
        url.or_else(|| self.config.topic.as_ref().map(ToString::to_string)).unwrap_or_default()
    }

    /// Whether it goes by the same settings.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.name == other.name && self.config == other.config && self.public_url == other.public_url
    }

    /// Tells it of an event, once.
    pub(super) async fn tell(
        &self,
        event: &EventFact,
        authority: &Authority,
        replica: Ulid,
        now: StoreTime,
    ) -> Attempt {
        let teller = Teller { endpoint: &self.name, public_url: self.public_url.as_deref(), replica };
        let message = message(self.config.format, event, &teller);
        let limit = *self.config.timeout;
        let told = async {
            match &self.place {
                Place::Topic(publisher) => publisher.publish(message).await,
                Place::Url { url, http, guard } => {
                    let common = self.common_headers(event, &message, now);
                    let own = match self.own_headers(url, authority) {
                        Ok(own) => own,
                        Err(attempt) => return attempt,
                    };
                    self.post(http, guard, url.clone(), &common, &own, message).await
                }
            }
        };
        timeout(limit, told).await.unwrap_or_else(|_| Attempt::failed("no answer in time"))
    }

    /// The headers that anybody may see whom the request is led to.
    fn common_headers(&self, event: &EventFact, message: &Message, now: StoreTime) -> HeaderMap {
        let (id, at) = (event.id.to_string(), now.0 / 1000);
        let mut headers: HeaderMap = message.headers.iter().cloned().collect();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(message.content_type));
        headers.insert(WEBHOOK_TIMESTAMP, at.into());
        let signature = self.config.secret.as_ref();
        let signature = signature.map(|secrets| signatures(secrets.reveal(), &id, at, &message.body));
        for (name, value) in [(WEBHOOK_ID, Some(id)), (WEBHOOK_SIGNATURE, signature)] {
            // Both are printable ASCII.
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        headers
    }

    /// The headers that are for the endpoint's own server alone.
    fn own_headers(&self, url: &Url, authority: &Authority) -> Result<HeaderMap, Attempt> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.config.headers.iter().flat_map(|headers| headers.reveal()) {
            headers.append(name.clone(), value.clone());
        }
        if self.config.bearer {
            let url = self.config.url.as_ref().map_or(url.as_str(), |url| url.without_query());
            let audience = self.config.audience.as_ref().map_or(url, |audience| audience);
            let token = authority.vouch(&format!("event:{}", self.name), audience);
            let token = token.map_err(|_| Attempt::failed("no token could be signed"))?;
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Attempt::failed("no token"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    /// Posts, and follows redirects where that is wanted.
    async fn post(
        &self,
        http: &Client,
        guard: &Guard,
        start: Url,
        common: &HeaderMap,
        own: &HeaderMap,
        message: Message,
    ) -> Attempt {
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            if !self.config.proxy
                && let Err(forbidden) = guard.check_url(&url)
            {
                return Attempt::failed(forbidden.to_string());
            }
            let mut request = http.post(url.clone()).headers(common.clone()).body(message.body.clone());
            if url.origin() == start.origin() {
                request = request.headers(own.clone());
            }
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) => return Attempt::failed(described(&error)),
            };
            let next = if self.config.redirects { target(&url, &answer) } else { None };
            match next {
                None => return attempt(answer).await,
                Some(next) if url.scheme() == "https" && next.scheme() != "https" => {
                    return Attempt::failed("redirected away from https");
                }
                Some(next) => url = next,
            }
        }
        Attempt::failed(format!("redirected more than {MAX_REDIRECTS} times"))
    }
}

/// Makes the client of an endpoint. Nothing but connections is remembered from one request to the next.
fn client(
    name: &EntryName,
    endpoint: &config::Endpoint,
    proxy: Option<&str>,
    names: Option<Checked>,
) -> Result<Client, UnusableEndpoint> {
    let unusable = |key, why: String| UnusableEndpoint { endpoint: name.to_string(), key, why };
    let mut http = Client::builder()
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(endpoint.concurrency.get() as usize)
        .user_agent(concat!("Berth/", env!("CARGO_PKG_VERSION")))
        .no_proxy();
    http = match (proxy, names) {
        // Who resolves names then is the proxy.
        (Some(url), _) => {
            http.proxy(Proxy::all(url).map_err(|_| unusable("proxy", "the proxy can't be used".to_owned()))?)
        }
        (None, Some(names)) => http.dns_resolver(Arc::new(names)),
        (None, None) => http,
    };
    if let Some(path) = &endpoint.ca {
        let pem = std::fs::read(&***path).map_err(|error| unusable("ca", format!("{}: {error}", path.display())))?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(unusable("ca", format!("{}: there is no certificate in it", path.display())));
        }
        http = http.tls_certs_only(certificates);
    }
    http.build().map_err(|error| unusable("url", described(&error)))
}

/// Where a redirect leads that keeps method and body.
fn target(from: &Url, answer: &Response) -> Option<Url> {
    let keeps = matches!(answer.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let location = answer.headers().get(LOCATION).filter(|_| keeps)?.to_str().ok()?;
    from.join(location).ok().filter(|next| matches!(next.scheme(), "http" | "https"))
}

/// What an answer says. Its status is enough: a body that never ends takes nothing of that back.
pub(super) async fn attempt(mut answer: Response) -> Attempt {
    let status = answer.status();
    let wait = wait(answer.headers());
    let mut read = 0;
    let drained = async {
        while let Ok(Some(chunk)) = answer.chunk().await {
            read += chunk.len();
            if read > MAX_ANSWER {
                break;
            }
        }
    };
    // As long as a body takes that comes with its head; a slower one costs its connection.
    let _ = timeout(Duration::from_millis(500), drained).await;
    match status.is_success() {
        true => Attempt::Taken(status),
        false => Attempt::Failed { why: status.as_u16().to_string(), wait },
    }
}

/// How long an answer asks to be left alone: in seconds, or until a time by its own clock.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let asked = text(RETRY_AFTER)?;
    let seconds = match asked.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let until = StoreTime::from_http(asked)?;
            let now = text(http::header::DATE).and_then(StoreTime::from_http)?;
            until.0.saturating_sub(now.0) / 1000
        }
    };
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// The innermost cause. What stands around it repeats the URL, which may be a secret.
pub(super) fn described(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    if std::ptr::addr_eq(std::ptr::from_ref(innermost), std::ptr::from_ref(error)) {
        return if error.is_timeout() {
            "no answer in time".to_owned()
        } else {
            "the request could not be made".to_owned()
        };
    }
    innermost.to_string()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_bounded_whatever_an_answer_asks() {
        for (asked, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("99999999999", Some(3600)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("Wed, 21 Oct 2099 07:00:00 GMT", Some(3600)),
            ("-1", None),
            ("soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, asked.parse().unwrap());
            headers.insert(http::header::DATE, "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
            assert_eq!(wait(&headers), seconds.map(Duration::from_secs), "{asked}");
        }
    }
}
