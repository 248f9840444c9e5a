//! What goes wrong, and when: lanes, each drawing one fault after the other from dice of its own.

use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    dice::Dice,
    over::{Over, StoreKind},
    replica::{Console, Replica},
    servers::{RedisFault, Servers},
    weather::{StormyStore, Tally, Turn, Weather},
};

/// The three spans on which the protocols rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    pub(crate) lease: Duration,
    pub(crate) deadline: Duration,
    pub(crate) margin: Duration,
}

impl Spans {
    /// Those that operators have.
    pub(crate) const DEFAULT: Self = Self::of(5000, 10_000, 3000);

    /// As short as a store whose clock shows seconds allows.
    pub(crate) const SHORT: Self = Self::of(2000, 5000, 2000);

    const fn of(lease: u64, deadline: u64, margin: u64) -> Self {
        let span = Duration::from_millis;
        Self { lease: span(lease), deadline: span(deadline), margin: span(margin) }
    }

    /// How long a new epoch waits, in milliseconds.
    pub(crate) fn succession(self) -> u64 {
        (self.lease * 2 + self.deadline + self.margin).as_millis() as u64
    }

    /// Longer than a lease and a deadline together, in milliseconds.
    pub(crate) fn longest_stop(self) -> u64 {
        (self.lease + self.deadline + self.margin).as_millis() as u64
    }
}

/// What goes wrong with replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplicaFault {
    Killed,
    AllKilled,
    /// It stands still for a while, and goes on.
    Stopped,
    AllButOneStopped,
}

/// Which faults are drawn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) replicas: Vec<ReplicaFault>,
    pub(crate) redis: Vec<RedisFault>,
    pub(crate) store: Vec<Turn>,
    /// The endpoint for events fails now and then.
    pub(crate) endpoint: bool,
    /// The clocks of two replicas are minutes off, one before and one behind.
    pub(crate) clocks: bool,
    /// One replica keeps everything on a disk, which is full at times.
    pub(crate) disk: bool,
}

impl Faults {
    /// All that there are over this set-up.
    pub(crate) fn all(over: Over) -> Self {
        use ReplicaFault::{AllButOneStopped, AllKilled, Killed, Stopped};
        Self {
            replicas: vec![Killed, Killed, Killed, Stopped, Stopped, Stopped, AllButOneStopped, AllKilled],
            redis: RedisFault::all(over.index),
            store: vec![Turn::Refused, Turn::Stalled, Turn::Cut, Turn::Lost, Turn::Late, Turn::Adrift],
            endpoint: true,
            // Google refuses a token that was signed by a wrong clock.
            clocks: over.store != StoreKind::Gcs,
            disk: false,
        }
    }
}

/// For how long nothing goes wrong, between two faults of a lane: as often as not long enough for what is broken to
/// heal.
fn calm(dice: &mut Dice, spans: Spans) -> Duration {
    if dice.percent(50) {
        dice.span(500..spans.succession() / 2)
    } else {
        dice.span(spans.succession()..spans.succession() * 3)
    }
}

/// Vexes the replicas until the end, and leaves them running. What ends by itself is started again.
pub(crate) async fn vex_replicas(
    replicas: &mut [Replica],
    faults: &[ReplicaFault],
    spans: Spans,
    mut dice: Dice,
    tally: &Tally,
    end: Instant,
) {
    while Instant::now() < end {
        let rest = calm(&mut dice, spans);
        attend(replicas, rest.min(end.saturating_duration_since(Instant::now()))).await;
        if faults.is_empty() || Instant::now() >= end {
            continue;
        }
        let (fault, one) = (*dice.pick(faults), dice.index(replicas.len()));
        tally.add(&format!("replica: {fault:?}").to_lowercase());
        let stop = dice.span(500..spans.longest_stop() * 5 / 4);
        match fault {
            ReplicaFault::Killed => replicas[one].kill(),
            ReplicaFault::AllKilled => replicas.iter_mut().for_each(Replica::kill),
            ReplicaFault::Stopped => {
                replicas[one].signal(Signal::STOP);
                tokio::time::sleep(stop).await;
                replicas[one].signal(Signal::CONT);
            }
            ReplicaFault::AllButOneStopped => {
                let others = || replicas.iter().enumerate().filter(|(number, _)| *number != one);
                others().for_each(|(_, replica)| replica.signal(Signal::STOP));
                tokio::time::sleep(stop).await;
                others().for_each(|(_, replica)| replica.signal(Signal::CONT));
            }
        }
        // What was killed stays away for a moment.
        tokio::time::sleep(dice.span(0..2000)).await;
    }
}

