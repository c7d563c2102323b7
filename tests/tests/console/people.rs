//! The console as it is on AWS: behind a gateway that verifies tokens of an identity provider, called as Lambda calls it.

use std::time::Duration;

use axum::Router;
use axum::http::Method;
use serde_json::{Value, json};
use strongroom_console::{Access, Limits, PeopleSettings, Provider, answer, router};

use super::{Fleet, changes, forms};

const PATIENCE: Duration = Duration::from_secs(60);

fn console(fleet: &Fleet) -> Router {
    let settings = PeopleSettings {
        claim: "groups".to_owned(),
        viewers: vec!["staff".to_owned()],
        operators: vec!["ops".to_owned()],
        sign_in: Provider {
            client_id: "strongroom".to_owned(),
            authorize_url: "https://id.example/authorize".to_owned(),
            token_url: "https://tokens.example/token".to_owned(),
            scope: "openid".to_owned(),
        },
    };
    assert_eq!(settings.check(), Ok(()));
    router(fleet.service.clone(), Access::by_claims(settings, [7; 32]), Limits::BEHIND_GATEWAY)
}

/// A call, as API Gateway makes it of a request.
struct Call {
    method: Method,
    path: String,
    query: String,
    body: String,
    headers: Vec<(&'static str, String)>,
    cookie: Option<String>,
    /// The groups of somebody whose token was verified.
    groups: Option<&'static str>,
}

impl Call {
    fn new(method: Method, path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (path, query) = (path.to_owned(), query.to_owned());
        Self { method, path, query, body: String::new(), headers: Vec::new(), cookie: None, groups: None }
    }

    fn get(path: &str) -> Self {
        Self::new(Method::GET, path).with("accept", "text/html")
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn json(self, body: Option<&Value>) -> Self {
        let body = body.map(Value::to_string).unwrap_or_default();
        Self { body, ..self }.with("content-type", "application/json")
    }

    fn form(path: &str, body: &str) -> Self {
        let call = Self::new(Method::POST, path).with("content-type", "application/x-www-form-urlencoded");
        Self { body: body.to_owned(), ..call }
    }

    fn of(self, groups: &'static str) -> Self {
        Self { groups: Some(groups), ..self }.with("authorization", "Bearer a.verified.token")
    }

    fn cookie(self, cookie: &str) -> Self {
        Self { cookie: Some(cookie.to_owned()), ..self }
    }

    /// What it is answered: as Lambda hands it back.
    async fn answer(self, console: &Router) -> Value {
        let mut event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": self.path, "rawQueryString": self.query, "isBase64Encoded": false,
            "headers": self.headers.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "body": self.body, "requestContext": { "http": { "method": self.method.as_str() } },
        });
        if let Some(cookie) = self.cookie {
            event["cookies"] = json!([cookie]);
        }
        if let Some(groups) = self.groups {
            // The fleet of these tests has its own clock, which begins in 2025.
            let claims = json!({ "sub": "somebody", "exp": "4102444800", "groups": groups });
            event["requestContext"]["authorizer"] = json!({ "jwt": { "claims": claims, "scopes": null } });
        }
        json!(answer(console, serde_json::from_value(event).unwrap(), PATIENCE).await)
    }

    async fn status(self, console: &Router) -> u64 {
        self.answer(console).await["statusCode"].as_u64().unwrap()
    }
}

/// The session of somebody who signed in.
async fn session(console: &Router, groups: &'static str) -> String {
    let entered = Call::new(Method::POST, "/sign-in").of(groups).answer(console).await;
    assert_eq!(entered["statusCode"], 204, "{entered}");
    entered["cookies"][0].as_str().unwrap().split(';').next().unwrap().to_owned()
}

