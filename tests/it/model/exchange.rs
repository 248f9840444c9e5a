//! One request, and what must come back for it.

use std::fmt::{self, Display};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::calls::Place;

pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) target: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn new(method: &'static str, target: String) -> Self {
        Self { method, target, headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn body(self, body: &Bytes) -> Self {
        Self { body: body.clone(), ..self }
    }

    pub(super) fn answered(self, expected: Expected) -> Exchange {
        Exchange { request: self, expected, upload: None }
    }
}

impl Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)?;
        for (name, value) in &self.headers {
            write!(f, " [{name}: {value}]")?;
        }
        match self.body.len() {
            0 => Ok(()),
            size @ 1..=16 => write!(f, " {size} bytes {:?}", self.body),
            size => write!(f, " {size} bytes"),
        }
    }
}

/// A request, its answer, and the upload whose URL the answer tells.
pub(super) struct Exchange {
    pub(super) request: Request,
    pub(super) expected: Expected,
    pub(super) upload: Option<Place>,
}

/// As much of an answer as is the same on every server.
#[derive(Default)]
pub(super) struct Expected {
    status: u16,
    /// The code of an error.
    code: Option<&'static str>,
    /// What more it says.
    detail: Option<Value>,
    /// Headers; an empty one must be missing.
    headers: Vec<(&'static str, String)>,
    /// The tags that were set beside the one in the path.
    tags: Vec<&'static str>,
    body: Option<Bytes>,
    json: Option<Value>,
}

/// An error with this code.
pub(super) fn refused(status: u16, code: &'static str) -> Expected {
    Expected { code: Some(code), ..Expected::status(status) }.header("cache-control", "no-store")
}

impl Expected {
    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn created(location: String, digest: impl Display) -> Self {
        Self::status(201).header("location", location).header("docker-content-digest", digest).body(Bytes::new())
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Display) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn body(self, body: Bytes) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn json(self, json: Value) -> Self {
        Self { json: Some(json), ..self }
    }

    pub(super) fn detail(self, detail: Value) -> Self {
        Self { detail: Some(detail), ..self }
    }

    pub(super) fn tags(self, tags: Vec<&'static str>) -> Self {
        Self { tags, ..self }
    }

    /// What of an answer is not as it must be.
    pub(super) fn differs(&self, request: &Request, answer: &Answer) -> Option<String> {
        if answer.status != self.status {
            return Some(format!("the status must be {}", self.status));
        }
        for (name, value) in &self.headers {
            if answer.header(name) != value {
                return Some(format!("{name} must be {value:?}"));
            }
        }
        if !answer.headers.get_all("oci-tag").iter().eq(self.tags.iter()) {
            return Some(format!("the tags must be {:?}", self.tags));
        }
        if request.method == "HEAD" {
            return (!answer.body.is_empty()).then(|| "a HEAD must have no body".to_owned());
        }
        if self.body.as_ref().is_some_and(|body| *body != answer.body) {
            return Some(format!("the body must be {:?}", self.body.as_ref().map(|body| shown(body))));
        }
        if self.json.is_none() && self.code.is_none() {
            return None;
        }
        let Ok(json) = serde_json::from_slice::<Value>(&answer.body) else {
            return Some("the body must be JSON".to_owned());
        };
        let error = &json["errors"][0];
        if let Some(wanted) = self.json.as_ref().filter(|wanted| **wanted != json) {
            return Some(format!("the body must be {wanted}"));
        }
        if let Some(code) = self.code.filter(|code| error["code"] != *code) {
            return Some(format!("the code must be {code}"));
        }
        let detail = self.detail.as_ref().filter(|detail| error["detail"] != **detail)?;
        Some(format!("the detail must be {detail}"))
    }
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().expect("text")).unwrap_or_default()
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status.as_u16())?;
        for name in ["location", "range", "content-range", "link", "docker-content-digest"] {
            if !self.header(name).is_empty() {
                write!(f, " [{name}: {}]", self.header(name))?;
            }
        }
        write!(f, " {}", shown(&self.body))
    }
}

fn shown(body: &Bytes) -> String {
    match body.len() {
        0..=500 => String::from_utf8_lossy(body).into_owned(),
        size => format!("{size} bytes"),
    }
}
