//! What went wrong, named by what the caller can do about it.
//!
//! The codes are Azure's: <https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes>.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::super::{StorageError, remote::code_in};
use crate::outbound::on_one_line;

/// Why a request got no answer that is a success.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No request could be made: there is no proof of who asks.
    Unproven(String),
    /// Nothing was heard; what became of the request is unknown.
    Silence(String),
    /// Azure refused.
    Refusal(Refusal),
}

/// An answer that is no success.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Azure's word for it; empty where it has none.
    pub(super) code: String,
    /// All that it says, on one line.
    pub(super) said: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Self {
        let said = on_one_line(&String::from_utf8_lossy(body));
        let named = headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let code = named.or_else(|| code_in(&said)).unwrap_or_default().to_owned();
        Self { status, code, said }
    }

    /// Its code, or what stands for one.
    pub(super) fn word(&self) -> String {
        if self.code.is_empty() { self.status.as_u16().to_string() } else { self.code.clone() }
    }
}

impl Fault {
    /// Azure's word for it, if it was Azure.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Refusal(refusal) => &refusal.code,
            Self::Unproven(_) | Self::Silence(_) => "",
        }
    }

    /// Whether Azure says that it did nothing because it has too much to do.
    pub(super) fn is_too_busy(&self) -> bool {
        let Self::Refusal(refusal) = self else { return false };
        matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Whether the same request may succeed soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unproven(_) => false,
            Self::Silence(_) => true,
            Self::Refusal(refusal) => {
                refusal.status.is_server_error()
                    || matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
        }
    }

    /// Whether the signature of the request had expired: by what Azure says, or by its clock.
    pub(super) fn is_expired(&self, is_over: bool) -> bool {
        let Self::Refusal(refusal) = self else { return false };
        refusal.status == StatusCode::FORBIDDEN
            && (is_over || refusal.said.contains("not valid in the specified time frame"))
    }

    /// What it means for the caller. `about` is the key.
    pub(super) fn explain(self, about: &str) -> StorageError {
        let about = about.to_owned();
        let refusal = match self {
            Self::Unproven(why) => return StorageError::Refused(about, why),
            Self::Silence(why) => return StorageError::Unavailable(about, why),
            Self::Refusal(refusal) => refusal,
        };
        let text = format!("{} {} {}", refusal.status.as_u16(), refusal.code, refusal.said);
        match refusal.status {
            StatusCode::NOT_FOUND if refusal.code != "ContainerNotFound" => StorageError::NotFound(about),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => StorageError::Refused(about, text),
            _ => StorageError::Unavailable(about, text),
        }
    }
}
