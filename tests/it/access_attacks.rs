//! The attacks that token services and the access rules of registries have fallen to, each by its number. Each comment
//! names the guard that stands against it; each test was seen to fail without.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use berth::{
    auth::{
        AccessRules, Authority, Logins as _, NamedRule,
        htpasswd::{Htpasswd, Users},
        keys::{KeyRing, Kind},
    },
    config::{RepositoryPattern, Role, Rule, Text, Who, Written},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    access::{Bench, ask, basic, claims, forged, token_of, with_token},
    e2e_client::{Answer, image, sha256},
};

/// CVE-2025-24976: a verifier took the key that the attacker put into the header, once it had a name that it
/// trusted. The guard is in `Tokens::believe`: the key is ours by its `kid`, and nothing else of the header
/// names one.
#[tokio::test]
async fn cve_2025_24976_a_key_in_a_header_is_not_believed() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    let (ours, attacker) = (KeyRing::read(&bench.keys).unwrap(), KeyRing::make(Kind::EdDsa, 1).unwrap());
    let mut jwk = attacker.public().keys[0].clone();
    jwk.common.key_id = Some(ours.keys()[0].id.clone());
    for with_url in [false, true] {
        let token = forged(&attacker.text(), |header, _| {
            header.kid = Some(ours.keys()[0].id.clone());
            match with_url {
                true => header.jku = Some("https://attacker.example/jwks.json".to_owned()),
                false => header.jwk = Some(jwk.clone()),
            }
        });
        with_token(&bench.client, "GET", "/v2/team/app/manifests/1", &token).await.expect(401);
    }
    // Nor is another algorithm than the key's own: an HMAC with the public key for its secret.
    let secret = EncodingKey::from_secret(serde_json::to_string(&ours.public().keys[0]).unwrap().as_bytes());
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(ours.keys()[0].id.clone());
    let token = jsonwebtoken::encode(&header, &claims(&forged(&bench.keys, |_, _| {})), &secret).unwrap();
    with_token(&bench.client, "GET", "/v2/team/app/manifests/1", &token).await.expect(401);
}

/// CVE-2026-32597: a header's critical extension was ignored. The guard is in `header_of`, which knows of none.
#[tokio::test]
async fn cve_2026_32597_a_critical_extension_is_refused() {
    let bench = Bench::open().await;
    for crit in [vec!["b64".to_owned()], Vec::new()] {
        let token = forged(&bench.keys, |header, _| header.crit = Some(crit));
        with_token(&bench.client, "GET", "/v2/", &token).await.expect(401);
    }
}

/// CVE-2026-123710: an anonymous token for an audience of the attacker's choice was believed elsewhere. The guards
/// are `check_service`, and `aud`, `iss` and `typ` in `Tokens::believe`.
#[tokio::test]
async fn cve_2026_123710_a_token_is_for_one_service_and_one_use() {
    let bench = Bench::open().await;
    for foreign in ["service=other.example", "service=berth2&scope=repository:open:pull"] {
        bench.client.get(&format!("/v2/token?{foreign}")).await.expect_error(400, "UNSUPPORTED");
    }
    let form = "grant_type=password&username=ann&password=ann-secret&service=other";
    bench.client.send("POST", "/v2/token", &[], form).await.expect_error(400, "UNSUPPORTED");
    let changes: [fn(&mut Header, &mut Value); 5] = [
        |_, claims| claims["aud"] = json!("other"),
        |_, claims| claims["iss"] = json!("other"),
        |header, _| header.typ = Some("refresh".to_owned()),
        |header, _| header.typ = None,
        |_, claims| _ = claims.as_object_mut().unwrap().remove("aud"),
    ];
    for change in changes {
        with_token(&bench.client, "GET", "/v2/", &forged(&bench.keys, change)).await.expect(401);
    }
    let access = forged(&bench.keys, |_, claims| claims["credential"] = json!("x"));
    let form = format!("grant_type=refresh_token&refresh_token={access}");
    bench.client.send("POST", "/v2/token", &[], form).await.expect(401);
}

/// CVE-2026-61833: a token for pushing could delete. The guard is in `Access::read`, which takes `delete` for itself.
#[tokio::test]
async fn cve_2026_61833_a_push_is_no_right_to_delete() {
    let bench = Bench::open().await;
    let digest = bench.push("team/app", "1").await;
    let token = bench.token("ann", "repository:team/app:pull,push").await;
    for reference in ["1", &digest] {
        with_token(&bench.client, "DELETE", &format!("/v2/team/app/manifests/{reference}"), &token).await.expect(401);
    }
    let token = bench.token("ann", "repository:team/app:delete").await;
    with_token(&bench.client, "DELETE", "/v2/team/app/manifests/1", &token).await.expect(202);
}

