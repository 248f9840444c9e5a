//! Where a credential comes from: a password that was kept, a service account's key, or the ID token that a
//! platform gives to what runs there.

use std::{env, fmt, fs, path::PathBuf, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::{Trouble, exchange};

/// The user name that goes with a service account's key as the password.
const JSON_KEY: &str = "_json_key";

/// The user name that goes with an ID token as the password. Any would do: the token says who it is.
const ID_TOKEN: &str = "_oidc";

/// The user name by which Docker's protocol says that the secret is a refresh token.
const REFRESH_TOKEN: &str = "<token>";

/// The variable that GitLab is told to put a job's ID token into (`id_tokens` of the job).
const GITLAB_VARIABLE: &str = "BERTH_ID_TOKEN";

/// Where a pod mounts its service account's token for the registry (a projected volume).
const KUBERNETES_FILE: &str = "/var/run/secrets/berth/token";

/// Where a registry's credential comes from.
#[derive(Clone, Deserialize, Serialize)]
#[serde(tag = "source", rename_all = "lowercase", deny_unknown_fields)]
pub(in crate::cli) enum Source {
    /// What Docker was told at its last login.
    Stored { username: String, secret: String },
    /// The JSON key of a service account.
    Key { file: PathBuf },
    /// The ID token of a job of GitHub Actions, for this audience or else the registry's host.
    Github {
        #[serde(skip_serializing_if = "Option::is_none")]
        audience: Option<String>,
    },
    /// The ID token of a job of GitLab CI, in a variable.
    Gitlab { variable: String },
    /// The token of a Kubernetes service account, in a file that the kubelet renews.
    Kubernetes { file: PathBuf },
}

/// What to log in with.
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) secret: String,
    /// For how many seconds it is good; `None` if it says nothing of that.
    pub(super) lasts: Option<u64>,
}

impl FromStr for Source {
    type Err = String;

    /// Reads what stands behind `--token-source`. A password is none of these: only Docker has one kept.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, detail) = text.split_once(':').map_or((text, None), |(kind, detail)| (kind, Some(detail)));
        let is_empty = detail.is_some_and(str::is_empty);
        match (kind, detail.map(str::to_owned)) {
            _ if is_empty => Err(format!("want something behind the colon of {text:?}")),
            ("key", Some(file)) => Ok(Self::Key { file: absolute(&file) }),
            ("github", audience) => Ok(Self::Github { audience }),
            ("gitlab", variable) => {
                Ok(Self::Gitlab { variable: variable.unwrap_or_else(|| GITLAB_VARIABLE.to_owned()) })
            }
            ("kubernetes", file) => Ok(Self::Kubernetes { file: absolute(file.as_deref().unwrap_or(KUBERNETES_FILE)) }),
            _ => Err("want key:FILE, github[:AUDIENCE], gitlab[:VARIABLE] or kubernetes[:FILE]".to_owned()),
        }
    }
}

/// Helpers are called from anywhere.
fn absolute(file: &str) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.into())
}

/// Without the secret.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stored { .. } => "Stored",
            Self::Key { .. } => "Key",
            Self::Github { .. } => "Github",
            Self::Gitlab { .. } => "Gitlab",
            Self::Kubernetes { .. } => "Kubernetes",
        })
    }
}

impl Source {
    /// The user name that goes with it, without asking anybody.
    pub(super) fn username(&self) -> &str {
        match self {
            Self::Stored { username, .. } => username,
            Self::Key { .. } => JSON_KEY,
            Self::Github { .. } | Self::Gitlab { .. } | Self::Kubernetes { .. } => REFRESH_TOKEN,
        }
    }

    /// What to log in to `host` with, for clients that know what a refresh token is. An ID token may live for
    /// minutes and a pull for longer, so it is exchanged for one of the registry's own where that gives any.
    pub(super) fn lasting_credential(&self, host: &str) -> Result<Credential, Trouble> {
        let found = self.credential(host)?;
        if found.username != ID_TOKEN {
            return Ok(found);
        }
        match exchange::refresh_token(host, ID_TOKEN, &found.secret)? {
            Some(secret) => Ok(Credential { username: REFRESH_TOKEN.to_owned(), secret, lasts: None }),
            None => Ok(found),
        }
    }

    /// A user name and a password for `host`.
    pub(super) fn credential(&self, host: &str) -> Result<Credential, Trouble> {
        match self {
            Self::Stored { username, secret } => {
                Ok(Credential { username: username.clone(), secret: secret.clone(), lasts: None })
            }
            Self::Key { file } => Ok(Credential { username: JSON_KEY.to_owned(), secret: read(file)?, lasts: None }),
            Self::Github { audience } => github(audience.as_deref().unwrap_or(host)).map(Credential::of_id_token),
            Self::Gitlab { variable } => self::variable(variable).map(Credential::of_id_token),
            Self::Kubernetes { file } => read(file).map(Credential::of_id_token),
        }
    }
}

impl Credential {
    /// An ID token as a password.
    pub(super) fn of_id_token(token: String) -> Self {
        Self { username: ID_TOKEN.to_owned(), lasts: seconds_left(&token), secret: token }
    }
}

/// For how long a token says that it is good. Nobody is let in by this: whether it is genuine, the registry sees.
fn seconds_left(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    Some(u64::try_from(exp - Utc::now().timestamp()).unwrap_or(0))
}

fn read(file: &PathBuf) -> Result<String, Trouble> {
    let text = fs::read_to_string(file).map_err(|error| Trouble::Told(format!("{}: {error}", file.display())))?;
    match text.trim() {
        "" => Err(Trouble::Told(format!("{}: found nothing; want a credential", file.display()))),
        text => Ok(text.to_owned()),
    }
}

fn variable(name: &str) -> Result<String, Trouble> {
    env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
        Trouble::Told(format!("{name} is not set, from which the ID token comes; see id_tokens of the job"))
    })
}

/// Asks the runner for an ID token.
fn github(audience: &str) -> Result<String, Trouble> {
    let told = |name: &str| {
        env::var(name)
            .map_err(|_| Trouble::Told(format!("{name} is not set; the job needs the permission `id-token: write`")))
    };
    exchange::id_token(&told("ACTIONS_ID_TOKEN_REQUEST_URL")?, &told("ACTIONS_ID_TOKEN_REQUEST_TOKEN")?, audience)
}
