//! The settings as people read them: the reference in `docs/`, and the effective configuration.

use super::{
    DEFAULT_FILE, Loaded,
    layout::{self, Leaf, Node, Section},
    source::{KeyPath, dotted, variable},
};

/// How the reference begins: where settings come from.
const INTRODUCTION: &str = "# Configuration

<!-- Generated from the doc comments in src/config/tree.rs: `make docs-config` writes it, a test compares. -->

Berth needs no configuration to run on one machine. What differs is set in one TOML file, in the environment, or in
both; the environment wins.

- **The file** is the one that `--config` names, else the one that `BERTH_CONFIG` names, else `/etc/berth/berth.toml`,
  which need not exist. Berth never looks into the working directory.
- **The environment** has a variable for each key: `BERTH_` and the path in capitals, with `__` between levels, so
  `storage.url` is `BERTH_STORAGE__URL`. A list is separated by commas. In the name of a table of your own (a rule),
  `-` and `.` become `_`; two names that become the same are refused.
- **A secret** can also be read from a file: put `_file` after the key (`_FILE` after the variable) and give it the
  path. A line break at the end of the file is no part of the secret.
- **`PORT`**, which many platforms set, counts where `server.listen` is not set. Berth then listens on `0.0.0.0` and
  that port, as such a platform expects, once anything in `[auth]` is set; before that on `127.0.0.1`, so that an open
  registry is never put on a network by accident.
- **`AWS_*`** keep their meaning for what `[storage.s3]` leaves open.

A mistake stops the start, with one line that says the key, where it came from, what was found and what is allowed. A
key or a `BERTH_` variable that doesn't exist is a mistake, but for the variables that Kubernetes sets by itself for a
Service called `berth` (`BERTH_SERVICE_HOST`, `BERTH_PORT_5000_TCP` and the like).

`berth config check` prints what counts, line by line with where it came from. `berth config schema` prints the JSON
Schema of the file.

Spans of time are a number and a unit: `ms`, `s`, `m` or `h`. Sizes likewise: `B`, `KiB`, `MiB` or `GiB`.
";

/// The reference of all settings, as Markdown: what `docs/configuration.md` holds.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    describe(&layout::root(), &mut KeyPath::new(), &mut page);
    page
}

/// Values come before the tables inside, as in TOML.
fn describe(section: &Section, path: &mut KeyPath, page: &mut String) {
    let is_leaf = |node: &Node| matches!(node, Node::Leaf(_));
    for values in [true, false] {
        for (key, node) in section.keys.iter().filter(|(_, node)| is_leaf(node) == values) {
            path.push(key.clone());
            match node {
                Node::Leaf(leaf) => describe_leaf(leaf, section, path, page),
                Node::Section(inner) => {
                    page.push_str(&format!("\n## `[{}]`\n\n{}\n", shown(path), prose(&inner.doc)));
                    describe(inner, path, page);
                }
                Node::Named { doc, each } => {
                    path.push("<name>".to_owned());
                    page.push_str(&format!("\n## `[{}]`\n\n{}\n", shown(path), prose(doc)));
                    describe(each, path, page);
                    path.pop();
                }
                Node::Values(each) => {
                    page.push_str(&format!("\n## `[{}]`\n", shown(path)));
                    path.push("<name>".to_owned());
                    describe_leaf(each, &Section::default(), path, page);
                    path.pop();
                }
            }
            path.pop();
        }
    }
}

fn describe_leaf(leaf: &Leaf, section: &Section, path: &[String], page: &mut String) {
    let required = section.required.iter().any(|key| Some(key) == path.last());
    let default = match &leaf.default {
        Some(default) => format!("Default: {default}"),
        None if required => "Required".to_owned(),
        None => "Not set by default".to_owned(),
    };
    let file = if leaf.secret { format!(", or `{}_FILE`", variable(path)) } else { String::new() };
    page.push_str(&format!(
        "\n### `{}`\n\n{}\n\n- {default}\n- Allowed: {}\n- Environment: `{}`{file}\n",
        shown(path),
        prose(&leaf.doc),
        leaf.want.replace('*', "\\*").replace('<', "\\<"),
        variable(path),
    ));
}

fn shown(path: &[String]) -> String {
    dotted(path).replace("\"<name>\"", "<name>")
}

/// A doc comment's paragraphs, each on one line, so that where the source wraps doesn't matter.
fn prose(doc: &str) -> String {
    let paragraphs = doc.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// The effective configuration as TOML, each line with where its value came from.
pub(super) fn effective(root: &Section, loaded: &Loaded) -> String {
    let mut page = format!("# The configuration that counts. Without --config and BERTH_CONFIG: {DEFAULT_FILE}.\n");
    let values = toml::Table::try_from(&loaded.config).unwrap_or_default();
    write_section(root, &values, &mut KeyPath::new(), loaded, &mut page);
    page
}

fn write_section(section: &Section, values: &toml::Table, path: &mut KeyPath, loaded: &Loaded, page: &mut String) {
    for (key, node) in &section.keys {
        let Node::Leaf(_) = node else { continue };
        path.push(key.clone());
        match values.get(key) {
            Some(value) => page.push_str(&format!("{key} = {value} # {}\n", origin(path, loaded))),
            None => page.push_str(&format!("# {key} is not set\n")),
        }
        path.pop();
    }
    let nothing = toml::Table::new();
    for (key, node) in &section.keys {
        path.push(key.clone());
        let inside = values.get(key).and_then(toml::Value::as_table).unwrap_or(&nothing);
        match node {
            Node::Leaf(_) => {}
            Node::Section(inner) => write_table(inner, inside, path, loaded, page),
            Node::Named { each, .. } => {
                for (name, table) in inside {
                    path.push(name.clone());
                    write_table(each, table.as_table().unwrap_or(&nothing), path, loaded, page);
                    path.pop();
                }
            }
            Node::Values(_) => write_values(inside, path, loaded, page),
        }
        path.pop();
    }
}

/// A table whose keys are the operator's own.
fn write_values(values: &toml::Table, path: &mut KeyPath, loaded: &Loaded, page: &mut String) {
    if values.is_empty() {
        return;
    }
    page.push_str(&format!("\n[{}]\n", dotted(path)));
    for (name, value) in values {
        path.push(name.clone());
        page.push_str(&format!("{} = {value} # {}\n", dotted(&path[path.len() - 1..]), origin(path, loaded)));
        path.pop();
    }
}

/// Where the value of a key came from, fit for a comment.
fn origin(path: &[String], loaded: &Loaded) -> String {
    loaded.sources.of(&dotted(path)).to_string().replace(char::is_control, "?")
}

fn write_table(section: &Section, values: &toml::Table, path: &mut KeyPath, loaded: &Loaded, page: &mut String) {
    page.push_str(&format!("\n[{}]\n", dotted(path)));
    write_section(section, values, path, loaded, page);
}
