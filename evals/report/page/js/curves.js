// Training curves: a panel per metric, a line per run or per method with a band over its seeds.

import { chart, smooth } from "./chart.js";
import { data, once, readChunk } from "./data.js";
import { h, mean, segments, select } from "./dom.js";
import { here, linkTo, note } from "./route.js";

const DASHES = [null, "6 3", "2 3", "8 3 2 3"];
const AXES = { step: ["Step", "step"], tokens: ["Sampled tokens", "tokens"], hours: ["Hours of steps", "hours"] };

const metric = (name) => once(`metric ${name}`, async () => (name in data.metrics ? readChunk(data.metrics[name]) : {}));

export async function showCurves(into) {
  const runs = data.runs.filter((run) => run.kind === "train" && run.lastStep !== null);
  if (!runs.length) {
    into.replaceChildren(h("p", { class: "empty" }, "No training run has metrics yet. ", h("code", null, "python -m agpo.train"), " makes one."));
    return;
  }
  const { query } = here();
  const groups = groupsOf(runs);
  const state = {
    x: query.get("x") in AXES ? query.get("x") : "step",
    lines: query.get("lines") ?? (groups.some((group) => group.runs.length > 1) ? "methods" : "runs"),
    smooth: query.get("smooth") ?? "on",
    off: new Set((query.get("off") ?? "").split(",").filter(Boolean)),
    metric: query.get("metric") in data.metrics ? query.get("metric") : "grad_norm" in data.metrics ? "grad_norm" : Object.keys(data.metrics)[0],
  };
  const legend = h("div", { class: "legend", role: "group", "aria-label": "Lines shown" });
  const panels = h("div", { class: "charts" });
  const hint = h("p", { class: "foot" });
  const again = () => draw(state, runs, groups, legend, panels, hint);
  const set = (key) => (value) => {
    state[key] = value;
    again();
  };
  state.setMetric = set("metric");
  await again(); // before anything is replaced, so that an update does not flicker
  into.replaceChildren(
    h("div", { class: "bar-of-controls" },
      segments("Horizontal axis", Object.entries(AXES).map(([key, [text]]) => [key, text]), state.x, set("x")),
      segments("Lines", [["methods", "By method"], ["runs", "By run"]], state.lines, (value) => {
        state.off.clear();
        set("lines")(value);
      }),
      segments("Smoothing", [["on", "Smooth"], ["off", "As measured"]], state.smooth, set("smooth")),
    ),
    legend, panels, hint,
  );
}

/** Runs of one task (recipe and model) that differ only in the seed are one line. Unfinished ones count only if none is done. */
function groupsOf(runs) {
  const taskOf = (run) => `${run.name}\n${run.model}`;
  const tasks = [...new Set(runs.map(taskOf))];
  return [...new Set(runs.map((run) => `${taskOf(run)}\n${run.line}`))].map((key) => {
    const of = runs.filter((run) => `${taskOf(run)}\n${run.line}` === key);
    const [{ name, model, line }] = of;
    const done = of.filter((run) => run.status === "done");
    const alike = tasks.filter((task) => task.startsWith(`${name}\n`)).length > 1;
    const task = alike ? `${name} ${model.split("/").at(-1)}` : name;
    return { name: tasks.length > 1 ? `${task}: ${line}` : line, colour: data.colours[line], dash: DASHES[tasks.indexOf(taskOf(of[0])) % DASHES.length],
      runs: done.length ? done : of, open: done.length && of.length - done.length };
  });
}

/** "agpo (3 seeds, 1 unfinished not shown)" */
function groupName({ name, runs, open }) {
  const said = [runs.length > 1 ? `${runs.length} ${new Set(runs.map((run) => run.seed)).size === runs.length ? "seeds" : "runs"}` : null, open ? `${open} unfinished not shown` : null].filter(Boolean);
  return said.length ? `${name} (${said.join(", ")})` : name;
}

