// The page: a picture, a sound or a video, a model and r are chosen; what the server makes of them is shown beside r=0.

import * as api from "./api.js";
import * as levels from "./levels.js";
import { watch } from "./live.js";
import * as recording from "./recording.js";
import * as result from "./result.js";
import { Samples } from "./samples.js";
import * as uploads from "./uploads.js";

const PAUSE = 0.08; // seconds: a slider that moves on within them asks for nothing
// Of a measurement: so many copies at once fill batches, of which the first would otherwise be small ones. Of inputs
// with more tokens than a picture has with most models, fewer are as much work.
const [TURNS, COPIES, TOKENS, MOST_BYTES, MOST_SECONDS] = [6, 64, 197, 8e6, 10];
const PASSES = 5; // at each r, before times are compared
const WIDE = 2.5; // seconds of a spectrogram that is too wide to stand beside another
const PLAIN = "0";
const AUTO = "auto";

const at = id => document.getElementById(id);
const alone = new Samples();
let served = [];
let model = null;
let regions = new Map(); // addresses of pictures of merging, by r, for the upload and model chosen
let plain = null; // the answer at r=0, likewise
let current = new AbortController(); // of the requests whose answers are still wanted

/** What is chosen, as the parameters that the server takes: a schedule, or a deadline for which it finds one. */
function chosen() {
  const again = at("again").checked && !at("again-line").hidden ? { confidence: number("margin") } : {};
  if (at("auto").checked) return { r: AUTO, deadline_ms: number("deadline"), ...again };
  const [r, inflection] = [at("r").value, Number(at("inflection").value)];
  return { r: inflection && r !== PLAIN ? `${r}:${inflection}` : r, ...again };
}

// What cannot be one is put right.
function number(id) {
  const field = at(id);
  if (!field.validity.valid) field.value = field.defaultValue;
  return field.value;
}

/** Do `work(signal)`; requests of earlier work are given up, and its errors are told. */
async function only(work) {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  try {
    await work(signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof api.Problem)) {
      tell(new api.Problem(0, "The page failed", error.message));
      throw error;
    }
    if (error.status === 401) return askKey(error);
    tell(error);
    if (error.status === 503) {
      const seconds = Math.max(1, error.retryAfter);
      at("problem").append(` Trying again in ${seconds} s.`);
      await api.sleep(seconds, signal).then(() => only(work), () => {});
    }
  }
}

function tell(problem) {
  result.clear(chosen().r);
  result.stale(false);
  const title = document.createElement("b");
  title.textContent = problem.title;
  // A sentence, so that another can follow.
  at("problem").replaceChildren(title, problem.detail && `: ${problem.detail}`.replace(/\.?$/, "."));
  at("problem").hidden = false;
}

function askKey(problem) {
  if (api.hasKey()) tell(problem); // a key that is not known; to have none yet is no fault
  at("access").hidden = false;
  at("key").focus();
}

/** Ask for what is chosen now, once the choice has stood for a moment. */
function update() {
  showChoice();
  if (!upload()) return;
  result.stale(true);
  only(model ? answer : begin); // to choose an example has ended the wait for models
}

/** Show all that the server makes of what is chosen; the r that it used, of two passes that of the first. */
async function answer(signal) {
  await api.sleep(PAUSE, signal);
  const query = chosen();
  const found = await ask(query, signal);
  const r = found.passes?.[0].r ?? found.r;
  const isAgain = found.r !== r;
  const why = query.r === AUTO ? `, chosen for ${query.deadline_ms} ms` : "";
  if (why || isAgain) showChoice(r, isAgain ? `${why}, then ${found.r}: it was uncertain` : why);
  if (found.r === PLAIN) plain = found;
  at("problem").hidden = true;
  // An answer at r=0 after a second pass says nothing of merging: what is shown beside it is the first pass.
  result.show(found, isAgain ? null : plain);
  showForward(r);
  result.stale(false);
  at("spoken").textContent = result.sentence(found);
  // One after the other: passes that ran together would have one time. r=0 runs each time, so that both age alike.
  if (r !== PLAIN) plain = await ask({ r: PLAIN }, signal);
  const merged = isAgain ? await ask({ r }, signal) : found;
  result.show(found, isAgain ? merged : plain, isAgain);
  showForward(r);
  await drawRegions("merged", r, merged, signal);
  await drawRegions("plain", PLAIN, plain, signal);
  // The first pass at another r takes longer than those that follow, so one is not compared.
  for (let turn = alone.count(model.name, r); turn < PASSES; turn++) {
    for (const each of [r, PLAIN]) await ask({ r: each }, signal);
    showForward(r);
  }
  return r;
}

