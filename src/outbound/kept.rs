//! What others are asked with (a key, a token), kept until shortly before it expires.
//!
//! Signing happens on the way of every request and of every redirect, so what is held is given out at once, and
//! replaced in the background while it is still good. Nothing here is ever logged.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

/// How long before its end something is replaced, at the most: what was signed with it ends with it.
const EARLY: Duration = Duration::from_secs(5 * 60);

/// How long to wait after a failed attempt while what is held is still good.
const AGAIN: Duration = Duration::from_secs(10);

/// The longest that finding may take: a process may have to be run, or a role be assumed.
const FIND: Duration = Duration::from_secs(30);

/// Where new ones come from.
#[async_trait]
pub(crate) trait Source: Send + Sync + 'static {
    /// What is found: cheap to clone.
    type Value: Clone + Send + Sync + 'static;

    /// Finds one, and says until when it is good (`None` for ever); or, in one line, why there is none.
    async fn find(&self) -> Result<(Self::Value, Option<SystemTime>), String>;
}

/// Something that is kept, found when it is first asked for. Clones share it.
pub(crate) struct Kept<S: Source>(Arc<Shared<S>>);

impl<S: Source> Clone for Kept<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What is held stays out of logs.
impl<S: Source> fmt::Debug for Kept<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").finish_non_exhaustive()
    }
}

struct Shared<S: Source> {
    source: S,
    held: Mutex<Option<Held<S::Value>>>,
    /// Whoever has it looks for a new one.
    finding: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
pub(crate) struct Held<T> {
    pub(crate) value: T,
    /// `None` for what is good for ever.
    pub(crate) expires: Option<SystemTime>,
    /// When to look for another.
    replace: Option<SystemTime>,
}

impl<T> Held<T> {
    fn is_good(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|expires| expires > now)
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.replace.is_some_and(|replace| replace <= now)
    }
}

impl<S: Source> Kept<S> {
    /// What `source` finds. Nothing is asked for yet.
    pub(crate) fn new(source: S) -> Self {
        Self(Arc::new(Shared { source, held: Mutex::new(None), finding: Arc::default() }))
    }

    /// For how long what is signed now stays good; `None` for as long as one likes.
    pub(crate) async fn life(&self) -> Result<Option<Duration>, String> {
        let now = SystemTime::now();
        let expires = self.get(now).await?.expires;
        Ok(expires.map(|expires| expires.duration_since(now).unwrap_or_default()))
    }

    /// Holds nothing any more: what was held is not good after all.
    pub(crate) fn forget(&self) {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What is held, else what is found now; or, in one line, why there is none.
    pub(crate) async fn get(&self, now: SystemTime) -> Result<Held<S::Value>, String> {
        if let Some(held) = self.0.held(now) {
            if held.is_due(now)
                && let Ok(turn) = Arc::clone(&self.0.finding).try_lock_owned()
            {
                let shared = Arc::clone(&self.0);
                tokio::spawn(async move {
                    if let Err(error) = shared.find().await {
                        tracing::warn!(error, "new credentials were not found; the old ones are used on");
                        shared.put_off();
                    }
                    drop(turn);
                });
            }
            return Ok(held);
        }
        let _turn = self.0.finding.lock().await;
        match self.0.held(SystemTime::now()) {
            // Somebody else has found one meanwhile.
            Some(held) => Ok(held),
            None => self.0.find().await,
        }
    }
}

impl<S: Source> Shared<S> {
    /// What is held, if it is good.
    fn held(&self, now: SystemTime) -> Option<Held<S::Value>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|held| held.is_good(now))
    }

    async fn find(&self) -> Result<Held<S::Value>, String> {
        let found = tokio::time::timeout(FIND, self.source.find()).await;
        let (value, expires) = found.map_err(|_| format!("nothing was found within {} s", FIND.as_secs()))??;
        let now = SystemTime::now();
        let replace = expires.map(|expires| {
            // Some are given for minutes only.
            let life = expires.duration_since(now).unwrap_or_default();
            expires - EARLY.min(life / 4)
        });
        let held = Held { value, expires, replace };
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Gives keys that are numbered, each for so many seconds; fails when told to.
    #[derive(Clone, Default)]
    struct Numbered {
        given: Arc<AtomicU64>,
        seconds: Arc<AtomicU64>,
    }

    #[async_trait]
    impl Source for Numbered {
        type Value = String;

        async fn find(&self) -> Result<(String, Option<SystemTime>), String> {
            let number = self.given.fetch_add(1, Ordering::Relaxed);
            let seconds = self.seconds.load(Ordering::Relaxed);
            let until = SystemTime::now() + Duration::from_secs(seconds);
            match seconds {
                0 => Err("none here".to_owned()),
                _ => Ok((format!("key{number}"), Some(until))),
            }
        }
    }

    fn kept(seconds: u64) -> (Numbered, Kept<Numbered>) {
        let source = Numbered::default();
        source.seconds.store(seconds, Ordering::Relaxed);
        (source.clone(), Kept::new(source))
    }

    async fn key(kept: &Kept<Numbered>, at: SystemTime) -> String {
        kept.get(at).await.unwrap().value
    }

    #[tokio::test]
    async fn it_is_kept_and_replaced_before_it_expires_without_anybody_waiting() {
        let (source, kept) = kept(3600);
        let now = SystemTime::now();
        let all = futures_util::future::join_all((0..50).map(|_| key(&kept, now))).await;
        assert!(all.iter().all(|key| key == "key0"), "it is looked for once");
        let life = kept.life().await.unwrap().unwrap();
        assert!(life > Duration::from_secs(3500) && life <= Duration::from_secs(3600));
        let due = now + Duration::from_secs(3600) - EARLY + Duration::from_secs(1);
        assert_eq!(key(&kept, due).await, "key0", "the old one is good meanwhile");
        while key(&kept, now).await == "key0" {
            tokio::task::yield_now().await;
        }
        assert_eq!(source.given.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_replaced_is_used_to_its_end_and_not_beyond() {
        let (source, kept) = kept(3600);
        let now = SystemTime::now();
        assert_eq!(key(&kept, now).await, "key0");
        source.seconds.store(0, Ordering::Relaxed);
        let due = now + Duration::from_secs(3590);
        for _ in 0..20 {
            assert_eq!(key(&kept, due).await, "key0");
            tokio::task::yield_now().await;
        }
        let expired = now + Duration::from_secs(3700);
        // It is looked for anew, on the caller's time; and the real clock says that what is held is good.
        assert!(kept.0.held(expired).is_none());
    }

    #[tokio::test]
    async fn none_at_all_is_said() {
        let (_, kept) = kept(0);
        assert_eq!(kept.life().await.unwrap_err(), "none here");
    }
}
