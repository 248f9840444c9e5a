//! Scopes: what a client asks a token for, and what it was given, in the words of the Docker token
//! specification (`repository:team/app:pull,push`). Nothing is decided here.

use std::fmt;

use super::Action;
use crate::oci::RepositoryName;

/// The most resources that one token may be asked for. A push with mounts from everywhere names some ten; a
/// hundred keep a token below the header sizes that servers and proxies take.
pub const MAX_RESOURCES: usize = 100;

/// What a token is for: each repository once, and the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// What to do with each repository.
    pub repositories: Vec<(RepositoryName, Vec<Action>)>,
    /// Whether to list repositories.
    pub catalog: bool,
}

/// More than [`MAX_RESOURCES`] were asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl Scope {
    /// One action, with what clients need beside it: pushers read before they write.
    pub fn needed(repository: &RepositoryName, action: Action) -> Self {
        let actions = match action {
            Action::Push => vec![Action::Pull, Action::Push],
            Action::Pull | Action::Delete => vec![action],
        };
        Self { repositories: vec![(repository.clone(), actions)], catalog: false }
    }

    /// The catalog.
    pub fn catalog() -> Self {
        Self { repositories: Vec::new(), catalog: true }
    }

    /// Reads all `scope` parameters of a request; each may hold several, separated by spaces. What isn't
    /// known (a type, an action, a name that can't exist) drops out, as the specification has it.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn read<'a>(parameters: impl IntoIterator<Item = &'a str>) -> Result<Self, TooMany> {
        let mut scope = Self::default();
        for (at, one) in
            parameters.into_iter().flat_map(|text| text.split(' ')).filter(|one| !one.is_empty()).enumerate()
        {
            if at == MAX_RESOURCES {
                return Err(TooMany);
            }
            scope.read_one(one);
        }
        Ok(scope)
    }

    /// A name may hold colons (a host's port), so what stands around it is cut off from both ends.
    fn read_one(&mut self, text: &str) -> Option<()> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        // `repository(plugin)`: the class is of the past, and changes nothing.
        match kind.split('(').next()? {
            "registry" if name == "catalog" => self.catalog |= actions.split(',').any(|action| action == "*"),
            "repository" => {
                let name: RepositoryName = name.parse().ok()?;
                for action in actions.split(',') {
                    match action {
                        "*" => Action::ALL.into_iter().for_each(|action| self.add(&name, action)),
                        other => Action::named(other).into_iter().for_each(|action| self.add(&name, action)),
                    }
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Adds an action, unless it is there.
    pub fn add(&mut self, repository: &RepositoryName, action: Action) {
        let known = self.repositories.iter().position(|(name, _)| name == repository);
        let at = known.unwrap_or_else(|| {
            self.repositories.push((repository.clone(), Vec::new()));
            self.repositories.len() - 1
        });
        let actions = &mut self.repositories[at].1;
        if !actions.contains(&action) {
            actions.push(action);
        }
    }

    /// Whether it is for nothing.
    pub fn is_empty(&self) -> bool {
        self.repositories.is_empty() && !self.catalog
    }
}

/// As it is asked for.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        if self.catalog {
            f.write_str("registry:catalog:*")?;
            space = " ";
        }
        for (name, actions) in &self.repositories {
            let actions: Vec<&str> = actions.iter().map(|action| action.as_str()).collect();
            write!(f, "{space}repository:{name}:{}", actions.join(","))?;
            space = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_in_every_form() {
        for (parameters, expected) in [
            (vec!["repository:a/b:pull"], "repository:a/b:pull"),
            (vec!["repository:a:pull,push", "repository:b:pull"], "repository:a:pull,push repository:b:pull"),
            (vec!["repository:a:pull repository:b:pull"], "repository:a:pull repository:b:pull"),
            (vec!["repository:a:pull", "repository:a:push,pull"], "repository:a:pull,push"),
            (vec!["repository(plugin):a:pull"], "repository:a:pull"),
            (vec!["repository:a:*"], "repository:a:pull,push,delete"),
            (vec!["registry:catalog:*"], "registry:catalog:*"),
            (vec!["registry:catalog:pull", "registry:other:*"], ""),
            (vec!["repository:host:5000/a:pull", "repository:A:pull", "repository:a", "x", "", " "], ""),
            (vec!["thing:a:pull", "repository:a:frobnicate"], ""),
        ] {
            assert_eq!(Scope::read(parameters.clone()).unwrap().to_string(), expected, "{parameters:?}");
        }
        assert_eq!(Scope::read(["repository:a:pull "; MAX_RESOURCES]).unwrap().repositories.len(), 1);
        assert_eq!(Scope::read(["repository:a:pull"; MAX_RESOURCES + 1]), Err(TooMany));
    }
}
