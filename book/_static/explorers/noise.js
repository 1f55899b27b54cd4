// The forward process: draws of (X_0, X_1) mixed at a time t, the law p_t, and where t lies on the schedule.
import { schedules, prepare, noised, logDensity, random, sample } from "./maths.js";
import { el, set, show, slider, choice, report, picture, plane, contours, key, explorer } from "./ui.js";

const DRAWS = 300,
  TIMES = Array.from({ length: 101 }, (_, i) => i / 100);

explorer("noise", "Schedule and noise level", ({ mixture }) => {
  const source = random(0),
    clean = sample(mixture, DRAWS, source),
    noise = clean.map(() => source.normals());
  const cloud = plane(
    "x at time t",
    "Draws of the forward process at the chosen time, with contours of their law.",
    [-4.6, 4.6, -3.4, 3.4],
  );
  const rings = [0, 1, 2, 3].map(() => cloud.path("line ink thin")),
    dots = cloud.path("dots base");
  const chart = picture({
    title: "\u03b1 (solid) and \u03c3 (dashed)",
    label: "The schedule's two functions of time, and the chosen time.",
    x: { from: 0, to: 1, ticks: [0, 0.5, 1], label: "time t" },
    y: { from: 0, to: 1.05, ticks: [0, 0.5, 1] },
  });
  const now = chart.path("line ink thin");
  const curves = Object.entries(schedules)
    .map(([name, { alpha, sigma }]) =>
      [alpha, sigma].map((f, i) => {
        const path = chart.path(`line ${name === "cosine" ? "base" : "target"}${i ? " dashed" : ""}`, {
          d: chart.line(TIMES.map((t) => [t, f(t)])),
        });
        return { name, path };
      }),
    )
    .flat();
  const marks = [chart.path("dots ink large"), chart.path("dots ink large")];

  const which = choice({
    legend: "schedule",
    options: Object.keys(schedules).map((name) => [name, name]),
    value: "cosine",
    change: draw,
  });
  const time = slider({ label: "time t", min: 0, max: 1, step: 0.01, value: 0.25, change: draw });
  const { nodes: says, say } = report();

  function draw() {
    const t = time.value,
      { alpha, sigma } = schedules[which.value],
      [a, s] = [alpha(t), sigma(t)];
    const law = noised(mixture, a, s),
      prepared = prepare(law);
    contours(cloud, (x) => logDensity(prepared, x)).forEach((d, i) => set(rings[i], { d }));
    set(dots, { d: cloud.dots(clean.map((x, i) => [a * x[0] + s * noise[i][0], a * x[1] + s * noise[i][1]])) });
    set(now, {
      d: chart.line([
        [t, 0],
        [t, 1.05],
      ]),
    });
    [a, s].forEach((v, i) => set(marks[i], { d: chart.dots([[t, v]]) }));
    curves.forEach(({ name, path }) => path.classList.toggle("faint", name !== which.value));
    // Two equal modes of one variance, side by side: two peaks as long as half their distance exceeds their width.
    const [left, right] = law,
      two = (right.mean[0] - left.mean[0]) / 2 > Math.sqrt(left.cov[0]);
    const ratio =
      s === 0
        ? "infinite"
        : (a / s) ** 2 < 0.01
          ? ((a / s) ** 2).toExponential(1).replace("-", "\u2212")
          : show((a / s) ** 2);
    say(
      `At t = ${show(t)} the ${which.value} schedule has \u03b1 = ${show(a, 3)}, \u03c3 = ${show(s, 3)} and a signal-to-noise ratio of ${ratio}. ` +
        `The density has ${two ? "two peaks" : "one peak: the modes have merged"}.`,
    );
  }

  draw();
  return [
    el("div", { class: "controls" }, which.node, time.node),
    el("div", { class: "pictures" }, cloud.node, chart.node),
    key([
      ["dots base", "draws, each with its own data point and noise"],
      ["line ink thin", "contours of their law"],
      ["line base", "cosine"],
      ["line target", "linear"],
    ]),
    says,
  ];
});
