//! Keyless login: the tokens of a real issuer are passwords.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, time::Duration};

use berth::{
    auth::{
        Login, Logins,
        oidc::{Issuers, Pace},
    },
    config::Config,
    error::Code,
    outbound::Proxy,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
};

use crate::{
    accounts::Clients,
    authority::Authority,
    berth::Setup,
    issuer::{DISCOVERY, Issuer, Key, now},
};

impl Issuer {
    fn trusted(&self, pace: Pace) -> Issuers {
        trusted(&self.settings(), pace)
    }
}

fn trusted(settings: &str, pace: Pace) -> Issuers {
    let auth = Config::parse(Path::new("berth.toml"), settings).unwrap().config.auth;
    Issuers::open(&auth.oidc, None, pace).unwrap()
}

/// The name of the issuer means nothing to this machine: it is the proxy that is asked for it.
#[tokio::test]
async fn an_issuer_outside_is_reached_through_the_proxy() {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (connection, _) = proxy.accept().await.unwrap();
        let mut lines = BufReader::new(connection).lines();
        lines.next_line().await.unwrap().unwrap()
    });
    let key = Key::new(Algorithm::ES256, "key");
    let near = Issuer::start(&[&key]).await;
    let settings = near.settings().replace(&near.url, "https://issuer.example");
    let auth = Config::parse(Path::new("berth.toml"), &settings).unwrap().config.auth;
    let through = Proxy { url, except: Vec::new() };
    let issuers = Issuers::open(&auth.oidc, Some(&through), EAGER).unwrap();
    let mut claims = near.claims();
    claims["iss"] = json!("https://issuer.example");
    assert!(issuers.check("anybody", &key.sign(&claims)).await.is_err());
    assert_eq!(asked.await.unwrap(), "CONNECT issuer.example:443 HTTP/1.1");

    // One on this machine is not.
    let auth = Config::parse(Path::new("berth.toml"), &near.settings()).unwrap().config.auth;
    let issuers = Issuers::open(&auth.oidc, Some(&through), EAGER).unwrap();
    assert!(check(&issuers, &key.sign(&near.claims())).await.is_some());
}

/// Keys are fetched whenever there is a reason to.
const EAGER: Pace = Pace { fresh: Duration::from_secs(60), stale: Duration::from_secs(60), rest: Duration::ZERO };

async fn check(issuers: &Issuers, token: &str) -> Option<Login> {
    issuers.check("anybody", token).await.unwrap()
}

#[tokio::test]
async fn a_token_is_its_bearer_by_any_asymmetric_algorithm() {
    let keys = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA]
        .map(|algorithm| Key::new(algorithm, &format!("{algorithm:?}")));
    let issuer = Issuer::start(&keys.iter().collect::<Vec<_>>()).await;
    let issuers = issuer.trusted(Pace::default());
    for key in &keys {
        let login = check(&issuers, &key.sign(&issuer.claims())).await.unwrap();
        assert_eq!(login.identity.to_string(), "oidc:hub:repo:team/app:ref:refs/heads/main");
        assert_eq!(login.identity.groups, ["hub:dev"]);
        assert!(login.at_most.unwrap() <= Duration::from_secs(12 * 3600));
        assert_eq!(issuers.stands(&login.identity, &login.fingerprint).await.unwrap(), Some(true));
        // Other settings end what was begun under these.
        let stricter = trusted(&issuer.settings().replace("refs/heads/*", "refs/heads/main"), EAGER);
        assert_eq!(stricter.stands(&login.identity, &login.fingerprint).await.unwrap(), Some(false));
    }
    assert_eq!(issuer.fetches(), 1);
    let list = issuer.claims_with("aud", json!(["other.example", "berth.example"]));
    assert!(check(&issuers, &keys[0].sign(&list)).await.is_some());
    // What is for somebody else, over, not yet, of another, or not as the conditions want it.
    let now = now();
    for (claim, value) in [
        ("aud", json!("other.example")),
        ("aud", json!([])),
        ("aud", Value::Null),
        ("exp", json!(now - 3600)),
        ("exp", Value::Null),
        ("nbf", json!(now + 3600)),
        ("iss", json!(format!("{}/", issuer.url))),
        ("iss", json!("https://other.example")),
        ("ref", json!("refs/pull/7/merge")),
        ("ref", Value::Null),
        ("sub", json!("two words")),
        ("sub", Value::Null),
    ] {
        let token = keys[0].sign(&issuer.claims_with(claim, value.clone()));
        assert_eq!(check(&issuers, &token).await, None, "{claim}: {value}");
    }
}

