// Where the error comes from: records of Algorithm 2 with its samples or its covariance exact, along the tilts.
// A model has `cells` {task, N, samples, covariance, k, curves} with a list of seeds for each quantity, and `quantities`
// {title, span}; `exact` has what a quantity should be for each task, at evenly spaced shares of the tilts.
import { sum } from "./maths.js";
import { el, set, show, choice, checkbox, report, picture, key, explorer } from "./ui.js";

explorer("budget", "Error budget", ({ cells, quantities, exact }) => {
  const settings = [...new Set(cells.map(({ task, N }) => `${task}, N = ${N}`))];
  const charts = Object.entries(quantities).map(
    ([
      name,
      {
        title,
        span: [from, to],
      },
    ]) => {
      const chart = picture({
        title,
        label: `${title} against the share of tilts done: the chosen run for each seed and their mean; faint, the other three.`,
        x: { from: 0, to: 1.02, ticks: [0, 0.5, 1], label: "share of the tilts done" },
        y: { from, to, ticks: from < 0 ? [from, 0, to] : [0, to / 2, to], text: (v) => show(v, 2) },
      });
      return {
        name,
        chart,
        truth: chart.path("line target dashed"),
        others: [0, 1, 2].map(() => chart.path("line ink faint")),
        seeds: chart.path("line learned thin"),
        mean: chart.path("line learned wide"),
      };
    },
  );
  const setting = choice({
    legend: "task",
    options: settings.map((name) => [name, name]),
    value: settings[0],
    change: draw,
  });
  const samples = checkbox({ label: "exact samples", change: draw }),
    covariance = checkbox({ label: "exact covariance", change: draw });
  const { nodes: says, say } = report();
  const means = (lists) => lists[0].map((_, i) => sum(lists.map((one) => one[i])) / lists.length);

  function draw() {
    const here = cells.filter(({ task, N }) => `${task}, N = ${N}` === setting.value);
    const chosen = here.find((cell) => cell.samples === samples.value && cell.covariance === covariance.value),
      rest = here.filter((cell) => cell !== chosen);
    const shares = chosen.k.map((k) => k / chosen.N);
    charts.forEach(({ name, chart, truth, others, seeds, mean }) => {
      const curve = (values) => chart.line(values.map((v, i) => [shares[i], v]));
      const goal = exact[chosen.task][name];
      set(truth, { d: chart.line(goal.map((v, i) => [i / (goal.length - 1), v])) });
      set(seeds, { d: chosen.curves[name].map(curve).join("") });
      set(mean, { d: curve(means(chosen.curves[name])) });
      rest.forEach((cell, i) => set(others[i], { d: curve(means(cell.curves[name])) }));
    });
    const last = (cell, name) => cell.curves[name].map((values) => values[values.length - 1]);
    const spread = (values) =>
      `${show(sum(values) / values.length, 3)} (${show(Math.min(...values), 3)} to ${show(Math.max(...values), 3)})`;
    const learned = here.find((cell) => !cell.samples && !cell.covariance),
      square = (cell) => sum(last(cell, "error").map((v) => v * v));
    say(
      `Samples ${samples.value ? "exact" : "of the model"}, covariance ${covariance.value ? "exact" : "from single samples"}: after ${chosen.N} tilts the error is ${spread(last(chosen, "error"))} over ` +
        `${chosen.curves.error.length} seeds${chosen === learned ? "" : `, ${Math.round((100 * square(chosen)) / square(learned))} per cent of the squared error with everything learned`}.`,
    );
  }

  draw();
  return [
    el(
      "div",
      { class: "controls" },
      setting.node,
      el("fieldset", {}, el("legend", {}, "ingredients"), samples.node, covariance.node),
    ),
    el(
      "div",
      { class: "pictures" },
      ...charts.map(({ chart }) => chart.node),
      el(
        "div",
        { class: "beside" },
        ...says,
        key([
          ["line learned wide", "chosen: mean"],
          ["line learned thin", "its seeds"],
          ["line ink faint", "the other three: means"],
          ["line target dashed", "exact"],
        ]),
      ),
    ),
  ];
});
