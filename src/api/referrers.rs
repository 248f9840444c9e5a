//! Referrers: what says that it is about a manifest, whether that exists or not.

use axum::response::Response;
use http::{
    HeaderName, HeaderValue,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    dispatch::Call,
    query,
    respond::{self, ASK_EACH_TIME},
    route::Page,
};
use crate::{
    error::Result,
    oci::{Digest, RepositoryName, manifest::OCI_INDEX},
};

/// Which of the filters that were asked for were applied.
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'static str,
    manifests: &'a [Box<RawValue>],
}

/// GET and HEAD.
pub(super) async fn list(
    call: &Call,
    name: &RepositoryName,
    subject: &Digest,
    artifact_type: Option<String>,
    page: Page,
) -> Result<Response> {
    // A page of nothing would lead nowhere.
    let (after, limit) = (page.after.as_deref(), page.limit.max(1));
    let repository = call.repository(name).await?;
    let (manifests, next) = repository.referrers(subject, artifact_type.as_deref(), after, limit).await?;
    let mut response = respond::json(&Index { schema_version: 2, media_type: OCI_INDEX, manifests: &manifests })?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    headers.insert(CACHE_CONTROL, ASK_EACH_TIME);
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = next {
        let filter = artifact_type.map(|wanted| format!("&artifactType={}", query::encode(&wanted)));
        let path = format!("/v2/{name}/referrers/{subject}");
        respond::link_next(&mut response, &path, limit, &last, &filter.unwrap_or_default())?;
    }
    Ok(response)
}
