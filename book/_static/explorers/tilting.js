// Algorithm 2 on a base that is a mixture, known exactly, under a network that learns the tilts: itlib.tilting.Regression on
// itlib.beyond.preconditioning.adapter, with a learning rate that falls to zero in each tilt. A generator: who iterates decides
// how fast it goes.
import { prepare, noised, score, timeGrid, transition } from "./maths.js";
import { moments, correction, adam } from "./network.js";

const CHUNK = 250; // points between two pauses of the sampler

// The base's prediction of X_1 = -sigma times its score, at points (flat) with their times, or one time for all.
export function predictBase(mixture, schedule, x, times) {
  const out = new Float64Array(x.length),
    laws = times.map((t) => prepare(noised(mixture, schedule.alpha(t), schedule.sigma(t)))),
    sigmas = times.map(schedule.sigma);
  for (let s = 0; 2 * s < x.length; s++) {
    const i = times.length === 1 ? 0 : s,
      found = score(laws[i], [x[2 * s], x[2 * s + 1]]);
    out[2 * s] = -sigmas[i] * found[0];
    out[2 * s + 1] = -sigmas[i] * found[1];
  }
  return out;
}

const plus = (a, b) => a.map((v, i) => v + b[i]);

// What the DDPM step leaves out, the mean width of the posterior of X_0, added to its standard deviation.
export function analyticStd({ alpha, sigma }, s, t, std, x, predicted) {
  const mean = (values) => values.reduce((total, v) => total + v, 0) / values.length;
  let meanSquare;
  if (sigma(t) < alpha(t)) meanSquare = mean(predicted.map((v) => v * v));
  else {
    const clean = x.map((v, i) => (v - sigma(t) * predicted[i]) / alpha(t));
    const centre = [0, 1].map((d) => mean(clean.filter((_, i) => i % 2 === d)));
    meanSquare = 1 - (alpha(t) / sigma(t)) * mean(predicted.map((v, i) => v * (clean[i] - centre[i % 2])));
  }
  const c = alpha(s) - (Math.sqrt(sigma(s) ** 2 - std ** 2) * alpha(t)) / sigma(t);
  return Math.hypot(std, ((c * sigma(t)) / alpha(t)) * Math.sqrt(Math.max(0, 1 - meanSquare)));
}

// Algorithm 1 with the model as it is: pauses now and then, and returns the samples.
function* sampling(model, { schedule, S, J, analytic, source }, k) {
  const grid = timeGrid(J);
  let x = new Float64Array(2 * S);
  for (let i = 0; i < 2 * S; i += 2) x.set(source.normals(), i);
  for (let j = J; j > 0; j--) {
    const [t, s] = [grid[j], grid[j - 1]],
      predicted = new Float64Array(2 * S);
    for (let from = 0; from < 2 * S; from += 2 * CHUNK) {
      predicted.set(model(x.subarray(from, from + 2 * CHUNK), [t]), from);
      yield { what: "sampling", k, points: x, time: t };
    }
    let [a, b, std] = transition(schedule, s, t, 1);
    if (analytic) std = analyticStd(schedule, s, t, std, x, predicted);
    x = x.map((v, i) => a * v + b * predicted[i]);
    if (std) for (let i = 0; i < 2 * S; i += 2) source.normals().forEach((z, d) => (x[i + d] += std * z));
  }
  return x;
}

// The loss of one minibatch {x_0, r, t, z} in a tilt of size delta, and its gradient. `old` is the teacher's weights.
export function regression(network, old, base, schedule, { x0, r, t, z }, delta) {
  const n = r.length,
    alpha = t.map(schedule.alpha),
    sigma = t.map(schedule.sigma);
  const x = x0.map((v, i) => alpha[i >> 1] * v + sigma[i >> 1] * z[i]);
  const before = network.forward(x, t, old).result,
    teacher = plus(predictBase(base, schedule, x, t), before),
    pass = network.forward(x, t);
  // Both predictions have the base's in them, and it falls out: what is left of eps - (eps_old - delta r (eps_old - z)).
  const error = pass.result.map((v, i) => v - before[i] + delta * r[i >> 1] * (teacher[i] - z[i]));
  const loss = error.reduce((total, v, i) => total + (sigma[i >> 1] * v) ** 2, 0) / n;
  return {
    loss,
    x,
    gradient: network.backward(
      pass,
      error.map((v, i) => (2 * sigma[i >> 1] ** 2 * v) / n),
    ),
  };
}

// Algorithm 2. After k tilts, k = 0 to N, it yields {what: "tilt", k, points, theta}: samples of the model, which are also
// the next tilt's dataset, and its weights; in between {what: "sampling" | "learning", ...}.
export function* iterativeTilting(settings) {
  const { base, reward, schedule, N, S, B, E, rate, source, network } = settings;
  const model = (x, times) => plus(predictBase(base, schedule, x, times), network.forward(x, times).result);
  for (let k = 0; ; k++) {
    const data = yield* sampling(model, settings, k); // line 3
    if (!data.every(Number.isFinite))
      throw new Error(`After ${k} tilts the samples are no longer numbers. Lower the learning rate.`);
    const theta = network.theta.slice(); // line 4
    yield { what: "tilt", k, points: data, theta };
    if (k === N) return;
    const rewards = Array.from({ length: S }, (_, i) => reward(data[2 * i], data[2 * i + 1]));
    if (!rewards.every(Number.isFinite)) throw new Error("The reward of a sample is not a number.");
    const step = adam(network.theta),
      order = rewards.map((_, i) => i);
    for (let e = 0; e < E; e++) {
      for (let i = 0; i < B; i++) {
        const j = i + Math.floor(source.uniform() * (S - i));
        [order[i], order[j]] = [order[j], order[i]];
      }
      const chosen = order.slice(0, B);
      const batch = {
        x0: Float64Array.from(chosen.flatMap((i) => [data[2 * i], data[2 * i + 1]])),
        r: chosen.map((i) => rewards[i]),
        t: chosen.map(() => source.uniform()), // line 6
        z: Float64Array.from(chosen.flatMap(() => source.normals())), // line 7
      };
      const { loss, gradient } = regression(network, theta, base, schedule, batch, 1 / N);
      step(gradient, rate * 0.5 * (1 + Math.cos((Math.PI * e) / E))); // line 13
      yield { what: "learning", k, update: e + 1, loss };
    }
  }
}

// A network for a base, as it is before the first tilt.
export const student = (base, schedule, source) => correction(moments(base), schedule, source);
