// What changed between two texts, word by word (Myers 1986).

const MOST_EDITS = 1200; // beyond this, the rest counts as replaced: memory grows with its square

const wordsOf = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

/** [["same" | "gone" | "new", text], ...] that turns a into b. */
export function wordDiff(a, b) {
  const left = wordsOf(a);
  const right = wordsOf(b);
  let start = 0;
  while (start < left.length && start < right.length && left[start] === right[start]) start++;
  let end = 0;
  while (end < left.length - start && end < right.length - start && left.at(-1 - end) === right.at(-1 - end)) end++;
  const middle = edits(left.slice(start, left.length - end), right.slice(start, right.length - end));
  return joined([
    ...left.slice(0, start).map((word) => ["same", word]),
    ...middle,
    ...left.slice(left.length - end).map((word) => ["same", word]),
  ]);
}

function edits(a, b) {
  const replaced = [...a.map((word) => ["gone", word]), ...b.map((word) => ["new", word])];
  if (!a.length || !b.length) return replaced;
  const most = Math.min(a.length + b.length, MOST_EDITS);
  const furthest = new Int32Array(2 * most + 3);
  const zero = most + 1;
  const trace = [];
  for (let d = 0; d <= most; d++) {
    trace.push(furthest.slice(zero - d - 1, zero + d + 2));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && furthest[zero + k - 1] < furthest[zero + k + 1]) ? furthest[zero + k + 1] : furthest[zero + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      furthest[zero + k] = x;
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, trace, d);
    }
  }
  return replaced;
}

function walkBack(a, b, trace, depth) {
  const found = [];
  let x = a.length;
  let y = b.length;
  for (let d = depth; d > 0; d--) {
    const before = trace[d];
    const at = (k) => before[k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const fromK = down ? k + 1 : k - 1;
    const fromX = at(fromK);
    const fromY = fromX - fromK;
    while (x > fromX + (down ? 0 : 1) && y > fromY + (down ? 1 : 0)) {
      found.push(["same", a[--x]]);
      y--;
    }
    if (down) found.push(["new", b[--y]]);
    else found.push(["gone", a[--x]]);
  }
  while (x > 0) found.push(["same", a[--x]]);
  return found.reverse();
}

function joined(parts) {
  const found = [];
  for (const [kind, text] of parts) {
    if (found.length && found.at(-1)[0] === kind) found.at(-1)[1] += text;
    else found.push([kind, text]);
  }
  return found;
}
