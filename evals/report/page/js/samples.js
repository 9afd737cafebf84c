// The sample browser: filters, a list of which only the rows in sight exist, and the sample that is open.

import { MARKS, data, isCut, itemOf, keyOf, once, partOf, rowOf, searchTexts, standing } from "./data.js";
import { byId, h, integer, later, plain, plural, select, signed } from "./dom.js";
import { anyNotes, download, noteOf } from "./notes.js";
import { fields } from "./where.js";
import { spread } from "./spread.js";
import { SORTS, STANDINGS, fromQuery, matching, noFilter, toQuery } from "./filter.js";
import { here, linkTo, note, sampleLink } from "./route.js";
import { nextLook, sampleView } from "./sample.js";

const SPARE = 8; // rows drawn above and below what is in sight
const MOST_ROWS = 200_000; // of a list: a browser's elements end at about 16 million pixels

const state = { filter: null, rows: [], found: null, searching: 0, shown: null, at: -1, open: -1, preview: false, opening: 0 };
let parts = null; // the elements of the view

export function showSamples(into) {
  if (!data.rows) {
    into.replaceChildren(h("p", { class: "empty" }, data.parts.length ? "No samples are in this page; --limit-samples chooses how many." : "The store has no samples of these runs yet."));
    return;
  }
  const { query, target } = here();
  if (target === null || !state.filter) state.filter = target === null ? fromQuery(query) : noFilter();
  const same = state.shown === JSON.stringify(state.filter); // the reader comes back to the list: it stays where it was
  state.shown = JSON.stringify(state.filter);
  if (!parts) build(into);
  drawFilters();
  if (target === null) {
    closeSample(false);
    if (same) drawRows();
    else search();
    if (same) preview();
    return;
  }
  if (!same) search();
  const row = rowOf(target);
  if (row >= 0) openRow(row, false);
  else {
    parts.layout.classList.add("opened");
    parts.detail.replaceChildren(h("p", { class: "empty" }, "This sample is not in the page: it was left out, or belongs to another store. ", h("a", { href: "#samples" }, "All samples")));
  }
}

function build(into) {
  parts = {
    filters: h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }),
    count: h("p", { class: "count", role: "status" }),
    spread: h("div"),
    search: input("search", "q", "Search prompts, responses, answers", "Search the texts", runSearch),
    where: input("where", "where", "tokens > 200 and (wrong or truncated)", "Condition", () => refresh()),
    space: h("div", { class: "space", role: "presentation" }),
    detail: h("div", { class: "detail" }),
  };
  parts.list = h("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": "Samples", onscroll: () => requestAnimationFrame(drawRows), onkeydown: listKey }, parts.space);
  const save = h("button", { type: "button", class: "quiet", title: "The listed samples with your notes, as JSON lines", onclick: () => download(state.rows) }, "Export");
  parts.layout = h("div", { class: "browser" }, h("div", { class: "list-side" }, h("div", { class: "count-line" }, parts.count, save), parts.spread, parts.list), parts.detail);
  const stored = data.parts.reduce((sum, part) => sum + part.samples, 0);
  const partial = h("details", { class: "partial" }, h("summary", null, `${integer(data.rows)} of ${integer(stored)} samples are in this page`), h("p", null, byId("left-out").textContent));
  into.replaceChildren(...[parts.filters, data.rows < stored && partial, parts.layout].filter(Boolean));
  parts.detail.replaceChildren(placeholder());
  new ResizeObserver(drawRows).observe(parts.list);
}

/** An input whose text is `filter[key]`; `change` is called a little after it was changed. */
function input(id, key, placeholder, label, change) {
  const soon = later(180, () => change());
  return h("input", { type: "search", id, placeholder, "aria-label": label, autocomplete: "off", spellcheck: "false", oninput: (event) => {
    state.filter[key] = event.target.value;
    soon();
  } });
}

const placeholder = () => h("p", { class: "empty" }, "Choose a sample. ", h("kbd", null, "j"), " and ", h("kbd", null, "k"), " step through the list.");

// Filters

