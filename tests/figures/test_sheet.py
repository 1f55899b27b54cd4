"""Small images in one picture: what a reader sees of each."""

from __future__ import annotations

import base64
import io

import numpy as np
from matplotlib.image import imread

from itlib.figures import sheet


def test_ink_is_black_and_each_image_has_its_place() -> None:
    images = np.full((3, 4), -1.0)  # three images of 2 x 2 pixels
    images[2, 1] = 1.0  # the third has ink at the right of its first row
    pixels = imread(io.BytesIO(base64.b64decode(sheet(images[[0, 2]], columns=2))))[..., 0]
    assert pixels.shape == (4, 8)  # a margin of one pixel around each
    assert np.argwhere(pixels < 0.1).tolist() == [[1, 6]]
    assert np.unique(pixels).tolist() == [0.0, 1.0]
