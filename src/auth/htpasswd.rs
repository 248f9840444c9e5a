//! Users and their passwords, from a file as Apache's `htpasswd` writes it.
//!
//! Hashing takes as long as it does on purpose, so it happens on the blocking pool, on a few threads at a time,
//! and a pair that was right is remembered, by a keyed hash. An unknown name costs the same time as a known
//! one (CVE-2019-19030). Nothing here writes the file, and no message shows a line of it.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    thread,
};

use argon2::{
    Argon2,
    password_hash::{PasswordVerifier, phc::PasswordHash},
};
use async_trait::async_trait;
use aws_lc_rs::{hmac as keyed, rand::SystemRandom};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::{Identity, Login, Logins, Subject};
use crate::error::{Error, Result};

/// How many pairs are remembered; some 150 bytes each.
const REMEMBERED: usize = 10_000;

/// How many passwords may wait to be hashed. At sixty milliseconds each, the last of so many waits two seconds
/// on two cores; who comes then is told to try again.
const WAITING: usize = 64;

/// The most memory that one argon2 hash may take, in KiB: what the largest profile of RFC 9106 asks is 2 GiB,
/// which a registry has no room for; 256 MiB is four times the other.
const MOST_ARGON2_MEMORY: u32 = 256 << 10;

/// The greatest cost of bcrypt, which doubles the time with each: 16 takes some four seconds.
const MOST_BCRYPT_COST: u32 = 16;

/// Why the file can't be used. It is one line, and shows nothing of a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HtpasswdError {
    /// It can't be read.
    #[error("{path} cannot be read ({reason})")]
    Unreadable {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// A line of it can't be used.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One user's hash.
#[derive(Clone, PartialEq, Eq)]
enum Hash {
    Bcrypt(String),
    Argon2(String),
}

impl Hash {
    /// Reads a hash, or says what is wrong with it.
    fn read(text: &str) -> std::result::Result<Self, &'static str> {
        if ["$2a$", "$2b$", "$2y$"].iter().any(|start| text.starts_with(start)) {
            let parts: bcrypt::HashParts = text.parse().map_err(|_| "the bcrypt hash is malformed")?;
            return match parts.get_cost() {
                4..=MOST_BCRYPT_COST => Ok(Self::Bcrypt(text.to_owned())),
                _ => Err("the bcrypt hash has a cost that is not between 4 and 16"),
            };
        }
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|_| "the argon2 hash is malformed")?;
            let memory = argon2::Params::try_from(&hash).map_err(|_| "the argon2 hash has parameters that can't be")?;
            return match memory.m_cost() {
                0..=MOST_ARGON2_MEMORY => Ok(Self::Argon2(text.to_owned())),
                _ => Err("the argon2 hash takes more than 256 MiB of memory"),
            };
        }
        Err("the hash is neither bcrypt ($2y$…) nor argon2 ($argon2id$…): make one with `htpasswd -B`")
    }

    /// Whether it is the hash of `secret`. Bcrypt looks at 72 bytes and no further; what is longer is wrong,
    /// since else its end could be left out.
    fn is_of(&self, secret: &str) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::non_truncating_verify(secret, hash).unwrap_or(false),
            Self::Argon2(hash) => PasswordHash::new(hash)
                .is_ok_and(|hash| Argon2::default().verify_password(secret.as_bytes(), &hash).is_ok()),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Bcrypt(text) | Self::Argon2(text) => text,
        }
    }
}

/// The users of a file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<String, Hash>);

