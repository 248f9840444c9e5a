//! Requests that the object library doesn't make: with a signature that ends with a deadline, of blocks, of a
//! listing that begins in the middle.
//!
//! Each goes out by the same way as the library's, which reads Azure's clock off the answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use object_store::{
    CredentialProvider, PutPayload,
    azure::AzureAuthorizer,
    client::{HttpRequest, HttpRequestBody},
};

use super::{
    super::{
        StoreTime,
        remote::{RETRIES, Transport},
    },
    fault::{Fault, Refusal},
    identity::Identity,
    sas::escape,
};
use crate::outbound::{pause_before, text_of};

/// The version of the service that is spoken. The library's own requests name it as well.
const VERSION: &str = "2023-11-03";

/// One request. It may hold a signature, so it is nothing for a log.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// The whole URL but for its query.
    pub(super) url: String,
    /// The query, by name and value.
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: PutPayload,
    /// The version of the service; `None` for [`VERSION`].
    pub(super) version: Option<&'static str>,
    /// A signature that goes with it in place of who asks, as a query.
    pub(super) signature: Option<String>,
}

impl Ask {
    pub(super) fn new(method: Method, url: String) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, url, query, headers, body: PutPayload::new(), version: None, signature: None }
    }

    pub(super) fn with_query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn with_body(self, body: PutPayload) -> Self {
        Self { body, ..self }
    }

    fn request(&self) -> Result<HttpRequest, http::Error> {
        let mut query: Vec<String> =
            self.query.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        query.extend(self.signature.clone());
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = http::Request::builder()
            .method(self.method.clone())
            .uri(format!("{}{mark}{}", self.url, query.join("&")))
            .header("x-ms-version", self.version.unwrap_or(VERSION))
            .header(header::CONTENT_LENGTH, self.body.content_length());
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(HttpRequestBody::from(self.body.clone()))
    }
}

/// A success.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The way to one account.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) account: String,
    pub(super) identity: Identity,
    pub(super) transport: Transport,
}

impl Service {
    /// Azure's time now.
    pub(super) fn now(&self) -> StoreTime {
        // Opening a container fails where the clock can't be set, so there is always a time.
        self.transport.clock.now().unwrap_or(StoreTime(0))
    }

    /// The same, whose requests are answered within `answer` of their last byte.
    pub(super) fn answered_within(&self, answer: Duration) -> Self {
        Self { transport: self.transport.answered_within(answer), ..self.clone() }
    }

    /// Asks again until it is answered or there is no sense in it.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, Fault> {
        let mut failures = 0;
        loop {
            match self.ask_once(ask).await {
                Err(fault) if fault.may_pass() && failures < RETRIES => failures += 1,
                answered => return answered,
            }
            tokio::time::sleep(pause_before(failures)).await;
        }
    }

    /// Asks until `deadline`, and again only if Azure itself says that it did nothing: a first request that was
    /// given up for lost could arrive after the second was confirmed.
    pub(super) async fn ask_before(&self, deadline: StoreTime, ask: &Ask) -> Result<Answer, Fault> {
        let mut failures = 0;
        loop {
            match self.ask_once(ask).await {
                Err(fault) if fault.is_too_busy() && failures < RETRIES && self.now() < deadline => failures += 1,
                answered => return answered,
            }
            tokio::time::sleep(pause_before(failures)).await;
        }
    }

    async fn ask_once(&self, ask: &Ask) -> Result<Answer, Fault> {
        let mut request = ask.request().map_err(|error| Fault::Unproven(error.to_string()))?;
        if ask.signature.is_none() {
            self.authorize(&mut request).await?;
        }
        let silent = |error| Fault::Silence(text_of(&error));
        let (parts, body) = self.transport.send(request).await.map_err(silent)?.into_parts();
        let body = body.bytes().await.map_err(silent)?;
        if parts.status.is_success() {
            return Ok(Answer { headers: parts.headers, body });
        }
        Err(Fault::Refusal(Refusal::new(parts.status, &parts.headers, &body)))
    }

    async fn authorize(&self, request: &mut HttpRequest) -> Result<(), Fault> {
        let unproven = |error: object_store::Error| Fault::Unproven(text_of(&error));
        let credential = self.identity.get_credential().await.map_err(unproven)?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(request).map_err(unproven)?;
        if let Some(proof) = request.headers_mut().get_mut(header::AUTHORIZATION) {
            HeaderValue::set_sensitive(proof, true);
        }
        Ok(())
    }
}
