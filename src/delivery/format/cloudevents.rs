//! CloudEvents 1.0 by HTTP, in structured and in binary mode.
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};
use serde::Serialize;

use super::{EventFact, EventTarget, Message, Teller, json, parts};
use crate::index::facts::{Action, RequestFact};

/// What each type begins with: ours alone, as the specification wants it.
const PREFIX: &str = "io.github.berth-registry";

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    subject: &'a str,
    time: String,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    action: Action,
    repository: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    actor: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Request<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<IpAddr>,
    origin: &'a str,
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
}

impl<'a> Request<'a> {
    fn of(request: &'a RequestFact) -> Self {
        let RequestFact { id, addr, origin, method, user_agent } = request;
        Self { id, addr: *addr, origin, method, user_agent }
    }
}

/// `<prefix>.tag.pushed`, `….manifest.deleted`, `….blob.mounted` and so on.
fn kind(event: &EventFact) -> String {
    let noun = match (&event.tag, &event.target) {
        (_, Some(EventTarget::Blob(..))) => "blob",
        (Some(_), _) => "tag",
        (None, _) => "manifest",
    };
    let verb = match event.action {
        Action::Push => "pushed",
        Action::Pull => "pulled",
        Action::Mount => "mounted",
        Action::Delete => "deleted",
    };
    format!("{PREFIX}.{noun}.{verb}")
}

fn event<'a>(event: &'a EventFact, teller: &Teller<'_>) -> Event<'a> {
    let parts = event.target.as_ref().map(parts);
    let (tag, digest) = (event.tag.as_ref().map(|tag| tag.as_str()), parts.map(|(_, digest, _)| digest.as_str()));
    Event {
        specversion: "1.0",
        id: event.id.to_string(),
        // The two together are unique, as the specification wants it.
        source: format!("{}/v2/{}", teller.origin(event).unwrap_or_default(), event.repository),
        kind: kind(event),
        subject: tag.or(digest).unwrap_or_default(),
        time: event.at.rfc3339_millis(),
        datacontenttype: "application/json",
        data: Data {
            action: event.action,
            repository: event.repository.as_str(),
            tag,
            digest,
            media_type: parts.map(|(media_type, _, _)| media_type),
            size: parts.map(|(_, _, size)| size),
            from: event.from.as_ref().map(|from| from.as_str()),
            actor: &event.by,
            request: event.request.as_ref().map(Request::of),
        },
    }
}

/// All of it in one document.
pub(super) fn structured(fact: &EventFact, teller: &Teller<'_>) -> Message {
    Message { content_type: "application/cloudevents+json", headers: Vec::new(), body: json(&event(fact, teller)) }
}

/// Its attributes in headers, its data in the body.
pub(super) fn binary(fact: &EventFact, teller: &Teller<'_>) -> Message {
    let event = event(fact, teller);
    let attributes = [
        ("ce-specversion", event.specversion),
        ("ce-id", &event.id),
        ("ce-source", &event.source),
        ("ce-type", &event.kind),
        ("ce-subject", event.subject),
        ("ce-time", &event.time),
    ];
    let header = |(name, value): (&'static str, &str)| {
        // What is encoded so is printable ASCII.
        Some((HeaderName::from_static(name), HeaderValue::from_str(&encoded(value)).ok()?))
    };
    let headers = attributes.into_iter().filter(|(_, value)| !value.is_empty()).filter_map(header).collect();
    Message { content_type: event.datacontenttype, headers, body: json(&event.data) }
}

/// A value for a header: what is no printable ASCII, spaces, quotes and percent signs are percent-encoded (section
/// 3.1.3.2 of the binding).
fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => text.push_str(&format!("%{byte:02X}")),
            0x21..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
