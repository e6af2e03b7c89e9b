// One error in full: the image, what the network thought, and its evidence layer by layer on a stated scale.

const detail = document.getElementById("detail");
let parts = null;

function makeEvidence(owner) {
  const layers = core.layers.map((layer, l) => {
    const [bar, signedBar] = [0, 1].map(() => make("canvas", { className: "bar-canvas", "aria-hidden": "true" }));
    const scale = make("span", { className: "scale-words" });
    const signedScale = make("span", { className: "scale-words" });
    const size = make("span", { className: "native" });
    const pick = make("button", { type: "button", className: "layer-name", title: "Show this layer in the gallery" },
      make("kbd", { text: String(l + 1), "aria-hidden": "true" }), ` ${layer.name}`);
    pick.addEventListener("click", () => update({ layer: l }));
    const figures = KINDS.map((kind) => {
      const canvas = make("canvas", { role: "img" });
      const odd = make("span", { className: "odd", hidden: true });
      const caption = make("figcaption");
      const figure = make("figure", { className: `evidence ${kind}` }, make("span", { className: "frame" }, canvas, odd), caption);
      return { kind, figure, canvas, caption, odd };
    });
    const element = make("section", { className: "layer", "aria-label": `${owner}${layer.name}` },
      make("div", { className: "layer-head" }, pick, size, make("span", { className: "legend" }, bar, scale, signedBar, signedScale)),
      make("div", { className: "triple" }, ...figures.map(({ figure }) => figure)));
    return { element, bar, scale, signedBar, signedScale, size, pick, figures };
  });
  const heads = KINDS.map((kind) => make("div", { className: `kind ${kind}` }));
  const element = make("div", { className: "layers" }, make("div", { className: "triple kinds" }, ...heads),
    ...layers.map((layer) => layer.element));
  return { element, layers, heads };
}

