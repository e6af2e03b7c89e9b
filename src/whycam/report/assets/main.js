// Start the report.

const PRINTED = 60;

function startNavigation() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-goto]");
    if (!link) return;
    // The hash holds the state.
    event.preventDefault();
    goTo(link.dataset.goto, true);
  });
}

// Sections below the gallery load their pictures when they come near the window; in a paged report these are files.
const PICTURED = Object.fromEntries(sections.filter(({ pictures }) => pictures).map(({ pictures, draw }) => [pictures, draw]));

function watchPictures() {
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      nearby.add(target.id);
      PICTURED[target.id](new Set(["pictures"]));
    }
  }, { rootMargin: "600px" });
  for (const id of Object.keys(PICTURED)) observer.observe(document.getElementById(id));
}

/** Unpack the chunks in the page one by one while the browser is idle: scrolling and printing then need not wait. */
function unpackWhenIdle(number = 0) {
  if (number >= blocks.length) return;
  const later = window.requestIdleCallback || ((act) => setTimeout(act, 50));
  later(() => {
    if (!blocks[number].src) chunkAt(number);
    unpackWhenIdle(number + 1);
  });
}

/** For paper: the first tiles of the selection, and how many these are. */
function printTiles() {
  const note = document.getElementById("print-note");
  for (const [id, draw] of Object.entries(PICTURED)) {
    nearby.add(id);
    draw(new Set(["pictures"]));
  }
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
  for (const section of sections) section.draw(keys);
}

function start() {
  state.theme = OPTIONS.theme.includes(recall("whycam-theme")) ? recall("whycam-theme") : "auto";
  for (const section of sections) section.start?.();
  startExport();
  startKeyboard(KEYS, (layer) => update({ layer }));
  startNavigation();
  Object.assign(state, readHash());
  select();
  if (placeOf[state.image] === undefined || placeOf[state.image] < 0) state.image = selection.length ? selection[0] : -1;
  listeners.push(draw);
  const everything = new Set([...Object.keys(DEFAULTS), "selection", "start"]);
  draw(everything);
  const arrived = new Set();
  whenChunkArrives = (number) => {
    if (!arrived.size) requestAnimationFrame(() => {
      const own = [...arrived].some((chunk) => chunk < core.chunks.length);
      arrived.clear();
      if (!own) return state.image >= 0 && drawNeighbors(parts.near, state.image);
      drawRows(true);
      drawDetail(new Set());
      for (const id of nearby) PICTURED[id](new Set(["pictures"]));
    });
    arrived.add(number);
  };
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== lastHash) update(readHash());
  });
  watchPictures();
  window.addEventListener("beforeprint", printTiles);
  window.addEventListener("afterprint", () => document.getElementById("print-note").replaceChildren());
  document.documentElement.dataset.ready = "";
  unpackWhenIdle();
}

// For the chunk files of a paged report, the live app and the tests.
window.whycam = {
  addChunk, core, errors, state, update, flush, mapOf, evidenceOf, palettes, entryOf, sceneOf, sceneToCanvas, sceneToSvg,
  selectionCsv, scalesOf, studyScale, tileOf, relations, clusters, clusterMean, neighborPicture,
  get selection() { return selection; },
  drawn: () => state.image < 0 || ["missing", "lost"].includes(mapOf(state.image, 0, 0, 0).state) || pictureOf(state.image) !== null,
};
start();
