"""``python -m itlib.reproduce``."""

import sys

if sys.platform == "win32":
    sys.exit("error: the batch runs on Linux and macOS; on Windows use it inside WSL (the library itself runs anywhere)")

from itlib.reproduce.command import main

sys.exit(main())
