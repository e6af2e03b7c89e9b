// What is on screen, as a file: one scene, drawn to a canvas for PNG or written as SVG.

const fileName = (end) => `whycam-${core.ids[state.image]?.replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 60) || "selection"}.${end}`;

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The current error as texts and pictures with places, in units of CSS pixels. */
function sceneOf() {
  const error = state.image;
  const side = 192;
  const gap = 16;
  const left = 132;
  const ratio = core.image.height / core.image.width;
  const tall = side * ratio;
  const items = [];
  const say = (x, y, text, size = 13, weight = 400, fill = "#1d1f24") => items.push({ x, y, text, size, weight, fill });
  const [a, b] = [errors.label[error], errors.predicted[error]].map((c) => plain(clip(shown(core.classes[c]), 40)));
  say(gap, 30, `Predicted ${b} (${probability(errors.confidence[error])}), ${KIND_WORDS.true} ${a} (${probability(errors.trueProbability[error])})`, 18, 600);
  say(gap, 50, `${core.data} ${clip(shown(core.ids[error]), 60)} · ${core.methods[state.method].title} · ${state.values === "signed" ? "signed evidence" : "positive evidence"} · ${state.overlay ? (state.grid === "bilinear" ? "bilinear interpolation of the native grid" : "native grid") : "overlay hidden"}`, 12, 400, "#5c6068");
  const heads = ["Image", `For predicted ${clip(b, 20)}`, `For ${KIND_WORDS.true} ${clip(a, 20)}`, `Predicted − ${KIND_WORDS.true}`];
  heads.forEach((text, i) => say(left + i * (side + gap), 80, text, 12, 600));
  const scaleOf = scalesOf(state.pin >= 0 && state.pin !== error ? [error, state.pin] : [error]);
  let y = 90;
  core.layers.forEach((layer, l) => {
    say(gap, y + 18, layer.name, 13, 600);
    say(gap, y + 36, `${layer.height} × ${layer.width} cells`, 12, 400, "#5c6068");
    const lines = state.scale === "map" ? ["each map its", "own scale"] : [state.values === "signed" ? `±${number(scaleOf(error, l, "predicted"))}` : `0 to ${number(scaleOf(error, l, "predicted"))}`,
      { layer: "shared in the row", image: "shared by all rows", study: "the study’s scale" }[state.scale]];
    lines.forEach((text, i) => say(gap, y + 54 + 16 * i, text, 12, 400, "#5c6068"));
    ["image", ...KINDS].forEach((kind, i) => {
      const evidence = kind === "image" ? null : evidenceOf(error, state.method, l, kind, state.values === "signed");
      const scale = kind === "image" ? 0 : scaleOf(error, l, kind);
      const x = left + i * (side + gap);
      items.push({ x, y, side, tall, error, evidence, look: { ...lookOf(kind, scale), overlay: state.overlay && kind !== "image" } });
      const odd = evidence && !(kind === "difference" && evidence.state === "ok") ? oddities(evidence) : [];
      if (evidence?.stats) say(x, y + tall + 15, `${number(evidence.stats.raw_min)} … ${number(evidence.stats.raw_max)}${odd.length ? `; ${odd.join("; ")}` : ""}`, 11, 400, "#5c6068");
      else if (odd.length) say(x, y + tall + 15, odd.join("; "), 11, 400, "#5c6068");
    });
    y += tall + 32;
  });
  say(gap, y + 8, "Raw ranges below the maps. A map shows where evidence lies, not what caused the prediction. Made with whycam.", 11, 400, "#5c6068");
  return { width: left + 4 * (side + gap), height: Math.round(y + 22), items };
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
    if (item.text === undefined) {
      context.drawImage(pictureCanvas(item), item.x, item.y, item.side, item.tall);
      continue;
    }
    context.font = `${item.weight} ${item.size}px ${FONT}`;
    context.fillStyle = item.fill;
    context.fillText(item.text, item.x, item.y);
  }
  return canvas;
}

// XML has no way at all to write most control characters.
const xml = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\u25a1")
  .replace(/[<>&"']/g, (c) => `&#${c.codePointAt(0)};`);

/** Native cells as rectangles, so that the drawing stays sharp at any size and its colours can be read off. */
function cellsToSvg({ x, y, side, tall, evidence, look }) {
  const { width, height, values } = evidence;
  const colours = coloursOf(values, look);
  const w = side / width;
  const h = tall / height;
  let out = "";
  for (let p = 0; p < values.length; p++) {
    const alpha = colours[p * 4 + 3];
    if (!alpha) continue;
    const rgb = [...colours.subarray(p * 4, p * 4 + 3)].join(",");
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
