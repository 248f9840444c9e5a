//! How often somebody may be wrong: guesses at passwords are counted by the address that they come from and by
//! the name that they are about, in memory that doesn't grow. Who is right is never counted.

use std::{
    hash::Hash,
    net::IpAddr,
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;

/// How many wrong ones are borne with at once: a person's typing mistakes, and a batch of jobs with an old
/// secret.
const BURST: u32 = 20;

/// After how long one more is: 1,200 an hour from one address, or against one name.
const REFILL: Duration = Duration::from_secs(3);

/// How many addresses and how many names are remembered; some 100 bytes each. The longest unseen go first.
const REMEMBERED: usize = 10_000;

/// Counts wrong logins.
#[derive(Debug)]
pub(super) struct Throttle {
    addresses: Cache<IpAddr, Debt>,
    names: Cache<String, Debt>,
}

/// When the last of somebody's wrong logins will be forgotten.
#[derive(Clone, Copy, Debug)]
struct Debt(Instant);

impl Throttle {
    pub(super) fn new() -> Self {
        Self { addresses: Cache::new(REMEMBERED), names: Cache::new(REMEMBERED) }
    }

    /// For how long nothing may be tried from this address; `None` if it may now.
    pub(super) fn wait_of_address(&self, address: Option<IpAddr>, now: Instant) -> Option<Duration> {
        self.addresses.get(&network(address?))?.wait(now)
    }

    /// For how long this name may not be tried; `None` if it may now.
    pub(super) fn wait_of_name(&self, name: &str, now: Instant) -> Option<Duration> {
        self.names.get(short(name))?.wait(now)
    }

    /// Notes a wrong login.
    pub(super) fn failed(&self, address: Option<IpAddr>, name: &str, now: Instant) {
        if let Some(address) = address {
            grow(&self.addresses, network(address), now);
        }
        grow(&self.names, short(name).to_owned(), now);
    }
}

/// As much of a name as is remembered: one that is longer is hardly anybody's, and must not take memory.
fn short(name: &str) -> &str {
    let end = name.char_indices().nth(64).map_or(name.len(), |(at, _)| at);
    &name[..end]
}

fn grow<K: Hash + Eq + Clone>(debts: &Cache<K, Debt>, key: K, now: Instant) {
    let before = debts.get(&key).map_or(now, |Debt(until)| until.max(now));
    // However many were wrong at once, what is owed is no more than a burst and one.
    let most = now + REFILL * (BURST + 1);
    debts.insert(key, Debt((before + REFILL).min(most)));
}

impl Debt {
    fn wait(self, now: Instant) -> Option<Duration> {
        let borne = now + REFILL * (BURST - 1);
        self.0.checked_duration_since(borne).filter(|wait| !wait.is_zero())
    }
}

/// An IPv6 client has a whole /64 to come from (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn who_is_wrong_too_often_waits() {
        let (throttle, start) = (Throttle::new(), Instant::now());
        let one: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        for at in 0..BURST {
            assert_eq!(throttle.wait_of_address(one, start), None, "{at}");
            throttle.failed(one, &format!("user{at}"), start);
        }
        assert_eq!(throttle.wait_of_address(one, start), Some(REFILL));
        assert_eq!(throttle.wait_of_address(Some("192.0.2.2".parse().unwrap()), start), None);
        assert_eq!(throttle.wait_of_address(one, start + REFILL), None);
        assert_eq!(throttle.wait_of_name("user1", start), None);
        for _ in 0..100 {
            throttle.failed(one, "bob", start);
        }
        assert_eq!(throttle.wait_of_name("bob", start), Some(REFILL * 2));
        assert_eq!(throttle.wait_of_name("bob", start + REFILL * 2), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let (throttle, start) = (Throttle::new(), Instant::now());
        for host in 0..BURST {
            throttle.failed(Some(format!("2001:db8::{host:x}").parse().unwrap()), "", start);
        }
        assert!(throttle.wait_of_address(Some("2001:db8::ffff".parse().unwrap()), start).is_some());
        assert!(throttle.wait_of_address(Some("2001:db8:0:1::1".parse().unwrap()), start).is_none());
    }
}
