const ROW = 108;
/** What both answers are called, and their classes: replies of two models are neither chosen nor rejected. */
const NAMES = DATA.answers || ["chosen", "rejected"], ANSWERS = DATA.answers ? ["first", "second"] : NAMES;
const marks = new Map();
const view = { order: [], group: "", sort: "place", down: false, words: "" };

/** Which pairs are shown, in which order. */
function select(pairs) {
  const words = view.words.toLowerCase();
  if (words && !pairs.lower) pairs.lower = pairs.pair.map((name, at) => `${name}\n${pairs.question[at]}\n${pairs.chosen[at]}\n${pairs.rejected[at]}`.toLowerCase());
  const bit = view.group === "" || view.group === "marked" ? 0 : 1 << Number(view.group);
  const order = [];
  for (let at = 0; at < pairs.pair.length; at++) {
    if (bit && !(pairs.groups[at] & bit)) continue;
    if (view.group === "marked" && !marks.has(at)) continue;
    if (words && !pairs.lower[at].includes(words)) continue;
    order.push(at);
  }
  const column = pairs[view.sort];
  if (column) order.sort((a, b) => (column[a] ?? Infinity) - (column[b] ?? Infinity) || a - b);
  if (view.down) order.reverse();
  view.order = order;
}

function tags(pairs, at) {
  return DATA.groups.map((name, bit) => (pairs.groups[at] & (1 << bit) ? el("span", { class: bit >= 4 ? "tag suspect" : "tag" }, say(name)) : null));
}

function numbersOf(pairs, at) {
  const names = ["score_margin", "last_reward_margin", "last_policy_margin", "first_w_perf", "last_w_perf"].filter((name) => pairs[name]);
  return names.map((name) => el("div", {}, `${say(name)} ${show(pairs[name][at], 2)}`));
}

function rowOf(pairs, at, top, redraw) {
  const image = (pairs.images[at] || []).map((number) => DATA.images[number]).find(Boolean);
  const box = el("input", { type: "checkbox", "aria-label": say("mark"), onclick: (event) => { event.stopPropagation(); marks.has(at) ? marks.delete(at) : marks.set(at, "drop"); redraw(); } });
  box.checked = marks.has(at);
  return el("div", { class: "row", style: `top:${top}px`, tabindex: 0, "data-at": at, onclick: () => open_pair(pairs, at, redraw),
    onkeydown: (event) => { if (event.key === "Enter") open_pair(pairs, at, redraw); } },
  box, image ? el("img", { src: image, alt: "" }) : null,
  el("div", { class: "texts" }, el("p", { class: "soft" }, pairs.pair[at]), el("p", {}, pairs.question[at]),
    el("p", { class: ANSWERS[0] }, pairs.chosen[at]), el("p", { class: ANSWERS[1] }, pairs.rejected[at])),
  el("div", { class: "numbers" }, ...numbersOf(pairs, at).slice(0, 3), ...tags(pairs, at)));
}

function open_pair(pairs, at, redraw) {
  const action = el("select", { "aria-label": say("action"), onchange: () => { action.value ? marks.set(at, action.value) : marks.delete(at); redraw(); } },
    ...["", "drop", "rejudge", "swap"].map((name) => el("option", { value: name }, say(name || "not marked"))));
  action.value = marks.get(at) || "";
  const visits = (pairs.reward_margins || [])[at] || [];
  const box = el("dialog", {},
    el("div", { class: "tools" }, el("b", {}, pairs.pair[at]), ...tags(pairs, at), action, el("button", { onclick: () => box.close() }, say("close"))),
    ...(pairs.images[at] || []).map((number) => DATA.images[number] ? el("img", { src: DATA.images[number], alt: "" }) : null),
    el("p", { class: "soft" }, (pairs.paths || [])[at] || ""),
    el("h2", {}, say("question")), el("pre", {}, pairs.question[at]),
    el("h2", { class: ANSWERS[0] }, `${say(NAMES[0])} · ${show((pairs.score_chosen || [])[at], 2)}`), el("pre", {}, pairs.chosen[at]),
    el("h2", { class: ANSWERS[1] }, `${say(NAMES[1])} · ${show((pairs.score_rejected || [])[at], 2)}`), el("pre", {}, pairs.rejected[at]),
    el("p", {}, (pairs.note || [])[at] || ""),
    visits.length > 1 ? lineChart(say("margins over visits"), [{ name: "", x: visits.map((_, visit) => visit + 1), y: visits, colour: "var(--accent)" }], [0, null]) : null,
    el("table", {}, ...["first_w_qual", "last_w_qual", "first_w_perf", "last_w_perf", "last_reward_margin", "last_policy_margin", "last_chosen_drift", "visits"]
      .filter((name) => pairs[name]).map((name) => el("tr", {}, el("th", {}, say(name)), el("td", { class: "number" }, show(pairs[name][at]))))));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
}

