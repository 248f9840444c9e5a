//! The settings of `[events]`: who is told of what happens, and how. As in the rest of the tree, a field's doc
//! comment is what the reference says of the key.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Uri};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    pattern::{MediaTypePattern, RepositoryPattern, TagPattern},
    text::{FilePath, GoogleCredentials, MASK, Text, Word, Written},
};

/// `[events]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Who is told of what happens, by a name of your own: lower-case letters and digits with single `-`, `.` or `_`
    /// between them, 63 bytes at most.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// How many events may wait for one endpoint. Of more, the oldest become dead letters: no push ever waits for
    /// an endpoint.
    pub max_pending: NonZeroU32,
    /// How many dead letters are kept for one endpoint. Of more, the oldest are dropped.
    pub max_dead: NonZeroU32,
}

/// `[events.endpoints.<name>]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// What is sent: `distribution` is the envelope of CNCF Distribution's notifications, `pubsub` the push request of
    /// a Pub/Sub subscription with the message of Container Registry's topic `gcr`, `pubsub-topic` that message
    /// published to a topic of Pub/Sub itself, `cloudevents` a CloudEvent as one JSON document (structured mode),
    /// `cloudevents-binary` one with its attributes in headers (binary mode).
    pub format: EventFormat,
    /// Where it is sent, by POST. Berth shows no more of it than its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub url: Option<Text<EndpointUrl>>,
    /// The topic of `pubsub-topic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<Text<Topic>>,
    /// Who publishes to the topic: the JSON of a service account's key, of a workload identity (`external_account`) or
    /// of a login (`authorized_user`). Where it is not set, what Google's own tools would use counts: the file that
    /// `GOOGLE_APPLICATION_CREDENTIALS` names, that of `gcloud auth application-default login`, the metadata server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub credentials: Option<Text<GoogleCredentials>>,
    /// What is told. `pull` is a GET of a manifest (with `blobs`, also of a blob), never a HEAD, and costs each such
    /// pull a write to the index; `mount` is of blobs alone.
    #[serde(default)]
    #[schemars(extend("x-default" = "all but `pull` that the format can say"))]
    pub actions: Vec<EventAction>,
    /// Patterns of repositories of which it is told: `*` is any one component of a name, `**` any number, also none.
    #[serde(default)]
    #[schemars(extend("x-default" = "all"))]
    pub repositories: Vec<Text<RepositoryPattern>>,
    /// Patterns of tags of which it is told; `*` stands for any characters. Where it is set, nothing is told of what
    /// was done by digest alone.
    #[serde(default)]
    #[schemars(extend("x-default" = "all, and what was done by digest alone"))]
    pub tags: Vec<Text<TagPattern>>,
    /// Patterns of media types of which it is told; `*` stands for any characters. Blobs are
    /// `application/octet-stream`. The deletion of a tag has none, and is told whatever is set here.
    #[serde(default)]
    #[schemars(extend("x-default" = "all"))]
    pub media_types: Vec<Text<MediaTypePattern>>,
    /// Whether it is told of blobs too.
    #[serde(default)]
    pub blobs: bool,
    /// Headers that are sent along: one `Name: value` a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub headers: Option<Text<Headers>>,
    /// The secret that signs each request by Standard Webhooks: `whsec_` and base64 of 24 to 64 bytes. Of several,
    /// with spaces or line breaks between them, each signs, so that one can take the place of another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub secret: Option<Text<WebhookSecrets>>,
    /// Whether each request has a bearer token, as the pushes of Pub/Sub do: a JSON Web Token that is signed by the
    /// newest of `auth.token.keys` and good for five minutes. Its keys are at `/.well-known/jwks.json`.
    #[serde(default)]
    pub bearer: bool,
    /// Whom that token is meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`url`, without what follows a `?`"))]
    pub audience: Option<Text<Word>>,
    /// How long the endpoint may take to answer, `1s` to `60s`.
    #[serde(default = "timeout")]
    pub timeout: Text<Duration>,
    /// How many requests each replica has open to the endpoint at once, 1 to 100. Those about one repository are
    /// always sent one after the other.
    #[serde(default = "concurrency")]
    pub concurrency: NonZeroU32,
    /// For how long an event is tried, `1m` to `720h`. It is a dead letter then. The histories of tags are kept for as
    /// long as something in them may have to be told again.
    #[serde(default = "max_age")]
    pub max_age: Text<Duration>,
    /// Networks (`10.0.0.0/8`) or single addresses that the endpoint may have though they are not public: loopback,
    /// private, link-local, shared and reserved ones are refused else, whatever name leads to them.
    #[serde(default)]
    pub allow: Vec<Text<IpNet>>,
    /// Whether up to 5 redirects (307 and 308) are followed. Only what is sent in the same way to any server goes
    /// along to another one: no headers of `headers`, no token.
    #[serde(default)]
    pub redirects: bool,
    /// Whether it is reached through `proxy.url`, whatever `proxy.no_proxy` says. Which addresses may be reached is for
    /// the proxy to decide then, and `allow` has no say.
    #[serde(default)]
    pub proxy: bool,
    /// The file of certificates, in PEM, by which the endpoint is known where a public authority doesn't vouch for
    /// it. Only these count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<FilePath>>,
}

