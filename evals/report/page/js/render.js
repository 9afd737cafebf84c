// A response as its author meant it: a little Markdown, formulas, code. Only elements and text nodes are made here.

import { h } from "./dom.js";
import { codeBlock } from "./highlight.js";
import { MATH_ENVIRONMENTS, mathOf } from "./tex.js";

const LONGEST = 150_000;

// TeX has no blank line in a formula: dollars that would span one are not a pair.
const BLOCK_MATH = new RegExp(
  `(?<!\\\\)\\$\\$((?:(?!\\n\\s*\\n)[\\s\\S])+?)(?<!\\\\)\\$\\$|\\\\\\[([\\s\\S]+?)\\\\\\]|((?<!\\$)\\\\begin\\{(${MATH_ENVIRONMENTS})(\\*?)\\}[\\s\\S]+?\\\\end\\{\\4\\5\\})`,
  "g",
);
const FENCE = /^[ \t]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n]*\n([\s\S]*?)(?:\n[ \t]*\1[ \t]*(?=\n|$)|$(?![\s\S]))/gm;
const INLINE = new RegExp(
  [
    "(`+)([^`][\\s\\S]*?)\\1(?!`)", // code
    "\\\\\\(([\\s\\S]+?)\\\\\\)", // \( \)
    "(?<![\\\\$])\\$(?![\\s$])((?:\\\\.|[^$\\\\])+?)(?<!\\s)\\$(?![\\d$])", // $ $
    "(\\*\\*|__)(?=\\S)([\\s\\S]+?)(?<=\\S)\\5",
    "(?<![\\w*])\\*(?=[^\\s*])([^*\\n]+?)(?<=[^\\s*])\\*(?![\\w*])",
    "(\\\\boxed\\s*\\{)",
    "(<\\|[\\w-]{1,40}\\|>|<｜[^｜>\\n]{1,40}｜>|</?think>)", // special tokens
  ].join("|"),
  "g",
);

/** The text as a fragment of elements. */
export function rendered(text) {
  const out = document.createDocumentFragment();
  const shown = text.length > LONGEST ? text.slice(0, LONGEST) : text;
  const thought = /^(?:<think>)?([\s\S]*?)<\/think>([\s\S]*)$/.exec(shown);
  if (thought && thought[1].trim()) {
    const body = h("div", { class: "prose" });
    blocks(thought[1].trim(), body);
    out.append(h("details", { class: "thought", open: true }, h("summary", null, "Thinking"), body));
    blocks(thought[2].replace(/^\n+/, ""), out);
  } else blocks(shown, out);
  if (shown.length < text.length) out.append(h("p", { class: "dim" }, "The rest of this long text is under “As written”."));
  return out;
}

/** A chat prompt as its turns, other prompts as they are. */
export function renderedPrompt(text) {
  const turns = [...text.matchAll(/<\|im_start\|>(\w+)\n([\s\S]*?)(?:<\|im_end\|>\n?|$)|<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n([\s\S]*?)(?:<\|eot_id\|>|$)/g)];
  if (!turns.length) return rendered(text);
  const out = document.createDocumentFragment();
  for (const turn of turns) {
    const [role, said] = [turn[1] ?? turn[3], turn[2] ?? turn[4]];
    if (!said.trim()) continue;
    const body = h("div", { class: "prose" });
    body.append(rendered(said.trim()));
    out.append(h("div", { class: "turn" }, h("span", { class: "role" }, role), body));
  }
  return out;
}

function blocks(text, out) {
  split(text, FENCE, out, (match) => codeBlock(match[3], match[2]), (rest) =>
    split(rest, BLOCK_MATH, out, (match) => formula(match[1] ?? match[2] ?? match[3], true, match[0]), (prose) => paragraphs(prose, out)),
  );
}

/** Give the matches to `element` and what lies between to `between`. */
function split(text, pattern, out, element, between) {
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > at) between(text.slice(at, match.index));
    out.append(element(match));
    at = match.index + match[0].length;
  }
  if (at < text.length) between(text.slice(at));
}

function formula(tex, display, raw) {
  const found = mathOf(tex, display);
  if (!found) return h(display ? "pre" : "code", { class: "tex", title: "TeX that is not understood here, as written" }, raw);
  return display ? h("div", { class: "display", tabindex: "0" }, found) : found;
}

