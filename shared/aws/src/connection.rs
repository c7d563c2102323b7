//! What every client of AWS shares: credentials, region, connections, time limits.

use std::fmt;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use zeroize::Zeroizing;

/// Where nothing says otherwise. Stores that aren't AWS mostly expect just this one in signatures.
const FALLBACK_REGION: &str = "us-east-1";
/// A host that doesn't take a connection in this time is down, or a firewall drops what is sent to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A fixed pair of keys, for targets that carry their own. Not shown in `Debug`.
#[derive(Clone)]
pub struct StaticCredentials {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: Zeroizing<String>,
    /// What temporary credentials come with.
    pub session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticCredentials")
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// Where requests go, as far as the operator says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsSettings {
    /// The region; without one, that of the environment, the profile or the instance, else `us-east-1`.
    pub region: Option<String>,
    /// A store or emulator other than AWS itself: `https://minio.example:9000`.
    pub endpoint_url: Option<String>,
}

/// Shared by the clients of one endpoint in a process: one source of credentials, one pool of connections.
#[derive(Debug, Clone)]
pub struct AwsConnection {
    sdk: SdkConfig,
    endpoint_url: Option<String>,
}

impl AwsConnection {
    /// Takes credentials, and settings that `settings` leaves open, from the usual places: environment variables,
    /// profiles, SSO, web identity, container and instance roles. Credentials are looked for at the first request,
    /// and renewed before they expire.
    pub async fn from_environment(settings: AwsSettings) -> Self {
        let http_client = http_client();
        let region = find_region(&settings, &http_client).await;
        let loader = aws_config::defaults(behavior_version())
            .region(region)
            .http_client(http_client)
            .timeout_config(timeouts());
        let sdk = loader.load().await;
        let endpoint_url = settings.endpoint_url.or_else(|| sdk.endpoint_url().map(str::to_owned));
        Self { sdk, endpoint_url }
    }

    /// Uses `credentials`, and nothing of the environment but proxy and roots of trust.
    pub fn with_credentials(credentials: StaticCredentials, settings: AwsSettings) -> Self {
        let credentials = Credentials::new(
            credentials.access_key_id,
            credentials.secret_access_key.as_str(),
            credentials.session_token.as_ref().map(|token| token.to_string()),
            None,
            "strongroom",
        );
        let region = settings.region.unwrap_or_else(|| FALLBACK_REGION.to_owned());
        let sdk = SdkConfig::builder()
            .behavior_version(behavior_version())
            .region(Region::new(region))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(http_client())
            .timeout_config(timeouts())
            .build();
        Self { sdk, endpoint_url: settings.endpoint_url }
    }

    /// The region of requests.
    pub fn region(&self) -> &str {
        self.sdk.region().map_or(FALLBACK_REGION, |region| region.as_ref())
    }

    /// Where requests go, unless to AWS.
    pub fn endpoint_url(&self) -> Option<&str> {
        self.endpoint_url.as_deref()
    }

    pub(crate) fn sdk(&self) -> &SdkConfig {
        &self.sdk
    }
}

/// The SDK's defaults as of that day: a new SDK doesn't change them unseen.
fn behavior_version() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

async fn find_region(settings: &AwsSettings, http_client: &SharedHttpClient) -> Region {
    if let Some(region) = &settings.region {
        return Region::new(region.clone());
    }
    let told = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new());
    if let Some(region) = told.region().await {
        return region;
    }
    // A machine outside EC2 takes seconds to find out that it is; who names an endpoint needn't wait for that.
    if settings.endpoint_url.is_none() {
        let client = ProviderConfig::without_region().with_http_client(http_client.clone());
        let instance = ImdsRegionProvider::builder().configure(&client).build();
        if let Some(region) = instance.region().await {
            return region;
        }
    }
    Region::from_static(FALLBACK_REGION)
}

/// No limit on a whole attempt here: it depends on what is sent.
fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build()
}

fn http_client() -> SharedHttpClient {
    // Hidden in the SDK's documentation, and its only way to a client that goes through a proxy.
    Builder::new().build_with_connector_fn(|settings, components| {
        let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).build()
    })
}
