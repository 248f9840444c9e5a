//! Where the bucket is, and AWS' own kit: what the object library lacks.
//!
//! What the options leave open is found as AWS' own tools find it: the environment, the profile, the machine.
//! The kit only asks about the bucket and lists uploads; no object's bytes pass through it.

use aws_config::{BehaviorVersion, Region, SdkConfig, meta::region::RegionProviderChain};
use aws_sdk_s3::{
    Client,
    config::{
        Builder, Credentials as Keys, HttpClient, RuntimeComponents, StalledStreamProtectionConfig,
        endpoint::{DefaultResolver, Params, ResolveEndpoint},
        retry::RetryConfig,
    },
    primitives::SdkBody,
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_types::service_config::ServiceConfigKey;
use bytes::Bytes;
use object_store::client::{HttpError, HttpErrorKind, HttpRequestBody};

use super::{StorageError, Transport, credentials::Credentials, options::S3Options};
use crate::outbound::text_of;

/// What is used where nobody says a region: stores that are not Amazon's take it as well.
const REGION: &str = "us-east-1";

/// Where the bucket is, and for whom.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// What signatures name.
    pub(super) region: String,
    /// The bucket's URL, without a slash at its end.
    pub(super) url: String,
    /// The bucket's URL for clients outside.
    pub(super) public_url: String,
    /// What gives credentials.
    pub(super) credentials: Credentials,
    /// Asks what the object library can't.
    pub(super) kit: Client,
}

impl Place {
    /// Finds out what the options leave open.
    pub(super) async fn find(options: &S3Options, transport: &Transport) -> Result<Self, StorageError> {
        let aws = load(options, transport).await;
        let endpoint = options.endpoint.clone().or_else(|| endpoint_of(&aws));
        let path_style = options.path_style.unwrap_or(endpoint.is_some());
        let public = options.public_endpoint.clone().or_else(|| endpoint.clone());
        let region = aws.region().map_or(REGION, Region::as_ref).to_owned();
        let url = async |endpoint: Option<String>| bucket_url(options, &aws, &region, endpoint, path_style).await;
        let (url, public_url) = (url(endpoint.clone()).await?, url(public).await?);
        let source = aws.credentials_provider().ok_or_else(|| unusable("credentials", "nothing gives any"))?;
        let credentials = Credentials::new(source);
        let mut kit = Builder::from(&aws)
            .region(Region::new(region.clone()))
            .force_path_style(path_style)
            .retry_config(RetryConfig::standard())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .credentials_provider(credentials.clone())
            .http_client(Kit(transport.clone()));
        kit.set_endpoint_url(endpoint);
        Ok(Self { region, url, public_url, credentials, kit: Client::from_conf(kit.build()) })
    }
}

fn unusable(about: &str, why: &str) -> StorageError {
    StorageError::Refused(about.to_owned(), why.to_owned())
}

/// Everything that AWS' own tools read.
async fn load(options: &S3Options, transport: &Transport) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(Kit(transport.for_others()));
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if options.endpoint.is_some() {
        // A machine is asked for its own region only where that of a bucket may be the same.
        let environment = aws_config::environment::region::EnvironmentVariableRegionProvider::new();
        let profile = aws_config::profile::ProfileFileRegionProvider::new();
        loader = loader.region(RegionProviderChain::first_try(environment).or_else(profile).or_else(REGION));
    }
    if let Some(key) = &options.access_key {
        let token = key.session_token.clone();
        loader = loader.credentials_provider(Keys::new(&key.id, &key.secret, token, None, "configuration"));
    }
    loader.load().await
}

/// The endpoint that the environment or the profile names, for S3 or for everything.
fn endpoint_of(aws: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("s3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let own = key.ok().and_then(|key| aws.service_config()?.load_config(key));
    // A variable that is set to nothing says nothing.
    let said = |url: &String| !url.is_empty();
    own.filter(said).or_else(|| aws.endpoint_url().map(ToOwned::to_owned).filter(said))
}

/// The bucket's URL, by AWS' own rules: of partitions, of FIPS and IPv6, of names that fit into no host name.
async fn bucket_url(
    options: &S3Options,
    aws: &SdkConfig,
    region: &str,
    endpoint: Option<String>,
    path_style: bool,
) -> Result<String, StorageError> {
    let about = format!("the URL of the bucket {:?}", options.bucket);
    // An endpoint that somebody names is taken as it is.
    let own = endpoint.is_none();
    let params = Params::builder()
        .bucket(&options.bucket)
        .region(region)
        .use_fips(own && aws.use_fips().unwrap_or(false))
        .use_dual_stack(own && aws.use_dual_stack().unwrap_or(false))
        .force_path_style(path_style)
        .set_endpoint(endpoint)
        .build();
    let params = params.map_err(|error| unusable(&about, &text_of(&error)))?;
    let found = DefaultResolver::new().resolve_endpoint(&params).await;
    let found = found.map_err(|error| unusable(&about, &error.to_string()))?;
    Ok(found.url().trim_end_matches('/').to_owned())
}

/// Lets AWS' own kit go out by our way.
#[derive(Clone, Debug)]
struct Kit(Transport);

impl HttpClient for Kit {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        // Whoever is asked for credentials on the link is given a second: there may be nobody.
        let patience = settings.read_timeout();
        SharedHttpConnector::new(match patience {
            Some(patience) => Self(self.0.answered_within(patience)),
            None => self.clone(),
        })
    }
}

impl HttpConnector for Kit {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let transport = self.0.clone();
        HttpConnectorFuture::new(async move { exchange(&transport, request).await })
    }
}

/// One request of the kit and its answer, both small enough to be whole in memory.
async fn exchange(transport: &Transport, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
    let other = |error| ConnectorError::other(error, None);
    let request = request.try_into_http1x().map_err(|error| other(error.into()))?;
    let (parts, body) = request.into_parts();
    let body = body.bytes().map(Bytes::copy_from_slice).unwrap_or_default();
    let request = http::Request::from_parts(parts, HttpRequestBody::from(body));
    let answer = transport.send(request).await.map_err(connector_error)?;
    let (parts, body) = answer.into_parts();
    let body = body.bytes().await.map_err(connector_error)?;
    http::Response::from_parts(parts, SdkBody::from(body))
        .try_into()
        .map_err(|error: aws_smithy_runtime_api::http::HttpError| other(error.into()))
}

fn connector_error(error: HttpError) -> ConnectorError {
    match error.kind() {
        HttpErrorKind::Timeout => ConnectorError::timeout(error.into()),
        _ => ConnectorError::io(error.into()),
    }
}
