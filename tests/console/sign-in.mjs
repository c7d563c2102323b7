// Signing in to a deployed console: by a browser at an identity provider, and by HTTP clients with tokens of it.
// usage: node sign-in.mjs CONSOLE PORT HOST SOURCE PICTURES
//
// The identity provider (identity-provider.mjs) is served here, on PORT, which the console was deployed for. Ends with 1 at the
// first thing that is not as it should be.
import assert from "node:assert/strict";
import { request } from "node:http";
import { Issuer, provide } from "./identity-provider.mjs";
import { PATIENCE, close, ended, keep, look, newPage } from "./look.mjs";

const [start, port, host, source, pictures] = process.argv.slice(2);
keep(pictures);
const provider = await provide(Number(port));
const { issuer } = provider;
const console_ = new URL(start);
const say = (what) => console.log(what);
const encoded = encodeURIComponent;

/** Asks without a browser. Names below localhost are not known to every resolver: so it goes to the address that they stand for. */
const ask = (method, path, { token, body, headers = {} } = {}) =>
  new Promise((done, failed) => {
    const all = { host: console_.host, accept: "application/json", ...headers };
    if (token !== undefined) {
      all.authorization = `Bearer ${token}`;
    }
    if (body !== undefined && !("content-type" in headers)) {
      all["content-type"] = "application/json";
    }
    const asked = request({ host: "127.0.0.1", port: console_.port, method, path, headers: all }, async (answer) => {
      let text = "";
      for await (const piece of answer) {
        text += piece;
      }
      done({ status: answer.statusCode, headers: answer.headers, text, json: () => JSON.parse(text) });
    });
    asked.once("error", failed);
    asked.end(body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body));
  });
const [viewer, operator, stranger] = ["vera", "otto", "nora"].map((person) => issuer.token(person));

/** Waits for a run that was taken, and says how it ended. */
const ran = async (taken) => {
  assert.equal(taken.status, 202, taken.text);
  const { run } = taken.json();
  for (const until = Date.now() + PATIENCE; Date.now() < until; ) {
    const told = await ask("GET", `/v1/runs/${run}`, { token: viewer });
    if (told.status === 200 && ["succeeded", "failed"].includes(told.json().state)) {
      return told.json();
    }
    await new Promise((done) => setTimeout(done, 500));
  }
  throw new Error(`run ${run} did not end`);
};
const succeeded = async (taken) => {
  const run = await ran(taken);
  assert.equal(run.state, "succeeded", JSON.stringify(run));
  return run;
};

// HTTP clients, without a token or with a wrong one.
const other = new Issuer(issuer.issuer);
const elsewhere = new Issuer("http://127.0.0.1:1");
const past = Math.floor(Date.now() / 1000) - 60;
const wrong = {
  "no token": undefined,
  "what is no token": "garbage",
  "what looks like one": "e30.e30.e30",
  "one of another issuer": elsewhere.token("otto"),
  "one that somebody else signed in its name": other.token("otto"),
  "one that was changed": operator.replace(/\.[^.]+\./, `.${viewer.split(".")[1]}.`),
  "one without a signature": `${Buffer.from('{"alg":"none"}').toString("base64url")}.${operator.split(".")[1]}.`,
  "one for another audience": issuer.token("otto", { aud: "somebody-else" }),
  "one that is over": issuer.token("otto", { exp: past }),
};
for (const [what, token] of Object.entries(wrong)) {
  for (const [method, path, body] of [["GET", "/v1/volumes"], ["POST", "/v1/gc", {}], ["POST", "/sign-in", ""]]) {
    const { status, headers } = await ask(method, path, { token, body });
    assert.equal(status, 401, `${method} ${path} with ${what}`);
    assert.equal(headers["set-cookie"], undefined);
  }
  // Paths that API Gateway does not take for those below /v1, but the console might.
  for (const path of ["/v1%2Fvolumes", "/%761/volumes", "//v1/volumes", "/runs", "/volumes/x"]) {
    const { status } = await ask("GET", path, { token });
    assert.ok(status >= 400 && status < 500, `${path} with ${what}: ${status}`);
  }
}
say(`${Object.keys(wrong).length} wrong tokens are refused`);
assert.equal((await ask("GET", "/v1/volumes", { token: stranger })).status, 403);
assert.equal((await ask("POST", "/sign-in", { token: stranger, body: "" })).status, 403);
for (const token of [viewer, operator]) {
  assert.equal((await ask("GET", "/v1/volumes", { token })).status, 200);
}
const forged = { "x-amzn-oidc-identity": "otto", "x-forwarded-user": "otto", claims: '{"groups":"[operators]"}' };
assert.equal((await ask("GET", "/v1/volumes", { headers: forged })).status, 401);

