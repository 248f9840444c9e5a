//! What an operator sees of a running Berth: its log and its metrics.
//!
//! Everything above may use this; it must not know of HTTP, of stores or of the index. Whoever measures
//! something brings the names of what it measures as `&'static str`, or from the configuration, so that no label can
//! come from a client: the number of time series is bounded by the source code and the operator.

mod events;
mod line;
mod lines;
pub mod logs;
pub mod metrics;
mod process;

pub use events::{EventMetrics, Outcome as DeliveryOutcome};
pub use logs::{Format, Log, LogError, init};
pub use metrics::{Calls, Collected, Metrics, Operation, Untold};
