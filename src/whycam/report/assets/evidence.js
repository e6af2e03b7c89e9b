// Evidence as pictures: a row per layer with predicted, true and difference on one stated scale; bars and numbers.

/** Rows of pictures, one per layer: predicted, true, difference. `pick` is the title of a layer's button, what it
 * does, whether it looks pressed, and the layer's number, or -1 for what stands in a layer's place and has no button. */
function makeEvidence(owner, pick) {
  const layers = core.layers.map((layer, l) => {
    const [bar, signedBar] = [0, 1].map(() => make("canvas", { className: "bar-canvas", "aria-hidden": "true" }));
    const scale = make("span", { className: "scale-words" });
    const signedScale = make("span", { className: "scale-words" });
    const size = make("span", { className: "native" });
    const place = pick.place(l);
    const button = place < 0 ? make("span", { className: "layer-name", text: layer.name })
      : make("button", { type: "button", className: "layer-name", title: pick.title },
        ...(place < 9 ? [make("kbd", { text: String(place + 1), "aria-hidden": "true" })] : []), ` ${layer.name}`);
    if (place >= 0) button.addEventListener("click", () => pick.act(place));
    const figures = KINDS.map((kind) => {
      const canvas = make("canvas", { role: "img" });
      const odd = make("span", { className: "odd", hidden: true });
      const caption = make("figcaption");
      const figure = make("figure", { className: `evidence ${kind}` }, make("span", { className: "frame" }, canvas, odd), caption);
      return { kind, figure, canvas, caption, odd };
    });
    const element = make("section", { className: "layer", "aria-label": `${owner}${layer.name}` },
      make("div", { className: "layer-head" }, button, size, make("span", { className: "legend" }, bar, scale, signedBar, signedScale)),
      make("div", { className: "triple" }, ...figures.map(({ figure }) => figure)));
    return { element, bar, scale, signedBar, signedScale, size, button, figures };
  });
  const heads = KINDS.map((kind) => make("div", { className: `kind ${kind}` }));
  const element = make("div", { className: "layers" }, make("div", { className: "triple kinds" }, ...heads),
    ...layers.map((layer) => layer.element));
  return { element, layers, heads, pick };
}

