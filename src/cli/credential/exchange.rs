//! What is asked of others: of the platform an ID token, of the registry a refresh token for it.
//!
//! It asks the registry only what every client does (the token protocol of Docker's registries), and gives a
//! token to nobody but the registry's own token service, over TLS unless that is on this machine.

use std::{net::IpAddr, time::Duration};

use reqwest::{Client, Response, StatusCode, Url, header::WWW_AUTHENTICATE};
use serde::{Deserialize, de::DeserializeOwned};

use super::Trouble;
use crate::outbound::text_of;

/// How long an answer may take: as long as Docker waits at a login.
const PATIENCE: Duration = Duration::from_secs(15);

/// The most bytes of an answer: a token with many grants has some ten thousand.
const MAX_ANSWER: usize = 1 << 20;

/// By what name the registry's log knows us.
const CLIENT_ID: &str = "docker-credential-berth";

/// Asks a runner of GitHub Actions for an ID token for `audience`.
pub(super) fn id_token(url: &str, bearer: &str, audience: &str) -> Result<String, Trouble> {
    #[derive(Deserialize)]
    struct Answer {
        value: String,
    }
    let mut url: Url =
        url.parse().map_err(|_| Trouble::Told("ACTIONS_ID_TOKEN_REQUEST_URL is not a URL".to_owned()))?;
    url.query_pairs_mut().append_pair("audience", audience);
    wait(async {
        let response = client()?.get(url).bearer_auth(bearer).send().await.map_err(told)?;
        if response.status() != StatusCode::OK {
            return Err(Trouble::Told(format!("no ID token was given out: {}", response.status())));
        }
        read(response).await.map(|Answer { value }| value)
    })
}

/// Exchanges a password for a refresh token; `None` where the registry has none to give.
pub(super) fn refresh_token(host: &str, username: &str, password: &str) -> Result<Option<String>, Trouble> {
    #[derive(Deserialize)]
    struct Answer {
        refresh_token: Option<String>,
    }
    wait(async {
        let client = client()?;
        let Some(service) = challenge(&client, host).await? else { return Ok(None) };
        let form = [
            ("grant_type", "password"),
            ("service", service.name.as_str()),
            ("client_id", CLIENT_ID),
            ("access_type", "offline"),
            ("username", username),
            ("password", password),
        ];
        let response = client.post(service.realm).form(&form).send().await.map_err(told)?;
        match response.status() {
            StatusCode::OK => read(response).await.map(|Answer { refresh_token }| refresh_token),
            // A token service that knows only GET.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            status => Err(Trouble::Told(format!("{host} did not take the ID token: {status}"))),
        }
    })
}

/// A token service, as a registry names it.
struct Service {
    realm: Url,
    name: String,
}

/// Asks a registry where its tokens come from; `None` if it wants none.
async fn challenge(client: &Client, host: &str) -> Result<Option<Service>, Trouble> {
    let mut answer = client.get(format!("https://{host}/v2/")).send().await;
    // A registry on this machine may do without TLS, as it may for Docker.
    if answer.is_err() && is_here(host) {
        answer = client.get(format!("http://{host}/v2/")).send().await;
    }
    let answer = answer.map_err(told)?;
    let headers = answer.headers().get_all(WWW_AUTHENTICATE);
    let bearer = headers.iter().filter_map(|value| value.to_str().ok()).find_map(|value| {
        let (scheme, parameters) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(parameters)
    });
    let bearer = match (answer.status(), bearer) {
        (StatusCode::UNAUTHORIZED, Some(bearer)) => bearer,
        (StatusCode::UNAUTHORIZED | StatusCode::OK, _) => return Ok(None),
        (status, _) => return Err(Trouble::Told(format!("{host} does not answer as a registry: {status}"))),
    };
    let realm: Option<Url> = parameter(bearer, "realm").and_then(|realm| realm.parse().ok());
    let realm = realm.ok_or_else(|| Trouble::Told(format!("{host} names no token service")))?;
    let is_safe = realm.scheme() == "https" || (realm.scheme() == "http" && realm.host_str().is_some_and(is_here));
    if !is_safe {
        return Err(Trouble::Told(format!("{host} wants the ID token sent to {realm}, which is not https")));
    }
    Ok(Some(Service { realm, name: parameter(bearer, "service").unwrap_or_default() }))
}

/// The value of a challenge's parameter: `realm="…",service="…"`.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let mut rest = challenge;
    while let Some((found, after)) = rest.split_once('=') {
        let found = found.trim_matches([' ', ',']);
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if found.eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after;
    }
    None
}

/// Whether a host, with a port or without, is this machine.
fn is_here(host: &str) -> bool {
    let name = match host.parse::<http::uri::Authority>() {
        Ok(authority) => authority.host().to_owned(),
        Err(_) => host.to_owned(),
    };
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    name == "localhost" || address.is_some_and(|address| address.to_canonical().is_loopback())
}

fn client() -> Result<Client, Trouble> {
    // A redirect could carry a token elsewhere.
    let builder = Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    builder.build().map_err(told)
}

async fn read<T: DeserializeOwned>(mut response: Response) -> Result<T, Trouble> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER {
            return Err(Trouble::Told("an answer is longer than any should be".to_owned()));
        }
    }
    // What the parser says could quote a token.
    serde_json::from_slice(&body).map_err(|_| Trouble::Told("an answer holds no token".to_owned()))
}

/// What went wrong, down to its cause: "connection refused" stands at the end of the chain.
fn told(error: reqwest::Error) -> Trouble {
    Trouble::Told(text_of(&error))
}

/// Runs to the end what waits for the network.
fn wait<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Trouble::Told(error.to_string()))?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read() {
        let text = "realm=\"https://r.example.com/v2/token\",service=\"r.example.com\", scope=\"a:b:pull,push\",x=y";
        let found = ["realm", "Service", "scope", "x", "none"].map(|name| parameter(text, name));
        let expected = ["https://r.example.com/v2/token", "r.example.com", "a:b:pull,push", "y"];
        assert_eq!(found[..4], expected.map(|text| Some(text.to_owned())));
        assert_eq!(found[4], None);
        assert_eq!(parameter("realm=\"unfinished", "realm"), None);
    }

    #[test]
    fn this_machine_is_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.1.2.3"] {
            assert!(is_here(host), "{host}");
        }
        for host in ["r.example.com", "localhost.example.com", "10.0.0.1", "[fd00::1]:5000"] {
            assert!(!is_here(host), "{host}");
        }
    }
}
