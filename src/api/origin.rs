//! Who asks, and by which address they know this registry: also through proxies.
//!
//! A proxy says in headers what it saw of its client, and anybody can send such headers. They count only where
//! a trusted proxy wrote them: the chain of addresses is walked from this end, and what lies behind the first
//! stranger is hearsay. Nothing else may read these headers. Nobody is let in or kept out here.

use std::{fmt, net::IpAddr, sync::Arc};

use axum::extract::Request;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, HOST, LOCATION},
    request::Parts,
    uri::Authority,
};
use ipnet::IpNet;

use super::observe::Peer;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where a client believes to be that names no host, as HTTP/1.0 allows.
const NO_HOST: &str = "localhost";

/// How bytes travel. As a request's extension it is how they came over its connection; without one, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Through TLS.
    Https,
}

impl Scheme {
    fn read(text: &str) -> Option<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("http") => Some(Self::Http),
            _ if text.eq_ignore_ascii_case("https") => Some(Self::Https),
            _ => None,
        }
    }

    /// As it begins a URL: `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The address of the client itself, in the extensions of each request that came over a socket; IPv4 is never
/// written as IPv6 (`::ffff:192.0.2.1`). Where a proxy hid it, it is that proxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddress(pub IpAddr);

/// The registry's address as the client knows it, in each request's extensions. It is shown as
/// `https://r.example.com`, without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: Arc<str>,
    /// Whether the configuration says so; else the client did, or a proxy.
    is_configured: bool,
}

impl Origin {
    /// `http` or `https`.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host and, unless it is the scheme's own, port: `r.example.com`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes a `Location` on this server absolute where the configuration says what it is then. It is left
    /// relative otherwise: that is always right, and what a client or a proxy says of itself may not be.
    pub fn complete_location(&self, headers: &mut HeaderMap) {
        let Some(location) = headers.get_mut(LOCATION).filter(|_| self.is_configured) else { return };
        let is_ours = location.as_bytes().starts_with(b"/") && !location.as_bytes().starts_with(b"//");
        let path = location.to_str().ok().filter(|_| is_ours);
        if let Some(whole) = path.and_then(|path| HeaderValue::try_from(format!("{self}{path}")).ok()) {
            *location = whole;
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.host)
    }
}

/// Whose word counts on who the client is, and where it believes to be.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    trusted: Arc<[IpNet]>,
    configured: Option<Origin>,
}

impl Proxies {
    /// Trusts proxies in these networks. `public_url`, as `https://r.example.com`, says where every client
    /// believes to be; anything else that is no such URL counts as none.
    pub fn new(trusted: impl IntoIterator<Item = IpNet>, public_url: Option<&str>) -> Self {
        let configured = public_url.and_then(|url| {
            let (scheme, host) = url.split_once("://")?;
            Some(Origin { scheme: Scheme::read(scheme)?, host: host.into(), is_configured: true })
        });
        Self { trusted: trusted.into_iter().collect(), configured }
    }

    /// Adds [`Origin`] and, where the connection is known, [`ClientAddress`] to the request's extensions.
    pub fn see(&self, request: Request) -> Request {
        let (mut head, body) = request.into_parts();
        let peer = head.extensions.get::<Peer>().map(|peer| peer.0.ip().to_canonical());
        let told = peer.filter(|&peer| self.trusts(peer)).and_then(|peer| self.listen_to(peer, &head.headers));
        let told = told.unwrap_or_default();
        if let Some(address) = told.client.or(peer) {
            head.extensions.insert(ClientAddress(address));
        }
        let origin = self.configured.clone().unwrap_or_else(|| origin(&head, told.scheme, told.host));
        head.extensions.insert(origin);
        Request::from_parts(head, body)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(&address))
    }

    /// What the proxy at `peer` says; `None` if that is nothing, or can't be read.
    fn listen_to(&self, peer: IpAddr, headers: &HeaderMap) -> Option<Hop> {
        let ours = [FORWARDED_FOR, FORWARDED_PROTO, FORWARDED_HOST];
        // Most proxies write these and pass a client's `Forwarded` on as it came: with these there, that one
        // doesn't count.
        if !ours.iter().any(|name| headers.contains_key(name)) {
            return self.outermost(peer, read_forwarded(&list(headers, &FORWARDED)?)?);
        }
        let addresses = list(headers, &FORWARDED_FOR).unwrap_or_default();
        let hops = addresses.split(',').map(|text| Hop::at(text.trim())).collect();
        let mut told = self.outermost(peer, hops)?;
        // These have no place in the chain: the first is by custom what the outermost proxy saw.
        let first = |name| Some(list(headers, &name)?.split(',').next()?.trim().to_owned());
        told.scheme = first(FORWARDED_PROTO).and_then(|text| Scheme::read(&text));
        told.host = first(FORWARDED_HOST).and_then(|text| read_host(&text));
        Some(told)
    }

    /// What the outermost proxy said of which all that are nearer are trusted. Each has written the last of
    /// the hops that it sent.
    fn outermost(&self, peer: IpAddr, hops: Vec<Hop>) -> Option<Hop> {
        let (mut proxy, mut found) = (peer, None);
        for hop in hops.into_iter().rev() {
            if !self.trusts(proxy) {
                break;
            }
            let client = hop.client;
            found = Some(Hop { client: client.or(Some(proxy)), ..hop });
            let Some(client) = client else { break };
            proxy = client;
        }
        found
    }
}

