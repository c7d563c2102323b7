// Follows a run on its page: without this, loading the page again shows the same.
"use strict";
const run = document.querySelector("[data-run]:not([data-ended])");
const look = async () => {
  try {
    const response = await fetch(`/v1/runs/${run.dataset.run}`, { headers: { accept: "application/json" } });
    if (response.ok) {
      const { run: { state } } = await response.json();
      const running = state.running;
      const bar = run.querySelector("[data-progress]");
      if (!bar || (state !== "queued" && !running)) {
        location.reload();
        return;
      }
      run.querySelector("[data-state]").textContent = running ? "running" : "queued";
      if (running && running.total_bytes > 0) {
        bar.max = running.total_bytes;
        bar.value = running.done_bytes;
        run.querySelector("[data-said]").textContent = `${Math.floor(100 * running.done_bytes / running.total_bytes)} %`;
      }
    }
  } catch {
    // It can't be reached just now: the next look may.
  }
  setTimeout(look, 1000);
};
if (run) {
  setTimeout(look, 500);
}
