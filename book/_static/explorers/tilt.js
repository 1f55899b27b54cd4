// The exact tilt of a mixture by a quadratic reward, and the tilts that do not exist.
import { prepare, logDensity, tilted, largestTilt } from "./maths.js";
import { el, set, show, slider, button, report, plane, contours, key, explorer } from "./ui.js";

const LIMITS = [-6, 6, -4.5, 5.5];
const SLIDERS = [
  // label, from, to, step
  ["strength \u03bb", 0, 2.5, 0.01],
  ["slope b\u2081", -5, 5, 0.1],
  ["slope b\u2082", -5, 5, 0.1],
  ["curvature A\u2081\u2081", -3, 3, 0.05],
  ["twist A\u2081\u2082", -2, 2, 0.05],
  ["curvature A\u2082\u2082", -3, 3, 0.05],
];

explorer("tilt", "Tilt explorer", ({ mixture, presets, first }) => {
  const cloud = plane(
    "base and tilted density",
    "Contours: dashed, the base density; filled, the tilted density; lines join old means to new ones.",
    LIMITS,
  );
  const fills = [0, 1, 2, 3].map(() => cloud.path("fill target outlined"));
  const still = prepare(mixture);
  contours(cloud, (x) => logDensity(still, x)).forEach((d) => cloud.path("line base dashed", { d }));
  const moves = mixture.map(() => cloud.path("line ink")),
    heads = cloud.path("dots ink large");
  const none = cloud.marks.appendChild(
    el("svg:text", { class: "none", x: cloud.X(0), y: cloud.Y(4.3), "text-anchor": "middle" }),
  );

  const sliders = SLIDERS.map(([label, min, max, step], i) =>
    slider({ label, min, max, step, value: presets[first][i], change: draw }),
  );
  const buttons = Object.entries(presets).map(([name, values]) =>
    button(name, () => {
      values.forEach((v, i) => {
        sliders[i].value = v;
      });
      draw();
    }),
  );
  const cells = [0, 1, 2].map(() => mixture.map(() => el("td")));
  const heading = (text, scope) => el("th", { scope }, text);
  const table = el(
    "table",
    {},
    el("caption", {}, "The tilted mixture"),
    el(
      "thead",
      {},
      el("tr", {}, heading("mode", "col"), ...mixture.map((_, i) => heading(["left", "right"][i] ?? String(i + 1), "col"))),
    ),
    el(
      "tbody",
      {},
      ...["weight", "mean", "variances, covariance"].map((name, i) => el("tr", {}, heading(name, "row"), ...cells[i])),
    ),
  );
  const { nodes: says, say } = report();

  function draw() {
    const values = sliders.map((one) => one.value),
      [lambda, b1, b2, xx, xy, yy] = values,
      reward = { A: [xx, xy, yy], b: [b1, b2] };
    const { mixture: target, smallest, logZ, kl } = tilted(mixture, reward, lambda),
      bound = largestTilt(mixture, reward);
    Object.values(presets).forEach((preset, k) =>
      set(buttons[k], { "aria-pressed": String(preset.every((v, i) => Math.abs(v - values[i]) < 1e-9)) }),
    );
    const prepared = target && prepare(target),
      paths = target ? contours(cloud, (x) => logDensity(prepared, x)) : [];
    fills.forEach((path, i) => set(path, { d: paths[i] ?? "" }));
    moves.forEach((path, i) => set(path, { d: target ? cloud.line([mixture[i].mean, target[i].mean]) : "" }));
    set(heads, { d: target ? cloud.dots(target.map((g) => g.mean)) : "" });
    none.textContent = target ? "" : "no tilted density";
    mixture.forEach((_, i) => {
      const g = target?.[i];
      cells[0][i].textContent = !g
        ? "\u2013"
        : g.weight && g.weight < 1e-4
          ? g.weight.toExponential(1).replace("-", "\u2212")
          : show(g.weight, 4);
      cells[1][i].textContent = g ? g.mean.map((v) => show(v)).join(", ") : "\u2013";
      cells[2][i].textContent = g ? [g.cov[0], g.cov[2], g.cov[1]].map((v) => show(v)).join(", ") : "\u2013";
    });
    const allowed = Number.isFinite(bound) ? `\u03bb must stay below ${show(bound, 3)}.` : "Every \u03bb is allowed.";
    const far = target?.some(
      (g) =>
        g.weight > 0.01 &&
        [0, 1].some((d) => {
          const reach = Math.sqrt(g.cov[2 * d]);
          return g.mean[d] - reach < LIMITS[2 * d] || g.mean[d] + reach > LIMITS[2 * d + 1];
        }),
    );
    say(
      target
        ? `log Z = ${show(logZ, 3)}, KL divergence from the base ${show(kl, 3)} nats. ${allowed}${far ? " A good part of the tilted density lies outside the picture." : ""}`
        : `This tilt cannot be normalised: the smallest eigenvalue of \u03a3\u207b\u00b9 \u2212 \u03bbA is ${show(smallest)}, and must be positive. ${allowed}`,
    );
    says[0].classList.toggle("refused", !target);
  }

  draw();
  return [
    el(
      "div",
      { class: "controls" },
      el("fieldset", {}, el("legend", {}, "rewards of this book"), ...buttons),
      ...sliders.map((one) => one.node),
    ),
    el("div", { class: "pictures" }, cloud.node, el("div", { class: "beside" }, table, ...says)),
    key([
      ["line base dashed", "base"],
      ["fill target outlined", "tilted"],
      ["line ink", "old mean to new mean (dot)"],
    ]),
  ];
});
