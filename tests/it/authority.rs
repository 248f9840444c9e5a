//! A certificate authority of the test's own, and what it takes to serve by it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, net::SocketAddr, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::tls::Certificate;
use tempfile::TempDir;

use crate::{berth::Setup, e2e_client::Client};

/// A certificate authority, and a directory with what it issued.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Test Authority");
        let key = KeyPair::generate().unwrap();
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Self { directory, issuer: Issuer::new(params, key) };
        authority.issue("one");
        authority
    }

    /// Where its files are: `ca.crt`, and of each that it issued `<name>.crt` and `<name>.key`.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Makes a certificate for this machine.
    pub(crate) fn issue(&self, name: &str) {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Settings that make Berth speak TLS with the certificate `one`.
    pub(crate) fn setup(&self, more: &[(&str, &str)]) -> Setup {
        let (certificate, key) = (self.path("one.crt"), self.path("one.key"));
        let files =
            [("BERTH_TLS__CERTIFICATE", certificate.to_str().unwrap()), ("BERTH_TLS__KEY", key.to_str().unwrap())];
        Setup::of(&[&files[..], more].concat())
    }

    /// The same for a registry that lets nobody in but ann, whose password is `secret`.
    pub(crate) fn closed(&self) -> Setup {
        fs::write(self.path("users"), format!("ann:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
        self.setup(&[
            ("BERTH_AUTH__HTPASSWD", self.path("users").to_str().unwrap()),
            ("BERTH_AUTH__RULES__ANN__WHO", "user:ann"),
            ("BERTH_AUTH__RULES__ANN__ROLE", "writer"),
            ("BERTH_AUTH__RULES__ANN__REPOSITORIES", "team/**"),
        ])
    }

    /// The beginnings of a client that trusts this authority and nobody else.
    pub(crate) fn builder(&self) -> reqwest::ClientBuilder {
        let ca = Certificate::from_pem(&fs::read(self.path("ca.crt")).unwrap()).unwrap();
        reqwest::Client::builder().tls_certs_only([ca]).redirect(reqwest::redirect::Policy::none())
    }

    /// A client of the server at `address` that trusts this authority.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        Client::with(self.builder().build().unwrap(), &format!("https://{address}"))
    }
}
