//! `berth health`: asks the server that runs here whether it wants requests, for a container in which there is
//! no other program that could ask.
//!
//! It must not open the store or the index: what counts is what the running process says of itself.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::{Failure, print};
use crate::config::Config;

/// How long each step of asking may take: a server that answers from memory needs none of it, and Docker's own
/// patience, in infra/Dockerfile, is longer than two of them.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much of an answer is read, in bytes. The report has a line for each part of Berth.
const LONGEST: u64 = 64 << 10;

/// Prints what `/readyz` of the admin listener says; fails unless it says that requests are wanted.
pub(super) fn run(config: &Config) -> Result<(), Failure> {
    let address = reachable(*config.admin.listen);
    let answer = ask(address).map_err(|error| Failure::NotReady(format!("{address} doesn't answer: {error}")))?;
    let (head, report) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) != Some("200") {
        return Err(Failure::NotReady(format!("{address} says {report}")));
    }
    print(format!("{report}\n").as_bytes())
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

/// The whole answer to `GET /readyz`, head and body.
fn ask(address: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    write!(socket, "GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(LONGEST).read_to_string(&mut answer)?;
    Ok(answer)
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
