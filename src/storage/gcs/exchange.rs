//! Asking those who give tokens and signatures: they are not the store, and neither its clock nor its pace is
//! theirs.

use bytes::Bytes;
use http::{Method, StatusCode, header::CONTENT_TYPE};
use object_store::client::HttpRequestBody;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    super::remote::{Transport, pause_before},
    signing::escaped,
};
use crate::outbound::{on_one_line, text_of};

/// How often somebody is asked again who failed, each time after a random and longer while.
const RETRIES: usize = 2;

/// As much as is shown of an answer that says nothing in the forms that are known, in bytes.
const SHOWN: usize = 300;

/// A way to whoever gives tokens and signatures.
#[derive(Clone, Debug)]
pub(super) struct Exchange(Transport);

impl Exchange {
    /// By the same connections as the store is reached.
    pub(super) fn new(store: &Transport) -> Self {
        Self(store.for_others())
    }

    /// Asks for JSON.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, url: &str, headers: &[(&str, &str)]) -> Result<T, String> {
        read(url, &self.send(Method::GET, url, headers, Vec::new()).await?)
    }

    /// Sends a form, for an answer in JSON.
    pub(super) async fn post_form<T: DeserializeOwned>(&self, url: &str, form: &[(&str, &str)]) -> Result<T, String> {
        let pairs: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let kind = [(CONTENT_TYPE.as_str(), "application/x-www-form-urlencoded")];
        read(url, &self.send(Method::POST, url, &kind, pairs.join("&").into_bytes()).await?)
    }

    /// Sends JSON, for an answer in JSON.
    pub(super) async fn post_json<T: DeserializeOwned>(
        &self,
        url: &str,
        (name, token): (&str, String),
        body: &impl Serialize,
    ) -> Result<T, String> {
        let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
        let headers = [(CONTENT_TYPE.as_str(), "application/json"), (name, &token)];
        read(url, &self.send(Method::POST, url, &headers, body).await?)
    }

    /// The answer to a request that may be repeated; or, in one line, why there is none.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Bytes, String> {
        let mut failures = 0;
        loop {
            let (failure, is_passing) = match self.send_once(&method, url, headers, body.clone()).await {
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

    async fn send_once(
        &self,
        method: &Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(HttpRequestBody::from(Bytes::from(body))).map_err(|error| error.to_string())?;
        let (parts, body) = self.0.send(request).await.map_err(|error| text_of(&error))?.into_parts();
        let body = body.bytes().await.map_err(|error| text_of(&error))?;
        Ok((parts.status, body))
    }
}

/// Reads an answer, of which nothing is shown: it may hold a token.
fn read<T: DeserializeOwned>(url: &str, answer: &[u8]) -> Result<T, String> {
    serde_json::from_slice(answer).map_err(|_| format!("{} gave an answer that is not what it should be", host_of(url)))
}

/// What an answer says went wrong: the message of Google's errors or of OAuth's, else its beginning.
pub(super) fn said(answer: &[u8]) -> String {
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
