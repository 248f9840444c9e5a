//! The token service and what tokens are good for: the whole way of a client, and each route without a right. What
//! others have fallen to is in [`crate::access_attacks`].
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use berth::{
    api,
    api::route::Route,
    auth::{
        AccessRules, Authority, Logins, NamedRule, TokenIssuers, TokenOptions,
        htpasswd::{Htpasswd, Users},
        keys::{KeyRing, Kind},
        now,
    },
    config::{RepositoryPattern, Role, Rule, Text, Who, Written},
    registry::Registry,
};
use http::{HeaderMap, Method};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    conformance::open,
    e2e_client::{Answer, Client, noise, sha256},
};

/// A registry in this process, and an authority that knows ann, bob and eve.
pub(crate) struct Bench {
    pub(crate) registry: Arc<Registry>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) client: Client,
    pub(crate) keys: String,
    _directory: TempDir,
}

/// Ann may do everything in `team/**`, bob pull there, carl make tags there; eve nothing; anybody pulls `open`.
const RULES: &[(&str, Role, &str)] = &[
    ("user:ann", Role::Admin, "team/**"),
    ("user:bob", Role::Reader, "team/**"),
    ("user:carl", Role::Creator, "team/**"),
    ("everyone", Role::Reader, "open"),
];

fn rules() -> AccessRules {
    AccessRules::new(
        None,
        RULES.iter().map(|&(who, role, pattern)| NamedRule {
            name: who.to_owned(),
            rule: Rule {
                who: vec![Text(Who::read(who).unwrap())],
                role,
                repositories: vec![Text(RepositoryPattern::read(pattern).unwrap())],
            },
        }),
    )
}

/// Everybody's password is their name and `-secret`.
fn users(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name}:{}\n", bcrypt::hash(format!("{name}-secret"), 4).unwrap())).collect()
}

fn authority(keys: &str, options: TokenOptions) -> Arc<Authority> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("users");
    std::fs::write(&file, users(&["ann", "bob", "carl", "eve"])).unwrap();
    let htpasswd: Arc<dyn Logins> = Arc::new(Htpasswd::new(Users::open(&file).unwrap()).unwrap());
    Authority::new(rules(), vec![htpasswd], options, KeyRing::read(keys).unwrap(), TokenIssuers::default())
}

impl Bench {
    pub(crate) async fn open() -> Self {
        Self::with(TokenOptions::default()).await
    }

    pub(crate) async fn with(options: TokenOptions) -> Self {
        let directory = TempDir::new().unwrap();
        let url = format!("file:{}", directory.path().display());
        let (app, _) = open(&[("BERTH_STORAGE__URL", url.as_str()), ("BERTH_STORAGE__SYNC", "false")]).await;
        let keys = KeyRing::make(Kind::EdDsa, now() - 1000).unwrap().text();
        let authority = authority(&keys, options);
        let registry = Arc::clone(&app.registry);
        let client = Client::router(api::router(Arc::clone(&registry), Arc::clone(&authority), None));
        Self { registry, authority, client, keys, _directory: directory }
    }

    /// A client of the same registry behind another authority.
    pub(crate) fn behind(&self, authority: Arc<Authority>) -> Client {
        Client::router(api::router(Arc::clone(&self.registry), authority, None))
    }

    async fn answer_to(&self, name: &str, query: &str) -> Answer {
        let basic = basic(name, &format!("{name}-secret"));
        self.client.send("GET", &format!("/v2/token?{query}"), &[("authorization", &basic)], "").await
    }

    /// A token of somebody's for a scope.
    pub(crate) async fn token(&self, name: &str, scope: &str) -> String {
        token_of(&self.answer_to(name, &format!("service=berth&scope={scope}")).await.expect(200))
    }

    /// Pushes an image as ann.
    pub(crate) async fn push(&self, repository: &str, tag: &str) -> String {
        let ann = basic("ann", "ann-secret");
        let everything = Authority::of_rules(AccessRules::new(Some(Role::Admin), [])).unwrap();
        let image = self.behind(everything).push_image(repository, tag, &[noise(1, 10)]).await;
        assert!(ann.starts_with("Basic "));
        sha256(image.to_string().as_bytes())
    }
}

