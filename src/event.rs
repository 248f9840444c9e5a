//! Events: who wants to be told of what, and by whom it was done.
//!
//! What happened is written by the commit that made it true (see [`crate::outbox`]); telling it is the business
//! of delivery. With no endpoint nothing is ever written.

use std::time::Duration;

use crate::{
    config::{Endpoint, EventAction, Events, MediaTypePattern, RepositoryPattern, TagPattern, Text},
    index::facts::{Action, EventFact, EventTarget, RequestFact},
    oci::RepositoryName,
    storage::key::EntryName,
};

/// The media type by which the registry names a blob, of which it knows no other.
pub const BLOB: &str = "application/octet-stream";

/// By whom something is done, and by which request.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    /// Who, as tags' histories say it.
    pub by: String,
    /// The request, where somebody may want to be told of it.
    pub request: Option<RequestFact>,
    /// Whether nobody is told: what is mended was told when it was made.
    pub quiet: bool,
}

impl Cause {
    /// A command of Berth's own that mends what is broken.
    pub fn mending(by: &str) -> Self {
        Self { quiet: true, ..Self::from(by) }
    }
}

impl From<&str> for Cause {
    fn from(by: &str) -> Self {
        Self { by: by.to_owned(), ..Self::default() }
    }
}

/// What one endpoint wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The endpoint.
    pub endpoint: EntryName,
    /// For how long an event is tried, and so for how long what happened may have to be told again.
    pub max_age: Duration,
    actions: Vec<EventAction>,
    repositories: Vec<Text<RepositoryPattern>>,
    tags: Vec<Text<TagPattern>>,
    media_types: Vec<Text<MediaTypePattern>>,
    blobs: bool,
}

/// The endpoints, and what each wants to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interests(Vec<Interest>);

impl Interests {
    /// Those of these endpoints.
    pub fn new(interests: Vec<Interest>) -> Self {
        Self(interests)
    }

    /// Those of the configuration.
    ///
    /// # Errors
    /// An endpoint's name that is none, which the configuration's own rules refuse.
    pub fn configured(events: &Events) -> Result<Self, crate::storage::key::InvalidEntryName> {
        let interest = |(name, endpoint): (&String, &Endpoint)| Ok(Interest::configured(name.parse()?, endpoint));
        events.endpoints.iter().map(interest).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nobody wants anything, so that no event need be made.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Interest> {
        self.0.iter()
    }

    /// Whether anybody is told of what was read.
    pub fn want_pulls(&self) -> bool {
        self.0.iter().any(|interest| interest.tells(Action::Pull))
    }

    /// Who wants this event.
    pub fn of<'a>(&'a self, event: &'a EventFact) -> impl Iterator<Item = &'a Interest> {
        self.0.iter().filter(move |interest| interest.wants(event))
    }
}

impl Interest {
    /// The interest of an endpoint of this name that is configured so.
    pub fn configured(name: EntryName, endpoint: &Endpoint) -> Self {
        Self {
            endpoint: name,
            max_age: *endpoint.max_age,
            actions: endpoint.told(),
            repositories: endpoint.repositories.clone(),
            tags: endpoint.tags.clone(),
            media_types: endpoint.media_types.clone(),
            blobs: endpoint.blobs,
        }
    }

    /// The interest of one that wants to be told everything, pulls and blobs too.
    pub fn everything(endpoint: EntryName, max_age: Duration) -> Self {
        Self {
            endpoint,
            max_age,
            actions: vec![EventAction::Push, EventAction::Pull, EventAction::Mount, EventAction::Delete],
            repositories: Vec::new(),
            tags: Vec::new(),
            media_types: Vec::new(),
            blobs: true,
        }
    }

    /// The same, without pulls.
    pub fn without_pulls(mut self) -> Self {
        self.actions.retain(|action| *action != EventAction::Pull);
        self
    }

    /// Whether the endpoint is told of this event.
    pub(crate) fn wants(&self, event: &EventFact) -> bool {
        self.tells(event.action)
            && self.is_about(&event.repository)
            && self.takes_tag(event)
            && self.takes_target(event)
    }