function drawFilters() {
  const { filter } = state;
  const { samples } = data;
  const set = (key) => (value) => {
    filter[key] = value;
    if (key === "run") filter.part = "";
    drawFilters();
    refresh();
  };
  const distinct = (name) => [...new Set(data.parts.filter((p) => samples.included[data.partAt.get(p.key)]).map((p) => p[name]))];
  const runs = distinct("run");
  const steps = distinct("step").sort((a, b) => a - b);
  const splits = distinct("split");
  const { search, where } = parts;
  if (document.activeElement !== search) search.value = filter.q;
  if (document.activeElement !== where) where.value = filter.where;
  where.title = `Fields: ${fields().join(", ")}. Compared by = != < <= > >= ~ (contains) !~; joined by and, or, not, ( ).`;
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Verdict" }, [["", "all"], ...Object.entries(STANDINGS)].filter(([key]) => key === "" || present(key)).map(([key, text]) => h("button", {
    type: "button", class: `chip ${key}`, "aria-pressed": String(filter.standing === key), onclick: () => set("standing")(filter.standing === key ? "" : key),
  }, MARKS[key] ? h("span", { "aria-hidden": "true" }, `${MARKS[key]} `) : null, text)));
  const any = (text, values) => [["", text], ...values];
  const more = [
    runs.length > 1 && select("Run", any("every run", runs.map((id) => [id, data.run.get(id).title])), filter.run, set("run")),
    splits.length > 1 && select("Split", any("every split", splits.map((x) => [x, x])), filter.split, set("split")),
    steps.length > 1 && select("Step", any("every step", steps.map((x) => [x, x])), filter.step, set("step")),
    samples.outcomes.length > 1 && select("Verdict", any("every verdict", samples.outcomes.map((x) => [x, x.replaceAll("_", " ")])), filter.outcome, set("outcome")),
    ...Object.entries(samples.facets).map(([key, values]) => select(key[0].toUpperCase() + key.slice(1), any(`every ${key}`, values.map((value, code) => [code, String(value)]).sort(([, a], [, b]) => a.localeCompare(b, "en", { numeric: true }))), filter.facets[key] ?? "", (value) => {
      filter.facets[key] = value === "" ? "" : Number(value);
      refresh();
    })),
    select("Order", Object.entries(SORTS).filter(([key]) => key !== "advantage" || data.runs.some((run) => run.advantage)), filter.sort, set("sort")),
  ].filter(Boolean);
  const open = parts.filters.querySelector("details")?.open ?? matchMedia("(min-width: 760px)").matches;
  const clear = h("button", { type: "button", class: "quiet", onclick: () => {
    state.filter = noFilter();
    search.value = where.value = "";
    drawFilters();
    runSearch();
  } }, "Clear");
  parts.filters.replaceChildren(h("div", { class: "filter-top" }, search, where, chips), h("details", { class: "more-filters", open }, h("summary", null, "Filters and order"), h("div", { class: "fields" }, more, clear)));
}

/** Whether any sample stands so; chips that could never match are not shown. */
const present = (key) => key === "noted" ? anyNotes() : once("standings", () => {
  const found = new Set();
  for (let row = 0; row < data.rows; row++) found.add(standing(row)).add(isCut(row) ? "cut" : "");
  return found;
}).has(key);

/** Start the search of `filter.q` over all texts; results come chunk by chunk. */
function runSearch() {
  const turn = ++state.searching;
  const { q } = state.filter;
  if (!q.trim()) {
    state.found = null;
    refresh();
    return;
  }
  state.found = new Set();
  searchTexts(q.trim(), () => turn === state.searching, (rows, share) => {
    state.found = rows;
    refresh(share);
  });
}

function search() {
  if (state.filter.q.trim()) runSearch();
  else {
    state.found = null;
    state.searching++;
    refresh();
  }
}

function refresh(share = 1, keep = false) {
  const bad = (text) => {
    parts.where.setAttribute("aria-invalid", String(text !== ""));
    parts.count.textContent = text;
  };
  bad("");
  try {
    state.rows = matching(state.filter, state.found);
  } catch (error) {
    bad(`${error.message}.`);
    return;
  }
  const whole = state.rows.length;
  if (whole > MOST_ROWS) state.rows.length = MOST_ROWS;
  state.at = state.rows.indexOf(state.open);
  const searching = state.found && share < 1 ? `, ${Math.round(100 * share)} % searched` : "";
  const cut = whole > MOST_ROWS ? `; the first ${integer(MOST_ROWS)} are listed` : "";
  parts.count.textContent = whole === data.rows ? plural(whole, "sample") : `${integer(whole)} of ${plural(data.rows, "sample")}${searching}${cut}`;
  parts.spread.replaceChildren(spread(state.rows, (expression) => {
    const { where } = state.filter;
    state.filter.where = where.trim() ? `(${where}) and ${expression}` : expression;
    drawFilters();
    refresh();
  }));
  const height = rowHeight();
  parts.space.style.height = `${Math.max(1, state.rows.length) * height}px`;
  if (!keep && (state.open < 0 || state.preview) && share === 1 && here().target === null) {
    parts.list.scrollTop = 0;
    state.shown = JSON.stringify(state.filter);
    note(linkTo("samples", toQuery(state.filter)));
    preview();
  }
  drawRows();
}

/** On a wide screen the first sample of the list is open before one is chosen. */
function preview() {
  if (!matchMedia("(min-width: 900px)").matches) return;
  if (state.rows.length) openRow(state.rows[0], false, true);
  else closeSample(false);
}

/** Before the data are replaced: what puts list and sample back afterwards. */
export function keepPlace() {
  if (!parts) return () => {};
  const [open, filter] = [state.open < 0 ? null : keyOf(state.open), linkTo("", toQuery(state.filter))];
  state.searching++;
  return () => {
    state.open = open === null ? -1 : rowOf(open);
    state.filter = fromQuery(new URLSearchParams(filter.split("?")[1] ?? ""));
    state.shown = JSON.stringify(state.filter);
    state.found = null;
    if (!parts.filters.contains(document.activeElement)) drawFilters();
    if (state.filter.q.trim()) runSearch();
    else refresh(1, true);
  };
}

