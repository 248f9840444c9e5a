//! The one error that a request can end with: a code of the protocol, a sentence for the client, and a
//! cause that only the log sees.

use std::time::Duration;

use crate::{
    index::IndexError,
    oci::{digest::InvalidDigest, manifest::InvalidManifest, name::InvalidName, name::InvalidTag},
    storage::StorageError,
};

/// The protocol's error codes (distribution-spec, "Error Codes", and Docker's additions to them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The repository doesn't have this blob.
    BlobUnknown,
    /// The upload can't be finished as asked.
    BlobUploadInvalid,
    /// There is no such upload, or it is not this caller's, or it is over.
    BlobUploadUnknown,
    /// The digest is malformed, or not that of the bytes.
    DigestInvalid,
    /// A manifest needs a blob that its repository doesn't have.
    ManifestBlobUnknown,
    /// The manifest is refused as it is.
    ManifestInvalid,
    /// The repository doesn't have this manifest, or the tag doesn't exist.
    ManifestUnknown,
    /// The repository's name breaks the grammar.
    NameInvalid,
    /// There is no such repository, or no such page.
    NameUnknown,
    /// The page size is not a number that can be served.
    PaginationNumberInvalid,
    /// The range is not where the upload stands.
    RangeInvalid,
    /// The body is not as long as it said.
    SizeInvalid,
    /// The body is larger than is allowed.
    TooLarge,
    /// The tag breaks the grammar.
    TagInvalid,
    /// More tags in one request than it may have.
    TooManyTags,
    /// Somebody has to say who they are, or what they said is wrong.
    Unauthorized,
    /// A token that isn't believed; another one may be.
    InvalidToken,
    /// What was shown is believed, and gives no right to this, whether the thing exists or not.
    InsufficientScope,
    /// Policy forbids it to everyone.
    Denied,
    /// What the admin API is asked to do isn't said as it should be.
    RequestInvalid,
    /// There is something of that name already.
    Conflict,
    /// The method is not one of this resource.
    Unsupported,
    /// What is asked of the token service is nothing that it does.
    TokenRequestInvalid,
    /// Wrong too often; the caller has to wait.
    TooManyRequests,
    /// Try again later: what is needed is away, or too much is going on.
    Unavailable,
    /// The index can't be believed now, so only what the bucket can answer is answered. For a client the
    /// same as [`Code::Unavailable`].
    Suspect,
    /// Ours to mend; the log has the cause under the request's id.
    Unknown,
}

impl Code {
    /// The code as the protocol spells it, and the HTTP status that carries it.
    pub fn wire(self) -> (&'static str, u16) {
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", 404),
            Self::BlobUploadInvalid => ("BLOB_UPLOAD_INVALID", 400),
            Self::BlobUploadUnknown => ("BLOB_UPLOAD_UNKNOWN", 404),
            Self::DigestInvalid => ("DIGEST_INVALID", 400),
            Self::ManifestBlobUnknown => ("MANIFEST_BLOB_UNKNOWN", 400),
            Self::ManifestInvalid => ("MANIFEST_INVALID", 400),
            Self::ManifestUnknown => ("MANIFEST_UNKNOWN", 404),
            Self::NameInvalid => ("NAME_INVALID", 400),
            Self::NameUnknown => ("NAME_UNKNOWN", 404),
            Self::PaginationNumberInvalid => ("PAGINATION_NUMBER_INVALID", 400),
            Self::RangeInvalid => ("RANGE_INVALID", 416),
            Self::SizeInvalid => ("SIZE_INVALID", 400),
            Self::TooLarge => ("SIZE_INVALID", 413),
            Self::TagInvalid => ("TAG_INVALID", 400),
            Self::TooManyTags => ("TAG_INVALID", 414),
            Self::Unauthorized => ("UNAUTHORIZED", 401),
            Self::InvalidToken | Self::InsufficientScope => ("UNAUTHORIZED", 401),
            Self::Denied => ("DENIED", 403),
            Self::RequestInvalid => ("REQUEST_INVALID", 400),
            Self::Conflict => ("CONFLICT", 409),
            Self::Unsupported => ("UNSUPPORTED", 405),
            Self::TokenRequestInvalid => ("UNSUPPORTED", 400),
            Self::TooManyRequests => ("TOOMANYREQUESTS", 429),
            Self::Unavailable | Self::Suspect => ("UNAVAILABLE", 503),
            Self::Unknown => ("UNKNOWN", 500),
        }
    }
}

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}{}", cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default())]
pub struct Error {
    /// What the protocol calls it.
    pub code: Code,
    /// What the client is told, and what it can do next.
    pub message: String,
    /// What else the protocol's form has room for.
    pub detail: Option<serde_json::Value>,
    /// What the log is told.
    pub cause: Option<String>,
    /// After how long it may be tried again, where that is known.
    pub retry_after: Option<Duration>,
}

/// What the rules return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with nothing but a code and a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, cause: None, retry_after: None }
    }

    /// The same with something for the protocol's `detail`.
    pub fn with_detail(mut self, detail: serde_json::Value) -> Self {
        self.detail = Some(detail);
        self
    }

    /// The same with a cause for the log.
    pub fn because(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Nothing was done, or it isn't known; trying again is safe.
    pub fn unavailable(cause: impl ToString) -> Self {
        Self::new(Code::Unavailable, "the registry can't do this right now; try again").because(cause)
    }

    /// The index is away, or isn't the one that the bucket names.
    pub fn suspect(cause: impl ToString) -> Self {
        Self::new(Code::Suspect, "the registry can't do this while its index is away; try again").because(cause)
    }

    /// Whether what failed was the index, so that the bucket may still have the answer.
    pub fn is_suspect(&self) -> bool {
        self.code == Code::Suspect
    }

    /// A defect of ours.
    pub fn internal(cause: impl ToString) -> Self {
        Self::new(Code::Unknown, "internal error").because(cause)
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full(_) => Self::new(Code::Unavailable, "the registry's storage is full").because(error),
            StorageError::Refused(..) => {
                Self::new(Code::Unavailable, "the registry's storage can't be written").because(error)
            }
            StorageError::PartChanged(_) => {
                Self::new(Code::BlobUploadInvalid, "a part of this upload was overwritten or lost; start again")
                    .because(error)
            }
            StorageError::NotFound(_) => Self::internal(error),
            StorageError::TooLate(_) | StorageError::Unavailable(..) => Self::unavailable(error),
        }
    }
}

impl From<IndexError> for Error {
    fn from(error: IndexError) -> Self {
        Self::suspect(error)
    }
}

impl From<InvalidDigest> for Error {
    fn from(error: InvalidDigest) -> Self {
        Self::new(Code::DigestInvalid, error.to_string())
    }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        Self::new(Code::NameInvalid, error.to_string())
    }
}

impl From<InvalidTag> for Error {
    fn from(error: InvalidTag) -> Self {
        Self::new(Code::TagInvalid, error.to_string())
    }
}

impl From<InvalidManifest> for Error {
    fn from(error: InvalidManifest) -> Self {
        Self::new(Code::ManifestInvalid, error.to_string())
    }
}
