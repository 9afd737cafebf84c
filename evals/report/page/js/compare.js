// Two evaluations on the same problems: which got better, which got worse, and what changed in the words.

import { data, itemsOf, keyOf, once, readChunk, textsOf } from "./data.js";
import { wordDiff } from "./diff.js";
import { h, integer, mean, plural, segments, select, signed, sumOf } from "./dom.js";
import { compareTallies, holm, isClear, pText } from "./paired.js";
import { here, linkTo, note, sampleLink } from "./route.js";
import { textBlock, verdict } from "./sample.js";
import { sortable } from "./tables.js";

const KINDS = {
  better: ["B better", "problems that B gets right more often"],
  worse: ["A better", "problems that A gets right more often"],
  right: ["both right", "every sample of both is right"],
  wrong: ["both wrong", "no sample of either is right"],
  alike: ["alike", "right as often in both, but not always"],
  unscored: ["not scored", "one of the two has no scorable sample"],
};
const SHOWN = 200; // problems listed at once
const state = { a: -1, b: -1, kind: "better", item: null, view: "changes", shown: SHOWN };

export function showCompare(into) {
  const choices = data.parts.flatMap((part, at) => (data.samples.included[at] ? [at] : []));
  const pairs = choices.filter((at) => choices.some((other) => other !== at && comparable(at, other)));
  if (!pairs.length) {
    into.replaceChildren(h("p", { class: "empty" }, "Nothing to compare: no two sets of samples share problems. Evaluate a second model or checkpoint on a benchmark, or include more runs."));
    return;
  }
  const { query } = here();
  const given = (key) => data.partAt.get(query.get(key) ?? "") ?? -1;
  [state.a, state.b] = [given("a"), given("b")];
  const [first, second] = data.pair ?? [];
  if (state.a < 0 && state.b < 0 && pairs.includes(first) && comparable(first, second)) [state.a, state.b] = [first, second];
  if (!pairs.includes(state.a)) state.a = pairs.find((at) => data.parts[at].measured) ?? pairs[0];
  if (!comparable(state.a, state.b)) state.b = pairs.findLast((at) => at !== state.a && comparable(state.a, at));
  state.item = query.has("item") ? data.samples.items.indexOf(query.get("item")) : null;
  state.kind = query.get("kind") in KINDS ? query.get("kind") : null;
  draw(into, pairs);
}

function comparable(a, b) {
  if (a < 0 || b < 0 || a === b || data.parts[a].bench !== data.parts[b].bench) return false;
  const [small, large] = [itemsOf(a), itemsOf(b)];
  return [...small.keys()].some((item) => large.has(item));
}

const rewardsOf = (rows) => rows.map((row) => data.columns.reward[row]).filter((reward) => !Number.isNaN(reward));

function score(rows) {
  const rewards = rewardsOf(rows);
  return rewards.length ? mean(rewards) : null;
}

/** Problems that both have: {item, a, b, kind}. */
function compared() {
  const found = [];
  const right = itemsOf(state.b);
  for (const [item, rows] of itemsOf(state.a)) {
    if (!right.has(item)) continue;
    const [a, b] = [score(rows), score(right.get(item))];
    const kind = a === null || b === null ? "unscored" : b > a + 1e-9 ? "better" : a > b + 1e-9 ? "worse" : a >= 1 ? "right" : a <= 0 ? "wrong" : "alike";
    found.push({ item, a, b, kind });
  }
  return found;
}

/** What a part is compared by: {items, of: [[sum, count], ...]}, of all its problems; of those in the page where it has no row of its own. */
async function tallyOf(at) {
  const { bench } = data.parts[at];
  if (bench in data.scores) {
    const { items, of } = await once(`scores ${bench}`, () => readChunk(data.scores[bench]));
    if (of[at]) return { whole: true, of: new Map(items.flatMap((item, i) => (of[at][1][i] ? [[item, [of[at][0][i], of[at][1][i]]]] : []))) };
  }
  const found = new Map();
  for (const [item, rows] of itemsOf(at)) {
    const rewards = rewardsOf(rows);
    if (rewards.length) found.set(data.samples.items[item], [sumOf(rewards), rewards.length]);
  }
  return { whole: false, of: found };
}

function judged(a, b) {
  const common = [...a.of.keys()].filter((item) => b.of.has(item));
  if (common.length < 2) return null;
  return { ...compareTallies(common.map((item) => a.of.get(item)), common.map((item) => b.of.get(item)), data.student), whole: a.whole && b.whole };
}

/** One digit, two where one would leave a zero without a side. */
const points = (x) => signed(x, Math.abs(x) > 0 && Math.abs(x) < 0.05 ? 2 : 1);
const range = ({ low, high }) => `${points(100 * low)} to ${points(100 * high)}`;