function startDetail() {
  const title = make("h3", { id: "detail-title" });
  const button = (text, label, act) => {
    const element = make("button", { type: "button", text, "aria-label": label });
    element.addEventListener("click", act);
    return element;
  };
  const previous = button("‹", "Previous error", () => moveBy(-1));
  const next = button("›", "Next error", () => moveBy(1));
  const pin = button("Pin", "Pin this error for comparison", () => togglePin());
  const back = button("Back to the gallery", "Back to the gallery", () => goTo("errors", true));
  back.classList.add("back");
  const facts = make("p", { className: "facts" });
  const image = make("canvas", { className: "image", role: "img" });
  const bars = make("ol", { className: "bars", "aria-label": "Class probabilities" });
  const barsNote = make("p", { className: "note" });
  const evidence = makeEvidence("");
  const pinned = makeEvidence("Pinned: ");
  const pinnedTitle = make("h3");
  const unpin = button("Unpin", "Unpin", () => update({ pin: -1 }));
  const pinnedImage = make("canvas", { className: "image small", role: "img" });
  const pinnedBlock = make("div", { className: "pinned-block", hidden: true },
    make("div", { className: "detail-head" }, pinnedImage, pinnedTitle, unpin), pinned.element);
  const numbers = make("table", { className: "plain" });
  const table = make("details", { className: "numbers" }, make("summary", { text: "Numbers of these maps" }),
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Numbers of these maps" }, numbers));
  const full = make("div", { className: "full" },
    make("div", { className: "detail-head" }, title, make("div", { className: "buttons" }, back, previous, next, pin)),
    facts,
    make("div", { className: "top" }, image, make("div", { className: "thoughts" }, bars, barsNote)),
    evidence.element, table, pinnedBlock);
  const empty = make("p", { className: "empty", text: N ? "Nothing is selected." : "There is no error to look at." });
  detail.append(full, empty);
  parts = { full, empty, title, pin, previous, next, facts, image, bars, barsNote, evidence, pinned, pinnedTitle, pinnedBlock, pinnedImage, numbers, table };
  table.addEventListener("toggle", () => drawNumbers());
}

const togglePin = () => update({ pin: state.pin === state.image ? -1 : state.image });

function drawImage(canvas, error, wanted) {
  const side = sideFor(wanted, core.image.width);
  Object.assign(canvas, { width: side, height: Math.round((side * core.image.height) / core.image.width) });
  paint(canvas, pictureOf(error), null, { overlay: false });
  canvas.setAttribute("aria-label", `The image ${plain(core.ids[error])}, ${core.image.width} by ${core.image.height} pixels, of actual class ${plain(core.classes[errors.label[error]])}.`);
}

function drawBars(error) {
  const rows = [];
  const k = core.top;
  for (let i = 0; i < k; i++) rows.push([errors.topClass[error * k + i], errors.topProbability[error * k + i]]);
  const label = errors.label[error];
  const within = rows.some(([c]) => c === label);
  if (!within) rows.push([label, errors.trueProbability[error]]);
  parts.bars.replaceChildren(...rows.map(([c, p]) => {
    const role = c === errors.predicted[error] ? "predicted" : c === label ? "actual" : "other";
    const fill = make("span", { className: "fill" });
    fill.style.width = `${p * 100}%`;
    return make("li", { className: role },
      make("span", { className: "bar-name" }, make("span", { className: `dot ${role}`, "aria-hidden": "true" }), nameOf(c),
        ...(role === "other" ? [] : [make("span", { className: "visually-hidden", text: role === "actual" ? " (actual)" : " (predicted)" })])),
      make("span", { className: "track", "aria-hidden": "true" }, fill), make("span", { className: "p", text: probability(p) }));
  }));
  const rest = core.classes.length - rows.length;
  parts.barsNote.textContent = rest > 0 ? `The ${k} most probable of ${core.classes.length} classes${within ? "" : " and the actual one"}.` : "";
}

const KIND_WORDS = { predicted: "predicted", true: "actual", difference: "difference" };

function drawEvidence(block, error, scaleOf) {
  const { method } = state;
  const signed = state.values === "signed";
  block.heads.forEach((head, i) => {
    const kind = KINDS[i];
    head.classList.toggle("chosen", state.target === kind);
    if (kind === "difference") return head.replaceChildren("Predicted − actual");
    const c = kind === "predicted" ? errors.predicted[error] : errors.label[error];
    return head.replaceChildren(make("span", { className: `dot ${KIND_WORDS[kind]}`, "aria-hidden": "true" }), make("span", { className: "for", text: "for " }), `${KIND_WORDS[kind]} `, nameOf(c));
  });
  block.layers.forEach((row, layer) => {
    const { width, height } = core.layers[layer];
    row.element.classList.toggle("chosen", layer === state.layer);
    row.pick.setAttribute("aria-pressed", layer === state.layer);
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

function drawNumbers() {
  const error = state.image;
  if (!parts.table.open || error < 0) return;
  const heads = ["Layer", "Evidence for", "Score", "Minimum", "Maximum", "Σ map", "Negative Σ", "Flags"];
  const body = make("tbody");
  core.layers.forEach((layer, l) => TARGETS.forEach((target, t) => {
    const map = mapOf(error, state.method, l, t);
    const row = make("tr", {}, make("th", { scope: "row", text: layer.name }), make("td", { text: KIND_WORDS[target] }));
    if (map.state === "ok") {
      const { score, raw_min, raw_max, raw_sum, negative_sum } = map.stats;
      for (const text of [number(score), number(raw_min), number(raw_max), number(raw_sum), number(negative_sum),
        Object.keys(core.flags).filter((name) => bit(map.flags, name)).join(", ") || "none"]) row.append(make("td", { text }));
    } else row.append(make("td", { colSpan: heads.length - 2, text: oddities(map).join("; ") }));
    body.append(row);
  }));
  parts.numbers.replaceChildren(make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", text })))), body);
}

let liveTimer = 0;
function drawDetail(keys) {
  const error = state.image;
  parts.full.hidden = error < 0;
  parts.empty.hidden = error >= 0;
  if (error < 0) {
    parts.title.textContent = "No error";
    return;
  }
  const place = placeOf[error] + 1;
  parts.title.textContent = `Error ${count(place)} of ${count(selection.length)}`;
  parts.previous.disabled = place <= 1;
  parts.next.disabled = place >= selection.length;
  parts.pin.textContent = state.pin === error ? "Unpin" : "Pin";
  parts.pin.setAttribute("aria-pressed", state.pin === error);
  parts.facts.replaceChildren(
    make("span", { className: "fact" }, make("span", { className: "dot actual", "aria-hidden": "true" }), "Actual ", nameOf(errors.label[error]), ` ${probability(errors.trueProbability[error])}`),
    make("span", { className: "fact" }, make("span", { className: "dot predicted", "aria-hidden": "true" }), "Predicted ", nameOf(errors.predicted[error]), ` ${probability(errors.confidence[error])}`),
    make("span", { className: "fact id" }, make("bdi", { text: shown(core.ids[error]), title: shown(core.ids[error]) })));
  drawImage(parts.image, error, 160);
  drawBars(error);
  const both = state.pin >= 0 && state.pin !== error ? [error, state.pin] : [error];
  const scaleOf = scalesOf(both);
  drawEvidence(parts.evidence, error, scaleOf);
  drawNumbers();
  parts.pinnedBlock.hidden = both.length < 2;
  if (both.length === 2) {
    const shares = state.scale === "map" ? "each map on its own scale" : "on the same scale as above";
    parts.pinnedTitle.replaceChildren("Pinned: actual ", nameOf(errors.label[state.pin]), ", predicted ", nameOf(errors.predicted[state.pin]),
      make("span", { className: "note", text: ` ${probability(errors.confidence[state.pin])}, ${shares}` }));
    drawImage(parts.pinnedImage, state.pin, 64);
    drawEvidence(parts.pinned, state.pin, scaleOf);
  }
  if (keys.has("image")) {
    clearTimeout(liveTimer);
    liveTimer = setTimeout(() => {
      document.getElementById("live").textContent = `Error ${place} of ${selection.length}: actual ${plain(core.classes[errors.label[error]])}, predicted ${plain(core.classes[errors.predicted[error]])}, ${probability(errors.confidence[error])}`;
    }, 300);
  }
}
