//! What plays Azure Blob Storage for a test: azurite, which checks signatures. One runs for all tests of this
//! process, as it takes a second to start, and each test has a container of its own; another one speaks TLS and
//! takes the tokens of identities. Both end with this process, however it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use berth::storage::{
    Egress,
    azure::{Asks, Azure, AzureOptions},
};
use http::header;
use object_store::{
    azure::{AzureAccessKey, AzureAuthorizer, AzureCredential},
    client::HttpRequestBody,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::OnceCell};
use ulid::Ulid;

use crate::berth::own_address;

/// The only account.
pub(crate) const ACCOUNT: &str = "berth";
/// Its key, 64 bytes in base64 as Azure's are.
pub(crate) const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";

const PORT: u16 = 10_000;

/// Ends azurite when what holds its standard input is gone, and itself when azurite is.
const SCRIPT: &str = "exec 3<&0; azurite-blob \"$@\" & child=$!; (cat <&3 >/dev/null; kill $child) & wait $child";

/// A running azurite.
#[derive(Debug)]
struct Azurite {
    /// The URL of the account's blob service.
    endpoint: String,
    /// The certificate that makes one trust it, where it speaks TLS.
    certificate: Option<String>,
    _child: Child,
}

/// An empty container of its own.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// The URL of the account's blob service: the account is in its path.
    pub(crate) endpoint: String,
    pub(crate) name: String,
    /// The certificate, in PEM, that makes one trust the service, where it speaks TLS.
    pub(crate) certificate: Option<String>,
}

/// A container of one that speaks plain HTTP.
pub(crate) async fn start() -> Container {
    static AZURITE: OnceCell<Azurite> = OnceCell::const_new();
    container(AZURITE.get_or_init(|| launch(None)).await).await
}

/// A container of one that speaks TLS, with a certificate that nobody trusts, and takes identities' tokens.
pub(crate) async fn start_with_tls() -> Container {
    static AZURITE: OnceCell<Azurite> = OnceCell::const_new();
    let start = || async {
        let address = own_address();
        let made = rcgen::generate_simple_self_signed([address.to_string()]).unwrap();
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(files.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        launch(Some((address, files, made.cert.pem()))).await
    };
    container(AZURITE.get_or_init(start).await).await
}

async fn launch(tls: Option<(Ipv4Addr, TempDir, String)>) -> Azurite {
    let address = tls.as_ref().map_or_else(own_address, |(address, ..)| *address);
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "azurite", "--blobHost", &address.to_string(), "--blobPort", &PORT.to_string()])
        // No longer than clients keep a connection that nobody uses.
        .args(["--blobKeepAliveTimeout", "60", "--inMemoryPersistence", "--disableTelemetry", "--silent"])
        .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"))
        // It ends where a client that is cut off leaves it with a promise that nobody waits for.
        .env("NODE_OPTIONS", "--unhandled-rejections=warn")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some((_, files, _)) = &tls {
        let file = |name: &str| files.path().join(name).display().to_string();
        command.args(["--oauth", "basic", "--cert", &file("cert.pem"), "--key", &file("key.pem")]);
    }
    let mut child = command.spawn().unwrap();
    while TcpStream::connect((address, PORT)).await.is_err() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "azurite-blob is needed: scripts/setup-tests installs it ({ended:?})");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = format!("{scheme}://{address}:{PORT}/{ACCOUNT}");
    Azurite { endpoint, certificate: tls.map(|(_, _, certificate)| certificate), _child: child }
}

async fn container(azurite: &Azurite) -> Container {
    let name = Ulid::r#gen().to_string().to_lowercase();
    let url = format!("{}/{name}?restype=container", azurite.endpoint);
    let request = http::Request::put(url).header(header::CONTENT_LENGTH, "0").body(HttpRequestBody::empty());
    let mut request = request.unwrap();
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
    AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request).unwrap();
    let mut client = reqwest::Client::builder();
    if let Some(pem) = &azurite.certificate {
        client = client.tls_certs_merge([reqwest::Certificate::from_pem(pem.as_bytes()).unwrap()]);
    }
    let asked = client.build().unwrap().put(request.uri().to_string()).headers(request.headers().clone());
    let made = asked.send().await.unwrap();
    assert_eq!(made.status().as_u16(), 201, "{}", made.text().await.unwrap());
    Container { endpoint: azurite.endpoint.clone(), name, certificate: azurite.certificate.clone() }
}

impl Container {
    /// The container's URL.
    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.endpoint, self.name)
    }

    /// By the account's key.
    pub(crate) fn options(&self) -> AzureOptions {
        self.asked_by(Asks::Key(KEY.to_owned()))
    }

    pub(crate) fn asked_by(&self, asks: Asks) -> AzureOptions {
        AzureOptions {
            account: ACCOUNT.to_owned(),
            container: self.name.clone(),
            prefix: "some/where".to_owned(),
            endpoint: self.endpoint.clone(),
            public_endpoint: self.endpoint.clone(),
            asks,
            access_tier: None,
            egress: Egress::default(),
            patience: berth::storage::Patience::default(),
        }
    }

    pub(crate) async fn open(&self) -> Azure {
        Azure::open(self.options()).await.unwrap()
    }

    /// What makes Berth keep a registry in the container, as environment variables.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BERTH_STORAGE__URL", format!("az://{}/registry", self.name)),
            ("BERTH_STORAGE__AZURE__ACCOUNT", ACCOUNT.to_owned()),
            ("BERTH_STORAGE__AZURE__ENDPOINT", self.endpoint.clone()),
            ("BERTH_STORAGE__AZURE__ACCOUNT_KEY", KEY.to_owned()),
        ]
    }
}
