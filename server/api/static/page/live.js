// The chart of what the server does for everybody, from its metrics.

import * as api from "./api.js";
import { Chart } from "./chart.js";
import { Rates } from "./metrics.js";

const [SECONDS, KEPT] = [2, 60];
const at = id => document.getElementById(id);

/** Read the metrics for as long as the page is seen. */
export async function watch() {
  const throughput = new Chart(at("throughput"), { length: KEPT, least: 10, unit: "" });
  const saving = new Chart(at("saving"), { length: KEPT, least: 2, reference: 1, unit: "×" });
  const note = at("live-note");
  const usual = note.textContent;
  let rates = new Rates();
  for (;;) {
    if (document.hidden) rates = new Rates();
    else {
      try {
        const now = rates.next(await api.metrics(), performance.now() / 1000);
        throughput.push(now.throughput);
        saving.push(now.saving);
        at("throughput-now").textContent = now.throughput === null ? "–" : `${now.throughput.toFixed(1)} images/s`;
        at("saving-now").textContent = now.saving === null ? "idle" : `${now.saving.toFixed(2)}×`;
        note.textContent = usual;
      } catch (problem) {
        if (problem.status === 404) {
          at("live").classList.add("off");
          document.querySelector("nav [href=metrics]").remove();
          note.textContent = "This server's metrics are on a port of their own, which a page may not read.";
          return;
        }
        note.textContent = problem.title;
        rates = new Rates();
      }
    }
    await api.sleep(SECONDS);
  }
}
