//! Which node of a cluster serves which shard.
//!
//! A shard is in one of the cluster's 16384 slots, and a slot is moved from node to node by operators and by
//! fail-overs. Here is only what nodes say of that; what follows from it for a call is the connection's to
//! decide.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU16, Ordering},
};

use redis::{RedisError, Value};

use super::{
    super::{IndexError, Shard},
    access::Address,
    request::{read, tag},
};

/// How many slots there are: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
const SLOTS: u16 = 16384;

/// In place of a node where none serves a slot.
const NOBODY: u16 = u16::MAX;

/// What one node says of the whole cluster: the masters that serve slots, by their ids.
#[derive(Debug)]
pub(super) struct View {
    masters: BTreeMap<String, Address>,
    /// First and last slot of each range, and the id of its master.
    ranges: Vec<(u16, u16, String)>,
}

/// Where a server sent us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) slot: u16,
    pub(super) to: Address,
}

/// The place of a shard's node among the nodes of one connection, as far as is known.
pub(super) struct Routes {
    masters: Vec<Address>,
    slots: Vec<AtomicU16>,
}

impl View {
    /// Reads the answer to `CLUSTER SLOTS` of the node at `asked`.
    pub(super) fn read(answer: Value, asked: &Address) -> Result<Self, IndexError> {
        let (mut masters, mut ranges) = (BTreeMap::new(), Vec::new());
        for (first, last, node) in read::<Vec<Value>>(answer)?.into_iter().map(range) {
            let (host, port, id) = node?;
            // A node that doesn't know its own name is where we found it.
            let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.0.clone());
            masters.insert(id.clone(), (host, port));
            ranges.push((first, last, id));
        }
        ranges.sort_unstable();
        Ok(Self { masters, ranges })
    }

    /// The masters' addresses, in the order of [`Routes`].
    pub(super) fn masters(&self) -> Vec<Address> {
        self.masters.values().cloned().collect()
    }

    /// Whether another node says the same. Names may differ.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.ranges == other.ranges
    }

    /// The routes by which shards are found first.
    pub(super) fn routes(&self) -> Routes {
        let slots: Vec<AtomicU16> = (0..SLOTS).map(|_| AtomicU16::new(NOBODY)).collect();
        for (first, last, id) in &self.ranges {
            let place = self.masters.keys().position(|known| known == id).map_or(NOBODY, |place| place as u16);
            for slot in &slots[usize::from(*first)..=usize::from(*last)] {
                slot.store(place, Ordering::Relaxed);
            }
        }
        Routes { masters: self.masters(), slots }
    }
}

type Node = (Option<String>, u16, String);

/// First slot, last slot, and the first of its nodes, which is the master.
fn range(value: Value) -> (u16, u16, Result<Node, IndexError>) {
    let nonsense = || IndexError::Broken("the server's list of slots can't be read".to_owned());
    let Value::Array(parts) = value else { return (0, 0, Err(nonsense())) };
    let mut parts = parts.into_iter();
    let mut slot = || parts.next().and_then(|slot| read::<u16>(slot).ok()).filter(|slot| *slot < SLOTS);
    let (Some(first), Some(last)) = (slot(), slot()) else { return (0, 0, Err(nonsense())) };
    let Some(Value::Array(node)) = parts.next() else { return (0, 0, Err(nonsense())) };
    // Newer servers say more behind these.
    let node = Value::Array(node.into_iter().take(3).collect());
    (first, last, if first <= last { read(node) } else { Err(nonsense()) })
}

impl Redirect {
    /// Where a `MOVED` or `ASK` of the node at `answering` points. One that doesn't know its own name names none.
    pub(super) fn read(error: &RedisError, answering: &Address) -> Option<Self> {
        let (to, slot) = error.redirect_node()?;
        let (host, port) = to.rsplit_once(':')?;
        let host = if matches!(host, "" | "?") { answering.0.clone() } else { host.to_owned() };
        Some(Self { slot: Some(slot).filter(|slot| *slot < SLOTS)?, to: (host, port.parse().ok()?) })
    }
}

