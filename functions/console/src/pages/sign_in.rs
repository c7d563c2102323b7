//! Signing in at an identity provider (OAuth 2.0 for Browser-Based Apps: authorization code with PKCE, RFC 7636), and out again.
//!
//! The browser does all of it: it asks the provider for a token and changes that for a session. The console never sees a code or a password,
//! and calls nobody.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

use super::{Shown, asset, encoded, show};
use crate::Console;
use crate::access::{Claims, Provider, Stranger, origin, policy};
use crate::problem::Problem;

/// What signing in takes; all of it is open to everybody.
pub fn routes() -> Router<Arc<Console>> {
    Router::new().route("/sign-in", get(page).post(enter)).route(
        "/sign-in.js",
        asset("text/javascript; charset=utf-8", include_str!("../../assets/sign-in.js")),
    )
}

/// Where somebody signs in who wanted to see a page.
pub fn link(wanted: &str) -> String {
    format!("/sign-in?then={}", encoded(wanted))
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page<'a> {
    provider: &'a Provider,
}

/// The page whose script signs somebody in.
async fn page(State(console): State<Arc<Console>>) -> Shown {
    let people = console.access.people().ok_or_else(|| Problem::not_found("page", "/sign-in"))?;
    let provider = people.provider();
    let mut response = show(&Page { provider })?;
    // Nothing else than this console and the provider's token endpoint is asked, and by this page alone.
    let policy = policy(&format!(" {}", origin(&provider.token_url).unwrap_or_default()));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    Ok(response)
}

/// Changes a token that was verified for a session. Browsers let other sites send no `Authorization`, so this is asked for on purpose.
async fn enter(
    State(console): State<Arc<Console>>,
    claims: Option<Extension<Claims>>,
) -> Result<Response, Problem> {
    let people = console.access.people().ok_or_else(|| Problem::not_found("page", "/sign-in"))?;
    let unknown = || {
        let detail = "this takes a token that was verified, as `Authorization: Bearer TOKEN`";
        Problem::new(StatusCode::UNAUTHORIZED, detail)
    };
    let Extension(claims) = claims.ok_or_else(unknown)?;
    let cookie = people.enter(&claims, console.service.home.now()).map_err(|stranger| match stranger {
        Stranger::Nobody => unknown(),
        Stranger::WithoutRole => Problem::without_role(),
    })?;
    let cookie = HeaderValue::from_str(&cookie).map_err(|_| unknown())?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

#[derive(Template)]
#[template(path = "signed_out.html")]
struct SignedOut {
    signs_in: bool,
}

/// Makes a browser forget who it is.
pub async fn leave(State(console): State<Arc<Console>>) -> Response {
    let mut response = Redirect::to("/signed-out").into_response();
    if let Ok(cookie) = HeaderValue::from_str(&console.access.leave()) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// Says that it did, and how to come back.
pub async fn signed_out(State(console): State<Arc<Console>>) -> Shown {
    show(&SignedOut { signs_in: console.access.people().is_some() })
}