// The list

const rowHeight = () => parseFloat(getComputedStyle(parts.list).getPropertyValue("--row")) || 58;

function drawRows() {
  const height = rowHeight();
  const first = Math.max(0, Math.floor(parts.list.scrollTop / height) - SPARE);
  const last = Math.min(state.rows.length, Math.ceil((parts.list.scrollTop + parts.list.clientHeight) / height) + SPARE);
  const drawn = [];
  for (let i = first; i < last; i++) drawn.push(rowElement(state.rows[i], i, height));
  if (!state.rows.length) drawn.push(h("p", { class: "empty" }, state.found && !state.found.size ? "Nothing found." : "No matching sample."));
  parts.space.replaceChildren(...drawn);
  if (state.at >= 0) parts.list.setAttribute("aria-activedescendant", `row-${state.rows[state.at]}`);
  else parts.list.removeAttribute("aria-activedescendant");
}

function rowElement(row, i, height) {
  const { answer, advantage, prompt, repeat, reward, tokens } = data.columns;
  const part = partOf(row);
  return h("a", {
    class: `row ${standing(row)}${row === state.open ? " current" : ""}`, id: `row-${row}`, role: "option", href: sampleLink(keyOf(row)), tabindex: "-1",
    "aria-selected": String(row === state.open), "aria-posinset": i + 1, "aria-setsize": state.rows.length, style: `top:${i * height}px;height:${height}px`,
    onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      openRow(row);
    },
  },
  h("span", { class: "mark", title: data.samples.outcomes[data.columns.outcome[row]] }, MARKS[standing(row)]),
  h("span", { class: "what" }, data.heads[prompt[row]] || itemOf(row)),
  h("span", { class: "result" }, answer[row] ?? "no answer"),
  h("span", { class: "under" }, `${part.name} · sample ${repeat[row] + 1}`),
  h("span", { class: "size" }, Number.isNaN(advantage[row]) ? (Number.isNaN(reward[row]) || reward[row] === 0 || reward[row] === 1 ? null : `r ${plain(reward[row])} · `) : `A ${signed(advantage[row])} · `, `${integer(tokens[row])} tokens${isCut(row) ? " ✂" : ""}${noteOf(row) ? " ✎" : ""}`));
}

function listKey(event) {
  const page = Math.max(1, Math.floor(parts.list.clientHeight / rowHeight()) - 1);
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
  if (by !== undefined) {
    event.preventDefault();
    moveBy(by);
  }
}

/** Open the sample `by` rows further down the list. */
export function moveBy(by) {
  if (!parts || !state.rows.length) return;
  const start = state.at < 0 ? (by > 0 ? -1 : 0) : state.at;
  openRow(state.rows[Math.min(state.rows.length - 1, Math.max(0, start + by))]);
}

// The sample that is open

async function openRow(row, remember = true, unasked = false) {
  const turn = ++state.opening;
  const fromList = state.open < 0 || state.preview;
  state.open = row;
  state.preview = unasked;
  state.at = state.rows.indexOf(row);
  if (remember) note(sampleLink(keyOf(row)), fromList);
  scrollTo(state.at);
  drawRows();
  const view = await sampleView(row, { redraw: () => openRow(state.open, !state.preview, state.preview), close: () => closeSample(true), step: moveBy, noted });
  if (turn !== state.opening) return;
  parts.detail.replaceChildren(view);
  parts.layout.classList.toggle("opened", !unasked);
  parts.detail.scrollTop = 0;
  if (matchMedia("(max-width: 899px)").matches) {
    window.scrollTo(0, 0);
    byId("sample-title").focus({ preventScroll: true });
  }
}

function noted() {
  drawFilters();
  drawRows();
}

/** Bring a place of the list into sight. */
function scrollTo(at) {
  if (at < 0) return;
  const [top, height] = [at * rowHeight(), rowHeight()];
  const { list } = parts;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
}

/** Close the sample. Returns whether one was open. */
export function closeSample(remember = true) {
  if (!parts || (state.open < 0 && !parts.layout.classList.contains("opened"))) return false;
  state.opening++;
  state.open = state.at = -1;
  state.preview = false;
  parts.layout.classList.remove("opened");
  parts.detail.replaceChildren(placeholder());
  if (remember) note(linkTo("samples", toQuery(state.filter)));
  drawRows();
  parts.list.focus({ preventScroll: true });
  return true;
}

/** Show the open sample's texts in the next look. */
export function toggleLook() {
  nextLook();
  if (state.open >= 0) openRow(state.open, !state.preview, state.preview);
}

export const focusNote = () => byId("note")?.focus();
export const focusSearch = () => byId("search")?.focus();
