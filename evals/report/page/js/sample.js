// One sample in full, and its group side by side.

import { MARKS, data, isCut, itemOf, itemsOf, keyOf, outcomeOf, partOf, rowOf, standing, textsOf, tokensOf } from "./data.js";
import { figure, h, integer, plain, plural, segments, signed } from "./dom.js";
import { rendered, renderedPrompt } from "./render.js";
import { noteOf, setNote } from "./notes.js";
import { linkTo, sampleLink } from "./route.js";

const LOOKS = [["rendered", "Rendered"], ["raw", "As written"], ["probability", "Probability"], ["entropy", "Entropy"]];
const SHADES = { // what a token is shaded by: its place in what `tokensOf` gives, and the marks of the legend
  probability: { of: 1, title: "Probability of each token", marks: [["1", 0], ["0.5", 0.69], ["0.1", 2.3], ["0.01", 4.6], ["≤ 0.001", 6.9]] },
  entropy: { of: 2, title: "Entropy before each token, nats", marks: [["0", 0], ["0.5", 0.5], ["1", 1], ["2", 2], ["≥ 3", 3]] },
};

/** How texts are shown; stays from sample to sample. */
export const look = { now: "rendered" };

const looks = () => (data.samples.blocks.some((block) => block.tokens !== undefined) ? LOOKS : LOOKS.slice(0, 2));

export function nextLook() {
  const names = looks().map(([name]) => name);
  look.now = names[(names.indexOf(look.now) + 1) % names.length];
}

const BEGINNING = 8000; // characters of a text that are shown at first

export const verdict = (row) => h("span", { class: `verdict ${standing(row)}` }, h("span", { "aria-hidden": "true" }, MARKS[standing(row)]), ` ${outcomeOf(row).replaceAll("_", " ")}`);

/** A text in its chosen look; of a long one the beginning, until more is asked for. tokens: see `tokensOf`. */
export function textBlock(text, { isPrompt = false, whole = false, tokens = null } = {}) {
  const shown = whole || text.length < 1.5 * BEGINNING ? text : text.slice(0, BEGINNING);
  const raw = look.now !== "rendered";
  const body = raw ? h("pre", { class: "raw", tabindex: "0" }, isShaded(tokens) ? shaded(shown, tokens) : visible(shown)) : h("div", { class: "prose" });
  if (!raw) body.append(isPrompt ? renderedPrompt(shown) : rendered(shown));
  if (shown === text) return body;
  const block = h("div", null, body, h("p", { class: "rest" }, `The first ${integer(shown.length)} of ${integer(text.length)} characters. `,
    h("button", { type: "button", onclick: () => block.replaceChildren(textBlock(text, { isPrompt, tokens, whole: true })) }, "Show all")));
  return block;
}

const isShaded = (tokens) => look.now in SHADES && tokens !== null && !Number.isNaN(tokens[0][SHADES[look.now].of] ?? NaN);

/** The text by tokens, each in a shade. Those that share a character are one; what adds none at the end is its mark. */
function shaded(text, tokens) {
  const [characters, out] = [[...text], []];
  const { of } = SHADES[look.now];
  let [at, held] = [0, []];
  for (const [place, token] of tokens.entries()) {
    held.push(token);
    if (!token[0] && place + 1 < tokens.length) continue;
    const piece = characters.slice(at, (at += token[0])).join("");
    if (!piece && at < characters.length) continue;
    const [surprise, entropy] = [held.reduce((sum, one) => sum + one[1], 0), Math.max(...held.map((one) => one[2]))];
    const told = [`token ${place + 1}`, Number.isNaN(surprise) ? null : `probability ${figure(Math.exp(-surprise))} (log ${surprise ? signed(-surprise) : 0})`, Number.isNaN(entropy) ? null : `entropy ${figure(entropy)} nats`];
    out.push(shade(of === 1 ? surprise : entropy, told.filter(Boolean).join(", "), piece ? [piece.includes("\n") ? h("span", { class: "dim" }, "↵") : null, visible(piece)] : h("span", { class: "special" }, "end")));
    held = [];
    if (at >= characters.length && place + 1 < tokens.length && tokens[place + 1][0]) break; // the beginning of a long text
  }
  return out;
}

function shade(value, title, children) {
  const most = SHADES[look.now].marks.at(-1)[1];
  return h("span", { class: "tok", title, style: `--x:${(70 * Math.min(1, value / most)).toFixed(0)}` }, children);
}

function legend(tokens) {
  const told = { probability: "log-probabilities", entropy: "entropies" }[look.now];
  if (!told) return null;
  if (!isShaded(tokens)) return h("p", { class: "dim" }, `This page has no ${told} of this response.`);
  return h("p", { class: "shades" }, `${SHADES[look.now].title}: `, SHADES[look.now].marks.map(([text, value]) => shade(value, null, text)), h("output", null, "Point at a token."));
}

