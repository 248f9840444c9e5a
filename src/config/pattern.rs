//! Patterns of repositories, tags and user agents, and whether something matches one.

use std::str::FromStr;

use super::text::Written;
use crate::oci::{RepositoryName, Tag};

/// Which repositories a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryPattern(Vec<Component>);

/// One part of a repository pattern, between slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Component {
    /// This component and no other.
    Exactly(String),
    /// `*`: any one component.
    One,
    /// `**`: any number of components, also none.
    Any,
}

impl RepositoryPattern {
    /// All repositories: `**`.
    pub fn every() -> Self {
        Self(vec![Component::Any])
    }

    /// Whether the repository is one of those meant.
    pub fn matches(&self, repository: &RepositoryName) -> bool {
        let names: Vec<&str> = repository.as_str().split('/').collect();
        wildcard(
            &self.0,
            &names,
            |part| *part == Component::Any,
            |part, name| match part {
                Component::Exactly(text) => text == name,
                Component::One | Component::Any => true,
            },
        )
    }
}

impl RepositoryPattern {
    /// Whether every repository that `other` means is meant here, as far as the patterns show it: never true
    /// where one isn't.
    pub fn covers(&self, other: &Self) -> bool {
        wildcard(
            &self.0,
            &other.0,
            |part| *part == Component::Any,
            |part, component| match (part, component) {
                (Component::Exactly(text), Component::Exactly(other)) => text == other,
                (Component::One | Component::Any, Component::Exactly(_) | Component::One) => true,
                _ => false,
            },
        )
    }
}

impl Written for RepositoryPattern {
    const NAME: &'static str = "RepositoryPattern";
    const WANT: &'static str =
        "components of a repository name joined by '/', where * is any one and ** any number, such as \"team/*\"";

    fn read(text: &str) -> Option<Self> {
        text.split('/').map(Component::read).collect::<Option<_>>().map(Self)
    }

    fn write(&self) -> String {
        self.0.iter().map(Component::as_str).collect::<Vec<_>>().join("/")
    }
}

impl Component {
    fn read(text: &str) -> Option<Self> {
        match text {
            "*" => Some(Self::One),
            "**" => Some(Self::Any),
            _ => RepositoryName::from_str(text).ok().map(|_| Self::Exactly(text.to_owned())),
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Exactly(text) => text,
            Self::One => "*",
            Self::Any => "**",
        }
    }
}

/// Which tags are meant: `*` stands for any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPattern(String);

impl TagPattern {
    /// Whether the tag is one of those meant.
    pub fn matches(&self, tag: &Tag) -> bool {
        matches_text(&self.0, tag.as_str())
    }
}

impl Written for TagPattern {
    const NAME: &'static str = "TagPattern";
    const WANT: &'static str = "letters, digits, '_', '.' and '-', where * is any characters, such as \"v*\"";

