// The windows of a sound or a video, in order of time: what the model makes of each. A click plays it.

import { play } from "./uploads.js";

const at = id => document.getElementById(id);

/** Show the windows of an answer; none of an image, nor where there is one window. */
export function show(windows = []) {
  const several = windows.length > 1 && Boolean(windows[0].predictions);
  at("windows").hidden = !several;
  const cropped = windows.some(each => each.crop);
  at("timeline").replaceChildren(...(several ? windows.map(each => item(each, cropped)) : []));
}

function item({ start, end, crop, predictions: [best] }, cropped) {
  const button = document.createElement("button");
  button.type = "button";
  const [label, time] = [document.createElement("b"), document.createElement("small")];
  label.textContent = best.label;
  time.textContent = `${seconds(start)} to ${seconds(end)} s${cropped ? `, crop ${crop}` : ""}`;
  button.append(label, " ", time);
  button.title = `Play from ${seconds(start)} s`;
  button.addEventListener("click", () => play(start));
  const line = document.createElement("li");
  line.style.setProperty("--share", Math.min(1, Math.max(0, best.score)));
  line.append(button);
  return line;
}

function seconds(value) {
  return value.toFixed(1).replace(/\.0$/, "");
}