impl Routes {
    /// Whom to ask about a shard.
    pub(super) fn node_of(&self, shard: Shard) -> Result<usize, IndexError> {
        let slot = slot_of(shard);
        match self.slots[usize::from(slot)].load(Ordering::Relaxed) {
            NOBODY => Err(IndexError::Unreachable(format!("no node of the cluster serves slot {slot}"))),
            node => Ok(usize::from(node)),
        }
    }

    /// The node at an address, if it was a master when the connection was made.
    pub(super) fn find(&self, address: &Address) -> Option<usize> {
        self.masters.iter().position(|known| known == address)
    }

    /// From now on this node serves the slot.
    pub(super) fn moved(&self, slot: u16, node: usize) {
        self.slots[usize::from(slot)].store(node as u16, Ordering::Relaxed);
    }
}

/// The slot of a shard's keys: CRC16 (XMODEM) of what stands between their braces.
fn slot_of(shard: Shard) -> u16 {
    let crc = tag(shard).bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ (if crc & 0x8000 == 0 { 0 } else { 0x1021 }))
    });
    crc % SLOTS
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// As `CLUSTER KEYSLOT` has it.
    #[test]
    fn a_shard_is_in_the_slot_where_redis_looks_for_it() {
        assert_eq!([0, 7, 15, 100].map(|shard| slot_of(Shard(shard))), [12958, 633, 4362, 6394]);
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(first: i64, last: i64, host: Value, port: i64, id: &str) -> Value {
        let node = Value::Array(vec![host, Value::Int(port), text(id), Value::Array(Vec::new())]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node])
    }

    #[test]
    fn a_view_says_who_serves_a_shard() {
        let answer = vec![
            entry(8000, 16383, Value::Nil, 2, "b"),
            entry(0, 4999, text("a.example"), 1, "a"),
            entry(5000, 7000, text(""), 3, "c"),
        ];
        let view = View::read(Value::Array(answer), &("seed".to_owned(), 9)).unwrap();
        let address = |host: &str, port| (host.to_owned(), port);
        assert_eq!(view.masters(), [address("a.example", 1), address("seed", 2), address("seed", 3)]);
        let routes = view.routes();
        let mut seen = [0; 3];
        for shard in 0..2000 {
            match (slot_of(Shard(shard)), routes.node_of(Shard(shard))) {
                (7001..8000, Err(IndexError::Unreachable(_))) => {}
                (slot, Ok(node)) => {
                    assert_eq!(node, if slot >= 8000 { 1 } else { usize::from(slot >= 5000) * 2 });
                    seen[node] += 1;
                }
                (slot, other) => panic!("{slot}: {other:?}"),
            }
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        routes.moved(slot_of(Shard(7)), 2);
        assert_eq!(routes.node_of(Shard(7)).unwrap(), 2);
        assert_eq!(routes.find(&address("seed", 2)), Some(1));
        assert_eq!(routes.find(&address("seed", 9)), None);
    }

    #[test]
    fn views_agree_on_slots_and_not_on_names() {
        let view = |last, host: &str, id: &str| {
            View::read(Value::Array(vec![entry(0, last, text(host), 1, id)]), &("seed".to_owned(), 9)).unwrap()
        };
        assert!(view(16383, "a", "x").agrees_with(&view(16383, "b", "x")));
        assert!(!view(16383, "a", "x").agrees_with(&view(16383, "a", "y")));
        assert!(!view(16383, "a", "x").agrees_with(&view(16382, "a", "x")));
    }

    #[test]
    fn what_is_no_list_of_slots_is_an_error() {
        for bad in [
            Value::Int(1),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![entry(0, 16384, text("a"), 1, "x")]),
            Value::Array(vec![entry(5, 4, text("a"), 1, "x")]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert!(matches!(View::read(bad, &(String::new(), 1)), Err(IndexError::Broken(_))));
        }
    }
}
