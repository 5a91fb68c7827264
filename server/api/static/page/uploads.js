// What was chosen to be sent: the latest picture and the latest sound, how they are shown, and the examples.

export const [IMAGE, AUDIO] = ["image", "audio"];

const EXAMPLES = {
  [IMAGE]: ["ankle-boot.png", "bag.png", "sandal.png", "sneaker.jpg", "t-shirt-top.jpg", "trouser.png"],
  [AUDIO]: ["french.wav"],
};
const TITLES = { [IMAGE]: "Picture", [AUDIO]: "Sound" };
const HEADINGS = { [IMAGE]: "What the model sees", [AUDIO]: "What the model hears" };
const ACCEPTED = {
  [IMAGE]: "image/jpeg,image/png,image/webp,image/gif,image/bmp",
  [AUDIO]: "audio/wav,audio/flac,audio/ogg,audio/mpeg,.opus",
};

const at = id => document.getElementById(id);
const latest = {};
let shown = IMAGE;

/** The latest upload of a modality, or else of the one that is shown; undefined if there is none. */
export const chosen = (modality = shown) => latest[modality];

/** The names of the examples of a modality. */
export const examples = modality => EXAMPLES[modality];

/** What a file is, by the type that the browser gives it; with another type, what is chosen now. */
export function modalityOf(blob) {
  const kind = blob.type.split("/")[0];
  return kind in EXAMPLES ? kind : shown;
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
  at("examples").className = modality === AUDIO ? "sounds" : "";
  at("examples").replaceChildren(...EXAMPLES[modality].map(name => exampleButton(modality, name, chooseExample)));
  preview();
}

function preview() {
  const blob = latest[shown];
  const [image, player] = [at("preview"), at("player")];
  image.hidden = shown !== IMAGE || !blob;
  player.hidden = shown !== AUDIO || !blob;
  player.pause();
  for (const element of [image, player]) {
    if (element.src) URL.revokeObjectURL(element.src);
    element.removeAttribute("src");
  }
  if (blob) (shown === AUDIO ? player : image).src = URL.createObjectURL(blob);
  if (blob) image.alt = blob.name ? `Your picture ${blob.name}` : "The chosen example";
  for (const button of at("examples").children) button.setAttribute("aria-pressed", button.dataset.name === blob?.example);
}

function exampleButton(modality, name, chooseExample) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.name = name;
  const title = name.replace(/\..*/, "").replaceAll("-", " ");
  if (modality === AUDIO) button.textContent = title;
  else button.append(Object.assign(new Image(), { src: `static/examples/${name}`, alt: title }));
  button.addEventListener("click", () => chooseExample(name));
  return button;
}
