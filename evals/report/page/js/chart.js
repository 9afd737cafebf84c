// Line charts in SVG, with a cursor that every chart of a view shares.

import { figure, h, s } from "./dom.js";

const HEIGHT = 210;
const MARGIN = { top: 10, right: 12, bottom: 26, left: 46 };
const MOST_POINTS = 600; // of a line as it is drawn; a screen has no more columns for it

/** Tick values that people would choose, about `count` of them. */
export function ticks(low, high, count, least = 0) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, power * ([1, 2, 2.5, 5, 10].find((nice) => nice * power >= rough) ?? 10));
  const found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step) found.push(+x.toPrecision(12));
  return found;
}

/** A centred running mean over `window` values; gaps (null) stay gaps. */
export function smooth(values, window) {
  const half = Math.floor(window / 2);
  if (half < 1) return values;
  return values.map((value, i) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return near.reduce((sum, v) => sum + v, 0) / near.length;
  });
}

/**
 * A chart. `lines`: [{name, colour, dash, xs, ys, faint, low, high}], `faint` the values as measured and low and high
 * the edges of a band, all by x; `marks`: [{name, colour, x, y, low, high}] single points with an interval.
 * `share`: what a share's whole is, 1 or 100; `whole`: over the width of the view. Returns {element, cursor(x)}: cursor writes what the lines have at x; null: at their end.
 */
export function chart({ title, about, lines, marks = [], share = 0, zero = false, unit = "", whole = false, xName, onCursor, extra = null }) {
  const told = h("div", { class: "read", "aria-live": "off" });
  const hold = h("div", { class: "plot" });
  const element = h("figure", { class: whole ? "chart whole" : "chart" }, h("figcaption", null, h("strong", null, title), h("span", { class: "dim" }, about), extra), hold, told);
  const drawn = lines.filter((line) => line.ys.some((y) => y !== null));
  if (!drawn.length && !marks.length) {
    hold.append(h("p", { class: "empty" }, "Nothing logged."));
    return { element, cursor() {} };
  }
  const said = (y) => (unit && Number.isFinite(y) ? y.toFixed(1) + unit : figure(y));
  let place = null;
  const xs = [...drawn.flatMap((line) => line.xs), ...marks.map((mark) => mark.x)];
  const [firstX, lastX] = [Math.min(...limits(xs)), Math.max(...limits(xs))];
  const ys = [...drawn.flatMap((line) => [line.ys, line.low, line.high, line.faint].flatMap((column) => limits(column ?? []))),
    ...marks.flatMap((mark) => [mark.y, mark.low, mark.high])].filter((y) => Number.isFinite(y));
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (zero) low = Math.min(0, low);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [zero && low === 0 ? 0 : low - room, high + room];
  if (share) [low, high] = [Math.max(low, -0.02 * share), Math.min(high, 1.02 * share)];

  function draw() {
    const width = Math.max(220, hold.clientWidth || 480);
    const toX = (x) => MARGIN.left + ((x - firstX) / (lastX - firstX || 1)) * (width - MARGIN.left - MARGIN.right);
    const toY = (y) => HEIGHT - MARGIN.bottom - ((y - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const svg = s("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", tabindex: "0",
      "aria-label": `${title}. ${drawn.map((line) => `${line.name}: ${figure(line.ys.find((y) => y !== null))} to ${figure(line.ys.findLast((y) => y !== null))}`).join("; ")}. Arrow keys move the cursor.` });
    for (const y of ticks(low, high, 4)) {
      svg.append(s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: toY(y), y2: toY(y) }),
        s("text", { class: "tick", x: MARGIN.left - 8, y: toY(y) + 3.5, "text-anchor": "end" }, tick(y)));
    }
    svg.append(s("text", { class: "tick", x: width - 2, y: HEIGHT - 8, "text-anchor": "end" }, xName));
    const beforeName = width - 14 - 6.5 * xName.length; // about what 11 pixels take
    for (const x of ticks(firstX, lastX, width / 48, xName === "step" ? 1 : 0)) {
      if (toX(x) + 3.5 * tick(x).length < beforeName) svg.append(s("text", { class: "tick", x: toX(x), y: HEIGHT - 8, "text-anchor": "middle" }, tick(x)));
    }
    for (const line of drawn) {
      if (line.low) svg.append(s("path", { class: "band", fill: line.colour, d: bandPath(line, toX, toY) }));
    }
    for (const line of drawn) {
      if (line.faint) svg.append(s("path", { class: "faint", stroke: line.colour, d: linePath(line.xs, line.faint, toX, toY) }));
      svg.append(s("path", { class: "line", stroke: line.colour, "stroke-dasharray": line.dash ?? null, d: linePath(line.xs, line.ys, toX, toY), "data-line": line.name }));
      const single = line.ys.filter((y) => y !== null).length;
      if (single <= 12) line.ys.forEach((y, i) => y !== null && svg.append(s("circle", { class: "point", fill: line.colour, r: 3, cx: toX(line.xs[i]), cy: toY(y) })));
    }
    for (const mark of marks) {
      if (Number.isFinite(mark.low)) svg.append(s("line", { class: "whisker", stroke: mark.colour, x1: toX(mark.x), x2: toX(mark.x), y1: toY(mark.low), y2: toY(mark.high) }));
      svg.append(s("rect", { class: "mark", stroke: mark.colour, x: toX(mark.x) - 3.5, y: toY(mark.y) - 3.5, width: 7, height: 7 }));
    }
    const cursor = s("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    svg.append(cursor);
    const at = (event) => firstX + ((event.clientX - svg.getBoundingClientRect().left) * (width / svg.getBoundingClientRect().width) - MARGIN.left) / (width - MARGIN.left - MARGIN.right) * (lastX - firstX);
    svg.addEventListener("pointermove", (event) => onCursor(Math.min(lastX, Math.max(firstX, at(event)))));
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && onCursor(null));
    svg.addEventListener("keydown", (event) => {
      const steps = [...new Set(drawn.flatMap((line) => line.xs))].sort((a, b) => a - b);
      const now = place === null ? steps.length - 1 : nearest(steps, place);
      const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      onCursor(steps[Math.min(steps.length - 1, Math.max(0, to))]);
    });
    hold.replaceChildren(svg);
    moveTo = (x) => {
      cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
      if (x !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, toX(Math.min(lastX, Math.max(firstX, x))));
    };
    moveTo(place);
  }

  let moveTo = () => {};
  function cursor(x) {
    place = x;
    moveTo(x);
    const at = drawn.map((line) => (x === null ? line.ys.findLastIndex((y) => y !== null) : nearest(line.xs, x)));
    const places = drawn.flatMap((line, n) => line.xs[at[n]] ?? []);
    const [where] = places.sort((a, b) => (x === null ? b - a : Math.abs(a - x) - Math.abs(b - x)));
    const values = drawn.map((line, n) => {
      const i = at[n];
      const value = line.ys[i] ?? null;
      const away = Math.abs(where - line.xs[i]) > (lastX - firstX) / 40 ? ` at ${figureOfX(line.xs[i])}` : ""; // it ends there
      const band = line.low && line.low[i] !== null && line.low[i] !== line.high[i] ? ` (${said(line.low[i])} to ${said(line.high[i])})` : "";
      return h("span", { class: "value" }, h("i", { style: `background:${line.colour}`, class: line.dash ? "dashed" : null }), `${line.name} `, h("b", null, said(value)), h("span", { class: "dim" }, band + away));
    });
    for (const mark of marks) {
      if (x !== null && Math.abs(mark.x - x) > (lastX - firstX) / 40) continue;
      if (x === null && mark.x !== lastX) continue;
      values.push(h("span", { class: "value" }, h("i", { style: `border:2px solid ${mark.colour}` }), `${mark.name} `, h("b", null, said(mark.y)), h("span", { class: "dim" }, ` (${said(mark.low)} to ${said(mark.high)})`)));
    }
    told.replaceChildren(h("span", { class: "where" }, `${xName} ${figureOfX(where ?? x)}`), ...values);
  }
  let seen = 0;
  new ResizeObserver(() => {
    if (hold.clientWidth === seen) return;
    seen = hold.clientWidth;
    draw();
  }).observe(hold);
  cursor(null);
  return { element, cursor };
}

