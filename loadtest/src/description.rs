//! A registry as a small file describes it: what to run, with which configuration, and how to tell that it answers.
//!
//! Nothing here knows any registry. What a description says is run as it stands, by whoever wrote it.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::login::Login;

/// A description file. Where it says so, `{address}`, `{port}`, `{spare}`, `{dir}` and `{config}` are filled in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Description {
    /// What the report calls it.
    pub(crate) name: String,
    /// The program and its arguments, filled in. The process must be the server: its CPU time and memory are read.
    pub(crate) command: Vec<String>,
    /// What the same program is given to say its version; the last word that it prints counts.
    pub(crate) version: Vec<String>,
    /// What installs the program where it is missing, with `{tools}` for where to.
    #[serde(default)]
    pub(crate) install: Vec<String>,
    /// The configuration's text, filled in.
    config: Option<String>,
    /// What its file is called, for those who go by that.
    #[serde(default = "config_file")]
    config_file: String,
    /// The environment, filled in. There is nothing else in it.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    /// What answers 200 or 401 once it serves.
    #[serde(default = "ready")]
    pub(crate) ready: String,
    /// Who asks, where a login is needed.
    pub(crate) login: Option<Login>,
    /// Only the workloads whose name contains one of these, for a server that differs from another in those alone.
    #[serde(default)]
    pub(crate) only: Vec<String>,
}

fn config_file() -> String {
    "config".to_owned()
}

fn ready() -> String {
    "/v2/".to_owned()
}

/// What is run in the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Description {
    /// Reads one.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// The text of one.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let description: Self = toml::from_str(text)?;
        ensure!(!description.name.is_empty() && !description.name.contains('/'), "name: a word or two, without `/`");
        ensure!(!description.command.is_empty(), "command: it names no program");
        ensure!(description.ready.starts_with('/'), "ready: {}: a path begins with `/`", description.ready);
        ensure!(
            !Path::new(&description.config_file).is_absolute(),
            "config_file: {}: it is written where the server's data is",
            description.config_file
        );
        let values = description.command.iter().chain(description.environment.values());
        let names_config = values.into_iter().any(|value| value.contains("{config}"));
        ensure!(!names_config || description.config.is_some(), "{{config}} is named, but there is no `config`");
        Ok(description)
    }

    /// Fills everything in and writes the configuration. All the server's files are in `directory`.
    pub(crate) fn fill(&self, directory: &Path, address: SocketAddr, spare: SocketAddr) -> Result<Filled> {
        let file = directory.join(&self.config_file);
        let filled = |text: &str| {
            text.replace("{address}", &address.to_string())
                .replace("{port}", &address.port().to_string())
                .replace("{spare}", &spare.port().to_string())
                .replace("{dir}", &directory.display().to_string())
                .replace("{config}", &file.display().to_string())
        };
        if let Some(config) = &self.config {
            fs::write(&file, filled(config))?;
        }
        let arguments = self.command.iter().skip(1).map(|argument| filled(argument)).collect();
        let environment = self.environment.iter().map(|(key, value)| (key.clone(), filled(value))).collect();
        Ok(Filled { arguments, environment })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const EXAMPLE: &str = "name = \"Example\"\n\
        command = [\"bin/example\", \"serve\", \"{config}\"]\n\
        version = [\"version\"]\n\
        config_file = \"example.json\"\n\
        config = '{\"port\": {port}, \"store\": \"{dir}/data\"}'\n\
        [environment]\n\
        OTHER = \"127.0.0.1:{spare}\"\n";

    #[test]
    fn places_are_filled_in() {
        let directory = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (address, spare) = ("127.0.0.1:5000".parse().unwrap(), "127.0.0.1:5001".parse().unwrap());
        let filled = Description::parse(EXAMPLE).unwrap().fill(&directory, address, spare).unwrap();
        let (config, at) = (directory.join("example.json"), directory.display());
        assert_eq!(filled.arguments, ["serve".to_owned(), config.display().to_string()]);
        assert_eq!(filled.environment, [("OTHER".to_owned(), "127.0.0.1:5001".to_owned())]);
        let written = fs::read_to_string(config).unwrap();
        assert_eq!(written, format!("{{\"port\": 5000, \"store\": \"{at}/data\"}}"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_mistake_is_named() {
        let error = |text: &str| Description::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(error(&EXAMPLE.replace("version =", "versoin =")).contains("versoin"));
        assert!(
            error(&EXAMPLE.replace("config =", "[environment]\nconfig =").replace("\n[environment]\nO", "\nO"))
                .contains("{config}")
        );
        assert!(error("name = \"a\"\ncommand = []\nversion = []\n").contains("command"));
        assert!(error("name = \"a\"\ncommand = [\"a\"]\nversion = []\nready = \"v2\"\n").contains("ready"));
    }

    #[test]
    fn those_that_come_with_it_can_be_read() {
        let mut names = Vec::new();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/servers")).unwrap() {
            names.push(Description::read(&entry.unwrap().path()).unwrap().name);
        }
        names.sort_unstable();
        assert_eq!(names, ["Berth", "Berth, sync off", "Distribution"]);
    }
}
