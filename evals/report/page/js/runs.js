// Runs: from data to score as a drawing, what differs between configurations, and each run in full.

import { data } from "./data.js";
import { byId, h, s } from "./dom.js";
import { here } from "./route.js";

const ROW = 44;
const COLUMN = 250;
const BOX = { width: 204, height: 36 };
const MOST_LEAVES = 30;
const chosen = new Set();

export function showRuns(into) {
  if (!data.runs.length) {
    into.replaceChildren(h("p", { class: "empty" }, "The store holds no runs yet. ", h("code", null, "python -m agpo.train"), " makes the first one."));
    return;
  }
  if (!into.childElementCount) {
    const compared = data.runs.filter((run) => run.kind === "train");
    for (const run of (compared.length > 1 ? compared : data.runs.filter((run) => run.kind === "eval")).slice(0, 6)) chosen.add(run.id);
    const differences = h("div");
    into.append(
      h("h2", null, "From data to score"), lineage(),
      h("h2", null, "What differs between runs"), differences,
      h("h2", null, "Every run"), h("div", { class: "run-list" }, data.runs.map(runCard)),
    );
    drawDifferences(differences);
  }
  const { target } = here();
  const card = target && byId(`run-${target}`);
  if (card) {
    card.open = true;
    card.scrollIntoView({ block: "start" });
    card.querySelector("summary").focus({ preventScroll: true });
  }
}

// Lineage

const COLUMNS = ["data", "training", "checkpoint", "evaluation"];
const STEP = /^step-(\d{6,})$/;
const last = (path) => path.split(/[\\/]/).findLast(Boolean) ?? "";

/** The nodes and edges of the drawing. A deleted checkpoint still links a run to its evaluation. */
function graph() {
  const nodes = new Map();
  const edges = new Map();
  const add = (id, column, title, detail, run, origin = "", sha256 = "") => {
    if (!nodes.has(id)) nodes.set(id, { id, column, title, detail, run, sha256 });
    if (origin) edges.set(`${origin}\n${id}`, [origin, id]);
    return id;
  };
  const checkpoint = (run, name) => {
    const sha256 = run.artifacts.find((file) => file.kind === "checkpoint" && last(file.path) === name)?.sha256 ?? "";
    return add(`${run.id}:${name}`, 2, STEP.test(name) ? `step ${Number(STEP.exec(name)[1])}` : name, sha256.slice(0, 12) || "no longer recorded", run.id, run.id, sha256);
  };
  const scores = new Map(data.evaluations.map((one) => [data.parts[one.part].run, one.pass1]));
  for (const run of data.runs) {
    if (run.kind === "curation") {
      const file = run.artifacts.find(({ kind }) => kind === "manifest") ?? run.artifacts[0];
      add(run.id, 0, run.name, file ? last(file.path) : run.status, run.id, "", file?.sha256);
    } else if (run.kind === "train") {
      const path = String(run.config["data.path"] ?? run.config.data ?? "");
      const origin = data.run.has(run.parent) ? run.parent : path && add(`data:${path}`, 0, last(path), "no curation run", "");
      add(run.id, 1, run.title, run.lastStep === null ? run.status : `${run.status}, step ${run.lastStep}`, run.id, origin);
      for (const file of run.artifacts) if (file.kind === "checkpoint") checkpoint(run, last(file.path));
    } else {
      const model = String(run.config.model ?? run.model);
      const parent = data.run.get(run.parent);
      const elsewhere = model && !parent ? add(`model:${model}`, 2, last(model) || "model", "not made here", "") : "";
      const origin = !parent ? elsewhere : STEP.test(last(model)) ? checkpoint(parent, last(model)) : parent.id;
      const score = scores.get(run.id) ?? null;
      add(run.id, 3, run.name, score === null ? run.status : `${(100 * score).toFixed(1)} %`, run.id, origin);
    }
  }
  return { nodes: [...nodes.values()], edges: [...edges.values()].sort() };
}