// Whatever changes something, for a viewer and an operator.
const name = "gemietet/büro 1 (100 %)";
const spec = { host, source };
await succeeded(await ask("PUT", `/v1/volumes/${encoded(name)}`, { token: operator, body: spec }));
await succeeded(await ask("POST", `/v1/volumes/${encoded(name)}/backups`, { token: operator }));
await succeeded(await ask("PUT", "/v1/targets/far", { token: operator, body: { address: "s3://strongroom-nowhere/x" } }));
const [backup] = (await ask("GET", `/v1/backups?volume=${encoded(name)}`, { token: viewer })).json().items.map(({ id }) => id);
const changes = {
  "PATCH /v1/volumes/{volume}/schedule": [`/v1/volumes/${encoded(name)}/schedule`, { paused: true, cron: "@daily" }],
  "POST /v1/volumes/{volume}/backups": [`/v1/volumes/${encoded(name)}/backups`],
  "DELETE /v1/backups/{backup}": [`/v1/backups/${backup}`],
  "POST /v1/backups/{backup}/undelete": [`/v1/backups/${backup}/undelete`],
  "POST /v1/backups/{backup}/restore": [`/v1/backups/${backup}/restore`, { host, destination: "/nowhere/at-all" }],
  "PUT /v1/hosts/{host}": ["/v1/hosts/another"],
  "DELETE /v1/hosts/{host}": ["/v1/hosts/another"],
  "PUT /v1/targets/{target}": ["/v1/targets/far", { address: "s3://strongroom-nowhere/y" }],
  "PATCH /v1/targets/{target}": ["/v1/targets/far", { region: "eu-west-1" }],
  "DELETE /v1/targets/{target}": ["/v1/targets/far"],
  "POST /v1/retention": ["/v1/retention", {}],
  "POST /v1/gc": ["/v1/gc", {}],
  "PUT /v1/volumes/{volume}": [`/v1/volumes/${encoded("x/y")}`, spec],
  "DELETE /v1/volumes/{volume}": [`/v1/volumes/${encoded("x/y")}`],
};
const { paths } = (await ask("GET", "/v1/openapi.json", { token: viewer })).json();
const documented = Object.entries(paths).flatMap(([path, operations]) =>
  Object.keys(operations).filter((method) => ["put", "post", "patch", "delete"].includes(method)).map((method) => `${method.toUpperCase()} ${path}`),
);
assert.deepEqual(documented.sort(), Object.keys(changes).sort(), "what changes something, as the console documents it");
for (const [operation, [path, body]] of Object.entries(changes)) {
  const method = operation.split(" ")[0];
  assert.equal((await ask(method, path, { token: viewer, body })).status, 403, `${operation}: a viewer`);
  assert.equal((await ask(method, path, { token: stranger, body })).status, 403, `${operation}: a stranger`);
  assert.equal((await ask(method, path, { body })).status, 401, `${operation}: nobody`);
  const taken = await ask(method, path, { token: operator, body });
  assert.equal(taken.status, 202, `${operation}: ${taken.text}`);
  // One after the other, as each stands on the one before.
  await ran(taken);
}
say(`${documented.length} changes: refused to viewers and strangers, taken from operators`);

