// What came back for the upload: labels, tokens, times and regions, set beside those at r=0.

import * as timeline from "./timeline.js";

const at = id => document.getElementById(id);
const NONE = "–";

/**
 * Labels and tokens of `answer`. Beside it `other`, or null while there is none: the answer at r=0, or, of a picture that
 * ran `again`, that of its first pass.
 */
export function show(answer, other, again = false) {
  at("tokens").textContent = `${answer.tokens.output} of ${answer.tokens.input} tokens`;
  at("tokens-bar").style.setProperty("--share", answer.tokens.output / answer.tokens.input);
  const { decode, queue } = answer.timing_ms;
  at("timing").textContent =
    `decode ${decode.toFixed(1)}, queue ${queue.toFixed(1)}, round trip ${milliseconds(answer.round_trip)}`;
  timeline.show(answer.windows);
  if (answer.predictions) showLabels(answer, other, again);
  else showFeatures(answer.embedding, other?.embedding);
}

/** Milliseconds of forward passes with r and without, or null; what they are; whether they can be compared. */
export function showForward(r, merged, plain, title, compared) {
  const most = Math.max(merged ?? 0, plain ?? 0) || 1;
  const rows = [[r, merged], ["0", plain]];
  for (const [index, [name, time]] of rows.entries()) {
    const cells = at("forward").rows[index].cells;
    cells[0].textContent = `r = ${name}`;
    cells[1].querySelector("i").style.setProperty("--share", (time ?? 0) / most);
    cells[2].textContent = time === null ? NONE : milliseconds(time);
  }
  at("speedup").textContent = compared && merged && plain ? `${(plain / merged).toFixed(2)}×` : "";
  at("passes").textContent = title;
}

/** A picture of merged regions, by its address, in the place of the plain or the merged one. */
export function showRegions(place, address, caption) {
  const image = at(`region-${place}`);
  image.src = address;
  image.alt = `Merged regions: ${caption}`;
  image.hidden = false;
  image.parentElement.querySelector("figcaption").textContent = caption;
}

/** Whether what is shown is not of what was chosen last. */
export function stale(yes) {
  at("outcome").classList.toggle("stale", yes);
  at("outcome").setAttribute("aria-busy", yes);
}

/** There is no answer any more, at this r. */
export function clear(r) {
  at("tokens").textContent = NONE;
  at("tokens-bar").style.setProperty("--share", 0);
  at("timing").textContent = at("agreement").textContent = "";
  at("labels").replaceChildren();
  timeline.show();
  at("tick-note").hidden = true;
  for (const [place, caption] of [["plain", "r = 0"], ["merged", "\u00a0"]]) {
    at(`region-${place}`).hidden = true;
    at(`region-${place}`).parentElement.querySelector("figcaption").textContent = caption;
  }
  showForward(r, null, null, "Forward pass", false);
}

/** The answer in a sentence, for those who hear it. */
export function sentence(answer) {
  const seen = answer.predictions ? `${answer.predictions[0].label}, ${inWords(answer.predictions)[0]}; ` : "";
  return `${seen}${at("tokens").textContent}; forward pass ${milliseconds(answer.timing_ms.forward)}`;
}

function showLabels(answer, other, again) {
  const { predictions } = answer;
  const before = new Map(other?.predictions.map(each => [each.index, each.score]));
  const words = inWords(predictions);
  at("labels").replaceChildren(...predictions.map((each, rank) => labelLine(each, words[rank], before.get(each.index))));
  at("tick-note").hidden = !at("labels").querySelector("s");
  const best = other?.predictions[0];
  const differs = Boolean(other) && best.index !== predictions[0].index;
  at("agreement").classList.toggle("differs", differs);
  at("agreement").textContent = "";
  if (!other) return;
  at("tick-note").textContent = `The line marks the score with r = ${other.r}.`;
  const ran = again ? `ran again at r = ${answer.r}, ` : "";
  const comparison = differs ? `with r = ${other.r}: ${best.label}` : `as with r = ${other.r}`;
  at("agreement").textContent = ran + comparison;
}

function labelLine(prediction, words, before) {
  const [line, name, value, bar] = ["li", "span", "b", "div"].map(each => document.createElement(each));
  name.textContent = prediction.label;
  value.textContent = words;
  bar.className = "bar";
  bar.append(document.createElement("i"));
  bar.style.setProperty("--share", Math.min(1, Math.max(0, prediction.score)));
  if (before !== undefined && Math.abs(before - prediction.score) >= 0.01) {
    const tick = document.createElement("s");
    tick.style.setProperty("--share", Math.min(1, Math.max(0, before)));
    bar.append(tick);
  }
  line.append(name, value, bar);
  return line;
}

function showFeatures(features, plain) {
  const line = document.createElement("li");
  line.textContent = `${features.length} features; this model has no classifier`;
  at("labels").replaceChildren(line);
  at("agreement").textContent = plain ? `cosine to r = 0: ${cosine(features, plain).toFixed(4)}` : "";
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

// The scores; some models answer with logits, which are no percentages.
function inWords(predictions) {
  const shares = predictions.every(({ score }) => score >= 0 && score <= 1);
  return predictions.map(({ score }) => (shares ? `${(100 * score).toFixed(1)}%` : score.toFixed(2)));
}

function milliseconds(value) {
  return `${value.toFixed(value < 10 ? 1 : 0)} ms`;
}
