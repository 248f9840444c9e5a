//! A small client of the protocol for tests, over a socket or straight into a router: the same checks run
//! against both.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;

use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tower::ServiceExt;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What a registry answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What was asked, for messages.
    asked: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// Fails unless the status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}: {:?} {:?}", self.asked, self.headers, self.text());
        self
    }

    /// Fails unless it is this error.
    #[track_caller]
    pub(crate) fn expect_error(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.json()["errors"][0]["code"], code, "{}: {}", answer.asked, answer.text());
        answer
    }

    /// A header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The path to go on at.
    #[track_caller]
    pub(crate) fn location(&self) -> String {
        let location = self.header("location");
        assert!(location.starts_with("/v2/"), "{}: no relative Location, but {location:?}", self.asked);
        location.to_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.asked, self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(1000)]).into_owned()
    }
}

/// How a request gets there.
#[derive(Clone, Debug)]
enum Way {
    Socket(reqwest::Client, String),
    Router(Router),
}

/// A client; clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Client(Way);

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:5000`.
    pub(crate) fn remote(base: &str) -> Self {
        let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        // Its default gives up on who takes no more bytes for 30 seconds, as a server does that is short of memory.
        Self::with(builder.tcp_user_timeout(None).build().unwrap(), base)
    }

    /// The same with a client of HTTP that was made for it.
    pub(crate) fn with(client: reqwest::Client, base: &str) -> Self {
        Self(Way::Socket(client, base.to_owned()))
    }

    /// A client of a router in this process.
    pub(crate) fn router(router: Router) -> Self {
        Self(Way::Router(router))
    }

    /// Sends a request whose length is announced. An error is one of the connection: whether the request was
    /// done is not known.
    pub(crate) async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let body: Bytes = body.into();
        match &self.0 {
            Way::Socket(client, base) => remote(client, base, method, path, headers, body.into()).await,
            Way::Router(router) => Ok(local(router, method, path, headers, Body::from(body)).await),
        }
    }

    /// The same where the connection must not break.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    /// The same with a body that comes in pieces, of a length that nobody announced.
    pub(crate) async fn stream(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        pieces: impl Iterator<Item = Bytes> + Send + 'static,
    ) -> Answer {
        let pieces = stream::iter(pieces.map(Ok::<_, std::io::Error>));
        match &self.0 {
            Way::Socket(client, base) => {
                remote(client, base, method, path, headers, reqwest::Body::wrap_stream(pieces)).await.unwrap()
            }
            Way::Router(router) => local(router, method, path, headers, Body::from_stream(pieces)).await,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Bytes::new()).await
    }

    /// GETs a blob as clients do: from elsewhere, where the registry sends them there.
    pub(crate) async fn fetch(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let answer = self.send("GET", path, headers, Bytes::new()).await;
        if answer.status != 307 {
            return answer;
        }
        let elsewhere = answer.header("location");
        let mut fetched =
            remote(&reqwest::Client::new(), elsewhere, "GET", "", headers, reqwest::Body::default()).await.unwrap();
        // Only the registry knows it, so that is where clients learn it.
        fetched.headers.insert("docker-content-digest", answer.headers["docker-content-digest"].clone());
        fetched
    }

    pub(crate) async fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[], Bytes::new()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str) -> Answer {
        self.send("POST", path, &[], Bytes::new()).await
    }

    /// Starts an upload; returns where it goes on.
    pub(crate) async fn start_upload(&self, repository: &str) -> String {
        self.post(&format!("/v2/{repository}/blobs/uploads/")).await.expect(202).location()
    }

    /// Pushes a blob by POST and PUT; returns its SHA-256 digest.
    pub(crate) async fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        let bytes: Bytes = bytes.into();
        let digest = sha256(&bytes);
        let location = self.start_upload(repository).await;
        self.send("PUT", &closing(&location, &digest), &[], bytes).await.expect(201);
        digest
    }

    /// Fails unless the blob is there and whole.
    pub(crate) async fn expect_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let answer = self.fetch(&format!("/v2/{repository}/blobs/{digest}"), &[]).await.expect(200);
        assert!(answer.body == bytes, "{digest}: {} bytes that differ", answer.body.len());
        assert_eq!(answer.header("docker-content-digest"), digest);
    }

    /// Pushes a manifest under a tag or a digest.
    pub(crate) async fn push_manifest(&self, repository: &str, reference: &str, manifest: &Value) -> Answer {
        let media_type = manifest["mediaType"].as_str().unwrap();
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send("PUT", &path, &[("content-type", media_type)], manifest.to_string()).await
    }

    /// Pushes an image of these layers, and its config; returns the manifest.
    pub(crate) async fn push_image(&self, repository: &str, tag: &str, layers: &[Bytes]) -> Value {
        let config = Bytes::from(json!({"architecture": "amd64", "os": "linux", "author": tag}).to_string());
        self.push_blob(repository, config.clone()).await;
        for layer in layers {
            self.push_blob(repository, layer.clone()).await;
        }
        let manifest = image(&config, layers);
        self.push_manifest(repository, tag, &manifest).await.expect(201);
        manifest
    }
}

/// An image's manifest.
pub(crate) fn image(config: &[u8], layers: &[Bytes]) -> Value {
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config), "layers": layers})
}

/// What names these bytes in a manifest.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

/// An upload's URL with one parameter more.
pub(crate) fn with(location: &str, parameter: &str) -> String {
    format!("{location}{}{parameter}", if location.contains('?') { '&' } else { '?' })
}

/// The URL that closes an upload.
pub(crate) fn closing(location: &str, digest: &str) -> String {
    with(location, &format!("digest={digest}"))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that no compression shortens and that differ by `seed`, the same at each call.
pub(crate) fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

async fn remote(
    client: &reqwest::Client,
    base: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: reqwest::Body,
) -> Result<Answer, String> {
    let text = |error: reqwest::Error| format!("{method} {path}: {error:?}");
    let mut request = client.request(method.parse().unwrap(), format!("{base}{path}"));
    if !matches!(method, "GET" | "HEAD") {
        request = request.body(body);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.map_err(text)?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.map_err(text)?;
    Ok(Answer { asked: format!("{method} {path}"), status, headers, body })
}

async fn local(router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { asked: format!("{method} {path}"), status: head.status.as_u16(), headers: head.headers, body }
}
