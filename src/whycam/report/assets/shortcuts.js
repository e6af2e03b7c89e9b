// The report's shortcuts.

const KEYS = [
  { keys: ["j", "ArrowRight"], label: "j →", text: "next error", act: () => moveBy(1) },
  { keys: ["k", "ArrowLeft"], label: "k ←", text: "previous error", act: () => moveBy(-1) },
  { keys: [], label: "↑ ↓ Home End", text: "in the gallery: rows, first, last" },
  { keys: [], label: `1–${core.layers.length}`, text: "layer" },
  { keys: ["t"], label: "t", text: "evidence for: predicted, actual, difference", act: () => update({ target: cycle(KINDS, state.target) }) },
  { keys: ["m"], label: "m", text: "method", act: () => update({ method: (state.method + 1) % core.methods.length }) },
  ...DISPLAY_KEYS,
  { keys: ["p"], label: "p", text: "pin for comparison, or unpin", act: () => state.image >= 0 && togglePin() },
  { keys: ["/"], label: "/", text: "find", act: () => filters.elements.q.focus() },
  { keys: ["x"], label: "x", text: "clear the filters", act: () => clearFilters() },
  HELP_KEY,
];
