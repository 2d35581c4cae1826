/** A line chart: series [{name, x, y, colour, dashed}], a healthy band [low, high] or null. */
function lineChart(title, series, band) {
  const drawn = series.filter((one) => one.y.some((value) => value !== null));
  if (!drawn.length) return null;
  const [width, height, left, bottom] = [320, 150, 44, 18];
  const xs = drawn.flatMap((one) => one.x), ys = drawn.flatMap((one) => one.y.filter((value) => value !== null));
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (high - low < 1e-9) { low -= Math.abs(low) * 0.1 + 1e-3; high += Math.abs(high) * 0.1 + 1e-3; }
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const px = (x) => left + ((x - first) / (last - first || 1)) * (width - left - 6);
  const py = (y) => 6 + (1 - (y - low) / (high - low)) * (height - bottom - 10);
  const picture = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  if (band) {
    const [top, floor] = [Math.min(band[1] ?? high, high), Math.max(band[0] ?? low, low)];
    if (top > floor) picture.append(el("rect", { x: left, width: width - left - 6, y: py(top), height: py(floor) - py(top), fill: "var(--band)" }));
  }
  for (const value of [low, (low + high) / 2, high]) {
    picture.append(el("line", { x1: left, x2: width - 6, y1: py(value), y2: py(value), stroke: "var(--line)", "stroke-width": 0.7 }),
      el("text", { x: left - 4, y: py(value) + 3, "text-anchor": "end" }, show(value, high - low < 0.05 ? 4 : 2)));
  }
  for (const value of [first, last]) picture.append(el("text", { x: px(value), y: height - 4, "text-anchor": value === first ? "start" : "end" }, show(value)));
  for (const one of drawn) {
    const points = one.x.map((x, at) => [x, one.y[at]]).filter(([, y]) => y !== null);
    const path = points.map(([x, y], at) => `${at ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    picture.append(el("path", { d: path, fill: "none", stroke: one.colour, "stroke-width": 1.6, "stroke-dasharray": one.dashed ? "4 3" : null },
      el("title", {}, one.name)));
  }
  const latest = drawn[0].y.filter((value) => value !== null).at(-1);
  return el("figure", { class: "card" }, el("figcaption", {}, el("span", {}, title), el("span", { class: "soft" }, show(latest))), picture);
}

/** How a quantity is spread over the pairs in each window of steps: 5–95 %, 25–75 % and the median. */
function fanChart(title, windows, quantity) {
  const seen = windows.filter((one) => one[quantity]);
  if (seen.length < 2) return null;
  const [width, height, left, bottom] = [320, 150, 44, 18];
  const all = seen.flatMap((one) => one[quantity].q);
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (high - low < 1e-9) { low -= 1e-3; high += 1e-3; }
  const [first, last] = [seen[0].step, seen.at(-1).step];
  const px = (x) => left + ((x - first) / (last - first || 1)) * (width - left - 6);
  const py = (y) => 6 + (1 - (y - low) / (high - low)) * (height - bottom - 10);
  const area = (a, b) => seen.map((one, at) => `${at ? "L" : "M"}${px(one.step).toFixed(1)} ${py(one[quantity].q[a]).toFixed(1)}`).join("")
    + [...seen].reverse().map((one) => `L${px(one.step).toFixed(1)} ${py(one[quantity].q[b]).toFixed(1)}`).join("") + "Z";
  const middle = seen.map((one, at) => `${at ? "L" : "M"}${px(one.step).toFixed(1)} ${py(one[quantity].q[2]).toFixed(1)}`).join("");
  const picture = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
    el("path", { d: area(0, 4), fill: "var(--fan)", opacity: 0.15 }),
    el("path", { d: area(1, 3), fill: "var(--fan)", opacity: 0.3 }),
    el("path", { d: middle, fill: "none", stroke: "var(--fan)", "stroke-width": 1.6 }));
  for (const value of [low, high]) picture.append(el("text", { x: left - 4, y: py(value) + 3, "text-anchor": "end" }, show(value, 2)));
  for (const value of [first, last]) picture.append(el("text", { x: px(value), y: height - 4, "text-anchor": value === first ? "start" : "end" }, show(value)));
  return el("figure", { class: "card" }, el("figcaption", {}, el("span", {}, title), el("span", { class: "soft" }, show(seen.at(-1)[quantity].q[2]))), picture);
}

/** Points (x, y) on a canvas, with lines at 0; some of them marked. */
function scatter(title, x, y, marked, labels) {
  const canvas = el("canvas", { width: 960, height: 420, role: "img", "aria-label": title });
  const kept = x.map((value, at) => at).filter((at) => Number.isFinite(x[at]) && x[at] !== null && Number.isFinite(y[at]) && y[at] !== null);
  if (!kept.length) return null;
  const range = (values) => { let [low, high] = [Infinity, -Infinity]; for (const at of kept) { low = Math.min(low, values[at]); high = Math.max(high, values[at]); } return [low, high]; };
  const [[xl, xh], [yl, yh]] = [range(x), range(y)];
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const px = (v) => 60 + ((v - xl) / (xh - xl || 1)) * 880, py = (v) => 12 + (1 - (v - yl) / (yh - yl || 1)) * 372;
  pen.fillStyle = style.getPropertyValue("--soft"); pen.font = "20px sans-serif";
  pen.fillText(`${show(xl, 2)} … ${show(xh, 2)}  ${labels[0]}`, 60, 412);
  pen.save(); pen.translate(22, 384); pen.rotate(-Math.PI / 2); pen.fillText(`${show(yl, 2)} … ${show(yh, 2)}  ${labels[1]}`, 0, 0); pen.restore();
  pen.strokeStyle = style.getPropertyValue("--line");
  if (yl < 0 && yh > 0) { pen.beginPath(); pen.moveTo(60, py(0)); pen.lineTo(940, py(0)); pen.stroke(); }
  const [plain, strong] = [style.getPropertyValue("--accent"), style.getPropertyValue("--bad")];
  pen.globalAlpha = kept.length > 5000 ? 0.25 : 0.6;
  for (const at of kept) { pen.fillStyle = marked[at] ? strong : plain; pen.fillRect(px(x[at]) - 2, py(y[at]) - 2, 4, 4); }
  return el("figure", { class: "card" }, el("figcaption", {}, title), canvas);
}

/** How many pairs lie between each two edges; series {name: counts}, drawn over one another. */
function histogram(title, edges, series) {
  const [width, height, bottom] = [320, 150, 18], colours = ["var(--good)", "var(--bad)"];
  const [first, last] = [edges[0], edges.at(-1)], most = Math.max(1, ...Object.values(series).flat());
  const px = (x) => 6 + ((x - first) / (last - first || 1)) * (width - 12);
  const picture = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  Object.entries(series).forEach(([name, counts], at) => counts.forEach((count, bin) => {
    const tall = (count / most) * (height - bottom - 10);
    picture.append(el("rect", { x: px(edges[bin]), width: Math.max(px(edges[bin + 1]) - px(edges[bin]) - 0.5, 0.5), y: height - bottom - tall, height: tall, fill: colours[at], opacity: 0.5 },
      el("title", {}, `${say(name)}: ${show(count)}`)));
  }));
  for (const value of [first, last]) picture.append(el("text", { x: px(value), y: height - 4, "text-anchor": value === first ? "start" : "end" }, show(value)));
  const names = Object.keys(series).map((name, at) => el("span", { style: `color: ${colours[at]}` }, ` ${say(name)}`));
  return el("figure", { class: "card" }, el("figcaption", {}, el("span", {}, title), el("span", {}, ...names)), picture);
}