/// CVE-2026-27771: an anonymous token was good for private repositories, and the catalog showed them. The guard is
/// that `Authority::issue` grants what `decide` does, and `may_see` filters lists.
#[tokio::test]
async fn cve_2026_27771_an_anonymous_token_is_good_for_what_anybody_may() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    bench.push("open", "1").await;
    let query = "/v2/token?scope=repository:team/app:pull&scope=repository:open:pull&scope=registry:catalog:*";
    let token = token_of(&bench.client.get(query).await.expect(200));
    with_token(&bench.client, "GET", "/v2/team/app/manifests/1", &token).await.expect(401);
    with_token(&bench.client, "GET", "/v2/open/manifests/1", &token).await.expect(200);
    let catalog = async |token: &str| with_token(&bench.client, "GET", "/v2/_catalog", token).await.expect(200).json();
    assert_eq!(catalog(&token).await["repositories"], json!(["open"]));
    let ann = bench.token("ann", "registry:catalog:*").await;
    assert_eq!(catalog(&ann).await["repositories"], json!(["open", "team/app"]));
    let eve = bench.token("eve", "registry:catalog:*").await;
    assert_eq!(catalog(&eve).await["repositories"], json!(["open"]));
}

/// CVE-2026-117685 and CVE-2024-39897: the source of a mount was checked by what the token's owner may, and not by
/// what the token may. The guard is in `mount`, which asks `decide` of the caller with the token; refused, missing
/// and forbidden are the same bytes.
#[tokio::test]
async fn cve_2026_117685_a_mount_needs_the_tokens_right_to_the_source() {
    let bench = Bench::open().await;
    let everything = bench.behind(Authority::of_rules(AccessRules::new(Some(Role::Admin), [])).unwrap());
    let digest = everything.push_blob("team/source", "secret").await;
    let narrow = bench.token("ann", "repository:team/app:pull,push").await;
    let wide = bench.token("ann", "repository:team/app:pull,push&scope=repository:team/source:pull").await;
    let mount = async |token: &str, digest: &str, from: &str| {
        let path = format!("/v2/team/app/blobs/uploads/?mount={digest}&from={from}");
        with_token(&bench.client, "POST", &path, token).await
    };
    let shape = |answer: Answer| {
        let id = answer.header("docker-upload-uuid").to_owned();
        let location = answer.header("location").replace(&id, "ID");
        let location = location.split("_state=").next().unwrap().to_owned();
        (answer.status, location, answer.headers.len(), answer.body)
    };
    let forbidden = shape(mount(&narrow, &digest, "team/source").await.expect(202));
    assert_eq!(shape(mount(&narrow, &sha256(b"nowhere"), "team/source").await), forbidden);
    assert_eq!(shape(mount(&narrow, &digest, "no/where").await), forbidden);
    mount(&wide, &digest, "team/source").await.expect(201);
}

/// CVE-2026-31801: who may only create overwrote a tag. The guard is `create_only` in the token, which
/// `Authority::decide` gives on to the push.
#[tokio::test]
async fn cve_2026_31801_a_creator_moves_no_tag_also_with_a_token() {
    let bench = Bench::open().await;
    bench.push("team/app", "1").await;
    let token = bench.token("carl", "repository:team/app:pull,push").await;
    assert_eq!(claims(&token)["access"][0]["create_only"], true);
    let bearer = format!("Bearer {token}");
    let push = async |tag: &str, author: &str| {
        let config = json!({"architecture": "amd64", "os": "linux", "author": author}).to_string();
        let digest = sha256(config.as_bytes());
        let path = format!("/v2/team/app/blobs/uploads/?digest={digest}");
        bench.client.send("POST", &path, &[("authorization", &bearer)], config.clone()).await.expect(201);
        let manifest = image(config.as_bytes(), &[]);
        let media_type = manifest["mediaType"].as_str().unwrap();
        let headers = [("authorization", bearer.as_str()), ("content-type", media_type)];
        bench.client.send("PUT", &format!("/v2/team/app/manifests/{tag}"), &headers, manifest.to_string()).await
    };
    push("2", "carl").await.expect(201);
    push("1", "carl").await.expect_error(403, "DENIED");
    let ann = bench.token("ann", "repository:team/app:pull,push").await;
    assert_eq!(claims(&ann)["access"][0]["create_only"], Value::Null);
}

