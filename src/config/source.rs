//! Gathering: what the file and the environment set, each value with where it came from. Which keys there
//! are is [`layout`](super::layout)'s to say, what values mean is the tree's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    error::{ConfigError, Origin},
    layout::{Leaf, Node, Section, Shape},
    text::MASK,
};

/// What every variable of ours begins with.
pub(super) const PREFIX: &str = "BERTH_";
/// The variable that names the file.
pub(super) const FILE_VARIABLE: &str = "BERTH_CONFIG";

/// A key: the names of the tables, then its own.
pub(super) type KeyPath = Vec<String>;

/// One value that was set.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: toml::Value,
    pub(super) origin: Origin,
}

/// All values that were set, and the named tables that were opened.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) values: BTreeMap<KeyPath, Setting>,
    /// The files that values were read from, where a `<key>_file` named one.
    pub(super) files: BTreeMap<KeyPath, PathBuf>,
    /// Named tables, also empty ones.
    pub(super) names: BTreeMap<KeyPath, Origin>,
}

/// A key as it is written in TOML: `auth.rules."a.b".role`.
pub(super) fn dotted(path: &[String]) -> String {
    let bare = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let parts = path.iter().map(|part| if bare(part) && !part.is_empty() { part.clone() } else { format!("{part:?}") });
    parts.collect::<Vec<_>>().join(".")
}

/// The variable that sets a key.
pub(super) fn variable(path: &[String]) -> String {
    let parts: Vec<String> = path.iter().map(|part| environment_form(part)).collect();
    format!("{PREFIX}{}", parts.join("__"))
}

/// A table's name or a key as it stands in the name of a variable.
fn environment_form(part: &str) -> String {
    part.to_uppercase().replace(['-', '.'], "_")
}

