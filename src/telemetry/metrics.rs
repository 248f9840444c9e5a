//! The metrics: counters, gauges and histograms, and the page a scraper reads.
//!
//! The names follow OpenTelemetry's semantic conventions as Prometheus spells them where there are any, and
//! start with `berth_` where there are none. Every label is a `&'static str` or a status code: recording
//! allocates nothing once a series exists, and nothing a client sends can make a new name.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use super::{events::EventMetrics, process::Process};

/// The content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The outcome of a call that did what was asked.
pub const OK: &str = "ok";

/// Upper bounds in seconds for requests: those that OpenTelemetry recommends for HTTP servers (5 ms to 10 s),
/// with more below, where an answer from the index falls, and above, where the upload of a layer does.
const REQUEST_SECONDS: [f64; 18] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Upper bounds in seconds for calls below: an embedded index answers in a microsecond, a lost store's
/// retries end after half a minute.
const CALL_SECONDS: [f64; 15] =
    [0.000_005, 0.000_025, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0];

/// A family of histograms; the constructor is a plain function so that the type has a name.
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What tells one series of `http_server_request_duration_seconds` from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    http_route: &'static str,
    http_response_status_code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WayLabels {
    way: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// Every metric of the process, and the page that shows them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `http_server_request_duration_seconds`, from a request's head to the end of its response.
    requests: Histograms<RequestLabels>,
    /// `http_server_active_requests`: between a request's head and the end of its response.
    pub active_requests: Gauge,
    /// `http_server_request_body_size_bytes_total`: bytes of request bodies that were read.
    pub bytes_in: Counter,
    /// `http_server_response_body_size_bytes_total`: bytes of response bodies handed to connections.
    pub bytes_out: Counter,
    /// `berth_requests_refused_total`: turned away because too many were in flight.
    pub requests_refused: Counter,
    /// `berth_requests_panicked_total`: ended by a bug of ours.
    pub requests_panicked: Counter,
    /// `berth_index_believed`: 1 while the index is believed, 0 while the bucket answers in its place.
    pub index_believed: Gauge,
    /// `berth_index_settled`: 1 while the index knows the whole bucket, 0 while it is filled from it.
    pub index_settled: Gauge,
    /// `berth_blob_bytes_total`: bytes of blobs that clients were given, by way.
    blob_bytes: Family<WayLabels, Counter>,
    /// Those that we sent.
    pub blob_bytes_streamed: Counter,
    /// Those for which clients were sent to the store or a CDN. How many they fetched there, we don't see.
    pub blob_bytes_redirected: Counter,
    /// `berth_connections`, open now.
    connections: Family<ListenerLabels, Gauge>,
    /// `berth_connections_refused_total`: turned away because too many were open.
    pub connections_refused: Counter,
    /// `berth_connections_cut_total`: ended by us because the client stopped sending or reading.
    pub connections_cut: Counter,
    /// `berth_store_requests_total` and `berth_store_request_duration_seconds`.
    pub store: Calls,
    /// `berth_index_requests_total` and `berth_index_request_duration_seconds`.
    pub index: Calls,
    /// What is collected.
    pub collected: Collected,
    /// What is told to endpoints.
    pub events: EventMetrics,
    /// What nobody is told of.
    pub untold: Untold,
}

impl Metrics {
    /// All metrics at zero. `version` is Berth's own, for `berth_build_info`.
    pub fn new(version: &'static str) -> Arc<Self> {
        let blob_bytes: Family<WayLabels, Counter> = Family::default();
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            active_requests: Gauge::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            requests_refused: Counter::default(),
            requests_panicked: Counter::default(),
            index_believed: Gauge::default(),
            index_settled: Gauge::default(),
            blob_bytes_streamed: blob_bytes.get_or_create_owned(&WayLabels { way: "streamed" }),
            blob_bytes_redirected: blob_bytes.get_or_create_owned(&WayLabels { way: "redirected" }),
            blob_bytes,
            connections: Family::default(),
            connections_refused: Counter::default(),
            connections_cut: Counter::default(),
            store: Calls::new(),
            index: Calls::new(),
            collected: Collected::default(),
            events: EventMetrics::default(),
            untold: Untold::default(),
        };
        metrics.register_http();
        metrics.collected.register(&mut metrics.registry);
        metrics.events.register(&mut metrics.registry);
        metrics.untold.register(&mut metrics.registry);
        metrics.store.register(&mut metrics.registry, "store");
        metrics.index.register(&mut metrics.registry, "index");
        metrics.register_process(version);
        Arc::new(metrics)
    }

    fn register_http(&mut self) {
        let registry = &mut self.registry;
        registry.register_with_unit(
            "http_server_request_duration",
            "From a request's head to the end of its response",
            Unit::Seconds,
            self.requests.clone(),
        );
        registry.register(
            "http_server_active_requests",
            "Requests whose response has not ended",
            self.active_requests.clone(),
        );
        registry.register_with_unit(
            "http_server_request_body_size",
            "Bytes of request bodies that were read",
            Unit::Bytes,
            self.bytes_in.clone(),
        );
        registry.register_with_unit(
            "http_server_response_body_size",
            "Bytes of response bodies handed to connections",
            Unit::Bytes,
            self.bytes_out.clone(),
        );
        registry.register_with_unit(
            "berth_blob",
            "Bytes of blobs that clients were given, or sent elsewhere for",
            Unit::Bytes,
            self.blob_bytes.clone(),
        );
        registry.register(
            "berth_requests_refused",
            "Requests turned away because too many were in flight",
            self.requests_refused.clone(),
        );
        registry.register(
            "berth_requests_panicked",
            "Requests that a bug of Berth ended",
            self.requests_panicked.clone(),
        );
        registry.register(
            "berth_index_believed",
            "Whether the index is believed; else pulls are read from the bucket, and nothing can be pushed",
            self.index_believed.clone(),
        );
        registry.register(
            "berth_index_settled",
            "Whether the index knows the whole bucket; else it is being filled, and the bucket answers for the rest",
            self.index_settled.clone(),
        );
        registry.register("berth_connections", "Open connections", self.connections.clone());
        registry.register(
            "berth_connections_refused",
            "Connections turned away because too many were open",
            self.connections_refused.clone(),
        );
        registry.register(
            "berth_connections_cut",
            "Connections ended because the client stopped sending or reading",
            self.connections_cut.clone(),
        );
    }

    fn register_process(&mut self, version: &'static str) {
        self.registry.register("berth_build", "Which Berth this is", Info::new([("version", version)]));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        started.set(now.as_secs_f64());
        self.registry.register_with_unit(
            "process_start_time",
            "When the process began, since the Unix epoch",
            Unit::Seconds,
            started,
        );
        self.registry.register_collector(Box::new(Process));
    }

    /// Records one request that has ended. `method` and `route` come from closed sets in the source.
    pub fn request_ended(&self, method: &'static str, route: &'static str, status: u16, took: Duration) {
        let labels =
            RequestLabels { http_request_method: method, http_route: route, http_response_status_code: status };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The gauge of a kind of listener's open connections.
    pub fn connections(&self, listener: &'static str) -> Gauge {
        self.connections.get_or_create_owned(&ListenerLabels { listener })
    }

    /// The page for a scraper, in OpenMetrics text (see [`CONTENT_TYPE`]).
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// How much garbage was found, and how much left the bucket.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// `berth_garbage_found_total`, by kind.
    found: Family<KindLabels, Counter>,
    /// `berth_objects_removed_total`, by kind: garbage, and what was deleted by request.
    removed: Family<KindLabels, Counter>,
    /// `berth_data_removed_bytes_total`: of blobs whose size was known.
    pub bytes: Counter,
    /// `berth_collection_completed_timestamp_seconds`: when a round last went through the whole bucket.
    completed: Gauge,
}

