//! Who asks Azure, and by which proof: applications and machines by the tokens of a service that is written here
//! from Microsoft's description of theirs, and the keys that sign for them by azurite, which takes such tokens.
//! Neither is Microsoft's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::{Path as UrlPath, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use berth::storage::{
    Egress, Key, StorageError, Store,
    azure::{Asks, Azure, AzureOptions},
};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;

use crate::{
    azurite::{self, ACCOUNT, Container, KEY},
    storage::{data, pattern, whole},
};

const TENANT: &str = "0f0e0d0c-0b0a-0908-0706-050403020100";
const CLIENT: &str = "11111111-2222-3333-4444-555555555555";
const SECRET: &str = "an application's secret";
const POD: &str = "a token of Kubernetes";

/// What gives tokens, and what it was asked.
#[derive(Clone, Default)]
struct Entra {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    /// For how many seconds its tokens are good.
    life: u64,
}

impl Entra {
    async fn start(life: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let entra = Self { url, asked: Arc::default(), life };
        let router = Router::new()
            .route("/{tenant}/oauth2/v2.0/token", post(to_application))
            .route("/metadata/identity/oauth2/token", get(to_machine))
            .with_state(entra.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        entra
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push(what.to_owned());
    }

    /// A token as azurite wants it; it looks at everything but the signature.
    fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "aud": "https://storage.azure.com", "iss": format!("https://sts.windows.net/{TENANT}/"),
            "iat": now - 60, "nbf": now - 60, "exp": now + self.life, "oid": CLIENT, "tid": TENANT,
        });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2lnbmVk", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(&claims))
    }
}

/// What a form or a query says, by name.
fn pairs(text: &str) -> HashMap<String, String> {
    let url = reqwest::Url::parse(&format!("http://localhost/?{text}")).unwrap();
    url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    (status, [("content-type", "application/json")], value.to_string()).into_response()
}

