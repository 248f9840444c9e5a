//! `berth health`: asks the server that runs here whether it wants requests, for a container in which there is
//! no other program that could ask.
//!
//! It must not open the store or the index: what counts is what the running process says of itself.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use reqwest::{Client, StatusCode};

use super::{Failure, desk::root, print};
use crate::config::Config;

/// How long the answer may take: a server that answers from memory needs none of it, and Docker's own patience,
/// in infra/Dockerfile, is longer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Prints what `/readyz` of the admin listener says; fails unless it says that requests are wanted.
pub(super) fn run(config: &Config) -> Result<(), Failure> {
    let address = reachable(*config.admin.listen);
    let scheme = if config.admin.tls { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(ask(format!("{scheme}://{address}/readyz")));
    match answer.map_err(|error| Failure::NotReady(format!("{address} doesn't answer: {}", root(&error))))? {
        (StatusCode::OK, report) => print(format!("{report}\n").as_bytes()),
        (_, report) => Err(Failure::NotReady(format!("{address} says {report}"))),
    }
}

async fn ask(url: String) -> reqwest::Result<(StatusCode, String)> {
    // The certificate is for the name that clients know, and there is nothing secret in question or answer.
    let client = Client::builder().timeout(PATIENCE).no_proxy().tls_danger_accept_invalid_certs(true).build()?;
    let answer = client.get(url).send().await?;
    Ok((answer.status(), answer.text().await?))
}

/// Who listens on every address is reached on loopback.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let loopback = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        own => own,
    };
    SocketAddr::new(loopback, listening.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reached_on_loopback() {
        for (listening, reached) in [
            ("0.0.0.0:5001", "127.0.0.1:5001"),
            ("[::]:5001", "[::1]:5001"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("127.0.0.1:5001", "127.0.0.1:5001"),
        ] {
            assert_eq!(reachable(listening.parse().expect("an address")).to_string(), reached);
        }
    }
}
