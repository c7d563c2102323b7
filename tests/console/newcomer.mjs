// A newcomer's way through the console of a real `strongroom up`, from nothing to a restored volume, in a browser.
// usage: node newcomer.mjs LINK TOKEN SOURCE DESTINATION PICTURES
//
// Each page is looked at (look.mjs). Ends with 1 at the first thing that is not as it should be, and at the end if a page broke its policy, was
// too wide for a phone, or axe-core found something serious.
import { readFileSync } from "node:fs";
import { close, ended, expect, keep, look, page } from "./look.mjs";

const [link, token, source, destination, pictures] = process.argv.slice(2);
const start = new URL(link).origin;
keep(pictures);
// The longest that there is, 255 bytes, with letters that take two.
const LONG = `${"Geschäftsführung-Übergabe-".repeat(8)}`.padEnd(231, "x");

const go = (path) => page.goto(new URL(path, start).href);
const press = (name) => page.getByRole("button", { name, exact: true }).click();
// As when another tab is looked at.
const hide = (hidden) => page.evaluate((hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}, hidden);

// The link works once, and after that the token.
const atHome = (url) => url.href === `${start}/`;
await page.goto(link);
await page.waitForURL(atHome);
await press("Sign out");
await page.getByRole("link", { name: "Sign in" }).click();
await look("sign-in");
await page.goto(link);
await page.getByRole("alert").filter({ hasText: "used already" }).waitFor();
expect("the code stays in the address", page.url() === `${start}/login`);
await page.getByLabel("Token").fill(token);
await press("Sign in");
await page.waitForURL(atHome);
// Under no other name is a browser let in.
const elsewhere = start.replace(/strongroom-.*localhost/, "127.0.0.1");
expect("it is not the only name", elsewhere !== start && (await page.request.get(elsewhere)).status() === 421);

// Nothing is there yet.
await look("first-visit");
expect("there is something already", await page.getByText("There are no volumes yet").isVisible());

// By keyboard alone: the first that is reached skips the navigation, and what is focused is seen to be.
await page.keyboard.press("Tab");
const skip = page.getByRole("link", { name: "To the content" });
expect("the first stop of the keyboard is not the way to the content", await skip.evaluate((link) => link === document.activeElement));
expect("the way to the content is not seen", (await skip.boundingBox()).x >= 0);
await page.keyboard.press("Enter");
expect("the way to the content does not lead there", await page.evaluate(() => document.activeElement.id === "main"));
await page.keyboard.press("Tab");
const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
expect("what is focused is not seen to be", outline === "solid");

// Where there is nothing, it says what to do next.
for (const name of ["runs", "storage", "targets", "retention", "gc", "audit"]) {
  await go(`/${name}`);
  await look(`${name}-empty`);
  const link = page.getByRole("navigation", { name: "Pages" }).locator('[aria-current="page"]');
  expect("the navigation does not say where one is", (await link.getAttribute("href")) === `/${name}`);
}
await go("/");

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
      // Nobody sees it: it lets go of its connection, and takes it up again.
      const gone = page.waitForEvent("requestfailed", (request) => request.url().endsWith("/events"));
      await hide(true);
      await gone;
      await hide(false);
      await look("running", { isBrief: true });
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
await page.getByRole("link", { name: "Move to the trash …" }).click();
await look("delete-asked");
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
await page.getByRole("link", { name: "Forget target far" }).click();
await look("forget-target-asked");
await press("Forget this target");
await ended();

// Names as long as can be.
await go("/new-volume");
await page.getByLabel("Name").fill(LONG);
await page.getByLabel("What it reads there").fill(source);
await press("Add it");
await ended();
await look("long-name-run");
await go(`/volumes/${encodeURIComponent(LONG)}`);
await look("long-name-volume");
await page.getByRole("link", { name: "Runs of this volume" }).click();
await look("long-name-runs");
await page.goBack();
await page.getByRole("link", { name: "Forget this volume …" }).click();
await look("long-name-forget-asked");
await page.getByRole("link", { name: "Leave it as it is" }).click();

// A name that is there is not taken again.
await go("/new-volume");
await page.getByLabel("Name").fill(LONG);
await page.getByLabel("What it reads there").fill(source);
await press("Add it");
await page.getByText("change that one, or take another name").waitFor();

for (const name of ["runs", "storage", "retention", "audit"]) {
  await go(`/${name}`);
  await look(name);
}
await go(`/volumes/database/edit`);
await look("change-a-volume");
await go("/nothing-here");
await look("no-such-page");
await go("/");
await look("overview");
expect("there is no picture of what is stored", (await page.getByRole("img", { name: /^Stored by day/ }).count()) === 1);

// What is looked for, in capitals or not.
await page.getByLabel("Name, host or target").fill("DATAB");
await press("Show");
await page.getByRole("status").filter({ hasText: "1 of 2 volumes" }).waitFor();
await look("found");
await page.getByLabel("State").selectOption("failed");
await press("Show");
await page.getByRole("status").filter({ hasText: "0 of 2 volumes" }).waitFor();
await look("nothing-found");
await page.getByRole("link", { name: "Show all" }).click();
await page.getByRole("heading", { name: "All volumes" }).waitFor();

// A run that nobody takes up is asked for less and less often, and a browser that is not known any more is told so.
let asked = 0;
page.on("request", (request) => {
  asked += Number(request.url().endsWith("/events"));
});
await go(`/runs/${"0".repeat(32)}`);
await page.waitForTimeout(6500);
expect(`it was asked for ${asked} times`, asked > 1 && asked <= 4);
await page.context().clearCookies();
await hide(true);
await hide(false);
await page.getByRole("alert").filter({ hasText: "does not know this browser" }).waitFor();
await look("not-known");

await close();
