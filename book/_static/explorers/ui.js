// What explorers are made of: labelled inputs, pictures with axes, contours, and a sentence that says what is seen.

const SVG = "http://www.w3.org/2000/svg";

// el("div", {class: "row"}, ...) for HTML, el("svg:path", {d}) for SVG; a text is a child like any other.
export function el(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  set(node, attributes);
  node.append(...children);
  return node;
}

export function set(node, attributes) {
  Object.entries(attributes).forEach(([key, value]) => {
    if (value === false || value === null) node.removeAttribute(key);
    else node.setAttribute(key, value === true ? "" : value);
  });
}

// A number as the book prints it: a true minus, and none before a zero.
export function show(value, digits = 2) {
  return value
    .toFixed(digits)
    .replace(/^-(?=0\.?0*$)/, "")
    .replace("-", "\u2212");
}

let count = 0;
const fresh = (kind) => `explorer-${kind}-${++count}`;

// A range input by position; `text` turns the value into the text that is shown and spoken.
export function slider({ label, min, max, step = 1, value, text = (v) => show(v), change }) {
  const id = fresh("slider"),
    shown = el("span", { class: "value", "aria-hidden": "true" });
  const input = el("input", { type: "range", id, min, max, step, value });
  const refresh = () => {
    shown.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    refresh();
    change();
  });
  refresh();
  return {
    node: el("div", { class: "slider" }, el("label", { for: id }, label), input, shown),
    input,
    get value() {
      return Number(input.value);
    },
    set value(v) {
      input.value = v;
      refresh();
    },
  };
}

// One of several, as radio buttons: options are [value, label].
export function choice({ legend, options, value, change }) {
  const name = fresh("choice");
  const inputs = options.map(([v]) =>
    el("input", { type: "radio", name, id: `${name}-${v}`, value: v, checked: v === value }),
  );
  const labels = options.map(([v, label], i) => el("span", {}, inputs[i], el("label", { for: `${name}-${v}` }, label)));
  inputs.forEach((input) => input.addEventListener("change", change));
  return {
    node: el("fieldset", {}, el("legend", {}, legend), ...labels),
    get value() {
      return inputs.find((input) => input.checked)?.value;
    },
    set value(v) {
      inputs.forEach((input) => {
        input.checked = input.value === String(v);
      });
    },
  };
}

export function checkbox({ label, checked = false, change }) {
  const id = fresh("checkbox"),
    input = el("input", { type: "checkbox", id, checked });
  input.addEventListener("change", change);
  return {
    node: el("span", { class: "checkbox" }, input, el("label", { for: id }, label)),
    input,
    get value() {
      return input.checked;
    },
  };
}

export function button(label, click) {
  const node = el("button", { type: "button" }, label);
  node.addEventListener("click", click);
  return node;
}

// A line of text; `change` is called with what it holds.
export function textbox({ label, value, change }) {
  const id = fresh("textbox"),
    input = el("input", { type: "text", id, value, spellcheck: "false", autocomplete: "off", autocapitalize: "off" });
  input.addEventListener("input", () => change(input.value));
  return { node: el("div", { class: "textbox" }, el("label", { for: id }, label), input), input };
}

// Controls that a reader may leave alone.
export const more = (title, ...nodes) =>
  el("details", {}, el("summary", {}, title), el("div", { class: "controls even" }, ...nodes));

// The sentence below the controls. It is shown at once, and spoken when the reader has come to rest.
export function report() {
  const seen = el("p", { class: "says", "aria-hidden": "true" }),
    spoken = el("p", { class: "spoken", role: "status" });
  let timer = 0;
  return {
    nodes: [seen, spoken],
    say(text) {
      if (seen.textContent === text) return;
      seen.textContent = text;
      clearTimeout(timer);
      timer = setTimeout(() => {
        spoken.textContent = text;
      }, 400);
    },
  };
}

