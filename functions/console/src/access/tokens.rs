//! Those who are let in by their tokens, and browsers by what they got for one: sessions, which end with the process.

use axum::http::{HeaderMap, header};
use blake3::Hash;

use super::{Caller, Role, cookie_of};

/// Known tokens.
pub struct Tokens {
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

impl Tokens {
    /// These; `secret`: at random, for each process.
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

    /// The name of the cookie.
    pub fn cookie(&self) -> &str {
        &self.cookie
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
    pub fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let shown = shown(headers, &self.cookie)?;
        let role = self.known(&shown)?.role;
        Some(Caller { role, name: None, by_cookie: shown.by_cookie })
    }
}

/// What somebody showed.
struct Shown<'a> {
    text: &'a str,
    by_cookie: bool,
}

fn shown<'a>(headers: &'a HeaderMap, cookie: &str) -> Option<Shown<'a>> {
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = authorization.to_str().ok()?.split_once(' ')?;
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        return is_bearer.then_some(Shown { text: token.trim(), by_cookie: false });
    }
    cookie_of(headers, cookie).map(|text| Shown { text, by_cookie: true })
}

#[cfg(test)]
mod tests {
    use super::super::tests::headers;
    use super::*;

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
        let known = [("view", Role::Viewer), ("operate", Role::Operator)];
        let tokens = Tokens::new(known, &[7; 32]);
        let role = |tokens: &Tokens, name: &'static str, text: &str| {
            tokens.caller(&headers(&[(name, text)])).map(|caller| caller.role)
        };
        let by_token = |token: &str| role(&tokens, "authorization", &format!("Bearer {token}"));
        assert_eq!((by_token("view"), by_token("operate")), (Some(Role::Viewer), Some(Role::Operator)));
        for wrong in ["", "View", "operat", &"x".repeat(10_000)] {
            assert_eq!(by_token(wrong), None);
        }
        let cookie = |tokens: &Tokens, text: &str| role(tokens, "cookie", text);
        let entered = tokens.enter("operate").unwrap();
        let pair = entered.split(';').next().unwrap();
        assert_eq!(cookie(&tokens, pair), Some(Role::Operator));
        assert!(!entered.contains("operate"), "the token itself does not go into the cookie");
        assert_eq!(by_token(pair.split_once('=').unwrap().1), None, "a session is no token");
        assert_eq!(cookie(&tokens, &format!("{}=operate", tokens.cookie)), None, "nor the other way round");
        assert_eq!(cookie(&Tokens::new(known, &[8; 32]), pair), None, "of another process");
        assert_eq!(tokens.enter("wrong"), None);
        let nobody = Tokens::new([], &[7; 32]);
        assert_eq!(role(&nobody, "authorization", "Bearer "), None);
        assert_ne!(nobody.cookie, tokens.cookie);
    }
}
