// The windows of a long sound, in order of time: what the model hears in each. A click plays it.

const at = id => document.getElementById(id);

/** Show the windows of an answer; none of an image, nor of a sound that is one window. */
export function show(windows = []) {
  const several = windows.length > 1 && Boolean(windows[0].predictions);
  at("windows").hidden = !several;
  at("timeline").replaceChildren(...(several ? windows.map(item) : []));
}

function item({ start, end, predictions: [best] }) {
  const button = document.createElement("button");
  button.type = "button";
  const [label, time] = [document.createElement("b"), document.createElement("small")];
  label.textContent = best.label;
  time.textContent = `${seconds(start)} to ${seconds(end)} s`;
  button.append(label, " ", time);
  button.title = `Play from ${seconds(start)} s`;
  button.addEventListener("click", () => play(start));
  const line = document.createElement("li");
  line.style.setProperty("--share", Math.min(1, Math.max(0, best.score)));
  line.append(button);
  return line;
}

function play(start) {
  at("player").currentTime = start;
  at("player").play().catch(() => {}); // a browser need not know the format
}

function seconds(value) {
  return value.toFixed(1).replace(/\.0$/, "");
}
