// Algorithm 2, run in the page: the reader's base and reward, a network that learns while one looks on, and the exact tilt.
// A model has `bases` (mixtures) and `rewards` (texts for expression.js) by name.
import { schedules, prepare, noised, logDensity, score, tilted, random, sum } from "./maths.js";
import {
  el,
  set,
  show,
  slider,
  choice,
  textbox,
  more,
  button,
  report,
  plane,
  picture,
  contours,
  handle,
  rewarded,
  arrow,
  axis,
  key,
  explorer,
} from "./ui.js";
import { parse } from "./expression.js";
import { tiltsOf, widthInside, quadratic, drawsGiven } from "./laws.js";
import { iterativeTilting, student } from "./tilting.js";
import { baseEditor } from "./editor.js";

const LIMITS = [-5.4, 5.4, -5, 5.2],
  BUDGET = 11, // milliseconds of computing between two pictures
  SHOWN = 500, // samples that are drawn
  DRAWS = 60, // of the posterior
  PROBES = 200, // points at which the network's error is measured
  ARROW = 0.15;
const GRID = [-4, -2, 0, 2, 4].flatMap((y) => [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5].map((x) => [x, y]));
const { alpha, sigma } = schedules.cosine;
const pairs = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);

explorer("live", "Iterative tilting, live", ({ bases, rewards }) => {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let reward, // a function of x and y
    mixture,
    laws, // the exact laws: a function of the strength, once the choices have settled
    misread = "", // what is wrong with the reward, and
    failed = ""; // with the tilt
  let run = null, // the algorithm on its way, its network, and where it is
    network,
    now = null,
    points = [],
    frames = [], // what each tilt left, and which of them is shown
    shown = 0,
    pending = 0,
    spent = { updates: 0, learning: 0, all: 0 }, // milliseconds
    seen = {}, // what the pictures show
    probe = [0, 1];

  // The choices.
  const editor = baseEditor(bases, LIMITS, restart);
  const written = textbox({ label: "reward r(x, y) =", value: Object.values(rewards)[0], change: read });
  const ready = Object.entries(rewards).map(([label, text]) =>
    button(label, () => {
      written.input.value = text;
      read(text);
    }),
  );
  const range = (label, min, max, step, value, text = String) =>
    slider({ label, min, max, step, value, text, change: restart });
  const among = (label, values, value, text = (v) => v.toLocaleString("en")) => {
    const one = range(label, 0, values.length - 1, 1, values.indexOf(value), (i) => text(values[i]));
    return { node: one.node, now: () => values[one.value] };
  };
  const N = among("tilts N", [1, 2, 3, 5, 10, 20, 50, 100], 10),
    S = among("samples S", [100, 250, 500, 1000, 2000], 500),
    J = among("sampler\u2019s steps J", [10, 20, 50, 100, 200], 50),
    E = range("updates a tilt", 25, 500, 25, 100),
    rate = among("learning rate", [1e-3, 3e-3, 1e-2, 3e-2], 1e-2, String),
    constant = range("constant added to r", -20, 20, 1, 0, (v) => show(v, 0)),
    seed = range("seed", 0, 9, 1, 0);
  const kernel = choice({
    legend: "sampler",
    options: [
      ["ddpm", "as printed"],
      ["analytic", "variance kept"],
    ],
    value: "ddpm",
    change: restart,
  });

  // The run.
  const go = button("Run", () => (pending ? pause() : play(Infinity))),
    once = button("One tilt", () => play(1)),
    over = button("Start over", restart);
  const back = slider({
    label: "after tilt",
    min: 0,
    max: 0,
    value: 0,
    text: (v) => `${v} of ${N.now()}`,
    change() {
      shown = Math.min(back.value, frames.length - 1);
      pause();
    },
  });
  const { nodes: says, say } = report();

  // The pictures.
  const samples = plane("samples", "Samples of the model over contours of the exact density after as many tilts.", LIMITS),
    fill = samples.path("fill target"),
    outline = samples.path("line base dashed"),
    rings = [0, 1, 2].map(() => samples.path("line ink thin")),
    dots = samples.path("dots learned small");
  const field = plane(
    "score, and draws of X\u2080",
    "Arrows: learned and exact score on a grid. Dots: draws of X 0 given the point with the handle, by their reward.",
    LIMITS,
  );
  const arrows = ["target wide faint", "learned thin"].map((kind) => field.path(`line ${kind}`)),
    draws = rewarded(field);
  const knob = handle(field, {
    label: "noised point",
    move(to) {
      probe = to;
      draw();
    },
  });
  const level = slider({ label: "noise level t", min: 0.1, max: 0.95, step: 0.05, value: 0.4, change: () => draw() });
  const charts = [
    ["mean reward", "reward", "Mean reward of the samples, and exact, against tilts done."],
    ["width of a mode", "width", "Standard deviation of the samples inside a mode, and exact, against tilts done."],
    ["error of the network", "error", "Root mean square error of the predicted noise against tilts done."],
  ].map(([title, of, label]) => ({ title, of, label, place: el("div") }));
  const below = el("div", { class: "pictures three", hidden: true }, ...charts.map(({ place }) => place));

  function read(text) {
    misread = "";
    try {
      reward = parse(text);
      if (!GRID.every((x) => Number.isFinite(reward(...x)))) misread = "This reward is not a number everywhere.";
    } catch (error) {
      misread = error.message;
    }
    set(written.input, { "aria-invalid": misread ? "true" : false });
    restart();
  }

  // Back to before the first tilt, with the choices as they are. A burst of changes settles once.
  let settling = 0;
  function restart() {
    cancelAnimationFrame(pending);
    pending = 0;
    go.textContent = "Run";
    [run, laws, now, points, frames, shown] = [null, null, null, [], [], 0];
    spent = { updates: 0, learning: 0, all: 0 };
    set(back.input, { max: N.now() });
    cancelAnimationFrame(settling);
    settling = requestAnimationFrame(settle);
  }

  function settle() {
    cancelAnimationFrame(settling);
    mixture = editor.mixture();
    [failed, seen] = ["", {}];
    if (!misread) {
      const form = quadratic(reward),
        kept = new Map();
      editor.shade(reward);
      if (form && !tilted(mixture, form, 1).mixture)
        failed = "This tilt cannot be normalised: the reward grows faster than the base falls.";
      else {
        const exact = tiltsOf(mixture, reward);
        laws = (share) => kept.get(share) ?? kept.set(share, exact(share)).get(share);
        if (laws(1).outside > 1e-3) failed = "The tilted density leaves the picture. Choose a weaker reward.";
      }
    }
    draw();
  }

  // Runs until so many tilts more are done, or somebody stops it.
  function play(tilts) {
    if (pending) return;
    if (frames.length > N.now()) restart();
    if (!laws) settle();
    if (misread || failed) return;
    if (!run) {
      const source = random(seed.value),
        c = constant.value;
      network = student(mixture, schedules.cosine, source);
      run = iterativeTilting({
        base: mixture,
        reward: (x, y) => reward(x, y) + c,
        schedule: schedules.cosine,
        N: N.now(),
        S: S.now(),
        J: J.now(),
        B: 64,
        E: E.value,
        rate: rate.now(),
        analytic: kernel.value === "analytic",
        source,
        network,
      });
    }
    const last = Math.min(N.now(), Math.max(0, frames.length - 1) + tilts);
    go.textContent = "Pause";
    pending = requestAnimationFrame(function tick() {
      const start = performance.now();
      for (let before = start; before - start < BUDGET;) {
        try {
          now = run.next().value;
        } catch (error) {
          failed = error.message;
          return pause();
        }
        const after = performance.now();
        spent.all += after - before;
        if (now.what === "learning") {
          spent.updates += 1;
          spent.learning += after - before;
        } else points = now.points;
        if (now.what === "tilt") {
          frames.push(look(now));
          shown = frames.length - 1;
          if (now.k === last) return pause();
        }
        before = performance.now();
      }
      if (still.matches) tell();
      else draw();
      pending = requestAnimationFrame(tick);
    });
  }

  function pause() {
    cancelAnimationFrame(pending);
    pending = 0;
    go.textContent = "Run";
    draw();
  }

  // The score at noised points of the model with weights theta.
  function learned(theta, x, t) {
    const base = prepare(noised(mixture, alpha(t), sigma(t))),
      step = network.forward(Float64Array.from(x.flat()), [t], theta).result;
    return x.map((one, i) => score(base, one).map((v, d) => v - step[2 * i + d] / sigma(t)));
  }

  // What a tilt has left. Its error is that of the predicted noise, at points of the exact law noised to t in (0.1, 1).
  function look({ k, points: flat, theta }) {
    const x = pairs(flat),
      even = x.map(() => 1 / x.length),
      law = laws(k / N.now()),
      source = random(100);
    const square = law.draw(PROBES, source).map((clean, i) => {
      const t = 0.1 + (0.9 * (i + 0.5)) / PROBES,
        z = source.normals(),
        noisy = clean.map((v, d) => alpha(t) * v + sigma(t) * z[d]);
      const [one, two] = [learned(theta, [noisy], t)[0], law.score(alpha(t), sigma(t))(noisy)];
      return sigma(t) ** 2 * ((one[0] - two[0]) ** 2 + (one[1] - two[1]) ** 2);
    });
    return {
      k,
      theta,
      points: x,
      reward: [sum(x.map((one) => reward(...one))) / x.length, law.mean((one) => reward(...one))],
      width: [widthInside(mixture, x, even), widthInside(mixture, law.points, law.shares)],
      error: [Math.sqrt(sum(square) / PROBES)],
    };
  }

  function draw() {
    tell();
    if (misread || failed) return;
    const frame = frames[shown],
      moving = pending && now.what !== "tilt",
      k = moving ? now.k : (frame?.k ?? 0),
      t = level.value;
    back.value = shown;
    set(dots, { d: samples.dots((moving ? pairs(points) : (frame?.points ?? [])).slice(0, SHOWN)) });
    knob.at(probe);
    if (seen.k !== k) {
      const base = prepare(mixture),
        to = (share, levels) => contours(samples, (x) => logDensity(base, x) + share * reward(...x), levels);
      if (seen.k === undefined) {
        set(outline, { d: to(0, [0.1])[0] });
        set(fill, { d: to(1, [0.1])[0] });
      }
      to(k / N.now(), [0.03, 0.3, 0.8]).forEach((d, i) => set(rings[i], { d }));
    }
    if (seen.frame !== frame || seen.t !== t || seen.k === undefined) {
      const exact = laws((frame?.k ?? 0) / N.now()).score(alpha(t), sigma(t)),
        strokes = (scores) =>
          scores
            .map((s, i) =>
              arrow(
                field,
                GRID[i],
                s.map((v) => ARROW * v),
              ),
            )
            .join("");
      set(arrows[0], { d: strokes(GRID.map(exact)) });
      set(arrows[1], { d: frame ? strokes(learned(frame.theta, GRID, t)) : "" });
      charts.forEach(chart);
      below.hidden = frames.length < 2;
    }
    if (seen.frame !== frame || seen.t !== t || seen.probe !== probe) {
      const found = frame ? drawsGiven(frame.points, alpha(t), sigma(t), probe, DRAWS, random(3)) : [];
      draws(
        found,
        found.map((x) => reward(...x)),
      );
    }
    seen = { k, frame, t, probe };
  }

  function chart({ title, of, label, place }) {
    const values = frames.flatMap((frame) => frame[of]);
    const one = picture({
      title,
      label,
      x: { from: 0, to: N.now(), ticks: [0, N.now()], label: "tilts done" },
      y: axis(of === "reward" ? Math.min(...values) : 0, Math.max(...values, 1e-3)),
      width: 200,
      height: 150,
    });
    ["line learned", "line target wide faint"].forEach((kind, i) =>
      set(one.path(kind), { d: one.line(frames.map((frame) => [frame.k, frame[of][i]])) }),
    );
    if (frames[shown]) set(one.path("dots learned large"), { d: one.dots([[frames[shown].k, frames[shown][of][0]]]) });
    place.replaceChildren(one.node);
  }

  function tell() {
    says[0].classList.toggle("refused", Boolean(misread || failed));
    const frame = frames[shown];
    if (misread || failed) say(misread || failed);
    else if (pending && now.what === "sampling")
      say(
        now.k < N.now()
          ? `Tilt ${now.k + 1} of ${N.now()}: the model draws its ${S.now()} samples, t = ${show(now.time)}.`
          : `All tilts are done: the model draws ${S.now()} samples, t = ${show(now.time)}.`,
      );
    else if (pending && now.what === "learning")
      say(`Tilt ${now.k + 1} of ${N.now()}: the network learns, update ${now.update} of ${E.value}.`);
    else if (!frame) say("Press Run. The samples have to arrive at the green.");
    else {
      const done = `${spent.updates.toLocaleString("en")} updates, ${Math.round((1000 * spent.updates) / spent.learning)} a second; ${show(spent.all / 1000, 1)} s in all.`;
      say(
        `${frame.k ? `After tilt ${frame.k} of ${N.now()}` : "Before the first tilt"}: mean reward ${show(frame.reward[0])} (exact ${show(frame.reward[1])}), ` +
          `width of a mode ${show(frame.width[0])} (${show(frame.width[1])}), error of the network ${show(frame.error[0], 3)}. ${frame.k === N.now() ? done : ""}`,
      );
    }
  }

  still.addEventListener("change", () => pending && pause());
  reward = parse(written.input.value);
  editor.start();
  settle();
  return [
    el(
      "div",
      { class: "pictures" },
      editor.node,
      el(
        "div",
        { class: "beside controls" },
        ...editor.controls,
        written.node,
        el("fieldset", {}, el("legend", {}, "rewards"), ...ready),
      ),
    ),
    el("div", { class: "controls even" }, N.node, constant.node, S.node, J.node, kernel.node),
    more("More settings", E.node, rate.node, seed.node),
    el("div", { class: "controls run" }, go, once, over, back.node),
    says,
    el("div", { class: "pictures" }, samples.node, el("div", {}, field.node, level.node)),
    key([
      ["dots learned", "samples of the network"],
      ["line ink thin", "exact density after k tilts"],
      ["line base dashed", "base"],
      ["fill target", "target"],
      ["line learned thin", "learned score"],
      ["line target wide faint", "exact"],
      ["dots reward r4", "draw of X\u2080 of high reward"],
      ["dots reward r0", "of low reward"],
    ]),
    below,
  ];
});
