//! Pages of lists: the tags of a repository, and the repositories.

use anyhow::Result;
use tokio::task::JoinSet;

use super::{CONNECTIONS, created, pushes::push_blobs};
use crate::{
    content::{Image, MANIFEST},
    requests::{Preparation, Requests},
    server::Server,
};

/// How many names a page has.
const PAGE: usize = 100;

/// An index without images, which needs no blobs: the least that makes a repository.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A page of a repository with so many tags: all of few, or 100 from the middle.
pub(crate) async fn tags(server: &Server, count: usize) -> Result<Requests> {
    let repository = format!("tags/{count}");
    let base = format!("/v2/{repository}/tags/list?n={PAGE}");
    let image = Image::new(1);
    push_blobs(&mut server.connect().await?, &repository, &image).await?;
    let path = move |number| format!("/v2/{repository}/manifests/{}", tag(number));
    put_all(server, MANIFEST, &image.manifest, (0..count).map(path).collect()).await?;
    let from = if count > PAGE { format!("&last={}", tag(count / 2)) } else { String::new() };
    page(server, &(base + &from)).await
}

fn tag(number: usize) -> String {
    format!("v{number:07}")
}

/// A page of 100 repositories from the middle, once there are so many more than now.
pub(crate) async fn catalog(server: &Server, count: usize) -> Result<Requests> {
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }).to_string();
    let paths = (0..count).map(|number| format!("/v2/many/{number:07}/manifests/latest")).collect();
    put_all(server, INDEX, index.as_bytes(), paths).await?;
    let last = if count > 0 { format!("many/{:07}", count / 2) } else { "bench".to_owned() };
    page(server, &format!("/v2/_catalog?n={PAGE}&last={last}")).await
}

/// Puts the same manifest everywhere, on many connections.
async fn put_all(server: &Server, media_type: &'static str, manifest: &[u8], paths: Vec<String>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for part in paths.chunks(paths.len().div_ceil(CONNECTIONS).max(1)) {
        let (mut client, part, manifest) = (server.connect().await?, part.to_vec(), manifest.to_vec());
        tasks.spawn(async move {
            for path in part {
                created(&client.send("PUT", &path, media_type, &manifest).await?)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn page(server: &Server, target: &str) -> Result<Requests> {
    let mut preparation = Preparation::of(server).await?;
    preparation.add("GET", target, 200).await?;
    Ok(Requests::in_turn(preparation.ready()))
}
