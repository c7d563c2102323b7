// A browser that looks at pages: by axe-core, wide and as on a phone, light and dark. Pictures go to a folder; as on a phone, a page must fit
// without scrolling sideways.
import { join } from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

export const PATIENCE = 60_000;
const SERIOUS = new Set(["serious", "critical"]);
const WIDE = { width: 1200, height: 800 };
const PHONE = { width: 360, height: 740 };

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"],
});
const problems = [];
// A page of a browser that knows nothing yet. `isExpected` tells whether an error is just now.
export const newPage = async (isExpected = () => false) => {
  const page = await (await browser.newContext({ viewport: WIDE, colorScheme: "light" })).newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("console", (message) => {
    // A run that was just asked for is not there yet: its page asks again. And some ask for a page that is not there, or for a name that is taken.
    if (message.type() === "error" && !/\/(events|nothing-here|new-volume|login)$/.test(message.location().url) && !isExpected()) {
      problems.push(`${message.location().url}: ${message.text()}`);
    }
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  return page;
};
export const page = await newPage();

let folder = ".";
let prefix = "";
// Where pictures go, and what their names begin with.
export const keep = (pictures, begin = "") => {
  [folder, prefix] = [pictures, begin];
};

// Of a page that is not looked at as a whole, the first rows of tables: the others are like them, and a thousand take minutes.
const axe = (on, isWhole) => {
  const builder = new AxeBuilder({ page: on });
  return isWhole ? builder : builder.exclude("tbody tr:nth-child(n+10)");
};

let count = 0;
export const look = async (name, { on = page, isBrief = false, isWhole = true } = {}) => {
  count += 1;
  const number = `${prefix}${String(count).padStart(2, "0")}`;
  for (const [where, size] of [["wide", WIDE], ["phone", PHONE]]) {
    await on.setViewportSize(size);
    const { content, room } = await on.evaluate(() => ({ content: document.documentElement.scrollWidth, room: innerWidth }));
    if (content > room) {
      problems.push(`${name}: ${content} pixels wide on a screen of ${room}`);
    }
    // What is gone in a moment is looked at in one way only.
    for (const colorScheme of isBrief ? ["light"] : ["light", "dark"]) {
      await on.emulateMedia({ colorScheme });
      const file = `${number}-${name}-${where}${colorScheme === "dark" ? "-dark" : ""}.png`;
      await on.screenshot({ path: join(folder, file), fullPage: isWhole });
      const { violations } = await axe(on, isWhole).analyze();
      for (const { id, impact, nodes } of violations) {
        console.log(`${name}, ${where}, ${colorScheme}: axe-core: ${id} (${impact}): ${nodes[0].html}`);
        if (SERIOUS.has(impact)) {
          problems.push(`${name}, ${where}, ${colorScheme}: ${id}`);
        }
      }
    }
  }
  await on.setViewportSize(WIDE);
  await on.emulateMedia({ colorScheme: "light" });
  console.log(`${name}: ${new URL(on.url()).pathname}`);
};

// Waits on a run's page until it has ended, which must be well.
export const ended = async (on = page) => {
  await on.waitForURL(/\/runs\//);
  await on.locator("[data-state]", { hasText: /^(succeeded|failed)$/ }).waitFor();
  const state = await on.locator("[data-state]").textContent();
  if (state !== "succeeded") {
    throw new Error(`${on.url()}: ${await on.locator("[data-said]").textContent()}`);
  }
};

// Ends with 1 if anything was not as it should be.
export const close = async () => {
  await browser.close();
  if (problems.length > 0) {
    console.error(problems.join("\n"));
    process.exit(1);
  }
};

export const expect = (what, is) => {
  if (!is) {
    throw new Error(`${page.url()}: ${what}`);
  }
};
