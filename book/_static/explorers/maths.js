// Gaussian mixtures in the plane, as in itlib.schedules, gaussian_mixture, sampling and estimators, in closed form.
// tests/test_explorers.py compares each function with its namesake there.
//
// A mixture is a list of {weight, mean: [x, y], cov: [xx, xy, yy]}, a reward x'Ax/2 + b'x + c is {A: [xx, xy, yy], b: [x, y], c}.

export const T_MAX = 1 - 1e-3; // where the reverse process starts

const OFFSET = 0.008,
  RATE = Math.PI / 2 / (1 + OFFSET),
  START = RATE * OFFSET;

export const schedules = {
  cosine: {
    alpha: (t) => Math.sin((1 - t) * RATE) / Math.cos(START),
    sigma: (t) => Math.sqrt(Math.sin(t * RATE) * Math.sin(t * RATE + 2 * START)) / Math.cos(START),
  },
  linear: { alpha: (t) => 1 - t, sigma: (t) => t },
};

export const sum = (values) => values.reduce((total, v) => total + v, 0);

function softmax(logs) {
  const top = Math.max(...logs),
    parts = logs.map((v) => Math.exp(v - top)),
    total = sum(parts);
  return { shares: parts.map((v) => v / total), log: top + Math.log(total) };
}

