//! The log: one line per event, to stderr, as text for people or as JSON for machines.
//!
//! It goes to stderr because stdout belongs to what a subcommand prints; a container runtime collects both.
//! Access log lines are events of the target [`ACCESS`], so that `info,access=off` silences them alone.

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, Registry, fmt::MakeWriter, layer::SubscriberExt};

use super::{line::LineLayer, lines::Lines};

/// The target of the access log: one event for each request that was answered or broken off.
pub const ACCESS: &str = "access";

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, target, message, `field=value`.
    #[default]
    Text,
    /// For machines: one JSON object a line, the fields at its top level.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one: the text, and what is wrong with it.
    #[error("the log filter {0:?} is not usable: {1}")]
    Filter(String, String),
    /// Something else has set up the process's log already.
    #[error("the log was set up twice")]
    Twice,
}

/// Makes stderr the log of the whole process; called once, before anything is logged. What is returned is to be kept
/// until nothing is logged any more: as it is dropped, the last lines go out.
///
/// `filter` is a level (`info`), or several rules separated by commas (`info,access=off,berth::index=debug`).
pub fn init(format: Format, filter: &str) -> Result<Log, LogError> {
    let lines = Lines::new(std::io::stderr());
    let subscriber = subscriber(format, filter, lines.clone())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
    Ok(Log(lines))
}

/// The log of the whole process, written to its end as this is dropped.
#[derive(Debug)]
#[must_use = "the last lines go out as it is dropped"]
pub struct Log(Lines);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// The same log, to any writer, not yet installed anywhere.
pub fn subscriber<W>(format: Format, filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).map_err(|error| LogError::Filter(filter.to_owned(), error.to_string()))?;
    Ok(Registry::default().with(filter).with(LineLayer::new(format, writer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_not_one_is_refused() {
        let Err(error) = subscriber(Format::Text, "berth=loud", std::io::sink) else { panic!("accepted") };
        assert!(error.to_string().contains("berth=loud"));
        assert!(subscriber(Format::Json, "info,access=off", std::io::sink).is_ok());
    }
}
