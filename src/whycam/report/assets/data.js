// The data block: columns of all errors at once, maps and images by chunk as they are needed.

const core = JSON.parse(document.getElementById("core").textContent);
const N = core.ids.length;
const TARGETS = core.targets; // "predicted", "true"
const KINDS = [...TARGETS, "difference"];
const KIND_WORDS = core.words; // what each is called here

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Hands out typed arrays that follow each other in one buffer. */
function reader(bytes) {
  let at = 0;
  const take = (Type, n) => {
    const array = new Type(bytes.buffer, bytes.byteOffset + at, n);
    at += n * Type.BYTES_PER_ELEMENT;
    return array;
  };
  return take;
}

/** Columns of all errors, from their block of bytes. */
function readColumns(base64) {
  const take = reader(bytesOf(base64));
  const k = core.top;
  return {
    confidence: take(Float32Array, N), margin: take(Float32Array, N), loss: take(Float32Array, N),
    topProbability: take(Float32Array, N * k), trueProbability: take(Float32Array, N),
    index: take(Int32Array, N),
    label: take(Uint16Array, N), predicted: take(Uint16Array, N), topClass: take(Uint16Array, N * k),
  };
}
const errors = readColumns(core.columns);
const errorById = new Map(core.ids.map((id, i) => [id, i]));

// Methods × layers × targets, in the order in which chunks hold them.
const combinationCount = core.methods.length * core.layers.length * TARGETS.length;
const combinationOf = (method, layer, target) => (method * core.layers.length + layer) * TARGETS.length + target;
const layerCells = core.layers.map((layer) => layer.height * layer.width);

const chunkOf = new Uint32Array(N);
core.chunks.forEach((chunk, c) => chunkOf.fill(c, chunk.start, chunk.stop));
const chunks = core.chunks.map(() => null); // null: not asked for; "asked"; LOST; or what decodeChunk made
const KEPT_CHUNKS = 24; // paged folders: about 40 MB of maps and pictures stay in memory
const LOST = {}; // its file is not there
let clock = 0;
let whenChunkArrives = () => {};

function decodeChunk(number, content) {
  const n = core.chunks[number].stop - core.chunks[number].start;
  const take = reader(bytesOf(content.maps));
  const size = combinationCount * n;
  const chunk = { n, step: take(Float32Array, size), stats: {}, pictures: new Array(n), used: ++clock };
  for (const name of core.stats) chunk.stats[name] = take(Float32Array, size);
  chunk.zero = take(Uint8Array, size);
  chunk.flags = take(Uint8Array, size);
  chunk.cells = [];
  for (let c = 0; c < combinationCount; c++) {
    chunk.cells.push(take(Uint8Array, n * layerCells[Math.floor(c / TARGETS.length) % core.layers.length]));
  }
  chunks[number] = chunk;
  for (const sheet of content.sheets) {
    const blob = new Blob([bytesOf(sheet.webp)], { type: "image/webp" });
    createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).then((bitmap) => {
      for (const [i, x, y, width, height] of sheet.boxes) chunk.pictures[i] = { bitmap, x, y, width, height };
      whenChunkArrives(number);
    });
  }
}

/** The chunk of an error, or null until it has arrived. */
function chunkFor(error) {
  const number = chunkOf[error];
  const chunk = chunks[number];
  if (chunk === "asked") return null;
  if (chunk === LOST) return chunk;
  if (chunk) {
    chunk.used = ++clock;
    return chunk;
  }
  const { src } = core.chunks[number];
  if (!src) {
    const element = document.getElementById(`chunk-${number}`);
    decodeChunk(number, JSON.parse(element.textContent));
    element.remove();
    return chunks[number];
  }
  chunks[number] = "asked";
  const script = document.createElement("script");
  script.src = src;
  script.onerror = () => {
    chunks[number] = LOST;
    whenChunkArrives(number);
  };
  script.onload = () => script.remove();
  document.head.append(script);
  return null;
}

/** Called by the chunk files of a paged report. */
function addChunk(number, content) {
  decodeChunk(number, content);
  const old = chunks.map((chunk, c) => ({ chunk, c })).filter(({ chunk }) => chunk && chunk.used);
  old.sort((a, b) => b.chunk.used - a.chunk.used);
  for (const { c } of old.slice(KEPT_CHUNKS)) chunks[c] = null;
  whenChunkArrives(number);
}

/** Where an error's picture lies: {bitmap, x, y, width, height}, or null. */
function pictureOf(error) {
  const chunk = chunkFor(error);
  return (chunk && chunk.pictures?.[error - core.chunks[chunkOf[error]].start]) || null;
}

const bit = (flags, name) => (flags & core.flags[name]) !== 0;

/**
 * One map as values: {state, values, width, height, flags, stats}.
 * state is "ok", "missing" (the study has none), "waiting" (its chunk is on its way) or "lost" (its chunk is gone).
 */
function mapOf(error, method, layer, target) {
  const { width, height } = core.layers[layer];
  const chunk = chunkFor(error);
  if (!chunk?.cells) return { state: chunk ? "lost" : "waiting", width, height };
  const c = combinationOf(method, layer, target);
  const i = c * chunk.n + error - core.chunks[chunkOf[error]].start;
  const flags = chunk.flags[i];
  if (flags & core.missing) return { state: "missing", width, height };
  const start = (i - c * chunk.n) * width * height;
  const cells = chunk.cells[c].subarray(start, start + width * height);
  const values = new Float32Array(cells.length);
  const step = chunk.step[i];
  const zero = chunk.zero[i];
  for (let p = 0; p < cells.length; p++) values[p] = cells[p] === core.nonFinite ? NaN : (cells[p] - zero) * step;
  const stats = {};
  for (const name of core.stats) stats[name] = chunk.stats[name][i];
  return { state: "ok", values, cells, width, height, flags, stats };
}

/** What a picture shows: a target's map, cut at zero unless signed, or predicted minus true of exactly that. */
function evidenceOf(error, method, layer, kind, signed) {
  if (kind !== "difference") {
    const map = mapOf(error, method, layer, TARGETS.indexOf(kind));
    if (map.state !== "ok" || signed) return map;
    return { ...map, values: map.values.map((v) => (v < 0 ? 0 : v)) };
  }
  const [a, b] = TARGETS.map((target) => evidenceOf(error, method, layer, target, signed));
  if (a.state !== "ok") return a;
  if (b.state !== "ok") return b;
  return { ...a, values: a.values.map((v, p) => v - b.values[p]), stats: null, flags: a.flags | b.flags };
}
