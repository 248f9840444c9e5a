//! Small images and tags, pushed by many at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::{CONNECTIONS, REPOSITORY, Setting};
use crate::{
    client::{Answer, Client},
    content::{Image, MANIFEST, digest},
    latency::Recorder,
    load::{Figures, Meter},
    server::Server,
};

/// How many repositories each client pushes small images into, in turn.
const REPOSITORIES: u64 = 8;

/// How many tags are pushed into one repository, and by how many clients.
const TAGS: (u64, u64) = (2000, 8);

/// What is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// Small images, new in all their parts, into 128 repositories.
    IntoMany,
    /// The same into one.
    IntoOne,
    /// Manifests of blobs that are there, each under a tag of its own, in one repository.
    Tags,
    /// A manifest that is there, under one more tag.
    Retag,
}

/// One push, made before its time is taken.
struct Made {
    repository: String,
    tag: String,
    image: Option<Image>,
    manifest: Vec<u8>,
}

impl Push {
    /// The push of a number; no other number's is the same. `of` is what the tags are on.
    fn make(self, client: u64, number: u64, of: &Image) -> Result<Made> {
        let tag = format!("v{number}");
        let made = |repository, image, manifest| Made { repository, tag, image, manifest };
        Ok(match self {
            Self::IntoMany | Self::IntoOne => {
                let image = Image::new(number);
                let manifest = image.manifest.clone();
                let one = self == Self::IntoOne;
                let repository =
                    if one { "bench/one".to_owned() } else { format!("bench/{client}/{}", number % REPOSITORIES) };
                made(repository, Some(image), manifest)
            }
            Self::Tags => made("bench/tags".to_owned(), None, of.noted(number)?),
            Self::Retag => made(REPOSITORY.to_owned(), None, of.manifest.clone()),
        })
    }
}

/// Pushes from many clients, for a time or until all is pushed.
pub(crate) async fn measure(server: &Server, push: Push, setting: &Setting) -> Result<Figures> {
    let (clients, each) = if push == Push::Tags { (TAGS.1, TAGS.0 / TAGS.1) } else { (CONNECTIONS as u64, 1 << 20) };
    if push == Push::Tags {
        push_blobs(&mut server.connect().await?, "bench/tags", &Image::new(0)).await?;
    }
    let span = if push == Push::Tags { Duration::MAX / 2 } else { setting.span };
    let (mut tasks, recorder) = (JoinSet::new(), Recorder::new());
    let disk = server.disk_bytes();
    let meter = Meter::start(server.pid)?;
    let began = Instant::now();
    for client in 0..clients {
        let first = ((setting.round * 8 + push as u64 + 1) << 32) + (client << 20);
        let pusher = Pusher { push, client, connection: server.connect().await?, recorder: recorder.clone() };
        tasks.spawn(pusher.run(first..first + each, began, span));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let latencies = recorder.take();
    let mut figures = meter.stop().await?.per_operation(&latencies, "cpu_ms", 1e3);
    let more = server.disk_bytes().saturating_sub(disk) as f64 / 1024.0;
    figures.insert("disk_kib", more / latencies.count().max(1) as f64);
    Ok(figures)
}

struct Pusher {
    push: Push,
    client: u64,
    connection: Client,
    recorder: Recorder,
}

impl Pusher {
    /// Pushes these, or as many as fit into `span`.
    async fn run(mut self, numbers: std::ops::Range<u64>, began: Instant, span: Duration) -> Result<()> {
        let of = Image::new(0);
        for number in numbers {
            let made = self.push.make(self.client, number, &of)?;
            let started = Instant::now();
            if started.duration_since(began) >= span {
                break;
            }
            if let Some(image) = &made.image {
                push_blobs(&mut self.connection, &made.repository, image).await?;
            }
            put(&mut self.connection, &made.repository, &made.tag, &made.manifest).await?;
            self.recorder.record(started.elapsed());
        }
        Ok(())
    }
}

/// Five requests: POST and PUT for the layer and for the config, and the manifest under its tag.
pub(crate) async fn push_image(client: &mut Client, repository: &str, tag: &str, image: &Image) -> Result<()> {
    push_blobs(client, repository, image).await?;
    put(client, repository, tag, &image.manifest).await
}

/// The first four of them.
pub(crate) async fn push_blobs(client: &mut Client, repository: &str, image: &Image) -> Result<()> {
    for blob in [&image.layer, &image.config] {
        push_blob(client, repository, blob).await?;
    }
    Ok(())
}

/// POST and PUT of a small blob.
pub(crate) async fn push_blob(client: &mut Client, repository: &str, blob: &[u8]) -> Result<()> {
    let target = begin_upload(client, repository, &digest([blob])).await?;
    created(&client.send("PUT", &target, "application/octet-stream", blob).await?)
}

/// A manifest under a tag.
pub(crate) async fn put(client: &mut Client, repository: &str, tag: &str, manifest: &[u8]) -> Result<()> {
    created(&client.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), MANIFEST, manifest).await?)
}

/// Where the closing PUT of a new upload goes.
pub(crate) async fn begin_upload(client: &mut Client, repository: &str, digest: &str) -> Result<String> {
    let answer = client.ask("POST", &format!("/v2/{repository}/blobs/uploads/")).await?;
    ensure!(answer.status == 202, "an upload's POST was answered by {}", answer.status);
    Ok(closing(&answer.location.context("an upload without a Location")?, digest))
}

/// An upload's URL with the digest that ends it.
pub(crate) fn closing(location: &str, digest: &str) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}digest={digest}")
}

pub(crate) fn created(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 201, "a PUT was answered by {}", answer.status);
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_digest_joins_what_is_there() {
        assert_eq!(closing("/v2/a?b=c", "d"), "/v2/a?b=c&digest=d");
        assert_eq!(closing("/v2/a", "d"), "/v2/a?digest=d");
    }

    #[test]
    fn each_tag_has_a_manifest_of_its_own_and_a_retag_has_not() {
        let of = Image::new(0);
        let manifest = |push: Push, number| push.make(0, number, &of).unwrap().manifest;
        assert_ne!(manifest(Push::Tags, 1), manifest(Push::Tags, 2));
        assert_eq!(manifest(Push::Retag, 1), of.manifest);
        assert_eq!(Push::IntoMany.make(3, 9, &of).unwrap().repository, "bench/3/1");
    }
}
