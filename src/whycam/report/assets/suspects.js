// Errors whose label may be the one that is wrong. Nothing is claimed: they are worth a look.

const SUSPECTS_FIRST = 24;
let allSuspects = false;

function drawSuspects(keys) {
  if (!keys.has("start") && !keys.has("pictures") && !keys.has("suspects")) return;
  const ordered = [...suspects].sort(ORDERS.suspect);
  const list = document.getElementById("suspects-list");
  const cut = !allSuspects && ordered.length > SUSPECTS_FIRST;
  document.getElementById("suspects-count").textContent = N
    ? `${ordered.length ? plural(ordered.length, "error") : "No error"} of ${count(N)} ${ordered.length === 1 ? "is" : "are"} worth a look by this rule${cut ? `; the ${SUSPECTS_FIRST} with the highest score are shown` : ""}.` : "There is no error, so there is nothing to suspect.";
  const some = cut ? ordered.slice(0, SUSPECTS_FIRST) : ordered;
  replaceEntries(list, some.map((e) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    drawImage(canvas, e, 96, "", nearby.has("suspects"));
    canvas.removeAttribute("aria-label");
    const button = make("button", { type: "button", className: "suspect" }, make("span", { className: "frame" }, canvas),
      make("span", { className: "suspect-words" },
        make("span", { className: "line" }, make("span", { className: "dot actual", "aria-hidden": "true" }), make("span", { className: "visually-hidden", text: "labeled " }), nameOf(errors.label[e])),
        make("span", { className: "line" }, make("span", { className: "dot predicted", "aria-hidden": "true" }), make("span", { className: "visually-hidden", text: ", predicted " }), nameOf(errors.predicted[e]), make("span", { className: "p", text: probability(errors.confidence[e]) })),
        make("span", { className: "note" }, ...(relations.votes[e] ? [`votes ${relations.votesPredicted[e]} : ${relations.votesLabel[e]}`] : []),
          make("span", { className: "p", text: `score ${relations.score[e].toFixed(2)}` }))));
    button.addEventListener("click", () => {
      update({ ...NO_FILTER, label: "suspect", sort: "suspect", image: e });
      flush(); // so that its tile is there to go to
      goTo("errors", true);
    });
    return make("li", {}, button);
  }));
  const more = document.getElementById("suspects-more");
  more.hidden = ordered.length <= SUSPECTS_FIRST;
  more.textContent = allSuspects ? `Show the first ${SUSPECTS_FIRST} only` : `Show all ${count(ordered.length)}`;
}

function startSuspects() {
  document.getElementById("suspects-more").addEventListener("click", () => {
    allSuspects = !allSuspects;
    drawSuspects(new Set(["suspects"]));
  });
}