/// CVE-2019-19030: whether a name exists could be seen. The guard is in `Htpasswd::check`, which hashes for an
/// unknown name as well; here, that both take the time of a hash, and answer the same.
#[tokio::test]
async fn cve_2019_19030_an_unknown_user_is_answered_as_a_known_one() {
    let bench = Bench::open().await;
    let known = ask(&bench.client, "GET", "/v2/token", &basic("ann", "wrong")).await.expect(401);
    let unknown = ask(&bench.client, "GET", "/v2/token", &basic("nobody", "wrong")).await.expect(401);
    assert_eq!((known.headers, known.body), (unknown.headers, unknown.body));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("users");
    // Some hundred milliseconds, so that what else the machine does can't hide it.
    std::fs::write(&file, format!("ann:{}", bcrypt::hash("x", 10).unwrap())).unwrap();
    let htpasswd = Htpasswd::new(Users::open(&file).unwrap()).unwrap();
    let began = std::time::Instant::now();
    assert_eq!(htpasswd.check("nobody", "wrong").await.unwrap(), None);
    assert!(began.elapsed() > Duration::from_millis(10), "{:?}", began.elapsed());
}

/// CVE-2026-56443: a token that was for little was good for all that its owner may. The guard is in
/// `Authority::by_token_as_password`: only a token that was issued for nothing in particular stands for its holder.
#[tokio::test]
async fn cve_2026_56443_a_token_for_little_gets_no_token_for_more() {
    let bench = Bench::open().await;
    let narrow = basic("_token", &bench.token("ann", "repository:team/app:pull").await);
    let query = "/v2/token?offline_token=true&scope=repository:team/app:pull,push&scope=repository:team/b:pull&scope=registry:catalog:*";
    let said = ask(&bench.client, "GET", query, &narrow).await.expect(200).json();
    assert_eq!((&said["scope"], &said["refresh_token"]), (&json!("repository:team/app:pull"), &Value::Null));
    // Nor is what it gets one that stands for its holder.
    let nothing = token_of(&ask(&bench.client, "GET", "/v2/token", &narrow).await.expect(200));
    let said = ask(&bench.client, "GET", query, &basic("_token", &nothing)).await.expect(200).json();
    assert_eq!(said["scope"], "");
}

/// CVE-2022-46463: a list named what its reader couldn't pull. The guard is `may_see`, which the catalog and the list
/// of what lies below a name ask.
#[tokio::test]
async fn cve_2022_46463_a_list_names_what_its_reader_may_pull() {
    let bench = Bench::open().await;
    for repository in ["team/app", "team/app/base", "open"] {
        bench.push(repository, "1").await;
    }
    bench.authority.set_run_time_rules(rules_with("user:eve", "team/app"));
    let eve = basic("eve", "eve-secret");
    let list = ask(&bench.client, "GET", "/v2/team/app/tags/list?gcr=true", &eve).await.expect(200).json();
    assert_eq!((&list["tags"], &list["child"]), (&json!(["1"]), &json!([])), "{list}");
    let catalog = ask(&bench.client, "GET", "/v2/_catalog", &eve).await.expect(200).json();
    assert_eq!(catalog["repositories"], json!(["open", "team/app"]));
}

/// GO-2025-3409: who had left a group kept what it gave. The guard is that `Authority::refresh` keeps no rights, and
/// `issue` decides by the rules as they are.
#[tokio::test]
async fn go_2025_3409_who_has_lost_a_right_refreshes_without_it() {
    let bench = Bench::open().await;
    bench.authority.set_run_time_rules(rules_with("user:eve", "team/app"));
    let query = "/v2/token?offline_token=true&scope=repository:team/app:pull";
    let said = ask(&bench.client, "GET", query, &basic("eve", "eve-secret")).await.expect(200).json();
    assert_eq!(said["scope"], "repository:team/app:pull");
    bench.authority.set_run_time_rules(Vec::new());
    let refresh = said["refresh_token"].as_str().unwrap();
    let form = format!("grant_type=refresh_token&scope=repository:team/app:pull&refresh_token={refresh}");
    assert_eq!(bench.client.send("POST", "/v2/token", &[], form).await.expect(200).json()["scope"], "");
}

/// A rule by which somebody reads one repository.
fn rules_with(who: &str, repository: &str) -> Vec<NamedRule> {
    let rule = Rule {
        who: vec![Text(Who::read(who).unwrap())],
        role: Role::Reader,
        repositories: vec![Text(RepositoryPattern::read(repository).unwrap())],
    };
    vec![NamedRule { name: "run time".to_owned(), rule }]
}
