//! Berth's settings: read once at start, from one file and the environment, into one tree of structs.
//!
//! This is the only reader of Berth's own settings; what clouds and tools define for themselves (`AWS_*`)
//! is left to the layers that speak to them. A mistake stops the start with one line that says the key,
//! where it came from, what was found and what is allowed. Nothing here acts on a setting.

mod address;
mod azure;
mod error;
mod events;
mod gcs;
mod layout;
mod pattern;
mod redis_url;
mod reference;
mod rules;
mod source;
mod text;
mod tree;
mod units;
mod who;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

pub use address::{
    CorsOrigin, IndexUrl, IssuerUrl, KeyPlace, Listen, Namespace, ProxyUrl, Realm, Site, StorageUrl, UrlStart,
};
pub use azure::{AccessTier, Azure};
pub use error::{ConfigError, Origin};
pub use events::{Endpoint, EndpointUrl, EventAction, EventFormat, Events, Headers, Topic, WebhookSecrets};
pub use gcs::Gcs;
pub use pattern::{AgentPattern, ClaimPattern, MediaTypePattern, RepositoryPattern, TagPattern};
pub use redis_url::{RedisLayout, RedisUrl};
pub use reference::reference;
pub use text::{
    CdnKey, FilePath, GoogleCredentials, KeyName, Keys, MASK, PrivateKey, Secret, StorageClass, Text, Word, Written,
};
pub use tree::{
    Admin, Anonymous, Auth, Cdn, CdnKind, Config, Index, Limits, Log, LogFormat, Oidc, Proxy, Redirect, Role, Rule, S3,
    S3Checksum, S3Encryption, Sentinel, Server, Storage, Tags, Tls, TlsVersion, Token, TokenIssuer,
};
pub use units::{Ceiling, LogFilter, Size};
pub use who::{Member, Who};

use layout::Section;
use source::{KeyPath, Setting, Settings, dotted};

/// The file that is read when nobody names one. It need not exist.
pub const DEFAULT_FILE: &str = "/etc/berth/berth.toml";

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct LoadArgs {
    /// `--config`
    pub config: Option<PathBuf>,
}

/// The configuration, and where each of its settings came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What counts.
    pub config: Config,
    /// Where it came from.
    pub sources: Sources,
}

/// Where settings came from, by key.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    origins: BTreeMap<String, Origin>,
    files: BTreeMap<String, PathBuf>,
}

impl Sources {
    /// Where the value of a key (`storage.url`) came from.
    pub fn of(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// The file that the value of a key was read from, where `<key>_file` named one.
    pub fn file_of(&self, key: &str) -> Option<&Path> {
        self.files.get(key).map(PathBuf::as_path)
    }

    fn any_under(&self, table: &str) -> bool {
        self.first_under(table).is_some()
    }

    fn first_under(&self, table: &str) -> Option<String> {
        self.origins.keys().find(|key| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))).cloned()
    }
}

/// The process's environment, for [`Config::load`].
///
/// # Errors
/// A variable of ours that isn't Unicode.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let ours = |name: &OsString| name.to_string_lossy().starts_with(source::PREFIX);
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        if ours(&name) && (name.to_str().is_none() || value.to_str().is_none()) {
            let key = name.to_string_lossy().into_owned();
            return Err(ConfigError::Value {
                origin: Origin::Variable(key.clone()),
                key,
                found: "found bytes that are not UTF-8".to_owned(),
                allowed: "want text".to_owned(),
            });
        }
        if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
            variables.push((name, value));
        }
    }
    Ok(variables)
}

/// The JSON Schema of the configuration file.
pub fn schema() -> serde_json::Value {
    layout::schema()
}

impl Config {
    /// Reads the file that `args`, the environment or the default names, lays the environment over it, and
    /// checks the whole.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(
        args: LoadArgs,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let root = layout::root();
        let mut settings = Settings::default();
        if let Some((path, text)) = read_file(&args, &environment)? {
            settings.read_file(&root, &path, &text)?;
        }
        settings.read_environment(&root, &environment)?;
        finish(&root, settings, &environment)
    }

    /// Checks text as if it were the file at `path`, without any environment.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
        let root = layout::root();
        let mut settings = Settings::default();
        settings.read_file(&root, path, text)?;
        finish(&root, settings, &BTreeMap::new())
    }
}

