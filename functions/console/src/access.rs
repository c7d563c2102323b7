//! Who may do what.
//!
//! Invariant: a request that changes something is an operator's, and was made by a page of this console or by a client that holds the
//! token itself: a cookie alone, which browsers send along with what other sites make them ask for, is not enough.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use blake3::Hash;

use crate::problem::Problem;
use crate::{Console, pages};

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See all that the console shows.
    Viewer,
    /// Ask for changes, too.
    Operator,
}

/// Those who are let in, by their tokens; browsers by sessions, which end with the process.
pub struct Access {
    known: Vec<Known>,
    /// The name of the cookie: cookies of one machine are shared by all its ports, and there may be several consoles.
    cookie: String,
}

struct Known {
    token: Hash,
    /// What a browser that showed the token is known by: worth nothing elsewhere, or later.
    session: String,
    role: Role,
}

impl Access {
    /// Lets those in who show one of these. `secret`: at random, for each process.
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, Role)>, secret: &[u8; 32]) -> Self {
        let known = tokens.into_iter().map(|(token, role)| {
            let session = blake3::keyed_hash(secret, token.as_bytes()).to_hex().to_string();
            Known { token: blake3::hash(token.as_bytes()), session, role }
        });
        let known: Vec<Known> = known.collect();
        let all: Vec<u8> = known.iter().flat_map(|known| *known.token.as_bytes()).collect();
        let cookie = format!("strongroom-console-{}", &blake3::hash(&all).to_hex()[..8]);
        Self { known, cookie }
    }

    /// What a browser that shows a token is to show from then on: a cookie.
    pub fn enter(&self, token: &str) -> Option<String> {
        let known = self.known(&Shown { text: token, by_cookie: false })?;
        Some(format!("{}={}; HttpOnly; SameSite=Lax; Path=/", self.cookie, known.session))
    }

    fn known(&self, shown: &Shown<'_>) -> Option<&Known> {
        // Equality of hashes takes as long for what is nearly right.
        let given = blake3::hash(shown.text.as_bytes());
        let is_it = |known: &&Known| {
            given == if shown.by_cookie { blake3::hash(known.session.as_bytes()) } else { known.token }
        };
        self.known.iter().filter(is_it).max_by_key(|known| known.role)
    }

    /// Who sent these, if it is somebody who is let in.
    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let shown = shown(headers, &self.cookie)?;
        let role = self.known(&shown)?.role;
        Some(Caller { role, by_cookie: shown.by_cookie })
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// What they may do.
    pub role: Role,
    /// Whether a cookie says so, that is, perhaps without their knowing.
    by_cookie: bool,
}

/// What somebody showed.
struct Shown<'a> {
    text: &'a str,
    by_cookie: bool,
}

fn shown<'a>(headers: &'a HeaderMap, cookie: &str) -> Option<Shown<'a>> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(authorization) = text(header::AUTHORIZATION) {
        let (scheme, token) = authorization.split_once(' ')?;
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        return is_bearer.then_some(Shown { text: token.trim(), by_cookie: false });
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == cookie).map(|(_, text)| Shown { text, by_cookie: true })
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

/// An error, as whoever asked can read it.
fn refused(headers: &HeaderMap, problem: Problem) -> Response {
    if wants_html(headers) { pages::sorry(problem) } else { problem.into_response() }
}

/// Lets only those pass who show a token.
pub async fn known_only(State(console): State<Arc<Console>>, mut request: Request, next: Next) -> Response {
    let Some(caller) = console.access.caller(request.headers()) else {
        let detail = "show the token of this console: in a browser, open the link that `strongroom up` printed; with other clients, \
                      send it as `Authorization: Bearer TOKEN`";
        let mut response = refused(request.headers(), Problem::new(StatusCode::UNAUTHORIZED, detail));
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Lets only operators pass, and only so many.
pub async fn operators_only(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let forbidden = |detail: &str| refused(headers, Problem::new(StatusCode::FORBIDDEN, detail));
    let operator = request.extensions().get::<Caller>().filter(|caller| caller.role == Role::Operator);
    let Some(operator) = operator else {
        return forbidden("this takes an operator; the token shown is a viewer's");
    };
    if operator.by_cookie && !is_from_here(headers) {
        return forbidden(
            "another site asked for this; ask from a page of this console, or send the token as `Authorization: Bearer TOKEN`",
        );
    }
    if let Err(wait_ms) = console.limit.take(console.service.home.now()) {
        let detail = "more changes are asked for than one console takes in a minute";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
        return refused(headers, Problem { retry_after: Some(wait_ms.div_ceil(1000)), ..problem });
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
        ("referrer-policy", "same-origin"),
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
            shown(&headers(pairs), "console").map(|shown| (shown.text.to_owned(), shown.by_cookie))
        };
        assert_eq!(found(&[("authorization", "Bearer abc")]), Some(("abc".to_owned(), false)));
        assert_eq!(found(&[("cookie", "a=b; console=xyz; c=d")]), Some(("xyz".to_owned(), true)));
        let both = [("authorization", "Basic abc"), ("cookie", "console=xyz")];
        assert_eq!(found(&both), None, "who shows something else does not mean the cookie");
        assert_eq!(found(&[("cookie", "consolex=xyz")]), None);
    }

    #[test]
    fn a_token_gives_its_role_and_nothing_else_does() {
        let tokens = [("view", Role::Viewer), ("operate", Role::Operator)];
        let access = Access::new(tokens, &[7; 32]);
        let role = |access: &Access, name: &'static str, text: &str| {
            access.caller(&headers(&[(name, text)])).map(|caller| caller.role)
        };
        let by_token = |token: &str| role(&access, "authorization", &format!("Bearer {token}"));
        assert_eq!((by_token("view"), by_token("operate")), (Some(Role::Viewer), Some(Role::Operator)));
        for wrong in ["", "View", "operat", &"x".repeat(10_000)] {
            assert_eq!(by_token(wrong), None);
        }
        let cookie = |access: &Access, text: &str| role(access, "cookie", text);
        let entered = access.enter("operate").unwrap();
        let pair = entered.split(';').next().unwrap();
        assert_eq!(cookie(&access, pair), Some(Role::Operator));
        assert!(!entered.contains("operate"), "the token itself does not go into the cookie");
        assert_eq!(by_token(pair.split_once('=').unwrap().1), None, "a session is no token");
        assert_eq!(cookie(&access, &format!("{}=operate", access.cookie)), None, "nor the other way round");
        assert_eq!(cookie(&Access::new(tokens, &[8; 32]), pair), None, "of another process");
        assert_eq!(access.enter("wrong"), None);
        let nobody = Access::new([], &[7; 32]);
        assert_eq!(role(&nobody, "authorization", "Bearer "), None);
        assert_ne!(nobody.cookie, access.cookie);
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
