//! Errors as HTTP clients get them: problem details (RFC 9457).

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use strongroom_store::StoreErrorKind;
use strongroom_vault::VaultError;

use crate::pages;

/// An error, with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// What is wrong.
    pub detail: String,
    /// Seconds after which trying again may help.
    pub retry_after: Option<u64>,
}

/// What handlers answer.
pub type Answered<T> = Result<T, Problem>;

impl Problem {
    /// An error of a kind.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None }
    }

    /// Somebody whose claims give them no role.
    pub fn without_role() -> Self {
        let detail = "you are known and have no role here: ask whoever runs this console to have you put into a group of its viewers or \
                      operators, then sign in again";
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// Nothing of that name.
    pub fn not_found(kind: &str, name: &str) -> Self {
        let shown: String = name.chars().take(80).collect();
        Self::new(StatusCode::NOT_FOUND, format!("there is no {kind} '{}'", shown.escape_debug()))
    }
}

impl From<VaultError> for Problem {
    fn from(error: VaultError) -> Self {
        let status = match &error {
            VaultError::Find(_) => StatusCode::NOT_FOUND,
            VaultError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            VaultError::Store(store) if store.kind == StoreErrorKind::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::error!(%error, "a request to the console failed");
        }
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(5);
        Self { status, detail: error.to_string(), retry_after }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let body = json!({ "type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail });
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What is nowhere: to browsers, as a page.
pub async fn no_such_page(headers: HeaderMap, uri: Uri) -> Response {
    let problem = Problem::not_found("page", uri.path());
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let is_browser = accept.is_some_and(|accept| accept.contains("text/html"));
    if is_browser { pages::sorry(problem) } else { problem.into_response() }
}

/// What is there and can't be done so.
pub async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("there is no {method} of '{}'", uri.path()))
}
