//! People of an identity provider (OpenID Connect Core 1.0), whose tokens were verified before a request came here: by the JWT authorizer
//! of API Gateway.
//!
//! API Gateway looks for a token in a header, which browsers send with no page. So a browser changes its token once for a session, which
//! says who it is and until when, under a key that the console alone has.
//!
//! Invariant: a session says what the claims of a verified token said, and ends no later than that token.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::header;
use blake3::Hash;
use serde::Deserialize;
use serde_json::Value;
use strongroom_format::ids::TimestampMs;

use super::{Caller, Role, Stranger, cookie_of};

/// The cookie of a session. `__Host-`: browsers take it over TLS only, for this host and all of its paths (RFC 6265bis, section 4.1.3).
pub const COOKIE: &str = "__Host-strongroom-console";
/// The longest a session goes on, milliseconds, however long the token does.
const MAX_SESSION_MS: u64 = 12 * 3_600_000;
/// The most of a name that is kept, bytes. Providers give 255 at the most (OpenID Connect Core, section 2, `sub`).
const MAX_NAME_BYTES: usize = 255;

/// Who they are, and as what they are let in.
#[derive(Debug, Clone)]
pub struct PeopleSettings {
    /// The claim whose values give roles.
    pub claim: String,
    /// Values that make a viewer.
    pub viewers: Vec<String>,
    /// Values that make an operator.
    pub operators: Vec<String>,
    /// Where they sign in.
    pub sign_in: Provider,
}

/// The identity provider, as a browser sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// What the console is called there: a client without a secret.
    pub client_id: String,
    /// The authorization endpoint.
    pub authorize_url: String,
    /// The token endpoint.
    pub token_url: String,
    /// What is asked for, `openid` among it.
    pub scope: String,
}

impl PeopleSettings {
    /// Checks what could not work, or would let anybody in.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let roles = [&self.viewers, &self.operators];
        if self.claim.is_empty() || roles.iter().all(|values| values.is_empty()) {
            return Err("name a claim, and values of it that make viewers or operators".to_owned());
        }
        if roles.into_iter().flatten().any(String::is_empty) {
            return Err("an empty value makes nobody a viewer or an operator".to_owned());
        }
        for url in [&self.sign_in.authorize_url, &self.sign_in.token_url] {
            origin(url)
                .ok_or_else(|| format!("{url}: this is no https:// address of an identity provider"))?;
        }
        if !self.sign_in.scope.split(' ').any(|scope| scope == "openid") {
            return Err("the scope of signing in has `openid` in it".to_owned());
        }
        Ok(())
    }
}

/// Scheme, host and port of an address that browsers may send what is secret to: of another machine by TLS only.
pub fn origin(url: &str) -> Option<&str> {
    let after_scheme = url.find("://")? + 3;
    let end = url[after_scheme..].find('/').map_or(url.len(), |at| after_scheme + at);
    let (origin, authority) = (&url[..end], &url[after_scheme..end]);
    // Nothing that would mean something else in a policy for browsers, or in an address.
    let is_plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'<>;,\\`".contains(&byte));
    let is_host = !authority.is_empty()
        && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte));
    let is_here = ["127.0.0.1", "localhost"].into_iter().any(|host| {
        authority == host || authority.strip_prefix(host).is_some_and(|rest| rest.starts_with(':'))
    });
    let is_private = match &url[..after_scheme] {
        "https://" => true,
        "http://" => is_here,
        _ => false,
    };
    (is_private && is_host && is_plain(url)).then_some(origin)
}

/// What a verified token says.
#[derive(Debug, Clone, Default)]
pub struct Claims(pub BTreeMap<String, Value>);

impl Claims {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// The values of a claim. API Gateway gives lists as text, `[one two]`; `scope` has its values apart by spaces (RFC 8693, section 4.2).
    fn values(&self, name: &str) -> Vec<&str> {
        match self.0.get(name) {
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(text)) => {
                let list = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
                match list {
                    Some(list) => list.split_whitespace().collect(),
                    None if matches!(name, "scope" | "scp") => text.split_whitespace().collect(),
                    None => vec![text],
                }
            }
            _ => Vec::new(),
        }
    }

    /// When the token ends; API Gateway gives numbers as text.
    fn ends(&self) -> Option<TimestampMs> {
        let seconds = match self.0.get("exp")? {
            Value::String(text) => text.parse::<f64>().ok()?,
            other => other.as_f64()?,
        };
        // A date of before 1970 is over, and one that is far away is cut by whoever asks.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        Some(TimestampMs((seconds * 1000.0) as u64))
    }
}

/// Those who are let in by their claims.
pub struct People {
    settings: PeopleSettings,
    session_key: [u8; 32],
}

impl People {
    /// These; `session_key` makes sessions.
    pub const fn new(settings: PeopleSettings, session_key: [u8; 32]) -> Self {
        Self { settings, session_key }
    }

    /// Where they sign in.
    pub const fn provider(&self) -> &Provider {
        &self.settings.sign_in
    }

