// The network that learns the tilts, as itlib.beyond.preconditioning.adapter: a bounded correction in whitened coordinates,
// its gradient by hand, and Adam. tests/book/test_explorers.py compares all three with torch.
//
// Matrices are rows in one array; a batch of n inputs is a matrix with a column for each, n a multiple of 4.

const WIDTH = 64,
  FREQUENCIES = 16,
  SCALE = 0.5;

// C (m x n) = A (m x k) times B (k x n), added to what C holds; m even, n a multiple of 4. Two rows and four columns at a
// time stay in registers.
function multiply(C, A, B, m, k, n) {
  for (let i = 0; i < m; i += 2)
    for (let s = 0; s < n; s += 4) {
      const c = i * n + s,
        d = c + n;
      let a0 = C[c],
        a1 = C[c + 1],
        a2 = C[c + 2],
        a3 = C[c + 3],
        b0 = C[d],
        b1 = C[d + 1],
        b2 = C[d + 2],
        b3 = C[d + 3];
      for (let p = 0, q = s, r = i * k; p < k; p++, q += n, r++) {
        const u = A[r],
          v = A[r + k],
          x0 = B[q],
          x1 = B[q + 1],
          x2 = B[q + 2],
          x3 = B[q + 3];
        a0 += u * x0;
        a1 += u * x1;
        a2 += u * x2;
        a3 += u * x3;
        b0 += v * x0;
        b1 += v * x1;
        b2 += v * x2;
        b3 += v * x3;
      }
      C[c] = a0;
      C[c + 1] = a1;
      C[c + 2] = a2;
      C[c + 3] = a3;
      C[d] = b0;
      C[d + 1] = b1;
      C[d + 2] = b2;
      C[d + 3] = b3;
    }
  return C;
}

function transpose(A, m, n) {
  const T = new Float64Array(m * n);
  for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) T[j * m + i] = A[i * n + j];
  return T;
}

function rows(bias, n) {
  const out = new Float64Array(bias.length * n);
  bias.forEach((b, i) => out.fill(b, i * n, (i + 1) * n));
  return out;
}

const rowSums = (A, n, into) =>
  into.forEach((_, i) => (into[i] = A.subarray(i * n, (i + 1) * n).reduce((a, b) => a + b, 0)));

// Mean and covariance of a mixture, the latter by its eigenvalues and the angle of the first eigenvector.
export function moments(mixture) {
  const mean = [0, 1].map((d) => mixture.reduce((total, g) => total + g.weight * g.mean[d], 0));
  const [xx, xy, yy] = [
    [0, 0],
    [0, 1],
    [1, 1],
  ].map(([p, q], i) =>
    mixture.reduce((total, g) => total + g.weight * (g.cov[i] + (g.mean[p] - mean[p]) * (g.mean[q] - mean[q])), 0),
  );
  const half = Math.hypot((xx - yy) / 2, xy);
  return { mean, values: [(xx + yy) / 2 + half, (xx + yy) / 2 - half], angle: 0.5 * Math.atan2(2 * xy, xx - yy) };
}

