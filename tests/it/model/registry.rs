//! A registry as a client may know it: a few maps in memory, and what it would answer to each call.

use std::collections::{BTreeMap, BTreeSet};

use berth::oci::{Algorithm, Digest};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    calls::{Page, Place, Read, Reference, Said, Under, What},
    contents::{self, BLOBS, Body, LASTS, MANIFESTS, REPOSITORIES, TAGS},
    exchange::{Exchange, Expected, Request, refused},
    uploads::Upload,
};

/// What has no limit of its own ends here.
const MAX_PAGE: usize = 1000;

#[derive(Default)]
pub(super) struct Model {
    repositories: [Repository; 3],
    pub(super) uploads: Vec<Upload>,
}

#[derive(Default)]
struct Repository {
    blobs: BTreeMap<Digest, Place>,
    manifests: BTreeMap<Digest, Place>,
    tags: BTreeMap<&'static str, Digest>,
}

impl Model {
    /// All manifests, each with its repository.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&'static str, Digest)> {
        let of = |(name, repository): (&&'static str, &Repository)| {
            let name = *name;
            repository.manifests.keys().map(|digest| (name, digest.clone())).collect::<Vec<_>>()
        };
        REPOSITORIES.iter().zip(&self.repositories).flat_map(of).collect::<Vec<_>>().into_iter()
    }
}

impl Repository {
    /// Whether one of its manifests needs a blob.
    fn needs(&self, digest: &Digest) -> bool {
        let of = |place: &Place| {
            let Body { needs, children, .. } = &MANIFESTS[*place];
            needs.iter().flatten().chain(children).any(|needed| needed == digest)
        };
        self.manifests.values().any(of)
    }

    fn resolve(&self, reference: Reference) -> Option<&Digest> {
        match reference {
            Reference::Tag(tag) => self.tags.get(TAGS[tag]),
            Reference::Digest(place, algorithm) => {
                let digest = MANIFESTS[place].digest(algorithm);
                self.manifests.contains_key(digest).then_some(digest)
            }
        }
    }
}

impl Model {
    pub(super) fn has_blob(&self, repository: Place, digest: &Digest) -> bool {
        self.repositories[repository].blobs.contains_key(digest)
    }

    /// The repository has a blob, which is at this place of the list.
    pub(super) fn keep_blob(&mut self, repository: Place, digest: &Digest, place: Place) {
        self.repositories[repository].blobs.insert(digest.clone(), place);
    }

    /// Does what a call asks for; what is sent for it, and what must be answered.
    pub(super) fn take(&mut self, what: &What) -> Vec<Exchange> {
        let exchange = match what {
            What::Start { repository, algorithm } => self.start(*repository, *algorithm),
            What::Append { upload, url, chunk, at } => return self.append(*upload, *url, *chunk, *at),
            What::Finish { upload, url, chunk, at, name } => return self.finish(*upload, *url, *chunk, *at, *name),
            What::Status { upload, url } => return self.status(*upload, *url),
            What::Cancel { upload, url } => return self.cancel(*upload, *url),
            What::PushBlob { repository, blob, name } => self.push_blob(*repository, *blob, *name),
            What::Mount { repository, blob, from } => self.mount(*repository, *blob, *from),
            What::ReadBlob { repository, blob: (place, algorithm), read } => {
                self.read_blob(*repository, contents::blob(*place, *algorithm), *read)
            }
            What::DeleteBlob { repository, blob: (place, algorithm) } => {
                self.delete_blob(*repository, contents::blob(*place, *algorithm))
            }
            What::PushImage { repository, manifest, under } => {
                let mut exchanges = self.push_needed(*repository, *manifest);
                exchanges.push(self.push_manifest(*repository, *manifest, *under, &[], Said::Right));
                return exchanges;
            }
            What::PushManifest { repository, manifest, under, tags, said } => {
                self.push_manifest(*repository, *manifest, *under, tags, *said)
            }
            What::ReadManifest { repository, reference, read } => self.read_manifest(*repository, *reference, *read),
            What::DeleteManifest { repository, reference } => self.delete_manifest(*repository, *reference),
            What::Tags { repository, page } => self.tags(*repository, *page),
            What::Catalog { page } => self.catalog(*page),
            What::Referrers { repository, subject: (place, algorithm), kind, page } => {
                self.referrers(*repository, MANIFESTS[*place].digest(*algorithm), *kind, *page)
            }
            What::Work => return Vec::new(),
        };
        vec![exchange]
    }

