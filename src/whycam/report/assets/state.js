// The page's state, kept in the URL's hash, so that a link reproduces what the page shows.

const DEFAULTS = {
  actual: -1, predicted: -1, flag: "", label: "", cluster: -1, q: "", sort: "confident",
  image: -1, pin: -1,
  method: 0, layer: core.layers.length - 1, target: "predicted",
  values: "positive", palette: core.sequential[0], overlay: true, grid: "nearest",
  opacityMode: "value", opacity: 0.85, scale: "layer", theme: "auto",
};
const OPTIONS = {
  flag: ["", "none", "non-finite", "missing"], label: ["", "issue"],
  sort: ["confident", "unsure", "margin", "close", "loss", "pair", "issue", "cluster", "data"],
  target: KINDS, values: ["positive", "signed"], palette: core.sequential, grid: ["nearest", "bilinear"],
  opacityMode: ["value", "fixed"], scale: ["layer", "image", "study", "map"], theme: ["auto", "light", "dark"],
};
const NO_FILTER = { actual: -1, predicted: -1, flag: "", label: "", cluster: -1, q: "" };
const FILTERS = [...Object.keys(NO_FILTER), "sort"];
const state = { ...DEFAULTS };
let selection = []; // errors that pass the filters, in order
let placeOf = new Int32Array(N).fill(-1); // error → its place in the selection
const listeners = [];
// The report's parts, in order: {start, draw, pictures}. `start` runs once. `draw` is told the changed keys of the state.
// `pictures` is the section whose arrival near the window calls `draw` with "pictures": then it may load images.
const sections = [];

const byName = (list, names) => new Map(list.map((item, i) => [names(item), i]));
const classByName = byName(core.classes, (name) => name);
const methodByName = byName(core.methods, (method) => method.name);
const layerByName = byName(core.layers, (layer) => layer.name);

// A class name is written as it is if that is unambiguous, otherwise as #number.
const classWord = (c) => {
  const name = core.classes[c];
  return classByName.get(name) === c && name.length <= 40 && !name.startsWith("#") ? name : `#${c}`;
};
const classFrom = (word) => {
  const c = word.startsWith("#") ? Number(word.slice(1)) : classByName.get(word);
  return Number.isInteger(c) && c >= 0 && c < core.classes.length ? c : -1;
};
const WORDS = {
  actual: [classWord, classFrom], predicted: [classWord, classFrom],
  cluster: [(c) => String(c + 1), (word) => (clusters[Number(word) - 1] ? Number(word) - 1 : -1)],
  image: [(e) => core.ids[e], (word) => errorById.get(word) ?? -1],
  pin: [(e) => core.ids[e], (word) => errorById.get(word) ?? -1],
  method: [(m) => core.methods[m].name, (word) => methodByName.get(word) ?? DEFAULTS.method],
  layer: [(l) => core.layers[l].name, (word) => layerByName.get(word) ?? DEFAULTS.layer],
  overlay: [(on) => (on ? "on" : "off"), (word) => word !== "off"],
  opacity: [(o) => String(Math.round(o * 100)), (word) => {
    const share = Number(word) / 100;
    return share >= 0 && share <= 1 ? share : DEFAULTS.opacity;
  }],
};

function readHash() {
  const words = new URLSearchParams(location.hash.slice(1));
  const next = { ...DEFAULTS, theme: state.theme };
  for (const [key, word] of words) {
    if (!Object.hasOwn(DEFAULTS, key)) continue;
    if (WORDS[key]) next[key] = WORDS[key][1](word);
    else if (OPTIONS[key]) next[key] = OPTIONS[key].includes(word) ? word : DEFAULTS[key];
    else next[key] = word;
  }
  return next;
}

function hashOf() {
  const words = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    if (state[key] === DEFAULTS[key]) continue;
    // The first error of the selection is the default.
    if (key === "image" && selection[0] === state.image) continue;
    words.set(key, WORDS[key] ? WORDS[key][0](state[key]) : state[key]);
  }
  return words.toString();
}

let hashTimer = 0;
let lastHash = location.hash.slice(1);
function writeHash() {
  // Browsers refuse many changes a second, as a held key would make.
  clearTimeout(hashTimer);
  hashTimer = setTimeout(() => {
    lastHash = hashOf();
    try {
      history.replaceState(null, "", `#${lastHash}`);
    } catch {
      // A page in a notebook has no address of its own.
    }
  }, 150);
}

