//! The forms in which an endpoint is told of an event. `docs/notifications.md` shows a sample of each, which the
//! tests here compare with what is made.

mod cloudevents;
mod distribution;
mod gcr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use ulid::Ulid;

use crate::{
    config::EventFormat,
    event::BLOB,
    index::facts::{EventFact, EventTarget},
    oci::Digest,
    storage::key::EntryName,
};

/// What is sent of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) content_type: &'static str,
    /// Headers that are part of the form.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

/// What is told beside the event itself.
#[derive(Clone, Debug)]
pub(super) struct Teller<'a> {
    /// Which endpoint is told.
    pub(super) endpoint: &'a EntryName,
    /// How clients name the registry, where a request doesn't say it: scheme and host.
    pub(super) public_url: Option<&'a str>,
    /// Which replica tells.
    pub(super) replica: Ulid,
}

impl Teller<'_> {
    /// How clients name the registry: scheme and host.
    fn origin<'a>(&'a self, event: &'a EventFact) -> Option<&'a str> {
        let asked = event.request.as_ref().map(|request| request.origin.as_str());
        asked.filter(|origin| !origin.is_empty()).or(self.public_url)
    }

    /// The host of that, with its port.
    fn host<'a>(&'a self, event: &'a EventFact) -> Option<&'a str> {
        self.origin(event)?.split_once("://").map(|(_, host)| host)
    }
}

/// An event in this form.
pub(super) fn message(format: EventFormat, event: &EventFact, teller: &Teller<'_>) -> Message {
    match format {
        EventFormat::Distribution => distribution::message(event, teller),
        EventFormat::PubSub => gcr::push(event, teller),
        EventFormat::PubSubTopic => gcr::publication(event, teller),
        EventFormat::CloudEvents => cloudevents::structured(event, teller),
        EventFormat::CloudEventsBinary => cloudevents::binary(event, teller),
    }
}

/// The parts of a target: media type, digest and size in bytes.
fn parts(target: &EventTarget) -> (&str, &Digest, u64) {
    match target {
        EventTarget::Manifest(target) => (&target.media_type, &target.digest, target.size),
        EventTarget::Blob(digest, size) => (BLOB, digest, *size),
    }
}