/// What one proxy said of the request that it got.
#[derive(Debug, Default)]
struct Hop {
    client: Option<IpAddr>,
    scheme: Option<Scheme>,
    host: Option<Authority>,
}

impl Hop {
    fn at(client: &str) -> Self {
        Self { client: read_address(client), ..Self::default() }
    }
}

/// The registry as the client knows it from what it asked, unless a proxy knows better.
fn origin(head: &Parts, scheme: Option<Scheme>, host: Option<Authority>) -> Origin {
    let scheme = scheme.or_else(|| head.extensions.get().copied()).unwrap_or(Scheme::Http);
    let named = || head.headers.get(HOST).and_then(|host| read_host(host.to_str().ok()?));
    let host = host.or_else(|| head.uri.authority().and_then(|host| read_host(host.as_str()))).or_else(named);
    let host = host.as_ref().map_or(NO_HOST, Authority::as_str);
    Origin { scheme, host: host.into(), is_configured: false }
}

/// All values of a header as the one list that they are; `None` if there is none, or not in text.
fn list(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Result<Vec<&str>, _> = headers.get_all(name).iter().map(HeaderValue::to_str).collect();
    values.ok().filter(|values| !values.is_empty()).map(|values| values.join(","))
}

fn read_host(text: &str) -> Option<Authority> {
    let host: Authority = text.parse().ok()?;
    let is_plain = !host.as_str().contains('@') && !host.host().is_empty() && !host.as_str().ends_with(':');
    is_plain.then_some(host)
}

/// An address, with a port or without: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn read_address(text: &str) -> Option<IpAddr> {
    let bare = || text.parse().ok();
    let in_brackets = || text.strip_prefix('[')?.split_once(']')?.0.parse().ok();
    let before_port = || text.rsplit_once(':')?.0.parse().ok().filter(IpAddr::is_ipv4);
    bare().or_else(in_brackets).or_else(before_port).map(|address: IpAddr| address.to_canonical())
}

/// The hops of a `Forwarded` header (RFC 7239, section 4), client first; `None` if it isn't written as it should be.
fn read_forwarded(text: &str) -> Option<Vec<Hop>> {
    let mut hops = vec![Hop::default()];
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = read_value(after)?;
        let hop = hops.last_mut()?;
        match name.to_ascii_lowercase().as_str() {
            "for" => hop.client = read_address(&value),
            "proto" => hop.scheme = Scheme::read(&value),
            "host" => hop.host = read_host(&value),
            _ => {}
        }
        rest = after.trim_start();
        match rest.chars().next() {
            None => {}
            Some(';') => rest = rest[1..].trim_start(),
            Some(',') => {
                hops.push(Hop::default());
                rest = rest[1..].trim_start();
            }
            Some(_) => return None,
        }
    }
    Some(hops)
}