// Characters that leave no mark, or turn the text around: control characters, soft hyphen, zero widths, directions.
const UNSEEN = /([\u0000-\u0008\u000b-\u001f\u007f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff])/;

/** The text with such characters named, as children of an element. */
function visible(text) {
  const code = (c) => `U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  return text.split(UNSEEN).map((part, i) => (i % 2 ? h("span", { class: "special" }, code(part)) : part));
}

/** Everything about a row, as an element. `redraw()` shows it anew, `step(by)` another of the list; `noted()` is called when the note was changed. */
export async function sampleView(row, { redraw, close, step, noted }) {
  const { columns } = data;
  const [texts, tokens] = [await textsOf(row), await tokensOf(row)];
  const part = partOf(row);
  const run = data.run.get(part.run);
  const group = itemsOf(columns.part[row]).get(columns.item[row]);
  const title = h("h2", { tabindex: "-1", id: "sample-title" }, itemOf(row));
  return h("article", { class: "sample", "aria-labelledby": "sample-title", onpointerover: (event) => {
    const told = event.target.closest("pre .tok")?.title;
    if (told) event.currentTarget.querySelector(".shades output").textContent = told;
  } },
    h("div", { class: "sample-bar" },
      h("button", { type: "button", class: "back", onclick: close, "aria-label": "Back to the list" }, "‹ List"),
      h("div", { class: "steps" },
        h("button", { type: "button", onclick: () => step(-1), "aria-label": "Previous sample (k)" }, "↑"),
        h("button", { type: "button", onclick: () => step(1), "aria-label": "Next sample (j)" }, "↓"),
      ),
      segments("Texts", looks(), look.now, (value) => {
        look.now = value;
        redraw();
      }),
      copyButton("Copy link", () => location.href.replace(/#.*/s, "") + sampleLink(keyOf(row))),
    ),
    title,
    h("p", { class: "sub" }, verdict(row), isCut(row) ? h("span", { class: "badge warn" }, "truncated") : null,
      h("span", null, h("b", null, integer(columns.tokens[row])), " tokens"),
      h("span", null, "reward ", h("b", null, plain(columns.reward[row]))),
      Number.isNaN(columns.advantage[row]) ? null : h("span", null, "advantage ", h("b", null, signed(columns.advantage[row]))),
      h("a", { href: `#run=${run.id}` }, part.name),
    ),
    answers(row, texts),
    h("section", null, h("h3", null, "Prompt"), textBlock(texts.prompt, { isPrompt: true })),
    h("section", null, h("h3", null, "Response", copyButton("Copy", () => texts.response)), texts.response ? textBlock(texts.response, { tokens }) : h("p", { class: "empty" }, "The response is empty."), legend(tokens)),
    notes(row, noted),
    groupSection(row, group, run),
    elsewhere(row),
    facts(row, texts, part),
  );
}

function notes(row, noted) {
  const key = keyOf(row);
  return h("section", null, h("h3", null, "Note"), h("textarea", { id: "note", rows: 1, "aria-label": "Note on this sample", placeholder: "Kept in this browser, and in the export of the list", value: noteOf(row),
    oninput: (event) => {
      setNote(rowOf(key), event.target.value);
      noted();
    } }));
}

function copyButton(label, text) {
  return h("button", { type: "button", class: "quiet", onclick: async (event) => {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => (button.textContent = label), 1500);
  } }, label);
}

function answers(row, texts) {
  return h("dl", { class: "answers" },
    h("div", { class: standing(row) }, h("dt", null, "Answer"), h("dd", null, texts.answer === null ? h("span", { class: "dim" }, "none found") : texts.answer)),
    h("div", null, h("dt", null, "Reference"), h("dd", null, texts.reference || h("span", { class: "dim" }, "tests"))),
    h("div", null, h("dt", null, "Decided by"), h("dd", null, data.samples.paths[data.columns.path[row]] || "–")),
  );
}

