// TeX mathematics to MathML elements: what competition problems and models' answers use. Anything else is null, and the
// reader sees the TeX as it was written.

const MATHML = "http://www.w3.org/1998/Math/MathML";
const DEEPEST = 60;
const LONGEST = 4000;

/** "name value,name value" as a table without a prototype: \constructor is no symbol. */
const named = (text) => Object.assign(Object.create(null), Object.fromEntries(text.split(",").map((pair) => pair.split(" "))));

const IDENTIFIERS = named(
  ("alpha α,beta β,gamma γ,delta δ,epsilon ϵ,varepsilon ε,zeta ζ,eta η,theta θ,vartheta ϑ,iota ι,kappa κ,lambda λ,mu μ," +
    "nu ν,xi ξ,pi π,varpi ϖ,rho ρ,varrho ϱ,sigma σ,varsigma ς,tau τ,upsilon υ,phi ϕ,varphi φ,chi χ,psi ψ,omega ω," +
    "Gamma Γ,Delta Δ,Theta Θ,Lambda Λ,Xi Ξ,Pi Π,Sigma Σ,Upsilon Υ,Phi Φ,Psi Ψ,Omega Ω,infty ∞,ell ℓ,hbar ℏ,partial ∂," +
    "nabla ∇,emptyset ∅,varnothing ∅,aleph ℵ,Re ℜ,Im ℑ,imath ı,jmath ȷ,angle ∠,triangle △,square □,blacksquare ■," +
    "Box □,diamond ⋄,star ⋆,degree °,bot ⊥,top ⊤,forall ∀,exists ∃,nexists ∄,ldots …,dots …,dotsc …,cdots ⋯,dotsb ⋯," +
    "dotsm ⋯,vdots ⋮,ddots ⋱,prime ′,checkmark ✓,pounds £,dag †,ddag ‡,S §,measuredangle ∡,sphericalangle ∢," +
    "heartsuit ♥,diamondsuit ♦,clubsuit ♣,spadesuit ♠,wp ℘,textdollar $,textdegree °"),
);
const OPERATORS = named(
  ("cdot ⋅,times ×,div ÷,pm ±,mp ∓,ast ∗,circ ∘,bullet ∙,oplus ⊕,ominus ⊖,otimes ⊗,odot ⊙,wedge ∧,land ∧,vee ∨,lor ∨," +
    "cap ∩,cup ∪,setminus ∖,smallsetminus ∖,le ≤,leq ≤,leqslant ≤,ge ≥,geq ≥,geqslant ≥,ne ≠,neq ≠,equiv ≡,approx ≈," +
    "sim ∼,simeq ≃,cong ≅,propto ∝,ll ≪,gg ≫,in ∈,notin ∉,ni ∋,subset ⊂,subseteq ⊆,subsetneq ⊊,supset ⊃,supseteq ⊇," +
    "mid ∣,nmid ∤,parallel ∥,nparallel ∦,perp ⊥,to →,rightarrow →,longrightarrow ⟶,leftarrow ←,gets ←,leftrightarrow ↔," +
    "Rightarrow ⇒,Longrightarrow ⟹,implies ⟹,Leftarrow ⇐,impliedby ⟸,Leftrightarrow ⇔,Longleftrightarrow ⟺,iff ⟺," +
    "mapsto ↦,uparrow ↑,downarrow ↓,hookrightarrow ↪,rightleftharpoons ⇌,nearrow ↗,searrow ↘,neg ¬,lnot ¬,colon :,models ⊨," +
    "vdash ⊢,therefore ∴,because ∵,doteq ≐,prec ≺,succ ≻,asymp ≍,lt <,gt >,backslash \\,And &,longleftrightarrow ⟷," +
    "triangleq ≜,coloneqq ≔,lesssim ≲,gtrsim ≳,subsetneqq ⫋,bowtie ⋈,amalg ⨿,uplus ⊎,sqcup ⊔,sqcap ⊓"),
);
const LARGE = named(
  ("sum ∑,prod ∏,coprod ∐,int ∫,iint ∬,iiint ∭,oint ∮,bigcup ⋃,bigcap ⋂,bigoplus ⨁,bigotimes ⨂,bigvee ⋁,bigwedge ⋀"),
);
const DELIMITERS = named(
  ("langle ⟨,rangle ⟩,lfloor ⌊,rfloor ⌋,lceil ⌈,rceil ⌉,lvert |,rvert |,vert |,Vert ‖,lVert ‖,rVert ‖,lbrace {,rbrace }," +
    "lbrack [,rbrack ],{ {,} },| ‖,uparrow ↑,downarrow ↓,lgroup (,rgroup )"),
);
const FUNCTIONS = new Set(
  ("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp deg dim ker hom arg mod " +
    "arccot arcsec arccsc").split(" "),
);
const LIMITS = new Set("lim max min sup inf gcd lcm det Pr limsup liminf argmax argmin".split(" "));
const ACCENTS = named(
  ("bar ‾,overline ‾,hat ^,widehat ^,tilde ~,widetilde ~,vec →,overrightarrow →,overleftarrow ←,dot ˙,ddot ¨,check ˇ,breve ˘," +
    "acute ´,grave `,mathring ˚,overbrace ⏞,overarc ⌒,wideparen ⌒,overleftrightarrow ↔"),
);
const UNDER = { __proto__: null, underline: "_", underbrace: "⏟", underbar: "_" };
const SPACES = { __proto__: null, ",": 0.17, ":": 0.22, ">": 0.22, ";": 0.28, " ": 0.25, "~": 0.25, "!": -0.17, quad: 1, qquad: 2, enspace: 0.5, thinspace: 0.17, "/": 0, nobreakspace: 0.25 };
const IGNORED = new Set(
  ("displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits nonumber notag hline hfill noindent " +
    "centering allowbreak nobreak relax protect bigskip medskip smallskip newline small large Large normalsize footnotesize " +
    "boldmath mathstrut strut itshape rm it bf sf tt cal").split(" "),
);
const SIZES = /^(?:[bB]igg?[lrm]?)$/;
const TEXTS = new Set("text textrm textup textnormal textit textsf texttt mbox hbox textbf emph textsc".split(" "));
const UPRIGHT = new Set("mathrm operatorname mathop mathsf mathtt mathit mathnormal boldsymbol bm pmb mathbf mathbin mathrel mathord".split(" "));
const ALPHABETS = { __proto__: null,
  mathbb: { upper: 0x1d538, lower: 0x1d552, digit: 0x1d7d8, C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" },
  mathcal: { upper: 0x1d49c, lower: 0x1d4b6, B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" },
  mathfrak: { upper: 0x1d504, lower: 0x1d51e, C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" },
  mathbf: { upper: 0x1d400, lower: 0x1d41a, digit: 0x1d7ce },
};
ALPHABETS.mathscr = ALPHABETS.mathcal;
ALPHABETS.boldsymbol = ALPHABETS.bold = ALPHABETS.bm = ALPHABETS.mathbf;
ALPHABETS.Bbb = ALPHABETS.mathbb;
const TABLES = { __proto__: null,
  matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"],
  smallmatrix: ["", ""], cases: ["{", ""], dcases: ["{", ""], rcases: ["", "}"], array: ["", ""], tabular: ["", ""],
  align: ["", ""], aligned: ["", ""], alignat: ["", ""], alignedat: ["", ""], gather: ["", ""], gathered: ["", ""], split: ["", ""],
  eqnarray: ["", ""], multline: ["", ""], equation: ["", ""], flalign: ["", ""], displaymath: ["", ""], math: ["", ""],
};
const COLUMNS_SPEC = new Set(["array", "tabular", "alignat", "alignedat"]);
const LEFT_ALIGNED = new Set(["cases", "dcases", "rcases"]);
const EQUATIONS = /^(?:align|aligned|alignat|alignedat|split|eqnarray|flalign)$/;

/** The names of environments that are mathematics without dollars around them. */
export const MATH_ENVIRONMENTS = "align|alignat|gather|equation|eqnarray|multline|flalign|displaymath|[pbvBV]?matrix|cases|array";

function m(tag, attributes, ...children) {
  const element = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A <math> element, or null for what is not understood. */
export function mathOf(tex, display = false) {
  if (tex.length > LONGEST) return null;
  try {
    const parser = { tokens: tokensOf(tex), at: 0, depth: 0 };
    const rows = lines(parser);
    if (parser.at < parser.tokens.length) return null;
    const body = rows.length === 1 ? row(rows[0]) : table(rows.map((line) => [line]), "left");
    return m("math", display ? { display: "block", title: tex } : { title: tex }, body);
  } catch (error) {
    if (error instanceof NotUnderstood || error instanceof RangeError) return null;
    throw error;
  }
}

class NotUnderstood extends Error {}

function tokensOf(tex) {
  return tex.replace(/(^|[^\\])%[^\n]*/g, "$1").match(/\\[a-zA-Z]+\*?|\\[\s\S]|[\s]+|[\s\S]/gu)?.map((token) => (/^\s+$/.test(token) ? " " : token)) ?? [];
}

const peek = (p) => p.tokens[p.at];
const next = (p) => p.tokens[p.at++];
function skipSpace(p) {
  while (peek(p) === " ") p.at++;
}
function need(condition) {
  if (!condition) throw new NotUnderstood();
}

const row = (nodes) => (nodes.length === 1 ? nodes[0] : m("mrow", null, ...nodes));

/** Lines at the top, which "\\" may part. */
function lines(p) {
  const found = [expression(p, (token) => token === "\\\\")];
  while (peek(p) === "\\\\") {
    p.at++;
    found.push(expression(p, (token) => token === "\\\\"));
  }
  return found.filter((line, at) => line.length || at === 0);
}

/** Atoms with their scripts until `stop`, the end or a closing brace. */
function expression(p, stop) {
  need(++p.depth < DEEPEST);
  const nodes = [];
  for (skipSpace(p); p.at < p.tokens.length && peek(p) !== "}" && !stop(peek(p)); skipSpace(p)) {
    const token = peek(p);
    if (/^\\(?:over|choose|atop)$/.test(token)) {
      p.at++;
      const below = expression(p, stop);
      const fraction = m("mfrac", token === "\\over" ? null : { linethickness: "0" }, row(nodes.splice(0)), row(below));
      nodes.push(token === "\\choose" ? m("mrow", null, fence("("), fraction, fence(")")) : fraction);
      break;
    }
    const start = token === "^" || token === "_" || token === "'" ? m("mrow") : atom(p, stop);
    if (start) nodes.push(scripts(p, start));
  }
  p.depth--;
  return nodes;
}

function scripts(p, base) {
  let above = null;
  let below = null;
  for (;;) {
    skipSpace(p);
    if (peek(p) === "\\limits" || peek(p) === "\\nolimits") p.at++;
    else if (peek(p) === "'") {
      let primes = "";
      while (peek(p) === "'") {
        primes += "′";
        p.at++;
      }
      const mark = m("mo", null, primes);
      above = above ? m("mrow", null, above, mark) : mark;
    } else if (peek(p) === "^" && (!above || above.localName === "mo")) {
      p.at++;
      const up = argument(p);
      above = above ? m("mrow", null, above, up) : up;
    } else if (peek(p) === "_" && !below) {
      p.at++;
      below = argument(p);
    } else break;
  }
  if (!above && !below) return base;
  if (above?.textContent === "∘" && !below) return m("mrow", null, base, m("mi", { mathvariant: "normal" }, "°"));
  const stacked = base.getAttribute("data-stack");
  const [sub, sup, both] = stacked ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
  if (above && below) return m(both, null, base, below, above);
  return above ? m(sup, null, base, above) : m(sub, null, base, below);
}

/** One argument: a group in braces or a single atom. */
function argument(p) {
  skipSpace(p);
  need(p.at < p.tokens.length && peek(p) !== "}");
  if (peek(p) === "{") return group(p);
  if (/^\d$/.test(peek(p))) return m("mn", null, next(p)); // \frac12 takes a digit each
  return atom(p, () => false) ?? m("mrow");
}

function group(p) {
  need(next(p) === "{");
  const nodes = expression(p, () => false);
  need(next(p) === "}");
  return row(nodes);
}

/** The raw text of a group in braces, or of one token. */
function rawGroup(p) {
  skipSpace(p);
  if (peek(p) !== "{") return next(p) ?? "";
  p.at++;
  let text = "";
  for (let depth = 1; ; ) {
    need(p.at < p.tokens.length);
    const token = next(p);
    if (token === "{") depth++;
    if (token === "}" && --depth === 0) return text;
    text += token;
  }
}

/** The raw text of [options], "" where there are none. */
function optional(p) {
  skipSpace(p);
  if (peek(p) !== "[") return "";
  p.at++;
  let text = "";
  while (peek(p) !== "]") {
    need(p.at < p.tokens.length);
    text += next(p);
  }
  p.at++;
  return text;
}

function atom(p, stop) {
  const token = next(p);
  if (token === "{") {
    p.at--;
    return group(p);
  }
  if (/^\d$/.test(token)) {
    let number = token;
    while (/^[\d]$/.test(peek(p) ?? "") || (/^[.]$/.test(peek(p) ?? "") && /^\d$/.test(p.tokens[p.at + 1] ?? ""))) number += next(p);
    return m("mn", null, number);
  }
  if (/^[a-zA-Z]$/.test(token)) return m("mi", null, token);
  if (token === "&") need(false);
  if (token === "~") return space(0.25);
  if (token === "-") return m("mo", null, "−");
  if (token === "*") return m("mo", null, "∗");
  if ("()[]|".includes(token)) return fence(token, false);
  if (token === "$" || token === "#") need(false);
  if (!token.startsWith("\\")) return /^\p{L}$/u.test(token) ? m("mi", null, token) : m("mo", null, token);
  return command(p, token.slice(1), stop);
}

const space = (em) => m("mspace", { width: `${em}em` });
const fence = (text, stretchy = true) => m("mo", { stretchy: String(stretchy), fence: "true" }, text);

function command(p, given, stop) {
  const name = given.length > 1 ? given.replace(/\*$/, "") : given;
  if (name in IDENTIFIERS) return m("mi", null, IDENTIFIERS[name]);
  if (name in OPERATORS) return m("mo", null, OPERATORS[name]);
  if (name in LARGE) return m("mo", name.includes("int") ? null : { "data-stack": "yes", movablelimits: "false" }, LARGE[name]);
  if (FUNCTIONS.has(name)) return m("mrow", null, m("mi", null, name), space(0.1));
  if (LIMITS.has(name)) return m("mo", { "data-stack": "yes", movablelimits: "false", form: "prefix" }, name);
  if (name in SPACES) return space(SPACES[name]);
  if (IGNORED.has(name)) return null;
  if (TEXTS.has(name)) return m("mtext", name === "textbf" ? { class: "bold" } : null, rawGroup(p).replace(/^ | $/g, "\u00a0").replaceAll("\\", "").replaceAll("$", ""));
  if (name in ACCENTS) return m("mover", { accent: "true" }, argument(p), m("mo", { stretchy: String(/over|wide/.test(name)) }, ACCENTS[name]));
  if (name in UNDER) return m("munder", null, argument(p), m("mo", { stretchy: "true" }, UNDER[name]));
  if (name in ALPHABETS) return alphabet(p, ALPHABETS[name]);
  if (UPRIGHT.has(name)) return upright(p, name);
  if (SIZES.test(name)) return delimiter(p);
  if (name in DELIMITERS) return fence(DELIMITERS[name], false);
  if ("%$#&_".includes(name)) return m("mo", null, name);
  switch (name) {
    case "frac": case "dfrac": case "tfrac": case "cfrac": {
      const above = argument(p);
      return m("mfrac", null, above, argument(p));
    }
    case "binom": case "dbinom": case "tbinom": {
      const above = argument(p);
      return m("mrow", null, fence("("), m("mfrac", { linethickness: "0" }, above, argument(p)), fence(")"));
    }
    case "sqrt": {
      const index = optional(p);
      const under = argument(p);
      return index ? m("mroot", null, under, inner(index)) : m("msqrt", null, under);
    }
    case "boxed": case "fbox": case "framebox":
      return m("mrow", { class: "boxed" }, argument(p));
    case "left": return stretched(p);
    case "pmod": return m("mrow", null, space(0.4), m("mo", null, "("), m("mi", null, "mod"), space(0.3), argument(p), m("mo", null, ")"));
    case "bmod": return m("mrow", null, space(0.2), m("mi", null, "mod"), space(0.2));
    case "not": {
      const negated = argument(p);
      negated.append("\u0338");
      return negated;
    }
    case "overset": case "stackrel": case "underset": {
      const mark = argument(p);
      return m(name === "underset" ? "munder" : "mover", null, argument(p), mark);
    }
    case "xrightarrow": case "xleftarrow": {
      optional(p);
      return m("mover", null, m("mo", { stretchy: "true" }, name === "xrightarrow" ? "→" : "←"), argument(p));
    }
    case "substack": return inner(rawGroup(p));
    case "cancel": case "bcancel": case "xcancel": return m("mrow", { class: "struck" }, argument(p));
    case "cancelto": {
      const to = argument(p);
      return m("msup", null, m("mrow", { class: "struck" }, argument(p)), to);
    }
    case "multicolumn": {
      const width = Number(rawGroup(p));
      need(width >= 1 && width <= 50);
      rawGroup(p);
      const cell = m("mrow", null, argument(p));
      cell.setAttribute("data-columns", width);
      return cell;
    }
    case "phantom": case "hphantom": case "vphantom": return m("mphantom", null, argument(p));
    case "color": rawGroup(p); return null;
    case "textcolor": case "colorbox": rawGroup(p); return argument(p);
    case "tag": return m("mtext", null, `\u2003(${rawGroup(p)})`);
    case "cline": case "label": case "hspace": case "vspace": rawGroup(p); return null;
    case "mathclap": case "smash": case "mathrlap": case "mathllap": return argument(p);
    case "hdots": case "dotso": case "dotsi": return m("mi", null, "…");
    case "begin": return environment(p);
    case "Longleftarrow": return m("mo", null, "⟸");
    case "-": return null;
    default: throw new NotUnderstood();
  }
}

/** A piece of TeX by itself. */
function inner(tex) {
  const p = { tokens: tokensOf(tex), at: 0, depth: 0 };
  const found = lines(p);
  need(p.at >= p.tokens.length);
  return found.length === 1 ? row(found[0]) : table(found.map((line) => [line]), "center");
}

function alphabet(p, letters) {
  const text = rawGroup(p);
  if (!/^[\w\s.,+-]*$/.test(text)) return inner(text);
  const letter = (c) => letters[c]
    ?? (/[A-Z]/.test(c) ? String.fromCodePoint(letters.upper + c.charCodeAt(0) - 65)
      : /[a-z]/.test(c) ? String.fromCodePoint(letters.lower + c.charCodeAt(0) - 97)
        : /\d/.test(c) && letters.digit ? String.fromCodePoint(letters.digit + Number(c)) : c);
  return m("mi", { mathvariant: "normal" }, [...text].map(letter).join(""));
}

function upright(p, name) {
  const text = rawGroup(p);
  if (!/^[\w\s.,'-]*$/.test(text)) return inner(text);
  return m("mi", name === "mathit" ? null : { mathvariant: "normal" }, text);
}

function delimiter(p) {
  skipSpace(p);
  const token = next(p);
  need(token !== undefined);
  if (token === ".") return m("mrow");
  const name = token.startsWith("\\") ? DELIMITERS[token.slice(1)] : token === "<" ? "⟨" : token === ">" ? "⟩" : token;
  need(name !== undefined && !/[a-zA-Z{}]/.test(token.startsWith("\\") ? "" : name));
  return fence(name);
}

function stretched(p) {
  const open = delimiter(p);
  const nodes = [];
  for (;;) {
    nodes.push(...expression(p, (token) => token === "\\right" || token === "\\middle"));
    need(p.at < p.tokens.length);
    if (next(p) === "\\right") break;
    nodes.push(delimiter(p));
  }
  return m("mrow", null, open, ...nodes, delimiter(p));
}

function environment(p) {
  const name = rawGroup(p).replace(/\*$/, "");
  need(name in TABLES);
  if (name === "array" || name === "tabular") optional(p);
  const spec = COLUMNS_SPEC.has(name) ? rawGroup(p) : "";
  const stop = (token) => token === "&" || token === "\\\\" || token === "\\end" || token === "\\cr";
  const rows = [[]];
  for (;;) {
    rows.at(-1).push(expression(p, stop));
    const token = next(p);
    if (token === "&") continue;
    if (token === "\\\\" || token === "\\cr") {
      optional(p);
      rows.push([]);
      continue;
    }
    need(token === "\\end");
    need(rawGroup(p).replace(/\*$/, "") === name);
    break;
  }
  if (rows.length > 1 && rows.at(-1).length === 1 && !rows.at(-1)[0].length) rows.pop();
  const columns = spec.replace(/@\{[^}]*\}/g, "").replace(/[^lcr]/g, "");
  const align = EQUATIONS.test(name) ? "equations" : LEFT_ALIGNED.has(name) ? "left" : columns || "center";
  const [open, close] = TABLES[name];
  const body = table(rows, align);
  return open || close ? m("mrow", null, ...(open ? [fence(open)] : []), body, ...(close ? [fence(close)] : [])) : body;
}

function table(rows, align) {
  const side = (column) => {
    if (align === "equations") return column % 2 ? "left" : "right";
    if (align === "left" || align === "center") return align;
    return { l: "left", c: "center", r: "right" }[align[column]] ?? "center";
  };
  const cells = (line) => line.map((nodes, column) => {
    const columns = nodes[0]?.getAttribute("data-columns");
    return m("mtd", { class: `to-${side(column)}`, ...(columns ? { columnspan: columns } : null) }, ...nodes);
  });
  const attributes = { class: align === "equations" ? "equations" : "table" };
  return m("mtable", attributes, ...rows.map((line) => m("mtr", null, ...cells(line))));
}
