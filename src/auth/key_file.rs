//! The file that a ring of keys lies in: made where there is none, readable for its owner alone, and never seen
//! half written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    keys::{KeyError, KeyRing, Kind},
    token::now,
};

/// Why a file of keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in it is no ring of keys.
    #[error("{path}: {source}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: KeyError,
    },
}

/// Reads the ring in a file.
///
/// # Errors
/// [`KeyFileError`]
pub fn read(path: &Path) -> Result<KeyRing, KeyFileError> {
    let text = fs::read_to_string(path).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
    KeyRing::read(&text).map_err(|source| KeyFileError::Content { path: path.to_owned(), source })
}

/// The same; where there is no file, makes one with a new key.
///
/// # Errors
/// [`KeyFileError`]
pub fn read_or_make(path: &Path) -> Result<KeyRing, KeyFileError> {
    match read(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let made = KeyRing::make(Kind::default(), now());
    let ring = made.map_err(|source| KeyFileError::Content { path: path.to_owned(), source })?;
    write(path, &ring)?;
    tracing::info!(path = %path.display(), "the key that signs tokens was made");
    Ok(ring)
}

/// Puts a ring into the file: readers see the old one or the new one, also after a power failure.
///
/// # Errors
/// [`KeyFileError::Io`]
pub fn write(path: &Path, ring: &KeyRing) -> Result<(), KeyFileError> {
    put(path, ring.text().as_bytes()).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })
}

fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What a crash left is in the way of a file that only its owner ever could read.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".keys");
        let made = read_or_make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_make(&path).unwrap().text(), made.text());
        fs::write(&path, "rubbish").unwrap();
        assert!(read_or_make(&path).unwrap_err().to_string().contains("no private key"));
    }
}