/// A name for a table: words of letters and digits with single separators between them, so that it has a
/// form in the environment that can't be taken for two levels.
fn is_name(name: &str) -> bool {
    name.split(['-', '.', '_']).all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What was found, shown so that no secret is.
pub(super) fn found(value: &toml::Value, leaf: Option<&Leaf>) -> String {
    let shown = match value {
        toml::Value::Table(_) => return "found a table".to_owned(),
        // What may hold a secret is shown only where it plainly doesn't.
        toml::Value::String(text) if leaf.is_some_and(|leaf| hides(leaf, text)) => MASK.to_owned(),
        toml::Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    let short: String = shown.chars().take(120).collect();
    format!("found {short}{}", if short.len() < shown.len() { "…" } else { "" })
}

fn hides(leaf: &Leaf, text: &str) -> bool {
    let may_only_hold_one = leaf.want.contains("redis://");
    leaf.secret && (!may_only_hold_one || text.contains('@'))
}

impl Settings {
    /// Adds what the file sets.
    pub(super) fn read_file(&mut self, root: &Section, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file = File { path: Arc::new(path.to_owned()), text, root };
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            at: file.origin(error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        })?;
        let mut layer = Self::default();
        file.read_section(root, document.get_ref(), &mut Vec::new(), &mut layer)?;
        layer.refuse_collisions()?;
        layer.resolve_secret_files(root)?;
        self.lay_over(layer);
        Ok(())
    }

    /// Adds what the environment sets, over what the file did.
    pub(super) fn read_environment(
        &mut self,
        root: &Section,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), ConfigError> {
        let mut layer = Self::default();
        for (name, text) in environment {
            if !name.starts_with(PREFIX) || name == FILE_VARIABLE || is_kubernetes(name, text) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            let Some((path, shape)) = self.find_variable(root, name) else {
                let meant = self.nearest_variable(root, name);
                return Err(ConfigError::Unknown { key: name.clone(), origin, meant });
            };
            layer.open_names(root, &path, &origin);
            layer.values.insert(path, Setting { value: from_text(text, shape), origin });
        }
        layer.resolve_secret_files(root)?;
        self.lay_over(layer);
        Ok(())
    }

    fn lay_over(&mut self, layer: Self) {
        self.files.retain(|path, _| !layer.values.contains_key(path));
        self.files.extend(layer.files);
        self.values.extend(layer.values);
        for (path, origin) in layer.names {
            self.names.entry(path).or_insert(origin);
        }
    }

    /// The key that a variable sets. A name that the file has already given to a table is meant by any
    /// variable that spells it; one that it hasn't is in lower case.
    fn find_variable(&self, root: &Section, name: &str) -> Option<(KeyPath, Shape)> {
        let parts: Vec<&str> = name.strip_prefix(PREFIX)?.split("__").collect();
        let (last, tables) = parts.split_last()?;
        let (mut section, mut path, mut tables) = (root, KeyPath::new(), tables.iter());
        while let Some(table) = tables.next() {
            let (key, node) = section.keys.iter().find(|(key, _)| environment_form(key) == *table)?;
            path.push(key.clone());
            section = match node {
                Node::Section(inner) => inner,
                Node::Named { each, .. } => {
                    path.push(self.name_of(&path, tables.next()?)?);
                    each
                }
                Node::Values(each) => {
                    path.push(self.name_of(&path, last)?);
                    return tables.next().is_none().then_some((path, each.shape));
                }
                Node::Leaf(_) => return None,
            };
        }
        let (key, shape) = leaf_names(section).find(|(key, _)| environment_form(key) == *last)?;
        path.push(key);
        Some((path, shape))
    }

    fn name_of(&self, table: &[String], spelt: &str) -> Option<String> {
        let inside = self.names.keys().filter(|path| path.len() == table.len() + 1 && path.starts_with(table));
        let known = inside.filter_map(|path| path.last()).find(|name| environment_form(name) == spelt);
        let fresh = spelt.to_lowercase();
        let well_spelt = is_name(&fresh) && environment_form(&fresh) == spelt;
        known.cloned().or_else(|| well_spelt.then_some(fresh))
    }

    /// Notes the named tables on the way to a key.
    fn open_names(&mut self, root: &Section, path: &[String], origin: &Origin) {
        let mut section = root;
        for (depth, part) in path.iter().enumerate() {
            match section.keys.get(part) {
                Some(Node::Section(inner)) => section = inner,
                Some(Node::Named { .. } | Node::Values(_)) => {
                    self.names.insert(path[..depth + 2].to_vec(), origin.clone());
                    return;
                }
                Some(Node::Leaf(_)) | None => return,
            }
        }
    }

    fn nearest_variable(&self, root: &Section, name: &str) -> Option<String> {
        let mut candidates: Vec<String> = every_key(root).iter().map(|path| variable(path)).collect();
        // The names of tables are the operator's own, so they are taken as they were spelt.
        let parts: Vec<&str> = name.split("__").collect();
        if let [_, _, spelt, ..] = parts.as_slice() {
            candidates.iter_mut().for_each(|known| *known = known.replace("<NAME>", spelt));
        }
        nearest(name, &candidates)
    }

    fn refuse_collisions(&self) -> Result<(), ConfigError> {
        let mut seen: BTreeMap<String, &KeyPath> = BTreeMap::new();
        for (path, origin) in &self.names {
            if let Some(other) = seen.insert(variable(path), path) {
                return Err(ConfigError::Value {
                    key: dotted(path),
                    origin: origin.clone(),
                    found: format!("found a name that in the environment is the same as {}", dotted(other)),
                    allowed: format!("want names that differ in {}", variable(path)),
                });
            }
        }
        Ok(())
    }

    /// Puts the content of each `<key>_file` in the place of its key.
    fn resolve_secret_files(&mut self, root: &Section) -> Result<(), ConfigError> {
        let pointers: Vec<KeyPath> =
            self.values.keys().filter(|path| find_leaf(root, path).is_none()).cloned().collect();
        for pointer in pointers {
            let Some(Setting { value, origin }) = self.values.remove(&pointer) else { continue };
            let fail = |found: String, allowed: String| ConfigError::Value {
                key: dotted(&pointer),
                origin: origin.clone(),
                found,
                allowed,
            };
            let mut key = pointer.clone();
            if let Some(last) = key.last_mut() {
                last.truncate(last.len() - "_file".len());
            }
            if self.values.contains_key(&key) {
                return Err(fail(format!("found beside {}", dotted(&key)), "want one of the two".to_owned()));
            }
            let toml::Value::String(path) = &value else {
                return Err(fail(found(&value, None), "want the path of a file".to_owned()));
            };
            let text = std::fs::read_to_string(path).map_err(|error| {
                fail(format!("found {path:?}, which cannot be read ({error})"), "want the path of a file".to_owned())
            })?;
            self.files.insert(key.clone(), path.into());
            let secret = text.trim_end_matches(['\n', '\r']).to_owned();
            self.values.insert(key, Setting { value: toml::Value::String(secret), origin });
        }
        Ok(())
    }
}

/// A configuration file while it is read.
struct File<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
    root: &'a Section,
}

