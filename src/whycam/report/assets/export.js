// Export: one scene, drawn on a canvas for PNG or written as SVG; lists as CSV and text.

const fileName = (end) => `whycam-${core.ids[state.image]?.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60) || "selection"}.${end}`;

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const [SIDE, GAP, LEFT] = [192, 16, 132];
const INK = "#1d1f24";
const PALE = "#5c6068";
// The colors of the light theme: a file has no theme.
const BARS = { predicted: "#a63c08", actual: "#08665c", other: "#8b8880", track: "#efede7" };

/** A name in lines of at most fifteen characters, broken at dots and pluses where possible. */
function broken(name, lines) {
  const parts = name.match(/.{1,14}(?:[+.]|$)|.{1,15}/gsu) || [];
  return parts.length > lines ? [...parts.slice(0, lines - 1), `${parts[lines - 1]}…`] : parts;
}

/** The contents of the detail as texts, bars and pictures with positions in CSS pixels. */
function sceneOf() {
  const both = state.pin >= 0 && state.pin !== state.image ? [state.image, state.pin] : [state.image];
  const scaleOf = scalesOf(both);
  const items = [];
  let y = 0;
  for (const error of both) y = errorScene(items, y, error, scaleOf) + 16;
  write(items, GAP, y - 8, "Raw ranges below the maps. A map shows where evidence lies, not what caused the prediction. Made with whycam.", 11, 400, PALE);
  return { width: LEFT + 4 * (SIDE + GAP), height: Math.round(y + 6), items };
}

const write = (items, x, y, text, size = 13, weight = 400, fill = INK) => items.push({ x, y, text, size, weight, fill });

/** Add one error below `y`: heading, bars, a row of pictures per layer. Returns the y of its end. */
function errorScene(items, y, error, scaleOf) {
  const tall = (SIDE * core.image.height) / core.image.width;
  const [a, b] = [errors.label[error], errors.predicted[error]].map((c) => plain(clip(shown(core.classes[c]), 40)));
  const pinned = error !== state.image;
  write(items, GAP, y + 30, `${pinned ? "Pinned: predicted" : "Predicted"} ${b} (${probability(errors.confidence[error])}), ${KIND_WORDS.true} ${a} (${probability(errors.trueProbability[error])})`, 18, 600);
  const shares = !pinned ? "" : state.scale === "map" ? " · each map on its own scale" : " · on the same scale as above";
  write(items, GAP, y + 50, `${core.data} ${clip(shown(core.ids[error]), 60)} · ${core.methods[state.method].title} · ${state.values === "signed" ? "signed evidence" : "positive evidence"} · ${state.overlay ? (state.grid === "bilinear" ? "bilinear interpolation of the native grid" : "native grid") : "overlay hidden"}${shares}`, 12, 400, PALE);
  y = pinned ? y + 62 : barsScene(items, y + 62, error);
  const heads = ["Image", `For predicted ${clip(b, 20)}`, `For ${KIND_WORDS.true} ${clip(a, 20)}`, `Predicted − ${KIND_WORDS.true}`];
  heads.forEach((text, i) => write(items, LEFT + i * (SIDE + GAP), y + 18, text, 12, 600));
  y += 28;
  core.layers.forEach(({ name, height, width }, l) => {
    const scale = scaleOf(error, l, "predicted");
    const range = state.scale === "map" ? ["each map its", "own scale"] : [state.values === "signed" ? `±${number(scale)}` : `0 to ${number(scale)}`,
      { layer: "shared in the row", image: "shared by all rows", study: "the study’s scale" }[state.scale]];
    const title = broken(name, 7);
    title.forEach((text, i) => write(items, GAP, y + 18 + 16 * i, text, 13, 600));
    [`${height} × ${width} cells`, ...range].forEach((text, i) => write(items, GAP, y + 20 + 16 * (title.length + i), text, 12, 400, PALE));
    ["image", ...KINDS].forEach((kind, i) => {
      const evidence = kind === "image" ? null : evidenceOf(error, state.method, l, kind, state.values === "signed");
      const own = kind === "image" ? 0 : scaleOf(error, l, kind);
      const x = LEFT + i * (SIDE + GAP);
      items.push({ x, y, side: SIDE, tall, error, evidence, look: { ...lookOf(kind, own), overlay: state.overlay && kind !== "image" } });
      const odd = evidence && !(kind === "difference" && evidence.state === "ok") ? oddities(evidence) : [];
      if (evidence?.stats) write(items, x, y + tall + 15, `${number(evidence.stats.raw_min)} … ${number(evidence.stats.raw_max)}${odd.length ? `; ${odd.join("; ")}` : ""}`, 11, 400, PALE);
      else if (odd.length) write(items, x, y + tall + 15, odd.join("; "), 11, 400, PALE);
    });
    y += Math.max(tall, 16 * (title.length + range.length + 1)) + 32;
  });
  return y;
}

