// Signs in by a link, follows a run on its page, and says what a cron line means while it is typed. Without this, loading a page again shows the same.
"use strict";

// The code of a link comes in the part of an address that browsers send to nobody: it goes into the form, and out of the address.
const login = document.querySelector("[data-login]");
const enter = () => {
  const code = location.hash.slice(1);
  if (/^[0-9a-f]{32}$/.test(code)) {
    history.replaceState(null, "", location.pathname);
    const { token } = login.elements;
    // It is no password that a browser should offer to keep.
    token.type = "hidden";
    token.value = code;
    login.submit();
  }
};
if (login) {
  addEventListener("hashchange", enter);
  enter();
}

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

// Whether the page loads itself again, as there is more to say than the bar can.
const show = ({ state, done_bytes: done, total_bytes: total }) => {
  const bar = run.querySelector("[data-progress]");
  if (!bar || (state !== "queued" && state !== "running")) {
    location.reload();
    return true;
  }
  run.querySelector("[data-state]").textContent = state;
  if (total > 0) {
    bar.max = total;
    bar.value = done;
    const percent = Math.floor(100 * done / total);
    run.querySelector("[data-said]").textContent = `${percent} %`;
    announce(percent);
  }
  return false;
};

// Why the page does not go on by itself; nothing if it does.
const note = document.createElement("p");
note.className = "problem";
note.setAttribute("role", "alert");
const tell = (text) => {
  if (text === "") {
    note.remove();
  } else if (note.textContent !== text) {
    note.textContent = text;
    run.after(note);
  }
};

// The data of each event (server-sent events, as this console sends them). `EventSource` would not say why there are none.
async function* told(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data:"));
      if (data) {
        yield data.slice("data:".length);
      }
    }
  }
}

// Time until a run is asked for again, milliseconds: twice as long each time that there was nothing new.
const SHORT_WAIT_MS = 1000;
const LONG_WAIT_MS = 30_000;
let wait = SHORT_WAIT_MS;
let last = "";
let waiting;
let asking;

const follow = async () => {
  const asked = new AbortController();
  asking = asked;
  let soonest = 0;
  try {
    const response = await fetch(`/live/runs/${run.dataset.run}/events`, { headers: { accept: "text/event-stream" }, signal: asked.signal });
    if (response.ok) {
      tell("");
      for await (const data of told(response.body)) {
        if (data !== last) {
          [last, wait] = [data, SHORT_WAIT_MS];
        }
        if (show(JSON.parse(data))) {
          return;
        }
      }
    } else if (response.status === 401) {
      tell("The console does not know this browser any more, as when it was started again. Load this page again to sign in.");
      return;
    } else {
      // Nobody has taken it up yet, or there is no room for one more who follows a run.
      tell("");
      soonest = 1000 * Number(response.headers.get("retry-after") ?? 0);
    }
  } catch {
    if (!asked.signal.aborted) {
      tell("The console can't be reached just now; this page goes on by itself once it can.");
    }
  }
  if (!asked.signal.aborted) {
    waiting = setTimeout(follow, Math.max(wait, soonest));
    wait = Math.min(2 * wait, LONG_WAIT_MS);
  }
};

// A page that nobody sees follows nothing: browsers have no more than six connections to one console.
const begin = () => {
  clearTimeout(waiting);
  asking?.abort();
  if (!document.hidden) {
    wait = SHORT_WAIT_MS;
    follow();
  }
};
if (run) {
  document.addEventListener("visibilitychange", begin);
  begin();
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
