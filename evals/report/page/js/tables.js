// Tables are sorted by a click on a column's name, and show the columns that are chosen. Both outlive an update.

import { h } from "./dom.js";

/** A cell's number where it begins with one ("−1.2 to 3.4", "< 0.0001", "1,024"), else its text. */
function valueOf(cell) {
  const text = (cell?.textContent ?? "").trim();
  const number = parseFloat(text.replace(/^< /, "").replaceAll(",", "").replace("−", "-"));
  return Number.isNaN(number) || cell.tagName === "TH" ? text : number;
}

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : typeof a === typeof b ? String(a).localeCompare(String(b), "en", { numeric: true }) : typeof a === "number" ? -1 : 1);

/** The parts that move: rows of one body, or bodies, each with the one of its levels behind it. */
function unitsOf(table) {
  if (table.tBodies.length === 1) return [...table.tBodies[0].rows].map((row) => [row]);
  const units = [];
  for (const body of table.tBodies) {
    if (body.classList.contains("levels")) units.at(-1).push(body);
    else units.push([body]);
  }
  return units;
}

const sorted = new Map(); // name of a table -> [column, downwards]
const away = new Map(); // name of a table -> names of the columns that are not shown
const nameOf = (table) => table.closest("[aria-label]")?.getAttribute("aria-label") ?? "";

export function sortable(table) {
  if (unitsOf(table).length < 3) return;
  const heads = [...table.tHead.rows[0].cells];
  const sort = (at, down) => {
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[at].setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = unitsOf(table).map((unit) => [valueOf((unit[0].rows?.[0] ?? unit[0]).cells[at]), unit]);
    keyed.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
    const into = table.tBodies.length === 1 ? table.tBodies[0] : table;
    into.append(...keyed.flatMap(([, unit]) => unit));
    sorted.set(nameOf(table), [at, down]);
  };
  heads.forEach((head, at) => {
    if (head.classList.contains("bar")) return;
    head.replaceChildren(h("button", { type: "button", class: "sort", onclick: () => sort(at, head.getAttribute("aria-sort") === "ascending") }, ...head.childNodes));
  });
  if (sorted.has(nameOf(table))) sort(...sorted.get(nameOf(table)));
}

/** A menu before the table that says which of its columns are shown. */
export function choosable(table) {
  const heads = [...table.tHead.rows[0].cells].map((head) => (head.classList.contains("bar") ? "interval" : head.textContent));
  if (heads.length < 8) return;
  const name = nameOf(table);
  if (!away.has(name)) away.set(name, new Set());
  const gone = away.get(name);
  const apply = () => {
    for (const row of table.rows) if (row.cells.length === heads.length) [...row.cells].forEach((cell, i) => (cell.hidden = gone.has(heads[i])));
  };
  const boxes = heads.slice(1).map((head) => h("label", null, h("input", { type: "checkbox", checked: !gone.has(head), onchange: (event) => {
    if (event.target.checked) gone.delete(head);
    else gone.add(head);
    apply();
  } }), head));
  table.closest(".scroll").before(h("details", { class: "columns" }, h("summary", null, "Columns"), h("div", null, boxes)));
  apply();
}