/// In what form an endpoint is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum EventFormat {
    /// The envelope of CNCF Distribution's notifications.
    Distribution,
    /// A push request of Pub/Sub, with the message of the topic `gcr`.
    #[serde(rename = "pubsub")]
    PubSub,
    /// That message, published to a topic.
    #[serde(rename = "pubsub-topic")]
    PubSubTopic,
    /// A CloudEvent in structured mode.
    #[serde(rename = "cloudevents")]
    CloudEvents,
    /// A CloudEvent in binary mode.
    #[serde(rename = "cloudevents-binary")]
    CloudEventsBinary,
}

impl EventFormat {
    /// Whether it says no more than what the topic `gcr` did: that an image or tag came or went.
    pub fn is_gcr(self) -> bool {
        matches!(self, Self::PubSub | Self::PubSubTopic)
    }

    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Distribution => "distribution",
            Self::PubSub => "pubsub",
            Self::PubSubTopic => "pubsub-topic",
            Self::CloudEvents => "cloudevents",
            Self::CloudEventsBinary => "cloudevents-binary",
        }
    }
}

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EventAction {
    /// Something came in, or a tag was set.
    Push,
    /// Something was read.
    Pull,
    /// A blob was linked from another repository.
    Mount,
    /// Something was removed.
    Delete,
}

impl Endpoint {
    /// What is told, where `actions` doesn't say it too.
    pub fn told(&self) -> Vec<EventAction> {
        let every: &[EventAction] = match self.format.is_gcr() {
            true => &[EventAction::Push, EventAction::Delete],
            false => &[EventAction::Push, EventAction::Mount, EventAction::Delete],
        };
        if self.actions.is_empty() { every.to_vec() } else { self.actions.clone() }
    }
}

/// A hundred thousand of a kilobyte each are what an index can spare, and some days of a busy registry.
const MAX_PENDING: NonZeroU32 = NonZeroU32::new(100_000).expect("it is not zero");
/// More than anybody reads.
const MAX_DEAD: NonZeroU32 = NonZeroU32::new(10_000).expect("it is not zero");

impl Default for Events {
    fn default() -> Self {
        Self { endpoints: BTreeMap::new(), max_pending: MAX_PENDING, max_dead: MAX_DEAD }
    }
}

/// As long as Pub/Sub waits before it pushes again.
fn timeout() -> Text<Duration> {
    Text(Duration::from_secs(10))
}

fn concurrency() -> NonZeroU32 {
    const FEW: NonZeroU32 = NonZeroU32::new(4).expect("it is not zero");
    FEW
}

/// A weekend, and the day on which somebody sees what broke.
fn max_age() -> Text<Duration> {
    Text(Duration::from_secs(72 * 3600))
}

/// Where an endpoint is. The path and the query of many are their only secret, so no more than the host is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl(String);

impl EndpointUrl {
    /// The whole URL, for the client that connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The URL up to its query.
    pub fn without_query(&self) -> &str {
        self.0.split('?').next().unwrap_or_default()
    }
}

impl Written for EndpointUrl {
    const NAME: &'static str = "EndpointUrl";
    const WANT: &'static str = "an http or https URL without a user, such as \"https://ci.example.com/hooks/berth\" (what logs in goes into headers)";

    fn read(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let good = !authority.host().is_empty() && !authority.as_str().ends_with(':') && !text.contains('#');
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        let hidden = if rest.trim_end_matches('/') == host { "" } else { MASK };
        format!("{scheme}://{host}/{hidden}")
    }
}

/// A topic of Pub/Sub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic(String);