pub(crate) fn basic(name: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")))
}

pub(crate) fn token_of(answer: &Answer) -> String {
    let said = answer.json();
    assert_eq!(said["token"], said["access_token"]);
    said["token"].as_str().unwrap().to_owned()
}

/// What a token says, unverified.
pub(crate) fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

pub(crate) async fn ask(client: &Client, method: &str, path: &str, authorization: &str) -> Answer {
    client.send(method, path, &[("authorization", authorization)], "").await
}

pub(crate) async fn with_token(client: &Client, method: &str, path: &str, token: &str) -> Answer {
    ask(client, method, path, &format!("Bearer {token}")).await
}

/// A token of our key with a header and claims as `change` makes them.
pub(crate) fn forged(keys: &str, change: impl FnOnce(&mut Header, &mut Value)) -> String {
    let ring = KeyRing::read(keys).unwrap();
    let pem: String = keys.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(ring.keys()[0].id.clone());
    let at = now();
    let mut claims = json!({
        "iss": "berth", "sub": "user:ann", "aud": "berth", "exp": at + 300, "nbf": at - 60, "iat": at, "jti": "1",
        "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push", "delete"]},
                   {"type": "registry", "name": "catalog", "actions": ["*"]}],
    });
    change(&mut header, &mut claims);
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_pem(pem.as_bytes()).unwrap()).unwrap()
}

/// Docker's way: a challenge, a token, the page; a refresh token in the place of the password later on.
#[tokio::test]
async fn a_client_goes_from_the_challenge_to_the_page() {
    let bench = Bench::open().await;
    let digest = bench.push("team/app", "1").await;
    let ping = bench.client.get("/v2/").await.expect_error(401, "UNAUTHORIZED");
    assert_eq!(ping.header("www-authenticate"), "Bearer realm=\"/v2/token\",service=\"berth\"");
    let query = "account=ann&client_id=docker&offline_token=true&service=berth";
    let login = bench.answer_to("ann", query).await.expect(200);
    assert_eq!(login.header("cache-control"), "no-store");
    let said = login.json();
    assert_eq!(said["expires_in"], 300);
    assert!(said["issued_at"].as_str().unwrap().ends_with('Z'));
    with_token(&bench.client, "GET", "/v2/", &token_of(&login)).await.expect(200);

    let path = "/v2/team/app/manifests/1";
    let refused = with_token(&bench.client, "GET", path, &token_of(&login)).await.expect_error(401, "UNAUTHORIZED");
    assert_eq!(
        refused.header("www-authenticate"),
        "Bearer realm=\"/v2/token\",service=\"berth\",scope=\"repository:team/app:pull\",error=\"insufficient_scope\""
    );
    let refresh = said["refresh_token"].as_str().unwrap();
    with_token(&bench.client, "GET", "/v2/", refresh).await.expect(401);
    let form = format!(
        "grant_type=refresh_token&service=berth&client_id=docker&scope=repository%3Ateam%2Fapp%3Apull&refresh_token={refresh}"
    );
    let refreshed = bench.client.send("POST", "/v2/token", &[], form).await.expect(200);
    assert_eq!(refreshed.json()["scope"], "repository:team/app:pull");
    let answer = with_token(&bench.client, "GET", path, &token_of(&refreshed)).await.expect(200);
    assert_eq!(answer.header("docker-content-digest"), digest);
}