function save(name, text) {
  const link = el("a", { download: name, href: URL.createObjectURL(new Blob([text], { type: "application/jsonl" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The marked pairs as the file that `uni-dpo data apply` reads: one object per line. */
function marked_lines(pairs) {
  return [...marks].map(([at, action]) => JSON.stringify({ pair: pairs.pair[at], action })).join("\n") + "\n";
}

section(() => {
  const pairs = DATA.pairs;
  if (!pairs) return [];
  const list = el("div", { class: "list", tabindex: 0 }), inner = el("div", { style: "position:relative" }), count = el("span", { class: "soft", id: "count" });
  list.append(inner);
  const paint = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(view.order.length, first + Math.ceil((list.clientHeight || 600) / ROW) + 8);
    inner.style.height = `${view.order.length * ROW}px`;
    inner.replaceChildren(...view.order.slice(first, last).map((at, place) => rowOf(pairs, at, (first + place) * ROW, refresh)));
  };
  const refresh = () => { paint(); count.textContent = `${view.order.length.toLocaleString("en")} / ${pairs.pair.length.toLocaleString("en")} · ${say("marked")} ${marks.size}`; };
  const change = () => { select(pairs); list.scrollTop = 0; refresh(); };
  list.addEventListener("scroll", paint, { passive: true });
  const sizes = DATA.groups.map((_, bit) => pairs.groups.reduce((sum, bits) => sum + ((bits >> bit) & 1), 0));
  const group = el("select", { id: "group", "aria-label": say("group"), onchange: () => { view.group = group.value; change(); } },
    el("option", { value: "" }, say("all pairs")), ...DATA.groups.map((name, bit) => el("option", { value: bit }, `${say(name)} (${sizes[bit]})`)), el("option", { value: "marked" }, say("marked")));
  const sort = el("select", { id: "sort", "aria-label": say("sort"), onchange: () => { view.sort = sort.value; change(); } },
    ...["place", "score_margin", "last_reward_margin", "last_policy_margin", "first_w_perf", "last_w_perf", "last_w_qual", "last_chosen_drift", "length_gap"]
      .filter((name) => name === "place" || pairs[name]).map((name) => el("option", { value: name }, say(name))));
  const down = el("button", { id: "down", "aria-pressed": view.down, onclick: () => { view.down = !view.down; down.textContent = view.down ? "↓" : "↑"; change(); } }, view.down ? "↓" : "↑");
  const search = el("input", { id: "search", type: "search", placeholder: say("search"), "aria-label": say("search"), oninput: () => { view.words = search.value; change(); } });
  search.value = view.words; group.value = view.group; sort.value = view.sort;
  const all = el("button", { id: "mark-all", onclick: () => { for (const at of view.order) marks.set(at, marks.get(at) || "drop"); refresh(); } }, say("mark all shown"));
  const out = el("button", { id: "export", onclick: () => save("marked.jsonl", marked_lines(pairs)) }, say("export"));
  select(pairs);
  setTimeout(refresh, 0);
  const rules = DATA.rules ? el("details", {}, el("summary", {}, say("rules")), el("table", {}, ...Object.entries(DATA.rules).map(([name, rule]) => el("tr", {}, el("th", {}, say(name)), el("td", {}, rule[state.language]))))) : null;
  return [el("section", { id: "pairs" }, el("h2", {}, say("the pairs")), rules, el("div", { class: "tools" }, search, group, sort, down, all, out, count), list)];
});
