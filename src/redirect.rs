//! Who is sent elsewhere for the bytes of a blob, and by which URL: to the store itself, or to a CDN in front
//! of it.
//!
//! A signed URL is as good as the bytes, so only a [`Blob`] gets one: it is the proof that its repository links
//! them. Whether somebody may read is decided before; nothing here asks again, and nothing here speaks HTTP.

pub mod cloud_cdn;
pub mod cloudfront;

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use crate::{
    blob::Blob,
    config::{self, AgentPattern, CdnKind, RepositoryPattern},
    epoch::boottime,
    error::Result,
    oci::RepositoryName,
    storage::{DataKey, Key, SignedUrl},
};
use cloud_cdn::CloudCdn;
use cloudfront::{CloudFront, UnfitKey};
use quick_cache::sync::{EntryAction, EntryResult};

/// How much memory holds URLs that were signed lately, in bytes: some ten thousand of them, as many blobs as are
/// pulled again and again. A miss costs some ten microseconds (S3), some hundred (RSA: CloudFront, a key of GCS) or a
/// request (GCS without a key).
const MEMORY: u64 = 8 << 20;

/// What one URL costs there beside its text, in bytes.
const OVERHEAD: u64 = 160;

/// A URL that is good for less than this is not given out: its client may begin too late. Only credentials that
/// are about to expire make one.
const LEAST_LIFE: Duration = Duration::from_secs(5);

/// What decides whether a client is sent elsewhere, beside the blob.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The client's address, where it is known.
    pub address: Option<IpAddr>,
    /// Its `User-Agent`, where it sent one.
    pub user_agent: Option<&'a [u8]>,
    /// The repository that it pulls from.
    pub repository: &'a RepositoryName,
}

/// Sends clients of one registry to where its bytes are.
#[derive(Debug)]
pub struct Redirects {
    ttl: Duration,
    min_size: u64,
    except_networks: Vec<IpNet>,
    except_user_agents: Vec<AgentPattern>,
    except_repositories: Vec<RepositoryPattern>,
    /// `None` where clients go to the store itself.
    cdn: Option<Cdn>,
    urls: Urls,
}

/// A CDN in front of the store.
#[derive(Debug)]
enum Cdn {
    CloudFront(CloudFront),
    CloudCdn(CloudCdn),
}

/// The URLs that were signed lately, by the object that they fetch: a data key is never used again, so never for
/// other bytes.
type Urls = quick_cache::sync::Cache<DataKey, KeptUrl, BytesOf>;

/// A URL that is given out again as long as enough of its life is left.
#[derive(Clone, Debug)]
struct KeptUrl {
    url: Arc<str>,
    /// In milliseconds of CLOCK_BOOTTIME.
    until: u64,
}

/// Weighs a URL by its bytes, and what keeping it costs beside them.
#[derive(Clone, Debug)]
struct BytesOf;

impl quick_cache::Weighter<DataKey, KeptUrl> for BytesOf {
    fn weight(&self, _: &DataKey, kept: &KeptUrl) -> u64 {
        kept.url.len() as u64 + OVERHEAD
    }
}

impl Redirects {
    /// What the settings say; `None` where nobody is redirected.
    ///
    /// # Errors
    /// The CDN's private key is none that it takes.
    pub fn new(settings: &config::Redirect) -> std::result::Result<Option<Self>, UnfitKey> {
        if !settings.enabled {
            return Ok(None);
        }
        Ok(Some(Self {
            ttl: *settings.ttl,
            min_size: settings.min_size.0.0,
            except_networks: settings.except_networks.iter().map(|network| network.0).collect(),
            except_user_agents: settings.except_user_agents.iter().map(|pattern| pattern.0.clone()).collect(),
            except_repositories: settings.except_repositories.iter().map(|pattern| pattern.0.clone()).collect(),
            cdn: Cdn::new(&settings.cdn)?,
            urls: Urls::with_weighter((MEMORY / 1024) as usize, MEMORY, BytesOf),
        }))
    }

