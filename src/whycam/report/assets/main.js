// Put it together.

const PRINTED = 60;

function startNavigation() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-goto]");
    if (!link) return;
    // The hash belongs to the state.
    event.preventDefault();
    goTo(link.dataset.goto, true);
  });
}

/** Paper shows a plain run of tiles, and says how many of how many. */
function printTiles() {
  const note = document.getElementById("print-note");
  sizes ||= measure();
  const list = selection.slice(0, PRINTED);
  note.replaceChildren(make("p", { text: selection.length > PRINTED
    ? `The first ${PRINTED} of ${count(selection.length)} selected errors; filter to print others.` : `${plural(selection.length, "selected error")}.` }),
    make("div", { className: "print-tiles" }, ...list.map((error) => {
      const tile = makeTile();
      fillTile(tile, error);
      for (const name of ["role", "tabindex", "aria-selected"]) tile.removeAttribute(name);
      return tile;
    })));
}

function draw(keys) {
  drawControls(keys);
  drawMatrix(keys);
  drawGallery(keys);
  drawDetail(keys);
  drawPatterns(keys);
}

function start() {
  state.theme = OPTIONS.theme.includes(recall("whycam-theme")) ? recall("whycam-theme") : "auto";
  startControls();
  startMatrix();
  startGallery();
  startDetail();
  startExport();
  startKeyboard(KEYS, (layer) => update({ layer }));
  startNavigation();
  Object.assign(state, readHash());
  select();
  if (placeOf[state.image] === undefined || placeOf[state.image] < 0) state.image = selection.length ? selection[0] : -1;
  listeners.push(draw);
  const everything = new Set([...Object.keys(DEFAULTS), "selection", "start"]);
  draw(everything);
  let redraw = 0;
  whenChunkArrives = () => {
    redraw ||= requestAnimationFrame(() => {
      redraw = 0;
      drawRows(true);
      drawDetail(new Set());
    });
  };
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== lastHash) update(readHash());
  });
  window.addEventListener("beforeprint", printTiles);
  window.addEventListener("afterprint", () => document.getElementById("print-note").replaceChildren());
  document.documentElement.dataset.ready = "";
}

// For the chunk files of a paged report, the live app and the tests.
window.whycam = {
  addChunk, core, errors, state, update, flush, mapOf, evidenceOf, palettes, entryOf, sceneOf, sceneToCanvas, sceneToSvg,
  selectionCsv, scalesOf, studyScale, tileOf,
  get selection() { return selection; },
  drawn: () => pictureOf(state.image) !== null || mapOf(state.image, 0, 0, 0).state !== "ok",
};
start();