    fn read(text: &str) -> Option<Self> {
        // With each star as a character that may stand anywhere in a tag, the rest must be one.
        Tag::from_str(&text.replace('*', "_")).ok().map(|_| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Which values of a claim are meant: `*` stands for any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPattern(String);

impl ClaimPattern {
    /// Whether the value is one of those meant.
    pub fn matches(&self, value: &str) -> bool {
        matches_text(&self.0, value)
    }
}

impl Written for ClaimPattern {
    const NAME: &'static str = "ClaimPattern";
    const WANT: &'static str = "text that is not empty, where * is any characters, such as \"refs/heads/*\"";

    fn read(text: &str) -> Option<Self> {
        let good = !text.is_empty() && !text.contains(char::is_control);
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Which media types are meant: `*` stands for any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaTypePattern(String);

impl MediaTypePattern {
    /// Whether the media type is one of those meant.
    pub fn matches(&self, media_type: &str) -> bool {
        matches_text(&self.0, media_type)
    }
}

impl Written for MediaTypePattern {
    const NAME: &'static str = "MediaTypePattern";
    const WANT: &'static str = "a media type, where * is any characters, such as \"application/vnd.oci.image.*\"";

    fn read(text: &str) -> Option<Self> {
        let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Which `User-Agent`s are meant: `*` stands for any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPattern(String);

impl AgentPattern {
    /// Whether the user agent, as its client sent it, is one of those meant.
    pub fn matches(&self, agent: &[u8]) -> bool {
        wildcard(self.0.as_bytes(), agent, |part| *part == b'*', |part, byte| part == byte)
    }
}

impl Written for AgentPattern {
    const NAME: &'static str = "AgentPattern";
    const WANT: &'static str = "a User-Agent, where * is any characters, such as \"containerd/*\"";

    fn read(text: &str) -> Option<Self> {
        // What no header can hold would never match.
        let good = !text.trim().is_empty() && !text.contains(char::is_control);
        good.then(|| Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Whether `text` is covered by `pattern`, in which `*` stands for any characters, also none.
pub(super) fn matches_text(pattern: &str, text: &str) -> bool {
    wildcard(pattern.as_bytes(), text.as_bytes(), |part| *part == b'*', |part, byte| part == byte)
}

/// Whether `pattern` covers all of `text`. A star covers any run; any other part covers one item. Only the
/// last star is ever reconsidered, so that the work is at most the product of the
/// two lengths, whatever the pattern.
fn wildcard<P, T>(pattern: &[P], text: &[T], star: impl Fn(&P) -> bool, covers: impl Fn(&P, &T) -> bool) -> bool {
    let (mut at, mut next) = (0, 0);
    // The last star seen, and where in the text what follows it was last tried.
    let mut retry = None;
    while next < text.len() {
        match pattern.get(at) {
            Some(part) if star(part) => {
                retry = Some((at, next));
                at += 1;
            }
            Some(part) if covers(part, &text[next]) => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((last, tried)) = retry else { return false };
                retry = Some((last, tried + 1));
                at = last + 1;
                next = tried + 1;
            }
        }
    }
    pattern[at..].iter().all(star)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn repositories_match_by_component() {
        for (pattern, yes, no) in [
            ("team/app", vec!["team/app"], vec!["team", "team/app/x", "team/apps"]),
            ("team/*", vec!["team/app"], vec!["team", "team/a/b", "teams/app"]),
            ("*", vec!["a"], vec!["a/b"]),
            ("**", vec!["a", "a/b", "a/b/c"], vec![]),
            ("team/**", vec!["team", "team/a", "team/a/b"], vec!["teams/a"]),
            ("**/base", vec!["base", "a/base", "a/b/base", "base/base"], vec!["a/base/b", "database"]),
            ("a/**/b/*/c", vec!["a/b/x/c", "a/b/b/x/c", "a/y/b/b/b/c"], vec!["a/b/c", "a/b/x/y/c"]),
        ] {
            let pattern = RepositoryPattern::read(pattern).unwrap();
            for name in yes {
                assert!(pattern.matches(&name.parse().unwrap()), "{pattern:?} {name}");
            }
            for name in no {
                assert!(!pattern.matches(&name.parse().unwrap()), "{pattern:?} {name}");
            }
        }
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a*", "***", "team/**x", "a b"] {
            assert_eq!(RepositoryPattern::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_cannot_exceed() {
        for (pattern, yes, no) in [
            ("team/app", vec!["team/app"], vec!["team/*", "team/**", "**", "team"]),
            ("team/*", vec!["team/app", "team/*"], vec!["team/**", "*/app", "team/*/*", "**"]),
            (
                "team/**",
                vec!["team", "team/app", "team/*", "team/**", "team/a/**/b", "team/*/**"],
                vec!["teams", "*", "**", "other/**", "*/team"],
            ),
            ("**", vec!["a", "*", "**", "a/**/b"], vec![]),
            ("*/app", vec!["team/app", "*/app"], vec!["**/app", "team/*", "a/b/app"]),
            ("**/app", vec!["app", "**/app", "a/*/app"], vec!["app/**", "**"]),
        ] {
            let pattern = RepositoryPattern::read(pattern).unwrap();
            for other in yes {
                assert!(pattern.covers(&RepositoryPattern::read(other).unwrap()), "{pattern:?} {other}");
            }
            for other in no {
                assert!(!pattern.covers(&RepositoryPattern::read(other).unwrap()), "{pattern:?} {other}");
            }
        }
    }

    #[test]
    fn tags_match_by_character() {
        for (pattern, yes, no) in [
            ("latest", vec!["latest"], vec!["latest1", "late"]),
            ("v*", vec!["v", "v1", "v1.0"], vec!["1v", "V1"]),
            ("*", vec!["a", "_"], vec![]),
            ("*-rc*", vec!["1-rc", "1-rc2"], vec!["1rc"]),
            ("*.*.*", vec!["1.2.3", "1.2.3.4"], vec!["1.2"]),
        ] {
            let pattern = TagPattern::read(pattern).unwrap();
            for tag in yes {
                assert!(pattern.matches(&tag.parse().unwrap()), "{pattern:?} {tag}");
            }
            for tag in no {
                assert!(!pattern.matches(&tag.parse().unwrap()), "{pattern:?} {tag}");
            }
        }
        for bad in ["", "a/b", "v[0-9]", ".v", "v ?"] {
            assert_eq!(TagPattern::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn user_agents_match_by_character() {
        for (pattern, yes, no) in [
            ("containerd/*", vec!["containerd/2.1.0", "containerd/"], vec!["x containerd/2", "Containerd/2"]),
            ("*Mozilla*", vec!["Mozilla/5.0 (X11)", "x Mozilla"], vec!["curl/8"]),
            ("curl/8.0", vec!["curl/8.0"], vec!["curl/8.0.1"]),
        ] {
            let pattern = AgentPattern::read(pattern).unwrap();
            for agent in yes {
                assert!(pattern.matches(agent.as_bytes()), "{pattern:?} {agent}");
            }
            for agent in no {
                assert!(!pattern.matches(agent.as_bytes()), "{pattern:?} {agent}");
            }
        }
        for bad in ["", " ", "a\nb"] {
            assert_eq!(AgentPattern::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let pattern = TagPattern::read(&format!("{}b", "*a".repeat(60))).unwrap();
        assert!(!pattern.matches(&"a".repeat(128).parse().unwrap()));
    }
}