// The network on top of a law with these moments. Its weights are one array, in torch's order.
export function correction({ mean, values, angle }, schedule, source) {
  const H = WIDTH,
    F = 2 * FREQUENCIES;
  const shapes = [
    [H, 2],
    [H, 1],
    [H, F],
    [H, H],
    [H, 1],
    [2, H],
    [2, 1],
  ];
  const theta = new Float64Array(shapes.reduce((total, [m, n]) => total + m * n, 0));
  const views = (array) => {
    let from = 0;
    return shapes.map(([m, n]) => array.subarray(from, (from += m * n)));
  };
  const reach = [2, 2, F, H, H].map((inputs) => 1 / Math.sqrt(inputs)); // torch's initial weights; the output starts at zero
  views(theta).forEach((part, i) => i < 5 && part.forEach((_, j) => (part[j] = reach[i] * (2 * source.uniform() - 1))));
  const frequencies = Array.from({ length: FREQUENCIES }, () => SCALE * source.normals()[0]);
  const axes = [
    [Math.cos(angle), Math.sin(angle)],
    [-Math.sin(angle), Math.cos(angle)],
  ];

  function features(times) {
    const out = new Float64Array(F * times.length);
    frequencies.forEach((f, i) =>
      times.forEach((t, s) => {
        out[i * times.length + s] = Math.sin(2 * Math.PI * f * t);
        out[(i + FREQUENCIES) * times.length + s] = Math.cos(2 * Math.PI * f * t);
      }),
    );
    return out;
  }

  // At points x (n pairs, flat) and their times, or one time for all: the correction (n pairs, flat), and what its gradient needs.
  function forward(x, times, weights = theta) {
    const n = x.length / 2,
      padded = Math.ceil(n / 4) * 4,
      one = times.length === 1,
      [Wx, b, Wt, W1, b1, Wo, bo] = views(weights);
    const inputs = new Float64Array(2 * padded),
      gains = new Float64Array(2 * n),
      last = one ? 1 : padded;
    let phi = null,
      h;
    if (one) {
      const time = features(times);
      h = rows(
        b.map((v, i) => time.reduce((total, f, j) => total + Wt[i * F + j] * f, v)),
        padded,
      );
    } else {
      const every = new Float64Array(padded);
      every.set(times);
      phi = features(every);
      h = multiply(rows(b, padded), Wt, phi, H, F, padded);
    }
    for (let s = 0; s < n; s++) {
      const t = times[one ? 0 : s],
        alpha = schedule.alpha(t),
        sigma = schedule.sigma(t);
      const [u, v] = [x[2 * s] - alpha * mean[0], x[2 * s + 1] - alpha * mean[1]];
      for (let d = 0; d < 2; d++) {
        const variance = alpha ** 2 * values[d] + sigma ** 2;
        inputs[d * padded + s] = (axes[d][0] * u + axes[d][1] * v) / Math.sqrt(variance);
        gains[2 * s + d] = (sigma * alpha * Math.sqrt(values[d])) / variance;
      }
    }
    multiply(h, Wx, inputs, H, 2, padded);
    const slopes = new Float64Array(h.length);
    for (let i = 0; i < h.length; i++) {
      const gate = 1 / (1 + Math.exp(-h[i])); // SiLU, and its derivative
      slopes[i] = gate * (1 + h[i] * (1 - gate));
      h[i] *= gate;
    }
    const top = multiply(rows(b1, padded), W1, h, H, H, padded);
    for (let i = 0; i < top.length; i++) top[i] = 1 - 2 / (Math.exp(2 * top[i]) + 1); // the hyperbolic tangent
    const out = multiply(rows(bo, padded), Wo, top, 2, H, padded),
      result = new Float64Array(2 * n);
    for (let s = 0; s < n; s++)
      for (let d = 0; d < 2; d++) {
        const value = gains[2 * s + d] * out[d * padded + s];
        result[2 * s] += value * axes[d][0];
        result[2 * s + 1] += value * axes[d][1];
      }
    return { result, inputs, gains, phi, h, slopes, top, n, padded };
  }

  // The gradient of a loss in the weights, from its gradient in the correction (n pairs, flat).
  function backward({ inputs, gains, phi, h, slopes, top, n, padded }, upstream) {
    const gradient = new Float64Array(theta.length),
      [gWx, gb, gWt, gW1, gb1, gWo, gbo] = views(gradient),
      [, , , W1, , Wo] = views(theta);
    const out = new Float64Array(2 * padded);
    for (let s = 0; s < n; s++)
      for (let d = 0; d < 2; d++)
        out[d * padded + s] = gains[2 * s + d] * (axes[d][0] * upstream[2 * s] + axes[d][1] * upstream[2 * s + 1]);
    multiply(gWo, out, transpose(top, H, padded), 2, padded, H);
    rowSums(out, padded, gbo);
    const second = multiply(new Float64Array(H * padded), transpose(Wo, 2, H), out, H, 2, padded);
    for (let i = 0; i < second.length; i++) second[i] *= 1 - top[i] ** 2;
    multiply(gW1, second, transpose(h, H, padded), H, padded, H);
    rowSums(second, padded, gb1);
    const first = multiply(new Float64Array(H * padded), transpose(W1, H, H), second, H, H, padded);
    for (let i = 0; i < first.length; i++) first[i] *= slopes[i];
    rowSums(first, padded, gb);
    multiply(gWt, first, transpose(phi, F, padded), H, padded, F);
    const narrow = transpose(inputs, 2, padded);
    for (let i = 0; i < H; i++)
      for (let s = 0; s < padded; s++) {
        gWx[2 * i] += first[i * padded + s] * narrow[2 * s];
        gWx[2 * i + 1] += first[i * padded + s] * narrow[2 * s + 1];
      }
    return gradient;
  }

  return { theta, frequencies, forward, backward };
}

// Adam with torch's defaults; the rate may change from step to step.
export function adam(theta) {
  const first = new Float64Array(theta.length),
    second = new Float64Array(theta.length);
  let steps = 0;
  return (gradient, rate) => {
    steps += 1;
    const c1 = 1 - 0.9 ** steps,
      c2 = Math.sqrt(1 - 0.999 ** steps);
    for (let i = 0; i < theta.length; i++) {
      first[i] += 0.1 * (gradient[i] - first[i]);
      second[i] += 0.001 * (gradient[i] ** 2 - second[i]);
      theta[i] -= ((rate / c1) * first[i]) / (Math.sqrt(second[i]) / c2 + 1e-8);
    }
  };
}
