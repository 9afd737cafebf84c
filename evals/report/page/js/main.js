// Start: unpack the index, then show the view that the address names.

import { showCompare } from "./compare.js";
import { showCurves } from "./curves.js";
import { load } from "./data.js";
import { byId, h, keep, kept } from "./dom.js";
import { follow } from "./live.js";
import { here } from "./route.js";
import { showRuns } from "./runs.js";
import { closeSample, focusNote, focusSearch, keepPlace, moveBy, showSamples, toggleLook } from "./samples.js";
import { choosable, sortable } from "./tables.js";

const VIEWS = ["overview", "curves", "samples", "compare", "runs"];
const SHOW = { curves: showCurves, samples: showSamples, compare: showCompare, runs: showRuns };
const THEMES = { auto: ["Colours: auto", "as the system"], light: ["Colours: light", "light"], dark: ["Colours: dark", "dark"] };

function show() {
  const wanted = here().view;
  const view = VIEWS.includes(wanted) ? wanted : "overview";
  for (const section of document.querySelectorAll("[data-page]")) section.hidden = section.dataset.page !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = view;
  SHOW[view]?.(byId(`view-${view}`));
}

function theme() {
  const button = byId("theme");
  const names = Object.keys(THEMES);
  let now = "auto";
  const apply = (name) => {
    now = name in THEMES ? name : "auto";
    if (now === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = now;
    button.textContent = THEMES[now][0];
    button.setAttribute("aria-label", `Colours: ${THEMES[now][1]}`);
  };
  button.addEventListener("click", () => {
    apply(names[(names.indexOf(now) + 1) % names.length]);
    keep("agpo-theme", now);
  });
  apply(kept("agpo-theme"));
}

function keys() {
  const dialog = byId("keys");
  byId("help").addEventListener("click", () => dialog.showModal());
  byId("keys-close").addEventListener("click", () => dialog.close());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("content").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    const samples = document.body.dataset.view === "samples";
    if (event.key === "Escape") {
      if (writing) event.target.blur();
      else if (samples) closeSample();
      return;
    }
    if (writing) return;
    const number = Number(event.key);
    if (event.key === "/") {
      event.preventDefault();
      if (samples) focusSearch(); // at once: what is typed next belongs into it
      else {
        location.hash = "samples";
        setTimeout(focusSearch);
      }
    } else if (event.key === "?") dialog.showModal();
    else if (number >= 1 && number <= VIEWS.length) location.hash = VIEWS[number - 1];
    else if (samples && event.key === "j") moveBy(1);
    else if (samples && event.key === "k") moveBy(-1);
    else if (samples && event.key === "t") toggleLook();
    else if (samples && event.key === "n") {
      event.preventDefault();
      focusNote();
    }
  });
}

/** What the tables of the overview can do; `open`: keys of the evaluations whose levels are shown. */
function overview(open = []) {
  for (const button of document.querySelectorAll("button[data-levels]")) {
    const rows = byId(`levels-${button.dataset.levels}`);
    const show = (shown) => {
      rows.hidden = !shown;
      button.setAttribute("aria-expanded", String(shown));
    };
    show(open.includes(button.dataset.levels));
    button.setAttribute("aria-controls", rows.id);
    button.addEventListener("click", () => show(rows.hidden));
  }
  for (const table of document.querySelectorAll("[data-page=overview] table.sortable")) {
    sortable(table);
    choosable(table);
  }
}

/** Show a newer page's data where the reader is. */
async function update(fresh) {
  const back = keepPlace();
  await load(fresh);
  const section = document.querySelector("[data-page=overview]");
  const open = [...section.querySelectorAll("[aria-expanded=true]")].map((button) => button.dataset.levels);
  const inside = section.querySelectorAll("details[open]").length > 0;
  section.replaceChildren(...fresh.querySelector("[data-page=overview]").childNodes);
  for (const details of section.querySelectorAll("details.inside")) details.open = inside;
  overview(open);
  byId("left-out").textContent = fresh.getElementById("left-out").textContent;
  byId("view-runs").replaceChildren();
  back();
  if (document.body.dataset.view === "curves") showCurves(byId("view-curves"));
}

theme();
keys();
overview();
try {
  await load();
  addEventListener("hashchange", show);
  show();
  document.body.dataset.ready = "yes";
  follow(update);
} catch (error) {
  byId("problem").hidden = false;
  byId("problem").append("This page could not be read: ", h("code", null, String(error)), ". It needs a browser from 2023 or later, and the complete file.");
  throw error;
}