    fn tells(&self, action: Action) -> bool {
        self.actions.contains(&match action {
            Action::Push => EventAction::Push,
            Action::Pull => EventAction::Pull,
            Action::Mount => EventAction::Mount,
            Action::Delete => EventAction::Delete,
        })
    }

    fn is_about(&self, repository: &RepositoryName) -> bool {
        self.repositories.is_empty() || self.repositories.iter().any(|pattern| pattern.matches(repository))
    }

    fn takes_tag(&self, event: &EventFact) -> bool {
        let matches = |tag| self.tags.iter().any(|pattern| pattern.matches(tag));
        self.tags.is_empty() || event.tag.as_ref().is_some_and(matches)
    }

    fn takes_target(&self, event: &EventFact) -> bool {
        let media_type = match &event.target {
            None => return true,
            Some(EventTarget::Blob(..)) if !self.blobs => return false,
            Some(EventTarget::Blob(..)) => BLOB,
            Some(EventTarget::Manifest(target)) => &target.media_type,
        };
        self.media_types.is_empty() || self.media_types.iter().any(|pattern| pattern.matches(media_type))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use ulid::Ulid;

    use super::*;
    use crate::{config::Config, index::facts::Target, storage::StoreTime};

    fn event(action: Action, repository: &str, tag: Option<&str>, target: Option<EventTarget>) -> EventFact {
        EventFact {
            id: Ulid::nil(),
            at: StoreTime(0),
            action,
            repository: repository.parse().unwrap(),
            tag: tag.map(|tag| tag.parse().unwrap()),
            target,
            from: None,
            by: String::new(),
            request: None,
        }
    }

    fn manifest(media_type: &str) -> Option<EventTarget> {
        let digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        Some(EventTarget::Manifest(Target { digest, media_type: media_type.to_owned(), size: 2 }))
    }

    fn blob() -> Option<EventTarget> {
        Some(EventTarget::Blob(format!("sha256:{}", "b".repeat(64)).parse().unwrap(), 3))
    }

    fn wants(settings: &str, event: &EventFact) -> bool {
        let text =
            format!("[events.endpoints.ci]\nformat = \"distribution\"\nurl = \"https://ci.example\"\n{settings}");
        let config = Config::parse(Path::new("berth.toml"), &text).unwrap().config;
        Interests::configured(&config.events).unwrap().of(event).count() == 1
    }

    #[test]
    fn an_endpoint_is_told_what_it_asks_for() {
        let image = "application/vnd.oci.image.manifest.v1+json";
        let pushed = event(Action::Push, "team/app", Some("v1"), manifest(image));
        let untagged = event(Action::Push, "team/app", None, manifest(image));
        let removed = event(Action::Delete, "team/app", Some("v1"), None);
        let pulled = event(Action::Pull, "team/app", Some("v1"), manifest(image));
        let layer = event(Action::Push, "team/app", None, blob());
        let all = [&pushed, &untagged, &removed, &pulled, &layer];
        for (settings, wanted) in [
            ("", [true, true, true, false, false]),
            ("blobs = true", [true, true, true, false, true]),
            ("actions = [\"pull\"]", [false, false, false, true, false]),
            ("repositories = [\"team/*\"]", [true, true, true, false, false]),
            ("repositories = [\"other/*\"]", [false; 5]),
            ("tags = [\"v*\"]", [true, false, true, false, false]),
            ("tags = [\"main\"]", [false; 5]),
            ("media_types = [\"*helm*\"]", [false, false, true, false, false]),
            ("media_types = [\"*.image.*\"]\nblobs = true", [true, true, true, false, false]),
        ] {
            assert_eq!(all.map(|event| wants(settings, event)), wanted, "{settings}");
        }
    }

    #[test]
    fn pulls_are_noted_only_where_somebody_wants_them() {
        let endpoint = Interest::everything("ci".parse().unwrap(), Duration::from_secs(60));
        assert!(Interests::new(vec![endpoint.clone()]).want_pulls());
        assert!(!Interests::new(vec![endpoint.without_pulls()]).want_pulls());
        assert!(!Interests::default().want_pulls());
    }
}
