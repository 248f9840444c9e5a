//! The rules of `[events]`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    super::{
        ConfigError, Sources,
        address::StorageUrl,
        events::{Endpoint, EventAction, EventFormat},
        source::dotted,
        text::Written,
        tree::{Anonymous, Config},
    },
    refuse,
};

/// How long an endpoint may take: less than a second fails over one lost packet, and what takes more than a minute
/// holds a place that others wait for.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// For how long an event is tried. Histories of tags are kept for as long, hence the end.
const MAX_AGE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3600);

/// The most requests at once: more connections than that to one server are an attack on it.
const MOST_AT_ONCE: u32 = 100;

/// The longest name, in bytes: as for accounts, as it stands in the same places.
const LONGEST_NAME: usize = 63;

/// Headers that say how a request is to be read, and those of which what is sent is made. `webhook-` and `ce-` are
/// what signatures and events are told by.
const OURS: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
const OUR_PREFIXES: [&str; 3] = ["ce-", "proxy-", "webhook-"];

pub(super) fn check(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    for (name, endpoint) in &config.events.endpoints {
        let table = |key: &str| dotted(&["events", "endpoints", name, key].map(str::to_owned));
        if name.len() > LONGEST_NAME || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let allowed =
                "want lower-case letters and digits with single '-', '.' or '_' between them, 63 bytes at most";
            return refuse(sources, &table("format"), format!("found the name {name:?}"), allowed);
        }
        let broken = check_place(endpoint)
            .or_else(|| check_what(endpoint))
            .or_else(|| check_headers(endpoint))
            .or_else(|| check_token(config, endpoint))
            .or_else(|| check_bounds(endpoint))
            .or_else(|| check_way(config, endpoint));
        if let Some((key, found, allowed)) = broken {
            return refuse(sources, &table(key), found, &allowed);
        }
    }
    Ok(())
}

/// What is wrong: which key, what was found, what is allowed.
type Broken = Option<(&'static str, String, String)>;

fn broken(key: &'static str, found: impl Into<String>, allowed: impl Into<String>) -> Broken {
    Some((key, found.into(), allowed.into()))
}

/// Where it goes to, and nothing that would have no effect there.
fn check_place(endpoint: &Endpoint) -> Broken {
    let format = endpoint.format.as_str();
    if endpoint.format != EventFormat::PubSubTopic {
        if endpoint.url.is_none() {
            return broken("url", "found nothing", "want the URL that is told");
        }
        let of_topics = [("topic", endpoint.topic.is_some()), ("credentials", endpoint.credentials.is_some())];
        let (key, _) = of_topics.into_iter().find(|(_, is_set)| *is_set)?;
        return broken(key, format!("found with format = \"{format}\""), "want it only with format = \"pubsub-topic\"");
    }
    if endpoint.topic.is_none() {
        return broken("topic", "found nothing", "want \"projects/PROJECT/topics/TOPIC\"");
    }
    let of_urls = [
        ("url", endpoint.url.is_some()),
        ("headers", endpoint.headers.is_some()),
        ("secret", endpoint.secret.is_some()),
        ("bearer", endpoint.bearer),
        ("allow", !endpoint.allow.is_empty()),
        ("redirects", endpoint.redirects),
        ("ca", endpoint.ca.is_some()),
    ];
    let (key, _) = of_urls.into_iter().find(|(_, is_set)| *is_set)?;
    broken(key, format!("found with format = \"{format}\""), "want it not to be set, as Google's own server is asked")
}

fn check_what(endpoint: &Endpoint) -> Broken {
    let asks = |action: EventAction| endpoint.actions.contains(&action);
    if endpoint.format.is_gcr() {
        let found = format!("found with format = \"{}\"", endpoint.format.as_str());
        if asks(EventAction::Pull) || asks(EventAction::Mount) {
            return broken("actions", found, "want \"push\" and \"delete\", which are all that it can say");
        }
        if endpoint.blobs {
            return broken("blobs", found, "want false, as it can say nothing of blobs");
        }
    }
    if asks(EventAction::Mount) && !endpoint.blobs {
        return broken(
            "actions",
            "found \"mount\" without blobs = true",
            "want it with blobs, as only these are mounted",
        );
    }
    None
}

fn check_headers(endpoint: &Endpoint) -> Broken {
    for (name, _) in endpoint.headers.as_ref()?.reveal() {
        let name = name.as_str();
        if OURS.contains(&name) || OUR_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return broken("headers", format!("found the header {name}"), "want none that Berth sets itself");
        }
        if name == "authorization" && endpoint.bearer {
            return broken("headers", "found the header authorization", "want it, or bearer = true, not both");
        }
    }
    None
}

fn check_token(config: &Config, endpoint: &Endpoint) -> Broken {
    if endpoint.audience.is_some() && !endpoint.bearer {
        return broken("audience", "found without bearer = true", "want both or neither");
    }
    let has_keys = config.auth.token.keys.is_some() || matches!(*config.storage.url, StorageUrl::File(_));
    // Elsewhere the configuration is refused without, unless anybody may do anything.
    if endpoint.bearer && !has_keys && config.auth.anonymous == Anonymous::Admin {
        return broken("bearer", "found without auth.token.keys", "want the keys that sign it");
    }
    None
}

fn check_bounds(endpoint: &Endpoint) -> Broken {
    for (key, span, range) in [("timeout", &endpoint.timeout, TIMEOUT), ("max_age", &endpoint.max_age, MAX_AGE)] {
        if !range.contains(&**span) {
            let allowed = format!("want \"{}\" to \"{}\"", range.start().write(), range.end().write());
            return broken(key, format!("found \"{span}\""), allowed);
        }
    }
    let at_once = endpoint.concurrency.get();
    let is_much = at_once > MOST_AT_ONCE;
    is_much.then(|| ("concurrency", format!("found {at_once}"), format!("want 1 to {MOST_AT_ONCE}")))
}

fn check_way(config: &Config, endpoint: &Endpoint) -> Broken {
    if !endpoint.proxy {
        return None;
    }
    if config.proxy.url.is_none() {
        return broken("proxy", "found without proxy.url", "want the URL of the proxy there");
    }
    let is_idle = !endpoint.allow.is_empty();
    is_idle.then(|| {
        ("allow", "found with proxy = true".to_owned(), "want one of the two, as the proxy decides".to_owned())
    })
}
