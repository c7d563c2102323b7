// The overview of a fleet of a thousand volumes, in a browser: what is late comes first, and one volume is found among all.
// usage: node crowd.mjs PAGE TOKEN PICTURES
import { close, expect, keep, look, page } from "./look.mjs";

const [start, token, pictures] = process.argv.slice(2);
keep(pictures, "crowd-");

await page.goto(new URL("/login", start).href);
await page.getByLabel("Token").fill(token);
await page.getByRole("button", { name: "Sign in", exact: true }).click();
await page.waitForURL(new URL("/", start).href);
// The first screen, as the whole is a hundred times as long on a phone.
await look("overview", { isWhole: false });
const top = async (locator) => (await locator.boundingBox()).y;
const [late, plot, others] = [
  await top(page.getByRole("link", { name: "late-0" })),
  await top(page.getByRole("img", { name: /^Stored by day/ })),
  await top(page.getByRole("heading", { name: "The others" })),
];
expect("what is late does not come before what is stored, or that not before the others", late < plot && plot < others);
await page.getByLabel("Name, host or target").fill("VM-00042/");
await page.getByRole("button", { name: "Show", exact: true }).click();
await page.getByRole("status").filter({ hasText: /^1 of 100\d volumes/ }).waitFor();
await look("found");
await page.goto(new URL("/?state=late", start).href);
await page.getByRole("status").filter({ hasText: /^5 of 100\d volumes/ }).waitFor();
await look("late");
for (const name of ["storage", "runs", "retention"]) {
  await page.goto(new URL(`/${name}`, start).href);
  await look(name, { isWhole: false });
}
await close();
