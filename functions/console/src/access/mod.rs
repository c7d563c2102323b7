//! Who may do what.
//!
//! Invariant: a request that changes something is an operator's, and was made by a page of this console or by a client that holds the
//! token itself: a cookie alone, which browsers send along with what other sites make them ask for, is not enough.

mod people;
mod site;
mod tokens;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use strongroom_format::ids::TimestampMs;
use tracing::info;

pub use people::{Claims, People, PeopleSettings, Provider, origin};
pub use site::Site;

use tokens::Tokens;

use crate::Console;
use crate::pages::{self, login, sign_in};
use crate::problem::{Answered, Problem};

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// See all that the console shows.
    Viewer,
    /// Ask for changes, too.
    Operator,
}

/// Who is let in, and as what.
pub struct Access(Way);

enum Way {
    /// Whoever shows one of some tokens.
    Tokens(Tokens),
    /// People of an identity provider, whose tokens a gateway verified.
    People(People),
}

impl Access {
    /// Lets those in who show one of these tokens. `secret`: at random, for each process.
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, Role)>, secret: &[u8; 32]) -> Self {
        Self(Way::Tokens(Tokens::new(tokens, secret)))
    }

    /// Lets those in whose claims give them a role. `session_key`: the same for all processes of one console, and known to nobody else:
    /// whoever has it is whom they like.
    pub const fn by_claims(settings: PeopleSettings, session_key: [u8; 32]) -> Self {
        Self(Way::People(People::new(settings, session_key)))
    }

    /// The same; once, and until then, also for a browser that shows a code in place of this token.
    #[must_use]
    pub fn with_code(self, code: &str, token: &str, until: TimestampMs) -> Self {
        match self.0 {
            Way::Tokens(tokens) => Self(Way::Tokens(tokens.with_code(code, token, until))),
            Way::People(people) => Self(Way::People(people)),
        }
    }

    /// What a browser that shows a token or a code is to show from then on: a cookie.
    pub fn enter(&self, shown: &str, now: TimestampMs) -> Option<String> {
        match &self.0 {
            Way::Tokens(tokens) => tokens.enter(shown, now),
            Way::People(_) => None,
        }
    }

    /// Those who sign in at an identity provider, if that is how it is done.
    pub const fn people(&self) -> Option<&People> {
        match &self.0 {
            Way::Tokens(_) => None,
            Way::People(people) => Some(people),
        }
    }

    /// What makes a browser forget who it is.
    pub fn leave(&self) -> String {
        let (cookie, secure) = match &self.0 {
            Way::Tokens(tokens) => (tokens.cookie(), ""),
            Way::People(_) => (people::COOKIE, " Secure;"),
        };
        format!("{cookie}=; HttpOnly;{secure} SameSite=Lax; Path=/; Max-Age=0")
    }

    /// Who sent a request.
    fn caller(&self, request: &Request, now: TimestampMs) -> Result<Caller, Stranger> {
        match &self.0 {
            Way::Tokens(tokens) => tokens.caller(request.headers()).ok_or(Stranger::Nobody),
            Way::People(people) => people.caller(request, now),
        }
    }
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What they may do.
    pub role: Role,
    /// Who it is, as far as that is known.
    name: Option<String>,
    /// Whether a cookie says so, that is, perhaps without their knowing.
    by_cookie: bool,
}

impl Caller {
    /// Refuses viewers.
    ///
    /// # Errors
    /// 403.
    pub fn operates(&self) -> Answered<()> {
        if self.role == Role::Operator {
            return Ok(());
        }
        Err(Problem::new(StatusCode::FORBIDDEN, "this takes an operator, and you are here as a viewer"))
    }
}

/// Somebody who is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// They showed nothing that counts.
    Nobody,
    /// It is known who they are, and that they have no role.
    WithoutRole,
}

/// What a browser shows under the name of a cookie.
fn cookie_of<'a>(headers: &'a HeaderMap, cookie: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == cookie).map(|(_, text)| text)
}

/// Whether a browser says that a page of this very console made it ask (Fetch metadata; `Origin` from browsers without).
pub fn is_from_here(headers: &HeaderMap) -> bool {
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
pub fn refused(headers: &HeaderMap, problem: Problem) -> Response {
    if wants_html(headers) { pages::sorry(problem) } else { problem.into_response() }
}

/// Lets only those pass who are known, and only operators where something changes.
pub async fn guarded(State(console): State<Arc<Console>>, mut request: Request, next: Next) -> Response {
    let now = console.service.home.now();
    match (console.access.caller(&request, now), console.access.people()) {
        (Ok(caller), _) => {
            if !request.method().is_safe()
                && let Err(refusal) = may_change(&console, &caller, &request)
            {
                return refused(request.headers(), refusal);
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        (Err(Stranger::WithoutRole), _) => refused(request.headers(), Problem::without_role()),
        // Whoever looks at a page is asked who they are, and comes back to it.
        (Err(Stranger::Nobody), Some(_))
            if request.method() == Method::GET && wants_html(request.headers()) =>
        {
            let wanted = request.uri().path_and_query().map_or("/", |wanted| wanted.as_str());
            Redirect::to(&sign_in::link(wanted)).into_response()
        }
        (Err(Stranger::Nobody), None) if wants_html(request.headers()) => {
            login::ask(StatusCode::UNAUTHORIZED, None)
        }
        (Err(Stranger::Nobody), people) => {
            let detail = match people {
                Some(_) => {
                    "say who you are: in a browser, sign in (at /sign-in); with other clients, send a token of the identity provider as \
                     `Authorization: Bearer TOKEN`"
                }
                None => {
                    "show the token of this console: in a browser, sign in at /login; with other clients, send it \
                     as `Authorization: Bearer TOKEN`"
                }
            };
            let mut response = refused(request.headers(), Problem::new(StatusCode::UNAUTHORIZED, detail));
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

/// Lets only operators change something, from pages of this console if they are known by a cookie, and only so much.
fn may_change(console: &Console, caller: &Caller, request: &Request) -> Answered<()> {
    caller.operates()?;
    if caller.by_cookie && !is_from_here(request.headers()) {
        let detail = "another site asked for this; ask from a page of this console, or send the token as `Authorization: Bearer TOKEN`";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    if let Err(wait_ms) = console.limit.take(console.service.home.now()) {
        let detail = "more changes are asked for than one console takes in a minute";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
        return Err(Problem { retry_after: Some(wait_ms.div_ceil(1000)), ..problem });
    }
    info!(by = caller.name, method = %request.method(), path = request.uri().path(), "a change is asked for");
    Ok(())
}

/// What a page may load and ask: nothing but what comes from here, and ` ORIGIN` where it asks another place.
pub fn policy(other: &str) -> String {
    format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'{other}; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'"
    )
}

/// Tells browsers to run and load nothing but what comes from here, and to keep nothing.
pub async fn headers(request: Request, next: Next) -> Response {
    const ALWAYS: [(HeaderName, &str); 4] = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // The page to sign in on asks one other place, and says so itself.
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY)
        && let Ok(policy) = HeaderValue::from_str(&policy(""))
    {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(parse).collect()
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
