//! Berth as the registry of somebody else's token service: tokens as Harbor, GitLab and docker_auth write them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    berth::Setup,
    conformance::open,
    e2e_client::{Answer, Client},
    issuer::{Issuer, Key},
};

const REALM: &str = "https://harbor.example.com/service/token";
const ISSUER: &str = "harbor-token-issuer";

/// A registry whose tokens come from elsewhere, by keys that are there.
async fn registry(jwks: &str, more: &[(&str, &str)]) -> (Client, TempDir) {
    let folder = TempDir::new().unwrap();
    let url = format!("file:{}", folder.path().display());
    let settings = [
        ("BERTH_STORAGE__URL", url.as_str()),
        ("BERTH_STORAGE__SYNC", "false"),
        ("BERTH_AUTH__TOKEN__REALM", REALM),
        ("BERTH_AUTH__TOKEN__SERVICE", "harbor-registry"),
        ("BERTH_AUTH__TOKEN_ISSUERS__HARBOR__ISSUER", ISSUER),
        ("BERTH_AUTH__TOKEN_ISSUERS__HARBOR__JWKS", jwks),
    ];
    let (app, client) = open(&[&settings[..], more].concat()).await;
    // The registry lives in the client's router.
    drop(app);
    (client, folder)
}

fn claims(access: &Value) -> Value {
    let now = get_current_timestamp();
    json!({ "iss": ISSUER, "aud": "harbor-registry", "sub": "alice", "iat": now, "nbf": now, "exp": now + 300,
        "jti": "1", "access": access })
}

/// All that there is to do with `team/app`.
fn everything() -> Value {
    json!([{"type": "repository", "name": "team/app", "actions": ["*"]}])
}

async fn ask(client: &Client, method: &str, path: &str, token: &str) -> Answer {
    client.send(method, path, &[("authorization", &format!("Bearer {token}"))], "").await
}

async fn refuses(client: &Client, token: &str) {
    let answer = ask(client, "GET", "/v2/", token).await.expect_error(401, "UNAUTHORIZED");
    assert!(answer.header("www-authenticate").ends_with(",error=\"invalid_token\""), "{answer:?}");
}

#[tokio::test]
async fn what_another_services_token_says_of_access_holds() {
    let (folder, key) = (TempDir::new().unwrap(), Key::new(Algorithm::ES256, "one"));
    let file = folder.path().join("jwks.json");
    fs::write(&file, json!({ "keys": [key.public] }).to_string()).unwrap();
    let (client, _data) = registry(file.to_str().unwrap(), &[]).await;
    let asked = client.get("/v2/").await.expect_error(401, "UNAUTHORIZED");
    assert_eq!(asked.header("www-authenticate"), format!("Bearer realm=\"{REALM}\",service=\"harbor-registry\""));
    // Who gets tokens there has no business here.
    client.get("/v2/token?service=harbor-registry").await.expect_error(400, "UNSUPPORTED");

    // Harbor writes `null` where there is no access, and an empty subject for nobody.
    for nothing in [json!(null), json!([])] {
        ask(&client, "GET", "/v2/", &key.sign(&claims(&nothing))).await.expect(200);
        let refused = ask(&client, "GET", "/v2/team/app/tags/list", &key.sign(&claims(&nothing))).await;
        let challenge = refused.expect_error(401, "UNAUTHORIZED").header("www-authenticate").to_owned();
        assert!(challenge.ends_with(",scope=\"repository:team/app:pull\",error=\"insufficient_scope\""), "{challenge}");
    }
    let token = key.sign(&claims(&everything()));
    ask(&client, "POST", "/v2/team/app/blobs/uploads/", &token).await.expect(202);
    ask(&client, "DELETE", "/v2/team/app/manifests/1", &token).await.expect(404);
    ask(&client, "GET", "/v2/other/tags/list", &token).await.expect(401);
    let narrow = key.sign(&claims(&json!([{"type": "repository", "name": "team/app", "actions": ["pull"]}])));
    ask(&client, "GET", "/v2/team/app/tags/list", &narrow).await.expect(404);
    ask(&client, "POST", "/v2/team/app/blobs/uploads/", &narrow).await.expect(401);
    ask(&client, "GET", "/v2/_catalog", &narrow).await.expect(401);
    let catalog = key.sign(&claims(&json!([{"type": "registry", "name": "catalog", "actions": ["*"]}])));
    ask(&client, "GET", "/v2/_catalog", &catalog).await.expect(200);
}

