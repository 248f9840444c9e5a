//! What keys are called in the container.
//!
//! Azure wants no segment of a name to end with a dot
//! (<https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata>),
//! which a tag may: such a segment gets a tilde at its end, which no key of Berth's has. Only the order of such
//! tags among others is another for it.

/// Keys as names under a prefix, and back.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Empty, or ends with a slash.
    prefix: String,
}

impl Names {
    /// Under `prefix`, with or without slashes at its ends.
    pub(super) fn under(prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        Self { prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") } }
    }

    /// What all names begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of a key, or of the beginning of one.
    pub(super) fn of(&self, key: &str) -> String {
        format!("{}{}", self.prefix, key.replace("./", ".~/"))
    }

    /// The key of a name; `None` for what isn't under the prefix.
    pub(super) fn key(&self, name: &str) -> Option<String> {
        name.strip_prefix(&self.prefix).map(|key| key.replace(".~/", "./"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_segment_ends_with_a_dot_and_each_key_comes_back() {
        for prefix in ["", "some/where", "/some/where/"] {
            let names = Names::under(prefix);
            for key in ["berth.json", "repos/a.b/_tags/v1./x", "repos/a/_tags/v1../x", "repos/a/_tags/.~", "data/"] {
                let name = names.of(key);
                assert!(name.split('/').rev().skip(1).all(|segment| !segment.ends_with('.')), "{name}");
                assert_eq!(names.key(&name).as_deref(), Some(key));
            }
        }
        assert_eq!(Names::under("a").key("b/berth.json"), None);
        assert_ne!(Names::under("").of("repos/a/_tags/v1./x"), Names::under("").of("repos/a/_tags/v1/x"));
    }
}
