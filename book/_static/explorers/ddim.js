// Algorithm 1 with the exact denoiser, in the page: what the number of steps and the noise do to its samples.
import { schedules, prepare, logDensity, random, ddim, chainVariance, sum } from "./maths.js";
import { el, set, show, slider, button, report, picture, plane, contours, key, explorer } from "./ui.js";

const POINTS = 1000,
  STEPS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200];

explorer("ddim", "Steps and noise of the sampler", ({ mixture, variance }) => {
  const cloud = plane(
    "samples of Algorithm 1",
    "Samples of Algorithm 1 with the exact denoiser, over contours of the exact density.",
    [-4.6, 4.6, -3.4, 3.4],
  );
  const exact = prepare(mixture);
  contours(cloud, (x) => logDensity(exact, x)).forEach((d) => cloud.path("line ink thin", { d }));
  const dots = cloud.path("dots base small");
  const chart = picture({
    title: "variance of x\u2082",
    label: "Variance of the second coordinate against the number of steps, for the chosen noise; and that of the samples.",
    x: { from: 1, to: 200, ticks: [1, 5, 20, 50, 200], log: true, label: "steps K" },
    y: { from: 0, to: 0.6, ticks: [0, 0.25, 0.5], text: (v) => show(v) },
  });
  chart.path("line target dashed", {
    d: chart.line([
      [1, variance],
      [200, variance],
    ]),
  });
  const ends = [0, 1].map((e) =>
    chart.path("line base faint", { d: chart.line(STEPS.map((K) => [K, chainVariance(schedules.cosine, variance, K, e)])) }),
  );
  set(ends[1], { class: "line base faint dashed" });
  const curve = chart.path("line base"),
    bar = chart.path("line ink"),
    mark = chart.path("dots ink large");

  let seed = 1;
  const steps = slider({
    label: "steps K",
    min: 0,
    max: STEPS.length - 1,
    value: STEPS.indexOf(10),
    text: (i) => String(STEPS[i]),
    change: draw,
  });
  const eta = slider({ label: "noise \u03b7", min: 0, max: 1, step: 0.05, value: 1, change: draw });
  const again = button("New noise", () => {
    seed += 1;
    draw();
  });
  const { nodes: says, say } = report();

  function draw() {
    const K = STEPS[steps.value],
      e = eta.value,
      source = random(seed);
    const points = ddim(
      mixture,
      schedules.cosine,
      Array.from({ length: POINTS }, () => source.normals()),
      K,
      e,
      source,
    );
    const mean = sum(points.map((p) => p[1])) / POINTS,
      found = sum(points.map((p) => (p[1] - mean) ** 2)) / (POINTS - 1);
    const expected = chainVariance(schedules.cosine, variance, K, e),
      error = found * Math.sqrt(2 / (POINTS - 1));
    set(dots, { d: cloud.dots(points) });
    set(curve, { d: chart.line(STEPS.map((n) => [n, chainVariance(schedules.cosine, variance, n, e)])) });
    set(bar, {
      d: chart.line([
        [K, Math.max(0, found - 2 * error)],
        [K, found + 2 * error],
      ]),
    });
    set(mark, { d: chart.dots([[K, found]]) });
    const right = points.filter(([x]) => x > 0).length / POINTS;
    say(
      `${K} step${K > 1 ? "s" : ""}, \u03b7 = ${show(e)}: the variance of x\u2082 should be ${show(variance)}; the chain reaches ${show(expected, 3)} by the closed form, ` +
        `${show(found, 3)} \u00b1 ${show(2 * error, 3)} in ${POINTS} samples. ${Math.round(100 * right)} per cent are on the right.`,
    );
  }

  draw();
  return [
    el("div", { class: "controls" }, steps.node, eta.node, again),
    el("div", { class: "pictures" }, cloud.node, chart.node),
    key([
      ["dots base", "samples"],
      ["dots ink", "their variance; bar: two standard errors"],
      ["line ink thin", "exact density"],
      ["line base", "closed form at this \u03b7"],
      ["line base faint", "at \u03b7 = 0"],
      ["line base faint dashed", "at \u03b7 = 1"],
      ["line target dashed", "exact variance"],
    ]),
    says,
  ];
});