    fn read_blob(&self, repository: Place, digest: &Digest, read: Read) -> Exchange {
        let request = reading(format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]), digest, read);
        let Some(&place) = self.repositories[repository].blobs.get(digest) else {
            return request.answered(refused(404, "BLOB_UNKNOWN"));
        };
        let bytes = &BLOBS[place];
        let expected = match read {
            Read::Again => Expected::status(304).body(Bytes::new()),
            Read::Head => whole(bytes, "application/octet-stream").body(Bytes::new()),
            Read::Get => whole(bytes, "application/octet-stream").body(bytes.clone()),
            Read::Range(first, last) => part(bytes, first, last.saturating_add(1)),
            Read::Behind(first) => part(bytes, first, u64::MAX),
            Read::Last(0) => part(bytes, u64::MAX, u64::MAX),
            Read::Last(length) => part(bytes, (bytes.len() as u64).saturating_sub(length), u64::MAX),
        };
        request.answered(expected.header("docker-content-digest", digest).header("etag", format!("\"{digest}\"")))
    }

    fn delete_blob(&mut self, repository: Place, digest: &Digest) -> Exchange {
        let request = Request::new("DELETE", format!("/v2/{}/blobs/{digest}", REPOSITORIES[repository]));
        let there = &mut self.repositories[repository];
        request.answered(match there.blobs.contains_key(digest) {
            false => refused(404, "BLOB_UNKNOWN"),
            true if there.needs(digest) => refused(403, "DENIED"),
            true => {
                there.blobs.remove(digest);
                Expected::status(202)
            }
        })
    }

    fn push_manifest(&mut self, repository: Place, place: Place, under: Under, tags: &[Place], said: Said) -> Exchange {
        let (name, body) = (REPOSITORIES[repository], &MANIFESTS[place]);
        let reference = match under {
            Under::Tag(tag) => TAGS[tag].to_owned(),
            Under::Digest(algorithm) => body.digest(algorithm).to_string(),
            Under::AnothersDigest => contents::blob(0, Algorithm::Sha256).to_string(),
        };
        let query: Vec<String> = tags.iter().map(|tag| format!("tag={}", TAGS[*tag])).collect();
        let mut request = Request::new("PUT", format!("/v2/{name}/manifests/{reference}?{}", query.join("&")));
        match said {
            Said::Nothing => {}
            Said::Right => request = request.header("content-type", body.media_type),
            Said::Wrong => request = request.header("content-type", "application/vnd.oci.image.layer.v1.tar"),
        }
        let request = request.body(&body.bytes);
        let algorithm = match under {
            Under::AnothersDigest => return request.answered(refused(400, "DIGEST_INVALID")),
            Under::Digest(algorithm) => algorithm,
            Under::Tag(_) => Algorithm::Sha256,
        };
        let Some(needs) = body.needs.as_ref().filter(|_| said != Said::Wrong) else {
            return request.answered(refused(400, "MANIFEST_INVALID"));
        };
        let there = &mut self.repositories[repository];
        let missing: Vec<&Digest> = needs.iter().filter(|digest| !there.blobs.contains_key(digest)).collect();
        if !missing.is_empty() {
            let detail = json!({ "digests": missing });
            return request.answered(refused(400, "MANIFEST_BLOB_UNKNOWN").detail(detail));
        }
        let digest = body.digest(algorithm).clone();
        let mut expected = Expected::created(format!("/v2/{name}/manifests/{digest}"), &digest);
        let subject = body.subject.as_ref().map(ToString::to_string).unwrap_or_default();
        expected = expected.header("oci-subject", subject);
        let in_path = if let Under::Tag(tag) = under { Some(TAGS[tag]) } else { None };
        let mut named = Vec::new();
        for tag in tags.iter().map(|tag| TAGS[*tag]).filter(|tag| Some(*tag) != in_path) {
            if !named.contains(&tag) {
                named.push(tag);
            }
        }
        there.tags.extend(in_path.into_iter().chain(named.iter().copied()).map(|tag| (tag, digest.clone())));
        there.manifests.insert(digest, place);
        request.answered(expected.tags(named))
    }

    fn read_manifest(&self, repository: Place, reference: Reference, read: Read) -> Exchange {
        let there = &self.repositories[repository];
        let found = there.resolve(reference);
        let nothing = contents::blob(0, Algorithm::Sha256);
        let request = reading(manifest_url(repository, reference), found.unwrap_or(nothing), read);
        let Some(digest) = found else { return request.answered(refused(404, "MANIFEST_UNKNOWN")) };
        let body = &MANIFESTS[there.manifests[digest]];
        let expected = match read {
            Read::Again => Expected::status(304).body(Bytes::new()),
            Read::Head => whole(&body.bytes, body.media_type).body(Bytes::new()),
            _ => whole(&body.bytes, body.media_type).body(body.bytes.clone()),
        };
        let cached = match reference {
            Reference::Tag(_) => "no-cache",
            Reference::Digest(..) => "max-age=31536000, immutable",
        };
        request.answered(
            expected
                .header("docker-content-digest", digest)
                .header("etag", format!("\"{digest}\""))
                .header("cache-control", cached),
        )
    }

    fn delete_manifest(&mut self, repository: Place, reference: Reference) -> Exchange {
        let request = Request::new("DELETE", manifest_url(repository, reference));
        let there = &mut self.repositories[repository];
        let Some(digest) = there.resolve(reference).cloned() else {
            return request.answered(refused(404, "MANIFEST_UNKNOWN"));
        };
        match reference {
            Reference::Tag(tag) => {
                there.tags.remove(TAGS[tag]);
            }
            Reference::Digest(..) => {
                there.tags.retain(|_, to| *to != digest);
                there.manifests.remove(&digest);
            }
        }
        request.answered(Expected::status(202))
    }

    fn tags(&self, repository: Place, page: Page) -> Exchange {
        let (name, there) = (REPOSITORIES[repository], &self.repositories[repository]);
        let path = format!("/v2/{name}/tags/list");
        let request = Request::new("GET", format!("{path}?{}", query(page)));
        if there.manifests.is_empty() {
            return request.answered(refused(404, "NAME_UNKNOWN"));
        }
        let (tags, link) = paged(there.tags.keys().copied(), page, &path, "");
        request.answered(Expected::status(200).json(json!({ "name": name, "tags": tags })).header("link", link))
    }

    fn catalog(&self, page: Page) -> Exchange {
        let request = Request::new("GET", format!("/v2/_catalog?{}", query(page)));
        let has_any = |place: &Place| !self.repositories[*place].manifests.is_empty();
        let names: BTreeSet<&str> = (0..REPOSITORIES.len()).filter(has_any).map(|place| REPOSITORIES[place]).collect();
        let (names, link) = paged(names.into_iter(), page, "/v2/_catalog", "");
        request.answered(Expected::status(200).json(json!({ "repositories": names })).header("link", link))
    }

    fn referrers(&self, repository: Place, subject: &Digest, kind: Option<&str>, page: Page) -> Exchange {
        let path = format!("/v2/{}/referrers/{subject}", REPOSITORIES[repository]);
        let filter = kind.map(|kind| format!("&artifactType={}", kind.replace('+', "%2B"))).unwrap_or_default();
        // A page of nothing would lead nowhere: it has one.
        let page = Page { limit: page.limit.map(|limit| limit.max(1)), ..page };
        let request = Request::new("GET", format!("{path}?{}{filter}", query(page)));
        let found: BTreeMap<&str, Value> = self.repositories[repository]
            .manifests
            .iter()
            .map(|(digest, place)| (digest, &MANIFESTS[*place]))
            .filter(|(_, body)| body.subject.as_ref() == Some(subject))
            .filter(|(_, body)| kind.is_none_or(|kind| body.artifact_type.unwrap_or_default() == kind))
            .map(|(digest, body)| (digest.as_str(), descriptor(digest, body)))
            .collect();
        let (digests, link) = paged(found.keys().copied(), page, &path, &filter);
        let list: Vec<&Value> = digests.into_iter().map(|digest| &found[digest]).collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": list });
        request.answered(
            Expected::status(200)
                .json(index)
                .header("content-type", media_type)
                .header("link", link)
                .header("oci-filters-applied", if kind.is_some() { "artifactType" } else { "" }),
        )
    }
}