/** The verdict on A and B, in a sentence. */
function words(found) {
  if (!found) return "Too few problems in common for a comparison.";
  const on = found.whole ? `on the ${plural(found.problems, "problem")} that both have` : `on the ${plural(found.problems, "problem")} of this page that both have (the others' samples are left out)`;
  const proof = `95 % interval ${range(found)}${found.p === null ? "" : `, p ${pText(found.p)}, ${found.test}`}`;
  const size = 100 * found.difference;
  if (isClear(found)) return `B scores ${Math.abs(size).toFixed(1)} points ${size > 0 ? "more" : "less"} than A ${on}: ${proof}.`;
  return `A and B cannot be told apart ${on}: the difference is ${points(size)} points, ${proof}.`;
}

/** Every evaluation of the benchmark against A, with p by Holm's method over them all. Made when it is opened. */
function againstA() {
  const a = state.a;
  const { bench, measured } = data.parts[a];
  const kindOf = (at) => data.run.get(data.parts[at].run).kind;
  const others = data.evaluations.map(({ part }) => part).filter((at) => at !== a && data.parts[at].bench === bench && kindOf(at) === kindOf(a));
  if (!measured || others.length < 2) return null;
  const into = h("div");
  const details = h("details", { class: "against", ontoggle: async () => {
    if (!details.open || into.childElementCount) return;
    const of = await tallyOf(a);
    const lines = [];
    for (const at of others) {
      const found = judged(of, await tallyOf(at));
      if (found) lines.push({ at, ...found });
    }
    const adjusted = holm(lines.map(({ p }) => p ?? 1));
    const cells = ({ at, b, difference, low, high, p, problems }, i) => {
      const clear = isClear({ p: p === null ? null : adjusted[i], low, high });
      return h("tr", { class: clear ? "clear" : "unclear" },
        h("th", { scope: "row" }, h("a", { href: linkTo("compare", { a: data.parts[a].key, b: data.parts[at].key }) }, data.parts[at].name)),
        h("td", { class: "n", "data-label": "problems" }, integer(problems)), h("td", { class: "n strong", "data-label": "Pass@1, %" }, (100 * b).toFixed(1)),
        h("td", { class: "n strong", "data-label": "B − A, points" }, signed(100 * difference, 1)), h("td", { class: "n dim", "data-label": "95 %" }, range({ low, high })),
        h("td", { class: "n", "data-label": "p" }, p === null ? "–" : pText(adjusted[i]).replace("= ", "")), h("td", { class: "verdict-word", "data-label": "B is" }, !clear ? "cannot be told apart" : difference > 0 ? "better" : "worse"));
    };
    const table = h("table", { class: "scores differ" },
      h("thead", null, h("tr", null, ["B", "Problems", "Pass@1, %", "B − A, points", "95 % interval", "p (Holm)", "B is"].map((name, i) => h("th", { scope: "col", class: i > 0 && i < 6 ? "n" : null }, name)))),
      h("tbody", null, lines.map(cells)));
    into.replaceChildren(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Every evaluation against A" }, table),
      h("p", { class: "foot" }, "p is Holm's over all lines: the chance of any false claim among them is at most 5 %. Intervals are for each line alone. The best of several is partly luck."));
    sortable(table);
  } }, h("summary", null, `Every evaluation on ${bench} against A (${integer(others.length)})`), into);
  return details;
}

