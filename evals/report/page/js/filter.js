// Which rows a filter lets through, and in which order.

import { data, isCut, once, outcomeOf, standing } from "./data.js";
import { noteOf } from "./notes.js";
import { where } from "./where.js";

export const SORTS = {
  newest: "Newest first, evaluations before training",
  latest: "Latest step first",
  stored: "Run, step, problem",
  short: "Shortest first",
  long: "Longest first",
  low: "Lowest reward first",
  high: "Highest reward first",
  advantage: "Largest advantage first",
};
export const STANDINGS = { right: "right", wrong: "wrong", part: "partly right", none: "unscored", cut: "truncated", noted: "with a note" };

/** An empty filter. Texts are empty for "any"; numbers null. */
export const noFilter = () => ({ q: "", where: "", run: "", split: "", step: "", standing: "", outcome: "", part: "", facets: {}, sort: "newest" });

/** Rows in order. `found`: the set of rows whose texts were found, null where nothing is searched for. Throws for an expression that is none. */
export function matching(filter, found) {
  const { part, item, repeat } = data.columns;
  const parts = data.parts.map((p) => (!filter.run || p.run === filter.run) && (!filter.split || p.split === filter.split)
    && (filter.step === "" || p.step === Number(filter.step)) && (!filter.part || p.key === filter.part));
  const facets = Object.entries(filter.facets).filter(([, code]) => code !== "" && code !== undefined).map(([name, code]) => [data.facets[name], Number(code)]);
  const rows = [];
  const fits = filter.where.trim() ? where(filter.where) : null;
  for (let row = 0; row < data.rows; row++) {
    if (!parts[part[row]]) continue;
    if (found && !found.has(row)) continue;
    if (filter.standing && !stands(row, filter.standing)) continue;
    if (filter.outcome && outcomeOf(row) !== filter.outcome) continue;
    if (facets.some(([codes, code]) => codes[row] !== code)) continue;
    if (fits && !fits(row)) continue;
    rows.push(row);
  }
  const { newest, latest } = once("ranks", ranks);
  const stored = (a, b) => part[a] - part[b] || item[a] - item[b] || repeat[a] - repeat[b];
  const rank = (of) => (a, b) => of[part[a]] - of[part[b]];
  const by = (name, sign) => (a, b) => { // what has no number comes last
    const [x, y] = [data.columns[name][a], data.columns[name][b]].map((value) => (Number.isNaN(value) ? Infinity : sign * value));
    return x === y ? 0 : x - y;
  };
  const orders = { stored: () => 0, newest: rank(newest), latest: rank(latest), short: by("tokens", 1), long: by("tokens", -1), low: by("reward", 1), high: by("reward", -1), advantage: by("advantage", -1) };
  const order = orders[filter.sort] ?? orders.newest;
  return rows.sort((a, b) => order(a, b) || stored(a, b));
}

const stands = (row, wanted) => (wanted === "cut" ? isCut(row) : wanted === "noted" ? noteOf(row) !== "" : standing(row) === wanted);

/** The place of each part in the orders by age: what was made last comes first. */
function ranks() {
  const all = data.parts.map((part, at) => ({ ...part, at, outside: data.run.get(part.run).kind === "eval" }));
  const order = (compare) => {
    const places = [];
    [...all].sort((a, b) => compare(a, b) || b.step - a.step || b.measured - a.measured || a.at - b.at).forEach(({ at }, i) => (places[at] = i));
    return places;
  };
  const start = new Map(data.runs.map((run, i) => [run.id, i])); // runs are in order of their start
  return { newest: order((a, b) => b.outside - a.outside || start.get(b.run) - start.get(a.run)), latest: order((a, b) => start.get(b.run) - start.get(a.run)) };
}

/** The filter as it stands in the address, and back. */
export function toQuery(filter) {
  const { facets, sort, ...rest } = filter;
  const chosen = Object.fromEntries(Object.entries(facets).filter(([, code]) => code !== "").map(([name, code]) => [`f.${name}`, data.samples.facets[name][code]]));
  return { ...rest, ...chosen, sort: sort === "newest" ? "" : sort };
}

export function fromQuery(query) {
  const filter = noFilter();
  for (const [key, value] of query) {
    if (key.startsWith("f.")) {
      const code = (data.samples.facets[key.slice(2)] ?? []).findIndex((known) => String(known) === value);
      if (code >= 0) filter.facets[key.slice(2)] = code;
    } else if (key in filter && key !== "facets") filter[key] = value;
  }
  return filter;
}
