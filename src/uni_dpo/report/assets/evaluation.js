section(() => {
  const found = DATA.evaluation;
  if (!found) return [];
  const interval = (pair) => (pair ? `[${show(pair[0], 1)}, ${show(pair[1], 1)}]` : "–");
  const head = ["benchmark", "model_name", "score", "interval", "rows_count", "difference", "interval", "p", "p_holm", "smallest", "unreadable"];
  const rows = found.rows.map((one) => el("tr", {}, el("td", {}, one.benchmark), el("td", {}, one.model),
    el("td", { class: "number" }, show(one.score, 1)), el("td", { class: "number" }, interval(one.interval)), el("td", { class: "number" }, show(one.count)),
    el("td", { class: "number" }, one.difference === null ? "–" : (one.difference > 0 ? "+" : "") + show(one.difference, 1)), el("td", { class: "number" }, interval(one.difference_interval)),
    el("td", { class: "number" }, show(one.p)), el("td", { class: "number" }, show(one.p_holm)), el("td", { class: "number" }, show(one.smallest, 1)), el("td", { class: "number" }, show(one.unreadable))));
  const groups = found.categories.length ? el("details", {}, el("summary", {}, say("by category")), el("table", {},
    ...found.categories.map((one) => el("tr", {}, el("td", {}, one.benchmark), el("td", {}, one.category), el("td", {}, one.model), el("td", { class: "number" }, show(one.score, 1)), el("td", { class: "number" }, show(one.count)))))) : null;
  return [el("section", { id: "evaluation" }, el("h2", {}, say("evaluation")), el("p", { class: "soft" }, say("evaluation note")),
    el("p", {}, found.judge ? `${say("judge")}: ${found.judge}` : ""),
    el("div", { class: "card scroll" }, el("table", {}, el("tr", {}, ...head.map((name) => el("th", {}, say(name)))), ...rows)), groups)];
});
