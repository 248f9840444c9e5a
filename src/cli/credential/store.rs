//! What is kept: for each registry, where its credential comes from.
//!
//! One file, `berth/credentials.json` in `$XDG_CONFIG_HOME` (else `~/.config`), for its owner's eyes alone. A
//! password that Docker was told to remember stands in it as Docker would keep it itself; no token does.

use std::{collections::BTreeMap, env, path::PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Trouble, private_file, source::Source};

/// The file. It need not exist.
pub(in crate::cli) struct Store {
    path: PathBuf,
}

#[derive(Default, Deserialize)]
struct Contents {
    #[serde(default)]
    registries: BTreeMap<String, Source>,
}

impl Store {
    /// The file of whoever runs this.
    pub(in crate::cli) fn open() -> Result<Self, Trouble> {
        let set = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        let directory = directory.ok_or_else(|| Trouble::Told("neither XDG_CONFIG_HOME nor HOME is set".to_owned()))?;
        Ok(Self { path: directory.join("berth").join("credentials.json") })
    }

    /// All registries of which something is known.
    pub(in crate::cli) fn all(&self) -> Result<BTreeMap<String, Source>, Trouble> {
        let Some(text) = private_file::read(&self.path)? else { return Ok(BTreeMap::new()) };
        // The parser's own words could quote a secret.
        let contents: Result<Contents, _> = serde_json::from_str(&text);
        Ok(contents.map_err(|_| self.is_foreign())?.registries)
    }

    fn is_foreign(&self) -> Trouble {
        Trouble::Told(format!("{}: not what was written there", self.path.display()))
    }

    /// Where a registry's credential comes from.
    pub(in crate::cli) fn of(&self, host: &str) -> Result<Source, Trouble> {
        self.all()?.remove(host).ok_or(Trouble::NotFound)
    }

    /// Says where it comes from, or with `None` forgets it.
    pub(in crate::cli) fn set(&self, host: &str, source: Option<Source>) -> Result<(), Trouble> {
        if source.is_none() && !self.all()?.contains_key(host) {
            return Ok(());
        }
        private_file::update(&self.path, |contents| {
            let whole = contents.as_object_mut();
            let registries = whole.map(|whole| whole.entry("registries").or_insert_with(|| json!({})));
            let registries = registries.and_then(Value::as_object_mut);
            let registries = registries.ok_or_else(|| self.is_foreign())?;
            match source {
                Some(source) => _ = registries.insert(host.to_owned(), json!(source)),
                None => _ = registries.remove(host),
            }
            Ok(())
        })
    }
}