/// As <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow> has it.
async fn to_application(State(entra): State<Entra>, UrlPath(tenant): UrlPath<String>, form: String) -> Response {
    let form = pairs(&form);
    let said = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let by_secret = said("client_secret") == SECRET;
    let by_pod = said("client_assertion") == POD
        && said("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    entra.note(if by_pod { "pod" } else { "secret" });
    let known = tenant == TENANT && said("client_id") == CLIENT && (by_secret || by_pod);
    let asks = said("grant_type") == "client_credentials" && said("scope") == "https://storage.azure.com/.default";
    if !known || !asks {
        let error = json!({ "error": "invalid_client", "error_description": "AADSTS7000215: not known" });
        return json_answer(StatusCode::UNAUTHORIZED, &error);
    }
    let answer = json!({ "token_type": "Bearer", "expires_in": entra.life, "access_token": entra.token() });
    json_answer(StatusCode::OK, &answer)
}

/// As <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token> has it.
async fn to_machine(State(entra): State<Entra>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let query = pairs(&query.unwrap_or_default());
    let said = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    entra.note(&format!("machine {}", said("client_id")));
    let asks = said("resource").trim_end_matches('/') == "https://storage.azure.com" && !said("api-version").is_empty();
    if !asks || headers.get("metadata").is_none_or(|value| value != "true") {
        return json_answer(StatusCode::BAD_REQUEST, &json!({ "error": "invalid_request" }));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let answer = json!({
        "access_token": entra.token(), "token_type": "Bearer", "expires_on": (now + entra.life).to_string(),
        "expires_in": entra.life.to_string(), "resource": "https://storage.azure.com",
    });
    json_answer(StatusCode::OK, &answer)
}

/// A container over TLS, and the file that makes one trust it.
async fn container() -> (Container, TempDir, PathBuf) {
    let container = azurite::start_with_tls().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, container.certificate.as_ref().unwrap()).unwrap();
    (container, directory, file)
}

fn trusting(options: AzureOptions, file: &Path) -> AzureOptions {
    AzureOptions { egress: Egress { ca_bundle: Some(file.to_owned()), ..Egress::default() }, ..options }
}

/// What each test does with a store.
async fn works(store: Azure) -> Arc<dyn Store> {
    store.check_rights().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let key = data();
    let upload = store.begin(&key).await.unwrap();
    let part = store.put_part(&key, &upload, 0, 16 << 20, vec![pattern(1000)]).await.unwrap();
    store.complete(&key, &upload, &[part]).await.unwrap();
    let until = store.now().plus(Duration::from_secs(60));
    store.put(&Key::Format, vec![Bytes::from_static(b"{}")], Some(until)).await.unwrap();
    assert!(whole(&store, &key).await.unwrap() == pattern(1000));
    assert_eq!(store.list("data/", None, 10).await.unwrap().objects.len(), 1);
    store.delete(&key, until).await.unwrap();
    store.delete(&key, until).await.unwrap();
    assert_eq!(store.stat(&key).await.unwrap(), None);
    store
}

#[tokio::test]
async fn a_pod_an_application_and_a_machine_are_known() {
    let (container, directory, trusted) = container().await;
    let entra = Entra::start(3600).await;
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, POD).unwrap();
    let (authority, tenant, client) = (entra.url.clone(), TENANT.to_owned(), CLIENT.to_owned());
    let machine = Some(format!("{}/metadata/identity/oauth2/token", entra.url));
    let cases = [
        (
            Asks::Workload {
                authority: authority.clone(),
                tenant: tenant.clone(),
                client: client.clone(),
                token_file: token_file.clone(),
            },
            "pod",
        ),
        (Asks::Secret { authority, tenant, client: client.clone(), secret: SECRET.to_owned() }, "secret"),
        (Asks::Machine { client: None, endpoint: machine.clone() }, "machine "),
        (
            Asks::Machine { client: Some(client.clone()), endpoint: machine },
            "machine 11111111-2222-3333-4444-555555555555",
        ),
    ];
    for (asks, asked) in cases {
        let store = works(Azure::open(trusting(container.asked_by(asks), &trusted)).await.unwrap()).await;
        assert_eq!(entra.asked(), [asked], "a token serves many requests");
        let signed = store.sign(&Key::Format, Duration::from_secs(60)).await.unwrap().unwrap();
        assert!(signed.url.contains("skoid=") && signed.url.contains("spr=https"), "{}", signed.url);
        let certificate = reqwest::Certificate::from_pem(&std::fs::read(&trusted).unwrap()).unwrap();
        let client = reqwest::Client::builder().tls_certs_merge([certificate]).build().unwrap();
        let got = client.get(&signed.url).send().await.unwrap();
        assert_eq!(got.headers()["content-type"], "application/octet-stream");
        assert_eq!((got.status().as_u16(), got.text().await.unwrap()), (200, "{}".to_owned()));
        assert_eq!(client.delete(&signed.url).send().await.unwrap().status().as_u16(), 403);
        let other = signed.url.replace("berth.json", "epochs/other");
        assert_eq!(client.get(&other).send().await.unwrap().status().as_u16(), 403);
        // For as long as the key that signs is good at most, a week.
        let long = store.sign(&Key::Format, Duration::from_secs(30 * 24 * 3600)).await.unwrap().unwrap();
        assert!(long.life > Duration::from_secs(6 * 24 * 3600) && long.life < Duration::from_secs(7 * 24 * 3600));
        store.delete(&Key::Format, store.now().plus(Duration::from_secs(60))).await.unwrap();
    }
}

#[tokio::test]
async fn who_is_not_known_is_said_in_one_line() {
    let (container, directory, trusted) = container().await;
    let entra = Entra::start(3600).await;
    let (authority, tenant, client) = (entra.url.clone(), TENANT.to_owned(), CLIENT.to_owned());
    let by_secret = |secret: &str| Asks::Secret {
        authority: authority.clone(),
        tenant: tenant.clone(),
        client: client.clone(),
        secret: secret.to_owned(),
    };
    let by_pod = Asks::Workload {
        authority: authority.clone(),
        tenant: tenant.clone(),
        client: client.clone(),
        token_file: directory.path().join("missing"),
    };
    let nowhere = Some("http://127.0.0.1:9/token".to_owned());
    for (asks, says) in [
        (by_secret("another"), "AADSTS7000215"),
        (by_pod, "a workload identity was looked for"),
        (Asks::Machine { client: None, endpoint: nowhere }, "a managed identity was looked for"),
    ] {
        let said = Azure::open(trusting(container.asked_by(asks), &trusted)).await.expect_err("unknown").to_string();
        assert!(
            said.contains("there are no credentials: set storage.azure.account_key") && said.contains(says),
            "{said}"
        );
        assert!(!said.contains('\n') && !said.contains("another") && !said.contains(POD), "{said}");
    }
    let expired = Entra::start(0).await;
    let asks =
        Asks::Machine { client: None, endpoint: Some(format!("{}/metadata/identity/oauth2/token", expired.url)) };
    let said = Azure::open(trusting(container.asked_by(asks), &trusted)).await.expect_err("expired").to_string();
    assert!(said.contains("Azure doesn't accept a managed identity (AuthenticationFailed)"), "{said}");
}

