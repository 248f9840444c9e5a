//! The keys that tokens are signed with: read from text, made, and told to those who verify.
//!
//! A ring is one text of PEM blocks, so that it fits a file, a variable and a secret store alike. Before each
//! block a line says when the key was made: a new one signs only once every replica has had time to read it,
//! and an old one verifies for as long as the ring has it. Nothing here knows what a token says.

use std::fmt;

use aws_lc_rs::{
    encoding::AsDer,
    rsa::KeySize,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat, Utc};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};

/// How long after it was made a key begins to sign, in seconds: two minutes, in which each replica reads the
/// file again (a few seconds) and an orchestrator brings a changed secret to it (some ninety).
pub const SETTLES: u64 = 120;

/// The least length of an RSA modulus in bytes: 2048 bits (RFC 7518, section 3.3).
const SHORTEST_RSA: usize = 256;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// What the line before a key begins with.
const MADE: &str = "# made ";

/// Why there is no ring.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A block is no key that can sign.
    #[error("key {0} is no private key in PKCS#8 (BEGIN PRIVATE KEY) for Ed25519, P-256 or RSA of 2048 bits or more")]
    Unusable(usize),
    /// There is no block.
    #[error("there is no private key in PKCS#8 (BEGIN PRIVATE KEY)")]
    None,
    /// The machine has no randomness, or no memory.
    #[error("no key could be made")]
    NotMade,
}

/// How a key signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Ed25519: the fastest to sign, and the shortest.
    #[default]
    EdDsa,
    /// ECDSA on P-256, for verifiers that don't know Ed25519.
    Es256,
    /// RSA of 2048 bits, for those that know nothing newer. Signing costs forty times as much.
    Rs256,
}

impl Kind {
    fn algorithm(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es256 => Algorithm::ES256,
            Self::Rs256 => Algorithm::RS256,
        }
    }

    /// Its name in a token's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// One key.
pub struct Key {
    /// The RFC 7638 thumbprint of its public half.
    pub id: String,
    /// How it signs.
    pub kind: Kind,
    /// When it was made, in seconds since 1970; 0 where its text doesn't say.
    pub made: u64,
    pub(super) signing: EncodingKey,
    pub(super) verifying: DecodingKey,
    public: Jwk,
    /// Its text, with the line before it.
    text: String,
}

/// Shows nothing that is secret.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads the PKCS#8 in `der`. What kind it is only the bytes know.
    fn read(der: &[u8], made: u64) -> Option<Self> {
        let text = write(der, made);
        let (kind, signing) = if Ed25519KeyPair::from_pkcs8(der).is_ok() {
            let seeded = Ed25519KeyPair::from_pkcs8(der).ok()?.to_pkcs8v1().ok()?;
            (Kind::EdDsa, EncodingKey::from_ed_der(seeded.as_ref()))
        } else if EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).is_ok() {
            (Kind::Es256, EncodingKey::from_ec_der(der))
        } else {
            RsaKeyPair::from_pkcs8(der).ok().filter(|pair| pair.public_modulus_len() >= SHORTEST_RSA)?;
            (Kind::Rs256, EncodingKey::from_rsa_pem(text.as_bytes()).ok()?)
        };
        let mut public = Jwk::from_encoding_key(&signing, kind.algorithm()).ok()?;
        let id = public.thumbprint(ThumbprintHash::SHA256).ok()?;
        public.common.key_id = Some(id.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        let verifying = DecodingKey::from_jwk(&public).ok()?;
        Some(Self { id, kind, made, signing, verifying, public, text })
    }

    /// Makes one at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`KeyError::NotMade`]
    pub fn make(kind: Kind, now: u64) -> Result<Self, KeyError> {
        let der = match kind {
            Kind::EdDsa => {
                Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()).map(|der| der.as_ref().to_vec())
            }
            Kind::Es256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                .and_then(|pair| pair.to_pkcs8v1())
                .map(|der| der.as_ref().to_vec()),
            Kind::Rs256 => RsaKeyPair::generate(KeySize::Rsa2048)
                .and_then(|pair| AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair))
                .map(|der| der.as_ref().to_vec()),
        };
        der.ok().and_then(|der| Self::read(&der, now)).ok_or(KeyError::NotMade)
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.kind.algorithm()
    }

    /// Its text: the line that says when it was made, and the PEM block. It is a secret.
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn write(der: &[u8], made: u64) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("{MADE}{}\n{BEGIN}\n{}\n{END}\n", shown(made), lines.join("\n"))
}

/// Seconds since 1970 as a date that people read.
pub fn shown(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0));
    at.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// All keys of a registry.
#[derive(Debug)]
pub struct KeyRing {
    /// In the order of their making.
    keys: Vec<Key>,
}