    /// The URL by which this client fetches the blob; `None` where it has to come from here.
    pub async fn url(&self, asker: Asker<'_>, blob: &Blob) -> Result<Option<Arc<str>>> {
        if self.is_excepted(asker, blob.size()) {
            return Ok(None);
        }
        let key = blob.data();
        let now = boottime();
        if let Some(kept) = self.urls.get(&key).filter(|kept| kept.until > now) {
            return Ok(Some(kept.url));
        }
        // A signature can cost a request to somebody who counts them, so those who want the same URL share one.
        let look = |_: &DataKey, kept: &mut KeptUrl| match kept.until > now {
            true => EntryAction::Retain(Arc::clone(&kept.url)),
            false => EntryAction::ReplaceWithGuard,
        };
        let place = match self.urls.entry_async(&key, look).await {
            EntryResult::Retained(url) => return Ok(Some(url)),
            EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => Some(place),
            EntryResult::Removed(..) | EntryResult::Timeout => None,
        };
        let Some(SignedUrl { url, life }) = self.sign(blob).await? else { return Ok(None) };
        let Some(again) = self.given_again(life) else { return Ok(None) };
        let url: Arc<str> = url.into();
        let until = now.saturating_add(again.as_millis() as u64);
        if let Some(place) = place {
            // It is refused only if somebody has taken the place meanwhile, with a URL that is as good.
            drop(place.insert(KeptUrl { url: Arc::clone(&url), until }));
        }
        Ok(Some(url))
    }

    /// For how long a URL that lives for `life` is given out again: whoever gets it last still has half of that.
    /// `None` where it isn't given out at all.
    fn given_again(&self, life: Duration) -> Option<Duration> {
        (life >= LEAST_LIFE.min(self.ttl)).then_some(life / 2)
    }

    /// Whether the bytes come from here, wherever they could be fetched.
    fn is_excepted(&self, asker: Asker<'_>, size: u64) -> bool {
        // For no bytes the store isn't asked anyway.
        if size == 0 || size < self.min_size {
            return true;
        }
        // As IPv4 where it is that, so that `::ffff:10.0.0.1` is in `10.0.0.0/8`.
        let address = asker.address.map(|address| address.to_canonical());
        address.is_some_and(|address| self.except_networks.iter().any(|network| network.contains(&address)))
            || asker.user_agent.is_some_and(|agent| self.except_user_agents.iter().any(|one| one.matches(agent)))
            || self.except_repositories.iter().any(|pattern| pattern.matches(asker.repository))
    }

    async fn sign(&self, blob: &Blob) -> Result<Option<SignedUrl>> {
        match &self.cdn {
            None => blob.sign(self.ttl).await,
            Some(Cdn::CloudFront(cdn)) => cdn.sign(&Key::Data(blob.data()), self.ttl).map(Some),
            Some(Cdn::CloudCdn(cdn)) => cdn.sign(&Key::Data(blob.data()), self.ttl).map(Some),
        }
    }
}

impl Cdn {
    /// The CDN that is configured, if one is: the configuration has all of it or nothing.
    fn new(settings: &config::Cdn) -> std::result::Result<Option<Self>, UnfitKey> {
        let (Some(kind), Some(url)) = (settings.kind, &settings.url) else { return Ok(None) };
        let url = url.as_str();
        match kind {
            CdnKind::CloudFront => {
                let Some((id, key)) = settings.key_pair_id.as_ref().zip(settings.private_key.as_ref()) else {
                    return Ok(None);
                };
                Ok(Some(Self::CloudFront(CloudFront::new(url, id, key.reveal())?)))
            }
            CdnKind::CloudCdn => {
                let both = settings.key_name.as_ref().zip(settings.key.as_ref());
                Ok(both.map(|(name, key)| Self::CloudCdn(CloudCdn::new(url, name, key.reveal()))))
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Credentials that are about to expire sign URLs that end with them.
    #[test]
    fn a_url_that_ends_early_is_given_again_for_less_or_not_at_all() {
        let redirects = Redirects::new(&config::Redirect::default()).unwrap().unwrap();
        let seconds = Duration::from_secs;
        for (life, again) in [
            (seconds(1200), Some(seconds(600))),
            (seconds(10), Some(seconds(5))),
            (seconds(4), None),
            (seconds(0), None),
        ] {
            assert_eq!(redirects.given_again(life), again, "{life:?}");
        }
    }

    #[test]
    fn urls_are_kept_within_their_memory() {
        let urls = Urls::with_weighter(64, 64 << 10, BytesOf);
        for number in 0..10_000_u128 {
            let kept = KeptUrl { url: "x".repeat(500).into(), until: 0 };
            urls.insert(DataKey(number.into()), kept);
        }
        assert!(urls.weight() <= 64 << 10 && urls.len() > 50, "{} bytes of {}", urls.weight(), urls.len());
    }
}
