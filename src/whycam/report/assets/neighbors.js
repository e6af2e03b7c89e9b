// In the detail: the nearest correctly classified images of both classes, and the labels of the nearest of any class.

function makeNeighbors() {
  const most = relations.shown;
  const groups = ["true", "predicted"].map((kind, g) => {
    const dot = make("span", { className: `dot ${DOTS[kind]}`, "aria-hidden": "true" });
    const name = make("bdi", { className: "name" });
    const none = make("li", { className: "note", text: "None of this class was recognized." });
    const places = Array.from({ length: most }, (_, rank) => makePlace(g * most + rank));
    const element = make("div", { className: "near-group" }, make("p", { className: "near-head" }, dot, `${KIND_WORDS[kind]} `, name),
      make("ul", { className: "near-row" }, ...places.map((place) => place.element), none));
    return { kind, name, none, places, element };
  });
  const note = make("p", { className: "note" });
  const pair = make("div", { className: "near-pair" }, ...groups.map(({ element }) => element));
  const element = make("section", { className: "near", "aria-labelledby": "near-title" },
    make("h4", { id: "near-title", text: "Nearest correct images" }), pair, note);
  return { element, groups, pair, note };
}

function makePlace(slot) {
  const canvas = make("canvas", { role: "img" });
  const words = make("span", { className: "no-picture" });
  const similarity = make("span");
  const sure = make("span", { className: "p" });
  const line = make("span", { className: "near-line" }, similarity, sure);
  const element = make("li", {}, make("span", { className: "frame" }, canvas, words), line);
  return { slot, element, canvas, words, similarity, sure, line };
}

function drawPlace({ slot, element, canvas, words, similarity, sure, line }, error, c) {
  const n = relations.links[error * relations.slots + slot];
  element.hidden = n < 0;
  if (n < 0) return;
  setText(similarity, relations.similarity[error * relations.slots + slot].toFixed(2));
  setText(sure, probability(relations.confidence[n]));
  const picture = neighborPicture(n);
  const none = picture === undefined; // then the image's id is shown instead
  canvas.hidden = none;
  words.hidden = !none;
  // The picture's text alternative contains these numbers.
  line.setAttribute("aria-hidden", String(!none));
  if (none) return setText(words, shown(relations.ids[n]));
  canvas.title = shown(relations.ids[n]);
  canvas.setAttribute("aria-label", `${plain(core.classes[c])}, recognized with ${sure.textContent}, similarity ${similarity.textContent}: ${plain(relations.ids[n])}`);
  const { width, height } = picture || core.image;
  const side = sideFor(96, width);
  const tall = Math.round((side * height) / width);
  if (canvas.width !== side || canvas.height !== tall) Object.assign(canvas, { width: side, height: tall });
  paint(canvas, picture, null, { overlay: false });
}

function drawNeighbors({ groups, pair, note }, error) {
  const { why, pictured, shown: most } = relations;
  pair.hidden = Boolean(why);
  if (why) return setText(note, why);
  for (const { kind, name, none, places } of groups) {
    const c = kind === "true" ? errors.label[error] : errors.predicted[error];
    setName(name, c);
    for (const place of places) drawPlace(place, error, c);
    none.hidden = !places[0].element.hidden;
  }
  setText(note, `${votesWords(error)} Below each image: the cosine of the features before the network’s last layer, and its confidence.${
    pictured < most ? ` Of each class the nearest ${pictured === 1 ? "one is" : `${pictured} are`} pictured and the others named, to keep the page small.` : ""}`);
}

/** The labels of the nearest images of any class, in a sentence. */
function votesWords(error) {
  const { votes, votesPredicted, votesLabel } = relations;
  if (!votes[error]) return "";
  const [a, b] = [errors.predicted[error], errors.label[error]].map((c) => plain(shown(core.classes[c])));
  return `Of the ${plural(votes[error], "nearest image")} of any class ${votesPredicted[error]} ${votesPredicted[error] === 1 ? "is" : "are"} labeled ${a} and ${votesLabel[error]} ${b}.`;
}
