//! Patterns of repository names, as access rules use them.

use std::{fmt, str::FromStr};

use crate::oci::RepositoryName;

/// Which repositories a rule is about: components of a name in which `*` stands for any characters but a
/// slash, also none; a component `**` stands for any number of components, also none.
#[derive(Clone, PartialEq, Eq)]
pub struct RepositoryPattern {
    text: String,
    /// Without a star, only the name itself matches.
    is_literal: bool,
}

/// The text is not a pattern of repository names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pattern of repository names: want components of a-z, 0-9, '.', '_', '-' and '*', or '**' alone, joined by '/'"
)]
pub struct InvalidPattern(pub String);

impl RepositoryPattern {
    /// The one that every name matches.
    pub fn every() -> Self {
        Self { text: "**".to_owned(), is_literal: false }
    }

    /// Whether the whole of `name` has this shape.
    pub fn matches(&self, name: &RepositoryName) -> bool {
        if self.is_literal {
            return self.text == name.as_str();
        }
        if self.text == "**" {
            return true;
        }
        let pattern: Vec<&str> = self.text.split('/').collect();
        let components: Vec<&str> = name.as_str().split('/').collect();
        matches(
            &pattern,
            &components,
            |wanted| *wanted == "**",
            |wanted, component| component_matches(wanted, component),
        )
    }
}

fn component_matches(wanted: &str, component: &str) -> bool {
    matches(wanted.as_bytes(), component.as_bytes(), |byte| *byte == b'*', |wanted, byte| wanted == byte)
}

/// Whether `text` has the shape of `pattern`, in which a wildcard stands for any number of items. It is
/// enough to come back to the last wildcard that was met, so the time is at most the product of the lengths.
fn matches<P, T>(
    pattern: &[P],
    text: &[T],
    is_wildcard: impl Fn(&P) -> bool,
    is_same: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut at, mut next) = (0, 0);
    // The wildcard met last, and where the text goes on if it takes one more item.
    let mut retry = None;
    while next < text.len() {
        match pattern.get(at) {
            Some(wanted) if is_wildcard(wanted) => {
                retry = Some((at, next + 1));
                at += 1;
            }
            Some(wanted) if is_same(wanted, &text[next]) => (at, next) = (at + 1, next + 1),
            _ => {
                let Some((wildcard, resume)) = retry else { return false };
                (at, next) = (wildcard + 1, resume);
                retry = Some((wildcard, resume + 1));
            }
        }
    }
    pattern[at..].iter().all(is_wildcard)
}

impl FromStr for RepositoryPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let is_of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-*".contains(&byte);
        let is_component = |component: &str| {
            component == "**"
                || (!component.is_empty() && !component.contains("**") && component.bytes().all(is_of_names))
        };
        if !text.split('/').all(is_component) {
            return Err(InvalidPattern(text.to_owned()));
        }
        Ok(Self { text: text.to_owned(), is_literal: !text.contains('*') })
    }
}

impl fmt::Debug for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(pattern: &str, name: &str) -> bool {
        pattern.parse::<RepositoryPattern>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn stars_stand_for_components() {
        for (pattern, name) in [
            ("a", "a"),
            ("a/b", "a/b"),
            ("*", "abc"),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*c", "ac"),
            ("a*b*c", "axbybc"),
            ("team/*", "team/app"),
            ("team/*-dev", "team/app-dev"),
            ("*/app", "team/app"),
            ("**", "a"),
            ("**", "a/b/c"),
            ("team/**", "team"),
            ("team/**", "team/a/b"),
            ("**/app", "app"),
            ("**/app", "a/b/app"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/b/c/z"),
            ("a/**/m/**/z", "a/m/m/z"),
            ("**/a*/**", "x/ab/y"),
        ] {
            assert!(matching(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a", "b"),
            ("a", "a/b"),
            ("a/b", "a"),
            ("*", "a/b"),
            ("a*", "ba"),
            ("team/*", "team"),
            ("team/*", "team/a/b"),
            ("team/**", "teams/a"),
            ("**/app", "a/apps"),
            ("a/**/z", "a/b"),
            ("a/*/z", "a/z"),
            ("a*b*c", "acb"),
        ] {
            assert!(!matching(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn what_could_never_match_is_refused() {
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a**", "**a/b", "***", "a b", "a/%2a", "a:b"] {
            assert_eq!(bad.parse::<RepositoryPattern>(), Err(InvalidPattern(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = vec!["**/a*a*a*a*a*a*a*b"; 20].join("/");
        let name = vec!["a"; 120].join("/");
        assert!(!matching(&pattern, &name));
    }
}