fn json(value: &impl Serialize) -> Bytes {
    // Our own shapes have no map keys but text and no failing serializer.
    serde_json::to_vec(value).unwrap_or_default().into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{
        index::facts::{Action, RequestFact, Target},
        storage::StoreTime,
    };

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest() -> Digest {
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".parse().unwrap()
    }

    fn pushed() -> EventFact {
        EventFact {
            id: "01JDCQ4ZJ8W5R0N1T8M6K3X7YB".parse().unwrap(),
            at: StoreTime(1_764_072_000_123),
            action: Action::Push,
            repository: "team/app".parse().unwrap(),
            tag: Some("v1".parse().unwrap()),
            target: Some(EventTarget::Manifest(Target { digest: digest(), media_type: IMAGE.to_owned(), size: 1234 })),
            from: None,
            by: "account:ci".to_owned(),
            request: Some(RequestFact {
                id: "6f1f1e9a".to_owned(),
                addr: Some("192.0.2.7".parse().unwrap()),
                origin: "https://r.example.com".to_owned(),
                method: "PUT".to_owned(),
                user_agent: "docker/28.0".to_owned(),
            }),
        }
    }

    fn made(format: EventFormat, event: &EventFact) -> Message {
        let endpoint = "ci".parse().unwrap();
        let replica = "01JDCQ0000000000000000000A".parse().unwrap();
        message(format, event, &Teller { endpoint: &endpoint, public_url: Some("https://public.example"), replica })
    }

    fn body(format: EventFormat, event: &EventFact) -> Value {
        serde_json::from_slice(&made(format, event).body).unwrap()
    }

    /// The samples of a kind in the documentation, in its order.
    fn samples() -> Vec<Value> {
        let page = include_str!("../../docs/notifications.md");
        let blocks = page.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
        blocks.map(|block| serde_json::from_str(block).unwrap_or_else(|error| panic!("{error}: {block}"))).collect()
    }

    #[test]
    fn the_documentation_shows_what_is_sent() {
        let samples = samples();
        let [distribution, push, message, structured, data] = &*samples else { panic!("{} samples", samples.len()) };
        assert_eq!(body(EventFormat::Distribution, &pushed()), *distribution);
        let sent = body(EventFormat::PubSub, &pushed());
        assert_eq!(sent, *push);
        assert_eq!(gcr::decoded(&sent["message"]["data"]), *message);
        assert_eq!(body(EventFormat::CloudEvents, &pushed()), *structured);
        assert_eq!(structured["data"], *data);
        assert_eq!(body(EventFormat::CloudEventsBinary, &pushed()), *data);
    }

    #[test]
    fn a_removed_tag_has_no_digest_and_a_removed_manifest_no_tag() {
        let tag = EventFact { action: Action::Delete, target: None, ..pushed() };
        let target = &body(EventFormat::Distribution, &tag)["events"][0]["target"];
        assert_eq!(*target, serde_json::json!({ "repository": "team/app", "tag": "v1" }));
        let message = gcr::decoded(&body(EventFormat::PubSub, &tag)["message"]["data"]);
        assert_eq!(message, serde_json::json!({ "action": "DELETE", "tag": "r.example.com/team/app:v1" }));
        let event = body(EventFormat::CloudEvents, &tag);
        assert_eq!((&event["subject"], &event["data"]["digest"]), (&"v1".into(), &Value::Null));
        let manifest = EventFact { action: Action::Delete, tag: None, ..pushed() };
        let message = gcr::decoded(&body(EventFormat::PubSub, &manifest)["message"]["data"]);
        let reference = format!("r.example.com/team/app@{}", digest());
        assert_eq!(message, serde_json::json!({ "action": "DELETE", "digest": reference }));
        let event = body(EventFormat::CloudEvents, &manifest);
        assert_eq!(event["type"], "io.github.berth-registry.manifest.deleted");
        assert_eq!(event["subject"], digest().as_str());
    }

    #[test]
    fn a_mounted_blob_says_where_it_came_from() {
        let event = EventFact {
            action: Action::Mount,
            tag: None,
            target: Some(EventTarget::Blob(digest(), 7)),
            from: Some("team/base".parse().unwrap()),
            ..pushed()
        };
        let target = &body(EventFormat::Distribution, &event)["events"][0]["target"];
        assert_eq!((&target["fromRepository"], &target["mediaType"]), (&"team/base".into(), &BLOB.into()));
        assert_eq!(target["url"], format!("https://r.example.com/v2/team/app/blobs/{}", digest()));
        let event = body(EventFormat::CloudEvents, &event);
        assert_eq!(
            (&event["type"], &event["data"]["from"]),
            (&"io.github.berth-registry.blob.mounted".into(), &"team/base".into())
        );
    }

    #[test]
    fn what_was_found_in_the_bucket_is_told_by_the_public_url() {
        let event = EventFact { request: None, ..pushed() };
        let message = gcr::decoded(&body(EventFormat::PubSub, &event)["message"]["data"]);
        assert_eq!(message["tag"], "public.example/team/app:v1");
        assert_eq!(body(EventFormat::CloudEvents, &event)["source"], "https://public.example/v2/team/app");
        let sent = body(EventFormat::Distribution, &event);
        assert_eq!(sent["events"][0]["request"], serde_json::json!({ "host": "public.example" }));
    }

    #[test]
    fn no_text_of_a_client_breaks_out_of_a_header() {
        let mut event = pushed();
        if let Some(request) = &mut event.request {
            request.origin = "https://r.example\r\nX: \u{e9}\"%".to_owned();
        }
        let sent = made(EventFormat::CloudEventsBinary, &event);
        let source = sent.headers.iter().find(|(name, _)| name == "ce-source").unwrap().1.to_str().unwrap().to_owned();
        assert_eq!(source, "https://r.example%0D%0AX:%20%C3%A9%22%25/v2/team/app");
    }
}