/// A service that lets a token list a container, counts who asks for a key that signs, and may refuse it.
async fn service(refuses: bool) -> (String, Arc<Mutex<usize>>) {
    let asked = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&asked);
    let key = move |body: String| async move {
        *counted.lock().unwrap() += 1;
        if refuses {
            let headers = [("x-ms-error-code", "AuthorizationPermissionMismatch")];
            return (StatusCode::FORBIDDEN, headers, "<Error><Code>AuthorizationPermissionMismatch</Code></Error>")
                .into_response();
        }
        let (start, expiry) = (between(&body, "Start"), between(&body, "Expiry"));
        format!(
            "<?xml version=\"1.0\"?><UserDelegationKey><SignedOid>{CLIENT}</SignedOid><SignedTid>{TENANT}</SignedTid>\
             <SignedStart>{start}</SignedStart><SignedExpiry>{expiry}</SignedExpiry><SignedService>b</SignedService>\
             <SignedVersion>2023-11-03</SignedVersion><Value>c2lnbmluZw==</Value></UserDelegationKey>"
        )
        .into_response()
    };
    let list = || async { "<?xml version=\"1.0\"?><EnumerationResults><Blobs /><NextMarker /></EnumerationResults>" };
    let router = Router::new().route("/", post(key)).route("/container", get(list));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

fn between(text: &str, element: &str) -> String {
    let (_, rest) = text.split_once(&format!("<{element}>")).unwrap();
    rest.split_once(&format!("</{element}>")).unwrap().0.to_owned()
}

async fn known_to(service: &str, entra: &Entra) -> AzureOptions {
    let container = azurite::start().await;
    let endpoint = Some(format!("{}/metadata/identity/oauth2/token", entra.url));
    let asks = Asks::Machine { client: None, endpoint };
    AzureOptions { container: "container".into(), endpoint: service.to_owned(), ..container.asked_by(asks) }
}

#[tokio::test]
async fn the_key_that_signs_is_asked_for_once() {
    let (entra, (service, asked)) = (Entra::start(3600).await, service(false).await);
    let store = Azure::open(known_to(&service, &entra).await).await.unwrap();
    let (key, life) = (data(), Duration::from_secs(60));
    let all = futures_util::future::join_all((0..100).map(|_| store.sign(&key, life))).await;
    assert!(all.into_iter().all(|signed| signed.unwrap().is_some()));
    assert_eq!((*asked.lock().unwrap(), entra.asked().len()), (1, 1));
}

#[tokio::test]
async fn who_may_not_have_a_key_that_signs_is_told_what_to_grant() {
    let (entra, (service, _)) = (Entra::start(3600).await, service(true).await);
    let store = Azure::open(known_to(&service, &entra).await).await.unwrap();
    let said = store.check_rights().await.expect_err("refused").to_string();
    assert!(said.contains("grant \"Storage Blob Delegator\" on the storage account"), "{said}");
    assert!(said.contains("AuthorizationPermissionMismatch") && !said.contains('\n'), "{said}");
    let signed = store.sign(&data(), Duration::from_secs(60)).await;
    assert!(matches!(signed, Err(StorageError::Refused(..))), "{signed:?}");
}

/// A signature for the whole container that permits these things, as somebody would make it for Berth.
fn signature(container: &Container, permits: &str, life: Duration) -> String {
    let end = (SystemTime::now() + life).duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let end = berth::storage::StoreTime(end).rfc3339();
    let resource = format!("/blob/{ACCOUNT}/{}", container.name);
    let fields = [permits, "", &end, &resource, "", "", "", "2023-11-03", "c", "", "", "", "", "", "", ""];
    let key = base64::prelude::BASE64_STANDARD.decode(KEY).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(fields.join("\n").as_bytes());
    let signed = base64::prelude::BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let signed = signed.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("sv=2023-11-03&sr=c&sp={permits}&se={}&sig={signed}", end.replace(':', "%3A"))
}

