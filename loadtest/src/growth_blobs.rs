//! Blobs, from a kibibyte to what an upload may hold: pushed into a directory and pulled again, or pushed to an S3
//! server that discards what it is sent.

use std::{fs, iter::repeat_with, path::Path, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    client::{Client, request},
    content::digest,
    cost::{put, upload},
    ground::directory_settings,
    growth::Options,
    growth_report::{Point, Report},
    instance::{Instance, empty_directory},
    proc,
    sink::Sink,
};

/// How many bytes of noise there are, in 8-byte words; larger blobs repeat them.
const NOISE: usize = 16 << 20;

/// How many bytes go by in one measurement of small blobs, so that there is something to measure.
const AT_LEAST: u64 = 64 << 20;

/// But no more blobs than this.
const AT_MOST: u64 = 1000;

const MIB: f64 = (1 << 20) as f64;

/// Bytes that don't compress, from a fixed seed (xorshift64).
struct Noise(Vec<u8>);

impl Noise {
    fn new() -> Self {
        let mut state: u64 = 0x6265_7274_685f_6c74;
        let words = repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        });
        Self(words.take(NOISE / 8).flat_map(u64::to_le_bytes).collect())
    }

    /// A blob of this size in pieces: the number, which only it has, and then noise, over and over.
    fn pieces<'a>(&'a self, number: &'a [u8; 8], size: u64) -> Vec<&'a [u8]> {
        let mut pieces = vec![&number[..]];
        let mut left = size.saturating_sub(8);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(NOISE).min(NOISE);
            pieces.push(&self.0[..length]);
            left -= length as u64;
        }
        pieces
    }
}

/// Pushes and pulls blobs of every size, one after the other, in a directory.
pub(crate) async fn measure(options: &Options, sizes: &[u64], report: &mut Report) -> Result<()> {
    let (noise, mut number) = (Noise::new(), 0_u64);
    for &size in sizes {
        let mut point = Point::at(size)?;
        for _ in 0..options.rounds {
            // Anew each time: what the rounds before have left on the disk is no part of this one.
            let directory = empty_directory(&options.data, "growth")?;
            let settings = directory_settings(&directory, true);
            let berth = Instance::berth(&options.berth, &settings, &directory.join("log")).await?;
            let count = (AT_LEAST / size).clamp(1, AT_MOST);
            let numbers: Vec<[u8; 8]> = (number..number + count).map(u64::to_le_bytes).collect();
            number += count;
            let digests: Vec<String> = numbers.iter().map(|number| digest(noise.pieces(number, size))).collect();
            let mut transfer = Transfer::begin(&berth, &mut point, "push").await?;
            for (number, digest) in numbers.iter().zip(&digests) {
                push(&mut transfer.client, "grow/blobs", digest, &noise.pieces(number, size)).await?;
            }
            transfer.note(count, size)?;
            let mut transfer = Transfer::begin(&berth, &mut point, "pull").await?;
            for digest in &digests {
                let answer = transfer.client.ask("GET", &format!("/v2/grow/blobs/blobs/{digest}")).await?;
                ensure!(answer.status == 200 && answer.length == size, "{} of {size} bytes", answer.status);
            }
            transfer.note(count, size)?;
            berth.stop().await?;
            fs::remove_dir_all(&directory)?;
        }
        report.add(point)?;
    }
    Ok(())
}

/// Pushes one blob of every size to a store that counts and discards, each in a process of its own.
pub(crate) async fn measure_stream(options: &Options, sizes: &[u64], report: &mut Report) -> Result<()> {
    let noise = Noise::new();
    for &size in sizes {
        let number = size.to_le_bytes();
        eprintln!("hashing {} GiB", size >> 30);
        let digest = digest(noise.pieces(&number, size));
        let (mut point, directory) = (Point::at(size)?, empty_directory(&options.data, "growth")?);
        // Hours of 150 GiB teach no more than one push of them: there are no rounds here.
        stream(options, &directory, &mut point, &digest, &noise.pieces(&number, size)).await?;
        fs::remove_dir_all(&directory)?;
        report.add(point)?;
    }
    Ok(())
}

async fn stream(options: &Options, directory: &Path, point: &mut Point, digest: &str, pieces: &[&[u8]]) -> Result<()> {
    let (sink, size) = (Sink::start().await?, point.size);
    let mut settings = sink.settings();
    settings.push(("BERTH_INDEX__URL", format!("embedded:{}", directory.join("index").display())));
    let berth = Instance::berth(&options.berth, &settings, &directory.join("log")).await?;
    let mut transfer = Transfer::begin(&berth, point, "push").await?;
    push(&mut transfer.client, "grow/blobs", digest, pieces).await?;
    transfer.note(1, size)?;
    let seen = sink.discarded();
    ensure!(seen.bytes == size, "{} of {size} bytes reached the store in parts", seen.bytes);
    point.note("push: parts".to_owned(), seen.parts as f64);
    let mut client = Client::connect(berth.address).await?;
    let head = request(berth.address, "HEAD", &format!("/v2/grow/blobs/blobs/{digest}"), "", 0);
    ensure!(client.exchange(head.as_bytes()).await?.status == 200, "the registry doesn't know what was pushed");
    berth.stop().await
}

async fn push(client: &mut Client, repository: &str, digest: &str, pieces: &[&[u8]]) -> Result<()> {
    let target = upload(client, repository, digest).await?;
    if let [number, rest] = pieces {
        // A small one goes in one write with its head.
        return put(client, &target, "application/octet-stream", &[*number, *rest].concat()).await;
    }
    let status = client.stream("PUT", &target, pieces).await?.status;
    ensure!(status == 201, "a PUT was answered by {status}");
    Ok(())
}

/// Some blobs on their way, one after the other on one connection.
struct Transfer<'a> {
    pid: u32,
    point: &'a mut Point,
    what: &'static str,
    client: Client,
    began: Instant,
    cpu: f64,
}

impl<'a> Transfer<'a> {
    async fn begin(berth: &Instance, point: &'a mut Point, what: &'static str) -> Result<Self> {
        let client = Client::connect(berth.address).await?;
        forget_peak(berth.pid)?;
        Ok(Self { pid: berth.pid, point, what, client, began: Instant::now(), cpu: proc::cpu_seconds(berth.pid)? })
    }

    fn note(self, count: u64, size: u64) -> Result<()> {
        let (seconds, cpu) = (self.began.elapsed().as_secs_f64(), proc::cpu_seconds(self.pid)? - self.cpu);
        let mebibytes = (count * size) as f64 / MIB;
        let (what, point) = (self.what, self.point);
        point.note(format!("{what}: MiB/s"), mebibytes / seconds);
        point.note(format!("{what}: CPU for each MiB, ms"), cpu * 1000.0 / mebibytes);
        point.note(format!("{what}: CPU for each blob, ms"), cpu * 1000.0 / count as f64);
        point.note(format!("{what}: peak memory, MiB"), proc::memory(self.pid)?.peak);
        Ok(())
    }
}

/// Has the system measure the peak of a process's memory from here on: `proc_pid_clear_refs(5)`.
fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_as_long_as_it_says_and_differs_by_number() {
        let noise = Noise::new();
        let numbers = [1_u64.to_le_bytes(), 2_u64.to_le_bytes()];
        for size in [8, 1024, NOISE as u64 + 8, 100 << 20] {
            let of = |number| noise.pieces(number, size);
            assert_eq!(of(&numbers[0]).iter().map(|piece| piece.len() as u64).sum::<u64>(), size);
            assert_ne!(of(&numbers[0]), of(&numbers[1]));
        }
    }
}