async function draw(state, runs, groups, legend, panels, hint) {
  const turn = (state.turn = (state.turn ?? 0) + 1);
  const entries = state.lines === "methods"
    ? groups.map((group) => ({ ...group, name: groupName(group), id: group.name, short: group.name }))
    : groups.flatMap((group) => group.runs.map((run, i) => ({ id: run.id, name: run.title, short: run.title, colour: group.colour, dash: DASHES[i % DASHES.length], runs: [run] })));
  legend.replaceChildren(...entries.map((entry) => h("button", {
    type: "button",
    "aria-pressed": String(!state.off.has(entry.id)),
    onclick: () => {
      if (!state.off.delete(entry.id)) state.off.add(entry.id);
      draw(state, runs, groups, legend, panels, hint);
    },
  }, h("i", { style: `background:${entry.colour}`, class: entry.dash ? "dashed" : null }), entry.name)));
  const shown = entries.filter((entry) => !state.off.has(entry.id));
  const axis = state.x === "step" ? null : await metric(`x/${state.x}`);
  const charts = [];
  const move = (x) => charts.forEach((one) => one.cursor(x));
  const made = [];
  for (const [name, title, about] of [...data.panels, [state.metric, null, null]]) {
    const percent = /pass@?\d*$/.test(name);
    const table = percent ? inPercent(await metric(name)) : await metric(name);
    const free = title === null;
    const one = chart({
      title: free ? "Any metric" : title,
      about: free ? "" : percent ? `%, ${about}` : about,
      extra: free ? select("Metric", Object.keys(data.metrics).filter((key) => !key.startsWith("x/")).map((key) => [key, key]), state.metric, state.setMetric) : null,
      lines: shown.map((entry) => lineOf(entry, table, axis, state.smooth === "on" && name !== "eval/pass1")),
      marks: name === "eval/pass1" ? marksOf(shown, axis) : [],
      share: percent ? 100 : Number(/reward\/mean|rate/.test(name)),
      unit: percent ? " %" : "",
      whole: free,
      zero: /^groups\//.test(name),
      xName: AXES[state.x][1],
      onCursor: move,
    });
    charts.push(one);
    made.push(one.element);
  }
  if (turn !== state.turn) return; // a newer choice is on its way
  panels.replaceChildren(...made);
  hint.textContent = [
    state.lines === "methods" ? "A line is the mean over a method's seeds, over the steps that all of them reached, in a band from the lowest to the highest." : "",
    state.smooth === "on" ? "Lines are running means over about a twentieth of the run; faint: as measured." : "",
    `Squares on held-out Pass@1 are evaluations of checkpoints by evals.run, ${state.lines === "methods" ? "the mean over seeds with the lowest and the highest" : "with their 95 % interval"}.`,
  ].filter(Boolean).join(" ");
  note(linkTo("curves", {
    x: state.x === "step" ? null : state.x,
    lines: state.lines === (groups.some((group) => group.runs.length > 1) ? "methods" : "runs") ? null : state.lines,
    smooth: state.smooth === "on" ? null : "off",
    off: [...state.off].join(","),
    metric: state.metric === "grad_norm" ? null : state.metric,
  }));
}

/** Shares as everywhere else in the page: of 100. */
const inPercent = (table) => Object.fromEntries(Object.entries(table).map(([run, [steps, values]]) => [run, [steps, values.map((x) => (x === null ? null : 100 * x))]]));

/** A line of one run, or the mean of several with a band. */
function lineOf(entry, table, axis, smoothed) {
  const of = entry.runs.filter((run) => table[run.id]).map((run) => {
    const [steps, values] = table[run.id];
    const window = smoothed ? Math.floor(steps.length / 40) * 2 + 1 : 1;
    return { run, steps, values, smooth: smooth(values, window), xs: abscissa(run, steps, axis) };
  });
  const base = { name: entry.short, colour: entry.colour, dash: entry.dash };
  if (!of.length) return { ...base, xs: [], ys: [] };
  if (of.length === 1) {
    const [{ xs, values, smooth: ys }] = of;
    return { ...base, xs, ys, faint: ys === values ? null : values };
  }
  const places = of.map(({ steps, smooth: ys }) => new Map(steps.map((step, i) => [step, ys[i]])));
  const common = of[0].steps.filter((step) => places.every((ys) => ys.get(step) !== undefined && ys.get(step) !== null));
  const columns = common.map((step) => places.map((ys) => ys.get(step)));
  const xs = of.map(({ run }) => abscissa(run, common, axis));
  return {
    ...base,
    xs: common.map((_, i) => mean(xs.map((column) => column[i]))),
    ys: columns.map(mean),
    low: columns.map((values) => Math.min(...values)),
    high: columns.map((values) => Math.max(...values)),
  };
}

/** Where the steps lie on the axis: themselves, or what the run had used by then. */
function abscissa(run, steps, axis) {
  if (!axis) return steps;
  const [at, sums] = axis[run.id] ?? [[], []];
  let i = -1;
  return steps.map((step) => {
    while (i + 1 < at.length && at[i + 1] <= step) i++;
    return i < 0 ? 0 : sums[i];
  });
}

/** Evaluations of checkpoints: each with its interval, or by method their mean with the lowest and the highest seed. */
function marksOf(entries, axis) {
  const found = new Map();
  const settings = (bench) => new Set(data.evaluations.filter((one) => one.bench === bench && data.run.get(data.parts[one.part].run).kind === "eval").map((one) => one.asked)).size;
  for (const evaluation of data.evaluations) {
    const part = data.parts[evaluation.part];
    const run = data.run.get(part.run);
    const entry = run.kind === "eval" && entries.find(({ runs }) => runs.some((other) => other.id === run.parent));
    if (!entry || evaluation.pass1 === null) continue;
    const x = abscissa(data.run.get(run.parent), [part.step], axis)[0];
    const key = `${entry.id}\n${part.bench}\n${part.step}\n${evaluation.asked}`; // made again, or with other seeds: one square
    if (!found.has(key)) found.set(key, { name: `${part.bench}, ${entry.short}${settings(part.bench) > 1 ? `, ${evaluation.asked}` : ""}`, colour: entry.colour, xs: [], of: [] });
    found.get(key).xs.push(x);
    found.get(key).of.push(evaluation);
  }
  return [...found.values()].map(({ name, colour, xs, of }) => {
    const scores = of.map((evaluation) => 100 * evaluation.pass1);
    const [low, high] = of.length > 1 ? [Math.min(...scores), Math.max(...scores)] : [100 * of[0].low, 100 * of[0].high];
    return { name, colour, x: mean(xs), y: mean(scores), low, high };
  });
}