impl Collected {
    fn register(&self, registry: &mut Registry) {
        registry.register("berth_garbage_found", "Things that nothing needed, found by collection", self.found.clone());
        registry.register("berth_objects_removed", "Objects removed from the bucket", self.removed.clone());
        registry.register_with_unit(
            "berth_data_removed",
            "Bytes of blobs removed from the bucket",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register_with_unit(
            "berth_collection_completed_timestamp",
            "When collection last went through the whole bucket, since the Unix epoch; 0 before it has",
            Unit::Seconds,
            self.completed.clone(),
        );
    }

    /// Something of this kind was found. `kind` is from a closed set.
    pub fn found(&self, kind: &'static str) {
        self.found.get_or_create(&KindLabels { kind }).inc();
    }

    /// An object of this kind was removed. `kind` is from a closed set.
    pub fn removed(&self, kind: &'static str) {
        self.removed.get_or_create(&KindLabels { kind }).inc();
    }

    /// A round ended, so many milliseconds after the Unix epoch.
    pub fn completed(&self, milliseconds: u64) {
        self.completed.set(i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX));
    }
}

/// What happened, and was not told to those who want to know.
#[derive(Clone, Debug, Default)]
pub struct Untold {
    /// `berth_pulls_untold_total`: the index was away.
    pub pulls: Counter,
}

impl Untold {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "berth_pulls_untold",
            "Pulls that no endpoint is told of, because the index was away",
            self.pulls.clone(),
        );
    }
}

/// How often the calls through one seam were made, how they ended, and how long they took.
#[derive(Clone, Debug)]
pub struct Calls {
    requests: Family<OutcomeLabels, Counter>,
    durations: Histograms<OperationLabels>,
}

impl Calls {
    fn new() -> Self {
        Self { requests: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(CALL_SECONDS)) }
    }

    fn register(&self, registry: &mut Registry, seam: &str) {
        registry.register(
            format!("berth_{seam}_requests"),
            format!("Calls of the {seam}, by how they ended"),
            self.requests.clone(),
        );
        registry.register_with_unit(
            format!("berth_{seam}_request_duration"),
            format!("How long calls of the {seam} took"),
            Unit::Seconds,
            self.durations.clone(),
        );
    }

    /// The handle of one operation. Look it up once and keep it: recording through it finds no series anew.
    pub fn operation(&self, name: &'static str) -> Operation {
        Operation {
            name,
            succeeded: self.requests.get_or_create_owned(&OutcomeLabels { operation: name, outcome: OK }),
            requests: self.requests.clone(),
            duration: self.durations.get_or_create_owned(&OperationLabels { operation: name }),
        }
    }
}

/// One operation of a seam.
#[derive(Clone, Debug)]
pub struct Operation {
    name: &'static str,
    succeeded: Counter,
    requests: Family<OutcomeLabels, Counter>,
    duration: Histogram,
}

impl Operation {
    /// Records a call that began at `started` and ends now. `outcome` is [`OK`] or the name of an error, from
    /// a closed set.
    pub fn ended(&self, started: Instant, outcome: &'static str) {
        self.duration.observe(started.elapsed().as_secs_f64());
        if outcome == OK {
            self.succeeded.inc();
            return;
        }
        self.requests.get_or_create(&OutcomeLabels { operation: self.name, outcome }).inc();
    }
}
