// Values → colors → canvas. A palette is a table of 256 colors.

const palettes = Object.fromEntries(Object.entries(core.palettes).map(([name, text]) => [name, bytesOf(text)]));
const BROKEN = [128, 128, 128]; // cells that are not finite; a cross marks them too

/** The palette entry of a value: 0…1 of the scale for evidence, −1…1 for signed values (128 is zero). */
function entryOf(value, scale, signed) {
  const t = scale > 0 ? value / scale : 0;
  if (signed) return Math.round((Math.max(-1, Math.min(1, t)) + 1) * 127.5);
  return Math.round(Math.max(0, Math.min(1, t)) * 255);
}

/** Bilinear interpolation of values (half-pixel centers, edges held) to another size. */
function interpolate(values, width, height, outWidth, outHeight) {
  const out = new Float32Array(outWidth * outHeight);
  for (let y = 0; y < outHeight; y++) {
    const sy = Math.max(0, Math.min(height - 1, ((y + 0.5) * height) / outHeight - 0.5));
    const y0 = Math.floor(sy);
    const y1 = Math.min(height - 1, y0 + 1);
    for (let x = 0; x < outWidth; x++) {
      const sx = Math.max(0, Math.min(width - 1, ((x + 0.5) * width) / outWidth - 0.5));
      const x0 = Math.floor(sx);
      const x1 = Math.min(width - 1, x0 + 1);
      const fx = sx - x0;
      const fy = sy - y0;
      const top = values[y0 * width + x0] * (1 - fx) + (fx && values[y0 * width + x1] * fx);
      const bottom = values[y1 * width + x0] * (1 - fx) + (fx && values[y1 * width + x1] * fx);
      out[y * outWidth + x] = top * (1 - fy) + (fy && bottom * fy);
    }
  }
  return out;
}

/** RGBA bytes of values. */
function colorsOf(values, { scale, signed, palette, opacityMode, opacity }) {
  const table = palettes[signed ? core.diverging : palette];
  const out = new Uint8ClampedArray(values.length * 4);
  for (let p = 0; p < values.length; p++) {
    const value = values[p];
    const o = p * 4;
    if (Number.isNaN(value)) {
      out.set(BROKEN, o);
      out[o + 3] = 255 * opacity;
      continue;
    }
    const entry = entryOf(value, scale, signed) * 3;
    out[o] = table[entry];
    out[o + 1] = table[entry + 1];
    out[o + 2] = table[entry + 2];
    const strength = scale > 0 ? Math.min(1, Math.abs(value) / scale) : 0;
    out[o + 3] = Math.round(255 * opacity * (opacityMode === "value" ? strength : 1));
  }
  return out;
}

const scratches = new Map();
function scratch(width, height) {
  const key = width * 65536 + height;
  let canvas = scratches.get(key);
  if (!canvas) {
    canvas = new OffscreenCanvas(width, height);
    scratches.set(key, canvas);
  }
  return canvas;
}

/** The canvas side near `wanted` that shows every pixel of a picture as the same whole number of canvas pixels. */
function sideFor(wanted, pixels) {
  return Math.max(1, Math.round(wanted / pixels)) * pixels;
}

const contexts = new WeakMap();
function contextOf(canvas) {
  if (!contexts.has(canvas)) contexts.set(canvas, canvas.getContext("2d"));
  return contexts.get(canvas);
}

/** Paint a picture and, over it, evidence; `look` holds scale, signed, palette, overlay, grid, opacity, opacityMode. */
function paint(canvas, picture, evidence, look) {
  const context = contextOf(canvas);
  const { width, height } = canvas;
  context.imageSmoothingEnabled = false;
  if (!picture) context.clearRect(0, 0, width, height);
  else {
    context.drawImage(picture.bitmap, picture.x, picture.y, picture.width, picture.height, 0, 0, width, height);
  }
  if (!look.overlay || evidence?.state !== "ok") return;
  const smooth = look.grid === "bilinear";
  const columns = smooth ? width : evidence.width;
  const rows = smooth ? height : evidence.height;
  const values = smooth
    ? interpolate(evidence.values, evidence.width, evidence.height, columns, rows)
    : evidence.values;
  const small = scratch(columns, rows);
  contextOf(small).putImageData(new ImageData(colorsOf(values, look), columns, rows), 0, 0);
  context.drawImage(small, 0, 0, width, height);
  if (!smooth) crossBroken(context, evidence, width, height);
}

function crossBroken(context, { values, width: columns, height: rows }, width, height) {
  context.strokeStyle = "#000";
  context.lineWidth = Math.max(1, width / 128);
  context.beginPath();
  for (let p = 0; p < values.length; p++) {
    if (!Number.isNaN(values[p])) continue;
    const w = width / columns;
    const h = height / rows;
    const x = (p % columns) * w;
    const y = Math.floor(p / columns) * h;
    context.moveTo(x, y);
    context.lineTo(x + w, y + h);
    context.moveTo(x + w, y);
    context.lineTo(x, y + h);
  }
  context.stroke();
}

/** The color bar of a look: zero (or minus the scale) at the left, the scale at the right. */
function paintBar(canvas, look) {
  const context = canvas.getContext("2d");
  const table = palettes[look.signed ? core.diverging : look.palette];
  const pixels = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) pixels.set([table[i * 3], table[i * 3 + 1], table[i * 3 + 2], 255], i * 4);
  canvas.width = 256;
  canvas.height = 1;
  context.putImageData(new ImageData(pixels, 256, 1), 0, 0);
}
