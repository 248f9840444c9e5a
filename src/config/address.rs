//! Where things are: sockets, sites, the object store, the index.
//!
//! An address is only parsed here; whether anybody answers at it is for the layer that dials it to say.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    path::PathBuf,
};

use http::Uri;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    redis_url::RedisUrl,
    text::{MASK, Text, Written},
};

impl Written for SocketAddr {
    const NAME: &'static str = "SocketAddress";
    const WANT: &'static str = "an IP address and a port, such as \"127.0.0.1:5000\" or \"[::1]:5000\"";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl Written for IpNet {
    const NAME: &'static str = "Network";
    const WANT: &'static str = "a network such as \"10.0.0.0/8\" or \"fd00::/8\", or a single IP address";

    fn read(text: &str) -> Option<Self> {
        let single = || text.parse::<IpAddr>().ok().map(Self::from);
        // Bits behind the prefix would be ignored, and are most likely a mistake.
        text.parse().ok().or_else(single).filter(|network: &Self| network.trunc() == *network)
    }

    fn write(&self) -> String {
        match self.prefix_len() == self.max_prefix_len() {
            true => self.addr().to_string(),
            false => self.to_string(),
        }
    }
}

/// The addresses that a server listens on: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen(Vec<SocketAddr>);

/// Listening addresses as a person may write them.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrSeveral {
    One(Text<SocketAddr>),
    Several(Vec<Text<SocketAddr>>),
}

impl Listen {
    /// What is allowed, as the end of the sentence "want …".
    const WANT: &'static str =
        "an IP address and a port, such as \"127.0.0.1:5000\" or \"[::]:5000\", or a list of several";

    /// One address.
    pub fn one(address: SocketAddr) -> Self {
        Self(vec![address])
    }

    /// Whether only this machine can connect to any of them.
    pub fn is_loopback(&self) -> bool {
        self.outside().is_none()
    }

    /// The first address that another machine could connect to.
    pub fn outside(&self) -> Option<SocketAddr> {
        // Canonical first: `[::ffff:127.0.0.1]` is the loopback address of IPv4.
        self.0.iter().copied().find(|address| !address.ip().to_canonical().is_loopback())
    }
}

impl Deref for Listen {
    type Target = [SocketAddr];

    fn deref(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let addresses = match OneOrSeveral::deserialize(deserializer)? {
            OneOrSeveral::One(Text(address)) => vec![address],
            OneOrSeveral::Several(several) => several.into_iter().map(|Text(address)| address).collect(),
        };
        if addresses.is_empty() {
            return Err(D::Error::custom(Self::WANT));
        }
        Ok(Self(addresses))
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.collect_str(one),
            several => serializer.collect_seq(several.iter().map(SocketAddr::to_string)),
        }
    }
}

impl JsonSchema for Listen {
    fn schema_name() -> Cow<'static, str> {
        "Listen".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "array"],
            "items": { "type": "string", "x-want": SocketAddr::WANT },
            "minItems": 1,
            "x-want": Self::WANT,
        })
    }
}

/// An absolute `http` or `https` URL without user, path or query, kept without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site(String);

impl Site {
    /// Scheme, host and port: `https://r.example.com`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Written for Site {
    const NAME: &'static str = "Site";
    const WANT: &'static str = "an absolute http or https URL without a path, such as \"https://r.example.com\"";