/// What docker, containerd, podman and oras send, each in its own way.
#[tokio::test]
async fn every_form_of_a_request_is_understood() {
    let bench = Bench::open().await;
    for (query, granted) in [
        ("scope=repository:team/a:pull&scope=repository:team/b:pull", "repository:team/a:pull repository:team/b:pull"),
        ("scope=repository:team/a:pull+repository:open:pull", "repository:team/a:pull repository:open:pull"),
        ("scope=repository:team/a:pull,push%20repository:x:pull", "repository:team/a:pull,push"),
        ("scope=repository:team/a:frobnicate,pull&scope=robot:x:y", "repository:team/a:pull"),
        ("scope=&service=", ""),
        ("", ""),
        ("scope=registry:catalog:*", "registry:catalog:*"),
    ] {
        assert_eq!(bench.answer_to("ann", query).await.expect(200).json()["scope"], granted, "{query}");
    }
    // Less than was asked is no error, and no password is a token for what anybody may do.
    let anonymous = bench.client.get("/v2/token?scope=repository:open:pull,push&scope=repository:team/a:pull").await;
    assert_eq!(anonymous.expect(200).json()["scope"], "repository:open:pull");
    let post = async |form: &str| bench.client.send("POST", "/v2/token", &[], form.to_owned()).await;
    let password = "grant_type=password&client_id=containerd-client&username=bob&password=bob-secret&service=berth";
    let granted = post(&format!("{password}&scope=repository:team/a:pull,push&scope=repository:open:pull")).await;
    assert_eq!(granted.json()["scope"], "repository:team/a:pull repository:open:pull");
    assert_eq!(granted.json()["refresh_token"], Value::Null);
    let offline = post(&format!("{password}&access_type=offline")).await.expect(200).json();
    assert!(offline["refresh_token"].is_string());
    for wrong in ["", "grant_type=authorization_code", "grant_type=password&username=bob", "grant_type=refresh_token"] {
        post(wrong).await.expect_error(400, "UNSUPPORTED");
    }
    post("grant_type=password&username=bob&password=wrong").await.expect_error(401, "UNAUTHORIZED");
    post("grant_type=refresh_token&refresh_token=x").await.expect_error(401, "UNAUTHORIZED");
    bench.client.delete("/v2/token").await.expect_error(405, "UNSUPPORTED");
    let many = "scope=repository:a:pull&".repeat(101);
    bench.client.get(&format!("/v2/token?{many}")).await.expect_error(400, "UNSUPPORTED");
}

/// Scripts send their password to the registry itself, and the same rules hold.
#[tokio::test]
async fn a_password_is_good_without_a_token() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    let path = "/v2/team/app/manifests/1";
    ask(&bench.client, "GET", path, &basic("bob", "bob-secret")).await.expect(200);
    ask(&bench.client, "DELETE", path, &basic("bob", "bob-secret")).await.expect(401);
    ask(&bench.client, "GET", path, &basic("eve", "eve-secret")).await.expect(401);
    ask(&bench.client, "GET", "/v2/", &basic("eve", "eve-secret")).await.expect(200);
    ask(&bench.client, "GET", path, &basic("bob", "wrong")).await.expect_error(401, "UNAUTHORIZED");
    for malformed in ["Basic", "Basic %", "Basic Ym9i", "Digest x", "Bearer "] {
        ask(&bench.client, "GET", "/v2/open/tags/list", malformed).await.expect_error(401, "UNAUTHORIZED");
    }
    // A token in the place of a password does what the token does; one for nothing stands for its holder.
    let narrow = bench.token("ann", "repository:team/app:pull").await;
    ask(&bench.client, "GET", path, &basic("_token", &narrow)).await.expect(200);
    ask(&bench.client, "DELETE", path, &basic("oauth2accesstoken", &narrow)).await.expect(401);
    let login = bench.token("ann", "").await;
    let wider = basic("_dcgcr_2_1_5_token", &login);
    let query = "/v2/token?scope=repository:team/app:delete&offline_token=true";
    let said = ask(&bench.client, "GET", query, &wider).await.expect(200).json();
    assert_eq!((&said["scope"], &said["refresh_token"]), (&json!("repository:team/app:delete"), &Value::Null));
    assert!(said["expires_in"].as_u64().unwrap() <= 300);
    ask(&bench.client, "GET", query, &basic("_token", "rubbish")).await.expect(401);
}

