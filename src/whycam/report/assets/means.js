// Mean maps, from the bytes that Python wrote.

/** (group, method, layer, c) → one mean: {state, n, values, width, height}, of blocks of K means. */
function meansOf(base64, groups, K) {
  const perGroup = core.methods.length * core.layers.length;
  const take = reader(bytesOf(base64));
  const blocks = groups * perGroup;
  const n = take(Int32Array, blocks * K);
  const step = take(Float32Array, blocks * K);
  const zero = take(Uint8Array, blocks * K);
  const cells = [];
  for (let b = 0; b < blocks; b++) cells.push(take(Uint8Array, K * layerCells[b % core.layers.length]));
  return (group, method, layer, c) => {
    const block = group * perGroup + method * core.layers.length + layer;
    const i = block * K + c;
    const { width, height } = core.layers[layer];
    const values = new Float32Array(width * height);
    const start = c * width * height;
    for (let p = 0; p < values.length; p++) values[p] = (cells[block][start + p] - zero[i]) * step[i];
    return { state: n[i] ? "ok" : "missing", n: n[i], values, width, height };
  };
}

/** The values of a mean that are shown: cut at zero, unless the display is signed. */
function shownMean(mean) {
  return state.values === "signed" ? mean : { ...mean, values: mean.values.map((v) => Math.max(0, v)) };
}

/** A mean as a figure; `words` begins its text alternative. */
function meanFigure(mean, scale, words, caption, className) {
  const canvas = make("canvas", { width: 112, height: 112, role: "img" });
  paint(canvas, null, mean, { ...lookOf("predicted", scale), overlay: true, opacityMode: "fixed", opacity: 1 });
  const peak = mean.n ? peakOf(mean) : null;
  canvas.setAttribute("aria-label", `${words}${peak ? `; peak ${number(peak.value)} ${peak.where}` : mean.n ? "; no positive evidence" : ""}.`);
  return make("figure", { className: `mean ${className}` }, make("span", { className: "frame" }, canvas), make("figcaption", { text: caption }));
}

const MEAN_KEYS = ["method", "layer", "values", "palette", "grid", "start"];
const meanScaleWords = (scale, { width, height }) => `All means share one scale: ${state.values === "signed" ? `−${number(scale)}` : "0"} to ${number(scale)}, ${
  state.grid === "bilinear" ? `bilinear interpolation of ${height} × ${width}` : `native ${height} × ${width}`} cells. A mean over few images is mostly those images.`;