function groupSection(row, group, run) {
  if (group.length < 2) return null;
  const { columns } = data;
  const keys = group.map(keyOf); // rows have other numbers after an update
  const holder = h("div", { class: "side-by-side", hidden: true });
  const training = group.some((other) => !Number.isNaN(columns.advantage[other]));
  const rewards = group.map((other) => columns.reward[other]).filter((reward) => !Number.isNaN(reward));
  const live = rewards.length > 1 && Math.max(...rewards) - Math.min(...rewards) > 1e-6;
  const said = training
    ? [`${run.advantage}, over the ${plural(rewards.length, "scorable sample")} of this group. `, live ? `The group is live: mean reward ${figure(rewards.reduce((a, b) => a + b, 0) / rewards.length)}.` : `The group is not live: its rewards are equal, and every advantage is 0. ${{ mask: "This run leaves such groups out of the loss.", keep: "This run keeps such groups in the mean of the loss.", resample: "This run draws other prompts in place of such groups." }[run.maskedGroups] ?? ""}`]
    : [`${rewards.filter((reward) => reward >= 1).length} of ${rewards.length} scorable samples are right.`];
  const button = h("button", { type: "button", class: "wide", "aria-expanded": "false", onclick: async () => {
    const open = holder.hidden;
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Hide the responses" : "Show all responses side by side";
    holder.hidden = !open;
    if (open && !holder.childElementCount) {
      for (const key of keys) holder.append(await column(rowOf(key), key === keyOf(row)));
    }
  } }, "Show all responses side by side");
  return h("section", { class: "group" }, h("h3", null, `Group: ${plural(group.length, "sample")} of this problem`),
    h("p", { class: "dim" }, said),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Samples of the group" }, h("table", { class: "group-table" },
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Sample"), h("th", { scope: "col" }, "Verdict"), h("th", { scope: "col" }, "Answer"), h("th", { scope: "col", class: "n" }, "Tokens"), h("th", { scope: "col", class: "n" }, "Reward"), training ? h("th", { scope: "col", class: "n" }, "Advantage") : null, training ? h("th", { scope: "col", class: "bar" }) : null)),
      h("tbody", null, group.map((other) => h("tr", { class: other === row ? "current" : null, "aria-current": other === row ? "true" : null },
        h("th", { scope: "row" }, h("a", { href: sampleLink(keyOf(other)) }, `${columns.repeat[other] + 1}`)),
        h("td", null, verdict(other)), h("td", { class: "answer" }, columns.answer[other] ?? "–"),
        h("td", { class: "n" }, integer(columns.tokens[other]), isCut(other) ? h("span", { title: "truncated" }, " ✂") : null), h("td", { class: "n" }, plain(columns.reward[other])),
        training ? h("td", { class: "n advantage" }, Number.isNaN(columns.advantage[other]) ? "–" : signed(columns.advantage[other])) : null,
        training ? h("td", { class: "bar" }, advantageBar(columns.advantage[other])) : null,
      ))),
    )), button, holder);
}

function advantageBar(value) {
  if (Number.isNaN(value)) return null;
  const size = Math.min(Math.abs(value) / 3, 1) * 50;
  return h("span", { class: "adv", "aria-hidden": "true" }, h("i", { class: value < 0 ? "minus" : "plus", style: `width:${size}%;left:${value < 0 ? 50 - size : 50}%` }));
}

async function column(row, current) {
  const [{ response }, known] = [await textsOf(row), await tokensOf(row)];
  const { advantage, reward, tokens, repeat } = data.columns;
  return h("div", { class: `column${current ? " current" : ""}` },
    h("p", { class: "sub" }, h("b", null, `${repeat[row] + 1}`), verdict(row), h("span", null, `reward ${plain(reward[row])}`), Number.isNaN(advantage[row]) ? null : h("span", null, `A ${signed(advantage[row])}`), h("span", null, `${integer(tokens[row])} tokens`)),
    textBlock(response, { tokens: known }));
}

/** The same problem in other runs and steps. */
function elsewhere(row) {
  const { item, part, reward } = data.columns;
  const others = data.parts.flatMap((_, at) => {
    const rows = at === part[row] ? undefined : itemsOf(at).get(item[row]);
    if (!rows) return [];
    const rewards = rows.map((other) => reward[other]).filter((one) => !Number.isNaN(one));
    return [[at, { first: rows[0], right: rewards.filter((one) => one >= 1).length, of: rewards.length }]];
  });
  if (!others.length) return null;
  return h("section", null, h("h3", null, "The same problem elsewhere"), h("ul", { class: "links" }, others.slice(0, 40).map(([at, found]) => h("li", null,
    h("a", { href: sampleLink(keyOf(found.first)) }, data.parts[at].name), " ", h("span", { class: "dim" }, `${found.right} of ${found.of} right`), " ",
    data.parts[at].measured === partOf(row).measured && data.parts[at].bench === partOf(row).bench ? h("a", { class: "quiet", href: linkTo("compare", { a: partOf(row).key, b: data.parts[at].key, item: itemOf(row) }) }, "compare") : null))));
}

function facts(row, texts, part) {
  const { columns, samples } = data;
  const known = {
    run: part.run, split: part.split, step: part.step, sample: columns.repeat[row] + 1, "finish reason": samples.finishes[columns.finish[row]],
    verdict: outcomeOf(row), "decided by": samples.paths[columns.path[row]], "response tokens": columns.tokens[row], seed: texts.seed,
    "seconds to decode": texts.seconds, weights: texts.weights,
    ...Object.fromEntries(Object.entries(texts.meta).map(([key, value]) => [key, typeof value === "object" ? JSON.stringify(value) : value])),
  };
  return h("details", { class: "facts" }, h("summary", null, "Everything recorded"), h("dl", null, Object.entries(known).filter(([, value]) => value !== "" && value !== null).flatMap(([key, value]) => [h("dt", null, key), h("dd", null, String(value))])));
}
