// The covariance step (3.10) at one point: draws of X_0 given x_t, coloured by reward, and base score + delta C beside the
// exact score of the tilt.
import {
  schedules,
  prepare,
  noised,
  logDensity,
  score,
  reward,
  posterior,
  covarianceStep,
  tilted,
  random,
  sample,
  sum,
} from "./maths.js";
import {
  el,
  set,
  show,
  slider,
  choice,
  report,
  plane,
  picture,
  contours,
  handle,
  rewarded,
  arrow,
  key,
  explorer,
} from "./ui.js";

const LIMITS = [-5, 5, -4, 4.5],
  DRAWS = 200;

explorer("covariance", "One step of the score", ({ mixture, rewards, first, at, time, delta }) => {
  const { alpha, sigma } = schedules.cosine;
  const cloud = plane(
    "draws of X\u2080 given x\u209c",
    "Draws of X 0 from the posterior of a point, over contours of the base.",
    LIMITS,
  );
  contours(cloud, (x) => logDensity(prepare(mixture), x)).forEach((d) => cloud.path("line base dashed thin", { d }));
  const draws = rewarded(cloud);
  const sides = { from: -1.15, to: 1.15, ticks: [] },
    scores = picture({
      title: "scores at x\u209c",
      label: "Arrows: base score, the step along the covariance, and the exact score of the tilt.",
      x: sides,
      y: sides,
      equal: true,
      bare: true,
    });
  const circle = scores.path("line ink thin dashed"),
    length = scores.marks.appendChild(el("svg:text", { "text-anchor": "middle", class: "small" }));
  const arrows = ["target wide faint", "base", "covariance", "learned"].map((kind) => scores.path(`line ${kind}`));

  let place = at;
  const knob = handle(cloud, {
    label: "the noised point",
    mark: "",
    move(to) {
      place = to;
      draw();
    },
  });
  const which = choice({
    legend: "reward",
    options: Object.keys(rewards).map((name) => [name, name]),
    value: first,
    change: draw,
  });
  const t = slider({ label: "time t", min: 0.05, max: 0.95, step: 0.01, value: time, change: draw });
  const size = slider({ label: "step \u03b4", min: 0, max: 1, step: 0.01, value: delta, change: draw });
  const { nodes: says, say } = report();

  function draw() {
    const r = rewards[which.value],
      a = alpha(t.value),
      s = sigma(t.value),
      law = posterior(mixture, a, s, place);
    const points = sample(law, DRAWS, random(1)),
      values = points.map((x) => reward(r, x));
    knob.at(place);
    draws(points, values);
    const base = score(prepare(noised(mixture, a, s)), place),
      C = covarianceStep(law, a, s, r).map((v) => v / s),
      step = C.map((v) => size.value * v),
      moved = base.map((v, d) => v + step[d]);
    const target = tilted(mixture, r, size.value).mixture,
      exact = score(prepare(noised(target, a, s)), place);
    // From the draws alone: the covariance of (alpha X_0 - x_t) / sigma^2 and the reward.
    const centre = sum(values) / DRAWS,
      found = [0, 1].map((d) => (sum(points.map((p, i) => (values[i] - centre) * p[d])) * a) / s ** 2 / (DRAWS - 1));
    const longest = Math.max(...[base, moved, exact].map((v) => Math.hypot(...v)), 1e-9),
      unit = [1, 2, 5]
        .flatMap((m) => [0.001, 0.01, 0.1, 1, 10, 100, 1000].map((p) => m * p))
        .sort((p, q) => p - q)
        .find((v) => v >= longest);
    const put = (path, from, to) =>
      set(path, {
        d: arrow(
          scores,
          from.map((v) => v / unit),
          to.map((v) => v / unit),
          0.07,
        ),
      });
    set(circle, {
      d: scores.line(Array.from({ length: 73 }, (_, i) => [Math.cos((i * Math.PI) / 36), Math.sin((i * Math.PI) / 36)])),
    });
    set(length, { x: scores.X(0), y: scores.Y(-1.12) });
    length.textContent = `circle: length ${unit}`;
    put(arrows[0], [0, 0], exact);
    put(arrows[1], [0, 0], base);
    put(arrows[2], base, step);
    put(arrows[3], [0, 0], moved);
    const pair = (v) => `(${v.map((one) => show(one)).join(", ")})`,
      off = Math.hypot(moved[0] - exact[0], moved[1] - exact[1]),
      way = Math.hypot(exact[0] - base[0], exact[1] - base[1]);
    say(
      `Base score ${pair(base)} + ${show(size.value)} \u00b7 covariance ${pair(C)} = ${pair(moved)}. Exact: ${pair(exact)}` +
        (way > 1e-9 ? `; the step misses by ${show((100 * off) / way, off / way < 0.1 ? 1 : 0)} % of the way. ` : ". ") +
        `The ${DRAWS} draws alone estimate the covariance as ${pair(found)}.`,
    );
  }

  draw();
  return [
    el("div", { class: "controls" }, which.node, t.node, size.node),
    el("div", { class: "pictures" }, cloud.node, scores.node),
    key([
      ["dots reward r4", "draw of high reward"],
      ["dots reward r0", "of low reward"],
      ["line base dashed", "base"],
      ["line base", "base score"],
      ["line covariance", "\u03b4 \u00b7 covariance"],
      ["line learned", "new score"],
      ["line target wide faint", "exact"],
    ]),
    says,
  ];
});
