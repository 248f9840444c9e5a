//! Values that are written as text: the one way in which a setting goes from text to a type and back.
//!
//! The same text works in the file and in an environment variable, and what Berth shows is written as it
//! would be read. Nothing here knows a key.

use std::{
    borrow::Cow,
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A type that settings write as text.
pub trait Written: Sized {
    /// The type's name in the JSON Schema.
    const NAME: &'static str;
    /// What is allowed, as the end of the sentence "want …".
    const WANT: &'static str;
    /// Reads the text; `None` if it isn't what [`Self::WANT`] says.
    fn read(text: &str) -> Option<Self>;
    /// Writes the value so that [`Self::read`] gives it again, but for secrets, which become `***`.
    fn write(&self) -> String;
}

/// A setting whose value is written as text. It reads as the value itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<T>(pub T);

impl<T> Deref for Text<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Written> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.write())
    }
}

impl<T: Written> fmt::Debug for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As written, so that no secret gets into a log through a `{:?}`.
        f.write_str(&self.0.write())
    }
}

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::read(&text).map(Self).ok_or_else(|| D::Error::custom(T::WANT))
    }
}

impl<T: Written> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.write())
    }
}

impl<T: Written> JsonSchema for Text<T> {
    fn schema_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-want": T::WANT })
    }
}

/// Text that is shown to nobody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret(String);

/// What is shown in place of a secret.
pub const MASK: &str = "***";

impl Secret {
    /// The secret itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Written for Secret {
    const NAME: &'static str = "Secret";
    const WANT: &'static str = "text that is not empty, without control characters";

    fn read(text: &str) -> Option<Self> {
        is_plain(text).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// Private keys, shown to nobody: one or more blocks of PEM, each with what stands before it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keys(String);

impl Keys {
    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Written for Keys {
    const NAME: &'static str = "Keys";
    const WANT: &'static str = "one or more private keys in PEM, as `berth keys new` prints them";

    fn read(text: &str) -> Option<Self> {
        text.contains("-----BEGIN ").then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// A private key in PEM, shown to nobody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrivateKey(String);

impl PrivateKey {
    /// The PEM itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Written for PrivateKey {
    const NAME: &'static str = "PrivateKey";
    const WANT: &'static str = "a private key in PEM (-----BEGIN PRIVATE KEY----- and so on)";

    fn read(text: &str) -> Option<Self> {
        text.contains("PRIVATE KEY-----").then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// A key that Cloud CDN shares, shown to nobody: 16 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CdnKey([u8; 16]);

impl CdnKey {
    /// The key itself, for the one place that needs it.
    pub fn reveal(&self) -> [u8; 16] {
        self.0
    }
}

impl Written for CdnKey {
    const NAME: &'static str = "CdnKey";
    const WANT: &'static str = "16 bytes in base64 for URLs: 24 letters, digits, - and _, the last two of them =";

    fn read(text: &str) -> Option<Self> {
        URL_SAFE.decode(text.trim_end()).ok()?.try_into().ok().map(Self)
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// The name of such a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName(String);

impl Deref for KeyName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Written for KeyName {
    const NAME: &'static str = "KeyName";
    const WANT: &'static str = "a key's name: up to 63 letters, digits, _ and -";

    fn read(text: &str) -> Option<Self> {
        let good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        (good && (1..=63).contains(&text.len())).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Credentials as Google gives them out, shown to nobody.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoogleCredentials(String);

impl GoogleCredentials {
    /// The JSON itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Written for GoogleCredentials {
    const NAME: &'static str = "GoogleCredentials";
    const WANT: &'static str = "the JSON of a service account's key or of a workload identity, as Google gives it out";

    fn read(text: &str) -> Option<Self> {
        text.trim_start().starts_with('{').then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        MASK.to_owned()
    }
}

/// The path of a file; a relative one starts at the working directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath(PathBuf);

impl Deref for FilePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Written for FilePath {
    const NAME: &'static str = "FilePath";
    const WANT: &'static str = "the path of a file";

    fn read(text: &str) -> Option<Self> {
        is_plain(text).then(|| Self(text.into()))
    }

    fn write(&self) -> String {
        self.0.display().to_string()
    }
}

/// A word whose meaning is somebody else's: a region, the id of an access key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word(String);

impl Word {
    /// A word of ours.
    pub(super) fn literal(word: &'static str) -> Self {
        Self(word.to_owned())
    }
}

impl Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Written for Word {
    const NAME: &'static str = "Word";
    const WANT: &'static str = "one word, without spaces";

    fn read(text: &str) -> Option<Self> {
        (is_plain(text) && !text.contains(char::is_whitespace)).then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// A storage class of S3 or GCS, or of a store that has its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageClass(String);

impl Deref for StorageClass {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Written for StorageClass {
    const NAME: &'static str = "StorageClass";
    const WANT: &'static str = "a storage class whose objects can be read at once, such as \"STANDARD_IA\"";

    fn read(text: &str) -> Option<Self> {
        // What is in these must be asked back hours before it can be read.
        let is_archive = ["GLACIER", "DEEP_ARCHIVE"].contains(&text);
        Word::read(text).filter(|_| !is_archive).map(|Word(text)| Self(text))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Whether there is text, all of it printable.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}