impl Topic {
    /// `projects/PROJECT/topics/TOPIC`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Written for Topic {
    const NAME: &'static str = "Topic";
    const WANT: &'static str = "\"projects/PROJECT/topics/TOPIC\"";

    fn read(text: &str) -> Option<Self> {
        // A project of a domain is called `example.com:project`. Names begin with a letter.
        let is_name = |name: &str, more: &str| {
            name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.chars().all(|char| char.is_ascii_alphanumeric() || more.contains(char))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let ["projects", project, "topics", topic] = *parts else { return None };
        (is_name(project, "-.:") && is_name(topic, "-_.~+%")).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Headers that an endpoint wants, shown to nobody, since most of them are there to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Headers {
    /// Each with its value.
    pub fn reveal(&self) -> &[(HeaderName, HeaderValue)] {
        &self.0
    }
}

impl Written for Headers {
    const NAME: &'static str = "Headers";
    const WANT: &'static str = "one header a line, as \"Name: value\", of printable ASCII";

    fn read(text: &str) -> Option<Self> {
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            let mut value = HeaderValue::from_str(value).ok().filter(|_| !value.is_empty() && value.is_ascii())?;
            value.set_sensitive(true);
            Some((name.parse().ok()?, value))
        };
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let headers: Vec<_> = lines.map(header).collect::<Option<_>>()?;
        (!headers.is_empty()).then_some(Self(headers))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// The secrets that sign what is sent, shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecrets(Vec<Vec<u8>>);

impl WebhookSecrets {
    /// The bytes of each.
    pub fn reveal(&self) -> &[Vec<u8>] {
        &self.0
    }
}

impl Written for WebhookSecrets {
    const NAME: &'static str = "WebhookSecrets";
    const WANT: &'static str =
        "\"whsec_\" followed by the base64 of 24 to 64 bytes, or several of these with spaces between them";

    fn read(text: &str) -> Option<Self> {
        // https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md has the bounds.
        let secret = |word: &str| {
            let bytes = STANDARD.decode(word.strip_prefix("whsec_")?).ok()?;
            (24..=64).contains(&bytes.len()).then_some(bytes)
        };
        let secrets: Vec<_> = text.split_whitespace().map(secret).collect::<Option<_>>()?;
        (!secrets.is_empty()).then_some(Self(secrets))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn no_more_of_a_url_than_its_host_is_shown() {
        for (text, shown) in [
            ("https://a.example", "https://a.example/"),
            ("https://a.example/", "https://a.example/"),
            ("http://a.example:8080/hook/s3cret", "http://a.example:8080/***"),
            ("https://a.example?token=s3cret", "https://a.example/***"),
            ("https://[::1]:1/x", "https://[::1]:1/***"),
        ] {
            assert_eq!(EndpointUrl::read(text).unwrap().write(), shown);
        }
        for bad in
            ["ftp://a", "https://u:p@a/", "https://", "a.example", "https://a/#x", "https://a:/", "https://a/\r\nX: y"]
        {
            assert!(EndpointUrl::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn headers_cannot_smuggle_others_in() {
        let headers = Headers::read("Authorization: Bearer s3cret\n\nX-Team: a b").unwrap();
        let [(first, token), (second, team)] = headers.reveal() else { panic!("two") };
        assert_eq!(
            (first.as_str(), token.as_bytes(), second.as_str(), team.as_bytes()),
            ("authorization", &b"Bearer s3cret"[..], "x-team", &b"a b"[..])
        );
        assert!(!format!("{:?} {}", token, Text(headers.clone())).contains("s3cret"));
        for bad in ["", "X-Team", "X Team: a", ": a", "X-Team:", "X-Team: a\rHost: b", "X-Team: \u{e9}", "X-Team: a\0"]
        {
            assert!(Headers::read(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_those_of_standard_webhooks() {
        let one = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert_eq!(WebhookSecrets::read(one).unwrap().reveal()[0].len(), 24);
        assert_eq!(WebhookSecrets::read(&format!("{one}\n {one}")).unwrap().reveal().len(), 2);
        for bad in [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_c2hvcnQ=",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        ] {
            assert!(WebhookSecrets::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_topic_is_named_in_full() {
        assert!(Topic::read("projects/example.com:my-project/topics/gcr").is_some());
        for bad in
            ["gcr", "projects/p/topics/", "projects/p/topics/a/b", "projects/p/topics/a?b", "projects/../topics/a"]
        {
            assert!(Topic::read(bad).is_none(), "{bad}");
        }
    }
}