impl File<'_> {
    fn origin(&self, byte: usize) -> Origin {
        let before = &self.text.as_bytes()[..byte.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Origin::File { path: self.path.clone(), line }
    }

    fn read_section(
        &self,
        section: &Section,
        table: &DeTable<'_>,
        path: &mut KeyPath,
        layer: &mut Settings,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            let origin = self.origin(key.span().start);
            match section.keys.get(key.get_ref().as_ref()) {
                Some(Node::Section(inner)) => {
                    self.read_section(inner, self.table(value, path, &origin)?, path, layer)?;
                }
                Some(Node::Named { each, .. }) => {
                    let read = |value: &Spanned<DeValue<'_>>, path: &mut KeyPath, origin, layer: &mut Settings| {
                        self.read_section(each, self.table(value, path, &origin)?, path, layer)
                    };
                    self.read_names(self.table(value, path, &origin)?, path, layer, read)?;
                }
                Some(Node::Values(_)) => {
                    let read = |value: &Spanned<DeValue<'_>>, path: &mut KeyPath, origin, layer: &mut Settings| {
                        self.read_value(value, path, origin, layer)
                    };
                    self.read_names(self.table(value, path, &origin)?, path, layer, read)?;
                }
                Some(Node::Leaf(_)) => self.read_value(value, path, origin, layer)?,
                None if is_secret_file(section, key.get_ref()) => self.read_value(value, path, origin, layer)?,
                None => return Err(self.unknown(section, path, origin)),
            }
            path.pop();
        }
        Ok(())
    }

    /// Reads a table of the operator's own names, each by `read`.
    fn read_names(
        &self,
        table: &DeTable<'_>,
        path: &mut KeyPath,
        layer: &mut Settings,
        read: impl Fn(&Spanned<DeValue<'_>>, &mut KeyPath, Origin, &mut Settings) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            path.push(name.get_ref().to_string());
            let origin = self.origin(name.span().start);
            if !is_name(name.get_ref()) {
                return Err(ConfigError::Value {
                    key: dotted(path),
                    origin,
                    found: format!("found the name {:?}", name.get_ref()),
                    allowed: "want letters and digits with single '-', '.' or '_' between them".to_owned(),
                });
            }
            layer.names.insert(path.clone(), origin.clone());
            read(value, path, origin, layer)?;
            path.pop();
        }
        Ok(())
    }

    fn table<'t, 'i>(
        &self,
        value: &'t Spanned<DeValue<'i>>,
        path: &[String],
        origin: &Origin,
    ) -> Result<&'t DeTable<'i>, ConfigError> {
        value.get_ref().as_table().ok_or_else(|| ConfigError::Value {
            key: dotted(path),
            origin: origin.clone(),
            found: "found a value".to_owned(),
            allowed: "want a table".to_owned(),
        })
    }

    fn read_value(
        &self,
        value: &Spanned<DeValue<'_>>,
        path: &[String],
        origin: Origin,
        layer: &mut Settings,
    ) -> Result<(), ConfigError> {
        let read = toml::Value::deserialize(ValueDeserializer::from(value.clone()));
        let value = read.map_err(|error| ConfigError::Value {
            key: dotted(path),
            origin: origin.clone(),
            found: "found what cannot be read".to_owned(),
            allowed: error.message().to_owned(),
        })?;
        layer.values.insert(path.to_vec(), Setting { value, origin });
        Ok(())
    }

    fn unknown(&self, section: &Section, path: &[String], origin: Origin) -> ConfigError {
        let (tables, last) = path.split_at(path.len() - 1);
        let here: Vec<String> = section.keys.keys().cloned().collect();
        let beside = nearest(&last[0], &here).map(|key| [tables, &[key]].concat());
        // The right key in the wrong table is a common mistake: `listen` at the top.
        let elsewhere = every_key(self.root).into_iter().filter(|known| known.last() == path.last());
        let meant: Vec<String> = match beside {
            Some(beside) => vec![dotted(&beside)],
            None => elsewhere.map(|known| dotted(&known).replace("\"<name>\"", "<name>")).collect(),
        };
        let meant = (!meant.is_empty()).then(|| meant.join(" or "));
        ConfigError::Unknown { key: dotted(path), origin, meant }
    }
}

