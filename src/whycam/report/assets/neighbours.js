// In the detail: the nearest images that the network got right, of both classes, and what the nearest of all are labelled.

function makeNeighbours() {
  const groups = ["true", "predicted"].map((kind) => {
    const head = make("p", { className: "near-head" });
    const row = make("ul", { className: "near-row" });
    return { kind, head, row, element: make("div", { className: "near-group" }, head, row) };
  });
  const note = make("p", { className: "note" });
  const pair = make("div", { className: "near-pair" }, ...groups.map(({ element }) => element));
  const element = make("section", { className: "near", "aria-labelledby": "near-title" },
    make("h4", { id: "near-title", text: "Nearest correct images" }), pair, note);
  return { element, groups, pair, note };
}

function neighbourFigure(error, slot, c) {
  const n = relations.links[error * relations.slots + slot];
  const similarity = relations.similarity[error * relations.slots + slot].toFixed(2);
  const sure = probability(relations.confidence[n]);
  const id = relations.ids[n];
  const words = `${plain(core.classes[c])}, recognised with ${sure}, similarity ${similarity}: ${plain(id)}`;
  const picture = albumPicture(n);
  const frame = make("span", { className: "frame" });
  if (picture === undefined) {
    frame.append(make("span", { className: "no-picture", text: "in the study" }));
    frame.title = shown(id);
  } else {
    const canvas = make("canvas", { role: "img", width: 96, height: Math.round((96 * core.image.height) / core.image.width), title: shown(id) });
    canvas.setAttribute("aria-label", words);
    if (picture) {
      const side = sideFor(96, picture.width);
      Object.assign(canvas, { width: side, height: Math.round((side * picture.height) / picture.width) });
      paint(canvas, picture, null, { overlay: false });
    }
    frame.append(canvas);
  }
  return make("li", {}, frame,
    make("span", { className: "near-line", "aria-hidden": picture === undefined ? "false" : "true" },
      make("span", { text: similarity }), make("span", { className: "p", text: sure })),
    ...(picture === undefined ? [make("span", { className: "visually-hidden", text: words })] : []));
}

function drawNeighbours({ groups, pair, note }, error) {
  if (!relations) return;
  const { why, slots, links, shown: most } = relations;
  pair.hidden = Boolean(why);
  if (why) {
    note.textContent = why;
    return;
  }
  groups.forEach(({ kind, head, row }, g) => {
    const c = kind === "true" ? errors.label[error] : errors.predicted[error];
    head.replaceChildren(make("span", { className: `dot ${DOTS[kind]}`, "aria-hidden": "true" }), `${KIND_WORDS[kind]} `, nameOf(c));
    const found = Array.from({ length: most }, (_, rank) => g * most + rank).filter((slot) => links[error * slots + slot] >= 0);
    row.replaceChildren(...found.map((slot) => neighbourFigure(error, slot, c)),
      ...(found.length ? [] : [make("li", { className: "note", text: "None of this class was recognised." })]));
  });
  note.textContent = `${votesWords(error)} Below each image: the cosine of the features before the network’s last layer, and its confidence.${
    relations.pictured < most ? ` Of each class the nearest ${relations.pictured === 1 ? "one is" : `${relations.pictured} are`} shown, to keep the page small; neighbours.parquet in the study names ${most}.` : ""}`;
}

/** What the nearest images of any class are labelled, in a sentence. */
function votesWords(error) {
  const { votes, votesPredicted, votesLabel } = relations;
  if (!votes[error]) return "";
  const [a, b] = [errors.predicted[error], errors.label[error]].map((c) => plain(shown(core.classes[c])));
  return `Of the ${plural(votes[error], "nearest image")} of any class ${votesPredicted[error]} ${votesPredicted[error] === 1 ? "is" : "are"} labelled ${a} and ${votesLabel[error]} ${b}.`;
}
