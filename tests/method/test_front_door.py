"""What ``import itlib`` gives: the names that people need, each in a runnable example, and no torch before it is used."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import itlib


def test_the_examples_run() -> None:
    result = doctest.testmod(itlib)
    assert result.attempted > 20
    assert result.failed == 0


def test_every_name_is_there_and_in_an_example() -> None:
    text = itlib.__doc__ or ""
    for name in itlib.__all__:
        assert getattr(itlib, name).__doc__
        assert name == "Linear" or f"{name}" in text.replace("_", "_")
    assert sorted(itlib.__all__) == itlib.__all__


def test_static_and_lazy_names_agree() -> None:
    tree = ast.parse(Path(itlib.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    static = {
        (node.module.removeprefix("itlib."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert static == {(module, name) for module, names in itlib._MODULES.items() for name in names}
    assert {name for _, name in static} == set(itlib.__all__)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Denoiser'"):
        itlib.Denoiser  # noqa: B018


def test_it_starts_without_torch() -> None:
    code = "import sys, itlib; itlib.__version__; print('torch' in sys.modules); itlib.Cosine; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True"]