    fn role(&self, claims: &Claims) -> Option<Role> {
        let values = claims.values(&self.settings.claim);
        let is_one = |known: &[String]| known.iter().any(|known| values.contains(&known.as_str()));
        if is_one(&self.settings.operators) {
            Some(Role::Operator)
        } else {
            is_one(&self.settings.viewers).then_some(Role::Viewer)
        }
    }

    /// Whom a verified token is about.
    pub fn by_claims(&self, claims: &Claims) -> Result<Caller, Stranger> {
        let role = self.role(claims).ok_or(Stranger::WithoutRole)?;
        let name = claims.text("sub").filter(|name| name.len() <= MAX_NAME_BYTES);
        Ok(Caller { role, name: name.map(str::to_owned), by_cookie: false })
    }

    /// The session of somebody whose token was verified: a cookie.
    pub fn enter(&self, claims: &Claims, now: TimestampMs) -> Result<String, Stranger> {
        let caller = self.by_claims(claims)?;
        let ends = claims.ends().unwrap_or(now).min(TimestampMs(now.0 + MAX_SESSION_MS));
        let left_s = ends.0.saturating_sub(now.0) / 1000;
        let session = self.session(&caller, ends);
        Ok(format!("{COOKIE}={session}; HttpOnly; Secure; SameSite=Lax; Path=/; Max-Age={left_s}"))
    }

    fn session(&self, caller: &Caller, ends: TimestampMs) -> String {
        let role = match caller.role {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
        };
        let name = hex::encode(caller.name.as_deref().unwrap_or_default());
        let said = format!("{role}.{}.{name}", ends.0);
        format!("{said}.{}", self.mac(&said).to_hex())
    }

    fn mac(&self, said: &str) -> Hash {
        blake3::keyed_hash(&self.session_key, said.as_bytes())
    }

    fn by_session(&self, session: &str, now: TimestampMs) -> Option<Caller> {
        let (said, mac) = session.rsplit_once('.')?;
        // Equality of hashes takes as long for what is nearly right.
        if Hash::from_hex(mac).ok()? != self.mac(said) {
            return None;
        }
        let mut parts = said.split('.');
        let (role, ends, name) = (parts.next()?, parts.next()?, parts.next()?);
        let role = match role {
            "viewer" => Role::Viewer,
            "operator" => Role::Operator,
            _ => return None,
        };
        let is_over = ends.parse().ok().is_none_or(|ends: u64| ends <= now.0);
        let name = String::from_utf8(hex::decode(name).ok()?).ok().filter(|name| !name.is_empty());
        (!is_over).then_some(Caller { role, name, by_cookie: true })
    }