/// Bar: every route that changes something refuses whoever shows nothing, what is wrong, and viewers.
#[tokio::test]
async fn changes_take_an_operator_whoever_asks() {
    let fleet = Fleet::with_volumes().await;
    let near = json!({ "type": "target_put", "name": "near", "target": { "address": "file:///n" } });
    fleet.ask("near", serde_json::from_value(near).unwrap()).await;
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let console = console(&fleet);
    let (viewer, operator) = (session(&console, "staff").await, session(&console, "[x ops]").await);
    fleet.sent();
    type Asked = (String, u64, Value, Box<dyn Fn() -> Call>);
    let asked: Vec<Asked> = changes(&backup)
        .into_iter()
        .map(|(method, path, body, wanted)| {
            let what = format!("{method} {path}");
            let call = move || Call::new(method.clone(), &path).json(body.as_ref());
            (what, 202, wanted, Box::new(call) as _)
        })
        .chain(forms(&backup).into_iter().map(|(path, body, wanted)| {
            let what = format!("form {path}");
            (what, 303, wanted, Box::new(move || Call::form(&path, body)) as _)
        }))
        .collect();
    assert!(asked.len() > 20);
    for (what, taken, wanted, call) in asked {
        let refused = [
            ("nothing", call(), 401),
            ("a token that nobody verified", call().with("authorization", "Bearer a.b.c"), 401),
            ("no group", call().of(""), 403),
            ("another group", call().of("[opsx staffx]"), 403),
            ("a viewer", call().of("staff"), 403),
            ("a wrong session", call().cookie("__Host-strongroom-console=operator.9.x.y"), 401),
            ("a viewer's session", call().cookie(&viewer).with("sec-fetch-site", "same-origin"), 403),
            ("by another site", call().cookie(&operator).with("sec-fetch-site", "cross-site"), 403),
            ("by a browser that does not say", call().cookie(&operator), 403),
        ];
        for (who, call, status) in refused {
            assert_eq!(call.status(&console).await, status, "{what} by {who}");
        }
        assert_eq!(fleet.sent(), [], "{what}");
        for call in [call().of("ops"), call().cookie(&operator).with("sec-fetch-site", "same-origin")] {
            assert_eq!(call.status(&console).await, taken, "{what}");
            let sent: Vec<Value> = fleet.sent().iter().map(|wanted| json!(wanted)).collect();
            assert_eq!(sent, std::slice::from_ref(&wanted), "{what}");
        }
    }
}

#[tokio::test]
async fn browsers_sign_in_where_they_wanted_to_go_and_out_again() {
    let fleet = Fleet::with_volumes().await;
    let console = console(&fleet);
    let sent = Call::get("/volumes/a/<b>&?target=x%2Fy").answer(&console).await;
    assert_eq!(
        (&sent["statusCode"], &sent["headers"]["location"]),
        (&json!(303), &json!("/sign-in?then=%2Fvolumes%2Fa%252F%253Cb%253E%26%3Ftarget%3Dx%252Fy"))
    );
    let page = Call::get("/sign-in?then=%2F").answer(&console).await;
    let body = page["body"].as_str().unwrap();
    for said in
        ["data-client=\"strongroom\"", "data-authorize=\"https://id.example/authorize\"", "/sign-in.js"]
    {
        assert!(body.contains(said), "{body}");
    }
    let policy = page["headers"]["content-security-policy"].as_str().unwrap();
    assert!(
        policy.contains("connect-src 'self' https://tokens.example;") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(Call::get("/sign-in.js").status(&console).await, 200);
    assert_eq!(Call::new(Method::POST, "/sign-in").status(&console).await, 401, "nobody verified anything");
    assert_eq!(Call::new(Method::POST, "/sign-in").of("[x]").status(&console).await, 403, "nobody's group");

    let viewer = session(&console, "staff").await;
    let volume = Call::get("/volumes/a/<b>&").cookie(&viewer).answer(&console).await;
    assert_eq!(volume["statusCode"], 200, "{volume}");
    assert!(volume["body"].as_str().unwrap().contains("a/&#60;b&#62;&#38;"), "{volume}");
    let elsewhere = volume["headers"]["content-security-policy"].as_str().unwrap();
    assert!(!elsewhere.contains("tokens.example"), "{elsewhere}");
    // A program is told, and not sent anywhere.
    let program = Call::new(Method::GET, "/v1/volumes").answer(&console).await;
    assert_eq!(
        (&program["statusCode"], &program["headers"]["www-authenticate"]),
        (&json!(401), &json!("Bearer"))
    );
    assert_eq!(Call::new(Method::GET, "/v1/volumes").of("staff").status(&console).await, 200);
    // Tokens of `strongroom up` open nothing here.
    assert_eq!(Call::form("/login", "token=view").status(&console).await, 404);

    let left = Call::new(Method::POST, "/sign-out").cookie(&viewer).answer(&console).await;
    assert_eq!((&left["statusCode"], &left["headers"]["location"]), (&json!(303), &json!("/signed-out")));
    assert!(left["cookies"][0].as_str().unwrap().ends_with("; Max-Age=0"), "{left}");
    assert_eq!(Call::get("/signed-out").status(&console).await, 200);
}

/// API Gateway sends answers when they are complete: a run is told of once, and whoever follows it asks again.
#[tokio::test]
async fn events_end_at_once() {
    let fleet = Fleet::with_volumes().await;
    let console = console(&fleet);
    let viewer = session(&console, "staff").await;
    fleet.ask("now", strongroom_fleet::message::Wanted::Backup { volume: "db".to_owned() }).await;
    let run = fleet.get("/v1/runs").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    let events =
        Call::new(Method::GET, &format!("/live/runs/{run}/events")).cookie(&viewer).answer(&console).await;
    assert_eq!(events["headers"]["content-type"], "text/event-stream", "{events}");
    assert_eq!(events["body"].as_str().unwrap().matches("event: run").count(), 1, "{events}");
}
