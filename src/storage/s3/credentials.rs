//! Who asks: whatever AWS' own tools would find, kept until shortly before it expires.
//!
//! Signing happens on the way of every request and of every redirect, so what is held is given out at once, and
//! replaced in the background while it is still good. Nothing here is ever logged.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use object_store::{CredentialProvider, aws::AwsCredential};

use crate::outbound::text_of;

/// How long before they expire credentials are replaced, at the most: what was signed with them ends with them.
const EARLY: Duration = Duration::from_secs(5 * 60);

/// How long to wait after a failed attempt while what is held is still good.
const AGAIN: Duration = Duration::from_secs(10);

/// The longest that finding credentials may take: a process may have to be run, or a role be assumed.
const FIND: Duration = Duration::from_secs(30);

/// The credentials, found when they are first asked for.
#[derive(Clone, Debug)]
pub(super) struct Credentials(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: SharedCredentialsProvider,
    held: Mutex<Option<Held>>,
    /// Whoever has it looks for new ones.
    finding: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Debug)]
struct Held {
    credential: Arc<AwsCredential>,
    /// `None` for those that are good for ever.
    expires: Option<SystemTime>,
    /// When to look for others.
    replace: Option<SystemTime>,
}

impl Held {
    fn is_good(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.replace.is_some_and(|replace| replace <= now)
    }
}

impl Credentials {
    /// Those of `source`. Nothing is asked for yet.
    pub(super) fn new(source: SharedCredentialsProvider) -> Self {
        Self(Arc::new(Shared { source, held: Mutex::new(None), finding: Arc::default() }))
    }

    /// For how long what is signed now stays good; `None` for as long as one likes.
    pub(super) async fn life(&self) -> Result<Option<Duration>, String> {
        let now = SystemTime::now();
        let expires = self.get(now).await?.expires;
        Ok(expires.map(|expires| expires.duration_since(now).unwrap_or_default()))
    }

    async fn get(&self, now: SystemTime) -> Result<Held, String> {
        if let Some(held) = self.0.held(now) {
            if held.is_due(now)
                && let Ok(turn) = Arc::clone(&self.0.finding).try_lock_owned()
            {
                let shared = Arc::clone(&self.0);
                tokio::spawn(async move {
                    if let Err(error) = shared.find().await {
                        tracing::warn!(
                            error,
                            "new credentials for the bucket were not found; the old ones are used on"
                        );
                        shared.put_off();
                    }
                    drop(turn);
                });
            }
            return Ok(held);
        }
        let _turn = self.0.finding.lock().await;
        match self.0.held(SystemTime::now()) {
            // Somebody else has found them meanwhile.
            Some(held) => Ok(held),
            None => self.0.find().await,
        }
    }
}

impl Shared {
    /// What is held, if it is good.
    fn held(&self, now: SystemTime) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|held| held.is_good(now))
    }

    async fn find(&self) -> Result<Held, String> {
        let found = tokio::time::timeout(FIND, self.source.provide_credentials()).await;
        let found = found.map_err(|_| format!("nothing was found within {} s", FIND.as_secs()))?;
        let found = found.map_err(|error| text_of(&error))?;
        let now = SystemTime::now();
        let credential = AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(ToOwned::to_owned),
        };
        let expires = found.expiry();
        let replace = expires.map(|expires| {
            // Some are given for minutes only.
            let life = expires.duration_since(now).unwrap_or_default();
            expires - EARLY.min(life / 4)
        });
        let held = Held { credential: Arc::new(credential), expires, replace };
        if !held.is_good(now) {
            return Err("those that were found have expired".to_owned());
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held.clone());
        Ok(held)
    }

    fn put_off(&self) {
        if let Some(held) = self.held.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            held.replace = Some(SystemTime::now() + AGAIN);
        }
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match self.get(SystemTime::now()).await {
            Ok(held) => Ok(held.credential),
            Err(why) => Err(object_store::Error::Unauthenticated {
                path: "credentials".to_owned(),
                source: format!("there are no credentials: {why}").into(),
            }),
        }
    }
}

/// AWS' own kit asks here as well, so that nobody is asked twice.
impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let held = self.get(SystemTime::now()).await.map_err(CredentialsError::provider_error)?;
            let AwsCredential { key_id, secret_key, token } = &*held.credential;
            let found = aws_credential_types::Credentials::new(key_id, secret_key, token.clone(), held.expires, "held");
            Ok(found)
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Gives keys that are numbered, each for so many seconds; fails when told to.
    #[derive(Clone, Debug, Default)]
    struct Source {
        given: Arc<AtomicU64>,
        seconds: Arc<AtomicU64>,
    }

    impl ProvideCredentials for Source {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.given.fetch_add(1, Ordering::Relaxed);
            let seconds = self.seconds.load(Ordering::Relaxed);
            let until = SystemTime::now() + Duration::from_secs(seconds);
            let found =
                aws_credential_types::Credentials::new(format!("key{number}"), "secret", None, Some(until), "test");
            future::ProvideCredentials::ready(match seconds {
                0 => Err(CredentialsError::not_loaded("none here")),
                _ => Ok(found),
            })
        }
    }

    fn credentials(seconds: u64) -> (Source, Credentials) {
        let source = Source::default();
        source.seconds.store(seconds, Ordering::Relaxed);
        (source.clone(), Credentials::new(SharedCredentialsProvider::new(source)))
    }

    async fn key(credentials: &Credentials, at: SystemTime) -> String {
        credentials.get(at).await.unwrap().credential.key_id.clone()
    }

    #[tokio::test]
    async fn they_are_kept_and_replaced_before_they_expire_without_anybody_waiting() {
        let (source, credentials) = credentials(3600);
        let now = SystemTime::now();
        let all = futures_util::future::join_all((0..50).map(|_| key(&credentials, now))).await;
        assert!(all.iter().all(|key| key == "key0"), "they are looked for once");
        let life = credentials.life().await.unwrap().unwrap();
        assert!(life > Duration::from_secs(3500) && life <= Duration::from_secs(3600));
        let due = now + Duration::from_secs(3600) - EARLY + Duration::from_secs(1);
        assert_eq!(key(&credentials, due).await, "key0", "the old ones are good meanwhile");
        while key(&credentials, now).await == "key0" {
            tokio::task::yield_now().await;
        }
        assert_eq!(source.given.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_replaced_is_used_to_its_end_and_not_beyond() {
        let (source, credentials) = credentials(3600);
        let now = SystemTime::now();
        assert_eq!(key(&credentials, now).await, "key0");
        source.seconds.store(0, Ordering::Relaxed);
        let due = now + Duration::from_secs(3590);
        for _ in 0..20 {
            assert_eq!(key(&credentials, due).await, "key0");
            tokio::task::yield_now().await;
        }
        let expired = now + Duration::from_secs(3700);
        // It is looked for anew, on the caller's time; and the real clock says that what is held is good.
        let held = credentials.0.held(expired);
        assert!(held.is_none());
    }

    #[tokio::test]
    async fn none_at_all_is_said() {
        let (_, credentials) = credentials(0);
        let why = credentials.get_credential().await.unwrap_err().to_string();
        assert!(why.contains("there are no credentials"), "{why}");
    }
}