// Symmetric 2 x 2 matrices.
const det = (m) => m[0] * m[2] - m[1] * m[1];
const inverse = (m) => [m[2] / det(m), -m[1] / det(m), m[0] / det(m)];
const times = (m, v) => [m[0] * v[0] + m[1] * v[1], m[1] * v[0] + m[2] * v[1]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const form = (m, v) => dot(v, times(m, v));
const minus = (a, b) => [a[0] - b[0], a[1] - b[1]];
const trace = (a, b) => a[0] * b[0] + 2 * a[1] * b[1] + a[2] * b[2]; // of the product
const product = (a, b) => [a[0] * b[0] + a[1] * b[1], a[0] * b[1] + a[1] * b[2], a[1] * b[1] + a[2] * b[2]]; // if they commute
const smallestEigenvalue = (m) => (m[0] + m[2]) / 2 - Math.hypot((m[0] - m[2]) / 2, m[1]);

export const reward = ({ A, b, c = 0 }, x) => 0.5 * form(A, x) + dot(b, x) + c;

// A mixture with what its density needs, computed once: densities and scores are asked for at thousands of points.
export function prepare(mixture) {
  return mixture.map((g) => ({ ...g, precision: inverse(g.cov), log: Math.log(g.weight) - 0.5 * Math.log(det(g.cov)) }));
}

const logParts = (prepared, x) => prepared.map((g) => g.log - 0.5 * form(g.precision, minus(x, g.mean)));

// Which component a point belongs to, in probability.
export const responsibilities = (prepared, x) => softmax(logParts(prepared, x)).shares;

export const logDensity = (prepared, x) => softmax(logParts(prepared, x)).log - Math.log(2 * Math.PI);

export function score(prepared, x) {
  const { shares } = softmax(logParts(prepared, x)),
    result = [0, 0];
  prepared.forEach((g, i) => {
    const pull = times(g.precision, minus(g.mean, x));
    result[0] += shares[i] * pull[0];
    result[1] += shares[i] * pull[1];
  });
  return result;
}

// The law of X_t.
export function noised(mixture, alpha, sigma) {
  return mixture.map(({ weight, mean, cov: [xx, xy, yy] }) => ({
    weight,
    mean: [alpha * mean[0], alpha * mean[1]],
    cov: [alpha ** 2 * xx + sigma ** 2, alpha ** 2 * xy, alpha ** 2 * yy + sigma ** 2],
  }));
}

// The law of X_0 given X_t = x. Sigma and V commute, so their quotient is symmetric.
export function posterior(mixture, alpha, sigma, x) {
  const parts = prepare(noised(mixture, alpha, sigma)),
    { shares } = softmax(logParts(parts, x));
  return mixture.map((g, i) => {
    const gain = product(g.cov, parts[i].precision),
      shift = times(gain, minus(x, parts[i].mean));
    return {
      weight: shares[i],
      mean: [g.mean[0] + alpha * shift[0], g.mean[1] + alpha * shift[1]],
      cov: gain.map((v) => sigma ** 2 * v),
    };
  });
}

export const meanOf = (mixture) => [0, 1].map((d) => sum(mixture.map((g) => g.weight * g.mean[d])));

const componentReward = (r, g) => reward(r, g.mean) + 0.5 * trace(r.A, g.cov);

export const expectedReward = (mixture, r) => sum(mixture.map((g) => g.weight * componentReward(r, g)));

// sigma_t C(x, t) of (3.9), the exact step in the denoiser's units, from the posterior at x.
export function covarianceStep(law, alpha, sigma, r) {
  const values = law.map((g) => componentReward(r, g)),
    centre = sum(law.map((g, i) => g.weight * values[i])),
    middle = meanOf(law);
  const result = [0, 0];
  law.forEach((g, i) => {
    const slope = times(r.A, g.mean),
      within = times(g.cov, [slope[0] + r.b[0], slope[1] + r.b[1]]);
    [0, 1].forEach((d) => {
      result[d] += g.weight * (within[d] + (g.mean[d] - middle[d]) * (values[i] - centre));
    });
  });
  return result.map((v) => (alpha / sigma) * v);
}

// exp(lambda r) times the mixture, normalised (4.10); `mixture` is null where that cannot be. `smallest` is the smallest
// eigenvalue of a Sigma^-1 - lambda A.
export function tilted(mixture, r, lambda) {
  const precisions = mixture.map((g) => inverse(g.cov).map((v, i) => v - lambda * r.A[i]));
  const smallest = Math.min(...precisions.map(smallestEigenvalue));
  if (!(smallest > 1e-12)) return { mixture: null, smallest };
  const parts = mixture.map((g, i) => {
    const cov = inverse(precisions[i]),
      old = times(inverse(g.cov), g.mean);
    const shift = [old[0] + lambda * r.b[0], old[1] + lambda * r.b[1]],
      mean = times(cov, shift);
    const log = Math.log(g.weight) + 0.5 * (Math.log(det(cov) / det(g.cov)) + dot(mean, shift) - dot(g.mean, old));
    return { mean, cov, log: log + lambda * (r.c || 0) };
  });
  const { shares, log: logZ } = softmax(parts.map((p) => p.log));
  const found = parts.map(({ mean, cov }, i) => ({ weight: shares[i], mean, cov }));
  return { mixture: found, smallest, logZ, kl: Math.max(0, lambda * expectedReward(found, r) - logZ) };
}

// The bound that lambda must stay below, by (4.10): infinite if no component is stretched.
export function largestTilt(mixture, r) {
  const top = Math.max(
    ...mixture.map(({ cov }) => {
      // eigenvalues of Sigma A, from its trace and determinant
      const half = trace(cov, r.A) / 2;
      return half + Math.sqrt(Math.max(0, half ** 2 - det(cov) * det(r.A)));
    }),
  );
  return top > 1e-12 ? 1 / top : Infinity;
}

// Random numbers that repeat: a small generator of Weyl type for uniforms, Box and Muller for normals.
export function random(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  const normals = () => {
    // two at a time
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())),
      angle = 2 * Math.PI * uniform();
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  };
  return { uniform, normals };
}

export function sample(mixture, n, source) {
  return Array.from({ length: n }, () => {
    let left = source.uniform(),
      i = 0;
    while (i < mixture.length - 1 && left >= mixture[i].weight) left -= mixture[i++].weight;
    const { mean, cov } = mixture[i],
      [a, b] = source.normals(),
      root = Math.sqrt(cov[0]);
    return [mean[0] + root * a, mean[1] + (cov[1] / root) * a + (Math.sqrt(det(cov)) / root) * b];
  });
}

