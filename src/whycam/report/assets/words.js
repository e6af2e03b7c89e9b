// Numbers and names as text, and the text alternatives of pictures.

const count = new Intl.NumberFormat("en").format;
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Three significant digits with a true minus sign. */
function number(value) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5 ? size.toExponential(1) : Number(size.toPrecision(3)).toString();
  return (value < 0 ? "−" : "") + text;
}

const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)}%`;

/** A probability as a percentage, never rounded to 0% or 100%. */
function probability(p) {
  if (p > 0.9995 && p < 1) return ">99.9%";
  if (p < 0.0005 && p > 0) return "<0.1%";
  return percent(p);
}

/** A name inside plain text: wrapped in bidi isolates, control characters as a box. */
const plain = (name) => `\u2068${shown(name)}\u2069`;

// Control characters and line separators have no shape of their own.
const shown = (name) => name.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, "\u25a1");
const clip = (text, length) => ([...text].length > length ? `${[...text].slice(0, length - 1).join("")}…` : text);

/** An element: make("p", {className, text, …}, …children). Text is always text, never markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "text") element.textContent = value;
    else if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Replace a list's entries. If a button had the focus, the new button at its place gets it. */
function replaceEntries(list, entries) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...entries);
  if (at >= 0) list.querySelectorAll("button")[at]?.focus({ preventScroll: true });
}

/** Set an element's text only if it changes, to avoid a new layout. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setName(element, c) {
  const text = shown(core.classes[c]);
  setText(element, text);
  element.title = text;
}

const nameOf = (c) => make("bdi", { className: "name", text: shown(core.classes[c]), title: shown(core.classes[c]) });

/** The negative share of a map's absolute mass; null if the mass is zero or not finite. */
function negativeShare({ stats }) {
  const negative = -stats.negative_sum;
  const total = stats.raw_sum + 2 * negative;
  return Number.isFinite(total) && total > 0 ? Math.min(1, negative / total) : null;
}

/** Unusual properties of a map, in words. */
function oddities(map) {
  if (map.state === "missing") return ["no map: not explained"];
  if (map.state === "waiting") return ["loading"];
  if (map.state === "lost") return ["its data file is missing"];
  const words = [];
  if (bit(map.flags, "all-zero")) words.push("all zero: no evidence");
  if (bit(map.flags, "negative-only")) words.push("no positive evidence");
  if (bit(map.flags, "constant") && !bit(map.flags, "all-zero")) words.push("constant");
  if (bit(map.flags, "non-finite")) words.push("holds values that are not finite");
  return words;
}

const THIRDS = [["top left", "top center", "top right"], ["left", "center", "right"],
  ["bottom left", "bottom center", "bottom right"]];

function peakOf({ values, width, height }) {
  let best = -1;
  for (let p = 0; p < values.length; p++) if (values[p] > 0 && (best < 0 || values[p] > values[best])) best = p;
  if (best < 0) return null;
  const x = best % width;
  const y = Math.floor(best / width);
  const third = (i, n) => Math.min(2, Math.floor(((i + 0.5) / n) * 3));
  return { value: values[best], x, y, where: THIRDS[third(y, height)][third(x, width)] };
}

/** The text alternative of one picture of evidence: its size, range, peak, negative share and oddities. */
function describe(error, method, layer, kind, evidence, scaleWords) {
  const named = { predicted: plain(core.classes[errors.predicted[error]]), true: plain(core.classes[errors.label[error]]) };
  const what = kind === "difference"
    ? `evidence for predicted ${named.predicted} minus ${KIND_WORDS.true} ${named.true}`
    : `evidence for ${KIND_WORDS[kind]} ${named[kind]}`;
  const words = [`${core.methods[method].title} at ${core.layers[layer].name}, ${what}`,
    `${evidence.height} by ${evidence.width} cells`];
  if (evidence.state === "ok") {
    if (evidence.stats) words.push(`raw range ${number(evidence.stats.raw_min)} to ${number(evidence.stats.raw_max)}`);
    const peak = peakOf(evidence);
    if (peak) words.push(`peak ${number(peak.value)} at row ${peak.y + 1}, column ${peak.x + 1} (${peak.where})`);
    const share = evidence.stats ? negativeShare(evidence) : null;
    if (share !== null) words.push(`${percent(share, 0)} of the mass is negative`);
    words.push(scaleWords);
  }
  return `${[...words, ...oddities(evidence)].filter(Boolean).join("; ")}.`;
}
