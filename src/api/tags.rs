//! Lists of tags: the distribution spec's, and the longer one by which GCR's users browse and clean up.

use std::collections::BTreeMap;

use axum::response::Response;
use serde::Serialize;

use super::{
    dispatch::Call,
    respond,
    route::{Page, TagsForm},
};
use crate::{
    error::{Code, Error, Result},
    index::facts::{ManifestFact, TagFact},
    oci::{Digest, RepositoryName, Tag},
};

/// The most tags in a list of GCR's form, which isn't paged, as what its client asks for: 10,000.
const MAX_GCR_TAGS: usize = 10_000;

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: &'a [String],
}

/// GET and HEAD.
pub(super) async fn list(call: &Call, name: &RepositoryName, page: Page, form: TagsForm) -> Result<Response> {
    match form {
        TagsForm::Plain => plain(call, name, page).await,
        TagsForm::Gcr => Box::pin(gcr(call, name, page)).await,
    }
}

async fn plain(call: &Call, name: &RepositoryName, page: Page) -> Result<Response> {
    let reader = call.reader(name).await?;
    let found = reader.tags(page.after.as_deref(), page.limit).await?;
    let (tags, more) = found.ok_or_else(|| unknown(name))?;
    let mut response = respond::json(&Tags { name: name.as_str(), tags: &tags })?;
    if let Some(last) = tags.last().filter(|_| more) {
        link_next(&mut response, name, page.limit, last, "")?;
    }
    Ok(response)
}

fn link_next(response: &mut Response, name: &RepositoryName, limit: usize, last: &str, filters: &str) -> Result<()> {
    respond::link_next(response, &format!("/v2/{name}/tags/list"), limit, last, filters)
}

fn unknown(name: &RepositoryName) -> Error {
    let detail = serde_json::json!({ "name": name });
    Error::new(Code::NameUnknown, "there is no such repository").with_detail(detail)
}

#[derive(Serialize)]
struct GcrTags<'a> {
    child: &'a [String],
    manifest: BTreeMap<&'a str, GcrManifest<'a>>,
    name: &'a str,
    tags: Vec<&'a str>,
}

/// All numbers are text: they come from a language that has none this large.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GcrManifest<'a> {
    image_size_bytes: String,
    layer_id: &'static str,
    media_type: &'a str,
    tag: Vec<&'a str>,
    time_created_ms: String,
    time_uploaded_ms: String,
}

impl<'a> GcrManifest<'a> {
    fn of(fact: &'a ManifestFact) -> Self {
        Self {
            image_size_bytes: fact.content_size.to_string(),
            layer_id: "",
            media_type: &fact.media_type,
            tag: Vec::new(),
            time_created_ms: fact.at.0.to_string(),
            time_uploaded_ms: fact.at.0.to_string(),
        }
    }
}

/// It works on any path that leads to a repository, even where there is none.
async fn gcr(call: &Call, name: &RepositoryName, page: Page) -> Result<Response> {
    let repository = call.repository(name).await?;
    let (tags, more) = repository.tags(page.after.as_deref(), MAX_GCR_TAGS).await?;
    let manifests = repository.manifests().await?;
    let children = call.api.registry.children(name.as_str(), |child| call.may_see(child)).await?;
    if tags.is_empty() && manifests.is_empty() && children.is_empty() {
        return Err(unknown(name));
    }
    let mut response = respond::json(&gcr_tags(name, &children, &tags, &manifests))?;
    if let Some((last, _)) = tags.last().filter(|_| more) {
        link_next(&mut response, name, MAX_GCR_TAGS, last.as_str(), "&gcr=true")?;
    }
    Ok(response)
}

fn gcr_tags<'a>(
    name: &'a RepositoryName,
    child: &'a [String],
    tags: &'a [(Tag, TagFact)],
    manifests: &'a [(Digest, ManifestFact)],
) -> GcrTags<'a> {
    let of = |(digest, fact): &'a (Digest, ManifestFact)| (digest.as_str(), GcrManifest::of(fact));
    let mut manifest: BTreeMap<_, _> = manifests.iter().map(of).collect();
    for (tag, fact) in tags {
        if let Some(found) = fact.state.to.as_ref().and_then(|to| manifest.get_mut(to.digest.as_str())) {
            found.tag.push(tag.as_str());
        }
    }
    GcrTags { child, manifest, name: name.as_str(), tags: tags.iter().map(|(tag, _)| tag.as_str()).collect() }
}