function paragraphs(text, out) {
  let list = null;
  let lines = [];
  const flush = () => {
    if (lines.some((line) => line.trim())) {
      const paragraph = h("p");
      inline(lines.join("\n").replace(/^\n+|\s+$/g, ""), paragraph);
      out.append(paragraph);
    }
    lines = [];
  };
  const all = text.split("\n");
  for (let i = 0; i < all.length; i++) {
    const line = all[i];
    const heading = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    const item = /^\s{0,8}(?:([-*+•])|(\d{1,4})[.)])\s+(.*)$/.exec(line);
    if (/^\s*\|.*\|\s*$/.test(line) && /^\s*\|[\s:|-]+\|\s*$/.test(all[i + 1] ?? "")) {
      flush();
      list = null;
      const rows = [cellsOf(line)];
      for (i += 2; /^\s*\|.*\|\s*$/.test(all[i] ?? ""); i++) rows.push(cellsOf(all[i]));
      i--;
      out.append(tableOf(rows));
    } else if (heading || /^ {0,3}(?:-{3,}|\*{3,}|_{3,})\s*$/.test(line)) {
      flush();
      list = null;
      const element = heading ? h("p", { class: "heading", role: "heading", "aria-level": "4" }) : h("hr");
      if (heading) inline(heading[2], element);
      out.append(element);
    } else if (item) {
      flush();
      const kind = item[1] ? "ul" : "ol";
      if (!list || list.localName !== kind) {
        list = h(kind, kind === "ol" ? { start: item[2] } : null);
        out.append(list);
      }
      const entry = h("li");
      inline(item[3], entry);
      list.append(entry);
    } else if (list && /^\s{2,}\S/.test(line)) {
      list.lastElementChild.append("\n");
      inline(line.trim(), list.lastElementChild);
    } else if (!line.trim()) {
      flush();
      if (!/^\s{0,8}(?:[-*+•]|\d{1,4}[.)])\s/.test(all[i + 1] ?? "")) list = null;
    } else {
      list = null;
      lines.push(line);
    }
  }
  flush();
}

const cellsOf = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());

function tableOf(rows) {
  const cells = (row, tag) => row.map((cell) => {
    const element = h(tag);
    inline(cell, element);
    return element;
  });
  const [head, ...body] = rows;
  return h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null, cells(head, "th"))), h("tbody", null, body.map((row) => h("tr", null, cells(row, "td"))))));
}

function inline(text, out) {
  let at = 0;
  INLINE.lastIndex = 0;
  for (let match = INLINE.exec(text); match; match = INLINE.exec(text)) {
    const [whole, , code, parens, dollars, , bold, italic, box, special] = match;
    if (match.index > at) out.append(unescaped(text.slice(at, match.index)));
    at = match.index + whole.length;
    if (code !== undefined) out.append(h("code", null, code));
    else if (parens !== undefined) out.append(formula(parens, false, whole));
    else if (dollars !== undefined) out.append(formula(dollars, false, whole));
    else if (bold !== undefined || italic !== undefined) {
      const element = h(bold === undefined ? "em" : "strong");
      const back = INLINE.lastIndex;
      inline(bold ?? italic, element);
      INLINE.lastIndex = back;
      out.append(element);
    } else if (special !== undefined) out.append(h("span", { class: "special" }, special));
    else if (box !== undefined) {
      const end = closing(text, at);
      if (end < 0 || !text.slice(at, end).trim()) {
        out.append(whole);
        continue;
      }
      const found = mathOf(text.slice(at, end));
      out.append(h("span", { class: "boxed" }, found ?? text.slice(at, end)));
      at = end + 1;
      INLINE.lastIndex = at;
    }
  }
  if (at < text.length) out.append(unescaped(text.slice(at)));
}

const unescaped = (text) => text.replace(/\\([$%#&_*])/g, "$1");

/** Where the brace that is open at `from` closes, -1 if nowhere. */
function closing(text, from) {
  let depth = 1;
  for (let i = from; i < text.length; i++) {
    if (text[i] === "{") depth++;
    if (text[i] === "}" && --depth === 0) return i;
  }
  return -1;
}
