//! Manifests: read by tag or digest, byte for byte as they came; pushed, with any number of tags; deleted.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};

use super::{
    body,
    dispatch::Call,
    range,
    respond::{self, ASK_EACH_TIME, FOREVER, NO_SNIFF},
    route::Read,
};
use crate::{
    error::{Code, Error, Result},
    index::facts::EventTarget,
    manifest::Push,
    oci::{Algorithm, Digest, Manifest, Reference, RepositoryName, Tag, manifest::MAX_MANIFEST},
};

/// The subject of a manifest that was pushed: the sign that its referrers are listed.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A tag that was set by a push that named several.
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// Up to this many bytes, a manifest is hashed and parsed where it is; more would keep other requests waiting.
const CHECK_HERE: usize = 64 << 10;

/// GET and HEAD. What `Accept` says makes no difference: a client that can't use a manifest can say so
/// better than we can guess.
pub(super) async fn read(call: &Call, name: &RepositoryName, reference: &Reference, read: Read) -> Result<Response> {
    let reader = call.reader(name).await?;
    let found = reader.find_manifest(reference).await?;
    let mut response = match read {
        _ if range::has_already(&call.headers, &found.digest) => respond::empty(StatusCode::NOT_MODIFIED),
        Read::Get => {
            let bytes = reader.manifest_bytes(&found).await?;
            let tag = match reference {
                Reference::Tag(tag) => Some(tag),
                Reference::Digest(_) => None,
            };
            reader.tell_pull(tag, EventTarget::Manifest(found.clone().into()), || call.cause()).await;
            respond::whole(media_type(&found.media_type)?, bytes)
        }
        Read::Head => {
            let mut response = respond::whole(media_type(&found.media_type)?, Bytes::new());
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(found.size));
            response
        }
    };
    let headers = response.headers_mut();
    respond::name_content(headers, &found.digest)?;
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(
        CACHE_CONTROL,
        match reference {
            Reference::Tag(_) => ASK_EACH_TIME,
            Reference::Digest(_) => FOREVER,
        },
    );
    Ok(response)
}

fn media_type(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(Error::internal)
}

/// PUT.
pub(super) async fn push(
    call: &Call,
    name: &RepositoryName,
    reference: Reference,
    tags: Vec<Tag>,
    body: Body,
) -> Result<Response> {
    let repository = call.repository(name).await?;
    let content_type = content_type(&call.headers)?;
    let length = axum::body::HttpBody::size_hint(&body).upper().unwrap_or(u64::MAX);
    let _memory = call.api.registry.reserve_memory(length.min(MAX_MANIFEST as u64) as usize).await?;
    let bytes = body::read_whole(body, MAX_MANIFEST).await?;
    let (digest, manifest) = check(bytes.clone(), &reference, content_type).await?;
    let mut response = respond::created(format!("/v2/{name}/manifests/{digest}"), &digest)?;
    let headers = response.headers_mut();
    if let Some(subject) = &manifest.subject {
        headers.insert(SUBJECT, respond::text(subject.to_string())?);
    }
    for tag in tags.iter().filter(|tag| !matches!(&reference, Reference::Tag(path) if path == *tag)) {
        headers.append(TAG, respond::text(tag.to_string())?);
    }
    let create_only = call.grant.create_only;
    repository.push_manifest(Push { digest, bytes, manifest, tags, create_only }).await?;
    Ok(response)
}

fn content_type(headers: &HeaderMap) -> Result<Option<String>> {
    let text = headers.get(CONTENT_TYPE).map(|value| value.to_str().map(str::to_owned));
    text.transpose().map_err(|_| Error::new(Code::ManifestInvalid, "the Content-Type is not a media type"))
}

/// The digest of the bytes, which is the one that they were sent under, and what they say.
async fn check(bytes: Bytes, reference: &Reference, content_type: Option<String>) -> Result<(Digest, Manifest)> {
    let sent_as = match reference {
        Reference::Tag(_) => None,
        Reference::Digest(digest) => Some(digest.clone()),
    };
    let is_small = bytes.len() <= CHECK_HERE;
    let check = move || {
        let algorithm = sent_as.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if sent_as.is_some_and(|sent_as| sent_as != digest) {
            let detail = serde_json::json!({ "digest": digest });
            return Err(Error::new(Code::DigestInvalid, "the manifest has another digest").with_detail(detail));
        }
        Ok((digest, Manifest::parse(&bytes, content_type.as_deref())?))
    };
    if is_small {
        return check();
    }
    tokio::task::spawn_blocking(check).await.map_err(Error::internal)?
}

/// DELETE: a tag, or a manifest with all its tags.
pub(super) async fn delete(call: &Call, name: &RepositoryName, reference: &Reference) -> Result<Response> {
    let repository = call.repository(name).await?;
    match reference {
        Reference::Tag(tag) => repository.delete_tag(tag).await?,
        Reference::Digest(digest) => repository.delete_manifest(digest).await?,
    }
    Ok(respond::empty(StatusCode::ACCEPTED))
}
