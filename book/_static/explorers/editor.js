// A base that the reader makes: modes to drag, to add, to remove, or to draw, over a shading of the reward.
import { prepare, logDensity, sum } from "./maths.js";
import { el, set, show, slider, checkbox, button, plane, contours, handle, pointed } from "./ui.js";

const MOST = 24, // modes
  GAP = 0.7, // between two that are drawn
  CELLS = [56, 52]; // of the shading, by the reward's rank

// `bases` are mixtures by name; `change` is called when the mixture has changed. Returns the picture, the controls, the
// mixture as it is, and a function that shades the picture by a reward.
export function baseEditor(bases, limits, change) {
  const [left, right, bottom, top] = limits;
  const picture = plane("base and reward", "The base: contours, and a handle for each mode. Shading: the reward.", limits);
  const { X, Y, marks } = picture;
  const frame = {
    x: X(left),
    y: Y(top),
    width: X(right) - X(left),
    height: Y(bottom) - Y(top),
    preserveAspectRatio: "none",
  };
  const shading = marks.appendChild(el("svg:image", frame)),
    rings = [0, 1].map(() => picture.path("line base")),
    handles = [];
  let modes = [], // {weight, x, y, width}
    chosen = 0;

  const name = el("legend"),
    alter = (values) => {
      Object.assign(modes[chosen], values);
      draw();
    };
  const weight = slider({
    label: "weight",
    min: 0.1,
    max: 3,
    step: 0.1,
    value: 1,
    text: (v) => show(v, 1),
    change: () => alter({ weight: weight.value }),
  });
  const width = slider({
    label: "width",
    min: 0.25,
    max: 1.5,
    step: 0.05,
    value: 1,
    change: () => alter({ width: width.value }),
  });
  const add = button("Add", () => append({ ...free(), weight: 1, width: 0.5 }));
  const remove = button("Remove", () => {
    if (modes.length > 1) replace(modes.toSpliced(chosen, 1), Math.max(0, chosen - 1));
  });
  const brush = checkbox({
    label: "draw with the pointer",
    change: () => picture.node.classList.toggle("drawing", brush.value),
  });
  const ready = Object.entries(bases).map(([label, base]) =>
    button(label, () =>
      replace(base.map((g) => ({ weight: g.weight * base.length, x: g.mean[0], y: g.mean[1], width: Math.sqrt(g.cov[0]) }))),
    ),
  );

  picture.node.addEventListener("pointerdown", (event) => {
    if (!brush.value || event.target.closest(".handle")) return;
    event.preventDefault();
    picture.node.setPointerCapture(event.pointerId);
    stroke(event);
  });
  picture.node.addEventListener("pointermove", (event) => {
    if (brush.value && picture.node.hasPointerCapture(event.pointerId)) stroke(event);
  });
  function stroke(event) {
    const [x, y] = pointed(picture, event).map((v) => Math.round(100 * v) / 100);
    if (x < left || x > right || y < bottom || y > top) return;
    if (room({ x, y }) > GAP) append({ x, y, weight: 1, width: 0.35 });
  }

  const room = ({ x, y }) => Math.min(...modes.map((m) => Math.hypot(m.x - x, m.y - y)));
  const free = () => {
    const places = [0, 2, -2, 4].flatMap((y) => [0, 2, -2, 4, -4].map((x) => ({ x, y })));
    return places.find((place) => room(place) > 1.4) ?? places.reduce((a, b) => (room(a) > room(b) ? a : b));
  };
  const append = (mode) => modes.length < MOST && replace([...modes, mode], modes.length);

  function replace(now, which = 0) {
    modes = now;
    while (handles.length > modes.length) handles.pop().node.remove();
    while (handles.length < modes.length) {
      const i = handles.length;
      handles.push(
        handle(picture, {
          label: `mode ${i + 1}`,
          mark: String(i + 1),
          chosen: () => choose(i),
          move([x, y]) {
            choose(i);
            alter({ x, y });
          },
        }),
      );
    }
    choose(which);
    draw();
  }

  function choose(which) {
    chosen = which;
    name.textContent = `mode ${which + 1} of ${modes.length}`;
    weight.value = modes[which].weight;
    width.value = modes[which].width;
    handles.forEach(({ node }, i) => node.classList.toggle("chosen", i === which));
  }

  const mixture = () => {
    const total = sum(modes.map((m) => m.weight));
    return modes.map((m) => ({ weight: m.weight / total, mean: [m.x, m.y], cov: [m.width ** 2, 0, m.width ** 2] }));
  };

  function draw() {
    const base = prepare(mixture());
    handles.forEach((one, i) => one.at([modes[i].x, modes[i].y]));
    contours(picture, (x) => logDensity(base, x), [0.05, 0.4]).forEach((d, i) => set(rings[i], { d }));
    change();
  }

  function shade(reward) {
    const [columns, rows] = CELLS,
      canvas = el("canvas", { width: columns, height: rows }),
      context = canvas.getContext("2d"),
      image = context.createImageData(columns, rows);
    const at = (i) => [
      left + (((i % columns) + 0.5) / columns) * (right - left),
      top - ((Math.floor(i / columns) + 0.5) / rows) * (top - bottom),
    ];
    const values = Array.from({ length: columns * rows }, (_, i) => reward(...at(i))),
      ranks = new Map(values.toSorted((a, b) => b - a).map((v, i) => [v, 1 - i / values.length])); // of equals the last one
    values.forEach((v, i) => image.data.set([176, 66, 168, 140 * ranks.get(v)], 4 * i));
    context.putImageData(image, 0, 0);
    set(shading, { href: canvas.toDataURL() });
  }

  return {
    node: picture.node,
    controls: [
      el("fieldset", {}, el("legend", {}, "base"), ...ready),
      el("fieldset", {}, name, weight.node, width.node, add, remove, brush.node),
    ],
    start: () => ready[0].click(),
    mixture,
    shade,
  };
}
