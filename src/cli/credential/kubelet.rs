//! The kubelet's `CredentialProvider`, version 1: it asks for an image, and is told a user name and a password.
//!
//! Neither it nor the container runtime knows refresh tokens, so an ID token goes out as a password, to be asked
//! for anew before it ends.

use serde::Deserialize;
use serde_json::json;

use super::{
    Trouble, host_of,
    source::{Credential, Source},
    store::Store,
    to_json,
};

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// How long the kubelet may keep a password that says nothing of its end, in seconds: long enough for the start of a
/// node, and short enough for a key that was replaced.
const KEEP: u64 = 600;

/// How many seconds before its end an ID token is no longer given out: a pull that begins then still logs in.
const MARGIN: u64 = 60;

/// What the kubelet asks. Newer ones add a token of the pod's own service account, where they are told to.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    api_version: String,
    kind: String,
    image: String,
    #[serde(default)]
    service_account_token: String,
}

/// Answers a request. `source` is what the command line says; else what is kept for the registry counts.
pub(super) fn answer(request: &str, source: Option<Source>) -> Result<String, Trouble> {
    // What the parser says could quote the token.
    let request: Request = serde_json::from_str(request)
        .map_err(|_| Trouble::Told("the request is no JSON of the kubelet's".to_owned()))?;
    if (request.api_version.as_str(), request.kind.as_str()) != (API_VERSION, "CredentialProviderRequest") {
        let Request { api_version, kind, .. } = request;
        return Err(Trouble::Told(format!(
            "found a {kind} of {api_version:?}; want a CredentialProviderRequest of {API_VERSION:?}"
        )));
    }
    let host = registry_of(&request.image)?;
    let credential = match (request.service_account_token, source) {
        (token, _) if !token.is_empty() => Ok(Credential::of_id_token(token)),
        (_, Some(source)) => source.credential(&host),
        (_, None) => Store::open()?.of(&host).and_then(|source| source.credential(&host)),
    };
    match credential {
        Ok(credential) => response(&host, Some(&credential)),
        // Not an error: the image may be one that anybody may pull.
        Err(Trouble::NotFound) => response(&host, None),
        Err(trouble) => Err(trouble),
    }
}

fn response(host: &str, credential: Option<&Credential>) -> Result<String, Trouble> {
    let seconds = match credential {
        Some(Credential { lasts: Some(seconds), .. }) => seconds.saturating_sub(MARGIN),
        Some(_) => KEEP,
        None => 0,
    };
    let auth = credential.map_or_else(
        || json!({}),
        |credential| json!({ host: { "username": credential.username, "password": credential.secret } }),
    );
    to_json(&json!({
        "apiVersion": API_VERSION,
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": format!("{seconds}s"),
        "auth": auth,
    }))
}

/// The registry that an image's name begins with. A first component that is no host belongs to Docker Hub.
fn registry_of(image: &str) -> Result<String, Trouble> {
    let first = image.split('/').next().filter(|first| first.len() < image.len()).unwrap_or_default();
    match first.contains(['.', ':']) || first == "localhost" {
        true => host_of(first),
        false => Ok("docker.io".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_registry() {
        for (image, registry) in [
            ("r.example.com/team/app:v1", "r.example.com"),
            ("r.example.com:5000/app@sha256:0", "r.example.com:5000"),
            ("localhost/app", "localhost"),
            ("library/nginx", "docker.io"),
            ("nginx:1.2", "docker.io"),
        ] {
            assert_eq!(registry_of(image).ok().as_deref(), Some(registry), "{image}");
        }
    }
}
