// Variance of estimators of the covariance step against time, relative to what they estimate.
import {
  schedules,
  prepare,
  noised,
  random,
  sample,
  posterior,
  tilted,
  reward,
  expectedReward,
  covarianceStep,
  drawVariances,
  raoBlackwell,
  sum,
} from "./maths.js";
import { el, set, show, slider, choice, report, picture, key, explorer } from "./ui.js";

const TIMES = Array.from({ length: 25 }, (_, i) => 0.02 + 0.04 * i),
  POINTS = 80;
const NAMES = ["single sample", "centred", "local baseline", "Rao\u2013Blackwell"],
  STROKES = ["base", "target dashed", "learned", "paper dotted"];

explorer("estimators", "Variance of the estimators against time", ({ mixture, rewards }) => {
  const chart = picture({
    title: "squared error of one target, in units of the signal",
    label: "Squared error of four estimators against time, on a logarithmic scale.",
    x: { from: 0, to: 1, ticks: [0, 0.25, 0.5, 0.75, 1], label: "time t" },
    y: {
      from: 1e-3,
      to: 1e4,
      ticks: [1e-3, 1e-2, 0.1, 1, 10, 100, 1000, 1e4],
      log: true,
      text: (v) => (v >= 1 ? v.toLocaleString("en") : String(v)),
    },
    width: 400,
    height: 260,
  });
  chart.path("line ink thin dashed", {
    d: chart.line([
      [0, 1],
      [1, 1],
    ]),
  });
  const now = chart.path("line ink thin"),
    curves = STROKES.map((kind) => chart.path(`line ${kind}`)),
    marks = STROKES.map((kind) => chart.path(`dots ${kind.split(" ")[0]} large`));

  const which = choice({
    legend: "reward",
    options: Object.keys(rewards).map((name) => [name, name]),
    value: "one-mode",
    change: compute,
  });
  const done = slider({ label: "share of the tilts done", min: 0, max: 1, step: 0.05, value: 0.5, change: compute });
  const added = slider({
    label: "constant added to the reward",
    min: -20,
    max: 20,
    step: 1,
    value: 0,
    text: (v) => show(v, 0),
    change: compute,
  });
  const size = slider({
    label: "samples in D\u2096",
    min: 0,
    max: 3,
    value: 2,
    text: (i) => [30, 100, 300, 1000][i].toLocaleString("en"),
    change: compute,
  });
  const time = slider({
    label: "read at time t",
    min: 0,
    max: TIMES.length - 1,
    value: 12,
    text: (i) => show(TIMES[i]),
    change: draw,
  });
  const { nodes: says, say } = report();
  let errors; // by estimator and time

  function compute() {
    const r = { ...rewards[which.value], c: added.value },
      law = tilted(mixture, r, done.value).mixture,
      source = random(0);
    const data = sample(law, [30, 100, 300, 1000][size.value], source),
      values = data.map((x) => reward(r, x)),
      centre = expectedReward(law, r);
    const rows = TIMES.map((t) => {
      const alpha = schedules.cosine.alpha(t),
        sigma = schedules.cosine.sigma(t),
        totals = [0, 0, 0, 0];
      let signal = 0;
      for (let i = 0; i < POINTS; i++) {
        // noised versions of samples of the dataset, as in a tilt
        const z = source.normals(),
          x = data[Math.floor(source.uniform() * data.length)].map((v, d) => alpha * v + sigma * z[d]);
        const after = posterior(law, alpha, sigma, x),
          exact = covarianceStep(after, alpha, sigma, r);
        drawVariances(after, alpha, sigma, r, [0, centre, expectedReward(after, r)]).forEach((v, j) => {
          totals[j] += v;
        });
        totals[3] += sum(raoBlackwell(data, values, alpha, sigma, x).map((v, d) => (v - exact[d]) ** 2));
        signal += exact[0] ** 2 + exact[1] ** 2;
      }
      return totals.map((v) => v / signal);
    });
    errors = NAMES.map((_, j) => rows.map((row) => row[j]));
    errors.forEach((values_, j) => set(curves[j], { d: chart.line(values_.map((v, i) => [TIMES[i], v])) }));
    draw();
  }

  function draw() {
    const i = time.value,
      t = TIMES[i],
      text = (v) => (v < 0.1 ? v.toPrecision(1) : v < 10 ? show(v, 1) : Math.round(v).toLocaleString("en"));
    set(now, {
      d: chart.line([
        [t, 1e-3],
        [t, 1e4],
      ]),
    });
    errors.forEach((values, j) => set(marks[j], { d: chart.dots([[t, values[i]]]) }));
    say(
      `At t = ${show(t)}, squared error of one target in units of the signal: ${NAMES.map((name, j) => `${name} ${text(errors[j][i])}`).join(", ")}.` +
        `${added.value ? " The constant changes no tilt, and no estimator but the single sample." : ""}`,
    );
  }

  compute();
  return [
    el("div", { class: "controls" }, which.node, done.node, added.node, size.node, time.node),
    el("div", { class: "pictures" }, chart.node),
    key([...NAMES.map((name, j) => [`line ${STROKES[j]}`, name]), ["line ink thin dashed", "as wrong as no estimate"]]),
    says,
  ];
});