// Names, as they come back from where API Gateway decodes paths.
const names = [name, "a b", "100%", "%41", "a%2Fb", "a/b/c", "ä/ö", "q?x=1&y#z", "plus+minus", "a/edit/b", "日本/ディスク", "'\"<b>"];
for (const one of names.slice(1)) {
  await succeeded(await ask("PUT", `/v1/volumes/${encoded(one)}`, { token: operator, body: spec }));
}
for (const one of names) {
  const told = await ask("GET", `/v1/volumes/${encoded(one)}`, { token: viewer });
  assert.equal(told.status, 200, `${one}: ${told.text}`);
  assert.equal(told.json().name, one);
}
say(`${names.length} names are found again`);

// Browsers.
let isRefusedNow = false;
const person = () => newPage(() => isRefusedNow);
const at = (page) => page.url().slice(start.replace(/\/$/, "").length);
const go = (page, path) => page.goto(new URL(path, start).href);
/** Goes to a page as nobody, says who it is at the provider, and is brought back. */
const signIn = async (page, who, wanted) => {
  await go(page, wanted);
  await page.waitForURL((url) => url.origin === issuer.issuer);
  await page.getByRole("button", { name: who, exact: true }).click();
};
const post = (page, path, form) =>
  page.evaluate(
    async ([to, body]) => {
      const answer = await fetch(to, { method: "POST", body: new URLSearchParams(body), redirect: "manual" });
      return answer.type === "opaqueredirect" ? 303 : answer.status;
    },
    [path, form],
  );
const volume = `/volumes/${encoded(name)}`;
const forms = [
  ["/new-volume", { key: "k", name: "x", host, source }],
  [`${volume}/backup`, { key: "k" }],
  [`${volume}/schedule`, { key: "k", cron: "@daily", time_zone: "UTC" }],
  [`${volume}/forget`, { key: "k" }],
  [`/backups/${backup}/restore`, { key: "k", host, destination: "/x" }],
  [`/backups/${backup}/delete`, { key: "k" }],
  [`/backups/${backup}/undelete`, { key: "k" }],
  ["/targets", { key: "k", name: "t", address: "s3://b/p" }],
  ["/targets/forget", { key: "k", name: "t" }],
  ["/retention", { key: "k" }],
  ["/gc", { key: "k" }],
];

// A viewer, who comes back to the page that they wanted, and changes nothing.
const vera = await person();
const wanted = `/backups/${backup}?target=`;
await signIn(vera, "vera", wanted);
await vera.getByRole("heading", { level: 1 }).waitFor();
await vera.waitForURL((url) => url.pathname.startsWith("/backups/"));
assert.equal(at(vera), wanted);
await look("viewer-backup", { on: vera });
const [cookie] = (await vera.context().cookies()).filter(({ domain }) => domain.endsWith("localhost"));
assert.ok(cookie.httpOnly && cookie.secure && cookie.sameSite === "Lax", JSON.stringify(cookie));
assert.equal(await vera.evaluate(() => JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }])), '["",{},{}]', "a token is kept");
for (const page of ["/", "/runs", "/storage", "/targets", "/retention", "/gc", "/audit", volume]) {
  await go(vera, page);
  assert.equal(at(vera), page);
  const changing = await vera.locator("main form[method=post]").count();
  assert.equal(changing, 0, `${page} offers a viewer something to change`);
}
isRefusedNow = true;
for (const [path, form] of forms) {
  assert.equal(await post(vera, path, form), 403, `${path}: a viewer's form`);
}
assert.equal(await vera.evaluate(async () => (await fetch("/v1/volumes")).status), 401, "a session is no token");
// A session that somebody else made, or made more of.
for (const session of [cookie.value.replace("viewer", "operator"), `${cookie.value.slice(0, -1)}x`, "x"]) {
  const answer = await ask("GET", "/runs", { headers: { cookie: `${cookie.name}=${session}`, accept: "text/html" } });
  assert.equal(answer.status, 303, `a session that was changed: ${session}`);
}
isRefusedNow = false;
say("a viewer comes back to the page they wanted, sees all, and changes nothing");