impl KeyRing {
    /// Reads a text of PEM blocks.
    ///
    /// # Errors
    /// A block that is no key, by its number from 1; or a text without any. No error shows anything of it.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (at, block) in text.split(BEGIN).skip(1).enumerate() {
            let unusable = KeyError::Unusable(at + 1);
            let Some((base64, _)) = block.split_once(END) else { return Err(unusable) };
            let base64: String = base64.split_whitespace().collect();
            let before = text.split(BEGIN).nth(at).unwrap_or_default();
            let key = STANDARD.decode(base64).ok().and_then(|der| Key::read(&der, made(before)));
            keys.push(key.ok_or(unusable)?);
        }
        keys.sort_by_key(|key| key.made);
        if keys.is_empty() { Err(KeyError::None) } else { Ok(Self { keys }) }
    }

    /// One new key, which signs at once as there is no other.
    ///
    /// # Errors
    /// [`KeyError::NotMade`]
    pub fn make(kind: Kind, now: u64) -> Result<Self, KeyError> {
        Ok(Self { keys: vec![Key::make(kind, now)?] })
    }

    /// The same with a new key, without those whose tokens are gone at `now`: they have not signed for
    /// `longest`, the life of a refresh token, in seconds.
    ///
    /// # Errors
    /// [`KeyError::NotMade`]
    pub fn rotate(mut self, kind: Kind, now: u64, longest: u64) -> Result<Self, KeyError> {
        self.keys.push(Key::make(kind, now)?);
        // A key's last token was signed as the next one settled.
        let ended: Vec<bool> = (0..self.keys.len())
            .map(|at| self.keys.get(at + 1).is_some_and(|next| next.made + SETTLES + longest < now))
            .collect();
        let mut ended = ended.into_iter();
        self.keys.retain(|_| !ended.next().unwrap_or_default());
        Ok(self)
    }

    /// The key that signs at `now`: the newest that every replica knows.
    pub fn signing(&self, now: u64) -> &Key {
        let settled = self.keys.iter().rev().find(|key| key.made.saturating_add(SETTLES) <= now);
        settled.unwrap_or(&self.keys[0])
    }

    /// The key of this id.
    pub(super) fn find(&self, id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// All of them, oldest first.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The public halves, for those who verify (RFC 7517).
    pub fn public(&self) -> JwkSet {
        JwkSet { keys: self.keys.iter().map(|key| key.public.clone()).collect() }
    }

    /// The text that [`Self::read`] reads. It is a secret.
    pub fn text(&self) -> String {
        self.keys.iter().map(Key::text).collect()
    }
}

/// When the key was made whose block follows `before`.
fn made(before: &str) -> u64 {
    let line = before.lines().rev().find_map(|line| line.strip_prefix(MADE));
    let at = line.and_then(|line| DateTime::parse_from_rfc3339(line.trim()).ok());
    at.and_then(|at| at.timestamp().try_into().ok()).unwrap_or(0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for kind in [Kind::EdDsa, Kind::Es256, Kind::Rs256] {
            let ring = KeyRing::make(kind, 1_000_000).unwrap();
            let again = KeyRing::read(&ring.text()).unwrap();
            assert_eq!(again.keys[0].id, ring.keys[0].id);
            assert_eq!((again.keys[0].kind, again.keys[0].made), (kind, 1_000_000));
            assert!(!format!("{again:?}").contains(ring.text().lines().nth(2).unwrap()));
            let claims = serde_json::json!({ "exp": u32::MAX });
            let header = jsonwebtoken::Header::new(kind.algorithm());
            let token = jsonwebtoken::encode(&header, &claims, &ring.keys[0].signing).unwrap();
            let validation = jsonwebtoken::Validation::new(kind.algorithm());
            jsonwebtoken::decode::<serde_json::Value>(&token, &again.keys[0].verifying, &validation).unwrap();
        }
    }

    #[test]
    fn a_new_key_signs_when_everybody_has_it_and_an_old_one_stays_until_its_tokens_are_gone() {
        let longest = 1000;
        let first = KeyRing::make(Kind::EdDsa, 10_000).unwrap();
        let old = first.keys[0].id.clone();
        assert_eq!(first.signing(10_000).id, old);
        let both = first.rotate(Kind::EdDsa, 20_000, longest).unwrap();
        let new = both.keys[1].id.clone();
        assert_eq!(both.signing(20_000 + SETTLES - 1).id, old);
        assert_eq!(both.signing(20_000 + SETTLES).id, new);
        assert!(both.find(&old).is_some());
        let too_soon = both.rotate(Kind::EdDsa, 20_000 + SETTLES + longest, longest).unwrap();
        assert_eq!(too_soon.keys.len(), 3);
        let late = too_soon.rotate(Kind::Es256, 20_000 + SETTLES + longest + 1, longest).unwrap();
        assert!(late.find(&old).is_none());
        assert_eq!(late.keys.len(), 3);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(KeyRing::read("").unwrap_err(), KeyError::None);
        for bad in [format!("{BEGIN}\nAAAA\n{END}"), format!("{BEGIN}\nAAAA"), format!("{BEGIN}\n!\n{END}")] {
            assert_eq!(KeyRing::read(&bad).unwrap_err(), KeyError::Unusable(1));
        }
        let good = KeyRing::make(Kind::EdDsa, 1).unwrap().text();
        assert_eq!(KeyRing::read(&format!("{good}{BEGIN}\nAA==\n{END}")).unwrap_err(), KeyError::Unusable(2));
    }

    #[test]
    fn keys_that_others_made_are_read() {
        // `openssl genpkey -algorithm ed25519`, for this test.
        let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
        let ring = KeyRing::read(text).unwrap();
        assert_eq!(ring.keys[0].made, 0);
        // RFC 8037, appendix A.3, has the thumbprint of this key.
        assert_eq!(ring.keys[0].id, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
