const COLOURS = ["var(--accent)", "#d1661a", "#1b9e77", "#a23cb3", "#777777", "#b3261e"];
/** Metric of the log → healthy band, as the verdicts have it. */
const CURVES = {
  "loss": null, "rewards/accuracies": [0.65, 1], "rewards/margins": [0, null], "logps/chosen": null, "logps/rejected": null,
  "uni_dpo/w_qual": [0.52, 0.98], "uni_dpo/w_perf": [0.02, 0.95], "uni_dpo/nll_active": null, "grad_norm": null, "learning_rate": null,
  "pairs_per_second": null, "tokens_per_second": null, "memory_gib": null,
};

section(() => (DATA.runs || []).map((run) => el("section", { class: "verdicts-of-run" },
  el("h2", {}, say("verdicts"), DATA.runs.length > 1 ? `: ${run.name}` : ""),
  run.verdicts.length
    ? el("ul", { class: "verdicts" }, ...run.verdicts.map((one) => el("li", { class: one.state },
      el("b", { class: "state" }, `${say(one.state)} · ${one.metric[state.language]}`), one[state.language])))
    : el("p", { class: "soft" }, say("too early")))));

section(() => (DATA.runs || []).map((run) => {
  const table = (rows) => el("table", {}, ...rows.map(([name, value]) => el("tr", {}, el("th", {}, name),
    el("td", {}, Array.isArray(value) ? value.join(", ") : show(value)))));
  const what = [[say("model"), run.record.model], [say("training data"), (run.record.datasets || {}).train], [say("evaluation data"), (run.record.datasets || {}).eval],
    [say("pairs"), run.record.pairs], [say("fingerprint"), run.record.fingerprint], [say("device"), run.record.device]].filter(([, value]) => value !== undefined);
  return el("section", {}, el("h2", {}, say("what was trained"), DATA.runs.length > 1 ? `: ${run.name}` : ""),
    el("div", { class: "facts" },
      el("div", { class: "card scroll" }, table(what)),
      el("div", { class: "card scroll" }, el("b", {}, say("changed settings")), table(Object.entries(run.record.changed || {}))),
      el("div", { class: "card scroll" }, el("b", {}, say("versions")), table(Object.entries(run.record.versions || {})))));
}));

section(() => {
  if (!(DATA.runs || []).length) return [];
  const charts = Object.entries(CURVES).map(([metric, band]) => {
    const series = DATA.runs.flatMap((run, at) => [metric, `eval_${metric}`].map((name, held) => ({
      name: held ? `${run.name}, ${say("held out")}` : run.name, x: (run.log[name] || [[]])[0], y: (run.log[name] || [[], []])[1],
      colour: COLOURS[at % COLOURS.length], dashed: held === 1 })));
    return lineChart(say(metric), series, band);
  });
  const drift = DATA.runs.map((run, at) => ({ name: run.name, colour: COLOURS[at % COLOURS.length],
    x: run.windows.filter((one) => one.chosen_drift).map((one) => one.step), y: run.windows.filter((one) => one.chosen_drift).map((one) => one.chosen_drift.mean) }));
  charts.splice(5, 0, lineChart(say("chosen_drift"), drift, [-0.1, null]));
  const legend = DATA.runs.length > 1 ? el("p", {}, ...DATA.runs.map((run, at) => el("span", { style: `color:${COLOURS[at % COLOURS.length]};margin-right:1rem` }, `━ ${run.name}`))) : null;
  return [el("section", { id: "curves" }, el("h2", {}, say("curves")), el("p", { class: "soft" }, say("bands")), legend, el("div", { class: "sheet" }, ...charts))];
});

section(() => (DATA.runs || []).map((run) => el("section", {}, el("h2", {}, say("distributions"), DATA.runs.length > 1 ? `: ${run.name}` : ""),
  el("p", { class: "soft" }, say("fans")),
  el("div", { class: "sheet" }, ...["w_qual", "w_perf", "reward_margin", "policy_margin", "chosen_drift", "rejected_drift"].map((name) => fanChart(say(name), run.windows, name))))));

section(() => {
  const pairs = DATA.pairs;
  if (!pairs || !pairs.last_reward_margin) return [];
  const suspect = pairs.groups.map((bits) => Boolean(bits & (1 << 4)));
  return [el("section", {}, el("h2", {}, say("scores and margins")), scatter(say("scatter"), pairs.score_margin, pairs.last_reward_margin, suspect, [say("score_margin"), say("reward_margin")]))];
});

