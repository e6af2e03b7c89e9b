// The live page: it sends an image and colors the maps of the answer. The server keeps nothing, so every new choice sends
// the image again.

const byId = (id) => document.getElementById(id);
const places = core.layers; // what can be chosen; core.layers is what there are maps of: the image itself for some methods
const choice = { method: core.methods[0].name, layers: new Set(core.preselected), chosen: "" };
const TRIES = 4; // a busy server says when to come back
let given = null; // {blob, name}
let answered = null; // what the server said last
let asking = null; // aborts the request on its way
let shownNumbers = null;
const pick = { title: "Leave this layer out", act: (place) => toggleLayer(place), pressed: null,
  place: (layer) => places.findIndex(({ name }) => name === core.layers[layer].name) };
let block = makeEvidence("", pick);

const LAYERS_NOTES = { layer: "", layers: "One map of all chosen layers together.",
  input: "One map of the image itself: layers play no part in it." };
const scope = () => core.offered.find(({ name }) => name === choice.method).scope;

function say(text, trouble = "") {
  byId("status").textContent = text;
  byId("trouble").textContent = trouble;
  byId("trouble").hidden = !trouble;
}

const pause = (seconds, signal) => new Promise((done, stop) => {
  const timer = setTimeout(done, seconds * 1000);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    stop(signal.reason);
  });
});

async function send(signal) {
  const query = new URLSearchParams({ method: choice.method, class: choice.chosen });
  for (const layer of choice.layers) query.append("layer", layer);
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(`/explain?${query}`, { method: "POST", body: given.blob, signal });
    if (response.ok) return response.json();
    const after = Number(response.headers.get("Retry-After"));
    if (response.status === 503 && after && attempt < TRIES) {
      say("The server is busy; waiting …");
      await pause(after * attempt, signal);
      continue;
    }
    const { error } = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    throw new Error(error);
  }
}

async function ask() {
  if (!given) return;
  asking?.abort();
  if (!choice.layers.size && scope() !== "input") return say("", "Choose at least one layer.");
  if (given.blob.size > core.maxBytes) return say("", `The file is larger than ${core.maxBytes / 1048576} MiB: shrink the image.`);
  asking = new AbortController();
  const { signal } = asking;
  const begin = performance.now();
  document.body.classList.add("busy");
  say("Explaining …");
  try {
    const answer = await send(signal);
    const trip = performance.now() - begin;
    const chunk = await unpack(answer.chunk, 1, answer.layers);
    if (signal.aborted) return;
    show(answer, chunk, trip);
    document.body.classList.remove("busy");
  } catch (error) {
    if (signal.aborted) return;
    document.body.classList.remove("busy");
    say("", error instanceof TypeError ? "The server does not answer." : `${error.message[0].toUpperCase()}${error.message.slice(1)}.`);
  }
}

/** Replace the data of the page by an answer of the server. */
function show(answer, chunk, trip) {
  answered = answer;
  chunks[0] = chunk;
  Object.assign(errors, readColumns(answer.columns));
  core.methods[0] = answer.method;
  const names = (layers) => JSON.stringify(layers.map(({ name }) => name));
  const sameRows = names(core.layers) === names(answer.layers);
  core.layers = answer.layers;
  if (!sameRows) {
    const old = block.element;
    block = makeEvidence("", pick);
    old.replaceWith(block.element);
  }
  core.ids[0] = given.name;
  say(`Answer in ${count(Math.round(trip))} ms; on the server: reading the image ${number(answer.ms.decode)} ms, network and maps ${number(answer.ms.explain)} ms.`);
  byId("nothing").hidden = true;
  block.element.hidden = false;
  byId("export-menu").hidden = false;
  byId("thoughts").hidden = false;
  shownNumbers.table.hidden = false;
  draw();
}

function draw() {
  if (!answered) return;
  const { width, height } = answered.file;
  const same = width === core.image.width && height === core.image.height;
  byId("verdict-line").replaceChildren(nameOf(errors.predicted[0]), `, ${probability(errors.confidence[0])}`);
  drawImage(byId("seen"), 0, 96, "");
  byId("seen-note").textContent = same ? `Your image, ${width} × ${height} pixels, as the network sees it.`
    : `What the network sees: the center of your ${count(width)} × ${count(height)} image, fitted to ${core.image.width} × ${core.image.height} pixels.`;
  drawBars({ bars: byId("bars"), barsNote: byId("bars-note") }, 0);
  drawEvidence(block, 0, scalesOf([0]));
  drawNumbers(shownNumbers, 0);
}

