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
const combinationOf = (method, layer, target) => (method * core.layers.length + layer) * TARGETS.length + target;
const layerCells = core.layers.map((layer) => layer.height * layer.width);

const neighborImages = core.neighborImages || []; // chunks of neighbors' images, after those of the errors
const blocks = [...core.chunks, ...neighborImages];
const chunkOf = new Uint32Array(N);
core.chunks.forEach((chunk, c) => chunkOf.fill(c, chunk.start, chunk.stop));
const chunks = blocks.map(() => null); // null: not requested; "asked": requested; LOST; or a decoded chunk
const KEPT_CHUNKS = 24; // of a paged report about 40 MB of maps and pictures stay in memory
const LOST = {}; // the chunk's file is missing
let clock = 0;
let whenChunkArrives = () => {};

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Four planes (all first bytes, all second ones, …) back into one array of float32. */
function fromPlanes(planes) {
  const n = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let p = 0; p < 4; p++) for (let i = 0, from = p * n; i < n; i++) bytes[i * 4 + p] = planes[from + i];
  return new Float32Array(bytes.buffer);
}

/** Restore maps from their differences from the mean of the left and upper neighbor, in place. */
function undoDifferences(cells, width, height) {
  for (let at = 0; at < cells.length; at += width * height) {
    for (let x = 1; x < width; x++) cells[at + x] += cells[at + x - 1];
    for (let y = 1; y < height; y++) {
      const row = at + y * width;
      cells[row] += cells[row - width];
      for (let x = 1; x < width; x++) cells[row + x] += (cells[row + x - 1] + cells[row + x - width]) >> 1;
    }
  }
  return cells;
}

/** The maps of a chunk of n errors at these layers, from its bytes. */
function readMaps(bytes, n, layers) {
  const take = reader(bytes);
  const combinations = core.methods.length * layers.length * TARGETS.length;
  const size = combinations * n;
  const numbers = reader(new Uint8Array(fromPlanes(take(Uint8Array, size * 4 * (1 + core.stats.length))).buffer));
  const maps = { n, step: numbers(Float32Array, size), stats: {} };
  for (const name of core.stats) maps.stats[name] = numbers(Float32Array, size);
  maps.zero = take(Uint8Array, size);
  maps.flags = take(Uint8Array, size);
  maps.cells = [];
  for (let c = 0; c < combinations; c++) {
    const { width, height } = layers[Math.floor(c / TARGETS.length) % layers.length];
    maps.cells.push(undoDifferences(take(Uint8Array, n * width * height), width, height));
  }
  return maps;
}

/** The pictures of a chunk: its number within the chunk → {bitmap, x, y, width, height}. */
async function readSheets(sheets) {
  const pictures = [];
  await Promise.all(sheets.map(async ({ webp, boxes }) => {
    const blob = new Blob([bytesOf(webp)], { type: "image/webp" });
    const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
    for (const [i, x, y, width, height] of boxes) pictures[i] = { bitmap, x, y, width, height };
  }));
  return pictures;
}

/** The maps and pictures of a chunk of n errors. */
async function unpack(content, n, layers) {
  const [maps, pictures] = await Promise.all([
    content.maps === undefined ? {} : inflate(bytesOf(content.maps)).then((bytes) => readMaps(bytes, n, layers)),
    readSheets(content.sheets),
  ]);
  return { ...maps, pictures, used: ++clock };
}

/** Unpack a chunk. Until then it stays marked as requested. */
async function decodeChunk(number, content) {
  const { start, stop } = blocks[number];
  chunks[number] = await unpack(content, stop - start, core.layers);
  forgetOldest();
  whenChunkArrives(number);
}

/** Forget the least recently used chunks of a paged report. Chunks inside the page cannot be read again and stay. */
function forgetOldest() {
  const loaded = blocks.map((block, c) => c).filter((c) => blocks[c].src && chunks[c]?.used);
  loaded.sort((a, b) => chunks[b].used - chunks[a].used);
  for (const c of loaded.slice(KEPT_CHUNKS)) chunks[c] = null;
}

/** A chunk by its number, or null until it has arrived. */
function chunkAt(number) {
  const chunk = chunks[number];
  if (chunk === "asked") return null;
  if (chunk === LOST) return chunk;
  if (chunk) {
    chunk.used = ++clock;
    return chunk;
  }
  chunks[number] = "asked";
  const { src } = blocks[number];
  if (!src) {
    const element = document.getElementById(`chunk-${number}`);
    decodeChunk(number, JSON.parse(element.textContent));
    element.remove();
    return null;
  }
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
const chunkFor = (error) => chunkAt(chunkOf[error]);

/** Called by the chunk files of a paged report. */
const addChunk = decodeChunk;

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

/** The values that a picture shows: a target's map, cut at zero unless signed, or predicted minus true of such maps. */
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
