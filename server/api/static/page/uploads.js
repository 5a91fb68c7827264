// What was chosen to be sent: the latest picture, sound and video, how they are shown, and the examples.

import EXAMPLES from "./examples.js"; // which the server makes of the files that it has

export const [IMAGE, AUDIO, VIDEO] = ["image", "audio", "video"];

const TITLES = { [IMAGE]: "Picture", [AUDIO]: "Sound", [VIDEO]: "Video" };
const HEADINGS = { [IMAGE]: "What the model sees", [AUDIO]: "What the model hears", [VIDEO]: "What the model sees" };
const ELEMENTS = { [IMAGE]: "preview", [AUDIO]: "player", [VIDEO]: "movie" };
const ACCEPTED = {
  [IMAGE]: "image/jpeg,image/png,image/webp,image/gif,image/bmp",
  [AUDIO]: "audio/wav,audio/flac,audio/ogg,audio/mpeg,.opus",
  [VIDEO]: "video/mp4,video/quicktime,video/webm,video/x-matroska,.m4v,.mov,.mkv",
};

const at = id => document.getElementById(id);
const latest = {};
let shown = IMAGE;

/** The latest upload of a modality, or else of the one that is shown; undefined if there is none. */
export const chosen = (modality = shown) => latest[modality];

/** The names of the examples of a modality. */
export const examples = modality => EXAMPLES[modality] ?? [];

/** What a file is, by the type that the browser gives it; with another type, what is chosen now. */
export function modalityOf(blob) {
  const kind = blob.type.split("/")[0];
  return kind in TITLES ? kind : shown;
}

/** From now on this is the upload of its modality. */
export function choose(modality, blob) {
  latest[modality] = blob;
  if (modality === shown) preview();
}

/** Let the user choose among uploads of a modality; `chooseExample` is called with the name of one. */
export function show(modality, chooseExample) {
  shown = modality;
  at("upload-title").textContent = TITLES[modality];
  at("result-title").textContent = HEADINGS[modality];
  at("file").accept = ACCEPTED[modality];
  at("recording").hidden = modality !== AUDIO;
  at("examples").className = modality === IMAGE ? "" : "named";
  at("examples").replaceChildren(...examples(modality).map(name => exampleButton(modality, name, chooseExample)));
  preview();
}

/** Play the sound or the video that is shown, from so many seconds. */
export function play(start) {
  at(ELEMENTS[shown]).currentTime = start;
  at(ELEMENTS[shown]).play().catch(() => {}); // a browser need not know the format
}

function preview() {
  const blob = latest[shown];
  for (const [modality, id] of Object.entries(ELEMENTS)) {
    const element = at(id);
    element.hidden = modality !== shown || !blob;
    element.pause?.();
    if (element.src) URL.revokeObjectURL(element.src);
    element.removeAttribute("src");
  }
  if (blob) at(ELEMENTS[shown]).src = URL.createObjectURL(blob);
  if (blob) at("preview").alt = blob.name ? `Your picture ${blob.name}` : "The chosen example";
  const moves = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (blob && shown === VIDEO && moves) play(0); // which is silent
  for (const button of at("examples").children) button.setAttribute("aria-pressed", button.dataset.name === blob?.example);
}

function exampleButton(modality, name, chooseExample) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.name = name;
  const title = name.replace(/\..*/, "").replaceAll("-", " ");
  if (modality === IMAGE) button.append(Object.assign(new Image(), { src: `static/examples/${name}`, alt: title }));
  else button.textContent = title;
  button.addEventListener("click", () => chooseExample(name));
  return button;
}
