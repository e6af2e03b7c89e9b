// Relations between images: nearest neighbors, label issues, clusters. The live page has none.

const relations = core.relations && (() => {
  const { ids, shown, bytes } = core.relations;
  const take = reader(bytesOf(bytes));
  const slots = 2 * shown; // per error: of its actual class, then of its predicted class, nearest first
  return {
    ...core.relations, slots,
    score: take(Float32Array, N), closeness: take(Float32Array, N), similarity: take(Float32Array, N * slots),
    confidence: take(Float32Array, ids.length), links: take(Int32Array, N * slots), cluster: take(Int16Array, N),
    labelIssue: take(Uint8Array, N), votes: take(Uint8Array, N), votesPredicted: take(Uint8Array, N), votesLabel: take(Uint8Array, N),
  };
})();

const neighborChunk = new Uint32Array(relations ? relations.ids.length : 0);
neighborImages.forEach((chunk, c) => neighborChunk.fill(core.chunks.length + c, chunk.start, chunk.stop));

/** The picture of a neighbor: {bitmap, x, y, width, height}; null while it loads; undefined where the page has none. */
function neighborPicture(neighbor) {
  if (neighbor >= relations.starts[relations.pictured]) return undefined;
  const chunk = chunkAt(neighborChunk[neighbor]);
  if (!chunk) return null;
  return chunk.pictures?.[neighbor - blocks[neighborChunk[neighbor]].start];
}

const nearby = new Set(); // sections that have come near the window and may load pictures

const labelIssues = relations ? [...errors.label.keys()].filter((e) => relations.labelIssue[e]) : [];

/** For each cluster its size, its medoid (the error nearest to its center) and its pairs of classes, most common first. */
const clusters = Array.from({ length: relations ? relations.clusters : 0 }, () => ({ size: 0, medoid: -1, pairs: new Map() }));
for (let e = 0; e < N && clusters.length; e++) {
  const cluster = clusters[relations.cluster[e]];
  if (!cluster) continue;
  const pair = errors.label[e] * core.classes.length + errors.predicted[e];
  cluster.size += 1;
  cluster.pairs.set(pair, (cluster.pairs.get(pair) || 0) + 1);
  if (cluster.medoid < 0 || relations.closeness[e] > relations.closeness[cluster.medoid]) cluster.medoid = e;
}
for (const cluster of clusters) cluster.pairs = [...cluster.pairs].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