function lineage() {
  const { nodes, edges } = graph();
  const children = new Map(nodes.map((node) => [node.id, []]));
  const parent = new Map();
  for (const [from, to] of edges) {
    if (!children.has(from) || !children.has(to)) continue;
    children.get(from).push(to);
    parent.set(to, from);
  }
  const byKey = new Map(nodes.map((node) => [node.id, node]));
  let leaves = nodes.filter((node) => !children.get(node.id).length);
  let note = "";
  if (leaves.length > MOST_LEAVES) { // checkpoints that nothing measured are the first to go
    const gone = new Set(leaves.filter((node) => node.column === 2).map((node) => node.id));
    for (const [id, list] of children) children.set(id, list.filter((child) => !gone.has(child)));
    for (const id of gone) byKey.delete(id);
    leaves = leaves.filter((node) => !gone.has(node.id));
    note = ` ${gone.size} checkpoints without an evaluation are not drawn.`;
  }
  const y = new Map();
  let next = 0;
  const place = (id) => {
    const below = children.get(id).map(place);
    const at = below.length ? (below[0] + below.at(-1)) / 2 : next++ * ROW;
    y.set(id, at);
    return at;
  };
  for (const node of byKey.values()) if (!parent.has(node.id)) place(node.id);
  const height = Math.max(1, next) * ROW + 34;
  const width = 3 * COLUMN + BOX.width + 4;
  const svg = s("svg", { class: "lineage", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "From data over training runs and checkpoints to evaluations" });
  COLUMNS.forEach((name, i) => svg.append(s("text", { class: "column-name", x: i * COLUMN + 2, y: 14 }, name)));
  const corner = (node) => [node.column * COLUMN + 2, y.get(node.id) + 28];
  for (const [to, from] of parent) {
    if (!byKey.has(to)) continue;
    const [a, b] = [byKey.get(from), byKey.get(to)];
    const [x1, y1] = [corner(a)[0] + BOX.width, corner(a)[1] + BOX.height / 2];
    const [x2, y2] = [corner(b)[0], corner(b)[1] + BOX.height / 2];
    const bend = Math.min(60, (x2 - x1) / 2);
    svg.append(s("path", { class: "edge", d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` }));
  }
  for (const node of byKey.values()) {
    const [x, top] = corner(node);
    const run = data.run.get(node.run);
    const colour = run?.kind === "train" ? data.colours[run.line] : null;
    const box = s("g", { class: `node in-${COLUMNS[node.column]}` },
      s("title", null, `${node.title}, ${node.detail}${node.sha256 ? `, sha256 ${node.sha256}` : ""}`),
      s("rect", { x, y: top, width: BOX.width, height: BOX.height, rx: 5 }),
      colour && node.column === 1 ? s("rect", { x, y: top, width: 4, height: BOX.height, rx: 2, style: `--stripe:${colour}`, class: "stripe" }) : null,
      s("text", { class: "node-title", x: x + 12, y: top + 15 }, cut(node.title, 30)), s("text", { class: "node-detail", x: x + 12, y: top + 29 }, cut(node.detail, 34)));
    svg.append(node.run ? s("a", { href: `#run=${node.run}`, "aria-label": `${node.title}, ${node.detail}` }, box) : box);
  }
  return h("div", null, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Lineage" }, svg), h("p", { class: "foot" }, `Under a checkpoint: the beginning of its SHA-256. Each box leads to its run.${note}`));
}

const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

// Differences

function drawDifferences(into) {
  const runs = data.runs.filter((run) => chosen.has(run.id));
  const choices = h("fieldset", { class: "chips" }, h("legend", null, "Runs"), data.runs.map((run) => h("label", { class: "chip" }, h("input", { type: "checkbox", checked: chosen.has(run.id), onchange: (event) => {
    if (event.target.checked) chosen.add(run.id);
    else chosen.delete(run.id);
    drawDifferences(into);
    into.querySelector(`input[data-run="${run.id}"]`)?.focus();
  }, "data-run": run.id }), run.title)));
  const rows = [["Configuration", "config"], ["Code", "code"], ["Environment", "environment"]].flatMap(([title, part]) => {
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run[part])))].sort();
    const differing = keys.filter((key) => new Set(runs.map((run) => text(run[part][key]))).size > 1);
    if (!differing.length) return [h("tr", { class: "section" }, h("th", { scope: "rowgroup", colspan: runs.length + 1 }, title, h("span", { class: "dim" }, `  the same in all: ${keys.length} keys`)))];
    return [h("tr", { class: "section" }, h("th", { scope: "rowgroup", colspan: runs.length + 1 }, title, h("span", { class: "dim" }, `  ${differing.length} of ${keys.length} keys differ`))),
      ...differing.map((key) => h("tr", null, h("th", { scope: "row" }, key), runs.map((run) => h("td", { class: run[part][key] === undefined ? "dim" : null }, text(run[part][key])))))];
  });
  into.replaceChildren(choices, runs.length < 2 ? h("p", { class: "empty" }, "Choose two runs or more.")
    : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Keys that differ" }, h("table", { class: "differences" }, h("thead", null, h("tr", null, h("th", { scope: "col" }, "Key"), runs.map((run) => h("th", { scope: "col" }, h("a", { href: `#run=${run.id}` }, run.title))))), h("tbody", null, rows))));
}

const text = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

// One run

function runCard(run) {
  const pairs = (values) => h("dl", null, Object.entries(values).flatMap(([key, value]) => [h("dt", null, key), h("dd", null, text(value))]));
  const children = data.runs.filter((other) => other.parent === run.id);
  return h("details", { class: "run", id: `run-${run.id}` },
    h("summary", null, h("strong", null, run.title), " ", h("span", { class: "badge" }, run.kind), " ", h("span", { class: `badge ${run.status}` }, run.status), " ", h("span", { class: "dim num" }, run.id)),
    h("dl", { class: "brief" }, [["model", run.model], ["seed", run.seed], ["started", run.started], ["host", run.host], ["last step", run.lastStep], ["samples", run.samples], ["advantage", run.advantage]].filter(([, value]) => value !== null && value !== "").flatMap(([key, value]) => [h("dt", null, key), h("dd", null, text(value))]),
      run.parent ? [h("dt", null, "made from"), h("dd", null, data.run.has(run.parent) ? h("a", { href: `#run=${run.parent}` }, data.run.get(run.parent).title) : run.parent)] : null,
      children.length ? [h("dt", null, "made from it"), h("dd", null, children.map((child, i) => [i ? ", " : "", h("a", { href: `#run=${child.id}` }, child.title)]))] : null),
    data.parts.some((part) => part.run === run.id) ? h("p", null, h("a", { href: `#samples?run=${encodeURIComponent(run.id)}` }, "Its samples")) : null,
    run.artifacts.length ? [h("h3", null, "Files"), h("ul", { class: "files" }, run.artifacts.map((file) => h("li", null, h("span", { class: "badge" }, file.kind), " ", h("span", { class: "path" }, file.path), " ", h("span", { class: "dim num", title: file.sha256 }, `sha256 ${file.sha256.slice(0, 16)}`))))] : null,
    h("h3", null, "Code"), pairs(run.code), h("h3", null, "Environment"), pairs(run.environment), h("h3", null, "Configuration"), pairs(run.config));
}
