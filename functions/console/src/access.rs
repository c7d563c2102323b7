//! Who may do what.
//!
//! Invariant: a request that changes something is an operator's, and was made by a page of this console or by a client that holds the
//! token itself: a cookie alone, which browsers send along with what other sites make them ask for, is not enough.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Console;
use crate::problem::Problem;

/// The cookie that a browser shows its token in.
pub const COOKIE: &str = "strongroom-console";
/// The longest token that is looked at, bytes.
const MAX_TOKEN_BYTES: usize = 256;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See all that the console shows.
    Viewer,
    /// Ask for changes, too.
    Operator,
}

/// The tokens that let people in.
pub struct Access(Vec<(blake3::Hash, Role)>);

impl Access {
    /// Lets those in who show one of these.
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, Role)>) -> Self {
        Self(tokens.into_iter().map(|(token, role)| (blake3::hash(token.as_bytes()), role)).collect())
    }

    /// What whoever shows a token may do. Takes as long for one that is nearly right (equality of hashes, in constant time).
    pub fn role(&self, token: &str) -> Option<Role> {
        let given = blake3::hash(token.get(..MAX_TOKEN_BYTES).unwrap_or(token).as_bytes());
        self.0.iter().filter(|(hash, _)| *hash == given).map(|(_, role)| *role).max()
    }
}

/// How somebody showed a token.
struct Shown<'a> {
    token: &'a str,
    /// By a cookie, that is, perhaps without knowing.
    by_cookie: bool,
}

fn shown(headers: &HeaderMap) -> Option<Shown<'_>> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(authorization) = text(header::AUTHORIZATION) {
        let (scheme, token) = authorization.split_once(' ')?;
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        return is_bearer.then_some(Shown { token: token.trim(), by_cookie: false });
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| Shown { token, by_cookie: true })
}

/// Whether a browser says that a page of this very console made it ask (Fetch metadata; `Origin` from browsers without).
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (text("origin"), text("host")) else { return false };
    origin.split_once("://").is_some_and(|(_, origin)| origin == host)
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

/// Lets only those pass who show a token.
pub async fn known_only(State(console): State<Arc<Console>>, mut request: Request, next: Next) -> Response {
    let role = shown(request.headers()).and_then(|shown| console.access.role(shown.token));
    let Some(role) = role else {
        let detail = "show the token of this console: in a browser, open the link that `strongroom up` printed; with other clients, \
                      send it as `Authorization: Bearer TOKEN`";
        let mut response = if wants_html(request.headers()) {
            (StatusCode::UNAUTHORIZED, detail).into_response()
        } else {
            Problem::new(StatusCode::UNAUTHORIZED, detail).into_response()
        };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    };
    request.extensions_mut().insert(role);
    next.run(request).await
}

/// Lets only operators pass, and only so many.
pub async fn operators_only(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let refused = |detail: &str| Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    if request.extensions().get::<Role>() != Some(&Role::Operator) {
        return refused("this takes an operator; the token shown is a viewer's");
    }
    let headers = request.headers();
    if shown(headers).is_some_and(|shown| shown.by_cookie) && !is_from_here(headers) {
        return refused(
            "another site asked for this; ask from a page of this console, or send the token as `Authorization: Bearer TOKEN`",
        );
    }
    if let Err(wait_ms) = console.limit.take(console.service.home.now()) {
        let problem = Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "more changes are asked for than one console takes in a minute",
        );
        return Problem { retry_after: Some(wait_ms.div_ceil(1000)), ..problem }.into_response();
    }
    next.run(request).await
}

/// Tells browsers to run and load nothing but what comes from here, and to keep nothing.
pub async fn headers(request: Request, next: Next) -> Response {
    const ALWAYS: [(&str, &str); 5] = [
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
             frame-ancestors 'none'; base-uri 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ];
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(parse).collect()
    }

    #[test]
    fn tokens_are_found_in_a_header_or_a_cookie() {
        let found = |pairs: &[(&'static str, &str)]| {
            shown(&headers(pairs)).map(|shown| (shown.token.to_owned(), shown.by_cookie))
        };
        assert_eq!(found(&[("authorization", "Bearer abc")]), Some(("abc".to_owned(), false)));
        assert_eq!(found(&[("cookie", "a=b; strongroom-console=xyz; c=d")]), Some(("xyz".to_owned(), true)));
        let both = [("authorization", "Basic abc"), ("cookie", "strongroom-console=xyz")];
        assert_eq!(found(&both), None, "who shows something else does not mean the cookie");
        assert_eq!(found(&[("cookie", "strongroom-consolex=xyz")]), None);
    }

    #[test]
    fn a_token_gives_its_role_and_nothing_else_does() {
        let access = Access::new([("view", Role::Viewer), ("operate", Role::Operator)]);
        assert_eq!(access.role("view"), Some(Role::Viewer));
        assert_eq!(access.role("operate"), Some(Role::Operator));
        for wrong in ["", "View", "operate ", "operat", &"x".repeat(10_000)] {
            assert_eq!(access.role(wrong), None);
        }
        assert_eq!(Access::new([]).role(""), None);
    }

    #[test]
    fn only_a_page_of_this_console_counts_as_from_here() {
        let here = |pairs: &[(&'static str, &str)]| is_from_here(&headers(pairs));
        assert!(here(&[("sec-fetch-site", "same-origin")]));
        assert!(here(&[("origin", "http://127.0.0.1:8"), ("host", "127.0.0.1:8")]));
        assert!(!here(&[]));
        for site in ["cross-site", "same-site", "none"] {
            assert!(!here(&[("sec-fetch-site", site), ("origin", "http://a"), ("host", "a")]), "{site}");
        }
        assert!(!here(&[("origin", "http://127.0.0.1:9"), ("host", "127.0.0.1:8")]));
        assert!(!here(&[("origin", "null"), ("host", "127.0.0.1:8")]));
    }
}