// A picture with axes. x and y are {from, to, ticks, log, label, text}; what is drawn goes into `marks`, back to front.
export function picture({ title = "", label, x, y, width = 280, height = 210, equal = false, bare = false }) {
  const text = (axis, v) => (axis.text ? axis.text(v) : String(v).replace("-", "\u2212"));
  const left = 15 + 6.5 * Math.max(0, ...y.ticks.map((v) => text(y, v).length)),
    right = 8,
    top = title ? 24 : 8,
    bottom = x.label ? 40 : 24;
  if (equal) height = top + bottom + ((width - left - right) * (y.to - y.from)) / (x.to - x.from);
  const scale = (axis, low, high) => {
    const at = axis.log ? Math.log : Number,
      a = at(axis.from),
      b = at(axis.to);
    return (v) => low + ((high - low) * (at(v) - a)) / (b - a);
  };
  const X = scale(x, left, width - right),
    Y = scale(y, height - bottom, top),
    clip = fresh("clip");
  const marks = el("svg:g", { "clip-path": `url(#${clip})` });
  const node = el(
    "svg:svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    el(
      "svg:defs",
      {},
      el(
        "svg:clipPath",
        { id: clip },
        el("svg:rect", { x: left, y: top, width: width - left - right, height: height - top - bottom }),
      ),
    ),
    marks,
    el("svg:path", {
      class: "axes",
      d: bare
        ? ""
        : `M${left} ${top}V${height - bottom}H${width - right}` +
          x.ticks.map((v) => `M${X(v)} ${height - bottom}v4`).join("") +
          y.ticks.map((v) => `M${left} ${Y(v)}h-4`).join(""),
    }),
    ...x.ticks.map((v) => el("svg:text", { x: X(v), y: height - bottom + 17, "text-anchor": "middle" }, text(x, v))),
    ...y.ticks.map((v) => el("svg:text", { x: left - 7, y: Y(v) + 4.5, "text-anchor": "end" }, text(y, v))),
    el("svg:text", { x: left, y: 15, class: "title" }, title),
    el("svg:text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, x.label ?? ""),
  );
  const line = (points) => {
    const inside = points.filter(([, v]) => Number.isFinite(v) && (!y.log || v > 0));
    return inside.length ? "M" + inside.map(([u, v]) => `${X(u).toFixed(1)} ${Y(v).toFixed(1)}`).join("L") : "";
  };
  const dots = (points) => points.map(([u, v]) => `M${X(u).toFixed(1)} ${Y(v).toFixed(1)}h.01`).join("");
  const path = (kind, attributes = {}) => marks.appendChild(el("svg:path", { class: kind, ...attributes }));
  return { node, marks, X, Y, line, dots, path, x, y };
}

// An axis that holds values from low to high, to a twentieth of the distance of its round ticks, as `picture` takes it.
export function axis(low, high) {
  const rough = Math.max(high - low, 1e-9) / 4,
    power = 10 ** Math.floor(Math.log10(rough)),
    step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  const from = Math.floor(low / step + 0.05),
    to = Math.max(from + 1, Math.ceil(high / step - 0.05)),
    digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return {
    from: from * step,
    to: to * step,
    ticks: Array.from({ length: to - from + 1 }, (_, i) => (from + i) * step),
    text: (v) => show(v, digits),
  };
}

// The plane of the book's mixtures.
export function plane(title, label, [x0, x1, y0, y1]) {
  const ticks = (from, to) => [-4, -2, 0, 2, 4].filter((v) => v >= from && v <= to);
  return picture({
    title,
    label,
    x: { from: x0, to: x1, ticks: ticks(x0, x1) },
    y: { from: y0, to: y1, ticks: ticks(y0, y1) },
    equal: true,
  });
}

// A point of a plane, which is dragged or moved with the arrow keys (in larger steps with Shift). `move` is called with where
// it shall go, inside the picture; `at` puts it there.
export function handle({ node, X, Y, x, y }, { label, mark = "", move, chosen = () => {} }) {
  set(node, { role: "group" });
  node
    .querySelectorAll(":scope > text, :scope > path, :scope > g:not([tabindex])")
    .forEach((part) => set(part, { "aria-hidden": "true" }));
  const knob = el(
    "svg:g",
    {
      class: "handle",
      tabindex: 0,
      role: "slider",
      "aria-label": label,
      "aria-roledescription": "2D slider",
      "aria-valuemin": x.from,
      "aria-valuemax": x.to,
    },
    el("svg:circle", { class: "hit", r: 14 }),
    el("svg:circle", { class: "knob", r: mark ? 8 : 6 }),
    el("svg:text", { "text-anchor": "middle", y: 4 }, mark),
  );
  node.append(knob);
  let place = [0, 0];
  const inside = (v, { from, to }) => Math.min(to, Math.max(from, Math.round(100 * v) / 100));
  const go = (u, v) => move([inside(u, x), inside(v, y)]);
  knob.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.5 : 0.1,
      way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    go(place[0] + step * way[0], place[1] + step * way[1]);
  });
  knob.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    knob.focus({ preventScroll: true });
    knob.setPointerCapture(event.pointerId);
  });
  knob.addEventListener("pointermove", (event) => {
    if (knob.hasPointerCapture(event.pointerId)) go(...pointed({ node, X, Y, x, y }, event));
  });
  knob.addEventListener("focus", chosen);
  return {
    node: knob,
    at([u, v]) {
      place = [u, v];
      set(knob, {
        transform: `translate(${X(u).toFixed(1)} ${Y(v).toFixed(1)})`,
        "aria-valuenow": u,
        "aria-valuetext": `x ${show(u)}, y ${show(v)}`,
      });
    },
  };
}

// Where in a plane a pointer is.
export function pointed({ node, X, Y, x, y }, event) {
  const { x: u, y: v } = new DOMPoint(event.clientX, event.clientY).matrixTransform(node.getScreenCTM().inverse());
  return [
    x.from + ((u - X(x.from)) / (X(x.to) - X(x.from))) * (x.to - x.from),
    y.from + ((v - Y(y.from)) / (Y(y.to) - Y(y.from))) * (y.to - y.from),
  ];
}

