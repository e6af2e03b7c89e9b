// Clusters of errors: a card for each with its most typical image, its mean map and its pairs of classes.

const clusterMean = relations && clusters.length ? meansOf(relations.means, 1, clusters.length) : null;
const CLUSTER_PAIRS = 3;

function drawClusters(keys) {
  drawClusterButtons();
  if (!MEAN_KEYS.some((key) => keys.has(key)) && !keys.has("pictures")) return;
  document.getElementById("clusters-lead").textContent = clusters.length
    ? `The ${count(N)} errors in ${clusters.length} groups that the network’s features put together (k-means on the input of its last layer, at unit length, seeded). Groups mostly follow the predicted class, and some cut across the pairs above; another seed would draw some borders elsewhere. Each is shown by the error nearest to its center and by its mean map, ${core.methods[state.method].title} at ${core.layers[state.layer].name}, evidence for the predicted class.`
    : relations.why || "There are too few errors to be sorted into clusters: fewer than 80.";
  if (!clusters.length) return;
  const means = clusters.map((_, c) => shownMean(clusterMean(0, state.method, state.layer, c)));
  const scale = Math.max(0, ...means.map(largest));
  document.getElementById("clusters-scale").textContent = meanScaleWords(scale, core.layers[state.layer]);
  replaceEntries(document.getElementById("clusters-list"), clusters.map(({ size, medoid, pairs }, c) => {
    const image = make("canvas", { role: "img" });
    drawImage(image, medoid, 112, `, the most typical of this cluster, of actual class ${plain(core.classes[errors.label[medoid]])}`, nearby.has("patterns"));
    const rest = pairs.slice(CLUSTER_PAIRS).reduce((sum, [, n]) => sum + n, 0);
    const button = make("button", { type: "button", className: "show-cluster", text: `Show ${plural(size, "error")}`, "aria-label": `Show the ${plural(size, "error")} of cluster ${c + 1}` });
    button.addEventListener("click", () => {
      const same = state.cluster === c;
      update({ cluster: same ? -1 : c });
      if (!same) goTo("errors", false);
    });
    return make("li", {}, make("h4", { text: `Cluster ${c + 1}` }),
      make("div", { className: "cluster" },
        make("figure", { className: "mean" }, make("span", { className: "frame" }, image), make("figcaption", { text: "most typical" })),
        meanFigure(means[c], scale, `Cluster ${c + 1}: mean over ${plural(means[c].n, "error")}`, `mean of ${count(means[c].n)}`, "cluster-mean"),
        make("div", {}, make("ol", { className: "cluster-pairs" }, ...pairs.slice(0, CLUSTER_PAIRS).map(([key, n]) => make("li", {}, ...pairNames(key), make("span", { className: "pair-count", text: ` ${count(n)}` }))),
          ...(rest ? [make("li", { className: "note", text: `${plural(pairs.length - CLUSTER_PAIRS, "other pair")}: ${count(rest)}` })] : [])), button)));
  }));
  drawClusterButtons();
}

function drawClusterButtons() {
  document.querySelectorAll(".show-cluster").forEach((button, c) => button.setAttribute("aria-pressed", state.cluster === c));
}

const pairNames = (key) => [nameOf(Math.floor(key / core.classes.length)), make("span", { className: "as", text: " seen as " }), nameOf(key % core.classes.length)];

sections.push({ draw: drawClusters, pictures: "patterns" });
