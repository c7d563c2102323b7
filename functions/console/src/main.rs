//! The console on AWS Lambda, behind an HTTP API of API Gateway.
//!
//! `STRONGROOM_CONSOLE`, JSON: who is let in (`claim`, `viewers`, `operators`), where they sign in (`sign_in`), and the KMS key of sessions
//! (`session_key`), an HMAC key that nobody else may use.

use serde::Deserialize;
use strongroom_aws::AwsSettings;
use strongroom_connect::kms_secret;
use strongroom_console::{Access, Limits, PeopleSettings, Provider, answer, router};
use strongroom_fleet::Service;
use strongroom_vault::{VaultError, VaultResult};

/// What the key of sessions is made of, with that KMS key: the same for all instances of the function.
const SESSIONS: &[u8] = b"strongroom v1 console sessions";

/// What the environment says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    session_key: String,
    claim: String,
    viewers: Vec<String>,
    operators: Vec<String>,
    sign_in: Provider,
}

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::answer(begin, async |console, event, patience| answer(console, event, patience).await)
}

async fn begin(service: Service, aws: AwsSettings) -> VaultResult<axum::Router> {
    let said = std::env::var("STRONGROOM_CONSOLE").unwrap_or_default();
    let invalid = |reason: String| VaultError::Invalid(format!("STRONGROOM_CONSOLE: {reason}"));
    let Settings { session_key, claim, viewers, operators, sign_in } =
        serde_json::from_str(&said).map_err(|error| invalid(error.to_string()))?;
    let people = PeopleSettings { claim, viewers, operators, sign_in };
    people.check().map_err(invalid)?;
    let session_key = kms_secret(aws, &session_key, SESSIONS).await?;
    let access = Access::by_claims(people, *session_key.expose());
    Ok(router(service, access, Limits::BEHIND_GATEWAY))
}