/// Nobody is sent away with it, and a removal rests on a lease.
#[tokio::test]
async fn a_signature_does_in_place_of_a_key() {
    let container = azurite::start().await;
    let given = format!("?{}", signature(&container, "racwdl", Duration::from_secs(3600)));
    let store = works(Azure::open(container.asked_by(Asks::Signature(given))).await.unwrap()).await;
    assert!(store.sign(&Key::Format, Duration::from_secs(60)).await.unwrap().is_none());
    let soon = store.now().plus(Duration::from_secs(1));
    let late = store.delete(&Key::Format, soon).await;
    assert!(matches!(late, Err(StorageError::TooLate(_))), "{late:?}");
    assert!(store.stat(&Key::Format).await.unwrap().is_some());
}

#[tokio::test]
async fn a_signature_that_permits_too_little_or_has_ended_is_said() {
    let container = azurite::start().await;
    let by = |permits: &str, life| Asks::Signature(signature(&container, permits, life));
    let hour = Duration::from_secs(3600);
    let refused = Azure::open(container.asked_by(by("racwd", hour))).await.expect_err("it may not list").to_string();
    assert!(refused.contains("it may not be listed") && refused.contains("permits \"l\""), "{refused}");
    let refused = Azure::open(container.asked_by(by("rl", hour))).await.unwrap().check_rights().await;
    let refused = refused.expect_err("it may not write").to_string();
    assert!(refused.contains("it may not be written to") && refused.contains("permits \"cw\""), "{refused}");
    let ended = by("racwdl", Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let refused = Azure::open(container.asked_by(ended)).await.expect_err("it has ended").to_string();
    assert!(refused.contains("a shared access signature") && !refused.contains("sig="), "{refused}");
}

/// Looks into the container in a process of its own, whose environment has only what is given.
async fn look(container: &Container, trusted: &Path, home: &Path, more: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command
        .args(["inspect", "key", "berth.json"])
        .env_clear()
        .env("BERTH_STORAGE__URL", format!("az://{}/some/where", container.name))
        .env("BERTH_STORAGE__AZURE__ENDPOINT", &container.endpoint)
        .env("BERTH_STORAGE__AZURE__CA_BUNDLE", trusted)
        .env("BERTH_INDEX__URL", format!("embedded:{}", home.join("index").display()))
        .env("AZURE_STORAGE_ACCOUNT", ACCOUNT)
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home)
        .envs(more.iter().copied())
        .stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn who_asks_is_found_in_the_environment() {
    let (container, home, trusted) = container().await;
    let entra = Entra::start(3600).await;
    let store = Azure::open(trusting(container.options(), &trusted)).await.unwrap();
    store.put(&Key::Format, vec![Bytes::from_static(b"{}")], None).await.unwrap();
    let token_file = home.path().join("token");
    std::fs::write(&token_file, POD).unwrap();
    let given = signature(&container, "rl", Duration::from_secs(3600));
    // As AKS sets it, with a slash at its end.
    let authority = format!("{}/", entra.url);
    let machine = format!("{}/metadata/identity/oauth2/token", entra.url);
    let application =
        [("AZURE_TENANT_ID", TENANT), ("AZURE_CLIENT_ID", CLIENT), ("AZURE_AUTHORITY_HOST", authority.as_str())];
    let with = |more: (&'static str, &str)| {
        [&application[..], &[more]]
            .concat()
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<Vec<_>>()
    };
    let own = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    let cases = [
        (own(&[("AZURE_STORAGE_KEY", KEY)]), None),
        (own(&[("AZURE_STORAGE_SAS_TOKEN", &given)]), None),
        (with(("AZURE_CLIENT_SECRET", SECRET)), Some("secret")),
        (with(("AZURE_FEDERATED_TOKEN_FILE", token_file.to_str().unwrap())), Some("pod")),
        (own(&[("IDENTITY_ENDPOINT", &machine)]), Some("machine ")),
        // What is written down counts more.
        (own(&[("AZURE_STORAGE_KEY", "d3Jvbmc="), ("BERTH_STORAGE__AZURE__ACCOUNT_KEY", KEY)]), None),
    ];
    for (environment, asked) in cases {
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let output = look(&container, &trusted, home.path(), &environment).await;
        assert!(output.status.success(), "{environment:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(entra.asked(), asked.map(ToOwned::to_owned).into_iter().collect::<Vec<_>>());
    }
}
