//! What is pushed: bytes that look random and are the same in every run, and small images made of them.

use std::{fs::File, io::Write, path::Path};

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::random::Random;

/// The size of the large blob, in bytes.
pub(crate) const LARGE: u64 = 1 << 30;

/// How many bytes of noise there are; the large blob repeats them. Storage that packs or deduplicates would
/// notice, neither registry does.
const NOISE: usize = 16 << 20;

/// The media type of an image's manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes that don't compress, from a fixed seed.
#[derive(Debug)]
pub(crate) struct Noise(Vec<u8>);

impl Noise {
    /// The one noise that there is.
    pub(crate) fn new() -> Self {
        Self(bytes(&mut Random::new(0x6265_7274_685f_6c74), NOISE))
    }

    /// A part of it, in MiB, of which it has 16.
    pub(crate) fn mebibytes(&self, from: usize, count: usize) -> &[u8] {
        &self.0[from << 20..(from + count) << 20]
    }

    /// The large blob in pieces: noise, over and over, behind 8 bytes that only this `number` has.
    pub(crate) fn pieces<'a>(&'a self, number: &'a [u8; 8]) -> Vec<&'a [u8]> {
        let mut pieces = vec![&number[..]];
        let mut left = LARGE as usize - number.len();
        while left > 0 {
            let piece = &self.0[..left.min(NOISE)];
            pieces.push(piece);
            left -= piece.len();
        }
        pieces
    }
}

/// So many bytes, a multiple of 8.
fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    std::iter::repeat_with(|| random.word()).take(count / 8).flat_map(u64::to_le_bytes).collect()
}

/// A digest as registries write it.
pub(crate) fn digest<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    pieces.into_iter().for_each(|piece| hash.update(piece));
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image of one layer.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    pub(crate) layer: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// The image of a number, with a layer of 1 KiB: every other number's differs in all three parts.
    pub(crate) fn new(number: u64) -> Self {
        Self::sized(number, 1024)
    }

    /// The same with a layer of so many bytes, a multiple of 8.
    pub(crate) fn sized(number: u64, size: usize) -> Self {
        let layer = bytes(&mut Random::new(number), size);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": { "Env": [format!("NUMBER={number}")] },
            "rootfs": { "type": "layers", "diff_ids": [digest([&layer[..]])] },
        });
        let config = config.to_string().into_bytes();
        let manifest = manifest(&config, &[&layer]);
        Self { config, layer, manifest }
    }

    /// The image's manifest with a note that makes it another one.
    pub(crate) fn noted(&self, number: u64) -> Result<Vec<u8>> {
        let mut manifest: serde_json::Value = serde_json::from_slice(&self.manifest)?;
        manifest["annotations"] = serde_json::json!({ "number": number.to_string() });
        Ok(serde_json::to_vec(&manifest)?)
    }
}

/// The manifest of an image.
pub(crate) fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let descriptor = |media_type: &str, bytes: &[u8]| serde_json::json!({ "mediaType": media_type, "digest": digest([bytes]), "size": bytes.len() });
    let layer = |layer: &&[u8]| descriptor("application/vnd.oci.image.layer.v1.tar", layer);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// Writes and removes as much as all servers of a round will. A virtual machine gets its memory from the host
/// when it first touches it, which costs seconds of system time; they would be charged to whoever comes first.
pub(crate) fn warm_page_cache(directory: &Path, noise: &Noise) -> Result<()> {
    let path = directory.join("warm");
    let mut file = File::create(&path)?;
    for number in 0..3_u64 {
        for piece in noise.pieces(&number.to_le_bytes()) {
            file.write_all(piece)?;
        }
    }
    drop(file);
    Ok(std::fs::remove_file(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_blob_is_as_long_as_it_says_and_differs_by_number() {
        let noise = Noise::new();
        let (one, two) = (1_u64.to_le_bytes(), 2_u64.to_le_bytes());
        assert_eq!(noise.pieces(&one).iter().map(|piece| piece.len() as u64).sum::<u64>(), LARGE);
        assert_ne!(noise.pieces(&one)[0], noise.pieces(&two)[0]);
    }

    #[test]
    fn a_digest_is_that_of_all_pieces() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest([]), empty);
        assert_eq!(digest([&b"ab"[..], b"c"]), digest([&b"abc"[..]]));
    }

    #[test]
    fn images_share_nothing() {
        let (one, two) = (Image::new(1), Image::new(2));
        assert_eq!(one.layer.len(), 1024);
        assert!(one.layer != two.layer && one.config != two.config && one.manifest != two.manifest);
    }
}
