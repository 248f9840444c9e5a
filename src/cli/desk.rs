//! Where accounts and rules are managed: at the bucket itself, or by a running server. Both speak the admin
//! API, so a command doesn't know which it is.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use reqwest::{Client, ClientBuilder, Method, StatusCode, redirect::Policy};
use serde_json::Value;

use super::{Failure, load};
use crate::{
    api::admin::{AdminApi, PREFIX},
    app,
    config::{Config, LoadArgs},
};

/// Where to manage.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// Ask the server whose admin listener is at this URL, such as http://127.0.0.1:5001, instead of opening
    /// the bucket and the index that the configuration names.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The file that proves to the server who you are: an account's key file, or a token. `-` is standard
    /// input.
    #[arg(long, value_name = "FILE", requires = "server")]
    credential: Option<PathBuf>,
    /// The user whose password is in that file.
    #[arg(long, value_name = "NAME", requires = "credential")]
    user: Option<String>,
}

/// What answers.
pub(super) enum Desk {
    /// The bucket, opened here.
    Here(Box<AdminApi>),
    /// A server.
    There(Server),
}

/// A server's admin listener, and what is shown to it.
pub(super) struct Server {
    http: Client,
    url: String,
    credential: Option<Credential>,
}

enum Credential {
    Token(String),
    Password(String, String),
}

/// How long a server may take: as long as a write that has to wait for another one, and more.
const PATIENCE: Duration = Duration::from_secs(60);

impl Where {
    /// Goes there.
    pub(super) async fn open(&self, args: LoadArgs) -> Result<Desk, Failure> {
        if let Some(url) = &self.server {
            return Ok(Desk::There(Server::new(Client::builder(), url, self.credential()?)?));
        }
        let config = load(args)?.config;
        match app::open_admin_api(&config).await.map_err(Failure::from) {
            Ok(api) => Ok(Desk::Here(Box::new(api))),
            Err(Failure::Held(why)) => beside(&config, why),
            Err(failure) => Err(failure),
        }
    }

    fn credential(&self) -> Result<Option<Credential>, Failure> {
        let Some(path) = &self.credential else { return Ok(None) };
        let text = read(path)?;
        let secret = text.trim();
        Ok(Some(match &self.user {
            Some(user) => Credential::Password(user.clone(), secret.to_owned()),
            None if secret.starts_with('{') => Credential::Password("_json_key".to_owned(), secret.to_owned()),
            None => Credential::Token(secret.to_owned()),
        }))
    }
}

/// A directory has one process at a time. The server that has it now is run from the same configuration, which
/// says where it listens; on this machine it asks for no credential.
fn beside(config: &Config, why: String) -> Result<Desk, Failure> {
    let address = *config.admin.listen;
    if !address.ip().to_canonical().is_loopback() || address.port() == 0 {
        return Err(Failure::Held(format!("{why}; --server with its admin listener asks that process")));
    }
    let _ = writeln!(io::stderr(), "{why}: asking it at {address}");
    let scheme = if config.admin.tls { "https" } else { "http" };
    // Whoever has this port of this machine is asked; the certificate is for the name that clients know.
    let http = Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
    Ok(Desk::There(Server::new(http, &format!("{scheme}://{address}"), None)?))
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let done = match path.to_str() {
        Some("-") => io::stdin().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(path).map(|read| text = read),
    };
    done.map_err(|error| Failure::Argument(format!("--credential {}: {error}", path.display())))?;
    Ok(text)
}

impl Desk {
    /// Asks for something and returns what was answered; nothing where there is no body.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        let path = format!("{PREFIX}{path}");
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let (status, answer) = match self {
            Self::Here(api) => {
                let (status, answer) = api.call(method, &path, body).await;
                (status, answer.to_vec())
            }
            Self::There(server) => server.ask(method, &path, body).await?,
        };
        let said: Value = match answer.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&answer)
                .map_err(|_| Failure::Refused(format!("the server answered {status}, and not as Berth does")))?,
        };
        if status.is_success() { Ok(said) } else { Err(refusal(status, &said)) }
    }
}

fn refusal(status: StatusCode, said: &Value) -> Failure {
    let message = said["errors"][0]["message"].as_str().map_or_else(|| status.to_string(), str::to_owned);
    Failure::Refused(message)
}

impl Server {
    fn new(http: ClientBuilder, url: &str, credential: Option<Credential>) -> Result<Self, Failure> {
        let broken = |error: reqwest::Error| Failure::Refused(error.to_string());
        // A credential is for the server that was named.
        let http = http.redirect(Policy::none()).timeout(PATIENCE).build().map_err(broken)?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), credential })
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>), Failure> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).body(body);
        request = match &self.credential {
            Some(Credential::Token(token)) => request.bearer_auth(token),
            Some(Credential::Password(name, secret)) => request.basic_auth(name, Some(secret)),
            None => request,
        };
        let broken = |error: reqwest::Error| Failure::Refused(format!("{}: {}", self.url, root(&error)));
        let answer = request.send().await.map_err(broken)?;
        let status = answer.status();
        Ok((status, answer.bytes().await.map_err(broken)?.to_vec()))
    }
}

/// The innermost cause: what stands around it only repeats the URL.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}
