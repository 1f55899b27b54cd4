"""The kernel of a page: this environment's Python, and the library that the batch runs from."""

import os
import sys
from pathlib import Path

import itlib


def main() -> None:
    """Start it, unless it would import another library than the batch, whose name the pages would carry."""
    found, wanted = Path(itlib.__file__ or "").parent.resolve(), Path(os.environ["ITLIB_PACKAGE"])
    if found != wanted:
        sys.exit(f"it would import {found} and not {wanted}: run the batch with the Python of its own checkout")
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    main()
