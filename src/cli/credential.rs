//! `docker-credential-berth`: gives Docker, Podman, crane and the kubelet what they log in with.
//!
//! It speaks two protocols on standard input and output: that of Docker's credential helpers (`get`, `store`,
//! `erase`, `list`) and the kubelet's `CredentialProvider`. With a registry it speaks as any client would. What
//! it gives out is made anew at each call, so nothing has to be refreshed; the one file that it keeps is
//! `store`'s. It must never print a secret anywhere but in its answer.

mod exchange;
mod kubelet;
pub(super) mod private_file;
pub(super) mod source;
pub(super) mod store;

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use source::{Credential, Source};
use store::Store;

/// The most that anybody has to say on standard input: a key file is two thousand bytes, a token ten.
const MAX_INPUT: u64 = 1 << 20;

/// Gives Docker and its kin credentials for a Berth registry.
#[derive(Debug, Parser)]
#[command(name = "docker-credential-berth", version = super::version())]
struct Arguments {
    /// Where the credential comes from, instead of what is kept for the registry: key:FILE; github, gitlab or
    /// kubernetes, where :AUDIENCE, :VARIABLE or :FILE may follow.
    #[arg(long, value_name = "SOURCE")]
    token_source: Option<Source>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Read a registry's address; print its credential.
    Get,
    /// Read a credential as JSON; keep it.
    Store,
    /// Read a registry's address; forget what is kept for it.
    Erase,
    /// Print the registries of which something is known, and each one's user name.
    List,
    /// Read the kubelet's CredentialProviderRequest; print a CredentialProviderResponse.
    Kubelet,
    /// Print the version.
    Version,
}

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Nobody said how to log in there. The words are those by which clients know that they may go on without.
    #[error("credentials not found in native keychain")]
    NotFound,
    /// The caller named no registry, in the words that clients know.
    #[error("no credentials server URL")]
    NoServer,
    /// The caller gave a credential without a user, in the words that clients know.
    #[error("no credentials username")]
    NoUser,
    /// Anything else, in a line for whoever reads it.
    #[error("{0}")]
    Told(String),
}

/// A credential as Docker writes it.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL")]
    server_url: String,
    username: String,
    secret: String,
}

/// Does what the process's arguments say. Docker reads what went wrong on standard output, the kubelet on
/// standard error.
pub fn main() -> ExitCode {
    let Arguments { token_source, command } = Arguments::parse();
    match answer(command, token_source) {
        Ok(text) => match writeln!(io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(trouble) => {
            // Nobody may be listening; the exit status still says it.
            let _ = match command {
                Command::Kubelet => writeln!(io::stderr(), "docker-credential-berth: {trouble}"),
                _ => writeln!(io::stdout(), "{trouble}"),
            };
            ExitCode::FAILURE
        }
    }
}

fn answer(command: Command, source: Option<Source>) -> Result<String, Trouble> {
    match command {
        Command::Get => get(source),
        Command::Store => keep(),
        Command::Erase => erase(),
        Command::List => list(),
        Command::Kubelet => kubelet::answer(&read_input()?, source),
        Command::Version => Ok(format!("docker-credential-berth {}", super::version())),
    }
}

fn get(source: Option<Source>) -> Result<String, Trouble> {
    let server_url = read_input()?.trim().to_owned();
    let host = host_of(&server_url)?;
    let source = match source {
        Some(source) => source,
        None => Store::open()?.of(&host)?,
    };
    let Credential { username, secret, .. } = source.lasting_credential(&host)?;
    to_json(&Entry { server_url, username, secret })
}

fn keep() -> Result<String, Trouble> {
    // What it says of the text could quote the secret in it.
    let entry: Entry =
        serde_json::from_str(&read_input()?).map_err(|_| Trouble::Told("the credential is not as JSON".to_owned()))?;
    if entry.username.is_empty() {
        return Err(Trouble::NoUser);
    }
    let source = Source::Stored { username: entry.username, secret: entry.secret };
    Store::open()?.set(&host_of(&entry.server_url)?, Some(source))?;
    Ok(String::new())
}

fn erase() -> Result<String, Trouble> {
    Store::open()?.set(&host_of(&read_input()?)?, None)?;
    Ok(String::new())
}

fn list() -> Result<String, Trouble> {
    let registries = Store::open()?.all()?;
    let names: BTreeMap<&String, &str> = registries.iter().map(|(host, source)| (host, source.username())).collect();
    to_json(&json!(names))
}

fn to_json(value: &impl Serialize) -> Result<String, Trouble> {
    serde_json::to_string(value).map_err(|error| Trouble::Told(error.to_string()))
}

fn read_input() -> Result<String, Trouble> {
    let mut text = String::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_string(&mut text)
        .map_err(|error| Trouble::Told(format!("standard input: {error}")))?;
    Ok(text)
}

/// Host and port of a registry's address, which may come with a scheme and a path: `r.example.com:5000`.
pub(super) fn host_of(address: &str) -> Result<String, Trouble> {
    let address = address.trim();
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = bare.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let authority: Option<http::uri::Authority> = host.parse().ok();
    match authority {
        _ if host.is_empty() => Err(Trouble::NoServer),
        Some(authority) if is_plain(&authority) => Ok(host),
        _ => Err(Trouble::Told(format!("{address:?} is not the address of a registry; want HOST or HOST:PORT"))),
    }
}

/// Whether it is a host with a port or without, and nothing else.
fn is_plain(authority: &http::uri::Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'));
    authority.as_str() == authority.host() || port.is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_known_by_its_host() {
        for (address, host) in [
            ("r.example.com", "r.example.com"),
            ("R.example.com:5000\n", "r.example.com:5000"),
            ("https://r.example.com/v2/", "r.example.com"),
            ("http://[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(host_of(address).ok().as_deref(), Some(host), "{address}");
        }
        assert!(matches!(host_of(" \n"), Err(Trouble::NoServer)));
        assert!(matches!(host_of("https://"), Err(Trouble::NoServer)));
        for bad in ["me@r.example.com", "a b", "r.example.com:x"] {
            assert!(matches!(host_of(bad), Err(Trouble::Told(_))), "{bad}");
        }
    }
}
