// The forms of filters and display: they show and change the state.

const filters = document.getElementById("filters");

function startControls() {
  startDisplay();
  const options = core.classes.map((name, c) => [c, plain(clip(shown(name), 60))]);
  for (const name of ["actual", "predicted"]) {
    filters.elements[name].append(...options.map(([c, text]) => make("option", { value: c, text })));
  }
  view.elements.method.append(...core.methods.map((method, m) => make("option", { value: m, text: method.title })));
  const segment = (name, value, text) => make("label", { className: "segment" },
    make("input", { type: "radio", name, value }), make("span", {}, ...text));
  document.getElementById("layers").append(...core.layers.map((layer, l) =>
    segment("layer", l, [make("kbd", { text: String(l + 1), "aria-hidden": "true" }), ` ${layer.name}`])));
  document.getElementById("targets").append(
    segment("target", "predicted", [make("span", { className: "dot predicted", "aria-hidden": "true" }), "predicted"]),
    segment("target", "true", [make("span", { className: "dot actual", "aria-hidden": "true" }), "actual"]),
    segment("target", "difference", ["difference"]));
  filters.elements.cluster.append(...clusters.map(({ size }, c) => make("option", { value: c, text: `${c + 1} (${count(size)})` })));
  if (!clusters.length) {
    filters.elements.cluster.parentElement.hidden = true;
    filters.querySelector("[value=cluster]").remove();
  }
  filters.querySelector("[value=issue]").textContent += ` (${count(labelIssues.length)})`;
  filters.addEventListener("input", (event) => {
    const { name, value } = event.target;
    update({ [name]: typeof NO_FILTER[name] === "number" ? (value === "" ? -1 : Number(value)) : value });
  });
  view.addEventListener("input", (event) => {
    const { name, value } = event.target;
    if (DISPLAY.includes(name)) return;
    update({ [name]: name === "method" || name === "layer" ? Number(value) : value });
  });
  for (const form of [filters, view]) form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", clearFilters);
}

const clearFilters = () => update(NO_FILTER);

function drawControls(keys) {
  const { elements } = filters;
  for (const name of ["actual", "predicted", "cluster"]) elements[name].value = state[name] < 0 ? "" : state[name];
  for (const name of ["flag", "label", "sort"]) elements[name].value = state[name];
  if (elements.q.value !== state.q) elements.q.value = state.q;
  const filtered = Object.keys(NO_FILTER).some((name) => state[name] !== NO_FILTER[name]);
  document.getElementById("clear").disabled = !filtered;
  const shownCount = filtered ? `${count(selection.length)} of ${plural(N, "error")}` : plural(N, "error");
  const status = document.getElementById("count");
  if (status.textContent !== shownCount) status.textContent = shownCount;
  for (const name of ["method", "layer", "target"]) {
    if (view.elements[name]) view.elements[name].value = state[name];
  }
  drawDisplay();
  document.getElementById("export-note").textContent = `Selected: the ${plural(selection.length, "error")} in the gallery, in its order.`;
  if (keys.has("theme")) drawTheme();
}

/** Scroll to a section and, on request, put the focus there. */
function goTo(id, focus) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const element = document.getElementById(id);
  element.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  if (!focus) return;
  const target = id === "errors" ? tileOf(state.image) || document.getElementById("errors-title")
    : element.hasAttribute("tabindex") ? element : element.querySelector("[tabindex='-1']");
  target?.focus({ preventScroll: true });
}

sections.push({ start: startControls, draw: drawControls });