// Algorithm 1: the grid, the coefficients (a, b, std) of a step, and the chain.
export function timeGrid(steps) {
  const scale = 1 - 1 / steps < T_MAX ? 1 : T_MAX;
  return [...Array.from({ length: steps }, (_, k) => (scale * k) / steps), T_MAX];
}

export function transition({ alpha, sigma }, s, t, eta) {
  const ratio = (alpha(t) * sigma(s)) / (alpha(s) * sigma(t));
  const std = eta * sigma(s) * Math.sqrt(Math.max(0, 1 - ratio ** 2));
  return [alpha(s) / alpha(t), Math.sqrt(sigma(s) ** 2 - std ** 2) - (alpha(s) * sigma(t)) / alpha(t), std];
}

export function ddim(mixture, schedule, points, steps, eta, source) {
  const grid = timeGrid(steps);
  let states = points;
  for (let k = steps; k > 0; k--) {
    const [a, b, std] = transition(schedule, grid[k - 1], grid[k], eta),
      sigma = schedule.sigma(grid[k]);
    const law = prepare(noised(mixture, schedule.alpha(grid[k]), sigma));
    states = states.map((x) => {
      const s = score(law, x),
        z = std ? source.normals() : [0, 0]; // the prediction of X_1 is -sigma times the score
      return [0, 1].map((d) => a * x[d] - b * sigma * s[d] + std * z[d]);
    });
  }
  return states;
}

// The variance that Algorithm 1 reaches for one Gaussian coordinate of variance v, from N(0, 1): no sampling needed.
export function chainVariance(schedule, v, steps, eta) {
  const grid = timeGrid(steps);
  let variance = 1;
  for (let k = steps; k > 0; k--) {
    const [a, b, std] = transition(schedule, grid[k - 1], grid[k], eta),
      sigma = schedule.sigma(grid[k]);
    variance = (a + (b * sigma) / (schedule.alpha(grid[k]) ** 2 * v + sigma ** 2)) ** 2 * variance + std ** 2;
  }
  return variance;
}

const NODES = [-1, 1].flatMap((sign) =>
  [-1, 1].map((other) => [sign * Math.sqrt(3 + other * Math.sqrt(6)), (3 - other * Math.sqrt(6)) / 12]),
);

// Variance (its trace) of (r - v)(x1_hat - z) given x_t, for a list of baselines v: by a quadrature that is exact for
// polynomials, from the posterior at x_t.
export function drawVariances(law, alpha, sigma, r, baselines) {
  const middle = meanOf(law),
    first = baselines.map(() => [0, 0]),
    second = baselines.map(() => 0);
  law.forEach(({ weight, mean, cov }) => {
    const root = Math.sqrt(cov[0]),
      lower = cov[1] / root,
      rest = Math.sqrt(Math.max(0, det(cov))) / root;
    NODES.forEach(([p, wp]) =>
      NODES.forEach(([q, wq]) => {
        const x = [mean[0] + root * p, mean[1] + lower * p + rest * q],
          w = weight * wp * wq,
          value = reward(r, x);
        const zeta = minus(x, middle).map((d) => (alpha / sigma) * d);
        baselines.forEach((v, i) => {
          [0, 1].forEach((d) => {
            first[i][d] += w * (value - v) * zeta[d];
          });
          second[i] += w * (value - v) ** 2 * dot(zeta, zeta);
        });
      }),
    );
  });
  return second.map((square, i) => square - dot(first[i], first[i]));
}

// sigma_t C under the self-normalised posterior of x_t over samples.
export function raoBlackwell(samples, rewards, alpha, sigma, x) {
  const { shares } = softmax(
    samples.map((s) => (-0.5 * ((x[0] - alpha * s[0]) ** 2 + (x[1] - alpha * s[1]) ** 2)) / sigma ** 2),
  );
  const centre = sum(shares.map((w, i) => w * rewards[i]));
  return [0, 1].map((d) => (alpha / sigma) * sum(shares.map((w, i) => w * (rewards[i] - centre) * samples[i][d])));
}