async function ask(query, signal) {
  const windows = model.modality === uploads.IMAGE ? {} : { windows: "each" };
  const text = model.label_sets.length ? { text: at("text").value } : {};
  const found = await api.ask(endpoint(), upload(), { ...query, ...windows, ...text, model: model.name }, signal);
  // A pass that it shared with others took longer for other reasons than r.
  const isOne = !(found.passes?.length > 1);
  if (isOne && found.batch_size <= inputs(found)) alone.add(model.name, found.r, found.timing_ms.forward);
  return found;
}

// A model without a classifier has features only.
function endpoint() {
  return model.classes ? "classify" : "embed";
}

// What was chosen of what the model takes; undefined if nothing was.
function upload() {
  return uploads.chosen(model?.modality);
}

// A picture is one input of the model, a sound or a video as many as it has windows.
function inputs(answer) {
  return answer.windows?.length ?? 1;
}

function showForward(r, samples = alone, title = "Forward pass, alone") {
  const [merged, unmerged] = [r, PLAIN].map(each => samples.median(model.name, each));
  const count = samples.count(model.name, r);
  const compared = samples !== alone || count >= PASSES;
  result.showForward(r, merged, unmerged, count > 1 ? `${title}, median of ${count}` : title, compared);
}

async function drawRegions(place, r, { tokens, windows = [] }, signal) {
  if (!regions.has(r)) {
    const drawn = await api.visualize(upload(), { r, model: model.name }, signal);
    regions.set(r, URL.createObjectURL(drawn));
  }
  const span = windows.length > 1 ? ", the first window" : "";
  result.showRegions(place, regions.get(r), `r = ${r}, ${tokens.output} tokens${span}`);
}

/** Time batches of copies of the upload, with r and without in turns: what merging gives a server that has work. */
async function measure(signal) {
  const r = await answer(signal); // which this may have interrupted
  const batches = new Samples();
  const affordable = (COPIES * TOKENS) / (model.tokens * inputs(plain));
  const count = Math.max(1, Math.floor(Math.min(COPIES, affordable, MOST_BYTES / upload().size)));
  const focused = document.activeElement === at("measure"); // which a button that is disabled loses
  at("measure").disabled = true;
  try {
    const end = performance.now() + 1000 * MOST_SECONDS;
    for (let turn = 0; turn < TURNS && (turn === 0 || performance.now() < end); turn++) {
      for (const each of [r, PLAIN]) {
        const results = await api.many(endpoint(), upload(), count, { r: each, model: model.name }, signal);
        // One of them may have found the server full.
        const times = results.filter(one => one.timing_ms).map(one => one.timing_ms.forward / one.batch_size);
        if (times.length) batches.add(model.name, each, times.reduce((a, b) => a + b) / times.length);
      }
      showForward(r, batches, `Forward pass, each of ${count}`);
    }
  } finally {
    at("measure").disabled = false;
    if (focused && document.activeElement === document.body) at("measure").focus();
  }
}

/** Another upload or model: nothing that is known holds for it. */
function renew() {
  for (const address of regions.values()) URL.revokeObjectURL(address);
  regions = new Map();
  plain = null;
  update();
}

function chooseUpload(blob) {
  const modality = uploads.modalityOf(blob);
  uploads.choose(modality, blob);
  // Without a model that takes it, the server says what the chosen one takes.
  if (model && model.modality !== modality) {
    const other = served.find(each => each.modality === modality);
    if (other) return chooseModel(other.name);
    uploads.choose(model.modality, blob);
  }
  renew();
}

