//! What is wrong with the configuration, each in one line: the key, where it came from, what was found, and
//! what is allowed.

use std::{fmt, path::PathBuf, sync::Arc};

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: Arc<PathBuf>,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A mistake in the configuration. It is shown as exactly one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The file can't be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who named it: `--config`, `BERTH_CONFIG` or the default.
        named_by: &'static str,
        /// Why not.
        reason: String,
    },
    /// The file is not TOML.
    Syntax {
        /// The file and the line.
        at: Origin,
        /// What the parser says.
        reason: String,
    },
    /// No such key.
    Unknown {
        /// The key, or the variable.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// The key or variable that may have been meant.
        meant: Option<String>,
    },
    /// A value that is not allowed.
    Value {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// What it was set to, as a clause: `found "x"`.
        found: String,
        /// What is allowed, as a clause: `want a number`.
        allowed: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Unreadable { path, named_by, reason } => {
                format!("{} (named by {named_by}): cannot be read: {reason}", path.display())
            }
            Self::Syntax { at, reason } => format!("{at}: not TOML: {reason}"),
            Self::Unknown { key, origin, meant } => unknown(key, origin, meant.as_deref()),
            Self::Value { key, origin, found, allowed } => format!("{key} ({origin}): {found}; {allowed}"),
        };
        // A key, a path and a parser's message may hold anything, and one mistake is one line.
        for character in line.chars() {
            match character {
                control if control.is_control() => write!(f, "{}", control.escape_default())?,
                '\u{2028}' | '\u{2029}' => write!(f, "{}", character.escape_default())?,
                plain => write!(f, "{plain}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

fn unknown(key: &str, origin: &Origin, meant: Option<&str>) -> String {
    let advice = match meant {
        Some(meant) => format!("did you mean {meant}?"),
        None => "`berth config schema` lists what there is".to_owned(),
    };
    match origin {
        Origin::Variable(name) => format!("{name}: no such setting; {advice}"),
        origin => format!("{key} ({origin}): no such key; {advice}"),
    }
}