/// One request for each route, and the least action that it needs; `None` where any token will do.
fn requests() -> Vec<(Method, String, Option<&'static str>)> {
    let digest = sha256(b"x");
    let (r, upload) = ("/v2/team/app", "/v2/team/app/blobs/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV.x");
    [
        ("GET", "/v2/".to_owned(), None),
        ("GET", "/v2/_catalog".to_owned(), Some("catalog")),
        ("GET", format!("{r}/tags/list"), Some("pull")),
        ("GET", format!("{r}/tags/list?gcr=true"), Some("pull")),
        ("GET", format!("{r}/manifests/1"), Some("pull")),
        ("HEAD", format!("{r}/manifests/1"), Some("pull")),
        ("PUT", format!("{r}/manifests/1"), Some("push")),
        ("DELETE", format!("{r}/manifests/1"), Some("delete")),
        ("GET", format!("{r}/blobs/{digest}"), Some("pull")),
        ("HEAD", format!("{r}/blobs/{digest}"), Some("pull")),
        ("DELETE", format!("{r}/blobs/{digest}"), Some("delete")),
        ("POST", format!("{r}/blobs/uploads/"), Some("push")),
        ("POST", format!("{r}/blobs/uploads/?digest={digest}"), Some("push")),
        ("POST", format!("{r}/blobs/uploads/?mount={digest}&from=team/b"), Some("push")),
        ("GET", upload.to_owned(), Some("push")),
        ("HEAD", upload.to_owned(), Some("push")),
        ("PATCH", upload.to_owned(), Some("push")),
        ("PUT", format!("{upload}?digest={digest}"), Some("push")),
        ("DELETE", upload.to_owned(), Some("push")),
        ("GET", format!("{r}/referrers/{digest}"), Some("pull")),
        ("HEAD", format!("{r}/referrers/{digest}"), Some("pull")),
    ]
    .into_iter()
    .map(|(method, path, needs)| (method.parse().unwrap(), path, needs))
    .collect()
}

/// A route that is missing above fails this: `Route::name` has a name for each.
#[test]
fn no_route_is_missing_from_the_walk() {
    let name = |(method, path, _): &(Method, String, Option<&str>)| {
        let (path, query) = path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
        Route::parse(method, path, query, &HeaderMap::new()).unwrap().name()
    };
    let walked: BTreeSet<&str> = requests().iter().map(name).collect();
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/route.rs")).unwrap();
    let names = source.split("pub fn name(&self)").nth(1).unwrap().split("\n    }").next().unwrap();
    let all: BTreeSet<&str> = names.split('"').skip(1).step_by(2).collect();
    assert_eq!(walked, all);
}

/// Each route and method without a token, with one that lacks the right, of another repository, ended, not begun,
/// foreign, tampered with, and unsigned.
#[tokio::test]
async fn no_route_is_open_to_a_token_that_is_not_good_for_it() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    let good = forged(&bench.keys, |_, _| {});
    let other = KeyRing::make(Kind::EdDsa, 1).unwrap().text();
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
    let mut tampered: Value = claims(&good);
    tampered["sub"] = json!("user:root");
    let tampered = URL_SAFE_NO_PAD.encode(tampered.to_string());
    let bad = [
        forged(&bench.keys, |_, claims| claims["exp"] = json!(now() - 1)),
        forged(&bench.keys, |_, claims| claims["nbf"] = json!(now() + 90)),
        forged(&other, |_, _| {}),
        forged(&other, |header, _| header.kid = KeyRing::read(&bench.keys).unwrap().keys()[0].id.clone().into()),
        format!("{head}.{tampered}.{signature}"),
        format!("{none}.{body}."),
        format!("{head}.{body}."),
        "rubbish".to_owned(),
    ];
    for (method, path, needs) in requests() {
        let method = method.as_str();
        with_token(&bench.client, method, &path, &good).await;
        for token in &bad {
            let answer = with_token(&bench.client, method, &path, token).await.expect(401);
            assert!(answer.header("www-authenticate").ends_with("error=\"invalid_token\""), "{answer:?}");
        }
        // Anybody may list what they see, which here is nothing.
        let without = if needs == Some("catalog") { 200 } else { 401 };
        bench.client.send(method, &path, &[], "").await.expect(without);
        let Some(needs) = needs else { continue };
        let lacking = ["pull", "push", "delete"].into_iter().filter(|action| *action != needs);
        let mut narrow: Vec<Value> =
            lacking.map(|action| json!([{"type": "repository", "name": "team/app", "actions": [action]}])).collect();
        narrow.push(json!([{"type": "repository", "name": "team/other", "actions": ["pull", "push", "delete"]}]));
        narrow.push(json!([]));
        for access in narrow {
            let token = forged(&bench.keys, |_, claims| claims["access"] = access.clone());
            let answer = with_token(&bench.client, method, &path, &token).await.expect(401);
            assert!(
                answer.header("www-authenticate").ends_with("error=\"insufficient_scope\""),
                "{access}: {answer:?}"
            );
        }
    }
}

