//! Who asks: a service account's key, a workload identity, a login, or the machine's own account, as Google's own
//! tools would find it; and the token that each of them is good for.
//!
//! <https://cloud.google.com/docs/authentication/application-default-credentials> says where to look, and in which
//! order. Nothing here is ever logged.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::Deserialize;

use super::{exchange::Exchange, federation::Federated, key::ServiceKey};
use crate::outbound::{Kept, Source};

/// What a token may be used for. That for storage alone would not let IAM sign.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// Where a login becomes a token.
const LOGIN_URL: &str = "https://oauth2.googleapis.com/token";

/// Where the machine's own account is asked for, unless `GCE_METADATA_HOST` says otherwise.
const METADATA_HOST: &str = "metadata.google.internal";

/// Where Google's tools keep a login, below the home directory.
const LOGIN_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// Who asks.
#[derive(Debug)]
pub(crate) enum Who {
    /// A service account, by its own key.
    Key(Arc<ServiceKey>),
    /// An identity of somebody else's that Google trusts.
    Federated(Federated),
    /// A person who has logged in.
    Login(Login),
    /// The account of this machine, or of this pod.
    Machine {
        /// The metadata server's host, perhaps with a port.
        host: String,
    },
    /// Nobody: an emulator asks for no credentials.
    Nobody,
}

/// What `gcloud auth application-default login` leaves behind.
#[derive(Deserialize)]
pub(crate) struct Login {
    client_id: String,
    client_secret: String,
    refresh_token: String,
}

/// The secrets stay out of logs.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// What stands in the JSON of a service account's key.
#[derive(Deserialize)]
struct KeyFile {
    client_email: String,
    private_key_id: String,
    private_key: String,
}

impl Who {
    /// Whomever Google's own tools would find.
    ///
    /// # Errors
    /// What is wrong with the credentials, in one line that names where they are.
    pub(crate) fn find(is_emulator: bool) -> Result<Self, String> {
        let file = env::var_os("GOOGLE_APPLICATION_CREDENTIALS").filter(|file| !file.is_empty());
        if let Some(file) = file.map(PathBuf::from) {
            return Self::read_file(&file);
        }
        if is_emulator {
            return Ok(Self::Nobody);
        }
        let login = env::home_dir().map(|home| home.join(LOGIN_FILE)).filter(|file| file.exists());
        if let Some(file) = login {
            return Self::read_file(&file);
        }
        let host = env::var("GCE_METADATA_HOST").ok().filter(|host| !host.is_empty());
        Ok(Self::Machine { host: host.unwrap_or_else(|| METADATA_HOST.to_owned()) })
    }

    fn read_file(file: &Path) -> Result<Self, String> {
        let json = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Self::read(&json).map_err(|why| format!("{}: {why}", file.display()))
    }

    /// Whom the JSON names.
    ///
    /// # Errors
    /// What is wrong with it, in a few words that show nothing of it.
    pub(crate) fn read(json: &str) -> Result<Self, String> {
        let json: serde_json::Value = serde_json::from_str(json).map_err(|_| "it is not JSON")?;
        match json["type"].as_str() {
            Some("service_account") => {
                let KeyFile { client_email, private_key_id, private_key } = fields(json)?;
                Ok(Self::Key(Arc::new(ServiceKey::read(client_email, private_key_id, &private_key)?)))
            }
            Some("external_account") => Ok(Self::Federated(fields::<Federated>(json)?.checked()?)),
            Some("authorized_user") => Ok(Self::Login(fields(json)?)),
            other => Err(format!(
                "its type is {}; want service_account, external_account or authorized_user",
                other.unwrap_or("missing")
            )),
        }
    }
}

/// Reads the fields, and says which is missing. What stands in them is not said.
fn fields<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> Result<T, String> {
    serde_json::from_value(json).map_err(|error| {
        let why = error.to_string();
        if why.starts_with("missing field") { why } else { "a field is not what it should be".to_owned() }
    })
}

/// The token by which whoever asks is believed.
#[derive(Clone, Debug)]
pub(crate) struct Credentials(Kept<Tokens>);

/// Where tokens come from.
struct Tokens {
    who: Arc<Who>,
    exchange: Exchange,
}

/// How a token comes, from a login and from the metadata server.
#[derive(Deserialize)]
struct Given {
    access_token: String,
    /// In seconds.
    expires_in: u64,
}

impl Credentials {
    /// Those of `who`. Nothing is asked for yet.
    pub(crate) fn new(who: Arc<Who>, exchange: Exchange) -> Self {
        Self(Kept::new(Tokens { who, exchange }))
    }

    /// The token, `None` for nobody's; or, in one line, why there is none.
    pub(crate) async fn token(&self) -> Result<Option<Arc<str>>, String> {
        Ok(self.0.get(SystemTime::now()).await?.value)
    }

    /// Makes the next one who asks get a new token, since the one that was shown is not believed.
    pub(crate) fn forget(&self) {
        self.0.forget();
    }
}

#[async_trait]
impl Source for Tokens {
    type Value = Option<Arc<str>>;

    async fn find(&self) -> Result<(Self::Value, Option<SystemTime>), String> {
        let (token, expires) = match &*self.who {
            Who::Key(key) => key.token(SystemTime::now())?,
            Who::Federated(federated) => federated.token(&self.exchange).await?,
            Who::Login(login) => self.log_in(login).await?,
            Who::Machine { host } => self.ask_machine(host).await?,
            Who::Nobody => return Ok((None, None)),
        };
        Ok((Some(token.into()), Some(expires)))
    }
}

impl Tokens {
    async fn log_in(&self, login: &Login) -> Result<(String, SystemTime), String> {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", &login.client_id),
            ("client_secret", &login.client_secret),
            ("refresh_token", &login.refresh_token),
        ];
        let given: Given = self.exchange.post_form(LOGIN_URL, &form).await?;
        Ok((given.access_token, until(given.expires_in)))
    }

    async fn ask_machine(&self, host: &str) -> Result<(String, SystemTime), String> {
        let given: Given = self.exchange.get_json(&machine_url(host, "token"), &METADATA).await?;
        Ok((given.access_token, until(given.expires_in)))
    }
}

/// What the metadata server wants to see, so that no page in a browser is believed.
const METADATA: [(&str, &str); 1] = [("Metadata-Flavor", "Google")];

fn machine_url(host: &str, what: &str) -> String {
    format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/{what}")
}

/// The email address of this machine's account, or whatever stands in its place.
pub(crate) async fn machine_email(exchange: &Exchange, host: &str) -> Result<String, String> {
    Ok(exchange.get_text(&machine_url(host, "email"), &METADATA).await?.trim().to_owned())
}

/// The moment in so many seconds.
pub(super) fn until(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

/// The header by which a token is shown.
pub(crate) fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}
