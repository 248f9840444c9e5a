//! What went wrong, named by what the caller can do about it.

use super::super::StorageError;
use crate::outbound::text_of;

/// Names a failure. Only some of S3's codes have an error of their own in the library; the rest are in the
/// text, which holds the store's answer.
pub(in crate::storage) fn explain(about: &str, error: &object_store::Error) -> StorageError {
    let about = about.to_owned();
    let text = text_of(error);
    let says = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
    match error {
        object_store::Error::NotFound { .. } if !says(&["NoSuchBucket"]) => StorageError::NotFound(about),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            StorageError::Refused(about, text)
        }
        _ if says(&["AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"]) => {
            StorageError::Refused(about, text)
        }
        _ if says(&["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"]) => StorageError::Full(about),
        _ if says(&["InvalidPart"]) => StorageError::PartChanged(about),
        _ => StorageError::Unavailable(about, text),
    }
}

/// The store's own word for what went wrong, where its answer is in the text.
pub(in crate::storage) fn code_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    Some(rest.split_once("</Code>")?.0)
}

/// Whether the store says that it did nothing because it has too much to do.
pub(in crate::storage) fn is_too_busy(error: &StorageError) -> bool {
    says_one_of(error, &["SlowDown", "ServiceUnavailable", "TooManyRequests"])
}

/// Whether the store says that it did nothing because something else went on at that key or, in a versitygw,
/// in the directory that the key stands for.
pub(in crate::storage) fn is_in_the_way(error: &StorageError) -> bool {
    says_one_of(error, &["OperationAborted", "ExistingObjectIsDirectory"])
}

fn says_one_of(error: &StorageError, codes: &[&str]) -> bool {
    let StorageError::Unavailable(_, text) = error else { return false };
    codes.iter().any(|code| text.contains(&format!("<Code>{code}</Code>")))
}
