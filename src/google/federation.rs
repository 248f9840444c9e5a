//! Workload identity federation: a token of somebody else's, exchanged for one of Google's, and that perhaps for
//! one of a service account: <https://google.aip.dev/auth/4117>.
//!
//! The token of somebody else's comes from a file or a URL. AWS' own way, a program to run and certificates are
//! not known here.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{
    credentials::{SCOPE, until},
    exchange::Exchange,
};

/// For how long a service account is stood in for, the most that needs no leave of its own:
/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>.
const LIFE: Duration = Duration::from_secs(3600);

/// An identity of somebody else's that Google trusts, as `gcloud iam workload-identity-pools create-cred-config`
/// writes it down.
#[derive(Deserialize)]
pub(crate) struct Federated {
    audience: String,
    subject_token_type: String,
    token_url: String,
    credential_source: Subject,
    /// Where a token of a service account is given for it; `None` where the identity acts itself.
    service_account_impersonation_url: Option<String>,
}

/// The source may hold secret headers.
impl fmt::Debug for Federated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Federated").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// Where the token of somebody else's is.
#[derive(Deserialize)]
struct Subject {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
    /// That of AWS' own way.
    environment_id: Option<String>,
}

/// How it is written there.
#[derive(Default, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Format {
    /// As it is.
    #[default]
    Text,
    /// As a field of JSON.
    Json { subject_token_field_name: String },
}

/// What the exchange answers.
#[derive(Deserialize)]
struct Exchanged {
    access_token: String,
    /// In seconds; some answers leave it out.
    expires_in: Option<u64>,
}

/// What is answered for a service account.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lent {
    access_token: String,
    expire_time: chrono::DateTime<chrono::Utc>,
}

impl Federated {
    /// Refuses what can't be used, before it is.
    pub(super) fn checked(self) -> Result<Self, String> {
        let Subject { file, url, environment_id, .. } = &self.credential_source;
        match (file, url, environment_id) {
            (Some(_), None, None) | (None, Some(_), None) => Ok(self),
            _ => Err("its credential_source is neither a file nor a url, the two that are known".to_owned()),
        }
    }

    /// The service account that it stands in for, by its email address.
    pub(crate) fn email(&self) -> Option<&str> {
        let (_, rest) = self.service_account_impersonation_url.as_ref()?.rsplit_once("/serviceAccounts/")?;
        rest.strip_suffix(":generateAccessToken")
    }

    /// A token of Google's, and until when it is good.
    pub(super) async fn token(&self, exchange: &Exchange) -> Result<(String, SystemTime), String> {
        let subject = self.credential_source.token(exchange).await?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", &self.audience),
            ("scope", SCOPE),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token_type", &self.subject_token_type),
            ("subject_token", &subject),
        ];
        let Exchanged { access_token, expires_in } = exchange.post_form(&self.token_url, &form).await?;
        let Some(url) = &self.service_account_impersonation_url else {
            return Ok((access_token, until(expires_in.unwrap_or(LIFE.as_secs()))));
        };
        let wanted = serde_json::json!({"scope": [SCOPE], "lifetime": format!("{}s", LIFE.as_secs())});
        let shown = ("authorization", format!("Bearer {access_token}"));
        let Lent { access_token, expire_time } = exchange.post_json(url, shown, &wanted).await?;
        Ok((access_token, expire_time.into()))
    }
}

impl Subject {
    async fn token(&self, exchange: &Exchange) -> Result<String, String> {
        let text = match (&self.file, &self.url) {
            (Some(file), _) => {
                // It is a few kilobytes, asked for once an hour.
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?
            }
            (None, Some(url)) => {
                let headers: Vec<(&str, &str)> =
                    self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                exchange.get_text(url, &headers).await?
            }
            (None, None) => return Err("there is no source of the subject's token".to_owned()),
        };
        match &self.format {
            Format::Text => Ok(text.trim().to_owned()),
            Format::Json { subject_token_field_name: field } => {
                let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                json[field].as_str().map(str::to_owned).ok_or(format!("there is no {field:?} in the subject's token"))
            }
        }
    }
}