/// Processes with the same keys believe each other, and a rotation goes by without anybody noticing.
#[tokio::test]
async fn keys_are_shared_and_rotated_without_breaking_a_client() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    let path = "/v2/team/app/manifests/1";
    let old = bench.token("bob", "repository:team/app:pull").await;
    let replica = authority(&bench.keys, TokenOptions::default());
    let other = bench.behind(Arc::clone(&replica));
    with_token(&other, "GET", path, &old).await.expect(200);

    // The first replica reads the new key, and goes on signing with the old one until all have it.
    let rotated = KeyRing::read(&bench.keys).unwrap().rotate(Kind::Es256, now(), 1000).unwrap().text();
    bench.authority.set_keys(KeyRing::read(&rotated).unwrap());
    let between = bench.token("bob", "repository:team/app:pull").await;
    with_token(&other, "GET", path, &between).await.expect(200);
    // Two minutes later, as the file would say then.
    let ids: Vec<String> = KeyRing::read(&rotated).unwrap().keys().iter().map(|key| key.id.clone()).collect();
    let settled: String =
        rotated
            .lines()
            .map(|line| {
                if line.starts_with("# made") {
                    "# made 2026-01-01T00:00:00Z\n".to_owned()
                } else {
                    format!("{line}\n")
                }
            })
            .collect();
    for authority in [&replica, &bench.authority] {
        authority.set_keys(KeyRing::read(&settled).unwrap());
    }
    let new = bench.token("bob", "repository:team/app:pull").await;
    let kid = jsonwebtoken::decode_header(&new).unwrap().kid.unwrap();
    assert!(ids.contains(&kid) && jsonwebtoken::decode_header(&old).unwrap().kid.unwrap() == ids[0]);
    for token in [&old, &between, &new] {
        for client in [&bench.client, &other] {
            with_token(client, "GET", path, token).await.expect(200);
        }
    }
    let published = bench.client.get("/.well-known/jwks.json").await.expect(200).json();
    assert_eq!(published["keys"].as_array().unwrap().len(), 2);
    assert!(published.to_string().contains(&kid) && !published.to_string().contains("\"d\""));
    let about = bench.client.get("/.well-known/openid-configuration").await.expect(200).json();
    assert_eq!(about["issuer"], "berth");
    // A key that is gone takes its tokens with it, also those that were believed before.
    bench.authority.set_keys(KeyRing::make(Kind::EdDsa, 1).unwrap());
    with_token(&bench.client, "GET", path, &old).await.expect(401);
}

/// A remembered token ends when it says.
#[tokio::test]
async fn a_token_ends_though_it_is_remembered() {
    let bench = Bench::with(TokenOptions { ttl: Duration::from_secs(2), ..TokenOptions::default() }).await;
    let token = bench.token("bob", "").await;
    with_token(&bench.client, "GET", "/v2/", &token).await.expect(200);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    with_token(&bench.client, "GET", "/v2/", &token).await.expect(401);
}

/// Guessing is slowed down by name, and who knows the password meanwhile gets in if they did before.
#[tokio::test]
async fn who_guesses_has_to_wait() {
    let bench = Bench::open().await;
    ask(&bench.client, "GET", "/v2/token", &basic("ann", "ann-secret")).await.expect(200);
    let mut refused = 0;
    for guess in 0..25 {
        let answer = ask(&bench.client, "GET", "/v2/token", &basic("ann", &guess.to_string())).await;
        if answer.status == 429 {
            assert!(answer.header("retry-after").parse::<u64>().unwrap() <= 6, "{answer:?}");
            answer.expect_error(429, "TOOMANYREQUESTS");
            refused += 1;
        }
    }
    assert!((4..=6).contains(&refused), "{refused}");
    ask(&bench.client, "GET", "/v2/token", &basic("ann", "ann-secret")).await.expect(200);
    ask(&bench.client, "GET", "/v2/token", &basic("bob", "bob-secret")).await.expect(200);
}
