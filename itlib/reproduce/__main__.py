"""``python -m itlib.reproduce``."""

import sys

from itlib.reproduce.batch import main

sys.exit(main())
