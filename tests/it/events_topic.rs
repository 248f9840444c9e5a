//! Who publishes to a topic: the tokens by which the binary is believed. Pub/Sub is played by a proxy that answers in
//! its name, with a certificate that the binary is told to trust; those who give tokens, by `gcs_server.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::SystemTime};

use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    berth::{Berth, Setup},
    gcs_identity::{ACCOUNT, SUBJECT, by_token, key_file},
    gcs_server::{self, GcsServer, Google},
    hook::{Hook, Told},
    issuer::acceptor,
};

/// Whom a token of the pool stands for.
const POD: &str = "principal://pool/subject/pod";
const SERVER: &str = "pubsub.googleapis.com";

/// Google, and a home without a login.
struct World {
    pubsub: Hook,
    google: GcsServer,
    home: TempDir,
    proxy: String,
    _task: JoinSet<()>,
}

/// Whom a publication came from.
fn publisher(google: &Google, told: &Told) -> Option<String> {
    by_token(google, told.header("authorization").strip_prefix("Bearer ")?).ok()
}

impl World {
    async fn start() -> Self {
        let (pubsub, google, home) = (Hook::start().await, gcs_server::start().await, TempDir::new().unwrap());
        std::fs::write(home.path().join("token"), SUBJECT).unwrap();
        let believing = Arc::clone(&google.google);
        pubsub.answer(move |told| match publisher(&believing, told) {
            Some(_) => json!({ "messageIds": ["1"] }).to_string().into_response(),
            None => StatusCode::UNAUTHORIZED.into_response(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let tls = acceptor(&[SERVER], &home.path().join("ca.pem"));
        let (there, mut task) = (pubsub.address, JoinSet::new());
        task.spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(connection.read_u8().await.unwrap());
                }
                assert!(head.starts_with(format!("CONNECT {SERVER}:443 ").as_bytes()));
                connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut inside = tls.accept(connection).await.unwrap();
                let mut hook = TcpStream::connect(there).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut inside, &mut hook).await });
            }
        });
        Self { pubsub, google, home, proxy, _task: task }
    }

    /// A registry that publishes to a topic, as whom these variables say.
    fn registry(&self, who: &[(&str, &str)]) -> Berth {
        let key = |name: &str| format!("BERTH_EVENTS__ENDPOINTS__CI__{name}");
        let (home, certificates) = (self.home.path(), self.home.path().join("ca.pem"));
        let own = [
            (key("FORMAT"), "pubsub-topic"),
            (key("TOPIC"), "projects/my-project/topics/gcr"),
            (key("PROXY"), "true"),
            ("BERTH_PROXY__URL".to_owned(), &self.proxy),
            ("SSL_CERT_FILE".to_owned(), certificates.to_str().unwrap()),
            ("HOME".to_owned(), home.to_str().unwrap()),
        ];
        let own = own.into_iter().map(|(key, value)| (key, value.to_owned()));
        let who = who.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Setup { environment: own.chain(who).collect(), ..Setup::default() }.start()
    }

    /// Whom the message of a push came from, and who was asked for tokens.
    async fn heard(&self, who: &[(&str, &str)]) -> (String, Vec<String>) {
        self.pubsub.forget();
        let berth = self.registry(who);
        berth.client().push_image("team/app", "v1", &["layer".into()]).await;
        let told = self.pubsub.until(1).await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].path, "/v1/projects/my-project/topics/gcr:publish");
        (publisher(&self.google.google, &told[0]).expect("a token that is believed"), self.google.google.asked())
    }

    /// A token of somebody else's that is in a file.
    fn file(&self) -> Value {
        json!({ "file": self.home.path().join("token") })
    }
}

const CREDENTIALS: &str = "BERTH_EVENTS__ENDPOINTS__CI__CREDENTIALS";

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_published_to_by_federation() {
    let world = World::start().await;
    let (exchanged, lent) =
        ("/sts/v1/token".to_owned(), format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"));
    let as_itself = world.google.federation(world.file(), None);
    let (who, asked) = world.heard(&[(CREDENTIALS, &as_itself)]).await;
    assert_eq!((who.as_str(), asked), (POD, vec![exchanged.clone()]));
    // The same found by the environment, in a service account's name, with a token that a URL gives.
    let url = format!("{}/subject", world.google.endpoint);
    let field = json!({ "type": "json", "subject_token_field_name": "value" });
    let source = json!({ "url": url, "headers": { "x-pod": "yes" }, "format": field });
    let file = world.home.path().join("federation.json");
    std::fs::write(&file, world.google.federation(source, Some(ACCOUNT))).unwrap();
    let (who, asked) = world.heard(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]).await;
    assert_eq!((who.as_str(), asked), (ACCOUNT, vec!["/subject".to_owned(), exchanged, lent]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_published_to_by_a_key_or_as_the_machine() {
    let world = World::start().await;
    let (who, asked) = world.heard(&[(CREDENTIALS, &key_file())]).await;
    assert_eq!((who.as_str(), asked.len()), (ACCOUNT, 0), "the key is believed as it is");
    // Not through the proxy, which would be asked for another server than it knows.
    let host = world.google.endpoint.strip_prefix("http://").unwrap();
    let (who, asked) = world.heard(&[("GCE_METADATA_HOST", host)]).await;
    assert_eq!(who, ACCOUNT);
    assert_eq!(asked, ["/computeMetadata/v1/instance/service-accounts/default/token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_believed_is_not_shown_again() {
    let world = World::start().await;
    let credentials = world.google.federation(world.file(), Some(ACCOUNT));
    let berth = world.registry(&[(CREDENTIALS, &credentials)]);
    berth.client().push_image("team/app", "v1", &["layer".into()]).await;
    let first = world.pubsub.until(1).await.remove(0);
    world.google.google.tokens.lock().unwrap().values_mut().for_each(|(_, until)| *until = SystemTime::UNIX_EPOCH);
    berth.client().push_image("team/app", "v2", &["layer".into()]).await;
    let told = world.pubsub.until(3).await;
    assert_eq!(told[1].header("authorization"), first.header("authorization"));
    assert_eq!(publisher(&world.google.google, &told[1]), None);
    assert_eq!(publisher(&world.google.google, &told[2]).as_deref(), Some(ACCOUNT));
    assert_eq!(told[1].body, told[2].body);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_used_stop_the_start_and_are_not_shown() {
    let google = gcs_server::start().await;
    let aws = google.federation(json!({ "environment_id": "aws1", "url": "http://169.254.169.254/hush" }), None);
    for (credentials, says) in [
        ("{}".to_owned(), "its type is missing; want service_account, external_account or authorized_user"),
        (json!({ "type": "service_account", "private_key": "hush" }).to_string(), "missing field"),
        (aws, "its credential_source is neither a file nor a url"),
    ] {
        let environment = [
            ("BERTH_EVENTS__ENDPOINTS__CI__FORMAT", "pubsub-topic"),
            ("BERTH_EVENTS__ENDPOINTS__CI__TOPIC", "projects/my-project/topics/gcr"),
            (CREDENTIALS, &credentials),
        ];
        let (status, said) = Setup::of(&environment).refused();
        assert!(!status.success() && said.lines().count() == 1, "{said}");
        assert!(said.contains("events.endpoints.ci.credentials: ") && said.contains(says), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}
