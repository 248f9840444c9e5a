//! The same request, over and over, for one image or a part of it.

use anyhow::Result;

use super::{REPOSITORY, push_image};
use crate::{
    content::{Image, digest},
    requests::{Preparation, Requests},
    server::Server,
};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// `GET /v2/`, which is all protocol.
    Version,
    ByTag,
    ByDigest,
    BlobHead,
    Blob,
    /// The answer that sends one elsewhere for a blob, where the server does that.
    Redirect,
}

/// Pushes the image that is read.
pub(crate) async fn seed(server: &Server) -> Result<()> {
    push_image(&mut server.connect().await?, REPOSITORY, "latest", &Image::new(0)).await
}

/// The request; nothing where this server doesn't answer like that.
pub(crate) async fn requests(server: &Server, read: Read) -> Result<Option<Requests>> {
    let image = Image::new(0);
    let path = |kind, reference: &str| format!("/v2/{REPOSITORY}/{kind}/{reference}");
    let blob = path("blobs", &digest([&image.layer[..]]));
    let mut client = server.connect().await?;
    let found = client.ask("GET", &blob).await?.status;
    let redirects = matches!(found, 302 | 303 | 307);
    let (method, target, status) = match read {
        Read::Version => ("GET", "/v2/".to_owned(), 200),
        Read::ByTag => ("GET", path("manifests", "latest"), 200),
        Read::ByDigest => ("GET", path("manifests", &digest([&image.manifest[..]])), 200),
        // Some redirect a HEAD as well.
        Read::BlobHead => ("HEAD", blob.clone(), client.ask("HEAD", &blob).await?.status),
        Read::Blob if redirects => return Ok(None),
        Read::Blob => ("GET", blob, 200),
        Read::Redirect if redirects => ("GET", blob, found),
        Read::Redirect => return Ok(None),
    };
    let mut preparation = Preparation::of(server).await?;
    preparation.add(method, &target, status).await?;
    Ok(Some(Requests::in_turn(preparation.ready())))
}

/// The manifest, by its tag.
pub(crate) async fn by_tag(server: &Server) -> Result<Requests> {
    let mut preparation = Preparation::of(server).await?;
    preparation.add("GET", &format!("/v2/{REPOSITORY}/manifests/latest"), 200).await?;
    Ok(Requests::in_turn(preparation.ready()))
}
