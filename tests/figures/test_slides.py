"""Pictures to step through: what a reader sees of an image, and what a page is given."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
from bs4 import BeautifulSoup
from matplotlib.image import imread

from itlib.figures.slides import sheet, slides_html


def test_ink_is_black_and_each_image_has_its_place() -> None:
    images = np.full((3, 4), -1.0)  # three images of 2 x 2 pixels
    images[2, 1] = 1.0  # the third has ink at the right of its first row
    pixels = imread(io.BytesIO(base64.b64decode(sheet(images[[0, 2]], columns=2))))[..., 0]
    assert pixels.shape == (4, 8)  # a margin of one pixel around each
    assert np.argwhere(pixels < 0.1).tolist() == [[1, 6]]
    assert np.unique(pixels).tolist() == [0.0, 1.0]


def test_a_page_gets_every_frame_and_its_caption() -> None:
    frames = [np.full((1, 4), value) for value in (-1.0, 1.0)]
    captions = ['a "quoted" <b>', "second"]
    page = BeautifulSoup(slides_html(frames, captions, "still", "two pictures"), "html.parser")
    root = page.select_one("#slides")
    assert root is not None
    run = json.loads(str(root["data-run"]))
    assert run == {"frames": [sheet(frame) for frame in frames], "names": captions}
    assert (root["data-still"], root["aria-label"]) == ("still", "two pictures")
    slider = page.select_one("input")
    assert slider is not None
    assert slider["max"] == "1"
