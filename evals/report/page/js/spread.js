// How tokens and rewards of the listed samples are spread: bars by verdict. A click on one keeps its samples.

import { data, standing } from "./data.js";
import { h, integer, plain, s } from "./dom.js";

const BARS = 24;
const [WIDTH, HEIGHT] = [240, 56];
const KINDS = ["right", "part", "wrong", "none"];

/** Two histograms. `choose(expression)` is called with what a bar stands for. */
export function spread(rows, choose) {
  return h("div", { class: "spreads" }, histogram("tokens", rows, choose), histogram("reward", rows, choose));
}

function histogram(name, rows, choose) {
  const column = data.columns[name];
  const known = rows.filter((row) => Number.isFinite(column[row]));
  if (!known.length) return null;
  let [low, high] = [Infinity, -Infinity];
  for (const row of known) [low, high] = [Math.min(low, column[row]), Math.max(high, column[row])];
  if (low === high) return null; // nothing to tell apart
  const whole = name === "tokens"; // bars of a whole number of tokens each
  const size = whole ? Math.max(1, Math.ceil((high - low + 1) / BARS)) : (high - low || 1) / (BARS - 1);
  const count = Math.floor((high - low) / size + 1e-9) + 1;
  const bars = Array.from({ length: count }, () => ({ right: 0, part: 0, wrong: 0, none: 0, all: 0 }));
  for (const row of known) {
    const bar = bars[Math.floor((column[row] - low) / size + 1e-9)];
    bar[standing(row)]++;
    bar.all++;
  }
  const most = Math.max(...bars.map((bar) => bar.all));
  const width = WIDTH / count;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${name} of ${known.length} samples, ${plain(low)} to ${plain(high)}` });
  bars.forEach((bar, i) => {
    const [from, to] = [low + i * size, low + (i + 1) * size];
    const said = whole && size === 1 ? integer(from) : `${plain(from)} to ${plain(whole ? to - 1 : to)}`;
    let y = HEIGHT;
    const parts = KINDS.filter((kind) => bar[kind]).map((kind) => {
      const height = (bar[kind] / most) * HEIGHT;
      return s("rect", { class: kind, x: i * width, y: (y -= height), width: Math.max(1, width - 1), height });
    });
    if (bar.all) svg.append(s("g", { onclick: () => choose(`${name} >= ${+from.toPrecision(9)} and ${name} < ${+to.toPrecision(9)}`) },
      s("title", null, `${name} ${said}: ${integer(bar.all)} samples, ${integer(bar.right)} right`), s("rect", { class: "room", x: i * width, y: 0, width, height: HEIGHT }), parts));
  });
  return h("figure", null, h("figcaption", null, name), svg, h("div", { class: "ends" }, h("span", null, plain(low)), h("span", null, plain(high))));
}
