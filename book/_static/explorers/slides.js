// Small pictures to step through, with a sentence for each.
import { el, set, slider, button, report, explorer } from "./ui.js";

const PAUSE = 500; // milliseconds

explorer("slides", "Pictures to step through", ({ frames, says, alt }) => {
  const still = matchMedia("(prefers-reduced-motion: reduce)"),
    last = frames.length - 1;
  let at = 0,
    timer = 0;
  const shown = el("img", { class: "pixels", alt });
  const k = slider({ label: "tilt k", min: 0, max: last, value: last, text: (v) => `${v} of ${last}`, change: () => stop(k.value) });
  const go = button("Play", () => {
    if (timer) stop(at);
    else if (still.matches) stop(at < last ? at + 1 : 0); // who asked for less motion gets one picture for each press
    else {
      if (at === last) draw(0);
      go.textContent = "Pause";
      timer = setInterval(() => (at + 1 < last ? draw(at + 1) : stop(last)), PAUSE);
    }
  });
  const { nodes, say } = report();

  function draw(place) {
    at = k.value = place;
    set(shown, { src: `data:image/png;base64,${frames[at]}` });
    say(says[at]);
  }

  function stop(place) {
    clearInterval(timer);
    timer = 0;
    go.textContent = still.matches ? "Next" : "Play";
    draw(place);
  }

  still.addEventListener("change", () => stop(at));
  stop(last);
  return [el("div", { class: "controls" }, k.node, go), shown, nodes];
});
