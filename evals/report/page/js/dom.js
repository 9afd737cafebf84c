// Building elements. Text always becomes a text node: what a model wrote can be shown, never run.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (on* are listeners, false and null are left out) and children (strings become text). */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

export const integer = (x) => (Number.isFinite(x) ? Math.round(x).toLocaleString("en-US") : "–");

/** A number for a read-out: about four digits, short for large ones. */
export function figure(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size >= 1e9) return `${+(x / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(x / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(x / 1e3).toPrecision(3)}k`;
  if (size >= 1000) return String(Math.round(x));
  if (size >= 100) return x.toFixed(1);
  if (size >= 1 || size === 0) return x.toFixed(2);
  return size < 1e-3 ? x.toExponential(1) : x.toFixed(3);
}

export const signed = (x, digits = 2) => (+x.toFixed(digits) < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);

/** A reward or a score: as short as it is exact. */
export const plain = (x) => (Number.isFinite(x) ? String(+x.toFixed(3)) : "none");

export const plural = (n, one, many = `${one}s`) => `${integer(n)} ${n === 1 ? one : many}`;

/** A labelled <select>; options are [value, text] or [value, text, group]. */
export function select(label, options, value, change) {
  const list = h("select", { onchange: (event) => change(event.target.value) });
  const groups = new Map();
  for (const [key, text, group] of options) {
    if (group && !groups.has(group)) {
      groups.set(group, h("optgroup", { label: group }));
      list.append(groups.get(group));
    }
    (groups.get(group) ?? list).append(h("option", { value: key, selected: String(key) === String(value) }, text));
  }
  return h("label", { class: "field" }, h("span", null, label), list);
}

/** Buttons of which one is pressed. */
export function segments(label, options, value, change) {
  const group = h("div", { class: "segments", role: "group", "aria-label": label }, options.map(([key, text]) => h("button", {
    type: "button", "aria-pressed": String(key === value), onclick: (event) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      change(key);
    },
  }, text)));
  return group;
}

export const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
export const mean = (values) => sumOf(values) / values.length;

/** Call `then` when `wait` ms have passed without another call. */
export function later(wait, then) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => then(...values), wait);
  };
}

/** What this browser keeps for a name; it may keep nothing for files. */
export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function keep(name, text) {
  try {
    localStorage.setItem(name, text);
  } catch { /* it stays until the page is closed */ }
}