/// By name alone.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Users {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// The first line that can't be used.
    pub fn open(path: &Path) -> std::result::Result<Self, HtpasswdError> {
        let shown = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::read(&text, &shown),
            Err(error) => Err(HtpasswdError::Unreadable { path: shown, reason: error.to_string() }),
        }
    }

    /// Reads lines of `name:hash`; empty ones and those that begin with `#` say nothing.
    fn read(text: &str, path: &str) -> std::result::Result<Self, HtpasswdError> {
        let mut users = BTreeMap::new();
        for (at, line) in text.lines().enumerate() {
            let fail = |problem| HtpasswdError::Line { path: path.to_owned(), line: at + 1, problem };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash) = line.split_once(':').ok_or_else(|| fail("want a name, a colon and a hash"))?;
            if name.is_empty() || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
                return Err(fail("the name is empty, or has a space in it"));
            }
            let hash = Hash::read(hash).map_err(fail)?;
            if users.insert(name.to_owned(), hash).is_some() {
                return Err(fail("the name stands on an earlier line already"));
            }
        }
        Ok(Self(users))
    }

    /// Whether there is a user of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Checks passwords against the users of a file.
pub struct Htpasswd {
    users: RwLock<Arc<Users>>,
    /// The keyed hashes of pairs that were right; the hash of the password is in each, so that a changed line
    /// makes its pairs unknown.
    remembered: Cache<[u8; 32], ()>,
    key: keyed::Key,
    threads: Semaphore,
    queue: Semaphore,
}

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Htpasswd").field("users", &self.users()).finish_non_exhaustive()
    }
}

impl Htpasswd {
    /// For these users.
    ///
    /// # Errors
    /// Where the machine has no randomness.
    pub fn new(users: Users) -> Result<Self> {
        let key = keyed::Key::generate(keyed::HMAC_SHA256, &SystemRandom::new()).map_err(Error::internal)?;
        let threads = thread::available_parallelism().map_or(1, Into::into);
        Ok(Self {
            users: RwLock::new(Arc::new(users)),
            remembered: Cache::new(REMEMBERED),
            key,
            threads: Semaphore::new(threads),
            queue: Semaphore::new(WAITING),
        })
    }

    /// The users, as they are now.
    pub fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other users in the place of those that there are.
    pub fn set_users(&self, users: Users) {
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
    }

    /// What a pair is remembered by. Lengths stand before what has any, so that no two pairs are one.
    fn name_of(&self, name: &str, hash: &Hash, secret: &str) -> [u8; 32] {
        let mut mac = keyed::Context::with_key(&self.key);
        for part in [name, hash.as_str(), secret] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        let mut found = [0; 32];
        found.copy_from_slice(mac.sign().as_ref());
        found
    }

    fn login(name: &str, hash: &Hash) -> Login {
        let subject = Subject::User(name.to_owned());
        Login { identity: Identity { subject, groups: Vec::new() }, fingerprint: fingerprint(hash), at_most: None }
    }

    /// Hashes, when it is this one's turn.
    async fn verify(&self, hash: Hash, secret: &str, pair: &[u8; 32]) -> Result<bool> {
        let _place = self.queue.try_acquire().map_err(|_| Error::unavailable("too many passwords are waiting"))?;
        let _thread = self.threads.acquire().await.map_err(Error::internal)?;
        // Somebody may have asked the same while this one waited: clients open several connections at once.
        if self.remembered.get(pair).is_some() {
            return Ok(true);
        }
        let secret = secret.to_owned();
        tokio::task::spawn_blocking(move || hash.is_of(&secret)).await.map_err(Error::internal)
    }
}

/// A hash of a hash: which line it was, and nothing of what it says.
fn fingerprint(hash: &Hash) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, hash.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16])
}

#[async_trait]
impl Logins for Htpasswd {
    fn recalls(&self, name: &str, secret: &str) -> Option<Login> {
        let users = self.users();
        let hash = users.0.get(name)?;
        self.remembered.get(&self.name_of(name, hash, secret)).map(|()| Self::login(name, hash))
    }

    fn can_be_guessed(&self) -> bool {
        true
    }

