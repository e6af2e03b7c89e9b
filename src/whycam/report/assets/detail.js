// One error in detail: the image, the probabilities, and the evidence at each layer on a stated scale.

const detail = document.getElementById("detail");
let parts = null;

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
  const pick = { title: "Show this layer in the gallery", act: (layer) => update({ layer }),
    pressed: (layer) => layer === state.layer, place: (layer) => layer };
  const evidence = makeEvidence("", pick);
  const pinned = makeEvidence("Pinned: ", pick);
  const pinnedTitle = make("h3");
  const unpin = button("Unpin", "Unpin", () => update({ pin: -1 }));
  const pinnedImage = make("canvas", { className: "image small", role: "img" });
  const pinnedBlock = make("div", { className: "pinned-block", hidden: true },
    make("div", { className: "detail-head" }, pinnedImage, pinnedTitle, unpin), pinned.element);
  const { table, numbers } = makeNumbers();
  const near = makeNeighbors();
  const full = make("div", { className: "full" },
    make("div", { className: "detail-head" }, title, make("div", { className: "buttons" }, back, previous, next, pin)),
    facts,
    make("div", { className: "top" }, image, make("div", { className: "thoughts" }, bars, barsNote)),
    evidence.element, near.element, table, pinnedBlock);
  const empty = make("p", { className: "empty", text: N ? "Nothing is selected." : "There is no error to look at." });
  detail.append(full, empty);
  parts = { full, empty, title, pin, previous, next, facts, image, bars, barsNote, evidence, pinned, pinnedTitle, pinnedBlock, pinnedImage, numbers, table, near };
}

const togglePin = () => update({ pin: state.pin === state.image ? -1 : state.image });

const ofActual = (error) => `, of actual class ${plain(core.classes[errors.label[error]])}`;

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
  drawImage(parts.image, error, 160, ofActual(error));
  drawBars(parts, error);
  const both = state.pin >= 0 && state.pin !== error ? [error, state.pin] : [error];
  const scaleOf = scalesOf(both);
  drawEvidence(parts.evidence, error, scaleOf);
  drawNeighbors(parts.near, error);
  drawNumbers(parts, error);
  parts.pinnedBlock.hidden = both.length < 2;
  if (both.length === 2) {
    const shares = state.scale === "map" ? "each map on its own scale" : "on the same scale as above";
    parts.pinnedTitle.replaceChildren("Pinned: actual ", nameOf(errors.label[state.pin]), ", predicted ", nameOf(errors.predicted[state.pin]),
      make("span", { className: "note", text: ` ${probability(errors.confidence[state.pin])}, ${shares}` }));
    drawImage(parts.pinnedImage, state.pin, 64, ofActual(state.pin));
    drawEvidence(parts.pinned, state.pin, scaleOf);
  }
  if (keys.has("image")) {
    clearTimeout(liveTimer);
    liveTimer = setTimeout(() => {
      document.getElementById("live").textContent = `Error ${place} of ${selection.length}: actual ${plain(core.classes[errors.label[error]])}, predicted ${plain(core.classes[errors.predicted[error]])}, ${probability(errors.confidence[error])}`;
    }, 300);
  }
}

sections.push({ start: startDetail, draw: drawDetail });