async function chooseExample(name) {
  await only(async signal => chooseUpload(Object.assign(await api.example(name, signal), { example: name })));
}

function chooseModel(name) {
  model = served.find(each => each.name === name);
  at("model").value = name;
  uploads.show(model.modality, chooseExample);
  recording.abandon();
  at("text").replaceChildren(...model.label_sets.map(each => new Option(`${each.name} (${each.labels})`, each.name)));
  at("text-choice").hidden = model.label_sets.length < 2;
  at("again-line").hidden = model.modality !== uploads.IMAGE || model.classes < 2 || model.activation !== "softmax";
  if (model.modality === uploads.AUDIO) recording.limitTo(model.max_seconds);
  // The frames of a contact sheet are four in a row.
  at("regions").classList.toggle("wide", model.modality === uploads.VIDEO || model.window_seconds > WIDE);
  // Few merge more than this for long: 1.5 times what would leave nothing, were blocks not limited to half.
  const most = Math.min(model.r_max, Math.max(16, Math.ceil((1.5 * model.tokens) / model.blocks)));
  at("r").max = most;
  at("r-most").textContent = most;
  levels.show(model, chooseLevel);
  renew();
  if (upload()) return;
  current.abort();
  result.clear(chosen().r);
  result.stale(false);
  at("problem").hidden = true;
  const [example] = uploads.examples(model.modality);
  if (example) chooseExample(example);
}

function chooseLevel(r) {
  [at("r").value, at("inflection").value] = [...r.split(":"), "0"];
  chooseR();
}

// Whoever moves a slider does not leave r to the server.
function chooseR() {
  at("auto").checked = false;
  update();
}

function showChoice(r = chosen().r, why = "") {
  const reason = document.createElement("small");
  reason.textContent = why;
  at("r-value").replaceChildren(`r = ${r}`, reason);
  at("r-note").textContent = at("auto").checked ? "The server merges no more than it takes to meet the deadline."
    : r === PLAIN ? "Nothing is merged: this is the original model."
    : `${model ? `Each of ${model.blocks} blocks` : "Each block"} joins ${at("r").value} pairs of similar tokens`
      + `${r.includes(":") ? " on average" : ""}, for as long as there are that many.`;
  levels.mark(r);
}

/** Learn what is served; until it is, ask again. */
async function begin(signal) {
  served = await api.models(signal);
  at("problem").hidden = at("access").hidden = true;
  const names = each => [each.name, ...each.aliases].join(", ");
  at("model").replaceChildren(...served.map(each => new Option(names(each), each.name)));
  at("choice").hidden = served.length < 2;
  chooseModel(served[0].name);
}

function listen() {
  at("r").addEventListener("input", chooseR);
  at("inflection").addEventListener("input", chooseR);
  at("auto").addEventListener("change", update);
  at("deadline").addEventListener("change", () => at("auto").checked && update());
  at("again").addEventListener("change", update);
  at("margin").addEventListener("change", () => at("again").checked && update());
  at("model").addEventListener("change", event => chooseModel(event.target.value));
  at("text").addEventListener("change", renew);
  at("measure").addEventListener("click", () => model && upload() && only(measure));
  at("file").addEventListener("change", event => event.target.files[0] && chooseUpload(event.target.files[0]));
  document.addEventListener("paste", event => take(event, event.clipboardData));
  document.addEventListener("drop", event => take(event, event.dataTransfer));
  document.addEventListener("dragover", event => event.preventDefault());
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, () => document.body.classList.toggle("dropping", kind === "dragover"));
  at("access").addEventListener("submit", event => {
    event.preventDefault();
    api.useKey(at("key").value);
    only(begin);
  });
}

// Text that is pasted into a field, or dropped, is none of ours.
function take(event, data) {
  if (!data.files.length) return;
  event.preventDefault();
  at("file").value = "";
  chooseUpload(data.files[0]);
}

uploads.show(uploads.IMAGE, chooseExample);
listen();
recording.listen(recorded => chooseUpload(Object.assign(recorded, { name: "recording" })));
showChoice();
only(begin);
watch();
