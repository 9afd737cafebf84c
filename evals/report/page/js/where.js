// Expressions that choose samples: tokens > 200 and (verdict = wrong or truncated) and answer ~ "frac".

import { data, isCut, itemOf, outcomeOf, partOf, standing } from "./data.js";

const TOKEN = /\s*(?:"((?:[^"\\]|\\.)*)"|(<=|>=|!=|==|!~|[<>=~()])|([^\s()<>=!~"]+)|(\S))/y;
const column = (name) => (row) => data.columns[name][row];
const ofPart = (name) => (row) => partOf(row)[name];
const ofRun = (name) => (row) => data.run.get(partOf(row).run)[name];

/** What can be asked of a row. */
export const FIELDS = {
  tokens: column("tokens"), reward: column("reward"), advantage: column("advantage"), answer: column("answer"), reference: column("reference"),
  sample: (row) => data.columns.repeat[row] + 1, item: itemOf, verdict: outcomeOf,
  finish: (row) => data.samples.finishes[data.columns.finish[row]], path: (row) => data.samples.paths[data.columns.path[row]],
  step: ofPart("step"), split: ofPart("split"), bench: ofPart("bench"), run: ofRun("title"), model: ofRun("model"), method: ofRun("method"), seed: ofRun("seed"),
  right: (row) => standing(row) === "right", wrong: (row) => standing(row) === "wrong", unscored: (row) => standing(row) === "none", truncated: isCut,
};

const fieldOf = (name) => (Object.hasOwn(FIELDS, name) ? FIELDS[name] : Object.hasOwn(data.facets, name) ? (row) => data.samples.facets[name][data.facets[name][row]] : null);

/** All names, those of this page's samples included. */
export const fields = () => [...Object.keys(FIELDS), ...Object.keys(data.facets)];

/** A function of a row, true where the expression holds. Throws an Error that says what is not understood. */
export function where(text) {
  const words = [];
  TOKEN.lastIndex = 0;
  for (let found = TOKEN.exec(text); found && found[0]; found = TOKEN.exec(text)) {
    const [, quoted, sign, word, strange] = found;
    if (strange) throw new Error(`“${strange}” is not understood here`);
    words.push({ sign, quoted: quoted !== undefined, text: quoted?.replace(/\\(.)/g, "$1") ?? sign ?? word });
  }
  let at = 0;
  const is = (text) => words[at] && !words[at].quoted && words[at].text.toLowerCase() === text && (at++, true);
  const joined = (word, next, test) => {
    const parts = [next()];
    while (is(word)) parts.push(next());
    return (row) => parts[test]((part) => part(row));
  };
  const any = () => joined("or", all, "some");
  const all = () => joined("and", one, "every");
  const one = () => {
    if (is("not")) {
      const inner = one();
      return (row) => !inner(row);
    }
    if (is("(")) {
      const inner = any();
      if (!is(")")) throw new Error("a “)” is missing");
      return inner;
    }
    const name = words[at++];
    const field = name && !name.sign && fieldOf(name.text);
    if (!field) throw new Error(name ? `there is no “${name.text}”: ${fields().join(", ")}` : "the expression ends too early");
    const sign = words[at]?.sign;
    if (!sign || "()".includes(sign)) return (row) => Boolean(field(row));
    const value = words[++at];
    at++;
    if (!value || value.sign) throw new Error(`a value is missing after “${name.text} ${sign}”`);
    return (row) => holds(field(row), sign, value.text);
  };
  const found = any();
  if (at < words.length) throw new Error(`“${words[at].text}” is not expected here: join conditions by “and” or “or”`);
  return found;
}

function holds(left, sign, right) {
  const number = typeof left === "number" && right.trim() !== "" && !Number.isNaN(Number(right));
  const [a, b] = number ? [left, Number(right)] : [String(left ?? "").toLowerCase(), right.toLowerCase()];
  switch (sign) {
    case "=": case "==": return a === b;
    case "!=": return a !== b;
    case "~": return String(a).includes(String(b));
    case "!~": return !String(a).includes(String(b));
    case "<": return a < b;
    case "<=": return a <= b;
    case ">": return a > b;
    default: return a >= b;
  }
}