/// The file and its text; `None` if nobody named one and the default one isn't there.
fn read_file(
    args: &LoadArgs,
    environment: &BTreeMap<String, String>,
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let (path, named_by) = match (&args.config, environment.get(source::FILE_VARIABLE)) {
        (Some(path), _) => (path.clone(), "--config"),
        (None, Some(path)) => (PathBuf::from(path), source::FILE_VARIABLE),
        (None, None) => (PathBuf::from(DEFAULT_FILE), "default"),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if named_by == "default" && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfigError::Unreadable { path, named_by, reason: error.to_string() }),
    }
}

/// From what was set to the configuration.
fn finish(
    root: &Section,
    mut settings: Settings,
    environment: &BTreeMap<String, String>,
) -> Result<Loaded, ConfigError> {
    listen_on_port(&mut settings, environment)?;
    require(root, &settings)?;
    let sources = Sources {
        origins: settings.values.iter().map(|(path, set)| (dotted(path), set.origin.clone())).collect(),
        files: settings.files.iter().map(|(path, file)| (dotted(path), file.clone())).collect(),
    };
    let mut config = build(root, &settings)?;
    rules::settle(&mut config, &sources);
    rules::check(&config, &sources)?;
    Ok(Loaded { config, sources })
}

/// Honours `PORT` where nothing else says where to listen.
fn listen_on_port(settings: &mut Settings, environment: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let key: KeyPath = vec!["server".to_owned(), "listen".to_owned()];
    let Some(text) = environment.get("PORT").filter(|_| !settings.values.contains_key(&key)) else { return Ok(()) };
    let origin = Origin::Variable("PORT".to_owned());
    let Some(port) = text.parse::<u16>().ok().filter(|port| *port > 0) else {
        return Err(ConfigError::Value {
            key: dotted(&key),
            origin,
            found: format!("found {text:?}"),
            allowed: "want a port number from 1 to 65535".to_owned(),
        });
    };
    let access_is_set = settings.values.keys().any(|path| path.first().is_some_and(|table| table == "auth"));
    let address = rules::listen_on(port, access_is_set)[0];
    settings.values.insert(key, Setting { value: toml::Value::String(address.to_string()), origin });
    Ok(())
}

/// Refuses a named table that lacks a key without a default.
fn require(root: &Section, settings: &Settings) -> Result<(), ConfigError> {
    for (path, origin) in &settings.names {
        let Some(section) = source::find_named(root, path) else { continue };
        for key in &section.required {
            let path = [path.as_slice(), std::slice::from_ref(key)].concat();
            if settings.values.contains_key(&path) {
                continue;
            }
            let want = source::find_leaf(root, &path).map_or_else(String::new, |leaf| leaf.want.clone());
            return Err(ConfigError::Value {
                key: dotted(&path),
                origin: origin.clone(),
                found: "found nothing".to_owned(),
                allowed: format!("want {want}"),
            });
        }
    }
    Ok(())
}

/// Makes the tree, and says which value does not fit.
fn build(root: &Section, settings: &Settings) -> Result<Config, ConfigError> {
    let mut table = toml::Table::new();
    for (path, setting) in &settings.values {
        insert(&mut table, path, setting.value.clone());
    }
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| misfit(root, settings, &error))
}

/// Puts a value at its place, making the tables on the way.
fn insert(table: &mut toml::Table, path: &[String], value: toml::Value) {
    let [key, rest @ ..] = path else { return };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return;
    }
    let inner = table.entry(key.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let Some(inner) = inner.as_table_mut() {
        insert(inner, rest, value);
    }
}

fn misfit(root: &Section, settings: &Settings, error: &serde_path_to_error::Error<toml::de::Error>) -> ConfigError {
    use serde_path_to_error::Segment;

    let (mut path, mut item) = (KeyPath::new(), None);
    for segment in error.path() {
        match segment {
            Segment::Map { key } => path.push(key.clone()),
            Segment::Seq { index } => item = item.or(Some(*index)),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    let leaf = source::find_leaf(root, &path);
    let Some((leaf, setting)) = leaf.zip(settings.values.get(&path)) else {
        let reason = error.inner().message().to_owned();
        return ConfigError::Value {
            key: dotted(&path),
            origin: Origin::Default,
            found: reason,
            allowed: String::new(),
        };
    };
    let culprit = item.and_then(|index| setting.value.get(index)).unwrap_or(&setting.value);
    ConfigError::Value {
        key: dotted(&path),
        origin: setting.origin.clone(),
        found: source::found(culprit, Some(leaf)),
        allowed: format!("want {}", leaf.want),
    }
}

impl Loaded {
    /// The effective configuration as TOML, each line with where its value came from. Secrets are masked, and
    /// keys without a value are comments.
    pub fn render(&self) -> String {
        reference::effective(&layout::root(), self)
    }
}