// Samples in five classes of reward, the higher the darker and larger: one path for each. `draw(points, values)`.
export function rewarded(plane) {
  const paths = [0, 1, 2, 3, 4].map((i) => plane.path(`dots reward r${i}`));
  return (points, values) => {
    const low = Math.min(...values),
      span = Math.max(...values) - low || 1;
    const classes = values.map((v) => Math.min(4, Math.floor((5 * (v - low)) / span)));
    paths.forEach((path, i) => set(path, { d: plane.dots(points.filter((_, j) => classes[j] === i)) }));
  };
}

// An arrow from a point of a picture along a vector, with a head of a size.
export function arrow({ X, Y }, [x, y], [u, v], head = 0.1) {
  const length = Math.hypot(u, v);
  if (!(length > 0)) return "";
  const barb = (side) =>
    `M${X(x + u - (head * (u + side * v * 0.7)) / length)} ${Y(y + v - (head * (v - side * u * 0.7)) / length)}L${X(x + u)} ${Y(y + v)}`;
  return `M${X(x)} ${Y(y)}L${X(x + u)} ${Y(y + v)}${barb(1)}${barb(-1)}`;
}

// Which edges of a cell a level crosses (bottom 0, right 1, top 2, left 3), by which of its corners are above it.
const CASES = ["", "03", "10", "13", "21", "0321", "20", "23", "32", "02", "1032", "12", "31", "01", "30", ""];

// Contours of a log-density over a picture, at shares of its maximum there: one path for each, by marching squares.
export function contours({ x, y, X, Y }, logDensity, shares = [0.01, 0.1, 0.4, 0.8]) {
  const step = (x.to - x.from) / 72,
    nx = 75,
    ny = Math.ceil((y.to - y.from) / step) + 3; // one cell beyond each side
  const gridX = (i) => x.from + (i - 1) * step,
    gridY = (j) => y.from + (j - 1) * step;
  const values = new Float64Array(nx * ny).fill(-1e3); // the rim stays low, so that every line closes
  for (let j = 1; j < ny - 1; j++) for (let i = 1; i < nx - 1; i++) values[j * nx + i] = logDensity([gridX(i), gridY(j)]);
  const peak = Math.max(...values);
  return shares.map((share) => {
    const level = peak + Math.log(share),
      next = new Map(),
      places = new Map();
    for (let j = 0; j < ny - 1; j++)
      for (let i = 0; i < nx - 1; i++) {
        const at = j * nx + i,
          above = at + nx;
        const lines =
          CASES[
            (values[at] > level) +
              2 * (values[at + 1] > level) +
              4 * (values[above + 1] > level) +
              8 * (values[above] > level)
          ];
        const edges = [
          [at, at + 1],
          [at + 1, above + 1],
          [above, above + 1],
          [at, above],
        ];
        const cross = (k) => {
          // where the level crosses edge k; its key is shared with the neighbour
          const [p, q] = edges[k],
            key = 2 * p + (k % 2),
            f = Math.max(0, (level - values[p]) / (values[q] - values[p]));
          const u = gridX((p % nx) + (k % 2 ? 0 : f)),
            v = gridY(Math.floor(p / nx) + (k % 2 ? f : 0));
          places.set(key, `${X(u).toFixed(1)} ${Y(v).toFixed(1)}`);
          return key;
        };
        for (let k = 0; k < lines.length; k += 2) next.set(cross(+lines[k]), cross(+lines[k + 1]));
      }
    let path = "";
    while (next.size) {
      const loop = [];
      for (let key = next.keys().next().value; next.has(key);) {
        const following = next.get(key);
        loop.push(places.get(key));
        next.delete(key);
        key = following;
      }
      path += `M${loop.join("L")}Z`;
    }
    return path;
  });
}

// What the colours and strokes of a picture mean: [class of the stroke, text].
export function key(entries) {
  return el(
    "p",
    { class: "key" },
    ...entries.map(([kind, text]) =>
      el(
        "span",
        {},
        el(
          "svg:svg",
          { viewBox: "0 0 22 10", "aria-hidden": "true" },
          el("svg:path", { class: kind, d: kind.includes("dots") ? "M11 5h.01" : "M1 5H21" }),
        ),
        ` ${text}`,
      ),
    ),
  );
}

// Put an explorer wherever the page asks for one, in place of its still picture, which stays for paper. `build` gets the
// model, and returns what the explorer consists of.
export function explorer(name, label, build) {
  document.querySelectorAll(`[data-explorer="${name}"]`).forEach((root) => {
    set(root, { role: "group", "aria-label": label });
    root.append(...build(JSON.parse(root.dataset.model)).flat());
    const still = document.querySelector(`figure [data-itlib-figure="${root.dataset.figure}"]`)?.closest(".figure-svg");
    if (still) {
      still.classList.add("still");
      still.before(root);
    }
    root.hidden = false;
  });
}
