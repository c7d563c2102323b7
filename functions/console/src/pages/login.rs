//! Getting into the console of one machine, with its token or the code of a link.
//!
//! Invariant: neither is ever in an address that is asked for: addresses stay in histories and logs.

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use serde::Deserialize;

use super::{Filled, Sorry, filled, sorry};
use crate::Console;
use crate::access::is_from_here;
use crate::problem::Problem;

/// What getting in takes; all of it is open to everybody.
pub fn routes() -> Router<Arc<Console>> {
    Router::new().route("/login", get(async || ask(StatusCode::OK, None)).post(enter))
}

#[derive(Template)]
#[template(path = "login.html")]
struct Page<'a> {
    problem: Option<&'a str>,
}

/// Asks for a token; in place of a page that is shown to nobody without, too.
pub fn ask(status: StatusCode, problem: Option<&str>) -> Response {
    let mut response = match (Page { problem }).render() {
        Ok(page) => (status, Html(page)).into_response(),
        Err(error) => sorry(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    };
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[derive(Debug, Deserialize)]
struct Given {
    token: String,
}

/// From then on, a browser is known by a cookie. No other site can have it be so: whoever is let in is to know that.
async fn enter(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    form: Filled<Given>,
) -> Result<Response, Sorry> {
    if !is_from_here(&headers) {
        let detail = "another site asked for this; open /login itself";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).into());
    }
    let Given { token } = filled(form)?;
    let cookie = console.access.enter(token.trim(), console.service.home.now());
    let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) else {
        let detail = "This is not the token of this console, or a code that was used already or is too old.";
        return Ok(ask(StatusCode::UNAUTHORIZED, Some(detail)));
    };
    let mut response = Redirect::to("/").into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}
