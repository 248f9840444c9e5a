//! The authority: whoever wants to know who asks, or whether they may, asks it.
//!
//! It holds what can change while Berth runs (rules, kinds of password) and hands out decisions. It never
//! looks at what a repository contains.

use std::sync::{Arc, PoisonError, RwLock};

use super::{AccessRules, Action, Grant, Identity, Login, Logins, NamedRule, Presented};
use crate::{
    error::{Code, Error, Result},
    oci::RepositoryName,
};

/// Somebody who asks, after it was checked who they are.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
}

/// Knows who somebody is and what they may do.
#[derive(Debug)]
pub struct Authority {
    rules: RwLock<Rules>,
    logins: Vec<Arc<dyn Logins>>,
}

/// The rules by where they come from, and all together.
#[derive(Debug)]
struct Rules {
    configured: AccessRules,
    run_time: Vec<NamedRule>,
    all: Arc<AccessRules>,
}

impl Authority {
    /// An authority with the configured `rules` and these kinds of password, which are asked in this order:
    /// those that answer at once before those that take their time.
    pub fn new(rules: AccessRules, logins: Vec<Arc<dyn Logins>>) -> Arc<Self> {
        let all = Arc::new(rules.clone());
        Arc::new(Self { rules: RwLock::new(Rules { configured: rules, run_time: Vec::new(), all }), logins })
    }

    /// Puts other rules in the place of those of the configuration.
    pub fn set_configured_rules(&self, rules: AccessRules) {
        self.change_rules(|all| all.configured = rules);
    }

    /// Puts other rules in the place of those that were made at run time.
    pub fn set_run_time_rules(&self, rules: Vec<NamedRule>) {
        self.change_rules(|all| all.run_time = rules);
    }

    fn change_rules(&self, change: impl FnOnce(&mut Rules)) {
        // Nothing panics while it holds the lock.
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut rules);
        rules.all = Arc::new(rules.configured.with(&rules.run_time));
    }

    /// All rules, as they are now.
    pub fn rules(&self) -> Arc<AccessRules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner).all)
    }

    /// Who is behind what a request shows.
    ///
    /// # Errors
    /// 401 if it proves nothing; 503 where it can't be known now.
    pub async fn authenticate(&self, presented: &Presented) -> Result<Caller> {
        match presented {
            Presented::Nothing => Ok(Caller { identity: Identity::ANONYMOUS }),
            Presented::Password { name, secret } => {
                let login = self.log_in(name, secret).await?;
                Ok(Caller { identity: login.identity })
            }
            Presented::Token(_) => Err(Error::new(Code::Unauthorized, "the token is not valid")),
        }
    }

    /// Whom a password proves the caller to be.
    ///
    /// # Errors
    /// 401 if it is wrong; 503 where it can't be known now.
    pub async fn log_in(&self, name: &str, secret: &str) -> Result<Login> {
        for kind in &self.logins {
            if let Some(login) = kind.check(name, secret).await? {
                return Ok(login);
            }
        }
        Err(Error::new(Code::Unauthorized, "the user name or the password is wrong"))
    }

    /// Whether a caller may do `action` in `repository`, and how far; `None` if not at all.
    pub fn decide(&self, caller: &Caller, repository: &RepositoryName, action: Action) -> Option<Grant> {
        self.rules().decide(&caller.identity, repository, action)
    }

    /// Whether a caller may be told that `repository` exists, in a list of names.
    pub fn may_see(&self, caller: &Caller, repository: &RepositoryName) -> bool {
        self.decide(caller, repository, Action::Pull).is_some()
    }

    /// Whether there is anything at all that a caller may do.
    pub fn may_anything(&self, caller: &Caller) -> bool {
        self.rules().may_anything(&caller.identity)
    }
}
