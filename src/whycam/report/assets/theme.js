// Display settings and theme, which every page of this front end offers.

const view = document.getElementById("view");
const DISPLAY = ["values", "palette", "grid", "opacityMode", "opacity", "scale", "overlay"];

function startDisplay() {
  view.elements.palette.append(...core.sequential.map((name) => make("option", { value: name, text: name })));
  view.addEventListener("input", (event) => {
    const { name, value, checked } = event.target;
    if (!DISPLAY.includes(name)) return;
    update({ [name]: name === "overlay" ? checked : name === "opacity" ? value / 100 : value });
  });
  document.getElementById("theme").addEventListener("click", () => {
    const themes = OPTIONS.theme;
    update({ theme: themes[(themes.indexOf(state.theme) + 1) % themes.length] });
  });
  for (const menu of document.querySelectorAll("details.menu")) {
    document.addEventListener("pointerdown", (event) => {
      if (menu.open && !menu.contains(event.target)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      menu.querySelector("summary").focus();
      event.stopPropagation();
    });
  }
}

function drawDisplay() {
  const { elements } = view;
  for (const name of ["values", "palette", "grid", "opacityMode", "scale"]) elements[name].value = state[name];
  elements.overlay.checked = state.overlay;
  elements.opacity.value = Math.round(state.opacity * 100);
  elements.opacityText.value = percent(state.opacity, 0);
  elements.palette.disabled = state.values === "signed";
}

function drawTheme() {
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  document.getElementById("theme").textContent = `Theme: ${state.theme}`;
  remember("whycam-theme", state.theme);
}

/** Sandboxed frames refuse storage; then nothing is remembered. */
function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch { /* refused */ }
}
function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}
