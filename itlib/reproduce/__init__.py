"""The batch behind ``python -m itlib.reproduce``: the paper's grid, the chapters' experiments, and the pages of the book.

:mod:`~itlib.reproduce.plan` says which cells there are, :mod:`~itlib.reproduce.cell` what one of them is and does,
:mod:`~itlib.reproduce.worker` gives it a process, :mod:`~itlib.reproduce.execute` runs them in their order, here or on a
:mod:`~itlib.reproduce.cluster`, and :mod:`~itlib.reproduce.verify` asks whether a record comes out again.
"""
