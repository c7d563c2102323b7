// A newcomer's way through the console of a real `strongroom up`, from nothing to a restored volume, in a browser.
// usage: node newcomer.mjs PAGE TOKEN SOURCE DESTINATION PICTURES
//
// Each page is looked at by axe-core, and a picture of it goes to the folder PICTURES. Ends with 1 at the first thing that is not as
// it should be, and at the end if a page broke its policy or axe-core found something serious.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const [start, token, source, destination, pictures] = process.argv.slice(2);
const PATIENCE = 60_000;
const SERIOUS = new Set(["serious", "critical"]);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
});
const page = await (await browser.newContext({ viewport: { width: 1200, height: 800 } })).newPage();
page.setDefaultTimeout(PATIENCE);

const problems = [];
page.on("console", (message) => {
  // A run that was just asked for is not there yet: its page asks again.
  if (message.type() === "error" && !message.location().url.endsWith("/events")) {
    problems.push(`${message.location().url}: ${message.text()}`);
  }
});
page.on("pageerror", (error) => problems.push(String(error)));

let count = 0;
const look = async (name) => {
  count += 1;
  await page.screenshot({ path: join(pictures, `${String(count).padStart(2, "0")}-${name}.png`), fullPage: true });
  const { violations } = await new AxeBuilder({ page }).analyze();
  for (const { id, impact, nodes } of violations) {
    console.log(`${name}: axe-core: ${id} (${impact}): ${nodes[0].html}`);
    if (SERIOUS.has(impact)) {
      problems.push(`${name}: ${id}`);
    }
  }
  console.log(`${name}: ${new URL(page.url()).pathname}`);
};
const go = (path) => page.goto(new URL(path, start).href);
const press = (name) => page.getByRole("button", { name, exact: true }).click();
const ended = async () => {
  await page.waitForURL(/\/runs\//);
  await page.locator("[data-state]", { hasText: /^(succeeded|failed)$/ }).waitFor();
  const state = await page.locator("[data-state]").textContent();
  if (state !== "succeeded") {
    throw new Error(`${page.url()}: ${await page.locator("[data-said]").textContent()}`);
  }
};
const expect = (what, is) => {
  if (!is) {
    throw new Error(`${page.url()}: ${what}`);
  }
};

// The link, and nothing there yet.
await go(`/login?token=${token}`);
await look("first-visit");
expect("there is something already", await page.getByText("There are no volumes yet").isVisible());

// A volume, with a schedule that is explained while it is typed.
await page.getByRole("link", { name: "Add a volume" }).click();
await page.getByLabel("Name").fill("database");
await page.getByLabel("What it reads there").fill(source);
await page.getByLabel("Cron line").pressSequentially("0 3 * * 1");
await page.locator("[data-words]", { hasText: "Monday" }).waitFor();
await page.getByLabel("Newest").fill("3");
await look("add-a-volume");
await press("Add it");
await ended();
await look("volume-added");

// A backup, whose bar moves.
await go("/volumes/database");
await look("volume-without-backups");
await press("Back up now");
await page.waitForURL(/\/runs\//);
const seen = new Set();
for (let state = ""; state !== "succeeded" && state !== "failed"; await page.waitForTimeout(100)) {
  // The page loads itself again at the end: what was there a moment ago may be gone.
  state = await page.locator("[data-state]").textContent();
  const bar = page.locator("progress[value]");
  const value = state === "running" && (await bar.count()) > 0 ? await bar.getAttribute("value").catch(() => null) : null;
  if (value !== null && !seen.has(value)) {
    seen.add(value);
    if (seen.size === 2) {
      await look("running");
    }
  }
}
await ended();
console.log(`the bar was seen at ${[...seen].join(", ")}`);
expect("the bar did not move", seen.size > 1);
await look("backed-up");

// A schedule, changed.
await go("/volumes/database");
await page.getByLabel("Cron line").fill("15 */6 * * *");
await press("Change the schedule");
await ended();
await go("/volumes/database");
expect("the schedule did not change", (await page.getByLabel("Cron line").inputValue()) === "15 */6 * * *");
await look("volume");

// A restore, of the same bytes.
await page.locator("tbody th a").first().click();
await look("backup");
const backup = new URL(page.url()).pathname;
await page.getByLabel("Destination on that host").fill(destination);
await press("Restore");
await ended();
await look("restored");
expect("the restored bytes are others", readFileSync(source).equals(readFileSync(destination)));

// To the trash, and out of it.
await go(backup);
await press("Move to the trash");
await ended();
await go("/gc");
expect("the trash does not show it", await page.locator(`a[href="${backup}"]`).isVisible());
await look("garbage");
await press("Count what would go now");
await page.getByRole("heading", { name: "If it ran now" }).waitFor();
await look("garbage-plan");
await go(backup);
await press("Take out of the trash");
await ended();

// A target: there is nothing behind it, and the console says so where it is asked for.
await go("/targets");
await page.getByLabel("Name").fill("far");
await page.getByLabel("Address").fill("file:///nowhere/at-all");
await press("Add it");
await ended();
await go("/targets");
await look("targets");
await page.getByRole("button", { name: "Forget target far" }).click();
await ended();

for (const name of ["runs", "storage", "retention", "audit"]) {
  await go(`/${name}`);
  await look(name);
}
await go("/");
await look("overview");
await page.emulateMedia({ colorScheme: "dark" });
await look("overview-dark");
await page.setViewportSize({ width: 390, height: 800 });
await look("overview-on-a-phone");

await browser.close();
if (problems.length > 0) {
  console.error(problems.join("\n"));
  process.exit(1);
}