const pairCounts = (() => {
  const counts = new Map();
  for (let e = 0; e < N; e++) {
    const key = errors.label[e] * core.classes.length + errors.predicted[e];
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  return counts;
})();
const pairOf = (e) => errors.label[e] * core.classes.length + errors.predicted[e];

const ORDERS = {
  confident: (a, b) => a - b, // the order of the data block
  unsure: (a, b) => errors.confidence[a] - errors.confidence[b] || a - b,
  margin: (a, b) => errors.margin[b] - errors.margin[a] || a - b,
  close: (a, b) => errors.margin[a] - errors.margin[b] || a - b,
  loss: (a, b) => errors.loss[b] - errors.loss[a] || a - b,
  pair: (a, b) => pairCounts.get(pairOf(b)) - pairCounts.get(pairOf(a)) || pairOf(a) - pairOf(b) || a - b,
  issue: (a, b) => relations.labelIssue[b] - relations.labelIssue[a] || relations.score[b] - relations.score[a] || a - b,
  cluster: (a, b) => relations.cluster[a] - relations.cluster[b] || relations.closeness[b] - relations.closeness[a] || a - b,
  data: (a, b) => errors.index[a] - errors.index[b],
};

const searchable = core.ids.map((id, e) => {
  const names = `${core.classes[errors.label[e]]}\n${core.classes[errors.predicted[e]]}`;
  return `${id}\n${names}`.toLowerCase();
});

/** Whether an error's map of the predicted class, at the chosen method and layer, passes the filter of evidence. */
function passesFlag(error, flag) {
  const { method, layer } = state;
  const flags = bytesOfFlags[(method * core.layers.length + layer) * N + error];
  if (flag === "missing") return (flags & core.missing) !== 0;
  if (flags & core.missing) return false;
  if (flag === "non-finite") return bit(flags, "non-finite");
  return bit(flags, "all-zero") || bit(flags, "negative-only");
}
const bytesOfFlags = bytesOf(core.predictedFlags);

function select() {
  const { actual, predicted, flag, label, cluster, q } = state;
  const wanted = q.trim().toLowerCase();
  const found = [];
  for (let e = 0; e < N; e++) {
    if (actual >= 0 && errors.label[e] !== actual) continue;
    if (predicted >= 0 && errors.predicted[e] !== predicted) continue;
    if (wanted && !searchable[e].includes(wanted)) continue;
    if (flag && !passesFlag(e, flag)) continue;
    if (label && !relations.labelIssue[e]) continue;
    if (cluster >= 0 && relations.cluster[e] !== cluster) continue;
    found.push(e);
  }
  if (state.sort !== "confident") found.sort(ORDERS[state.sort]);
  selection = found;
  placeOf.fill(-1);
  found.forEach((e, place) => { placeOf[e] = place; });
}

let frame = 0;
let changed = new Set();

/** Change the state; everything that depends on it is drawn before the next frame. */
function update(patch) {
  for (const [key, value] of Object.entries(patch)) {
    if (state[key] === value) continue;
    state[key] = value;
    changed.add(key);
  }
  if (!changed.size) return;
  const refilter = FILTERS.some((key) => changed.has(key)) || (state.flag && (changed.has("method") || changed.has("layer")));
  if (refilter) select();
  if (placeOf[state.image] === undefined || placeOf[state.image] < 0) {
    const first = selection.length ? selection[0] : -1;
    if (first !== state.image) changed.add("image");
    state.image = first;
  }
  if (refilter) changed.add("selection");
  writeHash();
  frame ||= requestAnimationFrame(flush);
}

function flush() {
  cancelAnimationFrame(frame);
  frame = 0;
  const keys = changed;
  changed = new Set();
  for (const listener of listeners) listener(keys);
}

/** The current display settings of a picture. */
function lookOf(kind, scale) {
  const { palette, overlay, grid, opacity, opacityMode } = state;
  return { scale, signed: kind === "difference" || state.values === "signed", palette, overlay, grid, opacity, opacityMode };
}

function largest(evidence) {
  let most = 0;
  if (evidence.state !== "ok") return 0;
  for (const v of evidence.values) if (Math.abs(v) > most) most = Math.abs(v);
  return most;
}

/** The scales of the detail for these errors (current and pinned): (error, layer, kind) → number. */
function scalesOf(list) {
  const { method, scale } = state;
  const signed = state.values === "signed";
  const own = new Map();
  const perLayer = core.layers.map((_, layer) => {
    let most = 0;
    for (const error of list) {
      for (const kind of KINDS) {
        const value = largest(evidenceOf(error, method, layer, kind, signed));
        own.set(`${error} ${layer} ${kind}`, value);
        most = Math.max(most, value);
      }
    }
    return most;
  });
  const all = Math.max(0, ...perLayer);
  return (error, layer, kind) => {
    if (scale === "map") return own.get(`${error} ${layer} ${kind}`);
    if (scale === "study") return studyScale(layer);
    return scale === "image" ? all : perLayer[layer];
  };
}

const studyScale = (layer) => {
  const range = core.ranges[core.methods[state.method]?.name]?.[core.layers[layer]?.name];
  return range ? range[state.values] : 0;
};

/** The scale of a picture in words. */
function scaleWords(scale, kind) {
  const whose = { layer: "shared by this layer’s pictures", image: "shared by all layers",
    study: "the study’s for this layer, values beyond are clipped", map: "this map’s own, not comparable" }[state.scale];
  return `scale ${rangeWords(scale, kind)}, ${whose}`;
}

function rangeWords(scale, kind) {
  const signed = kind === "difference" || state.values === "signed";
  return `${signed ? `−${number(scale)}` : "0"} to ${number(scale)}`;
}
