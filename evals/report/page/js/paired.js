// Two evaluations on the same problems, by the formulas of evals.stats.paired (docs/statistics.md).

import { mean, sumOf } from "./dom.js";

const WORK = 3e7; // multiplications that an exact p may take: a blink
const BORDER = 0.05;

/**
 * [b - a, its 95 % interval] of two columns of problem means: Bonett and Price (2012) for one 0/1 sample each, and for
 * changes that are all of one size; else Student's. `student`: quantiles for 1, 2, ... degrees of freedom, the last for
 * all beyond.
 */
export function pairedInterval(a, b, student, single = [...a, ...b].every((x) => x === 0 || x === 1)) {
  const n = a.length;
  const differences = b.map((x, i) => x - a[i]);
  const middle = mean(differences);
  if (n < 2) return [middle, NaN, NaN];
  const error = Math.sqrt(sumOf(differences.map((d) => (d - middle) ** 2)) / (n - 1) / n);
  const within = (x) => Math.min(1, Math.max(-1, x));
  if (!single && error > 1e-12) {
    const half = student[Math.min(n - 1, student.length) - 1] * error;
    const ends = [middle - half, middle + half];
    return [middle, ...(Math.abs(middle) <= 1 ? ends.map(within) : ends)];
  }
  const size = differences.reduce((most, d) => Math.max(most, Math.abs(d)), 0) || 1;
  const [up, down] = [1, -1].map((sign) => differences.filter((d) => sign * d > 0).length + 1);
  const centre = (up - down) / (n + 2);
  const half = 1.959964 * Math.sqrt(((up + down) / (n + 2) - centre ** 2) / (n + 2));
  return [middle, size * within(centre - half), size * within(centre + half)];
}

const gcd = (a, b) => (b ? gcd(b, a % b) : a);

/** Chances of 0 to n heads. */
function heads(n) {
  const found = new Float64Array(n + 1);
  let log = -n * Math.LN2;
  for (let k = 0; k <= n; k++) {
    found[k] = Math.exp(log);
    log += Math.log((n - k) / (k + 1));
  }
  return found;
}

/** The two-sided p of the sign-flip test of differences that are multiples of 1 / denominator, exactly; null: too many. */
function signFlip(differences, denominator) {
  const steps = differences.map((d) => Math.round(d * denominator));
  const counts = new Map();
  for (const step of steps.map(Math.abs)) if (step) counts.set(step, (counts.get(step) ?? 0) + 1);
  const total = steps.reduce((sum, step) => sum + Math.abs(step), 0);
  if (total * steps.length > WORK) return null;
  let chance = new Float64Array(total + 1); // of the sum of the steps with a plus
  chance[0] = 1;
  let reached = 0;
  for (const [step, count] of counts) {
    const next = new Float64Array(total + 1);
    const of = heads(count);
    for (let i = 0; i <= reached; i++) if (chance[i]) for (let k = 0; k <= count; k++) next[i + step * k] += chance[i] * of[k];
    reached += step * count;
    chance = next;
  }
  const observed = Math.abs(steps.reduce((sum, step) => sum + step, 0));
  return Math.min(1, chance.reduce((sum, x, plus) => (Math.abs(2 * plus - total) >= observed ? sum + x : sum), 0));
}

/** b against a: {problems, a, b, difference, low, high, p, test}. Each is [[sum of rewards, scorable samples], ...]. */
export function compareTallies(a, b, student) {
  const [meansA, meansB] = [a, b].map((side) => side.map(([sum, count]) => sum / count));
  const counts = [...a, ...b].map(([, count]) => count);
  const whole = [...a, ...b].every(([sum, count]) => Number.isInteger(sum) && sum >= 0 && sum <= count);
  const single = whole && counts.every((count) => count === 1);
  const [difference, low, high] = pairedInterval(meansA, meansB, student, single);
  const denominator = [...new Set(counts)].reduce((found, count) => (found * count) / gcd(found, count), 1);
  const p = whole && denominator <= 1e6 ? signFlip(meansB.map((x, i) => x - meansA[i]), denominator) : null;
  const equal = a.every(([, count], i) => count === b[i][1]);
  const test = single ? "exact McNemar test" : equal ? "exact sign-flip test" : "sign-flip test, approximate: not as many samples in both";
  return { problems: a.length, a: mean(meansA), b: mean(meansB), difference, low, high, p, test };
}

/** Holm's adjusted p values (1979). */
export function holm(values) {
  const order = values.map((_, i) => i).sort((i, j) => values[i] - values[j]);
  const adjusted = [];
  let highest = 0;
  order.forEach((i, rank) => {
    highest = Math.max(highest, Math.min(1, (values.length - rank) * values[i]));
    adjusted[i] = highest;
  });
  return adjusted;
}

/** Distinguishable? By p; by the interval where there is none. */
export const isClear = ({ p, low, high }) => (p === null ? low > 0 || high < 0 : p < BORDER);

/** "= 0.24", never rounded across the border of what it decides. */
export function pText(p) {
  if (p < 0.0001) return "< 0.0001";
  let digits = p < 0.01 ? 4 : 2;
  while (digits < 6 && Number(p.toFixed(digits)) < BORDER !== p < BORDER) digits++;
  return `= ${p.toFixed(digits)}`;
}
