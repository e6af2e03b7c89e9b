// Mean maps by class: what errors have in common, beside the correct predictions where the study explained some.

const means = (() => {
  const K = core.classes.length;
  const perGroup = core.methods.length * core.layers.length;
  const take = reader(bytesOf(core.means.bytes));
  const blocks = core.means.groups.length * perGroup;
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
})();

const GROUP_WORDS = [
  (n) => `${plural(n, "error")} predicted so`, (n) => `${plural(n, "error")} of it`, (n) => `${plural(n, "correct", "correct")}`,
];

function drawPatterns(keys) {
  if (!["method", "layer", "values", "palette", "grid", "start"].some((key) => keys.has(key))) return;
  const { method, layer } = state;
  const list = document.getElementById("patterns-list");
  const lead = document.getElementById("patterns-lead");
  if (!core.layers.length || !core.methods.length) return;
  const signed = state.values === "signed";
  const classes = core.classes.map((_, c) => core.means.groups.map((_, g) => {
    const mean = means(g, method, layer, c);
    return signed ? mean : { ...mean, values: mean.values.map((v) => Math.max(0, v)) };
  }));
  const baseline = classes.some((groups) => groups[2].n > 0);
  const present = classes.map((groups, c) => ({ groups, c })).filter(({ groups }) => groups.some(({ n }) => n));
  const scale = Math.max(0, ...present.map(({ groups }) => Math.max(...groups.map(largest))));
  const { name, width, height } = core.layers[layer];
  lead.textContent = present.length
    ? `Mean raw maps, ${core.methods[method].title} at ${name}: of the errors predicted as a class (evidence for that class), of the errors that are of the class (evidence for it)${baseline ? ", and of correct predictions of it" : ". This study explained no correct predictions, so there is no baseline to compare with"}.`
    : "There are no maps to average.";
  document.getElementById("patterns-scale").textContent = present.length
    ? `All means share one scale: ${signed ? `−${number(scale)}` : "0"} to ${number(scale)}, ${state.grid === "bilinear" ? `bilinear interpolation of ${height} × ${width}` : `native ${height} × ${width}`} cells. A mean over few images is mostly those images.` : "";
  const look = { ...lookOf("predicted", scale), overlay: true, opacityMode: "fixed", opacity: 1 };
  list.replaceChildren(...present.map(({ groups, c }) => make("li", {},
    make("h3", {}, nameOf(c)),
    make("div", { className: "triple" }, ...groups.slice(0, baseline ? 3 : 2).map((mean, g) => {
      const canvas = make("canvas", { width: 112, height: 112, role: "img" });
      paint(canvas, null, mean, look);
      const peak = mean.n ? peakOf(mean) : null;
      canvas.setAttribute("aria-label", `${plain(core.classes[c])}: mean over ${GROUP_WORDS[g](mean.n)}${peak ? `; peak ${number(peak.value)} ${peak.where}` : mean.n ? "; no positive evidence" : ""}.`);
      return make("figure", { className: `mean ${core.means.groups[g]}` }, make("span", { className: "frame" }, canvas),
        make("figcaption", { text: GROUP_WORDS[g](mean.n) }));
    })))));
}
