//! The envelope of CNCF Distribution's notifications, one event in each.
//! <https://distribution.github.io/distribution/about/notifications/>

use std::net::IpAddr;

use serde::Serialize;

use super::{EventFact, EventTarget, Message, Teller, json, parts};
use crate::index::facts::Action;

#[derive(Serialize)]
struct Envelope<'a> {
    events: [Event<'a>; 1],
}

#[derive(Serialize)]
struct Event<'a> {
    id: String,
    timestamp: String,
    action: Action,
    target: Target<'a>,
    request: Request<'a>,
    actor: Actor<'a>,
    source: Source<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    /// The size again, as its first consumers knew it.
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    repository: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    useragent: Option<&'a str>,
}

#[derive(Serialize)]
struct Actor<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Source<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<&'a str>,
    #[serde(rename = "instanceID")]
    instance_id: String,
}

pub(super) fn message(event: &EventFact, teller: &Teller<'_>) -> Message {
    let request = event.request.as_ref();
    let host = teller.host(event);
    let event = Event {
        id: event.id.to_string(),
        timestamp: event.at.rfc3339_millis(),
        action: event.action,
        target: target(event, teller),
        request: Request {
            id: request.map(|request| request.id.as_str()),
            addr: request.and_then(|request| request.addr),
            host,
            method: request.map(|request| request.method.as_str()),
            useragent: request.map(|request| request.user_agent.as_str()).filter(|agent| !agent.is_empty()),
        },
        actor: Actor { name: &event.by },
        source: Source { addr: host, instance_id: teller.replica.to_string() },
    };
    Message {
        content_type: "application/vnd.docker.distribution.events.v2+json",
        headers: Vec::new(),
        body: json(&Envelope { events: [event] }),
    }
}

fn target<'a>(event: &'a EventFact, teller: &Teller<'_>) -> Target<'a> {
    let parts = event.target.as_ref().map(parts);
    let kind = match &event.target {
        Some(EventTarget::Blob(..)) => "blobs",
        Some(EventTarget::Manifest(_)) | None => "manifests",
    };
    let url = teller.origin(event).zip(parts);
    Target {
        media_type: parts.map(|(media_type, _, _)| media_type),
        size: parts.map(|(_, _, size)| size),
        digest: parts.map(|(_, digest, _)| digest.as_str()),
        length: parts.map(|(_, _, size)| size),
        repository: event.repository.as_str(),
        from_repository: event.from.as_ref().map(|from| from.as_str()),
        url: url.map(|(origin, (_, digest, _))| format!("{origin}/v2/{}/{kind}/{digest}", event.repository)),
        tag: event.tag.as_ref().map(|tag| tag.as_str()),
    }
}
