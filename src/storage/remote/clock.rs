//! The store's own time, read off the `Date` of its answers.
//!
//! Every request to the store passes through one transport, so the clock is set by whatever traffic there is
//! and costs no request of its own. It must not look at the machine's wall clock.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, header::DATE};

use super::super::StoreTime;

/// A `Date` says whole seconds: the time that it stands for is up to this much, in milliseconds, later.
const RESOLUTION: u64 = 1000;

/// The store's time, carried forward by the machine's monotonic clock.
#[derive(Clone, Debug, Default)]
pub(in crate::storage) struct Clock(Arc<Mutex<Option<Reading>>>);

/// What the store's time was, and how long the machine had been up then.
#[derive(Clone, Copy, Debug)]
struct Reading {
    time: u64,
    uptime: Duration,
}

impl Reading {
    fn carried_to(self, uptime: Duration) -> u64 {
        self.time + uptime.saturating_sub(self.uptime).as_millis() as u64
    }
}

impl Clock {
    /// The store's time; `None` until its first answer.
    pub(in crate::storage) fn now(&self) -> Option<StoreTime> {
        let reading = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map(|reading| StoreTime(reading.carried_to(uptime())))
    }

    /// Takes in an answer to a request that was sent when the machine had been up for `sent`. The time that
    /// was carried forward stands as long as the answer allows it, so that it doesn't jump about within the
    /// second that a `Date` leaves open.
    pub(super) fn observe(&self, headers: &HeaderMap, sent: Duration) {
        let Some(date) = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(parse) else { return };
        let uptime = uptime();
        let way = uptime.saturating_sub(sent).as_millis() as u64;
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let carried = reading.map_or(date, |reading| reading.carried_to(uptime));
        *reading = Some(Reading { time: carried.clamp(date, date + RESOLUTION + way), uptime });
    }
}

/// Milliseconds since the Unix epoch.
fn parse(date: &str) -> Option<u64> {
    let date = chrono::DateTime::parse_from_rfc2822(date).ok()?;
    u64::try_from(date.timestamp_millis()).ok()
}

/// How long the machine has been up, the time that it was suspended for included where the system has
/// such a clock.
pub(super) fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(clock: &Clock, date: &str) {
        let mut headers = HeaderMap::new();
        headers.insert(DATE, date.parse().expect("header"));
        clock.observe(&headers, uptime());
    }

    #[test]
    fn the_clock_follows_the_store_both_ways_and_stays_put_within_its_second() {
        let clock = Clock::default();
        assert_eq!(clock.now(), None);
        answer(&clock, "Sat, 21 Nov 2026 10:00:05 GMT");
        let first = clock.now().expect("time").0;
        assert!((1_795_255_205_000..1_795_255_206_000).contains(&first), "{first}");
        answer(&clock, "Sat, 21 Nov 2026 10:00:05 GMT");
        assert!(clock.now().expect("time").0 >= first, "it went back within one second");
        answer(&clock, "Sat, 21 Nov 2026 10:00:09 GMT");
        assert!(clock.now().expect("time").0 >= first + 3_000);
        answer(&clock, "Sat, 21 Nov 2026 09:59:00 GMT");
        assert!(clock.now().expect("time").0 < first, "a store whose clock was set back is followed");
        answer(&clock, "nonsense");
        assert!(clock.now().is_some());
    }
}