// An operator, whose run appears.
const otto = await person();
await signIn(otto, "otto", "/new-volume");
await otto.getByLabel("Name").fill("added/in the browser");
await otto.getByLabel("Host that reads it").selectOption(host);
await otto.getByLabel("What it reads there").fill(source);
await otto.getByLabel("Cron line").pressSequentially("0 3 * * 1");
await otto.locator("[data-words]", { hasText: "Monday" }).waitFor();
await otto.getByRole("button", { name: "Add it" }).click();
await ended(otto);
await go(otto, "/");
await look("operator-overview", { on: otto });
await otto.getByRole("link", { name: "added/in the browser" }).click();
await otto.getByRole("button", { name: "Back up now" }).click();
await ended(otto);
await look("operator-run", { on: otto });
assert.match(await otto.locator("main").textContent(), /added\/in the browser/);
say("an operator adds a volume and backs it up");
// Those that no client can ask `/v1` for behind API Gateway, and that browsers take for a place, are added by the form.
const places = ["a/schedule", "..", "."];
for (const one of places) {
  const form = { key: `add-${one}`, name: one, expected: "none", host, source, target: "", cron: "", time_zone: "" };
  assert.equal(await post(otto, "/new-volume", form), 303, `the form for ${one}`);
}
for (const one of places) {
  const link = otto.getByRole("link", { name: one, exact: true });
  for (let tries = 0; tries < 60 && (await go(otto, "/"), (await link.count()) === 0); tries += 1) {
    await otto.waitForTimeout(1000);
  }
}
for (const one of [...names, ...places]) {
  await go(otto, "/");
  await otto.getByRole("link", { name: one, exact: true }).click();
  await otto.waitForURL(/\/volumes\//);
  const heading = await otto.getByRole("heading", { level: 1 }).textContent();
  assert.ok(heading.startsWith(one), `${one}: ${heading}`);
  await otto.getByRole("link", { name: "Change", exact: true }).click();
  await otto.getByRole("button", { name: "Change it" }).waitFor();
  assert.match(await otto.getByRole("heading", { level: 1 }).textContent(), /^Change /);
}
say("every name's page is found by its link");

// Somebody of another site has this browser ask for something.
const evil = await otto.context().newPage();
isRefusedNow = true;
await evil.goto(`${issuer.issuer}/jwks`);
const answered = evil.waitForResponse(new URL("/gc", start).href);
await evil.evaluate(
  (to) => {
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: to });
    form.innerHTML = '<input name="key" value="k">';
    document.documentElement.append(form);
    form.submit();
  },
  new URL("/gc", start).href,
);
const refused = await answered;
assert.ok([401, 403].includes(refused.status()), `a form of another site: ${refused.status()}`);
await evil.close();
isRefusedNow = false;

// Out again.
await go(otto, "/");
await otto.getByRole("button", { name: "Sign out" }).click();
await otto.waitForURL(/\/signed-out$/);
await look("signed-out", { on: otto });
await go(otto, "/runs");
await otto.waitForURL((url) => url.origin === issuer.issuer);
say("whoever signs out is asked anew");

// Somebody without a role is told so, and gets no session.
isRefusedNow = true;
const nora = await person();
await signIn(nora, "nora", "/");
const why = nora.getByRole("alert");
await why.waitFor();
assert.match(await why.textContent(), /no role here/);
assert.ok(!/code=|state=/.test(nora.url()), nora.url());
assert.deepEqual((await nora.context().cookies()).map(({ name: given }) => given), []);
await look("no-role", { on: nora });

// An answer that this browser did not ask for.
const lured = await person();
await go(lured, "/sign-in?code=somebody-elses&state=guessed");
await lured.getByRole("alert").waitFor();
assert.deepEqual(await lured.context().cookies(), []);
// And a way back that leads elsewhere.
const led = await person();
await signIn(led, "vera", `/sign-in?then=${encoded("//evil.invalid/x")}`);
await led.waitForURL((url) => url.origin === console_.origin && url.pathname === "/");
say("strangers, codes of others and ways elsewhere are refused");

provider.close();
await close();