/** The collapsed table of the maps' numbers. */
function makeNumbers() {
  const numbers = make("table", { className: "plain" });
  const table = make("details", { className: "numbers" }, make("summary", { text: "Numbers of these maps" }),
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Numbers of these maps" }, numbers));
  table.addEventListener("toggle", () => drawNumbers({ table, numbers }, state.image));
  return { table, numbers };
}

/** The image as the network saw it. `ofClass` ends its text alternative; without `ask` it is not drawn yet. */
function drawImage(canvas, error, wanted, ofClass, ask = true) {
  const side = sideFor(wanted, core.image.width);
  Object.assign(canvas, { width: side, height: Math.round((side * core.image.height) / core.image.width) });
  if (ask) paint(canvas, pictureOf(error), null, { overlay: false });
  canvas.setAttribute("aria-label", `The image ${plain(core.ids[error])}, ${core.image.width} by ${core.image.height} pixels${ofClass}.`);
}

/** The most probable classes and the true one as {c, p, role}, and a note if classes are left out. */
function topClasses(error) {
  const rows = [];
  const k = core.top;
  const label = errors.label[error];
  const add = (c, p) => rows.push({ c, p, role: c === errors.predicted[error] ? "predicted" : c === label ? "actual" : "other" });
  for (let i = 0; i < k; i++) add(errors.topClass[error * k + i], errors.topProbability[error * k + i]);
  const within = rows.some(({ c }) => c === label);
  if (!within) add(label, errors.trueProbability[error]);
  const note = core.classes.length > rows.length ? `The ${k} most probable of ${core.classes.length} classes${within ? "" : ` and the ${KIND_WORDS.true} one`}.` : "";
  return { rows, note };
}

function drawBars({ bars, barsNote }, error) {
  const { rows, note } = topClasses(error);
  bars.replaceChildren(...rows.map(({ c, p, role }) => {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${p * 100}%`;
    return make("li", { className: role },
      make("span", { className: "bar-name" }, make("span", { className: `dot ${role}`, "aria-hidden": "true" }), nameOf(c),
        ...(role === "other" ? [] : [make("span", { className: "visually-hidden", text: ` (${KIND_WORDS[role === "actual" ? "true" : role]})` })])),
      make("span", { className: "track", "aria-hidden": "true" }, fill), make("span", { className: "p", text: probability(p) }));
  }));
  barsNote.textContent = note;
}

// Shape and color of the mark beside a class.
const DOTS = { predicted: "predicted", true: "actual" };

function drawEvidence(block, error, scaleOf) {
  const { method } = state;
  const signed = state.values === "signed";
  block.heads.forEach((head, i) => {
    const kind = KINDS[i];
    head.classList.toggle("chosen", state.target === kind);
    if (kind === "difference") return head.replaceChildren(`Predicted − ${KIND_WORDS.true}`);
    const c = kind === "predicted" ? errors.predicted[error] : errors.label[error];
    return head.replaceChildren(make("span", { className: `dot ${DOTS[kind]}`, "aria-hidden": "true" }), make("span", { className: "for", text: "for " }), `${KIND_WORDS[kind]} `, nameOf(c));
  });
  block.layers.forEach((row, layer) => {
    const { width, height } = core.layers[layer];
    if (block.pick.pressed) {
      row.element.classList.toggle("chosen", block.pick.pressed(layer));
      row.button.setAttribute("aria-pressed", block.pick.pressed(layer));
    }
    const smooth = state.grid === "bilinear" && state.overlay;
    row.size.textContent = smooth ? `${height} × ${width}, bilinear interpolation` : `${height} × ${width}, native`;
    const scale = scaleOf(error, layer, "predicted");
    const own = state.scale === "map";
    paintBar(row.bar, lookOf("predicted", scale));
    paintBar(row.signedBar, lookOf("difference", scale));
    row.scale.textContent = own ? "each map its own scale: not comparable" : `0 to ${number(scale)}`;
    row.signedScale.textContent = `±${number(scale)}`;
    row.bar.hidden = own || signed;
    row.scale.hidden = !own && signed;
    row.signedBar.hidden = own;
    row.signedScale.hidden = own;
    for (const { kind, canvas, caption, odd } of row.figures) {
      const evidence = evidenceOf(error, method, layer, kind, signed);
      const ownScale = scaleOf(error, layer, kind);
      const side = sideFor(192, core.image.width);
      const tall = Math.round((side * core.image.height) / core.image.width);
      if (canvas.width !== side || canvas.height !== tall) Object.assign(canvas, { width: side, height: tall });
      paint(canvas, pictureOf(error), evidence, lookOf(kind, ownScale));
      const words = state.overlay ? scaleWords(ownScale, kind) : "overlay hidden";
      canvas.setAttribute("aria-label", describe(error, method, layer, kind, evidence, words));
      const strange = kind === "difference" && evidence.state === "ok" ? [] : oddities(evidence);
      odd.hidden = !strange.length;
      odd.textContent = strange.join("; ");
      caption.replaceChildren(...captionOf(kind, evidence, ownScale));
    }
  });
}

function captionOf(kind, evidence, own) {
  if (evidence.state !== "ok") return ["–"];
  if (kind === "difference") {
    let low = 0;
    let high = 0;
    for (const v of evidence.values) { low = Math.min(low, v); high = Math.max(high, v); }
    return [`${number(low)} … ${number(high)}`];
  }
  const share = negativeShare(evidence);
  const clipped = state.scale === "study" && largest(evidence) > own;
  return [`${number(evidence.stats.raw_min)} … ${number(evidence.stats.raw_max)}`,
    make("span", { className: "negative", text: share === null ? "" : `${percent(share, 0)} negative` }),
    ...(clipped ? [make("span", { className: "negative", text: "clipped" })] : [])];
}

function drawNumbers({ table, numbers }, error) {
  if (!table.open || error < 0) return;
  const heads = ["Layer", "Evidence for", "Score", "Minimum", "Maximum", "Σ map", "Negative Σ", "Flags"];
  const body = make("tbody");
  core.layers.forEach(({ name }, l) => TARGETS.forEach((target, t) => {
    const map = mapOf(error, state.method, l, t);
    const row = make("tr", {}, make("th", { scope: "row", text: name }), make("td", { text: KIND_WORDS[target] }));
    if (map.state === "ok") {
      const { score, raw_min, raw_max, raw_sum, negative_sum } = map.stats;
      for (const text of [number(score), number(raw_min), number(raw_max), number(raw_sum), number(negative_sum),
        Object.keys(core.flags).filter((name) => bit(map.flags, name)).join(", ") || "none"]) row.append(make("td", { text }));
    } else row.append(make("td", { colSpan: heads.length - 2, text: oddities(map).join("; ") }));
    body.append(row);
  }));
  numbers.replaceChildren(make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text })))), body);
}
