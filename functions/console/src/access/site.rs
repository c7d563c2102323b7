//! Where the console of one machine is found: under a name that nobody knows who was not told.
//!
//! Invariant: what browsers show of themselves counts under that name only. All ports of a host share its cookies, so a session under
//! 127.0.0.1 would be shown to whatever else listens there; and whoever knows a name can make it lead here (DNS rebinding).

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;

use super::{headers, refused};
use crate::problem::Problem;

/// What the name is derived for.
const CONTEXT: &str = "strongroom 2026-11-29 name of a console on the loopback interface";
/// How HTTP clients reach it that are no browsers, and show a token.
const ADDRESSES: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// A console's name and port.
#[derive(Debug)]
pub struct Site {
    name: String,
    port: u16,
}

impl Site {
    /// That of the console with this token: the same as long as the token is. Browsers find names below `localhost` on the loopback interface
    /// (RFC 6761, section 6.3).
    pub fn new(token: &str, port: u16) -> Self {
        let key = blake3::derive_key(CONTEXT, token.as_bytes());
        Self { name: format!("strongroom-{}.localhost", hex::encode(&key[..8])), port }
    }

    /// What addresses of its pages begin with.
    pub fn origin(&self) -> String {
        format!("http://{}:{}", self.name, self.port)
    }

    /// Lets only those requests through to a console that are meant for this one.
    pub fn guard(self, console: Router) -> Router {
        console.layer(from_fn_with_state(Arc::new(self), here_only)).layer(from_fn(headers))
    }

    fn is_meant(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else {
            return false;
        };
        let name = host.host().to_ascii_lowercase();
        // Equality of hashes takes as long for what is nearly right.
        let is_told = blake3::hash(name.as_bytes()) == blake3::hash(self.name.as_bytes());
        let is_client = ADDRESSES.contains(&name.as_str()) && headers.contains_key(header::AUTHORIZATION);
        host.port_u16().unwrap_or(80) == self.port && (is_told || is_client)
    }
}

async fn here_only(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    if site.is_meant(request.headers()) {
        return next.run(request).await;
    }
    let detail = "browsers find this console under its name only, at the address that `strongroom up` printed; other clients take 127.0.0.1, \
                  its port, and `Authorization: Bearer TOKEN`";
    refused(request.headers(), Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
}

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

    #[test]
    fn only_its_own_name_or_a_token_leads_there() {
        let site = Site::new("token", 8464);
        let name = site.origin().strip_prefix("http://").unwrap().to_owned();
        let is_meant = |pairs: &[(&'static str, &str)]| site.is_meant(&headers(pairs));
        assert!(is_meant(&[("host", &name)]) && is_meant(&[("host", &name.to_uppercase())]));
        for address in ["127.0.0.1:8464", "localhost:8464", "[::1]:8464"] {
            assert!(is_meant(&[("host", address), ("authorization", "Bearer token")]), "{address}");
            assert!(!is_meant(&[("host", address), ("cookie", "a=b")]), "{address}");
        }
        let (bare, other) = (name.replace(":8464", ""), Site::new("other", 8464).origin());
        for wrong in [&bare, &name.replace("8464", "8465"), &other[7..], "localhost:8464.example", "", "a b"]
        {
            assert!(!is_meant(&[("host", wrong)]), "{wrong}");
        }
        let rebound = [("host", "example.com:8464"), ("authorization", "Bearer token")];
        assert!(!is_meant(&rebound) && !is_meant(&[]));
        let twice = headers(&[("host", &name)]).into_iter().chain(headers(&[("host", &name)]));
        let mut both = HeaderMap::new();
        for (key, value) in twice {
            both.append(key.unwrap(), value);
        }
        assert!(!site.is_meant(&both));
    }

    #[test]
    fn the_name_stays_with_the_token() {
        assert_eq!(Site::new("token", 1).name, Site::new("token", 2).name);
        assert_ne!(Site::new("token", 1).name, Site::new("tokens", 1).name);
        assert!(
            Site { name: "x.localhost".to_owned(), port: 80 }.is_meant(&headers(&[("host", "x.localhost")]))
        );
    }
}
