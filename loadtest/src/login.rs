//! Logging in, as clients do: by what the server's 401 asks for, a password with each request or a token.
//!
//! It must not guess: without a challenge that it knows, the run ends.

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::client::{Client, address_of, authorized, path_of, request};

/// Who asks. The password stands in a description file, of an account that only a measurement has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    user: String,
    password: String,
}

impl Login {
    /// The `Authorization` header that a `WWW-Authenticate` asks for.
    pub(crate) async fn answer(&self, challenge: &str) -> Result<String> {
        let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password)));
        match challenge.split_once(' ') {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("basic") => Ok(basic),
            Some((scheme, parameters)) if scheme.eq_ignore_ascii_case("bearer") => self.token(parameters, &basic).await,
            _ => bail!("the server wants {challenge}, which isn't spoken here"),
        }
    }

    async fn token(&self, parameters: &str, basic: &str) -> Result<String> {
        let parameters = parse(parameters);
        let value = |name| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let realm = value("realm").context("a challenge without a realm")?;
        let address = address_of(realm)?.context("a realm without a host")?;
        let mut target = path_of(realm).to_owned();
        for (place, name) in ["service", "scope"].into_iter().enumerate() {
            if let Some(value) = value(name) {
                let joint = if place == 0 && !target.contains('?') { '?' } else { '&' };
                target.push_str(&format!("{joint}{name}={}", value.replace(' ', "%20")));
            }
        }
        let head = authorized(&request(address, "GET", &target, "", 0), basic);
        let body = Client::connect(address).await?.fetch(head.as_bytes()).await.context("no token")?;
        let answer: serde_json::Value = serde_json::from_slice(&body)?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        Ok(format!("Bearer {}", token.context("an answer without a token")?))
    }
}

/// The parameters of a challenge: `name="value"`, with commas between them and within values.
fn parse(mut text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let Some((value, rest)) = rest.split_once('"') else { break };
        found.push((name.trim_matches([' ', ',']), value));
        text = rest;
    }
    found
}

/// The part of a request's path that rights are given for: a repository, or else all of the path.
pub(crate) fn place(target: &str) -> &str {
    let path = target.split('?').next().unwrap_or_default();
    let ends = ["/blobs/", "/manifests/", "/tags/", "/referrers/"];
    ends.iter().find_map(|end| path.rfind(end)).map_or(path, |end| &path[..end])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_may_have_commas_within() {
        let found = parse("realm=\"http://h/token\", service=\"s\",scope=\"repository:a:pull,push\"");
        let expected = [("realm", "http://h/token"), ("service", "s"), ("scope", "repository:a:pull,push")];
        assert_eq!(found, expected);
    }

    #[test]
    fn rights_are_a_repositorys() {
        assert_eq!(place("/v2/a/b/blobs/uploads/1?digest=x"), "/v2/a/b");
        assert_eq!(place("/v2/a/b/manifests/v1"), "/v2/a/b");
        assert_eq!(place("/v2/_catalog?n=100"), "/v2/_catalog");
    }

    #[tokio::test]
    async fn a_password_is_sent_as_basic() {
        let login = Login { user: "ann".to_owned(), password: "secret".to_owned() };
        assert_eq!(login.answer("Basic realm=\"x\"").await.unwrap(), "Basic YW5uOnNlY3JldA==");
        assert!(login.answer("Negotiate x").await.is_err());
    }
}
