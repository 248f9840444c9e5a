//! The way out: how servers elsewhere are reached over HTTP, and what is said when they aren't.

use std::{error::Error, fmt};

use crate::config;

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
