// Algorithm 2 at work: samples of the network after each tilt, its score, and its error, from real runs.
// A model has the base `mixture`, the `reward`, and `runs`: for each number of tilts N frames {k, points, error} and, where
// the page has them, scores on the grid xs, ys at the noise level `level`. Points and scores are in hundredths.
import { schedules, prepare, noised, logDensity, score, tilted, meanOf } from "./maths.js";
import { el, set, show, slider, choice, button, report, picture, plane, contours, arrow, key, explorer } from "./ui.js";

const LIMITS = [-4.6, 4.6, -2.6, 4.4],
  SECONDS = 6,
  ARROW = 0.15;

explorer("tilts", "From the base to the target, tilt by tilt", ({ mixture, reward, runs, level, xs, ys }) => {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const exact = (share) => tilted(mixture, reward, share).mixture;
  const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i] / 100, flat[2 * i + 1] / 100]);
  const kept = runs.map(({ N, frames }) => ({
    N,
    frames: frames.map((frame) => {
      const points = pairs(frame.points);
      return {
        ...frame,
        points,
        scores: frame.score && pairs(frame.score),
        mean: points.reduce((total, p) => total + p[1] / points.length, 0),
      };
    }),
  }));
  const grid = level && ys.flatMap((y) => xs.map((x) => [x, y]));

  // Where we are: a run, and a place among its frames, a fraction while it plays.
  let run = kept.find(({ N }) => N === 20) ?? kept[0],
    at = run.frames.length - 1,
    pending = 0;

  const samples = plane("samples", "Samples of the network over contours of the exact density after as many tilts.", LIMITS);
  set(samples.path("fill target"), { d: contours(samples, (x) => logDensity(prepare(exact(1)), x), [0.1])[0] });
  set(samples.path("line base dashed"), { d: contours(samples, (x) => logDensity(prepare(mixture), x), [0.1])[0] });
  const rings = [0, 1, 2, 3].map(() => samples.path("line ink thin"));
  const trails = samples.path("line learned faint"),
    dots = samples.path("dots learned");
  const field =
    level && plane(`score at t = ${level}`, `Arrows: the network's score and the exact one at noise level t = ${level}, on a grid.`, LIMITS);
  const arrows = field && [field.path("line target wide faint"), field.path("line learned thin")];

  const share = { from: 0, to: 1.02, ticks: [0, 0.5, 1], label: "share of the tilts done" },
    worst = Math.max(...kept.flatMap(({ frames }) => frames.map((f) => f.error)));
  const top = Math.ceil(worst * 10) / 10,
    reach = Math.max(...kept.flatMap(({ frames }) => frames.map((f) => f.mean)), 2);
  const height = picture({
    title: "mean of x\u2082",
    label: "Mean of x 2 of the samples against the share of tilts done, beside the exact one.",
    x: share,
    y: { from: 0, to: 1.1 * reach, ticks: [0, 1, 2] },
    height: 150,
  });
  set(height.path("line target dashed"), {
    d: height.line([
      [0, meanOf(exact(0))[1]],
      [1, meanOf(exact(1))[1]],
    ]),
  });
  const error = picture({
    title: "error of the network",
    label: "Root mean square error of the predicted noise against the share of tilts done.",
    x: share,
    y: { from: 0, to: top, ticks: [0, top / 2, top], text: (v) => show(v, 2) },
    height: 150,
  });
  const curve = (chart, { N, frames }, value, upTo = frames.length) =>
    chart.line(frames.slice(0, upTo).map((f) => [f.k / N, value(f)]));
  const charts = [
    [height, (f) => f.mean],
    [error, (f) => f.error],
  ].map(([chart, value]) => {
    kept.forEach((one) => set(chart.path("line learned faint"), { d: curve(chart, one, value) }));
    return { chart, value, now: chart.path("line learned"), head: chart.path("dots learned large") };
  });

  const N = choice({
    legend: "tilts N",
    options: kept.map((one) => [one.N, String(one.N)]),
    value: run.N,
    change() {
      const done = at / (run.frames.length - 1);
      run = kept.find((one) => one.N === Number(N.value));
      set(k.input, { max: run.frames.length - 1 });
      stop(Math.round(done * (run.frames.length - 1)));
    },
  });
  const k = slider({
    label: "tilt k",
    min: 0,
    max: at,
    value: at,
    text: (v) => `${run.frames[v]?.k ?? ""} of ${run.N}`,
    change: () => stop(k.value),
  });
  const go = button("Play", () => {
    const last = run.frames.length - 1;
    if (pending) stop(Math.round(at));
    else if (still.matches)
      stop(at >= last ? 0 : at + 1); // who asked for less motion gets one picture for each press
    else play();
  });
  const { nodes: says, say } = report();

  const between = (f, a, b) => a.map((p, i) => [p[0] + f * (b[i][0] - p[0]), p[1] + f * (b[i][1] - p[1])]);

  function draw() {
    const { N: all, frames } = run,
      low = Math.min(Math.floor(at), frames.length - 1),
      high = Math.min(low + 1, frames.length - 1),
      f = at - low;
    const [a, b] = [frames[low], frames[high]],
      nearest = frames[Math.round(at)],
      done = (a.k + f * (b.k - a.k)) / all,
      law = exact(done);
    const points = between(f, a.points, b.points),
      prepared = prepare(law);
    contours(samples, (x) => logDensity(prepared, x)).forEach((d, i) => set(rings[i], { d }));
    set(dots, { d: samples.dots(points) });
    let path = ""; // of some samples; broken where one changed sides
    for (let i = 0; i < points.length; i += 8) {
      const way = [...frames.slice(0, low + 1).map((one) => one.points[i]), points[i]];
      path += way
        .map(
          ([x, y], j) =>
            `${j && Math.abs(x - way[j - 1][0]) < 1 ? "L" : "M"}${samples.X(x).toFixed(1)} ${samples.Y(y).toFixed(1)}`,
        )
        .join("");
    }
    set(trails, { d: path });
    if (field) {
      const { alpha, sigma } = schedules.cosine,
        blurred = prepare(noised(law, alpha(level), sigma(level)));
      const both = [grid.map((x) => score(blurred, x)), between(f, a.scores, b.scores)];
      both.forEach((scores, i) =>
        set(arrows[i], {
          d: scores
            .map((s, j) =>
              arrow(
                field,
                grid[j],
                s.map((v) => ARROW * v),
              ),
            )
            .join(""),
        }),
      );
    }
    charts.forEach(({ chart, value, now, head }) => {
      set(now, { d: curve(chart, run, value, low + 1) });
      set(head, { d: chart.dots([[nearest.k / all, value(nearest)]]) });
    });
    k.value = Math.round(at);
    const right = nearest.points.filter(([x]) => x > 0).length / nearest.points.length;
    say(
      `${nearest.k ? `After tilt ${nearest.k} of ${all}` : "Before the first tilt"}: mean of x\u2082 ${show(nearest.mean)} (exact ${show(meanOf(exact(nearest.k / all))[1])}), ` +
        `${Math.round(100 * right)} per cent of the samples on the right, error of the network ${show(nearest.error, 3)}.`,
    );
  }

  function stop(place) {
    cancelAnimationFrame(pending);
    pending = 0;
    at = place;
    go.textContent = still.matches ? "Next" : "Play";
    draw();
  }

  function play() {
    const last = run.frames.length - 1,
      start = performance.now(),
      from = at >= last ? 0 : at;
    go.textContent = "Pause";
    const tick = (now) => {
      at = Math.min(last, from + (Math.max(0, now - start) / 1000 / SECONDS) * last);
      if (at >= last) return stop(last);
      draw();
      pending = requestAnimationFrame(tick);
    };
    pending = requestAnimationFrame(tick);
  }

  still.addEventListener("change", () => stop(Math.round(at)));
  stop(at);
  return [
    el("div", { class: "controls" }, ...(kept.length > 1 ? [N.node] : []), k.node, go),
    el("div", { class: "pictures" }, samples.node, ...(field ? [field.node] : [])),
    key([
      ["dots learned", "samples of the network"],
      ["line ink thin", "exact density after k tilts"],
      ["line base dashed", "base"],
      ["fill target", "target"],
      ...(field
        ? [
            ["line learned thin", "learned score"],
            ["line target wide faint", "exact score"],
          ]
        : []),
      ...(kept.length > 1 ? [["line learned faint", "other numbers of tilts"]] : []),
    ]),
    says,
    el("div", { class: "pictures" }, height.node, error.node),
  ];
});
