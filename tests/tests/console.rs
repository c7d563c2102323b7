//! The console over a fleet in memory: what it shows, what it sends, and whom it lets in.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

#[path = "console/forms.rs"]
mod forms;
#[path = "console/people.rs"]
mod people;

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use boon::{Compiler, Schemas};
use serde_json::{Value, json};
use strongroom_console::{Access, Limits, Role, openapi, router};
use strongroom_fleet::message::{Message, Request, Wanted};
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::run::Claim;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::volume::VolumeSpec;
use strongroom_fleet::{Home, Incoming, QueueName, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_store::MemoryStore;
use strongroom_tests::fleet::{HomeOnly, Mail};
use strongroom_tests::{World, noise};
use tower::ServiceExt;

/// Whether a path is one of those that a template stands for.
fn is_like(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(path).all(|(part, given)| part.starts_with('{') || *part == given)
}

/// Checks that an answer is one that the OpenAPI document tells of.
fn check_documented(method: &Method, path: &str, answer: &Answer) {
    let document = openapi();
    let path = path.split('?').next().unwrap();
    let mut templates: Vec<&String> =
        document["paths"].as_object().unwrap().keys().filter(|template| is_like(template, path)).collect();
    // What is spelled out goes before what stands for anything.
    templates.sort_by_key(|template| template.matches('{').count());
    let Some(template) = templates.first() else {
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        return;
    };
    let operation = &document["paths"][template.as_str()][method.as_str().to_lowercase()];
    if operation.is_null() {
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {template}");
        return;
    }
    let response = &operation["responses"][answer.status.as_str()];
    let response = match response["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap(),
        None => response,
    };
    assert!(response.is_object(), "{method} {template} answers {}: {}", answer.status, answer.body);
    if answer.body.is_empty() {
        return;
    }
    let kind = answer.headers[header::CONTENT_TYPE].to_str().unwrap();
    let content = &response["content"][kind];
    assert!(content.is_object(), "{method} {template} answers {kind}");
    if kind == "text/event-stream" {
        return;
    }
    let mut document = document.clone();
    document["answer"] = content["schema"].clone();
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("https://console.invalid/openapi.json", document).unwrap();
    let schema = compiler.compile("https://console.invalid/openapi.json#/answer", &mut schemas).unwrap();
    if let Err(error) = schemas.validate(&answer.json(), schema) {
        panic!("{method} {template}: {error:#}\n{}", answer.body);
    }
}

const FOREVER: TimestampMs = TimestampMs(u64::MAX);

/// A fleet with a console.
struct Fleet {
    world: World,
    mail: Arc<Mail>,
    service: Service,
    console: Router,
}

/// An answer.
struct Answer {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Fleet {
    async fn new() -> Self {
        let world = World::create(Arc::new(MemoryStore::new()), "fixed:16KiB", 1).await.unwrap();
        let mail = Arc::new(Mail::default());
        let service = Service {
            home: Home::new(world.target.clone()),
            targets: Arc::new(HomeOnly(world.target.clone())),
            outbox: Arc::clone(&mail) as _,
            meter: Arc::new(Unmetered),
            silent_ms: 960_000,
        };
        let access = Access::new([("view", Role::Viewer), ("operate", Role::Operator)], &[7; 32]);
        let console = router(service.clone(), access, Limits::default());
        Self { world, mail, service, console }
    }

    /// With a host and two volumes, of which one has two backups.
    async fn with_volumes() -> Self {
        let fleet = Self::new().await;
        fleet.ask("host", Wanted::HostPut { host: "h".to_owned() }).await;
        for (name, rpo_ms) in [("db", None), ("a/<b>&", Some(1000))] {
            let spec = VolumeSpec {
                schedule: Some(Schedule {
                    cron: "15 */6 * * *".to_owned(),
                    zone: "UTC".to_owned(),
                    jitter_ms: 0,
                    paused: false,
                }),
                rpo_ms,
                ..VolumeSpec::new("h", "/dev/vg0/x")
            };
            let wanted = Wanted::VolumePut { volume: name.to_owned(), spec: Box::new(spec), expected: None };
            fleet.ask(name, wanted).await;
        }
        for seed in 0..2 {
            fleet.world.back_up("db", &noise(50_000, seed)).await.unwrap();
        }
        fleet
    }

    async fn ask(&self, key: &str, wanted: Wanted) {
        let body = Request::new(key, wanted).to_json();
        let message = Incoming { id: "m".to_owned(), body, receives: 1 };
        assert_eq!(strongroom_dispatcher::handle(&self.service, &[message], FOREVER).await, []);
    }

    /// Asks for retention, and does what that comes to.
    async fn retain(&self) {
        self.sent();
        self.ask("retain", Wanted::Retention { volume: None, policy: None, target: None }).await;
        let runs = self.mail.take().into_iter().filter(|(queue, _)| *queue == QueueName::Retention);
        let messages: Vec<Incoming> =
            runs.map(|(_, body)| Incoming { id: "r".to_owned(), body, receives: 1 }).collect();
        assert_eq!(strongroom_retention::handle(&self.service, &messages, FOREVER).await, []);
    }

    /// Sends a request to the console as it is.
    async fn http(&self, request: HttpRequest<Body>) -> Answer {
        let response = self.console.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = to_bytes(response.into_body(), 16 << 20).await.unwrap();
        Answer { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    async fn call(&self, method: Method, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = HttpRequest::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let (method, path) = (request.method_ref().unwrap().clone(), path.to_owned());
        let answer = self.http(request.body(body).unwrap()).await;
        if path.starts_with("/v1/") {
            check_documented(&method, &path, &answer);
        }
        answer
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "view", None).await
    }

    /// What a browser shows whose user has signed in.
    async fn cookie(&self, token: &str) -> String {
        let entered = self.http(login(token, &[("sec-fetch-site", "same-origin")])).await;
        assert_eq!(entered.status, StatusCode::SEE_OTHER);
        entered.headers[header::SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    /// What was sent to the dispatcher since the last time.
    fn sent(&self) -> Vec<Wanted> {
        let requests = self.mail.take().into_iter().filter(|(queue, _)| *queue == QueueName::Requests);
        requests.map(|(_, body)| Request::from_json(&body).unwrap().request).collect()
    }
}

#[tokio::test]
async fn volumes_backups_and_runs_are_told() {
    let fleet = Fleet::with_volumes().await;
    let volumes = fleet.get("/v1/volumes").await;
    assert_eq!(volumes.status, StatusCode::OK);
    let volumes = volumes.json();
    // By name; one is late and has no backup.
    assert_eq!(
        (&volumes["items"][0]["name"], &volumes["items"][0]["health"]),
        (&json!("a/<b>&"), &json!("late"))
    );
    let db = fleet.get("/v1/volumes/db").await.json();
    assert_eq!((&db["health"], &db["backups"]), (&json!("fine"), &json!(2)));
    assert_eq!(db["schedule"]["next"].as_array().unwrap().len(), 5);
    assert!(db["schedule"]["words"].as_str().unwrap().contains('6'), "{db}");
    assert_eq!(fleet.get("/v1/volumes/a%2F%3Cb%3E%26").await.json()["backups"], 0);
    let backups = fleet.get("/v1/backups?volume=db&limit=1").await.json();
    let newest = backups["items"][0]["id"].as_str().unwrap();
    assert_eq!(db["newest"]["id"], newest);
    let next = backups["next"].as_str().unwrap();
    let rest = fleet.get(&format!("/v1/backups?volume=db&limit=1&after={next}")).await.json();
    assert!(rest["items"][0]["id"] != newest && rest["next"].is_null(), "{rest}");
    assert_eq!(fleet.get("/v1/backups/db@latest").await.json()["id"], newest);
    let runs = fleet.get("/v1/runs").await.json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 3, "the three changes: {runs}");
    let run = runs["items"][0]["id"].as_str().unwrap();
    let told = fleet.get(&format!("/v1/runs/{run}")).await.json();
    assert_eq!(
        (&told["id"], &told["state"], &told["kind"]),
        (&json!(run), &json!("succeeded"), &json!("change"))
    );
    assert_eq!(fleet.get("/v1/hosts").await.json()["items"][0]["name"], "h");
    for missing in ["/v1/volumes/x", "/v1/backups/ffff", "/v1/runs/ffff", "/v1/nothing", "/nothing"] {
        let answer = fleet.get(missing).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{missing}");
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{missing}");
    }
    for limit in ["x", "0", "-1", "1001"] {
        let answer = fleet.get(&format!("/v1/backups?limit={limit}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{limit}");
    }
    assert_eq!(fleet.get("/v1/backups?unknown=1").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(fleet.get("/v1/backups?after=x").await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn who_has_an_answer_already_is_told_so() {
    let fleet = Fleet::with_volumes().await;
    let first = fleet.get("/v1/backups").await;
    let tag = first.headers[header::ETAG].clone();
    let again = || {
        let request = HttpRequest::get("/v1/backups").header(header::AUTHORIZATION, "Bearer view");
        request.header(header::IF_NONE_MATCH, tag.clone()).body(Body::empty()).unwrap()
    };
    let unchanged = fleet.http(again()).await;
    assert_eq!((unchanged.status, unchanged.body.as_str()), (StatusCode::NOT_MODIFIED, ""));
    fleet.world.back_up("db", &noise(50_000, 9)).await.unwrap();
    assert_eq!(fleet.http(again()).await.status, StatusCode::OK);
}

/// Every route that changes something, with what it takes and what it sends.
fn changes(backup: &str) -> Vec<(Method, String, Option<Value>, Value)> {
    let spec = json!({ "host": "h", "source": "/dev/x" });
    vec![
        (
            Method::PUT,
            "/v1/volumes/new".into(),
            Some(spec.clone()),
            json!({ "type": "volume_put", "volume": "new", "spec": spec }),
        ),
        (Method::DELETE, "/v1/volumes/db".into(), None, json!({ "type": "volume_delete", "volume": "db" })),
        (
            Method::PATCH,
            "/v1/volumes/db/schedule".into(),
            Some(json!({ "paused": true })),
            json!({ "type": "schedule_patch", "volume": "db", "paused": true }),
        ),
        (Method::POST, "/v1/volumes/db/backups".into(), None, json!({ "type": "backup", "volume": "db" })),
        (
            Method::DELETE,
            format!("/v1/backups/{backup}"),
            None,
            json!({ "type": "delete", "backups": [backup] }),
        ),
        (
            Method::POST,
            format!("/v1/backups/{backup}/undelete"),
            None,
            json!({ "type": "undelete", "backups": [backup] }),
        ),
        (
            Method::POST,
            format!("/v1/backups/{backup}/restore"),
            Some(json!({ "host": "h", "destination": "/srv/x", "range": { "start": 0, "end": 512 } })),
            json!({ "type": "restore", "backup": backup, "host": "h", "destination": "/srv/x", "range": [0, 512], "overwrite": false }),
        ),
        (
            Method::POST,
            "/v1/retention".into(),
            Some(json!({ "volume": "db" })),
            json!({ "type": "retention", "volume": "db" }),
        ),
        (Method::POST, "/v1/gc".into(), Some(json!({})), json!({ "type": "gc" })),
        (Method::PUT, "/v1/hosts/h2".into(), None, json!({ "type": "host_put", "host": "h2" })),
        (Method::DELETE, "/v1/hosts/h2".into(), None, json!({ "type": "host_delete", "host": "h2" })),
        (
            Method::PUT,
            "/v1/targets/far".into(),
            Some(json!({ "address": "s3://b/p", "region": "eu-central-1" })),
            json!({ "type": "target_put", "name": "far", "target": { "address": "s3://b/p", "region": "eu-central-1" } }),
        ),
        (
            Method::PATCH,
            "/v1/targets/near".into(),
            Some(json!({ "region": "eu-west-1" })),
            json!({ "type": "target_patch", "name": "near", "region": "eu-west-1" }),
        ),
        (Method::DELETE, "/v1/targets/near".into(), None, json!({ "type": "target_delete", "name": "near" })),
    ]
}

/// Forms of pages, and what they send.
fn forms(backup: &str) -> Vec<(String, &'static str, Value)> {
    vec![
        ("/volumes/db/backup".into(), "key=k", json!({ "type": "backup", "volume": "db" })),
        (
            "/volumes/db/schedule".into(),
            "key=k&expected=any&cron=5+*+*+*+*&time_zone=UTC&paused=true",
            json!({ "type": "schedule_patch", "volume": "db", "cron": "5 * * * *", "zone": "UTC", "paused": true, "expected": "any" }),
        ),
        (
            format!("/backups/{backup}/restore"),
            "key=k&target=&host=h&destination=%2Fsrv%2Fx&start=&end=",
            json!({ "type": "restore", "backup": backup, "host": "h", "destination": "/srv/x", "overwrite": false }),
        ),
        (
            format!("/backups/{backup}/restore"),
            "key=k&target=&host=h&destination=%2Fsrv%2Fx&start=512&end=1024&overwrite=true",
            json!({ "type": "restore", "backup": backup, "host": "h", "destination": "/srv/x", "range": [512, 1024], "overwrite": true }),
        ),
        (
            "/new-volume".into(),
            "key=k&name=new&expected=none&host=h&source=%2Fdev%2Fx&target=&cron=%40daily&time_zone=UTC&rpo=26h&keep_last=3&keep_daily=",
            json!({ "type": "volume_put", "volume": "new", "expected": "none", "spec": {
                "host": "h", "source": "/dev/x", "rpo_ms": 93_600_000,
                "schedule": { "cron": "@daily", "zone": "UTC", "jitter_ms": 300_000, "paused": false },
                "retention": { "keep_last": 3, "keep_hourly": 0, "keep_daily": 0, "keep_weekly": 0, "keep_monthly": 0, "keep_yearly": 0 },
            } }),
        ),
        (
            "/volumes/db/forget".into(),
            "key=k&expected=any",
            json!({ "type": "volume_delete", "volume": "db", "expected": "any" }),
        ),
        (
            "/targets".into(),
            "key=k&name=far&address=s3%3A%2F%2Fb%2Fp&region=&kms_key=",
            json!({ "type": "target_put", "name": "far", "target": { "address": "s3://b/p" } }),
        ),
        ("/targets/forget".into(), "key=k&name=near", json!({ "type": "target_delete", "name": "near" })),
        ("/retention".into(), "key=k&target=", json!({ "type": "retention" })),
        ("/gc".into(), "key=k&target=near", json!({ "type": "gc", "target": "near" })),
        (
            format!("/backups/{backup}/delete"),
            "key=k&target=",
            json!({ "type": "delete", "backups": [backup] }),
        ),
        (
            format!("/backups/{backup}/undelete"),
            "key=k&target=",
            json!({ "type": "undelete", "backups": [backup] }),
        ),
    ]
}

#[tokio::test]
async fn what_is_asked_for_is_sent_once_and_by_operators_only() {
    let fleet = Fleet::with_volumes().await;
    let near = json!({ "type": "target_put", "name": "near", "target": { "address": "file:///n" } });
    fleet.ask("near", serde_json::from_value(near).unwrap()).await;
    fleet.sent();
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    for (method, path, body, wanted) in changes(&backup) {
        let call = |token| fleet.call(method.clone(), &path, token, body.clone());
        for (token, status) in [
            ("", StatusCode::UNAUTHORIZED),
            ("wrong", StatusCode::UNAUTHORIZED),
            ("view", StatusCode::FORBIDDEN),
        ] {
            assert_eq!(call(token).await.status, status, "{method} {path} with '{token}'");
        }
        assert_eq!(fleet.sent(), [], "{method} {path}");
        let taken = call("operate").await;
        assert_eq!(taken.status, StatusCode::ACCEPTED, "{method} {path}: {}", taken.body);
        let run = taken.json()["run"].as_str().unwrap().to_owned();
        assert_eq!(taken.headers[header::LOCATION], format!("/v1/runs/{run}"));
        let sent: Vec<Value> = fleet.sent().iter().map(|wanted| json!(wanted)).collect();
        assert_eq!(sent, [wanted], "{method} {path}");
    }
    // Under one key it is one run.
    let under_key = || {
        let request =
            HttpRequest::post("/v1/volumes/db/backups").header(header::AUTHORIZATION, "Bearer operate");
        fleet.http(request.header("idempotency-key", "nightly-7").body(Body::empty()).unwrap())
    };
    let first = under_key().await.json();
    assert_eq!(under_key().await.json(), first);
    // What can't be understood is not sent.
    fleet.sent();
    for (path, body) in [
        ("/v1/gc", json!({ "grace": 5 })),
        ("/v1/retention", json!([])),
        ("/v1/retention", json!([null, null])),
        ("/v1/backups/x/restore", json!({ "host": "h", "destination": "/x" })),
    ] {
        let answer = fleet.call(Method::POST, path, "operate", Some(body)).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/problem+json", "{path}");
    }
    for (method, path, body) in [
        (Method::PATCH, "/v1/volumes/db/schedule".to_owned(), json!({ "cron": "61 * * * *" })),
        (Method::PATCH, "/v1/volumes/db/schedule".to_owned(), json!({ "time_zone": "Mars/Olympus" })),
        (Method::PUT, "/v1/targets/t".to_owned(), json!({ "address": "ftp://x" })),
        (
            Method::PUT,
            "/v1/volumes/new".to_owned(),
            json!({ "host": "h", "source": "/dev/x", "schedule": ["@daily", "UTC", 0, false] }),
        ),
        (Method::PATCH, "/v1/targets/none".to_owned(), json!({ "region": "x" })),
        (Method::PUT, "/v1/hosts/a%20b".to_owned(), json!({})),
        (
            Method::POST,
            format!("/v1/backups/{backup}/restore"),
            json!({ "host": "h", "destination": "/x", "range": { "start": 5, "end": 5 } }),
        ),
    ] {
        let answer = fleet.call(method.clone(), &path, "operate", Some(body)).await;
        assert!(answer.status.is_client_error(), "{method} {path}: {}", answer.status);
    }
    let spec = json!({ "host": "h", "source": "" });
    let put = fleet.call(Method::PUT, "/v1/volumes/new", "operate", Some(spec)).await;
    assert_eq!(put.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(fleet.sent(), []);
}

fn login(token: &str, headers: &[(&'static str, &str)]) -> HttpRequest<Body> {
    form("/login", format!("token={token}"), headers)
}

fn form(path: &str, body: impl Into<Body>, headers: &[(&'static str, &str)]) -> HttpRequest<Body> {
    let mut request =
        HttpRequest::post(path).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

/// Browsers send cookies along whoever makes them ask: what a form of another site asks for is refused.
#[tokio::test]
async fn forms_are_taken_from_pages_of_the_console_only() {
    let fleet = Fleet::with_volumes().await;
    fleet.sent();
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let (viewer, operator) = (fleet.cookie("view").await, fleet.cookie("operate").await);
    let cookie = ("cookie", operator.as_str());
    for (path, body, wanted) in forms(&backup) {
        for wrong in [
            vec![cookie, ("sec-fetch-site", "cross-site")],
            vec![cookie, ("sec-fetch-site", "same-site")],
            vec![cookie, ("origin", "http://elsewhere"), ("host", "127.0.0.1:9")],
            vec![cookie],
            vec![("cookie", viewer.as_str()), ("sec-fetch-site", "same-origin")],
        ] {
            assert_eq!(
                fleet.http(form(&path, body, &wrong)).await.status,
                StatusCode::FORBIDDEN,
                "{path}: {wrong:?}"
            );
        }
        assert_eq!(fleet.http(form(&path, body, &[])).await.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(fleet.sent(), [], "{path}");
        let taken = fleet.http(form(&path, body, &[cookie, ("sec-fetch-site", "same-origin")])).await;
        assert_eq!(taken.status, StatusCode::SEE_OTHER, "{path}: {}", taken.body);
        assert!(taken.headers[header::LOCATION].to_str().unwrap().starts_with("/runs/"));
        let sent: Vec<Value> = fleet.sent().iter().map(|wanted| json!(wanted)).collect();
        assert_eq!(sent, [wanted], "{path}");
    }
}

/// A form that was corrected is another request; one that is sent twice is not.
#[tokio::test]
async fn a_corrected_form_counts_and_a_double_click_does_not() {
    let fleet = Fleet::with_volumes().await;
    let operator = fleet.cookie("operate").await;
    let send = async |body: &'static str| {
        let headers = [("cookie", operator.as_str()), ("sec-fetch-site", "same-origin")];
        let taken = fleet.http(form("/volumes/db/schedule", body, &headers)).await;
        taken.headers[header::LOCATION].to_str().unwrap().to_owned()
    };
    let wrong = send("key=k&expected=any&cron=6+*+*+*+*&time_zone=UTC").await;
    let right = send("key=k&expected=any&cron=5+*+*+*+*&time_zone=UTC").await;
    assert_ne!(wrong, right);
    assert_eq!(send("key=k&expected=any&cron=5+*+*+*+*&time_zone=UTC").await, right);
}

/// What is only in the trash, was backed up by hand, or goes with another is shown as well.
#[tokio::test]
async fn volumes_that_the_fleet_does_not_name_are_there() {
    let fleet = Fleet::with_volumes().await;
    let report = fleet.world.back_up("by-hand", &noise(1000, 5)).await.unwrap();
    let spec =
        json!({ "host": "h", "source": "/dev/x", "with": [{ "volume": "member", "source": "/dev/y" }] });
    let wanted = json!({ "type": "volume_put", "volume": "leader", "spec": spec });
    fleet.ask("leader", serde_json::from_value(wanted).unwrap()).await;
    strongroom_vault::remove::delete(&fleet.world.target, &[report.backup]).await.unwrap();
    let told = fleet.get("/v1/volumes/by-hand").await.json();
    assert_eq!((&told["backups"], &told["health"]), (&json!(0), &json!("on_request")));
    let page = fleet.call(Method::GET, "/volumes/by-hand", "view", None).await;
    assert!(page.body.contains(&report.backup.to_string()), "where it can be taken out of the trash");
    let member = fleet.get("/v1/volumes/member").await.json();
    assert_eq!((&member["together_with"], &member["host"]), (&json!("leader"), &json!("h")));
    assert!(fleet.get("/").await.body.contains("/volumes/member"));
    let wrong = fleet.call(Method::PATCH, "/v1/runs", "operate", None).await;
    assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(wrong.headers[header::CONTENT_TYPE], "application/problem+json");
}

#[tokio::test]
async fn pages_show_what_there_is_and_names_are_only_names() {
    let fleet = Fleet::with_volumes().await;
    let overview = fleet.get("/").await;
    assert_eq!(overview.status, StatusCode::OK);
    assert!(overview.body.contains("1 late") && overview.body.contains("1 fine"), "{}", overview.body);
    assert!(
        overview.body.contains("a/&#60;b&#62;&#38;") && !overview.body.contains("<b>&"),
        "{}",
        overview.body
    );
    assert!(overview.body.contains("href=\"/volumes/a%252F%3Cb%3E%26\""), "{}", overview.body);
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let volume = fleet.get("/volumes/db").await;
    assert!(volume.body.contains(&backup) && volume.body.contains("The next ones"), "{}", volume.body);
    assert!(!volume.body.contains(&format!("{FORM}\"/volumes")), "a viewer is offered nothing to change");
    let operated = fleet.call(Method::GET, "/volumes/db", "operate", None).await;
    assert!(operated.body.contains("Back up now"), "{}", operated.body);
    let restore = fleet.call(Method::GET, &format!("/backups/{backup}"), "operate", None).await;
    assert!(restore.body.contains("<option selected>h</option>"), "{}", restore.body);
    let run = fleet.get("/v1/runs").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(fleet.get("/runs").await.body.contains(&format!("/runs/{run}")));
    assert!(fleet.get(&format!("/runs/{run}")).await.body.contains("succeeded"));
    let unheard_of = fleet.get(&format!("/runs/{}", "0".repeat(32))).await;
    assert!(unheard_of.body.contains("nobody has taken it up yet"), "{}", unheard_of.body);
    let nowhere = HttpRequest::get("/nowhere").header(header::ACCEPT, "text/html,*/*");
    let nowhere = fleet.http(nowhere.body(Body::empty()).unwrap()).await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert!(nowhere.body.contains("<!doctype html>"), "browsers get a page: {}", nowhere.body);
    let missing = fleet.get("/volumes/nothing").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(missing.body.contains("<!doctype html>"));
}

#[tokio::test]
async fn a_token_becomes_a_cookie_and_pages_load_nothing_from_elsewhere() {
    let fleet = Fleet::new().await;
    let here = [("sec-fetch-site", "same-origin")];
    let entered = fleet.http(login("operate", &here)).await;
    assert_eq!(entered.status, StatusCode::SEE_OTHER);
    let cookie = entered.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite"), "{cookie}");
    let page = HttpRequest::get("/").header(header::COOKIE, cookie.split(';').next().unwrap());
    let page = fleet.http(page.body(Body::empty()).unwrap()).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.body.contains("There are no volumes yet"));
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers[header::CACHE_CONTROL], "no-store");
    for inline in ["<style", " style=", " onclick", "javascript:", "http://", "https://"] {
        assert!(!page.body.contains(inline), "{inline}");
    }
    let refused = fleet.http(login("wrong", &here)).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(!refused.headers.contains_key(header::SET_COOKIE));
    // No other site lets a browser in, and no address does.
    for elsewhere in [&[("sec-fetch-site", "cross-site")][..], &[("sec-fetch-site", "same-site")], &[]] {
        let refused = fleet.http(login("operate", elsewhere)).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{elsewhere:?}");
        assert!(!refused.headers.contains_key(header::SET_COOKIE));
    }
    let link = HttpRequest::get("/login?token=operate").body(Body::empty()).unwrap();
    assert!(!fleet.http(link).await.headers.contains_key(header::SET_COOKIE));
    // Whoever is not known is asked in place of the page.
    let asked = HttpRequest::get("/runs").header(header::ACCEPT, "text/html").body(Body::empty()).unwrap();
    let asked = fleet.http(asked).await;
    assert_eq!(
        (asked.status, asked.headers[header::WWW_AUTHENTICATE].as_bytes()),
        (StatusCode::UNAUTHORIZED, &b"Bearer"[..])
    );
    assert!(asked.body.contains("action=\"/login\""), "{}", asked.body);
    for open in ["/style.css", "/live.js", "/icon.svg"] {
        assert_eq!(
            fleet.http(HttpRequest::get(open).body(Body::empty()).unwrap()).await.status,
            StatusCode::OK
        );
    }
    for closed in openapi()["paths"].as_object().unwrap().keys().map(String::as_str).chain(PAGES) {
        let path = closed.replace(['{', '}'], "");
        let answer = fleet.http(HttpRequest::get(path).body(Body::empty()).unwrap()).await;
        let only_changes = answer.status == StatusCode::METHOD_NOT_ALLOWED;
        assert!(only_changes || answer.status == StatusCode::UNAUTHORIZED, "{closed}: {}", answer.status);
    }
}

/// How a form begins that is sent.
const FORM: &str = "<form method=\"post\" action=";

/// All pages that are about nothing in particular.
const PAGES: [&str; 9] =
    ["/", "/runs", "/storage", "/targets", "/retention", "/gc", "/gc?plan=true", "/audit", "/new-volume"];

#[tokio::test]
async fn every_page_is_shown_to_viewers_and_operators() {
    let fleet = Fleet::with_volumes().await;
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let pages = PAGES.map(str::to_owned).into_iter();
    for path in pages.chain([format!("/backups/{backup}"), "/volumes/db".into(), "/volumes/db/edit".into()]) {
        for token in ["view", "operate"] {
            let page = fleet.call(Method::GET, &path, token, None).await;
            assert_eq!(page.status, StatusCode::OK, "{path}: {}", page.body);
            assert!(page.body.contains("<!doctype html>") && page.body.contains("<h1>"), "{path}");
            for inline in ["<style", " style=", " onclick", "javascript:", "http://", "https://"] {
                assert!(!page.body.replace("http://www.w3.org", "").contains(inline), "{path}: {inline}");
            }
            let body = page.body.replace(&format!("{FORM}\"/sign-out\""), "");
            let is_form = path.ends_with("edit") || path.starts_with("/new") || path.starts_with("/gc");
            assert!(token == "operate" || is_form || !body.contains("method=\"post\""), "{path}");
        }
    }
    assert_eq!(fleet.get("/volumes/none/edit").await.status, StatusCode::NOT_FOUND);
}

/// What of an answer lies between two texts.
fn between<'a>(body: &'a str, begin: &str, end: &str) -> &'a str {
    let from = body.find(begin).unwrap_or_else(|| panic!("no {begin} in {body}"));
    &body[from..from + body[from..].find(end).unwrap()]
}

/// The navigation says where one is: on the page itself, or on one that belongs to it.
#[tokio::test]
async fn the_navigation_says_where_one_is() {
    let fleet = Fleet::with_volumes().await;
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let run = fleet.get("/v1/runs").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    let own = PAGES.iter().filter(|path| **path != "/new-volume");
    let own = own.map(|path| ((*path).to_owned(), path.split('?').next().unwrap().to_owned(), "page"));
    let of_volumes = ["/volumes/db", "/new-volume", "/volumes/db/edit"].map(str::to_owned);
    let of_volumes = of_volumes
        .into_iter()
        .chain([format!("/backups/{backup}")])
        .map(|path| (path, "/".to_owned(), "true"));
    let of_runs = (format!("/runs/{run}"), "/runs".to_owned(), "true");
    let mut titles = BTreeSet::new();
    for (path, link, value) in own.chain(of_volumes).chain([of_runs]) {
        let page = fleet.get(&path).await;
        let navigation = between(&page.body, "<nav aria-label=\"Pages\">", "</nav>");
        assert_eq!(navigation.matches("aria-current").count(), 1, "{path}: {navigation}");
        assert!(
            navigation.contains(&format!("<a href=\"{link}\" aria-current=\"{value}\">")),
            "{path}: {navigation}"
        );
        assert!(
            page.body.contains("<a class=\"skip\" href=\"#main\">")
                && page.body.contains("<main id=\"main\""),
            "{path}"
        );
        assert!(
            path.contains('?') || titles.insert(between(&page.body, "<title>", "</title>").to_owned()),
            "{path} has the title of another"
        );
    }
}

/// Rows of tables become cards on a phone: there each cell says what it is, as its column's heading is not to be seen.
#[tokio::test]
async fn every_cell_says_what_it_is() {
    let fleet = Fleet::with_volumes().await;
    let near = json!({ "type": "target_put", "name": "near", "target": { "address": "file:///n" } });
    fleet.ask("near", serde_json::from_value(near).unwrap()).await;
    let spec = json!({ "host": "h", "source": "/dev/x", "retention": { "keep_last": 1 } });
    let put = json!({ "type": "volume_put", "volume": "db", "spec": spec });
    fleet.ask("keep", serde_json::from_value(put).unwrap()).await;
    fleet.retain().await;
    fleet.world.back_up("db", &noise(50_000, 3)).await.unwrap();
    let mut tables = 0;
    for path in PAGES.iter().chain(&["/volumes/db"]) {
        let page = fleet.call(Method::GET, path, "operate", None).await;
        for table in page.body.split("<table").skip(1) {
            let table = table.split("</table>").next().unwrap();
            assert!(table.starts_with(" class=\"cards\"") && table.contains("<caption"), "{path}: {table}");
            for cell in table.split("<td").skip(1) {
                assert!(cell.split('>').next().unwrap().contains("data-label=\""), "{path}: <td{cell}");
            }
            tables += 1;
        }
    }
    assert!(tables >= 11, "{tables}");
}

#[tokio::test]
async fn an_empty_console_says_what_to_do_next() {
    let fleet = Fleet::new().await;
    for (path, next) in [
        ("/", "strongroom request host-put"),
        ("/", "href=\"/new-volume\""),
        ("/runs", "Add a volume"),
        ("/storage", "Back up now"),
        ("/targets", "strongroom target init"),
        ("/targets", "strongroom request host-put"),
        ("/retention", "How many are kept"),
        ("/gc", "Nothing waits"),
        ("/new-volume", "strongroom request host-put"),
    ] {
        let page = fleet.call(Method::GET, path, "operate", None).await;
        assert!(page.body.contains(next), "{path}: {next}\n{}", page.body);
    }
    let viewed = fleet.get("/").await;
    assert!(
        !viewed.body.contains("href=\"/new-volume\"") && viewed.body.contains("operator"),
        "{}",
        viewed.body
    );
    fleet.ask("host", Wanted::HostPut { host: "h".to_owned() }).await;
    let hosted = fleet.call(Method::GET, "/", "operate", None).await;
    assert!(hosted.body.contains("is there already") && !hosted.body.contains("host-put"), "{}", hosted.body);
    // Of a volume that has no backup yet.
    let fleet = Fleet::with_volumes().await;
    let volume = fleet.call(Method::GET, "/volumes/a%2F%3Cb%3E%26", "operate", None).await;
    assert!(volume.body.contains("“Back up now” makes one at once"), "{}", volume.body);
}

/// What is late or failed comes first, then what is stored, then the rest.
#[tokio::test]
async fn the_overview_plots_what_is_stored_after_what_is_late() {
    let fleet = Fleet::with_volumes().await;
    let page = fleet.get("/").await.body;
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text} in {page}"));
    let order = [
        at("1 late"),
        at("To be looked after"),
        at("a/&#60;b"),
        at("<svg"),
        at("href=\"/storage\">The figures"),
        at("The others"),
        at(">db</a>"),
    ];
    assert!(order.is_sorted(), "{order:?}: {page}");
    assert_eq!(page.matches("role=\"img\" aria-label=\"").count(), 2);
    let stats = fleet.get("/v1/stats").await.json();
    let day = &stats["days"][0];
    let said = between(&page, "aria-label=\"Stored by day", "\">");
    let stored = strongroom_fleet::text::bytes(day["stored_bytes"].as_u64().unwrap());
    assert!(
        said.ends_with(&format!("{stored} in all, the most on {}: {stored}", day["day"].as_str().unwrap())),
        "{said}"
    );
    // The same on its own page, and no plots where something was looked for.
    assert!(fleet.get("/storage").await.body.contains(said));
    assert!(!fleet.get("/?q=db").await.body.contains("<svg"));
}

#[tokio::test]
async fn volumes_are_found_by_name_host_and_state() {
    let fleet = Fleet::with_volumes().await;
    let spec = VolumeSpec::new("rack-7", "/dev/x");
    fleet.ask("rack", Wanted::HostPut { host: "rack-7".to_owned() }).await;
    fleet
        .ask(
            "other",
            Wanted::VolumePut { volume: "Öllager".to_owned(), spec: Box::new(spec), expected: None },
        )
        .await;
    let names = ["a/&#60;b", ">db</a>", ">Öllager</a>"];
    for (asked, hits, found) in [
        ("q=DB", 1, vec![1]),
        ("q=+db+", 1, vec![1]),
        ("q=%C3%B6LL", 1, vec![2]),
        ("q=Rack", 1, vec![2]),
        ("q=%3Cb", 1, vec![0]),
        ("state=late", 1, vec![0]),
        ("q=&state=fine", 1, vec![1]),
        ("q=r&state=no_backup", 1, vec![2]),
        ("q=nothing-like-it", 0, vec![]),
        ("q=db&state=failed", 0, vec![]),
    ] {
        let page = fleet.get(&format!("/?{asked}")).await;
        assert_eq!(page.status, StatusCode::OK, "{asked}");
        assert!(
            page.body.contains(&format!("<strong>{hits}</strong> of 3 volumes")),
            "{asked}: {}",
            page.body
        );
        let shown: Vec<usize> =
            (0..names.len()).filter(|number| page.body.contains(names[*number])).collect();
        assert_eq!(shown, found, "{asked}");
        let told =
            fleet.get(&format!("/v1/volumes?{}", asked.replace("q=&", "").replace("state", "health"))).await;
        assert_eq!(told.json()["items"].as_array().unwrap().len(), hits, "{asked}");
    }
    let typed = fleet.get("/?q=%22%3E%3Cb%3E&state=late").await.body;
    assert!(
        typed.contains("value=\"&#34;&#62;&#60;b&#62;\"") && typed.contains("value=\"late\" selected"),
        "{typed}"
    );
    for whole in ["/", "/?q=&state="] {
        let page = fleet.get(whole).await.body;
        assert!(names.iter().all(|name| page.contains(name)) && !page.contains("of 3 volumes"), "{page}");
    }
    assert_eq!(fleet.get("/?state=bad").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(fleet.get("/v1/volumes?health=bad").await.status, StatusCode::BAD_REQUEST);
}

/// No more than a thousand volumes at once; the others on further pages, each once.
#[tokio::test]
async fn a_very_large_fleet_is_shown_page_by_page() {
    let fleet = Fleet::new().await;
    strongroom_tests::fleet::large::fill(&fleet.service, 1001, 1).await.unwrap();
    let all = |body: &str| -> Vec<String> {
        body.split("<th scope=\"row\">")
            .skip(1)
            .map(|row| row.split("</th>").next().unwrap().to_owned())
            .collect()
    };
    for asked in ["/", "/?q=vm&state="] {
        let first = fleet.get(asked).await.body;
        let link = between(&first, "<p><a href=\"/?q=", ">Further volumes").split('"').nth(1).unwrap();
        let second = fleet.get(&link.replace("&#38;", "&")).await.body;
        let (mut shown, rest) = (all(&first), all(&second));
        assert_eq!((shown.len(), rest.len()), (1000, 1), "{link}");
        assert!(!second.contains("Further volumes"));
        shown.extend(rest);
        shown.sort();
        shown.dedup();
        assert_eq!(shown.len(), 1001);
    }
}

/// What the form of a volume does not ask for stays as it was.
#[tokio::test]
async fn a_form_changes_what_it_asks_for() {
    let fleet = Fleet::with_volumes().await;
    let spec = json!({
        "host": "h", "source": "/dev/x", "with": [{ "volume": "log", "source": "/dev/y" }],
        "chunker": { "fixed": { "size_bytes": 65536 } },
        "schedule": { "cron": "@daily", "jitter_ms": 7 },
        "retention": { "keep_last": 2, "keep_within_ms": 1000 },
    });
    let put = json!({ "type": "volume_put", "volume": "lead", "spec": spec });
    fleet.ask("lead", serde_json::from_value(put).unwrap()).await;
    fleet.sent();
    let operator = fleet.cookie("operate").await;
    let headers = [("cookie", operator.as_str()), ("sec-fetch-site", "same-origin")];
    let body = "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&target=&cron=%40weekly&time_zone=Europe%2FBerlin&keep_daily=9&keep_within=1s";
    let taken = fleet.http(form("/new-volume", body, &headers)).await;
    assert_eq!(taken.status, StatusCode::SEE_OTHER, "{}", taken.body);
    let [Wanted::VolumePut { spec, .. }] = &fleet.sent()[..] else { panic!("one volume") };
    let spec = json!(spec);
    assert_eq!((&spec["source"], &spec["schedule"]["jitter_ms"]), (&json!("/dev/z"), &json!(7)));
    assert_eq!(
        (&spec["with"][0]["volume"], &spec["schedule"]["zone"]),
        (&json!("log"), &json!("Europe/Berlin"))
    );
    assert_eq!(spec["retention"]["keep_within_ms"], 1000);
    assert_eq!((&spec["retention"]["keep_last"], &spec["retention"]["keep_daily"]), (&json!(0), &json!(9)));
    assert_eq!(spec["chunker"]["fixed"]["size_bytes"], 65536);
    for wrong in [
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&keep_daily=many",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&cron=never",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&rpo=36",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&keep_within=0s",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&keep_last=1&rate_removals=2",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&keep_last=1&rate_period=1d",
        "key=k&name=lead&expected=any&host=h&source=%2Fdev%2Fz&rate_removals=2&rate_period=1d",
        "key=k&name=lead&expected=x&host=h&source=%2Fdev%2Fz",
        "key=k&name=&expected=none&host=h&source=%2Fdev%2Fz",
        "key=k&name=x&expected=none&host=&source=%2Fdev%2Fz",
        "name=x&expected=none&host=h&source=%2Fdev%2Fz",
        "key=k&name=x&host=h&source=%2Fdev%2Fz",
    ] {
        assert_eq!(
            fleet.http(form("/new-volume", wrong, &headers)).await.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{wrong}"
        );
    }
    assert_eq!(fleet.sent(), []);
}

/// The plans say what the runs then do.
#[tokio::test]
async fn plans_are_what_runs_do() {
    let fleet = Fleet::with_volumes().await;
    let spec = json!({ "host": "h", "source": "/dev/x", "retention": { "keep_last": 1 } });
    let put = json!({ "type": "volume_put", "volume": "db", "spec": spec });
    fleet.ask("keep", serde_json::from_value(put).unwrap()).await;
    let plan = fleet.get("/v1/retention/plan").await.json();
    assert_eq!((&plan["goes"], &plan["stays"]), (&json!(1), &json!(1)), "{plan}");
    let goes = plan["decisions"].as_array().unwrap().iter().find(|it| it["goes"] == true).unwrap().clone();
    assert_eq!(goes["reasons"], json!([]));
    assert!(fleet.get("/retention").await.body.contains(goes["backup"].as_str().unwrap()));
    let before = fleet.get("/v1/stats").await.json();
    fleet.retain().await;
    let trash = fleet.get("/v1/backups?trash=true").await.json();
    assert_eq!(trash["items"][0]["id"], goes["backup"]);
    assert_eq!(fleet.get("/v1/retention/plan").await.json()["goes"], 0);
    let after = fleet.get("/v1/stats").await.json();
    assert_eq!((&before["backups"], &before["trashed"]), (&json!(2), &json!(0)));
    assert_eq!(
        (&after["backups"], &after["trashed"], after["days"].as_array().unwrap().len()),
        (&json!(1), &json!(1), 1)
    );
    let collection = fleet.get("/v1/gc/plan").await.json();
    assert_eq!(
        (&collection["finished"], &collection["missing_objects"]),
        (&json!(true), &json!(0)),
        "{collection}"
    );
    let audit = fleet.get("/v1/audit").await.json();
    let steps = audit["items"].as_array().unwrap();
    assert!(steps[0]["changes"][0].as_str().unwrap().starts_with("to the trash"), "{audit}");
    assert!(steps.iter().all(|step| step["follows"] == true), "{audit}");
    let older = fleet.get(&format!("/v1/audit?until={}&limit=1", steps[1]["epoch"])).await.json();
    assert_eq!(older["items"][0], steps[1]);
    assert_eq!(fleet.get("/v1/audit?limit=0").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_schedule_is_explained_before_it_is_taken() {
    let fleet = Fleet::new().await;
    let told = fleet.get("/v1/schedules/preview?cron=0+3+*+*+1&time_zone=Europe%2FBerlin").await.json();
    assert!(told["words"].as_str().unwrap().contains("Monday"), "{told}");
    assert_eq!(told["next"].as_array().unwrap().len(), 5);
    for wrong in ["cron=61+*+*+*+*", "cron=", "cron=@daily&time_zone=Nowhere%2FAtAll"] {
        let answer = fleet.get(&format!("/v1/schedules/preview?{wrong}")).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}");
    }
    assert_eq!(fleet.get("/v1/schedules/preview").await.status, StatusCode::BAD_REQUEST);
}

/// A run is followed to its end; one that has ended is told once.
#[tokio::test(start_paused = true)]
async fn a_run_is_followed_until_it_has_ended() {
    let fleet = Fleet::with_volumes().await;
    let runs = fleet.get("/v1/runs").await.json();
    let ended = runs["items"][0]["id"].as_str().unwrap();
    let told = fleet.get(&format!("/v1/runs/{ended}/events")).await;
    assert_eq!(told.body.matches("event: run").count(), 1, "{}", told.body);
    fleet.ask("now", Wanted::Backup { volume: "db".to_owned() }).await;
    let open = fleet.get("/v1/runs?open=true").await.json();
    let id: strongroom_format::ids::RunId = open["items"][0]["id"].as_str().unwrap().parse().unwrap();
    let home = fleet.service.home.clone();
    let work = async {
        for done in [1, 2] {
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            let (run, etag) = home.run(id).await.unwrap().unwrap();
            let run = match run.claim(home.now(), u64::MAX) {
                Claim::Granted(claimed) => *claimed,
                _ => run,
            };
            let next = run.beating(run.attempt, home.now(), done * 10, 40).unwrap();
            home.replace_run(id, &next, &etag).await.unwrap().unwrap();
        }
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        let (run, etag) = home.run(id).await.unwrap().unwrap();
        home.replace_run(id, &run.failed(home.now(), "the disk is gone"), &etag).await.unwrap().unwrap();
    };
    let path = format!("/v1/runs/{id}/events");
    let ((), told) = tokio::join!(work, fleet.get(&path));
    let states: Vec<Value> = told
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let seen: Vec<(&str, u64)> = states
        .iter()
        .map(|run| (run["state"].as_str().unwrap(), run["done_bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(seen, [("queued", 0), ("running", 10), ("running", 20), ("failed", 0)]);
    assert_eq!(states[3]["reason"], "the disk is gone");
    let unknown = fleet.get(&format!("/v1/runs/{}/events", "0".repeat(32))).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
}

/// Each who follows a run holds a connection: some are left for everybody else.
#[tokio::test]
async fn only_so_many_follow_runs_at_once() {
    let fleet = Fleet::with_volumes().await;
    fleet.ask("now", Wanted::Backup { volume: "db".to_owned() }).await;
    let run = fleet.get("/v1/runs?open=true").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/runs/{run}/events");
    let follow = async || {
        let request = HttpRequest::get(&path).header(header::AUTHORIZATION, "Bearer view");
        fleet.console.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let mut followed = Vec::new();
    while followed.len() < 16 {
        let response = follow().await;
        assert_eq!(response.status(), StatusCode::OK, "{}", followed.len());
        followed.push(response);
    }
    let refused = fleet.get(&path).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers[header::RETRY_AFTER], "10");
    followed.pop();
    assert_eq!(follow().await.status(), StatusCode::OK, "whoever goes makes room");
}

/// The document in docs/ is what the code says; `UPDATE=1` writes it anew.
#[test]
fn the_openapi_document_is_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let now = format!("{}\n", serde_json::to_string_pretty(&openapi()).unwrap());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(file, &now).unwrap();
    }
    let then = std::fs::read_to_string(file).unwrap();
    assert!(
        then == now,
        "docs/openapi.json is not what the code says: UPDATE=1 cargo test --test console openapi"
    );
}

/// Every operation has a summary and says who may: that is in the document, not only in the code.
#[test]
fn every_operation_is_described() {
    let document = openapi();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(
                operation["summary"].is_string() && operation["operationId"].is_string(),
                "{method} {path}"
            );
            let refused = &operation["responses"]["403"];
            assert_eq!(refused.is_object(), method != "get", "{method} {path}");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} is nowhere");
    }
}

/// Events are to arrive one by one; everything else that is long is packed for who takes it so.
#[tokio::test]
async fn answers_are_packed_but_events_are_not() {
    let fleet = Fleet::with_volumes().await;
    let run = fleet.get("/v1/runs").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    let events = format!("/v1/runs/{run}/events");
    for (path, is_packed) in [("/v1/runs", true), ("/", true), (events.as_str(), false)] {
        for encoding in ["gzip", "identity"] {
            let request = HttpRequest::get(path).header(header::AUTHORIZATION, "Bearer view");
            let request = request.header(header::ACCEPT_ENCODING, encoding).body(Body::empty()).unwrap();
            let response = fleet.console.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let packed = response.headers().get(header::CONTENT_ENCODING).map(|it| it.to_str().unwrap());
            assert_eq!(packed, (is_packed && encoding == "gzip").then_some("gzip"), "{path} {encoding}");
        }
    }
}

/// Routes of pages that change something, as they are in the router.
fn posted_by_pages() -> BTreeSet<String> {
    let source = include_str!("../../functions/console/src/pages/mod.rs");
    let routes = source.split(".route(").skip(1).filter_map(|route| {
        let (path, handler) = route.split_once(", ")?;
        handler.starts_with("post(").then(|| path.trim().trim_matches('"').to_owned())
    });
    routes.filter(|path| path != "/sign-out").collect()
}

/// The table of what changes something is the router's, to the last route.
#[test]
fn no_change_is_missing_from_the_table() {
    let backup = "0".repeat(32);
    let document = openapi();
    for (template, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys().filter(|method| *method != "get") {
            let has_it = |(known, path): &(Method, String)| {
                known.as_str().eq_ignore_ascii_case(method) && is_like(template, path)
            };
            let known: Vec<_> =
                changes(&backup).into_iter().map(|(method, path, ..)| (method, path)).collect();
            assert!(known.iter().any(has_it), "{method} {template}");
        }
    }
    let pages = posted_by_pages();
    assert!(pages.len() > 8, "{pages:?}");
    for template in pages {
        assert!(forms(&backup).iter().any(|(path, ..)| is_like(&template, path)), "{template}");
    }
}

#[tokio::test]
async fn what_is_open_to_nobody_is_closed_whatever_it_is_about() {
    let fleet = Fleet::with_volumes().await;
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    fleet.ask("b", Wanted::Backup { volume: "db".to_owned() }).await;
    let run = fleet.get("/v1/runs").await.json()["items"][0]["id"].as_str().unwrap().to_owned();
    for path in [
        "/volumes/db".to_owned(),
        "/volumes/db/edit".to_owned(),
        format!("/backups/{backup}"),
        format!("/runs/{run}"),
        format!("/live/runs/{run}/events"),
        "/live/schedules/preview?cron=@daily".to_owned(),
    ] {
        // Events of a run that goes on do not end soon.
        if !path.ends_with("/events") {
            assert_eq!(fleet.get(&path).await.status, StatusCode::OK, "{path}");
        }
        for token in ["", "wrong"] {
            let answer = fleet.call(Method::GET, &path, token, None).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path} with '{token}'");
        }
    }
    for (path, body, _) in forms(&backup) {
        let wrong = form(
            &path,
            body,
            &[("cookie", "strongroom-console-00000000=x"), ("sec-fetch-site", "same-origin")],
        );
        assert_eq!(fleet.http(wrong).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn more_changes_than_a_minute_takes_are_put_off() {
    let fleet = Fleet::with_volumes().await;
    let limits = Limits { changes_a_minute: 2, ..Limits::default() };
    let access = Access::new([("operate", Role::Operator)], &[7; 32]);
    let console = router(fleet.service.clone(), access, limits);
    fleet.sent();
    let ask = |accept: &'static str| {
        let request =
            HttpRequest::post("/v1/volumes/db/backups").header(header::AUTHORIZATION, "Bearer operate");
        console.clone().oneshot(request.header(header::ACCEPT, accept).body(Body::empty()).unwrap())
    };
    for _ in 0..2 {
        assert_eq!(ask("*/*").await.unwrap().status(), StatusCode::ACCEPTED);
    }
    for accept in ["application/json", "text/html"] {
        let put_off = ask(accept).await.unwrap();
        assert_eq!(put_off.status(), StatusCode::TOO_MANY_REQUESTS, "{accept}");
        assert!(put_off.headers().contains_key(header::RETRY_AFTER), "{accept}");
    }
    assert_eq!(fleet.sent().len(), 2);
}

/// A key that is used again for something else loses neither.
#[tokio::test]
async fn another_request_under_the_same_key_is_another_run() {
    let fleet = Fleet::with_volumes().await;
    fleet.sent();
    let ask = |path: &str, key: &str| {
        let request = HttpRequest::post(path).header(header::AUTHORIZATION, "Bearer operate");
        fleet.http(request.header("idempotency-key", key).body(Body::empty()).unwrap())
    };
    let first = ask("/v1/volumes/db/backups", "nightly").await.json();
    assert_eq!(ask("/v1/volumes/db/backups", "nightly").await.json(), first);
    assert_ne!(ask("/v1/volumes/other/backups", "nightly").await.json(), first);
    assert_ne!(ask("/v1/volumes/db/backups", "nightly2").await.json(), first);
    assert_eq!(ask("/v1/volumes/db/backups", &"x".repeat(128)).await.status, StatusCode::ACCEPTED);
    assert_eq!(ask("/v1/volumes/db/backups", &"x".repeat(129)).await.status, StatusCode::BAD_REQUEST);
    let keys: Vec<String> =
        fleet.mail.take().into_iter().map(|(_, body)| Request::from_json(&body).unwrap().key).collect();
    assert!(keys.iter().all(|key| key.len() <= 128), "{keys:?}");
}

/// Two who change different things of a target at once both do.
#[tokio::test]
async fn what_a_patch_of_a_target_leaves_out_stays() {
    let fleet = Fleet::new().await;
    let put = json!({ "type": "target_put", "name": "far", "target": { "address": "file:///far" } });
    fleet.ask("put", serde_json::from_value(put).unwrap()).await;
    fleet.sent();
    for patch in [json!({ "region": "eu-west-1" }), json!({ "kms_key": "alias/k" })] {
        let asked = fleet.call(Method::PATCH, "/v1/targets/far", "operate", Some(patch)).await;
        assert_eq!(asked.status, StatusCode::ACCEPTED, "{}", asked.body);
    }
    for (number, wanted) in fleet.sent().into_iter().enumerate() {
        fleet.ask(&format!("patch-{number}"), wanted).await;
    }
    let far = fleet.get("/v1/targets/far").await.json();
    assert_eq!(
        (&far["address"], &far["region"], &far["kms_key"]),
        (&json!("file:///far"), &json!("eu-west-1"), &json!("alias/k"))
    );
}

/// The home can be asked for by name, and no other target is called so.
#[tokio::test]
async fn a_volume_that_moved_is_found_where_its_backups_are() {
    let fleet = Fleet::with_volumes().await;
    let far = json!({ "type": "target_put", "name": "far", "target": { "address": "file:///far" } });
    fleet.ask("far", serde_json::from_value(far).unwrap()).await;
    let spec = VolumeSpec { target: Some("far".to_owned()), ..VolumeSpec::new("h", "/dev/vg0/x") };
    fleet
        .ask("move", Wanted::VolumePut { volume: "db".to_owned(), spec: Box::new(spec), expected: None })
        .await;
    let gone = fleet.get("/").await;
    assert!(gone.body.contains("href=\"/volumes/db?target=home\""), "{}", gone.body);
    assert!(gone.body.contains("href=\"/volumes/db?target=far\""), "{}", gone.body);
    let stayed = fleet.get("/v1/volumes/db?target=home").await.json();
    assert_eq!((&stayed["backups"], &stayed["target"]), (&json!(2), &Value::Null));
    let backup =
        fleet.get("/v1/backups/db@latest?target=home").await.json()["id"].as_str().unwrap().to_owned();
    let page = fleet.get(&format!("/backups/{backup}")).await;
    assert!(page.body.contains("href=\"/volumes/db?target=home\""), "{}", page.body);
    let listed = fleet.get("/v1/volumes?target=home").await.json()["items"].as_array().unwrap().len();
    assert_eq!(listed, 2, "db, which was moved, and the one that was not");
    assert_eq!(fleet.get("/v1/volumes?target=nope").await.status, StatusCode::NOT_FOUND);
    for page in ["/gc", "/retention", "/audit", "/storage"] {
        assert_eq!(fleet.get(&format!("{page}?target=home")).await.status, StatusCode::OK, "{page}");
    }
    fleet.sent();
    let asked = form("/gc", "key=k&target=home", &[("authorization", "Bearer operate")]);
    assert_eq!(fleet.http(asked).await.status, StatusCode::SEE_OTHER);
    assert_eq!(fleet.sent(), [Wanted::Gc { grace_ms: None, target: None }]);
    let another = json!({ "address": "file:///x" });
    let refused = fleet.call(Method::PUT, "/v1/targets/home", "operate", Some(another)).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// A key that is none is wrong whatever else is asked for, and whatever the volume is like.
#[tokio::test]
async fn a_key_that_is_none_is_refused_before_anything_is_looked_at() {
    let fleet = Fleet::with_volumes().await;
    for key in ["", &"k".repeat(129)] {
        for path in ["/v1/volumes/db", "/v1/volumes/new"] {
            let request = HttpRequest::delete(path)
                .header(header::AUTHORIZATION, "Bearer operate")
                .header(header::IF_MATCH, "\"other\"")
                .header("idempotency-key", key);
            let answer = fleet.http(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {}", answer.body);
        }
    }
    assert_eq!(fleet.sent(), []);
}

/// What could not be taken apart is told as everything else is: to programs as problem details, to people as a page.
#[tokio::test]
async fn errors_are_problems_wherever_they_come_from() {
    let fleet = Fleet::new().await;
    for path in ["/v1/volumes/%ff", "/audit?until=x", "/gc?plan=1", "/volumes/%ff"] {
        let told = fleet.get(path).await;
        assert!(told.status.is_client_error(), "{path}: {}", told.status);
        assert_eq!(told.headers[header::CONTENT_TYPE], "application/problem+json", "{path}: {}", told.body);
        let shown = HttpRequest::get(path)
            .header(header::AUTHORIZATION, "Bearer view")
            .header(header::ACCEPT, "text/html");
        let shown = fleet.http(shown.body(Body::empty()).unwrap()).await;
        assert!(shown.body.contains("<!doctype html>"), "{path}: {}", shown.body);
    }
}
