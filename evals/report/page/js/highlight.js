// Colours for code, coarse on purpose: comments, strings, numbers and words of the language.

import { h } from "./dom.js";

const WORDS = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from global if " +
    "import in is lambda nonlocal not or pass raise return try while with yield match case " +
    "const let var function new this typeof void int long float double char bool string auto public private static " +
    "struct using namespace include template return switch do null true false").split(" "),
);
const TOKEN = new RegExp(
  [
    "(#[^\\n]*|//[^\\n]*|/\\*[\\s\\S]*?\\*/)",
    "(\"\"\"[\\s\\S]*?(?:\"\"\"|$)|'''[\\s\\S]*?(?:'''|$)|\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?)",
    "(\\b\\d[\\w.]*)",
    "([A-Za-z_]\\w*)",
  ].join("|"),
  "g",
);

/** A <pre> of the code. `//` is a comment except in Python, where it divides. */
export function codeBlock(text, language) {
  const python = !language || /^(py|python\d?|text)$/i.test(language);
  const code = h("code");
  let at = 0;
  let previous = "";
  TOKEN.lastIndex = 0;
  for (let match = TOKEN.exec(text); match; match = TOKEN.exec(text)) {
    let [whole, comment, string, number, word] = match;
    if (comment && python && !comment.startsWith("#")) {
      TOKEN.lastIndex = match.index + 1;
      continue;
    }
    const kind = comment ? "c" : string ? "s" : number ? "d" : WORDS.has(word) ? "k" : /^(def|class)$/.test(previous) ? "f" : "";
    if (word) previous = word;
    if (!kind) continue;
    code.append(text.slice(at, match.index), h("span", { class: `hl-${kind}` }, whole));
    at = match.index + whole.length;
  }
  code.append(text.slice(at));
  return h("pre", { class: "code", tabindex: "0", "aria-label": language ? `${language} code` : "code" }, code);
}
