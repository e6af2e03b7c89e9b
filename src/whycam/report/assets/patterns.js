// Mean maps by class: of the errors and, if the study explained some, of correct predictions.

const classMean = meansOf(core.means.bytes, core.means.groups.length, core.classes.length);
const GROUP_WORDS = [
  (n) => `${plural(n, "error")} predicted so`, (n) => `${plural(n, "error")} of it`, (n) => `${plural(n, "correct", "correct")}`,
];

function drawPatterns(keys) {
  if (!MEAN_KEYS.some((key) => keys.has(key))) return;
  const { method, layer } = state;
  if (!core.layers.length || !core.methods.length) return;
  const classes = core.classes.map((_, c) => core.means.groups.map((_, g) => shownMean(classMean(g, method, layer, c))));
  const baseline = classes.some((groups) => groups[2].n > 0);
  const present = classes.map((groups, c) => ({ groups, c })).filter(({ groups }) => groups.some(({ n }) => n));
  const scale = Math.max(0, ...present.map(({ groups }) => Math.max(...groups.map(largest))));
  document.getElementById("patterns-lead").textContent = present.length
    ? `Mean raw maps, ${core.methods[method].title} at ${core.layers[layer].name}: of the errors predicted as a class (evidence for that class), of the errors that are of the class (evidence for it)${baseline ? ", and of correct predictions of it" : ". This study explained no correct predictions, so there is no baseline to compare with"}.`
    : "There are no maps to average.";
  document.getElementById("patterns-scale").textContent = present.length ? meanScaleWords(scale, core.layers[layer]) : "";
  document.getElementById("patterns-list").replaceChildren(...present.map(({ groups, c }) => make("li", {},
    make("h4", {}, nameOf(c)),
    make("div", { className: "triple" }, ...groups.slice(0, baseline ? 3 : 2).map((mean, g) => meanFigure(mean, scale,
      `${plain(core.classes[c])}: mean over ${GROUP_WORDS[g](mean.n)}`, GROUP_WORDS[g](mean.n), core.means.groups[g]))))));
}

sections.push({ draw: drawPatterns });
