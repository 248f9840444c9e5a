//! The uploads of the model: every way in which a blob comes to be.

use berth::oci::{Algorithm, Digest};
use bytes::{Bytes, BytesMut};

use super::{
    calls::{At, BlobName, Name, Place, Url},
    contents::{self, BLOBS, MANIFESTS, REPOSITORIES},
    exchange::{Exchange, Expected, Request, refused},
    registry::Model,
};

/// An upload that was started, and where its client stands.
pub(super) struct Upload {
    repository: Place,
    algorithm: Algorithm,
    state: State,
    /// Every URL that it has had, in order.
    urls: Vec<String>,
}

enum State {
    Open(BytesMut),
    Finished(Digest),
    Over,
}

impl Upload {
    /// Notes the URL that an answer told; what is wrong with it, if anything is.
    pub(super) fn learn(&mut self, url: &str) -> Option<String> {
        let start = format!("/v2/{}/blobs/uploads/", REPOSITORIES[self.repository]);
        let is_good = url.starts_with(&start)
            && url.contains("?_state=")
            && url.ends_with("&digest-algorithm=sha512") == (self.algorithm == Algorithm::Sha512);
        let is_same_upload = self.urls.first().is_none_or(|first| path(first) == path(url));
        if self.urls.last().is_none_or(|last| last != url) {
            self.urls.push(url.to_owned());
        }
        (!is_good || !is_same_upload).then(|| format!("location must be a URL of the upload under {start}"))
    }

    fn url(&self, which: Url) -> String {
        let newest = self.urls.last().expect("it was told when it started");
        let own = format!("/v2/{}/", REPOSITORIES[self.repository]);
        let other = format!("/v2/{}/", REPOSITORIES[(self.repository + 1) % REPOSITORIES.len()]);
        match which {
            Url::Newest => newest.clone(),
            Url::Oldest => self.urls[0].clone(),
            Url::WithoutState => format!("{}?digest-algorithm={}", path(newest), self.algorithm.as_str()),
            Url::OfAnotherRepository => newest.replacen(&own, &other, 1),
        }
    }

    fn offset(&self) -> usize {
        match &self.state {
            State::Open(bytes) => bytes.len(),
            State::Finished(_) | State::Over => 0,
        }
    }

    fn standing(&self, status: u16) -> Expected {
        Expected::status(status).header("range", format!("0-{}", self.offset().saturating_sub(1)))
    }
}

