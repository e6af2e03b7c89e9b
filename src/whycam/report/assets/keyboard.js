// Single-key shortcuts. They can be switched off in the help, and do nothing while the user types in a field.

const cycle = (list, value) => list[(list.indexOf(value) + 1) % list.length];
const DISPLAY_KEYS = [
  { keys: ["h"], label: "h", text: "hide or show the overlay", act: () => update({ overlay: !state.overlay }) },
  { keys: ["s"], label: "s", text: "positive or signed values", act: () => update({ values: cycle(OPTIONS.values, state.values) }) },
  { keys: ["c"], label: "c", text: "palette", act: () => update({ palette: cycle(core.sequential, state.palette) }) },
  { keys: ["i"], label: "i", text: "native grid or interpolation", act: () => update({ grid: cycle(OPTIONS.grid, state.grid) }) },
  { keys: ["o"], label: "o", text: "opacity by value or fixed", act: () => update({ opacityMode: cycle(OPTIONS.opacityMode, state.opacityMode) }) },
];
const HELP_KEY = { keys: ["?"], label: "?", text: "this help", act: () => openHelp() };
const help = document.getElementById("help");
const openHelp = () => help.open || help.showModal();

/** Listen for `keys` ({keys, label, text, act}). A digit key calls `digit` with the number of its layer, from 0. */
function startKeyboard(keys, digit) {
  const layers = core.layers.length;
  document.getElementById("keys").append(...keys.flatMap(({ label, text }) => [
    make("dt", {}, ...label.split(" ").flatMap((key) => [make("kbd", { text: key }), " "])), make("dd", { text })]));
  document.getElementById("help-open").addEventListener("click", openHelp);
  document.getElementById("help-close").addEventListener("click", () => help.close());
  const on = document.getElementById("keys-on");
  on.checked = recall("whycam-keys") !== "off";
  on.addEventListener("change", () => remember("whycam-keys", on.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open || !on.checked) return;
    if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea")) return;
    // In these elements arrow keys have their usual effect.
    if (event.key.startsWith("Arrow") && event.target.closest("input, summary, .scroll")) return;
    const layer = Number(event.key) - 1;
    const found = keys.find((entry) => entry.keys.includes(event.key));
    if (Number.isInteger(layer) && layer >= 0 && layer < layers) digit(layer);
    else if (found) found.act();
    else return;
    event.preventDefault();
  });
}
