//! Asking those who give tokens and signatures: neither the pace of a store nor that of an endpoint is theirs.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};

use crate::outbound::{Way, on_one_line, pause_before, text_of};

/// How often somebody is asked again who failed, each time after a random and longer while.
const RETRIES: usize = 2;

/// As much as is shown of an answer that says nothing in the forms that are known, in bytes.
const SHOWN: usize = 300;

/// The largest answer that is read, in bytes: tokens and signatures have a few thousand.
const MAX_ANSWER: usize = 256 << 10;

/// A way to whoever gives tokens and signatures.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    way: Way,
    /// For a whole answer.
    patience: Duration,
}

impl Exchange {
    /// By this way; an answer may take so long.
    pub(crate) fn new(way: Way, patience: Duration) -> Self {
        Self { way, patience }
    }

    /// Asks for text.
    pub(super) async fn get_text(&self, url: &str, headers: &[(&str, &str)]) -> Result<String, String> {
        String::from_utf8(self.get(url, headers).await?).map_err(|_| strange(url))
    }

    /// Asks for JSON.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, url: &str, headers: &[(&str, &str)]) -> Result<T, String> {
        read(url, &self.get(url, headers).await?)
    }

    /// Sends a form, for an answer in JSON.
    pub(super) async fn post_form<T: DeserializeOwned>(&self, url: &str, form: &[(&str, &str)]) -> Result<T, String> {
        read(url, &self.send(url, |http, url| http.post(url).form(form)).await?)
    }

    /// Sends JSON, for an answer in JSON.
    pub(crate) async fn post_json<T: DeserializeOwned>(
        &self,
        url: &str,
        (name, token): (&str, String),
        body: &impl Serialize,
    ) -> Result<T, String> {
        read(url, &self.send(url, |http, url| http.post(url).header(name, &token).json(body)).await?)
    }

    async fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>, String> {
        let make = |http: &Client, url| {
            headers.iter().fold(http.get(url), |request, (name, value)| request.header(*name, *value))
        };
        self.send(url, make).await
    }

    /// The answer to a request that may be repeated; or, in one line, why there is none.
    async fn send(&self, url: &str, make: impl Fn(&Client, Url) -> RequestBuilder) -> Result<Vec<u8>, String> {
        let to: Url = url.parse().map_err(|_| format!("{:?} is no URL", host_of(url)))?;
        let client = self.way.to(to.host_str());
        let mut failures = 0;
        loop {
            let (failure, is_passing) = match answer(make(client, to.clone()).timeout(self.patience)).await {
                Ok((status, answer)) if status.is_success() => return Ok(answer),
                Ok((status, answer)) => {
                    let is_passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    (format!("{} answered {}: {}", host_of(url), status.as_u16(), said(&answer)), is_passing)
                }
                Err(error) => (format!("{} did not answer: {error}", host_of(url)), true),
            };
            failures += 1;
            if !is_passing || failures > RETRIES {
                return Err(failure);
            }
            tokio::time::sleep(pause_before(failures)).await;
        }
    }
}

/// The answer to one request, of which as much is read as there should be at the most.
async fn answer(request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), String> {
    // The URL may hold a secret.
    let failed = |error: reqwest::Error| text_of(&error.without_url());
    let mut answer: Response = request.send().await.map_err(failed)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ANSWER {
            return Err(format!("it said more than {MAX_ANSWER} bytes"));
        }
    }
    Ok((answer.status(), bytes))
}

/// Reads an answer, of which nothing is shown: it may hold a token.
fn read<T: DeserializeOwned>(url: &str, answer: &[u8]) -> Result<T, String> {
    serde_json::from_slice(answer).map_err(|_| strange(url))
}

fn strange(url: &str) -> String {
    format!("{} gave an answer that is not what it should be", host_of(url))
}

/// What an answer says went wrong: the message of Google's errors or of OAuth's, else its beginning.
pub(crate) fn said(answer: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let known = [&json["error"]["message"], &json["error_description"], &json["error"]];
    match known.into_iter().find_map(serde_json::Value::as_str) {
        Some(message) => on_one_line(message),
        None => on_one_line(&String::from_utf8_lossy(&answer[..answer.len().min(SHOWN)])),
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}
