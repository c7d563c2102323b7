//! Requests as an HTTP API of API Gateway hands them to a function, and answers as it takes them: payload format 2.0
//! (<https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html>). Only what is needed is read.
//!
//! Invariant: claims are those of the event, which API Gateway puts there once its JWT authorizer has verified the token; nothing that a
//! client sends becomes one.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tower::ServiceExt;

use crate::access::Claims;
use crate::problem::Problem;

/// The longest body of an answer, bytes: Lambda takes 6 MB for all of it, and what is no text grows by a third.
const MAX_BODY_BYTES: usize = 4 << 20;

/// A request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    raw_path: String,
    #[serde(default)]
    raw_query_string: String,
    #[serde(default)]
    cookies: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    request_context: Context,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

/// What API Gateway knows of it.
#[derive(Debug, Deserialize)]
struct Context {
    http: Http,
    #[serde(default)]
    authorizer: Option<Authorizer>,
}

#[derive(Debug, Deserialize)]
struct Http {
    method: String,
}

#[derive(Debug, Deserialize)]
struct Authorizer {
    #[serde(default)]
    jwt: Option<Jwt>,
}

/// What its JWT authorizer verified.
#[derive(Debug, Deserialize)]
struct Jwt {
    #[serde(default)]
    claims: BTreeMap<String, Value>,
}

/// An answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    status_code: u16,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<String>,
    body: String,
    is_base64_encoded: bool,
}

/// Answers a request; with a problem if that takes longer than `patience`.
pub async fn answer(router: &Router, event: Event, patience: Duration) -> Answer {
    let response = match request(event) {
        Ok(request) => match tokio::time::timeout(patience, router.clone().oneshot(request)).await {
            Ok(Ok(response)) => response,
            Err(_) => slow().into_response(),
        },
        Err(problem) => problem.into_response(),
    };
    packed(response).await
}

fn slow() -> Problem {
    let detail = "this takes longer than an answer may here; ask for less at once, or use `strongroom` on a machine of yours";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

fn unreadable(what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("{what} can't be read"))
}

/// The request that an event is about.
fn request(event: Event) -> Result<Request, Problem> {
    let Event { raw_path, raw_query_string, cookies, headers, request_context, body, is_base64_encoded } =
        event;
    let query = if raw_query_string.is_empty() { String::new() } else { format!("?{raw_query_string}") };
    let body = match body {
        Some(text) if is_base64_encoded => STANDARD.decode(text).map_err(|_| unreadable("the body"))?,
        body => body.unwrap_or_default().into_bytes(),
    };
    let mut request = Request::builder()
        .method(request_context.http.method.as_str())
        .uri(format!("{}{query}", path_as_sent(&raw_path)))
        .body(Body::from(body))
        .map_err(|_| unreadable("method, path or query"))?;
    for (name, value) in headers {
        let name = name.parse::<HeaderName>().map_err(|_| unreadable("the name of a header"))?;
        let value = HeaderValue::from_str(&value).map_err(|_| unreadable("a header"))?;
        request.headers_mut().insert(name, value);
    }
    if !cookies.is_empty() {
        let all = HeaderValue::from_str(&cookies.join("; ")).map_err(|_| unreadable("a cookie"))?;
        request.headers_mut().insert(header::COOKIE, all);
    }
    if let Some(Jwt { claims }) = request_context.authorizer.and_then(|authorizer| authorizer.jwt) {
        request.extensions_mut().insert(Claims(claims));
    }
    Ok(request)
}

/// What is written as an escape within a part of a path; `%` is not: where API Gateway leaves one, it is the beginning of `%25`.
const IN_A_PART: AsciiSet = CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'|')
    .add(b'\\')
    .add(b'^');
/// The same of a name, which may have a `/` in it.
const IN_A_NAME: AsciiSet = IN_A_PART.add(b'/');

/// Paths that go on with the name of a volume or a target, which may be any text, and what may come after that.
const NAMED: [(&str, &[&str]); 3] = [
    ("/v1/volumes/", &["/backups", "/schedule"]),
    ("/v1/targets/", &[]),
    ("/volumes/", &["/edit", "/backup", "/schedule", "/forget"]),
];

/// The path as the client sent it. API Gateway undoes its escapes, all but `%25`; so of a `/` it is not known whether it was one: a name goes
/// as far as it can.
fn path_as_sent(raw: &str) -> String {
    for (before, after) in NAMED {
        let Some(rest) = raw.strip_prefix(before).filter(|rest| !rest.is_empty()) else { continue };
        let end = after
            .iter()
            .copied()
            .find(|end| rest.len() > end.len() && rest.ends_with(end))
            .unwrap_or_default();
        let name = &rest[..rest.len() - end.len()];
        return format!("{before}{}{end}", utf8_percent_encode(name, &IN_A_NAME));
    }
    utf8_percent_encode(raw, &IN_A_PART).to_string()
}