/// Does what the manual tells operators to do, until the end: where for longer than a replica takes to start no
/// replica knows the Redis that it finds, as after all of them were restarted with it, the bucket's index is begun anew.
pub(crate) async fn operate(consoles: &[Console], spans: Spans, tally: &Tally, end: Instant) {
    let patience = Duration::from_millis(spans.succession() + 5000);
    let mut last_hope = Instant::now();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now()))).await;
        for console in consoles {
            if !console.is_helpless().await {
                last_hope = Instant::now();
            }
        }
        if last_hope.elapsed() > patience {
            let rebuilt = consoles[0].run(&["index", "rebuild"]).await;
            tally.add("operator: index rebuild");
            if !rebuilt.status.success() {
                tally.add("operator: index rebuild that did not get through");
                println!("  index rebuild: {}", String::from_utf8_lossy(&rebuilt.stderr).trim());
            }
            last_hope = Instant::now();
        }
    }
}

/// Waits, and starts again what has ended.
async fn attend(replicas: &mut [Replica], span: Duration) {
    let until = Instant::now() + span;
    loop {
        replicas.iter_mut().for_each(Replica::start);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_millis(300))).await;
    }
}

/// Vexes Redis until the end, and leaves it well.
pub(crate) async fn vex_redis(
    servers: &mut Servers,
    faults: &[RedisFault],
    spans: Spans,
    mut dice: Dice,
    tally: &Tally,
    end: Instant,
) {
    while !faults.is_empty() {
        let rest = calm(&mut dice, spans) + Duration::from_millis(spans.succession());
        tokio::time::sleep(rest.min(end.saturating_duration_since(Instant::now()))).await;
        if Instant::now() >= end {
            return;
        }
        servers.suffer(*dice.pick(faults), &mut dice, spans, tally).await;
    }
}

/// Gives the store bad weather until the end, and fair weather then.
pub(crate) async fn vex_store(store: &StormyStore, turns: &[Turn], spans: Spans, mut dice: Dice, end: Instant) {
    while !turns.is_empty() && Instant::now() < end {
        let wait = 500..spans.longest_stop() * 2;
        let chances = match dice.range(0..10) {
            // It is down.
            0 => vec![(*dice.pick(turns), 100)],
            1..7 => vec![(*dice.pick(turns), dice.range(5..40))],
            _ => turns.iter().map(|turn| (*turn, 5)).collect(),
        };
        store.turn(Weather { chances, wait });
        let storm = dice.span(500..8000);
        tokio::time::sleep(storm.min(end.saturating_duration_since(Instant::now()))).await;
        store.turn(Weather::default());
        let fair = dice.span(500..12_000);
        tokio::time::sleep(fair.min(end.saturating_duration_since(Instant::now()))).await;
    }
}

/// Fills a disk again and again until the end, and gives it back.
pub(crate) async fn vex_disk(disk: &Path, mut dice: Dice, tally: &Tally, end: Instant) {
    let filler = disk.join("filler");
    while Instant::now() < end {
        tokio::time::sleep(dice.span(500..2500)).await;
        tally.add("disk: full");
        fill(&filler);
        tokio::time::sleep(dice.span(300..2500)).await;
        // What is left of the room is small, and fills up by what clients push.
        fs::remove_file(&filler).ok();
    }
}

/// Writes a file until there is no room left.
fn fill(filler: &Path) {
    let Ok(mut file) = fs::File::create(filler) else { return };
    let zeros = vec![0; 1 << 20];
    for size in [zeros.len(), 4096] {
        while file.write_all(&zeros[..size]).is_ok() {}
    }
}
