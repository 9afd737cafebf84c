// Tables of the overview are sorted by a click on a column's name.

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

export function sortable(table) {
  if (unitsOf(table).length < 3) return;
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => {
    if (head.classList.contains("bar")) return;
    head.replaceChildren(h("button", { type: "button", class: "sort", onclick: () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = unitsOf(table).map((unit) => [valueOf((unit[0].rows?.[0] ?? unit[0]).cells[at]), unit]);
      keyed.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
      const into = table.tBodies.length === 1 ? table.tBodies[0] : table;
      into.append(...keyed.flatMap(([, unit]) => unit));
    } }, ...head.childNodes));
  });
}
