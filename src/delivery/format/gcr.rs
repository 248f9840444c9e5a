//! The message of the Pub/Sub topic `gcr`, as Container Registry and Artifact Registry publish it: within a push
//! request as Pub/Sub sends it to a subscription's endpoint, or within a request to publish it.
//! <https://cloud.google.com/artifact-registry/docs/configure-notifications>
//! <https://cloud.google.com/pubsub/docs/push> <https://cloud.google.com/pubsub/docs/reference/rest/v1/PubsubMessage>

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;

use super::{EventFact, Message, Teller, json, parts};
use crate::index::facts::Action;

/// What the message says: full references, and nothing of who, when or how large.
#[derive(Serialize)]
struct Said {
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

#[derive(Serialize)]
struct Push<'a> {
    message: Pushed<'a>,
    subscription: String,
}

/// Pub/Sub sends both spellings of each.
#[derive(Serialize)]
struct Pushed<'a> {
    attributes: BTreeMap<&'static str, &'a str>,
    data: String,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    #[serde(rename = "message_id")]
    message_id_again: &'a str,
    #[serde(rename = "publishTime")]
    publish_time: &'a str,
    #[serde(rename = "publish_time")]
    publish_time_again: &'a str,
}

#[derive(Serialize)]
struct Publication<'a> {
    messages: [Published<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Published<'a> {
    data: String,
    attributes: BTreeMap<&'static str, &'a str>,
    /// Who subscribes with ordering gets each repository's messages in their order.
    ordering_key: &'a str,
}

/// The attribute that is the same each time that an event is sent. Container Registry's messages had none.
const EVENT_ID: &str = "eventId";

fn data(event: &EventFact, teller: &Teller<'_>) -> String {
    let image = match teller.host(event) {
        Some(host) => format!("{host}/{}", event.repository),
        None => event.repository.to_string(),
    };
    let said = Said {
        // Nothing else is told in this form.
        action: if event.action == Action::Delete { "DELETE" } else { "INSERT" },
        digest: event.target.as_ref().map(|target| format!("{image}@{}", parts(target).1)),
        tag: event.tag.as_ref().map(|tag| format!("{image}:{tag}")),
    };
    STANDARD.encode(json(&said))
}

/// As a subscription's endpoint is sent it.
pub(super) fn push(event: &EventFact, teller: &Teller<'_>) -> Message {
    let (id, at) = (event.id.to_string(), event.at.rfc3339_millis());
    let message = Pushed {
        attributes: BTreeMap::from([(EVENT_ID, id.as_str())]),
        data: data(event, teller),
        message_id: &id,
        message_id_again: &id,
        publish_time: &at,
        publish_time_again: &at,
    };
    let subscription = format!("projects/berth/subscriptions/{}", teller.endpoint);
    Message { content_type: "application/json", headers: Vec::new(), body: json(&Push { message, subscription }) }
}

/// As a topic is asked to publish it.
pub(super) fn publication(event: &EventFact, teller: &Teller<'_>) -> Message {
    let id = event.id.to_string();
    let message = Published {
        data: data(event, teller),
        attributes: BTreeMap::from([(EVENT_ID, id.as_str())]),
        ordering_key: event.repository.as_str(),
    };
    Message { content_type: "application/json", headers: Vec::new(), body: json(&Publication { messages: [message] }) }
}

/// What a message's data says.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) fn decoded(data: &serde_json::Value) -> serde_json::Value {
    serde_json::from_slice(&STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap()
}
