//! Which keys there are: read from the JSON Schema of the tree, so that what is accepted, what is suggested
//! and what is documented is one thing.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::tree::Config;

/// One node of the tree of settings.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A table whose keys are fixed.
    Section(Section),
    /// A table whose keys are names that the operator chooses, each for a section.
    Named {
        /// What the doc comment says.
        doc: String,
        /// What each name holds.
        each: Section,
    },
    /// A table whose keys are names that the operator chooses, each for a value.
    Values(Leaf),
    /// A value.
    Leaf(Leaf),
}

/// A table whose keys are fixed.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    /// What the doc comment says.
    pub(super) doc: String,
    /// By key.
    pub(super) keys: BTreeMap<String, Node>,
    /// The keys that have no default.
    pub(super) required: Vec<String>,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// What the doc comment says.
    pub(super) doc: String,
    /// What is allowed, as the end of the sentence "want …".
    pub(super) want: String,
    /// How its text in an environment variable becomes a value.
    pub(super) shape: Shape,
    /// Whether it is, or may hold, a secret.
    pub(super) secret: bool,
    /// The default, as Markdown; `None` where there is none.
    pub(super) default: Option<String>,
}

/// How the text in an environment variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// As it is.
    Text,
    /// `true` or `false`.
    Boolean,
    /// Digits.
    Integer,
    /// Separated by commas.
    List,
}

/// The JSON Schema of the file, without our own annotations.
pub(super) fn schema() -> Value {
    let mut schema = annotated();
    finish(&mut schema);
    schema
}

/// All settings.
pub(super) fn root() -> Section {
    section(&annotated())
}

/// The schema with the annotations (`x-want`, `x-secret`, `x-default`) that this module reads.
fn annotated() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

fn section(schema: &Value) -> Section {
    let mut section = Section { doc: description(schema), ..Section::default() };
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        section.keys.insert(key.clone(), node(value));
    }
    let required = schema["required"].as_array().into_iter().flatten();
    section.required = required.filter_map(Value::as_str).map(str::to_owned).collect();
    section
}

fn node(schema: &Value) -> Node {
    if schema.get("properties").is_some() {
        return Node::Section(section(schema));
    }
    let each = &schema["additionalProperties"];
    if each.get("properties").is_some() {
        return Node::Named { doc: description(schema), each: section(each) };
    }
    if each.is_object() {
        return Node::Values(Leaf { doc: description(schema), ..leaf(each) });
    }
    Node::Leaf(leaf(schema))
}

fn leaf(schema: &Value) -> Leaf {
    Leaf {
        doc: description(schema),
        want: want(schema),
        shape: shape(schema),
        secret: schema["x-secret"] == json!(true),
        default: default(schema),
    }
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().to_owned()
}

fn default(schema: &Value) -> Option<String> {
    if let Some(text) = schema["x-default"].as_str() {
        return Some(text.to_owned());
    }
    match schema.get("default") {
        None | Some(Value::Null) => None,
        Some(value) => Some(format!("`{value}`")),
    }
}

/// Whether the schema takes a value of this JSON type.
fn takes(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    }
}

fn shape(schema: &Value) -> Shape {
    if takes(schema, "array") {
        return Shape::List;
    }
    if takes(schema, "boolean") {
        return Shape::Boolean;
    }
    if takes(schema, "integer") { Shape::Integer } else { Shape::Text }
}

fn want(schema: &Value) -> String {
    // An optional value is "this or null" to the schema; TOML has no null.
    if let Some(given) = schema["anyOf"].as_array().and_then(|several| several.first()) {
        return want(given);
    }
    if let Some(text) = schema["x-want"].as_str() {
        return text.to_owned();
    }
    let words = words(schema);
    if !words.is_empty() {
        return format!("one of {}", words.join(", "));
    }
    match shape(schema) {
        Shape::List => format!("a list, and in it {}", want(&schema["items"])),
        Shape::Boolean => "true or false".to_owned(),
        Shape::Integer => format!("a whole number from {} to {}", schema["minimum"], u32::MAX),
        Shape::Text => "text".to_owned(),
    }
}

/// The words that an enum is written with.
fn words(schema: &Value) -> Vec<String> {
    let plain = schema["enum"].as_array().into_iter().flatten();
    let documented = schema["oneOf"].as_array().into_iter().flatten().flat_map(|variant| {
        let several = variant["enum"].as_array().into_iter().flatten();
        several.chain(variant.get("const"))
    });
    plain.chain(documented).map(Value::to_string).collect()
}

/// Adds `<key>_file` beside each secret, and takes our annotations away.
fn finish(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else {
        for item in schema.as_array_mut().into_iter().flatten() {
            finish(item);
        }
        return;
    };
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        add_secret_files(properties);
    }
    map.retain(|key, _| !key.starts_with("x-"));
    for value in map.values_mut() {
        finish(value);
    }
}

fn add_secret_files(properties: &mut Map<String, Value>) {
    let secrets: Vec<String> = properties.keys().filter(|key| is_secret(&properties[key.as_str()])).cloned().collect();
    for key in secrets {
        let doc = format!("A file that holds `{key}`; a line break at its end is no part of it.");
        properties.insert(format!("{key}_file"), json!({ "type": "string", "description": doc }));
    }
}

fn is_secret(schema: &Value) -> bool {
    schema["x-secret"] == json!(true)
}
