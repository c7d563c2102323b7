//! What forms show, what they expect of a volume, and for how long they count.

use std::collections::BTreeMap;

use super::*;

/// How a form says that it is sent, and where to.
const SENT_TO: &str = " method=\"post\" action=";

/// A browser of an operator.
struct Browser<'a> {
    fleet: &'a Fleet,
    cookie: String,
}

/// What is between an attribute and its end, as it was before it was escaped.
fn unescaped(text: &str) -> String {
    [("&#34;", "\""), ("&#60;", "<"), ("&#62;", ">"), ("&#38;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    Some(unescaped(rest.split('"').next()?))
}

/// The fields of the form that is sent to `action`, as they are when nobody touches them.
fn fields(page: &str, action: &str) -> BTreeMap<String, String> {
    let form = between(page, &format!("{SENT_TO}\"{action}\""), "</form>");
    let mut fields = BTreeMap::new();
    for tag in form.split("<input").skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let is_off = tag.contains("type=\"checkbox\"") && !tag.contains(" checked");
        if !is_off {
            fields.insert(attribute(tag, "name").unwrap(), attribute(tag, "value").unwrap_or_default());
        }
    }
    for select in form.split("<select").skip(1).map(|rest| rest.split("</select>").next().unwrap()) {
        let options: Vec<&str> = select.split("<option").skip(1).collect();
        let is_chosen = |option: &&&str| option.split('>').next().unwrap().contains(" selected");
        let chosen = options.iter().find(is_chosen).or(options.first()).unwrap();
        let text = unescaped(chosen.split('>').nth(1).unwrap().split('<').next().unwrap());
        fields.insert(attribute(select, "name").unwrap(), attribute(chosen, "value").unwrap_or(text));
    }
    fields
}

impl<'a> Browser<'a> {
    async fn of(fleet: &'a Fleet) -> Self {
        Self { fleet, cookie: fleet.cookie("operate").await }
    }

    async fn page(&self, path: &str) -> String {
        let answer = self.fleet.call(Method::GET, path, "operate", None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        answer.body
    }

    /// Sends a form with these fields changed.
    async fn send(
        &self,
        action: &str,
        fields: &BTreeMap<String, String>,
        changed: &[(&str, &str)],
    ) -> Answer {
        let mut fields = fields.clone();
        fields.extend(changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let quoted = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let body: Vec<String> =
            fields.iter().map(|(name, value)| format!("{}={}", quoted(name), quoted(value))).collect();
        let request = HttpRequest::post(action)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::COOKIE, &self.cookie)
            .header("sec-fetch-site", "same-origin");
        self.fleet.http(request.body(Body::from(body.join("&"))).unwrap()).await
    }
}

impl Fleet {
    /// Puts a volume as this says.
    async fn put(&self, volume: &str, spec: Value) {
        let put = json!({ "type": "volume_put", "volume": volume, "spec": spec });
        let key = format!("put {volume}");
        self.ask(&key, serde_json::from_value(put).unwrap()).await;
        self.sent();
    }

    /// Does what was sent, and says how each request ended, with the reason of those that failed.
    async fn deal(&self) -> Vec<(&'static str, String)> {
        let mut ends = Vec::new();
        for (queue, body) in self.mail.take() {
            if queue != QueueName::Requests {
                continue;
            }
            let key = Request::from_json(&body).unwrap().key;
            let message = Incoming { id: "m".to_owned(), body, receives: 1 };
            assert_eq!(strongroom_dispatcher::handle(&self.service, &[message], FOREVER).await, []);
            let home = &self.service.home;
            let id = strongroom_fleet::shard::run_of_request(home.sealer(), &key);
            let told = self.get(&format!("/v1/runs/{id}")).await.json();
            let state = if told["state"] == "succeeded" { "succeeded" } else { "failed" };
            ends.push((state, told["reason"].as_str().unwrap_or_default().to_owned()));
        }
        ends
    }
}

/// "All empty: everything is kept", also of what was kept by rules that are not counts; and what is not touched stays, to the millisecond.
#[tokio::test]
async fn an_empty_form_keeps_everything_and_an_untouched_one_changes_nothing() {
    let fleet = Fleet::with_volumes().await;
    let browser = Browser::of(&fleet).await;
    let spec = json!({
        "host": "h", "source": "/dev/x", "rpo_ms": 5_400_001,
        "schedule": { "cron": "@daily", "zone": "Europe/Berlin", "jitter_ms": 7, "paused": true },
        "retention": {
            "keep_last": 0, "keep_hourly": 0, "keep_daily": 9, "keep_weekly": 0, "keep_monthly": 0, "keep_yearly": 0,
            "keep_within_ms": 3_600_000, "max_rate": { "removals": 2, "period_ms": 129_600_000 },
        },
    });
    fleet.put("kept", spec.clone()).await;
    let volume = browser.page("/volumes/kept").await;
    for said in ["1h 30m 1ms without a backup", "9 daily, all of the last 1h", "no more than 2 go in 1d 12h"]
    {
        assert!(volume.contains(said), "{said}: {volume}");
    }
    let fields = fields(&browser.page("/volumes/kept/edit").await, "/new-volume");
    for (name, value) in
        [("rpo", "1h 30m 1ms"), ("keep_within", "1h"), ("rate_removals", "2"), ("rate_period", "1d 12h")]
    {
        assert_eq!(fields[name], value, "{name}");
    }
    assert_eq!(browser.send("/new-volume", &fields, &[]).await.status, StatusCode::SEE_OTHER);
    let sent: Vec<Value> = fleet.sent().iter().map(|wanted| json!(wanted)["spec"].clone()).collect();
    assert_eq!(sent, [spec]);
    let empty = [
        "keep_last",
        "keep_hourly",
        "keep_daily",
        "keep_weekly",
        "keep_monthly",
        "keep_yearly",
        "keep_within",
        "rate_removals",
        "rate_period",
    ]
    .map(|name| (name, ""));
    // Nothing else that it shows is a rule.
    let rules = fields.keys().filter(|name| name.starts_with("keep_") || name.starts_with("rate_"));
    assert_eq!(rules.count(), empty.len());
    assert_eq!(browser.send("/new-volume", &fields, &empty).await.status, StatusCode::SEE_OTHER);
    let [Wanted::VolumePut { spec, .. }] = &fleet.sent()[..] else { panic!("one volume") };
    assert_eq!(spec.retention, None);
    let only_a_rate = browser.send("/new-volume", &fields, &empty[..7]).await;
    assert_eq!(only_a_rate.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(only_a_rate.body.contains("leave the rate empty"), "{}", only_a_rate.body);
}

/// A new volume does not replace one that is there, and nobody's change is undone by a form that was made before it.
#[tokio::test]
async fn a_form_changes_what_it_was_made_from_and_nothing_else() {
    let fleet = Fleet::with_volumes().await;
    let browser = Browser::of(&fleet).await;
    fleet.sent();
    let new = fields(&browser.page("/new-volume").await, "/new-volume");
    let added = [("name", "fresh"), ("source", "/dev/x")];
    let taken = browser.send("/new-volume", &new, &[("name", "db"), ("source", "/dev/other")]).await;
    assert_eq!(taken.status, StatusCode::PRECONDITION_FAILED);
    assert!(taken.body.contains("there is a volume &#39;db&#39; already"), "{}", taken.body);
    assert_eq!(fleet.sent(), []);
    let first = browser.send("/new-volume", &new, &added).await;
    assert_eq!(fleet.deal().await, [("succeeded", String::new())]);
    // A second click finds that it is there, by its own doing: it is the same run.
    let second = browser.send("/new-volume", &new, &added).await;
    assert_eq!(
        (second.status, &second.headers[header::LOCATION]),
        (StatusCode::SEE_OTHER, &first.headers[header::LOCATION])
    );
    assert_eq!(fleet.deal().await, [("succeeded", String::new())]);
    // Two have the form open.
    let open = fields(&browser.page("/volumes/fresh/edit").await, "/new-volume");
    let schedule = fields(&browser.page("/volumes/fresh").await, "/volumes/fresh/schedule");
    let forget = fields(&browser.page("/volumes/fresh/forget").await, "/volumes/fresh/forget");
    // One of them is looked at here before the other's change is made, and by the dispatcher after it.
    assert_eq!(
        browser.send("/new-volume", &open, &[("source", "/dev/y")]).await.status,
        StatusCode::SEE_OTHER
    );
    assert_eq!(
        browser.send("/new-volume", &open, &[("source", "/dev/z")]).await.status,
        StatusCode::SEE_OTHER
    );
    let ends = fleet.deal().await;
    assert_eq!(ends[0], ("succeeded", String::new()));
    assert!(ends[1].0 == "failed" && ends[1].1.contains("was changed by somebody meanwhile"), "{ends:?}");
    assert_eq!(fleet.get("/v1/volumes/fresh").await.json()["source"], "/dev/y");
    for (action, stale, changed) in [
        ("/new-volume", &open, ("source", "/dev/w")),
        ("/volumes/fresh/schedule", &schedule, ("cron", "@daily")),
        ("/volumes/fresh/forget", &forget, ("x", "")),
    ] {
        let answer = browser.send(action, stale, &[changed]).await;
        assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED, "{action}: {}", answer.body);
    }
    // One that was forgotten is not made again.
    let open = fields(&browser.page("/volumes/fresh/edit").await, "/new-volume");
    fleet.ask("forget", Wanted::VolumeDelete { volume: "fresh".to_owned(), expected: None }).await;
    let answer = browser.send("/new-volume", &open, &[]).await;
    assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED);
    assert!(answer.body.contains("there is no volume"), "{}", answer.body);
    assert_eq!(fleet.sent(), []);
}

/// The same for HTTP clients: `If-Match` and `If-None-Match` (RFC 9110, section 13.1).
#[tokio::test]
async fn clients_say_what_they_expect_of_a_volume() {
    let fleet = Fleet::with_volumes().await;
    fleet.sent();
    let spec = |source: &str| json!({ "host": "h", "source": source });
    let call = async |method: Method, path: &str, body: Option<Value>, headers: &[(&str, &str)]| {
        let mut request = HttpRequest::builder().method(method.clone()).uri(path);
        for (name, value) in [("authorization", "Bearer operate")].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        let answer = fleet.http(request.body(body).unwrap()).await;
        check_documented(&method, path, &answer);
        answer.status
    };
    let put = async |path: &str, source: &str, headers: &[(&str, &str)]| {
        call(Method::PUT, path, Some(spec(source)), headers).await
    };
    let (new, old) = ("/v1/volumes/new", "/v1/volumes/db");
    let told = fleet.get(old).await;
    let tag = format!("\"{}\"", told.json()["spec_tag"].as_str().unwrap());
    let etag = told.headers[header::ETAG].to_str().unwrap().to_owned();
    let (weak, strangers) = (format!("W/{tag}"), format!("\"x\", \"{}\", {tag}", "0".repeat(64)));
    let stranger = format!("\"{}\"", "0".repeat(64));
    let failed = StatusCode::PRECONDITION_FAILED;
    for (path, name, value, status) in [
        (new, "if-none-match", "*", StatusCode::ACCEPTED),
        (old, "if-none-match", "*", failed),
        (new, "if-match", "*", failed),
        (old, "if-match", "*", StatusCode::ACCEPTED),
        (old, "if-match", tag.as_str(), StatusCode::ACCEPTED),
        (old, "if-match", strangers.as_str(), StatusCode::ACCEPTED),
        (new, "if-match", tag.as_str(), failed),
        (old, "if-match", stranger.as_str(), failed),
        // Compared strongly; and the ETag of the answer is of more than what is to be done.
        (old, "if-match", weak.as_str(), failed),
        (old, "if-match", etag.as_str(), failed),
        (old, "if-match", "unquoted", StatusCode::BAD_REQUEST),
        (old, "if-none-match", tag.as_str(), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(put(path, "/dev/x", &[(name, value)]).await, status, "{path} {name}: {value}");
        let sent = fleet.sent();
        assert_eq!(sent.len(), usize::from(status == StatusCode::ACCEPTED), "{path} {name}: {value}");
    }
    assert_eq!(
        put(old, "/dev/x", &[("if-match", "*"), ("if-none-match", "*")]).await,
        StatusCode::BAD_REQUEST
    );
    // What is expected goes along, and is looked at again where it is changed: the later of two does not win.
    for source in ["/dev/1", "/dev/2"] {
        assert_eq!(
            put(old, source, &[("if-match", &tag), ("idempotency-key", source)]).await,
            StatusCode::ACCEPTED
        );
    }
    let ends = fleet.deal().await;
    assert!(ends[0].0 == "succeeded" && ends[1].0 == "failed", "{ends:?}");
    assert_eq!(fleet.get(old).await.json()["source"], "/dev/1");
    // Sent again after a lost answer, it is the run that it was; under another key, or none, it is too late.
    assert_eq!(
        put(old, "/dev/1", &[("if-match", &tag), ("idempotency-key", "/dev/1")]).await,
        StatusCode::ACCEPTED
    );
    assert_eq!(fleet.deal().await, [("succeeded", String::new())]);
    assert_eq!(put(old, "/dev/1", &[("if-match", &tag)]).await, failed);
    let patch = Some(json!({ "paused": true }));
    assert_eq!(
        call(Method::PATCH, "/v1/volumes/db/schedule", patch.clone(), &[("if-match", &tag)]).await,
        failed
    );
    assert_eq!(call(Method::DELETE, old, None, &[("if-match", &tag)]).await, failed);
    assert_eq!(fleet.sent(), []);
    let tag = format!("\"{}\"", fleet.get(old).await.json()["spec_tag"].as_str().unwrap());
    assert_eq!(call(Method::DELETE, old, None, &[("if-match", &tag)]).await, StatusCode::ACCEPTED);
    assert_eq!(fleet.deal().await, [("succeeded", String::new())]);
    assert!(fleet.get(old).await.json()["spec_tag"].is_null());
}

/// A change that was made, and whose end was not written down, is not refused for what it did itself.
#[tokio::test]
async fn a_change_that_comes_again_is_not_refused_for_its_own_doing() {
    let fleet = Fleet::with_volumes().await;
    let spec = Box::new(VolumeSpec::new("h", "/dev/x"));
    let put = Wanted::VolumePut {
        volume: "new".to_owned(),
        spec,
        expected: Some(strongroom_fleet::expected::Expected::Absent),
    };
    for _ in 0..2 {
        strongroom_dispatcher::make_change(&fleet.service, &put).await.unwrap();
    }
    let other = Wanted::VolumePut {
        volume: "new".to_owned(),
        spec: Box::new(VolumeSpec::new("h", "/dev/y")),
        expected: Some(strongroom_fleet::expected::Expected::Absent),
    };
    let refused = strongroom_dispatcher::make_change(&fleet.service, &other).await.unwrap_err();
    assert!(refused.to_string().contains("already"), "{refused}");
    let delete = Wanted::VolumeDelete {
        volume: "new".to_owned(),
        expected: Some(strongroom_fleet::expected::Expected::Present),
    };
    for _ in 0..2 {
        strongroom_dispatcher::make_change(&fleet.service, &delete).await.unwrap();
    }
}

/// Pressed twice, a button is one request; pressed again later, from a page that was left open, it is another.
#[tokio::test]
async fn a_page_that_was_left_open_asks_anew() {
    let fleet = Fleet::with_volumes().await;
    let browser = Browser::of(&fleet).await;
    let action = "/volumes/db/backup";
    let fields = fields(&browser.page("/volumes/db").await, action);
    let press = async || {
        let answer = browser.send(action, &fields, &[]).await;
        answer.headers[header::LOCATION].to_str().unwrap().to_owned()
    };
    let first = press().await;
    fleet.world.pass(2000);
    assert_eq!(press().await, first);
    fleet.world.pass(3_600_000);
    let later = press().await;
    assert_ne!(later, first);
    fleet.world.pass(2000);
    assert_eq!(press().await, later);
}

/// What can't be undone by asking again takes two steps, without any script.
#[tokio::test]
async fn what_is_forgotten_or_deleted_is_asked_about_first() {
    let fleet = Fleet::with_volumes().await;
    let browser = Browser::of(&fleet).await;
    let near = json!({ "type": "target_put", "name": "near", "target": { "address": "file:///n" } });
    fleet.ask("near", serde_json::from_value(near).unwrap()).await;
    fleet.sent();
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let of_backup = format!("/backups/{backup}");
    let delete = format!("{of_backup}/delete");
    for (page, link, action, wanted) in [
        ("/volumes/db", "/volumes/db/forget", "/volumes/db/forget", "volume_delete"),
        (of_backup.as_str(), delete.as_str(), delete.as_str(), "delete"),
        ("/targets", "/targets/forget?name=near", "/targets/forget", "target_delete"),
        ("/gc", "/gc?", "/gc", "gc"),
    ] {
        let shown = browser.page(page).await;
        assert!(!shown.contains(&format!("{SENT_TO}\"{action}\"")), "{page} asks for {wanted} at once");
        let link = if page == "/gc" {
            assert!(shown.contains("name=\"plan\" value=\"true\""), "{shown}");
            "/gc?target=&plan=true"
        } else {
            assert!(shown.contains(&format!("href=\"{link}\"")), "{page}: {shown}");
            link
        };
        let asked = browser.page(link).await;
        let sent = browser.send(action, &fields(&asked, action), &[]).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{action}: {}", sent.body);
        let [sent] = &fleet.sent()[..] else { panic!("{action} sends one request") };
        assert_eq!(json!(sent)["type"], wanted);
        let viewed = fleet.get(link).await;
        assert!(!viewed.body.contains(&format!("{SENT_TO}\"{action}\"")), "{link}");
        assert!(page == "/gc" || viewed.status == StatusCode::FORBIDDEN, "{link}");
    }
    for gone in
        ["/volumes/none/forget", "/targets/forget?name=none", &format!("/backups/{}/delete", "0".repeat(32))]
    {
        let answer = fleet.call(Method::GET, gone, "operate", None).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{gone}");
    }
}

/// A device is written over where it is: that is said, and ticked.
#[tokio::test]
async fn a_device_is_written_over_only_if_that_is_said() {
    let fleet = Fleet::with_volumes().await;
    let browser = Browser::of(&fleet).await;
    fleet.sent();
    let backup = fleet.get("/v1/backups/db@latest").await.json()["id"].as_str().unwrap().to_owned();
    let page = browser.page(&format!("/backups/{backup}")).await;
    assert!(page.contains("what is on it is lost"), "{page}");
    let action = format!("/backups/{backup}/restore");
    let fields = fields(&page, &action);
    for (destination, overwrite, status) in [
        ("/dev/vg0/db", "", StatusCode::UNPROCESSABLE_ENTITY),
        (" /srv/../dev/vg0/db", "", StatusCode::UNPROCESSABLE_ENTITY),
        ("/dev/vg0/db", "true", StatusCode::SEE_OTHER),
        ("/srv/db.img", "", StatusCode::SEE_OTHER),
    ] {
        let ticked = ("overwrite", overwrite);
        let changed = [("destination", destination), ticked];
        let changed = if overwrite.is_empty() { &changed[..1] } else { &changed[..] };
        let answer = browser.send(&action, &fields, changed).await;
        assert_eq!(answer.status, status, "{destination}: {}", answer.body);
        assert_eq!(fleet.sent().len(), usize::from(status == StatusCode::SEE_OTHER), "{destination}");
    }
}

/// One volume of which too many would go keeps nothing from the others, and the plan says so.
#[tokio::test]
async fn a_plan_leaves_out_what_a_run_refuses() {
    let fleet = Fleet::with_volumes().await;
    for volume in ["aaa", "db"] {
        fleet.put(volume, json!({ "host": "h", "source": "/dev/x", "retention": { "keep_last": 1 } })).await;
    }
    for seed in 0..102 {
        fleet.world.back_up("aaa", &noise(600, seed)).await.unwrap();
    }
    let plan = fleet.get("/v1/retention/plan").await.json();
    assert_eq!(plan["refused"], json!([{ "volume": "aaa", "removals": 101, "cap": 100 }]));
    assert_eq!((&plan["goes"], &plan["stays"]), (&json!(1), &json!(103)), "{}", plan["refused"]);
    let decisions = plan["decisions"].as_array().unwrap();
    let refused = decisions.iter().filter(|decision| decision["refused"] == true);
    assert!(refused.clone().all(|decision| decision["goes"] == false && decision["volume"] == "aaa"));
    assert_eq!(refused.count(), 101);
    let page = fleet.get("/retention").await.body;
    assert!(
        page.contains("<strong>1</strong> backups would go") && page.contains("Of aaa 101 would go"),
        "{page}"
    );
    fleet.retain().await;
    let trash = fleet.get("/v1/backups?trash=true").await.json();
    let trash: Vec<&Value> =
        trash["items"].as_array().unwrap().iter().map(|backup| &backup["volume"]).collect();
    assert_eq!(trash, ["db"], "what the plan says");
    let runs = fleet.get("/v1/runs?limit=1").await.json();
    assert_eq!(
        (&runs["items"][0]["kind"], &runs["items"][0]["state"]),
        (&json!("retention"), &json!("failed"))
    );
    let reason = runs["items"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("'aaa'") && reason.contains("101") && reason.ends_with("went to the trash: 1"),
        "{reason}"
    );
}

/// A volume says why its last run failed, and leads to its runs, of which there may be more than a page.
#[tokio::test]
async fn failures_lead_to_their_reasons() {
    let fleet = Fleet::with_volumes().await;
    let home = &fleet.service.home;
    for number in 0..202 {
        let key = format!("back up {number}");
        fleet.ask(&key, Wanted::Backup { volume: "db".to_owned() }).await;
        fleet.world.pass(1000);
        if number == 100 {
            let id = strongroom_fleet::shard::run_of_request(home.sealer(), &key);
            let (run, etag) = home.run(id).await.unwrap().unwrap();
            let failed = run.failed(home.now(), "the disk <is> gone");
            home.replace_run(id, &failed, &etag).await.unwrap().unwrap();
        }
    }
    home.change_shard(strongroom_fleet::shard::shard_of(home.sealer(), "db"), |shard| {
        let mut next = shard.clone();
        next.volumes.get_mut("db").unwrap().last_failure = Some(home.now());
        Ok(strongroom_fleet::home::Change::Replace(next, ()))
    })
    .await
    .unwrap();
    let volume = fleet.get("/volumes/db").await.body;
    assert!(volume.contains("the disk &#60;is&#62; gone"), "{volume}");
    assert!(volume.contains("href=\"/runs?volume=db\""), "{volume}");
    let rows = |page: &str| page.matches("<tr><td data-label=\"Begun\"").count();
    let first = fleet.get("/runs?volume=db&open=").await.body;
    let link = unescaped(between(&first, "/runs?volume=db&amp;open=&amp;after=", "\">Older runs").trim())
        .replace("&amp;", "&");
    let second = fleet.get(&link).await.body;
    assert_eq!((rows(&first), rows(&second)), (200, 2), "{link}");
    assert!(!second.contains("Older runs") && !first.contains(">change<"));
    let ended = fleet.get("/runs?volume=db&open=false").await.body;
    assert!(rows(&ended) == 1 && ended.contains("the disk &#60;is&#62; gone"), "{ended}");
    let open = fleet.get("/runs?volume=db&open=true").await.body;
    assert!(rows(&open) == 200 && open.contains("volume=db&amp;open=true&amp;after="), "{open}");
    let none = fleet.get("/runs?volume=nothing").await.body;
    assert!(rows(&none) == 0 && none.contains("None is so"), "{none}");
    assert_eq!(fleet.get("/runs?open=maybe").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(fleet.get("/runs?after=x").await.status, StatusCode::UNPROCESSABLE_ENTITY);
}
