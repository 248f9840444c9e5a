//! Digests (`sha256:…`, `sha512:…`) and the hashers that make them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{
    Digest as _, Sha256, Sha512,
    digest::common::hazmat::{SerializableState, SerializedState},
};

/// A hash algorithm that the image spec registers (image-spec, descriptor.md, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, the canonical one: 64 hex digits.
    Sha256,
    /// SHA-512: 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Its name as it stands before the colon of a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits its digests have.
    fn hex_digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(InvalidDigest(text.chars().take(160).collect())),
        }
    }
}

/// A checked digest: a registered algorithm, a colon, and exactly its number of lower-case hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

/// The text is not a digest of a registered algorithm.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a digest: want sha256:<64 lower-case hex digits> or sha512:<128>")]
pub struct InvalidDigest(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm before the colon.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha256:") { Algorithm::Sha256 } else { Algorithm::Sha512 }
    }

    /// The whole text, algorithm and hex.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(algorithm.as_str().len() + 1 + hash.len() * 2);
        text.push_str(algorithm.as_str());
        text.push(':');
        for byte in hash {
            text.push(HEX[usize::from(byte >> 4)] as char);
            text.push(HEX[usize::from(byte & 15)] as char);
        }
        Self(text.into())
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let invalid = || InvalidDigest(text.chars().take(160).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(invalid)?;
        let algorithm: Algorithm = algorithm.parse().map_err(|_| invalid())?;
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != algorithm.hex_digits() || !is_hex {
            return Err(invalid());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A hash in progress, which can be written down between two requests and taken up by another process.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256 in progress.
    Sha256(Sha256),
    /// SHA-512 in progress.
    Sha512(Sha512),
}

/// The version of the saved state's format: sha2 promises it within 0.11.x only, so a change of that
/// dependency's minor version is a change of this number.
const STATE_VERSION: u8 = 1;

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Which algorithm it computes.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::from_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }

    /// The state as bytes: a version, the algorithm, then the compression function's own (104 bytes for
    /// SHA-256). It isn't authenticated: keep it where clients can't write.
    pub fn save(&self) -> Vec<u8> {
        let mut saved = vec![STATE_VERSION];
        match self {
            Self::Sha256(hash) => {
                saved.push(1);
                saved.extend_from_slice(&hash.serialize());
            }
            Self::Sha512(hash) => {
                saved.push(2);
                saved.extend_from_slice(&hash.serialize());
            }
        }
        saved
    }

    /// Takes up a saved state; `None` where it is of another version or broken, and the bytes must be hashed
    /// again.
    pub fn restore(saved: &[u8]) -> Option<Self> {
        let (&version, rest) = saved.split_first()?;
        let (&algorithm, state) = rest.split_first()?;
        if version != STATE_VERSION {
            return None;
        }
        match algorithm {
            1 if can_count_on(state.get(32..40)?) => {
                let state = SerializedState::<Sha256>::try_from(state).ok()?;
                Some(Self::Sha256(Sha256::deserialize(&state).ok()?))
            }
            2 if can_count_on(state.get(64..80)?) => {
                let state = SerializedState::<Sha512>::try_from(state).ok()?;
                Some(Self::Sha512(Sha512::deserialize(&state).ok()?))
            }
            _ => None,
        }
    }
}

/// Whether a saved count of blocks, least byte first behind the chaining value, is one that a stream can
/// have: less than 2^48 blocks, some 2^54 bytes. With one near the end of its type, sha2 overflows.
fn can_count_on(blocks: &[u8]) -> bool {
    blocks.iter().skip(6).all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_algorithms_with_their_exact_length_parse() {
        let hex = "a".repeat(64);
        assert!(format!("sha256:{hex}").parse::<Digest>().is_ok());
        assert!(format!("sha512:{hex}{hex}").parse::<Digest>().is_ok());
        for bad in [
            "",
            "sha256",
            "sha256:",
            &hex,
            &format!("sha256:{hex}a"),
            &format!("sha512:{hex}"),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("SHA256:{hex}"),
            &format!("md5:{hex}"),
            &format!("sha256:{}/", "a".repeat(63)),
            &format!("sha256:{}", "é".repeat(32)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hash_survives_being_saved_at_every_kind_of_cut() {
        let bytes: Vec<u8> = (0..100_003_u32).map(|i| (i * 31 % 251) as u8).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let whole = Digest::of(algorithm, &bytes);
            for cut in [0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 50_000, bytes.len()] {
                let mut first = Hasher::new(algorithm);
                first.update(&bytes[..cut]);
                let mut second = Hasher::restore(&first.save()).expect("own state");
                second.update(&bytes[cut..]);
                assert_eq!(second.finish(), whole, "{algorithm:?} cut at {cut}");
            }
        }
        assert!(Hasher::restore(&[9, 1]).is_none());
        assert!(Hasher::restore(&[]).is_none());
    }

    #[test]
    fn a_saved_hash_that_no_stream_has_is_refused() {
        for (algorithm, count, blocks) in [(Algorithm::Sha256, 34..42, 2), (Algorithm::Sha512, 66..82, 1)] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(&[0; 128]);
            let mut saved = hasher.save();
            assert_eq!(saved[count.start], blocks, "the count is elsewhere");
            assert!(Hasher::restore(&saved).is_some());
            saved[count.end - 1] = 1;
            assert!(Hasher::restore(&saved).is_none(), "{algorithm:?}");
        }
    }
}