/** Add the classes' probabilities as bars. Returns the y of their end. */
function barsScene(items, y, error) {
  const { rows, note } = topClasses(error);
  const [start, length] = [LEFT + 64, 2 * SIDE];
  for (const { c, p, role } of rows) {
    write(items, GAP, y + 11, plain(clip(shown(core.classes[c]), 26)), 12, role === "other" ? 400 : 600, role === "other" ? INK : BARS[role]);
    items.push({ x: start, y: y + 3, width: length, height: 9, fill: BARS.track });
    items.push({ x: start, y: y + 3, width: Math.max(1, length * p), height: 9, fill: BARS[role] });
    write(items, start + length + 10, y + 11, probability(p), 12, 400, PALE);
    y += 17;
  }
  if (note) write(items, GAP, (y += 15) - 2, note, 11, 400, PALE);
  return y + 6;
}

const FONT = "-apple-system, Inter, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif";

function pictureCanvas({ side, error, evidence, look }) {
  const canvas = document.createElement("canvas");
  const pixels = sideFor(side * 2, core.image.width);
  Object.assign(canvas, { width: pixels, height: Math.round((pixels * core.image.height) / core.image.width) });
  paint(canvas, pictureOf(error), evidence, look);
  return canvas;
}

function sceneToCanvas({ width, height, items }) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: width * 2, height: height * 2 });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  for (const item of items) {
    if (item.side) {
      context.drawImage(pictureCanvas(item), item.x, item.y, item.side, item.tall);
      continue;
    }
    context.fillStyle = item.fill;
    if (item.text === undefined) {
      context.fillRect(item.x, item.y, item.width, item.height);
      continue;
    }
    context.font = `${item.weight} ${item.size}px ${FONT}`;
    context.fillText(item.text, item.x, item.y);
  }
  return canvas;
}

// XML cannot represent most control characters.
const xml = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\u25a1")
  .replace(/[<>&"']/g, (c) => `&#${c.codePointAt(0)};`);

/** Native cells as rectangles: sharp at any size, with exact colors. */
function cellsToSvg({ x, y, side, tall, evidence, look }) {
  const { width, height, values } = evidence;
  const colors = colorsOf(values, look);
  const w = side / width;
  const h = tall / height;
  let out = "";
  for (let p = 0; p < values.length; p++) {
    const alpha = colors[p * 4 + 3];
    if (!alpha) continue;
    const rgb = [...colors.subarray(p * 4, p * 4 + 3)].join(",");
    out += `<rect x="${x + (p % width) * w}" y="${y + Math.floor(p / width) * h}" width="${w}" height="${h}" fill="rgb(${rgb})"${alpha < 255 ? ` fill-opacity="${(alpha / 255).toFixed(4)}"` : ""}/>`;
    if (Number.isNaN(values[p])) {
      const [x0, y0] = [x + (p % width) * w, y + Math.floor(p / width) * h];
      out += `<path d="M${x0} ${y0}l${w} ${h}m${-w} 0l${w} ${-h}" stroke="#000"/>`;
    }
  }
  return `<g shape-rendering="crispEdges">${out}</g>`;
}

function sceneToSvg({ width, height, items }) {
  let out = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${xml(FONT)}"><rect width="100%" height="100%" fill="#fff"/>`;
  for (const item of items) {
    if (item.text !== undefined) {
      out += `<text x="${item.x}" y="${item.y}" font-size="${item.size}" font-weight="${item.weight}" fill="${item.fill}">${xml(item.text)}</text>`;
      continue;
    }
    if (!item.side) {
      out += `<rect x="${item.x}" y="${item.y}" width="${item.width}" height="${item.height}" fill="${item.fill}"/>`;
      continue;
    }
    const vector = item.look.overlay && item.look.grid === "nearest" && item.evidence?.state === "ok" && item.evidence.values.length <= 4096;
    const below = pictureCanvas(vector ? { ...item, look: { ...item.look, overlay: false } } : item);
    out += `<image x="${item.x}" y="${item.y}" width="${item.side}" height="${item.tall}" href="${below.toDataURL()}"/>`;
    if (vector) out += cellsToSvg(item);
  }
  return `${out}</svg>`;
}

const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
const exact = (value) => String(Number(value.toPrecision(9))); // nine digits name a float32 exactly

function selectionCsv() {
  const rows = [["index", "id", "actual", "predicted", "confidence", "margin", "loss", "label_suspicion", "cluster"]];
  for (const e of selection) {
    rows.push([String(errors.index[e]), core.ids[e], core.classes[errors.label[e]], core.classes[errors.predicted[e]],
      exact(errors.confidence[e]), exact(errors.margin[e]), exact(errors.loss[e]), exact(relations.score[e]), clusters.length ? String(relations.cluster[e] + 1) : ""]);
  }
  return rows.map((row) => row.map(quoted).join(",")).join("\r\n").concat("\r\n");
}

const EXPORTS = {
  csv: () => save(new Blob([selectionCsv()], { type: "text/csv" }), "whycam-selection.csv"),
  ids: () => save(new Blob([selection.map((e) => `${core.ids[e]}\n`).join("")], { type: "text/plain" }), "whycam-ids.txt"),
  png: () => sceneToCanvas(sceneOf()).toBlob((blob) => save(blob, fileName("png")), "image/png"),
  svg: () => save(new Blob([sceneToSvg(sceneOf())], { type: "image/svg+xml" }), fileName("svg")),
};

function startExport() {
  const menu = document.getElementById("export-menu");
  menu.addEventListener("click", (event) => {
    const kind = event.target.dataset?.export;
    if (!kind || (state.image < 0 && (kind === "png" || kind === "svg"))) return;
    EXPORTS[kind]();
    menu.open = false;
  });
}