/// An answer in the form that API Gateway takes.
async fn packed(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        let detail = "the answer is longer than one may be here; ask for less at once, with `limit`";
        return Box::pin(packed(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response())).await;
    };
    let (mut headers, mut cookies) = (BTreeMap::new(), Vec::new());
    for (name, value) in &parts.headers {
        let Ok(value) = value.to_str() else { continue };
        if *name == header::SET_COOKIE {
            cookies.push(value.to_owned());
        } else {
            let all: &mut String = headers.entry(name.as_str().to_owned()).or_default();
            all.push_str(if all.is_empty() { "" } else { ", " });
            all.push_str(value);
        }
    }
    let (body, is_base64_encoded) = text(body);
    Answer { status_code: parts.status.as_u16(), headers, cookies, body, is_base64_encoded }
}

/// A body as text, and whether that is base64.
fn text(body: Bytes) -> (String, bool) {
    match String::from_utf8(body.into()) {
        Ok(text) => (text, false),
        Err(other) => (STANDARD.encode(other.as_bytes()), true),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use percent_encoding::NON_ALPHANUMERIC;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::openapi;
    use crate::pages::{Named, page_of};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn event(method: &str, path: &str, more: &Value) -> Event {
        let mut event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "",
            "headers": { "host": "x.execute-api.example" }, "isBase64Encoded": false,
            "requestContext": { "http": { "method": method, "path": path }, "stage": "$default", "timeEpoch": 1 },
        });
        for (name, value) in more.as_object().unwrap() {
            event[name] = value.clone();
        }
        serde_json::from_value(event).unwrap()
    }

    /// A path as API Gateway gives it.
    fn given(path: &str) -> String {
        let kept = path.replace("%25", "%2525");
        let decoded = percent_encoding::percent_decode_str(&kept).decode_utf8().unwrap();
        decoded.split('?').next().unwrap_or_default().to_owned()
    }

    fn is_volume(name: &str) -> bool {
        strongroom_format::manifest::check_volume_name(name).is_ok()
    }

    proptest! {
        /// Whatever a volume is called, its pages are found by the links to them: here, and behind API Gateway.
        #[test]
        fn every_page_of_a_volume_is_found(
            name in prop_oneof!["[a-c./%?#&+ 2Fe]{1,9}", "(/|a)?(edit|forget|backup|schedule|\\.|\\.\\.)(/(edit|forget|\\.\\.))?", "\\PC{1,60}"]
                .prop_filter("a name", |name| is_volume(name)),
            end in prop_oneof![Just(""), Just("/edit"), Just("/forget"), Just("/backup"), Just("/schedule")],
        ) {
            let echo = move |Named(name): Named| async move { format!("{end} of {name}") };
            let router = Router::new().route(&format!("/volumes/{{volume}}{end}"), get(echo));
            let sent = format!("{}{end}", page_of(&name));
            let is_place = |part: &str| matches!(part.to_lowercase().replace("%2e", ".").as_str(), "." | ".." | "");
            prop_assert!(!sent.split('/').skip(1).any(is_place), "{}", sent);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let through = event("GET", &given(&sent), &json!({}));
            let found = runtime.block_on(answer(&router, through, PATIENCE));
            let wanted = format!("{end} of {name}");
            prop_assert_eq!((found.status_code, &found.body), (200, &wanted), "{}", sent);
            let direct = Request::get(&sent).body(Body::empty()).unwrap();
            let found = runtime.block_on(router.oneshot(direct)).unwrap();
            let body = runtime.block_on(to_bytes(found.into_body(), 1000)).unwrap();
            prop_assert_eq!(&body, wanted.as_bytes(), "{}", sent);
        }
    }

    #[test]
    fn every_path_with_a_name_reaches_its_route_whatever_the_name() {
        let document = openapi();
        let api = document["paths"].as_object().unwrap().keys().map(String::as_str);
        // Pages are told of nowhere else.
        let pages = include_str!("pages/mod.rs").split('"').filter(|text| text.starts_with('/'));
        let named: Vec<&str> =
            api.chain(pages).filter(|path| path.contains("{volume}") || path.contains("{target}")).collect();
        assert!(named.len() >= 8, "{named:?}");
        for name in [
            "db",
            "vg0/root",
            "a b",
            "100%",
            "%2F",
            "a%25b",
            "ä/ö ü",
            "x#y",
            "backups/x",
            "{x}|\\^`\"<>",
            "..",
            "a//b",
            "/",
        ] {
            for template in &named {
                let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
                let sent = template.replace("{volume}", &encoded).replace("{target}", &encoded);
                let found = path_as_sent(&given(&sent));
                let decoded = |path: &str| {
                    let parts = path.split('/').map(|part| {
                        percent_encoding::percent_decode_str(part).decode_utf8().unwrap().into_owned()
                    });
                    parts.collect::<Vec<_>>()
                };
                assert_eq!(decoded(&found), decoded(&sent), "{template} of {name:?}: {found}");
            }
        }
    }

    #[test]
    fn other_paths_are_what_they_were() {
        for path in ["/", "/v1/runs/0123", "/backups/abc/restore", "/v1/volumes", "/volumes/", "/style.css"] {
            assert_eq!(path_as_sent(path), path);
        }
        assert_eq!(path_as_sent("/x y?z"), "/x%20y%3Fz");
    }

    async fn echo(request: Request) -> Response {
        let claims = request.extensions().get::<Claims>().map(|claims| claims.0.clone());
        let (parts, body) = request.into_parts();
        let body = String::from_utf8(to_bytes(body, 1000).await.unwrap().to_vec()).unwrap();
        let header =
            |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let said = json!({
            "method": parts.method.as_str(), "uri": parts.uri.to_string(), "cookie": header("cookie"), "x": header("x"), "body": body,
            "claims": claims,
        });
        ([("set-cookie", "a=1"), ("vary", "x")], said.to_string()).into_response()
    }

    #[tokio::test]
    async fn requests_and_answers_come_through_as_they_are() {
        let router = Router::new().fallback(echo);
        let more = json!({
            "rawQueryString": "q=a%20b&c", "cookies": ["a=b", "c=d"], "headers": { "x": "1,2", "authorization": "Bearer y" },
            "body": STANDARD.encode("key=1&x=%C3%A4"), "isBase64Encoded": true,
            "requestContext": { "http": { "method": "POST" }, "authorizer": { "jwt": { "claims": { "sub": "s", "groups": "[a b]" }, "scopes": null } } },
        });
        let answer = answer(&router, event("POST", "/volumes/a/b/backup", &more), PATIENCE).await;
        assert_eq!((answer.status_code, answer.is_base64_encoded), (200, false));
        assert_eq!(answer.cookies, ["a=1"]);
        assert_eq!(answer.headers["vary"], "x");
        let said: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            said,
            json!({
                "method": "POST", "uri": "/volumes/a%2Fb/backup?q=a%20b&c", "cookie": "a=b; c=d", "x": "1,2", "body": "key=1&x=%C3%A4",
                "claims": { "sub": "s", "groups": "[a b]" },
            })
        );
    }

    #[tokio::test]
    async fn claims_come_from_the_gateway_only() {
        let router = Router::new().fallback(echo);
        let more = json!({ "headers": { "claims": "{}", "authorization": "Bearer a.b.c", "x-amzn-authorizer": "x" }, "authorizer": { "jwt": { "claims": { "sub": "s" } } } });
        let answer = answer(&router, event("GET", "/", &more), PATIENCE).await;
        let said: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(said["claims"], Value::Null);
    }

    #[tokio::test]
    async fn what_is_no_text_long_late_or_unreadable_is_answered_too() {
        let router = Router::new()
            .route("/bytes", get(async || vec![0xff_u8, 0]))
            .route("/long", get(async || vec![b'x'; MAX_BODY_BYTES + 1]))
            .route("/never", get(std::future::pending::<()>));
        let bytes = answer(&router, event("GET", "/bytes", &json!({})), PATIENCE).await;
        assert_eq!((bytes.is_base64_encoded, bytes.body.as_str()), (true, "/wA="));
        let long = answer(&router, event("GET", "/long", &json!({})), PATIENCE).await;
        assert_eq!(long.status_code, 503);
        let late = answer(&router, event("GET", "/never", &json!({})), Duration::from_millis(1)).await;
        assert_eq!(late.status_code, 503);
        for wrong in [
            json!({ "body": "%", "isBase64Encoded": true }),
            json!({ "headers": { "a b": "c" } }),
            json!({ "headers": { "a": "b\nc" } }),
            json!({ "cookies": ["a\nb"] }),
            json!({ "rawQueryString": "a b" }),
        ] {
            assert_eq!(
                answer(&router, event("GET", "/bytes", &wrong), PATIENCE).await.status_code,
                400,
                "{wrong}"
            );
        }
    }
}
