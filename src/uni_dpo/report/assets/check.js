/** What a check of a data file found: its tables, and how scores and margins are spread. */
section(() => {
  const found = DATA.check;
  if (!found) return [];
  const number = (name) => ["count", "mean"].includes(name) || name.endsWith("%");
  const line = (tag, cells, header) => el("tr", {}, ...cells.map((cell, at) => el(tag, { class: number(header[at]) ? "number" : null }, say(cell))));
  const table = ({ title, header, rows }) => el("section", {}, el("h2", {}, title === DATA.title ? say("summary") : say(title)),
    el("div", { class: "card scroll" }, el("table", {}, header.some(Boolean) ? line("th", header, header) : "", ...rows.map((row) => line("td", row, header)))));
  const charts = found.histograms.map((one) => histogram(say(one.title), one.edges, one.series));
  return [...found.tables.map(table), charts.length ? el("section", { id: "histograms" }, el("div", { class: "sheet" }, ...charts)) : null];
});