    async fn check(&self, name: &str, secret: &str) -> Result<Option<Login>> {
        let users = self.users();
        let known = users.0.get(name);
        // Somebody's hash stands in for that of an unknown user, and its answer counts for nothing.
        let Some(hash) = known.or_else(|| users.0.values().next()) else { return Ok(None) };
        let pair = self.name_of(name, hash, secret);
        let is_right = self.verify(hash.clone(), secret, &pair).await?;
        if known.is_none() || !is_right {
            return Ok(None);
        }
        self.remembered.insert(pair, ());
        Ok(Some(Self::login(name, hash)))
    }

    async fn stands(&self, identity: &Identity, earlier: &str) -> Result<Option<bool>> {
        let Subject::User(name) = &identity.subject else { return Ok(None) };
        Ok(Some(self.users().0.get(name).is_some_and(|hash| fingerprint(hash) == earlier)))
    }

    fn is_offered(&self) -> bool {
        !self.users().0.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use argon2::{Params, PasswordHasher};

    use super::*;

    fn bcrypt(secret: &str) -> String {
        bcrypt::hash(secret, 4).unwrap()
    }

    fn argon2(secret: &str) -> String {
        Argon2::from(Params::new(64, 1, 1, None).unwrap()).hash_password(secret.as_bytes()).unwrap().to_string()
    }

    #[tokio::test]
    async fn a_right_password_is_known_again_until_its_line_changes() {
        let file = |bob: &str| Users::read(&format!("# ours\n\nbob:{bob}\nann:{}\n", argon2("other")), "f").unwrap();
        let htpasswd = Htpasswd::new(file(&bcrypt("secret"))).unwrap();
        for (name, secret, is_right) in [
            ("bob", "secret", true),
            ("ann", "other", true),
            ("bob", "other", false),
            ("bob", "", false),
            ("eve", "secret", false),
        ] {
            let login = htpasswd.check(name, secret).await.unwrap();
            assert_eq!(login.is_some(), is_right, "{name} {secret}");
            assert_eq!(htpasswd.recalls(name, secret).is_some(), is_right, "{name} {secret}");
        }
        let login = htpasswd.check("bob", "secret").await.unwrap().unwrap();
        assert_eq!(login.identity.to_string(), "user:bob");
        assert_eq!(htpasswd.stands(&login.identity, &login.fingerprint).await.unwrap(), Some(true));
        htpasswd.set_users(file(&bcrypt("secret")));
        assert_eq!(htpasswd.stands(&login.identity, &login.fingerprint).await.unwrap(), Some(false));
        assert!(htpasswd.recalls("bob", "secret").is_none());
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_and_not_shown() {
        let long = "x".repeat(80);
        for (line, problem) in [
            ("bob:$apr1$x$abc", "neither bcrypt"),
            ("bob:{SHA}abc", "neither bcrypt"),
            ("bob:plain", "neither bcrypt"),
            ("bob:abJnggxhB/yWI", "neither bcrypt"),
            ("bob", "want a name"),
            (":$2y$05$abc", "the name is empty"),
            ("bob:$2y$05$abc", "malformed"),
            ("bob:$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo", "256 MiB"),
            ("ann:$argon2id$rubbish", "malformed"),
        ] {
            let said = Users::read(&format!("# {long}\n{line}"), "users").unwrap_err().to_string();
            assert!(said.starts_with("users, line 2: ") && said.contains(problem), "{said}");
            assert!(!said.contains("plain") && !said.contains("abc"), "{said}");
        }
        let twice = format!("a:{0}\na:{0}", bcrypt("x"));
        assert!(Users::read(&twice, "f").unwrap_err().to_string().starts_with("f, line 2: the name stands"));
    }

    #[test]
    fn bcrypt_takes_no_password_for_its_beginning() {
        let long = "x".repeat(100);
        assert!(!Hash::read(&bcrypt(&long)).unwrap().is_of(&long));
        assert!(!Hash::read(&bcrypt(&long)).unwrap().is_of(&long[..80]));
    }
}
