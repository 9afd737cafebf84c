// The page's data: chunks of compressed JSON in script elements, unpacked when they are needed.

/** Everything that is known before a text is read; filled by `load`. */
export const data = { runs: [], parts: [], rows: 0, columns: {}, facets: {} };

const KEPT = 6; // unpacked chunks of text in memory
const kept = new Map();
const made = new Map();
let source = document; // where the chunks are: this page, or a newer one that was fetched

/** What `make` gives for a key, made once for the data of now. */
export function once(key, make) {
  if (!made.has(key)) made.set(key, make());
  return made.get(key);
}

async function unpack(element) {
  const packed = atob(element.textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** A chunk by number, not kept. */
export const readChunk = (number, from = source) => unpack(from.getElementById(`c${number}`));

/** A chunk of texts by number; the last few stay in memory. */
function keptChunk(number) {
  const found = kept.get(number) ?? readChunk(number);
  kept.delete(number);
  kept.set(number, found);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
}

/** Take the data of a document: all of it, in one moment at the end. */
export async function load(from = document) {
  const fresh = { ...(await unpack(from.getElementById("index"))), columns: {}, facets: {}, heads: [] };
  const { blocks, promptBlocks, facets } = fresh.samples;
  fresh.rows = blocks.reduce((sum, block) => sum + block.rows, 0);
  fresh.run = new Map(fresh.runs.map((run) => [run.id, run]));
  fresh.partAt = new Map(fresh.parts.map((part, at) => [part.key, at]));
  const make = { part: Uint32Array, item: Uint32Array, repeat: Uint32Array, tokens: Uint32Array, finish: Uint8Array,
    outcome: Uint8Array, path: Uint16Array, prompt: Uint32Array, reward: Float64Array, advantage: Float64Array };
  for (const [name, kind] of Object.entries(make)) fresh.columns[name] = new kind(fresh.rows);
  for (const name of ["answer", "reference"]) fresh.columns[name] = new Array(fresh.rows);
  for (const name of Object.keys(facets)) fresh.facets[name] = new Int16Array(fresh.rows).fill(-1);
  let at = 0;
  for (const block of blocks) {
    block.first = at;
    const columns = await readChunk(block.columns, from);
    for (const [name, column] of Object.entries(fresh.columns)) {
      const numbers = column instanceof Float64Array;
      for (let i = 0; i < block.rows; i++) column[at + i] = numbers ? columns[name][i] ?? NaN : columns[name][i];
    }
    for (const [name, column] of Object.entries(fresh.facets)) column.set(columns.facets[name] ?? [], at);
    at += block.rows;
  }
  for (const block of promptBlocks) for (const head of await readChunk(block.heads, from)) fresh.heads.push(head);
  Object.assign(data, fresh);
  source = from;
  made.clear();
  kept.clear();
}

/** The texts of a row: {prompt, response, answer, reference, meta, seed, seconds, weights}. */
export async function textsOf(row) {
  const block = blockOf(data.samples.blocks, row);
  const number = data.columns.prompt[row];
  const [texts, prompt] = await Promise.all([keptChunk(block.texts), promptText(number)]);
  const i = row - block.first;
  return { ...Object.fromEntries(Object.entries(texts).map(([name, column]) => [name, column[i]])), prompt };
}

/** Of each token of a row's response [characters, -log p, entropy], the latter in nats, where they are known; or null. */
export async function tokensOf(row) {
  const block = blockOf(data.samples.blocks, row);
  if (block.tokens === undefined) return null;
  const tokens = await keptChunk(block.tokens);
  const [chars, surprise, entropy] = ["token_chars", "logprobs", "entropies"].map((name) => Array.from(tokens[name][row - block.first], (c) => c.charCodeAt(0) - 32));
  return chars.length ? chars.map((n, i) => [n, surprise[i] / 100, entropy[i] / 100]) : null;
}

async function promptText(number) {
  const block = blockOf(data.samples.promptBlocks, number);
  return (await keptChunk(block.texts))[number - block.first];
}

/** The block (with `first`) that holds the number. */
const blockOf = (blocks, number) => blocks.findLast((block) => block.first <= number);

/**
 * Look for text in prompts, responses, answers and ids, one chunk in memory at a time. Calls `found(set of rows, share
 * done)` after each chunk; stops when `wanted()` is false.
 */
export async function searchTexts(query, wanted, found) {
  const needle = query.toLowerCase();
  const has = (text) => text !== null && text !== undefined && text.toLowerCase().includes(needle);
  const { blocks, promptBlocks, items } = data.samples;
  const from = source;
  const prompts = new Set();
  const ids = new Set(items.flatMap((item, at) => (has(item) ? [at] : [])));
  const rows = new Set();
  for (const block of promptBlocks) {
    const texts = await readChunk(block.texts, from);
    if (!wanted()) return;
    texts.forEach((text, i) => has(text) && prompts.add(block.first + i));
  }
  const { prompt, item } = data.columns;
  for (const [done, block] of blocks.entries()) {
    const texts = await readChunk(block.texts, from);
    if (!wanted()) return;
    for (let i = 0; i < block.rows; i++) {
      const row = block.first + i;
      if (prompts.has(prompt[row]) || ids.has(item[row]) || has(texts.response[i]) || has(texts.answer[i])) rows.add(row);
    }
    found(rows, (done + 1) / blocks.length);
  }
  if (!blocks.length) found(rows, 1);
}

/** What names a sample in a link. */
export function keyOf(row) {
  const { part, item, repeat } = data.columns;
  return `${data.parts[part[row]].key}~${repeat[row]}~${data.samples.items[item[row]]}`;
}

/** The row of such a name, -1 where the page does not have it. */
export function rowOf(key) {
  const [run, split, step, repeat, ...rest] = key.split("~");
  const items = itemsOf(data.partAt.get(`${run}~${split}~${step}`));
  const rows = items.get(data.samples.items.indexOf(rest.join("~"))) ?? [];
  return rows.find((row) => data.columns.repeat[row] === Number(repeat)) ?? -1;
}

/** item -> rows of a part, in order of repeat. */
export const itemsOf = (at) => once("items", allItems).get(at) ?? new Map();

function allItems() {
  const { item, part, repeat } = data.columns;
  const found = new Map();
  for (let row = 0; row < data.rows; row++) {
    if (!found.has(part[row])) found.set(part[row], new Map());
    const items = found.get(part[row]);
    if (!items.has(item[row])) items.set(item[row], []);
    items.get(item[row]).push(row);
  }
  for (const items of found.values()) for (const rows of items.values()) rows.sort((a, b) => repeat[a] - repeat[b]);
  return found;
}

export const partOf = (row) => data.parts[data.columns.part[row]];
export const itemOf = (row) => data.samples.items[data.columns.item[row]];
export const outcomeOf = (row) => data.samples.outcomes[data.columns.outcome[row]];
export const isCut = (row) => data.samples.finishes[data.columns.finish[row]] === "length";

/** right, wrong or none (not scorable): what a verdict amounts to. */
export function standing(row) {
  const reward = data.columns.reward[row];
  if (Number.isNaN(reward)) return "none";
  return outcomeOf(row) === "right" || reward >= 1 ? "right" : reward > 0 ? "part" : "wrong";
}

export const MARKS = { right: "✓", wrong: "✕", part: "◐", none: "?" };