/// A token or a quoted text, and what comes after it.
fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t', '"']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut characters) = (String::new(), quoted.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use axum::body::Body;

    use super::*;

    /// What is seen of a request from `peer` with these headers, where `10.0.0.0/8` and `fd00::/8` are trusted.
    fn see(peer: &str, headers: &[(&str, &str)]) -> (String, String) {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap());
        let mut request = Request::builder().uri("/v2/").header("host", "inside:5000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer((peer.parse::<IpAddr>().unwrap(), 1234).into()));
        let request = Proxies::new(networks, None).see(request);
        let ClientAddress(client) = request.extensions().get().unwrap();
        (client.to_string(), request.extensions().get::<Origin>().unwrap().to_string())
    }

    fn client(peer: &str, headers: &[(&str, &str)]) -> String {
        see(peer, headers).0
    }

    fn origin(peer: &str, headers: &[(&str, &str)]) -> String {
        see(peer, headers).1
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let headers = [
            ("x-forwarded-for", "192.0.2.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=192.0.2.9;proto=https;host=evil.example"),
        ];
        let stranger = ("192.0.2.1".to_owned(), "http://inside:5000".to_owned());
        assert_eq!(see("192.0.2.1", &headers), stranger);
        assert_eq!(see("::ffff:192.0.2.1", &headers), stranger);
    }

    #[test]
    fn the_client_is_the_first_stranger_from_this_end() {
        for (list, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:4711", "192.0.2.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            // What the client itself has claimed stands before what the proxies saw.
            ("10.9.9.9, 192.0.2.1", "192.0.2.1"),
            ("198.51.100.1, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
            ("198.51.100.1, 192.0.2.1,fd00::7", "192.0.2.1"),
            // All are ours: a client of our own network.
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            // One that can't be read hides what is behind it.
            ("198.51.100.1, unknown", "10.0.0.1"),
            ("198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
            ("198.51.100.1, ", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[("x-forwarded-for", list)]), expected, "{list}");
        }
        let several = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "192.0.2.1")];
        assert_eq!(client("::ffff:10.0.0.1", &several), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn a_proxy_says_where_the_client_believes_to_be() {
        let (https, host) = (("x-forwarded-proto", "https"), ("x-forwarded-host", "r.example.com, inside"));
        let client = ("x-forwarded-for", "192.0.2.1");
        assert_eq!(origin("10.0.0.1", &[client, https]), "https://inside:5000");
        assert_eq!(origin("10.0.0.1", &[client, https, host]), "https://r.example.com");
        assert_eq!(origin("10.0.0.1", &[https, host]), "https://r.example.com");
        assert_eq!(origin("10.0.0.1", &[client, ("x-forwarded-proto", "HTTPS, http")]), "https://inside:5000");
        for bad in ["", "me@r.example.com", "a b", "r.example.com/path", "r.example.com:"] {
            assert_eq!(origin("10.0.0.1", &[client, ("x-forwarded-host", bad)]), "http://inside:5000", "{bad}");
        }
        assert_eq!(origin("10.0.0.1", &[client, ("x-forwarded-proto", "gopher")]), "http://inside:5000");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        for (text, client, origin) in [
            ("for=192.0.2.1;proto=https;host=r.example.com", "192.0.2.1", "https://r.example.com"),
            ("For=\"[2001:db8::1]:4711\"; Proto=HTTPS", "2001:db8::1", "https://inside:5000"),
            ("proto=https", "10.0.0.1", "https://inside:5000"),
            ("for=unknown;proto=https", "10.0.0.1", "https://inside:5000"),
            ("for=\"_hidden\"", "10.0.0.1", "http://inside:5000"),
            // What the outermost trusted proxy saw counts, neither the client's own claim nor an inner hop.
            (
                "host=evil.example, for=192.0.2.1;proto=https;host=\"r.example.com:443\", for=10.0.0.2;proto=http;host=inner",
                "192.0.2.1",
                "https://r.example.com:443",
            ),
            ("for=192.0.2.1;ext=\"a,b;c\\\"d\";proto=https", "192.0.2.1", "https://inside:5000"),
            ("for=192.0.2.1;host=\"unfinished", "10.0.0.1", "http://inside:5000"),
            ("for=192.0.2.1 proto=https", "10.0.0.1", "http://inside:5000"),
            ("for", "10.0.0.1", "http://inside:5000"),
            ("for=", "10.0.0.1", "http://inside:5000"),
        ] {
            assert_eq!(see("10.0.0.1", &[("forwarded", text)]), (client.to_owned(), origin.to_owned()), "{text}");
        }
    }

    /// A proxy that knows nothing of `Forwarded` passes on the client's own.
    #[test]
    fn forwarded_does_not_count_beside_the_older_headers() {
        let forged = ("forwarded", "for=198.51.100.1;host=evil.example");
        let seen = see("10.0.0.1", &[forged, ("x-forwarded-for", "192.0.2.1")]);
        assert_eq!(seen, ("192.0.2.1".to_owned(), "http://inside:5000".to_owned()));
        assert_eq!(client("10.0.0.1", &[forged, ("x-forwarded-proto", "https")]), "10.0.0.1");
    }

    #[test]
    fn what_is_configured_counts_before_all() {
        let mut request = Request::builder().uri("/v2/").header("host", "inside:5000").body(Body::empty()).unwrap();
        request.extensions_mut().insert(Scheme::Http);
        let request = Proxies::new([], Some("https://r.example.com:8443")).see(request);
        let origin = request.extensions().get::<Origin>().unwrap();
        assert_eq!((origin.scheme(), origin.host()), (Scheme::Https, "r.example.com:8443"));
        for (before, after) in [
            ("/v2/a/blobs/uploads/x?_state=y", "https://r.example.com:8443/v2/a/blobs/uploads/x?_state=y"),
            ("https://bucket.example/x", "https://bucket.example/x"),
            ("//elsewhere/x", "//elsewhere/x"),
        ] {
            let mut headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(before))]);
            origin.complete_location(&mut headers);
            assert_eq!(headers[LOCATION], after);
        }
        let nothing = Proxies::default().see(Request::new(Body::empty()));
        let origin = nothing.extensions().get::<Origin>().unwrap();
        assert_eq!(origin.to_string(), "http://localhost");
        let mut headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static("/v2/"))]);
        origin.complete_location(&mut headers);
        assert_eq!(headers[LOCATION], "/v2/");
    }
}
