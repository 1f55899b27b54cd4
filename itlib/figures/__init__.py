"""The look of the figures; the only part that imports matplotlib."""
