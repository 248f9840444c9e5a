//! A file of JSON that others must not read and that is never half written.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use serde_json::Value;

use super::Trouble;

/// Reads it; `None` if it isn't there.
pub(in crate::cli) fn read(path: &Path) -> Result<Option<String>, Trouble> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(told(path, &error)),
    }
}

/// Replaces it by what `change` makes of it, all at once; it is handed an empty object where there is no file. A
/// new file, and a new directory for it, are their owner's alone; an old file keeps its permissions.
pub(in crate::cli) fn update(
    path: &Path,
    change: impl FnOnce(&mut Value) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    // A link, as to a directory of settings under version control, stays one.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().ok_or_else(|| Trouble::Told(format!("{}: not a file", path.display())))?;
    make_private(directory).map_err(|error| told(directory, &error))?;
    // Two that change the file at once take turns; what is locked is the directory, as the file is replaced.
    let lock = File::open(directory).map_err(|error| told(directory, &error))?;
    lock.lock().map_err(|error| told(directory, &error))?;
    let text = read(&path)?.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "{}".to_owned());
    let mut value = serde_json::from_str(&text)
        .map_err(|error| Trouble::Told(format!("{}: line {}: not JSON", path.display(), error.line())))?;
    change(&mut value)?;
    replace(&path, &value).map_err(|error| told(&path, &error))
}

fn make_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
}

fn replace(path: &Path, value: &Value) -> io::Result<()> {
    // Docker indents by tabs; so the file looks the same whoever wrote it last.
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut text, format))?;
    text.push(b'\n');
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = write_private(&new, path, &text).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // It may not have come to be.
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_private(new: &Path, old: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    if let Ok(before) = fs::metadata(old) {
        file.set_permissions(before.permissions())?;
    }
    file.write_all(text)?;
    file.sync_all()
}

fn told(path: &Path, error: &io::Error) -> Trouble {
    Trouble::Told(format!("{}: {error}", path.display()))
}
