//! The metrics of what is told to endpoints. Their names come from the configuration.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    endpoint: String,
    outcome: &'static str,
}

/// What waits for each endpoint, and what became of what was sent.
#[derive(Clone, Debug, Default)]
pub struct EventMetrics {
    /// `berth_events_pending`
    pending: Family<EndpointLabels, Gauge>,
    /// `berth_events_oldest_pending_seconds`
    oldest: Family<EndpointLabels, Gauge>,
    /// `berth_events_dead`
    dead: Family<EndpointLabels, Gauge>,
    /// `berth_event_deliveries_total`, by outcome.
    deliveries: Family<DeliveryLabels, Counter>,
}

/// What became of one event for one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was delivered.
    Delivered,
    /// It was tried, and will be again.
    Failed,
    /// It became a dead letter.
    Dead,
    /// It was the oldest of too many dead letters.
    Dropped,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Delivered, Self::Failed, Self::Dead, Self::Dropped];

    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Dropped => "dropped",
        }
    }
}

impl EventMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("berth_events_pending", "Events that wait to be delivered", self.pending.clone());
        registry.register_with_unit(
            "berth_events_oldest_pending",
            "How long the oldest event that waits has waited; 0 where none does",
            Unit::Seconds,
            self.oldest.clone(),
        );
        registry.register("berth_events_dead", "Dead letters", self.dead.clone());
        registry.register(
            "berth_event_deliveries",
            "What became of events: delivered, failed (and tried again), dead, dropped from the dead letters",
            self.deliveries.clone(),
        );
    }

    /// How many wait, for how long the oldest has, and how many dead letters there are.
    pub fn counted(&self, endpoint: &str, pending: u64, oldest: Duration, dead: u64) {
        let labels = EndpointLabels { endpoint: endpoint.to_owned() };
        self.pending.get_or_create(&labels).set(pending.try_into().unwrap_or(i64::MAX));
        self.oldest.get_or_create(&labels).set(oldest.as_secs().try_into().unwrap_or(i64::MAX));
        self.dead.get_or_create(&labels).set(dead.try_into().unwrap_or(i64::MAX));
    }

    /// This became of so many.
    pub fn became(&self, endpoint: &str, outcome: Outcome, count: u64) {
        let labels = DeliveryLabels { endpoint: endpoint.to_owned(), outcome: outcome.as_str() };
        self.deliveries.get_or_create(&labels).inc_by(count);
    }

    /// The endpoint is told nothing any more.
    pub fn forget(&self, endpoint: &str) {
        let labels = EndpointLabels { endpoint: endpoint.to_owned() };
        for gauges in [&self.pending, &self.oldest, &self.dead] {
            gauges.remove(&labels);
        }
        for outcome in Outcome::ALL {
            self.deliveries.remove(&DeliveryLabels { endpoint: endpoint.to_owned(), outcome: outcome.as_str() });
        }
    }
}
