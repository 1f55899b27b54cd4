"""The papermill batch behind ``python -m itlib.reproduce``."""
