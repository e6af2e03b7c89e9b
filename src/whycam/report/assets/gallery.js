// The gallery: a grid that holds only its visible rows. One tile is in the tab order; arrow keys move it.

const gallery = document.getElementById("gallery");
const spacer = make("div", { className: "spacer", role: "rowgroup" });
const shownRows = new Map(); // row number → element
const spareRows = [];
let columnsNow = 0;
let sizes = null;

function measure() {
  const style = getComputedStyle(gallery);
  const tile = parseFloat(style.getPropertyValue("--tile"));
  const gap = parseFloat(style.getPropertyValue("--gap"));
  const caption = parseFloat(style.getPropertyValue("--caption"));
  const width = gallery.clientWidth - 2 * gap;
  const columns = Math.max(1, Math.floor((width + gap) / (tile + gap)));
  const side = Math.floor((width - gap * (columns - 1)) / columns);
  return { columns, side, gap, row: side + caption + gap };
}

function makeTile() {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const badge = make("span", { className: "badge", hidden: true });
  const pin = make("span", { className: "pinned", text: "pinned", hidden: true });
  const [actual, predicted] = [0, 1].map(() => make("bdi", { className: "name" }));
  const sure = make("span", { className: "p" });
  const tile = make("div", { className: "tile", role: "gridcell", tabIndex: -1 },
    make("span", { className: "frame" }, canvas, badge, pin),
    make("span", { className: "line actual" }, make("span", { className: "dot actual" }), actual),
    make("span", { className: "line predicted" }, make("span", { className: "dot predicted" }), predicted, sure));
  tile.parts = { canvas, badge, pin, actual, predicted, sure };
  return tile;
}

function fillTile(tile, error) {
  const { canvas, badge, pin, actual, predicted, sure } = tile.parts;
  tile.error = error;
  tile.hidden = error === undefined;
  if (error === undefined) return;
  const { method, layer, target } = state;
  const evidence = evidenceOf(error, method, layer, target, state.values === "signed");
  const side = sideFor(sizes.side * Math.min(2, devicePixelRatio), core.image.width);
  const tall = Math.round((side * core.image.height) / core.image.width);
  if (canvas.width !== side || canvas.height !== tall) Object.assign(canvas, { width: side, height: tall });
  const scale = state.scale === "map" ? largest(evidence) : studyScale(layer);
  paint(canvas, pictureOf(error), evidence, lookOf(target, scale));
  const a = core.classes[errors.label[error]];
  const b = core.classes[errors.predicted[error]];
  setName(actual, errors.label[error]);
  setName(predicted, errors.predicted[error]);
  setText(sure, probability(errors.confidence[error]));
  const odd = target === "difference" && evidence.state === "ok" ? [] : oddities(evidence);
  badge.hidden = !odd.length;
  badge.textContent = odd[0] || "";
  pin.hidden = state.pin !== error;
  const chosen = state.image === error;
  tile.tabIndex = chosen ? 0 : -1;
  tile.setAttribute("aria-selected", chosen);
  tile.setAttribute("aria-label", [`Actual ${plain(a)}, predicted ${plain(b)}, confidence ${probability(errors.confidence[error])}`,
    ...odd, ...(state.pin === error ? ["pinned"] : [])].join(", "));
}

function fillRow(element, row) {
  element.style.transform = `translateY(${row * sizes.row + sizes.gap}px)`;
  element.setAttribute("aria-rowindex", row + 1);
  while (element.children.length < sizes.columns) element.append(makeTile());
  while (element.children.length > sizes.columns) element.lastChild.remove();
  for (let c = 0; c < sizes.columns; c++) {
    const tile = element.children[c];
    tile.style.width = `${sizes.side}px`;
    tile.style.setProperty("--side", `${sizes.side}px`);
    tile.setAttribute("aria-colindex", c + 1);
    fillTile(tile, selection[row * sizes.columns + c]);
  }
}

