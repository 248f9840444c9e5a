//! How long things took: an HDR histogram, which keeps three digits of every latency in memory that doesn't grow.
//!
//! It must not average: who asks gets percentiles of all that was recorded.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::load::Figures;

/// The most that can be told apart, in microseconds: ten minutes. What takes longer is recorded as that.
const MOST: u64 = 600_000_000;

/// The percentiles that are kept of each load: their name, and the share of latencies that is no longer.
pub(crate) const KEPT: [(&str, f64); 9] = [
    ("p10_ms", 0.1),
    ("p25_ms", 0.25),
    ("p50_ms", 0.5),
    ("p75_ms", 0.75),
    ("p90_ms", 0.9),
    ("p95_ms", 0.95),
    ("p99_ms", 0.99),
    ("p999_ms", 0.999),
    ("max_ms", 1.0),
];

/// Latencies in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, MOST, 3).expect("bounds that make sense"))
    }

    /// One more.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(MOST).max(1));
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// What a share of them, between 0 and 1, didn't exceed, in milliseconds; 0 where there are none.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1000.0
    }

    /// The share of them that is more than this, between 0 and 1.
    pub(crate) fn share_above(&self, latency: Duration) -> f64 {
        let above = self.0.len() - self.0.count_between(0, latency.as_micros() as u64);
        above as f64 / self.0.len().max(1) as f64
    }

    /// Adds the percentiles that are kept to figures.
    pub(crate) fn describe(&self, figures: &mut Figures) {
        figures.extend(KEPT.map(|(name, share)| (name, self.percentile(share))));
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<I: IntoIterator<Item = Duration>>(latencies: I) -> Self {
        let mut all = Self::new();
        latencies.into_iter().for_each(|latency| all.record(latency));
        all
    }
}

/// One histogram that all connections of a load write to: one for each would be 200 KiB a connection.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(Arc<Mutex<Latencies>>);

impl Recorder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Latencies::new())))
    }

    /// One more.
    pub(crate) fn record(&self, latency: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).record(latency);
    }

    /// All that were recorded.
    pub(crate) fn take(&self) -> Latencies {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), Latencies::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thousand() -> Latencies {
        (1..=1000).map(Duration::from_millis).collect()
    }

    /// Whether two are the same but for what three digits can't tell.
    fn is_near(left: f64, right: f64) -> bool {
        (left / right - 1.0).abs() < 0.002
    }

    #[test]
    fn percentiles_are_of_what_was_seen() {
        for (share, expected) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            assert!(is_near(thousand().percentile(share), expected), "{share}: {}", thousand().percentile(share));
        }
        assert_eq!(Latencies::new().percentile(0.5), 0.0);
        assert_eq!(thousand().count(), 1000);
    }

    #[test]
    fn a_share_above_a_latency_is_counted() {
        assert!(is_near(thousand().share_above(Duration::from_millis(900)), 0.1));
        assert_eq!(thousand().share_above(Duration::from_secs(2)), 0.0);
        assert_eq!(Latencies::new().share_above(Duration::ZERO), 0.0);
    }

    #[test]
    fn what_is_too_long_is_the_longest() {
        let latencies: Latencies = [Duration::from_secs(7200)].into_iter().collect();
        assert!(is_near(latencies.percentile(1.0), 600_000.0));
    }

    #[test]
    fn a_recorder_starts_anew_once_taken() {
        let recorder = Recorder::new();
        recorder.clone().record(Duration::from_millis(1));
        assert_eq!((recorder.take().count(), recorder.take().count()), (1, 0));
    }
}