    /// Who sent a request.
    pub fn caller(&self, request: &Request, now: TimestampMs) -> Result<Caller, Stranger> {
        if let Some(claims) = request.extensions().get::<Claims>() {
            return self.by_claims(claims);
        }
        // A token that nobody verified says nothing; and who shows one does not mean the cookie.
        if request.headers().contains_key(header::AUTHORIZATION) {
            return Err(Stranger::Nobody);
        }
        let session = cookie_of(request.headers(), COOKIE).ok_or(Stranger::Nobody)?;
        self.by_session(session, now).ok_or(Stranger::Nobody)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use serde_json::json;

    use super::*;

    const NOW: TimestampMs = TimestampMs(1_800_000_000_000);

    fn settings() -> PeopleSettings {
        let text = str::to_owned;
        PeopleSettings {
            claim: text("groups"),
            viewers: vec![text("staff")],
            operators: vec![text("backup operators"), text("ops")],
            sign_in: Provider {
                client_id: text("console"),
                authorize_url: text("https://id.example/authorize"),
                token_url: text("https://id.example/token"),
                scope: text("openid"),
            },
        }
    }

    fn people() -> People {
        People::new(settings(), [7; 32])
    }

    fn claims(groups: &Value) -> Claims {
        let all = json!({ "sub": "somebody", "exp": (NOW.0 / 1000 + 3600).to_string(), "groups": groups });
        Claims(serde_json::from_value(all).unwrap())
    }

    #[test]
    fn values_of_the_claim_give_the_role() {
        let role = |groups: Value| people().by_claims(&claims(&groups)).map(|caller| caller.role);
        for operator in [json!("[staff ops]"), json!("ops"), json!("backup operators"), json!(["ops", "x"])] {
            assert_eq!(role(operator.clone()), Ok(Role::Operator), "{operator}");
        }
        assert_eq!(role(json!("[a staff]")), Ok(Role::Viewer));
        for nobody in [
            json!("opsx"),
            json!("[opsx]"),
            json!(""),
            json!("[]"),
            json!("a ops"),
            json!({ "ops": 1 }),
            json!(7),
        ] {
            assert_eq!(role(nobody.clone()), Err(Stranger::WithoutRole), "{nobody}");
        }
        assert_eq!(people().by_claims(&Claims::default()), Err(Stranger::WithoutRole));
        let by_scope = People::new(PeopleSettings { claim: "scope".to_owned(), ..settings() }, [7; 32]);
        let claims = Claims(BTreeMap::from([("scope".to_owned(), json!("openid ops"))]));
        assert_eq!(by_scope.by_claims(&claims).map(|caller| caller.role), Ok(Role::Operator));
    }

    fn shown(people: &People, cookie: &str, now: TimestampMs) -> Result<Caller, Stranger> {
        let pair = cookie.split(';').next().unwrap();
        people.caller(&Request::builder().header("cookie", pair).body(Body::empty()).unwrap(), now)
    }

    #[test]
    fn a_session_says_what_the_token_said_and_ends_with_it() {
        let people = people();
        let cookie = people.enter(&claims(&json!("ops")), NOW).unwrap();
        assert!(cookie.ends_with("; HttpOnly; Secure; SameSite=Lax; Path=/; Max-Age=3600"), "{cookie}");
        let caller = shown(&people, &cookie, NOW).unwrap();
        assert_eq!(
            (caller.role, caller.name.as_deref(), caller.by_cookie),
            (Role::Operator, Some("somebody"), true)
        );
        let hour = 3_600_000;
        assert!(shown(&people, &cookie, TimestampMs(NOW.0 + hour - 1)).is_ok());
        assert_eq!(shown(&people, &cookie, TimestampMs(NOW.0 + hour)), Err(Stranger::Nobody));
        for ends in [json!("99999999999999999999"), json!(1e300), json!(u64::MAX)] {
            let mut long = claims(&json!("ops"));
            long.0.insert("exp".to_owned(), ends);
            let cookie = people.enter(&long, NOW).unwrap();
            assert!(cookie.ends_with("Max-Age=43200"), "{cookie}");
        }
        let mut endless = claims(&json!("ops"));
        endless.0.remove("exp");
        let cookie = people.enter(&endless, NOW).unwrap();
        assert_eq!(
            shown(&people, &cookie, NOW),
            Err(Stranger::Nobody),
            "what does not say when it ends is over"
        );
        assert_eq!(people.enter(&claims(&json!("x")), NOW), Err(Stranger::WithoutRole));
    }

    #[test]
    fn nothing_of_a_session_can_be_changed() {
        let people = people();
        let cookie = people.enter(&claims(&json!("staff")), NOW).unwrap();
        assert_eq!(shown(&people, &cookie, NOW).unwrap().role, Role::Viewer);
        let session = cookie.split(';').next().unwrap();
        for at in COOKIE.len() + 1..session.len() {
            let mut changed = session.to_owned().into_bytes();
            changed[at] ^= 1;
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(shown(&people, &changed, NOW), Err(Stranger::Nobody), "{changed}");
        }
        let upgraded = session.replacen("viewer", "operator", 1);
        assert_eq!(shown(&people, &upgraded, NOW), Err(Stranger::Nobody));
        let other = People::new(settings(), [8; 32]);
        assert_eq!(shown(&other, session, NOW), Err(Stranger::Nobody), "of another console");
    }

    #[test]
    fn a_token_that_nobody_verified_says_nothing() {
        let people = people();
        let cookie = people.enter(&claims(&json!("ops")), NOW).unwrap();
        let pair = cookie.split(';').next().unwrap();
        let both = Request::builder().header("authorization", "Bearer x.y.z").header("cookie", pair);
        assert_eq!(people.caller(&both.body(Body::empty()).unwrap(), NOW), Err(Stranger::Nobody));
        let mut verified =
            Request::builder().header("authorization", "Bearer x.y.z").body(Body::empty()).unwrap();
        verified.extensions_mut().insert(claims(&json!("ops")));
        assert!(people.caller(&verified, NOW).is_ok());
    }

    #[test]
    fn providers_are_reached_by_tls() {
        assert_eq!(origin("https://id.example/oauth2/token?x=1"), Some("https://id.example"));
        assert_eq!(origin("http://127.0.0.1:9000/token"), Some("http://127.0.0.1:9000"));
        assert_eq!(origin("http://localhost"), Some("http://localhost"));
        let wrong = [
            "http://id.example/token",
            "http://127.0.0.1.example/",
            "http://localhost.example",
            "https:///token",
            "id.example",
            "javascript://x",
            "https://a b/",
            "https://a;script-src *",
            "https://user@id.example/",
            "https://id.example/'; x",
            "",
        ];
        for wrong in wrong {
            assert_eq!(origin(wrong), None, "{wrong}");
        }
        assert_eq!(settings().check(), Ok(()));
        let nobody = PeopleSettings { viewers: vec![], operators: vec![], ..settings() };
        assert!(nobody.check().is_err());
        assert!(PeopleSettings { viewers: vec![String::new()], ..settings() }.check().is_err());
        let without_openid = Provider { scope: "profile".to_owned(), ..settings().sign_in };
        assert!(PeopleSettings { sign_in: without_openid, ..settings() }.check().is_err());
    }
}
