// What driving the console's pages with Chromium takes.
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

export const PATIENCE = 60_000;
const SERIOUS = new Set(["serious", "critical"]);
const WIDE = { width: 1200, height: 800 };
const PHONE = { width: 360, height: 740 };

/** Starts it. */
export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
  });

/** A page of a browser that knows nothing yet. What goes wrong on it is added to `problems`, unless `isKnown` of where it did. */
export const newPage = async (browser, problems, isKnown = () => false) => {
  const page = await (await browser.newContext({ viewport: WIDE, colorScheme: "light" })).newPage();
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

/** Has pages looked at by axe-core, wide and as on a phone, light and dark, and puts pictures of them into a folder; as on a phone, they must
 * fit without scrolling sideways. What is wrong is added to `problems`. */
export const looker = (pictures, problems) => {
  let count = 0;
  return async (page, name, { isBrief = false } = {}) => {
    count += 1;
    const number = String(count).padStart(2, "0");
    for (const [where, size] of [["wide", WIDE], ["phone", PHONE]]) {
      await page.setViewportSize(size);
      const { content, room } = await page.evaluate(() => ({ content: document.documentElement.scrollWidth, room: innerWidth }));
      if (content > room) {
        problems.push(`${name}: ${content} pixels wide on a screen of ${room}`);
      }
      // What is gone in a moment is looked at in one way only.
      for (const colorScheme of isBrief ? ["light"] : ["light", "dark"]) {
        await page.emulateMedia({ colorScheme });
        const file = `${number}-${name}-${where}${colorScheme === "dark" ? "-dark" : ""}.png`;
        await page.screenshot({ path: join(pictures, file), fullPage: true });
        const { violations } = await new AxeBuilder({ page }).analyze();
        for (const { id, impact, nodes } of violations) {
          console.log(`${name}, ${where}, ${colorScheme}: axe-core: ${id} (${impact}): ${nodes[0].html}`);
          if (SERIOUS.has(impact)) {
            problems.push(`${name}, ${where}, ${colorScheme}: ${id}`);
          }
        }
      }
    }
    await page.setViewportSize(WIDE);
    await page.emulateMedia({ colorScheme: "light" });
    console.log(`${name}: ${new URL(page.url()).pathname}`);
  };
};
