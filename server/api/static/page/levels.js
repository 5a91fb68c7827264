// The table of what each level of r costs and gives.

const rows = document.getElementById("level-rows");
const ofEmbeddings = document.querySelectorAll("#levels .of-embeddings");

/** Fill it for a model; `choose` is called with the level whose button is pressed. */
export function show(model, choose) {
  const most = Math.max(1, ...model.levels.map(level => level.speedup ?? 0));
  const known = model.levels.some(level => level.cosine !== null);
  for (const each of ofEmbeddings) each.hidden = !known;
  rows.replaceChildren(...model.levels.map(level => row(level, most, known, choose)));
}

/** Which level is the chosen one, if any. */
export function mark(r) {
  for (const row of rows.children) {
    row.querySelector("button").setAttribute("aria-pressed", row.dataset.r === r);
    if (row.dataset.r === r) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

function row(level, most, known, choose) {
  const button = element("button", level.r);
  button.type = "button";
  button.setAttribute("aria-label", `Use r=${level.r}`);
  // The sliders reach numbers with an inflection, but no lists of one number per block.
  button.disabled = level.r.includes(",");
  button.addEventListener("click", () => choose(level.r));
  const head = element("th", button);
  head.scope = "row";
  const bar = element("div", element("i"));
  bar.className = "bar";
  bar.firstChild.style.setProperty("--share", (level.speedup ?? 0) / most);
  const speed = element("td", element("span", level.speedup === null ? "–" : `${level.speedup.toFixed(2)}×`), bar);
  speed.className = "speed";
  const line = element("tr", head, element("td", level.tokens_out),
    element("td", `${Math.round(100 * level.relative_flops)}%`), speed,
    element("td", level.accuracy === null ? "–" : `${level.accuracy.toFixed(2)}%`));
  if (known) {
    line.append(element("td", level.cosine === null ? "–" : level.cosine.toFixed(4)),
      element("td", level.recall_10 === null ? "–" : `${level.recall_10.toFixed(1)}%`));
  }
  line.dataset.r = level.r;
  return line;
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
