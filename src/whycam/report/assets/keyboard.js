// Single keys. They can be switched off in the help, and never act while a field is being typed in.

const cycle = (list, value) => list[(list.indexOf(value) + 1) % list.length];
const KEYS = [
  { keys: ["j", "ArrowRight"], label: "j →", text: "next error", act: () => moveBy(1) },
  { keys: ["k", "ArrowLeft"], label: "k ←", text: "previous error", act: () => moveBy(-1) },
  { keys: [], label: "↑ ↓ Home End", text: "in the gallery: rows, first, last" },
  { keys: [], label: `1–${core.layers.length}`, text: "layer" },
  { keys: ["t"], label: "t", text: "evidence for: predicted, actual, difference", act: () => update({ target: cycle(KINDS, state.target) }) },
  { keys: ["m"], label: "m", text: "method", act: () => update({ method: (state.method + 1) % core.methods.length }) },
  { keys: ["h"], label: "h", text: "hide or show the overlay", act: () => update({ overlay: !state.overlay }) },
  { keys: ["s"], label: "s", text: "positive or signed values", act: () => update({ values: cycle(OPTIONS.values, state.values) }) },
  { keys: ["c"], label: "c", text: "palette", act: () => update({ palette: cycle(core.sequential, state.palette) }) },
  { keys: ["i"], label: "i", text: "native grid or interpolation", act: () => update({ grid: cycle(OPTIONS.grid, state.grid) }) },
  { keys: ["o"], label: "o", text: "opacity by value or fixed", act: () => update({ opacityMode: cycle(OPTIONS.opacityMode, state.opacityMode) }) },
  { keys: ["p"], label: "p", text: "pin for comparison, or unpin", act: () => state.image >= 0 && togglePin() },
  { keys: ["/"], label: "/", text: "find", act: () => filters.elements.q.focus() },
  { keys: ["x"], label: "x", text: "clear the filters", act: () => clearFilters() },
  { keys: ["?"], label: "?", text: "this help", act: () => openHelp() },
];
const help = document.getElementById("help");
const openHelp = () => help.open || help.showModal();

function startKeyboard() {
  document.getElementById("keys").append(...KEYS.flatMap(({ label, text }) => [
    make("dt", {}, ...label.split(" ").flatMap((key) => [make("kbd", { text: key }), " "])), make("dd", { text })]));
  document.getElementById("help-open").addEventListener("click", openHelp);
  document.getElementById("help-close").addEventListener("click", () => help.close());
  const on = document.getElementById("keys-on");
  on.checked = recall("whycam-keys") !== "off";
  on.addEventListener("change", () => remember("whycam-keys", on.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || !on.checked) return;
    if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea")) return;
    // Arrows belong to the radio buttons they move.
    if (event.key.startsWith("Arrow") && event.target.closest("input, summary, .scroll")) return;
    const layer = Number(event.key) - 1;
    const found = KEYS.find(({ keys }) => keys.includes(event.key));
    if (Number.isInteger(layer) && core.layers[layer]) update({ layer });
    else if (found) found.act();
    else return;
    event.preventDefault();
  });
}
