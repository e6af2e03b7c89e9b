// Errors whose label may be wrong.

const LABEL_ISSUES_FIRST = 24;
let allLabelIssues = false;

function drawLabelIssues(keys) {
  if (!keys.has("start") && !keys.has("pictures") && !keys.has("label-issues")) return;
  const ordered = [...labelIssues].sort(ORDERS.issue);
  const list = document.getElementById("label-issues-list");
  const cut = !allLabelIssues && ordered.length > LABEL_ISSUES_FIRST;
  document.getElementById("label-issues-count").textContent = N
    ? `${ordered.length ? plural(ordered.length, "error") : "No error"} of ${count(N)} ${ordered.length === 1 ? "is" : "are"} worth a look by this rule${cut ? `; the ${LABEL_ISSUES_FIRST} with the highest score are shown` : ""}.` : "There is no error, so there is nothing to suspect.";
  const some = cut ? ordered.slice(0, LABEL_ISSUES_FIRST) : ordered;
  replaceEntries(list, some.map((e) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    drawImage(canvas, e, 96, "", nearby.has("label-issues"));
    canvas.removeAttribute("aria-label");
    const button = make("button", { type: "button", className: "label-issue" }, make("span", { className: "frame" }, canvas),
      make("span", { className: "label-issue-words" },
        make("span", { className: "line" }, make("span", { className: "dot actual", "aria-hidden": "true" }), make("span", { className: "visually-hidden", text: "labeled " }), nameOf(errors.label[e])),
        make("span", { className: "line" }, make("span", { className: "dot predicted", "aria-hidden": "true" }), make("span", { className: "visually-hidden", text: ", predicted " }), nameOf(errors.predicted[e]), make("span", { className: "p", text: probability(errors.confidence[e]) })),
        make("span", { className: "note" }, ...(relations.votes[e] ? [`votes ${relations.votesPredicted[e]} : ${relations.votesLabel[e]}`] : []),
          make("span", { className: "p", text: `score ${relations.score[e].toFixed(2)}` }))));
    button.addEventListener("click", () => {
      update({ ...NO_FILTER, label: "issue", sort: "issue", image: e });
      flush(); // so that its tile is there to go to
      goTo("errors", true);
    });
    return make("li", {}, button);
  }));
  const more = document.getElementById("label-issues-more");
  more.hidden = ordered.length <= LABEL_ISSUES_FIRST;
  more.textContent = allLabelIssues ? `Show the first ${LABEL_ISSUES_FIRST} only` : `Show all ${count(ordered.length)}`;
}

function startLabelIssues() {
  document.getElementById("label-issues-more").addEventListener("click", () => {
    allLabelIssues = !allLabelIssues;
    drawLabelIssues(new Set(["label-issues"]));
  });
}

sections.push({ start: startLabelIssues, draw: drawLabelIssues, pictures: "label-issues" });
