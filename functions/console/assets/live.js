// Follows a run on its page, and says what a cron line means while it is typed. Without this, loading a page again shows the same.
"use strict";

const run = document.querySelector("[data-run]:not([data-ended])");

// Said to those who hear the page, no more often than in steps of ten.
const STEP_PERCENT = 10;
let announced = 0;
const announce = (percent) => {
  const step = percent - percent % STEP_PERCENT;
  if (step > announced) {
    announced = step;
    run.querySelector("[data-announced]").textContent = `${step} % done`;
  }
};

const show = ({ state, done_bytes: done, total_bytes: total }) => {
  const bar = run.querySelector("[data-progress]");
  if (!bar || (state !== "queued" && state !== "running")) {
    location.reload();
    return;
  }
  run.querySelector("[data-state]").textContent = state;
  if (total > 0) {
    bar.max = total;
    bar.value = done;
    const percent = Math.floor(100 * done / total);
    run.querySelector("[data-said]").textContent = `${percent} %`;
    announce(percent);
  }
};

const follow = () => {
  const events = new EventSource(`/live/runs/${run.dataset.run}/events`);
  events.addEventListener("run", (event) => show(JSON.parse(event.data)));
  // Nobody has taken it up yet, or it can't be reached just now: the browser asks again by itself only in some cases.
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(follow, 1000);
    }
  });
};
if (run) {
  follow();
}

const explain = async (form, words) => {
  const { cron, time_zone: zone } = form.elements;
  if (cron.value.trim() === "") {
    words.textContent = "";
    return;
  }
  const asked = new URLSearchParams({ cron: cron.value, time_zone: zone.value });
  try {
    const response = await fetch(`/live/schedules/preview?${asked}`, { headers: { accept: "application/json" } });
    const said = await response.json();
    words.textContent = response.ok ? `${said.words}. Next: ${said.next.join(", ")}` : said.detail;
  } catch {
    words.textContent = "";
  }
};
for (const form of document.querySelectorAll("[data-schedule]")) {
  const words = form.querySelector("[data-words]");
  let waiting;
  form.addEventListener("input", ({ target }) => {
    if (target.name === "cron" || target.name === "time_zone") {
      clearTimeout(waiting);
      waiting = setTimeout(() => explain(form, words), 300);
    }
  });
}
