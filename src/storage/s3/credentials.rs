//! Who asks: whatever AWS' own tools would find, kept until shortly before it expires.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use object_store::{CredentialProvider, aws::AwsCredential};

use crate::outbound::{Kept, Source, text_of};

/// The credentials, found when they are first asked for.
#[derive(Clone, Debug)]
pub(super) struct Credentials(Kept<Provider>);

/// What AWS' own kit found to be the source.
struct Provider(SharedCredentialsProvider);

#[async_trait]
impl Source for Provider {
    type Value = Arc<AwsCredential>;

    async fn find(&self) -> Result<(Arc<AwsCredential>, Option<SystemTime>), String> {
        let found = self.0.provide_credentials().await.map_err(|error| text_of(&error))?;
        let credential = AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(ToOwned::to_owned),
        };
        Ok((Arc::new(credential), found.expiry()))
    }
}

impl Credentials {
    /// Those of `source`. Nothing is asked for yet.
    pub(super) fn new(source: SharedCredentialsProvider) -> Self {
        Self(Kept::new(Provider(source)))
    }

    /// For how long what is signed now stays good; `None` for as long as one likes.
    pub(super) async fn life(&self) -> Result<Option<Duration>, String> {
        self.0.life().await
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        match self.0.get(SystemTime::now()).await {
            Ok(held) => Ok(held.value),
            Err(why) => Err(object_store::Error::Unauthenticated {
                path: "credentials".to_owned(),
                source: format!("there are no credentials: {why}").into(),
            }),
        }
    }
}

/// AWS' own kit asks here as well, so that nobody is asked twice.
impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let held = self.0.get(SystemTime::now()).await.map_err(CredentialsError::provider_error)?;
            let AwsCredential { key_id, secret_key, token } = &*held.value;
            let found = aws_credential_types::Credentials::new(key_id, secret_key, token.clone(), held.expires, "held");
            Ok(found)
        })
    }
}
