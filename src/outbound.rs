//! The way out: how servers elsewhere are reached over HTTP, and what is said when they aren't.

mod kept;

use std::{error::Error, fmt, time::Duration};

use crate::config;
pub(crate) use kept::{Kept, Source};

/// What is on this machine or only on its link, and so never behind a proxy.
const NEAR: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10";

/// A proxy for what goes outside.
#[derive(Clone)]
pub struct Proxy {
    /// Its URL, perhaps with a user and a password.
    pub url: String,
    /// Host names, domains, addresses and networks that are reached without it.
    pub except: Vec<String>,
}

/// The URL may hold a password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("except", &self.except).finish_non_exhaustive()
    }
}

impl Proxy {
    /// That of the configuration, if it names one.
    pub fn of(config: &config::Proxy) -> Option<Self> {
        let url = config.url.as_ref()?.reveal().to_owned();
        Some(Self { url, except: config.no_proxy.iter().map(ToString::to_string).collect() })
    }
}

/// A client that reaches what is outside through `proxy`; without one, through that of `HTTPS_PROXY` and its kin.
///
/// # Errors
/// The proxy's URL can't be used.
pub(crate) fn through(
    proxy: Option<&Proxy>,
    client: reqwest::ClientBuilder,
) -> reqwest::Result<reqwest::ClientBuilder> {
    let Some(Proxy { url, except }) = proxy else { return Ok(client) };
    let except = reqwest::NoProxy::from_string(&format!("{NEAR},{}", except.join(",")));
    // Else the environment's own would be asked for what this one is not for.
    Ok(client.no_proxy().proxy(reqwest::Proxy::all(url)?.no_proxy(except)))
}

/// The clients by which servers are reached. Clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    outside: reqwest::Client,
    /// For what is on this machine or on its link, which no proxy can reach.
    near: reqwest::Client,
}

impl Way {
    /// A client for what is outside, and one that uses no proxy.
    pub(crate) fn new(outside: reqwest::Client, near: reqwest::Client) -> Self {
        Self { outside, near }
    }

    /// The one for what is outside.
    pub(crate) fn outside(&self) -> &reqwest::Client {
        &self.outside
    }

    /// The one that reaches this host.
    pub(crate) fn to(&self, host: Option<&str>) -> &reqwest::Client {
        if is_near(host) { &self.near } else { &self.outside }
    }
}

/// Whether a host is this machine, or one that is reached on the link only: there the clouds keep credentials.
pub(crate) fn is_near(host: Option<&str>) -> bool {
    let host = host.unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        // The addresses by which AWS' machines and clusters are asked over IPv6 begin so.
        Ok(std::net::IpAddr::V6(address)) => address.is_loopback() || address.segments()[..2] == [0xfd00, 0xec2],
        // By the second name Google's machines and clusters are asked for credentials.
        Err(_) => matches!(host, "localhost" | "metadata.google.internal"),
    }
}

/// An error and its causes on one line: of reqwest's own, the outermost text only repeats the URL.
pub(crate) fn text_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    on_one_line(&text)
}

/// Text of another server's, as it may stand in a log.
pub(crate) fn on_one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// How long to wait before the `failures`-th repetition, from 1: at random, up to a bound that doubles from
/// 200 ms to 3.2 s, so that those who failed together don't come back together.
pub(crate) fn pause_before(failures: usize) -> Duration {
    let most = 200_u128 << failures.clamp(1, 5).saturating_sub(1);
    Duration::from_millis((ulid::Ulid::r#gen().random() % most) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_at_random_and_bounded() {
        for (failures, most) in [(0, 200), (1, 200), (2, 400), (5, 3200), (50, 3200)] {
            let pauses: Vec<Duration> = (0..200).map(|_| pause_before(failures)).collect();
            assert!(pauses.iter().all(|pause| pause.as_millis() < most), "{failures}");
            assert!(pauses.iter().any(|pause| pause.as_millis() > most / 2), "{failures}");
        }
    }
}
