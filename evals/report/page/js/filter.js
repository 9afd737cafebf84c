// Which rows a filter lets through, and in which order.

import { data, isCut, itemOf, outcomeOf, partOf, standing } from "./data.js";

export const SORTS = {
  stored: "Run, step, problem",
  short: "Shortest first",
  long: "Longest first",
  low: "Lowest reward first",
  high: "Highest reward first",
  advantage: "Largest advantage first",
};
export const STANDINGS = { right: "right", wrong: "wrong", part: "partly right", none: "unscored", cut: "truncated" };

/** An empty filter. Texts are empty for "any"; numbers null. */
export const noFilter = () => ({ q: "", run: "", split: "", step: "", standing: "", outcome: "", from: "", to: "", part: "", facets: {}, sort: "stored" });

/** Rows in order. `found`: the set of rows whose texts were found, null where nothing is searched for. */
export function matching(filter, found) {
  const { tokens, reward, advantage, part, item, repeat } = data.columns;
  const from = filter.from === "" ? -Infinity : Number(filter.from);
  const to = filter.to === "" ? Infinity : Number(filter.to);
  const parts = data.parts.map((p) => (!filter.run || p.run === filter.run) && (!filter.split || p.split === filter.split)
    && (filter.step === "" || p.step === Number(filter.step)) && (!filter.part || p.key === filter.part));
  const facets = Object.entries(filter.facets).filter(([, code]) => code !== "" && code !== undefined).map(([name, code]) => [data.facets[name], Number(code)]);
  const rows = [];
  for (let row = 0; row < data.rows; row++) {
    if (!parts[part[row]] || tokens[row] < from || tokens[row] > to) continue;
    if (found && !found.has(row)) continue;
    if (filter.standing && (filter.standing === "cut" ? !isCut(row) : standing(row) !== filter.standing)) continue;
    if (filter.outcome && outcomeOf(row) !== filter.outcome) continue;
    if (facets.some(([codes, code]) => codes[row] !== code)) continue;
    rows.push(row);
  }
  const stored = (a, b) => part[a] - part[b] || item[a] - item[b] || repeat[a] - repeat[b];
  const number = (x, missing) => (Number.isNaN(x) ? missing : x);
  const orders = {
    stored,
    short: (a, b) => tokens[a] - tokens[b] || stored(a, b),
    long: (a, b) => tokens[b] - tokens[a] || stored(a, b),
    low: (a, b) => number(reward[a], Infinity) - number(reward[b], Infinity) || stored(a, b),
    high: (a, b) => number(reward[b], -Infinity) - number(reward[a], -Infinity) || stored(a, b),
    advantage: (a, b) => number(advantage[b], -Infinity) - number(advantage[a], -Infinity) || stored(a, b),
  };
  return rows.sort(orders[filter.sort] ?? stored);
}

/** The filter as it stands in the address, and back. */
export function toQuery(filter) {
  const { facets, sort, ...rest } = filter;
  const chosen = Object.fromEntries(Object.entries(facets).filter(([, code]) => code !== "").map(([name, code]) => [`f.${name}`, data.samples.facets[name][code]]));
  return { ...rest, ...chosen, sort: sort === "stored" ? "" : sort };
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

/** What a row is called where it stands alone. */
export const titleOf = (row) => `${itemOf(row)}, ${partOf(row).name}`;