#[tokio::test]
async fn a_token_that_is_not_what_it_says_is_refused() {
    let (folder, key, other) =
        (TempDir::new().unwrap(), Key::new(Algorithm::ES256, "one"), Key::new(Algorithm::ES256, "one"));
    let file = folder.path().join("jwks.json");
    fs::write(&file, json!({ "keys": [key.public] }).to_string()).unwrap();
    let (client, _data) = registry(file.to_str().unwrap(), &[]).await;
    let good = claims(&everything());
    ask(&client, "GET", "/v2/", &key.sign(&good)).await.expect(200);
    let now = get_current_timestamp();
    for (claim, value) in [
        ("iss", json!("somebody")),
        ("aud", json!("another-registry")),
        ("exp", json!(now - 61)),
        ("nbf", json!(now + 90)),
        ("sub", json!("a\nb")),
        ("access", json!("everything")),
    ] {
        let mut bad = good.clone();
        bad[claim] = value;
        refuses(&client, &key.sign(&bad)).await;
    }
    refuses(&client, &other.sign(&good)).await;
    refuses(&client, &key.sign_with(&good, |header| header.kid = Some("two".to_owned()))).await;
    refuses(&client, &key.sign_with(&good, |header| header.crit = Some(vec!["exp".to_owned()]))).await;
    let jwk = || serde_json::from_value(other.public.clone()).unwrap();
    refuses(&client, &other.sign_with(&good, |header| header.jwk = Some(jwk()))).await;
    let secret = EncodingKey::from_secret(key.public.to_string().as_bytes());
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("one".to_owned());
    refuses(&client, &encode(&header, &good, &secret).unwrap()).await;
    let token = key.sign(&good);
    let (_, rest) = token.split_once('.').unwrap();
    refuses(&client, &format!("eyJhbGciOiJub25lIn0.{rest}")).await;
}

/// Distribution is given a certificate, and Harbor's and GitLab's tokens name their key as libtrust did.
#[tokio::test]
async fn a_certificate_is_as_good_as_a_set_of_keys() {
    let folder = TempDir::new().unwrap();
    let pair = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let (old, new) = (pair(), pair());
    let certificate = |pair: &KeyPair| CertificateParams::new(Vec::new()).unwrap().self_signed(pair).unwrap().pem();
    let file = folder.path().join("root.crt");
    fs::write(&file, certificate(&old) + &certificate(&new)).unwrap();
    let (client, _data) = registry(file.to_str().unwrap(), &[]).await;
    let sign = |pair: &KeyPair, kid: Option<&str>| {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = kid.map(str::to_owned);
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        encode(&header, &claims(&everything()), &key).unwrap()
    };
    for token in [
        sign(&old, Some("PYYO:TEWU:V7JH:26JV:AQTZ:LJC3:SXVJ:XGHA:34F2:2LAQ:ZRMK:Z7Q6")),
        sign(&new, Some("anything")),
        sign(&new, None),
    ] {
        ask(&client, "GET", "/v2/team/app/tags/list", &token).await.expect(404);
    }
    refuses(&client, &sign(&pair(), None)).await;
}

#[tokio::test]
async fn keys_are_fetched_from_a_url() {
    let key = Key::new(Algorithm::EdDSA, "one");
    let issuer = Issuer::start(&[&key]).await;
    let url = format!("{}/keys", issuer.url);
    let ca = ("BERTH_AUTH__TOKEN_ISSUERS__HARBOR__CA", issuer.ca.to_str().unwrap());
    let (client, _data) = registry(&url, &[ca]).await;
    ask(&client, "GET", "/v2/team/app/tags/list", &key.sign(&claims(&everything()))).await.expect(404);
    issuer.answers("/keys", 500, "", "");
    // Known keys stay good; a service that can't be asked is no reason to call a token wrong.
    ask(&client, "GET", "/v2/", &key.sign(&claims(&json!([])))).await.expect(200);
    let (client, _data) = registry(&url, &[ca]).await;
    ask(&client, "GET", "/v2/", &key.sign(&claims(&json!([])))).await.expect_error(503, "UNAVAILABLE");
}

#[test]
fn issuers_that_cannot_be_told_apart_refuse_the_start() {
    let one = [("BERTH_AUTH__TOKEN_ISSUERS__A__ISSUER", "x"), ("BERTH_AUTH__TOKEN_ISSUERS__A__JWKS", "f")];
    let two = [("BERTH_AUTH__TOKEN_ISSUERS__B__ISSUER", "x"), ("BERTH_AUTH__TOKEN_ISSUERS__B__JWKS", "f")];
    let oidc = [("BERTH_AUTH__OIDC__A__ISSUER", "https://i.example"), ("BERTH_AUTH__OIDC__A__AUDIENCE", "b")];
    for (settings, said) in [
        ([&one[..], &two].concat(), "auth.token_issuers.b.issuer (BERTH_AUTH__TOKEN_ISSUERS__B__ISSUER): found \"x\""),
        (
            [&one[..], &oidc].concat(),
            "auth.token_issuers.a.issuer (BERTH_AUTH__TOKEN_ISSUERS__A__ISSUER): found beside",
        ),
        ([&one[..], &[("BERTH_AUTH__TOKEN__ISSUER", "x")]].concat(), "auth.token_issuers.a.issuer"),
        (vec![("BERTH_AUTH__TOKEN__REALM", REALM)], "auth.token.realm (BERTH_AUTH__TOKEN__REALM): found while"),
        ([&one[..1], &[("BERTH_AUTH__TOKEN_ISSUERS__A__JWKS", "http://x/y")]].concat(), "auth.token_issuers.a.jwks"),
    ] {
        let (status, refusal) = Setup::of(&settings).refused();
        assert_eq!((status.code(), refusal.trim().lines().count()), (Some(2), 1), "{refusal}");
        assert!(refusal.contains(said), "{refusal}");
    }
}
