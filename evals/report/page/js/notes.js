// Notes on samples, kept by this browser, and the chosen samples as JSON lines.

import { data, isCut, itemOf, keyOf, outcomeOf, partOf, textsOf } from "./data.js";
import { h, keep, kept } from "./dom.js";

const KEY = "agpo-notes";
const notes = JSON.parse(kept(KEY) ?? "{}"); // what names a sample -> the note on it

export const anyNotes = () => Object.keys(notes).length > 0;
export const noteOf = (row) => notes[keyOf(row)] ?? "";

export function setNote(row, text) {
  notes[keyOf(row)] = text;
  if (!text.trim()) delete notes[keyOf(row)];
  keep(KEY, JSON.stringify(notes));
}

/** Save the rows, in their order, as a file with a JSON object on each line. */
export async function download(rows) {
  const lines = new Map();
  for (const row of [...rows].sort((a, b) => a - b)) { // in the order in which texts are unpacked
    const { prompt, response, answer, reference, meta, seed, seconds, weights } = await textsOf(row);
    const { repeat, tokens, reward, advantage } = data.columns;
    const { run, split, step } = partOf(row);
    const { model, method } = data.run.get(run);
    lines.set(row, JSON.stringify({
      run, split, step, item: itemOf(row), sample: repeat[row] + 1, model, method, outcome: outcomeOf(row), reward: reward[row], advantage: advantage[row],
      response_tokens: tokens[row], truncated: isCut(row), answer, reference, prompt, response, seed, seconds, weights, meta, note: noteOf(row),
    }));
  }
  const url = URL.createObjectURL(new Blob(rows.map((row) => `${lines.get(row)}\n`), { type: "application/jsonl" }));
  h("a", { href: url, download: "samples.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