function draw(into, pairs) {
  const problems = compared();
  const counts = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, problems.filter((p) => p.kind === kind).length]));
  if (!state.kind || !counts[state.kind]) {
    const open = problems.find((p) => p.item === state.item);
    state.kind = open?.kind ?? ["better", "worse", "alike", "wrong", "right", "unscored"].find((kind) => counts[kind]) ?? "better";
  }
  const listed = problems.filter((p) => p.kind === state.kind).sort((x, y) => Math.abs(y.b - y.a) - Math.abs(x.b - x.a) || x.item - y.item);
  if (!listed.some((p) => p.item === state.item)) state.item = listed[0]?.item ?? null;
  const choose = (key) => (value) => {
    state[key] = Number(value);
    if (!comparable(state.a, state.b)) state.b = pairs.find((at) => at !== state.a && comparable(state.a, at));
    state.kind = null;
    draw(into, pairs);
  };
  const options = (keep) => pairs.filter(keep).map((at) => [at, data.parts[at].name, data.parts[at].measured ? data.parts[at].bench : "rollouts"]);
  const detail = h("div", { class: "detail compare-detail" });
  const list = h("div", { class: "list plain-list", role: "group", "aria-label": "Problems" }, listed.slice(0, state.shown).map((p) => {
    const row = itemsOf(state.a).get(p.item)[0];
    return h("button", { type: "button", class: `row static${p.item === state.item ? " current" : ""}`, "aria-pressed": String(p.item === state.item), onclick: () => {
      state.item = p.item;
      draw(into, pairs);
    } }, h("span", { class: "what" }, data.heads[data.columns.prompt[row]] || data.samples.items[p.item]), h("span", { class: "result" }, `${share(p.a)} → ${share(p.b)}`), h("span", { class: "under" }, data.samples.items[p.item]));
  }), listed.length > state.shown ? h("button", { type: "button", class: "wide", onclick: () => {
    state.shown += SHOWN;
    draw(into, pairs);
  } }, `Show more of ${integer(listed.length)}`) : null, listed.length ? null : h("p", { class: "empty" }, "No such problem."));
  const before = into.querySelector(".list")?.scrollTop ?? 0;
  const line = h("p", { class: "lead verdict-line", role: "status" });
  Promise.all([tallyOf(state.a), tallyOf(state.b)]).then(([a, b]) => {
    const found = judged(a, b);
    line.textContent = words(found);
    if (found?.whole && problems.length < found.problems) line.append(h("span", { class: "dim" }, ` Below: the ${plural(problems.length, "problem")} whose samples are in this page.`));
  });
  into.replaceChildren(
    h("div", { class: "bar-of-controls" },
      select("A", options(() => true), state.a, choose("a")), select("B", options((at) => comparable(state.a, at)), state.b, choose("b")),
      h("button", { type: "button", onclick: () => {
        [state.a, state.b, state.kind] = [state.b, state.a, null];
        draw(into, pairs);
      } }, "Swap"),
    ),
    line, againstA(),
    h("div", { class: "kinds", role: "group", "aria-label": "Problems by what changed" }, Object.entries(KINDS).filter(([kind]) => counts[kind] || !["alike", "unscored"].includes(kind)).map(([kind, [text, about]]) => h("button", { type: "button", class: `kind ${kind}`, "aria-pressed": String(kind === state.kind), title: about, onclick: () => {
      state.kind = kind;
      state.shown = SHOWN;
      draw(into, pairs);
    } }, h("b", null, integer(counts[kind])), text))),
    h("div", { class: "browser compare opened" }, h("div", { class: "list-side" }, list), detail),
  );
  list.scrollTop = before;
  note(linkTo("compare", { a: data.parts[state.a].key, b: data.parts[state.b].key, kind: state.kind, item: state.item === null ? null : data.samples.items[state.item] }));
  if (state.item !== null) drawPair(detail);
}

const share = (x) => (x === null ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(2));

/** The first sample of each side; where one side is better a right one of it beside one of the other that is not. */
function telling(sides) {
  const [a, b] = sides.map(score);
  if (a === null || b === null || Math.abs(a - b) < 1e-9) return [0, 0];
  return sides.map((rows, i) => Math.max(0, rows.findIndex((row) => (data.columns.reward[row] >= 1) === (i ? b > a : a > b))));
}

async function drawPair(into) {
  const item = state.item;
  const sides = [itemsOf(state.a).get(item), itemsOf(state.b).get(item)];
  const at = telling(sides);
  async function fill() {
    const rows = sides.map((side, i) => side[at[i]]);
    const texts = await Promise.all(rows.map(textsOf));
    if (state.item !== item) return;
    const parts = state.view === "changes" ? wordDiff(texts[0].response, texts[1].response) : null;
    const side = (i) => h("div", { class: "column" },
      h("p", { class: "sub" }, h("b", { class: "side" }, i ? "B" : "A"), verdict(rows[i]), h("span", null, `${integer(data.columns.tokens[rows[i]])} tokens`),
        sides[i].length > 1 ? select("sample", sides[i].map((row, k) => [k, `${data.columns.repeat[row] + 1} of ${sides[i].length}`]), at[i], (value) => {
          at[i] = Number(value);
          fill();
        }) : null,
        h("a", { href: sampleLink(keyOf(rows[i])) }, "open")),
      h("p", { class: "dim" }, data.parts[i ? state.b : state.a].name, ` · answer ${texts[i].answer ?? "none"}`),
      parts ? h("div", { class: "diff" }, parts.filter(([kind]) => kind === "same" || kind === (i ? "new" : "gone")).map(([kind, text]) => (kind === "same" ? text : h(i ? "ins" : "del", null, text)))) : textBlock(texts[i].response));
    into.replaceChildren(
      h("div", { class: "sample-bar" }, segments("Texts", [["changes", "What changed"], ["rendered", "Rendered"]], state.view, (value) => {
        state.view = value;
        fill();
      })),
      h("h2", null, data.samples.items[item]),
      h("details", { class: "facts", open: true }, h("summary", null, "Problem"), textBlock(texts[0].prompt, { isPrompt: true })),
      h("p", { class: "dim" }, "Reference ", h("b", null, texts[0].reference || "tests")),
      h("div", { class: "pair-columns" }, side(0), side(1)));
  }
  await fill();
}
