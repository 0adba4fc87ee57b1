"use strict";
// Curves as inline SVG: a colour for each run, a dash for each key, a band for each reference.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const controls = document.getElementById("controls");
  const status = document.getElementById("status");
  const WIDTH = 440, HEIGHT = 230, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 34;
  const DASHES = ["", "7 4", "2 3", "10 3 2 3", "1 5", "14 5", "5 2 1 2", "3 7", "12 3 2 3 2 3"];
  const AXES = data.axes;

  function element(name, attributes = {}, parent = null, text = "") {
    const svg = ["svg", "g", "path", "line", "circle", "text", "title"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function words(value) {
    if (value === null || value === undefined) return "unknown";
    const size = Math.abs(value);
    if (size >= 1e6) return +(value / 1e6).toPrecision(3) + " M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + " k";
    return size > 0 && size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(3));
  }

  function ticks(low, high, count = 5) {
    const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
    return values;
  }

  function chosen() {
    return {
      axis: controls.elements.axis.value,
      runs: new Set([...controls.querySelectorAll("[name=run]:checked")].map((box) => +box.value)),
      bands: Boolean(controls.querySelector("[name=bands]:checked")),
    };
  }

  // The known points {x, y, error} of a key, in the order of the log.
  function points(table, key, axis) {
    const xs = table[axis] || [], ys = table[key] || [], errors = table[key + "_se"] || [];
    return xs.map((x, i) => ({ x, y: ys[i], error: errors[i] || 0 })).filter((p) => p.x != null && p.y != null);
  }

  function linesOf(chart, state) {
    const lines = [];
    data.runs.forEach((run, r) => chart.keys.forEach((key, k) => {
      const series = state.runs.has(r) ? points(run[chart.table], key, state.axis) : [];
      const many = chart.table === "train" && series.length >= 30;
      const line = { run: r, key, many, dash: DASHES[k % DASHES.length], points: series, shown: many ? smooth(series) : series };
      if (series.length) lines.push(line);
    }));
    return lines;
  }

  function bandsOf(chart, state) {
    if (!state.bands || chart.keys.length > 1) return [];
    return data.bands.flatMap((band) => {
      const table = band[chart.table], column = table[chart.keys[0]];
      if (!column) return [];
      const at = table[state.axis].map((x, i) => ({ x, y: column.mean[i], low: column.low[i], high: column.high[i] }));
      const kncolumn = at.filter((p) => p.x != null && p.y != null);
      return [{ label: band.label, run: band.run, points: chart.table === "train" ? smooth(kncolumn) : kncolumn }];
    });
  }

  // Running means of all but x, over about a fifteenth of the points.
  function smooth(series) {
    const half = Math.floor(series.length / 30);
    return series.map((p, i) => {
      const near = series.slice(Math.max(0, i - half), i + half + 1);
      const mean = (key) => near.reduce((sum, q) => sum + q[key], 0) / near.length;
      return Object.fromEntries(Object.keys(p).map((key) => [key, key === "x" ? p.x : mean(key)]));
    });
  }

  const path = (series, x, y) => series.map((p, i) => `${i ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");

  function scales(lines, bands) {
    const all = lines.flatMap((line) => (line.many ? line.points.map(({ x, y }) => ({ x, y })) : []));
    for (const line of lines) all.push(...line.shown.flatMap((p) => [{ x: p.x, y: p.y - p.error }, { x: p.x, y: p.y + p.error }]));
    for (const band of bands) all.push(...band.points.flatMap((p) => [{ x: p.x, y: p.low }, { x: p.x, y: p.high }]));
    const right = Math.max(1e-9, ...all.map((p) => p.x));
    let low = Math.min(...all.map((p) => p.y)), high = Math.max(...all.map((p) => p.y));
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    low = low >= 0 && low < room * 2 ? 0 : low - room;
    high += room;
    return {
      right, low, high,
      x: (value) => LEFT + (WIDTH - LEFT - RIGHT) * value / right,
      y: (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low),
    };
  }

  function grid(svg, scale, axis) {
    for (const tick of ticks(scale.low, scale.high, 4)) {
      element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(tick), y2: scale.y(tick) }, svg);
      element("text", { x: LEFT - 6, y: scale.y(tick) + 4, "text-anchor": "end" }, svg, words(tick));
    }
    for (const tick of ticks(0, scale.right)) {
      element("text", { x: scale.x(tick), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, svg, words(tick));
    }
    element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, svg, AXES[axis]);
  }

  function drawLine(svg, line, scale, marked) {
    const group = element("g", { class: `s${line.run % 7}`, "data-run": line.run }, svg);
    const around = line.shown.map((p) => ({ x: p.x, low: p.y - p.error, high: p.y + p.error }));
    if (line.many && line.points.some((p) => p.error)) element("path", { class: "area", d: between(around, scale) }, group);
    if (line.many) element("path", { class: "line raw", d: path(line.points, scale.x, scale.y) }, group);
    element("path", { class: "line", d: path(line.shown, scale.x, scale.y), "stroke-dasharray": line.dash }, group);
    for (const p of line.points) {
      const x = scale.x(p.x), ends = { y1: scale.y(p.y - p.error), y2: scale.y(p.y + p.error) };
      if (p.error && !line.many) element("line", { class: "error", x1: x, x2: x, ...ends }, group);
      if (marked || line.points.length < 8) mark(group, x, scale.y(p.y), line.run);
    }
  }

  // A shape for each run, so that colour is not the only difference.
  function mark(group, x, y, run) {
    const shapes = ["M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z", "M-3.5 -3.5H3.5V3.5H-3.5Z", "M0 -4.5L4.5 3.5H-4.5Z", "M0 -5L5 0L0 5L-5 0Z", "M0 4.5L4.5 -3.5H-4.5Z"];
    element("path", { class: "mark", d: shapes[run % shapes.length], transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` }, group);
  }

  function between(series, scale) {
    const upper = series.map((p) => ({ x: p.x, y: p.high })), lower = series.map((p) => ({ x: p.x, y: p.low })).reverse();
    return path([...upper, ...lower], scale.x, scale.y) + "Z";
  }

  function drawBand(svg, band, scale) {
    const group = element("g", { class: band.run === null ? "band" : `s${band.run % 7}`, "data-band": band.label }, svg);
    element("path", { class: "area", d: between(band.points, scale) }, group);
    element("path", { class: "middle", d: path(band.points, scale.x, scale.y) }, group);
  }

  const name = (chart, line) => data.runs[line.run].name + (chart.keys.length > 1 ? ` ${line.key}` : "");

  function alternative(chart, lines, bands, axis) {
    const parts = lines.map((line) => {
      const first = line.points[0], last = line.points[line.points.length - 1];
      return `${name(chart, line)} from ${words(first.y)} to ${words(last.y)} at ${words(last.x)} ${AXES[axis]}`;
    });
    parts.push(...bands.map((band) => {
      const last = band.points[band.points.length - 1];
      return `reference ${band.label} ends between ${words(last.low)} and ${words(last.high)}`;
    }));
    return `${chart.title}: ${parts.join("; ") || "no run is shown"}`;
  }

  function drawKeys(figure, chart) {
    if (chart.keys.length < 2) return;
    const keys = element("p", { class: "keys" }, figure);
    chart.keys.forEach((key, k) => {
      const sample = element("svg", { viewBox: "0 0 32 10", "aria-hidden": "true" }, keys);
      element("line", { class: "line", x1: 0, x2: 32, y1: 5, y2: 5, "stroke-dasharray": DASHES[k % DASHES.length] }, sample);
      keys.append(key.replace(/^seconds_/, ""));
    });
  }

  // Shows the values nearest to a place on the axis, by pointer or arrow keys.
  function readout(svg, output, chart, lines, scale, axis) {
    const places = [...new Set(lines.flatMap((line) => line.points.map((p) => p.x)))].sort((a, b) => a - b);
    const cursor = element("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, svg);
    const nearest = (series, x) => series.reduce((best, p) => (Math.abs(p.x - x) < Math.abs(best.x - x) ? p : best));
    let at = places.length;
    const show = (index) => {
      at = Math.max(0, Math.min(places.length - 1, index));
      const x = places[at];
      for (const side of ["x1", "x2"]) cursor.setAttribute(side, scale.x(x));
      cursor.setAttribute("visibility", "visible");
      const parts = lines.map((line) => {
        const p = nearest(line.points, x);
        return `${name(chart, line)} ${words(p.y)}${p.error ? ` ± ${words(p.error)}` : ""}`;
      });
      output.textContent = `${words(x)} ${AXES[axis]}: ${parts.join(", ")}`;
    };
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1 }[event.key];
      if (move === undefined || !places.length) return;
      event.preventDefault();
      show(move);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!places.length) return;
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * scale.right;
      show(places.indexOf(nearest(places.map((place) => ({ x: place })), x).x));
    });
  }

  function numbers(figure, chart, lines, axis) {
    const details = element("details", {}, figure);
    // Filled before it opens: `toggle` comes later.
    element("summary", {}, details, "Numbers").addEventListener("click", () => {
      if (details.querySelector("table")) return;
      const holder = element("div", { tabindex: "0", role: "region", "aria-label": `Numbers of ${chart.title}` }, details);
      const table = element("table", {}, holder);
      const head = element("tr", {}, element("thead", {}, table));
      for (const title of ["line", AXES[axis], "value", "standard error"]) element("th", { scope: "col" }, head, title);
      const body = element("tbody", {}, table);
      for (const line of lines) for (const p of line.points) {
        const row = element("tr", {}, body);
        element("th", { scope: "row" }, row, name(chart, line));
        for (const value of [p.x, p.y, p.error || null]) element("td", {}, row, value === null ? "–" : String(value));
      }
    });
  }

  function draw(figure, state) {
    const chart = data.charts[+figure.dataset.chart];
    const lines = linesOf(chart, state), bands = bandsOf(chart, state);
    const title = figure.querySelector("figcaption");
    figure.replaceChildren(title);
    const about = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0" };
    const svg = element("svg", { ...about, "aria-label": alternative(chart, lines, bands, state.axis) }, figure);
    drawKeys(figure, chart);
    const output = element("output", {}, figure);
    if (!lines.length && !bands.length) return;
    const scale = scales(lines, bands);
    grid(svg, scale, state.axis);
    for (const band of bands) drawBand(svg, band, scale);
    for (const line of lines) drawLine(svg, line, scale, chart.table === "eval");
    readout(svg, output, chart, lines, scale, state.axis);
    numbers(figure, chart, lines, state.axis);
  }

  function drawAll() {
    const state = chosen();
    for (const figure of document.querySelectorAll(".chart")) draw(figure, state);
    return state;
  }

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", () => {
    const state = drawAll();
    status.textContent = `Curves of ${state.runs.size} of ${data.runs.length} runs along ${AXES[state.axis]}`;
  });
  drawAll();
})();
