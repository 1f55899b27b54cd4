"""Small grey pictures that a reader can step through, in place of a still figure: one group on a page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.image import imsave

from itlib.figures.style import COLORS

_STYLE = """
div.text_html:has(#slides-style) { background: none !important; color: inherit !important; padding: 0 !important;
  overflow: visible; }
#slides { padding: 3px; font-size: .9rem; line-height: 1.4; max-width: 40rem; }
#slides[hidden] { display: none; }
#slides img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border: 1px solid currentColor; margin: 0; }
#slides p { margin: .3rem 0; font-variant-numeric: tabular-nums; min-height: 2.8em; }
#slides .slides-row { display: flex; align-items: center; gap: .6rem; flex-wrap: wrap; margin-top: .5rem; }
#slides input { flex: 1 1 6rem; min-width: 0; margin: 0; min-height: 1.9rem; accent-color: LEARNED; }
#slides output { flex: none; font-variant-numeric: tabular-nums; }
#slides button { font: inherit; color: inherit; background: none; border: 1px solid currentColor; border-radius: 4px;
  padding: .1rem .55rem; min-width: 4rem; min-height: 1.9rem; cursor: pointer; }
@media screen { .slides-still { display: none; } }
@media print { #slides { display: none; } }
""".replace("LEARNED", COLORS["learned"])

_SCRIPT = r"""
(() => {
  "use strict";
  const id = "slides", root = document.getElementById(id), find = name => document.getElementById(id + "-" + name);
  const data = JSON.parse(root.dataset.run), last = data.frames.length - 1;
  const slider = find("k"), button = find("play"), status = find("status"), picture = find("picture");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let at = 0, timer = 0;
  function draw() {
    picture.src = "data:image/png;base64," + data.frames[at];
    slider.value = at;
    slider.setAttribute("aria-valuetext", data.names[at]);
    find("value").value = at + " of " + last;
    if (status.textContent !== data.names[at]) status.textContent = data.names[at];
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = still.matches ? "Next" : "Play";
    status.setAttribute("aria-live", "polite");
    draw();
  }
  function next() {
    at = Math.min(last, at + 1);
    if (at >= last) return stop();
    draw();
  }
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (at >= last) at = -1;
    if (still.matches) { at = Math.min(last, at + 1); return draw(); }
    button.textContent = "Pause";
    status.setAttribute("aria-live", "off");
    timer = setInterval(next, 500);
    next();
  });
  slider.addEventListener("input", () => {
    const k = Number(slider.value);
    if (timer) stop();
    at = k;
    draw();
  });
  still.addEventListener("change", stop);
  function settle() {
    const figure = document.querySelector(`figure [data-itlib-figure="${root.dataset.still}"]`);
    if (!figure) return;
    figure.parentElement.classList.add("slides-still");
    figure.parentElement.before(root);
  }
  root.hidden = false;
  stop();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", settle);
  else settle();
})();
"""


def sheet(images: np.ndarray, columns: int = 8) -> str:
    """Square grey images, (n, side * side) from -1 (paper) to 1 (ink), in rows: a small PNG in base64."""
    side = round(images.shape[1] ** 0.5)
    tiles = [np.pad(image, 1, constant_values=-1) for image in images.reshape(-1, side, side)]
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(rows, 0), cmap="gray_r", vmin=-1, vmax=1, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def slides_html(frames: Sequence[np.ndarray], captions: Sequence[str], still: str, alt: str) -> str:
    """A picture with a slider and a button, hidden until its script runs. See :func:`slides`."""
    pictures, last = [sheet(frame) for frame in frames], len(frames) - 1
    run = escape(json.dumps({"frames": pictures, "names": list(captions)}, separators=(",", ":")), quote=True)
    return f"""<style id="slides-style">{_STYLE}</style>
<div id="slides" role="group" aria-label="{escape(alt, quote=True)}" data-still="{still}" data-run="{run}" hidden>
<img id="slides-picture" alt="{escape(alt, quote=True)}" src="data:image/png;base64,{pictures[0]}">
<div class="slides-row"><button type="button" id="slides-play">Play</button>
<input type="range" id="slides-k" aria-label="step" min="0" max="{last}" step="1" value="0">
<output id="slides-value" for="slides-k" aria-live="off">0 of {last}</output></div>
<p id="slides-status" role="status"></p></div>
<script>{_SCRIPT}</script>"""


def slides(frames: Sequence[np.ndarray], captions: Sequence[str], *, still: str, alt: str) -> None:
    """Offer the page pictures to step through; without scripts and on paper its still figure stays.

    Args:
        frames: each of them images, (n, side * side) from -1 (paper) to 1 (ink).
        captions: a sentence for each frame.
        still: name of the figure that they replace, as given to :func:`itlib.figures.show`.
        alt: what the pictures show, in a sentence.
    """
    from IPython.display import HTML, display

    display(HTML(slides_html(frames, captions, still, alt)))