/// The leaf at a path, if there is one.
pub(super) fn find_leaf<'a>(root: &'a Section, path: &[String]) -> Option<&'a Leaf> {
    let (mut section, mut parts) = (root, path.iter());
    while let Some(part) = parts.next() {
        match section.keys.get(part)? {
            Node::Section(inner) => section = inner,
            Node::Named { each, .. } => {
                parts.next()?;
                section = each;
            }
            Node::Values(each) => return (parts.len() == 1).then_some(each),
            Node::Leaf(leaf) => return parts.next().is_none().then_some(leaf),
        }
    }
    None
}

/// Every key there is, with `<name>` for a name that the operator chooses.
pub(super) fn every_key(root: &Section) -> Vec<KeyPath> {
    let mut keys = Vec::new();
    let mut open = vec![(KeyPath::new(), root)];
    while let Some((path, section)) = open.pop() {
        for (key, node) in &section.keys {
            let mut path = path.clone();
            path.push(key.clone());
            match node {
                Node::Section(inner) => open.push((path, inner)),
                Node::Named { each, .. } => {
                    path.push("<name>".to_owned());
                    open.push((path, each));
                }
                Node::Values(_) => {
                    path.push("<name>".to_owned());
                    keys.push(path);
                }
                Node::Leaf(_) => keys.push(path),
            }
        }
    }
    keys.sort();
    keys
}

/// The keys of a section that hold values, `<key>_file` among them.
fn leaf_names(section: &Section) -> impl Iterator<Item = (String, Shape)> {
    section.keys.iter().flat_map(|(key, node)| {
        let Node::Leaf(leaf) = node else { return Vec::new() };
        let mut names = vec![(key.clone(), leaf.shape)];
        if leaf.secret {
            names.push((format!("{key}_file"), Shape::Text));
        }
        names
    })
}

fn is_secret_file(section: &Section, key: &str) -> bool {
    let secret = key.strip_suffix("_file").and_then(|secret| section.keys.get(secret));
    matches!(secret, Some(Node::Leaf(leaf)) if leaf.secret)
}

fn from_text(text: &str, shape: Shape) -> toml::Value {
    let plain = || toml::Value::String(text.to_owned());
    match shape {
        Shape::Text => plain(),
        Shape::Boolean => text.parse().map_or_else(|_| plain(), toml::Value::Boolean),
        Shape::Integer => text.parse().map_or_else(|_| plain(), toml::Value::Integer),
        Shape::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect())
        }
    }
}

/// What Kubernetes puts into every container of a namespace that has a Service called `berth` or `berth-…`:
/// `BERTH_SERVICE_HOST`, `BERTH_PORT=tcp://…`, `BERTH_PORT_5000_TCP_ADDR` and the like. Nobody set them.
fn is_kubernetes(name: &str, text: &str) -> bool {
    if name.contains("__") {
        return false;
    }
    let numbered = name.split("_PORT_").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let url = name.ends_with("_PORT") && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || numbered || url
}

/// The candidate that is fewest typing mistakes away, if they are few.
fn nearest(word: &str, candidates: &[String]) -> Option<String> {
    // One mistake in four characters; in a long name no more than three.
    let most = (word.len() / 4).clamp(1, 3);
    let distances = candidates.iter().map(|known| (strsim::damerau_levenshtein(word, known), known));
    distances.filter(|(distance, _)| *distance <= most).min().map(|(_, known)| known.clone())
}

/// What the named table at a path may hold.
pub(super) fn find_named<'a>(root: &'a Section, path: &[String]) -> Option<&'a Section> {
    let (mut section, mut parts) = (root, path.iter());
    while let Some(part) = parts.next() {
        match section.keys.get(part)? {
            Node::Section(inner) => section = inner,
            Node::Named { each, .. } => {
                parts.next()?;
                section = each;
            }
            Node::Values(_) | Node::Leaf(_) => return None,
        }
    }
    Some(section)
}
