// TeX mathematics to MathML, by Temml (vendor/temml.min.js, a global of the page's script).

const LONGEST = 4000;
const OPTIONS = { throwOnError: true, trust: false, maxSize: [20, 20], maxExpand: 200 };
const DISPLAY = /\\begin\{(?:align|gather|equation|multline|flalign)/; // nowhere else does Temml take them
const MACROS = { "\\mbox": "\\text{#1}", "\\emph": "\\textit{#1}" };

/** The names of environments that are mathematics without dollars around them. */
export const MATH_ENVIRONMENTS = "align|alignat|gather|equation|eqnarray|multline|flalign|displaymath|[pbvBV]?matrix|cases|array";

/** A <math> element, or null for what Temml does not understand: the reader then sees the TeX as it was written. */
export function mathOf(tex, display = false) {
  if (tex.length > LONGEST) return null;
  const holder = document.createElement("span");
  try {
    temml.render(tex, holder, { ...OPTIONS, macros: { ...MACROS }, displayMode: display || DISPLAY.test(tex) });
  } catch {
    return null; // a ParseError, or a formula nested too deep for the stack
  }
  const math = holder.querySelector("math");
  math?.setAttribute("title", tex);
  return math;
}
