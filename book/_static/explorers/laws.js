// exp(lambda r) times a mixture, for any reward r, a function of (x, y): in closed form where r is quadratic, and else by
// weights on a grid, with Proposition 3.1 for its score.
import { score, prepare, noised, logDensity, tilted, responsibilities, random, sum } from "./maths.js";

const REACH = 9,
  STEP = 0.2;

// {A, b, c} of a reward x'Ax/2 + b'x + c, or null for another one.
export function quadratic(reward) {
  const c = reward(0, 0),
    [e, w, n, s] = [reward(1, 0), reward(-1, 0), reward(0, 1), reward(0, -1)];
  const xy = (reward(1, 1) - reward(1, -1) - reward(-1, 1) + reward(-1, -1)) / 4;
  const found = { A: [e + w - 2 * c, xy, n + s - 2 * c], b: [(e - w) / 2, (n - s) / 2], c };
  const source = random(1);
  for (let i = 0; i < 50; i++) {
    const [x, y] = [12 * source.uniform() - 6, 12 * source.uniform() - 6],
      value = reward(x, y);
    const guess = c + found.b[0] * x + found.b[1] * y + found.A[0] * x * x * 0.5 + xy * x * y + found.A[2] * y * y * 0.5;
    if (!(Math.abs(guess - value) <= 1e-9 * (1 + Math.abs(value)))) return null;
  }
  return found;
}

// The laws on the way from a mixture to its tilt: a function of the strength lambda. A law has `share`s of probability at
// `points`; `outside`, the probability at the rim of the grid, which should be none; `mixture`, null unless the reward is
// quadratic; `exists`, whether it can be normalised; `score(alpha, sigma)`, a function of a point; `mean(f)` and `draw`.
export function tiltsOf(mixture, reward) {
  const side = 2 * Math.round(REACH / STEP) + 1,
    place = (i) => -REACH + i * STEP;
  const base = prepare(mixture),
    form = quadratic(reward);
  const nodes = Array.from({ length: side * side }, (_, i) => [place(i % side), place(Math.floor(i / side))]);
  const logs = nodes.map((x) => logDensity(base, x)),
    values = nodes.map(([x, y]) => reward(x, y));
  return (lambda) => {
    const closed = form && tilted(mixture, form, lambda).mixture;
    const all = logs.map((v, i) => v + lambda * values[i]),
      top = all.reduce((a, b) => Math.max(a, b));
    const kept = all.flatMap((v, i) => (v > top - 25 ? [i] : [])),
      parts = kept.map((i) => Math.exp(all[i] - top)),
      total = sum(parts);
    const points = kept.map((i) => nodes[i]),
      shares = parts.map((v) => v / total);
    const rim = shares.filter((_, i) => Math.max(...points[i].map(Math.abs)) > REACH - STEP);
    return {
      mixture: closed,
      exists: Boolean(closed) || !form,
      outside: sum(rim),
      points,
      shares,
      mean: (f) => sum(points.map((x, i) => shares[i] * f(x))),
      score: (alpha, sigma) => {
        if (closed) {
          const law = prepare(noised(closed, alpha, sigma));
          return (x) => score(law, x);
        }
        const logShares = kept.map((i) => all[i]);
        return (x) => tiltedScore(points, logShares, alpha, sigma, x);
      },
      draw(n, source) {
        const ends = [];
        shares.reduce((below, v, i) => (ends[i] = below + v), 0);
        return Array.from({ length: n }, () => {
          const u = source.uniform();
          let low = 0,
            high = ends.length - 1;
          while (low < high) {
            const middle = (low + high) >> 1;
            if (ends[middle] > u) high = middle;
            else low = middle + 1;
          }
          return points[low].map((v) => v + STEP * (source.uniform() - 0.5));
        });
      },
    };
  };
}

// The score at x of the law of alpha X_0 + sigma Z, X_0 being one of some points of these log shares: (3.6) with a sum.
function tiltedScore(points, logShares, alpha, sigma, x) {
  const logs = new Float64Array(points.length);
  let top = -Infinity,
    total = 0,
    u = 0,
    v = 0;
  for (let i = 0; i < logs.length; i++) {
    logs[i] = logShares[i] - ((x[0] - alpha * points[i][0]) ** 2 + (x[1] - alpha * points[i][1]) ** 2) / (2 * sigma ** 2);
    if (logs[i] > top) top = logs[i];
  }
  for (let i = 0; i < logs.length; i++) {
    const w = Math.exp(logs[i] - top);
    total += w;
    u += w * points[i][0];
    v += w * points[i][1];
  }
  return [((alpha * u) / total - x[0]) / sigma ** 2, ((alpha * v) / total - x[1]) / sigma ** 2];
}

// Draws of X_0 given that it was noised to x, from samples of X_0: the share of each is the density of getting there.
export function drawsGiven(samples, alpha, sigma, x, n, source) {
  const logs = samples.map((p) => -((x[0] - alpha * p[0]) ** 2 + (x[1] - alpha * p[1]) ** 2) / (2 * sigma ** 2)),
    top = Math.max(...logs),
    parts = logs.map((v) => Math.exp(v - top)),
    total = sum(parts);
  return Array.from({ length: n }, () => {
    let left = source.uniform() * total,
      i = 0;
    while (i < parts.length - 1 && left >= parts[i]) left -= parts[i++];
    return samples[i];
  });
}

// Standard deviation inside a mode, per coordinate. Which mode of the base a point belongs to, no tilt changes: it depends on
// the point alone. So the same shares tell it for the base, a tilt and samples of a model.
export function widthInside(mixture, points, shares) {
  const base = prepare(mixture),
    labels = points.map((x) => responsibilities(base, x));
  let total = 0;
  mixture.forEach((_, i) => {
    const w = labels.map((one, j) => one[i] * shares[j]),
      mass = sum(w);
    if (mass < 1e-12) return;
    const centre = [0, 1].map((d) => sum(w.map((v, j) => v * points[j][d])) / mass);
    total += sum(w.map((v, j) => v * ((points[j][0] - centre[0]) ** 2 + (points[j][1] - centre[1]) ** 2)));
  });
  return Math.sqrt(total / 2);
}