/** Draw the visible rows; with `again` also those that are drawn already. */
function drawRows(again) {
  if (!sizes || !selection.length) return;
  const rows = Math.ceil(selection.length / sizes.columns);
  const first = Math.max(0, Math.floor(gallery.scrollTop / sizes.row) - 1);
  const last = Math.min(rows - 1, Math.ceil((gallery.scrollTop + gallery.clientHeight) / sizes.row));
  const wanted = new Set();
  for (let row = first; row <= last; row++) wanted.add(row);
  // The tile that has the focus, or would get it, is always kept.
  if (placeOf[state.image] >= 0) wanted.add(Math.floor(placeOf[state.image] / sizes.columns));
  for (const [row, element] of shownRows) {
    if (wanted.has(row)) continue;
    element.remove();
    spareRows.push(element);
    shownRows.delete(row);
  }
  for (const row of [...wanted].sort((a, b) => a - b)) {
    let element = shownRows.get(row);
    if (element && !again) continue;
    if (!element) {
      element = spareRows.pop() || make("div", { className: "row", role: "row" });
      shownRows.set(row, element);
      const after = [...spacer.children].find((other) => Number(other.getAttribute("aria-rowindex")) > row + 1);
      spacer.insertBefore(element, after || null);
    }
    fillRow(element, row);
  }
}

function layOut(again) {
  if (again || !sizes) sizes = measure();
  columnsNow = sizes.columns;
  const rows = Math.ceil(selection.length / sizes.columns);
  spacer.style.height = `${rows * sizes.row + sizes.gap}px`;
  gallery.setAttribute("aria-rowcount", rows);
  gallery.setAttribute("aria-colcount", sizes.columns);
}

function scrollToChosen(mode) {
  const place = placeOf[state.image];
  if (place < 0 || !sizes) return;
  const top = Math.floor(place / sizes.columns) * sizes.row;
  if (mode === "start") gallery.scrollTop = 0;
  if (top < gallery.scrollTop) gallery.scrollTop = top;
  else if (top + sizes.row + sizes.gap > gallery.scrollTop + gallery.clientHeight) {
    gallery.scrollTop = top + sizes.row + sizes.gap - gallery.clientHeight;
  }
}

const tileOf = (error) => [...spacer.querySelectorAll(".tile")].find((tile) => tile.error === error && !tile.hidden);

function drawGallery(keys) {
  const any = selection.length > 0;
  const hadFocus = gallery.contains(document.activeElement);
  gallery.hidden = !any;
  const empty = document.getElementById("gallery-empty");
  empty.hidden = any;
  empty.textContent = N ? "No error passes these filters." : "No errors: every prediction matches its label.";
  if (any) {
    gallery.setAttribute("role", "grid");
    gallery.setAttribute("aria-label", "Errors");
  }
  const resized = !sizes || keys.has("selection") || keys.has("size");
  if (any && resized) layOut(keys.has("size"));
  if (keys.has("selection")) scrollToChosen("start");
  if (keys.has("image")) scrollToChosen();
  drawRows(true);
  if (hadFocus && keys.has("image")) tileOf(state.image)?.focus({ preventScroll: true });
  const words = state.scale === "map" ? "Each thumbnail has its own scale: they are not comparable."
    : `All thumbnails share one scale, ${rangeWords(studyScale(state.layer), state.target)}; 98% of the study’s maps stay within it, the rest is clipped.`;
  const { name, height, width } = core.layers[state.layer] || {};
  document.getElementById("gallery-scale").textContent = name && any
    ? `${core.methods[state.method].title} at ${name}, ${state.grid === "bilinear" ? `bilinear interpolation of ${height} × ${width}` : `native ${height} × ${width}`} cells. ${words}` : "";
}

function startGallery() {
  gallery.append(spacer);
  gallery.addEventListener("scroll", () => drawRows(false), { passive: true });
  gallery.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    update({ image: tile.error });
    flush();
    tileOf(tile.error)?.focus({ preventScroll: true });
    if (matchMedia("(max-width: 899px)").matches) goTo("detail", false);
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(gallery.clientHeight / sizes.row)) * columnsNow;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columnsNow, ArrowDown: columnsNow, PageUp: -page,
      PageDown: page, Home: -N, End: N }[event.key];
    if (event.key === "Enter") goTo("detail", true);
    else if (by === undefined) return;
    else moveBy(by);
    event.preventDefault();
    event.stopPropagation();
  });
  new ResizeObserver(() => {
    if (!selection.length) return;
    const before = sizes;
    const now = measure();
    if (before && now.columns === before.columns && now.side === before.side) return drawRows(false);
    drawGallery(new Set(["size", "image"]));
  }).observe(gallery);
}

/** Move the choice by so many places, at most to the first or last error. */
function moveBy(by) {
  if (!selection.length) return;
  const place = Math.max(0, Math.min(selection.length - 1, placeOf[state.image] + by));
  update({ image: selection[place] });
}

sections.push({ start: startGallery, draw: drawGallery });
