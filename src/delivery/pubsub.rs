//! A topic of Pub/Sub, published to by its REST API.
//! <https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.topics/publish>
//!
//! Who publishes is found as Google's own libraries find it: a service account's key, or the metadata server of the
//! machine or the pod. Only Google's server and that one are asked, so no address is checked here.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    endpoint::{Attempt, attempt, described},
    format::Message,
};
use crate::{
    auth::{GOOGLE_LIFE, google_token},
    config::{ServiceAccount, Topic},
    storage::StoreTime,
};

/// Google's server.
const SERVER: &str = "https://pubsub.googleapis.com";

/// Whom a service account's own token is meant for: the server, with a slash at its end.
const AUDIENCE: &str = "https://pubsub.googleapis.com/";

/// How long before its end a token is no longer used.
const EARLY: Duration = Duration::from_secs(300);

/// The largest answer of the metadata server that is read, in bytes.
const MAX_TOKEN: usize = 64 << 10;

/// A topic, and who publishes to it.
pub(super) struct Publisher {
    url: String,
    publisher: Identity,
    http: Client,
    token: Mutex<Option<Token>>,
}

enum Identity {
    /// Nobody: an emulator doesn't ask.
    Nobody,
    /// The holder of a service account's key.
    Key(ServiceAccount),
    /// The holder of the key in the file of this name, which is read each time that a token is made.
    KeyFile(String),
    /// Whom the machine or the pod runs as.
    Machine,
}

struct Token {
    text: String,
    until: StoreTime,
}

/// What the metadata server answers.
#[derive(Deserialize)]
struct MachineToken {
    access_token: String,
    /// In seconds.
    expires_in: u64,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("url", &self.url).finish_non_exhaustive()
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Publisher {
    /// A topic, and the key by which it is published to; without one, as Google's own libraries would.
    pub(super) fn new(topic: &Topic, key: Option<&ServiceAccount>, http: Client) -> Self {
        let emulator = variable("PUBSUB_EMULATOR_HOST");
        let publisher = match (&emulator, key, variable("GOOGLE_APPLICATION_CREDENTIALS")) {
            (Some(_), ..) => Identity::Nobody,
            (None, Some(key), _) => Identity::Key(key.clone()),
            (None, None, Some(file)) => Identity::KeyFile(file),
            (None, None, None) => Identity::Machine,
        };
        let server = emulator.map_or_else(|| SERVER.to_owned(), |host| format!("http://{host}"));
        let url = format!("{server}/v1/{}:publish", topic.as_str());
        Self { url, publisher, http, token: Mutex::default() }
    }

    /// Publishes a message, once.
    pub(super) async fn publish(&self, message: Message, now: StoreTime) -> Attempt {
        let token = match self.token(now).await {
            Ok(token) => token,
            Err(why) => return Attempt::failed(why),
        };
        let mut request = self.http.post(&self.url).header(CONTENT_TYPE, message.content_type).body(message.body);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        match request.send().await {
            Ok(answer) => {
                if answer.status() == http::StatusCode::UNAUTHORIZED {
                    // The next attempt gets a new one.
                    *self.token.lock().await = None;
                }
                attempt(answer).await
            }
            Err(error) => Attempt::failed(described(&error)),
        }
    }

    /// What says who publishes. Who finds none that is good makes one, and the others wait for that.
    async fn token(&self, now: StoreTime) -> Result<Option<String>, String> {
        let mut kept = self.token.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.until.minus(EARLY) > now) {
            return Ok(Some(token.text.clone()));
        }
        let (text, life) = match &self.publisher {
            Identity::Nobody => return Ok(None),
            Identity::Key(key) => (google_token(key.reveal(), AUDIENCE)?, GOOGLE_LIFE),
            Identity::KeyFile(file) => {
                let read = tokio::fs::read_to_string(file).await;
                let key = read.map_err(|error| format!("GOOGLE_APPLICATION_CREDENTIALS: {error}"))?;
                (google_token(&key, AUDIENCE)?, GOOGLE_LIFE)
            }
            Identity::Machine => {
                let MachineToken { access_token, expires_in } = self.machine_token().await?;
                (access_token, expires_in)
            }
        };
        *kept = Some(Token { text: text.clone(), until: now.plus(Duration::from_secs(life)) });
        Ok(Some(text))
    }

    /// Asks the metadata server. <https://cloud.google.com/compute/docs/access/authenticate-workloads#curl>
    async fn machine_token(&self) -> Result<MachineToken, String> {
        let host = variable("GCE_METADATA_HOST").unwrap_or_else(|| "metadata.google.internal".to_owned());
        let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        let said = |why: String| format!("no token from the metadata server: {why}");
        let asked = self.http.get(url).header("Metadata-Flavor", "Google").send().await;
        let mut answer = asked.map_err(|error| said(described(&error)))?;
        if !answer.status().is_success() {
            return Err(said(answer.status().as_u16().to_string()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| said(described(&error)))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_TOKEN {
                return Err(said("it says too much".to_owned()));
            }
        }
        serde_json::from_slice(&bytes).map_err(|_| said("it says something else".to_owned()))
    }
}
