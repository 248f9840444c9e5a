//! Which addresses may be connected to. An endpoint's URL is the operator's, but what its name leads to is not: a
//! name that pointed elsewhere yesterday may lead to the machine's own metadata today.
//!
//! Names are resolved here, and only the addresses that pass are handed to the client, which connects to one of them
//! and resolves nothing again. Addresses that stand in a URL never meet a resolver; [`Guard::check_url`] is for them.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// What may be connected to: public addresses, and these networks.
#[derive(Clone, Debug)]
pub struct Guard {
    allow: Arc<[IpNet]>,
}

/// An address, or all that a name has, that may not be connected to.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a public address, and not in `allow`")]
pub struct Forbidden(String);

impl Guard {
    /// Lets these networks pass beside public addresses.
    pub fn new(allow: impl IntoIterator<Item = IpNet>) -> Self {
        Self { allow: allow.into_iter().collect() }
    }

    /// Whether an address may be connected to.
    pub fn lets(&self, address: IpAddr) -> bool {
        // What the address stands for counts: a translator would connect to that.
        let address = address.to_canonical();
        let inner = embedded(address).map(IpAddr::V4);
        let is_allowed = |address: IpAddr| self.allow.iter().any(|network| network.contains(&address));
        is_allowed(address) || inner.is_some_and(is_allowed) || (is_public(address) && inner.is_none_or(is_public))
    }

    /// Refuses a URL whose host is an address that may not be connected to.
    ///
    /// # Errors
    /// Says which address.
    pub fn check_url(&self, url: &Url) -> Result<(), Forbidden> {
        // A URL's host is normalised: `0x7f.1`, `2130706433` and `127.1` are all `127.0.0.1` by now.
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        match host.parse() {
            Ok(address) if !self.lets(address) => Err(Forbidden(address.to_string())),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The address of version 4 that one of version 6 leads to, by NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, .., y, z] = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(of(y, z)),
        _ if a == 0x2002 => Some(of(b, c)),
        _ => None,
    }
}

/// Whether anybody on the Internet may have the address, by the registries of special-purpose addresses:
/// <https://www.iana.org/assignments/iana-ipv4-special-registry> and the same for IPv6.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network, private, loopback.
        (0 | 10 | 127, ..) => true,
        // Shared by a provider's customers (RFC 6598).
        (100, 64..=127, _) => true,
        // Link-local, with the metadata of clouds.
        (169, 254, _) => true,
        (172, 16..=31, _) | (192, 168, _) => true,
        // Protocol assignments, documentation, the relays of 6to4.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) => true,
        // Benchmarks.
        (198, 18..=19, _) => true,
        // Multicast, reserved, broadcast.
        (224..=255, ..) => true,
        _ => false,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // NAT64; what it leads to is judged by itself.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => true,
        // Protocol assignments, Teredo among them, and documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // All that is given out. Outside are loopback, local, link-local, multicast and what is kept for later.
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

/// Resolves names, and hands on only what passes the guard.
#[derive(Clone)]
pub(super) struct Checked {
    pub(super) guard: Guard,
    pub(super) names: Arc<dyn Resolve>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { guard, names } = self.clone();
        Box::pin(async move {
            let called = name.as_str().to_owned();
            let found: Vec<SocketAddr> = names.resolve(name).await?.collect();
            let (good, bad): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.into_iter().partition(|address| guard.lets(address.ip()));
            if let (true, Some(first)) = (good.is_empty(), bad.first()) {
                let forbidden = Forbidden(format!("{} (of {called})", first.ip()));
                return Err(Box::new(forbidden) as Box<dyn Error + Send + Sync>);
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// The system's own way to resolve names.
#[derive(Clone, Copy, Debug)]
pub struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts its own port in the place of this one.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        let guard = Guard::new([]);
        for good in ["1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::"]
        {
            assert!(guard.lets(good.parse().unwrap()), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "fe80::1",
            "fec0::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "100::1",
            "3fff::1",
            "4000::1",
        ] {
            assert!(!guard.lets(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn what_is_allowed_passes_in_any_guise() {
        let guard = Guard::new(["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()]);
        for good in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"] {
            assert!(guard.lets(good.parse().unwrap()), "{good}");
        }
        for bad in ["127.0.0.1", "192.168.0.1", "fd01::1", "::ffff:127.0.0.1"] {
            assert!(!guard.lets(bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_found_however_it_is_written() {
        let guard = Guard::new([]);
        for bad in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://[::1]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://0/",
            "http://\u{ff11}27.0.0.1/",
        ] {
            assert!(guard.check_url(&Url::parse(bad).unwrap()).is_err(), "{bad}");
        }
        for good in ["http://1.1.1.1/", "https://ci.example/", "http://localhost/"] {
            assert!(guard.check_url(&Url::parse(good).unwrap()).is_ok(), "{good}: a name is for the resolver");
        }
    }
}
