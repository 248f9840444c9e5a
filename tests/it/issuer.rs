//! An OpenID Connect issuer: it runs over HTTPS with a certificate of its own, and signs what a test wants.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

/// What a path answers: a status, a `Location`, a body.
type Said = (u16, String, String);

/// An issuer; it stops when this is dropped.
pub(crate) struct Issuer {
    pub(crate) url: String,
    pub(crate) ca: PathBuf,
    pub(crate) said: Arc<Mutex<BTreeMap<String, Said>>>,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    accepting: JoinHandle<()>,
    _directory: TempDir,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Where an issuer says what there is to know of it.
pub(crate) const DISCOVERY: &str = "/.well-known/openid-configuration";

impl Issuer {
    pub(crate) async fn start(keys: &[&Key]) -> Self {
        let directory = TempDir::new().unwrap();
        let ca = directory.path().join("ca.crt");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let said: Arc<Mutex<BTreeMap<String, Said>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let answers = (Arc::clone(&said), Arc::clone(&asked));
        let router = Router::new().fallback(async move |request: Request| {
            let path = request.uri().path().to_owned();
            answers.1.lock().unwrap().push(path.clone());
            let nothing = (404, String::new(), String::new());
            let (status, location, body) = answers.0.lock().unwrap().get(&path).cloned().unwrap_or(nothing);
            http::Response::builder().status(status).header("location", location).body(Body::from(body)).unwrap()
        });
        let acceptor = acceptor(&["localhost", "127.0.0.1"], &ca);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
                tokio::spawn(async move {
                    // Who doesn't trust the CA ends the handshake.
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    drop(Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await);
                });
            }
        });
        let issuer = Self { url, ca, said, asked, accepting, _directory: directory };
        issuer.says(DISCOVERY, json!({ "issuer": issuer.url, "jwks_uri": format!("{}/keys", issuer.url) }));
        issuer.publishes(keys);
        issuer
    }

    pub(crate) fn says(&self, path: &str, body: Value) {
        self.answers(path, 200, "", &body.to_string());
    }

    pub(crate) fn answers(&self, path: &str, status: u16, location: &str, body: &str) {
        self.said.lock().unwrap().insert(path.to_owned(), (status, location.to_owned(), body.to_owned()));
    }

    pub(crate) fn publishes(&self, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public.clone()).collect();
        self.says("/keys", json!({ "keys": keys }));
    }

    /// How often its keys were asked for.
    pub(crate) fn fetches(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| *path == "/keys").count()
    }

    /// Claims that are good.
    pub(crate) fn claims(&self) -> Value {
        let now = now();
        json!({ "iss": self.url, "aud": "berth.example", "sub": "repo:team/app:ref:refs/heads/main", "iat": now,
            "nbf": now, "exp": now + 300, "ref": "refs/heads/main", "groups": ["dev"] })
    }

    /// The same but for one.
    pub(crate) fn claims_with(&self, claim: &str, value: Value) -> Value {
        let mut claims = self.claims();
        claims[claim] = value;
        claims
    }

    pub(crate) fn settings(&self) -> String {
        format!(
            "[auth.oidc.hub]\nissuer = \"{}\"\naudience = [\"berth.example\"]\nca = \"{}\"\ngroups = [\"groups\"]\nclaims.ref = [\"refs/heads/*\"]\n",
            self.url,
            self.ca.display()
        )
    }
}

/// TLS with a certificate that vouches for itself, and is written to a file for those who shall trust it.
pub(crate) fn acceptor(names: &[&str], file: &Path) -> TlsAcceptor {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    fs::write(file, made.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

/// A key of the issuer's, or of somebody who would like to be it.
pub(crate) struct Key {
    algorithm: Algorithm,
    id: String,
    private: EncodingKey,
    pub(crate) public: Value,
}

impl Key {
    pub(crate) fn new(algorithm: Algorithm, id: &str) -> Self {
        let pair = match algorithm {
            Algorithm::RS256 | Algorithm::PS256 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Algorithm::ES384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            Algorithm::EdDSA => KeyPair::generate_for(&PKCS_ED25519),
            _ => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        };
        let pair = pair.unwrap();
        let pem = pair.serialize_pem();
        let private = match algorithm {
            Algorithm::RS256 | Algorithm::PS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            _ => EncodingKey::from_ec_pem(pem.as_bytes()),
        };
        let private = private.unwrap();
        let mut public = match algorithm {
            // What the library makes of such a key's PEM lacks the public half.
            Algorithm::EdDSA => {
                let x =
                    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, pair.public_key_raw());
                json!({ "kty": "OKP", "crv": "Ed25519", "x": x })
            }
            _ => json!(Jwk::from_encoding_key(&private, algorithm).unwrap()),
        };
        public["kid"] = json!(id);
        public["use"] = json!("sig");
        Self { algorithm, id: id.to_owned(), private, public }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(claims, |_| {})
    }

    pub(crate) fn sign_with(&self, claims: &Value, change: impl Fn(&mut Header)) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        change(&mut header);
        encode(&header, claims, &self.private).unwrap()
    }
}
