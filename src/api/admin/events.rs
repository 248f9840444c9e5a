//! The part of the admin API about events: what waits for each endpoint, what was given up, and a sample.

use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{AdminApi, read, respond};
use crate::{
    delivery::{EndpointState, Tried, Which},
    error::Result,
    index::facts::{Action, DeliveryFact, EventTarget},
    roster::manage::Manager,
    storage::{StoreTime, key::EntryName},
};

#[derive(Serialize)]
struct Endpoints {
    endpoints: Vec<EndpointShape>,
}

#[derive(Serialize)]
struct EndpointShape {
    name: EntryName,
    /// Missing for one that this replica doesn't serve, as is the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'static str>,
    /// The URL as far as it is shown, or the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    pending: u64,
    /// Since when the oldest waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
    dead: u64,
}

#[derive(Serialize)]
struct Letters {
    /// How many there are in all.
    count: u64,
    letters: Vec<LetterShape>,
}

#[derive(Serialize)]
struct LetterShape {
    id: Ulid,
    at: String,
    action: Action,
    repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    actor: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl LetterShape {
    fn of(fact: DeliveryFact) -> Self {
        let DeliveryFact { event, attempts, next, last, replayed: _ } = fact;
        let digest = event.target.map(|target| match target {
            EventTarget::Manifest(target) => target.digest.to_string(),
            EventTarget::Blob(digest, _) => digest.to_string(),
        });
        Self {
            id: event.id,
            at: event.at.rfc3339(),
            action: event.action,
            repository: event.repository.to_string(),
            tag: event.tag.map(|tag| tag.to_string()),
            digest,
            actor: event.by,
            attempts,
            last,
            next: next.map(StoreTime::rfc3339),
        }
    }
}

/// Which dead letters are to be delivered again.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Replay {
    /// All, where it is missing or empty.
    #[serde(default)]
    ids: Vec<Ulid>,
}

#[derive(Serialize)]
struct Replayed {
    replayed: u64,
}

#[derive(Serialize)]
struct TriedShape {
    taken: bool,
    said: String,
    milliseconds: u128,
}

/// An event tells of any repository, so all of this is for those who administer every one.
impl AdminApi {
    pub(super) async fn endpoints(&self, manager: &Manager) -> Result<Response> {
        manager.require_everything()?;
        let shape = |state: EndpointState| {
            let EndpointState { name, format, place, pending, oldest, dead } = state;
            EndpointShape { name, format, place, pending, oldest: oldest.map(StoreTime::rfc3339), dead }
        };
        let endpoints = self.deliverer.states().await?.into_iter().map(shape).collect();
        respond::json(&Endpoints { endpoints })
    }

    pub(super) async fn letters(&self, manager: &Manager, name: &EntryName, which: Which) -> Result<Response> {
        manager.require_everything()?;
        let found = self.deliverer.letters(name, which).await?;
        let letters = found.letters.into_iter().map(LetterShape::of).collect();
        respond::json(&Letters { count: found.count, letters })
    }

    pub(super) async fn replay(&self, manager: &Manager, name: &EntryName, body: &Bytes) -> Result<Response> {
        manager.require_everything()?;
        let Replay { ids } = if body.is_empty() { Replay::default() } else { read(body)? };
        respond::json(&Replayed { replayed: self.deliverer.replay(name, &ids).await? })
    }

    pub(super) async fn test(&self, manager: &Manager, name: &EntryName) -> Result<Response> {
        manager.require_everything()?;
        let Tried { taken, said, took } = self.deliverer.test(name).await?;
        respond::json(&TriedShape { taken, said, milliseconds: took.as_millis() })
    }
}
