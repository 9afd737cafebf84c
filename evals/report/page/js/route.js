// Where the reader is: "#view?key=value&...", "#sample=KEY" and "#run=ID".

/** {view, query (a Map), target}: target is what follows "=" for a sample or a run. */
export function here() {
  const hash = location.hash.slice(1);
  const single = /^(sample|run)=(.*)$/s.exec(hash);
  if (single) return { view: single[1] === "sample" ? "samples" : "runs", query: new URLSearchParams(), target: decode(single[2]) };
  const [view, query = ""] = hash.split(/\?(.*)/s);
  return { view: view || "overview", query: new URLSearchParams(query), target: null };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The hash for a view and what is not default in it. */
export function linkTo(view, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = given.map(([key, value]) => `${key}=${encodeURIComponent(value)}`).join("&");
  return `#${view}${text ? `?${text}` : ""}`;
}

export const sampleLink = (key) => `#sample=${encodeURIComponent(key)}`;

/** Write the state into the address; `step` makes it a step in the history, which Back undoes. */
export function note(hash, step = false) {
  if (location.hash === hash) return;
  if (step) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
}
