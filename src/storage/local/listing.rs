//! Listings, in byte order of the whole key, reading no directory that can't hold what was asked for.

use std::{fs, io};

use super::{
    super::{Page, Stat},
    StorageError,
    directory::{Directory, stat_of},
    explain,
};

/// One page; see [`super::super::Store::list`].
pub(super) fn list(directory: &Directory, prefix: &str, after: &str, limit: usize) -> Result<Page, StorageError> {
    check(prefix)?;
    let turn = directory.settled_turn(prefix);
    let mut after = after.to_owned();
    loop {
        let mut walk = Walk { directory, after: &after, most: limit + 1, found: Vec::new() };
        walk.enter(prefix).map_err(|error| explain(prefix, &error))?;
        let mut objects = walk.found;
        let more = objects.len() > limit;
        objects.truncate(limit);
        let last = objects.last().map(|(key, _)| key.clone());
        directory.retain_durable(&mut objects, turn);
        match last {
            // All of the page was too fresh to be shown, and its reader needs a last one to go on from.
            Some(last) if objects.is_empty() && more => after = last,
            _ => return Ok(Page { objects, more }),
        }
    }
}

/// A prefix is text from the caller, so it could name a place outside, or one that has no keys.
fn check(prefix: &str) -> Result<(), StorageError> {
    let folder = prefix.strip_suffix('/');
    let whole = prefix.is_empty() || folder.is_some_and(|folder| !folder.split('/').any(|part| part.is_empty()));
    if !whole || prefix.split('/').any(|part| part == ".." || part == ".") || prefix.contains('\0') {
        let problem = "a prefix is made of whole components and ends with a slash";
        return Err(StorageError::Refused(prefix.to_owned(), problem.to_owned()));
    }
    Ok(())
}

struct Walk<'a> {
    directory: &'a Directory,
    after: &'a str,
    most: usize,
    found: Vec<(String, Stat)>,
}

impl Walk<'_> {
    /// Adds what is in the directory `folder` (empty, or ending with a slash), up to the most.
    fn enter(&mut self, folder: &str) -> io::Result<()> {
        if folder.starts_with('.') {
            return Ok(());
        }
        for key in self.candidates(folder)? {
            if self.found.len() >= self.most {
                return Ok(());
            }
            if key.ends_with('/') {
                self.enter(&key)?;
                continue;
            }
            match fs::metadata(self.directory.path(&key)).and_then(|metadata| stat_of(&metadata)) {
                Ok(Some(stat)) => self.found.push((key, stat)),
                Ok(None) => {}
                // Deleted since its directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The keys in a directory, and the folders with a slash at the end, that may come after, sorted: with
    /// its slash a folder sorts where the keys in it do.
    fn candidates(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.directory.path(folder)) {
            Ok(entries) => entries,
            // Never made, or removed since it was seen.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry?;
            // What isn't UTF-8 isn't a key.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let hidden = folder.is_empty() && name.starts_with('.');
            let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
            let key = format!("{folder}{name}{slash}");
            let wanted = key.as_str() > self.after || (!slash.is_empty() && self.after.starts_with(&key));
            if wanted && !hidden {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }
}