function take(blob, name) {
  given = { blob, name: name || "pasted image" };
  ask();
}

function toggleLayer(place) {
  if (scope() === "input") return;
  const { name } = places[place];
  if (choice.layers.has(name)) choice.layers.delete(name);
  else choice.layers.add(name);
  mirror();
  ask();
}

/** Show the current choice in the form. */
function mirror() {
  view.elements.method.value = choice.method;
  view.elements.chosen.value = choice.chosen;
  for (const box of view.querySelectorAll("[name=wanted]")) box.checked = choice.layers.has(box.value);
  byId("layers-note").textContent = LAYERS_NOTES[scope()];
  byId("layers-note").hidden = !LAYERS_NOTES[scope()];
  byId("layers").parentElement.disabled = scope() === "input";
}

function startChoices() {
  view.elements.method.append(...core.offered.map(({ name, title }) => make("option", { value: name, text: title })));
  view.elements.chosen.append(...core.classes.map((name, c) => make("option", { value: String(c), text: plain(clip(shown(name), 60)) })));
  byId("layers").append(...places.map(({ name, height, width }, layer) => make("label", { className: "check", title: `${height} × ${width} cells` },
    make("input", { type: "checkbox", name: "wanted", value: name }), ...(layer < 9 ? [make("kbd", { text: String(layer + 1), "aria-hidden": "true" })] : []), ` ${name}`)));
  view.addEventListener("input", ({ target }) => {
    if (target.name === "wanted") return toggleLayer(places.findIndex(({ name }) => name === target.value));
    if (target.name !== "method" && target.name !== "chosen") return;
    choice[target.name] = target.value;
    mirror();
    ask();
  });
  view.addEventListener("submit", (event) => event.preventDefault());
  mirror();
}

const imageIn = (files) => [...(files || [])].find((file) => file.type.startsWith("image/")) || files?.[0];

function startGiving() {
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) take(target.files[0], target.files[0].name);
    target.value = ""; // the same file again is a change, too
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const file = imageIn(event.dataTransfer.files);
    if (file) take(file, file.name);
    else say("", "That was no file. Drop an image file, or paste the image itself.");
  });
  document.addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData.files);
    if (file) take(file, file.name);
  });
  byId("samples")?.append(...core.samples.map((sample) => {
    const button = make("button", { type: "button", title: sample.class, "aria-label": `Example: ${sample.class}` },
      make("img", { src: `data:image/png;base64,${sample.png}`, alt: "" }));
    button.addEventListener("click", () => take(new Blob([bytesOf(sample.png)], { type: "image/png" }), `example ${sample.class}.png`));
    return make("li", {}, button);
  }));
}

const KEYS = [
  { keys: ["u"], label: "u", text: "to the image chooser; Enter or Space opens it", act: () => byId("file").focus() },
  { keys: [], label: `1–${Math.min(9, places.length)}`, text: "add a layer or leave it out" },
  { keys: ["m"], label: "m", text: "next method", act: () => {
    choice.method = cycle(core.offered.map(({ name }) => name), choice.method);
    mirror();
    ask();
  } },
  ...DISPLAY_KEYS,
  HELP_KEY,
];

function start() {
  state.theme = OPTIONS.theme.includes(recall("whycam-theme")) ? recall("whycam-theme") : "auto";
  startDisplay();
  startChoices();
  startGiving();
  startExport();
  startKeyboard(KEYS, toggleLayer);
  shownNumbers = makeNumbers();
  shownNumbers.table.hidden = true;
  block.element.hidden = true;
  byId("export-menu").hidden = true;
  byId("evidence").append(block.element, shownNumbers.table);
  // Of a link only the display settings apply here.
  const linked = readHash();
  for (const key of [...DISPLAY, "theme"]) state[key] = linked[key];
  if (state.scale === "study") state.scale = "layer";
  select();
  state.image = 0;
  drawDisplay();
  drawTheme();
  listeners.push((keys) => {
    drawDisplay();
    if (keys.has("theme")) drawTheme();
    draw();
  });
  document.documentElement.dataset.ready = "";
}

// For the tests.
window.whycam = { core, errors, state, update, flush, mapOf, evidenceOf, palettes, entryOf, scalesOf, choice, take, get answered() { return answered; } };
start();
