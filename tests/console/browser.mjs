// What driving the console's pages with Chromium takes.
import { chromium } from "playwright-core";

export const PATIENCE = 60_000;

/** Starts it. */
export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
  });

/** A page of a browser that knows nothing yet. What goes wrong on it is added to `problems`, unless `isKnown` of where it did. */
export const newPage = async (browser, problems, isKnown = () => false, options = {}) => {
  const page = await (await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options })).newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("console", (message) => {
    const { url } = message.location();
    // A run that was just asked for is not there yet: its page asks again.
    if (message.type() === "error" && !url.endsWith("/events") && !isKnown(url)) {
      problems.push(`${url}: ${message.text()}`);
    }
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  return page;
};

/** Waits on a run's page until it has ended, which must be well. */
export const ended = async (page) => {
  await page.waitForURL(/\/runs\//);
  await page.locator("[data-state]", { hasText: /^(succeeded|failed)$/ }).waitFor();
  const state = await page.locator("[data-state]").textContent();
  if (state !== "succeeded") {
    throw new Error(`${page.url()}: ${await page.locator("[data-said]").textContent()}`);
  }
};
