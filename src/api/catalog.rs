//! The catalog: the repositories that the caller may pull from.

use axum::response::Response;
use serde::Serialize;

use super::{dispatch::Call, respond, route::Page};
use crate::{error::Result, oci::RepositoryName};

#[derive(Serialize)]
struct Catalog<'a> {
    repositories: &'a [RepositoryName],
}

/// GET and HEAD.
pub(super) async fn list(call: &Call, page: Page) -> Result<Response> {
    if page.limit == 0 {
        return respond::json(&Catalog { repositories: &[] });
    }
    let visible = |name: &RepositoryName| call.may_see(name);
    let (names, more) = call.api.registry.catalog(page.after.as_deref(), page.limit, visible).await?;
    let mut response = respond::json(&Catalog { repositories: &names })?;
    if let Some(last) = names.last().filter(|_| more) {
        respond::link_next(&mut response, "/v2/_catalog", page.limit, last.as_str(), "")?;
    }
    Ok(response)
}
