//! Those who are let in by their tokens, and browsers by what they got for one: sessions, which end with the process.

use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use blake3::Hash;
use strongroom_format::ids::TimestampMs;

use super::{Caller, Role, cookie_of};

/// Known tokens.
pub struct Tokens {
    known: Vec<Known>,
    /// The name of the cookie: cookies of one machine are shared by all its ports, and there may be several consoles.
    cookie: String,
    /// Not yet used.
    code: Mutex<Option<Code>>,
}

/// What lets a browser in once. A link stays in histories and on screens, whatever becomes of it: a token is not to be in one.
struct Code {
    code: Hash,
    session: String,
    until: TimestampMs,
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
        Self { known, cookie, code: Mutex::new(None) }
    }

    /// The name of the cookie.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Lets a browser in once, until then, that shows this code in place of a token.
    pub fn with_code(mut self, code: &str, token: &str, until: TimestampMs) -> Self {
        let known = self.known(&Shown { text: token, by_cookie: false });
        let code = known.map(|known| Code {
            code: blake3::hash(code.as_bytes()),
            session: known.session.clone(),
            until,
        });
        self.code = Mutex::new(code);
        self
    }

    /// What a browser that shows a token or a code is to show from then on: a cookie.
    pub fn enter(&self, shown: &str, now: TimestampMs) -> Option<String> {
        let session = match self.known(&Shown { text: shown, by_cookie: false }) {
            Some(known) => known.session.clone(),
            None => self.redeemed(shown, now)?,
        };
        Some(format!("{}={session}; HttpOnly; SameSite=Lax; Path=/", self.cookie))
    }

    fn redeemed(&self, shown: &str, now: TimestampMs) -> Option<String> {
        let mut code = self.code.lock().unwrap_or_else(PoisonError::into_inner);
        let code = code.take_if(|code| code.code == blake3::hash(shown.as_bytes()))?;
        (now < code.until).then_some(code.session)
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

    const NOW: TimestampMs = TimestampMs(1000);

    #[test]
    fn a_code_lets_in_once_and_for_a_while() {
        let known = [("view", Role::Viewer), ("operate", Role::Operator)];
        let tokens = |token| Tokens::new(known, &[7; 32]).with_code("code", token, TimestampMs(2000));
        let timely = tokens("operate");
        let by_code = |text: &str| timely.caller(&headers(&[("authorization", &format!("Bearer {text}"))]));
        assert_eq!(by_code("code"), None, "it is for browsers");
        assert_eq!(timely.enter("cod", NOW), None);
        let entered = timely.enter("code", NOW);
        assert!(entered.is_some());
        assert_eq!(entered, timely.enter("operate", NOW));
        assert_eq!(timely.enter("code", NOW), None, "twice");
        assert_eq!(tokens("operate").enter("code", TimestampMs(2000)), None, "late");
        assert_eq!(tokens("view").enter("code", NOW), timely.enter("view", NOW), "as what it stands for");
        assert_eq!(tokens("nobody's").enter("code", NOW), None);
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
        let entered = tokens.enter("operate", NOW).unwrap();
        let pair = entered.split(';').next().unwrap();
        assert_eq!(cookie(&tokens, pair), Some(Role::Operator));
        assert!(!entered.contains("operate"), "the token itself does not go into the cookie");
        assert_eq!(by_token(pair.split_once('=').unwrap().1), None, "a session is no token");
        assert_eq!(cookie(&tokens, &format!("{}=operate", tokens.cookie)), None, "nor the other way round");
        assert_eq!(cookie(&Tokens::new(known, &[8; 32]), pair), None, "of another process");
        assert_eq!(tokens.enter("wrong", NOW), None);
        let nobody = Tokens::new([], &[7; 32]);
        assert_eq!(role(&nobody, "authorization", "Bearer "), None);
        assert_ne!(nobody.cookie, tokens.cookie);
    }
}
