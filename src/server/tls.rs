//! TLS on a listener: the handshake, and the certificate, which changes while connections go on.
//!
//! Certificates live for weeks and the process for months, so the files are looked at again and again. A new
//! pair is used by the connections that come after it; one that can't be used changes nothing. This module
//! makes no certificates, and asks clients for none.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// How often the files are looked at. Reading two small ones costs nothing, and who has just replaced an
/// expired certificate is waiting.
const LOOK: Duration = Duration::from_secs(2);

/// The first byte of every TLS connection: a record of the type `handshake` (RFC 8446, section 5.1). No
/// method of HTTP begins with it.
const HANDSHAKE: u8 = 22;

/// What a client is told that speaks HTTP where TLS is spoken.
pub(super) const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
Connection: close\r\nContent-Length: 116\r\n\r\n\
{\"errors\":[{\"code\":\"UNSUPPORTED\",\"message\":\"this is plain HTTP, and the port speaks TLS: use https\",\"detail\":null}]}";

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oldest {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl Oldest {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
        }
    }
}

/// Why a certificate and its key can't be used: one line that names the setting and the file.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {}: {found}; want {want}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    found: String,
    want: &'static str,
}

/// The files of a certificate, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's own certificate, and those between it and a root.
    pub certificate: PathBuf,
    /// The private key of the first of them.
    pub key: PathBuf,
}

/// What the files held when they were last looked at; for each the bytes, or why there are none.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Result<Vec<u8>, String>,
    key: Result<Vec<u8>, String>,
}

impl Contents {
    fn read(files: &Files) -> Self {
        let read = |path: &Path| std::fs::read(path).map_err(|error| error.to_string());
        Self { certificate: read(&files.certificate), key: read(&files.key) }
    }

    fn certified_key(&self, files: &Files) -> Result<CertifiedKey, TlsError> {
        let chain = read_chain(&self.certificate).map_err(|found| {
            let want = "certificates in PEM, the server's own first";
            TlsError { setting: "tls.certificate", path: files.certificate.clone(), found, want }
        })?;
        let bad_key = |found, want| TlsError { setting: "tls.key", path: files.key.clone(), found, want };
        let key = read_key(&self.key).map_err(|found| bad_key(found, "a private key in PEM, without a password"))?;
        CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                bad_key("found the key of another certificate".to_owned(), "that of the first in tls.certificate")
            }
            other => bad_key(other.to_string(), "an ECDSA, Ed25519 or RSA key and its certificate"),
        })
    }
}

fn read_chain(pem: &Result<Vec<u8>, String>) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_ref().map_err(Clone::clone)?).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    if chain.is_empty() { Err("found no certificate".to_owned()) } else { Ok(chain) }
}

fn read_key(pem: &Result<Vec<u8>, String>) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem.as_ref().map_err(Clone::clone)?).map_err(|error| match error {
        pem::Error::NoItemsFound => "found no private key".to_owned(),
        other => other.to_string(),
    })
}

/// The certificate that the next connection gets.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Nothing panics while it holds the lock.
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// TLS with the certificate in two files. Clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Files,
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// A pair that can't be used.
    pub fn open(files: Files, oldest: Oldest) -> Result<Self, TlsError> {
        let pair = Contents::read(&files).certified_key(&files)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        let builder = ServerConfig::builder_with_provider(default_provider().into());
        let builder = builder.with_protocol_versions(oldest.versions()).map_err(|error| TlsError {
            setting: "tls.min_version",
            path: files.certificate.clone(),
            found: error.to_string(),
            want: "a version that this build speaks",
        })?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { files, current, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Uses what the files hold whenever that changes, and logs it. Runs until it is dropped.
    pub async fn follow_files(self) {
        let mut last = None;
        loop {
            let files = self.files.clone();
            let Ok(found) = tokio::task::spawn_blocking(move || Contents::read(&files)).await else { return };
            // What was there at the start is looked at again, as it may have changed since.
            if last.as_ref() != Some(&found) {
                self.take_up(&found);
                last = Some(found);
            }
            sleep(LOOK).await;
        }
    }

    fn take_up(&self, found: &Contents) {
        match found.certified_key(&self.files) {
            Ok(pair) => {
                let mut current = self.current.0.write().unwrap_or_else(PoisonError::into_inner);
                if current.cert != pair.cert {
                    tracing::info!(certificate = %self.files.certificate.display(), "a new certificate is in use");
                }
                *current = Arc::new(pair);
            }
            Err(error) => tracing::warn!(%error, "the new certificate can't be used; the old one stays in use"),
        }
    }

    /// Shakes hands with a client that has just connected, for as long as `patience`.
    pub(super) async fn accept(&self, stream: TcpStream, patience: Duration) -> Result<TlsStream<TcpStream>, Stranger> {
        timeout(patience, self.shake_hands(stream)).await.unwrap_or(Err(Stranger::Silent))
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Stranger> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] != HANDSHAKE => Err(Stranger::Plain(stream)),
            _ => self.acceptor.accept(stream).await.map_err(Stranger::Failed),
        }
    }
}

/// A client with which there is no TLS connection.
pub(super) enum Stranger {
    /// It speaks something else, HTTP most likely.
    Plain(TcpStream),
    /// It took too long.
    Silent,
    /// It left, or they could not agree.
    Failed(io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_announces_its_length() {
        let text = String::from_utf8_lossy(NOT_TLS);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let announced = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        assert_eq!(announced, Some(body.len().to_string().as_str()));
    }
}