/// Whatever a token's header says, only the issuer's published key counts, by its own algorithm.
#[tokio::test]
async fn a_forged_token_proves_nothing() {
    let (rsa, ec, mallory) =
        (Key::new(Algorithm::RS256, "rsa"), Key::new(Algorithm::ES256, "ec"), Key::new(Algorithm::RS256, "rsa"));
    let mut encryption = Key::new(Algorithm::RS256, "enc");
    encryption.public["use"] = json!("enc");
    let issuer = Issuer::start(&[&rsa, &ec, &encryption]).await;
    let issuers = issuer.trusted(EAGER);
    let claims = issuer.claims();
    let good = rsa.sign(&claims);
    assert!(check(&issuers, &good).await.is_some());

    let jwk: Jwk = serde_json::from_value(mallory.public.clone()).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let of =
        |value: Value| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, value.to_string());
    let more = of(issuer.claims_with("sub", json!("repo:team/admin")));
    let public = rsa.public["n"].as_str().unwrap().to_owned();
    let hmac = {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("rsa".to_owned());
        encode(&header, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap()
    };
    for (what, token) in [
        ("another's key under the same name", mallory.sign(&claims)),
        (
            "CVE-2025-24976: a key that it brings along",
            mallory.sign_with(&claims, |header| header.jwk = Some(jwk.clone())),
        ),
        ("the place of a key", mallory.sign_with(&claims, |header| header.jku = Some(format!("{}/keys", issuer.url)))),
        (
            "a place of certificates",
            mallory.sign_with(&claims, |header| header.x5u = Some("https://127.0.0.1:1/".to_owned())),
        ),
        (
            "CVE-2026-32597: an extension that must be understood",
            rsa.sign_with(&claims, |header| header.crit = Some(vec!["exp".to_owned()])),
        ),
        ("no name of a key, where there are several", rsa.sign_with(&claims, |header| header.kid = None)),
        ("the name of a key of another kind", rsa.sign_with(&claims, |header| header.kid = Some("ec".to_owned()))),
        ("a key that is not for signatures", encryption.sign(&claims)),
        ("another algorithm than the key's own", rsa.sign_with(&claims, |header| header.alg = Algorithm::RS512)),
        ("HS256 with the public key", hmac),
        ("none", format!("{}.{}.", of(json!({ "alg": "none", "kid": "rsa" })), parts[1])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("other claims", format!("{}.{more}.{}", parts[0], parts[2])),
        ("one part too many", format!("{good}.x")),
    ] {
        assert_eq!(check(&issuers, &token).await, None, "{what}");
    }
    assert!(!issuer.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_new_key_is_fetched_and_the_issuer_is_left_alone_otherwise() {
    let (old, new) = (Key::new(Algorithm::ES256, "old"), Key::new(Algorithm::ES256, "new"));
    let issuer = Issuer::start(&[&old]).await;
    let eager = issuer.trusted(EAGER);
    let patient = issuer.trusted(Pace { rest: Duration::from_secs(3600), ..EAGER });
    for issuers in [&eager, &patient] {
        assert!(check(issuers, &old.sign(&issuer.claims())).await.is_some());
    }
    assert_eq!(issuer.fetches(), 2);
    issuer.publishes(&[&old, &new]);
    assert!(check(&eager, &new.sign(&issuer.claims())).await.is_some());
    assert_eq!(issuer.fetches(), 3);
    // Tokens with keys that nobody has: one question in the time of rest at most.
    for number in 0..50 {
        let unknown = old.sign_with(&issuer.claims(), |header| header.kid = Some(format!("unknown-{number}")));
        assert_eq!(check(&patient, &unknown).await, None);
    }
    assert_eq!(issuer.fetches(), 3);
    assert!(check(&patient, &old.sign(&issuer.claims())).await.is_some());
    // Many at once share one question.
    let fresh = issuer.trusted(Pace { rest: Duration::from_secs(3600), ..EAGER });
    let token = new.sign(&issuer.claims());
    let all = futures_util::future::join_all((0..20).map(|_| check(&fresh, &token))).await;
    assert!(all.iter().all(Option::is_some));
    assert_eq!(issuer.fetches(), 4);
}

#[tokio::test]
async fn an_issuer_that_answers_badly_lets_nobody_in_and_shuts_out_nobody_it_let_in() {
    let key = Key::new(Algorithm::ES256, "key");
    let issuer = Issuer::start(&[&key]).await;
    let token = key.sign(&issuer.claims());
    let keys = issuer.said.lock().unwrap()["/keys"].clone();
    let short = Pace { fresh: Duration::ZERO, ..EAGER };
    let known = issuer.trusted(short);
    assert!(check(&known, &token).await.is_some());
    let large = format!("{{\"keys\": [], \"x\": \"{}\"}}", "x".repeat(300 << 10));
    for (path, said) in [
        ("/keys", (500, String::new(), String::new())),
        ("/keys", (200, String::new(), large)),
        ("/keys", (200, String::new(), "<html>".to_owned())),
        ("/keys", (302, format!("{}/elsewhere", issuer.url), String::new())),
        (DISCOVERY, (404, String::new(), String::new())),
        (
            DISCOVERY,
            (
                200,
                String::new(),
                json!({ "issuer": "https://other.example", "jwks_uri": format!("{}/keys", issuer.url) }).to_string(),
            ),
        ),
        (
            DISCOVERY,
            (
                200,
                String::new(),
                json!({ "issuer": issuer.url, "jwks_uri": issuer.url.replace("https", "http") + "/keys" }).to_string(),
            ),
        ),
    ] {
        let before = issuer.said.lock().unwrap().insert(path.to_owned(), said.clone()).unwrap();
        issuer.said.lock().unwrap().insert("/elsewhere".to_owned(), keys.clone());
        let error = issuer.trusted(EAGER).check("x", &token).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{path}: {}", said.0);
        assert!(!error.to_string().contains(&token));
        assert!(check(&known, &token).await.is_some(), "{path}: {}", said.0);
        issuer.said.lock().unwrap().insert(path.to_owned(), before);
    }
    // An issuer by a certificate of somebody else's.
    let other = Authority::new();
    let settings =
        issuer.settings().replace(&issuer.ca.display().to_string(), &other.path("ca.crt").display().to_string());
    let error = trusted(&settings, EAGER).check("x", &token).await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

/// A key of a kind that nobody knows yet hides none of the others.
#[tokio::test]
async fn an_unknown_kind_of_key_is_passed_over() {
    let key = Key::new(Algorithm::ES256, "key");
    let issuer = Issuer::start(&[]).await;
    issuer.says(
        "/keys",
        json!({ "keys": [{ "kty": "AKP", "alg": "ML-DSA-44", "kid": "new", "pub": "x" }, { "kid": 7 }, key.public] }),
    );
    assert!(check(&issuer.trusted(EAGER), &key.sign(&issuer.claims())).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_log_in_with_an_id_token() {
    let (rsa, ec) = (Key::new(Algorithm::RS256, "rsa"), Key::new(Algorithm::ES256, "ec"));
    let issuer = Issuer::start(&[&rsa, &ec]).await;
    let ca = issuer.ca.display().to_string();
    let berth = Setup::of(&[
        ("BERTH_AUTH__ANONYMOUS", "none"),
        ("BERTH_AUTH__OIDC__HUB__ISSUER", &issuer.url),
        ("BERTH_AUTH__OIDC__HUB__AUDIENCE", "berth.example"),
        ("BERTH_AUTH__OIDC__HUB__CA", &ca),
        ("BERTH_AUTH__OIDC__HUB__GROUPS", "groups"),
        ("BERTH_AUTH__OIDC__HUB__CLAIMS__REF", "refs/heads/*"),
        ("BERTH_AUTH__RULES__CI__WHO", "oidc:hub:repo:team/*"),
        ("BERTH_AUTH__RULES__CI__ROLE", "writer"),
        ("BERTH_AUTH__RULES__CI__REPOSITORIES", "team/*"),
        ("BERTH_AUTH__RULES__DEV__WHO", "group:hub:dev"),
        ("BERTH_AUTH__RULES__DEV__ROLE", "reader"),
        ("BERTH_AUTH__RULES__DEV__REPOSITORIES", "shared/**"),
    ])
    .start();
    let clients = Clients::new();
    let tokens = [rsa.sign(&issuer.claims()), ec.sign(&issuer.claims())];
    for (name, user, token) in [("rsa", "oidc", &tokens[0]), ("ec", "gitlab-ci-token", &tokens[1])] {
        tokio::task::block_in_place(|| clients.use_credential(&berth.host(), name, user, token));
    }
    let client = berth.client();
    let basic = |token: &str| {
        format!("Basic {}", base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x:{token}")))
    };
    let ask =
        async |path: &str, token: &str| client.send("GET", path, &[("authorization", &basic(token))], "").await.status;
    assert_eq!(ask("/v2/shared/base/tags/list", &tokens[0]).await, 404);
    assert_eq!(ask("/v2/other/app/tags/list", &tokens[0]).await, 401);
    let stranger = rsa.sign(&issuer.claims_with("sub", json!("repo:other/app:ref:refs/heads/main")));
    assert_eq!(ask("/v2/team/rsa-crane/tags/list", &stranger).await, 401);
    let pull_request = rsa.sign(&issuer.claims_with("ref", json!("refs/pull/1/merge")));
    assert_eq!(ask("/v2/", &pull_request).await, 401);
    // Exchanged for one of ours, it goes on for half a day at most.
    let form = format!(
        "grant_type=password&username=x&password={}&access_type=offline&scope=repository:team/app:pull,push",
        tokens[1]
    );
    let said = client.send("POST", "/v2/token", &[], form).await.expect(200).json();
    assert_eq!(said["scope"], "repository:team/app:pull,push");
    let refresh = said["refresh_token"].as_str().unwrap();
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(refresh).unwrap();
    assert!(claims["exp"].as_u64().unwrap() <= now() + 12 * 3600, "{claims}");
    let form = format!("grant_type=refresh_token&refresh_token={refresh}&scope=repository:team/app:pull");
    let said = client.send("POST", "/v2/token", &[], form).await.expect(200).json();
    assert_eq!(said["scope"], "repository:team/app:pull");
    // No token is told to the log.
    let log = berth.log();
    assert!(log.contains("oidc:hub:repo:team/app:ref:refs/heads/main") && log.contains("an ID token was refused"));
    for token in tokens.iter().chain([&stranger, &pull_request]) {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!log.contains(signature));
    }
}

#[test]
fn certificates_that_are_missing_stop_the_start() {
    let setup = Setup::of(&[
        ("BERTH_AUTH__OIDC__HUB__ISSUER", "https://i.example"),
        ("BERTH_AUTH__OIDC__HUB__AUDIENCE", "berth.example"),
        ("BERTH_AUTH__OIDC__HUB__CA", "/nowhere/ca.crt"),
    ]);
    let (status, said) = setup.refused();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("auth.oidc.hub.ca: /nowhere/ca.crt: No such file"), "{said}");
}