const tick = (x) => (Math.abs(x) >= 1e4 ? figure(x) : String(+x.toPrecision(6)));
const figureOfX = (x) => (x === null || x === undefined ? "–" : Number.isInteger(x) && x < 1e4 ? String(x) : figure(x));

/** [least, greatest] of a column without its gaps, so that no spread of arguments gets too long. */
function limits(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low > high ? [] : [low, high];
}

function nearest(sorted, x) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle;
    else high = middle;
  }
  return x - sorted[low] <= sorted[high] - x ? low : high;
}

/** Places of a long line to draw: of each stretch the lowest and the highest point. */
function thinned(ys) {
  if (ys.length <= MOST_POINTS) return ys.keys();
  const size = Math.ceil(ys.length / (MOST_POINTS / 2));
  const kept = [];
  for (let start = 0; start < ys.length; start += size) {
    let [low, high] = [start, start];
    for (let i = start; i < Math.min(start + size, ys.length); i++) {
      if (ys[i] < ys[low]) low = i;
      if (ys[i] > ys[high]) high = i;
    }
    kept.push(...new Set([Math.min(low, high), Math.max(low, high)]));
  }
  return kept;
}

function linePath(xs, ys, toX, toY) {
  let path = "";
  let pen = "M";
  for (const i of thinned(ys)) {
    if (ys[i] === null) {
      pen = "M";
      continue;
    }
    path += `${pen}${toX(xs[i]).toFixed(1)} ${toY(ys[i]).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

function bandPath(line, toX, toY) {
  const places = [...thinned(line.low)].filter((i) => line.low[i] !== null);
  const edge = (column) => (i) => `${toX(line.xs[i]).toFixed(1)} ${toY(column[i]).toFixed(1)}`;
  return places.length ? `M${places.map(edge(line.high)).join("L")}L${places.reverse().map(edge(line.low)).join("L")}Z` : "";
}