    fn read(text: &str) -> Option<Self> {
        // A `Uri` forgets a fragment and takes a missing path for `/`; the text must say no more than it.
        let uri: Uri = text.parse().ok()?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if authority.host().is_empty() || authority.as_str().ends_with(':') {
            return None;
        }
        let site = format!("{scheme}://{authority}");
        (text.strip_suffix('/').unwrap_or(text) == site).then_some(Self(site))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// The URL by which an OpenID Connect issuer is known, as it was written: tokens name it letter by letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerUrl(String);

impl IssuerUrl {
    /// The URL as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Written for IssuerUrl {
    const NAME: &'static str = "IssuerUrl";
    const WANT: &'static str = "an https URL without a query, such as \"https://token.actions.githubusercontent.com\"";

    fn read(text: &str) -> Option<Self> {
        (has_host(text, "https") && !text.contains(['?', '#'])).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// What URLs begin with: a scheme, a host and perhaps a path, kept without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlStart(String);

impl UrlStart {
    /// As it is put before a slash and the rest: `https://cdn.example.com/registry`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Written for UrlStart {
    const NAME: &'static str = "UrlStart";
    const WANT: &'static str =
        "an absolute http or https URL without a query, such as \"https://d111111abcdef8.cloudfront.net\"";

    fn read(text: &str) -> Option<Self> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let from = text.find("://")? + "://".len();
        let (site, path) = text.split_at(text[from..].find('/').map_or(text.len(), |at| from + at));
        // Letters that mean themselves in a URL and in the JSON of a policy.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
        let good = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
        (Site::read(site).is_some() && path.split('/').skip(1).all(good)).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// The URL of somebody else's token service, as clients are told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm(String);

impl Realm {
    /// The URL as text; it stands between quotes in a header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Written for Realm {
    const NAME: &'static str = "Realm";
    const WANT: &'static str = "an absolute http or https URL, such as \"https://auth.example.com/token\"";

    fn read(text: &str) -> Option<Self> {
        let is_plain = !text.contains(['"', '\\', '#']);
        (is_plain && (has_host(text, "https") || has_host(text, "http"))).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Where somebody else's public keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// At this URL.
    Url(String),
    /// In this file.
    File(PathBuf),
}

impl Written for KeyPlace {
    const NAME: &'static str = "KeyPlace";
    const WANT: &'static str = "an https URL, or the path of a file";

    fn read(text: &str) -> Option<Self> {
        if text.contains("://") {
            return has_host(text, "https").then(|| Self::Url(text.to_owned()));
        }
        read_path(text).map(Self::File)
    }

    fn write(&self) -> String {
        match self {
            Self::Url(url) => url.clone(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// Whether text is an absolute URL of this scheme, with a host and without a user.
fn has_host(text: &str, scheme: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
    uri.scheme_str() == Some(scheme) && authority.is_some_and(|authority| !authority.host().is_empty())
}

/// Whose pages may call the registry from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigin {
    /// Those of any site.
    Any,
    /// Those of one.
    Site(Site),
}

impl Written for CorsOrigin {
    const NAME: &'static str = "CorsOrigin";
    const WANT: &'static str = "\"*\", or an origin such as \"https://ui.example.com\"";

    fn read(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        Site::read(text).map(Self::Site)
    }

    fn write(&self) -> String {
        match self {
            Self::Any => "*".to_owned(),
            Self::Site(site) => site.write(),
        }
    }
}

/// Where the bucket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageUrl {
    /// A local directory.
    File(PathBuf),
    /// A bucket of an S3-compatible store.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What Berth's keys begin with, without a slash at either end; empty for the whole bucket.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket's name.
        bucket: String,
        /// What Berth's keys begin with, without a slash at either end; empty for the whole bucket.
        prefix: String,
    },
    /// A container of Azure Blob Storage.
    Azure {
        /// The container's name.
        container: String,
        /// What Berth's keys begin with, without a slash at either end; empty for the whole container.
        prefix: String,
    },
}

impl StorageUrl {
    /// Whether it is a local directory, rather than a bucket that several replicas can reach.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

impl Written for StorageUrl {
    const NAME: &'static str = "StorageUrl";
    const WANT: &'static str =
        "\"file:PATH\", \"s3://BUCKET/PREFIX\", \"gs://BUCKET/PREFIX\" or \"az://CONTAINER/PREFIX\"";

    fn read(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("file:") {
            return read_path(path).map(Self::File);
        }
        let (scheme, rest) = text.split_once("://")?;
        let (bucket, prefix) = read_bucket(rest)?;
        match scheme {
            "s3" => Some(Self::S3 { bucket, prefix }),
            "gs" => Some(Self::Gcs { bucket, prefix }),
            // There no segment of a name ends with a dot.
            "az" if !prefix.split('/').any(|part| part.ends_with('.')) => {
                Some(Self::Azure { container: bucket, prefix })
            }
            _ => None,
        }
    }

    fn write(&self) -> String {
        let (scheme, bucket, prefix) = match self {
            Self::File(path) => return format!("file:{}", path.display()),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Gcs { bucket, prefix } => ("gs", bucket, prefix),
            Self::Azure { container, prefix } => ("az", container, prefix),
        };
        let slash = if prefix.is_empty() { "" } else { "/" };
        format!("{scheme}://{bucket}{slash}{prefix}")
    }
}

/// A bucket's name, and what Berth's keys in it begin with, without a slash at either end.
fn read_bucket(text: &str) -> Option<(String, String)> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    // Letters that every store takes in a key without escaping.
    let component = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(named);
    let good = component(bucket) && (prefix.is_empty() || prefix.split('/').all(component));
    good.then(|| (bucket.to_owned(), prefix.to_owned()))
}

/// Where the index is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexUrl {
    /// An embedded database in `.index` in the bucket's own directory.
    Embedded,
    /// An embedded database in this directory.
    EmbeddedAt(PathBuf),
    /// One Redis server, or several.
    Redis(RedisUrl),
}

impl Written for IndexUrl {
    const NAME: &'static str = "IndexUrl";
    const WANT: &'static str = "\"embedded\", \"embedded:PATH\", \"redis://[USER:PASSWORD@]HOST:PORT/DATABASE\", \"redis-sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE/DATABASE\" or \"redis-cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT\" (rediss://, rediss-sentinel://, rediss-cluster:// with TLS)";

    fn read(text: &str) -> Option<Self> {
        if text == "embedded" {
            return Some(Self::Embedded);
        }
        if let Some(path) = text.strip_prefix("embedded:") {
            return read_path(path).map(Self::EmbeddedAt);
        }
        RedisUrl::parse(text).map(Self::Redis)
    }

    fn write(&self) -> String {
        match self {
            Self::Embedded => "embedded".to_owned(),
            Self::EmbeddedAt(path) => format!("embedded:{}", path.display()),
            Self::Redis(url) => url.to_string(),
        }
    }
}

/// The URL of a proxy. It may hold a password, so only [`ProxyUrl::reveal`] gives all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl ProxyUrl {
    /// The whole URL, password and all, for the client that connects.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Written for ProxyUrl {
    const NAME: &'static str = "ProxyUrl";
    const WANT: &'static str = "\"http://[USER:PASSWORD@]HOST:PORT\", or the same with https";

    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
        let good = matches!(scheme, "http" | "https")
            && Site::read(&format!("{scheme}://{host}")).is_some()
            && user.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        let Some((before, host)) = self.0.rsplit_once('@') else { return self.0.clone() };
        let (scheme, user) = before.split_once("://").unwrap_or_default();
        let user = user.split(':').next().unwrap_or_default();
        format!("{scheme}://{user}:{MASK}@{host}")
    }
}

/// What every key in a shared Redis begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(String);

impl Default for Namespace {
    fn default() -> Self {
        Self("berth:".to_owned())
    }
}

impl Deref for Namespace {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Written for Namespace {
    const NAME: &'static str = "Namespace";
    const WANT: &'static str = "1 to 64 letters, digits, '.', '_', '-' or ':', such as \"berth:\"";

    fn read(text: &str) -> Option<Self> {
        // No braces: in a cluster, what stands between them decides on which node a key lives.
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
        ((1..=64).contains(&text.len()) && text.bytes().all(good)).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

impl Written for PathBuf {
    const NAME: &'static str = "Path";
    const WANT: &'static str = "the path of a file";

    fn read(text: &str) -> Option<Self> {
        read_path(text)
    }

    fn write(&self) -> String {
        self.display().to_string()
    }
}

/// A path that can be shown on one line.
fn read_path(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && !text.contains(char::is_control)).then(|| PathBuf::from(text))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn sites_have_no_path() {
        for (text, site) in [
            ("https://r.example.com", "https://r.example.com"),
            ("http://localhost:5000/", "http://localhost:5000"),
            ("https://[::1]:5000", "https://[::1]:5000"),
        ] {
            assert_eq!(Site::read(text).unwrap().as_str(), site);
        }
        for bad in [
            "",
            "r.example.com",
            "ftp://r.example.com",
            "https://",
            "https://r.example.com:",
            "https://r.example.com/v2",
            "https://r.example.com//",
            "https://r.example.com?x",
            "https://r.example.com#x",
            "https://me@r.example.com",
        ] {
            assert_eq!(Site::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn starts_of_urls_are_read_and_written() {
        for (text, shown) in [
            ("https://cdn.example.com", "https://cdn.example.com"),
            ("https://cdn.example.com/", "https://cdn.example.com"),
            ("http://127.0.0.1:8080/a/b-c/", "http://127.0.0.1:8080/a/b-c"),
        ] {
            assert_eq!(UrlStart::read(text).unwrap().write(), shown);
        }
        for bad in [
            "",
            "cdn.example.com",
            "https://",
            "https://c/a?b",
            "https://c/a#b",
            "https://c//a",
            "https://c/\"",
            "ftp://c",
        ] {
            assert_eq!(UrlStart::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_are_read_and_written() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("192.0.2.1", "192.0.2.1"),
            ("::1/128", "::1"),
        ] {
            assert_eq!(IpNet::read(text).unwrap().write(), shown);
        }
        for bad in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "localhost", "10.0.0.0/8,::1"] {
            assert_eq!(IpNet::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn buckets_are_read_and_written() {
        for (text, shown) in [
            ("file:berth-data", "file:berth-data"),
            ("file:/var/lib/berth", "file:/var/lib/berth"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("gs://bucket", "gs://bucket"),
            ("gs://bucket/a/", "gs://bucket/a"),
            ("az://container/a/", "az://container/a"),
        ] {
            assert_eq!(StorageUrl::read(text).unwrap().write(), shown, "{text}");
        }
        for bad in [
            "",
            "file:",
            "berth-data",
            "s3://",
            "s3:///a",
            "s3://b//a",
            "s3://b/../a",
            "s3://b/a b",
            "gs://",
            "az://c/a./b",
            "ftp://b",
        ] {
            assert_eq!(StorageUrl::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_proxy_never_shows_its_password() {
        for (text, shown) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("https://me:s@cret@proxy.example.com:8443/", "https://me:***@proxy.example.com:8443/"),
        ] {
            let url = ProxyUrl::read(text).unwrap();
            assert_eq!((url.write().as_str(), url.reveal()), (shown, text));
        }
        for bad in ["", "proxy:3128", "socks5://proxy", "http://", "http://proxy/path", "http://a/b@proxy"] {
            assert!(ProxyUrl::read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn an_index_never_shows_its_password() {
        for (text, shown) in [
            ("embedded", "embedded"),
            ("embedded:/var/lib/index", "embedded:/var/lib/index"),
            ("redis://redis:6379/0", "redis://redis:6379/0"),
            ("rediss://berth:secret@redis/2", "rediss://berth:***@redis/2"),
        ] {
            let url = IndexUrl::read(text).unwrap();
            assert_eq!(url.write(), shown);
            assert!(!format!("{url:?}").contains("secret"));
        }
        for bad in ["", "embedded:", "redis:", "memcached://h"] {
            assert_eq!(IndexUrl::read(bad), None, "{bad}");
        }
    }
}
