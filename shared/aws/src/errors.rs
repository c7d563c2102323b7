//! Why a request to AWS failed, whichever service it was for.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    /// The reason in words. AWS's errors name keys, roles and resources, never secrets.
    pub(crate) text: String,
}

/// What kind of failure it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The service has answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// The service's name for the error; empty if it gave none.
        code: String,
    },
    /// No whole answer has come: connection, timeout, an answer cut short. The request may have taken effect.
    Lost,
    /// There are no credentials to sign with, or they can't be renewed.
    NoCredentials,
    /// The request was never sent: something in it, or in the configuration, can't be.
    NotSent,
}

impl Failure {
    pub(crate) fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let status = answer.raw().status().as_u16();
                let code = answer.err().code().unwrap_or_default().to_owned();
                let text = match (code.as_str(), answer.err().message()) {
                    ("", None) => format!("HTTP status {status} without an explanation"),
                    ("", Some(message)) => format!("HTTP status {status}: {message}"),
                    (code, None) => format!("{code} (HTTP status {status})"),
                    (code, Some(message)) => format!("{code} (HTTP status {status}): {message}"),
                };
                Self { cause: Cause::Answered { status, code }, text }
            }
            SdkError::TimeoutError(_) => Self { cause: Cause::Lost, text: "no answer in time".to_owned() },
            error => {
                let text = in_words(&error);
                let cause = match &error {
                    _ if lacks_credentials(&error) => Cause::NoCredentials,
                    SdkError::ConstructionFailure(_) => Cause::NotSent,
                    SdkError::DispatchFailure(failure) if failure.is_user() => Cause::NotSent,
                    _ => Cause::Lost,
                };
                Self { cause, text }
            }
        }
    }

    /// Whether the same request may well succeed a little later.
    pub(crate) fn may_pass(&self) -> bool {
        match &self.cause {
            Cause::Lost => true,
            Cause::NoCredentials | Cause::NotSent => false,
            Cause::Answered { status, code } => {
                const PASSING: [&str; 9] = [
                    "BadDigest",
                    "IncompleteBody",
                    "InternalError",
                    "OperationAborted",
                    "RequestTimeout",
                    "ServiceUnavailable",
                    "SlowDown",
                    "ThrottlingException",
                    "XAmzContentChecksumMismatch",
                ];
                PASSING.contains(&code.as_str())
                    || matches!(status, 408 | 429)
                    || (*status >= 500 && *status != 501)
            }
        }
    }

    /// Whether who asks, not what is asked, is the reason.
    pub(crate) fn is_denied(&self) -> bool {
        match &self.cause {
            Cause::NoCredentials => true,
            Cause::Lost | Cause::NotSent => false,
            Cause::Answered { status, code } => {
                matches!(status, 401 | 403)
                    || code.starts_with("AccessDenied")
                    || code.contains("ExpiredToken")
                    || code == "InvalidToken"
            }
        }
    }

    /// What to do about missing or refused credentials; `None` if a permission is what lacks.
    pub(crate) fn credentials_advice(&self) -> Option<&'static str> {
        match &self.cause {
            Cause::NoCredentials => Some(
                "no usable AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 AWS_PROFILE, or give this machine a role",
            ),
            Cause::Answered { code, .. } => match code.as_str() {
                "InvalidAccessKeyId" | "UnrecognizedClientException" | "InvalidClientTokenId" => {
                    Some("this access key is not known here; was it deleted, or is it for another store?")
                }
                "SignatureDoesNotMatch" | "InvalidSignatureException" => {
                    Some("the secret access key doesn't belong to the access key id")
                }
                "RequestTimeTooSkewed" => Some("this machine's clock is wrong; set it (NTP)"),
                "ExpiredToken" | "ExpiredTokenException" | "InvalidToken" | "TokenRefreshRequired" => {
                    Some("the temporary credentials have expired; renew them, or log in again")
                }
                _ => None,
            },
            Cause::Lost | Cause::NotSent => None,
        }
    }
}

/// An error and its causes, each said once.
fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Looks for a credentials error among the causes. One that a timeout or an unreachable source of credentials brought
/// about counts as well: it is what to look after.
fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
            return !matches!(credentials, CredentialsError::ProviderTimedOut(_));
        }
        cause = error.source();
    }
    false
}
