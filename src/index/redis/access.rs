//! How a Redis server is met: as which user, by TLS or not. Its address is one of many where there are several.

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisResult, TlsCertificates, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::super::IndexError;

/// What the servers of a `rediss` URL are met with, each in PEM.
#[derive(Clone, Default)]
pub struct Tls {
    /// The certificates that vouch for the server; the system's where there are none.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate and its private key, for a server that asks for one.
    pub own: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Whether a file's bytes are at least one certificate in PEM. A file without any would go unnoticed: then
    /// nobody vouches for the server.
    pub fn is_certificate(pem: &[u8]) -> bool {
        let mut certificates = CertificateDer::pem_slice_iter(pem).peekable();
        certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
    }

    /// Whether a file's bytes hold a private key in PEM.
    pub fn is_key(pem: &[u8]) -> bool {
        PrivateKeyDer::from_pem_slice(pem).is_ok()
    }
}

/// A user and a password, for a kind of server that has its own.
#[derive(Clone, Default)]
pub struct Login {
    /// The user; the server's default one where there is none.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
}

/// A host and a port.
pub(super) type Address = (String, u16);

/// One server, and how it is met.
#[derive(Clone)]
pub(super) struct Access(Client);

impl Access {
    /// By a `redis://` or `rediss://` URL.
    pub(super) fn new(url: &str, tls: Option<&Tls>) -> Result<Self, IndexError> {
        // The URL is not repeated: it may hold a password.
        let info = url.into_connection_info().map_err(|error| IndexError::Broken(error.to_string()))?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match tls.cloned() {
            None => Client::open(info),
            Some(Tls { ca, own }) => {
                let own = own.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
                Client::build_with_tls(info, TlsCertificates { client_tls: own, root_cert: ca })
            }
        };
        client.map(Self).map_err(|error| IndexError::Broken(error.to_string()))
    }

    /// Another server that is met in the same way.
    pub(super) fn at(&self, (host, port): Address) -> RedisResult<Self> {
        let address = match self.info().addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        Client::open(self.info().clone().set_addr(address)).map(Self)
    }

    /// The same server for another user, without a database. By RESP2, which Sentinels of any version speak.
    pub(super) fn with_login(&self, login: &Login) -> RedisResult<Self> {
        let mut settings = RedisConnectionInfo::default();
        if let Some(user) = &login.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &login.password {
            settings = settings.set_password(password);
        }
        Client::open(self.info().clone().set_redis_settings(settings)).map(Self)
    }

    pub(super) fn address(&self) -> Address {
        match self.info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
            other => (other.to_string(), 0),
        }
    }

    /// A connection that asks for nothing but answers.
    pub(super) async fn open(&self) -> RedisResult<MultiplexedConnection> {
        self.0.get_multiplexed_async_connection_with_config(&untimed()).await
    }

    /// A connection, and who hears what it says unasked.
    pub(super) async fn open_hearing(
        &self,
        hear: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<MultiplexedConnection> {
        let config = untimed().set_push_sender(move |push| {
            hear(push);
            Ok::<(), redis::aio::SendError>(())
        });
        self.0.get_multiplexed_async_connection_with_config(&config).await
    }

    fn info(&self) -> &ConnectionInfo {
        self.0.get_connection_info()
    }
}

/// Without time limits: who asks sets them, for the whole of a call, waiting for its turn included.
fn untimed() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

/// An address as people write it.
pub(super) fn written((host, port): &Address) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
