r"""What the explorers, pictures that a reader can move, are given by a notebook: data, and a place on the page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.image import imsave

from itlib.gaussian_mixture import GaussianMixture
from itlib.rewards import QuadraticReward


def as_model(value: GaussianMixture | QuadraticReward) -> Any:
    """A mixture or a reward of the plane as the scripts of the book take it: lists and numbers."""
    if isinstance(value, QuadraticReward):
        (xx, xy), (_, yy) = value.A.tolist()
        return {"A": [xx, xy, yy], "b": value.b.tolist(), "c": float(value.c)}
    parts = zip(value.weights.tolist(), value.means.tolist(), value.covariances.tolist(), strict=True)
    return [{"weight": w, "mean": m, "cov": [xx, xy, yy]} for w, m, ((xx, xy), (_, yy)) in parts]


def sheet(images: np.ndarray, columns: int = 8) -> str:
    """Square grey images, (n, side * side) from -1 (paper) to 1 (ink), in rows: a small PNG in base64."""
    side = round(images.shape[1] ** 0.5)
    tiles = [np.pad(image, 1, constant_values=-1) for image in images.reshape(-1, side, side)]
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(rows, 0), cmap="gray_r", vmin=-1, vmax=1, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def explorer_html(name: str, model: Mapping[str, Any], still: str) -> str:
    """Where an explorer goes, with what it shows: hidden until its script has filled it. See :func:`explorer`."""
    text = escape(json.dumps(model, separators=(",", ":"), allow_nan=False), quote=True)
    return f'<div class="explorer" data-explorer="{name}" data-figure="{still}" data-model="{text}" hidden></div>'


def explorer(name: str, model: Mapping[str, Any], still: str) -> None:
    """Offer the page a picture that its reader can move, in place of a still one.

    On a page of the book the script ``book/_static/explorers/NAME.js`` takes the place of the captioned figure. Without
    scripts, on paper and in JupyterLab the figure stays.

    Args:
        name: of the script.
        model: what it shows: numbers, strings, lists and dictionaries; mixtures and rewards by :func:`as_model`,
            small images by :func:`sheet`.
        still: name of the figure, as given to :func:`show`.
    """
    from IPython.display import HTML, display

    display(HTML(explorer_html(name, model, still)))