fn manifest_url(repository: Place, reference: Reference) -> String {
    let reference = match reference {
        Reference::Tag(tag) => TAGS[tag].to_owned(),
        Reference::Digest(place, algorithm) => MANIFESTS[place].digest(algorithm).to_string(),
    };
    format!("/v2/{}/manifests/{reference}", REPOSITORIES[repository])
}

fn reading(target: String, digest: &Digest, read: Read) -> Request {
    let get = Request::new("GET", target);
    match read {
        Read::Head => Request { method: "HEAD", ..get },
        Read::Get => get,
        Read::Again => get.header("if-none-match", format!("\"{digest}\"")),
        Read::Range(first, last) => get.header("range", format!("bytes={first}-{last}")),
        Read::Behind(first) => get.header("range", format!("bytes={first}-")),
        Read::Last(length) => get.header("range", format!("bytes=-{length}")),
    }
}

fn whole(bytes: &Bytes, content_type: &str) -> Expected {
    Expected::status(200).header("content-length", bytes.len()).header("content-type", content_type)
}

/// The bytes from `first` to before `end`. Of nothing there is no part, so all of it is served.
fn part(bytes: &Bytes, first: u64, end: u64) -> Expected {
    let size = bytes.len() as u64;
    if size == 0 {
        return whole(bytes, "application/octet-stream").body(Bytes::new());
    }
    let end = end.min(size);
    if first >= end {
        return Expected::status(416).header("content-range", format!("bytes */{size}"));
    }
    Expected::status(206)
        .header("content-length", end - first)
        .header("content-range", format!("bytes {first}-{}/{size}", end - 1))
        .body(bytes.slice(first as usize..end as usize))
}

fn descriptor(digest: &Digest, body: &Body) -> Value {
    let mut descriptor = json!({ "mediaType": body.media_type, "digest": digest, "size": body.bytes.len() });
    if let Some(kind) = body.artifact_type {
        descriptor["artifactType"] = kind.into();
    }
    if let Some(annotations) = &body.annotations {
        descriptor["annotations"] = annotations.clone();
    }
    descriptor
}

fn query(page: Page) -> String {
    let limit = page.limit.map(|limit| format!("n={limit}&")).unwrap_or_default();
    format!("{limit}last={}", LASTS[page.after].0)
}

/// What is on a page, and the link to the next one.
fn paged<'a>(all: impl Iterator<Item = &'a str>, page: Page, path: &str, filter: &str) -> (Vec<&'a str>, String) {
    let after = LASTS[page.after].1;
    let mut behind: Vec<&str> = all.filter(|name| *name > after).collect();
    let limit = page.limit.unwrap_or(MAX_PAGE);
    let has_more = behind.len() > limit;
    behind.truncate(limit);
    let link = match behind.last() {
        Some(last) if has_more => format!("<{path}?n={limit}&last={last}{filter}>; rel=\"next\""),
        _ => String::new(),
    };
    (behind, link)
}
