//! What an error of Redis means: whether a call was not made, may have been, or makes no sense.

use std::{sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::IndexError;

/// Why a call has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Redis or the connection said so, last.
    Redis(RedisError),
    /// What became of it is known.
    Known(IndexError),
}

impl Failure {
    /// For a call that changes nothing.
    pub(super) fn of_reading(self) -> IndexError {
        match self {
            Self::Redis(error) => why_not_read(error),
            Self::Known(error) => error,
        }
    }

    /// For a batch.
    pub(super) fn of_commit(self) -> IndexError {
        match self {
            Self::Redis(error) => why_not_committed(error),
            Self::Known(error) => error,
        }
    }
}

pub(super) fn why_not_connected(error: RedisError) -> IndexError {
    match error.kind() {
        ErrorKind::RESP3NotSupported => IndexError::Broken(format!("the server is too old: {error}")),
        // A certificate that isn't trusted, or a server that doesn't speak TLS: waiting would not help.
        ErrorKind::Io if is_about_tls(&error) => IndexError::Broken(error.to_string()),
        _ => why_not_read(error),
    }
}

fn is_about_tls(error: &RedisError) -> bool {
    type Shared = Arc<dyn std::error::Error + Send + Sync>;
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<Shared>());
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

pub(super) fn why_not_read(error: RedisError) -> IndexError {
    if error.is_io_error() || is_refusal(&error) {
        return IndexError::Unreachable(error.to_string());
    }
    IndexError::Broken(error.to_string())
}

fn why_not_committed(error: RedisError) -> IndexError {
    match error.kind() {
        // The script was not run, or stopped at the counter, before its first write.
        ErrorKind::Server(_) | ErrorKind::Extension => why_not_read(error),
        _ => IndexError::Unknown(error.to_string()),
    }
}

pub(super) fn silent(patience: Duration) -> IndexError {
    IndexError::TimedOut(format!("no answer within {patience:?}"))
}

/// The same error, with the server that it is about.
pub(super) fn of_server(server: &str, error: IndexError) -> IndexError {
    let kind = match error {
        IndexError::Unreachable(_) => IndexError::Unreachable,
        IndexError::Unknown(_) => IndexError::Unknown,
        IndexError::TimedOut(_) => IndexError::TimedOut,
        IndexError::Broken(_) => IndexError::Broken,
    };
    kind(format!("{server}: {}", reason(&error)))
}

/// What an error says, without what it means for the index.
pub(super) fn reason(error: &IndexError) -> &str {
    match error {
        IndexError::Unreachable(reason)
        | IndexError::Unknown(reason)
        | IndexError::TimedOut(reason)
        | IndexError::Broken(reason) => reason,
    }
}

/// Whether the server says that it does nothing for now.
fn is_refusal(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        ErrorKind::Server(kind) => matches!(kind, BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain),
        // Out of memory, no room or too few replicas to keep writes, a script that doesn't end.
        _ => matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY")),
    }
}
