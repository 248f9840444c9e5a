//! One blob of 1 GiB, in and out.

use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::{
    Setting,
    pushes::{begin_upload, closing, created},
};
use crate::{
    client::Client,
    content::{LARGE, digest},
    load::{Figures, Meter},
    server::Server,
};

const REPOSITORY: &str = "bench/large";

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// POST and one PUT.
    Push,
    /// What was pushed so, from where a redirect says if there is one.
    Pull,
    /// POST, a PATCH for each 16 MiB, and an empty PUT.
    PushInChunks,
}

/// Does it once. Every round has blobs of its own, so that nothing is there already.
pub(crate) async fn measure(server: &Server, transfer: Transfer, setting: &Setting) -> Result<Figures> {
    let place = usize::from(transfer == Transfer::PushInChunks);
    let number = (setting.round * 2 + place as u64 + 1).to_le_bytes();
    let pieces = setting.noise.pieces(&number);
    let digest: &OnceLock<String> = &setting.digests[place];
    let digest = digest.get_or_init(|| self::digest(pieces.iter().copied()));
    let mut client = server.connect().await?;
    let meter = Meter::start(server.pid)?;
    match transfer {
        Transfer::Push => {
            let target = begin_upload(&mut client, REPOSITORY, digest).await?;
            created(&client.stream("PUT", &target, &pieces).await?)?;
        }
        Transfer::Pull => {
            let answer = client.pull(&format!("/v2/{REPOSITORY}/blobs/{digest}")).await?;
            ensure!(answer.status == 200 && answer.length == LARGE, "{} with {} bytes", answer.status, answer.length);
        }
        Transfer::PushInChunks => push_in_chunks(&mut client, digest, &pieces).await?,
    }
    let spent = meter.stop().await?;
    let mut figures = spent.circumstances();
    figures.insert("cpu_s", spent.server);
    figures.insert("mib_per_second", LARGE as f64 / f64::from(1 << 20) / spent.seconds);
    Ok(figures)
}

async fn push_in_chunks(client: &mut Client, digest: &str, pieces: &[&[u8]]) -> Result<()> {
    let answer = client.ask("POST", &format!("/v2/{REPOSITORY}/blobs/uploads/")).await?;
    ensure!(answer.status == 202, "an upload's POST was answered by {}", answer.status);
    let mut location = answer.location.context("an upload without a Location")?;
    // The first piece is the few bytes that make the blob unlike others; it goes with the second.
    let (mut from, mut left) = (0, pieces);
    while !left.is_empty() {
        let (chunk, rest) = left.split_at(if from == 0 { left.len().min(2) } else { 1 });
        let length = chunk.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let answer = client.patch(&location, from, chunk).await?;
        ensure!(answer.status == 202, "a chunk was answered by {}", answer.status);
        location = answer.location.context("a chunk without a Location")?;
        (from, left) = (from + length, rest);
    }
    created(&client.send("PUT", &closing(&location, digest), "", &[]).await?)
}