fn path(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// A refusal for what a request says of its own bytes, before anybody looks at the upload.
fn refuse_chunk(chunk: &Bytes, at: At) -> Option<Expected> {
    match at {
        // What is said of no bytes means nothing.
        _ if chunk.is_empty() => None,
        At::WrongLength => Some(refused(400, "SIZE_INVALID")),
        At::Garbled => Some(refused(416, "RANGE_INVALID")),
        _ => None,
    }
}

/// The request with its bytes, and whether they begin where the upload stands.
fn chunk(request: Request, upload: &Upload, bytes: &Bytes, at: At) -> (Request, bool) {
    let end = upload.offset();
    let begin = match at {
        At::Unsaid => return (request.body(bytes), true),
        At::Garbled => return (request.header("content-range", "all of it").body(bytes), true),
        At::End | At::WrongLength => end,
        At::Beginning => 0,
        At::BehindEnd => end + 1,
    };
    let longer = usize::from(at == At::WrongLength || bytes.is_empty());
    let last = begin + bytes.len() + longer - 1;
    (request.header("content-range", format!("{begin}-{last}")).body(bytes), begin == end || bytes.is_empty())
}

impl Model {
    /// The upload that was started as many before the last one.
    fn upload(&self, place: Place) -> Option<Place> {
        let last = self.uploads.len().checked_sub(1)?;
        Some(last - place % self.uploads.len())
    }

    fn open(&mut self, repository: Place, algorithm: Algorithm, request: Request) -> Exchange {
        let state = State::Open(BytesMut::new());
        self.uploads.push(Upload { repository, algorithm, state, urls: Vec::new() });
        let expected = Expected::status(202).header("range", "0-0").body(Bytes::new());
        Exchange { upload: Some(self.uploads.len() - 1), ..request.answered(expected) }
    }

    pub(super) fn start(&mut self, repository: Place, algorithm: Algorithm) -> Exchange {
        let target = format!("/v2/{}/blobs/uploads/?digest-algorithm={}", REPOSITORIES[repository], algorithm.as_str());
        self.open(repository, algorithm, Request::new("POST", target))
    }

    pub(super) fn append(&mut self, place: Place, url: Url, bytes: Place, at: At) -> Vec<Exchange> {
        let Some(place) = self.upload(place) else { return Vec::new() };
        let (upload, bytes) = (&mut self.uploads[place], &BLOBS[bytes]);
        let (request, is_next) = chunk(Request::new("PATCH", upload.url(url)), upload, bytes, at);
        if url == Url::OfAnotherRepository {
            return vec![request.answered(refused(404, "BLOB_UPLOAD_UNKNOWN"))];
        }
        if let Some(refused) = refuse_chunk(bytes, at) {
            return vec![request.answered(refused)];
        }
        let State::Open(there) = &mut upload.state else {
            return vec![request.answered(refused(404, "BLOB_UPLOAD_UNKNOWN"))];
        };
        if !is_next {
            return vec![request.answered(refused(416, "RANGE_INVALID"))];
        }
        there.extend_from_slice(bytes);
        vec![Exchange { upload: Some(place), ..request.answered(upload.standing(202)) }]
    }

    pub(super) fn finish(&mut self, place: Place, url: Url, bytes: Place, at: At, name: Name) -> Vec<Exchange> {
        let Some(place) = self.upload(place) else { return Vec::new() };
        let (upload, bytes) = (&self.uploads[place], &BLOBS[bytes]);
        let mut all = match &upload.state {
            State::Open(there) => there.clone(),
            State::Finished(_) | State::Over => BytesMut::new(),
        };
        all.extend_from_slice(bytes);
        let named = named(name, &all);
        let digest = named.as_ref().map_or("sha256:no", Digest::as_str);
        let target = format!("{}&digest={digest}", upload.url(url));
        let (request, is_next) = chunk(Request::new("PUT", target), upload, bytes, at);
        let Some(digest) = named else { return vec![request.answered(refused(400, "DIGEST_INVALID"))] };
        if url == Url::OfAnotherRepository {
            return vec![request.answered(refused(404, "BLOB_UPLOAD_UNKNOWN"))];
        }
        if let Some(refused) = refuse_chunk(bytes, at) {
            return vec![request.answered(refused)];
        }
        let expected = self.close(place, &all, &digest, is_next);
        vec![request.answered(expected)]
    }

    fn close(&mut self, place: Place, all: &[u8], digest: &Digest, is_next: bool) -> Expected {
        let upload = &self.uploads[place];
        let repository = upload.repository;
        let created = Expected::created(format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]), digest);
        match &upload.state {
            // The same again: the same answer, while it is true.
            State::Finished(done) if done == digest && self.has_blob(repository, digest) => {
                return created;
            }
            State::Finished(_) | State::Over => return refused(404, "BLOB_UPLOAD_UNKNOWN"),
            State::Open(_) if !is_next => return refused(416, "RANGE_INVALID"),
            State::Open(_) => {}
        }
        if Digest::of(digest.algorithm(), all) != *digest {
            self.uploads[place].state = State::Over;
            return refused(400, "DIGEST_INVALID");
        }
        self.uploads[place].state = State::Finished(digest.clone());
        self.keep(repository, digest, all);
        created
    }

    /// The repository has a blob. One of bytes that are in no list is never asked for again.
    fn keep(&mut self, repository: Place, digest: &Digest, bytes: &[u8]) {
        let place = contents::blob_of(digest);
        assert!(place.is_none_or(|place| BLOBS[place] == bytes));
        // What isn't in the list can still be what the same closing request gets.
        self.keep_blob(repository, digest, place.unwrap_or(usize::MAX));
    }

    pub(super) fn status(&mut self, place: Place, url: Url) -> Vec<Exchange> {
        let Some(place) = self.upload(place) else { return Vec::new() };
        let upload = &self.uploads[place];
        let request = Request::new("GET", upload.url(url));
        if url == Url::OfAnotherRepository || !matches!(upload.state, State::Open(_)) {
            return vec![request.answered(refused(404, "BLOB_UPLOAD_UNKNOWN"))];
        }
        vec![Exchange { upload: Some(place), ..request.answered(upload.standing(204)) }]
    }

    pub(super) fn cancel(&mut self, place: Place, url: Url) -> Vec<Exchange> {
        let Some(place) = self.upload(place) else { return Vec::new() };
        let upload = &mut self.uploads[place];
        let request = Request::new("DELETE", upload.url(url));
        if url == Url::OfAnotherRepository || !matches!(upload.state, State::Open(_)) {
            return vec![request.answered(refused(404, "BLOB_UPLOAD_UNKNOWN"))];
        }
        upload.state = State::Over;
        vec![request.answered(Expected::status(204))]
    }

    pub(super) fn push_blob(&mut self, repository: Place, place: Place, name: Name) -> Exchange {
        let bytes = &BLOBS[place];
        let named = named(name, bytes);
        let digest = named.as_ref().map_or("sha256:no", Digest::as_str);
        let target = format!("/v2/{}/blobs/uploads/?digest={digest}", REPOSITORIES[repository]);
        let request = Request::new("POST", target).body(bytes);
        let Some(digest) = named.filter(|digest| Digest::of(digest.algorithm(), bytes) == *digest) else {
            return request.answered(refused(400, "DIGEST_INVALID"));
        };
        self.keep(repository, &digest, bytes);
        request.answered(Expected::created(format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]), &digest))
    }

    pub(super) fn push_needed(&mut self, repository: Place, manifest: Place) -> Vec<Exchange> {
        let needed = MANIFESTS[manifest].needs.iter().flatten();
        let push = |digest: &Digest| {
            let place = contents::blob_of(digest).expect("manifests are of blobs in the list");
            self.push_blob(repository, place, Name::Right(digest.algorithm()))
        };
        needed.map(push).collect()
    }

    pub(super) fn mount(&mut self, repository: Place, (place, algorithm): BlobName, from: Option<Place>) -> Exchange {
        let (name, digest) = (REPOSITORIES[repository], contents::blob(place, algorithm));
        let source = from.map(|from| format!("&from={}", REPOSITORIES[from])).unwrap_or_default();
        let request = Request::new("POST", format!("/v2/{name}/blobs/uploads/?mount={digest}{source}"));
        match from {
            Some(from) if self.has_blob(from, digest) || self.has_blob(repository, digest) => {
                self.keep(repository, digest, &BLOBS[place]);
                request.answered(Expected::created(format!("/v2/{name}/blobs/{digest}"), digest))
            }
            _ => self.open(repository, algorithm, request),
        }
    }
}

/// The digest that some bytes are said to have; `None` for what is none at all.
fn named(name: Name, bytes: &[u8]) -> Option<Digest> {
    match name {
        Name::Right(algorithm) => Some(Digest::of(algorithm, bytes)),
        Name::Another((place, algorithm)) => Some(contents::blob(place, algorithm).clone()),
        Name::Garbled => None,
    }
}
