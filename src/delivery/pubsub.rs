//! A topic of Pub/Sub, published to by its REST API.
//! <https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.topics/publish>
//!
//! Only Google's own server is asked, and those whom the credentials name for a token, so no address is checked here.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header::CONTENT_TYPE};

use super::{
    endpoint::{Attempt, attempt, described},
    format::Message,
};
use crate::{
    config::{GoogleCredentials, Topic},
    google::{Credentials, Exchange, Who, bearer},
    outbound::Way,
};

/// Google's server.
const SERVER: &str = "https://pubsub.googleapis.com";

/// How long an answer with a token may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A topic, and who publishes to it.
pub(super) struct Publisher {
    url: String,
    way: Way,
    credentials: Credentials,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Publisher {
    /// A topic, and the credentials by which it is published to; without any, those that Google's own libraries would
    /// find. An emulator is shown none.
    ///
    /// # Errors
    /// Why the credentials can't be used, in one line.
    pub(super) fn new(topic: &Topic, named: Option<&GoogleCredentials>, way: Way) -> Result<Self, String> {
        let emulator = std::env::var("PUBSUB_EMULATOR_HOST").ok().filter(|host| !host.is_empty());
        let who = match (&emulator, named) {
            (Some(_), _) => Who::Nobody,
            (None, Some(named)) => Who::read(named.reveal())?,
            (None, None) => Who::find(false)?,
        };
        let server = emulator.map_or_else(|| SERVER.to_owned(), |host| format!("http://{host}"));
        let url = format!("{server}/v1/{}:publish", topic.as_str());
        let credentials = Credentials::new(Arc::new(who), Exchange::new(way.clone(), PATIENCE));
        Ok(Self { url, way, credentials })
    }

    /// Publishes a message, once.
    pub(super) async fn publish(&self, message: Message) -> Attempt {
        let token = match self.credentials.token().await {
            Ok(token) => token,
            Err(why) => return Attempt::failed(format!("there are no credentials: {why}")),
        };
        let request = self.way.outside().post(&self.url).header(CONTENT_TYPE, message.content_type).body(message.body);
        let request = match token.as_deref().map(bearer) {
            Some((name, token)) => request.header(name, token),
            None => request,
        };
        match request.send().await {
            Ok(answer) => {
                if answer.status() == StatusCode::UNAUTHORIZED {
                    // The next attempt gets a new one.
                    self.credentials.forget();
                }
                attempt(answer).await
            }
            Err(error) => Attempt::failed(described(&error)),
        }
    }
}
