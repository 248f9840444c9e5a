//! Uploads: every way in which the bytes of a blob come in, and mounts, by which they needn't.

use axum::{body::Body, response::Response};
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{LOCATION, RANGE},
};

use super::{
    body,
    dispatch::Call,
    range,
    respond::{self, text},
    route::{Start, UploadUrl},
};
use crate::{
    error::{Code, Error, Result},
    oci::{Algorithm, Digest, RepositoryName},
    registry::Repository,
    upload::{Incoming, Progress, UploadId},
};

/// The upload's id, by Docker's name for it.
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: a session to send the bytes in, or all at once where they come along or are there already.
pub(super) async fn start(call: &Call, name: &RepositoryName, start: Start, body: Body) -> Result<Response> {
    let repository = call.repository(name).await?;
    let by = call.by();
    let algorithm = match start {
        Start::Session(algorithm) => algorithm,
        Start::Whole(digest) => {
            let (id, progress) = repository.start_upload(&by);
            let body = body::incoming(body);
            repository.finish(&id, Some(&progress.proof), None, &digest, body).await?;
            return blob_created(name, &digest);
        }
        Start::Mount { digest, from } => {
            if mount(call, &repository, &digest, from).await? {
                return blob_created(name, &digest);
            }
            digest.algorithm()
        }
    };
    let (id, progress) = repository.start_upload(&by);
    standing(StatusCode::ACCEPTED, name, &id, &progress, algorithm)
}

/// Whether the blob could be had without its bytes. No and not allowed are answered the same, as if nobody
/// had asked (CVE-2024-39897).
async fn mount(call: &Call, target: &Repository, digest: &Digest, from: Option<RepositoryName>) -> Result<bool> {
    let Some(from) = from.filter(|from| call.may_pull(from)) else { return Ok(false) };
    let source = call.repository(&from).await?;
    Ok(target.mount(&source, digest).await?.is_some())
}

/// GET and HEAD: how far it is.
pub(super) async fn status(call: &Call, name: &RepositoryName, upload: &UploadUrl) -> Result<Response> {
    let repository = call.repository(name).await?;
    let id = repository.upload_id(&upload.id, &call.by())?;
    let progress = repository.upload_progress(&id).await?;
    standing(StatusCode::NO_CONTENT, name, &id, &progress, upload.algorithm)
}

/// PATCH: more bytes, whatever their Content-Type says they are.
pub(super) async fn append(call: &Call, name: &RepositoryName, upload: &UploadUrl, body: Body) -> Result<Response> {
    let repository = call.repository(name).await?;
    let id = repository.upload_id(&upload.id, &call.by())?;
    let (at, body) = chunk(&call.headers, body)?;
    let progress = repository.append(&id, upload.proof.as_ref(), at, upload.algorithm, body).await?;
    standing(StatusCode::ACCEPTED, name, &id, &progress, upload.algorithm)
}

/// PUT: the last bytes, if any are left, and the digest of all.
pub(super) async fn finish(
    call: &Call,
    name: &RepositoryName,
    upload: &UploadUrl,
    digest: &Digest,
    body: Body,
) -> Result<Response> {
    let repository = call.repository(name).await?;
    let id = repository.upload_id(&upload.id, &call.by())?;
    let (at, body) = chunk(&call.headers, body)?;
    repository.finish(&id, upload.proof.as_ref(), at, digest, body).await?;
    blob_created(name, digest)
}

/// DELETE.
pub(super) async fn cancel(call: &Call, name: &RepositoryName, upload: &UploadUrl) -> Result<Response> {
    let repository = call.repository(name).await?;
    let id = repository.upload_id(&upload.id, &call.by())?;
    repository.cancel_upload(&id).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

/// The bytes that a request sends, and where they begin, if it says so. What is said of no bytes at all
/// means nothing: there is no way to say it right.
fn chunk(headers: &HeaderMap, body: Body) -> Result<(Option<u64>, Incoming)> {
    let mut body = body::incoming(body);
    if body.length == Some(0) {
        return Ok((None, body));
    }
    let Some(range) = range::sent(headers)? else { return Ok((None, body)) };
    let length = range.end - range.start;
    if body.length.is_some_and(|announced| announced != length) {
        return Err(Error::new(Code::SizeInvalid, "Content-Range and Content-Length disagree"));
    }
    body.length = Some(length);
    Ok((Some(range.start), body))
}

fn blob_created(name: &RepositoryName, digest: &Digest) -> Result<Response> {
    respond::created(format!("/v2/{name}/blobs/{digest}"), digest)
}

/// Where an upload stands, and where it goes on. The URL is relative: only a proxy in front knows the rest.
fn standing(
    status: StatusCode,
    name: &RepositoryName,
    id: &UploadId,
    progress: &Progress,
    algorithm: Algorithm,
) -> Result<Response> {
    let mut location = format!("/v2/{name}/blobs/uploads/{id}?_state={}", progress.proof.as_str());
    if algorithm != Algorithm::Sha256 {
        location.push_str("&digest-algorithm=");
        location.push_str(algorithm.as_str());
    }
    let mut response = respond::empty(status);
    let headers = response.headers_mut();
    headers.insert(LOCATION, text(location)?);
    // The last byte, so that none and one look the same: clients want the former to be `0-0`.
    headers.insert(RANGE, text(format!("0-{}", progress.offset.saturating_sub(1)))?);
    headers.insert(UPLOAD_ID, text(id.to_string())?);
    Ok(response)
}
