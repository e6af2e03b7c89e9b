// The confusion matrix: the static table becomes a grid in which arrow keys move.

const matrix = document.getElementById("matrix");
let matrixActive = null;

function matrixCells() {
  const columns = [...matrix.tHead.rows[0].cells].slice(1, -1);
  const rows = [...matrix.tBodies[0].rows];
  return { columns, rows };
}

function filterOf(cell) {
  const i = cell.parentElement.cells[0].dataset.r;
  const j = matrix.tHead.rows[0].cells[cell.cellIndex]?.dataset.c;
  return { actual: i === undefined ? -1 : Number(i), predicted: j === undefined ? -1 : Number(j) };
}

function labelCell(cell) {
  const { actual, predicted } = filterOf(cell);
  const n = cell.textContent.trim() || "0";
  if (actual >= 0 && predicted >= 0) {
    const a = plain(core.classes[actual]);
    const b = plain(core.classes[predicted]);
    return actual === predicted ? `${n} ${a} recognized` : `${n} ${a} predicted as ${b}`;
  }
  if (actual >= 0) return `Actual ${plain(core.classes[actual])}: show its errors`;
  return `Predicted ${plain(core.classes[predicted])}: show its errors`;
}

function activateCell(cell, focus) {
  if (matrixActive) matrixActive.tabIndex = -1;
  matrixActive = cell;
  cell.tabIndex = 0;
  if (!cell.hasAttribute("aria-label")) cell.setAttribute("aria-label", labelCell(cell));
  if (focus) cell.focus();
}

/** A cell filters by both classes, a name by one class. Choosing it again clears the filter. */
function chooseCell(cell) {
  const wanted = filterOf(cell);
  if (wanted.actual === wanted.predicted && wanted.actual >= 0) wanted.predicted = -1; // the diagonal holds no errors
  const same = wanted.actual === state.actual && wanted.predicted === state.predicted;
  update(same ? { actual: -1, predicted: -1 } : { ...wanted });
  if (!same) goTo("errors", false);
}

function startMatrix() {
  if (!N) return;
  matrix.setAttribute("role", "grid");
  for (const row of matrix.rows) for (const cell of row.cells) {
    if (cell.classList.contains("total") || cell.classList.contains("corner")) continue;
    if (cell.tagName === "TD") cell.setAttribute("role", "gridcell");
    cell.tabIndex = -1;
  }
  activateCell(matrix.tBodies[0].rows[0].cells[1], false);
  matrix.addEventListener("click", (event) => {
    const cell = event.target.closest("td, th");
    if (!cell || cell.tabIndex !== -1 && cell !== matrixActive || cell.matches(".total, .corner")) return;
    activateCell(cell, true);
    chooseCell(cell);
  });
  matrix.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td, th");
    if (cell && cell !== matrixActive) activateCell(cell, false);
  });
  matrix.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = matrix.rows;
    const r = matrixActive.parentElement.rowIndex;
    const c = matrixActive.cellIndex;
    const last = rows[0].cells.length - 2;
    const to = { ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c],
      Home: [r, r === 0 ? 1 : 0], End: [r, last] }[event.key];
    if (event.key === "Enter" || event.key === " ") chooseCell(matrixActive);
    else if (!to) return;
    else if (rows[to[0]] && to[1] >= 0 && to[1] <= last && !(to[0] === 0 && to[1] === 0)) {
      activateCell(rows[to[0]].cells[to[1]], true);
    }
    event.preventDefault();
    event.stopPropagation();
  });
  listPairs();
}

function listPairs() {
  const k = core.classes.length;
  const pairs = [...pairCounts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const top = pairs.slice(0, 10);
  document.getElementById("pairs").replaceChildren(...top.map(([key, n]) => {
    const actual = Math.floor(key / k);
    const predicted = key % k;
    const bar = make("span", { className: "pair-bar", "aria-hidden": "true" });
    bar.style.width = `${(n / top[0][1]) * 100}%`;
    const button = make("button", { type: "button", className: "pair" },
      make("span", { className: "pair-names" }, nameOf(actual), make("span", { className: "as", text: " seen as " }), nameOf(predicted)),
      make("span", { className: "pair-count", text: count(n) }), bar);
    button.dataset.pair = key;
    button.addEventListener("click", () => {
      const same = state.actual === actual && state.predicted === predicted;
      update(same ? { actual: -1, predicted: -1 } : { actual, predicted });
      if (!same) goTo("errors", false);
    });
    return make("li", {}, button);
  }));
  const rest = pairs.slice(10).reduce((sum, [, n]) => sum + n, 0);
  document.getElementById("pairs-rest").textContent = pairs.length > 10
    ? `${plural(pairs.length - 10, "other pair")} hold the remaining ${plural(rest, "error")}.` : "";
}

function drawMatrix(keys) {
  if (!N || !(keys.has("actual") || keys.has("predicted"))) return;
  for (const old of matrix.querySelectorAll("[aria-selected=true]")) old.removeAttribute("aria-selected");
  for (const old of document.querySelectorAll("#pairs [aria-pressed=true]")) old.setAttribute("aria-pressed", "false");
  const { actual, predicted } = state;
  if (actual < 0 && predicted < 0) return;
  const { columns, rows } = matrixCells();
  const row = rows.find((r) => Number(r.cells[0].dataset.r) === actual);
  const column = columns.find((c) => Number(c.dataset.c) === predicted);
  const cell = row && column ? row.cells[column.cellIndex] : (predicted < 0 && row?.cells[0]) || (actual < 0 && column);
  if (cell) cell.setAttribute("aria-selected", "true");
  if (actual >= 0 && predicted >= 0) {
    const key = actual * core.classes.length + predicted;
    document.querySelector(`#pairs [data-pair="${key}"]`)?.setAttribute("aria-pressed", "true");
  }
}

sections.push({ start: startMatrix, draw: drawMatrix });
