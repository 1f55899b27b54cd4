"""Whether the checks bite: break one formula at a time, and see the check that book/equations.yml names for it fail.

    python tests/support/mutants.py              all of them
    python tests/support/mutants.py 2.7 3.10     some

A mutant flips a sign or drops a factor in one file. The check is a test of pytest, or a notebook whose asserts are run in
the smoke profile. Each mutant is a copy, tried in a process that is forked after torch is loaded, which saves much time.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
EQUATIONS = ROOT / "book" / "equations.yml"


def entries() -> list[dict[str, Any]]:
    """The table of numbered equations, results and algorithms."""
    found: list[dict[str, Any]] = yaml.safe_load(EQUATIONS.read_text())
    return found


def mutated_copy(mutant: dict[str, str], folder: Path) -> Path:
    """A copy of library and notebooks with one place changed.

    Raises:
        ValueError: if the text to change is not there exactly once.
    """
    for name in ("itlib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    (folder / "book").symlink_to(ROOT / "book")
    path = folder / mutant["file"]
    text = path.read_text()
    if (count := text.count(mutant["old"])) != 1:
        raise ValueError(f"{mutant['file']} holds {mutant['old']!r} {count} times, not once")
    path.write_text(text.replace(mutant["old"], mutant["new"]))
    return folder


def verdict(entry: dict[str, Any], folder: Path) -> str:
    """Run the check of an entry against the library in ``folder``: "fails", "passes", or what else went wrong."""
    sys.path.insert(0, str(folder))
    check = entry["check"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        if check.startswith("tests/"):
            import pytest

            os.chdir(ROOT)
            status = pytest.main(["-x", "-p", "no:cacheprovider", "--tb=no", check])
            return {0: "passes", 1: "fails"}.get(int(status), f"pytest ended with {status!r}")
        path = folder / check
        source = re.sub(r'^profile = "full"', 'profile = "smoke"', path.read_text(), flags=re.MULTILINE)
        path.write_text(source)
        os.chdir(path.parent)
        try:
            runpy.run_path(str(path), run_name="__main__")
        except AssertionError:
            return "fails"
        except Exception:
            return traceback.format_exc(limit=-2)
        return "passes"


def survivors(chosen: Iterable[dict[str, Any]], jobs: int = os.cpu_count() or 1) -> dict[str, str]:
    """Entries whose check does not fail when their formula is broken, and what it did instead."""
    waiting, running, found = list(chosen), {}, {}
    with tempfile.TemporaryDirectory(prefix="itlib-mutants-") as scratch:
        while waiting or running:
            while waiting and len(running) < jobs:
                entry = waiting.pop(0)
                place = Path(scratch) / entry["id"].replace(" ", "_")
                report = place.with_suffix(".txt")
                pid = os.fork()
                if pid == 0:
                    try:
                        place.mkdir()
                        said = verdict(entry, mutated_copy(entry["mutant"], place))
                    except BaseException:
                        said = traceback.format_exc(limit=-2)
                    try:
                        report.write_bytes(said.encode("utf-8", "backslashreplace"))  # a report that fails says nothing
                    finally:
                        os._exit(0)
                running[pid] = (entry["id"], report)
            pid, _ = os.waitpid(-1, 0)
            name, report = running.pop(pid)
            result = report.read_text("utf-8") if report.exists() else "its process was killed"
            if result != "fails":
                found[name] = result
            print(f"{name}: {'bites' if result == 'fails' else result}", flush=True)
    return found


def main(arguments: list[str]) -> int:
    """Run the mutants of the named entries, or all."""
    for slow in (
        "torch",
        "torch._dynamo",
        "numpy",
        "pandas",
        "scipy.optimize",
        "matplotlib.figure",
        "IPython.display",
        "torchdiffeq",
        "pytest",
    ):
        __import__(slow)  # before the forks, and nothing that starts a thread
    chosen = [e for e in entries() if not arguments or e["id"] in arguments]
    bad = survivors([e for e in chosen if "mutant" in e])
    print(f"{len(chosen) - len(bad)} of {len(chosen)} bite")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
